"""SCRIPT ARGUMENTS...: run a script where neither torch nor this package can be imported."""

import runpy
import sys

import refuse  # noqa: F401

sys.modules["torch"] = None  # type: ignore[assignment]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
