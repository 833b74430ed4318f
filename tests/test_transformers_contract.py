"""What Transformers' users expect: each model passes the suites of `conformance`; below, what is of one model only."""

import copy
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from comparing import assert_same_output, assert_same_weights
from conformance import Batch, HeadConformance, ModelConformance, Rows
from oracle import relative_difference
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from unimol2_hf import (
    DataCollatorForUniMol2,
    UniMol2Config,
    UniMol2FeatureExtractor,
    UniMol2ForPreTraining,
    UniMol2ForPropertyClassification,
    UniMol2ForPropertyPrediction,
    UniMol2ForPropertyRegression,
    UniMol2Model,
    UniMol2PreTrainedModel,
)

pytestmark = pytest.mark.numerical


class TestModel(ModelConformance):
    model_class = UniMol2Model
    auto_class = AutoModel
    main_output = "last_hidden_state"

    def test_the_last_recorded_state_is_the_output(self, model: UniMol2PreTrainedModel, batch: Batch) -> None:
        output = model(**batch, output_hidden_states=True, output_pair_hidden_states=True)
        assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
        assert torch.equal(output.pair_hidden_states[-1], output.pair_hidden_state)


class TestPreTraining(HeadConformance):
    model_class = UniMol2ForPreTraining
    auto_class = AutoModelForPreTraining
    main_output = "token_logits"

    def targets(self, model: UniMol2PreTrainedModel, batch: Batch) -> Batch:
        labels = batch["input_ids"].masked_fill(~batch["attention_mask"].bool(), -100)
        return {"labels": labels, "target_coordinates": batch["coordinates"] * 1.1}


class PropertyConformance(HeadConformance):
    """Of any head that predicts properties: it does not read the last layer's pair track."""

    auto_class = AutoModelForSequenceClassification
    # One class does the work for all kinds of properties; the others are its names.
    auto_gives = UniMol2ForPropertyPrediction
    main_output = "logits"
    peft_task: ClassVar[str | None] = "SEQ_CLS"

    def unread(self, config: UniMol2Config) -> set[str]:
        parts = ("outer_product", "outer_product_norm", "triangle", "triangle_norm", "pair_mlp", "pair_mlp_norm")
        return {f"unimol2.layers.{config.num_hidden_layers - 1}.{part}." for part in parts}


class TestPropertyRegression(PropertyConformance):
    model_class = UniMol2ForPropertyRegression

    def targets(self, model: UniMol2PreTrainedModel, batch: Batch) -> Batch:
        return {"labels": torch.randn(len(batch["input_ids"]), model.config.num_labels)}


class TestPropertyClassification(PropertyConformance):
    """A single target of three classes: labels as Transformers has them."""

    model_class = UniMol2ForPropertyClassification

    def configure(self, config: UniMol2Config) -> None:
        config.set_targets([{"name": "phase", "kind": "multiclass", "classes": ["gas", "liquid", "solid"]}])

    def targets(self, model: UniMol2PreTrainedModel, batch: Batch) -> Batch:
        return {"labels": torch.arange(len(batch["input_ids"])) % 3}


class TestMixedProperties(PropertyConformance):
    """Targets of every kind, some labels missing, extra features, weights."""

    model_class = UniMol2ForPropertyPrediction

    def configure(self, config: UniMol2Config) -> None:
        config.set_targets([
            {"name": "logd", "kind": "regression", "mean": 2.0, "std": 3.0},
            {"name": "phase", "kind": "multiclass", "classes": ["gas", "liquid", "solid"], "class_weights": [1, 2, 3]},
            {"name": "toxic", "kind": "binary", "class_weights": [0.5, 1.5]},
        ])  # fmt: skip
        config.extra_features = [{"name": "ph", "mean": 7.0, "std": 1.0}, {"name": "dose", "mean": 0.0, "std": 9.0}]

    def targets(self, model: UniMol2PreTrainedModel, batch: Batch) -> Batch:
        rows = torch.arange(len(batch["input_ids"]))
        labels = torch.stack([rows * 0.7, rows % 3, rows % 2], dim=-1).float()
        labels[rows % 4 == 1, rows[rows % 4 == 1] % 3] = torch.nan
        return {"labels": labels, "row_weights": 1.0 + rows / 4}

    def inputs(self, extractor: UniMol2FeatureExtractor, rows: Rows) -> Batch:
        given = torch.tensor([[6.0, 0.1 * len(row["input_ids"])] for row in rows])
        return {**super().inputs(extractor, rows), "extra_features": given}


