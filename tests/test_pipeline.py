"""Pipelines: same answer in every batch, one result a molecule, bad input kept with its reason."""

import copy
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
import torch._inductor.config as inductor_config
from comparing import assert_same_output, assert_same_weights
from conftest import MIXED_SMILES
from transformers import pipeline

from unimol2_hf import (
    MoleculeError,
    SmilesParseError,
    UniMol2Config,
    UniMol2FeatureExtractor,
    UniMol2ForPreTraining,
    UniMol2ForPropertyPrediction,
    UniMol2ForPropertyRegression,
    UniMol2Model,
)
from unimol2_hf.errors import ExtraFeaturesError
from unimol2_hf.packed_linear import PackedFeedForward, PackedLinear, PackedOuterProduct
from unimol2_hf.pipeline_unimol2 import MoleculeEmbeddingPipeline, MoleculePropertyPipeline
from unimol2_hf.settings_unimol2 import POOLINGS

pytestmark = pytest.mark.numerical

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"


@pytest.fixture
def folder(property_model: UniMol2ForPropertyRegression, tmp_path: Path) -> Path:
    property_model.save_pretrained(tmp_path)
    UniMol2FeatureExtractor().save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def predictor(folder: Path) -> Any:
    return pipeline("molecule-property-prediction", str(folder), device="cpu")


@pytest.fixture
def embedder(folder: Path) -> Any:
    return pipeline("molecule-embedding", str(folder), device="cpu")


def values(results: list[dict[str, Any]]) -> torch.Tensor:
    return torch.tensor([list(result["predictions"].values()) for result in results])


