#!/usr/bin/env python3
"""What one busy process beside costs, by how OpenMP's threads wait: unimol2-nano, alone and beside `while True: pass`.

    python benchmarks/speed/neighbour.py [--jobs training]

Two threads on two cores always wait for each other: where one has lost its core to the neighbour, the other one spins,
for milliseconds, and then neither has a core. Each setting is a process that lives through the whole measurement; it
and the neighbour have sessions of their own, by which Linux shares cores. They take turns; a turn begins when nothing
else runs, and is taken again if other work took more than 3 % of the cores' time meanwhile.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import product
from typing import Annotated, Any

import psutil
import typer
from harness import Worker, in_turn, machine, median, publish, with_earlier

# Not in the environment, a worker waits as libgomp does by default.
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SETTINGS = (
    "default",
    "GOMP_SPINCOUNT=300",
    "GOMP_SPINCOUNT=1000",
    "GOMP_SPINCOUNT=3000",
    "GOMP_SPINCOUNT=10000",
    "OMP_WAIT_POLICY=PASSIVE",
)
ALONE, BESIDE = "alone, ms", "beside a busy process, ms"
LARGEST_SHARE_OF_OTHERS = 0.03
ATTEMPTS = 5
PATIENCE_SECONDS = 120


@contextmanager
def busy_neighbour() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    try:
        time.sleep(0.2)
        yield
    finally:
        process.kill()
        process.wait()


class OthersShare:
    """The part of the cores' time that processes other than this one and its children take, from here on."""

    def __init__(self) -> None:
        self._start, self._busy = time.perf_counter(), self._seconds_of_others()

    def so_far(self) -> float:
        elapsed = time.perf_counter() - self._start
        return (self._seconds_of_others() - self._busy) / elapsed / (os.cpu_count() or 1)

    @staticmethod
    def _seconds_of_others() -> float:
        all_ = psutil.cpu_times()
        own = [process.cpu_times() for process in (psutil.Process(), *psutil.Process().children())]
        busy = all_.user + all_.nice + all_.system + all_.irq + all_.softirq
        return float(busy - sum(times.user + times.system for times in own))


def wait_for_quiet() -> None:
    end = time.perf_counter() + PATIENCE_SECONDS
    share = 1.0
    while share > LARGEST_SHARE_OF_OTHERS and time.perf_counter() < end:
        others = OthersShare()
        time.sleep(0.5)
        share = others.so_far()


def turn(worker: Worker, where: str, steps: int, shares: list[float]) -> float:
    """Milliseconds of a step; adds the share of others to `shares`."""
    share = 1.0
    for _ in range(ATTEMPTS):
        wait_for_quiet()
        with busy_neighbour() if where == BESIDE else nullcontext():
            others = OthersShare()
            seconds = worker.seconds(0, steps)
            share = others.so_far()
        if share <= LARGEST_SHARE_OF_OTHERS:
            break
    shares.append(share)
    return 1e3 * seconds / steps


def worker_with(setting: str, job: str, threads: int) -> Worker:
    name, _, value = setting.partition("=")
    environment = {name: value} if value else None
    worker = Worker(sys.executable, "neighbour_worker.py", job, threads, environment=environment)
    worker.seconds(0, 3)  # loaded and warm
    return worker


def measure(job: str, steps: int, repeats: int, threads: int) -> list[dict[str, Any]]:
    """A row for each setting: medians, smallest and largest values, and the largest share of others."""
    workers = {setting: worker_with(setting, job, threads) for setting in SETTINGS}
    shares: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
    turns = {
        (where, setting): partial(turn, workers[setting], where, steps, shares[setting])
        for where, setting in product((ALONE, BESIDE), SETTINGS)
    }
    times = in_turn(turns, repeats, warm_ups=0)
    for worker in workers.values():
        worker.close()
    return [
        {"job": job, "setting": setting}
        | {where: median(times[where, setting]) for where in (ALONE, BESIDE)}
        | {f"{where}: range": range_of(times[where, setting]) for where in (ALONE, BESIDE)}
        | {"largest share of others": max(shares[setting])}
        for setting in SETTINGS
    ]


def range_of(values: list[float]) -> str:
    return f"{min(values):.0f} to {max(values):.0f}"


def main(
    jobs: Annotated[str, typer.Option(help="comma-separated; other rows stay")] = "training,embedding",
    steps: Annotated[int, typer.Option(help="of a turn")] = 3,
    repeats: Annotated[int, typer.Option()] = 7,
    threads: Annotated[int, typer.Option()] = 2,
) -> None:
    """Write neighbour.json and .md beside this file."""
    for name in VARIABLES:
        os.environ.pop(name, None)
    rows: list[Any] = [row for job in jobs.split(",") for row in measure(job, steps, repeats, threads)]
    rows = with_earlier("neighbour", rows, ("job", "setting"))
    notes = (
        "unimol2-nano, float32: a training step (forward, backward, AdamW) of 16 drugs, and the embedding of 32; "
        "medians of processes in turn (`python benchmarks/speed/neighbour.py`)."
    )
    publish("neighbour", {"machine": machine(threads), "repeats": repeats, "steps": steps}, rows, notes)


if __name__ == "__main__":
    typer.run(main)
