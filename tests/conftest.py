"""Shared fixtures. Nothing here reaches the network, and nothing outside the repository is read."""

import os

from compiler_cache import compiler_cache

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = compiler_cache()

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import hub  # noqa: F401 - a fixture
from rich.console import Console
from safetensors.torch import load_file

from unimol2_hf import (
    UniMol2Config,
    UniMol2FeatureExtractor,
    UniMol2ForPreTraining,
    UniMol2ForPropertyPrediction,
    UniMol2ForPropertyRegression,
)
from unimol2_hf.data.settings import CACHE_VARIABLE
from unimol2_hf.hub.convert import ReferenceCheckpoint, convert_checkpoint, load_reference_checkpoint
from unimol2_hf.jobs.build_conformers import build_conformers
from unimol2_hf.jobs.settings import BuildSettings

GOLDEN = Path(__file__).parent / "golden"

# Mixed in size, charge, ring systems, fragments and stereo; what invariance is tested on.
MIXED_SMILES = (GOLDEN.parent / "files" / "mixed_64.smi").read_text().split()


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _own_conformer_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ[CACHE_VARIABLE] = str(tmp_path_factory.mktemp("conformers"))


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    """Outputs of the reference for the tiny checkpoint."""
    return load_file(GOLDEN / "tiny_outputs.safetensors")


@pytest.fixture(scope="session")
def golden_info() -> dict[str, Any]:
    info: dict[str, Any] = json.loads((GOLDEN / "tiny.json").read_text())
    return info


@pytest.fixture(scope="session")
def extractor() -> UniMol2FeatureExtractor:
    return UniMol2FeatureExtractor()


@pytest.fixture(scope="session")
def tiny_checkpoint() -> ReferenceCheckpoint:
    return load_reference_checkpoint(GOLDEN / "tiny_checkpoint.pt")


@pytest.fixture
def pretraining_model() -> UniMol2ForPreTraining:
    """The tiny checkpoint with its pretraining heads, in eval mode."""
    checkpoint = load_reference_checkpoint(GOLDEN / "tiny_checkpoint.pt", ignore_head=True)
    model = convert_checkpoint(checkpoint)
    assert isinstance(model, UniMol2ForPreTraining)
    return model


@pytest.fixture
def property_model(tiny_checkpoint: ReferenceCheckpoint) -> UniMol2ForPropertyRegression:
    """The tiny checkpoint with its task head of three outputs, in eval mode."""
    model = convert_checkpoint(tiny_checkpoint)
    assert isinstance(model, UniMol2ForPropertyRegression)
    return model


@pytest.fixture(scope="session")
def property_dir(tmp_path_factory: pytest.TempPathFactory, extractor: UniMol2FeatureExtractor) -> str:
    """Folder of a model with a number and three classes, and a fitted head as far as anyone can tell."""
    torch.manual_seed(0)
    config = UniMol2Config.from_scale("micro")
    phase = {"name": "phase", "kind": "multiclass", "classes": ["gas", "liquid", "solid"]}
    config.set_targets([{"name": "logd", "kind": "regression", "mean": 1.0, "std": 2.0}, phase])
    model = UniMol2ForPropertyPrediction(config)
    torch.nn.init.normal_(model.classifier.out_proj.bias)
    folder = str(tmp_path_factory.mktemp("property"))
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


@pytest.fixture
def small_config() -> UniMol2Config:
    """A model of a few thousand parameters with every kind of part."""
    return UniMol2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        pair_hidden_size=16,
        pair_inner_size=8,
        num_labels=2,
    )


@pytest.fixture(scope="session")
def mixed_rows(extractor: UniMol2FeatureExtractor) -> list[dict[str, Any]]:
    """Unpadded model inputs of 64 mixed molecules."""
    return [next(iter(result.model_inputs())) for result in extractor.featurize(MIXED_SMILES)]


@pytest.fixture(scope="session")
def library_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 molecules in shards of 8, two of them failures."""
    folder = tmp_path_factory.mktemp("library")
    smiles = [*MIXED_SMILES[:38], "C1CC", ""]
    (folder / "in.csv").write_text("smiles\n" + "".join(f"{each}\n" for each in smiles) + "CCO\n")
    settings = BuildSettings(num_conformers=3, rows_per_shard=8, num_workers=0)
    build_conformers(folder / "in.csv", folder, settings, Console(quiet=True))
    return folder
