"""The hostile table, what comes from the Hub or goes there: checkpoints, configs, published folders.

A row is a name, what is done in an empty folder, the error's class, a part of its message.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import GOLDEN
from huggingface_hub.errors import StrictDataclassError
from rich.console import Console
from safetensors.numpy import save_file
from transformers import AutoModel

from unimol2_hf import (
    NANO,
    CheckpointError,
    ModelError,
    OutputFolderError,
    SettingsError,
    UniMol2Config,
    check,
)
from unimol2_hf.hub.convert import GAUSSIAN_BUFFER, convert, convert_checkpoint, load_reference_checkpoint
from unimol2_hf.hub.publish import publish
from unimol2_hf.hub.repository.check_unimol2 import REFERENCE_FILE, write_checksums
from unimol2_hf.hub.settings import ConvertSettings, PublishSettings
from unimol2_hf.modeling_unimol2 import UniMol2Model
from unimol2_hf.models.loading import load_feature_extractor, load_model

Call = Callable[[Path], Any]
Row = tuple[str, Call, Any, str]
TINY = GOLDEN / "tiny_checkpoint.pt"
CONSOLE = Console(quiet=True)


def converted(content: Any, folder: Path) -> Any:
    """A checkpoint with that content, or of those bytes."""
    path = folder / "checkpoint.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    convert(str(path), folder / "out", ConvertSettings(), CONSOLE)


def changed(name: str, change: Callable[[torch.Tensor], Any]) -> Call:
    """The golden checkpoint with one tensor changed."""

    def call(_: Path) -> Any:
        checkpoint = load_reference_checkpoint(TINY)
        weights = checkpoint.head if name in checkpoint.head else checkpoint.state_dict
        weights[name] = change(weights[name])
        return convert_checkpoint(checkpoint)

    return call


class Runs:
    """What a pickle does when it is loaded by whoever trusts it."""

    def __reduce__(self) -> Any:
        return (print, ("run",))


def configured(content: Any) -> Call:
    """A folder whose config.json has that content; a mapping changes single entries of nano's."""

    def call(folder: Path) -> Any:
        if isinstance(content, dict):
            told = json.dumps({**json.loads((Path(NANO) / "config.json").read_text()), **content})
        else:
            told = content
        (folder / "config.json").write_text(told)
        shutil.copy(Path(NANO) / "model.safetensors", folder)
        return load_model(UniMol2Model, str(folder))

    return call


def extractor_of(content: str) -> Call:
    def call(folder: Path) -> Any:
        (folder / "preprocessor_config.json").write_text(content)
        return load_feature_extractor(str(folder))

    return call


def published(folder: Path) -> Path:
    (made,) = publish("unimol2-nano", folder / "out", PublishSettings(), CONSOLE)
    return made


def spoilt(name: str, content: bytes, with_sums: bool = True) -> Call:
    """A published folder with one file replaced, its checksum told anew."""

    def call(folder: Path) -> Any:
        made = published(folder)
        (made / name).write_bytes(content)
        if with_sums:
            write_checksums(made, [path.name for path in made.iterdir()])
        return check(made)

    return call


def cut_sums(lines: int) -> Call:
    """A published folder of whose checksums the first lines are left."""

    def call(folder: Path) -> Any:
        sums = published(folder) / "SHA256SUMS"
        sums.write_text("".join(sums.read_text().splitlines(keepends=True)[:lines]))
        return check(sums.parent)

    return call


def other_reference(folder: Path) -> Any:
    """Outputs of another shape."""
    made = published(folder)
    arrays: dict[str, Any] = {"embedding": np.zeros((1, 3), np.float32), "coordinates": np.zeros((1, 3))}
    save_file(arrays, made / REFERENCE_FILE, {"smiles": '["C"]'})
    write_checksums(made, [path.name for path in made.iterdir()])
    return check(made)


def published_over(folder: Path, name: str, content: str) -> Any:
    """Where something of that name lies already."""
    (folder / "out" / "unimol2-nano").mkdir(parents=True)
    (folder / "out" / "unimol2-nano" / name).write_text(content)
    return published(folder)


