"""The endpoint's handler: the pipeline's answers, an error with a mend for every bad request, nothing else told."""

import ast
import json
import re
import shutil
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conformance import run_without_the_package
from conftest import MIXED_SMILES
from endpoint_server import ask, served
from hostile_cases.endpoint import NOT_JSON, RAW_BODIES, REFUSED_BODIES, REFUSED_OF_PROPERTIES, THREE, phenylenes
from rdkit import Chem
from rich.console import Console
from transformers import AutoModelForSequenceClassification, pipeline

from unimol2_hf import (
    NANO,
    UniMol2Config,
    UniMol2FeatureExtractor,
    UniMol2ForPreTraining,
    UniMol2ForPropertyPrediction,
    conformers,
    export_with_code,
    feature_extraction_unimol2,
)
from unimol2_hf.finetuning.finetune import finetune
from unimol2_hf.finetuning.settings import FinetuneSettings
from unimol2_hf.hub.repository import handler as handler_module
from unimol2_hf.hub.repository.handler import EndpointHandler, Limits
from unimol2_hf.settings_unimol2 import POOLINGS

pytestmark = pytest.mark.numerical

ROOT = Path(__file__).parents[2]
HANDLER = Path(handler_module.__file__)
SMILES = MIXED_SMILES[:6]
C60 = (
    "c12c3c4c5c1c1c6c7c2c2c8c3c3c9c4c4c%10c5c5c1c1c6c6c%11c7c2c2c7c8c3c3c8c9c4c4c9c%10c5c5c1c1c6c6c%11c2c2c7c3c3c8c4"
    "c4c9c5c1c1c6c2c3c41"
)
GAMMA_CYCLODEXTRIN = "C1%99OC(CO)C(C(O)C1O)O" + 6 * "C1OC(CO)C(C(O)C1O)O" + "C1OC(CO)C(C(O)C1O)O%99"
FERROCENE = "[CH]12[CH]3[CH]4[CH]5[CH]1[Fe]23451678[CH]2[CH]1[CH]6[CH]7[CH]28"
# A batch adds in another order than a molecule alone.
TOLERANCE = 1e-5
INTERNAL = re.compile(
    r"Traceback|\.py\b|\.cpp\b|site-packages|\w(Error|Exception|Violation)\b|<class|NoneType|object at"
)


@pytest.fixture(scope="module")
def embedder() -> EndpointHandler:
    return EndpointHandler(NANO)


@pytest.fixture(scope="module")
def predictor(property_dir: str) -> EndpointHandler:
    return EndpointHandler(property_dir)


@pytest.fixture
def of_ph(small_config: UniMol2Config, tmp_path: Path) -> EndpointHandler:
    """Of a model that reads a number besides."""
    small_config.set_targets([{"name": "logd", "kind": "regression", "mean": 2.0, "std": 3.0}])
    small_config.extra_features = [{"name": "ph", "mean": 7.0, "std": 1.0}]
    save(UniMol2ForPropertyPrediction(small_config), tmp_path)
    return EndpointHandler(str(tmp_path))


def save(model: Any, folder: Path) -> None:
    """As a model that was fitted: its bias is not zero."""
    torch.nn.init.normal_(model.classifier.out_proj.bias)
    model.save_pretrained(folder)
    UniMol2FeatureExtractor().save_pretrained(folder)


def assert_same_answers(answers: Any, results: list[dict[str, Any]]) -> None:
    """Of an endpoint, or of a pipeline: numbers to 1e-5 of a vector's largest, everything else exactly."""
    assert len(answers) == len(results)
    for answer, result in zip(answers, results, strict=True):
        assert answer.get("error_code") == result.get("error_code")
        if "error" in answer:
            continue
        json.dumps(answer, allow_nan=False)
        for name in answer.keys() - {"provenance"}:
            assert_same_values(answer[name], result[name])
        told = [(each["method"], each["is_3d"]) for each in result["provenance"]]
        assert [(each["method"], each["is_3d"]) for each in answer["provenance"]] == told


