"""A stage on the console: one live line on a terminal, elsewhere a plain line every half minute."""

import io

import pytest
from rich.console import Console

from unimol2_hf.data import progress
from unimol2_hf.data.progress import stage


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


@pytest.mark.parametrize(
    ("total", "line"),
    [(1000, "conformers: 300 of 1,000, 10.0/s, 0:01:10 left"), (None, "conformers: 300 rows, 10.0/s")],
)
def test_a_log_file(clock: Clock, total: int | None, line: str) -> None:
    out = io.StringIO()
    with stage(Console(file=out, width=200), "conformers", total) as advance:
        for _ in range(65):
            clock.now += 1
            advance(10)
    assert out.getvalue().splitlines()[0] == line
    assert len(out.getvalue().splitlines()) == 2


def test_what_is_quick_says_nothing(clock: Clock) -> None:
    out = io.StringIO()
    with stage(Console(file=out), "conformers", 3) as advance:
        advance(3)
    assert out.getvalue() == ""


def test_a_terminal_gets_one_line() -> None:
    out = io.StringIO()
    with stage(Console(file=out, force_terminal=True, width=120), "conformers", 3) as advance:
        for _ in range(3):
            advance(1)
    assert "conformers" in out.getvalue()
    assert "3/3" in out.getvalue()
    assert out.getvalue().count("\n") == 1
