"""Fine-tuning killed with -9 while it featurises, trains and writes: the same command ends with the same answer."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from finetuning_jobs import EPOCHS, tune
from kills import forkserver, run_killed, run_whole

from unimol2_hf.finetuning.prepare import ROWS_FILE
from unimol2_hf.fingerprints import FINGERPRINTS_FILE
from unimol2_hf.training.checkpoints import COMPLETE_FILE

DRUGS = Path(__file__).parents[2] / "examples" / "drugs.csv"
STEPS_PER_EPOCH = 3
FEATURISING, WRITING, FINISHED = 0, EPOCHS + 1, EPOCHS + 2


def jobs() -> Any:
    return forkserver("finetuning_jobs")


def phase(folder: Path) -> int:
    """The epochs that are saved; beyond them what is written when they are over."""
    if (folder / "metrics.json").exists():
        return FINISHED
    if (folder / FINGERPRINTS_FILE).exists():
        return WRITING
    saved = [int(path.parent.name.split("-")[1]) for path in folder.glob(f"checkpoints/*/{COMPLETE_FILE}")]
    return max(saved, default=0) // STEPS_PER_EPOCH


@pytest.mark.slow
@pytest.mark.numerical
def test_killed_ten_times_it_ends_with_the_same_metrics(tmp_path: Path) -> None:
    table = pd.read_csv(DRUGS).head(30)
    table.to_csv(tmp_path / "data.csv", index=False)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_whole(jobs(), tune, str(tmp_path / "data.csv"), str(whole))
    arguments = (str(tmp_path / "data.csv"), str(killed))
    found = run_killed(jobs(), tune, arguments, lambda: phase(killed), FINISHED, 10, 0.3, EPOCHS + 1)
    assert found.kills == 10
    assert FEATURISING in found.progress_at_kills
    assert any(0 < each <= EPOCHS for each in found.progress_at_kills)
    assert WRITING in found.progress_at_kills
    for name in ("metrics.json", str(ROWS_FILE)):
        assert (killed / name).read_text() == (whole / name).read_text(), name
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
