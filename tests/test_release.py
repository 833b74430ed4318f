"""What is published: extras that exist where messages name them, workflows that publish only what was tested."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DEVELOPERS = {"dev", "benchmarks"}
EXTRAS: dict[str, list[str]] = {
    name: each for name, each in PROJECT["optional-dependencies"].items() if name not in DEVELOPERS
}
SOURCES = sorted((ROOT / "src").rglob("*.py"))
WORKFLOWS = {path.name: path for path in (ROOT / ".github" / "workflows").glob("*.yml")}
BROUGHT_BY = packages_distributions()
PINNED_ACTION = re.compile(r"[\w-]+/[\w-]+@(release/)?v\d+")


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(each).name) for each in requirements}


def extras_told(text: str) -> set[str]:
    """Extras that a text tells to install: `pip install "unimol2-hf[ray,excel]"` or `".[ray,excel]"`."""
    return {name for group in re.findall(r"(?:unimol2-hf|\.)\[([a-z,]+)\]", text) for name in group.split(",")}


def imported(path: Path) -> set[str]:
    """Top-level names of other packages, wherever in the file they are imported."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"unimol2_hf"}


def distributions(module: str) -> set[str]:
    """What brings a module; of one that is not installed, its own name."""
    return {canonicalize_name(each) for each in BROUGHT_BY.get(module, [module])}


OPTIONAL = [
    pytest.param(path, module, id=f"{path.stem}-{module}")
    for path in SOURCES
    for module in sorted(imported(path))
    if not distributions(module) & names(PROJECT["dependencies"])
]


@pytest.mark.parametrize(("path", "module"), OPTIONAL)
def test_an_optional_import_names_its_extra(path: Path, module: str) -> None:
    bringing = {name for name, requirements in EXTRAS.items() if distributions(module) & names(requirements)}
    assert bringing & extras_told(path.read_text())


def test_optional_imports_are_found() -> None:
    assert {"openpyxl", "optuna", "peft", "ray"} <= {param.values[1] for param in OPTIONAL}


@pytest.mark.parametrize(
    "path", [*SOURCES, ROOT / "README.md", *(ROOT / "docs").glob("*.md")], ids=lambda path: path.name
)
def test_extras_told_exist(path: Path) -> None:
    assert extras_told(path.read_text()) <= EXTRAS.keys()


def test_published_code_asks_for_the_same_transformers() -> None:
    """No installer reads pyproject.toml for a folder from the Hub."""
    (asked,) = re.findall(
        r'require_version\("([^"]+)"', (ROOT / "src" / "unimol2_hf" / "modeling_unimol2.py").read_text()
    )
    (declared,) = [each for each in map(Requirement, PROJECT["dependencies"]) if each.name == "transformers"]
    bounds = {str(each) for each in declared.specifier if each.operator == ">="}
    assert bounds == {str(each) for each in Requirement(asked).specifier}


def test_the_readme_names_every_extra() -> None:
    assert extras_told((ROOT / "README.md").read_text()) == EXTRAS.keys()


def jobs_of(name: str) -> dict[str, dict[str, Any]]:
    content = yaml.safe_load(WORKFLOWS[name].read_text())
    jobs: dict[str, dict[str, Any]] = content["jobs"]
    # YAML 1.1 reads the key `on` as true.
    assert content[True]
    return jobs


def needed(jobs: dict[str, dict[str, Any]], job: str) -> set[str]:
    """All jobs that must have passed before this one begins."""
    given = jobs[job].get("needs", [])
    direct = {given} if isinstance(given, str) else set(given)
    return direct.union(*(needed(jobs, each) for each in direct))


def test_publishing_waits_for_the_tests() -> None:
    jobs = jobs_of("publish.yml")
    (publishes,) = [name for name, job in jobs.items() if "pypi-publish" in str(job)]
    tests = {name for name, job in jobs.items() if job.get("uses") == "./.github/workflows/test.yml"}
    assert tests
    assert tests <= needed(jobs, publishes)
    assert jobs[publishes]["permissions"] == {"id-token": "write"}


def test_the_tests_are_the_makefiles() -> None:
    commands = {step.get("run") for job in jobs_of("test.yml").values() for step in job["steps"]}
    assert {"make check", "make test"} <= commands


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_hold_no_secret_and_pin_their_actions(name: str) -> None:
    assert "secrets." not in WORKFLOWS[name].read_text()
    used = [step["uses"] for job in jobs_of(name).values() for step in job.get("steps", []) if "uses" in step]
    assert used
    assert not [each for each in used if not PINNED_ACTION.fullmatch(each)]
