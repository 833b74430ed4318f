"""Jobs in processes of their own, killed with -9 at random moments until they are done."""

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Killed:
    """How a job ended: kills that hit it, and the progress that each found."""

    kills: int
    progress_at_kills: frozenset[int]


def forkserver(*preload: str) -> Any:
    """Processes that start at once: the modules are imported one time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


def run_whole(processes: Any, target: Callable[..., None], *arguments: Any) -> None:
    process = processes.Process(target=target, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0


def run_killed(
    processes: Any,
    target: Callable[..., None],
    arguments: tuple[Any, ...],
    progress: Callable[[], int],
    total: int,
    kills: int,
    seconds: float,
    advances: int,
) -> Killed:
    """Start and kill at a random moment within `seconds`, `kills` times; `advances` of them first see progress."""
    moments = random.Random(0)
    found: list[int] = []
    advancing = {round((number + 0.5) * kills / advances) for number in range(advances)}
    for number in range(kills):
        process = processes.Process(target=target, args=arguments)
        process.start()
        goal = min(total - 1, max(found, default=0) + (number in advancing))
        while process.is_alive() and progress() < goal:
            time.sleep(0.002)
        process.join(moments.uniform(0.0, seconds))
        if process.exitcode is not None:
            assert process.exitcode == 0
            break
        os.kill(process.pid, 9)
        process.join()
        found.append(progress())
    run_whole(processes, target, *arguments)
    return Killed(len(found), frozenset(found))
