"""A table of molecules in memory: every row of every kind of source, its cells as texts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

from ..errors import TableError
from ..molecules import Molecule
from .molecule_files import Source, open_rows
from .molecule_rows import Columns, text_of


@dataclass(frozen=True)
class MoleculeTable:
    """Rows of a source of molecules.

    Attributes:
        smiles: (n,) as the source has them, "" where it has none; of SDF records RDKit's.
        molecules: (n,) what the featurizer gets; a row that could not be read is its error.
        cells: (n, columns) texts, "" where there is none.
    """

    smiles: list[str]
    molecules: list[Molecule]
    cells: pd.DataFrame

    def __len__(self) -> int:
        return len(self.molecules)


def read_table(source: Source, smiles_column: str = "smiles") -> MoleculeTable:
    """Read all rows of a source (see `read_molecules`) with all their columns.

    Raises:
        TableError: it cannot be read, lacks the column of SMILES, or has a column twice.
    """
    fields, rows = open_rows(source, Columns(smiles_column, cells=True))
    read = list(rows)
    names = [field.name for field in fields if not pa.types.is_nested(field.type)]
    texts = [[text_of(row.cells.get(name)) for name in names] for row in read]
    cells = pd.DataFrame(texts, columns=names, dtype=object)
    return MoleculeTable([row.smiles for row in read], [row.molecule for row in read], cells)


def require_columns(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Raise `TableError` that names the missing columns and the ones there are."""
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise TableError(f"the table has no column {', '.join(missing)}; it has: {', '.join(map(str, table.columns))}")


def conformer_summary(methods: Iterable[str]) -> str:
    """The methods by which a molecule's conformers came about, in order, each once."""
    return "+".join(dict.fromkeys(methods))


def add_note(notes: list[str], row: int, text: str) -> None:
    """Add to what is told of a row."""
    notes[row] = f"{notes[row]}; {text}" if notes[row] else text
