"""Exported programs give the model's answers for any number and size of molecules, and need no torch to run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run_command
from conformance import run_without_the_package
from conftest import MIXED_SMILES
from oracle import relative_difference
from torch import Tensor
from transformers.dynamic_module_utils import get_imports
from transformers.exporters import ExportedModel

from unimol2_hf import (
    ModelError,
    OutputFolderError,
    SettingsError,
    UniMol2Config,
    UniMol2FeatureExtractor,
    UniMol2ForPreTraining,
    UniMol2ForPropertyPrediction,
    UniMol2Model,
)
from unimol2_hf.hub import exporters
from unimol2_hf.hub.exporters import FLOAT32, export_program
from unimol2_hf.hub.settings import ExportSettings, ProgramKind
from unimol2_hf.modeling_unimol2 import NUM_QUANTILES

pytestmark = pytest.mark.numerical

OUTPUTS: dict[str, Any] = {
    "pretrained": (UniMol2Model, ["pooler_output", "last_hidden_state"]),
    "kernel": (UniMol2ForPropertyPrediction, ["logits", "member_logits"]),
}
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pair_hidden_size": 16,
    "pair_inner_size": 8,
}
TARGETS: list[dict[str, Any]] = [
    {"name": "logd", "kind": "regression", "mean": 1.0, "std": 2.0},
    {"name": "phase", "kind": "multiclass", "classes": ["gas", "liquid", "solid"]},
]
EXTRA = [{"name": "ph", "mean": 7.0, "std": 1.5}]
DESCRIPTORS = ("MolWt", "MolLogP", "RingCount")
# One molecule and many; of a single atom, of 2, of 60; more molecules than were traced, and fewer.
BATCHES = (["C"], ["CO"], MIXED_SMILES[:3], [*MIXED_SMILES[3:8], "O", "C" * 60])
Export = Callable[[str, str], Path]


def saved(model: Any, folder: Path, extractor: UniMol2FeatureExtractor) -> None:
    """The model with a head that is not new."""
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if name.startswith("classifier.") and "quantiles" not in name:
            weight.data += 0.3 * torch.randn(weight.shape, generator=generator).abs()
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)


def property_model(**changes: Any) -> UniMol2ForPropertyPrediction:
    config = UniMol2Config(**{**SIZES, **changes})
    config.set_targets(TARGETS)
    return UniMol2ForPropertyPrediction(config)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a pretrained model, of kernel heads that read all that a head can, and of an ensemble."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    plain = UniMol2FeatureExtractor(num_conformers=0, include_2d=True)
    saved(UniMol2ForPreTraining(UniMol2Config(**SIZES)), folder / "pretrained", plain)
    reading = {"extra_features": EXTRA, "num_descriptors": len(DESCRIPTORS), "classifier_pooling": "layers_mean"}
    kernel = property_model(head_type="kernel", num_centers=5, num_members=2, **reading)
    # Weights of molecules, logP, and counts of rings, of which many are equal.
    steps = torch.linspace(0, 1, NUM_QUANTILES)
    kernel.classifier.descriptor_scale.quantiles.data = torch.stack([400 * steps, 9 * steps - 3, (4 * steps).round()])
    describing = UniMol2FeatureExtractor(DESCRIPTORS, num_conformers=0, include_2d=True)
    saved(kernel, folder / "kernel", describing)
    saved(property_model(num_members=2), folder / "ensemble", plain)
    saved(property_model(), folder / "ensemble" / "members" / "1", plain)
    return folder


@pytest.fixture(scope="module")
def export(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """A model's program of a kind, written once."""
    folder = tmp_path_factory.mktemp("programs")

    def exported(model: str, kind: str) -> Path:
        path = folder / f"{model}_{kind}"
        if not path.exists():
            told = run_command("export", models / model, path, "--to", kind)
            assert told.exit_code == 0, told.output
        return path

    return exported


def batch_of(folder: Path, smiles: list[str]) -> dict[str, Tensor]:
    return dict(UniMol2FeatureExtractor.from_pretrained(folder)(smiles))


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    assert all(found[name].shape == tensor.shape for name, tensor in expected.items())
    return max(relative_difference(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("pretrained", "torch"),
        ("pretrained", "onnx"),
        ("kernel", "onnx"),
        ("kernel", "openvino"),
        pytest.param("pretrained", "openvino", marks=pytest.mark.slow),
        pytest.param("kernel", "torch", marks=pytest.mark.slow),
    ],
)
def test_a_program_gives_the_answers_of_the_model(models: Path, export: Export, model: str, kind: ProgramKind) -> None:
    program = ExportedModel.from_pretrained(export(model, kind), device="cpu", **FLOAT32[kind])
    model_class, names = OUTPUTS[model]
    eager = model_class.from_pretrained(models / model).eval()
    for smiles in BATCHES:
        batch = batch_of(models / model, smiles)
        if model == "kernel":
            batch["extra_features"] = torch.linspace(5.0, 9.0, len(smiles)).unsqueeze(-1)
        with torch.no_grad():
            output = eager(**batch)
        assert largest_difference(program(**batch), {name: output[name] for name in names}) <= 1e-5


