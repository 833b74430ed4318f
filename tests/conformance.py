"""What Transformers' users expect of a model and of a head: two suites to inherit, so that a new head is a few lines.

The common checks that Transformers keeps for its own models are not in its wheel; these are ours. A subclass names the
class, its Auto class, its main output and, of a head, the targets that give it a loss.
"""

import copy
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from comparing import assert_same_output, assert_same_weights
from oracle import relative_difference
from safetensors.torch import load_file, save_file
from torch import Tensor

from unimol2_hf import (
    UniMol2Config,
    UniMol2FeatureExtractor,
    UniMol2Model,
    UniMol2PreTrainedModel,
    export_with_code,
)
from unimol2_hf.modeling_unimol2 import UniMol2DistanceEmbedding

Rows = list[dict[str, Any]]
Batch = dict[str, Tensor]
WITHOUT_PACKAGE = Path(__file__).parent / "without_package"


def run_without_the_package(
    script: str, *arguments: object, where: Path, processes: int = 1, timeout: float = 300
) -> str:
    """The last line that `without_package/SCRIPT` prints, run where this package cannot be imported."""
    launcher = [sys.executable]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launcher += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(port)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(where / "modules"), "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(WITHOUT_PACKAGE / script), *map(str, arguments)]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=where, env=environment, check=False, timeout=timeout
    )
    assert result.returncode == 0, result.stderr
    return (result.stdout.splitlines() or [""])[-1]


