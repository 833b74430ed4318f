#!/usr/bin/env python3
"""unimol2-nano's exported programs beside eager: how far their answers lie apart, and how fast each is.

    python benchmarks/speed/exports.py --data DIR

Molecules of ESOL, BBBP and Tox21, chosen by seed, sizes spread evenly; one ETKDG conformer each, in batches sorted by
size, all in one process. Runs alternate. "packed" is what `unimol2-hf embed` does to eager's weights. Writes
exports.json and exports.md.
"""

import copy
import os
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, get_args

import numpy as np
import onnxruntime
import pandas as pd
import torch
import typer
from harness import in_turn, machine, median, publish, seconds_of
from oracle import relative_difference
from rdkit import Chem, rdBase
from rich.console import Console
from torch import Tensor
from transformers.exporters import ExportedModel

from unimol2_hf import UniMol2FeatureExtractor, keep_freed_memory
from unimol2_hf.hub.exporters import FLOAT32, LARGEST_DIFFERENCE, export_program, load_program
from unimol2_hf.hub.settings import ExportSettings, ProgramKind
from unimol2_hf.packed_linear import pack_linear_layers
from unimol2_hf.settings_unimol2 import NANO_NAME

TABLES = ("esol", "bbbp", "tox21")
SMALLEST, LARGEST = 3, 120  # heavy atoms
BATCH = 32
NAMES = {"torch": "torch.export", "onnx": "ONNX Runtime", "openvino": "OpenVINO, float32"}

Batch = Mapping[str, Tensor]
Model = Callable[..., Mapping[str, Tensor]]


def chosen(data: Path, count: int, seed: int) -> list[str]:
    """SMILES, each of a size as near to its wanted one as is left."""
    smiles = sorted({each for table in TABLES for each in pd.read_csv(data / f"{table}.csv")["smiles"]})
    random.Random(seed).shuffle(smiles)
    with rdBase.BlockLogs():
        read = ((each, Chem.MolFromSmiles(each)) for each in smiles)
        sizes = {each: molecule.GetNumHeavyAtoms() for each, molecule in read if molecule is not None}
    left = {each: size for each, size in sizes.items() if SMALLEST <= size <= LARGEST}
    found = []
    for wanted in np.linspace(SMALLEST, LARGEST, count):
        found.append(min(left, key=lambda each: abs(left[each] - wanted)))
        del left[found[-1]]
    return found


def batches_of(smiles: Sequence[str], threads: int) -> list[Batch]:
    extractor = UniMol2FeatureExtractor()
    rows = [row for each in extractor.featurize(smiles, num_workers=threads) for row in each.model_inputs()]
    rows.sort(key=lambda row: len(row["input_ids"]))
    return [dict(extractor.pad(rows[start : start + BATCH])) for start in range(0, len(rows), BATCH)]


def exported(folder: Path, kind: ProgramKind, threads: int) -> tuple[Model, float]:
    """A program that runs on so many threads, and the seconds that the command took."""
    settings = ExportSettings(to=kind)
    seconds = seconds_of(lambda: export_program(NANO_NAME, folder, settings, Console(stderr=True)))
    options = copy.deepcopy(FLOAT32[kind])
    if kind == "onnx":
        options["session_options"] = onnxruntime.SessionOptions()
        options["session_options"].intra_op_num_threads = threads
    elif kind == "openvino":
        options["config"] |= {"INFERENCE_NUM_THREADS": threads}
    return ExportedModel.from_pretrained(folder, device="cpu", **options), seconds


def run_all(model: Model, batches: Sequence[Batch]) -> list[Mapping[str, Tensor]]:
    with torch.no_grad():
        return [model(**batch) for batch in batches]


def largest_difference(model: Model, batches: Sequence[Batch], expected: Sequence[Mapping[str, Tensor]]) -> float:
    """Of any output in any batch, over its largest value there."""
    return max(
        relative_difference(found[name], own[name])
        for found, own in zip(run_all(model, batches), expected, strict=True)
        for name in own
    )


def main(
    data: Annotated[Path, typer.Option(help="folder with the data files")],
    count: Annotated[int, typer.Option(help="molecules")] = 200,
    repeats: Annotated[int, typer.Option()] = 3,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Write exports.json and .md beside this file."""
    keep_freed_memory()
    load = os.getloadavg()[0]
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    batches = batches_of(chosen(data, count, seed), threads)
    eager = load_program(NANO_NAME)
    packed = copy.deepcopy(eager)
    pack_linear_layers(packed.get_submodule("model"))
    models: dict[str, Model] = {"eager": eager, "eager, packed": packed}
    export_seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in get_args(ProgramKind):
            models[NAMES[kind]], export_seconds[NAMES[kind]] = exported(Path(folder) / kind, kind, threads)
        expected = run_all(eager, batches)
        times = in_turn(
            {name: partial(seconds_of, partial(run_all, each, batches)) for name, each in models.items()}, repeats
        )
        rows = [
            {
                "program": name,
                "export and check, s": export_seconds.get(name),
                "largest relative difference": largest_difference(model, batches, expected),
                "molecules/s": count / median(times[name]),
                "slowest and fastest run": f"{count / max(times[name]):.1f} to {count / min(times[name]):.1f}",
                "times eager": median(times["eager"]) / median(times[name]),
            }
            for name, model in models.items()
        ]
    notes = (
        f"unimol2-nano, float32, {count} molecules of {SMALLEST} to {LARGEST} heavy atoms in batches of {BATCH} sorted "
        f"by size, ready features; medians of {repeats} runs in turn. Bound of differences {LARGEST_DIFFERENCE:.0e}; "
        "`python benchmarks/speed/exports.py --data DIR`."
    )
    if load > threads / 2:
        notes += f" Other work ran beside it (load {load:.1f} before it began): the speeds say little."
    versions = {name: __import__(name).__version__ for name in ("transformers", "onnxruntime", "openvino")}
    report = {
        "machine": machine(threads) | versions | {"load before it began": load},
        "repeats": repeats,
        "seed": seed,
    }
    publish("exports", report, rows, notes)


if __name__ == "__main__":
    typer.run(main)