def test_predictions_do_not_move_with_the_batch(
    predictor: Any, property_model: UniMol2ForPropertyRegression, extractor: UniMol2FeatureExtractor
) -> None:
    smiles = MIXED_SMILES[:12]
    singles = values([predictor(text) for text in smiles])
    for batch_size in (1, 5, 12):
        torch.testing.assert_close(values(predictor(smiles, batch_size=batch_size)), singles, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        direct = property_model(**extractor(smiles)).logits
    torch.testing.assert_close(singles, direct, rtol=1e-5, atol=1e-6)


def test_poolings_are_what_they_say(embedder: Any, property_model: UniMol2ForPropertyRegression) -> None:
    found = {name: embedder(ASPIRIN, pooling=name)["embedding"] for name in POOLINGS}
    with torch.no_grad():
        states = property_model.unimol2(**embedder.feature_extractor(ASPIRIN), output_hidden_states=True).hidden_states
    both = np.stack([np.concatenate([state[0, 0], state[0, 1:].mean(0)]) for state in states])
    assert len(both) == property_model.config.num_hidden_layers + 1
    np.testing.assert_allclose(found["cls_mean"], np.concatenate([found["cls"], found["mean"]]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["cls_mean"], both[-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["layers_mean"], both.mean(0), rtol=1e-4, atol=1e-5)


def test_embeddings_do_not_move_with_the_batch(embedder: Any) -> None:
    smiles = MIXED_SMILES[:12]
    for pooling, width in (("cls", 64), ("mean", 64), ("cls_mean", 128), ("layers_mean", 128)):
        alone = np.stack([embedder(text, pooling=pooling)["embedding"] for text in smiles])
        together = np.stack([result["embedding"] for result in embedder(smiles, batch_size=12, pooling=pooling)])
        np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
        assert together.shape == (12, width)
        assert together.dtype == np.float32


def test_atom_embeddings_match_the_atoms(embedder: Any) -> None:
    result = embedder(ASPIRIN, per_atom=True, pooling="mean")
    assert result["atom_embeddings"].shape == (13, 64)
    np.testing.assert_allclose(result["atom_embeddings"].mean(0), result["embedding"], rtol=1e-4, atol=1e-6)


def test_a_bad_molecule_among_many_keeps_its_row(predictor: Any) -> None:
    results = predictor(["CCO", "C1CC", "*", ASPIRIN, ""], batch_size=2)
    assert [result["predictions"] is None for result in results] == [False, True, True, False, True]
    assert results[0]["error"] is None
    assert "ring closures" in results[1]["error"]
    assert "wildcard" in results[2]["error"]
    assert "empty" in results[4]["error"]
    assert results[1]["provenance"] == []


def test_a_batch_of_only_bad_molecules(predictor: Any) -> None:
    results = predictor(["C1CC", "x"], batch_size=2)
    assert all(result["predictions"] is None and result["error"] for result in results)


def test_a_bad_molecule_alone_raises(predictor: Any, embedder: Any) -> None:
    with pytest.raises(SmilesParseError):
        predictor("C1CC")
    with pytest.raises(MoleculeError):
        embedder("[H][H]")


def test_several_conformers_are_averaged(predictor: Any, property_model: UniMol2ForPropertyRegression) -> None:
    result = predictor(ASPIRIN, num_conformers=3, include_2d=True)
    assert [record["method"] for record in result["provenance"]] == ["etkdg"] * 3 + ["2d"]
    with torch.no_grad():
        batch = UniMol2FeatureExtractor(num_conformers=3, include_2d=True)(ASPIRIN)
        expected = property_model(**batch).logits.mean(0)
    torch.testing.assert_close(values([result])[0], expected, rtol=1e-5, atol=1e-6)


def test_inputs_of_every_kind(predictor: Any) -> None:
    arrays = ([6, 6, 8], np.array([[0.0, 0, 0], [1.5, 0, 0], [2.0, 1.4, 0.0]]))
    assert predictor([]) == []
    assert predictor(arrays)["provenance"][0]["method"] == "given"
    assert len(predictor([arrays, "CCO"], batch_size=2)) == 2
    streamed = predictor((text for text in ["CCO", "C"]), batch_size=2)
    assert values(list(streamed)).shape == (2, 3)


def test_many_molecules_in_any_container(predictor: Any) -> None:
    smiles = ["CCO", "C1CC", "C"]
    for container in (tuple(smiles), np.array(smiles), pd.Series(smiles), iter(smiles), map(str, smiles)):
        results = list(predictor(container, batch_size=2))
        assert [result["error"] is None for result in results] == [True, False, True]
    assert predictor(()) == []
    assert predictor(np.array([])) == []


def test_impossible_batch_size_is_named(predictor: Any) -> None:
    with pytest.raises(ValueError, match="batch_size is 0"):
        predictor(["CCO"], batch_size=0)


def test_a_prediction_that_is_not_finite_is_an_error(predictor: Any) -> None:
    with torch.no_grad():
        predictor.model.classifier.out_proj.bias[0] = torch.nan
    result = predictor(["CCO"])[0]
    assert result["predictions"] is None
    assert "not finite" in result["error"]


def test_rows_have_the_same_keys(embedder: Any) -> None:
    good, bad = embedder(["CCO", "C1CC"], per_atom=True)
    assert good.keys() == bad.keys()
    assert bad["atom_embeddings"] is None


def test_workers_change_nothing(predictor: Any) -> None:
    smiles = MIXED_SMILES[:8]
    torch.testing.assert_close(values(predictor(smiles, num_workers=2)), values(predictor(smiles)))


def test_unknown_parameters_are_named(predictor: Any, embedder: Any) -> None:
    with pytest.raises(TypeError, match="unknown parameters: top_k"):
        predictor("CCO", top_k=3)
    with pytest.raises(ValueError, match="pooling is 'max'"):
        embedder("CCO", pooling="max")


def test_saved_pipelines_load_again(predictor: Any, tmp_path: Path) -> None:
    predictor.save_pretrained(tmp_path / "saved")
    again = pipeline("molecule-property-prediction", str(tmp_path / "saved"), trust_remote_code=True, device="cpu")
    assert_same_weights(again.model, predictor.model)
    assert_same_output(values([again("CCO")]), values([predictor("CCO")]))


class TestKinds:
    TARGETS: ClassVar[list[dict[str, Any]]] = [
        {"name": "logd", "kind": "regression", "mean": 2.0, "std": 3.0},
        {"name": "phase", "kind": "multiclass", "classes": ["gas", "liquid", "solid"]},
        {"name": "toxic", "kind": "binary"},
    ]

    @pytest.fixture
    def mixed(self, small_config: UniMol2Config) -> Any:
        small_config.set_targets(self.TARGETS)
        small_config.extra_features = [{"name": "ph", "mean": 7.0, "std": 1.0}]
        model = UniMol2ForPropertyPrediction(small_config).eval()
        with torch.no_grad():
            model.classifier.out_proj.bias[:] = torch.tensor([0.1, 0.2, 0.9, 0.3, -1.0])
        return MoleculePropertyPipeline(model=model, feature_extractor=UniMol2FeatureExtractor())

    def test_values_probabilities_and_classes(self, mixed: Any, extractor: UniMol2FeatureExtractor) -> None:
        result = mixed([{"molecule": "CCO", "features": {"ph": 6.0}}], num_conformers=2)[0]
        with torch.no_grad():
            batch = extractor("CCO", num_conformers=2)
            logits = mixed.model(**batch, extra_features=torch.full((2, 1), 6.0)).logits
        classes, toxic = logits[:, 1:4].softmax(-1).mean(0), float(logits[:, 4].sigmoid().mean())
        assert result["predictions"]["logd"] == pytest.approx(float(logits[:, 0].mean()), rel=1e-5)
        assert result["predictions"]["toxic"] == pytest.approx(toxic, rel=1e-5)
        assert list(result["probabilities"]["phase"].values()) == pytest.approx(classes.tolist(), rel=1e-5)
        assert result["predictions"]["phase"] == ["gas", "liquid", "solid"][int(classes.argmax())]
        assert result["probabilities"].keys() == {"phase"}

    def test_extra_features_are_asked_for(self, mixed: Any) -> None:
        good = {"molecule": "CCO", "features": {"ph": 6}}
        wrong = [{}, {"ph": None}, {"ph": "acid"}, {"ph": float("nan")}, {"ph": 6.0, "dose": 1.0}]
        results = mixed([good, "CCO", *({"molecule": "CCO", "features": each} for each in wrong)])
        assert results[0]["error"] is None
        for result in results[1:]:
            assert result["predictions"] is result["probabilities"] is None
            assert result["error_code"] == "extra_features"
            assert "numbers for ph" in result["error"]
        with pytest.raises(ExtraFeaturesError, match="numbers for ph"):
            mixed("CCO")

    def test_features_that_nobody_reads_are_an_error(self, predictor: Any) -> None:
        result = predictor([{"molecule": "CCO", "features": {"ph": 6.0}}])[0]
        assert "reads no extra features" in result["error"]


@pytest.mark.parametrize("static_shapes", [False, True])
def test_compiled_answers_are_the_same(
    static_shapes: bool, pretraining_model: UniMol2ForPreTraining, extractor: UniMol2FeatureExtractor
) -> None:
    model = pretraining_model.unimol2.eval()
    model.layers = model.layers[:2]  # the compiler takes its time
    plain = MoleculeEmbeddingPipeline(model=model, feature_extractor=extractor)
    compiled = MoleculeEmbeddingPipeline(model=copy.deepcopy(model), feature_extractor=extractor)
    smiles = ["CCO", "CCC", "c1ccccc1O", "C1CC", "CC(=O)Nc1ccc(O)cc1"]
    expected = plain(smiles, batch_size=2)
    torch.compiler.reset()
    try:
        compiled.compile_model(static_shapes=static_shapes)
        actual = compiled(smiles, batch_size=2)
    finally:
        inductor_config.freezing = False  # of the whole process
        torch.compiler.reset()
    for one, other in zip(expected, actual, strict=True):
        assert one["error"] == other["error"]
        if one["error"] is None:
            assert np.abs(one["embedding"] - other["embedding"]).max() <= 1e-5


class TestPackedWeights:
    def smiles(self) -> list[str]:
        return ["CCO", "CCC", "c1ccccc1O", "C1CC", *MIXED_SMILES[:8]]

    def packed(self, model: Any) -> Any:
        made = MoleculeEmbeddingPipeline(model=model.eval(), feature_extractor=UniMol2FeatureExtractor())
        made.pack_weights()
        return made

    def assert_same(self, one: Any, other: Any) -> None:
        results = [pipe(self.smiles(), batch_size=3) for pipe in (one, other)]
        for first, second in zip(*results, strict=True):
            assert first["error"] == second["error"]
            if first["error"] is None:
                assert np.abs(first["embedding"] - second["embedding"]).max() <= 1e-5

    def test_the_answers_are_the_same(self, pretraining_model: UniMol2ForPreTraining) -> None:
        model = pretraining_model.unimol2
        plain = MoleculeEmbeddingPipeline(
            model=copy.deepcopy(model).eval(), feature_extractor=UniMol2FeatureExtractor()
        )
        packed = self.packed(model)
        assert any(type(module) is PackedLinear for module in model.modules())
        assert any(type(module) is PackedFeedForward for module in model.modules())
        self.assert_same(packed, plain)
        kinds = (PackedLinear, PackedOuterProduct)
        first = [module for module in model.layers[0].modules() if isinstance(module, kinds)]
        assert {type(module) for module in first} == set(kinds)
        assert all(module._packed is not None for module in first)

    def test_the_answers_do_not_depend_on_how_many_atoms_are_worked_on_at_once(
        self, pretraining_model: UniMol2ForPreTraining, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        packed = self.packed(pretraining_model.unimol2)
        plain = MoleculeEmbeddingPipeline(
            model=UniMol2ForPreTraining(pretraining_model.config).unimol2.eval(),
            feature_extractor=UniMol2FeatureExtractor(),
        )
        plain.model.load_state_dict(packed.model.state_dict())
        for atoms in (1, 7):
            inner, width = packed.model.config.pair_inner_size, packed.model.config.pair_hidden_size
            monkeypatch.setattr("unimol2_hf.packed_linear.WORK_ELEMENTS", atoms * inner * width)
            self.assert_same(packed, plain)

    def test_changed_weights_are_used(self, pretraining_model: UniMol2ForPreTraining) -> None:
        packed = self.packed(pretraining_model.unimol2)
        before = packed("CCO")["embedding"]
        other = UniMol2ForPreTraining(pretraining_model.config).unimol2
        packed.model.load_state_dict(other.state_dict())
        plain = MoleculeEmbeddingPipeline(model=other.eval(), feature_extractor=UniMol2FeatureExtractor())
        assert np.abs(packed("CCO")["embedding"] - before).max() > 1e-3
        self.assert_same(packed, plain)

    def test_gradients_are_the_plain_ones(self, pretraining_model: UniMol2ForPreTraining) -> None:
        batch = UniMol2FeatureExtractor()(["CCO", "c1ccccc1O"])
        packed = self.packed(copy.deepcopy(pretraining_model.unimol2))
        packed("CCO")
        gradients = []
        for model in (packed.model, pretraining_model.unimol2.eval()):
            model(**batch).pooler_output.sum().backward()
            gradients.append({name: value.grad for name, value in model.named_parameters()})
        assert gradients[0].keys() == gradients[1].keys()
        for name, value in gradients[0].items():
            assert (value is None) == (gradients[1][name] is None)
            if value is not None:
                torch.testing.assert_close(value, gradients[1][name])

    def test_it_can_be_copied_and_saved(self, pretraining_model: UniMol2ForPreTraining, tmp_path: Path) -> None:
        packed = self.packed(pretraining_model.unimol2)
        expected = packed("CCO")["embedding"]
        twin = MoleculeEmbeddingPipeline(model=copy.deepcopy(packed.model), feature_extractor=packed.feature_extractor)
        np.testing.assert_allclose(twin("CCO")["embedding"], expected, atol=1e-6)
        packed.model.save_pretrained(tmp_path)
        again = type(packed.model).from_pretrained(tmp_path).eval()
        plain = MoleculeEmbeddingPipeline(model=again, feature_extractor=packed.feature_extractor)
        self.assert_same(packed, plain)

    def test_another_activation_stays(self) -> None:
        config = UniMol2Config.from_scale("micro", hidden_act="relu")
        model = UniMol2Model(config)
        plain = MoleculeEmbeddingPipeline(
            model=copy.deepcopy(model).eval(), feature_extractor=UniMol2FeatureExtractor()
        )
        packed = self.packed(model)
        assert not any(type(module) is PackedFeedForward for module in model.modules())
        self.assert_same(packed, plain)

    def test_half_precision_runs_the_plain_layers(self, pretraining_model: UniMol2ForPreTraining) -> None:
        packed = self.packed(pretraining_model.unimol2.to(torch.bfloat16))
        assert packed("CCO")["error"] is None
        assert all(getattr(module, "_packed", None) is None for module in packed.model.modules())
