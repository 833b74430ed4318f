"""Settings: what an option is, those of conformers and featurizer, and names that several components share.

An option is written once, as a field of the settings class of the component that it configures: type, bounds, help.
Command line, `--config` files, `settings.json`, the table of options and the checks are made from that.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import SettingsError

Pooling = Literal["cls", "mean", "cls_mean", "layers_mean"]
TrainingPrecision = Literal["float32", "bfloat16"]  # bfloat16 is autocast
ModelPrecision = Literal["float32", "bfloat16", "float16"]
RegressionLoss = Literal["smooth_l1", "l1", "mse"]
Standardization = Literal["none", "largest-fragment", "parent"]

POOLINGS: tuple[str, ...] = get_args(Pooling)

NANO_NAME = "unimol2-nano"

# Sizes that differ between scales. Published: paper, table 2. nano and micro are this package's own.
SCALES: dict[str, dict[str, int]] = {
    "42m": {"num_hidden_layers": 6, "hidden_size": 768, "pair_hidden_size": 512, "pair_inner_size": 64},
    "84m": {"num_hidden_layers": 12, "hidden_size": 768, "pair_hidden_size": 512, "pair_inner_size": 64},
    "164m": {"num_hidden_layers": 24, "hidden_size": 768, "pair_hidden_size": 512, "pair_inner_size": 64},
    "310m": {"num_hidden_layers": 32, "hidden_size": 1024, "pair_hidden_size": 512, "pair_inner_size": 64},
    "570m": {"num_hidden_layers": 32, "hidden_size": 1536, "pair_hidden_size": 512, "pair_inner_size": 64},
    "1.1b": {"num_hidden_layers": 64, "hidden_size": 1536, "pair_hidden_size": 512, "pair_inner_size": 64},
    "nano": {"num_hidden_layers": 4, "hidden_size": 352, "pair_hidden_size": 64, "pair_inner_size": 16},
    "micro": {"num_hidden_layers": 4, "hidden_size": 96, "pair_hidden_size": 48, "pair_inner_size": 16},
}

# Field of a settings class with options of the featurizer that replace the model folder's own.
FEATURIZER = "featurizer"
TRAINING, CONFORMERS, OUTPUT, MACHINE = "Training", "Conformers", "Output", "Machine"

LARGEST_ATOMIC_NUMBER = 118
MASK_TOKEN = 127  # in the place of a masked atom's atomic number
IGNORE_INDEX = -100  # label of an atom that is not asked for
LONGEST_PATH = 509  # bonds; the code of the next one says "unreachable"
LARGEST_SEED = 2**31 - 1
RETRY_SEED_STEP = 10_000  # far from the seeds of a molecule's other conformers


def option(
    default: Any,
    help: str,
    *,
    group: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    flag: str = "",
) -> Any:
    """A field of a settings class.

    Args:
        default: its value unless given; `dataclasses.MISSING` for one that must be given.
        help: what it decides, its unit, what a missing value means.
        group: heading under which the command line lists it; "" for those that matter first.
        minimum, maximum: bounds of a number, both included.
        flag: name on the command line and in files, where the field's own would clash with another component's.
    """
    metadata = {"help": help, "group": group, "minimum": minimum, "maximum": maximum, "flag": flag}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def other_default(settings: type["Settings"], name: str, default: Any) -> Any:
    """An option of another component with a default of this one's own; a table beside it says why."""
    known = next(each.metadata for each in fields(settings) if each.name == name)  # type: ignore[arg-type]
    return field(default=default, metadata=known)


class Settings:
    """Base of all settings classes: values are checked when one is made.

    Raises:
        SettingsError: a value of another type, not among the known ones, or out of bounds.
    """

    def __post_init__(self) -> None:
        hints = hints_of(type(self))  # type: ignore[arg-type]
        for each in fields(self):  # type: ignore[arg-type]
            _check(each.name, getattr(self, each.name), hints[each.name], each.metadata)

    def all_but(self, *names: str) -> dict[str, Any]:
        """Values by the fields' names, without those named."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in names}  # type: ignore[arg-type]

    def as_options(self) -> dict[str, Any]:
        """Every option by its name on the command line, as `settings.json` holds it and `--config` reads it back."""
        options = {flag_of(each): getattr(self, each.name) for each in fields(self)}  # type: ignore[arg-type]
        # The featurizer's are options of their own.
        overrides = options.pop(FEATURIZER, {})
        flags = {each.name: flag_of(each) for each in fields(FeaturizerSettings)}
        return options | {flags[name]: value for name, value in overrides.items()}


def flag_of(option_: Any) -> str:
    """Name of a dataclass field on the command line and in files, with underscores."""
    return str(option_.metadata.get("flag") or option_.name)


@cache
def hints_of(settings: type[Settings]) -> dict[str, Any]:
    """Types of a settings class's fields."""
    return get_type_hints(settings)


def kind_of(hint: Any) -> tuple[Any, bool]:
    """A type without its None, and whether it had one."""
    if get_origin(hint) in (Union, UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not NoneType]
        return kinds[0], len(kinds) < len(get_args(hint))
    return hint, False


