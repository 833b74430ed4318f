"""RDKit's molecular descriptors as one vector of a molecule."""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import Descriptors

from .errors import SettingsError

RDKIT = "rdkit"
# Ipc overflows on molecules of any size; the two surface bins are empty for every molecule.
_LEFT_OUT = frozenset(("Ipc", "SMR_VSA8", "SlogP_VSA9"))


@cache
def descriptor_names() -> tuple[str, ...]:
    """Names of the descriptors, in order: all that the installed RDKit lists but three that say nothing."""
    return tuple(name for name, _ in Descriptors._descList if name not in _LEFT_OUT)


def rdkit_descriptors(molecule: Chem.Mol, names: Sequence[str] | None = None) -> NDArray[np.float32]:
    """Descriptors (T,) of a sanitised molecule; NaN where one is not defined.

    Args:
        molecule: without hydrogens of its own.
        names: which, in order; by default all of `descriptor_names`.

    Raises:
        SettingsError: the installed RDKit has no descriptor of a name.
    """
    functions = dict(Descriptors._descList)
    names = descriptor_names() if names is None else names
    unknown = [name for name in names if name not in functions]
    if unknown:
        raise SettingsError(
            f"RDKit {rdBase.rdkitVersion} has no descriptor {unknown[0]}, which the model reads; install the RDKit "
            "that its preprocessor_config.json names"
        )
    with rdBase.BlockLogs():
        values = [_value(functions[name], molecule) for name in names]
    return np.array(values, dtype=np.float32)


def _value(function: object, molecule: Chem.Mol) -> float:
    try:
        value = float(function(molecule))  # type: ignore[operator]
    # A partial charge, a logarithm of nothing: RDKit has many ways to fail on molecules nobody thought of.
    except (ArithmeticError, IndexError, KeyError, RuntimeError, ValueError):
        return math.nan
    return value if abs(value) <= np.finfo(np.float32).max else math.nan
