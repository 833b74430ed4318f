"""The rules of the source tree: ranks of the rooms, what the root may import, no circles, nothing written twice."""

import ast
import sys
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import unimol2_hf

PACKAGE = Path(unimol2_hf.__file__).parent
# Lowest first: each room may import those before it, and the root's files; the root none of them.
ROOMS = (
    "models", "data", "targets", "training", "uncertainty", "pretraining", "finetuning", "jobs", "estimators", "hub",
    "cli",
)  # fmt: skip
OF_THE_PACKAGE = {"__init__", "__main__"}
# What whoever loads a model from the Hub with its code must have installed.
ROOT_MAY_IMPORT = {"numpy", "torch", "rdkit", "transformers", "huggingface_hub", *sys.stdlib_module_names}
LINES_IN_A_ROW = 6

SOURCES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}


def imports_of(module: str) -> tuple[set[str], set[str]]:
    """Modules of this package and top-level names of others that a module imports, inside functions too."""
    own, others = set(), set()
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            others.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level]
            found = ".".join([*above, *([node.module] if node.module else [])])
            own |= {found} if found in SOURCES else {".".join(filter(None, (found, each.name))) for each in node.names}
    return own & set(SOURCES), others


def room_of(module: str) -> str:
    return module.partition(".")[0] if "." in module else ""


def test_no_circle() -> None:
    list(TopologicalSorter({module: imports_of(module)[0] for module in SOURCES}).static_order())


@pytest.mark.parametrize("module", SOURCES)
def test_ranks(module: str) -> None:
    ranks = {"": 0, **{room: rank for rank, room in enumerate(ROOMS, start=1)}}
    own = ranks[room_of(module)]
    assert not {other for other in imports_of(module)[0] if ranks[room_of(other)] > own}


@pytest.mark.parametrize("module", [name for name in SOURCES if "." not in name and name not in OF_THE_PACKAGE])
def test_the_root_needs_little(module: str) -> None:
    own, others = imports_of(module)
    assert others <= ROOT_MAY_IMPORT
    assert all("." not in other for other in own)


def test_settings_import_settings_only() -> None:
    for module in SOURCES:
        if module.rpartition(".")[2] in ("settings", "settings_unimol2"):
            own, others = imports_of(module)
            assert own <= {"errors", *(each for each in SOURCES if "settings" in each)}
            assert others <= set(sys.stdlib_module_names)


def test_nothing_is_written_twice() -> None:
    """No six lines in a row, blank ones and imports aside, stand in two places."""
    places: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for module, path in SOURCES.items():
        text = path.read_text()
        imported = {
            line
            for node in ast.parse(text).body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        }
        lines = [line.strip() for n, line in enumerate(text.splitlines(), start=1) if n not in imported]
        lines = [line for line in lines if line]
        for start in range(len(lines) - LINES_IN_A_ROW + 1):
            places[tuple(lines[start : start + LINES_IN_A_ROW])].append(module)
    twice = {"\n".join(block): found for block, found in places.items() if len(found) > 1}
    assert not twice