class TestDescriptors(PropertyConformance):
    """A head that reads the mean over all layers, and descriptors, of which some are not defined."""

    model_class = UniMol2ForPropertyRegression
    in_float32 = ("distance_embedding", "descriptor_scale")

    def configure(self, config: UniMol2Config) -> None:
        config.num_descriptors, config.classifier_pooling = 3, "layers_mean"

    def targets(self, model: UniMol2PreTrainedModel, batch: Batch) -> Batch:
        return {"labels": torch.arange(2.0 * len(batch["input_ids"])).reshape(-1, 2)}

    def inputs(self, extractor: UniMol2FeatureExtractor, rows: Rows) -> Batch:
        given = [[0.1 * len(row["input_ids"]), -1.7, 0.3 if row["degrees"][0] > 1 else torch.nan] for row in rows]
        return {**super().inputs(extractor, rows), "descriptors": torch.tensor(given)}


class TestMemberOfAnEnsemble(PropertyConformance):
    """The folder's own model, whose config tells that there are others."""

    model_class = UniMol2ForPropertyRegression

    def configure(self, config: UniMol2Config) -> None:
        config.num_members = 3

    def targets(self, model: UniMol2PreTrainedModel, batch: Batch) -> Batch:
        return {"labels": torch.arange(2.0 * len(batch["input_ids"])).reshape(-1, 2)}


class TestKernelHead(PropertyConformance):
    """Three members on one encoder."""

    model_class = UniMol2ForPropertyPrediction
    in_float32 = ("distance_embedding", "kernel")
    peft_task = None  # it has no linear layer to be saved as a whole
    adapter_rate = 50.0  # kernels around random centres are flat

    def configure(self, config: UniMol2Config) -> None:
        config.set_targets([
            {"name": "logd", "kind": "regression", "mean": 2.0, "std": 3.0},
            {"name": "phase", "kind": "multiclass", "classes": ["gas", "liquid", "solid"]},
        ])  # fmt: skip
        config.head_type, config.num_centers, config.num_members = "kernel", 5, 3
        config.classifier_pooling = "cls_mean"

    def targets(self, model: UniMol2PreTrainedModel, batch: Batch) -> Batch:
        rows = torch.arange(len(batch["input_ids"]))
        return {"labels": torch.stack([rows * 0.7, rows % 3], dim=-1)}


@pytest.fixture(scope="module")
def batch(extractor: UniMol2FeatureExtractor, mixed_rows: Rows) -> Batch:
    """Eight molecules of different length."""
    return dict(extractor.pad(mixed_rows[:8]))


@torch.no_grad()
def main_output(model: UniMol2PreTrainedModel, batch: Batch) -> Tensor:
    output = model(**batch)
    return output.last_hidden_state if isinstance(model, UniMol2Model) else output.logits


