#!/usr/bin/env python3
"""Two versions of this package in turn: a forward pass and a chunk of embedding at 84M, float32, random weights.

    python benchmarks/speed/versions.py --before /path/to/an/older/checkout

Each version and job is a process that lives through the whole measurement, with that checkout's `src` in its path;
they take turns. Needs a quiet machine.
"""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from harness import Worker, in_turn, machine, median, publish

ROOT = Path(__file__).parents[2]
JOBS = ("forward", "packed forward", "embedding")


def worker_of(checkout: Path, job: str, threads: int) -> Worker:
    path = os.pathsep.join([str(checkout / "src"), str(ROOT / "benchmarks" / "speed")])
    worker = Worker(sys.executable, "version_worker.py", job, threads, environment={"PYTHONPATH": path})
    worker.seconds(0, 2)  # loaded and warm
    return worker


def main(
    before: Annotated[Path, typer.Option(help="checkout of the older version")],
    repeats: Annotated[int, typer.Option()] = 11,
    threads: Annotated[int, typer.Option()] = 2,
) -> None:
    """Write versions.json and .md beside this file."""
    rows: list[Any] = []
    for job in JOBS:
        workers = {"before": worker_of(before, job, threads), "after": worker_of(ROOT, job, threads)}
        times = in_turn({name: partial(each.seconds, 0, 1) for name, each in workers.items()}, repeats, warm_ups=1)
        for worker in workers.values():
            worker.close()
        pairs = [new / old for new, old in zip(times["after"], times["before"], strict=True)]
        row = {"job": job, **{f"{name}, s": median(values) for name, values in times.items()}}
        rows.append({**row, "after / before": median(pairs), "smallest": min(pairs), "largest": max(pairs)})
    notes = (
        "84M, random weights, float32, kept memory: a forward pass of 8 molecules of 25 atoms for the CLS, the same "
        "with packed weights, and 48 drugs with given conformers through the packed pipeline (`python "
        "benchmarks/speed/versions.py --before CHECKOUT`)."
    )
    publish("versions", {"machine": machine(threads), "repeats": repeats, "before": before.name}, rows, notes)


if __name__ == "__main__":
    typer.run(main)
