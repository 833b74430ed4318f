"""What processes that take turns do: read molecules, and answer. Runs in unimol_tools' environment, too."""

import json
import pickle
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from rdkit import Chem

Item = TypeVar("Item")


def read_molecules(path: str) -> list[Chem.Mol]:
    with open(path, "rb") as file:
        return [Chem.Mol(binary) for binary in pickle.load(file)]


def answer_turns(work: Callable[[list[Item]], object], items: list[Item]) -> None:
    """Read lines "START END" and print the seconds that those items took."""
    for line in sys.stdin:
        start, end = map(int, line.split())
        began = time.perf_counter()
        work(items[start:end])
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)
