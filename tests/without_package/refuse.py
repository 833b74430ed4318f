"""Import this first: from then on the package cannot be imported, as where it was never installed."""

import importlib.abc
import os
import sys
from collections.abc import Sequence
from types import ModuleType


class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        if name.split(".", maxsplit=1)[0] == "unimol2_hf":
            raise ImportError("the package must not be needed")


sys.meta_path.insert(0, Refuse())


def end() -> None:
    """Of one of several processes: without the interpreter's own end, at which gloo's threads now and then abort."""
    sys.stdout.flush()
    os._exit(0)
