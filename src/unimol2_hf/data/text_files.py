"""Rows of text files and Excel sheets: CSV, SMILES, SDF."""

import bz2
import codecs
import csv
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from rdkit import Chem, rdBase

from ..errors import MoleculeError, SanitizationError, TableError
from ..molecules import Molecule
from .molecule_rows import Columns, Fields, MoleculeRow, check_columns, text_fields
from .number_columns import number_in_text

# How a compressed file begins, whatever it is called.
_OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
_COMPRESSED = (".gz", ".bz2", ".xz")
_ZIP = b"PK\x03\x04"
# First words of a header, besides all that have "smiles" in them; none of them is a SMILES.
_SMILES_HEADERS = ("smi", "structure", "structures", "molecule", "mol", "compound")
_RECORD_END, _MOLECULE_END = "$$$$", "M  END"
_DATA_ITEM = re.compile(r">.*<([^>]*)>")
# One quoted cell may hold much; an unclosed quote must not swallow a whole library.
_LARGEST_CELL = 1_000_000
# Characters of a line, blank lines in a row, lines of a record: what decompresses to more is no file of molecules.
_LONGEST_LINE, _MOST_BLANK, _MOST_LINES = 10_000_000, 1_000_000, 1_000_000
_SNIFFED_BYTES, _SNIFFED_AT_ONCE = 2**20, 2**16
_COUNTED_BYTES = 2**31
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_READABLE = ".csv, .tsv, .txt, .smi, .smiles, .cxsmiles, .sdf, .sd (also .gz, .bz2, .xz), .xlsx or .parquet"
_UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)

Rows = Iterator[MoleculeRow]


def open_text(path: Path, columns: Columns) -> tuple[Fields, Rows]:
    """The columns, and rows, of a text file or Excel sheet.

    Raises:
        TableError: an unknown kind, no such column, a file that cannot be read.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes] or [""]
    kind = suffixes[-2] if suffixes[-1] in _COMPRESSED and len(suffixes) > 1 else suffixes[-1]
    opener = _opener_of(path, kind)
    if kind in (".xlsx", ".xlsm"):
        return _open_cells(_sheet(path), columns, path)
    if kind == ".xls":
        raise TableError(f"{path} is an Excel file of the old kind; save it as .xlsx or CSV")
    if kind not in _TEXT_READERS:
        raise TableError(f"{path} is of no known kind; use {_READABLE}")
    reader = _TEXT_READERS[kind]
    if reader is _open_sdf and columns.cells:
        names = _sdf_names(_lines(path, opener), path)
        return text_fields(names), _open_sdf(_lines(path, opener), columns, path)[1]
    return reader(_lines(path, opener), columns, path)


def _opener_of(path: Path, kind: str) -> Callable[..., Any]:
    """By the first bytes: files are given names that do not say how they are compressed."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error}") from error
    if start.startswith(_ZIP) and kind not in (".xlsx", ".xlsm"):
        raise TableError(f"{path} is a zip archive; unpack it")
    return next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), open)


def count_of_rows(path: Path) -> int | None:
    """Lines, or records of an SDF; `None` for what is compressed, a spreadsheet or large."""
    if path.suffix.lower() in (*_COMPRESSED, ".xlsx", ".xlsm") or path.stat().st_size > _COUNTED_BYTES:
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


def _open_csv(lines: Iterator[str], columns: Columns, path: Path) -> tuple[Fields, Rows]:
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


def _open_cells(cells: Iterator[list[str]], columns: Columns, path: Path) -> tuple[Fields, Rows]:
    header = next(cells, [])
    check_columns(header, columns, str(path))
    if columns.smiles is None:
        raise TableError(f"{path} needs a column of SMILES; atoms and coordinates are read from Parquet")
    filled = _without_trailing(cells, lambda row: not any(row))
    return text_fields(header), (_cells_row(number, row, header, columns) for number, row in enumerate(filled))


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


def _open_smiles(lines: Iterator[str], columns: Columns, path: Path) -> tuple[Fields, Rows]:
    """SMILES, blank, name; or, with a header or with tabs, columns, of which the first has the SMILES."""
    texts = _without_trailing((line.strip("\r\n ") for line in lines), lambda text: not text.strip())
    beginning = list(islice(texts, 1))
    first = beginning[0] if beginning else ""
    _check_blanks(first, path)
    has_header = _is_smiles_header(first)
    if has_header:
        names = first.split("\t") if "\t" in first else first.split()
        names = [name.strip().lstrip("#") for name in names]
        names = names if len(names) > 1 else [*names, "id"]
    else:
        texts = chain(beginning, texts)
        names = [str(columns.smiles), "id", *(f"column_{number}" for number in range(3, 1 + len(first.split("\t"))))]
    place = names.index(str(columns.smiles)) if has_header and columns.smiles in names else 0
    known = names if has_header else []
    for name in (*columns.kept, *([columns.id] if columns.id else [])):
        if name not in known:
            told = f"its columns are: {', '.join(known)}" if known else "it has no header, and what follows is the id"
            raise TableError(f"{path} has no column {name}: {told}; leave the option out, or give a CSV file")
    check_columns(names, Columns(names[place], columns.id, columns.kept, columns.cells), str(path))

    def row_of(number: int, line: str) -> MoleculeRow:
        cells = _smiles_cells(line, len(names))
        texts = dict(zip(names, cells, strict=False))
        identifier, smiles = texts[columns.id or names[1 if place == 0 else 0]], texts[names[place]]
        shown = texts if columns.cells else {}
        if len(cells) > len(names):
            told = f"the row has {len(cells)} cells, the first line {len(names)}"
            return MoleculeRow(number, identifier, smiles, MoleculeError(told), cells=shown)
        return _with_kept(number, identifier, smiles, smiles, {name: texts[name] for name in columns.kept}, shown)

    return text_fields(names), (row_of(number, line) for number, line in enumerate(texts))


