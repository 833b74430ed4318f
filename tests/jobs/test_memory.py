"""Freed memory that the process keeps."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from pathlib import Path
from unimol2_hf import keep_freed_memory

def mebibytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

if sys.argv[1] == "keep":
    assert keep_freed_memory()
import torch

before = mebibytes()
tensor = torch.ones(2**26)
del tensor
print(mebibytes() - before)
"""


def held_after_freeing(how: str) -> float:
    """MiB that a process still holds of a freed tensor of 256 MiB."""
    run = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return float(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_tensors_stay_with_the_process() -> None:
    assert held_after_freeing("keep") > 200
    assert held_after_freeing("give back") < 50
