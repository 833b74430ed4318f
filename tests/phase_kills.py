"""A job over a library in a process of its own that kills itself, with -9, in a phase and at a point of it."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from unimol2_hf.data.shards import ShardWriter
from unimol2_hf.jobs import predict
from unimol2_hf.jobs.build_conformers import BuildJob, build_job
from unimol2_hf.jobs.embed import EmbedJob, embed_job
from unimol2_hf.jobs.library_job import LibraryJob, RowSummary, run_job
from unimol2_hf.jobs.predict import PredictJob, predict_job
from unimol2_hf.jobs.settings import BuildSettings, EmbedSettings, PredictSettings

FEATURISING, WRITING, JOINING, FINISHING = "featurising", "writing a shard", "joining", "finishing"
PHASES = {
    "predict": (FEATURISING, WRITING, JOINING),
    "embed": (FEATURISING, WRITING, FINISHING),
    "build": (FEATURISING, WRITING, FINISHING),
}
_JOBS = (PredictJob, EmbedJob, BuildJob)


def run(command: str, source: str, output: str, model: str, phase: str = "", point: int = 0) -> None:
    """Run a job; in the phase, at its `point`-th step, die, and leave the phase's name beside the output."""
    if phase:
        _arm(phase, point, lambda: _die(Path(f"{output}.died"), phase))
    common: dict[str, Any] = {"rows_per_shard": 4, "num_workers": 1}
    made: dict[str, Callable[[], LibraryJob[Any]]] = {
        "predict": lambda: predict_job(model, Path(source), Path(output), PredictSettings(**common)),
        "embed": lambda: embed_job(Path(source), Path(output), EmbedSettings(model=model, **common)),
        "build": lambda: build_job(Path(source), Path(output), BuildSettings(num_conformers=1, **common)),
    }
    run_job(made[command](), Path(source), Console(quiet=True))


def _die(marker: Path, phase: str) -> None:
    with marker.open("a") as file:
        file.write(f"{phase}\n")
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(phase: str, point: int, die: Callable[[], None]) -> None:
    steps = iter(range(point, -1, -1))

    def step() -> None:
        if next(steps) == 0:
            die()

    if phase == FEATURISING:
        for job in _JOBS:
            _before_each(job, step)
    elif phase == WRITING:
        flush = ShardWriter._flush

        def half(self: ShardWriter) -> None:
            flush(self)
            step()

        ShardWriter._flush = half  # type: ignore[method-assign]
    elif phase == JOINING:
        text = predict.csv_text

        def stepped(value: Any) -> str:
            step()
            return text(value)

        predict.csv_text = stepped
    else:
        counted = LibraryJob.counted

        def stepped_count(self: LibraryJob[Any]) -> RowSummary:
            step()
            return counted(self)

        LibraryJob.counted = stepped_count  # type: ignore[method-assign]


def _before_each(job: Any, step: Callable[[], None]) -> None:
    make = job.make

    def stepped(*arguments: Any) -> Iterator[Any]:
        for pair in make(*arguments):
            step()
            yield pair

    job.make = stepped
