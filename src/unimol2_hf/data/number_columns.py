"""Numeric columns of a table: numbers, or lists of numbers that are all of one length, as arrays (rows, width)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import MoleculeError, TableError

Kept = dict[str, NDArray[np.float64]]


def number_field(name: str, width: int) -> pa.Field:
    """How a column is written: numbers in full, lists of them in single precision."""
    return pa.field(name, pa.float64() if width == 1 else pa.list_(pa.float32(), width))


def numbers_of(column: pa.Array | pa.ChunkedArray, name: str, width: int | None = None) -> NDArray[np.float64]:
    """A column of numbers (rows, 1) or of lists of numbers (rows, width); NaN where missing.

    Args:
        column, name: of the table.
        width: of the lists; by default what their type says, or the first list.

    Raises:
        TableError: it holds something else, or lists of different lengths.
    """
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    item = values.type.value_type if _is_list(values.type) else values.type
    if not (pa.types.is_floating(item) or pa.types.is_integer(item) or pa.types.is_boolean(item)):
        raise TableError(f"the column {name!r} is of type {values.type}; give numbers or lists of numbers")
    present = values.drop_null()
    if _is_list(values.type):
        width = width or _width(present)
        if pa.types.is_list(values.type) and not (pa.compute.list_value_length(present).to_numpy() == width).all():
            raise TableError(f"the column {name!r} holds lists of different lengths; give each row {width} numbers")
        present = present.flatten()
    width = width or 1
    numbers = np.full((len(values), width), np.nan)
    filled = present.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).reshape(-1, width)
    numbers[values.is_valid().to_numpy(zero_copy_only=False)] = filled
    return numbers


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind))


def _width(lists: pa.Array) -> int:
    if pa.types.is_fixed_size_list(lists.type):
        return int(lists.type.list_size)
    return len(lists[0]) if len(lists) else 1


def width_in_parquet(files: Sequence[Path], name: str) -> int:
    """Numbers a row of a column; of lists of any length the first one decides.

    Raises:
        TableError: a file lacks the column.
    """
    for path in files:
        parquet = pq.ParquetFile(path)
        if name not in parquet.schema_arrow.names:
            raise TableError(f"{path} has no column {name}; its columns are: {', '.join(parquet.schema_arrow.names)}")
        kind = parquet.schema_arrow.field(name).type
        if not pa.types.is_list(kind):
            return _width(pa.array([], kind)) if _is_list(kind) else 1
        for batch in parquet.iter_batches(columns=[name]):
            lists = batch.column(0).drop_null()
            if len(lists):
                return _width(lists)
    return 1


def number_in_text(text: str | None, name: str) -> NDArray[np.float64]:
    """The number in a cell (1,), NaN for an empty one.

    Raises:
        MoleculeError: the cell holds something else.
    """
    try:
        return np.array([float(text) if text and text.strip() else math.nan])
    except ValueError as error:
        raise MoleculeError(f"the column {name!r} holds {text!r}, which is no number; leave it empty") from error


def as_stored(values: NDArray[np.float64]) -> Any:
    """A row's numbers as `number_field` writes them; nothing where all are missing."""
    if np.isnan(values).all():
        return None
    return float(values[0]) if len(values) == 1 else values.astype(np.float32)
