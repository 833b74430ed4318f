#!/usr/bin/env python3
"""Seconds and peak memory of one molecule of 8 to 256 atoms at 84M, beside the naive oracle, and 1.1B in 12 GiB.

    python benchmarks/speed/growth.py --data DIR

Peak memory is resident memory above what the process held before the run. Own memory should grow as S^2 with no d^2.
"""

import ctypes
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from harness import (
    machine,
    median,
    peak_memory_mib,
    publish,
    random_batch,
    reset_peak_memory,
    resident_mib,
    run_process,
    seconds_of,
)
from matplotlib.axes import Axes
from oracle import naive
from scipy.stats import linregress
from torch import nn

from unimol2_hf import UniMol2Config, UniMol2Model

SIZES = (8, 12, 18, 25, 36, 50, 72, 100, 140, 200, 250, 256)
ASYMPTOTIC_ATOMS = 72
GIB_LIMIT = 12


def measure(model: nn.Module, atoms: int, repeats: int, **options: Any) -> tuple[float, float]:
    """Median seconds, and the largest peak memory in MiB above the start."""
    batch = random_batch(1, atoms)
    seconds, peaks = [], []
    with torch.no_grad():
        for repeat in range(repeats + 1):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            reset_peak_memory()
            before = resident_mib()
            elapsed = seconds_of(partial(model, **batch, **options))
            if repeat:
                seconds.append(elapsed)
                peaks.append(peak_memory_mib() - before)
    return median(seconds), max(peaks)


def exponent(rows: list[dict[str, Any]], column: str) -> float:
    """Slope of log(column) over log(S) for large molecules."""
    large = [row for row in rows if row["atoms"] >= ASYMPTOTIC_ATOMS]
    lengths = np.log([row["atoms"] + 1 for row in large])
    return float(linregress(lengths, np.log([row[column] for row in large])).slope)


def main(
    data: Annotated[Path, typer.Option(help="folder with biogen_adme.csv")],
    repeats: Annotated[int, typer.Option()] = 3,
    threads: Annotated[int, typer.Option()] = 2,
    work_dir: Annotated[Path, typer.Option(help="for 4.5 GB of random 1.1B weights")] = Path("runs/speed"),
) -> None:
    """Write growth.json, .md and .png beside this file."""
    torch.set_num_threads(threads)
    model = UniMol2Model(UniMol2Config.from_scale("84m")).eval()
    plain = naive(model)
    rows = []
    for atoms in SIZES:
        own_seconds, own_peak = measure(model, atoms, repeats, read_out="cls")
        naive_seconds, naive_peak = measure(plain, atoms, repeats)
        row = {"atoms": atoms, "own s": own_seconds, "naive s": naive_seconds}
        row |= {"own MiB": own_peak, "naive MiB": naive_peak, "own KiB / S^2": own_peak * 1024 / (atoms + 1) ** 2}
        rows.append(row)
        print(row, flush=True)
    exponents = {name: exponent(rows, name) for name in ("own MiB", "naive MiB", "own s", "naive s")}
    large = run_process(
        sys.executable, "large_worker.py", work_dir / "1.1b", data / "biogen_adme.csv", GIB_LIMIT, threads
    )

    def draw(axes: Axes) -> None:
        for kind in ("own", "naive"):
            axes.loglog([row["atoms"] + 1 for row in rows], [row[f"{kind} MiB"] for row in rows], "o-", label=kind)
        axes.set_xlabel("S = atoms + 1")
        axes.set_ylabel("peak memory above the start, MiB")
        axes.legend()

    notes = (
        f"One molecule at 84M, float32. Exponents of S above {ASYMPTOTIC_ATOMS} atoms: "
        + ", ".join(f"{name} {value:.2f}" for name, value in exponents.items())
        + f". 1.1B (random weights) under a limit of {GIB_LIMIT} GiB of data: loads and embeds {large['molecules']} "
        f"Biogen molecules and one of 256 atoms, peak resident memory {large['peak_mib'] / 1024:.2f} GiB, "
        f"{large['molecules_per_second']:.2f} Biogen molecules a second "
        "(`python benchmarks/speed/growth.py --data DIR`)."
    )
    report = {"machine": machine(threads), "exponents": exponents, "1.1b": large}
    publish("growth", report, rows, notes, draw)


if __name__ == "__main__":
    typer.run(main)
