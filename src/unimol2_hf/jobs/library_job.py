"""Jobs over a library: the rows of a source to Parquet shards, resumable at any moment, on one machine or on Ray.

Rows are cut into shards of consecutive rows. A shard is computed from its own rows alone, in batches that depend on
nothing else, and appears whole or not at all: a job that was killed goes on with the shards that are missing, and its
output is that of an unbroken run.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from rich.console import Console
from rich.markup import escape

from ..conformers import conformer_versions
from ..data.atomic_files import SETTINGS_FILE, make_output_folder, write_json_whole, write_settings
from ..data.molecule_files import Source, approximate_rows, open_rows
from ..data.molecule_rows import Columns, Fields, MoleculeRow
from ..data.output_folder import (
    SUMMARY_FILE,
    about_source,
    fingerprint_of_source,
    locked_output,
    require_same,
    start_or_continue,
)
from ..data.progress import stage
from ..data.shards import finished_shards, shard_counts, shard_path
from ..worker_pool import worker_count

Made = TypeVar("Made")
Summary = TypeVar("Summary", bound="RowSummary")


@dataclass
class RowSummary:
    """Rows of a job or shard: all, failed ones, and ones with a conformer that is not 3D."""

    rows: int = 0
    failed: int = 0
    flat: int = 0

    def add(self, record: Mapping[str, Any]) -> None:
        """Count a record, which has `error` and `provenance`."""
        self.rows += 1
        self.failed += record["error"] is not None
        self.flat += any(not conformer["is_3d"] for conformer in record["provenance"])

    def told(self) -> str:
        """For the line at the end."""
        return f"{self.failed} failed (reason in the error column), {self.flat} from a 2D conformer"


@dataclass
class LibraryJob(ABC, Generic[Made]):
    """What a command does with every row of a source; the same wherever it is made from the same settings.

    Workers are told what to do by a pickled job: what it has loaded stays behind.

    Attributes:
        settings: with `rows_per_shard`, `num_workers` and `of_output()`.
        output_dir: of the job.
        columns: to read of the source.
        source_fields: the source's columns, where `columns` asks for cells.
    """

    folder: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[type[RowSummary]] = RowSummary

    settings: Any
    output_dir: Path
    columns: Columns = field(default_factory=Columns)
    source_fields: Fields = field(default_factory=list)

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @property
    def shards(self) -> Path:
        return self.output_dir / self.folder

    @property
    def output(self) -> Path:
        """What the user asked for."""
        return self.shards

    def versions(self) -> dict[str, Any]:
        """What decides features besides settings and source; a machine without the model can tell it."""
        return {"conformers": conformer_versions()}

    def decisive(self) -> dict[str, Any]:
        """All that decides the output besides settings and source."""
        return self.versions()

    def about(self) -> dict[str, Any]:
        """What a reader of the folder wants to know besides."""
        return {}

    @staticmethod
    def todays_settings(recorded: dict[str, Any]) -> dict[str, Any]:
        """Settings that an earlier version recorded, by today's names."""
        return recorded

    def taken(self, row: MoleculeRow) -> MoleculeRow:
        """A row as it goes to the workers; called for each row, in order, unless its shard is finished."""
        return row

    def passed(self, number: int) -> None:
        """Told of a shard that is finished, when its rows are passed over."""

    @abstractmethod
    def make(self, rows: Iterable[MoleculeRow], num_workers: int) -> Iterator[tuple[int, Made]]:
        """Number of each row, and what is made of it without the model; workers run ahead."""

    @abstractmethod
    def write_shard(
        self, number: int, made: Iterable[tuple[int, Made]], after_row: Callable[[], object] = lambda: None
    ) -> int:
        """Finish the rows of a shard and write it; returns their number, and calls back after each."""

    def is_finished(self) -> bool:
        """Whether there is nothing left to do, though shards may be gone."""
        return False

    def conclude(self) -> None:
        """Called when all shards are there; once it has returned, the job is finished."""

    def accompany(self, source: Source, console: Console) -> None:
        """Write what may be asked for of a finished job, each time."""

    def counted(self) -> RowSummary:
        """What the finished shards hold."""
        counts = [shard_counts(shard_path(self.shards, number)) for number in finished_shards(self.shards)]
        names = asdict(self.summary())
        return self.summary(**{name: sum(each[name] for each in counts) for name in names})


def check_source(source: Source, columns: Columns) -> Fields:
    """The source's columns; what is wrong with all of it is told before a folder is made.

    Raises:
        TableError: it cannot be read.
    """
    found, rows = open_rows(source, columns)
    next(rows, None)
    return found


def run_job(
    job: LibraryJob[Any],
    source: Source,
    console: Console,
    complete: Callable[[LibraryJob[Any], Source, Console], None] | None = None,
) -> RowSummary:
    """Do what is missing of a job, count, and tell.

    Args:
        job: to be done.
        source: see `read_molecules`.
        console: where it is told how far it has come.
        complete: instead of doing the missing shards on this machine.

    Raises:
        TableError: the source cannot be read.
        OutputFolderError: the folder cannot be used, or holds another job's output.
        ModelError: the model cannot be loaded.
    """
    with locked_output(job.output_dir):
        start(job, source)
        if not job.is_finished():
            (complete or _complete_here)(job, source, console)
            summary = job.counted()
            job.conclude()
            write_json_whole(job.output_dir / SUMMARY_FILE, asdict(summary))
        job.accompany(source, console)
        made = job.summary(**json.loads((job.output_dir / SUMMARY_FILE).read_text()))
        console.print(f"{made.rows} rows in {escape(str(job.output))}: {made.told()}")
        return made


def start(job: LibraryJob[Any], source: Source) -> None:
    """Record the job in its folder.

    Raises:
        OutputFolderError: the folder holds another job's output.
    """
    recorded = {"source": fingerprint_of_source(source), **job.decisive(), "settings": job.settings.of_output()}
    about = {**about_source(source), **job.about()}
    start_or_continue(job.output_dir, recorded, bool(finished_shards(job.shards)), about, job.todays_settings)
    write_settings(job.output_dir / SETTINGS_FILE, job.settings)
    make_output_folder(job.shards)


def check_versions(job: LibraryJob[Any], whole: bool) -> None:
    """Raise `OutputFolderError` where this machine would add other vectors to the folder than the one that began.

    Args:
        job: as it came to this machine.
        whole: with the model.
    """
    require_same(job.output_dir, job.decisive() if whole else job.versions())


def missing_rows(
    job: LibraryJob[Any], source: Source, after_row: Callable[[], object] = lambda: None
) -> Iterator[tuple[int, Iterator[MoleculeRow]]]:
    """Number and rows of each shard that is missing."""
    done = finished_shards(job.shards)
    _, rows = open_rows(source, job.columns)
    for number, shard in groupby(rows, lambda row: row.number // job.settings.rows_per_shard):
        if number not in done:
            yield number, map(job.taken, shard)
            continue
        job.passed(number)
        for _ in shard:
            after_row()


def _complete_here(job: LibraryJob[Any], source: Source, console: Console) -> None:
    size = job.settings.rows_per_shard
    with stage(console, job.title, approximate_rows(source)) as advance:

        def after_row() -> None:
            advance(1)

        rows = (row for _, shard in missing_rows(job, source, after_row) for row in shard)
        made = job.make(rows, worker_count(job.settings.num_workers))
        for number, shard in groupby(made, lambda pair: pair[0] // size):
            job.write_shard(number, shard, after_row)