class ModelConformance:
    """Saving, loading, outputs, precision and compilation of any Uni-Mol2 model."""

    model_class: ClassVar[type[UniMol2PreTrainedModel]]
    auto_class: ClassVar[Any]
    auto_gives: ClassVar[type[UniMol2PreTrainedModel] | None] = None  # what the Auto class loads, if another class
    main_output: ClassVar[str]
    in_float32: ClassVar[tuple[str, ...]] = ("distance_embedding",)  # parts that stay so in a half-precision model

    def configure(self, config: UniMol2Config) -> None:
        """Set up the task on a small config; nothing by default."""

    def inputs(self, extractor: UniMol2FeatureExtractor, rows: Rows) -> Batch:
        """What `forward` takes of some molecules."""
        return dict(extractor.pad(rows))

    def output_of(self, model: Any, batch: Batch) -> Tensor:
        with torch.no_grad():
            output: Tensor = model(**batch)[self.main_output]
        return output

    def targets(self, model: Any, batch: Batch) -> Batch:
        """What `forward` takes besides a batch to give a loss."""
        return {}

    @pytest.fixture
    def config(self, small_config: UniMol2Config) -> UniMol2Config:
        self.configure(small_config)
        return small_config

    @pytest.fixture
    def model(self, config: UniMol2Config) -> UniMol2PreTrainedModel:
        built: UniMol2PreTrainedModel = self.model_class(config).eval()
        return built

    @pytest.fixture(scope="class")
    def batch(self, extractor: UniMol2FeatureExtractor, mixed_rows: Rows) -> Batch:
        """Eight molecules of different length."""
        return self.inputs(extractor, mixed_rows[:8])

    def test_save_and_load(self, model: UniMol2PreTrainedModel, batch: Batch, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path)
        reloaded, info = self.model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert_same_weights(reloaded, model)
        assert_same_output(self.output_of(reloaded.eval(), batch), self.output_of(model, batch))

    def test_auto_class_finds_the_model(self, model: UniMol2PreTrainedModel, batch: Batch, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path)
        loaded = self.auto_class.from_pretrained(tmp_path).eval()
        assert type(loaded) is (self.auto_gives or self.model_class)
        assert_same_output(self.output_of(loaded, batch), self.output_of(model, batch))

    def test_sharded(self, model: UniMol2PreTrainedModel, batch: Batch, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path, max_shard_size="50KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
        loaded = self.model_class.from_pretrained(tmp_path).eval()
        assert_same_weights(loaded, model)
        assert_same_output(self.output_of(loaded, batch), self.output_of(model, batch))

    def test_no_buffer_can_be_garbage_after_meta(
        self, model: UniMol2PreTrainedModel, batch: Batch, tmp_path: Path
    ) -> None:
        # Models are built on the meta device; a buffer absent from the file would hold whatever memory held.
        assert not list(model.named_buffers())
        model.save_pretrained(tmp_path)
        torch.full((4096, 4096), torch.nan)  # leaves NaN in freed memory
        reloaded = self.model_class.from_pretrained(tmp_path).eval()
        assert_same_weights(reloaded, model)
        assert_same_output(self.output_of(reloaded, batch), self.output_of(model, batch))

    def test_device_map(self, model: UniMol2PreTrainedModel, batch: Batch, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path)
        on_cpu = self.model_class.from_pretrained(tmp_path, device_map="cpu").eval()
        assert_same_weights(on_cpu, model)
        assert_same_output(self.output_of(on_cpu, batch), self.output_of(model, batch))

    def test_deterministic(self, model: UniMol2PreTrainedModel, batch: Batch) -> None:
        assert torch.equal(self.output_of(model, batch), self.output_of(model, batch))

    def test_main_input_name(self, model: UniMol2PreTrainedModel) -> None:
        assert model.main_input_name == "input_ids"
        assert model.base_model_prefix == "unimol2"
        assert UniMol2FeatureExtractor.model_input_names[0] == "input_ids"

    def test_batch_equals_singles_with_padding(
        self, model: UniMol2PreTrainedModel, extractor: UniMol2FeatureExtractor, mixed_rows: Rows, batch: Batch
    ) -> None:
        together = self.output_of(model, batch)
        for index, row in enumerate(mixed_rows[:8]):
            alone = self.output_of(model, self.inputs(extractor, [row]))[0]
            own = together[index, : len(alone)] if together.ndim == 3 else together[index]
            assert relative_difference(own, alone) <= 1e-5

    def test_tuple_equals_dict(self, model: UniMol2PreTrainedModel, batch: Batch) -> None:
        targets = self.targets(model, batch)
        with torch.no_grad():
            as_dict = model(**batch, **targets)
            as_tuple = model(**batch, **targets, return_dict=False)
        assert isinstance(as_tuple, tuple)
        assert len(as_tuple) == len(as_dict.to_tuple())
        for one, other in zip(as_tuple, as_dict.to_tuple(), strict=True):
            assert_same_output(one, other)

    def test_attention_mask_defaults_to_the_padding(self, model: UniMol2PreTrainedModel, batch: Batch) -> None:
        without = {name: tensor for name, tensor in batch.items() if name != "attention_mask"}
        assert_same_output(self.output_of(model, without), self.output_of(model, batch))

    def test_recorded_outputs(self, model: UniMol2PreTrainedModel, batch: Batch, config: UniMol2Config) -> None:
        model.set_attn_implementation("eager")
        with torch.no_grad():
            output = model(**batch, output_hidden_states=True, output_pair_hidden_states=True, output_attentions=True)
        layers, rows, length = config.num_hidden_layers, len(batch["input_ids"]), batch["input_ids"].shape[1] + 1
        states = [state.shape for state in output.hidden_states]
        assert states == [(rows, length, config.hidden_size)] * (layers + 1)
        pairs = [state.shape for state in output.pair_hidden_states]
        assert pairs == [(rows, length, length, config.pair_hidden_size)] * (layers + 1)
        weights = [weight.shape for weight in output.attentions]
        assert weights == [(rows, config.num_attention_heads, length, length)] * layers
        for weight in output.attentions:
            torch.testing.assert_close(weight.sum(-1), torch.ones(weight.shape[:-1]))

    def test_bfloat16_keeps_its_float32_islands(
        self, model: UniMol2PreTrainedModel, batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model.save_pretrained(tmp_path)
        half = self.model_class.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
        for name, parameter in half.named_parameters():
            expected = torch.float32 if any(part in name for part in self.in_float32) else torch.bfloat16
            assert parameter.dtype == expected, name
        seen: list[torch.dtype] = []
        original = UniMol2DistanceEmbedding.forward

        def spy(module: UniMol2DistanceEmbedding, *args: Tensor) -> Tensor:
            result = original(module, *args)
            seen.append(result.dtype)
            return result

        monkeypatch.setattr(UniMol2DistanceEmbedding, "forward", spy)
        output = self.output_of(half, batch)
        assert seen == [torch.float32]
        assert torch.isfinite(output.float()).all()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            self.output_of(model, batch)
        assert seen == [torch.float32] * 2

    def test_one_graph_for_every_shape(
        self, model: UniMol2PreTrainedModel, extractor: UniMol2FeatureExtractor, mixed_rows: Rows
    ) -> None:
        from torch._dynamo.testing import CompileCounterWithBackend

        torch._dynamo.reset()
        counter = CompileCounterWithBackend("eager")
        compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
        # Not eight rows first: the compiler would take them for the eight feature columns.
        for start, stop in ((0, 7), (10, 13), (20, 36)):
            batch = self.inputs(extractor, mixed_rows[start:stop])
            assert relative_difference(self.output_of(compiled, batch), self.output_of(model, batch)) <= 1e-5
        assert counter.frame_count == 1


class HeadConformance(ModelConformance):
    """Training of any head: gradients, adapters, checkpointing, several processes, code from the Hub."""

    peft_task: ClassVar[str | None] = None
    adapter_rate: ClassVar[float] = 0.5  # of two steps after which adapters have made a difference

    def unread(self, config: UniMol2Config) -> set[str]:
        """Parts that the head does not read, as prefixes of names: of zero gradient, for which processes can wait."""
        return set()

    def test_head_to_base_and_back(self, model: UniMol2PreTrainedModel, batch: Batch, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path / "head")
        base = UniMol2Model.from_pretrained(tmp_path / "head").eval()
        assert_same_weights(base, model.unimol2)
        base.save_pretrained(tmp_path / "base")
        again, info = self.model_class.from_pretrained(tmp_path / "base", output_loading_info=True)
        assert_same_weights(again.unimol2, base)
        again_state, base_state = again.unimol2.eval()(**batch), base(**batch)
        assert_same_output(again_state.last_hidden_state, base_state.last_hidden_state)
        assert all(not name.startswith("unimol2.") for name in info["missing_keys"])
        assert info["missing_keys"]

    def test_every_parameter_gets_a_gradient(
        self, model: UniMol2PreTrainedModel, batch: Batch, config: UniMol2Config
    ) -> None:
        model(**batch, **self.targets(model, batch)).loss.backward()
        parameters = dict(model.named_parameters())
        assert all(parameter.grad is not None for parameter in parameters.values())
        unread = {name for name in parameters if any(name.startswith(part) for part in self.unread(config))}
        assert {name for name, parameter in parameters.items() if not parameter.grad.any()} == unread

    @pytest.mark.parametrize("use_reentrant", [True, False])
    def test_checkpointing_gradients_equal(
        self, use_reentrant: bool, model: UniMol2PreTrainedModel, batch: Batch
    ) -> None:
        model.train()
        checkpointed = copy.deepcopy(model)
        checkpointed.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        assert all(layer.gradient_checkpointing for layer in checkpointed.unimol2.layers)
        targets = self.targets(model, batch)
        for each in (model, checkpointed):
            torch.manual_seed(3)  # the same dropout in both, replayed in the recomputation
            each(**batch, **targets).loss.backward()
        for (name, one), other in zip(model.named_parameters(), checkpointed.parameters(), strict=True):
            if one.grad is None:
                assert other.grad is None or not other.grad.any(), name
            else:
                torch.testing.assert_close(other.grad, one.grad, rtol=1e-5, atol=1e-7, msg=name)

    def test_training_step_compiles_to_one_graph(self, model: UniMol2PreTrainedModel, batch: Batch) -> None:
        torch._dynamo.reset()
        twin = copy.deepcopy(model)
        compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
        targets = self.targets(model, batch)
        compiled(**batch, **targets).loss.backward()
        model(**batch, **targets).loss.backward()
        for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
            if one.grad is not None:
                torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6, msg=name)

    def test_lora_on_all_linears(self, model: UniMol2PreTrainedModel, batch: Batch) -> None:
        from peft import LoraConfig, get_peft_model

        targets = self.targets(model, batch)
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
        adapted(**batch, **targets).loss.backward()
        given = [parameter.grad for name, parameter in adapted.named_parameters() if "lora_B" in name]
        assert sum(grad is not None and bool(grad.any()) for grad in given) > 10

    def test_adapter_round_trip(self, model: UniMol2PreTrainedModel, batch: Batch, tmp_path: Path) -> None:
        from peft import LoraConfig, PeftModel, get_peft_model

        targets = self.targets(model, batch)
        adapter = LoraConfig(task_type=self.peft_task, r=4, target_modules=["qkv_proj", "o_proj"], lora_dropout=0.0)
        adapted = get_peft_model(copy.deepcopy(model), adapter)
        optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=self.adapter_rate)
        for _ in range(2):
            adapted(**batch, **targets).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        adapted.save_pretrained(tmp_path)
        saved = load_file(tmp_path / "adapter_model.safetensors")
        assert any("lora_A" in name for name in saved)
        assert self.peft_task is None or any("classifier.out_proj" in name for name in saved)
        reloaded = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
        trained = self.output_of(adapted, batch)
        torch.testing.assert_close(self.output_of(reloaded, batch), trained)
        assert relative_difference(trained, self.output_of(model, batch)) > 1e-3

    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_two_processes_without_the_package(
        self, model: UniMol2PreTrainedModel, batch: Batch, tmp_path: Path, checkpointing: bool
    ) -> None:
        """The published code in plain DistributedDataParallel: the mean gradient of the two halves."""
        model.config.update({f"{part}_dropout_prob": 0.0 for part in ("hidden", "attention_probs", "pair")})
        folder = export_with_code(model, tmp_path / "model")
        inputs = {name: each.contiguous() for name, each in (batch | self.targets(model, batch)).items()}
        save_file(inputs, tmp_path / "batch.safetensors")
        run_without_the_package(
            "distributed_step.py", folder, self.auto_class.__name__, self.main_output, int(checkpointing),
            "batch.safetensors", "found.safetensors", where=tmp_path, processes=2,
        )  # fmt: skip
        found = load_file(tmp_path / "found.safetensors")
        halves = [{name: each[rank::2] for name, each in inputs.items()} for rank in range(2)]
        assert_same_output(found.pop("output"), self.output_of(model, {name: halves[0][name] for name in batch}))
        for half in halves:
            (model(**half).loss / 2).backward()
        expected = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name] / 2, gradient, rtol=1e-4, atol=1e-6, msg=name)
