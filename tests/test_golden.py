"""Equality with the tensors that the public reference computed (tests/golden)."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from oracle import relative_difference
from rdkit import Chem
from torch import Tensor

from unimol2_hf import (
    UniMol2Config,
    UniMol2FeatureExtractor,
    UniMol2ForPreTraining,
    UniMol2ForPropertyRegression,
)
from unimol2_hf.hub.convert import ReferenceCheckpoint, key_plan

pytestmark = pytest.mark.numerical

TOLERANCE = 1e-5
FEATURE_NAMES = {
    "atom_token": "input_ids",
    "atom_feat": "atom_features",
    "degree": "degrees",
    "edge_feat": "edge_features",
    "shortest_path": "shortest_paths",
    "pair_type": "pair_types",
}
SMILES: list[str] = json.loads((GOLDEN / "features.json").read_text())["smiles"]
LAYOUT = json.loads((GOLDEN / "checkpoint_layout.json").read_text())
# The first one is methane: one atom, whose distances and shifts are all zero.
TINY_MOLECULES = range(8)

Golden = dict[str, Tensor]


@pytest.fixture(scope="session")
def extractor() -> UniMol2FeatureExtractor:
    """The reference's order of the atoms."""
    return UniMol2FeatureExtractor(atom_order="as_written")


@pytest.fixture(scope="module")
def features() -> Any:
    return np.load(GOLDEN / "features.npz")


@pytest.mark.parametrize(("index", "smiles"), list(enumerate(SMILES)), ids=SMILES)
def test_features_equal_the_references(
    index: int, smiles: str, features: Any, extractor: UniMol2FeatureExtractor
) -> None:
    # The 2D conformer keeps this test about features; coordinates have their own.
    result = next(extractor.featurize(smiles, num_conformers=0, include_2d=True))
    assert result.features is not None, result.error
    for golden_name, name in FEATURE_NAMES.items():
        np.testing.assert_array_equal(result.features[name], features[f"{index:03d}/{golden_name}"], err_msg=name)


