#!/usr/bin/env python3
"""Put the decayed unimol2-nano into the package.

    python recipes/nano/package.py --home ~/unimol2-nano/COMMIT --data DIR

Writes src/unimol2_hf/nano/ (config with the published dropout rates, averaged weights in half precision that load as
float32, without the head of the graph targets, which users lack; featurizer), adds a row to progress.csv, and writes
what half precision changes and the losses of the run to packaged.json. The card, src/unimol2_hf/nano/README.md, is
written by hand.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from background import (
    FINISHED,
    HANDOVER,
    PROGRESS,
    WEIGHTS,
    about_handover,
    add_progress,
    furthest_run,
    is_finished,
    last_checkpoint,
)
from frozen_probe import inputs_of, vectors_of
from handover import write_half

from unimol2_hf import NANO, UniMol2Config, UniMol2FeatureExtractor, UniMol2ForPreTraining, UniMol2Model
from unimol2_hf.pretraining.pretrain import MODEL

HERE = Path(__file__).parent
DRUGS = HERE.parents[1] / "examples" / "drugs.csv"
DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob", "pair_dropout_prob")


def decayed_model(home: Path) -> Path:
    """The folder of the averaged weights, when the rate has fallen to 0."""
    run = furthest_run(home, HANDOVER)
    if not is_finished(run):
        raise SystemExit(f"{run} has not come to its end; go on with it (README.md)")
    return run / "train" / MODEL


def write_package(source: Path, folder: Path) -> dict[str, float]:
    """Write the model's folder; returns by what share of its length half precision moves a vector."""
    model = UniMol2ForPreTraining.from_pretrained(source).eval()
    rows = inputs_of(pd.read_csv(DRUGS)["smiles"].tolist())
    exact = vectors_of(model.unimol2, rows)["cls"]
    published = UniMol2Config()
    for name in DROPOUT:
        setattr(model.config, name, getattr(published, name))
    model.graph_target_head = model.config.graph_targets = None
    model.save_pretrained(folder)
    write_half(folder / WEIGHTS, folder / WEIGHTS)
    UniMol2FeatureExtractor().save_pretrained(folder)
    rounded = vectors_of(UniMol2Model.from_pretrained(folder).eval(), rows)["cls"]
    moved = np.linalg.norm(rounded - exact, axis=1) / np.linalg.norm(exact, axis=1)
    return {"mean": float(moved.mean()), "greatest": float(moved.max())}


def main(
    home: Annotated[Path, typer.Option(help="folder of the training on this machine")],
    data: Annotated[Path, typer.Option(help="folder with the public tables")],
    folder: Annotated[Path, typer.Option(help="folder to write")] = Path(NANO),
) -> None:
    """Package it, judge it, and keep its losses."""
    source = decayed_model(home)
    run = source.parents[1]
    moved = write_package(source, folder)
    checkpoint = last_checkpoint(run)
    if checkpoint is None:
        raise SystemExit(f"{run} has no checkpoint")
    about = about_handover(run, checkpoint)
    history: list[dict[str, Any]] = json.loads((run / FINISHED).read_text())
    losses = [entry for entry in history if "eval_loss" in entry]
    report = {**about, "half_precision_moves_a_vector_by": moved, "validation_of_the_raw_weights": losses}
    (HERE / "packaged.json").write_text(json.dumps(report, indent=1) + "\n")
    add_progress(PROGRESS, about, UniMol2Model.from_pretrained(folder), data, home / "probe")
    print(moved)


if __name__ == "__main__":
    typer.run(main)
