"""What a fine-tuning does where nothing is said: epochs by the size of the table, the rate by that of the model.

The size of a table is its pairs of atoms, which are what a step costs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..configuration_unimol2 import UniMol2Config
from .settings import FinetuneSettings

# Measured with unimol2-nano (benchmarks/finetuning/defaults.md). Twice as many passes gain 0.6 % on Biogen: those of
# 1,500 molecules of 34 heavy atoms, seven, must end within eight minutes on two cores.
_PAIRS = 10_000_000
_FEWEST_EPOCHS, _MOST_EPOCHS = 7, 30
# The reference's rate for the published scales, which nobody could measure here; narrow models want more. Half of
# nano's is level on ESOL and BBBP and 5 % behind on Biogen, twice as much behind on ESOL; the first edition's outputs
# became constant with that on Tox21 (benchmarks/LOG.md).
PUBLISHED_WIDTH = 768
_RATE, _RATE_OF_NARROW_MODELS = 1e-4, 4e-4
# Rows for training and validation up to which a frozen head is as good as fine-tuning, with nano: level on ESOL (1,011
# rows), behind on BBBP (1,830; benchmarks/finetuning/heads.md).
MOST_FROZEN_ROWS = 1500


@dataclass(frozen=True)
class Recipe:
    """Epochs and peak rate of a run."""

    epochs: int
    learning_rate: float


def recipe_for(settings: FinetuneSettings, config: UniMol2Config, heavy_atoms: Sequence[int]) -> Recipe:
    """What the settings say, and for the rest the defaults.

    Args:
        settings: of the run.
        config: of the model that is trained.
        heavy_atoms: of each molecule of the training part.
    """
    pairs = sum((count + 1) ** 2 for count in heavy_atoms)
    epochs = min(max(_PAIRS // max(1, pairs), _FEWEST_EPOCHS), _MOST_EPOCHS)
    rate = _RATE if config.hidden_size >= PUBLISHED_WIDTH else _RATE_OF_NARROW_MODELS
    return Recipe(
        epochs if settings.epochs is None else settings.epochs,
        rate if settings.learning_rate is None else settings.learning_rate,
    )
