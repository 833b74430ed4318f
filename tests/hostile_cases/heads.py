"""The hostile table, heads, ensembles and intervals: refused by name with a mend, or used with what was odd told.

A row is as in `tables`.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import pipeline

from unimol2_hf import ModelError, SettingsError, TableError, UniMol2Config, UniMol2FeatureExtractor
from unimol2_hf.calibration import CALIBRATION_FILE
from unimol2_hf.jobs.predict import predict
from unimol2_hf.jobs.settings import PredictSettings
from unimol2_hf.modeling_unimol2 import UniMol2PropertyHead

from .tables import PARTS, QUIET, SMILES, Call, Check, N, Y, frame, rows_of, tuned

FROZEN = {"_head": "frozen", "_epochs": None}
CLASSES = ["a", "b", "c"] * 6 + ["a", "b"]


def fitted(folder: Path, **settings: Any) -> Path:
    """A small ensemble of frozen heads on three folds, or what the settings say."""
    options = {"head": "frozen", "epochs": None, "folds": 3} | settings
    tuned(pd.DataFrame({"smiles": SMILES, "y": Y, "ph": Y}), folder, **options)
    return folder / "out"


def predicted(molecules: list[Any], columns: dict[str, Any] | None = None, **settings: Any) -> Call:
    """Predict with such an ensemble; what begins with `_` is a setting of the prediction."""

    def call(folder: Path) -> Any:
        own = {name[1:]: value for name, value in settings.items() if name.startswith("_")}
        model = fitted(folder, **{name: value for name, value in settings.items() if not name.startswith("_")})
        table = pd.DataFrame({"smiles": molecules, **(columns or {})})
        predict(str(model), table, folder / "p.csv", PredictSettings(num_workers=0, **own), QUIET)
        return pd.read_csv(folder / "p.csv")

    return call


def spoilt(spoil: Any, **settings: Any) -> Call:
    """Load an ensemble's folder after something was done to it."""

    def call(folder: Path) -> Any:
        model = fitted(folder, **settings)
        spoil(model)
        return pipeline("molecule-property-prediction", str(model))

    return call


def rewritten(**changes: Any) -> Any:
    def spoil(model: Path) -> None:
        content = json.loads((model / CALIBRATION_FILE).read_text())
        (model / CALIBRATION_FILE).write_text(json.dumps(content | changes))

    return spoil


def lacking(name: str) -> Any:
    def spoil(model: Path) -> None:
        content = json.loads((model / CALIBRATION_FILE).read_text())
        del content[name]
        (model / CALIBRATION_FILE).write_text(json.dumps(content))

    return spoil


def head_of(**given: Any) -> Any:
    config = UniMol2Config(hidden_size=32, num_attention_heads=2, num_descriptors=3)
    return UniMol2PropertyHead(config)(torch.zeros(2, 32), **given)


