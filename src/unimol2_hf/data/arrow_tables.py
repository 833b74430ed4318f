"""Rows of Arrow tables: Parquet files, pandas, `datasets`, the Hub; coordinates come along where they have some."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rdkit import Chem

from ..conformers import ConformerProvenance
from ..errors import CoordinatesError, MoleculeError, TableError
from ..molecules import Molecule
from .molecule_rows import Columns, Fields, MoleculeRow, check_columns, text_of
from .number_columns import Kept, numbers_of, width_in_parquet

_COMPANIONS = ("conformers", "provenance", "error", "error_code")
_GEOMETRY = ("coordinates", "atomic_numbers", "atoms")
_ROWS_AT_A_TIME = 4096
_IS_TEXT = (
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary, pa.types.is_large_binary,
    pa.types.is_binary_view, pa.types.is_null,
)  # fmt: skip

Rows = Iterator[MoleculeRow]


def open_parquet(files: list[Path], columns: Columns) -> tuple[Fields, Rows]:
    """The columns, and rows, of Parquet files.

    Raises:
        TableError: no Parquet file, damaged, or without a column that is wanted.
    """
    widths = {name: width_in_parquet(files, name) for name in columns.kept}
    fields = list(_schema_of(files[0], columns))

    def rows() -> Iterator[tuple[pa.RecordBatch, list[str]]]:
        for path in files:
            schema = _schema_of(path, columns)
            wanted = _read(schema, columns)
            read = schema.names if columns.cells else list(dict.fromkeys([*wanted, *widths]))
            yield from ((batch, wanted) for batch in _batches(path, read))

    return fields, _rows_of(rows(), columns, widths)


def open_table(source: Any, columns: Columns) -> tuple[Fields, Rows]:
    """The columns, and rows, of a pandas DataFrame, a `datasets.Dataset` or an Arrow table.

    Raises:
        TableError: something else, or without a column that is wanted.
    """
    table = arrow_table(source)
    _check_schema(table.schema, columns, "the table")
    wanted = _read(table.schema, columns)
    widths = {name: numbers_of(table[name], name).shape[1] for name in columns.kept}
    batches = ((batch, wanted) for batch in table.to_batches(_ROWS_AT_A_TIME))
    return list(table.schema), _rows_of(batches, columns, widths)


def arrow_table(source: Any) -> pa.Table:
    """A table in memory as Arrow has it.

    Raises:
        TableError: it is no table.
    """
    if isinstance(source, pa.Table):
        return source
    if hasattr(source, "with_format"):
        table: pa.Table = source.with_format("arrow")[:]
        return table
    if not isinstance(source, pd.DataFrame):
        raise TableError(f"a {type(source).__name__} is no table; give a path, a DataFrame or a Dataset")
    columns = [_arrow_column(source.iloc[:, place]) for place in range(source.shape[1])]
    return pa.Table.from_arrays(columns, names=list(map(str, source.columns)))


def _arrow_column(column: pd.Series) -> pa.Array:
    """Of mixed values, such as numbers and words, the texts."""
    try:
        return pa.Array.from_pandas(column)
    except (pa.ArrowException, TypeError):
        return pa.array(
            [None if missing else str(value) for missing, value in zip(column.isna(), column, strict=True)], pa.string()
        )


def hub_data_set(path: Path) -> Any:
    """The data set of the Hub that "hf://datasets/<id>" names, its `train` split.

    Raises:
        TableError: there is none, or it has no such split.
    """
    from datasets import load_dataset  # noqa: PLC0415

    name = "/".join(path.parts[2:])
    try:
        return load_dataset(name, split="train")
    # The Hub, the network and the builders each raise their own.
    except Exception as error:
        raise TableError(f"hf://datasets/{name} cannot be read: {error}") from error


def _schema_of(path: Path, columns: Columns) -> pa.Schema:
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise TableError(f"{path} is no Parquet file: {error}") from error
    _check_schema(schema, columns, str(path))
    return schema


def _check_schema(schema: pa.Schema, columns: Columns, where: str) -> None:
    wanted = _without_absent_smiles(schema, columns)
    check_columns(schema.names, wanted, where)
    kind = schema.field(wanted.smiles).type if wanted.smiles else pa.string()
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(is_text(kind) for is_text in _IS_TEXT):
        raise TableError(f"the column {wanted.smiles} of {where} is of type {kind}; give the one that has SMILES")


def _without_absent_smiles(schema: pa.Schema, columns: Columns) -> Columns:
    """Atoms and coordinates are molecules without SMILES."""
    if columns.smiles in schema.names or not _has_geometry(schema):
        return columns
    return Columns(None, columns.id, columns.kept, columns.cells)


def _has_geometry(schema: pa.Schema) -> bool:
    return "coordinates" in schema.names and bool({"atoms", "atomic_numbers"} & set(schema.names))


def _read(schema: pa.Schema, columns: Columns) -> list[str]:
    """The columns that make a molecule of a row."""
    names = schema.names
    wanted = [str(columns.smiles), columns.id or "id"]
    # Only beside conformers are these two the columns that this package writes.
    wanted += _COMPANIONS if _holds_coordinates(schema) else _GEOMETRY
    return [name for name in dict.fromkeys(wanted) if name in names]


def _batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        yield from pq.ParquetFile(path).iter_batches(_ROWS_AT_A_TIME, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise TableError(f"{path} is damaged: {error}") from error


def _holds_coordinates(schema: pa.Schema) -> bool:
    """Whether `conformers` are lists of coordinates; in embeddings of version 0.1 they told how they came about."""
    if "conformers" not in schema.names:
        return False
    kind = schema.field("conformers").type
    return bool(pa.types.is_list(kind) and pa.types.is_list(kind.value_type))


def _rows_of(
    batches: Iterator[tuple[pa.RecordBatch, list[str]]], columns: Columns, widths: Mapping[str, int]
) -> Iterator[MoleculeRow]:
    number = 0
    for batch, wanted in batches:
        kept = {name: numbers_of(batch.column(name), name, width) for name, width in widths.items()}
        cells = batch.to_pylist() if columns.cells else [{}] * batch.num_rows
        for index, record in enumerate(batch.select(wanted).to_pylist()):
            of_row = {name: values[index] for name, values in kept.items()}
            yield _row(number, record, columns, of_row, cells[index])
            number += 1


def _row(number: int, record: Mapping[str, Any], columns: Columns, kept: Kept, cells: Mapping[str, Any]) -> MoleculeRow:
    text, name = text_of(record.get(str(columns.smiles))), text_of(record.get(columns.id or "id"))
    try:
        molecule, provenance = _molecule_of(record, text)
    except (CoordinatesError, TypeError, ValueError) as error:
        molecule, provenance = CoordinatesError(f"its stored conformers cannot be used: {error}"), ()
    return MoleculeRow(number, name, text, molecule, provenance, kept, cells)


def _molecule_of(record: Mapping[str, Any], smiles: str) -> tuple[Molecule, tuple[ConformerProvenance, ...]]:
    if record.get("conformers"):
        coordinates = np.stack([_as_positions(values) for values in record["conformers"]])
        provenance = tuple(ConformerProvenance(**entry) for entry in record.get("provenance") or ())
        return {"smiles": smiles, "coordinates": coordinates}, provenance
    if not record.get("coordinates"):
        return (stored_error(record) if record.get("error") else smiles), ()
    made: dict[str, Any] = {"smiles": smiles} if smiles else {}
    atoms = record.get("atomic_numbers") or record.get("atoms")
    if atoms:
        made["atomic_numbers"] = _atomic_numbers(atoms)
    return {**made, "coordinates": _as_positions(record["coordinates"])}, ()


def _atomic_numbers(atoms: list[Any]) -> list[int]:
    """Of symbols or numbers."""
    table = Chem.GetPeriodicTable()
    try:
        return [table.GetAtomicNumber(each) if isinstance(each, str) else int(each) for each in atoms]
    except RuntimeError as error:
        raise CoordinatesError("an atom has no symbol of an element") from error


def stored_error(record: Mapping[str, Any]) -> MoleculeError:
    """Why another command could not use the row."""
    error = MoleculeError(str(record["error"]))
    if record.get("error_code"):
        error.code = str(record["error_code"])  # type: ignore[misc]
    return error


def _as_positions(values: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    positions = np.asarray(values, dtype=np.float32)
    if positions.size % 3:
        raise CoordinatesError(f"{positions.size} coordinates are no multiple of 3")
    return positions.reshape(-1, 3)
