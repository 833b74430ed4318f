"""What was computed of molecules, kept for the next run: Parquet files in a folder for each set of what decides it."""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import LibraryError
from .atomic_files import make_output_folder, write_json_whole
from .settings import CACHE_VARIABLE
from .shards import whole_or_absent

# What a kill can cost.
_ROWS_PER_FILE, _SECONDS_PER_FILE = 2000, 30.0


def cache_root(where: str) -> Path | None:
    """The folder that a command's `CacheSettings` asks for; `None` for none."""
    if where == "none":
        return None
    default = os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "unimol2_hf" / "conformers"
    return Path(default if where == "auto" else where)


class CacheFolder:
    """Records by the `smiles` of each.

    Args:
        root: of the whole cache; it is made.
        about: all that decides the records; it names a folder inside.
        about_file: where it is written there.
        schema: of the records; `smiles` is one of its columns.
        what: the cache is of, for an error's message.

    Raises:
        OutputFolderError: the folder cannot be made.
        LibraryError: a file in it is damaged.
    """

    def __init__(self, root: Path, about: Mapping[str, Any], about_file: str, schema: pa.Schema, what: str) -> None:
        digest = hashlib.blake2b(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = root / digest
        self._schema, self._what = schema, what
        make_output_folder(self.folder)
        if not (self.folder / about_file).exists():
            write_json_whole(self.folder / about_file, about)
        self._tables: list[pa.Table] = []
        self._places: dict[str, tuple[int, int]] = {}
        for path in sorted(self.folder.glob("*.parquet")):
            self._open(path)
        self._new: dict[str, Mapping[str, Any]] = {}
        self._written = time.monotonic()

    def __len__(self) -> int:
        return len(self._places)

    def get(self, smiles: str, *columns: str) -> tuple[Any, ...] | None:
        """What a record has in these columns; `None` where there is none."""
        if smiles not in self._places:
            return None
        number, row = self._places[smiles]
        return tuple(self._tables[number][name][row].as_py() for name in columns)

    def add(self, record: Mapping[str, Any]) -> None:
        """Keep a record, unless there is one of its molecule."""
        if record["smiles"] in self._places:
            return
        self._new[record["smiles"]] = record
        if len(self._new) >= _ROWS_PER_FILE or time.monotonic() - self._written > _SECONDS_PER_FILE:
            self.write()

    def write(self) -> None:
        """Put what is new on disk."""
        self._written = time.monotonic()
        if not self._new:
            return
        path = self.folder / f"{uuid.uuid4().hex}.parquet"
        with whole_or_absent(path, self._schema) as writer:
            for record in self._new.values():
                writer.write(record)
        self._new = {}
        self._open(path)

    def _open(self, path: Path) -> None:
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise LibraryError(f"{path}, of the cache of {self._what}, is damaged ({error}); delete it") from error
        for row, smiles in enumerate(table["smiles"].to_pylist()):
            self._places[smiles] = (len(self._tables), row)
        self._tables.append(table)
