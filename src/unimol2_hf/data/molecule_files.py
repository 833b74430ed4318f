"""Files of molecules as streams of rows: CSV, SMILES, SDF and Parquet, compressed too; every row is kept."""

import bz2
import csv
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rdkit import Chem, rdBase

from ..conformers import ConformerProvenance
from ..errors import CoordinatesError, MoleculeError, SanitizationError, TableError
from ..molecules import Molecule
from .number_columns import Kept, number_in_text, numbers_of, width_in_parquet

_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_SMILES_HEADERS = ("smiles", "canonical_smiles", "smi")
_RECORD_END = "$$$$"
_COMPANIONS = ("conformers", "provenance", "error", "error_code")
# One quoted cell may hold much; an unclosed quote must not swallow a whole library.
_LARGEST_CELL = 1_000_000
# Characters of a line, blank lines in a row, lines of a record: what decompresses to more is no file of molecules.
_LONGEST_LINE, _MOST_BLANK, _MOST_LINES = 10_000_000, 1_000_000, 1_000_000
_ROWS_AT_A_TIME = 4096


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
    """

    number: int
    id: str
    smiles: str
    molecule: Molecule
    provenance: tuple[ConformerProvenance, ...] = ()
    kept: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Columns:
    smiles: str
    id: str | None
    kept: tuple[str, ...] = ()


def read_molecules(
    path: Path, smiles_column: str = "smiles", id_column: str | None = None, keep: Sequence[str] = ()
) -> Iterator[MoleculeRow]:
    """Stream the rows of a file, or of a folder of Parquet files in the order of their names.

    - CSV (`.csv`, `.tsv`): comma, semicolon or tab; a line with a wrong number of cells is a row with an error.
    - SMILES (`.smi`, `.smiles`): SMILES, blank, name; a header line is passed over.
    - SDF (`.sdf`, `.sd`): 3D coordinates are used; drawings (2D) are not, their conformers are generated.
    - Parquet: may bring coordinates in `conformers` (a list of flat lists, with `provenance`), as `unimol2-hf embed
      --keep-conformers` writes them, or in `coordinates` (one flat list); angstrom, heavy atoms in SMILES order.

    All but Parquet may be compressed (`.gz`, `.bz2`, `.xz`). Empty lines are rows, except at the end of a file.

    The columns to `keep` (of an SDF: properties) hold numbers, in Parquet also lists of numbers; a cell that holds
    something else makes its row an error.

    Raises:
        TableError: no such file, an unknown kind, no such column, or a file that breaks off.
    """
    if not path.exists():
        raise TableError(f"{path} does not exist")
    columns = _Columns(smiles_column, id_column, tuple(keep))
    files = files_of(path)
    if not files:
        raise TableError(f"{path} is a folder without .parquet files")
    rows = _read_parquet(files, columns) if _is_parquet(path) else _read_text(path, columns)
    for number, (identifier, smiles, molecule, provenance, kept) in enumerate(rows):
        yield MoleculeRow(number, identifier, smiles, molecule, provenance, kept)


def kept_widths(path: Path, keep: Sequence[str]) -> dict[str, int]:
    """How many numbers a row has of each column to keep.

    Raises:
        TableError: the file lacks one, or has no columns.
    """
    if not keep:
        return {}
    if _is_parquet(path):
        return {name: width_in_parquet(files_of(path), name) for name in keep}
    return dict.fromkeys(keep, 1)


def _is_parquet(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() in (".parquet", ".pq")


def files_of(source: Path) -> list[Path]:
    """The Parquet files of a folder in the order of their names, or the one file."""
    return sorted(source.glob("*.parquet")) if source.is_dir() else [source]


_Row = tuple[str, str, Molecule, tuple[ConformerProvenance, ...], Kept]


def _read_text(path: Path, columns: _Columns) -> Iterator[_Row]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    opener = _OPENERS.get(suffixes[-1] if suffixes else "", open)
    kind = suffixes[-2] if opener is not open and len(suffixes) > 1 else path.suffix.lower()
    readers = {
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".smi": _read_smiles,
        ".smiles": _read_smiles,
        ".sdf": _read_sdf,
        ".sd": _read_sdf,
    }
    if kind not in readers:
        raise TableError(f"{path} is of no known kind; use {', '.join(readers)} (also .gz, .bz2, .xz) or .parquet")
    try:
        # What is no UTF-8 stays visible, and the row with it.
        with opener(path, "rt", encoding="utf-8-sig", errors="backslashreplace", newline="") as file:
            yield from readers[kind](file, columns, path)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise TableError(f"{path} cannot be read to its end: {error}") from error


def _without_trailing(rows: Iterable[Any], is_blank: Callable[[Any], bool]) -> Iterator[Any]:
    """All rows up to the last one that is not blank."""
    held: list[Any] = []
    for row in rows:
        held.append(row)
        if not is_blank(row):
            yield from held
            held = []
        elif len(held) > _MOST_BLANK:
            raise TableError(f"more than {_MOST_BLANK:,} blank lines in a row; this is no file of molecules")


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    """The lines, none of which may be longer than memory."""
    while line := file.readline(_LONGEST_LINE + 1):
        if len(line) > _LONGEST_LINE:
            raise TableError(f"{path} has a line of more than {_LONGEST_LINE:,} characters: no file of molecules")
        yield line


def _read_csv(file: TextIO, columns: _Columns, path: Path) -> Iterator[_Row]:
    csv.field_size_limit(_LARGEST_CELL)
    lines = _lines(file, path)
    header_line = next(lines, "")
    delimiter = max(",\t;", key=header_line.count)
    header = next(csv.reader([header_line], delimiter=delimiter), [])
    positions = _positions(header, columns, path)
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        for cells in _without_trailing(reader, lambda row: not any(row)):
            yield _csv_row(cells, header, positions, columns.kept)
    except csv.Error as error:
        raise TableError(f"{path}, line {reader.line_num + 1}: {error}; look for a quote that is not closed") from error


def _positions(header: list[str], columns: _Columns, path: Path) -> tuple[int, int | None]:
    wanted = [columns.smiles, *([columns.id] if columns.id else []), *columns.kept]
    for name in wanted:
        if header.count(name) != 1:
            problem = f"no column {name}" if name not in header else f"the column {name} more than once"
            raise TableError(f"{path} has {problem}; its columns are: {', '.join(header)}")
    return header.index(columns.smiles), header.index(columns.id) if columns.id else None


def _csv_row(cells: list[str], header: list[str], positions: tuple[int, int | None], keep: tuple[str, ...]) -> _Row:
    smiles_at, id_at = positions
    smiles = cells[smiles_at] if smiles_at < len(cells) else ""
    identifier = cells[id_at] if id_at is not None and id_at < len(cells) else ""
    molecule: Molecule = smiles
    if cells and len(cells) != len(header):
        molecule = MoleculeError(f"the row has {len(cells)} cells, the header {len(header)}; quote cells with commas")
        return identifier, smiles, molecule, (), {}
    return _with_kept(identifier, smiles, molecule, {name: cells[header.index(name)] for name in keep} if cells else {})


def _with_kept(identifier: str, smiles: str, molecule: Molecule, cells: Mapping[str, str | None]) -> _Row:
    """A row with its numbers; one that is none makes the row an error."""
    try:
        return identifier, smiles, molecule, (), {name: number_in_text(text, name) for name, text in cells.items()}
    except MoleculeError as error:
        return identifier, smiles, error, (), {}


def _read_smiles(file: TextIO, columns: _Columns, path: Path) -> Iterator[_Row]:
    if columns.kept:
        raise TableError(f"{path} has no columns to keep ({', '.join(columns.kept)}); give a CSV or Parquet file")
    if columns.id:
        raise TableError(f"{path} has no column {columns.id}: what follows a SMILES is its id; leave the option out")
    lines = (line.strip() for line in _lines(file, path))
    for number, line in enumerate(_without_trailing(lines, lambda text: not text)):
        smiles, name = _split_smiles_line(line)
        if number == 0 and smiles.lower() in _SMILES_HEADERS:
            continue
        yield name, smiles, smiles, (), {}


def _split_smiles_line(line: str) -> tuple[str, str]:
    """SMILES, with its CXSMILES extension if it has one, and name."""
    smiles, _, rest = line.replace("\t", " ").partition(" ")
    rest = rest.strip()
    if rest.startswith("|") and "|" in rest[1:]:
        extension, _, rest = rest[1:].partition("|")
        smiles = f"{smiles} |{extension}|"
    return smiles, rest.strip()


def _read_sdf(file: TextIO, columns: _Columns, path: Path) -> Iterator[_Row]:
    block: list[str] = []
    for line in _lines(file, path):
        text = line.rstrip("\r\n")
        if len(block) > _MOST_LINES:
            raise TableError(f"{path} has a record of more than {_MOST_LINES:,} lines; is a {_RECORD_END} missing?")
        if text.startswith(_RECORD_END):
            yield _sdf_row(block, columns)
            block = []
        else:
            block.append(text)
    if any(text.strip() for text in block):
        yield _sdf_row(block, columns)


def _sdf_row(block: list[str], columns: _Columns) -> _Row:
    title = block[0].strip() if block else ""
    reason = "RDKit cannot read the record; check its counts line and valences"
    with rdBase.BlockLogs():
        try:
            molecule = _molecule_of(block)
            if molecule is None:
                return title, "", SanitizationError(reason), (), {}
            cells = {name: molecule.GetProp(name) if molecule.HasProp(name) else None for name in columns.kept}
            if columns.id:
                title = molecule.GetProp(columns.id) if molecule.HasProp(columns.id) else ""
            return _with_kept(title, Chem.MolToSmiles(Chem.RemoveHs(molecule, sanitize=False)), molecule, cells)
        except (RuntimeError, ValueError, UnicodeError) as error:
            return title, "", SanitizationError(f"{reason}: {error}"), (), {}


def _molecule_of(block: list[str]) -> Chem.Mol | None:
    """The record's molecule; a drawing stays with it, and is not taken for a conformer."""
    supplier = Chem.SDMolSupplier()
    supplier.SetData("\n".join([*block, _RECORD_END, ""]), removeHs=False)
    return supplier[0] if len(supplier) else None


