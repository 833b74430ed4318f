"""What a fine-tuning does where nothing is said: epochs by the size of the table, the rate by that of the model."""

from dataclasses import dataclass

from ..configuration_unimol2 import UniMol2Config
from .settings import FinetuneSettings

# Seven passes, and so many samples at least, measured with unimol2-nano (benchmarks/finetuning/defaults.md): more gain
# a little, and 1,500 molecules of 34 heavy atoms would take more than eight minutes on two cores.
_FEWEST_EPOCHS, _MOST_EPOCHS = 7, 30
_FEWEST_SAMPLES = 8_400
# The reference's rate for the published scales, which nobody could measure here; narrow models want more.
_PUBLISHED_WIDTH = 768
_RATE, _RATE_OF_NARROW_MODELS = 1e-4, 8e-4


@dataclass(frozen=True)
class Recipe:
    """Epochs and peak rate of a run."""

    epochs: int
    learning_rate: float


def recipe_for(settings: FinetuneSettings, config: UniMol2Config, training_rows: int) -> Recipe:
    """What the settings say, and for the rest the defaults.

    Args:
        settings: of the run.
        config: of the model that is trained.
        training_rows: labelled rows of the training part.
    """
    epochs = min(max(_FEWEST_SAMPLES // max(1, training_rows), _FEWEST_EPOCHS), _MOST_EPOCHS)
    rate = _RATE if config.hidden_size >= _PUBLISHED_WIDTH else _RATE_OF_NARROW_MODELS
    return Recipe(
        epochs if settings.epochs is None else settings.epochs,
        rate if settings.learning_rate is None else settings.learning_rate,
    )
