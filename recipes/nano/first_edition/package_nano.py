#!/usr/bin/env python3
"""Put the pretrained unimol2-nano into the package, and draw its losses.

    python recipes/nano/first_edition/package_nano.py

Writes src/unimol2_hf/nano/ (config with the published dropout rates and heads on the mean of the atoms, float32 weights
with both heads, featurizer), and nano_losses.json and .png beside this file. The card, src/unimol2_hf/nano/README.md,
is written by hand.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import typer

mpl.use("Agg")

from matplotlib import pyplot as plt

from unimol2_hf import NANO, UniMol2Config, UniMol2FeatureExtractor, UniMol2ForPreTraining

HERE = Path(__file__).parent
PARTS = ("token_loss", "coordinate_loss", "distance_loss")
DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob", "pair_dropout_prob")


RUNS = "runs/pretraining/nano,runs/pretraining/nano_continued"


def joined_history(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Logged values of runs of which each began with the weights of the one before, steps counted on."""
    history: list[dict[str, Any]] = []
    done = 0
    for run in runs:
        entries = json.loads((run / "log_history.json").read_text())
        history += [{**entry, "step": entry["step"] + done} for entry in entries]
        done += entries[-1]["step"]
    return history


def main(
    runs: Annotated[str, typer.Option(help="comma-separated; each began with the weights of the one before")] = RUNS,
) -> None:
    """Write the package's folder and the losses."""
    folders = [Path(name) for name in runs.split(",")]
    model = UniMol2ForPreTraining.from_pretrained(folders[-1] / "model")
    published = UniMol2Config()
    for name in DROPOUT:
        setattr(model.config, name, getattr(published, name))
    # What it is fine-tuned with in against_scratch.py; the CLS got no loss of its own.
    model.config.head_pooling = "mean"
    model.save_pretrained(NANO)
    UniMol2FeatureExtractor().save_pretrained(NANO)
    history = joined_history(folders)
    losses = {
        "training": [entry for entry in history if "loss" in entry],
        "validation": [entry for entry in history if "eval_loss" in entry],
    }
    (HERE / "nano_losses.json").write_text(json.dumps(losses) + "\n")
    draw(losses["training"], losses["validation"], HERE / "nano_losses.png")


def draw(training: list[dict[str, Any]], validation: list[dict[str, Any]], path: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    for axis, part in zip(axes, PARTS, strict=True):
        axis.plot([e["step"] for e in training], [e[part] for e in training], linewidth=0.8, label="training")
        axis.plot([e["step"] for e in validation], [e[f"eval_{part}"] for e in validation], label="validation")
        axis.set(xlabel="step of 64 samples", title=part.replace("_", " "), yscale="log")
        axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    typer.run(main)
