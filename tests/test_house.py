"""The rules of the source tree: ranks of the rooms, what the root may import, no circles."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import unimol2_hf

PACKAGE = Path(unimol2_hf.__file__).parent
# Lowest first: each room may import those before it, and the root's files; the root none of them.
ROOMS = ("models", "data", "targets", "training", "pretraining", "finetuning", "jobs", "hub", "cli")
OF_THE_PACKAGE = {"__init__", "__main__"}
# What whoever loads a model from the Hub with its code must have installed.
ROOT_MAY_IMPORT = {"numpy", "torch", "rdkit", "transformers", "huggingface_hub", *sys.stdlib_module_names}

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
