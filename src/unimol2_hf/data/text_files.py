"""Rows of text files and Excel sheets: CSV, SMILES, SDF."""

import bz2
import codecs
import csv
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from rdkit import Chem, rdBase

from ..errors import MoleculeError, SanitizationError, TableError
from ..molecules import Molecule
from .molecule_rows import Columns, MoleculeRow, check_columns
from .number_columns import number_in_text

_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_SMILES_HEADERS = ("smiles", "canonical_smiles", "smi")
_RECORD_END = "$$$$"
# One quoted cell may hold much; an unclosed quote must not swallow a whole library.
_LARGEST_CELL = 1_000_000
# Characters of a line, blank lines in a row, lines of a record: what decompresses to more is no file of molecules.
_LONGEST_LINE, _MOST_BLANK, _MOST_LINES = 10_000_000, 1_000_000, 1_000_000
_SNIFFED_BYTES, _SNIFFED_AT_ONCE = 2**20, 2**16
_COUNTED_BYTES = 2**31
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_READABLE = ".csv, .tsv, .txt, .smi, .smiles, .sdf, .sd (also .gz, .bz2, .xz), .xlsx or .parquet"
_UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)

Rows = Iterator[MoleculeRow]


def open_text(path: Path, columns: Columns) -> tuple[list[str], Rows]:
    """Names of the columns, and rows, of a text file or Excel sheet.

    Raises:
        TableError: an unknown kind, no such column, a file that cannot be read.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    opener = _OPENERS.get(suffixes[-1] if suffixes else "", open)
    kind = suffixes[-2] if opener is not open and len(suffixes) > 1 else path.suffix.lower()
    if kind in (".xlsx", ".xlsm"):
        return _open_cells(_sheet(path), columns, path)
    if kind == ".xls":
        raise TableError(f"{path} is an Excel file of the old kind; save it as .xlsx or CSV")
    if kind not in _TEXT_READERS:
        raise TableError(f"{path} is of no known kind; use {_READABLE}")
    return _TEXT_READERS[kind](_lines(path, opener), columns, path)


def count_of_rows(path: Path) -> int | None:
    """Lines, or records of an SDF; `None` for what is compressed, a spreadsheet or large."""
    if path.suffix.lower() in (*_OPENERS, ".xlsx", ".xlsm") or path.stat().st_size > _COUNTED_BYTES:
        return None
    wanted = _RECORD_END.encode() if path.suffix.lower() in (".sdf", ".sd") else b"\n"
    with path.open("rb") as file:
        return sum(chunk.count(wanted) for chunk in iter(lambda: file.read(_SNIFFED_BYTES), b""))


def _encoding_of(path: Path, opener: Callable[..., Any]) -> str:
    """UTF-8 or UTF-16 by their marks, else UTF-8 where the beginning is that, else Windows' Latin-1."""
    start = b"".join(_first_chunks(path, opener))
    if start.startswith(_UTF_16):
        return "utf-16"
    if start.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"


