"""Frozen heads, ensembles and searches from a table to a folder, and what the folder then says of new molecules."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conformance import run_without_the_package
from finetuning_jobs import StoppedError
from rich.console import Console
from transformers import AutoModelForSequenceClassification, pipeline

from unimol2_hf import ModelError, SettingsError, UniMol2Config, UniMol2ForPropertyPrediction, export_with_code
from unimol2_hf.calibration import load_calibration
from unimol2_hf.finetuning import baselines, evaluate, members, train
from unimol2_hf.finetuning import frozen as frozen_heads
from unimol2_hf.finetuning.finetune import finetune
from unimol2_hf.finetuning.members import is_frozen, plan_members
from unimol2_hf.finetuning.prepare import ROWS_FILE, prepare
from unimol2_hf.finetuning.settings import FinetuneSettings
from unimol2_hf.jobs.predict import predict
from unimol2_hf.jobs.settings import PredictSettings

pytestmark = pytest.mark.numerical

DRUGS: Any = pd.read_csv(Path(__file__).parents[2] / "examples" / "drugs.csv").head(60)[
    ["smiles", "tpsa", "crippen_logp"]
]
DRUGS["polar"] = np.where(DRUGS["tpsa"] > 70, "yes", "no")
DRUGS["size"] = pd.cut(DRUGS["smiles"].str.len(), [0, 30, 45, 999], labels=["small", "middle", "large"]).astype(str)
DRUGS.loc[::7, "crippen_logp"] = np.nan
QUIET = Console(quiet=True)
NEW = ["CCOC(=O)c1ccccc1", "CC(N)C(=O)O", "C1CC"]
NEW_TABLE = pd.DataFrame({"smiles": NEW})


def settings_of(**settings: Any) -> FinetuneSettings:
    small = {"targets": ("tpsa",), "scale": "micro", "num_workers": 0, "split_method": "random", "batch_size": 32}
    return FinetuneSettings(**{**small, **settings})


def tuned(folder: Path, data: Any = DRUGS, **settings: Any) -> dict[str, Any]:
    return finetune(data, folder, settings_of(**settings), QUIET)


def rows_of(folder: Path) -> Any:
    return pd.read_csv(folder / ROWS_FILE)


def predicted(folder: Path, data: Any, **settings: Any) -> Any:
    output = Path(tempfile.mkdtemp(dir=folder.parent)) / "predicted.csv"
    predict(str(folder), data, output, PredictSettings(num_workers=0, **settings), QUIET)
    return pd.read_csv(output)


def test_vectors_and_descriptors_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For other runs on the same molecules, which are, to the digit, those that make them."""
    cache = str(tmp_path / "cache")
    first = tuned(tmp_path / "a", head="frozen", conformer_cache=cache)

    def made_again(*_: Any, **__: Any) -> None:
        pytest.fail("made again")

    monkeypatch.setattr(baselines, "rdkit_descriptors", made_again)
    monkeypatch.setattr(frozen_heads._VectorPipeline, "_forward", made_again)
    assert tuned(tmp_path / "b", head="frozen", conformer_cache=cache) == first
    folded = tuned(tmp_path / "c", head="frozen", folds=3, conformer_cache=cache)
    monkeypatch.undo()
    assert tuned(tmp_path / "d", head="frozen", conformer_cache="none") == first
    assert tuned(tmp_path / "e", head="frozen", folds=3, conformer_cache="none") == folded
    # Another pooling, another vector.
    assert tuned(tmp_path / "f", head="frozen", pooling="mean", conformer_cache=cache) != first


def test_labels_whose_mean_is_zero(tmp_path: Path) -> None:
    """A fitted head may have a bias of exactly zero, and is no new one."""
    table = DRUGS.assign(
        tpsa=np.where(np.arange(60) % 2, 1.0, -1.0), part=["train"] * 40 + ["valid"] * 10 + ["test"] * 10
    )
    tuned(tmp_path / "m", table, head="frozen", split_column="part")
    assert predicted(tmp_path / "m", NEW_TABLE)["predicted_tpsa"].notna().any()


