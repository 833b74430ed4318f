"""Fine-tunings that end too early: as a process of their own, for a test that kills it, or stopped after an epoch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from unimol2_hf.finetuning.finetune import finetune
from unimol2_hf.finetuning.settings import FinetuneSettings
from unimol2_hf.training.checkpoints import MarkComplete

EPOCHS = 4


def tune(data: str, output_dir: str) -> None:
    torch.set_num_threads(1)
    settings = FinetuneSettings(
        targets=("tpsa",), scale="micro", split_method="random", epochs=EPOCHS, batch_size=8, num_workers=0,
        featurizer={"num_conformers": 2},
    )  # fmt: skip
    finetune(Path(data), Path(output_dir), settings, Console(quiet=True))


class StoppedError(Exception):
    """Where a run was stopped."""


@contextmanager
def stopped_after(epoch: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Expect a run in here, which stops when it has saved an epoch."""
    original = MarkComplete.on_save

    def stop(self: MarkComplete, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        original(self, args, state, control, **kwargs)
        if state.epoch == epoch:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(MarkComplete, "on_save", stop)
        with pytest.raises(StoppedError):
            yield
