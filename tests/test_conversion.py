"""Conversion of reference checkpoints: what is accepted, what is refused and why, and equal numbers after it."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import assert_same_output, assert_same_weights
from conftest import GOLDEN
from oracle import relative_difference
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoModel

from unimol2_hf import (
    CheckpointError,
    UniMol2FeatureExtractor,
    UniMol2ForPreTraining,
    UniMol2ForPropertyRegression,
    UniMol2Model,
    UniMol2PreTrainedModel,
)
from unimol2_hf.hub.convert import (
    GAUSSIAN_BUFFER,
    ReferenceCheckpoint,
    convert_checkpoint,
    largest_differences,
    load_reference_checkpoint,
    resolve_checkpoint,
)

pytestmark = pytest.mark.numerical

TINY = GOLDEN / "tiny_checkpoint.pt"
SCRIPT = Path(__file__).parents[1] / "conversion" / "convert_unimol2_to_hf.py"
StateDict = dict[str, Tensor]


@pytest.fixture
def weights() -> StateDict:
    """The golden checkpoint's own `model` entry."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        loaded: StateDict = torch.load(TINY, weights_only=True)["model"]
    return loaded


def save(content: Any, tmp_path: Path, name: str = "checkpoint.pt") -> Path:
    path = tmp_path / name
    torch.save(content, path)
    return path


def predictions(model: UniMol2PreTrainedModel) -> Tensor:
    with torch.no_grad():
        output = model(**UniMol2FeatureExtractor()("CC(=O)Oc1ccccc1C(=O)O"))
    return output[0] if "logits" not in output else output.logits


