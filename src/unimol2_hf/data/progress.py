"""How far a long stage is: one live line on a terminal, elsewhere a plain line every half minute."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

PLAIN_LINE_SECONDS = 30.0

Advance = Callable[[int], None]


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_rate(task.finished_speed or task.speed or 0.0))


@contextmanager
def stage(console: Console, description: str, total: int | None = None) -> Iterator[Advance]:
    """Show a stage of `total` rows (`None`: nobody knows); call what this gives with the number of rows just done."""
    if not console.is_terminal:
        yield _PlainLines(console, description, total).advance
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count: progress.advance(task, count)


class _PlainLines:
    """What a log file gets."""

    def __init__(self, console: Console, description: str, total: int | None) -> None:
        self._console, self._description, self._total = console, description, total
        self._done = 0
        self._start = self._last = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._last >= PLAIN_LINE_SECONDS:
            self._last = now
            self._console.print(self._line(now - self._start), markup=False, highlight=False)

    def _line(self, seconds: float) -> str:
        rate = self._done / seconds
        if self._total is None:
            return f"{self._description}: {self._done:,} rows, {_rate(rate)}"
        left = timedelta(seconds=round(max(0, self._total - self._done) / rate)) if rate else "?"
        return f"{self._description}: {self._done:,} of {self._total:,}, {_rate(rate)}, {left} left"


def _rate(rows_per_second: float) -> str:
    return f"{rows_per_second:.1f}/s"
