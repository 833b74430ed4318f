#!/usr/bin/env python3
"""Inference beside the naive oracle of the tests, by scale, molecule size and batch, and the share of the ceiling.

    python benchmarks/speed/inference.py [--cases 84m:8:25] [--no-compiled]

The naive model computes every layer and every (S, S, d^2) outer product in full; weights are the same. Runs alternate
in one process; "packed" has its weights in oneDNN's layout, "compiled" is torch.compile with static shapes and frozen
weights.
"""

import copy
from functools import partial
from typing import Annotated, Any

import torch
import typer
from harness import (
    cases_of,
    counted_gflop,
    in_turn,
    machine,
    matrix_product_gflops,
    median,
    publish,
    random_batch,
    seconds_of,
    with_earlier,
)
from matplotlib.axes import Axes
from oracle import naive

from unimol2_hf import UniMol2Config, UniMol2Model
from unimol2_hf.packed_linear import pack_linear_layers

CASES = "84m:8:25,84m:1:25,84m:32:10,84m:4:50,84m:1:100,nano:32:25,42m:8:25,164m:8:25,310m:4:25,570m:2:25,1.1b:1:25"


def measure(scale: str, molecules: int, atoms: int, repeats: int, compiled: bool) -> dict[str, Any]:
    model = UniMol2Model(UniMol2Config.from_scale(scale)).eval()
    batch = random_batch(molecules, atoms)
    plain = naive(model)

    def run(which: Any, **options: Any) -> float:
        with torch.no_grad():
            return seconds_of(partial(which, **batch, **options))

    gflop = counted_gflop(model, batch, read_out="cls")
    runs = {"own": partial(run, model, read_out="cls"), "naive": partial(run, plain)}
    times = in_turn(runs, repeats)
    own, slow = median(times["own"]), median(times["naive"])
    del plain, runs["naive"]
    pack = copy.deepcopy(model)
    pack_linear_layers(pack)
    runs["packed"] = partial(run, pack, read_out="cls")
    # The share apart from the naive runs: their gigabytes of fresh memory slow the run that follows.
    shares = in_turn({**runs, "ceiling": matrix_product_gflops}, repeats)
    alone, packed, ceiling = (median(shares[name]) for name in ("own", "packed", "ceiling"))
    row = {
        "scale": scale,
        "molecules": molecules,
        "atoms": atoms,
        "own s": own,
        "naive s": slow,
        "naive / own": slow / own,
        "GFLOP": gflop,
        "GFLOP/s": gflop / alone,
        "ceiling GFLOP/s": ceiling,
        "share of ceiling": gflop / alone / ceiling,
        "packed share": gflop / packed / ceiling,
        "own / packed": alone / packed,
        "compiled share": None,
        "eager / compiled": None,
    }
    if compiled:
        torch._inductor.config.freezing = True
        fast = torch.compile(model, dynamic=False)
        pairs = in_turn(
            {"own": runs["own"], "fast": partial(run, fast, read_out="cls"), "ceiling": matrix_product_gflops},
            repeats,
            warm_ups=2,
        )
        seconds = median(pairs["fast"])
        row["compiled share"] = gflop / seconds / median(pairs["ceiling"])
        row["eager / compiled"] = median(pairs["own"]) / seconds
    return row


def main(
    cases: Annotated[str, typer.Option(help="scale:molecules:atoms, comma-separated; other rows stay")] = CASES,
    compiled: Annotated[bool, typer.Option(help="also the first case compiled")] = True,
    repeats: Annotated[int, typer.Option()] = 9,
    threads: Annotated[int, typer.Option()] = 2,
) -> None:
    """Write inference.json, .md and .png beside this file."""
    torch.set_num_threads(threads)
    rows: list[Any] = []
    for number, (scale, molecules, atoms) in enumerate(cases_of(cases)):
        few = scale in ("310m", "570m", "1.1b")
        rows.append(
            measure(scale, molecules, atoms, max(3, repeats // 3) if few else repeats, compiled and number == 0)
        )
        print(rows[-1], flush=True)

    rows = with_earlier("inference", rows, ("scale", "molecules", "atoms"))

    def draw(axes: Axes) -> None:
        names = [f"{row['scale']}\n{row['molecules']} x {row['atoms']}" for row in rows]
        axes.bar(names, [row["naive / own"] for row in rows])
        axes.set_ylabel("naive seconds / own seconds")
        axes.tick_params(axis="x", labelsize=6)

    notes = (
        "CLS embedding of equal molecules, float32, medians of runs in turn (`python benchmarks/speed/inference.py`)."
    )
    publish("inference", {"machine": machine(threads), "repeats": repeats}, rows, notes, draw)


if __name__ == "__main__":
    typer.run(main)