def foreign_code(folder: Path) -> Any:
    """A config that names code of its own: never run unasked."""
    (folder / "evil.py").write_text("raise SystemExit('run')")
    entries = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(entries))
    return AutoModel.from_pretrained(folder, trust_remote_code=False)


QUERY = "encoder.layers.0.self_attn.linear_q.weight"
LINEAR = "encoder.layers.0.ffn.linear_1.weight"
# fmt: off
HUB_ROWS: list[Row] = [
    # Checkpoints.
    ("an empty checkpoint", partial(converted, b""), CheckpointError, "cannot be read|no PyTorch checkpoint"),
    ("a Git LFS pointer", partial(converted, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"), CheckpointError, "Git LFS pointer"),
    ("an archive of nothing", partial(converted, b"PK\x05\x06" + bytes(18)), CheckpointError, "cannot be read"),
    ("a checkpoint that is a folder", lambda p: convert(str(p), p / "out", ConvertSettings(), CONSOLE), CheckpointError, "is not a file"),
    ("a checkpoint with code", partial(converted, {"model": Runs()}), CheckpointError, "foreign code is never run"),
    ("a checkpoint of numbers", partial(converted, {"model": {"a": 1.0}}), CheckpointError, "no weights found"),
    ("a checkpoint of settings", partial(converted, argparse.Namespace(model="x")), CheckpointError, "no weights found"),
    ("a checkpoint of nothing", partial(converted, {"model": {}}), CheckpointError, "no weights found"),
    ("weights of whole numbers", changed(LINEAR, torch.Tensor.long), CheckpointError, "linear_1.weight is of torch.int64, not of"),
    ("complex weights", changed(LINEAR, lambda t: t.to(torch.complex64)), CheckpointError, "linear_1.weight is of torch.complex64"),
    ("infinite weights", changed(LINEAR, lambda t: t / 0), CheckpointError, "linear_1.weight holds numbers that are not finite"),
    ("weights without dimensions", changed(LINEAR, lambda _: torch.tensor(1.0)), CheckpointError, "linear_1.weight has shape .., which is no matrix"),
    ("weights of another width", changed(LINEAR, lambda t: t[:, :-1]), CheckpointError, r"linear_1.weight has shape \(\d+, 63\) instead of"),
    ("weights of eight bits", changed(LINEAR, lambda t: t.to(torch.float8_e4m3fn)), CheckpointError, "linear_1.weight is of torch.float8_e4m3fn"),
    ("weights that are not there", changed(LINEAR, lambda t: t.to("meta")), CheckpointError, "linear_1.weight is no dense tensor of the CPU"),
    ("weights of four terabytes in four bytes", changed("embed_tokens.weight", lambda _: torch.ones(1, 1).expand(10**6, 10**6)), CheckpointError, "embed_tokens.weight repeats 4 bytes"),
    ("weights too large for float32", changed("lm_head.bias", lambda t: torch.full_like(t, 1e300, dtype=torch.float64)), CheckpointError, "lm_head.bias holds numbers that are not finite in float32"),
    ("queries of another width", changed(QUERY, lambda t: t[:, :7]), CheckpointError, r"linear_q.weight has shape \(64, 7\) instead of \(64, 64\)"),
    ("queries without dimensions", changed(QUERY, lambda _: torch.tensor(1.0)), CheckpointError, r"linear_q.weight has shape \(\) instead of"),
    ("queries of one dimension", changed(QUERY, torch.Tensor.flatten), CheckpointError, r"linear_q.weight has shape \(4096,\) instead of"),
    ("Gaussians that are sparse", changed(GAUSSIAN_BUFFER, torch.Tensor.to_sparse), CheckpointError, "gaussian.mean is no dense tensor"),
    ("Gaussians without dimensions", changed(GAUSSIAN_BUFFER, lambda t: t[-1]), CheckpointError, r"gaussian.mean has shape \(\) instead of"),
    ("Gaussians that are not even", changed(GAUSSIAN_BUFFER, torch.square), CheckpointError, "^se3_invariant_kernel.gaussian.mean is not evenly spaced from 0; this model expects that it is$"),
    ("a head without dimensions", changed("out_proj.weight", lambda _: torch.tensor(1.0)), CheckpointError, "out_proj.weight has shape .., which is no matrix"),
    ("a head for nobody", lambda p: convert(str(TINY), p / "out", ConvertSettings(head="none"), CONSOLE), CheckpointError, "there is no task head 'none'"),
    ("a tolerance below zero", lambda _: ConvertSettings(tolerance=-1.0), SettingsError, "use 0 or more"),
    # Configs.
    ("a config that is no JSON", configured("{"), ModelError, "cannot be loaded"),
    ("a config that is a list", configured("[]"), ModelError, "cannot be loaded"),
    ("a config of nothing", configured(""), ModelError, "cannot be loaded"),
    ("a config of BERT", configured({"model_type": "bert"}), ModelError, "holds no Uni-Mol2 model"),
    ("a config without its kind", configured({"model_type": None}), ModelError, "holds no Uni-Mol2 model"),
    ("a config of the future", configured({"format_version": 99}), ModelError, "99"),
    ("a width below zero", configured({"hidden_size": -192}), ModelError, "hidden_size"),
    ("a width that is a word", configured({"hidden_size": "wide"}), ModelError, "hidden_size"),
    ("heads that do not divide", configured({"num_attention_heads": 7}), ModelError, "num_attention_heads|heads"),
    ("layers that are not there", configured({"num_hidden_layers": 9}), ModelError, "is incomplete"),
    ("another width than the weights'", configured({"hidden_size": 96, "num_attention_heads": 6}), ModelError, "is incomplete"),
    ("a target without a name", lambda _: UniMol2Config(targets=[{"kind": "regression"}]), (ValueError, StrictDataclassError), "name"),
    ("a target of no kind", lambda _: UniMol2Config(targets=[{"name": "a", "kind": "rank"}]), (ValueError, StrictDataclassError), "rank"),
    ("a standard deviation of zero", lambda _: UniMol2Config(targets=[{"name": "a", "kind": "regression", "mean": 0.0, "std": 0.0}]), (ValueError, StrictDataclassError), "std"),
    ("a config that names its own code", foreign_code, ValueError, "trust_remote_code|model type `evil`"),
    ("an extractor that is no JSON", extractor_of("{"), ModelError, "no feature extractor"),
    ("an extractor of another kind", extractor_of('{"atom_order": "sideways"}'), SettingsError, "unknown atom_order 'sideways'"),
    # Published folders.
    ("no folder and no id", lambda _: check("no such folder anywhere"), Exception, "no repository's name|is no folder"),
    ("checksums of nonsense", spoilt("SHA256SUMS", b"\x00\xff nonsense\n", with_sums=False), ModelError, "is missing|cannot be read|not published"),
    ("checksums of a file elsewhere", spoilt("SHA256SUMS", b"0" * 64 + b"  ../../../etc/passwd\n", with_sums=False), ModelError, "leads out of"),
    ("no checksums at all", cut_sums(0), ModelError, "SHA256SUMS leaves out .*config.json.*model.safetensors"),
    ("checksums that were broken off", cut_sums(-1), ModelError, "SHA256SUMS leaves out worker_pool.py"),
    ("a publication of other kinds", spoilt("publication.json", b'{"files": [3]}', with_sums=False), ModelError, "publication.json differs"),
    ("a reference that is no safetensors", spoilt(REFERENCE_FILE, b"x" * 40), ModelError, "cannot be recomputed"),
    ("a reference of another shape", other_reference, ModelError, "embedding by inf"),
    ("weights of another model", spoilt("model.safetensors", b"x" * 40), ModelError, "cannot be recomputed"),
    ("a folder of somebody else's", lambda p: published_over(p, "notes.txt", "mine"), OutputFolderError, "was not published from here"),
    ("a publication that is no JSON", lambda p: published_over(p, "publication.json", "{"), OutputFolderError, "was not published from here"),
    ("a training set that is not there", lambda p: publish("unimol2-nano", p / "out", PublishSettings(include_training_set=True), CONSOLE), ModelError, "has no training_set.parquet"),
    ("a model that is nowhere", lambda p: publish("nowhere", p / "out", PublishSettings(), CONSOLE), ModelError, "nowhere cannot be loaded"),
    ("a folder without a model", lambda p: publish(str(p), p / "out", PublishSettings(), CONSOLE), ModelError, "holds no Uni-Mol2 model"),
]
# fmt: on
