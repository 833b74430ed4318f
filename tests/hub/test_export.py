"""A folder exported with its code loads in a clean process that has never heard of this package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import unimol2_hf
from unimol2_hf import UniMol2FeatureExtractor, UniMol2ForPropertyRegression, export_with_code
from unimol2_hf.models.registration import register

pytestmark = pytest.mark.numerical

SMILES = ["CCO", "CC(=O)Oc1ccccc1C(=O)O"]

CLEAN_PROCESS = """
import importlib.abc, json, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "unimol2_hf":
            raise ImportError("the package must not be needed")

sys.meta_path.insert(0, Refuse())
from transformers import (
    AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification, pipeline,
)

folder, smiles = sys.argv[1], json.loads(sys.argv[2])
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
classes = (AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification)
models = [cls.from_pretrained(folder, trust_remote_code=True).eval() for cls in classes]
pipe = pipeline("molecule-property-prediction", folder, trust_remote_code=True, device="cpu")
embedder = pipeline("molecule-embedding", folder, trust_remote_code=True, device="cpu")
print(json.dumps({
    "classes": [type(model).__name__ for model in models],
    "logits": models[2](**extractor(smiles)).logits.tolist(),
    "pipeline": pipe([*smiles, "C1CC"], batch_size=3),
    "embedding": embedder(smiles)[0]["embedding"].tolist(),
    "targets": config.target_names,
}))
"""

REFUSE = CLEAN_PROCESS.split("from transformers import", maxsplit=1)[0]
SAVE_AGAIN = (
    REFUSE
    + """
from transformers import AutoFeatureExtractor, AutoModelForSequenceClassification, Trainer, TrainingArguments

folder, saved = sys.argv[1:]
extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
arguments = TrainingArguments(saved, report_to="none", use_cpu=True)
Trainer(model, arguments, processing_class=extractor).save_model(saved)
"""
)


@pytest.fixture
def exported(property_model: UniMol2ForPropertyRegression, tmp_path: Path) -> Path:
    return export_with_code(property_model, tmp_path / "exported", UniMol2FeatureExtractor(seed=5))


def run_without_the_package(code: str, *arguments: str, where: Path) -> str:
    """The last line that a process prints which cannot import this package."""
    environment = {**os.environ, "HF_MODULES_CACHE": str(where / "modules")}
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=where, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return (result.stdout.splitlines() or [""])[-1]


@pytest.mark.parametrize("saved_again", [False, True])
def test_loads_in_a_clean_process_without_the_package(
    exported: Path, property_model: UniMol2ForPropertyRegression, tmp_path: Path, saved_again: bool
) -> None:
    """The published folder, and what such a process saves of it: code, pipelines and all."""
    if saved_again:
        (tmp_path / "first").mkdir()
        run_without_the_package(SAVE_AGAIN, str(exported), str(tmp_path / "again"), where=tmp_path / "first")
        exported = tmp_path / "again"
    answer = json.loads(run_without_the_package(CLEAN_PROCESS, str(exported), json.dumps(SMILES), where=tmp_path))
    assert answer["classes"] == ["UniMol2Model", "UniMol2ForPreTraining", "UniMol2ForPropertyPrediction"]
    batch = UniMol2FeatureExtractor(seed=5)(SMILES)
    with torch.no_grad():
        expected = property_model(**batch).logits
        embedding = property_model.unimol2(**batch).pooler_output[0]
    torch.testing.assert_close(torch.tensor(answer["logits"]), expected, rtol=1e-5, atol=1e-6)
    values = [list(row["predictions"].values()) for row in answer["pipeline"][:2]]
    torch.testing.assert_close(torch.tensor(values), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.tensor(answer["embedding"]), embedding, rtol=1e-5, atol=1e-6)
    assert answer["pipeline"][2]["predictions"] is None
    assert "RDKit cannot read it" in answer["pipeline"][2]["error"]
    assert answer["targets"] == ["target_0", "target_1", "target_2"]


def test_export_holds_code_config_and_weights_only(exported: Path) -> None:
    """The root of the package is what the Hub copies, and nothing else."""
    of_package = {"__init__.py", "__main__.py", "py.typed"}
    code = {path.name for path in Path(unimol2_hf.__file__).parent.iterdir() if path.is_file()} - of_package
    assert {path.name for path in exported.iterdir()} == {
        *code,
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    assert set(json.loads((exported / "config.json").read_text())["auto_map"]) == {
        "AutoConfig",
        "AutoFeatureExtractor",
        "AutoModel",
        "AutoModelForPreTraining",
        "AutoModelForSequenceClassification",
    }


def test_plain_saving_carries_no_code(
    property_model: UniMol2ForPropertyRegression, exported: Path, tmp_path: Path
) -> None:
    # Exporting must not leave the classes in a state where every checkpoint carries source files.
    property_model.save_pretrained(tmp_path / "plain")
    assert not list((tmp_path / "plain").glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "plain" / "config.json").read_text())


def test_registering_twice_is_harmless() -> None:
    register()
    register()


def test_importing_the_package_registers_everything(
    property_model: UniMol2ForPropertyRegression, tmp_path: Path
) -> None:
    property_model.save_pretrained(tmp_path)
    UniMol2FeatureExtractor().save_pretrained(tmp_path)
    code = (
        "import sys, unimol2_hf; from transformers import *; folder = sys.argv[1];"
        "print(type(AutoConfig.from_pretrained(folder)).__name__, type(AutoModel.from_pretrained(folder)).__name__,"
        "type(AutoFeatureExtractor.from_pretrained(folder)).__name__,"
        "type(pipeline('molecule-property-prediction', folder)).__name__)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [
        "UniMol2Config",
        "UniMol2Model",
        "UniMol2FeatureExtractor",
        "MoleculePropertyPipeline",
    ]
