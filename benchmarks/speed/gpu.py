#!/usr/bin/env python3
"""Absolute throughput on a GPU: molecules a second, share of the measured bf16 matrix-product ceiling, projected hours.

    python benchmarks/speed/gpu.py

Where there is no GPU it says so, and measures nothing.
"""

import time
from functools import partial
from typing import Annotated, Any

import torch
import typer
from harness import counted_gflop, machine, median, publish, random_batch

from unimol2_hf import UniMol2Config, UniMol2Model

ATOMS = 26  # with the CLS, the root mean square of S over drug-like libraries is about 27 to 29
LIBRARY = 100_000_000
CASES = (("84m", 64), ("84m", 180), ("84m", 512), ("1.1b", 32), ("1.1b", 96), ("1.1b", 180))


def seconds_of_gpu(work: Any, repeats: int) -> float:
    """Median seconds, synchronised."""
    values = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        values.append(time.perf_counter() - start)
    return median(values)


def measure(scale: str, molecules: int, repeats: int, compiled: bool) -> dict[str, Any]:
    model = UniMol2Model(UniMol2Config.from_scale(scale)).eval().to("cuda", torch.bfloat16)
    batch = {name: tensor.to("cuda") for name, tensor in random_batch(molecules, ATOMS).items()}
    gflop = counted_gflop(model, batch, read_out="cls")
    if compiled:
        model.compile(dynamic=False, mode="reduce-overhead")
    torch.cuda.reset_peak_memory_stats()
    square = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        run = partial(model, **batch, read_out="cls")
        for _ in range(3):
            run()
        seconds = seconds_of_gpu(run, repeats)
        ceiling = 2 * 8192**3 / seconds_of_gpu(lambda: square @ square, repeats) / 1e9
    rate = molecules / seconds
    return {
        "scale": scale,
        "molecules": molecules,
        "compiled": compiled,
        "molecules/s": rate,
        "TFLOP/s": gflop / seconds / 1e3,
        "share of ceiling": gflop / seconds / ceiling,
        "peak GiB": torch.cuda.max_memory_allocated() / 2**30,
        "hours for 100 million": LIBRARY / rate / 3600,
    }


def main(repeats: Annotated[int, typer.Option()] = 20) -> None:
    """Write gpu.json and .md beside this file."""
    notes = (
        f"bf16, CLS embedding of molecules of {ATOMS} heavy atoms, conformers given (`python benchmarks/speed/gpu.py`)."
    )
    if not torch.cuda.is_available():
        rows: list[dict[str, Any]] = [{"result": "no GPU was at hand: nothing measured"}]
    else:
        rows = [measure(*case, repeats, compiled) for case in CASES for compiled in (False, True)]
    publish("gpu", {"machine": machine(torch.get_num_threads())}, rows, notes)


if __name__ == "__main__":
    typer.run(main)
