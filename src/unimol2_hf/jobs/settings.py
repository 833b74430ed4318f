"""What decides a job over a whole file of molecules, and how it is computed."""

from dataclasses import dataclass
from typing import Any, Literal

from ..data.settings import CacheSettings
from ..errors import SettingsError
from ..settings_unimol2 import (
    MACHINE,
    NANO_NAME,
    OUTPUT,
    ConformerSettings,
    FeaturizerSettings,
    ModelPrecision,
    Pooling,
    Settings,
    option,
    other_default,
)

RANKING, RAY = "Ranking", "Ray"

# Where a command's default is another one than the component's, and why.
OTHER_DEFAULTS: dict[str, tuple[Any, str]] = {
    "num_conformers": (10, "conformers build: pretraining draws from 10 conformers (arXiv 2406.14969, section 3)"),
    "conformer_cache": (
        "none",
        "embed, predict: a library's would fill disk and memory; embed --keep-conformers keeps them",
    ),
    "include_2d": (True, "conformers build: and from the 2D one (the same)"),
}


@dataclass(frozen=True)
class ModelJobSettings(Settings):
    """What the jobs with a model share.

    `featurizer` holds options of `FeaturizerSettings` that replace the model folder's own.
    """

    smiles_column: str = option("smiles", "column with SMILES")
    ignore_conformers: bool = option(False, "make conformers also where the file brings some", group=OUTPUT)
    rows_per_shard: int = option(
        8192, "consecutive rows of a Parquet file; what a kill can cost", group=OUTPUT, minimum=1
    )
    precision: ModelPrecision = option("float32", "what the model computes in", group=MACHINE)
    batch_size: int = option(32, "most conformers of a batch", group=MACHINE, minimum=1)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...", group=MACHINE)
    compile: Literal["none", "dynamic", "static"] = option(
        "none",
        "for long runs: one graph for all shapes (two minutes at the start), or fixed shapes, one graph each",
        group=MACHINE,
    )
    num_workers: int | None = option(None, "processes for conformers; default: all cores", group=MACHINE, minimum=0)
    conformer_cache: str = other_default(CacheSettings, "conformer_cache", OTHER_DEFAULTS["conformer_cache"][0])
    featurizer: dict[str, Any] = option({}, "options of the featurizer")


@dataclass(frozen=True)
class PredictSettings(ModelJobSettings):
    """Prediction for every row of a library."""

    coverage: float | None = option(
        None,
        "share of new molecules that intervals are to hold; default: as the model was fitted for",
        minimum=0.01,
        maximum=0.999,
    )
    top: int = option(0, "also write a ranking of so many rows", group=RANKING, minimum=0)
    rank_by: str | None = option(
        None, "column of predictions, or target, to rank by; default: the first target", group=RANKING
    )
    lowest: bool = option(False, "the lowest values first", group=RANKING)
    top_output: str | None = option(
        None, "CSV or SDF of the ranking; default: top.csv, beside a file FILE.top.csv", group=RANKING
    )

    def of_output(self) -> dict[str, Any]:
        """The settings on which the predictions depend; where the others change, a job may go on."""
        ranking = ("top", "rank_by", "lowest", "top_output")
        return self.all_but("device", "num_workers", "conformer_cache", *ranking)


@dataclass(frozen=True)
class EmbedSettings(ModelJobSettings):
    """Everything that decides the output of an embedding job, and how it is computed."""

    model: str = option(NANO_NAME, "unimol2-nano, a folder or a Hub id")
    id_column: str | None = option(None, "column (SDF: property) with the rows' ids")
    pooling: Pooling = option("cls", "the CLS, the mean of the atoms, both, or both as means over all layers")
    per_atom: bool = option(False, "also one vector for each heavy atom")
    keep_conformers: bool = option(False, "also write conformers, as a library that this command reads again")
    store_precision: Literal["float32", "float16"] = option("float32", "of the written vectors", group=OUTPUT)

    def of_output(self) -> dict[str, Any]:
        """The settings on which the output depends; where the others change, a job may go on."""
        return self.all_but("model", "device", "num_workers", "conformer_cache")


@dataclass(frozen=True)
class RaySettings(Settings):
    """Where and how wide a job runs on Ray Data."""

    ray: bool = option(False, "run on Ray Data", group=RAY)
    address: str | None = option(
        None, 'of a running cluster ("auto" finds it); default: a local one', group=RAY, flag="ray_address"
    )
    num_cpus: int | None = option(None, "cores of a local cluster; default: all", group=RAY, minimum=1, flag="ray_cpus")
    num_models: int = option(1, "copies of the model on the cluster", group=RAY, minimum=1, flag="ray_models")
    gpus_per_model: float = option(0, "GPUs of each copy; 0 runs on CPU", group=RAY, minimum=0, flag="ray_gpus")


@dataclass(frozen=True)
class BuildSettings(ConformerSettings):
    """Everything that decides a library of conformers; the defaults are the paper's (10 in 3D, one in 2D)."""

    num_conformers: int = other_default(ConformerSettings, "num_conformers", OTHER_DEFAULTS["num_conformers"][0])
    include_2d: bool = other_default(ConformerSettings, "include_2d", OTHER_DEFAULTS["include_2d"][0])
    max_atoms: int = other_default(FeaturizerSettings, "max_atoms", 256)
    smiles_column: str = option("smiles", "column with SMILES")
    id_column: str | None = option(None, "column (SDF: property) with the rows' ids")
    keep_columns: tuple[str, ...] | None = option(
        None,
        "numeric columns (in Parquet also lists of numbers of one length) to keep, comma-separated: targets for "
        "pretraining; empty cells are missing values",
    )
    descriptors: Literal["rdkit"] | None = option(
        None, "also keep RDKit's descriptors, as a column rdkit_descriptors (7 ms a molecule)"
    )
    rows_per_shard: int = option(
        4096, "consecutive rows of a Parquet file; what a kill can cost", group=OUTPUT, minimum=1
    )
    num_workers: int | None = option(None, "processes; default: all cores", group=MACHINE, minimum=0)

    @property
    def kept(self) -> tuple[str, ...]:
        return tuple(self.keep_columns or ())

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.kept)) < len(self.kept):
            raise SettingsError("keep_columns names a column twice")

    def of_output(self) -> dict[str, Any]:
        """The settings on which the output depends."""
        return self.all_but("num_workers")


@dataclass(frozen=True)
class NeighbourSettings(Settings):
    """How many neighbours of a query, and where they are written."""

    top: int = option(20, "neighbours of each query", minimum=1)
    output: str | None = option(None, "CSV to write; default: a table on the screen")
    smiles_column: str = option("smiles", "column with SMILES of a file of queries")
    id_column: str | None = option(None, "column (SDF: property) with their ids")


@dataclass(frozen=True)
class StatisticsSettings(Settings):
    """Where the statistics of libraries of conformers are written."""

    output_dir: str = option(".", "folder for scaffolds.json and scaffolds.png")
