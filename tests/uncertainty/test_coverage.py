"""Labels that are random numbers: nothing can be learned, and intervals must hold as many as they say."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from unimol2_hf.data.splits import TEST
from unimol2_hf.finetuning.fitted import coverage_of, predict_all
from unimol2_hf.finetuning.frozen import fit_frozen
from unimol2_hf.finetuning.members import is_frozen, plan_members
from unimol2_hf.finetuning.prepare import PreparedTable, prepare, scaled_targets
from unimol2_hf.finetuning.settings import FinetuneSettings
from unimol2_hf.finetuning.train import load_start_config, train_members
from unimol2_hf.models.loading import load_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

GROUPS = ("C", "CC", "O", "N", "F", "Cl", "Br", "I", "S", "OC", "C#N", "C=O", "CO", "CN", "NC", "N(C)C", "C(F)F", "SC",
          "C=C", "C#C", "C(C)C", "C(=O)O", "C(N)=O", "CCO", "CCN")  # fmt: skip
CORES = ("c1cc({})ccc1{}", "c1c({})cccc1{}")
SEEDS = 10
ASKED, TOLERANCE = 0.9, 0.02
HEADS: dict[str, dict[str, Any]] = {
    "frozen": {"head": "frozen"},
    "frozen with descriptors": {"head": "frozen", "descriptors": "rdkit"},
    "finetuned": {"head": "finetuned", "epochs": 4, "learning_rate": 1e-3},
    "finetuned by search": {"search": 3, "epochs": 3, "learning_rate": 1e-3, "batch_size": 64},
}


@pytest.fixture(scope="module")
def molecules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 molecules, of which 120 are new ones; their labels are not used."""
    smiles = [core.format(*pair) for pair, core in product(combinations(GROUPS, 2), CORES)]
    table = pd.DataFrame({"smiles": smiles, "y": np.arange(600.0) % 7})
    table["split"] = [(["train"] * 7 + ["valid"] + ["test"] * 2)[row % 10] for row in range(600)]
    path = tmp_path_factory.mktemp("coverage") / "molecules.csv"
    table.to_csv(path, index=False)
    return path


def settings_for(head: dict[str, Any], folds: int, seed: int = 0) -> FinetuneSettings:
    return FinetuneSettings(
        targets=("y",), split_column="split", split_method="random", scale="micro", folds=folds, num_workers=0,
        duplicates="drop", seed=seed, **head,
    )  # fmt: skip


def with_random_labels(prepared: PreparedTable, seed: int) -> PreparedTable:
    """Skewed, so that intervals of a normal distribution would not do."""
    labels = np.random.default_rng(seed).exponential(size=prepared.table.labels.shape)
    table = replace(prepared.table, labels=labels)
    return replace(prepared, table=table, targets=scaled_targets(table))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("folds", [5])
@pytest.mark.parametrize("head", HEADS)
def test_intervals_hold_what_they_say(head: str, folds: int, molecules: Path, tmp_path: Path) -> None:
    console = Console(quiet=True)
    prepared = prepare(molecules, settings_for(HEADS[head], folds), console)
    found = []
    for seed in range(SEEDS):
        settings = settings_for(HEADS[head], folds, seed)
        own = with_random_labels(prepared, seed)
        members = plan_members(settings, own, is_frozen(settings, own, load_start_config(settings)))
        fit = fit_frozen if members.frozen else train_members
        folder = tmp_path / str(seed)
        logits = fit(own, settings, members, folder, console)
        fitted = predict_all(own, members, logits, load_config(str(folder)), ASKED)
        rows = own.table.rows_of(TEST)
        share = coverage_of(fitted, rows, "y", own.table.labels[rows, 0])["interval_coverage"]
        assert share is not None
        found.append(share)
    print(head, np.round(found, 3), np.mean(found))
    assert np.mean(found) == pytest.approx(ASKED, abs=TOLERANCE)