class TestSavingAndLoading:
    def test_key_mapping(self, small_config: UniMol2Config, batch: Batch, tmp_path: Path) -> None:
        model = UniMol2Model(small_config).eval()
        model.save_pretrained(tmp_path)
        weights = {f"backbone.{name}": tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        loaded = UniMol2Model.from_pretrained(tmp_path, key_mapping={r"^backbone\.": ""}).eval()
        assert_same_weights(loaded, model)
        assert_same_output(main_output(loaded, batch), main_output(model, batch))

    def test_mismatched_sizes(self, small_config: UniMol2Config, tmp_path: Path) -> None:
        UniMol2ForPropertyRegression(small_config).save_pretrained(tmp_path)
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            UniMol2ForPropertyRegression.from_pretrained(tmp_path, num_labels=5)
        model = UniMol2ForPropertyRegression.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
        assert model.classifier.out_proj.weight.shape[0] == 5

    @pytest.mark.parametrize(
        "changes", [{"num_labels": 3}, {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}]
    )
    def test_another_task_does_not_inherit_the_scale(
        self, small_config: UniMol2Config, batch: Batch, tmp_path: Path, changes: dict[str, Any]
    ) -> None:
        names = ("x", "y")
        small_config.set_targets([{"name": n, "kind": "regression", "mean": 70.0, "std": 9.0} for n in names])
        UniMol2ForPropertyRegression(small_config).save_pretrained(tmp_path)
        model = UniMol2ForPropertyRegression.from_pretrained(tmp_path, **changes, ignore_mismatched_sizes=True).eval()
        assert model.config.target_names == list(model.config.id2label.values())
        assert model.config.targets is None
        assert float(main_output(model, batch).abs().max()) < 20
        model.save_pretrained(tmp_path / "again")
        again = UniMol2ForPropertyRegression.from_pretrained(tmp_path / "again").eval()
        assert_same_output(main_output(again, batch), main_output(model, batch))

    def test_missing_weights_are_initialised_as_from_seed(self, small_config: UniMol2Config, tmp_path: Path) -> None:
        small_config.hidden_size = 64  # enough numbers for a standard deviation
        small_config.intermediate_size = 64
        UniMol2Model(small_config).save_pretrained(tmp_path)
        models = []
        for _ in range(2):
            torch.manual_seed(7)
            models.append(UniMol2ForPreTraining.from_pretrained(tmp_path))
        first, second = models
        for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
            assert torch.equal(one, other), name
        assert first.token_head.dense.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert first.coordinate_head.qkv_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert torch.equal(first.token_head.decoder.bias, torch.zeros(128))
        assert torch.equal(first.token_head.layer_norm.weight, torch.ones(64))

    def test_initialisation_is_the_references(self, small_config: UniMol2Config) -> None:
        model = UniMol2ForPreTraining(UniMol2Config.from_scale("micro"))
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                assert float(module.weight.std()) == pytest.approx(0.02, rel=0.15), name
                assert module.bias is None or not module.bias.any(), name
            elif isinstance(module, nn.Embedding):
                assert not module.weight[0].any(), name
                if module.embedding_dim > 1:
                    assert float(module.weight[1:].std()) == pytest.approx(0.02, rel=0.15), name
            elif isinstance(module, nn.LayerNorm):
                assert (module.weight == 1).all(), name
                assert not module.bias.any(), name
        for embeddings in (model.unimol2.embeddings, model.unimol2.pair_embeddings):
            assert float(embeddings.cls_embedding.std()) == pytest.approx(0.02, rel=0.4)

    def test_layers_offloaded_to_disk(self, small_config: UniMol2Config, batch: Batch, tmp_path: Path) -> None:
        model = UniMol2Model(small_config).eval()
        model.save_pretrained(tmp_path / "model")
        modules = ("embeddings", "pair_embeddings", "layer_norm", "pair_layer_norm", "layers.0")
        device_map = {**dict.fromkeys(modules, "cpu"), "layers.1": "disk"}
        offloaded = UniMol2Model.from_pretrained(
            tmp_path / "model", device_map=device_map, offload_folder=str(tmp_path / "offload")
        ).eval()
        assert offloaded.layers[1].mlp.fc1.weight.device.type == "meta"
        assert relative_difference(main_output(offloaded, batch), main_output(model, batch)) <= 1e-6


class TestOutputs:
    def test_recorded_outputs_of_every_configured_kind(self, small_config: UniMol2Config, batch: Batch) -> None:
        small_config.output_hidden_states = True
        output = UniMol2Model(small_config).eval()(**batch)
        assert len(output.hidden_states) == small_config.num_hidden_layers + 1
        assert output.pair_hidden_states is None


class TestDtypes:
    def test_predictions_and_coordinates_are_float32(self, small_config: UniMol2Config, batch: Batch) -> None:
        regression = UniMol2ForPropertyRegression(small_config).to(torch.bfloat16).eval()
        assert main_output(regression, batch).dtype == torch.float32
        pretraining = UniMol2ForPreTraining(small_config).to(torch.bfloat16).eval()
        assert pretraining(**batch).predicted_coordinates.dtype == torch.float32

    def test_label_scale_survives_a_change_of_dtype(self, small_config: UniMol2Config, batch: Batch) -> None:
        config = UniMol2Config(**{**small_config.to_dict(), "label_mean": [1234.567, 0.0], "label_std": [1e-3, 1.0]})
        model = UniMol2ForPropertyRegression(config).to(torch.bfloat16).eval()
        assert float((main_output(model, batch)[:, 0] - 1234.567).abs().max()) < 0.01


class TestTraining:
    def test_gradient_accumulation_equals_one_batch(
        self, small_config: UniMol2Config, extractor: UniMol2FeatureExtractor, mixed_rows: Rows, tmp_path: Path
    ) -> None:
        for name in ("hidden", "attention_probs", "pair"):
            setattr(small_config, f"{name}_dropout_prob", 0.0)
        rows = [{**row, "labels": [float(index), -float(index)]} for index, row in enumerate(mixed_rows[:8])]
        start = UniMol2ForPropertyRegression(small_config)
        weights = []
        for steps in (1, 4):
            model = copy.deepcopy(start)
            arguments = TrainingArguments(
                output_dir=str(tmp_path / str(steps)),
                per_device_train_batch_size=8 // steps,
                gradient_accumulation_steps=steps,
                max_steps=2,
                learning_rate=1e-2,
                optim="sgd",
                max_grad_norm=0.0,
                remove_unused_columns=False,
                report_to="none",
                save_strategy="no",
                dataloader_pin_memory=False,
                use_cpu=True,
            )
            collator = DataCollatorForUniMol2(extractor)
            Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator).train()
            weights.append(model.state_dict())
        moved = max(float((weights[0][name] - tensor).abs().max()) for name, tensor in start.state_dict().items())
        assert moved > 1e-4
        for name, tensor in weights[0].items():
            assert float((weights[1][name] - tensor).abs().max()) <= 1e-3 * moved, name