def assert_same_values(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert_same_values(ours[name], value)
    elif isinstance(theirs, str | None):
        assert ours == theirs
    else:
        expected = np.array(theirs)
        np.testing.assert_allclose(np.array(ours), expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def error_of(answer: Any) -> dict[str, Any]:
    """Of a bad request, or of the only molecule of a good one."""
    error: dict[str, Any] = answer if isinstance(answer, dict) else answer[0]
    assert isinstance(answer, dict) or len(answer) == 1
    assert error.keys() == {"error", "error_code"}
    return error


def assert_refused(handler: EndpointHandler, body: Any, code: str, message: str) -> None:
    error = error_of(handler(body))
    assert error["error_code"] == code
    assert message in error["error"]
    assert len(error["error"]) <= 500
    assert not INTERNAL.search(error["error"])
    assert str(ROOT) not in error["error"]


class TestAnswers:
    @pytest.mark.parametrize(
        "parameters",
        [{}, {"pooling": "layers_mean", "num_conformers": 2, "seed": 3}, {"pooling": "mean", "per_atom": True}],
        ids=["none", "pooling", "per_atom"],
    )
    def test_embeddings_are_the_pipelines(self, embedder: EndpointHandler, parameters: dict[str, Any]) -> None:
        expected = pipeline("molecule-embedding", NANO)([*SMILES, "C1CC"], **parameters)
        answers = embedder({"inputs": [*SMILES, "C1CC"], "parameters": parameters})
        assert_same_answers(answers, expected)
        assert ("atom_embeddings" in answers[0]) == ("per_atom" in parameters)

    @pytest.mark.parametrize("parameters", [{}, {"num_conformers": 3, "coverage": 0.5}], ids=["none", "conformers"])
    def test_predictions_are_the_pipelines(
        self, predictor: EndpointHandler, property_dir: str, parameters: dict[str, Any]
    ) -> None:
        expected = pipeline("molecule-property-prediction", property_dir)(SMILES, **parameters)
        answers = predictor({"inputs": SMILES, "parameters": parameters})
        assert_same_answers(answers, expected)
        assert answers[0].keys() == {"predictions", "probabilities", "provenance"}

    def test_a_molecule_in_every_form(self, embedder: EndpointHandler) -> None:
        pipe = pipeline("molecule-embedding", NANO)
        bare = {"atomic_numbers": [6, 6, 8], "coordinates": THREE}
        full = {**bare, "bonds": [[0, 1, 1], [1, 2, 1]], "formal_charges": [0, 0, 0]}
        forms: list[Any] = ["CCO", {"smiles": "CCO"}, {"molecule": "CCO"}, {"molecule": {"smiles": "CCO"}}, bare, full]
        answers = embedder({"inputs": forms})
        assert_same_answers(answers, pipe(["CCO"] * 4 + [bare, full]))
        assert [answer["provenance"][0]["method"] for answer in answers] == ["etkdg"] * 4 + ["given"] * 2
        for form, answer in zip(forms, answers, strict=True):
            assert_same_answers(embedder({"inputs": form}), [answer])

    @pytest.mark.parametrize("smiles", [C60, GAMMA_CYCLODEXTRIN, FERROCENE, phenylenes(10)])
    def test_a_real_molecule_of_many_rings_is_read(self, smiles: str) -> None:
        assert Chem.MolFromSmiles(smiles) is not None
        assert handler_module._read_molecule(smiles, Limits()) == smiles

    def test_numbers_besides_the_molecule(self, of_ph: EndpointHandler, tmp_path: Path) -> None:
        inputs = [{"molecule": "CCO", "features": {"ph": 6}}, {"molecule": {"smiles": "CCO"}, "features": {"ph": 8.5}}]
        pipe = pipeline("molecule-property-prediction", str(tmp_path))
        expected = pipe([{"molecule": "CCO", "features": {"ph": value}} for value in (6, 8.5)])
        answers = of_ph({"inputs": inputs})
        assert_same_answers(answers, expected)
        assert answers[0]["predictions"] != answers[1]["predictions"]

    def test_no_molecules(self, embedder: EndpointHandler) -> None:
        assert embedder({"inputs": []}) == []
        assert embedder({"inputs": [], "parameters": None}) == []

    def test_the_same_whatever_else_is_in_the_request(self, embedder: EndpointHandler) -> None:
        others = [*MIXED_SMILES[6:12], "C1CC", None, "C" * 300]
        together = [each for pair in zip(SMILES, others, strict=False) for each in pair]
        answers = embedder({"inputs": together})
        for smiles, answer in zip(together, answers, strict=True):
            if smiles in SMILES:
                assert_same_answers(embedder({"inputs": smiles}), [answer])

    def test_a_request_stays_as_it_was(self, embedder: EndpointHandler) -> None:
        body = {"inputs": ["CCO"], "parameters": {"seed": 3, "pooling": "mean"}}
        before = json.dumps(body)
        embedder(body)
        assert json.dumps(body) == before

    def test_what_is_not_finite_is_null(self, predictor: EndpointHandler, monkeypatch: pytest.MonkeyPatch) -> None:
        odd = {
            "predictions": {"y": 1.0},
            "spreads": {"y": float("nan")},
            "intervals": {"y": (-float("inf"), 2.0)},
            "vector": np.array([1.0, np.nan]),
            "provenance": [{"method": "etkdg", "is_3d": True, "note": "long"}],
            "error": None,
            "error_code": None,
        }
        monkeypatch.setattr(predictor._pipeline, "run_featurized", lambda *_, **__: iter([odd]))
        assert predictor({"inputs": "CCO"}) == [
            {
                "predictions": {"y": 1.0},
                "spreads": {"y": None},
                "intervals": {"y": [None, 2.0]},
                "vector": [1.0, None],
                "provenance": [{"method": "etkdg", "is_3d": True}],
            }
        ]

    def test_a_model_that_is_broken(self, of_ph: EndpointHandler) -> None:
        with torch.no_grad():
            of_ph._pipeline.model.classifier.out_proj.bias[0] = torch.nan
        body = {"inputs": {"molecule": "CCO", "features": {"ph": 7}}}
        assert_refused(of_ph, body, "not_finite", "output is not finite")


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "code", "message"),
        [row[1:] for row in (*REFUSED_BODIES, *NOT_JSON)],
        ids=[row[0] for row in (*REFUSED_BODIES, *NOT_JSON)],
    )
    def test_bodies(self, body: Any, code: str, message: str, embedder: EndpointHandler) -> None:
        assert_refused(embedder, body, code, message)

    @pytest.mark.parametrize(
        ("body", "code", "message"),
        [row[1:] for row in REFUSED_OF_PROPERTIES],
        ids=[row[0] for row in REFUSED_OF_PROPERTIES],
    )
    def test_bodies_to_a_model_of_properties(self, body: Any, code: str, message: str, of_ph: EndpointHandler) -> None:
        assert_refused(of_ph, body, code, message)

    def test_there_are_enough(self) -> None:
        assert len(REFUSED_BODIES) + len(NOT_JSON) + len(REFUSED_OF_PROPERTIES) + len(RAW_BODIES) >= 80

    def test_the_unexpected_is_logged_and_not_told(
        self, embedder: EndpointHandler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise KeyError("/secret/path")

        monkeypatch.setattr(embedder._pipeline, "run_featurized", fail)
        answer = embedder({"inputs": ["CCO"]})
        assert answer == {"error": "the request could not be answered", "error_code": "internal"}
        assert "/secret/path" in caplog.text
        monkeypatch.undo()
        # The model is free for the next request.
        assert "embedding" in embedder({"inputs": ["CCO"]})[0]

    def test_an_unexpected_molecule(
        self, embedder: EndpointHandler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(*_: Any) -> None:
            raise KeyError("/secret/path")

        monkeypatch.setattr(feature_extraction_unimol2, "graph_features", fail)
        assert_refused(embedder, {"inputs": ["CCO"]}, "unexpected", "the molecule could not be read")
        assert "/secret/path" in caplog.text

    def test_all_atoms_of_very_many_molecules(self, embedder: EndpointHandler, monkeypatch: pytest.MonkeyPatch) -> None:
        width = embedder._pipeline.model.config.hidden_size
        monkeypatch.setattr(handler_module, "LARGEST_ANSWER", 5 * width)
        answers = embedder({"inputs": ["CCO", "CC", "CCN"], "parameters": {"per_atom": True}})
        assert [answer.get("error_code") for answer in answers] == [None, None, "too_many"]
        assert len(embedder({"inputs": ["CCO", "CC", "CCN"]})[2]["embedding"]) == width


class TestTime:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
        """Stands still unless a test moves it."""
        clock = SimpleNamespace(now=1000.0)
        clock.monotonic = lambda: clock.now
        monkeypatch.setattr(handler_module, "time", clock)
        return clock

    def featurizing(
        self, handler: EndpointHandler, monkeypatch: pytest.MonkeyPatch, before: Callable[[Any, dict[str, Any]], None]
    ) -> None:
        """Call something with the molecule and its settings before each is featurised."""
        original = handler._pipeline.preprocess

        def preprocess(molecule: Any, **settings: Any) -> Any:
            before(molecule, settings)
            return original(molecule, **settings)

        monkeypatch.setattr(handler._pipeline, "preprocess", preprocess)

    def test_molecules_that_are_not_reached(
        self, embedder: EndpointHandler, clock: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limit = embedder._limits.seconds

        def pass_time(molecule: Any, settings: dict[str, Any]) -> None:
            clock.now += limit if molecule == "CCN" else 0

        self.featurizing(embedder, monkeypatch, pass_time)
        answers = embedder({"inputs": ["CCO", "C1CC", "CCN", "CCC", "C1CC"]})
        codes = [answer.get("error_code") for answer in answers]
        assert codes == [None, "smiles", None, "time_limit", "time_limit"]
        assert "send fewer molecules" in answers[3]["error"]
        assert_same_answers(embedder({"inputs": "CCO"}), answers[:1])

    def test_rdkit_gets_no_more_time_than_is_left(
        self, embedder: EndpointHandler, clock: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found: list[int] = []

        def note(molecule: Any, settings: dict[str, Any]) -> None:
            found.append(settings["embed_timeout"])
            clock.now += 20

        self.featurizing(embedder, monkeypatch, note)
        embedder({"inputs": ["C"] * 4})
        assert found == [50 // 8, 30 // 8, 10 // 8]

    def test_a_models_own_timeout_stays(self, embedder: EndpointHandler, monkeypatch: pytest.MonkeyPatch) -> None:
        found: list[int] = []
        self.featurizing(embedder, monkeypatch, lambda _, settings: found.append(settings["embed_timeout"]))
        monkeypatch.setattr(embedder._pipeline.feature_extractor, "embed_timeout", 2)
        embedder({"inputs": "C"})
        assert found == [2]

    @pytest.mark.parametrize("falls_back", [True, False])
    def test_the_clock_decides_no_conformer(
        self, embedder: EndpointHandler, monkeypatch: pytest.MonkeyPatch, falls_back: bool
    ) -> None:
        monkeypatch.setattr(conformers, "_embed", lambda *_: conformers.TIMED_OUT)
        monkeypatch.setattr(embedder._pipeline.feature_extractor, "allow_2d_fallback", falls_back)
        assert_refused(embedder, {"inputs": "CCO"}, "time_limit", "the time of the request was over")

    def test_a_model_that_stays_busy(
        self, embedder: EndpointHandler, clock: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def pass_time(*_: Any) -> None:
            clock.now += embedder._limits.seconds

        self.featurizing(embedder, monkeypatch, pass_time)
        until = threading.Event()
        embedder._model_thread.submit(until.wait)
        assert_refused(embedder, {"inputs": "CCO"}, "time_limit", "the time of the request was over")
        until.set()
        clock.now = 1000.0
        assert "embedding" in embedder({"inputs": "CCO"})[0]


class TestStart:
    def test_limits_of_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert Limits.from_environment() == Limits()
        monkeypatch.setenv("UNIMOL2_MAX_MOLECULES", "2")
        monkeypatch.setenv("UNIMOL2_MAX_SMILES_CHARACTERS", "9")
        monkeypatch.setenv("UNIMOL2_MAX_HEAVY_ATOMS", "8")
        monkeypatch.setenv("UNIMOL2_MAX_CONFORMERS", "1")
        monkeypatch.setenv("UNIMOL2_MAX_SECONDS", "7")
        assert Limits.from_environment() == Limits(2, 8, 9, 1, 7)
        handler = EndpointHandler(NANO)
        assert_refused(handler, {"inputs": ["C"] * 3}, "too_many", "3 molecules are more than 2")
        assert_refused(handler, {"inputs": "C" * 10}, "too_large", "10 characters; at most 9")
        assert_refused(handler, {"inputs": "C" * 9}, "too_large", "9 heavy atoms are more than 8")
        one = {"inputs": "C", "parameters": {"num_conformers": 2}}
        assert_refused(handler, one, "parameters", "from 1 to 1")
        assert "embedding" in handler({"inputs": "C" * 8})[0]

    @pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", "", "1e3", "9" * 5000])
    def test_a_bad_limit_is_named(self, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("UNIMOL2_MAX_SECONDS", value)
        with pytest.raises(ValueError, match=r"UNIMOL2_MAX_SECONDS is '.*'; use a whole number"):
            EndpointHandler(NANO)

    def test_a_models_own_limit_of_atoms(self, small_config: UniMol2Config, tmp_path: Path) -> None:
        small_config.set_targets([{"name": "logd", "kind": "regression"}])
        save(UniMol2ForPropertyPrediction(small_config), tmp_path)
        UniMol2FeatureExtractor(max_atoms=5).save_pretrained(tmp_path)
        handler = EndpointHandler(str(tmp_path))
        assert_refused(handler, {"inputs": "C" * 6}, "too_large", "6 heavy atoms are more than 5; leave the molecule")
        assert "predictions" in handler({"inputs": "C" * 5})[0]

    def test_the_repositorys_own_check(self, property_dir: str, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        shutil.copytree(property_dir, folder)
        # As a dataclass needs it, the file is a module that can be found.
        source = (
            "import dataclasses, json\n"
            "@dataclasses.dataclass\nclass Seen:\n    folder: 'str'\n    trusted: 'bool'\n"
            "class CheckFailed(ValueError): pass\n"
            "def check(folder, trust_remote_code):\n"
            "    seen = Seen(str(folder), trust_remote_code)\n"
            "    (folder / 'seen.json').write_text(json.dumps(dataclasses.asdict(seen)))\n"
        )
        (folder / "check_unimol2.py").write_text(source)
        assert "predictions" in EndpointHandler(str(folder))({"inputs": "CCO"})[0]
        assert json.loads((folder / "seen.json").read_text()) == {"folder": str(folder), "trusted": True}
        (folder / "check_unimol2.py").write_text(source + "    raise CheckFailed('model.safetensors is damaged')\n")
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
            EndpointHandler(str(folder))


class TestFile:
    def test_it_needs_what_its_requirements_and_the_image_have(self) -> None:
        nodes = list(ast.walk(ast.parse(HANDLER.read_text())))
        imported = {each.name for node in nodes if isinstance(node, ast.Import) for each in node.names}
        imported |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
        imported = {name.split(".")[0] for name in imported}
        assert imported - sys.stdlib_module_names == {"numpy", "rdkit", "transformers"}

    def test_requirements_are_the_packages(self) -> None:
        needed = (HANDLER.parent / "requirements.txt").read_text().split()
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        assert set(needed) < set(project["project"]["dependencies"])
        assert "hub/repository/*" in project["tool"]["setuptools"]["package-data"]["unimol2_hf"]

    def test_it_says_the_same_as_the_package(self) -> None:
        assert handler_module.POOLINGS == POOLINGS
        assert handler_module.TIMED_OUT == conformers.TIMED_OUT


class TestPublished:
    """Exported with its code, served where the package is not installed."""

    @pytest.fixture
    def nano(self, tmp_path: Path) -> Path:
        model = UniMol2ForPreTraining.from_pretrained(NANO)
        return export_with_code(model, tmp_path / "published", UniMol2FeatureExtractor.from_pretrained(NANO))

    @pytest.fixture
    def frozen(self, tmp_path: Path) -> Path:
        """Kernel heads on three folds, with intervals and the training molecules' fingerprints."""
        drugs = pd.read_csv(ROOT / "examples" / "drugs.csv").head(40)
        settings = FinetuneSettings(
            targets=("tpsa",), scale="micro", head="frozen", folds=3, split_method="random", num_workers=0
        )
        finetune(drugs, tmp_path / "fitted", settings, Console(quiet=True))
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "fitted")
        extractor = UniMol2FeatureExtractor.from_pretrained(tmp_path / "fitted")
        return export_with_code(model, tmp_path / "published", extractor)

    @pytest.fixture
    def ensemble(self, small_config: UniMol2Config, tmp_path: Path) -> Path:
        """Two models."""
        small_config.set_targets([{"name": "logd", "kind": "regression", "mean": 2.0, "std": 3.0}])
        small_config.num_members = 2
        for folder in (tmp_path / "fitted" / "members" / "1", tmp_path / "fitted"):
            save(UniMol2ForPropertyPrediction(small_config), folder)
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "fitted")
        return export_with_code(model, tmp_path / "published", UniMol2FeatureExtractor())

    @pytest.mark.parametrize(
        ("kind", "task", "names"),
        [
            ("nano", "molecule-embedding", {"embedding"}),
            (
                "frozen",
                "molecule-property-prediction",
                {"predictions", "spreads", "intervals", "nearest_similarity"},
            ),
            ("ensemble", "molecule-property-prediction", {"predictions", "spreads"}),
        ],
    )
    def test_it_answers_without_the_package(
        self, kind: str, task: str, names: set[str], tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        folder: Path = request.getfixturevalue(kind)
        shutil.copyfile(HANDLER, folder / "handler.py")
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        molecules = [*SMILES[:3], "C1CC"]
        bodies = [{"inputs": molecules}, {"inputs": SMILES[0], "parameters": {"top_k": 3}}]
        told = json.loads(run_without_the_package("serve.py", folder, json.dumps(bodies), where=elsewhere))
        pipe = pipeline(task, str(folder), trust_remote_code=True, device="cpu")
        assert_same_answers(told[0], pipe(molecules))
        assert told[0][0].keys() == {*names, "provenance"}
        assert told[1]["error_code"] == "parameters"


class TestOverHttp:
    CLIENTS, REQUESTS = 8, 10

    def test_many_clients_at_once(self, embedder: EndpointHandler) -> None:
        """Each gets the answers to its own molecules, bad requests among them."""
        known = {smiles: embedder({"inputs": smiles})[0] for smiles in SMILES}
        refused = [row for row in REFUSED_BODIES if row[0] in ("options", "unknown pooling", "too many")]

        def client(number: int) -> None:
            for turn in range(self.REQUESTS):
                if turn % 3 == 2:
                    _, body, code, _ = refused[(number + turn) % len(refused)]
                    status, answer = ask(port, body)
                    assert (status, answer["error_code"]) == (400, code)
                    continue
                own = [SMILES[(number + turn + offset) % len(SMILES)] for offset in range(1 + turn % 3)]
                status, answer = ask(port, {"inputs": [*own, "C1CC"]})
                assert status == 200
                assert_same_answers(answer[:-1], [known[smiles] for smiles in own])
                assert answer[-1]["error_code"] == "smiles"

        with served(embedder) as port, ThreadPoolExecutor(self.CLIENTS) as pool:
            assert len(list(pool.map(client, range(self.CLIENTS)))) == self.CLIENTS

    @pytest.mark.parametrize("body", [row[1] for row in RAW_BODIES], ids=[row[0] for row in RAW_BODIES])
    def test_what_is_no_json(self, body: bytes, embedder: EndpointHandler) -> None:
        with served(embedder) as port:
            status, answer = ask(port, body)
            assert status == 400
            assert answer["error"]
            assert ask(port, {"inputs": "C"})[0] == 200

    def test_a_handler_that_raises(self) -> None:
        """The emulator does not pass its fault off as a refusal."""
        with served(lambda body: body["inputs"]) as port:
            assert ask(port, {})[0] == 500
