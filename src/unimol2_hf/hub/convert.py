"""Official Uni-Mol2 checkpoints to folders that Transformers loads.

A checkpoint is a file (`checkpoint.pt` of the reference's trainer, or `model_*.pth` of unimol_tools) or a Hub id.
Nothing in it is executed: loading is weights-only.
"""

import argparse
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, StrictDataclassError
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from ..configuration_unimol2 import UniMol2Config
from ..data.atomic_files import make_output_folder
from ..errors import CheckpointError
from ..feature_extraction_unimol2 import UniMol2FeatureExtractor
from ..modeling_unimol2 import (
    UniMol2ForPreTraining,
    UniMol2ForPropertyRegression,
    UniMol2Model,
    UniMol2PreTrainedModel,
)
from ..models.loading import quiet_transformers
from .reference_forward import reference_forward
from .settings import ConvertSettings

StateDict = dict[str, Tensor]
Sources = dict[str, tuple[str, ...]]
Converted = TypeVar("Converted", bound=UniMol2PreTrainedModel)

DEFAULT_MOLECULES = ("C", "CC(=O)Oc1ccccc1C(=O)O", "F/C=C/Cl", "C[N+](C)(C)CCO.[Cl-]", "CC(C)Cc1ccc(cc1)[C@H](C)C(=O)O")
GAUSSIAN_BUFFER = "se3_invariant_kernel.gaussian.mean"

# Reference name -> name here; layers and fused projections follow below.
_RENAMED = {
    "embed_tokens.weight": "unimol2.embeddings.atom_embeddings.weight",
    "atom_feature.atom_encoder.weight": "unimol2.embeddings.feature_embeddings.weight",
    "atom_feature.degree_encoder.weight": "unimol2.embeddings.degree_embeddings.weight",
    "atom_feature.vnode_encoder.weight": "unimol2.embeddings.cls_embedding",
    "edge_feature.edge_encoder.weight": "unimol2.pair_embeddings.bond_embeddings.weight",
    "edge_feature.shorest_path_encoder.weight": "unimol2.pair_embeddings.shortest_path_embeddings.weight",
    "edge_feature.vnode_virtual_distance.weight": "unimol2.pair_embeddings.cls_embedding",
    "se3_invariant_kernel.gaussian.mul.weight": "unimol2.pair_embeddings.distance_embedding.scale_embeddings.weight",
    "se3_invariant_kernel.gaussian.bias.weight": "unimol2.pair_embeddings.distance_embedding.shift_embeddings.weight",
    "lm_head.weight": "token_head.decoder.weight",
    "lm_head.bias": "token_head.decoder.bias",
    "movement_pred_head.force_proj1.weight": "coordinate_head.force_proj.weight",
}
# Modules with a weight and mostly a bias: prefix -> prefix.
_RENAMED_MODULES = {
    "encoder.layer_norm": "unimol2.layer_norm",
    "encoder.pair_layer_norm": "unimol2.pair_layer_norm",
    "se3_invariant_kernel.out_proj.layer1": "unimol2.pair_embeddings.distance_embedding.linear_1",
    "se3_invariant_kernel.out_proj.layer2": "unimol2.pair_embeddings.distance_embedding.linear_2",
    "lm_head.dense": "token_head.dense",
    "lm_head.layer_norm": "token_head.layer_norm",
    "movement_pred_head.layer_norm": "coordinate_head.layer_norm",
    "movement_pred_head.pair_layer_norm": "coordinate_head.pair_norm",
    "movement_pred_head.linear_bias": "coordinate_head.pair_bias_proj",
}
_RENAMED_LAYER_MODULES = {
    "self_attn.linear_o": "attention.o_proj",
    "self_attn.linear_bias": "attention.pair_bias_proj",
    "self_attn_layer_norm": "attention_norm",
    "ffn.linear_1": "mlp.fc1",
    "ffn.linear_2": "mlp.fc2",
    "final_layer_norm": "mlp_norm",
    "x_layer_norm_opm": "outer_product_norm",
    "opm.linear_in": "outer_product.in_proj",
    "opm.linear_out": "outer_product.out_proj",
    "pair_layer_norm_trimul": "triangle_norm",
    "pair_tri_mul.layer_norm_out": "triangle.norm",
    "pair_tri_mul.linear_z": "triangle.out_proj",
    "pair_layer_norm_ffn": "pair_mlp_norm",
    "pair_ffn.linear_1": "pair_mlp.fc1",
    "pair_ffn.linear_2": "pair_mlp.fc2",
}
PRETRAINING_HEADS = {"lm_head.": ("token_head.",), "movement_pred_head.": ("coordinate_head.",)}
_FUSED_TRIANGLE = ("pair_tri_mul.linear_ab_p", "pair_tri_mul.linear_ab_g", "pair_tri_mul.linear_g")
# Others are no real numbers, or are so only with a scale that lies elsewhere (float8, quantized).
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_HEAD_PATTERN = re.compile(
    r"classification_heads?\.(?:(?P<name>[^.]+)\.)?(?P<part>dense|out_proj)\.(?P<kind>weight|bias)$"
)


