"""Fine-tuning as a process of its own, for a test that kills it."""

from pathlib import Path

import torch
from rich.console import Console

from unimol2_hf.finetuning.finetune import finetune
from unimol2_hf.finetuning.settings import FinetuneSettings

EPOCHS = 4


def tune(data: str, output_dir: str) -> None:
    torch.set_num_threads(1)
    settings = FinetuneSettings(
        targets=("tpsa",), scale="micro", split_method="random", epochs=EPOCHS, batch_size=8, num_workers=0,
        featurizer={"num_conformers": 2},
    )  # fmt: skip
    finetune(Path(data), Path(output_dir), settings, Console(quiet=True))
