#!/usr/bin/env python3
"""Inference beside the naive oracle of the tests, by scale, molecule size and batch, and the share of the ceiling.

    python benchmarks/speed/inference.py [--cases 84m:8:25] [--no-compiled]

The naive model computes every layer and every (S, S, d^2) outer product in full; weights are the same. Runs alternate
in one process. "own s", "naive s" and their ratio are taken first, with memory as the C library gives it; all else
after `keep_freed_memory()`, as `unimol2-hf embed` runs. "packed" is what that command does to the weights; "compiled"
is torch.compile with static shapes and frozen weights.
"""

import copy
from collections.abc import Callable
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

from unimol2_hf import UniMol2Config, UniMol2Model, keep_freed_memory
from unimol2_hf.packed_linear import pack_linear_layers

CASES = "84m:8:25,84m:1:25,84m:32:10,84m:4:50,84m:1:100,nano:32:25,42m:8:25,164m:8:25,310m:4:25,570m:2:25,1.1b:1:25"


def timed(model: Callable[..., Any], batch: Any, **options: Any) -> float:
    with torch.no_grad():
        return seconds_of(partial(model, **batch, **options))


def prepared(scale: str, molecules: int, atoms: int) -> tuple[UniMol2Model, Any]:
    torch.manual_seed(0)
    return UniMol2Model(UniMol2Config.from_scale(scale)).eval(), random_batch(molecules, atoms)


def beside_naive(scale: str, molecules: int, atoms: int, repeats: int) -> dict[str, Any]:
    """Memory as the C library gives it."""
    model, batch = prepared(scale, molecules, atoms)
    runs = {"own": partial(timed, model, batch, read_out="cls"), "naive": partial(timed, naive(model), batch)}
    own, slow = (median(values) for values in in_turn(runs, repeats).values())
    case = {"scale": scale, "molecules": molecules, "atoms": atoms}
    return {**case, "own s": own, "naive s": slow, "naive / own": slow / own}


def with_kept_memory(scale: str, molecules: int, atoms: int, repeats: int, compiled: bool) -> dict[str, Any]:
    """After `keep_freed_memory()`, which the naive model gains from too."""
    model, batch = prepared(scale, molecules, atoms)
    pack = copy.deepcopy(model)
    pack_linear_layers(pack)
    models: dict[str, Callable[..., Any]] = {"own": model, "packed": pack}
    gflop = counted_gflop(model, batch, read_out="cls")
    if compiled:
        torch._inductor.config.freezing = True
        models["compiled"] = torch.compile(copy.deepcopy(model), dynamic=False)
    runs = {name: partial(timed, each, batch, read_out="cls") for name, each in models.items()}
    shares = in_turn({**runs, "ceiling": matrix_product_gflops}, repeats, warm_ups=2)
    ceiling = median(shares["ceiling"])
    row: dict[str, Any] = {"GFLOP": gflop, "ceiling GFLOP/s": ceiling}
    for name in ("own", "packed", "compiled"):
        row[f"{name} share"] = gflop / median(shares[name]) / ceiling if name in shares else None
    beside = in_turn({**runs, "naive": partial(timed, naive(model), batch)}, max(3, repeats // 2))
    for name in ("own", "packed", "compiled"):
        row[f"naive / {name}, kept"] = median(beside["naive"]) / median(beside[name]) if name in beside else None
    return row


def main(
    cases: Annotated[str, typer.Option(help="scale:molecules:atoms, comma-separated; other rows stay")] = CASES,
    compiled: Annotated[bool, typer.Option(help="also the first case compiled")] = True,
    repeats: Annotated[int, typer.Option()] = 9,
    threads: Annotated[int, typer.Option()] = 2,
) -> None:
    """Write inference.json, .md and .png beside this file."""
    torch.set_num_threads(threads)
    chosen = [
        (*case, max(3, repeats // 3) if case[0] in ("310m", "570m", "1.1b") else repeats) for case in cases_of(cases)
    ]
    rows = [beside_naive(*case) for case in chosen]
    keep_freed_memory()  # from here to the process's end
    for number, (row, case) in enumerate(zip(rows, chosen, strict=True)):
        row.update(with_kept_memory(*case, compiled=compiled and number == 0))
        print(row, flush=True)
    all_rows = with_earlier("inference", rows, ("scale", "molecules", "atoms"))

    def draw(axes: Axes) -> None:
        names = [f"{row['scale']}\n{row['molecules']} x {row['atoms']}" for row in all_rows]
        axes.bar(names, [row["naive / own"] for row in all_rows])
        axes.set_ylabel("naive seconds / own seconds")
        axes.tick_params(axis="x", labelsize=6)

    notes = (
        "CLS embedding of equal molecules, float32, medians of runs in turn (`python benchmarks/speed/inference.py`); "
        "shares are of the ceiling, and these and all that is `kept` after `keep_freed_memory()`."
    )
    publish("inference", {"machine": machine(threads), "repeats": repeats}, all_rows, notes, draw)


if __name__ == "__main__":
    typer.run(main)
