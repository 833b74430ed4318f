"""unimol2-nano's training handed from one machine to another: raw weights in half precision, and the step reached."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from unimol2_hf import UniMol2Config, UniMol2ForPreTraining, UniMol2Model
from unimol2_hf.pretraining.trainer import EMA_FILE

AVERAGED = "module."


def averaged_model(checkpoint: Path) -> UniMol2Model:
    """The encoder with the averaged weights of a checkpoint."""
    model = UniMol2ForPreTraining(UniMol2Config.from_pretrained(checkpoint))
    tensors = load_file(checkpoint / EMA_FILE)
    weights = {name.removeprefix(AVERAGED): each for name, each in tensors.items() if name.startswith(AVERAGED)}
    model.load_state_dict(weights)
    return model.unimol2


def write_half(source: Path, target: Path) -> None:
    """Write weights in half precision; a config beside them goes on saying what loaders make of them."""
    weights = {name: each.half() for name, each in load_file(source).items()}
    if not all(torch.isfinite(each).all() for each in weights.values()):
        raise SystemExit(f"{source} has weights that half precision cannot hold")
    save_file(weights, target, {"format": "pt"})


def write_handover(checkpoint: Path, folder: Path, about: Mapping[str, Any]) -> int:
    """Write config, half-precision weights (neither averaged nor decayed) and `about`; returns the bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_half(checkpoint / "model.safetensors", folder / "model.safetensors")
    (folder / "config.json").write_text((checkpoint / "config.json").read_text())
    (folder / "handover.json").write_text(json.dumps(dict(about), indent=1) + "\n")
    return sum(path.stat().st_size for path in folder.iterdir())
