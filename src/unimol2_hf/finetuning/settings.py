"""What decides a fine-tuning run; the defaults suit a small model and a few thousand molecules."""

from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

from ..errors import SettingsError
from ..settings_unimol2 import (
    MACHINE,
    NANO_NAME,
    SCALES,
    TRAINING,
    Pooling,
    RegressionLoss,
    Settings,
    TrainingPrecision,
    option,
)


@dataclass(frozen=True)
class FinetuneSettings(Settings):
    """A fine-tuning run.

    `featurizer` holds options of `FeaturizerSettings` that replace the model folder's own. Training draws one of a
    molecule's conformers at random, evaluation takes the mean over all.
    """

    targets: tuple[str, ...] = option(MISSING, "label columns, comma-separated")
    tasks: tuple[str, ...] = option(
        (),
        "kind of a target where it is not to be guessed, as column=regression, =binary or =multiclass",
        flag="task",
    )
    model: str = option(NANO_NAME, "unimol2-nano (pretrained), a folder or a Hub id")
    scale: str | None = option(None, f"random weights of a scale instead: {', '.join(SCALES)}", group=TRAINING)
    split_column: str | None = option(None, "column with train, valid, test; without one the table is split")
    split_method: Literal["scaffold", "random"] = option("scaffold", "how it is split")
    epochs: int = option(60, "passes over the training part", minimum=1)
    smiles_column: str = option("smiles", "column with SMILES")
    feature_columns: tuple[str, ...] = option(
        (), "numeric columns that the model reads besides the molecule, and asks for at prediction (assay pH, dose)"
    )
    weight_column: str | None = option(None, "column with what a row counts in training")
    batch_size: int = option(32, "molecules of a batch", group=TRAINING, minimum=1)
    learning_rate: float = option(4e-4, "peak rate", group=TRAINING, minimum=0)
    warmup: float = option(0.06, "share of all steps in which the rate rises", group=TRAINING, minimum=0, maximum=0.99)
    weight_decay: float = option(0.0, "AdamW's", group=TRAINING, minimum=0)
    patience: int = option(
        0, "epochs without a better validation loss before training stops; 0: never", group=TRAINING, minimum=0
    )
    loss: RegressionLoss = option("smooth_l1", "on standardised labels", group=TRAINING)
    pooling: Pooling | None = option(
        None,
        "what the task head reads, the CLS or the mean of the atoms; default: as the model's config says",
        group=TRAINING,
    )
    class_weights: Literal["none", "balanced"] = option(
        "none",
        "balanced: rare classes count as much as frequent ones; probabilities are then no frequencies",
        group=TRAINING,
    )
    report_to: str = option("none", "tensorboard, wandb, ...: where the Trainer reports besides", group=TRAINING)
    precision: TrainingPrecision = option("float32", "of training; bfloat16 is autocast", group=TRAINING)
    seed: int = option(0, "of split, weights, batches and conformer draws", group=TRAINING, minimum=0)
    num_workers: int | None = option(None, "processes for conformers; default: all cores", group=MACHINE, minimum=0)
    featurizer: dict[str, Any] = option({}, "options of the featurizer")

    def of_output(self) -> dict[str, Any]:
        """The settings on which the output depends; where the others change, a run may go on."""
        how = ("model", "num_workers", "report_to")
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in how}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale is not None and self.scale.lower() not in SCALES:
            raise SettingsError(f"unknown scale {self.scale!r}; use one of {', '.join(SCALES)}")
        if self.model.lower() in SCALES:
            raise SettingsError(
                f"{self.model} is a scale, not a model: ask for its random weights by scale; the pretrained model that "
                f"comes with the package is {NANO_NAME}"
            )
