"""What decides a fine-tuning run; the defaults suit a small model and a few thousand molecules."""

from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

from ..data.settings import CacheSettings
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
    other_default,
)

# Options of training: those of its group, and these, but not those of both kinds of head.
_OF_TRAINING, _OF_BOTH = ("epochs", "search", "seeds"), ("class_weights", "seed")


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
    split_file: str | None = option(
        None,
        "table of molecules and their parts, such as another run's training_set.parquet; its column: split, "
        "unless split_column names another",
    )
    split_method: Literal["scaffold", "cluster", "random"] = option(
        "scaffold", "how it is split: Bemis-Murcko scaffolds, Butina clusters (ECFP4, distance 0.6), or molecules"
    )
    split_by: str | None = option(None, "column of numbers or dates to split by instead: the last tenth is tested on")
    split_folds: int = option(0, "split into so many folds instead of 80/10/10; 0: no folds", minimum=0, maximum=100)
    split_fold: int = option(0, "fold that is tested on, from 0; the next one validates", minimum=0)
    head: Literal["auto", "frozen", "finetuned"] = option(
        "auto",
        "frozen: fit a kernel head on the pretrained model's vectors, in seconds; finetuned: train the whole model; "
        "auto: frozen for small tables (README), finetuned for larger ones or where an option of training is given",
    )
    descriptors: Literal["none", "rdkit"] = option(
        "none", "rdkit: the head also reads RDKit's descriptors of the molecule (7 ms each)"
    )
    folds: int = option(
        0,
        "fit an ensemble on so many folds (3 or more) of train + valid, whose predictions have a spread and intervals; "
        "0: a single model",
        minimum=0,
        maximum=20,
    )
    seeds: int = option(0, "train an ensemble with so many seeds; 0: a single model", minimum=0, maximum=20)
    coverage: float = option(
        0.9,
        "share of new molecules that the intervals of an ensemble on folds are to hold",
        minimum=0.01,
        maximum=0.999,
    )
    search: int = option(
        0,
        "try so many settings of training (the paper's grid; those that are given stay), pruned, judged by the "
        "validation part; 0: none",
        minimum=0,
    )
    epochs: int | None = option(
        None, "passes over the training part; default by the pairs of atoms of the table (README)", minimum=1
    )
    duplicates: Literal["keep", "average", "drop"] = option(
        "keep",
        "rows of one molecule: keep all (in one part of the split), make one row with the mean label, or the same and "
        "drop labels that contradict each other",
    )
    smiles_column: str = option("smiles", "column with SMILES")
    feature_columns: tuple[str, ...] = option(
        (), "numeric columns that the model reads besides the molecule, and asks for at prediction (assay pH, dose)"
    )
    weight_column: str | None = option(None, "column with what a row counts in training")
    batch_size: int = option(32, "molecules of a batch", group=TRAINING, minimum=1)
    learning_rate: float | None = option(
        None, "peak rate; default by size of the model (README)", group=TRAINING, minimum=0
    )
    pooler_dropout: float = option(0.0, "dropout of the task head", group=TRAINING, minimum=0, maximum=0.9)
    lora: int = option(
        0, "train adapters of this rank (LoRA) and the head instead of all weights; 0: all", group=TRAINING, minimum=0
    )
    warmup: float = option(0.06, "share of all steps in which the rate rises", group=TRAINING, minimum=0, maximum=0.99)
    weight_decay: float = option(0.0, "AdamW's", group=TRAINING, minimum=0)
    patience: int = option(
        0, "epochs without a better validation loss before training stops; 0: never", group=TRAINING, minimum=0
    )
    loss: RegressionLoss = option("smooth_l1", "on standardised labels", group=TRAINING)
    pooling: Pooling | None = option(
        None,
        "what the head reads: the CLS, the mean of the atoms, both, or both as means over all layers; default: "
        "cls_mean where it is frozen, else as the model's config says",
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
    conformer_cache: str = other_default(CacheSettings, "conformer_cache", "auto")
    featurizer: dict[str, Any] = option({}, "options of the featurizer")

    def of_output(self) -> dict[str, Any]:
        """The settings on which the output depends; where the others change, a run may go on."""
        return self.all_but("model", "num_workers", "report_to", "conformer_cache")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split_by is not None and (self.split_file is not None or self.split_column is not None):
            raise SettingsError("split_column, split_file and split_by are three ways to split; give one")
        if self.split_folds in (1, 2) or (self.split_folds and self.split_fold >= self.split_folds):
            raise SettingsError(
                f"fold {self.split_fold} of {self.split_folds} folds: use 3 or more folds, counted from 0"
            )
        if self.split_folds and (self.split_column or self.split_file):
            raise SettingsError("folds are made by split_method or split_by; a column or file says the split itself")
        self._check_ensemble()
        if self.scale is not None and self.scale.lower() not in SCALES:
            raise SettingsError(f"unknown scale {self.scale!r}; use one of {', '.join(SCALES)}")
        if self.model.lower() in SCALES:
            raise SettingsError(
                f"{self.model} is a scale, not a model: ask for its random weights by scale; the pretrained model that "
                f"comes with the package is {NANO_NAME}"
            )

    @property
    def options_of_training(self) -> list[str]:
        """The given options that only make sense where the model is trained."""
        named = [each for each in fields(self) if each.metadata.get("group") == TRAINING or each.name in _OF_TRAINING]
        return [each.name for each in named if getattr(self, each.name) != each.default and each.name not in _OF_BOTH]

    def _check_ensemble(self) -> None:
        if self.folds and self.seeds:
            raise SettingsError("folds and seeds are two ways to make an ensemble; give one")
        if self.folds in (1, 2) or self.seeds == 1:
            raise SettingsError("an ensemble has 3 or more folds, since each model leaves out two, or 2 or more seeds")
        # A frozen head can read random weights too, and vectors are made in batches.
        trained = [name for name in self.options_of_training if name not in ("scale", "batch_size")]
        if self.head == "frozen" and trained:
            raise SettingsError(f"a frozen head is not trained, so {', '.join(trained)} would do nothing; leave it out")
