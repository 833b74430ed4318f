"""What both workers of against_unimol_tools.py do: read molecules, and answer turns. Runs in either environment."""

import json
import pickle
import sys
import time
from collections.abc import Callable

from rdkit import Chem


def read_molecules(path: str) -> list[Chem.Mol]:
    with open(path, "rb") as file:
        return [Chem.Mol(binary) for binary in pickle.load(file)]


def answer_turns(work: Callable[[list[Chem.Mol]], object], molecules: list[Chem.Mol]) -> None:
    """Read lines "START END" and print the seconds that those molecules took."""
    for line in sys.stdin:
        start, end = map(int, line.split())
        began = time.perf_counter()
        work(molecules[start:end])
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)