def test_an_ensemble_is_one_program(models: Path, export: Export) -> None:
    program = ExportedModel.from_pretrained(export("ensemble", "torch"), device="cpu")
    folders = (models / "ensemble", models / "ensemble" / "members" / "1")
    members = [UniMol2ForPropertyPrediction.from_pretrained(folder).eval() for folder in folders]
    batch = batch_of(models / "ensemble", MIXED_SMILES[:3])
    with torch.no_grad():
        logits = torch.stack([member(**batch).logits for member in members], dim=1)
    assert relative_difference(logits[:, 0], logits[:, 1]) > 1e-2
    assert largest_difference(program(**batch), {"logits": logits.mean(1), "member_logits": logits}) <= 1e-5


@pytest.mark.parametrize(
    ("model", "kind", "files"),
    [
        ("ensemble", "torch", {"model.pt2"}),
        ("kernel", "onnx", {"model.onnx", "model.onnx.data"}),
        ("kernel", "openvino", {"openvino_model.xml", "openvino_model.bin"}),
    ],
)
def test_a_folder_holds_program_and_feature_extractor(export: Export, model: str, kind: str, files: set[str]) -> None:
    folder = export(model, kind)
    code = {path.name for path in folder.glob("*.py")}
    others = {"config.json", "preprocessor_config.json", "export.json"}
    assert {path.name for path in folder.iterdir()} == code | others | files
    assert json.loads((folder / "config.json").read_text())["targets"] == TARGETS
    assert {"feature_extraction_unimol2.py", "configuration_unimol2.py"} <= code
    # From the Hub, Transformers asks for whatever any of the files imports.
    assert "torch" not in {name for path in folder.glob("*.py") for name in get_imports(path)}


@pytest.mark.parametrize("conformers", [0, 3])
def test_the_example_runs_without_torch(models: Path, export: Export, tmp_path: Path, conformers: int) -> None:
    """Each molecule's mean over what its extractor makes: here a 2D conformer, and 3D ones besides."""
    script = Path(__file__).parents[2] / "examples" / "run_onnx.py"
    smiles = ["CCO", "C", "CC(=O)Oc1ccccc1C(=O)O"]
    folder = tmp_path / "program"
    shutil.copytree(export("pretrained", "onnx"), folder)
    extractor = UniMol2FeatureExtractor.from_pretrained(folder, num_conformers=conformers)
    extractor.save_pretrained(folder)
    told = run_without_the_package("without_torch.py", script, folder, *smiles, where=tmp_path)
    with torch.no_grad():
        model = UniMol2Model.from_pretrained(models / "pretrained").eval()
        expected = torch.stack([model(**extractor(each)).pooler_output.mean(0) for each in smiles])
    found = json.loads(told)
    assert list(found) == smiles
    assert relative_difference(torch.tensor(list(found.values())), expected) <= 1e-5


class TestRefused:
    def test_a_program_that_differs_is_not_written(
        self, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(exporters, "LARGEST_DIFFERENCE", -1.0)
        with pytest.raises(ModelError, match=r"torch program of .* differs from the model by"):
            export_program(str(models / "pretrained"), tmp_path / "out", ExportSettings(to="torch"), quiet())
        assert not list(tmp_path.iterdir())

    def test_a_folder_with_something_in_it(self, models: Path, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("mine")
        with pytest.raises(OutputFolderError, match="exists already"):
            export_program(str(models / "pretrained"), tmp_path, ExportSettings(to="torch"), quiet())
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

    @pytest.mark.parametrize("kind", ["onnx", "openvino"])
    def test_a_missing_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
        monkeypatch.setattr(exporters, "find_spec", lambda name: None if name == kind else object())
        with pytest.raises(SettingsError, match=rf'needs {kind}; pip install "unimol2-hf\[export\]"'):
            export_program("unimol2-nano", tmp_path / "out", ExportSettings(to=kind), quiet())

    def test_what_cannot_be_traced(self, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(UniMol2Model, "forward", lambda self, input_ids, **others: input_ids.nonzero().tolist())
        with pytest.raises(ModelError, match="pretrained cannot be exported to torch: "):
            export_program(str(models / "pretrained"), tmp_path / "out", ExportSettings(to="torch"), quiet())

    def test_an_ensemble_without_a_member(self, models: Path, tmp_path: Path) -> None:
        shutil.copytree(models / "ensemble", tmp_path / "alone", ignore=shutil.ignore_patterns("members"))
        with pytest.raises(ModelError, match=r"of which members/1 cannot be loaded"):
            export_program(str(tmp_path / "alone"), tmp_path / "out", ExportSettings(to="torch"), quiet())


def quiet() -> Any:
    from rich.console import Console

    return Console(quiet=True)
