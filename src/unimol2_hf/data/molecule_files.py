"""Molecules in: every kind of file, table or data set as one stream of rows; every row is kept."""

import atexit
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq

from ..errors import TableError
from .arrow_tables import hub_data_set, open_parquet, open_table
from .molecule_rows import Columns, Fields, MoleculeRow
from .number_columns import width_in_parquet
from .text_files import count_of_rows, open_text

# A path, a pandas DataFrame or a datasets.Dataset; "hf://datasets/<id>" as a path is a data set of the Hub.
Source = Any
HUB_PREFIX = "hf://datasets/"


def read_molecules(
    source: Source, smiles_column: str = "smiles", id_column: str | None = None, keep: Sequence[str] = ()
) -> Iterator[MoleculeRow]:
    """Stream the rows of a file, of a folder of Parquet files in the order of their names, or of a data set.

    - CSV (`.csv`, `.tsv`, `.txt`): comma, semicolon or tab; UTF-8, UTF-16 with its mark, else Windows' Latin-1; a line
      with a wrong number of cells is a row with an error.
    - Excel (`.xlsx`): the first sheet.
    - SMILES (`.smi`, `.smiles`, `.cxsmiles`): SMILES, blank, name; with a header, or tabs, columns.
    - SDF (`.sdf`, `.sd`): 3D coordinates are used; drawings (2D) are not, their conformers are generated.
    - Parquet, pandas, `datasets.Dataset`, `hf://datasets/<id>` (its `train` split): may bring coordinates in
      `conformers` (a list of flat lists, with `provenance`), as `unimol2-hf embed --keep-conformers` writes them, or in
      `coordinates` (one flat list); angstrom, heavy atoms in SMILES order, or, with `atoms` or `atomic_numbers` (of
      symbols or numbers), all atoms in an order of their own. Then SMILES may be missing.

    Text may be compressed (`.gz`, `.bz2`, `.xz`). Empty lines are rows, except at the end of a file.

    The columns to `keep` (of an SDF: properties) hold numbers, in Parquet also lists of numbers; a cell that holds
    something else makes its row an error.

    Raises:
        TableError: no such file, an unknown kind, no such column, or a file that breaks off.
    """
    _, rows = open_rows(source, Columns(smiles_column, id_column, tuple(keep)))
    return rows


def open_rows(source: Source, columns: Columns) -> tuple[Fields, Iterator[MoleculeRow]]:
    """A source's columns, of an SDF only where cells are asked for, and rows; see `read_molecules`."""
    if not isinstance(source, Path):
        return open_table(source, columns)
    if is_on_hub(source):
        return open_table(hub_data_set(source), columns)
    check_readable(source)
    if is_parquet(source):
        return open_parquet(files_of(source), columns)
    return open_text(source, columns)


def local_source(text: str) -> Path:
    """Where a source lies on this machine; what lies elsewhere ("s3://", ...) is copied into a temporary folder.

    Raises:
        TableError: there is no such file, or nothing installed that could fetch it.
    """
    if "://" not in text or is_on_hub(Path(text)):
        return Path(text)
    folder = Path(tempfile.mkdtemp(prefix="unimol2_hf_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        filesystem, place = fsspec.core.url_to_fs(text)
        copy = folder / place.rstrip("/").rsplit("/", 1)[-1]
        filesystem.get(place, str(copy), recursive=filesystem.isdir(place))
    # fsspec's file systems raise whatever the library behind them does.
    except Exception as error:
        raise TableError(f"{text} cannot be fetched: {error}; copy it here yourself") from error
    return copy


def check_readable(path: Path) -> None:
    """Raise `TableError` for what is not there, or can be read only once."""
    if str(path) == "-" or (path.exists() and not path.is_dir() and not path.is_file()):
        raise TableError(f"{path} is a pipe or a device, which can be read only once; save it to a file")
    if not path.exists():
        raise TableError(f"{path} does not exist")
    if path.is_dir() and not files_of(path):
        below = next(path.rglob("*.parquet"), None)
        told = f"; its sub-folders have some: give one, such as {below.parent}" if below else ""
        raise TableError(f"{path} is a folder without .parquet files{told}")


def is_on_hub(path: Path) -> bool:
    """Whether a path was "hf://datasets/<id>" before it became one."""
    return path.parts[:2] == ("hf:", "datasets")


def hub_name(path: Path) -> str:
    """The id of a data set of the Hub."""
    return "/".join(path.parts[2:])


def kept_widths(path: Path, keep: Sequence[str]) -> dict[str, int]:
    """How many numbers a row has of each column to keep.

    Raises:
        TableError: the file lacks one, or has no columns.
    """
    if not keep:
        return {}
    if is_parquet(path):
        return {name: width_in_parquet(files_of(path), name) for name in keep}
    return dict.fromkeys(keep, 1)


def approximate_rows(source: Source) -> int | None:
    """How many rows a source has, for an estimate of time; `None` where counting would take long."""
    if not isinstance(source, Path):
        return len(source)
    if is_on_hub(source):
        return None
    if is_parquet(source):
        return sum(pq.read_metadata(path).num_rows for path in files_of(source))
    return count_of_rows(source)


def is_parquet(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() in (".parquet", ".pq")


def files_of(source: Path) -> list[Path]:
    """The Parquet files of a folder in the order of their names, or the one file."""
    return sorted(source.glob("*.parquet")) if source.is_dir() else [source]
