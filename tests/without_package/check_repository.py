"""Elsewhere: a published repository's own check. FOLDER."""

import runpy
import sys
from pathlib import Path

import refuse  # noqa: F401

runpy.run_path(str(Path(sys.argv[1]) / "check_unimol2.py"), run_name="__main__")
