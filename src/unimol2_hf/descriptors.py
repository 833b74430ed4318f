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


def require_descriptors(names: Sequence[str]) -> None:
    """Raise `SettingsError` where the installed RDKit lacks a descriptor of these names."""
    known = {name for name, _ in Descriptors._descList}
    for name in names:
        if name not in known:
            raise SettingsError(
                f"RDKit {rdBase.rdkitVersion} has no descriptor {name}, which the model reads; install the RDKit that "
                "its preprocessor_config.json names"
            )


def rdkit_descriptors(molecule: Chem.Mol, names: Sequence[str] | None = None) -> NDArray[np.float32]:
    """Descriptors (T,) of a sanitised molecule; NaN where one is not defined.

    Args:
        molecule: without hydrogens of its own.
        names: which, in order; by default all of `descriptor_names`.
    """
    functions = dict(Descriptors._descList)
    with rdBase.BlockLogs():
        values = [_value(functions[name], molecule) for name in (descriptor_names() if names is None else names)]
    return np.array(values, dtype=np.float32)


def _value(function: object, molecule: Chem.Mol) -> float:
    try:
        value = float(function(molecule))  # type: ignore[operator]
    # A partial charge, a logarithm of nothing: RDKit has many ways to fail on molecules nobody thought of.
    except (ArithmeticError, IndexError, KeyError, RuntimeError, ValueError):
        return math.nan
    return value if abs(value) <= np.finfo(np.float32).max else math.nan
