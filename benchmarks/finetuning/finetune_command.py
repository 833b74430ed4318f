"""`unimol2-hf finetune` as the scripts of this folder start it, and what they say of machine and model."""

import json
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from unimol2_hf import NANO
from unimol2_hf.hub.repository.check_unimol2 import sha256_of

HERE = Path(__file__).parent
FOUR_OF_BIOGEN = ["hlm_clint", "mdr1_er", "solubility", "rlm_clint"]
BINARY = ("bbbp", "tox21")


@dataclass(frozen=True)
class Finetuned:
    """One `unimol2-hf finetune` that has ended: the command, its metrics.json, and the minutes that it took."""

    command: str
    report: dict[str, Any]
    minutes: float


def finetune(table: Path, targets: list[str], folder: Path, *options: str) -> Finetuned:
    """Run the command; what it prints goes to `<folder>.log`."""
    command = ["unimol2-hf", "finetune", str(table), "--targets", ",".join(targets), "--output-dir", str(folder)]
    command += options
    folder.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with Path(f"{folder}.log").open("w") as log:
        executable = str(Path(sys.executable).with_name(command[0]))
        subprocess.run([executable, *command[1:]], stdout=log, stderr=subprocess.STDOUT, check=True)
    minutes = (time.monotonic() - start) / 60
    return Finetuned(shlex.join(command), json.loads((folder / "metrics.json").read_text()), minutes)


def on_split(name: str, data: Path, seed: int) -> list[str]:
    """Options for the split that a seed has in `splits/`, and the seed."""
    return ["--split-file", str(data / "splits" / f"{name}.csv"), "--split-column", f"seed{seed}", "--seed", str(seed)]


def targets_of(name: str, data: Path) -> list[str]:
    """The four endpoints of Biogen that most molecules have; of the others every column."""
    columns = pd.read_csv(data / f"{name}.csv", nrows=0).columns.drop("smiles").tolist()
    return FOUR_OF_BIOGEN if name == "biogen_adme" else columns


def packaged_model() -> str:
    """Which unimol2-nano it is: the beginning of its weights' SHA-256."""
    return sha256_of(Path(NANO) / "model.safetensors")[:12]


def processor() -> str:
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return names[0] if names else platform.machine()
