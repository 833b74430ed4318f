"""Properties of the model: one answer in every batch and pose, and equality of its fast forms with plain ones."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MIXED_SMILES
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import naive, relative_difference
from rdkit import Chem
from scipy.spatial.transform import Rotation
from torch import Tensor

from unimol2_hf import (
    UniMol2Config,
    UniMol2FeatureExtractor,
    UniMol2ForPreTraining,
    UniMol2ForPropertyPrediction,
    UniMol2ForPropertyRegression,
    UniMol2Model,
)
from unimol2_hf.modeling_unimol2 import (
    ReadOut,
    UniMol2Attention,
    UniMol2Layer,
    UniMol2PropertyHead,
    UniMol2ResidualDropout,
    property_loss,
    regression_loss,
)

pytestmark = pytest.mark.numerical

Rows = list[dict[str, Any]]
Answer = dict[str, Tensor]


@torch.no_grad()
def answers(
    model: UniMol2ForPropertyRegression, extractor: UniMol2FeatureExtractor, rows: Sequence[Any]
) -> list[Answer]:
    """CLS, atoms, pairs and predictions of each row, without padding."""
    batch = extractor.pad(rows)
    encoded = model.unimol2(**batch)
    predictions = model(**batch).logits
    return [
        {
            "cls": encoded.pooler_output[row],
            "atoms": encoded.last_hidden_state[row, 1 : n + 1],
            "pairs": encoded.pair_hidden_state[row, : n + 1, : n + 1],
            "predictions": predictions[row],
        }
        for row, n in enumerate(len(entry["input_ids"]) for entry in rows)
    ]


def assert_same(actual: Answer, expected: Answer, tolerance: float) -> None:
    for name, tensor in expected.items():
        assert relative_difference(actual[name], tensor) <= tolerance, name


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_molecules_do_not_move_with_their_batch(
    attention: str,
    property_model: UniMol2ForPropertyRegression,
    extractor: UniMol2FeatureExtractor,
    mixed_rows: Rows,
) -> None:
    property_model.set_attn_implementation(attention)
    assert len(mixed_rows) == 64
    alone = [answers(property_model, extractor, [row])[0] for row in mixed_rows]
    together = answers(property_model, extractor, mixed_rows)
    order = np.random.default_rng(0).permutation(64)
    shuffled = answers(property_model, extractor, [mixed_rows[index] for index in order])
    for index in range(64):
        assert_same(together[index], alone[index], 1e-5)
    for position, index in enumerate(order):
        assert_same(shuffled[position], alone[index], 1e-5)


def test_padded_normaliser_does_move_with_the_batch(
    property_model: UniMol2ForPropertyRegression, extractor: UniMol2FeatureExtractor, mixed_rows: Rows
) -> None:
    # The reference's behaviour, on request only: this shows that the test above can fail.
    property_model.config.length_normalizer = "padded"
    alone = answers(property_model, extractor, mixed_rows[:1])[0]
    together = answers(property_model, extractor, mixed_rows)[0]
    assert relative_difference(together["cls"], alone["cls"]) > 1e-4


@pytest.mark.parametrize("seed", range(3))
def test_answers_do_not_move_with_the_pose(
    seed: int, property_model: UniMol2ForPropertyRegression, extractor: UniMol2FeatureExtractor, mixed_rows: Rows
) -> None:
    rotation = Rotation.random(random_state=seed).as_matrix().astype(np.float32)
    shift = np.random.default_rng(seed).normal(scale=10, size=3).astype(np.float32)
    moved = [{**row, "coordinates": row["coordinates"] @ rotation.T + shift} for row in mixed_rows]
    still = answers(property_model, extractor, mixed_rows)
    for actual, expected in zip(answers(property_model, extractor, moved), still, strict=True):
        assert_same(actual, expected, 1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_predicted_coordinates_move_with_the_pose(
    seed: int, pretraining_model: UniMol2ForPreTraining, extractor: UniMol2FeatureExtractor, mixed_rows: Rows
) -> None:
    rotation = torch.from_numpy(Rotation.random(random_state=seed).as_matrix()).float()
    shift = torch.randn(3) * 10
    batch = extractor.pad(mixed_rows)
    moved = {**batch, "coordinates": batch["coordinates"] @ rotation.T + shift}
    with torch.no_grad():
        still, turned = pretraining_model(**batch), pretraining_model(**moved)
    atoms = batch["attention_mask"].bool()
    expected = still.predicted_coordinates @ rotation.T + shift
    assert relative_difference(turned.predicted_coordinates[atoms], expected[atoms]) <= 1e-4
    assert relative_difference(turned.token_logits[atoms], still.token_logits[atoms]) <= 1e-4


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_answers_move_with_the_atom_order(data: st.DataObject) -> None:
    extractor = UniMol2FeatureExtractor()
    config = UniMol2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, pair_hidden_size=16, pair_inner_size=8
    )
    model = UniMol2Model(config).eval()
    smiles = data.draw(st.sampled_from([text for text in MIXED_SMILES if len(text) > 8]))
    row = next(next(extractor.featurize(smiles, num_conformers=0, include_2d=True)).model_inputs())
    count = len(row["input_ids"])
    order = np.array(data.draw(st.permutations(range(count))))
    pairwise = ("edge_features", "shortest_paths", "pair_types")
    permuted = {name: value[np.ix_(order, order)] if name in pairwise else value[order] for name, value in row.items()}
    with torch.no_grad():
        original, reordered = model(**extractor.pad([row])), model(**extractor.pad([permuted]))
    assert relative_difference(reordered.pooler_output, original.pooler_output) <= 1e-5
    atoms = original.last_hidden_state[:, 1:]
    assert relative_difference(reordered.last_hidden_state[:, 1:], atoms[:, order]) <= 1e-5


@pytest.mark.parametrize("smiles", ["CC(=O)Oc1ccccc1C(=O)O", "C[C@H](N)C(=O)O", "F/C=C\\Cl"])
def test_predictions_do_not_move_with_the_spelling(
    smiles: str, property_model: UniMol2ForPropertyRegression, extractor: UniMol2FeatureExtractor
) -> None:
    # Same conformer, atoms in another order: a reordered molecule carries its coordinates along.
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    Chem.rdDistGeom.EmbedMolecule(molecule, randomSeed=1)
    molecule = Chem.RemoveHs(molecule)
    reordered = Chem.RenumberAtoms(molecule, list(reversed(range(molecule.GetNumAtoms()))))
    with torch.no_grad():
        first, second = property_model(**extractor([molecule, reordered])).logits
    assert relative_difference(second, first) <= 1e-5


def test_eager_equals_sdpa(small_config: UniMol2Config, extractor: UniMol2FeatureExtractor, mixed_rows: Rows) -> None:
    batch = extractor.pad(mixed_rows)
    models = []
    for attention in ("eager", "sdpa"):
        torch.manual_seed(0)
        models.append(UniMol2ForPreTraining._from_config(copy.deepcopy(small_config), attn_implementation=attention))
    eager, sdpa = models
    assert (eager.config._attn_implementation, sdpa.config._attn_implementation) == ("eager", "sdpa")
    labels = batch["input_ids"].masked_fill(~batch["attention_mask"].bool(), -100)
    targets = {"labels": labels, "target_coordinates": batch["coordinates"] * 1.1}
    outputs = [model.eval()(**batch, **targets) for model in models]
    atoms = batch["attention_mask"].bool()
    for name in ("token_logits", "predicted_coordinates"):
        assert relative_difference(outputs[1][name][atoms], outputs[0][name][atoms]) <= 1e-5
    for output in outputs:
        output.loss.backward()
    assert_gradients_agree(sdpa, eager)


def assert_gradients_agree(actual: torch.nn.Module, expected: torch.nn.Module, tolerance: float = 1e-4) -> None:
    """Equal within a share of the whole gradient's size: single parameters may have a true gradient of 0."""
    expected_gradients = {name: p.grad for name, p in expected.named_parameters() if p.grad is not None}
    actual_gradients = {name: p.grad for name, p in actual.named_parameters() if p.grad is not None}
    extra = actual_gradients.keys() - expected_gradients.keys()
    assert actual_gradients.keys() >= expected_gradients.keys()
    assert not any(actual_gradients[name].any() for name in extra)
    largest = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        scale = max(float(gradient.abs().max()), 1e-3 * largest)
        assert float((actual_gradients[name] - gradient).abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize("normaliser", ["molecule", "padded"])
@pytest.mark.parametrize("mode", ["eval", "train", "checkpointing"])
def test_all_that_is_cheaper_equals_the_naive_model(
    normaliser: str,
    mode: str,
    pretraining_model: UniMol2ForPreTraining,
    extractor: UniMol2FeatureExtractor,
    mixed_rows: Rows,
) -> None:
    """In training mode the norms and activations are made again in the backward pass."""
    pretraining_model.config.length_normalizer = normaliser  # type: ignore[assignment]
    pretraining_model.train(mode != "eval")
    without_dropout(pretraining_model)
    plain = naive(pretraining_model)
    if mode == "checkpointing":
        pretraining_model.gradient_checkpointing_enable()
    batch = extractor.pad(mixed_rows[:16])
    atoms = batch["attention_mask"].bool()
    targets = {"labels": batch["input_ids"].masked_fill(~atoms, -100), "target_coordinates": batch["coordinates"] * 1.1}
    outputs = [model(**batch, **targets) for model in (pretraining_model, plain)]
    for name in ("token_logits", "predicted_coordinates"):
        assert relative_difference(outputs[0][name][atoms], outputs[1][name][atoms]) <= 1e-5
    for output in outputs:
        output.loss.backward()
    assert_gradients_agree(pretraining_model, plain)


def without_dropout(model: torch.nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(module, UniMol2Attention):
            module.dropout = 0.0


class TestResidualDropout:
    def test_share_scale_and_gradient(self) -> None:
        layer = UniMol2ResidualDropout(0.1).train()
        residual, update = torch.randn(500_001), torch.ones(500_001, requires_grad=True)
        added = layer(residual, update) - residual
        kept = added > 0.5
        # Five standard deviations of 500,001 draws.
        assert abs(float(kept.float().mean()) - 0.9) < 5 * (0.9 * 0.1 / 500_001) ** 0.5
        assert torch.allclose(added[kept], torch.full_like(added[kept], 1 / 0.9), rtol=1e-4)
        assert float(added[~kept].abs().max()) < 1e-6
        added.sum().backward()
        assert update.grad is not None
        assert torch.allclose(update.grad, kept.float() / 0.9, rtol=1e-4)

    def test_neighbours_are_independent(self) -> None:
        """Four mask bits come from each random number."""
        added = UniMol2ResidualDropout(0.5).train()(torch.zeros(400_000), torch.ones(400_000))
        groups = (added > 0).float().view(-1, 4)
        correlation = torch.corrcoef(groups.T) - torch.eye(4)
        assert float(correlation.abs().max()) < 5 / 100_000**0.5

    def test_follows_the_seed(self) -> None:
        layer = UniMol2ResidualDropout(0.3).train()
        inputs = torch.zeros(100), torch.ones(100)
        runs = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            runs.append(layer(*inputs))
        assert torch.equal(runs[0], runs[1])
        assert not torch.equal(runs[0], runs[2])

    @pytest.mark.parametrize("probability", [0.0, 1.0])
    def test_nothing_and_everything(self, probability: float) -> None:
        added = UniMol2ResidualDropout(probability).train()(torch.zeros(9), torch.ones(9))
        assert torch.equal(added, torch.full((9,), 1 - probability))
        assert torch.equal(UniMol2ResidualDropout(probability).eval()(torch.zeros(9), torch.ones(9)), torch.ones(9))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_with_dropout_are_those_of_the_loss(
    checkpointing: bool, property_model: UniMol2ForPropertyRegression, extractor: UniMol2FeatureExtractor
) -> None:
    """A finite difference along the gradient, the same dropout drawn each time."""
    model = property_model.double().train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    batch = extractor(["CC(=O)Oc1ccccc1C(=O)O", "CCO"])

    def loss() -> torch.Tensor:
        torch.manual_seed(3)
        return model(**batch).logits.square().mean()

    loss().backward()
    # Of the pair track alone: the float32 distance embedding would blur the difference.
    parameters = [p for name, p in model.named_parameters() if "layers" in name and p.grad is not None]
    slope = sum(float(p.grad.square().sum()) for p in parameters if p.grad is not None)
    step = 1e-3 / slope**0.5
    values = []
    for sign in (1, -1):
        for p in parameters:
            assert p.grad is not None
            p.data.add_(p.grad, alpha=sign * step)
        with torch.no_grad():
            values.append(float(loss().detach()))
        for p in parameters:
            assert p.grad is not None
            p.data.sub_(p.grad, alpha=sign * step)
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("read_out", ["atoms", "cls"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_read_outs_skip_only_what_nobody_reads(
    read_out: ReadOut,
    attention: str,
    pretraining_model: UniMol2ForPreTraining,
    extractor: UniMol2FeatureExtractor,
    mixed_rows: Rows,
) -> None:
    model = pretraining_model.unimol2
    model.set_attn_implementation(attention)
    twin = copy.deepcopy(model)
    batch = extractor.pad(mixed_rows[:16])
    whole, part = model(**batch), twin(**batch, read_out=read_out)
    states = whole.last_hidden_state if read_out == "atoms" else whole.last_hidden_state[:, :1]
    assert relative_difference(part.last_hidden_state, states) <= 1e-6
    assert part.pair_hidden_state is None
    weights = torch.randn_like(states)
    (states * weights).sum().backward()
    (part.last_hidden_state * weights).sum().backward()
    # A gradient of exactly zero, not none, for which distributed training would wait.
    skipped = {name for name, p in twin.named_parameters() if not p.grad.any()}
    last = f"layers.{len(model.layers) - 1}."
    assert skipped
    assert all(name.startswith(last) for name in skipped)
    assert_gradients_agree(twin, model)


def test_coordinates_can_be_left_out(
    pretraining_model: UniMol2ForPreTraining, extractor: UniMol2FeatureExtractor
) -> None:
    batch = extractor(["CCO", "c1ccccc1"])
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    whole = pretraining_model(**batch, labels=labels)
    tokens = pretraining_model(**batch, labels=labels, predict_coordinates=False)
    assert relative_difference(tokens.token_logits, whole.token_logits) <= 1e-6
    assert tokens.predicted_coordinates is None
    assert tokens.predicted_distances is None
    tokens.loss.backward()
    assert all(p.grad is None for p in pretraining_model.coordinate_head.parameters())


def test_recording_states_computes_everything(
    pretraining_model: UniMol2ForPreTraining, extractor: UniMol2FeatureExtractor
) -> None:
    model = pretraining_model.unimol2
    output = model(**extractor("CCO"), read_out="cls", output_pair_hidden_states=True)
    assert output.last_hidden_state.shape[1] == 4
    assert torch.equal(output.pair_hidden_states[-1], output.pair_hidden_state)


class TestPairEmbeddings:
    NAMES = ("edge_features", "shortest_paths", "pair_types", "coordinates")

    def inputs(self, extractor: UniMol2FeatureExtractor, rows: Rows) -> list[Tensor]:
        batch = extractor.pad(rows)
        return [batch[name] for name in self.NAMES]

    @pytest.mark.parametrize(("name", "row"), [("edge_features", 64), ("shortest_paths", -1), ("shortest_paths", 512)])
    def test_a_row_that_no_table_has_is_an_error(
        self, name: str, row: int, small_config: UniMol2Config, extractor: UniMol2FeatureExtractor, mixed_rows: Rows
    ) -> None:
        inputs = self.inputs(extractor, mixed_rows[:1])
        inputs[self.NAMES.index(name)].view(-1)[0] = row
        with torch.no_grad(), pytest.raises((IndexError, RuntimeError)):
            UniMol2Model(small_config).pair_embeddings(*inputs)

    def test_replaced_parts_are_used(
        self, small_config: UniMol2Config, extractor: UniMol2FeatureExtractor, mixed_rows: Rows
    ) -> None:
        """As adapters replace them."""

        class Doubled(torch.nn.Module):
            def __init__(self, inner: torch.nn.Module) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, input: Tensor) -> Tensor:
                return 2 * self.inner(input)

        embeddings = UniMol2Model(small_config).pair_embeddings
        embeddings.distance_embedding.linear_2 = Doubled(embeddings.distance_embedding.linear_2)  # type: ignore[assignment]
        inputs = self.inputs(extractor, mixed_rows[:2])
        with torch.no_grad():
            actual = embeddings(*inputs)
        torch.testing.assert_close(actual, embeddings(*inputs).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls_mean", "layers_mean"])
def test_padding_never_reaches_an_answer(
    pooling: Any,
    property_model: UniMol2ForPropertyRegression,
    extractor: UniMol2FeatureExtractor,
    mixed_rows: Rows,
) -> None:
    # Garbage where the padding is: nothing may change, not by a bit.
    property_model.config.classifier_pooling = pooling
    property_model.classifier = UniMol2PropertyHead(property_model.config)
    batch = extractor.pad(mixed_rows[:8])
    padding = ~batch["attention_mask"].bool()
    spoiled = {name: value.clone() for name, value in batch.items()}
    pairs = padding.unsqueeze(1) | padding.unsqueeze(2)
    for name, fill in (("input_ids", 17), ("atom_features", 9), ("degrees", 3), ("coordinates", 55.0)):
        spoiled[name][padding] = fill
    for name, fill in (("edge_features", 7), ("shortest_paths", 4), ("pair_types", 6)):
        spoiled[name][pairs] = fill
    with torch.no_grad():
        torch.testing.assert_close(property_model(**spoiled).logits, property_model(**batch).logits)


@pytest.mark.parametrize("dtype", ["bfloat16", "autocast"])
def test_bfloat16_stays_close(
    dtype: str, property_model: UniMol2ForPropertyRegression, extractor: UniMol2FeatureExtractor, mixed_rows: Rows
) -> None:
    batch = extractor.pad(mixed_rows)
    with torch.no_grad():
        expected = property_model.unimol2(**batch)
        if dtype == "autocast":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                actual = property_model.unimol2(**batch)
        else:
            actual = copy.deepcopy(property_model).to(torch.bfloat16).unimol2(**batch)
    mask = torch.nn.functional.pad(batch["attention_mask"].bool(), (1, 0), value=True)
    difference = (actual.last_hidden_state.float() - expected.last_hidden_state)[mask]
    assert float(difference.norm() / expected.last_hidden_state[mask].norm()) <= 2e-2
    cls = (actual.pooler_output.float() - expected.pooler_output).norm(dim=-1) / expected.pooler_output.norm(dim=-1)
    assert float(cls.max()) <= 2e-2


def test_dropout_of_the_triangle_is_shared_along_the_first_axis(small_config: UniMol2Config) -> None:
    layer = UniMol2Layer(small_config).train()
    dropped = layer._dropout_shared_by_rows(torch.ones(2, 7, 7, small_config.pair_hidden_size))
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    share = float((dropped == 0).float().mean())
    assert 0.05 < share < 0.5
    assert torch.allclose(dropped.max(), torch.tensor(1 / 0.75))


def test_training_mode_is_random_and_eval_is_not(
    small_config: UniMol2Config, extractor: UniMol2FeatureExtractor, mixed_rows: Rows
) -> None:
    model = UniMol2ForPropertyRegression(small_config)
    batch = extractor.pad(mixed_rows[:4])
    with torch.no_grad():
        model.train()
        assert not torch.equal(model(**batch).logits, model(**batch).logits)
        model.eval()
        assert torch.equal(model(**batch).logits, model(**batch).logits)


class TestPropertyRegression:
    """The task head: units, missing labels, losses."""

    def make(self, config: UniMol2Config, **fields: Any) -> UniMol2ForPropertyRegression:
        torch.manual_seed(0)
        return UniMol2ForPropertyRegression(UniMol2Config(**{**config.to_dict(), **fields})).eval()

    def test_predictions_come_in_the_labels_units(
        self, small_config: UniMol2Config, extractor: UniMol2FeatureExtractor, mixed_rows: Rows
    ) -> None:
        batch = extractor.pad(mixed_rows[:4])
        plain = self.make(small_config)
        scaled = self.make(small_config, label_mean=[100.0, -3.0], label_std=[10.0, 0.5])
        expected = plain(**batch).logits * torch.tensor([10.0, 0.5]) + torch.tensor([100.0, -3.0])
        torch.testing.assert_close(scaled(**batch).logits, expected)
        # A perfect prediction has no loss: labels are standardised before they meet the head.
        assert float(scaled(**batch, labels=expected).loss) < 1e-10

    def test_it_reads_the_mean_of_the_atoms_if_told_to(
        self, small_config: UniMol2Config, extractor: UniMol2FeatureExtractor, mixed_rows: Rows
    ) -> None:
        model = self.make(small_config, classifier_pooling="mean")
        together = model(**extractor.pad(mixed_rows[:8])).logits
        for row, actual in zip(mixed_rows[:8], together, strict=True):
            alone = extractor.pad([row])
            means = model.unimol2(**alone).last_hidden_state[:, 1:].mean(1)
            torch.testing.assert_close(actual, model.classifier(means)[0, 0], rtol=1e-5, atol=1e-5)
        from_cls = self.make(small_config)(**extractor.pad(mixed_rows[:8])).logits
        assert not torch.allclose(together, from_cls, atol=1e-3)

    def test_another_read_out_is_refused(self, small_config: UniMol2Config) -> None:
        with pytest.raises(StrictDataclassError, match="classifier_pooling"):
            UniMol2Config(**{**small_config.to_dict(), "classifier_pooling": "max"})

    @pytest.mark.parametrize(("kind", "expected"), [("smooth_l1", 1.5), ("l1", 2.0), ("mse", 4.0)])
    def test_losses_on_standardised_labels(
        self,
        kind: str,
        expected: float,
        small_config: UniMol2Config,
        extractor: UniMol2FeatureExtractor,
        mixed_rows: Rows,
    ) -> None:
        model = self.make(small_config, loss_function=kind, label_mean=[5.0, 5.0], label_std=[3.0, 3.0])
        batch = extractor.pad(mixed_rows[:4])
        labels = model(**batch).logits + 6.0  # two standard deviations off
        assert float(model(**batch, labels=labels).loss) == pytest.approx(expected, rel=1e-4)

    def test_missing_labels_do_not_count(
        self, small_config: UniMol2Config, extractor: UniMol2FeatureExtractor, mixed_rows: Rows
    ) -> None:
        model = self.make(small_config)
        batch = extractor.pad(mixed_rows[:4])
        labels = torch.randn(4, 2)
        labels[1:, 1] = torch.nan
        loss = model(**batch, labels=labels).loss
        with torch.no_grad():
            logits = model(**batch).logits
        present = torch.cat((logits[:, 0] - labels[:, 0], logits[:1, 1] - labels[:1, 1]))
        expected = torch.nn.functional.smooth_l1_loss(present, torch.zeros(5))
        torch.testing.assert_close(loss, expected)
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)

    def test_a_batch_without_any_label_trains_nothing(
        self, small_config: UniMol2Config, extractor: UniMol2FeatureExtractor, mixed_rows: Rows
    ) -> None:
        model = self.make(small_config)
        loss = model(**extractor.pad(mixed_rows[:2]), labels=torch.full((2, 2), torch.nan)).loss
        loss.backward()
        assert float(loss) == 0
        assert all(float(p.grad.abs().max()) == 0 for p in model.parameters() if p.grad is not None)

    def test_single_target_takes_flat_labels(
        self, small_config: UniMol2Config, extractor: UniMol2FeatureExtractor, mixed_rows: Rows
    ) -> None:
        model = self.make(small_config, id2label={0: "logS"}, label2id={"logS": 0})
        batch = extractor.pad(mixed_rows[:3])
        flat = model(**batch, labels=torch.tensor([1.0, 2.0, 3.0])).loss
        column = model(**batch, labels=torch.tensor([[1.0], [2.0], [3.0]])).loss
        torch.testing.assert_close(flat, column)

    @pytest.mark.parametrize("shape", [(2,), (4, 1), (1, 2), (4, 3)])
    def test_labels_of_another_shape_are_refused(
        self, shape: tuple[int, ...], small_config: UniMol2Config, extractor: UniMol2FeatureExtractor, mixed_rows: Rows
    ) -> None:
        model = self.make(small_config)
        with pytest.raises(ValueError, match="do not fit 2 targets of 4 molecules"):
            model(**extractor.pad(mixed_rows[:4]), labels=torch.zeros(shape))

    def test_mixed_losses_are_the_mean_over_labels(self) -> None:
        """Each label's own formula, times the weights of its class and its row."""
        nan = float("nan")
        config = UniMol2Config(
            targets=[
                {"name": "phase", "kind": "multiclass", "classes": ["gas", "liquid"], "class_weights": [1.0, 3.0]},
                {"name": "logd", "kind": "regression"},
                {"name": "toxic", "kind": "binary", "class_weights": [0.5, 2.0]},
            ],
            loss_function="mse",
        )  # fmt: skip
        outputs = torch.randn(3, 4, requires_grad=True)
        labels = torch.tensor([[1.0, 0.3, 0.0], [0.0, nan, 1.0], [nan, -2.0, nan]])
        weights = torch.tensor([1.0, 2.0, 4.0])
        classes, value, logit = outputs[:, :2].log_softmax(-1), outputs[:, 2], outputs[:, 3]
        terms = [
            -3.0 * classes[0, 1], (value[0] - 0.3) ** 2, -0.5 * torch.log(1 - logit[0].sigmoid()),
            -2.0 * classes[1, 0], -4.0 * torch.log(logit[1].sigmoid()), 4.0 * (value[2] + 2.0) ** 2,
        ]  # fmt: skip
        loss, expected = property_loss(outputs, labels, config, weights), torch.stack(terms).mean()
        torch.testing.assert_close(loss, expected)
        given = torch.autograd.grad(loss, outputs, retain_graph=True)
        torch.testing.assert_close(given, torch.autograd.grad(expected, outputs))
        assert float(property_loss(outputs, torch.full((3, 3), nan), config)) == 0.0

    @pytest.mark.parametrize(
        ("problem_type", "labels"),
        [
            ("single_label_classification", torch.tensor([0, 2, -100, 1])),
            ("multi_label_classification", torch.tensor([[0, 1, 1], [1, 0, 0], [-100, 1, 0], [1, 1, 1]])),
        ],
    )  # fmt: skip
    def test_class_labels_as_transformers_has_them(
        self, small_config: UniMol2Config, extractor: UniMol2FeatureExtractor, mixed_rows: Rows, problem_type: Any,
        labels: Tensor,
    ) -> None:  # fmt: skip
        small_config.update({"num_labels": 3, "problem_type": problem_type})
        output = UniMol2ForPropertyPrediction(small_config).eval()(**extractor.pad(mixed_rows[:4]), labels=labels)
        if labels.ndim == 1:
            expected = torch.nn.functional.cross_entropy(output.logits, labels)
        else:
            present = labels >= 0
            expected = torch.nn.functional.binary_cross_entropy_with_logits(
                output.logits[present], labels[present].float()
            )
        torch.testing.assert_close(output.loss, expected)

    def test_extra_features_count_and_must_be_given(
        self, small_config: UniMol2Config, extractor: UniMol2FeatureExtractor, mixed_rows: Rows
    ) -> None:
        small_config.extra_features = [{"name": "ph", "mean": 7.0, "std": 2.0}]
        model = UniMol2ForPropertyPrediction(small_config).eval()
        batch = extractor.pad(mixed_rows[:2])
        acid, base = (model(**batch, extra_features=torch.full((2, 1), ph)).logits for ph in (5.0, 9.0))
        assert relative_difference(acid, base) > 1e-3
        for wrong in ({}, {"extra_features": torch.zeros(2, 2)}):
            with pytest.raises(ValueError, match=r"extra_features of shape \(2, 1\) \(ph\)"):
                model(**batch, **wrong)

    @pytest.mark.parametrize("kind", ["smooth_l1", "l1", "mse"])
    def test_loss_gradient_ignores_missing_labels(self, kind: str) -> None:
        predictions = torch.randn(5, 3, requires_grad=True)
        targets = torch.randn(5, 3)
        targets[2] = torch.nan
        regression_loss(predictions, targets, kind).backward()
        assert predictions.grad is not None
        assert torch.equal(predictions.grad[2], torch.zeros(3))
        assert (predictions.grad[[0, 1, 3, 4]] != 0).all()


class TestPretrainingLosses:
    """Each loss against the formula of the paper, molecule by molecule."""

    def test_against_plain_formulas(
        self, small_config: UniMol2Config, extractor: UniMol2FeatureExtractor, mixed_rows: Rows
    ) -> None:
        rows = mixed_rows[:6]
        model = UniMol2ForPreTraining(small_config).eval()
        batch = extractor.pad(rows)
        labels = torch.full_like(batch["input_ids"], -100)
        labels[:, 0] = batch["input_ids"][:, 0]
        target = batch["coordinates"] + torch.randn_like(batch["coordinates"]) * 0.2
        with torch.no_grad():
            output = model(**batch, labels=labels, target_coordinates=target)
        token, coordinate, distance = [], [], []
        for index, row in enumerate(rows):
            n = len(row["input_ids"])
            token.append(-output.token_logits[index, 0].log_softmax(-1)[labels[index, 0]])
            predicted, clean = output.predicted_coordinates[index, :n], target[index, :n]
            coordinate.append((predicted - clean).abs().sum() / n)
            distance.append((torch.cdist(predicted, predicted) - torch.cdist(clean, clean)).abs().sum() / n**2)
        for actual, parts in (
            (output.token_loss, token),
            (output.coordinate_loss, coordinate),
            (output.distance_loss, distance),
        ):
            torch.testing.assert_close(actual, torch.stack(parts).mean(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output.loss, output.token_loss + output.coordinate_loss + output.distance_loss)

    def test_without_targets_there_is_no_loss(
        self, small_config: UniMol2Config, extractor: UniMol2FeatureExtractor, mixed_rows: Rows
    ) -> None:
        output = UniMol2ForPreTraining(small_config).eval()(**extractor.pad(mixed_rows[:2]))
        assert output.loss is None
        assert output.token_loss is None

    def test_no_gradient_through_the_input_distances(
        self, small_config: UniMol2Config, extractor: UniMol2FeatureExtractor, mixed_rows: Rows
    ) -> None:
        batch = extractor.pad(mixed_rows[:2])
        coordinates = batch["coordinates"].clone().requires_grad_()
        encoded = UniMol2Model(small_config).eval()(**{**batch, "coordinates": coordinates})
        assert torch.autograd.grad(encoded.last_hidden_state.sum(), coordinates, allow_unused=True) == (None,)
