"""Conformers streamed from Parquet shards, local or on the Hub, in planned steps that any process can find again."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import load_dataset_builder
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from ..batching import DEFAULT_MAX_PAIRS, plan_batches
from ..errors import TableError, UniMol2Error
from ..library.molecule_files import files_of
from ..library.number_columns import numbers_of
from ..library.scaffolds import conformer_shards_of
from .collator import DRAW, GRAPH_TARGETS, DataCollatorForUniMol2Pretraining
from .plan import LibraryIndex, SamplingPlan
from .targets import TargetScale, fitted_scale

_COLUMNS = ("smiles", "atomic_numbers", "conformers", "provenance.list.element.is_3d", "error")
_INDEX_COLUMNS = ("num_heavy_atoms", "scaffold", "error")
# Enough molecules for a mean and a spread, in a library of any size.
_MOST_SHARDS_FOR_SCALE = 64


class ConformerLibrary:
    """The shards of a library of conformers: an index of all molecules, and single molecules of a shard.

    Args:
        source: a folder that `unimol2-hf conformers build` wrote, a folder of its shards, or the id of such a data set
            on the Hub (its `train` split).
        open_shards: shards kept in memory.
        targets: columns of numbers, or of fixed-size lists of them, that `row` joins to `graph_targets`.

    Raises:
        TableError: there are no such shards.
    """

    def __init__(self, source: str | Path, open_shards: int = 8, targets: Sequence[str] = ()) -> None:
        self.shards = shards_of(source)
        self._targets = tuple(targets)
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

    def target_scale(self) -> TargetScale:
        """Mean and spread of the targets, over evenly spaced shards.

        Raises:
            TableError: a column is lacking or holds something else than numbers, or none.
        """
        step = -(-len(self.shards) // _MOST_SHARDS_FOR_SCALE)
        blocks: list[list[NDArray[np.float64]]] = []
        for url in self.shards[::step]:
            table = _read(url, (*self._targets, "error"))
            table = table.filter(_usable(table))
            blocks.append([numbers_of(table[name], name) for name in self._targets])
        sizes = [block.shape[1] for block in blocks[0]]
        return fitted_scale(self._targets, sizes, np.concatenate([np.concatenate(each, axis=1) for each in blocks]))

    def row(self, shard: int, place: int) -> dict[str, Any]:
        """A molecule of a shard, as the collator takes it; `place` counts those without an error."""
        if shard not in self._open:
            self._open[shard] = _Shard(_read(self.shards[shard], (*_COLUMNS, *self._targets)), self._targets)
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
            raise TableError(f"{source} is neither a folder nor a data set on the Hub: {error}") from error
        urls = [str(url) for url in (files or {}).get("train", [])]
    if not urls:
        raise TableError(f"{source} holds no Parquet shards; make some with `unimol2-hf conformers build`")
    return urls


def _read(url: str, columns: tuple[str, ...]) -> pa.Table:
    try:
        with fsspec.open(url, "rb") as file:
            table = pq.ParquetFile(file).read(columns=list(columns))
    except (OSError, pa.ArrowInvalid) as error:
        raise TableError(f"{url} cannot be read: {error}") from error
    missing = {name.split(".")[0] for name in columns} - set(table.column_names)
    if missing:
        raise TableError(f"{url} lacks {', '.join(sorted(missing))}; make it with `unimol2-hf conformers build`")
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


@dataclass(frozen=True)
class Share:
    """This process among all that train together."""

    rank: int = 0
    world_size: int = 1


class PretrainingStream(IterableDataset[dict[str, Any]]):
    """Steps of pretraining, each the samples of one optimiser update, as micro-batches of like length.

    Yields {"step", "samples", "micro_batches"}: the step's number, its number of samples over all processes, and this
    process's padded batches. All processes plan the same step and each takes its share of the samples; a step's
    samples do not depend on how many processes or workers there are.

    Args:
        library, plan: what to draw from.
        collator: makes batches.
        samples_per_step: over all processes.
        max_rows, max_pairs: of a micro-batch (see `plan_batches`).
        share: this process among all.
        first_step: where to go on; set it before iterating.
    """

    def __init__(
        self,
        library: ConformerLibrary,
        plan: SamplingPlan,
        num_heavy_atoms: NDArray[np.integer],
        collator: DataCollatorForUniMol2Pretraining,
        samples_per_step: int,
        max_rows: int,
        max_pairs: int = DEFAULT_MAX_PAIRS,
        share: Share | None = None,
        first_step: int = 0,
    ) -> None:
        self._library, self._plan, self._sizes = library, plan, num_heavy_atoms
        self._collator = collator
        self._samples_per_step, self._max_rows, self._max_pairs = samples_per_step, max_rows, max_pairs
        self._share = share or Share()
        self.first_step = first_step
        if samples_per_step < self._share.world_size:
            raise UniMol2Error(f"{samples_per_step} samples a step are fewer than {self._share.world_size} processes")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        step = self.first_step + number
        while True:
            yield self.step(step)
            step += workers

    def step(self, step: int) -> dict[str, Any]:
        """This process's part of a step."""
        first = step * self._samples_per_step
        rows = self._plan.samples(first, self._samples_per_step)
        shards, places = self._plan.shard_of(rows), self._plan.place_in_shard(rows)
        batches = [
            self._collator([self._row(first, place, shards, places) for place in batch])
            for batch in self._own_batches(rows)
        ]
        return {"step": step, "samples": self._samples_per_step, "micro_batches": batches}

    def _row(self, first: int, place: int, shards: NDArray[np.int64], places: NDArray[np.int64]) -> Mapping[str, Any]:
        return {**self._library.row(int(shards[place]), int(places[place])), DRAW: first + place}

    def _own_batches(self, rows: NDArray[np.int64]) -> list[list[int]]:
        lengths = self._sizes[rows]
        # Dealt out in order of length: every process gets as many samples, and of like lengths.
        own = np.argsort(lengths, kind="stable")[self._share.rank :: self._share.world_size]
        batches = plan_batches(lengths[own].tolist(), self._max_rows, self._max_pairs)
        return [own[batch].tolist() for batch in batches]
