"""A folder exported with its code loads in a clean process that has never heard of this package."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conformance import run_without_the_package
from oracle import relative_difference

import unimol2_hf
from unimol2_hf import UniMol2FeatureExtractor, UniMol2ForPropertyRegression, export_with_code
from unimol2_hf.models.registration import register

pytestmark = pytest.mark.numerical

SMILES = ["CCO", "c1ccccc1"]


@pytest.fixture
def exported(property_model: UniMol2ForPropertyRegression, tmp_path: Path) -> Path:
    return export_with_code(property_model, tmp_path / "exported", UniMol2FeatureExtractor(seed=5))


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Where another process keeps its modules."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


def test_loads_in_a_clean_process_without_the_package(
    exported: Path, property_model: UniMol2ForPropertyRegression, elsewhere: Path
) -> None:
    answer = json.loads(run_without_the_package("predict.py", exported, json.dumps(SMILES), where=elsewhere))
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


@pytest.mark.parametrize("mode", ["plain", "checkpointing", "lora"])
def test_trained_without_the_package_it_predicts_the_same_elsewhere(
    property_model: UniMol2ForPropertyRegression, tmp_path: Path, elsewhere: Path, mode: str
) -> None:
    """The stock collator and Trainer, in one process and in two; the saved folder in a third, and in ours."""
    property_model.config.update({f"{part}_dropout_prob": 0.0 for part in ("hidden", "attention_probs", "pair")})
    exported = export_with_code(property_model, tmp_path / "exported", UniMol2FeatureExtractor(seed=5))
    one, two = tmp_path / "one", tmp_path / "two"
    alone = json.loads(run_without_the_package("fine_tune.py", exported, one, 4, mode, where=tmp_path))
    both = json.loads(run_without_the_package("fine_tune.py", exported, two, 2, mode, where=tmp_path, processes=2))
    assert len(alone["losses"]) == 3
    # Two processes, half of each batch in each: the one process.
    assert both["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    answer = json.loads(run_without_the_package("predict.py", one, json.dumps(SMILES), where=elsewhere))
    logits, by_trainer = torch.tensor(answer["logits"]), torch.tensor(alone["predictions"][:2])
    torch.testing.assert_close(logits, by_trainer, rtol=1e-4, atol=1e-5)
    values = [list(row["predictions"].values()) for row in answer["pipeline"][:2]]
    torch.testing.assert_close(torch.tensor(values), logits, rtol=1e-4, atol=1e-5)
    ours = UniMol2ForPropertyRegression.from_pretrained(one).eval()
    batch = UniMol2FeatureExtractor.from_pretrained(one)(SMILES)
    torch.testing.assert_close(ours(**batch).logits, logits, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert relative_difference(logits, property_model(**batch).logits) > 1e-3


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
        "import sys, unimol2_hf; folder = sys.argv[1];"
        "from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, pipeline;"
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
