#!/usr/bin/env python3
"""What the CLS alone holds: RDKit's descriptors by a linear probe, and tables by a kernel head, beside other poolings.

    python recipes/nano/cls_probe.py MODEL --library ~/unimol2-nano/COMMIT/library --data DIR --cache runs/nano/probe

The linear probe: ridge regression from the CLS of 10,000 molecules of the library, shown as the model is used (3D
conformer, nothing noised), to their descriptors, standardised and winsorised as in pretraining; R2 on the 1,000
molecules that were held out of it. The kernel head: frozen_probe.py. Writes cls_probe.md.
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from background import processor_name
from frozen_probe import TASKS, probe
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from unimol2_hf import NANO, UniMol2Model
from unimol2_hf.data.conformer_library import ConformerLibrary, LibraryIndex
from unimol2_hf.feature_extraction_unimol2 import MODEL_INPUT_NAMES
from unimol2_hf.jobs.build_conformers import RDKIT_DESCRIPTORS
from unimol2_hf.pretraining.graph_targets import TargetScale, scale_of_library
from unimol2_hf.pretraining.plan import SamplingPlan
from unimol2_hf.pretraining.pretrain import validation_batches
from unimol2_hf.pretraining.settings import PretrainSettings
from unimol2_hf.pretraining.stream import Share
from unimol2_hf.pretraining.trainer import held_out_rows

HERE = Path(__file__).parent
HELD_OUT, LEARNED_FROM = 1000, 10_000
PENALTIES = tuple(10.0**power for power in range(-2, 5))
Array = NDArray[np.float64]


@torch.no_grad()
def cls_and_descriptors(
    model: UniMol2Model, library: ConformerLibrary, index: LibraryIndex, rows: NDArray[np.int64], scale: TargetScale
) -> tuple[Array, Array]:
    """(n, D) and (n, T), of the library's molecules with these numbers in its index."""
    plan = SamplingPlan(index, 0, None, 1, rows)
    settings = PretrainSettings("unused", "unused", noise={"clean_probability": 1.0}, max_rows=64, max_pairs=32_000)
    batches = validation_batches(settings, library, plan, index, rows, Share(), scale)
    vectors, targets = [], []
    for batch in batches:
        inputs: dict[str, Any] = {name: batch[name] for name in MODEL_INPUT_NAMES if name in batch}
        vectors.append(model(**inputs).pooler_output.double().numpy())
        targets.append(batch["graph_targets"].double().numpy())
    return np.concatenate(vectors), np.concatenate(targets)


def linear_r2(known: tuple[Array, Array], new: tuple[Array, Array]) -> Array:
    """R2 of each target that varies among the new molecules, by ridge regression fitted on the known ones."""
    ridge = make_pipeline(StandardScaler(), RidgeCV(PENALTIES))
    # A standardised target's mean is 0; few descriptors are undefined for few molecules.
    predicted = ridge.fit(known[0], np.nan_to_num(known[1])).predict(new[0])
    given = ~np.isnan(new[1])
    spread = np.array([column[own].var() for column, own in zip(new[1].T, given.T, strict=True)])
    error = np.nanmean((predicted - new[1]) ** 2, axis=0)
    return np.asarray(1 - error[spread > 1e-9] / spread[spread > 1e-9])


def main(
    data: Annotated[Path, typer.Option(help="folder with the public tables")],
    library: Annotated[Path, typer.Option(help="of library.py")],
    cache: Annotated[Path, typer.Option(help="folder for the tables' conformers")],
    model: Annotated[str, typer.Argument(help="folder of a model")] = NANO,
    output: Annotated[Path, typer.Option()] = HERE / "cls_probe.md",
) -> None:
    """Judge it."""
    encoder = UniMol2Model.from_pretrained(model).eval()
    shards = ConformerLibrary(library, 64, (RDKIT_DESCRIPTORS,))
    index = shards.index()
    scale = scale_of_library(shards)
    held_out = held_out_rows(len(index), HELD_OUT)
    others = np.setdiff1d(np.arange(len(index)), held_out)
    learned_from = np.sort(np.random.default_rng(1).choice(others, LEARNED_FROM, replace=False))
    known, new = (cls_and_descriptors(encoder, shards, index, rows, scale) for rows in (learned_from, held_out))
    r2 = linear_r2(known, new)
    lower, median, upper = np.percentile(r2, [25, 50, 75])
    errors = probe(encoder, data, cache)
    lines = [
        f"`python recipes/nano/cls_probe.py` on {processor_name()}.",
        "",
        f"Linear probe of the CLS, {len(r2)} of RDKit's descriptors, {HELD_OUT:,} molecules held out of pretraining:",
        f"median R2 {median:.3f} (quartiles {lower:.3f} and {upper:.3f}; {(r2 >= 0.9).sum()} of them 0.9 or more).",
        "",
        "Kernel head, test MAE, mean of three scaffold splits:",
        "",
        f"| read-out | {' | '.join(TASKS)} | mean over the best of each |",
        "|---|" + "---|" * (len(TASKS) + 1),
    ]
    best = {task: min(found[task] for found in errors.values()) for task in TASKS}
    for pooling, found in errors.items():
        beside = np.mean([found[task] / best[task] for task in TASKS])
        lines.append(f"| {pooling} | {' | '.join(f'{found[task]:.3f}' for task in TASKS)} | {beside:.3f} |")
    output.write_text("\n".join(lines) + "\n")
    print(output.read_text())


if __name__ == "__main__":
    typer.run(main)