def run_script(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_sizes_are_read_from_the_shapes(pretraining_model: UniMol2ForPreTraining, golden_info: dict[str, Any]) -> None:
    config, expected = pretraining_model.config, golden_info["config"]
    assert config.num_hidden_layers == expected["layers"]
    assert config.hidden_size == expected["embed_dim"]
    assert config.num_attention_heads == expected["attention_heads"]
    assert config.pair_hidden_size == expected["pair_embed_dim"]
    assert config.pair_inner_size == expected["pair_hidden_dim"]
    assert config.intermediate_size == expected["ffn_embed_dim"]


def rename(change: Callable[[str], str]) -> Callable[[StateDict], Any]:
    return lambda weights: {"model": {change(name): tensor for name, tensor in weights.items()}}


VARIANTS: dict[str, Callable[[StateDict], Any]] = {
    "trainer": lambda weights: {"args": argparse.Namespace(arch="unimol2"), "model": weights, "extra_state": {}},
    "module prefix": rename(lambda name: f"module.{name}"),
    "compiled and wrapped": rename(lambda name: f"module._orig_mod.{name}"),
    "bare weights": lambda weights: weights,
    "ema beats model": lambda weights: {
        "model": {name: torch.zeros_like(tensor) for name, tensor in weights.items()},
        "ema": {"params": weights, "decay": 0.999},
    },
    "unimol_tools": lambda weights: {
        "model_state_dict": {
            name.replace("classification_heads.demo.", "classification_head."): tensor
            for name, tensor in weights.items()
            if not name.startswith("lm_head.")
        }
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_published_form_gives_the_same_model(
    variant: str, weights: StateDict, tmp_path: Path, property_model: UniMol2ForPropertyRegression
) -> None:
    model = convert_checkpoint(load_reference_checkpoint(save(VARIANTS[variant](weights), tmp_path)))
    assert isinstance(model, UniMol2ForPropertyRegression)
    assert_same_weights(model, property_model)
    assert_same_output(predictions(model), predictions(property_model))


def test_half_precision_weights(weights: StateDict, tmp_path: Path, property_model: UniMol2PreTrainedModel) -> None:
    half = {name: tensor.half() for name, tensor in weights.items()}
    model = convert_checkpoint(load_reference_checkpoint(save({"model": half}, tmp_path)))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert 0 < relative_difference(predictions(model), predictions(property_model)) < 1e-2


def test_linear_head_of_unimol_tools(weights: StateDict, tmp_path: Path) -> None:
    head = {
        "classification_head.out_proj.weight": torch.randn(2, 64),
        "classification_head.out_proj.bias": torch.randn(2),
    }
    body = {
        name: tensor for name, tensor in weights.items() if not name.startswith(("lm_head.", "classification_heads."))
    }
    checkpoint = load_reference_checkpoint(save({"model_state_dict": body | head}, tmp_path, "model_0.pth"))
    model = convert_checkpoint(checkpoint, ["a", "b"])
    assert isinstance(model, UniMol2ForPropertyRegression)
    assert (model.config.head_type, model.config.target_names) == ("linear", ["a", "b"])
    batch = UniMol2FeatureExtractor()("CCO")
    with torch.no_grad():
        cls = model.unimol2(**batch).pooler_output
        expected = cls @ head["classification_head.out_proj.weight"].T + head["classification_head.out_proj.bias"]
        torch.testing.assert_close(model(**batch).logits, expected)


def test_encoder_alone(weights: StateDict, tmp_path: Path, pretraining_model: UniMol2ForPreTraining) -> None:
    prefixes = ("lm_head.", "movement_pred_head.", "classification_heads.")
    body = {name: tensor for name, tensor in weights.items() if not name.startswith(prefixes)}
    model = convert_checkpoint(load_reference_checkpoint(save({"model": body}, tmp_path)))
    assert isinstance(model, UniMol2Model)
    assert_same_weights(model, pretraining_model.unimol2)
    assert_same_output(predictions(model), predictions(pretraining_model.unimol2))


def test_several_heads_must_be_chosen(weights: StateDict, tmp_path: Path) -> None:
    other = {
        "classification_heads.other.dense.weight": torch.zeros(64, 64),
        "classification_heads.other.dense.bias": torch.zeros(64),
        "classification_heads.other.out_proj.weight": torch.zeros(7, 64),
        "classification_heads.other.out_proj.bias": torch.zeros(7),
    }
    path = save({"model": weights | other}, tmp_path)
    with pytest.raises(CheckpointError, match="several task heads, choose one: demo, other"):
        load_reference_checkpoint(path)
    with pytest.raises(CheckpointError, match="no task head 'third'; the file has: demo, other"):
        load_reference_checkpoint(path, "third")
    assert convert_checkpoint(load_reference_checkpoint(path, "other")).config.num_labels == 7


class TestRefusals:
    def test_missing_and_surplus_keys_are_all_listed(self, tiny_checkpoint: ReferenceCheckpoint) -> None:
        changed = dict(tiny_checkpoint.state_dict)
        for name in ("embed_tokens.weight", "encoder.layers.2.opm.linear_out.bias"):
            changed[f"{name}.renamed"] = changed[name]
        del changed["encoder.layers.2.opm.linear_out.bias"], changed["lm_head.dense.bias"]
        with pytest.raises(CheckpointError) as error:
            convert_checkpoint(ReferenceCheckpoint(changed))
        lines = str(error.value).splitlines()
        assert "4 keys" in lines[0]
        assert [line.strip() for line in lines[1:]] == [
            "missing: encoder.layers.2.opm.linear_out.bias",
            "missing: lm_head.dense.bias",
            "surplus: embed_tokens.weight.renamed",
            "surplus: encoder.layers.2.opm.linear_out.bias.renamed",
        ]

    def test_half_a_pretraining_model(self, tiny_checkpoint: ReferenceCheckpoint) -> None:
        body = {n: t for n, t in tiny_checkpoint.state_dict.items() if not n.startswith("lm_head.")}
        with pytest.raises(CheckpointError, match=r"missing: lm_head\.weight"):
            convert_checkpoint(ReferenceCheckpoint(body))

    def test_wrong_shape(self, tiny_checkpoint: ReferenceCheckpoint) -> None:
        changed = {**tiny_checkpoint.state_dict, "atom_feature.atom_encoder.weight": torch.zeros(100, 64)}
        with pytest.raises(CheckpointError, match=r"atom_encoder\.weight has shape \(100, 64\) instead of"):
            convert_checkpoint(ReferenceCheckpoint(changed))

    def test_another_model(self) -> None:
        with pytest.raises(CheckpointError, match=r"no Uni-Mol2 checkpoint.*linear_bias"):
            convert_checkpoint(ReferenceCheckpoint({"bert.embeddings.weight": torch.zeros(3, 3)}))

    def test_uneven_gaussians(self, tiny_checkpoint: ReferenceCheckpoint) -> None:
        changed = {**tiny_checkpoint.state_dict, "se3_invariant_kernel.gaussian.mean": torch.rand(128)}
        with pytest.raises(CheckpointError, match="not evenly spaced"):
            convert_checkpoint(ReferenceCheckpoint(changed))

    def test_code_in_the_file_is_never_run(self, weights: StateDict, tmp_path: Path) -> None:
        witness = tmp_path / "witness"

        class Payload:
            def __reduce__(self) -> tuple[Any, ...]:
                return (os.system, (f"touch {witness}",))

        path = save({"model": weights, "args": Payload()}, tmp_path)
        with pytest.raises(CheckpointError, match="foreign code is never run"):
            load_reference_checkpoint(path)
        assert not witness.exists()

    def test_weights_that_are_not_finite(self, tiny_checkpoint: ReferenceCheckpoint) -> None:
        changed = {**tiny_checkpoint.state_dict, "embed_tokens.weight": torch.full((128, 64), torch.nan)}
        with pytest.raises(CheckpointError, match=r"embed_tokens\.weight holds numbers that are not finite"):
            convert_checkpoint(ReferenceCheckpoint(changed))

    def test_a_head_that_is_not_finite(self, tiny_checkpoint: ReferenceCheckpoint) -> None:
        head = {**tiny_checkpoint.head, "out_proj.bias": torch.full((3,), torch.inf)}
        with pytest.raises(
            CheckpointError, match=r"classification_heads out_proj\.bias holds numbers that are not finite"
        ):
            convert_checkpoint(ReferenceCheckpoint(tiny_checkpoint.state_dict, head))

    def test_target_names_must_differ(self, tiny_checkpoint: ReferenceCheckpoint) -> None:
        with pytest.raises(CheckpointError, match="must differ: a, a, b"):
            convert_checkpoint(tiny_checkpoint, ["a", "a", "b"])

    @pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"not a checkpoint", b"PK\x03\x04broken"])
    def test_not_a_checkpoint(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "checkpoint.pt"
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            load_reference_checkpoint(path)

    @pytest.mark.parametrize("content", [{"args": 1}, [1, 2], {"model": {}}, torch.zeros(3)])
    def test_no_weights_inside(self, content: Any, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="no weights found"):
            load_reference_checkpoint(save(content, tmp_path))

    def test_neither_file_nor_hub_id(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"no file here.*dptech/Uni-Mol2"):
            resolve_checkpoint("nowhere.pt", None)
        with pytest.raises(CheckpointError, match="cannot be fetched"):
            resolve_checkpoint("dptech/Uni-Mol2/modelzoo/84M/checkpoint.pt", None)


class TestCommandLine:
    def test_convert_verify_and_load(self, tmp_path: Path, property_model: UniMol2ForPropertyRegression) -> None:
        result = run_script(TINY, tmp_path / "out", "--targets", "a,b,c", "--verify", "--max-shard-size", "200KB")
        assert result.returncode == 0, result.stderr
        assert "largest difference" in result.stdout
        files = {path.name for path in (tmp_path / "out").iterdir()}
        assert {"config.json", "preprocessor_config.json", "model.safetensors.index.json"} <= files
        assert not any(name.endswith((".pt", ".bin", ".py")) for name in files)
        loaded = UniMol2ForPropertyRegression.from_pretrained(tmp_path / "out").eval()
        assert loaded.config.target_names == ["a", "b", "c"]
        assert_same_weights(loaded, property_model)
        assert_same_output(predictions(loaded), predictions(property_model))
        assert isinstance(AutoModel.from_pretrained(tmp_path / "out"), UniMol2Model)
        assert isinstance(AutoFeatureExtractor.from_pretrained(tmp_path / "out"), UniMol2FeatureExtractor)

    def test_pretraining_heads_on_request(self, tmp_path: Path) -> None:
        result = run_script(TINY, tmp_path, "--ignore-head", "--verify", "--molecules", "CCO,c1ccccc1")
        assert result.returncode == 0, result.stderr
        for output in ("atoms", "pairs", "token_logits", "coordinates", "distances"):
            assert output in result.stdout

    def test_refusal_is_one_clear_line(self, tmp_path: Path) -> None:
        result = run_script(tmp_path / "missing.pt", tmp_path / "out")
        assert result.returncode == 2
        assert "error:" in result.stdout
        assert "Traceback" not in result.stdout + result.stderr
        assert not (tmp_path / "out").exists()


def test_verification_of_rounded_and_buffer_free_files(weights: StateDict, tmp_path: Path) -> None:
    half = {name: tensor.half() for name, tensor in weights.items() if name != GAUSSIAN_BUFFER}
    checkpoint = load_reference_checkpoint(save({"model": half}, tmp_path))
    convert_checkpoint(checkpoint).save_pretrained(tmp_path / "out")
    UniMol2FeatureExtractor().save_pretrained(tmp_path / "out")
    assert max(largest_differences(checkpoint, tmp_path / "out", ["CC(=O)Oc1ccccc1C(=O)O"]).values()) <= 1e-5


def test_verification_notices_a_wrong_conversion(tiny_checkpoint: ReferenceCheckpoint, tmp_path: Path) -> None:
    model = convert_checkpoint(tiny_checkpoint)
    with torch.no_grad():
        model.unimol2.layers[1].outer_product.out_proj.weight.mul_(1.01)
    model.save_pretrained(tmp_path)
    UniMol2FeatureExtractor().save_pretrained(tmp_path)
    differences = largest_differences(tiny_checkpoint, tmp_path, ["CC(=O)Oc1ccccc1C(=O)O"])
    assert differences["pairs"] > 1e-4