def _check_blanks(first: str, path: Path) -> None:
    word = first.replace("\t", " ").partition(" ")[0]
    if "," in word or ";" in word:
        raise TableError(
            f"{path} begins with {first[:80]!r}: columns of a SMILES file stand apart by blanks or tabs; name it .csv"
        )


def _is_smiles_header(line: str) -> bool:
    word = line.replace("\t", " ").strip().partition(" ")[0].lower().lstrip("#")
    return "smiles" in word or word in _SMILES_HEADERS


def _smiles_cells(line: str, count: int) -> list[str]:
    """At least so many cells; a SMILES keeps its CXSMILES extension, and without tabs the last cell its blanks."""
    if "\t" in line:
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) > 1 and cells[1].startswith("|") and cells[1].endswith("|") and len(cells[1]) > 1:
            cells[:2] = [f"{cells[0]} {cells[1]}"]
    else:
        smiles, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if rest.startswith("|") and "|" in rest[1:]:
            extension, _, rest = rest[1:].partition("|")
            smiles = f"{smiles} |{extension}|"
        cells = [smiles, *rest.strip().split(None, count - 2)]
    return cells + [""] * (count - len(cells))


def _open_sdf(lines: Iterator[str], columns: Columns, path: Path) -> tuple[Fields, Rows]:
    return [], (_sdf_row(number, block, columns) for number, block in enumerate(_records(lines, path)))


def _sdf_names(lines: Iterator[str], path: Path) -> list[str]:
    """The columns of all records, each of which has its own data items."""
    names = {"smiles": None, "id": None}
    for block in _records(lines, path):
        names |= dict.fromkeys(_data_items(block[_end_of_molecule(block) :]))
    return list(names)


def _end_of_molecule(block: list[str]) -> int:
    """The line at which data items begin."""
    for index, line in enumerate(block):
        if line.startswith(_MOLECULE_END):
            return index + 1
    return next((index for index, line in enumerate(block) if _DATA_ITEM.match(line)), len(block))


def _data_items(lines: list[str]) -> dict[str, str]:
    """Values by name, each up to a blank line or the next item."""
    items: dict[str, list[str]] = {}
    value: list[str] | None = None
    for line in lines:
        header = _DATA_ITEM.match(line)
        if header:
            value = items[header[1].strip() or "unnamed"] = []
        elif not line.strip():
            value = None
        elif value is not None:
            value.append(line.rstrip())
    return {name: "\n".join(value) for name, value in items.items()}


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
    end = _end_of_molecule(block)
    items = _data_items(block[end:])
    title = items.get(columns.id, "") if columns.id else block[0].strip() if block else ""
    cells = {"smiles": "", "id": title, **items} if columns.cells else {}
    reason = "RDKit cannot read the record; check its counts line and valences"
    with rdBase.BlockLogs():
        try:
            molecule = _molecule_of(block[:end])
            if molecule is None:
                return MoleculeRow(number, title, "", SanitizationError(reason), cells=cells)
            smiles = Chem.MolToSmiles(Chem.RemoveHs(molecule, sanitize=False))
            if columns.cells:
                cells = {"smiles": smiles, "id": title, **items}
            return _with_kept(number, title, smiles, molecule, {name: items.get(name) for name in columns.kept}, cells)
        except (RuntimeError, ValueError, UnicodeError) as error:
            return MoleculeRow(number, title, "", SanitizationError(f"{reason}: {error}"), cells=cells)


def _molecule_of(block: list[str]) -> Chem.Mol | None:
    """The record's molecule; a drawing stays with it, and is not taken for a conformer."""
    supplier = Chem.SDMolSupplier()
    supplier.SetData("\n".join([*block, _RECORD_END, ""]), removeHs=False)
    return supplier[0] if len(supplier) else None


_TEXT_READERS: dict[str, Callable[[Iterator[str], Columns, Path], tuple[Fields, Rows]]] = {
    ".csv": _open_csv,
    ".tsv": _open_csv,
    ".txt": _open_csv,
    ".smi": _open_smiles,
    ".smiles": _open_smiles,
    ".cxsmiles": _open_smiles,
    ".sdf": _open_sdf,
    ".sd": _open_sdf,
}
