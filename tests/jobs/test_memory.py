"""Freed memory that the process keeps."""

import platform
import subprocess
import sys

import pytest
import torch

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


SHAPES = """
import sys
from pathlib import Path
import torch
from unimol2_hf import UniMol2Config, UniMol2Model, keep_freed_memory
from unimol2_hf.packed_linear import pack_linear_layers

keep_freed_memory()
torch.set_num_threads(1)
model = UniMol2Model(UniMol2Config.from_scale("nano")).eval()
pack_linear_layers(model)


def run(molecules, atoms):
    pairs = {"edge_features": (atoms, atoms, 3), "shortest_paths": (atoms, atoms), "pair_types": (atoms, atoms, 2)}
    singles = {"input_ids": (atoms,), "attention_mask": (atoms,), "atom_features": (atoms, 8), "degrees": (atoms,)}
    ones = {name: torch.ones(molecules, *shape, dtype=torch.long) for name, shape in {**pairs, **singles}.items()}
    with torch.no_grad():
        model(**ones, coordinates=torch.randn(molecules, atoms, 3))


def mebibytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


run(24, 24)
before = mebibytes()
for molecules in range(1, 17):
    for atoms in range(2, 10):
        run(molecules, atoms)
print(mebibytes() - before)
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="nothing is packed")
def test_batches_of_all_sizes_take_no_memory_for_good() -> None:
    """oneDNN's compiled products of 128 shapes would be 100 MB and more."""
    run = subprocess.run([sys.executable, "-c", SHAPES], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 30
