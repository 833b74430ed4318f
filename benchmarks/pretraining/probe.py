#!/usr/bin/env python3
"""What pretraining is worth: a linear probe of frozen embeddings, beside the same architecture with random weights.

    python benchmarks/pretraining/probe.py --data DIR

Ridge regression (penalty by leave-one-out within the training part) on two read-outs: of the last layer the CLS and the
mean of the atoms' vectors, and the mean of the atoms after every layer. ESOL and two Biogen endpoints, the fixed
scaffold splits. Three seeds: of the split for both, and of the random weights.
"""

import json
import statistics
import sys
from itertools import product
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).parents[1] / "finetuning"))

import numpy as np
import pandas as pd
import torch
import typer
from report import comparison_row
from sklearn.linear_model import RidgeCV
from sklearn.metrics import mean_absolute_error, root_mean_squared_error
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from splits import with_split

from unimol2_hf import NANO, UniMol2FeatureExtractor, UniMol2Model
from unimol2_hf.batching import map_in_batches, max_pairs_for
from unimol2_hf.ops_unimol2 import mean_of_atoms

HERE = Path(__file__).parent
TASKS = (("esol", "logSolubility"), ("biogen_adme", "hlm_clint"), ("biogen_adme", "mdr1_er"))
SEEDS = (0, 1, 2)
READ_OUTS = ("last layer", "all layers")
Array = np.ndarray[Any, Any]


@torch.no_grad()
def embeddings_of(model: UniMol2Model, featurized: list[Any]) -> dict[str, Array]:
    """Read-outs of every molecule: (n, 2 D) and (n, (layers + 1) D)."""
    extractor, model = UniMol2FeatureExtractor(), model.eval()

    def read_outs(batch: list[Any]) -> list[tuple[Array, ...]]:
        inputs = extractor.pad(batch)
        output = model(**inputs, output_hidden_states=True)
        means = [mean_of_atoms(states, inputs["attention_mask"]) for states in output.hidden_states]
        last, every = torch.cat((output.pooler_output, means[-1]), -1), torch.cat(means, -1)
        return list(zip(last.numpy(), every.numpy(), strict=True))

    rows = (row for molecule in featurized for row in molecule.model_inputs())
    max_pairs = max_pairs_for("cpu", model.config.pair_hidden_size)
    vectors = map_in_batches(read_outs, rows, lambda row: len(row["input_ids"]), 32, max_pairs)
    return {name: np.stack(each) for name, each in zip(READ_OUTS, zip(*vectors, strict=True), strict=True)}


def probe(features: Array, labels: Array, split: Array) -> dict[str, float]:
    """Test errors of a ridge regression; the validation part is left alone."""
    known = ~np.isnan(labels)
    train, test = known & (split == "train"), known & (split == "test")
    ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 13)))
    predicted = ridge.fit(features[train], labels[train]).predict(features[test])
    return {
        "mae": float(mean_absolute_error(labels[test], predicted)),
        "rmse": float(root_mean_squared_error(labels[test], predicted)),
        "mean_mae": float(np.abs(labels[test] - labels[train].mean()).mean()),
    }


def main(
    data: Annotated[Path, typer.Option(help="folder with esol.csv, biogen_adme.csv and splits/")],
    model: Annotated[Path, typer.Option(help="folder of the pretrained model")] = Path(NANO),
    work_dir: Annotated[Path, typer.Option()] = Path("runs/probe"),
    workers: Annotated[int, typer.Option()] = 2,
) -> None:
    """Write probe.json and probe.md beside this file."""
    work_dir.mkdir(parents=True, exist_ok=True)
    pretrained = UniMol2Model.from_pretrained(model)
    scratch = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        scratch.append(UniMol2Model(pretrained.config))
    runs: list[dict[str, Any]] = []
    made: dict[str, Any] = {}
    for name, target in TASKS:
        if name not in made:
            joined = work_dir / f"{name}_split.csv"
            with_split(data, name, joined)
            table = pd.read_csv(joined)
            featurized = list(UniMol2FeatureExtractor().featurize(table["smiles"], num_workers=workers))
            used = [molecule.error is None for molecule in featurized]
            kept = [molecule for molecule in featurized if molecule.error is None]
            vectors = {"pretrained": [embeddings_of(pretrained, kept)] * len(SEEDS)}
            vectors["from scratch"] = [embeddings_of(each, kept) for each in scratch]
            made[name] = table[used], vectors
        table, vectors = made[name]
        for kind, seed, read_out in product(vectors, SEEDS, READ_OUTS):
            features, split = vectors[kind][seed][read_out], table[f"seed{seed}"].to_numpy()
            errors = probe(features, table[target].to_numpy(float), split)
            case = {"dataset": name, "target": target, "read_out": read_out, "weights": kind, "seed": seed}
            runs.append({**case, **errors})
    (HERE / "probe.json").write_text(json.dumps({"model": model.name, "runs": runs}, indent=1) + "\n")
    text = as_markdown(runs)
    (HERE / "probe.md").write_text(text)
    print(text)


def as_markdown(runs: list[dict[str, Any]]) -> str:
    lines = ["Linear probe of frozen embeddings, test MAE, mean (standard deviation) of three split seeds.", ""]
    lines += [
        "| target, read-out | pretrained | from scratch | difference, seed by seed | predict the mean |",
        "|---|---|---|---|---|",
    ]
    for (_, target), read_out in product(TASKS, READ_OUTS):
        chosen = [run for run in runs if (run["target"], run["read_out"]) == (target, read_out)]
        mae = {
            kind: [run["mae"] for run in chosen if run["weights"] == kind] for kind in ("pretrained", "from scratch")
        }
        trivial = statistics.mean(run["mean_mae"] for run in chosen)
        lines.append(comparison_row(f"{target}, {read_out}", mae, trivial))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