def _read_parquet(files: list[Path], columns: _Columns) -> Iterator[_Row]:
    widths = {name: width_in_parquet(files, name) for name in columns.kept}
    for path in files:
        try:
            parquet = pq.ParquetFile(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise TableError(f"{path} is no Parquet file: {error}") from error
        names = parquet.schema_arrow.names
        _positions(names, columns, path)
        wanted = [columns.smiles, *([columns.id] if columns.id else ["id"] if "id" in names else [])]
        # Only beside conformers are these two the columns that this package writes.
        companions = _COMPANIONS if _holds_coordinates(parquet.schema_arrow) else ("coordinates",)
        wanted += [name for name in companions if name in names and name not in wanted]
        for batch in _batches(parquet, [*wanted, *widths], path):
            kept = {name: numbers_of(batch[name], name, width) for name, width in widths.items()}
            for number, record in enumerate(batch.select(wanted).to_pylist()):
                yield _parquet_row(record, columns, {name: values[number] for name, values in kept.items()})


def _batches(parquet: pq.ParquetFile, columns: list[str], path: Path) -> Iterator[pa.RecordBatch]:
    try:
        yield from parquet.iter_batches(_ROWS_AT_A_TIME, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise TableError(f"{path} is damaged: {error}") from error


def _holds_coordinates(schema: pa.Schema) -> bool:
    """Whether `conformers` are lists of coordinates; in embeddings of version 0.1 they told how they came about."""
    if "conformers" not in schema.names:
        return False
    kind = schema.field("conformers").type
    return bool(pa.types.is_list(kind) and pa.types.is_list(kind.value_type))


def _parquet_row(record: Mapping[str, Any], columns: _Columns, kept: Kept) -> _Row:
    smiles = record[columns.smiles]
    identifier = record.get(columns.id or "id")
    text = "" if smiles is None else str(smiles)
    name = "" if identifier is None else str(identifier)
    flat = _flat_conformers(record)
    if not flat:
        return name, text, stored_error(record) if record.get("error") else text, (), kept
    try:
        coordinates = np.stack([_as_positions(values) for values in flat])
        provenance = tuple(ConformerProvenance(**entry) for entry in record.get("provenance") or ())
    except (CoordinatesError, TypeError, ValueError) as error:
        return name, text, CoordinatesError(f"its stored conformers cannot be used: {error}"), (), kept
    return name, text, {"smiles": text, "coordinates": coordinates}, provenance, kept


def stored_error(record: Mapping[str, Any]) -> MoleculeError:
    """Why another command could not use the row."""
    error = MoleculeError(str(record["error"]))
    if record.get("error_code"):
        error.code = str(record["error_code"])  # type: ignore[misc]
    return error


def _flat_conformers(record: Mapping[str, Any]) -> list[list[float]]:
    if record.get("conformers"):
        return list(record["conformers"])
    return [record["coordinates"]] if record.get("coordinates") else []


def _as_positions(values: list[float]) -> np.ndarray[Any, np.dtype[np.float32]]:
    positions = np.asarray(values, dtype=np.float32)
    if positions.size % 3:
        raise CoordinatesError(f"{positions.size} coordinates are no multiple of 3")
    return positions.reshape(-1, 3)
