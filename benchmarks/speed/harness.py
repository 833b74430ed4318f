"""What the speed tables share: runs in turn, the machine's matrix-product ceiling, and how figures are written down."""

import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import matplotlib as mpl
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))  # the naive oracle

Name = TypeVar("Name")

CEILING_SHAPES = ((5408, 512, 512), (4096, 1024, 1024), (2048, 2048, 2048))


def machine(threads: int) -> dict[str, Any]:
    """What a figure was measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"cpu": _cpu_name(), "threads": threads, "gpu": gpu, "torch": torch.__version__}


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def random_batch(molecules: int, atoms: int) -> dict[str, Tensor]:
    """Model input of random features, no padding: the model's time does not depend on their values."""
    generator = torch.Generator().manual_seed(0)

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(1, high, (molecules, *shape), generator=generator, dtype=torch.int16)

    return {
        "input_ids": integers(50, atoms).long(),
        "atom_features": integers(130, atoms, 8),
        "degrees": integers(6, atoms),
        "edge_features": integers(60, atoms, atoms, 3),
        "shortest_paths": integers(20, atoms, atoms),
        "pair_types": integers(200, atoms, atoms, 2),
        "coordinates": torch.randn(molecules, atoms, 3, generator=generator) * 4,
    }


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(runs: Mapping[Name, Callable[[], float]], repeats: int, warm_ups: int = 1) -> dict[Name, list[float]]:
    """Each run's values, one of each kind after another, so that a slow moment meets them all."""
    values: dict[Name, list[float]] = {name: [] for name in runs}
    for repeat in range(warm_ups + repeats):
        for name, run in runs.items():
            value = run()
            if repeat >= warm_ups:
                values[name].append(value)
    return values


def matrix_product_gflops() -> float:
    """The best of a few matrix products of the model's sizes, GFLOP/s of this moment."""
    best = 0.0
    for rows, inner, columns in CEILING_SHAPES:
        left, right = torch.randn(rows, inner), torch.randn(inner, columns)
        seconds = min(seconds_of(lambda: left @ right) for _ in range(5))  # noqa: B023 - run at once
        best = max(best, 2 * rows * inner * columns / seconds / 1e9)
    return best


def counted_gflop(model: nn.Module, batch: Mapping[str, Tensor], **options: Any) -> float:
    """GFLOP of one forward pass, counted by PyTorch over matrix products."""
    # PyTorch does not know products that add in place.
    added = dict.fromkeys((torch.ops.aten.addmm_, torch.ops.aten.baddbmm_), _flop_of_added_product)
    with FlopCounterMode(display=False, custom_mapping=added) as counter, torch.no_grad():
        model(**batch, **options)
    return counter.get_total_flops() / 1e9


def _flop_of_added_product(summand: Sequence[int], left: Sequence[int], right: Sequence[int], **_: Any) -> int:
    """Of shapes (..., rows, inner) and (..., inner, columns)."""
    return 2 * math.prod(left) * right[-1]


def reset_peak_memory() -> None:
    """Let the kernel forget this process's largest memory."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib() -> float:
    """Largest resident memory since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def run_process(python: str, script: str, *arguments: object) -> dict[str, Any]:
    """The last line that a script of this folder prints, read as JSON."""
    command = [python, str(HERE / script), *map(str, arguments)]
    output = subprocess.run(command, capture_output=True, text=True, check=False)
    if output.returncode:
        raise RuntimeError(f"{script} {arguments} failed:\n{output.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(output.stdout.strip().splitlines()[-1])
    return result


class Worker:
    """A process that answers turns with seconds (turns.py), in a session of its own: Linux shares cores by session."""

    def __init__(
        self, python: str, script: str, *arguments: object, environment: Mapping[str, str] | None = None
    ) -> None:
        """`environment` is added to this process's own."""
        command = [python, str(HERE / script), *map(str, arguments)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )

    def seconds(self, start: int, end: int) -> float:
        stdin, stdout = self._pipes()
        stdin.write(f"{start} {end}\n")
        stdin.flush()
        for line in stdout:
            if line.startswith("{"):
                return float(json.loads(line)["seconds"])
        raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()}")

    def close(self) -> None:
        self._pipes()[0].close()
        self._process.wait()

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the worker has no pipes")
        return self._process.stdin, self._process.stdout


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def publish(
    name: str,
    report: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    notes: str,
    draw: Callable[[Axes], None] | None = None,
) -> None:
    """Write NAME.json, NAME.md and NAME.png beside this file."""
    (HERE / f"{name}.json").write_text(json.dumps({**report, "rows": rows}, indent=1) + "\n")
    text = f"{notes}\n\n{markdown_table(rows)}\n\nMachine: {report['machine']}.\n"
    (HERE / f"{name}.md").write_text(text)
    print(text)
    if draw is not None:
        figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
        draw(axes)
        figure.savefig(HERE / f"{name}.png", dpi=110)
        plt.close(figure)


def cases_of(text: str) -> list[tuple[str, int, int]]:
    """Scale, molecules and atoms of each of "84m:8:25,nano:32:25"."""
    words = (case.split(":") for case in text.split(","))
    return [(scale, int(molecules), int(atoms)) for scale, molecules, atoms in words]


def with_earlier(name: str, rows: Sequence[Mapping[str, Any]], key: Sequence[str]) -> list[Mapping[str, Any]]:
    """These rows, and those of NAME.json that measure something else; of one kind of columns."""
    path = HERE / f"{name}.json"
    earlier = json.loads(path.read_text())["rows"] if path.exists() else []

    def identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row[column] for column in key)

    made = {identity(row): row for row in (*earlier, *rows)}
    columns = dict.fromkeys(column for row in rows for column in row)
    return [{column: row.get(column) for column in columns} for row in made.values()]


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(_cell(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
