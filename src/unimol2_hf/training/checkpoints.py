"""Checkpoints of the Hugging Face `Trainer`, of which only whole ones are gone on from."""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

COMPLETE_FILE = "complete.json"


class MarkComplete(TrainerCallback):
    """Marks a checkpoint once everything of it is written; one that a kill cut short is not gone on from."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            (checkpoint_of(args, state) / COMPLETE_FILE).write_text(json.dumps({"step": state.global_step}) + "\n")


def checkpoint_of(args: TrainingArguments, state: TrainerState) -> Path:
    """Where the Trainer saves now."""
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; None if there is none."""
    found = [path.parent for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{COMPLETE_FILE}")]
    return max(found, key=step_of, default=None)


def remove_incomplete_checkpoints(folder: Path) -> None:
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if not (path / COMPLETE_FILE).exists():
            shutil.rmtree(path)


def step_of(checkpoint: Path) -> int:
    """The optimiser update after which a checkpoint was saved."""
    return int(checkpoint.name.rpartition("-")[2])
