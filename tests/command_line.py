"""A command of the command line, run in this process."""

import io
import os
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple
from unittest.mock import patch

from unimol2_hf.cli.app import main


class Told(NamedTuple):
    """How a command ended, and what it wrote to both streams."""

    exit_code: int
    output: str


def run_command(*arguments: object, columns: int = 250) -> Told:
    """Run `unimol2-hf ARGUMENTS` on a wide terminal."""
    output, code = io.StringIO(), 0
    with (
        patch.dict(os.environ, {"COLUMNS": str(columns)}),
        redirect_stdout(output),
        redirect_stderr(output),
    ):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Told(code, output.getvalue())
