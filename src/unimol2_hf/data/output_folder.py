"""An output folder that belongs to one job and one process, and that a killed job finds again."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import OutputFolderError
from .arrow_tables import arrow_table, hub_data_set
from .atomic_files import make_output_folder, write_json_whole
from .molecule_files import HUB_PREFIX, Source, check_readable, files_of, hub_name, is_on_hub

JOB_FILE, SUMMARY_FILE, LOCK_FILE = "job.json", "summary.json", ".lock"
# Of 1, version 0.1's, models had other fingerprints; up to 2 only a file's first MiB was looked at.
JOB_FORMAT, _TODAYS_MODELS, _WHOLE_FILES = 3, 2, 3
_FINGERPRINT_BYTES = 2**20
_LOCK_SECONDS = 4
_DATA = ("source", "data")  # files
_HASHES = {
    "source": "another source",
    "data": "other data",
    "model": "another model",
    "calibration": "another calibration",
}


@contextmanager
def locked_output(output_dir: Path) -> Iterator[None]:
    """The folder for one process at a time; the lock ends with the process, however that ends."""
    # Workers of a job that was just killed hold its lock until they notice: hence the wait.
    lock = FileLock(output_dir / LOCK_FILE, timeout=_LOCK_SECONDS)
    try:
        make_output_folder(output_dir)
        lock.acquire()
    except Timeout as error:
        raise OutputFolderError(
            f"another process writes into {output_dir}; wait for it or choose another folder"
        ) from error
    except OSError as error:
        raise OutputFolderError(f"{output_dir} cannot be used as the output folder: {error}") from error
    try:
        yield
    finally:
        lock.release()


def start_or_continue(
    output_dir: Path,
    job: Mapping[str, Any],
    holds_output: bool,
    about: Mapping[str, Any] | None = None,
    updated: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> None:
    """Record what the job is; raise `OutputFolderError` where the folder holds another job.

    Args:
        job: `settings`, and fingerprints of whatever else decides the output.
        holds_output: whether there is some already, though nothing says whose.
        about: what a reader wants to know besides.
        updated: settings that were recorded by an earlier version to today's.
    """
    job = _as_stored(job)
    path = output_dir / JOB_FILE
    if path.exists():
        content = read_job(output_dir)
        recorded = content["job"]
        recorded["settings"] = updated(recorded["settings"])
        # Version 0.1 took the model's fingerprint from a config that reads differently now. Of a finished job nothing
        # will be computed any more, so nothing can come from another model.
        if content.get("format", 1) < _TODAYS_MODELS and (output_dir / SUMMARY_FILE).exists():
            recorded.pop("model", None)
        if content.get("format", 1) < _WHOLE_FILES:
            recorded, job = (_with_sizes_only(each) for each in (recorded, job))
        # What an earlier version did not record nobody knows.
        _refuse_differences(output_dir, recorded, {name: job.get(name) for name in recorded})
        return
    if holds_output:
        raise OutputFolderError(f"{output_dir} holds output of an unknown job; choose another folder or delete it")
    write_json_whole(path, {"format": JOB_FORMAT, "job": job, "about": dict(about or {})})


def require_same(output_dir: Path, part: Mapping[str, Any]) -> None:
    """Raise `OutputFolderError` where part of what a job is differs from what is recorded in its folder."""
    recorded, part = read_job(output_dir)["job"], _as_stored(part)
    _refuse_differences(output_dir, {name: recorded.get(name) for name in part}, part)


def _as_stored(job: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(job, default=str))
    return made


def read_job(output_dir: Path) -> dict[str, Any]:
    """What `job.json` holds: `job`, `about` and `format`.

    Raises:
        OutputFolderError: it cannot be read.
    """
    path = output_dir / JOB_FILE
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        dict(content["job"]["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputFolderError(f"{path} is not what a job wrote; choose another folder or delete it") from error
    return content


def _refuse_differences(output_dir: Path, recorded: Mapping[str, Any], job: Mapping[str, Any]) -> None:
    different = sorted(_differences(recorded, job))
    if different:
        raise OutputFolderError(
            f"{output_dir} holds the output of another job ({'; '.join(different)}); choose another folder or delete it"
        )


def _with_sizes_only(job: Mapping[str, Any]) -> dict[str, Any]:
    """Of large files the hashes of an earlier version say something else."""
    return {
        name: [[size, digest if size <= _FINGERPRINT_BYTES else ""] for size, digest in content]
        if name in _DATA
        else content
        for name, content in job.items()
    }


def _differences(recorded: Mapping[str, Any], job: Mapping[str, Any]) -> Iterator[str]:
    for name in {*recorded, *job}:
        before, now = recorded.get(name), job.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _differences(before, now)
        elif before != now:
            # A hash says nothing to a reader.
            yield _HASHES.get(name, f"{name} was {before!r} and is {now!r}")


def fingerprint_of_source(source: Source) -> list[list[Any]]:
    """Size and hash of each file, or of a table in memory: the same data, wherever it lies.

    Raises:
        TableError: there is no such source, or it can be read only once.
    """
    if not isinstance(source, Path) or is_on_hub(source):
        table = arrow_table(hub_data_set(source) if isinstance(source, Path) else source)
        digest = hashlib.blake2b()
        for batch in table.to_batches():
            digest.update(batch.serialize())
        return [[table.num_rows, digest.hexdigest()[:32]]]
    check_readable(source)
    prints: list[list[Any]] = []
    for path in files_of(source):
        with path.open("rb") as file:
            whole = hashlib.file_digest(file, hashlib.blake2b).hexdigest()
        prints.append([path.stat().st_size, whole[:32]])
    return prints


def about_source(source: Source) -> dict[str, str]:
    """Where the data came from, for whoever finds the folder."""
    if not isinstance(source, Path):
        return {"source": type(source).__name__}
    return {"source": f"{HUB_PREFIX}{hub_name(source)}" if is_on_hub(source) else str(source.resolve())}