def test_baselines_take_the_heads_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tuned(tmp_path / "a", head="frozen", conformer_cache="none")
    monkeypatch.setattr(baselines, "descriptors_of", lambda *_: pytest.fail("computed twice"))
    monkeypatch.setattr(evaluate, "descriptors_of", lambda *_: pytest.fail("computed twice"))
    described = tuned(tmp_path / "b", head="frozen", descriptors="rdkit", conformer_cache="none")
    assert described["baselines"] == plain["baselines"]


ALL_KINDS = ("tpsa", "crippen_logp", "polar", "size")


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten frozen heads on five folds, targets of every kind, with descriptors."""
    folder = tmp_path_factory.mktemp("frozen") / "model"
    tuned(folder, targets=ALL_KINDS, head="frozen", folds=5, descriptors="rdkit")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three trained models on three folds."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    tuned(folder, targets=("tpsa", "polar"), folds=3, epochs=1, learning_rate=1e-3)
    return folder


class TestFrozen:
    def test_a_single_head(self, tmp_path: Path) -> None:
        report = tuned(tmp_path / "m", head="frozen", pooling="cls_mean")
        config = UniMol2Config.from_pretrained(tmp_path / "m")
        assert (report["head"], config.head_type, config.classifier_pooling) == ("frozen", "kernel", "cls_mean")
        # It has learned from the validation part too.
        assert config.num_centers == report["rows"]["train"] + report["rows"]["valid"] == 54
        assert "valid" not in report
        assert report["test"]["tpsa"]["mae"] < report["test"]["tpsa"]["baseline_mae"]
        names = {path.name for path in (tmp_path / "m").iterdir()}
        assert not {"calibration.json", "members", "log_history.json", "checkpoints"} & names
        rows = rows_of(tmp_path / "m")
        again = predicted(tmp_path / "m", DRUGS)
        np.testing.assert_allclose(again["predicted_tpsa"], rows["predicted_tpsa"], rtol=1e-4, atol=2e-3)
        assert not [name for name in again.columns if name.endswith(("_spread", "_lower"))]
        assert (again["nearest_similarity"][rows["split"] != "test"] == 1).all()
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "m")
        assert type(loaded) is UniMol2ForPropertyPrediction

    def test_the_same_run_gives_the_same_head(self, tmp_path: Path) -> None:
        reports = [tuned(tmp_path / name, head="frozen") for name in "ab"]
        assert reports[0] == reports[1]

    def test_several_conformers(self, tmp_path: Path) -> None:
        tuned(tmp_path / "m", head="frozen", folds=3, featurizer={"num_conformers": 2})
        again = predicted(tmp_path / "m", DRUGS)
        test = rows_of(tmp_path / "m")["split"] == "test"
        for column in ("predicted_tpsa", "predicted_tpsa_lower", "predicted_tpsa_spread"):
            np.testing.assert_allclose(again[column][test], rows_of(tmp_path / "m")[column][test], rtol=1e-4)

    def test_extra_features_and_weights(self, tmp_path: Path) -> None:
        generator = np.random.default_rng(0)
        data = DRUGS.assign(ph=generator.uniform(1, 9, len(DRUGS)), weight=1.0)
        data["y"] = 100 * data["ph"]
        # What has no weight says nothing.
        data.loc[:9, ["y", "weight"]] = [-9e4, 0.0]
        columns: dict[str, Any] = {"feature_columns": ("ph",), "weight_column": "weight", "split_column": "part"}
        data["part"] = ["train"] * 40 + ["valid"] * 5 + ["test"] * 15
        report = tuned(tmp_path / "m", data, targets=("y",), head="frozen", **columns)
        assert report["test"]["y"]["r2"] > 0.7

    def test_a_model_that_was_fitted_before_is_a_start(self, frozen: Path, tmp_path: Path) -> None:
        """Only its encoder counts: not its head, its members or its descriptors."""
        for head in ("frozen", "finetuned"):
            settings: dict[str, Any] = {"head": head} | ({"epochs": 1} if head == "finetuned" else {})
            tuned(tmp_path / head, model=str(frozen), scale=None, **settings)
            config = UniMol2Config.from_pretrained(tmp_path / head)
            assert (config.num_members, config.num_descriptors) == (1, 0)
            assert len(predicted(tmp_path / head, DRUGS.head(3))) == 3


class TestEnsemble:
    def test_every_row_is_told_by_members_that_have_not_seen_it(self, frozen: Path, tmp_path: Path) -> None:
        rows = rows_of(frozen)
        inside = rows["split"] != "test"
        assert rows["fold"].notna().tolist() == inside.tolist()
        assert sorted(rows["fold"].dropna().unique()) == [0, 1, 2, 3, 4]
        row = int(np.flatnonzero(inside)[0])
        changed = DRUGS.copy()
        changed.loc[row, "tpsa"] += 300
        tuned(tmp_path / "m", changed, targets=ALL_KINDS, head="frozen", folds=5, descriptors="rdkit")
        again = rows_of(tmp_path / "m")
        assert again["predicted_tpsa"][row] == pytest.approx(rows["predicted_tpsa"][row], rel=1e-2)
        other = rows["fold"] == (rows["fold"][row] + 1) % 5
        assert np.abs(again["predicted_tpsa"] - rows["predicted_tpsa"])[other].max() > 1

    def test_columns_of_every_kind(self, frozen: Path) -> None:
        made = predicted(frozen, pd.DataFrame({"smiles": NEW, "predicted_other": 1, "size": "?"}))
        names = [name for name in made.columns if name.startswith("predicted_")]
        assert names == [
            "predicted_other",
            "predicted_tpsa", "predicted_tpsa_lower", "predicted_tpsa_upper", "predicted_tpsa_spread",
            "predicted_crippen_logp", "predicted_crippen_logp_lower", "predicted_crippen_logp_upper",
            "predicted_crippen_logp_spread",
            "predicted_polar", "predicted_polar_spread",
            "predicted_size", "predicted_size_large", "predicted_size_middle", "predicted_size_small",
            "predicted_size_spread",
        ]  # fmt: skip
        assert made.loc[2, names[1:]].isna().all()
        assert (made["size"] == "?").all()
        good = made.iloc[:2]
        assert (good["predicted_tpsa_lower"] < good["predicted_tpsa"]).all()
        assert (good["predicted_tpsa"] < good["predicted_tpsa_upper"]).all()
        assert (good["predicted_tpsa_spread"] > 0).all()
        assert good["predicted_polar"].between(0, 1).all()

    def test_coverage_can_be_asked_for(self, frozen: Path) -> None:
        data = pd.DataFrame({"smiles": NEW[:2]})
        default, same, narrow, wide = (
            predicted(frozen, data, coverage=each).eval("predicted_tpsa_upper - predicted_tpsa_lower")
            for each in (None, 0.9, 0.5, 0.95)
        )
        assert default.tolist() == same.tolist()
        assert (narrow < default).all()
        assert (default < wide).all()
        pipe = pipeline("molecule-property-prediction", str(frozen))
        lower, upper = pipe(NEW[0], coverage=0.5)["intervals"]["tpsa"]
        assert upper - lower == pytest.approx(narrow[0], rel=1e-4)
        with pytest.raises(ValueError, match=r"coverage is 90; use a number between 0 and 1"):
            pipe(NEW[0], coverage=90)

    def test_metrics_tell_what_intervals_hold(self, frozen: Path) -> None:
        report, rows = json.loads((frozen / "metrics.json").read_text()), rows_of(frozen)
        for part, inside in (("test", rows["split"] == "test"), ("out_of_fold", rows["split"] != "test")):
            own = rows[inside & rows["tpsa"].notna()]
            held = own["tpsa"].between(own["predicted_tpsa_lower"], own["predicted_tpsa_upper"])
            assert report[part]["tpsa"]["interval_coverage"] == pytest.approx(held.mean())
            width = (own["predicted_tpsa_upper"] - own["predicted_tpsa_lower"]).mean()
            assert report[part]["tpsa"]["interval_width"] == pytest.approx(width)
        # Of the rows that it was fitted on it holds what it says, by construction.
        assert 0.88 <= report["out_of_fold"]["tpsa"]["interval_coverage"] <= 0.95

    def test_trained_members_lie_in_the_folder(self, trained: Path) -> None:
        assert sorted(path.name for path in (trained / "members").iterdir()) == ["1", "2"]
        models = [trained, trained / "members" / "1", trained / "members" / "2"]
        data = DRUGS[rows_of(trained)["split"] == "test"]
        whole = predicted(trained, data)
        # A member is a model like every other.
        each = [UniMol2ForPropertyPrediction.from_pretrained(folder).eval() for folder in models]
        extractor = pipeline("molecule-property-prediction", str(trained)).feature_extractor
        logits = np.stack([model(**extractor(data["smiles"].tolist())).logits[:, 0].tolist() for model in each])
        np.testing.assert_allclose(whole["predicted_tpsa"], logits.mean(axis=0), rtol=1e-4)
        np.testing.assert_allclose(whole["predicted_tpsa_spread"], logits.std(axis=0, ddof=1), rtol=1e-2)
        assert np.ptp(logits, axis=0).min() > 0
        own = rows_of(trained)[rows_of(trained)["split"] == "test"]
        for column in ("predicted_tpsa", "predicted_tpsa_lower", "predicted_polar", "predicted_polar_spread"):
            np.testing.assert_allclose(whole[column], own[column], rtol=1e-3)

    def test_seeds(self, tmp_path: Path) -> None:
        report = tuned(tmp_path / "m", seeds=2, epochs=1, learning_rate=1e-3)
        assert report["head"] == "finetuned"
        assert load_calibration(tmp_path / "m") is None
        made = predicted(tmp_path / "m", DRUGS)
        assert (made["predicted_tpsa_spread"] > 0).all()
        assert "predicted_tpsa_lower" not in made.columns
        np.testing.assert_allclose(made["predicted_tpsa"], rows_of(tmp_path / "m")["predicted_tpsa"], rtol=1e-3)

    def test_a_finished_member_is_not_trained_again(
        self, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original, left = train.train, [1]

        def killed(*args: Any, **kwargs: Any) -> Any:
            if not left:
                raise StoppedError
            left.pop()
            return original(*args, **kwargs)

        settings: dict[str, Any] = {"targets": ("tpsa", "polar"), "folds": 3, "epochs": 1, "learning_rate": 1e-3}
        monkeypatch.setattr(train, "train", killed)
        with pytest.raises(StoppedError):
            tuned(tmp_path / "m", **settings)
        left += [1, 1]
        report = tuned(tmp_path / "m", **settings)
        assert not left
        assert report == json.loads((trained / "metrics.json").read_text())

    @pytest.mark.parametrize("kind", ["frozen", "trained"])
    def test_everywhere_the_same(self, kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
        """By this package, saved as a pipeline, and by the Hub's copy of the code without it."""
        folder: Path = request.getfixturevalue(kind)
        pipe = pipeline("molecule-property-prediction", str(folder))
        expected = pipe(NEW)
        pipe.save_pretrained(tmp_path / "pipe")
        again = pipeline("molecule-property-prediction", str(tmp_path / "pipe"), trust_remote_code=True)
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        export_with_code(model, tmp_path / "code", pipe.feature_extractor)
        found = json.loads(
            run_without_the_package("predict.py", tmp_path / "code", json.dumps(NEW[:2]), where=tmp_path)
        )["pipeline"]
        for made in (again(NEW), [*found[:2], expected[2]]):
            for one, other in zip(made, expected, strict=True):
                for key in ("predictions", "spreads", "intervals", "nearest_similarity"):
                    assert (one[key] is None) == (other[key] is None)
                    if isinstance(other[key], dict):
                        for name, value in other[key].items():
                            assert one[key][name] == (
                                value if isinstance(value, str) else pytest.approx(value, rel=1e-3)
                            )

    def test_a_missing_member_is_named(self, trained: Path, tmp_path: Path) -> None:
        shutil.copytree(trained, tmp_path / "m")
        shutil.rmtree(tmp_path / "m" / "members" / "2")
        with pytest.raises(ModelError, match=r"ensemble of 3 models, of which members/2 cannot be loaded"):
            pipeline("molecule-property-prediction", str(tmp_path / "m"))


