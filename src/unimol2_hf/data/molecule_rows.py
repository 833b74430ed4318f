"""What a row of a source of molecules is, and which columns to read of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..conformers import ConformerProvenance
from ..errors import TableError
from ..molecules import Molecule

Fields = list[pa.Field]


@dataclass(frozen=True)
class MoleculeRow:
    """One row of a file of molecules.

    Attributes:
        number: its position in the file, from 0.
        id: its name in the file, "" where it has none.
        smiles: as the file has it; of a molecule with its own coordinates, RDKit's.
        molecule: what the featurizer gets: a SMILES, a molecule, a SMILES with coordinates, or why there is none.
        provenance: of the coordinates that the file brings along, where it tells.
        kept: numbers (width,) of the columns that were to be kept, NaN where missing.
        cells: the row's values by column, as the source has them, where they were asked for.
    """

    number: int
    id: str
    smiles: str
    molecule: Molecule
    provenance: tuple[ConformerProvenance, ...] = ()
    kept: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    cells: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Columns:
    """What to read of each row.

    Attributes:
        smiles: column of SMILES; `None` where molecules are atoms and coordinates.
        id: column, or property of an SDF record.
        kept: columns of numbers.
        cells: whether to give every column's value.
    """

    smiles: str | None = "smiles"
    id: str | None = None
    kept: tuple[str, ...] = ()
    cells: bool = False


def text_fields(names: Iterable[str]) -> Fields:
    """Columns of texts."""
    return [pa.field(name, pa.string()) for name in names]


def text_of(value: Any) -> str:
    """A value as a CSV file has it."""
    if value is None:
        return ""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def check_columns(names: Sequence[str], columns: Columns, where: str) -> None:
    """Raise `TableError` where a column that is wanted is missing, or is there twice."""
    wanted = [name for name in (columns.smiles, columns.id) if name] + list(columns.kept)
    for name in wanted:
        if names.count(name) != 1:
            problem = f"no column {name}" if name not in names else f"the column {name} more than once"
            raise TableError(f"{where} has {problem}; its columns are: {', '.join(names)}")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if columns.cells and repeated:
        raise TableError(f"{where} has the column {', '.join(map(repr, repeated))} more than once; rename one")
