"""The pretrained model that comes with the package: it loads offline, and knows more than random weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForPreTraining, pipeline

from unimol2_hf import NANO, UniMol2Config, UniMol2FeatureExtractor
from unimol2_hf.finetuning.settings import FinetuneSettings
from unimol2_hf.jobs.embed import EmbedJob
from unimol2_hf.jobs.settings import EmbedSettings
from unimol2_hf.models.packaged import resolve_model
from unimol2_hf.pretraining.collator import DataCollatorForUniMol2Pretraining
from unimol2_hf.pretraining.losses import validation_metrics, validation_sums
from unimol2_hf.settings_unimol2 import NANO_NAME, SCALES

pytestmark = pytest.mark.numerical

DRUGS = Path(__file__).parents[2] / "examples" / "drugs.csv"
CARBON = 6


@pytest.fixture(scope="module")
def noised() -> list[Any]:
    """Masked and noised drugs, two batches."""
    smiles = pd.read_csv(DRUGS)["smiles"].head(60)
    molecules = [next(iter(molecule.model_inputs())) for molecule in UniMol2FeatureExtractor().featurize(smiles)]
    rows = [
        {
            "smiles": text,
            "atomic_numbers": inputs["input_ids"],
            "conformers": [inputs["coordinates"].ravel()],
            "row": number,
        }
        for number, (text, inputs) in enumerate(zip(smiles, molecules, strict=True))
    ]
    collator = DataCollatorForUniMol2Pretraining(seed=3)
    return [collator(rows[start : start + 30]) for start in (0, 30)]


def test_it_predicts_masked_elements_and_moves_atoms_back(noised: list[Any]) -> None:
    model = AutoModelForPreTraining.from_pretrained(NANO).eval()
    found = validation_metrics(validation_sums(model, noised))
    labels = torch.cat([batch["labels"].flatten() for batch in noised])
    masked = labels[labels >= 0]
    always_carbon = float((masked == CARBON).float().mean())
    # Half of the samples have no graph, so perfection is out of reach.
    assert found["token_accuracy"] > always_carbon + 0.05
    assert found["coordinate_rmse"] < 0.85 * found["noise_rmse"]


def test_it_is_small_and_whole() -> None:
    folder = Path(NANO)
    weights = folder / "model.safetensors"
    assert weights.stat().st_size < 10 * 2**20
    with safe_open(weights, framework="pt") as file:
        assert {str(file.get_slice(name).get_dtype()) for name in file.keys()} == {"F16"}  # noqa: SIM118 - no mapping
    config = json.loads((folder / "config.json").read_text())
    published = UniMol2Config()
    assert config["hidden_dropout_prob"] == published.hidden_dropout_prob
    assert config["pair_dropout_prob"] == published.pair_dropout_prob
    card = (folder / "README.md").read_text()
    assert "library_name: transformers" in card
    for heading in ("## Data", "## Training", "## What it is not"):
        assert heading in card


def test_it_embeds_offline() -> None:
    extractor, model = AutoFeatureExtractor.from_pretrained(NANO), AutoModel.from_pretrained(NANO)
    direct = model(**extractor(["CCO"])).pooler_output[0].detach().numpy()
    piped = pipeline("molecule-embedding", NANO, device="cpu")("CCO")["embedding"]
    # Of the largest component: some kernels add up in another order at another address.
    np.testing.assert_allclose(piped, direct, atol=1e-6 * np.abs(direct).max())


def test_nothing_is_reported_as_unexpected() -> None:
    _, loading = AutoModel.from_pretrained(NANO, output_loading_info=True)
    assert not any(loading[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_every_default_is_it() -> None:
    assert FinetuneSettings(targets=("a",)).model == NANO_NAME
    assert EmbedSettings().model == NANO_NAME
    config = EmbedJob(EmbedSettings(device="cpu"), Path(), model="unimol2-nano").pipeline.model.config
    assert {name: getattr(config, name) for name in SCALES["nano"]} == SCALES["nano"]


def test_names_are_resolved() -> None:
    assert resolve_model("UniMol2-nano") == NANO
    assert resolve_model("org/unimol2-84m") == "org/unimol2-84m"
    assert resolve_model("nano") == "nano"
