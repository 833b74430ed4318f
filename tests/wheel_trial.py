#!/usr/bin/env python3
"""Install the wheel and the sdist, each in an empty environment, and use them as the README says: `make test-wheel`.

First with what they need alone; then the wheel, which is made from the sdist, with every extra: the tests of README and
cards, which run all their code, are the sdist's and find the package that was installed. It fetches packages from the
index, so it is no part of the suite.
"""

import csv
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
import venv
from itertools import islice
from pathlib import Path

from code_blocks import code_blocks
from test_release import EXTRAS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TOOLS = ("pytest", "pytest-timeout", "hypothesis", "psutil")
TESTS = ("tests/test_readme.py", "tests/hub/test_publish.py", "tests/hub/test_data_set.py")
ROWS = 10
WORDS = ("soluble", "sparingly", "insoluble")
WRITE_SDF = """
import sys
from rdkit import Chem

with Chem.SDWriter("library.sdf") as writer:
    for smiles in sys.argv[1:]:
        writer.write(Chem.MolFromSmiles(smiles))
"""


def run(*command: object, where: Path) -> None:
    print("$", shlex.join(map(str, command)), flush=True)
    # What the caller's checkout holds must not stand in for what the archive lacks.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([str(word) for word in command], cwd=where, env=environment, check=True)


def install(programs: Path, *packages: object) -> None:
    run(programs / "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", *packages, where=programs)


def write_table(folder: Path) -> list[str]:
    """Ten drugs with the README's three targets, a number, two values and three words; returns their SMILES."""
    with (ROOT / "examples" / "drugs.csv").open() as source:
        drugs = list(islice(csv.DictReader(source), ROWS))
    with (folder / "data.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["smiles", "logS", "active", "solvent_class"])
        for index, drug in enumerate(drugs):
            writer.writerow([drug["smiles"], drug["crippen_logp"], index % 2, WORDS[index % 3]])
    return [drug["smiles"] for drug in drugs]


def use(programs: Path, folder: Path) -> None:
    """The README's Python from top to bottom, then its first commands for fine-tuning and prediction."""
    run(programs / "python", "-c", "\n".join(code_blocks(README, "python")), where=folder)
    run(programs / "unimol2-hf", "--help", where=folder)
    run(programs / "python", "-c", WRITE_SDF, *write_table(folder), where=folder)
    commands = next(block for block in code_blocks(README, "bash") if "unimol2-hf finetune" in block)
    for line in commands.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        run(programs / program, *arguments, where=folder)
    with (folder / "predictions.csv").open() as table:
        predicted = list(csv.DictReader(table))
    if len(predicted) != ROWS or not all(row["predicted_logS"] for row in predicted):
        sys.exit(f"{folder / 'predictions.csv'} does not hold {ROWS} predictions")


def run_tests(sdist: Path, programs: Path, folder: Path) -> None:
    """The tests that run every code block of README and cards, from the sdist's files."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    run(programs / "pytest", "-q", "-p", "no:cacheprovider", *TESTS, where=unpacked)


def main() -> None:
    (wheel,), (sdist,) = (list((ROOT / "dist").glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
    for archive in (wheel, sdist):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "work").mkdir()
            venv.create(folder / "empty", with_pip=True)
            programs = folder / "empty" / "bin"
            install(programs, "torch")
            install(programs, archive)
            use(programs, folder / "work")
            if archive == wheel:
                install(programs, f"{archive}[{','.join(EXTRAS)}]", *TOOLS)
                run_tests(sdist, programs, folder / "unpacked")
        print(f"{archive.name} works", flush=True)


if __name__ == "__main__":
    main()
