#!/usr/bin/env python3
"""A training step (forward, backward, AdamW) beside the naive oracle: seconds and peak memory of the whole process.

    python benchmarks/speed/training.py [--cases 84m:32:25] [--memory heap]

Each run is a process of its own, kinds in turn. "heap" is the C library's default: large tensors lie in one heap
whose holes are much of the peak; "mapped" gives each its own huge pages (GLIBC_TUNABLES below), for both kinds. 32 is
the smallest batch of the paper's fine-tuning grid. "own" runs a batch in parts of at most `max_pairs_for` pairs, whose
gradients add up to the batch's, as `unimol2-hf finetune` does (`UniMol2Trainer(max_pairs_at_once=...)`).
"""

import os
import sys
from functools import partial
from itertools import product
from typing import Annotated, Any

import typer
from harness import cases_of, in_turn, machine, median, publish, run_process, with_earlier
from matplotlib.axes import Axes

CASES = "84m:8:25,84m:16:25,84m:32:25,nano:32:25"
MALLOCS = {"heap": "", "mapped": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4194304"}
KINDS = ("own", "naive")


def main(
    cases: Annotated[str, typer.Option(help="scale:molecules:atoms, comma-separated; other rows stay")] = CASES,
    memory: Annotated[str, typer.Option(help=", ".join(MALLOCS))] = ",".join(MALLOCS),
    repeats: Annotated[int, typer.Option()] = 2,
    steps: Annotated[int, typer.Option()] = 3,
    threads: Annotated[int, typer.Option()] = 2,
) -> None:
    """Write training.json, .md and .png beside this file."""
    rows: list[Any] = []
    for (scale, molecules, atoms), malloc in product(cases_of(cases), memory.split(",")):
        os.environ["GLIBC_TUNABLES"] = MALLOCS[malloc]
        peaks: dict[str, list[float]] = {kind: [] for kind in KINDS}

        def run(kind: str) -> float:
            result = run_process(sys.executable, "training_worker.py", kind, scale, molecules, atoms, steps, threads)  # noqa: B023
            peaks[kind].append(result["peak_mib"])  # noqa: B023
            return float(result["seconds"])

        times = in_turn({kind: partial(run, kind) for kind in KINDS}, repeats, warm_ups=0)
        seconds = {kind: median(values) for kind, values in times.items()}
        peak = {kind: median(values) for kind, values in peaks.items()}
        row: dict[str, Any] = {"scale": scale, "molecules": molecules, "atoms": atoms, "memory": malloc}
        row |= {f"{kind} s": seconds[kind] for kind in KINDS} | {f"{kind} MiB": peak[kind] for kind in KINDS}
        row["naive / own s"] = seconds["naive"] / seconds["own"]
        row["own / naive MiB"] = peak["own"] / peak["naive"]
        rows.append(row)
        print(row, flush=True)

    rows = with_earlier("training", rows, ("scale", "molecules", "atoms", "memory"))

    def draw(axes: Axes) -> None:
        places = range(len(rows))
        for offset, kind in enumerate(KINDS):
            axes.bar([place + 0.27 * offset for place in places], [row[f"{kind} s"] for row in rows], 0.25, label=kind)
        axes.set_xticks([place + 0.27 for place in places])
        axes.set_xticklabels([f"{row['scale']}\n{row['molecules']} x {row['atoms']}\n{row['memory']}" for row in rows])
        axes.set_ylabel("seconds a training step")
        axes.legend()

    notes = (
        "Training step of a batch (own: run in parts), float32, dropout on, "
        "medians of processes in turn; memory is the peak of the whole process, "
        "weights, gradients and AdamW's state included; "
        f"mapped: `GLIBC_TUNABLES={MALLOCS['mapped']}` (`python benchmarks/speed/training.py`)."
    )
    publish("training", {"machine": machine(threads), "repeats": repeats, "steps": steps}, rows, notes, draw)


if __name__ == "__main__":
    typer.run(main)
