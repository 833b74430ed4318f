"""Each job over a library killed in each of its phases: the output of an unbroken run."""

import random
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import MIXED_SMILES
from kills import forkserver, run_whole
from phase_kills import FEATURISING, FINISHING, JOINING, PHASES, WRITING, run

pytestmark = pytest.mark.slow

SHARDS, ROWS = 4, 14
# Steps of a phase among which the point is drawn.
STEPS = {FEATURISING: ROWS, WRITING: SHARDS, JOINING: ROWS * 5, FINISHING: 1}
POINTS = 3


@pytest.fixture(scope="module")
def processes() -> Any:
    return forkserver("phase_kills")


@pytest.mark.parametrize(("command", "phase"), [(command, phase) for command in PHASES for phase in PHASES[command]])
def test_killed_it_goes_on(command: str, phase: str, processes: Any, property_dir: str, tmp_path: Path) -> None:
    """At points drawn by seed, one after the other in the same folder."""
    source = tmp_path / "library.csv"
    source.write_text("smiles,code\n" + "\n".join(f"{s},0{n}" for n, s in enumerate(MIXED_SMILES[:ROWS])) + "\n")
    suffix = ".csv" if command == "predict" else ""
    whole, killed = tmp_path / f"whole{suffix}", tmp_path / f"killed{suffix}"
    run_whole(processes, run, command, str(source), str(whole), property_dir)
    generator = random.Random(f"{command} {phase}")
    points = [generator.randrange(STEPS[phase]) for _ in range(POINTS)]
    died = 0
    for point in points:
        process = processes.Process(target=run, args=(command, str(source), str(killed), property_dir, phase, point))
        process.start()
        process.join()
        # What is finished is not done again: a late point may not come any more.
        assert process.exitcode in (-signal.SIGKILL, 0)
        died += process.exitcode != 0
    assert died
    assert Path(f"{killed}.died").read_text().splitlines() == [phase] * died
    run_whole(processes, run, command, str(source), str(killed), property_dir)
    if command == "predict":
        assert killed.read_bytes() == whole.read_bytes()
        assert not list((tmp_path / "killed.job" / "predictions").iterdir())
    else:
        folder = "embeddings" if command == "embed" else "conformers"
        expected, actual = (pd.read_parquet(each / folder) for each in (whole, killed))
        pd.testing.assert_frame_equal(actual, expected)
        assert (killed / "summary.json").read_text() == (whole / "summary.json").read_text()
    leftovers = [path for path in tmp_path.rglob(".*.draft") if "whole" not in str(path)]
    assert not leftovers