@dataclass(frozen=True)
class KeyPlan:
    """Where each tensor here comes from: one reference tensor, or several stacked along the first axis."""

    sources: Sources

    def convert(self, reference: StateDict) -> StateDict:
        """Tensors under their names here, fused where this package fuses."""
        return {
            target: torch.cat([reference[name] for name in names]) if len(names) > 1 else reference[names[0]]
            for target, names in self.sources.items()
        }

    def without(self, prefixes: Iterable[str]) -> "KeyPlan":
        """The plan less the tensors whose names here start with one of the prefixes."""
        dropped = tuple(prefixes)
        return KeyPlan({target: names for target, names in self.sources.items() if not target.startswith(dropped)})

    def shapes(self, config: UniMol2Config) -> dict[str, torch.Size]:
        """What `convert` expects of a model of those sizes, under the reference names."""
        with torch.device("meta"):
            whole = UniMol2ForPreTraining(config).state_dict()
        triangle = [2 * config.pair_inner_size, 2 * config.pair_inner_size, config.pair_hidden_size]
        shapes: dict[str, torch.Size] = {}
        for target, names in self.sources.items():
            rows = triangle if ".triangle.in_proj." in target else len(whole[target]) // len(names)
            shapes |= {name: piece.shape for name, piece in zip(names, whole[target].split(rows), strict=True)}
        return shapes

    def split(self, converted: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> StateDict:
        """The inverse of `convert`: tensors under their reference names (weights, or gradients)."""
        reference: StateDict = {}
        for target, names in self.sources.items():
            sizes = [shapes[name][0] for name in names]
            for name, piece in zip(names, converted[target].split(sizes), strict=True):
                reference[name] = piece
        return reference


@dataclass
class ReferenceCheckpoint:
    """The weights of a reference checkpoint, cleaned: no wrapper prefix, one chosen task head apart.

    Attributes:
        state_dict: encoder and pretraining heads under their reference names.
        head: the task head (`dense`, `out_proj`), empty if there is none.
        origin: where in the file the weights were found ("model", "ema", ...).
    """

    state_dict: StateDict
    head: StateDict = field(default_factory=dict)
    origin: str = "model"


def key_plan(num_layers: int) -> KeyPlan:
    """The tensors of encoder and pretraining heads."""
    sources: Sources = {target: (source,) for source, target in _RENAMED.items()}
    for source, target in _RENAMED_MODULES.items():
        for kind in ("weight", "bias"):
            sources[f"{target}.{kind}"] = (f"{source}.{kind}",)
    sources["coordinate_head.qkv_proj.weight"] = tuple(f"movement_pred_head.{part}_proj.weight" for part in "qkv")
    for layer in range(num_layers):
        sources.update(_layer_sources(f"encoder.layers.{layer}.", f"unimol2.layers.{layer}."))
    return KeyPlan(sources)


def _layer_sources(source_prefix: str, target_prefix: str) -> Sources:
    sources: Sources = {
        f"{target_prefix}{target}.{kind}": (f"{source_prefix}{source}.{kind}",)
        for source, target in _RENAMED_LAYER_MODULES.items()
        for kind in ("weight", "bias")
    }
    sources[f"{target_prefix}attention.qkv_proj.weight"] = tuple(
        f"{source_prefix}self_attn.linear_{part}.weight" for part in "qkv"
    )
    for kind in ("weight", "bias"):
        sources[f"{target_prefix}triangle.in_proj.{kind}"] = tuple(
            f"{source_prefix}{module}.{kind}" for module in _FUSED_TRIANGLE
        )
    return sources


def load_reference_checkpoint(
    path: Path, head_name: str | None = None, ignore_head: bool = False
) -> ReferenceCheckpoint:
    """Read a checkpoint without running any code in it.

    Raises:
        CheckpointError: unreadable, unsafe, without weights, or with several task heads and none chosen.
    """
    loaded = _load_weights_only(path)
    origin, state_dict = _find_state_dict(loaded)
    state_dict = _strip_prefixes(state_dict)
    heads = {} if ignore_head else _task_heads(state_dict)
    body = {name: tensor for name, tensor in state_dict.items() if not _HEAD_PATTERN.match(name)}
    return ReferenceCheckpoint(body, _choose_head(heads, head_name), origin)


def _load_weights_only(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Mapped, not read: of the largest one 4.5 GB need not lie in memory twice.
            mapped = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        if foreign is None:
            raise CheckpointError(f"{path} is no PyTorch checkpoint (an error page or a Git LFS pointer?)") from error
        raise CheckpointError(
            f"{path} holds more than tensors and plain values ({foreign[1]}), and foreign code is never run. "
            "Save its weights alone (torch.save(checkpoint['model'], ...)) on a machine that trusts it."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read as a PyTorch checkpoint: {error}") from error


def _find_state_dict(loaded: Any) -> tuple[str, StateDict]:
    """EMA weights if there are any (they are what the reference evaluates), else the model's."""
    if isinstance(loaded, dict):
        candidates: list[tuple[str, Any]] = [("ema", loaded.get("ema")), ("model", loaded.get("model"))]
        candidates += [("state_dict", loaded.get("state_dict")), ("model_state_dict", loaded.get("model_state_dict"))]
        candidates.append(("top level", loaded))
        for origin, candidate in candidates:
            state_dict = _as_state_dict(candidate)
            if state_dict:
                return origin, state_dict
    raise CheckpointError("no weights found: neither 'model', 'ema' nor the file itself maps names to tensors")


def _as_state_dict(candidate: Any) -> StateDict:
    if not isinstance(candidate, Mapping):
        return {}
    # The reference's EMA is {"params": {...}, "decay": ...}.
    if isinstance(candidate.get("params"), Mapping):
        candidate = candidate["params"]
    if not candidate or not all(isinstance(value, Tensor) for value in candidate.values()):
        return {}
    return {str(name): value for name, value in candidate.items()}


def _strip_prefixes(state_dict: StateDict) -> StateDict:
    for prefix in ("module.", "_orig_mod.", "model.", "unimol2."):
        while state_dict and all(name.startswith(prefix) for name in state_dict):
            state_dict = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items()}
    return state_dict


def _task_heads(state_dict: StateDict) -> dict[str, StateDict]:
    heads: dict[str, StateDict] = {}
    for name, tensor in state_dict.items():
        match = _HEAD_PATTERN.match(name)
        if match:
            head = heads.setdefault(match["name"] or "default", {})
            head[f"{match['part']}.{match['kind']}"] = tensor
    return heads


def _choose_head(heads: dict[str, StateDict], head_name: str | None) -> StateDict:
    if head_name is not None:
        if head_name not in heads:
            raise CheckpointError(f"there is no task head {head_name!r}; the file has: {', '.join(heads) or 'none'}")
        heads = {head_name: heads[head_name]}
    if len(heads) > 1:
        raise CheckpointError(f"the file has several task heads, choose one: {', '.join(heads)}")
    return next(iter(heads.values()), {})


def config_from_weights(state_dict: StateDict) -> UniMol2Config:
    """All sizes, read off the shapes.

    Raises:
        CheckpointError: the tensors that tell the sizes are missing or unsound, or it is another architecture.
    """
    layers = {int(match[1]) for name in state_dict if (match := re.match(r"encoder\.layers\.(\d+)\.", name))}
    if layers and max(layers) >= len(layers):
        raise CheckpointError(
            f"this is no Uni-Mol2 checkpoint: it has {len(layers)} layers, one of which is number {max(layers)}"
        )
    first = "encoder.layers.0."
    heads, pair_width = _matrix_shape(state_dict, f"{first}self_attn.linear_bias.weight")
    vocabulary, width = _matrix_shape(state_dict, "embed_tokens.weight")
    num_gaussians = _matrix_shape(state_dict, "se3_invariant_kernel.out_proj.layer1.weight")[0]
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": max(layers) + 1,
        "num_attention_heads": heads,
        "intermediate_size": _matrix_shape(state_dict, f"{first}ffn.linear_1.weight")[0],
        "pair_hidden_size": pair_width,
        "pair_inner_size": _matrix_shape(state_dict, f"{first}opm.linear_in.weight")[0] // 2,
        "num_gaussians": num_gaussians,
        "gaussian_max_angstrom": _gaussian_max(state_dict, num_gaussians),
    }
    try:
        return UniMol2Config(**sizes)
    except StrictDataclassError as error:
        raise CheckpointError(f"this is no Uni-Mol2 checkpoint: {error}") from error


def _matrix_shape(state_dict: StateDict, name: str) -> torch.Size:
    if name not in state_dict:
        raise CheckpointError(f"this is no Uni-Mol2 checkpoint: {name} is missing from its weights")
    tensor = state_dict[name]
    fault = _fault_of_kind(tensor)
    if fault is None and (tensor.dim() != 2 or not tensor.numel()):
        fault = f"has shape {tuple(tensor.shape)}, which is no matrix's"
    if fault is not None:
        raise CheckpointError(f"this is no Uni-Mol2 checkpoint: {name} {fault}")
    return tensor.shape


def _gaussian_max(state_dict: StateDict, num_gaussians: int) -> float:
    means = state_dict.get(GAUSSIAN_BUFFER)
    if means is None:
        return 9.0
    _require_sound(GAUSSIAN_BUFFER, means, torch.Size([num_gaussians]))
    means = means.float()
    # fp16 files round the means; the model computes them anew.
    if not torch.allclose(means, torch.linspace(0.0, float(means[-1]), len(means)), atol=5e-3):
        raise CheckpointError(f"{GAUSSIAN_BUFFER} is not evenly spaced from 0; this model expects that it is")
    return round(float(means[-1]), 3)


def check_tensors(state_dict: StateDict, shapes: Mapping[str, torch.Size]) -> None:
    """Raise `CheckpointError` with every missing, surplus and unsound tensor, if there is one.

    Args:
        state_dict: of the checkpoint, under the reference names.
        shapes: of what there must be; see `KeyPlan.shapes`.
    """
    found = {name: tensor for name, tensor in state_dict.items() if name != GAUSSIAN_BUFFER}
    problems = [f"missing: {name}" for name in sorted(shapes.keys() - found)]
    problems += [f"surplus: {name}" for name in sorted(found.keys() - shapes)]
    faults = {name: _fault(found[name], shape) for name, shape in sorted(shapes.items()) if name in found}
    problems += [f"{name} {fault}" for name, fault in faults.items() if fault]
    if problems:
        raise CheckpointError(f"{len(problems)} keys do not fit the model:\n  " + "\n  ".join(problems))


def _fault(tensor: Tensor, shape: torch.Size | None = None) -> str | None:
    """What keeps a tensor from being a weight of that shape, or of any, if anything does."""
    fault = _fault_of_kind(tensor)
    if fault is None and shape is not None and tensor.shape != shape:
        fault = f"has shape {tuple(tensor.shape)} instead of {tuple(shape)}"
    if fault is None and not torch.isfinite(tensor.float()).all():
        fault = "holds numbers that are not finite in float32"
    return fault


def _fault_of_kind(tensor: Tensor) -> str | None:
    if tensor.is_nested or tensor.layout != torch.strided or tensor.device.type != "cpu":
        return f"is no dense tensor of the CPU's memory ({tensor.layout}, {tensor.device})"
    if tensor.dtype not in _DTYPES:
        return f"is of {tensor.dtype}, not of {', '.join(map(str, _DTYPES))}"
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        return f"repeats {tensor.untyped_storage().nbytes():,} bytes to shape {tuple(tensor.shape)}"
    return None


def _require_sound(name: str, tensor: Tensor, shape: torch.Size | None = None) -> None:
    fault = _fault(tensor, shape)
    if fault is not None:
        raise CheckpointError(f"{name} {fault}")


def convert_checkpoint(
    checkpoint: ReferenceCheckpoint, target_names: list[str] | None = None
) -> UniMol2PreTrainedModel:
    """The model with the checkpoint's weights in float32.

    With its task head if there is one (unimol_tools' files have one, and lack `lm_head`); else for pretraining, or the
    bare encoder where the file has neither pretraining head.

    Raises:
        CheckpointError: keys, shapes or numbers do not fit.
    """
    config = config_from_weights(checkpoint.state_dict)
    absent = {head for head in PRETRAINING_HEADS if not any(map(_starts(head), checkpoint.state_dict))}
    if len(absent) == 1 and not checkpoint.head:
        absent = set()  # half a pretraining model: `check_tensors` lists what is missing
    plan = key_plan(config.num_hidden_layers).without({target for head in absent for target in PRETRAINING_HEADS[head]})
    check_tensors(checkpoint.state_dict, plan.shapes(config))
    weights = plan.convert(checkpoint.state_dict)
    if checkpoint.head:
        _set_targets(config, checkpoint.head, target_names)
        weights = {name: tensor for name, tensor in weights.items() if name.startswith("unimol2.")}
        weights |= {f"classifier.{name}": tensor for name, tensor in checkpoint.head.items()}
        return _load_into(UniMol2ForPropertyRegression(config), weights)
    if absent:
        return _load_into(UniMol2Model(config), {name.removeprefix("unimol2."): w for name, w in weights.items()})
    return _load_into(UniMol2ForPreTraining(config), weights)


def _starts(prefix: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(prefix)


def _set_targets(config: UniMol2Config, head: StateDict, target_names: list[str] | None) -> None:
    if "out_proj.weight" not in head:
        raise CheckpointError("missing: classification_heads out_proj.weight")
    for name, tensor in head.items():
        _require_sound(f"classification_heads {name}", tensor)
    outputs = _matrix_shape(head, "out_proj.weight")[0]
    names = target_names or [f"target_{number}" for number in range(outputs)]
    if len(set(names)) < len(names):
        raise CheckpointError(f"target names must differ: {', '.join(names)}")
    if len(names) != outputs:
        raise CheckpointError(f"{len(names)} target names for a task head with {outputs} outputs")
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    config.head_type = "mlp" if "dense.weight" in head else "linear"


def _load_into(model: Converted, weights: StateDict) -> Converted:
    try:
        model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"weights do not fit the model: {error}") from error
    return model.eval()


def resolve_checkpoint(checkpoint: str, filename: str | None) -> Path:
    """A local file, or one fetched from the Hub: `owner/repo` with a file name, or `owner/repo/path/in/repo`."""
    path = Path(checkpoint)
    if path.exists():
        return path
    parts = checkpoint.split("/")
    if filename is None and len(parts) > 2:
        checkpoint, filename = "/".join(parts[:2]), "/".join(parts[2:])
    if filename is None or len(checkpoint.split("/")) != 2:
        raise CheckpointError(
            f"{checkpoint} is no file here; for a Hub checkpoint give owner/repo with --filename, "
            "for example dptech/Uni-Mol2 --filename modelzoo/84M/checkpoint.pt"
        )
    try:
        return Path(hf_hub_download(checkpoint, filename))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise CheckpointError(f"{checkpoint}/{filename} is no local file and cannot be fetched: {error}") from error


def largest_differences(
    checkpoint: ReferenceCheckpoint, output_dir: Path, molecules: Iterable[str]
) -> dict[str, float]:
    """Each output's largest difference, relative to its largest value, between two independent computations.

    Before: the checkpoint's own tensors in the plain formulas of `reference_forward`. After: the folder, as a user
    loads it. Each molecule is computed alone.
    """
    before = {name: tensor.float() for name, tensor in checkpoint.state_dict.items()}
    head = {name: tensor.float() for name, tensor in checkpoint.head.items()}
    config = UniMol2Config.from_pretrained(output_dir)
    # Absent in some files, rounded in half-precision ones.
    before[GAUSSIAN_BUFFER] = torch.linspace(0.0, float(config.gaussian_max_angstrom), config.num_gaussians)
    extractor = UniMol2FeatureExtractor.from_pretrained(output_dir)
    model_class = _model_class(output_dir)
    with quiet_transformers():
        model = model_class.from_pretrained(output_dir).eval()
    differences: dict[str, float] = {}
    for molecule in molecules:
        batch = extractor(molecule)
        expected = reference_forward(before, head, batch)
        actual = _outputs(model, batch)
        for name in actual:
            scale = expected[name].abs().max().clamp(min=1e-12)
            difference = ((expected[name] - actual[name]).abs().max() / scale).nan_to_num(math.inf, math.inf).item()
            differences[name] = max(differences.get(name, 0.0), difference)
    return differences


def _model_class(folder: Path) -> type[UniMol2PreTrainedModel]:
    architecture = (UniMol2Config.from_pretrained(folder).architectures or ["UniMol2Model"])[0]
    classes = (UniMol2Model, UniMol2ForPreTraining, UniMol2ForPropertyRegression)
    return next(model_class for model_class in classes if model_class.__name__ == architecture)


@torch.no_grad()
def _outputs(model: UniMol2PreTrainedModel, batch: Mapping[str, Tensor]) -> StateDict:
    base = model if isinstance(model, UniMol2Model) else model.unimol2
    encoded = base(**batch)
    outputs = {"atoms": encoded.last_hidden_state[0], "pairs": encoded.pair_hidden_state[0]}
    if isinstance(model, UniMol2ForPreTraining):
        pretraining = model(**batch)
        outputs["token_logits"] = pretraining.token_logits[0]
        outputs["coordinates"] = pretraining.predicted_coordinates[0]
        outputs["distances"] = pretraining.predicted_distances[0]
    elif isinstance(model, UniMol2ForPropertyRegression):
        outputs["head"] = model.classifier(encoded.pooler_output)[0]
    return outputs


def convert(checkpoint: str, output_dir: Path, settings: ConvertSettings, console: Console) -> None:
    """Convert a checkpoint to safetensors, config and feature extractor; see `ConvertSettings`.

    Args:
        checkpoint: checkpoint.pt, model_*.pth, or a Hub id.
        output_dir: folder to write.
        settings: what is taken, and whether it is verified.
        console: where it is told what was made.

    Raises:
        CheckpointError: the checkpoint cannot be read or converted, or the verification failed.
    """
    path = resolve_checkpoint(checkpoint, settings.filename)
    loaded = load_reference_checkpoint(path, settings.head, settings.ignore_head)
    model = convert_checkpoint(loaded, settings.targets.split(",") if settings.targets else None)
    make_output_folder(output_dir)
    save_converted(model, output_dir, settings.max_shard_size)
    console.print(
        f"{type(model).__name__}, {model.num_parameters():,} parameters, from the weights under {loaded.origin!r} "
        f"-> {escape(str(output_dir))}"
    )
    if settings.verify:
        molecules = settings.molecules.split(",") if settings.molecules else DEFAULT_MOLECULES
        del model
        verify(loaded, output_dir, molecules, settings.tolerance, console)


def save_converted(model: UniMol2PreTrainedModel, folder: Path, max_shard_size: str) -> None:
    """Write a converted model with the extractor that its checkpoint was trained with."""
    with quiet_transformers():
        model.save_pretrained(folder, max_shard_size=max_shard_size)
    UniMol2FeatureExtractor().save_pretrained(folder)


def verify(
    checkpoint: ReferenceCheckpoint, folder: Path, molecules: Iterable[str], tolerance: float, console: Console
) -> dict[str, float]:
    """Tell the largest differences (see `largest_differences`); raise `CheckpointError` where one is too large."""
    differences = largest_differences(checkpoint, folder, molecules)
    table = Table("output", "largest relative difference", title="before (plain formulas) and after (Transformers)")
    for name, difference in differences.items():
        table.add_row(name, f"{difference:.2e}")
    console.print(table)
    largest = max(differences.values())
    console.print(f"largest difference: {largest:.2e} (tolerance {tolerance:.0e})")
    if not largest <= tolerance:
        raise CheckpointError(f"what was converted answers otherwise than the checkpoint, by {largest:.2e}")
    return differences
