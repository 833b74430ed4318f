#!/usr/bin/env python3
"""Samples a second that one core streams and collates: what a GPU can be fed with by each worker process.

    python benchmarks/pretraining/input_speed.py --library runs/pretraining/library

One process, one thread: the plan, conformers drawn, noise, alignment, graph features, padding.
"""

import statistics
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from report import write_report

from unimol2_hf.data.conformer_library import ConformerLibrary
from unimol2_hf.pretraining.collator import DataCollatorForUniMol2Pretraining
from unimol2_hf.pretraining.plan import SamplingPlan
from unimol2_hf.pretraining.stream import PretrainingStream


def main(
    library: Annotated[Path, typer.Option(help="folder of `unimol2-hf conformers build`")],
    steps: Annotated[int, typer.Option(help="of 1,024 samples, each timed")] = 12,
    temperature: Annotated[float, typer.Option(help="of the scaffolds, as in nano.yaml")] = 0.05,
) -> None:
    """Write input_speed.json and .md beside this file."""
    torch.set_num_threads(1)
    shards = ConformerLibrary(library, open_shards=33)
    index = shards.index()
    began = time.perf_counter()
    plan = SamplingPlan(index, temperature=temperature, open_shards=32)
    plan.samples(0, 1)
    planned = time.perf_counter() - began
    stream = PretrainingStream(
        shards, plan, index.num_heavy_atoms, DataCollatorForUniMol2Pretraining(), 1024, max_rows=256
    )
    stream.step(0)  # every shard is read here: a run does so once an epoch
    rates, atoms = [], []
    for step in range(1, steps + 1):
        began = time.perf_counter()
        batches = stream.step(step)["micro_batches"]
        rates.append(1024 / (time.perf_counter() - began))
        atoms.append(sum(int(batch["attention_mask"].sum()) for batch in batches) / 1024)
    report = {
        "samples_per_second": statistics.median(rates),
        "slowest_step_samples_per_second": min(rates),
        "mean_heavy_atoms": statistics.mean(atoms),
        "molecules": len(index),
        "seconds_to_plan_an_epoch": planned,
    }
    write_report("input_speed", "one core", report)


if __name__ == "__main__":
    typer.run(main)
