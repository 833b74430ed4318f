"""A library of conformers in Parquet shards, local or on the Hub: its index, and single molecules."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import load_dataset_builder
from numpy.typing import NDArray

from ..errors import LibraryError
from .molecule_files import files_of
from .number_columns import numbers_of
from .shards import CONFORMERS

GRAPH_TARGETS = "graph_targets"  # a row's raw targets, in a batch the standardised ones
_COLUMNS = ("smiles", "atomic_numbers", "conformers", "provenance.list.element.is_3d", "error")
_INDEX_COLUMNS = ("num_heavy_atoms", "scaffold", "error")


@dataclass(frozen=True)
class LibraryIndex:
    """What the plan must know of every molecule; rows with an error are left out.

    Attributes:
        shard_sizes: molecules of each shard.
        num_heavy_atoms: (n,) uint16, shard after shard.
        scaffolds: (n,) int32, numbers of scaffolds.
    """

    shard_sizes: tuple[int, ...]
    num_heavy_atoms: NDArray[np.uint16]
    scaffolds: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.scaffolds)


class ConformerLibrary:
    """The shards of a library of conformers: an index of all molecules, and single molecules of a shard.

    Args:
        source: a folder that `unimol2-hf conformers build` wrote, a folder of its shards, or the id of such a data set
            on the Hub (its `train` split).
        open_shards: shards kept in memory.
        targets: columns of numbers, or of fixed-size lists of them, that `row` joins to `graph_targets`.

    Raises:
        LibraryError: there are no such shards.
    """

    def __init__(self, source: str | Path, open_shards: int = 8, targets: Sequence[str] = ()) -> None:
        self.shards = shards_of(source)
        self.targets = tuple(targets)
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self._most_open = open_shards

    def index(self) -> LibraryIndex:
        """Read what the plan needs of every shard; only those columns are fetched."""
        scaffolds: dict[str, int] = {}
        sizes, atoms, groups = [], [], []
        for url in self.shards:
            table = _read(url, _INDEX_COLUMNS)
            table = table.filter(_usable(table))
            sizes.append(table.num_rows)
            atoms.append(table["num_heavy_atoms"].to_numpy().astype(np.uint16))
            names = table["scaffold"].to_pylist()
            groups.append(np.array([scaffolds.setdefault(name, len(scaffolds)) for name in names], dtype=np.int32))
        return LibraryIndex(tuple(sizes), np.concatenate(atoms), np.concatenate(groups))

    def target_values(self, most_shards: int) -> list[NDArray[np.float64]]:
        """Each target's column (rows, width), over evenly spaced shards; NaN where missing.

        Raises:
            LibraryError: a column is lacking or holds something else than numbers.
        """
        step = -(-len(self.shards) // most_shards)
        tables = [_read(url, (*self.targets, "error")) for url in self.shards[::step]]
        tables = [table.filter(_usable(table)) for table in tables]
        return [np.concatenate([numbers_of(table[name], name) for table in tables]) for name in self.targets]

    def row(self, shard: int, place: int) -> dict[str, Any]:
        """A molecule of a shard, as the collator takes it; `place` counts those without an error."""
        if shard not in self._open:
            self._open[shard] = _Shard(_read(self.shards[shard], (*_COLUMNS, *self.targets)), self.targets)
            while len(self._open) > self._most_open:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard].row(place)


def shards_of(source: str | Path) -> list[str]:
    """Paths or URLs of a library's Parquet files, in the order of their names."""
    folder = conformer_shards_of(Path(source))
    if folder.exists():
        urls = [str(path) for path in files_of(folder)]
    else:
        try:
            files = load_dataset_builder(str(source)).config.data_files
        except (OSError, ValueError) as error:
            raise LibraryError(f"{source} is neither a folder nor a data set on the Hub: {error}") from error
        urls = [str(url) for url in (files or {}).get("train", [])]
    if not urls:
        raise LibraryError(f"{source} holds no Parquet shards; make some with `unimol2-hf conformers build`")
    return urls


def conformer_shards_of(source: Path) -> Path:
    """The folder of the shards, given it or the job's folder around it."""
    return source / CONFORMERS if (source / CONFORMERS).is_dir() else source


def _read(url: str, columns: tuple[str, ...]) -> pa.Table:
    try:
        with fsspec.open(url, "rb") as file:
            table = pq.ParquetFile(file).read(columns=list(columns))
    except (OSError, pa.ArrowInvalid) as error:
        raise LibraryError(f"{url} cannot be read: {error}") from error
    missing = {name.split(".")[0] for name in columns} - set(table.column_names)
    if missing:
        raise LibraryError(f"{url} lacks {', '.join(sorted(missing))}; make it with `unimol2-hf conformers build`")
    return table


def _usable(table: pa.Table) -> pa.Array:
    return pa.compute.is_null(table["error"])


class _Shard:
    """The molecules of a shard as flat arrays: a row is sliced out of them without Python loops."""

    def __init__(self, table: pa.Table, targets: Sequence[str]) -> None:
        table = table.filter(_usable(table)).combine_chunks()
        columns = [numbers_of(table[name], name).astype(np.float32) for name in targets]
        self._targets = np.concatenate(columns, axis=1) if columns else None
        self._smiles = table["smiles"].to_pylist()
        self._numbers, self._number_ends = _flat(table["atomic_numbers"])
        conformers = _one_chunk(table["conformers"])
        self._conformer_ends = _ends(conformers)
        self._coordinates, self._coordinate_ends = _flat(pa.chunked_array([conformers.flatten()]))
        self._is_3d = _one_chunk(table["provenance"]).flatten().field("is_3d").to_numpy(zero_copy_only=False)

    def row(self, place: int) -> dict[str, Any]:
        first, last = self._conformer_ends[place : place + 2]
        ends = self._coordinate_ends
        targets = {} if self._targets is None else {GRAPH_TARGETS: self._targets[place]}
        return {
            "smiles": self._smiles[place],
            "atomic_numbers": self._numbers[slice(*self._number_ends[place : place + 2])],
            "conformers": [self._coordinates[ends[number] : ends[number + 1]] for number in range(first, last)],
            "is_3d": self._is_3d[first:last],
            **targets,
        }


def _one_chunk(column: pa.ChunkedArray) -> pa.ListArray:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _ends(lists: pa.ListArray) -> NDArray[np.int64]:
    """Where each list starts among the values of `flatten`, and where the last one ends."""
    lengths = lists.value_lengths().fill_null(0).to_numpy()
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _flat(column: pa.ChunkedArray) -> tuple[NDArray[Any], NDArray[np.int64]]:
    lists = _one_chunk(column)
    return lists.flatten().to_numpy(), _ends(lists)
