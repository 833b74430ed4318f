"""CSV tables, every cell as the text it is."""

import csv
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import TableError


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV (compressed too) with every cell as the text it is; an empty cell is "".

    Blank lines inside the table are rows; at its end they are not.

    Raises:
        TableError: no such file, not a table, rows longer than the header, or a column name twice.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "skip_blank_lines": False}
            table = pd.read_csv(path, index_col=False, **options)
            header = pd.read_csv(path, header=None, nrows=1, **options).iloc[0].tolist()
    except FileNotFoundError as error:
        raise TableError(f"{path} does not exist") from error
    except pd.errors.ParserWarning as error:
        raise TableError(f"{path} has rows with more cells than the header; remove trailing commas") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, csv.Error) as error:
        raise TableError(f"{path} is no CSV table in UTF-8 ({error}); export it as CSV (UTF-8)") from error
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise TableError(f"{path} has the column {', '.join(repeated)} more than once; rename one")
    filled = np.flatnonzero((table != "").any(axis=1))
    return table.iloc[: filled[-1] + 1 if len(filled) else 0]


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