class TestCompile:
    """No graph breaks, one graph for every shape, the same numbers."""

    @pytest.fixture(autouse=True)
    def _fresh_compiler(self) -> None:
        torch._dynamo.reset()

    def test_inductor_gives_the_same_numbers(self, small_config: UniMol2Config, batch: Batch) -> None:
        model = UniMol2Model(small_config).eval()
        compiled = torch.compile(model, fullgraph=True)
        with torch.no_grad():
            assert relative_difference(compiled(**batch).last_hidden_state, main_output(model, batch)) <= 1e-5

    def test_export(
        self, small_config: UniMol2Config, extractor: UniMol2FeatureExtractor, mixed_rows: Rows, batch: Batch
    ) -> None:
        model = UniMol2ForPropertyRegression(small_config).eval()
        rows, atoms = torch.export.Dim("rows", min=2, max=512), torch.export.Dim("atoms", min=2, max=256)
        pairwise = ("edge_features", "shortest_paths", "pair_types")
        shapes = {name: {0: rows, 1: atoms, **({2: atoms} if name in pairwise else {})} for name in batch}
        exported = torch.export.export(model, (), kwargs=batch, dynamic_shapes=shapes).module()
        other = dict(extractor.pad(mixed_rows[30:35]))
        for each in (batch, other):
            with torch.no_grad():
                actual = exported(**each)
            assert relative_difference(actual["logits"], main_output(model, each)) <= 1e-5


def test_stock_collator_and_trainer(
    small_config: UniMol2Config, extractor: UniMol2FeatureExtractor, mixed_rows: Rows, tmp_path: Path
) -> None:
    """Transformers' own collator and Trainer, nothing of this package but model and featurizer."""
    rows = [{**row, "label": [float(index), 1.0]} for index, row in enumerate(mixed_rows[:12])]
    collator = DataCollatorWithPadding(extractor, pad_to_multiple_of=4)
    batch = collator(rows[:3])
    assert batch["labels"].tolist() == [[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4, max_steps=2, report_to="none", use_cpu=True,
        remove_unused_columns=False, eval_strategy="steps", eval_steps=2,
    )  # fmt: skip
    trainer = Trainer(
        model=UniMol2ForPropertyRegression(small_config), args=arguments, data_collator=collator,
        train_dataset=rows, eval_dataset=rows[:4], processing_class=extractor,
    )  # fmt: skip
    assert trainer.train().training_loss > 0
    assert trainer.evaluate()["eval_loss"] > 0


def test_feature_extractor_is_saved_by_the_trainer(
    small_config: UniMol2Config, mixed_rows: Rows, tmp_path: Path
) -> None:
    extractor = UniMol2FeatureExtractor(seed=7, num_conformers=3)
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    trainer = Trainer(
        model=UniMol2ForPropertyRegression(small_config), args=arguments, processing_class=extractor,
        data_collator=DataCollatorForUniMol2(extractor),
    )  # fmt: skip
    trainer.save_model(str(tmp_path))
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (saved["seed"], saved["num_conformers"]) == (7, 3)