def test_conformers_equal_the_references(
    golden: Golden, golden_info: dict[str, Any], extractor: UniMol2FeatureExtractor
) -> None:
    for index, smiles in enumerate(golden_info["smiles"]):
        coordinates = extractor(smiles)["coordinates"][0]
        torch.testing.assert_close(coordinates, golden[f"mol{index}/coordinates"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", list(LAYOUT))
def test_parameter_totals_equal_the_published(scale: str) -> None:
    with torch.device("meta"):
        model = UniMol2ForPreTraining(UniMol2Config.from_scale(scale))
    assert sum(parameter.numel() for parameter in model.parameters()) == LAYOUT[scale]["parameters"]


@pytest.mark.parametrize("scale", list(LAYOUT))
def test_every_published_tensor_has_its_place(scale: str) -> None:
    with torch.device("meta"):
        model = UniMol2ForPreTraining(UniMol2Config.from_scale(scale))
    layout = LAYOUT[scale]
    shapes = {name: shape for name, shape in layout["outside_layers"].items() if name not in layout["buffers"]}
    for layer in range(layout["layers"]):
        per_layer = layout["each_layer (prefix encoder.layers.<i>.)"]
        shapes |= {f"encoder.layers.{layer}.{name}": shape for name, shape in per_layer.items()}
    plan = key_plan(layout["layers"])
    converted = plan.convert({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in converted.items()} == own
    assert {name for names in plan.sources.values() for name in names} == set(shapes)


def molecule_inputs(extractor: UniMol2FeatureExtractor, smiles: str, coordinates: Tensor, **kwargs: Any) -> Any:
    """One unpadded row whose coordinates are exactly the golden ones."""
    result = next(extractor.featurize(smiles, num_conformers=0, include_2d=True, **kwargs))
    assert result.features is not None, result.error
    return {**result.features, "coordinates": coordinates.numpy()}


@pytest.mark.parametrize("index", TINY_MOLECULES)
def test_single_molecules_equal_the_reference(
    index: int,
    golden: Golden,
    golden_info: dict[str, Any],
    extractor: UniMol2FeatureExtractor,
    pretraining_model: UniMol2ForPreTraining,
    property_model: UniMol2ForPropertyRegression,
) -> None:
    row = molecule_inputs(extractor, golden_info["smiles"][index], golden[f"mol{index}/coordinates"])
    batch = extractor.pad([row])
    with torch.no_grad():
        encoded = pretraining_model.unimol2(**batch)
        pretraining = pretraining_model(**batch)
        predictions = property_model(**batch).logits
    actual = {
        "atom": encoded.last_hidden_state,
        "pair": encoded.pair_hidden_state,
        "token_logits": pretraining.token_logits,
        "coord": pretraining.predicted_coordinates,
        "distance": pretraining.predicted_distances,
        "head": predictions,
    }
    assert relative_difference(encoded.pooler_output[0], golden[f"mol{index}/atom"][0]) <= TOLERANCE
    for name, tensor in actual.items():
        assert relative_difference(tensor[0], golden[f"mol{index}/{name}"]) <= TOLERANCE, name


@pytest.mark.parametrize("index", [1, 2])
def test_dropped_graph_features_equal_the_reference(
    index: int,
    golden: Golden,
    golden_info: dict[str, Any],
    extractor: UniMol2FeatureExtractor,
    pretraining_model: UniMol2ForPreTraining,
) -> None:
    coordinates = golden[f"mol{index}/coordinates"]
    row = molecule_inputs(extractor, golden_info["smiles"][index], coordinates, use_graph_features=False)
    batch = extractor.pad([row])
    with torch.no_grad():
        encoded = pretraining_model.unimol2(**batch)
        predicted = pretraining_model(**batch).predicted_coordinates
    assert relative_difference(encoded.last_hidden_state[0], golden[f"dropped{index}/atom"]) <= TOLERANCE
    assert relative_difference(encoded.pair_hidden_state[0], golden[f"dropped{index}/pair"]) <= TOLERANCE
    assert relative_difference(predicted[0], golden[f"dropped{index}/coord"]) <= TOLERANCE


def test_arrays_without_bonds_equal_the_references_dropped_features(
    golden: Golden,
    golden_info: dict[str, Any],
    extractor: UniMol2FeatureExtractor,
    pretraining_model: UniMol2ForPreTraining,
) -> None:
    atoms = Chem.MolFromSmiles(golden_info["smiles"][1]).GetAtoms()
    numbers = [atom.GetAtomicNum() for atom in atoms]
    batch = extractor((numbers, golden["mol1/coordinates"].numpy()))
    with torch.no_grad():
        encoded = pretraining_model.unimol2(**batch)
    assert relative_difference(encoded.last_hidden_state[0], golden["dropped1/atom"]) <= TOLERANCE


def test_padded_batch_equals_the_reference_with_its_normaliser(
    golden: Golden,
    golden_info: dict[str, Any],
    extractor: UniMol2FeatureExtractor,
    pretraining_model: UniMol2ForPreTraining,
    property_model: UniMol2ForPropertyRegression,
) -> None:
    for model in (pretraining_model, property_model):
        model.config.length_normalizer = "padded"
    rows = [
        molecule_inputs(extractor, smiles, golden[f"mol{index}/coordinates"])
        for index, smiles in enumerate(golden_info["smiles"])
    ]
    # The reference pads its sequence to a multiple of four.
    batch = extractor.pad(rows, padding="max_length", max_length=golden["batch/atom_mask"].shape[1])
    mask = batch["attention_mask"].bool()
    assert torch.equal(mask, golden["batch/atom_mask"].bool())
    with torch.no_grad():
        encoded = pretraining_model.unimol2(**batch)
        pretraining = pretraining_model(**batch)
        predictions = property_model(**batch).logits
    positions = torch.nn.functional.pad(mask, (1, 0), value=True)
    pair_mask = positions.unsqueeze(1) & positions.unsqueeze(2)
    atom_pairs = mask.unsqueeze(1) & mask.unsqueeze(2)
    # Padding holds no answer, in the reference either; only real atoms and pairs are compared.
    compared = {
        "atom": (encoded.last_hidden_state[positions], golden["batch/atom"][positions]),
        "pair": (encoded.pair_hidden_state[pair_mask], golden["batch/pair"][pair_mask]),
        "token_logits": (pretraining.token_logits[mask], golden["batch/token_logits"]),
        "coord": (pretraining.predicted_coordinates[mask], golden["batch/coord"][mask]),
        "distance": (pretraining.predicted_distances[atom_pairs], golden["batch/distance"][atom_pairs]),
        "head": (predictions, golden["batch/head"]),
    }
    for name, (actual, expected) in compared.items():
        assert relative_difference(actual, expected) <= TOLERANCE, name


def pretraining_batch(golden: Golden, info: dict[str, Any], extractor: UniMol2FeatureExtractor) -> dict[str, Tensor]:
    """The reference's four masked and noised molecules, with their targets."""
    rows, labels, targets = [], [], []
    for index in info["pretrain_batch"]:
        part = f"pretrain{index}"
        row = molecule_inputs(extractor, info["smiles"][index], golden[f"{part}/input_coordinates"])
        rows.append({**row, "input_ids": golden[f"{part}/input_token"].numpy()})
        masked = golden[f"{part}/input_token"] == 127
        labels.append(torch.where(masked, golden[f"{part}/target_token"], -100))
        targets.append(golden[f"{part}/target_coordinates"])
    batch: dict[str, Tensor] = dict(extractor.pad(rows))
    batch["labels"] = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
    batch["target_coordinates"] = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True)
    return batch


def test_pretraining_losses_and_gradients_equal_the_reference(
    golden: Golden,
    golden_info: dict[str, Any],
    extractor: UniMol2FeatureExtractor,
    pretraining_model: UniMol2ForPreTraining,
    tiny_checkpoint: ReferenceCheckpoint,
) -> None:
    pretraining_model.config.length_normalizer = "padded"
    output = pretraining_model(**pretraining_batch(golden, golden_info, extractor))
    losses = golden_info["pretrain_losses"]
    assert output.token_loss.item() == pytest.approx(losses["masked_token_loss"], rel=TOLERANCE)
    assert output.coordinate_loss.item() == pytest.approx(losses["masked_coord_loss"], rel=TOLERANCE)
    assert output.distance_loss.item() == pytest.approx(losses["masked_dist_loss"], rel=TOLERANCE)
    assert output.loss.item() == pytest.approx(losses["loss"], rel=TOLERANCE)

    output.loss.backward()
    gradients = {name: parameter.grad for name, parameter in pretraining_model.named_parameters()}
    shapes = {name: tensor.shape for name, tensor in tiny_checkpoint.state_dict.items()}
    plan = key_plan(golden_info["config"]["layers"])
    norms = {name: gradient.norm().item() for name, gradient in plan.split(gradients, shapes).items()}
    expected = golden_info["pretrain_grad_norms"]
    assert set(norms) == set(expected)
    for name, norm in expected.items():
        # A softmax ignores a constant shift: the true gradient of these biases is 0, what is left is rounding.
        assert norms[name] == pytest.approx(norm, rel=1e-4, abs=1e-7), name