def _check(name: str, value: Any, hint: Any, metadata: Mapping[str, Any]) -> None:
    kind, optional = kind_of(hint)
    if value is None and optional:
        return
    origin = get_origin(kind)
    if origin is Literal:
        if value not in get_args(kind):
            raise SettingsError(f"unknown {name} {value!r}; use one of {', '.join(get_args(kind))}")
    elif kind in (int, float):
        _check_number(name, value, whole=kind is int, metadata=metadata)
    elif kind is bool:
        if not isinstance(value, bool):
            raise SettingsError(f"{name} is {value!r}; use true or false")
    elif origin is tuple:
        if isinstance(value, str) or not isinstance(value, tuple | list):
            raise SettingsError(f"{name} is {value!r}; give a list")
    elif origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise SettingsError(f"{name} is {value!r}; give a mapping")
    elif kind is str and not isinstance(value, str):
        raise SettingsError(f"{name} is {value!r}; give text")


def _check_number(name: str, value: Any, whole: bool, metadata: Mapping[str, Any]) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        raise SettingsError(f"{name} is {value!r}; give a {'whole ' if whole else ''}number")
    low, high = metadata.get("minimum"), metadata.get("maximum")
    # Written so that NaN is out of bounds.
    if math.isfinite(value) and (low is None or value >= low) and (high is None or value <= high):
        return
    if low is not None and high is not None:
        bounds = f"{low} to {high}"
    else:
        bounds = "a finite number" if low is None else f"{low} or more"
    raise SettingsError(f"{name} is {value}; use {bounds}")


@dataclass(frozen=True)
class ConformerSettings(Settings):
    """How conformers are made."""

    num_conformers: int = option(
        1,
        "3D conformers of a molecule; the k-th starts from the seed plus k",
        group=CONFORMERS,
        minimum=0,
        maximum=1000,
    )
    include_2d: bool = option(False, "add RDKit's 2D depiction as a last conformer", group=CONFORMERS)
    seed: int = option(
        42, "seed of the first 3D conformer", group=CONFORMERS, minimum=0, maximum=LARGEST_SEED, flag="conformer_seed"
    )
    force_field: Literal["MMFF94", "UFF", "none"] = option(
        "MMFF94", "relaxes embedded conformers; the reference's is MMFF94", group=CONFORMERS
    )
    # Attempts are bounded by their number. Where the clock decides, which the conformer's note tells, the answer
    # depends on the machine's load.
    embed_timeout: int = option(
        3600, "seconds after which RDKit is stopped, the last resort", group=CONFORMERS, minimum=1
    )
    num_retries: int = option(3, "further seeds before random starting coordinates", group=CONFORMERS, minimum=0)
    allow_2d_fallback: bool = option(
        True, "take the 2D depiction, and record it, where no 3D conformer can be embedded", group=CONFORMERS
    )
    # The set-up of distance geometry and the 2D drawing grow with the cube of the count and ignore the timeout: 3,002
    # atoms took 246 s and 64 s.
    max_embed_atoms: int = option(
        1000, "most atoms, hydrogens included, of a molecule to make conformers of", group=CONFORMERS, minimum=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_conformers + self.include_2d < 1:
            raise SettingsError(
                f"num_conformers={self.num_conformers} and include_2d={self.include_2d} leave no conformer; ask for at "
                "least one"
            )
        # RDKit reads a seed that overflows as "random": the same molecule would get other coordinates every time.
        last_seed = self.seed + self.num_conformers + RETRY_SEED_STEP * self.num_retries
        if last_seed > LARGEST_SEED:
            raise SettingsError(f"seed is {self.seed}; use 0 to {LARGEST_SEED - (last_seed - self.seed)}")


@dataclass(frozen=True)
class FeaturizerSettings(ConformerSettings):
    """How molecules become model input; what `UniMol2FeatureExtractor` is made of."""

    atom_order: Literal["canonical", "as_written"] = option(
        "canonical",
        "in which conformers and features are made: canonical gives every way of writing a molecule the same answer, "
        "as_written the reference's coordinates",
        group=CONFORMERS,
    )
    standardize: Standardization = option(
        "none",
        "what of a molecule is read: all of it, its largest fragment, or its parent (normalised, largest fragment, "
        "neutral)",
        group=CONFORMERS,
    )
    max_atoms: int = option(
        256,
        "most heavy atoms of a molecule; published models saw at most 256",
        group=CONFORMERS,
        minimum=1,
        maximum=LONGEST_PATH,
    )
    max_atoms_policy: Literal["error", "crop"] = option(
        "error",
        "refuse a larger molecule, or keep the atoms nearest, in bonds, to the graph's centre and record it",
        group=CONFORMERS,
    )
    use_graph_features: bool = option(
        True,
        "off: every molecule gets the paper's dropped features (its QM9 setting), and needs no bonds",
        group=CONFORMERS,
        flag="graph_features",
    )


FEATURIZER_OPTIONS = tuple(each.name for each in fields(FeaturizerSettings))

# The same options where a model folder has its own: those that are given replace them.
FeaturizerOverrides: Any = make_dataclass(
    "FeaturizerOverrides",
    [
        (each.name, hints_of(FeaturizerSettings)[each.name] | None, field(default=None, metadata=each.metadata))
        for each in fields(FeaturizerSettings)
    ],
    frozen=True,
    namespace={"__module__": __name__},
)