# fmt: off
REFUSED_HEADS: list[tuple[str, Call, type[Exception], str]] = [
    # Settings.
    ("an ensemble on two folds", frame(y=Y, _folds=2), SettingsError, "3 or more folds, since each model leaves out two"),
    ("an ensemble of one seed", frame(y=Y, _seeds=1), SettingsError, "2 or more seeds"),
    ("folds and seeds", frame(y=Y, _folds=3, _seeds=3), SettingsError, "two ways to make an ensemble; give one"),
    ("too many folds", frame(y=Y, _folds=21), SettingsError, "folds is 21; use 0 to 20"),
    ("epochs of a frozen head", frame(y=Y, _head="frozen"), SettingsError, "a frozen head is not trained, so epochs would do nothing"),
    ("a rate of a frozen head", frame(y=Y, **FROZEN, _learning_rate=1e-3), SettingsError, "learning_rate would do nothing"),
    ("adapters of a frozen head", frame(y=Y, **FROZEN, _lora=4), SettingsError, "lora would do nothing"),
    ("a search for a frozen head", frame(y=Y, **FROZEN, _search=3), SettingsError, "search would do nothing"),
    ("seeds of a frozen head", frame(y=Y, **FROZEN, _seeds=3), SettingsError, "seeds would do nothing"),
    ("a coverage in per cent", frame(y=Y, _folds=3, _coverage=90), SettingsError, "coverage is 90; use 0.01 to 0.999"),
    ("a coverage of everything", frame(y=Y, _folds=3, _coverage=1.0), SettingsError, "coverage is 1.0; use"),
    ("a coverage that is no number", frame(y=Y, _folds=3, _coverage=np.nan), SettingsError, "coverage is nan; use"),
    ("an unknown head", frame(y=Y, _head="linear"), SettingsError, "unknown head 'linear'; use one of auto, frozen, finetuned"),
    ("unknown descriptors", frame(y=Y, _descriptors="mordred"), SettingsError, "unknown descriptors 'mordred'; use one of none, rdkit"),
    ("an unknown pooling", frame(y=Y, _pooling="max"), SettingsError, "unknown pooling 'max'"),
    ("nothing left to search", frame(y=Y, _search=2, _batch_size=4, _learning_rate=1e-3, _warmup=0.1, _pooler_dropout=0.1), SettingsError, "there is nothing to search"),
    # Tables.
    ("fewer groups than folds", lambda p: tuned(pd.DataFrame({"smiles": [f"c1ccccc1{'C' * n}" for n in range(N)], "y": Y, "part": PARTS}), p, folds=5, split_method="scaffold", split_column="part"), TableError, "1 groups of molecules do not make 5 folds; use fewer, or the random split"),
    ("a target called as another's interval", frame(y=Y, y_lower=Y, _targets=("y", "y_lower")), TableError, "two predictions would be called predicted_y_lower; rename"),
    ("a class called spread", frame(y=["spread", "b", "c", "d"] * 5), TableError, "two predictions would be called predicted_y_spread"),
    ("the fold as target", frame(fold=Y, _targets=("fold",)), TableError, "target fold clashes"),
    # Predictions.
    ("a spread's column is there", predicted(["C"], {"predicted_y_spread": [1]}), TableError, "predicted_y_spread; rename"),
    ("a coverage of nothing", predicted(["C"], _coverage=0.0), SettingsError, "coverage is 0.0; use 0.01 to 0.999"),
    ("a coverage in per cent, by the pipeline", lambda p: pipeline("molecule-property-prediction", str(fitted(p)))("C", coverage=90), ValueError, "coverage is 90; use a number between 0 and 1"),
    # Folders.
    ("an ensemble without a member", spoilt(lambda m: shutil.rmtree(m / "members" / "1"), head="finetuned", epochs=1), ModelError, "ensemble of 3 models, of which members/1 cannot be loaded"),
    ("a member cut off", spoilt(lambda m: (m / "members" / "2" / "model.safetensors").write_bytes(b"x" * 99), head="finetuned", epochs=1), ModelError, "members/2 cannot be loaded"),
    ("a calibration of a newer version", spoilt(rewritten(version=9)), ModelError, "newer unimol2-hf; upgrade it"),
    ("a calibration without its targets", spoilt(lacking("targets")), ModelError, "calibration.json is damaged .*fit the model again"),
    ("a calibration that is no JSON", spoilt(lambda m: (m / CALIBRATION_FILE).write_text("{")), ModelError, "calibration.json is damaged"),
    ("descriptors that RDKit does not have", lambda p: UniMol2FeatureExtractor(descriptor_names=["MolLogP", "LogD74"]), SettingsError, "no descriptor LogD74, which the model reads"),
    ("a kernel head without centres", lambda p: UniMol2Config(head_type="kernel"), StrictDataclassError, "a kernel head has at least one centre"),
    ("an ensemble of nothing", lambda p: UniMol2Config(num_members=0), StrictDataclassError, "num_members must be at least 1"),
    ("descriptors that the head lacks", lambda p: head_of(), ValueError, r"reads descriptors of shape \(2, 3\) \(of RDKit\), given are none"),
    ("too few descriptors", lambda p: head_of(descriptors=torch.zeros(2, 2)), ValueError, r"given are \(2, 2\)"),
]

NO_BONDS = {"atomic_numbers": [6, 8], "coordinates": [[0.0, 0, 0], [1.4, 0, 0]]}


def without_bonds(folder: Path) -> Any:
    model = fitted(folder, descriptors="rdkit")
    results: Any = pipeline("molecule-property-prediction", str(model))([NO_BONDS, "CCO"])
    return {"codes": [result["error_code"] for result in results]}


USED_HEADS: list[tuple[str, Call, Check]] = [
    ("few labels on folds", frame(y=[*Y[:6], *[None] * 8, *Y[14:]], part=PARTS, _split_column="part", **FROZEN, _folds=3), lambda r, p: r["test"]["y"]["count"] == 3 and "predicted_y_lower" not in rows_of(p) and bool(rows_of(p)["predicted_y_spread"].notna().all())),
    ("a class that a fold alone has", frame(y=["a", "b"] * 9 + ["c", "c"], part=["train"] * 12 + ["test"] * 5 + ["valid"] * 3, _split_column="part", **FROZEN, _folds=3), lambda r, p: bool(np.isclose(rows_of(p)[["predicted_y_a", "predicted_y_b", "predicted_y_c"]].sum(axis=1), 1).all())),
    ("one positive", frame(y=[1] + [0] * 19, part=PARTS, _split_column="part", **FROZEN, _folds=3), lambda r, p: bool(rows_of(p)["predicted_y"].between(0, 1).all())),
    ("one molecule in all rows of a fold", lambda p: tuned(pd.DataFrame({"smiles": [*SMILES, "OC", "[CH3]O"], "y": [*Y, 5.0, 9.0], "part": [*PARTS, "train", "train"]}), p, split_column="part", head="frozen", epochs=None, folds=3), lambda r, p: len(set(rows_of(p)["fold"][[0, 20, 21]])) == 1),
    ("salts and metals among the descriptors", predicted(["[Na+].[Cl-]", "[Fe]", "C"], descriptors="rdkit"), lambda made, _: bool(made["predicted_y"].notna().all())),
    ("a molecule far from all others", predicted(["C" * 60, "N#N"]), lambda made, _: bool(np.isfinite(made["predicted_y_upper"]).all())),
    ("atoms without bonds, and descriptors", without_bonds, lambda made, _: made["codes"] == ["no_bonds", None]),
    ("classes on folds of a trained model", frame(y=CLASSES, _folds=3), lambda r, p: bool((rows_of(p)["predicted_y_spread"] >= 0).all())),
]
# fmt: on
