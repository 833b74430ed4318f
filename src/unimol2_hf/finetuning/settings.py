"""What decides a fine-tuning run."""

from dataclasses import dataclass

from ..data.splits import SPLIT_METHODS
from ..errors import TableError
from ..models.packaged import NANO_NAME, resolve_model
from ..settings_unimol2 import POOLINGS, PRECISIONS

LOSSES = ("smooth_l1", "l1", "mse")


@dataclass
class FinetuneSettings:
    """Everything that decides a fine-tuning run; the defaults suit a small model and a few thousand molecules.

    Attributes:
        model: "unimol2-nano" (pretrained, in the package), a scale name (random weights), a folder, or a Hub id.
        smiles_column, targets, split_column: columns of the table.
        split_method: "scaffold" or "random", where there is no split column.
        epochs, batch_size, learning_rate, warmup: training length and rate; warmup is a share of all steps.
        weight_decay: AdamW's.
        patience: epochs without a better validation loss before training stops; 0 trains to the end.
        loss: "smooth_l1", "l1" or "mse", on standardised labels.
        pooling: what the task head reads, "cls" or "mean" (of the atoms); None for what the model's config says.
        num_conformers, include_2d: training draws one at random, evaluation takes the mean over all.
        precision: "float32", or "bfloat16" for autocast in training.
        max_atoms: molecules with more heavy atoms are recorded as failed.
        seed: of split, weights, batches and conformer draws.
        num_workers: processes for conformers.
    """

    model: str = NANO_NAME
    smiles_column: str = "smiles"
    targets: tuple[str, ...] = ()
    split_column: str | None = None
    split_method: str = "scaffold"
    epochs: int = 60
    batch_size: int = 32
    learning_rate: float = 4e-4
    warmup: float = 0.06
    weight_decay: float = 0.0
    patience: int = 0
    loss: str = "smooth_l1"
    pooling: str | None = None
    num_conformers: int = 1
    include_2d: bool = False
    precision: str = "float32"
    max_atoms: int = 256
    seed: int = 0
    num_workers: int = 2

    def __post_init__(self) -> None:
        self.model = resolve_model(self.model)
        if self.precision not in PRECISIONS:
            raise TableError(f"unknown precision {self.precision!r}; use one of {', '.join(PRECISIONS)}")
        if self.loss not in LOSSES:
            raise TableError(f"unknown loss {self.loss!r}; use one of {', '.join(LOSSES)}")
        if self.pooling not in (None, *POOLINGS):
            raise TableError(f"unknown pooling {self.pooling!r}; use one of {', '.join(POOLINGS)}")
        if self.split_method not in SPLIT_METHODS:
            raise TableError(f"unknown split {self.split_method!r}; use one of {', '.join(SPLIT_METHODS)}")
        if self.seed < 0:
            raise TableError(f"seed is {self.seed}; use 0 or more")
