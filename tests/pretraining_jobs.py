"""Conformer building and pretraining as processes of their own, for tests that kill them or run several."""

import os
from pathlib import Path

import torch
from rich.console import Console

from unimol2_hf.jobs.build_conformers import build_conformers
from unimol2_hf.jobs.settings import BuildSettings
from unimol2_hf.pretraining.pretrain import pretrain
from unimol2_hf.pretraining.settings import PretrainSettings

TINY_MODEL = {"num_hidden_layers": 2, "hidden_size": 32, "pair_hidden_size": 16, "pair_inner_size": 8}
WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pair_dropout_prob": 0.0}


def build(source: str, output_dir: str) -> None:
    settings = BuildSettings(num_conformers=4, rows_per_shard=4, num_workers=1)
    build_conformers(Path(source), Path(output_dir), settings, Console(quiet=True))


def tiny_settings(library: str, output_dir: str, **changes: object) -> PretrainSettings:
    """A run of a few seconds."""
    settings: dict[str, object] = {
        "scale": "micro",
        "model": TINY_MODEL,
        "max_steps": 24,
        "samples_per_step": 8,
        "max_rows": 4,
        "max_pairs": 4096,
        "learning_rate": 1e-3,
        "warmup_steps": 4,
        "validation_molecules": 6,
        "open_shards": 2,
        "logging_steps": 1,
        "eval_steps": 4,
        "save_steps": 2,
        "save_total_limit": 2,
        "ema_decay": 0.9,
    }
    return PretrainSettings(data=library, output_dir=output_dir, **{**settings, **changes})  # type: ignore[arg-type]


def train(library: str, output_dir: str, changes: dict[str, object] | None = None) -> None:
    torch.set_num_threads(1)
    pretrain(tiny_settings(library, output_dir, **(changes or {})), Console(quiet=True))


def train_as_rank(
    rank: int, world_size: int, port: int, library: str, output_dir: str, changes: dict[str, object]
) -> None:
    """One of several processes, as torchrun starts them."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        ACCELERATE_USE_CPU="true",
    )
    train(library, output_dir, changes)
