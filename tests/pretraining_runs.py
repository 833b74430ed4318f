"""What is compared of pretraining runs, and runs in several processes."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from kills import forkserver
from pretraining_jobs import train_as_rank

LOSS_NAMES = ("loss", "token_loss", "coordinate_loss", "distance_loss")


def history_of(folder: Path) -> list[dict[str, float]]:
    history: list[dict[str, float]] = json.loads((folder / "log_history.json").read_text())
    return [entry for entry in history if "loss" in entry or "eval_loss" in entry]


def assert_same_losses(one: Path, other: Path, tolerance: float, targets: tuple[str, ...] = ()) -> None:
    first, second = history_of(one), history_of(other)
    assert set(targets) <= set(first[0])
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert a["step"] == b["step"]
        for name in a:
            exact = name == "grad_norm" and tolerance < 1e-3
            if exact or name.removeprefix("eval_") in (*LOSS_NAMES, *targets):
                assert a[name] == pytest.approx(b[name], rel=tolerance, abs=tolerance)


def train_in_two_processes(library: Path, output_dir: Path, changes: dict[str, object]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (2, port, str(library), str(output_dir), changes)
    pair = [jobs().Process(target=train_as_rank, args=(rank, *arguments)) for rank in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join()
    assert [process.exitcode for process in pair] == [0, 0]


def jobs() -> Any:
    return forkserver("unimol2_hf.jobs.build_conformers", "unimol2_hf.pretraining.pretrain")
