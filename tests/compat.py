#!/usr/bin/env python3
"""Run the tests of the boundary with other packages against several versions of these: `make compat`.

Each combination has an environment of its own in a temporary folder, filled from the package index. What passed is
written to benchmarks/compat.md; `tests/compat.py lowest newest` runs these two and leaves the other rows as they are.

For Linux on x86_64 the index has torch with its GPU packages only, 5.5 GB installed; it computes on the CPU as well.
"""

import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "benchmarks" / "compat.md"
# What the package is built on, and what its users pin themselves.
BOUNDARY = ("transformers", "huggingface-hub", "rdkit")
SHOWN = ("torch", *BOUNDARY, "numpy", "peft")
TOOLS = ("pytest", "pytest-xdist", "pytest-timeout", "hypothesis")
TESTS = (
    "tests/test_configuration.py",  # what Transformers does to a config
    "tests/test_transformers_contract.py",  # saving, Auto classes, Trainer, PEFT, compilation
    "tests/test_pipeline.py",  # Transformers' pipelines
    "tests/hub/test_export.py",  # Transformers' remote code
    "tests/test_golden.py",  # RDKit's features and conformers, torch's numbers
    "tests/test_feature_extraction.py",  # what RDKit reads, embeds and refuses
)
# Each release of RDKit embeds in its own way; these are conformers of the one in constraints.txt.
OF_ONE_RDKIT = "tests/test_golden.py::test_conformers_equal_the_references"
HEADER = f"""# Which versions of other packages pass

`make compat` (`tests/compat.py`): the tests of the boundary, each row in an environment of its own.

| combination | date | Python | {" | ".join(SHOWN)} | tests |
|{"---|" * (len(SHOWN) + 4)}
"""


def lower_bounds() -> list[str]:
    """The lowest versions that pyproject.toml allows, as pins."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [each for each in map(Requirement, project["dependencies"]) if each.name in BOUNDARY]
    return [
        f"{each.name}=={bound.version}" for each in requirements for bound in each.specifier if bound.operator == ">="
    ]


def pinned(*names: str) -> list[str]:
    """What CI runs with."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line.partition("==")[0] in names]


# torch first, and named everywhere: any that pip chooses by itself may bring gigabytes of GPU packages.
COMBINATIONS = {
    "lowest": [*pinned("torch"), *lower_bounds()],
    "newest": [*pinned("torch"), *BOUNDARY],
    "torch 2.9": ["torch==2.9.*", *pinned(*BOUNDARY)],
    "torch 2.13": ["torch==2.13.*", *pinned(*BOUNDARY)],
    "torch 2.14": ["torch==2.14.*", *pinned(*BOUNDARY)],
}


def output_of(*command: object, **environment: str) -> tuple[int, str]:
    """Exit status and output of a command that sees none of the caller's packages."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=inherited | environment, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return result.returncode, result.stdout


def tests_of(python: Path, requirements: list[str]) -> tuple[dict[str, str], str]:
    """Versions found and the outcome, of a fresh environment."""
    pip = (python, "-m", "pip", "install", "--quiet")
    for wanted in (requirements[:1], [*requirements, *TOOLS, "--editable", f"{ROOT}[lora]"]):
        status, told = output_of(*pip, *wanted)
        if status:
            print(told)
            return {}, "cannot be installed"
    code = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {SHOWN}}}))"
    versions: dict[str, str] = json.loads(output_of(python, "-c", code)[1])
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "1000"}
    _, told = output_of(
        python, "-m", "pytest", "-n", "2", "-q", "-p", "no:cacheprovider", "--deselect", OF_ONE_RDKIT, *TESTS, **quiet
    )
    print(told[-6000:])
    counts = re.findall(r"\d+ (?:passed|failed|skipped|errors?)\b", told.rstrip().rpartition("\n")[2])
    return versions, ", ".join(counts) or "no test ran"


def write(name: str, versions: dict[str, str], outcome: str) -> None:
    """The table with this combination's row in its place."""
    old = TABLE.read_text().splitlines() if TABLE.exists() else []
    rows = {row.split(" | ")[0].removeprefix("| "): row for row in old}
    cells = [
        name,
        f"{datetime.date.today()}",
        platform.python_version(),
        *(versions.get(each, "-") for each in SHOWN),
        outcome,
    ]
    rows[name] = f"| {' | '.join(cells)} |"
    TABLE.write_text(HEADER + "\n".join(rows[each] for each in COMBINATIONS if each in rows) + "\n")


def main() -> None:
    good = True
    for name in sys.argv[1:] or COMBINATIONS:
        print(f"{name}: {' '.join(COMBINATIONS[name])}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            venv.create(folder, with_pip=True)
            versions, outcome = tests_of(Path(folder) / "bin" / "python", COMBINATIONS[name])
        write(name, versions, outcome)
        print(f"{name}: {outcome}", flush=True)
        good &= re.fullmatch(r"\d+ passed(, \d+ skipped)?", outcome) is not None
    sys.exit(not good)


if __name__ == "__main__":
    main()
