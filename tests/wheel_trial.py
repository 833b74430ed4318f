#!/usr/bin/env python3
"""Build the wheel, install it in an empty environment, and use it there as the README says: `make test-wheel`.

It fetches packages from the index, so it is no part of the suite.
"""

import csv
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOLECULES = 10


def run(*command: object, where: Path) -> None:
    print("$", *command, flush=True)
    subprocess.run([str(word) for word in command], cwd=where, check=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        constraints = ROOT / "constraints.txt"
        run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, where=folder)
        (wheel,) = folder.glob("*.whl")
        venv.create(folder / "empty", with_pip=True)
        python = folder / "empty" / "bin" / "python"
        run(python, "-m", "pip", "install", "--quiet", "--constraint", constraints, "torch", where=folder)
        run(python, "-m", "pip", "install", "--quiet", "--constraint", constraints, wheel, where=folder)
        block = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)[0]
        run(python, "-c", block, where=folder)
        with (ROOT / "examples" / "drugs.csv").open() as source, (folder / "ten.csv").open("w", newline="") as table:
            rows = list(csv.reader(source))[: MOLECULES + 1]
            csv.writer(table).writerows(rows)
        options = ("--targets", "tpsa", "--split-method", "random", "--epochs", "1", "--output-dir", "model")
        run(folder / "empty" / "bin" / "unimol2-hf", "finetune", "ten.csv", *options, where=folder)
        assert (folder / "model" / "metrics.json").exists()
    print("the wheel works")


if __name__ == "__main__":
    main()
