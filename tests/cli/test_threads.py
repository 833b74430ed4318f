"""What OpenMP finds in the environment when a command loads torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")

# Python runs it at its start; the process ends where torch would be loaded.
SITECUSTOMIZE = f"""
import json, os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(json.dumps({{name: os.environ[name] for name in {VARIABLES} if name in os.environ}}), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Watch())
"""
MODULE = ["-m", "unimol2_hf.cli"]  # as torchrun starts it
TOLD = {"GOMP_SPINCOUNT": "1000"}
COMMANDS = {
    "finetune": ("data.csv", "--targets", "a", "--output-dir", "out"),
    "predict": ("model", "data.csv", "--output", "out.csv"),
    "embed": ("data.csv", "out"),
    "pretrain": ("--data", "library", "--output-dir", "out"),
}


def found_by_torch(folder: Path, start: list[str], command: str, **of_the_user: str) -> dict[str, str]:
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    others = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    path = os.pathsep.join([str(folder), others.get("PYTHONPATH", "")])
    words = [sys.executable, *start, command, *COMMANDS[command]]
    environment = {**others, **of_the_user, "PYTHONPATH": path}
    run = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found: dict[str, str] = json.loads(run.stdout)
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_waiting_threads_are_told_to_sleep(command: str, tmp_path: Path) -> None:
    assert found_by_torch(tmp_path, MODULE, command) == TOLD


def test_the_console_script_tells_them_too(tmp_path: Path) -> None:
    script = tmp_path / "unimol2-hf"
    script.write_text("from unimol2_hf.cli.app import main\nmain()\n")
    assert found_by_torch(tmp_path, [str(script)], "predict") == TOLD


@pytest.mark.parametrize(
    "of_the_user", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}, {"KMP_BLOCKTIME": "1"}], ids=str
)
def test_what_the_user_says_holds(of_the_user: dict[str, str], tmp_path: Path) -> None:
    assert found_by_torch(tmp_path, MODULE, "predict", **of_the_user) == of_the_user
