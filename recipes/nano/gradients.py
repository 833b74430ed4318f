#!/usr/bin/env python3
"""How hard each loss of the recipe pulls at the encoder: gradient norms, by which nano.yaml's weights were chosen.

    OMP_NUM_THREADS=1 python recipes/nano/gradients.py --library DIR [--start-from FOLDER]

Unweighted losses of a few steps, at the recipe's random weights or at those of a folder.
"""

from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
import yaml

from unimol2_hf.pretraining.losses import loss_names, losses_of
from unimol2_hf.pretraining.pretrain import make_data, make_model, target_scale_of
from unimol2_hf.pretraining.settings import PretrainSettings
from unimol2_hf.pretraining.stream import Share

SAMPLES, STEPS = 32, 5


def main(
    library: Annotated[Path, typer.Option(help="of library.py")],
    start_from: Annotated[str | None, typer.Option(help="folder of a pretraining model")] = None,
) -> None:
    """Print the median norm of each loss's gradient."""
    recipe: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "nano.yaml").read_text())
    whole = {"samples_per_step": SAMPLES, "max_rows": SAMPLES, "max_pairs": 10**6, "validation_molecules": 1}
    recipe |= {"data": str(library), "output_dir": "unused", "start_from": start_from, **whole}
    if start_from is not None:
        recipe["model"] = {}
    settings = PretrainSettings(**recipe)
    torch.manual_seed(settings.seed)
    model = make_model(settings).train()
    stream = make_data(settings, Share(), target_scale_of(model))[2]
    norms: dict[str, list[float]] = {name: [] for name in loss_names(model.config)}
    for step in range(STEPS):
        (batch,) = stream.step(step)["micro_batches"]
        for name, loss in zip(norms, losses_of(model(**batch)), strict=True):
            model.zero_grad()
            loss.backward(retain_graph=True)
            gradients = [each.grad for each in model.unimol2.parameters() if each.grad is not None]
            norms[name].append(float(torch.stack([each.norm() for each in gradients]).norm()))
    print({name: round(median(values), 3) for name, values in norms.items()})


if __name__ == "__main__":
    typer.run(main)