class TestSearch:
    def test_it_finds_a_rate_and_goes_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        original, calls = train.train, []

        def counted(prepared: Any, settings: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(settings)
            if len(calls) == killed_at:
                raise StoppedError
            return original(prepared, settings, *args, **kwargs)

        monkeypatch.setattr(train, "train", counted)
        search: dict[str, Any] = {"search": 3, "epochs": 2, "warmup": 0.1, "pooler_dropout": 0.1, "batch_size": 16}
        killed_at = 0
        report = tuned(tmp_path / "a", **search)
        assert len(calls) == 4
        assert {each.epochs for each in calls} == {2}
        assert calls[3].learning_rate in {each.learning_rate for each in calls[:3]}
        assert not (tmp_path / "a" / "checkpoints").exists()
        calls, killed_at = [], 2
        with pytest.raises(StoppedError):
            tuned(tmp_path / "b", **search)
        first, calls, killed_at = calls, [], 0
        assert tuned(tmp_path / "b", **search) == report
        # The trial that was killed, the last one, and the training.
        assert len(calls) == 3
        assert calls[0] == first[1]

    def test_nothing_left_to_search(self, tmp_path: Path) -> None:
        given: dict[str, Any] = {
            "learning_rate": 1e-3,
            "batch_size": 16,
            "epochs": 1,
            "pooler_dropout": 0.1,
            "warmup": 0.1,
        }
        with pytest.raises(SettingsError, match="nothing to search"):
            tuned(tmp_path / "m", search=2, **given)


class TestPackagedModel:
    def test_options_that_its_folder_does_not_name(self, tmp_path: Path) -> None:
        """Its featurizer was saved before there were standardisation and descriptors."""
        data = DRUGS.head(30).assign(smiles=[f"{smiles}.[Na+].[Cl-]" for smiles in DRUGS["smiles"][:30]])
        options = {"standardize": "largest-fragment", "num_conformers": 0, "include_2d": True}
        tuned(tmp_path / "m", data, scale=None, head="frozen", descriptors="rdkit", featurizer=options)
        assert UniMol2Config.from_pretrained(tmp_path / "m").num_descriptors > 200
        assert rows_of(tmp_path / "m")["note"].str.contains("standardised to").all()
        salt, base = predicted(tmp_path / "m", pd.DataFrame({"smiles": ["CCN.Cl", "CCN"]}))["predicted_tpsa"]
        assert salt == pytest.approx(base, rel=1e-6)  # the head's product rounds by a molecule's place in the batch


class TestAuto:
    @pytest.mark.parametrize(
        ("settings", "rows", "frozen"),
        [
            ({}, 100, True),
            ({}, 30, False),
            ({"folds": 5}, 30, False),
            ({"epochs": 3}, 100, False),
            ({"learning_rate": 1e-4}, 100, False),
            ({"search": 5}, 100, False),
            ({"seeds": 2}, 100, False),
            ({"class_weights": "balanced", "seed": 3}, 100, True),
            ({"head": "finetuned"}, 100, False),
            ({"head": "frozen"}, 30, True),
        ],
    )
    def test_by_table_and_options(
        self, settings: dict[str, Any], rows: int, frozen: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(members, "MOST_FROZEN_ROWS", rows)
        nothing_given = {"scale": None, "batch_size": 32}
        settings = {
            **nothing_given,
            "targets": ("polar",),
            "featurizer": {"num_conformers": 0, "include_2d": True},
        } | settings
        prepared = prepare(DRUGS, settings_of(**settings), QUIET)
        assert is_frozen(settings_of(**settings), prepared, UniMol2Config.from_scale("nano")) == frozen

    def test_a_large_model_gets_heads_on_one_encoder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(members, "MOST_FROZEN_ROWS", 10)
        settings = settings_of(scale=None, folds=3, featurizer={"num_conformers": 0, "include_2d": True})
        prepared = prepare(DRUGS, settings, QUIET)
        assert is_frozen(settings, prepared, UniMol2Config.from_scale("84m"))
        assert not is_frozen(settings, prepared, UniMol2Config.from_scale("nano"))


def test_members_leave_out_what_they_say() -> None:
    settings = settings_of(folds=4, epochs=1, featurizer={"num_conformers": 0, "include_2d": True})
    prepared = prepare(DRUGS, settings, QUIET)
    for frozen, count in ((True, 6), (False, 4)):
        planned = plan_members(settings, prepared, frozen)
        assert len(planned) == count
        assert planned.folds is not None
        for split, left_out in zip(planned.splits, planned.left_out, strict=True):
            unseen = np.isin(planned.folds, left_out)
            assert (split[unseen] == "").all()
            assert set(split[~unseen]) == ({"train", "test"} if frozen else {"train", "valid", "test"})
            assert ((split == "test") == (prepared.table.split == "test")).all()