def _first_chunks(path: Path, opener: Callable[..., Any]) -> Iterator[bytes]:
    """What can be read of the first MiB; that a file breaks off is told when its rows are read."""
    with suppress(*_UNREADABLE), opener(path, "rb") as file:
        for _ in range(_SNIFFED_BYTES // _SNIFFED_AT_ONCE):
            yield file.read(_SNIFFED_AT_ONCE)


def _lines(path: Path, opener: Callable[..., Any]) -> Iterator[str]:
    """The lines, none of which may be longer than memory."""
    try:
        # What cannot be decoded stays visible, and the row with it.
        with opener(path, "rt", encoding=_encoding_of(path, opener), errors="backslashreplace", newline="") as file:
            yield from _bounded_lines(file, path)
    except _UNREADABLE as error:
        raise TableError(f"{path} cannot be read to its end: {error}") from error


def _bounded_lines(file: TextIO, path: Path) -> Iterator[str]:
    while line := file.readline(_LONGEST_LINE + 1):
        if len(line) > _LONGEST_LINE:
            raise TableError(f"{path} has a line of more than {_LONGEST_LINE:,} characters: no file of molecules")
        yield line


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


def _open_csv(lines: Iterator[str], columns: Columns, path: Path) -> tuple[list[str], Rows]:
    return _open_cells(_csv_cells(lines, path), columns, path)


def _csv_cells(lines: Iterator[str], path: Path) -> Iterator[list[str]]:
    csv.field_size_limit(_LARGEST_CELL)
    header_line = next(lines, "")
    delimiter = max(",\t;", key=header_line.count)
    yield next(csv.reader([header_line], delimiter=delimiter), [])
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        yield from reader
    except csv.Error as error:
        raise TableError(f"{path}, line {reader.line_num + 1}: {error}; look for a quote that is not closed") from error


def _sheet(path: Path) -> Iterator[list[str]]:
    """The cells of the first sheet as texts."""
    try:
        import openpyxl  # noqa: PLC0415
    except ImportError as error:
        raise TableError(f'{path} needs openpyxl; pip install "unimol2-hf[excel]", or save it as CSV') from error
    try:
        # From memory: what is left unread keeps no file open.
        book = openpyxl.load_workbook(io.BytesIO(path.read_bytes()), read_only=True, data_only=True)
        for row in book.worksheets[0].iter_rows(values_only=True):
            yield ["" if cell is None else str(cell) for cell in row]
    # Of a damaged file openpyxl raises whatever its parser does.
    except (*_UNREADABLE, zipfile.BadZipFile, KeyError, ValueError, IndexError, SyntaxError) as error:
        raise TableError(f"{path} is no Excel file that can be read ({error}); save it anew, or as CSV") from error


def _open_cells(cells: Iterator[list[str]], columns: Columns, path: Path) -> tuple[list[str], Rows]:
    header = next(cells, [])
    check_columns(header, columns, str(path))
    if columns.smiles is None:
        raise TableError(f"{path} needs a column of SMILES; atoms and coordinates are read from Parquet")
    filled = _without_trailing(cells, lambda row: not any(row))
    return header, (_cells_row(number, row, header, columns) for number, row in enumerate(filled))


def _cells_row(number: int, row: list[str], header: list[str], columns: Columns) -> MoleculeRow:
    texts = dict(zip(header, row, strict=False))
    smiles, identifier = texts.get(str(columns.smiles), ""), texts.get(columns.id or "", "")
    cells = texts if columns.cells else {}
    if row and (len(row) < len(header) or any(row[len(header) :])):
        told = f"the row has {len(row)} cells, the header {len(header)}; quote cells with commas"
        return MoleculeRow(number, identifier, smiles, MoleculeError(told), cells=cells)
    return _with_kept(number, identifier, smiles, smiles, {name: texts.get(name) for name in columns.kept}, cells)


def _with_kept(
    number: int,
    identifier: str,
    smiles: str,
    molecule: Molecule,
    kept: Mapping[str, str | None],
    cells: Mapping[str, str],
) -> MoleculeRow:
    """A row with its numbers; one that is none makes the row an error."""
    try:
        numbers = {name: number_in_text(text, name) for name, text in kept.items()}
        return MoleculeRow(number, identifier, smiles, molecule, kept=numbers, cells=cells)
    except MoleculeError as error:
        return MoleculeRow(number, identifier, smiles, error, cells=cells)


def _open_smiles(lines: Iterator[str], columns: Columns, path: Path) -> tuple[list[str], Rows]:
    if columns.kept:
        raise TableError(f"{path} has no columns to keep ({', '.join(columns.kept)}); give a CSV or Parquet file")
    if columns.id:
        raise TableError(f"{path} has no column {columns.id}: what follows a SMILES is its id; leave the option out")
    names = [str(columns.smiles), "id"]
    texts = map(_split_smiles_line, _without_trailing((line.strip() for line in lines), lambda text: not text))
    rows = (text for number, text in enumerate(texts) if number or text[0].lower() not in _SMILES_HEADERS)

    def row_of(number: int, smiles: str, name: str) -> MoleculeRow:
        cells = dict(zip(names, (smiles, name), strict=True)) if columns.cells else {}
        return MoleculeRow(number, name, smiles, smiles, cells=cells)

    return names, (row_of(number, *text) for number, text in enumerate(rows))


def _split_smiles_line(line: str) -> tuple[str, str]:
    """SMILES, with its CXSMILES extension if it has one, and name."""
    smiles, _, rest = line.replace("\t", " ").partition(" ")
    rest = rest.strip()
    if rest.startswith("|") and "|" in rest[1:]:
        extension, _, rest = rest[1:].partition("|")
        smiles = f"{smiles} |{extension}|"
    return smiles, rest.strip()


def _open_sdf(lines: Iterator[str], columns: Columns, path: Path) -> tuple[list[str], Rows]:
    return [], (_sdf_row(number, block, columns) for number, block in enumerate(_records(lines, path)))


def _records(lines: Iterator[str], path: Path) -> Iterator[list[str]]:
    block: list[str] = []
    for line in lines:
        text = line.rstrip("\r\n")
        if len(block) > _MOST_LINES:
            raise TableError(f"{path} has a record of more than {_MOST_LINES:,} lines; is a {_RECORD_END} missing?")
        if text.startswith(_RECORD_END):
            yield block
            block = []
        else:
            block.append(text)
    if any(text.strip() for text in block):
        yield block


def _sdf_row(number: int, block: list[str], columns: Columns) -> MoleculeRow:
    title = block[0].strip() if block else ""
    reason = "RDKit cannot read the record; check its counts line and valences"
    cells: dict[str, str] = {"smiles": "", "id": title} if columns.cells else {}
    with rdBase.BlockLogs():
        try:
            molecule = _molecule_of(block)
            if molecule is None:
                return MoleculeRow(number, title, "", SanitizationError(reason), cells=cells)
            kept = {name: molecule.GetProp(name) if molecule.HasProp(name) else None for name in columns.kept}
            if columns.id:
                title = molecule.GetProp(columns.id) if molecule.HasProp(columns.id) else ""
            smiles = Chem.MolToSmiles(Chem.RemoveHs(molecule, sanitize=False))
            if columns.cells:
                cells = {"smiles": smiles, "id": title, **{n: molecule.GetProp(n) for n in molecule.GetPropNames()}}
            return _with_kept(number, title, smiles, molecule, kept, cells)
        except (RuntimeError, ValueError, UnicodeError) as error:
            return MoleculeRow(number, title, "", SanitizationError(f"{reason}: {error}"), cells=cells)


def _molecule_of(block: list[str]) -> Chem.Mol | None:
    """The record's molecule; a drawing stays with it, and is not taken for a conformer."""
    supplier = Chem.SDMolSupplier()
    supplier.SetData("\n".join([*block, _RECORD_END, ""]), removeHs=False)
    return supplier[0] if len(supplier) else None


_TEXT_READERS: dict[str, Callable[[Iterator[str], Columns, Path], tuple[list[str], Rows]]] = {
    ".csv": _open_csv,
    ".tsv": _open_csv,
    ".txt": _open_csv,
    ".smi": _open_smiles,
    ".smiles": _open_smiles,
    ".sdf": _open_sdf,
    ".sd": _open_sdf,
}
