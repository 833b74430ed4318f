"""What Transformers expects of any model: saving, loading, recording, compiling, training, adapters.

The common checks that Transformers keeps for its own models are not in its wheel; these are ours, one or more tests
for each.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import assert_same_output, assert_same_weights
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
    UniMol2ForPropertyPrediction,
    UniMol2ForPropertyRegression,
    UniMol2Model,
    UniMol2PreTrainedModel,
)

pytestmark = pytest.mark.numerical

Rows = list[dict[str, Any]]
Batch = dict[str, Tensor]
ALL_CLASSES = (UniMol2Model, UniMol2ForPreTraining, UniMol2ForPropertyRegression)
HEAD_CLASSES = (UniMol2ForPreTraining, UniMol2ForPropertyRegression)
MAIN_OUTPUT = {
    UniMol2Model: "last_hidden_state",
    UniMol2ForPreTraining: "token_logits",
    UniMol2ForPropertyRegression: "logits",
}


@pytest.fixture(scope="module")
def batch(extractor: UniMol2FeatureExtractor, mixed_rows: Rows) -> Batch:
    """Eight molecules of different length."""
    return dict(extractor.pad(mixed_rows[:8]))


@pytest.fixture(params=ALL_CLASSES, ids=lambda cls: cls.__name__)
def model(request: pytest.FixtureRequest, small_config: UniMol2Config) -> UniMol2PreTrainedModel:
    built: UniMol2PreTrainedModel = request.param(small_config).eval()
    return built


@torch.no_grad()
def main_output(model: UniMol2PreTrainedModel, batch: Batch) -> Tensor:
    output: Tensor = model(**batch)[MAIN_OUTPUT[type(model)]]
    return output


def targets_for(model: UniMol2PreTrainedModel, batch: Batch) -> Batch:
    if isinstance(model, UniMol2ForPreTraining):
        labels = batch["input_ids"].masked_fill(~batch["attention_mask"].bool(), -100)
        return {"labels": labels, "target_coordinates": batch["coordinates"] * 1.1}
    if isinstance(model, UniMol2ForPropertyRegression):
        return {"labels": torch.randn(len(batch["input_ids"]), model.num_labels)}
    return {}


class TestSavingAndLoading:
    def test_save_and_load(self, model: UniMol2PreTrainedModel, batch: Batch, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path)
        reloaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert_same_weights(reloaded, model)
        assert_same_output(main_output(reloaded.eval(), batch), main_output(model, batch))

    def test_auto_classes_find_the_model(self, model: UniMol2PreTrainedModel, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path)
        auto = {
            UniMol2Model: AutoModel,
            UniMol2ForPreTraining: AutoModelForPreTraining,
            UniMol2ForPropertyRegression: AutoModelForSequenceClassification,
        }[type(model)]
        loaded = auto.from_pretrained(tmp_path)
        # One class does the work for all kinds of properties; the others are its names.
        one_class = UniMol2ForPropertyPrediction if isinstance(model, UniMol2ForPropertyPrediction) else type(model)
        assert type(loaded) is one_class

    @pytest.mark.parametrize("head_class", HEAD_CLASSES)
    def test_head_to_base_and_back(
        self, head_class: type[UniMol2PreTrainedModel], small_config: UniMol2Config, batch: Batch, tmp_path: Path
    ) -> None:
        head = head_class(small_config).eval()
        head.save_pretrained(tmp_path / "head")
        base = UniMol2Model.from_pretrained(tmp_path / "head").eval()
        assert_same_weights(base, head.unimol2)
        assert_same_output(main_output(base, batch), main_output(head.unimol2, batch))
        base.save_pretrained(tmp_path / "base")
        again, info = head_class.from_pretrained(tmp_path / "base", output_loading_info=True)
        assert_same_weights(again.unimol2, base)
        assert_same_output(main_output(again.unimol2.eval(), batch), main_output(base, batch))
        assert all(not name.startswith("unimol2.") for name in info["missing_keys"])
        assert info["missing_keys"]

    def test_sharded(self, model: UniMol2PreTrainedModel, batch: Batch, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path, max_shard_size="50KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
        loaded = type(model).from_pretrained(tmp_path).eval()
        assert_same_weights(loaded, model)
        assert_same_output(main_output(loaded, batch), main_output(model, batch))

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

    def test_no_buffer_can_be_garbage_after_meta(
        self, model: UniMol2PreTrainedModel, batch: Batch, tmp_path: Path
    ) -> None:
        # Models are built on the meta device; a buffer absent from the file would hold whatever memory held.
        assert not list(model.named_buffers())
        model.save_pretrained(tmp_path)
        torch.full((4096, 4096), torch.nan)  # leaves NaN in freed memory
        reloaded = type(model).from_pretrained(tmp_path).eval()
        assert_same_weights(reloaded, model)
        assert_same_output(main_output(reloaded, batch), main_output(model, batch))

    def test_device_map(self, model: UniMol2PreTrainedModel, batch: Batch, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path)
        on_cpu = type(model).from_pretrained(tmp_path, device_map="cpu").eval()
        assert_same_weights(on_cpu, model)
        assert_same_output(main_output(on_cpu, batch), main_output(model, batch))

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
    def test_deterministic(self, model: UniMol2PreTrainedModel, batch: Batch) -> None:
        assert torch.equal(main_output(model, batch), main_output(model, batch))

    def test_main_input_name(self, model: UniMol2PreTrainedModel) -> None:
        assert model.main_input_name == "input_ids"
        assert model.base_model_prefix == "unimol2"
        assert UniMol2FeatureExtractor.model_input_names[0] == "input_ids"

    def test_batch_equals_singles_with_padding(
        self, model: UniMol2PreTrainedModel, extractor: UniMol2FeatureExtractor, mixed_rows: Rows, batch: Batch
    ) -> None:
        together = main_output(model, batch)
        for index, row in enumerate(mixed_rows[:8]):
            alone = main_output(model, dict(extractor.pad([row])))[0]
            own = together[index, : len(alone)] if together.ndim == 3 else together[index]
            assert relative_difference(own, alone) <= 1e-5

    def test_tuple_equals_dict(self, model: UniMol2PreTrainedModel, batch: Batch) -> None:
        targets = targets_for(model, batch)
        with torch.no_grad():
            as_dict = model(**batch, **targets)
            as_tuple = model(**batch, **targets, return_dict=False)
        assert isinstance(as_tuple, tuple)
        assert len(as_tuple) == len(as_dict.to_tuple())
        for one, other in zip(as_tuple, as_dict.to_tuple(), strict=True):
            assert_same_output(one, other)

    def test_attention_mask_defaults_to_the_padding(self, model: UniMol2PreTrainedModel, batch: Batch) -> None:
        without = {name: tensor for name, tensor in batch.items() if name != "attention_mask"}
        assert_same_output(main_output(model, without), main_output(model, batch))

    def test_recorded_outputs(self, model: UniMol2PreTrainedModel, batch: Batch, small_config: UniMol2Config) -> None:
        model.set_attn_implementation("eager")
        with torch.no_grad():
            output = model(**batch, output_hidden_states=True, output_pair_hidden_states=True, output_attentions=True)
        layers, rows, length = small_config.num_hidden_layers, len(batch["input_ids"]), batch["input_ids"].shape[1] + 1
        states = [state.shape for state in output.hidden_states]
        assert states == [(rows, length, small_config.hidden_size)] * (layers + 1)
        pairs = [state.shape for state in output.pair_hidden_states]
        assert pairs == [(rows, length, length, small_config.pair_hidden_size)] * (layers + 1)
        weights = [weight.shape for weight in output.attentions]
        assert weights == [(rows, small_config.num_attention_heads, length, length)] * layers
        for weight in output.attentions:
            torch.testing.assert_close(weight.sum(-1), torch.ones(weight.shape[:-1]))
        if isinstance(model, UniMol2Model):
            assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
            assert torch.equal(output.pair_hidden_states[-1], output.pair_hidden_state)

    def test_recorded_outputs_of_every_configured_kind(self, small_config: UniMol2Config, batch: Batch) -> None:
        small_config.output_hidden_states = True
        output = UniMol2Model(small_config).eval()(**batch)
        assert len(output.hidden_states) == small_config.num_hidden_layers + 1
        assert output.pair_hidden_states is None


class TestDtypes:
    def test_bfloat16_keeps_its_float32_islands(
        self, model: UniMol2PreTrainedModel, batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from unimol2_hf.modeling_unimol2 import UniMol2DistanceEmbedding

        model.save_pretrained(tmp_path)
        half = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
        for name, parameter in half.named_parameters():
            expected = torch.float32 if "distance_embedding" in name else torch.bfloat16
            assert parameter.dtype == expected, name
        seen: list[torch.dtype] = []
        original = UniMol2DistanceEmbedding.forward

        def spy(module: UniMol2DistanceEmbedding, *args: Tensor) -> Tensor:
            result = original(module, *args)
            seen.append(result.dtype)
            return result

        monkeypatch.setattr(UniMol2DistanceEmbedding, "forward", spy)
        output = main_output(half, batch)
        assert seen == [torch.float32]
        assert torch.isfinite(output.float()).all()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            main_output(model, batch)
        assert seen == [torch.float32] * 2

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
    def test_every_parameter_gets_a_gradient(self, small_config: UniMol2Config, batch: Batch) -> None:
        model = UniMol2ForPreTraining(small_config).eval()
        model(**batch, **targets_for(model, batch)).loss.backward()
        without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        assert not without
        zero = {name for name, parameter in model.named_parameters() if not parameter.grad.any()}
        assert not zero

    def test_a_property_head_trains_all_but_the_last_pair_update(
        self, small_config: UniMol2Config, batch: Batch
    ) -> None:
        """Nothing reads it: it is frozen, so that distributed training does not wait for its gradient."""
        model = UniMol2ForPropertyRegression(small_config).eval()
        model(**batch, **targets_for(model, batch)).loss.backward()
        without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        parts = ("outer_product", "outer_product_norm", "triangle", "triangle_norm", "pair_mlp", "pair_mlp_norm")
        last = f"unimol2.layers.{small_config.num_hidden_layers - 1}."
        expected = {
            name
            for name, _ in model.named_parameters()
            if name.startswith(last) and name.removeprefix(last).split(".")[0] in parts
        }
        assert without == frozen == expected

    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_distributed_training_needs_no_flag(
        self, small_config: UniMol2Config, batch: Batch, tmp_path: Path, checkpointing: bool
    ) -> None:
        """It would stop at the second step if a parameter had got no gradient in the first."""
        model = UniMol2ForPropertyRegression(small_config)
        if checkpointing:
            model.gradient_checkpointing_enable()
        store = torch.distributed.FileStore(str(tmp_path / "store"), 1)  # type: ignore[attr-defined]
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            distributed = torch.nn.parallel.DistributedDataParallel(model)
            for _ in range(2):
                distributed(**batch, **targets_for(model, batch)).loss.backward()
        finally:
            torch.distributed.destroy_process_group()

    @pytest.mark.parametrize("model_class", [UniMol2ForPropertyRegression, UniMol2ForPreTraining])
    def test_lora_on_all_linears(
        self, small_config: UniMol2Config, batch: Batch, model_class: type[UniMol2PreTrainedModel]
    ) -> None:
        from peft import LoraConfig, get_peft_model

        adapted = get_peft_model(model_class(small_config), LoraConfig(r=2, target_modules="all-linear"))
        adapted(**batch, **targets_for(adapted.base_model.model, batch)).loss.backward()
        given = [parameter.grad for name, parameter in adapted.named_parameters() if "lora_B" in name]
        assert sum(grad is not None and bool(grad.any()) for grad in given) > 10

    @pytest.mark.parametrize("use_reentrant", [True, False])
    @pytest.mark.parametrize("head_class", HEAD_CLASSES)
    def test_checkpointing_gradients_equal(
        self, use_reentrant: bool, head_class: type[UniMol2PreTrainedModel], small_config: UniMol2Config, batch: Batch
    ) -> None:
        model = head_class(small_config).train()
        checkpointed = copy.deepcopy(model)
        checkpointed.activation_checkpointing_enable({"use_reentrant": use_reentrant})
        assert all(layer.gradient_checkpointing for layer in checkpointed.unimol2.layers)
        targets = targets_for(model, batch)
        for each in (model, checkpointed):
            torch.manual_seed(3)  # the same dropout in both, replayed in the recomputation
            each(**batch, **targets).loss.backward()
        for (name, one), other in zip(model.named_parameters(), checkpointed.parameters(), strict=True):
            if one.grad is None:
                assert other.grad is None or not other.grad.any(), name
            else:
                torch.testing.assert_close(other.grad, one.grad, rtol=1e-5, atol=1e-7, msg=name)

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

    def test_peft_round_trip(self, small_config: UniMol2Config, batch: Batch, tmp_path: Path) -> None:
        from peft import LoraConfig, PeftModel, TaskType, get_peft_model

        base = UniMol2ForPropertyRegression(small_config)
        config = LoraConfig(task_type=TaskType.SEQ_CLS, r=4, target_modules=["qkv_proj", "o_proj"], lora_dropout=0.0)
        adapted = get_peft_model(copy.deepcopy(base), config)
        optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.5)
        for _ in range(2):
            adapted.eval()(**batch, labels=torch.ones(8, 2)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        adapted.save_pretrained(tmp_path)
        reloaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
        with torch.no_grad():
            expected, actual = adapted(**batch).logits, reloaded(**batch).logits
            untouched = base.eval()(**batch).logits
        torch.testing.assert_close(actual, expected)
        assert relative_difference(expected, untouched) > 1e-2
        saved = load_file(tmp_path / "adapter_model.safetensors")
        assert any("classifier.out_proj" in name for name in saved)
        assert any("lora_A" in name for name in saved)


class TestCompile:
    """No graph breaks, one graph for every shape, the same numbers."""

    @pytest.fixture(autouse=True)
    def _fresh_compiler(self) -> None:
        torch._dynamo.reset()

    @pytest.mark.parametrize("head_class", HEAD_CLASSES)
    def test_one_graph_for_every_shape(
        self, head_class: type[UniMol2PreTrainedModel], small_config: UniMol2Config, extractor: UniMol2FeatureExtractor,
        mixed_rows: Rows,
    ) -> None:  # fmt: skip
        from torch._dynamo.testing import CompileCounterWithBackend

        counter = CompileCounterWithBackend("eager")
        model = head_class(small_config).eval()
        compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
        # Not eight rows first: the compiler would take them for the eight feature columns.
        for start, stop in ((0, 7), (10, 13), (20, 36)):
            batch = dict(extractor.pad(mixed_rows[start:stop]))
            with torch.no_grad():
                actual = compiled(**batch)[MAIN_OUTPUT[head_class]]
            assert relative_difference(actual, main_output(model, batch)) <= 1e-5
        assert counter.frame_count == 1

    def test_training_step_compiles_to_one_graph(self, small_config: UniMol2Config, batch: Batch) -> None:
        model = UniMol2ForPropertyRegression(small_config).eval()
        twin = copy.deepcopy(model)
        compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
        labels = targets_for(model, batch)
        compiled(**batch, **labels).loss.backward()
        model(**batch, **labels).loss.backward()
        for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
            if one.grad is not None:
                torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6, msg=name)

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
