#!/usr/bin/env python3
"""How good frozen vectors are: kernel ridge on ESOL and four Biogen endpoints, fixed scaffold splits, three seeds.

    python recipes/nano/frozen_probe.py MODEL --data DIR --cache runs/nano/probe [--output probe.json]

Standardised on the training part and clipped at 5; a Gaussian kernel whose width is a multiple of the median squared
distance; width and ridge chosen on the validation part, then refitted on both. Test MAE, mean of the seeds.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "finetuning"))

import numpy as np
import pandas as pd
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import cdist
from splits import with_split

from unimol2_hf import UniMol2FeatureExtractor, UniMol2Model
from unimol2_hf.batching import map_in_batches, max_pairs_for
from unimol2_hf.data.molecule_files import read_molecules
from unimol2_hf.data.shards import CONFORMERS
from unimol2_hf.jobs.build_conformers import build_conformers
from unimol2_hf.jobs.settings import BuildSettings
from unimol2_hf.ops_unimol2 import mean_of_atoms

TASKS = {
    "hlm": ("biogen_adme", "hlm_clint"),
    "mdr1": ("biogen_adme", "mdr1_er"),
    "solubility": ("biogen_adme", "solubility"),
    "rlm": ("biogen_adme", "rlm_clint"),
    "ESOL": ("esol", "logSolubility"),
}
SEEDS = (0, 1, 2)
POOLINGS = ("cls", "mean", "cls_mean", "layers_mean")
WIDTHS, RIDGES = (0.25, 0.5, 1.0, 2.0), (0.03, 0.1, 0.3, 1.0)
CLIP = 5.0
Array = NDArray[np.float64]


def table_with_conformers(data: Path, cache: Path, name: str, workers: int) -> pd.DataFrame:
    """A data set with its splits, and `molecule`, what the featurizer takes, in the order of the rows."""
    cache.mkdir(parents=True, exist_ok=True)
    joined, library = cache / f"{name}.csv", cache / name
    if not joined.exists():
        with_split(data, name, joined)
    settings = BuildSettings(num_conformers=1, include_2d=False, num_workers=workers)
    build_conformers(joined, library, settings, Console(quiet=True))
    table = pd.read_csv(joined)
    return table.assign(
        molecule=pd.Series([row.molecule for row in read_molecules(library / CONFORMERS)], dtype=object)
    )


def inputs_of(molecules: Sequence[Any]) -> list[dict[str, Any]]:
    """What a model reads of every molecule's first conformer."""
    return [next(iter(molecule.model_inputs())) for molecule in UniMol2FeatureExtractor().featurize(molecules)]


@torch.no_grad()
def vectors_of(model: UniMol2Model, rows: Sequence[Any]) -> dict[str, Array]:
    """Frozen vectors of every row (`inputs_of`) for each pooling, (n, D) or (n, 2 D)."""
    extractor = UniMol2FeatureExtractor()

    def pooled(batch: list[Any]) -> list[tuple[Array, ...]]:
        inputs = extractor.pad(batch)
        layers = model(**inputs, output_hidden_states=True).hidden_states
        both = [torch.cat((each[:, 0], mean_of_atoms(each, inputs["attention_mask"])), -1) for each in layers]
        cls, mean = both[-1].chunk(2, dim=-1)
        return list(zip(*(each.numpy() for each in (cls, mean, both[-1], torch.stack(both).mean(0))), strict=True))

    max_pairs = max_pairs_for("cpu", model.config.pair_hidden_size)
    vectors = map_in_batches(pooled, rows, lambda row: len(row["input_ids"]), 64, max_pairs)
    return {
        name: np.stack(each).astype(np.float64) for name, each in zip(POOLINGS, zip(*vectors, strict=True), strict=True)
    }


def kernel_ridge_error(vectors: Array, labels: Array, split: NDArray[np.str_]) -> float:
    """Test MAE."""
    known = ~np.isnan(labels)
    train, valid, test = (np.flatnonzero(known & (split == part)) for part in ("train", "valid", "test"))
    scaled = _standardised(vectors, train)
    squared = cdist(scaled, scaled, "sqeuclidean")
    median = float(np.median(squared[np.ix_(train, train)]))

    def error(fitted: NDArray[np.intp], judged: NDArray[np.intp], width: float, ridge: float) -> float:
        kernel = np.exp(-squared[:, fitted] / (width * median))
        center = labels[fitted].mean()
        factor = cho_factor(kernel[fitted] + ridge * np.eye(len(fitted)), check_finite=False)
        weights = cho_solve(factor, labels[fitted] - center, check_finite=False)
        return float(np.abs(kernel[judged] @ weights + center - labels[judged]).mean())

    width, ridge = min(product(WIDTHS, RIDGES), key=lambda chosen: error(train, valid, *chosen))
    return error(np.concatenate([train, valid]), test, width, ridge)


def _standardised(vectors: Array, train: NDArray[np.intp]) -> Array:
    mean, std = vectors[train].mean(0), vectors[train].std(0)
    clipped: Array = np.clip((vectors - mean) / np.where(std > 0, std, 1.0), -CLIP, CLIP)
    return clipped


def probe(model: UniMol2Model, data: Path, cache: Path, workers: int = 1) -> dict[str, dict[str, float]]:
    """Test MAE of each task, mean of the seeds, for each pooling."""
    model.eval()
    tables = {
        name: table_with_conformers(data, cache, name, workers) for name in dict.fromkeys(n for n, _ in TASKS.values())
    }
    vectors = {name: vectors_of(model, inputs_of(table["molecule"].tolist())) for name, table in tables.items()}
    return {pooling: _errors(tables, {name: each[pooling] for name, each in vectors.items()}) for pooling in POOLINGS}


def _errors(tables: Mapping[str, pd.DataFrame], vectors: Mapping[str, Array]) -> dict[str, float]:
    found = {}
    for task, (name, target) in TASKS.items():
        table = tables[name]
        labels = table[target].to_numpy(float)
        splits = [table[f"seed{seed}"].to_numpy(str) for seed in SEEDS]
        found[task] = float(np.mean([kernel_ridge_error(vectors[name], labels, split) for split in splits]))
    return found


def main(
    model: Annotated[str, typer.Argument(help="folder of a model")],
    data: Annotated[Path, typer.Option(help="folder with the public tables")],
    cache: Annotated[Path, typer.Option(help="folder for the tables' conformers")],
    output: Annotated[Path | None, typer.Option(help="JSON file to write")] = None,
    workers: Annotated[int, typer.Option(help="processes for conformers")] = 1,
) -> None:
    """Print, and write if asked, test MAE for each pooling and task."""
    found = probe(UniMol2Model.from_pretrained(model), data, cache, workers)
    for pooling, errors in found.items():
        print(f"{pooling:12}", "  ".join(f"{task} {error:.3f}" for task, error in errors.items()))
    if output is not None:
        output.write_text(json.dumps({"model": model, "mae": found}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
