"""The hostile table, calls and commands: what hung, answered with nonsense or ended in a traceback.

A row is a name, what is done in an empty folder, the error's class (whose `code` tables carry), a part of its message.
"""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import pipeline

from unimol2_hf import (
    NANO,
    CheckpointError,
    HubError,
    ModelError,
    OutputFolderError,
    SettingsError,
    TableError,
    UniMol2Config,
    UniMol2FeatureExtractor,
    UniMol2ForPropertyRegression,
    UniMol2Model,
    export_with_code,
)
from unimol2_hf.data.molecule_files import read_molecules
from unimol2_hf.errors import MetricsError, MoleculeTooLargeError
from unimol2_hf.fingerprints import FINGERPRINTS_FILE, load_fingerprints
from unimol2_hf.hub.convert import config_from_weights
from unimol2_hf.hub.push import push_folder
from unimol2_hf.hub.settings import ExportSettings
from unimol2_hf.jobs.embed import embed
from unimol2_hf.jobs.settings import EmbedSettings
from unimol2_hf.targets.metrics import binary_metrics, regression_metrics

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "pair_hidden_size": 8,
    "pair_inner_size": 4,
}
Call = Callable[[Path], Any]


def small_model() -> UniMol2Model:
    return UniMol2Model(UniMol2Config(**SIZES)).eval()  # type: ignore[arg-type]


def run_model(**changes: Any) -> Any:
    batch = dict(UniMol2FeatureExtractor(num_conformers=0, include_2d=True)(["CCO", "C"]))
    changed = {name: change(batch[name]) if callable(change) else change for name, change in changes.items()}
    return small_model()(**{**batch, **changed})


def read(path: Path, content: str | bytes, **options: Any) -> list[Any]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_molecules(path, **options))


def embedded(folder: Path, **settings: Any) -> Any:
    (folder / "in.smi").write_text("CCO\n")
    from rich.console import Console

    return embed(folder / "in.smi", folder / "out", EmbedSettings(num_workers=0, **settings), Console(quiet=True))


def with_job_file(content: str) -> Call:
    def call(folder: Path) -> Any:
        (folder / "out").mkdir()
        (folder / "out" / "job.json").write_text(content)
        return embedded(folder)

    return call


def damaged_parquet(folder: Path) -> Any:
    path = folder / "in.parquet"
    pd.DataFrame({"smiles": ["CCO"] * 5000}).to_parquet(path, compression="zstd")
    content = bytearray(path.read_bytes())
    content[20:60] = bytes(40)
    return read(path, bytes(content))


def adapted(folder: Path) -> Any:
    from peft import LoraConfig, get_peft_model

    return export_with_code(get_peft_model(small_model(), LoraConfig(target_modules=["qkv_proj"])), folder / "out")


def random_head(folder: Path) -> Any:
    UniMol2ForPropertyRegression(UniMol2Config(**SIZES)).save_pretrained(folder)  # type: ignore[arg-type]
    UniMol2FeatureExtractor().save_pretrained(folder)
    return pipeline("molecule-property-prediction", str(folder))


def exported(folder: Path) -> Any:
    """A head that was never trained, as a program."""
    from rich.console import Console

    from unimol2_hf.hub.exporters import export_program

    UniMol2ForPropertyRegression(UniMol2Config(**SIZES)).save_pretrained(folder / "model")  # type: ignore[arg-type]
    return export_program(str(folder / "model"), folder / "out", ExportSettings(to="torch"), Console(quiet=True))


def damaged_fingerprints(folder: Path) -> Any:
    (folder / FINGERPRINTS_FILE).write_bytes(b"x" * 100)
    return load_fingerprints(folder)


def pushed(folder: Path, repo_id: str, token: str | None = "hf_token") -> str:
    """Of a folder with a config, to a Hub that tests are not allowed to reach."""
    (folder / "config.json").write_text("{}")
    with patch("unimol2_hf.hub.push.get_token", return_value=None):
        return push_folder(folder, repo_id, message="first", token=token)


def layers(*numbers: int) -> dict[str, torch.Tensor]:
    return {f"encoder.layers.{number}.x.weight": torch.zeros(1) for number in numbers}


EXTRACTOR = UniMol2FeatureExtractor
# fmt: off
ROWS: list[tuple[str, Call, Any, str]] = [
    # Hangs, and memory without end.
    ("a billion conformers", lambda _: EXTRACTOR(num_conformers=10**9), SettingsError, "use 0 to 1000"),
    (
        "a billion conformers of one call",
        lambda _: EXTRACTOR()("C", num_conformers=10**9),
        SettingsError,
        "use 0 to 1000",
    ),
    ("a billion retries", lambda _: EXTRACTOR(num_retries=10**9), SettingsError, "seed is 42; use 0 to"),
    ("a SMILES of a million characters", lambda _: EXTRACTOR()("C" * 10**6), MoleculeTooLargeError, "at most 20,000"),
    ("a line without end", lambda p: read(p / "a.smi", "C" * 10_000_010), TableError, "a line of more than"),
    (
        "a line without end, gzip",
        lambda p: read(p / "a.csv.gz", gzip.compress(b"C" * 10_000_010)),
        TableError,
        "a line of",
    ),
    (
        "blank lines without end",
        lambda p: read(p / "a.smi", "\n" * 1_000_010 + "C"),
        TableError,
        "blank lines in a row",
    ),
    ("a record without end", lambda p: read(p / "a.sdf", "C\n" * 1_000_010), TableError, "record of more than"),
    (
        "a checkpoint of a million layers",
        lambda _: config_from_weights(layers(0, 10**6)),
        CheckpointError,
        "number 1000000",
    ),
    # Answers of no meaning.
    (
        "one molecule's features for two",
        lambda _: run_model(atom_features=lambda t: t[:1]),
        ValueError,
        "atom_features is of",
    ),
    (
        "one molecule's pairs for two",
        lambda _: run_model(edge_features=lambda t: t[:1]),
        ValueError,
        "edge_features is of",
    ),
    (
        "coordinates of two columns",
        lambda _: run_model(coordinates=lambda t: t[..., :2]),
        ValueError,
        "coordinates is of",
    ),
    (
        "coordinates of four columns",
        lambda _: run_model(coordinates=lambda t: t.repeat(1, 1, 2)),
        ValueError,
        "coordinates",
    ),
    ("tokens without a batch", lambda _: run_model(input_ids=lambda t: t[0]), ValueError, "input_ids is of shape"),
    ("an unknown read-out", lambda _: run_model(read_out="mean"), ValueError, "read_out is 'mean'; use one of pairs"),
    ("a head that was never trained", random_head, ModelError, "no trained property head"),
    ("the same, as a program", exported, ModelError, "was never trained; fine-tune it first"),
    (
        "an encoder asked for properties",
        lambda _: pipeline("molecule-property-prediction", NANO),
        ModelError,
        "no trained",
    ),
    ("an id column of a .smi", lambda p: read(p / "a.smi", "C a\n", id_column="code"), TableError, "no column code"),
    (
        "an id column that is not there",
        lambda p: read(p / "a.csv", "smiles\nC\n", id_column="code"),
        TableError,
        "no column code",
    ),
    (
        "Gaussians without end",
        lambda _: UniMol2Config(gaussian_max_angstrom=float("inf")),
        StrictDataclassError,
        "finite",
    ),
    # Raw tracebacks.
    ("an empty job file", with_job_file(""), OutputFolderError, "is not what a job wrote"),
    ("a foreign job file", with_job_file("[1, 2]"), OutputFolderError, "is not what a job wrote"),
    (
        "a job file of something else",
        with_job_file(json.dumps({"job": 5})),
        OutputFolderError,
        "is not what a job wrote",
    ),
    (
        "an output folder that is a file",
        lambda p: (p / "out").write_text("x") and embedded(p),
        OutputFolderError,
        "output",
    ),
    ("damaged Parquet", damaged_parquet, TableError, "damaged|no Parquet"),
    ("an adapted model", adapted, ModelError, "merge_and_unload"),
    ("names in a list", lambda _: UniMol2Config(id2label=["a"]), (ValueError, StrictDataclassError), "id2label"),  # type: ignore[list-item]
    ("a table of two dimensions", lambda _: EXTRACTOR()(np.array([["C"]])), ValueError, "give one column"),
    ("damaged fingerprints", damaged_fingerprints, ModelError, "fit the model again"),
    ("logits for probabilities", lambda _: binary_metrics(np.array([-2.0]), np.ones(1)), MetricsError, "no logits"),
    ("a label of no class", lambda _: binary_metrics(np.ones(1), np.array([2.0])), MetricsError, "2.0 is no class"),
    ("an infinite prediction", lambda _: regression_metrics(np.array([np.inf]), np.ones(1)), MetricsError, "inf is no"),
    # To the Hub.
    ("a repository without an owner", lambda p: pushed(p, "model"), HubError, "names no owner; give ORG/NAME"),
    ("a repository that leads elsewhere", lambda p: pushed(p, "../model"), HubError, "is no repository's name"),
    ("a repository by its address", lambda p: pushed(p, "https://hf.co/a/b"), HubError, "is no repository's name"),
    ("a push by nobody", lambda p: pushed(p, "a/b", token=None), HubError, "hf auth login"),
    ("a push offline", lambda p: pushed(p, "a/b"), HubError, "HF_HUB_OFFLINE=1 forbids"),
    (
        "a picture by the name of weights",
        lambda p: (p / "model.safetensors").write_bytes(b"\x89PNG" * 9) and pushed(p, "a/b"),
        HubError,
        "no safetensors file",
    ),
]
# fmt: on


COMMANDS = [
    ("pretrain --data a --output-dir b --learning-rate inf", "learning_rate is inf"),
    ("pretrain --data a --output-dir b --weight-decay -1", "weight_decay is -1.0; use 0 or more"),
    ("pretrain --data a --output-dir b --max-grad-norm -1", "max_grad_norm is -1.0; use 0 or more"),
    ("pretrain --data a --output-dir b --beta1 1.5", "beta1 is 1.5; use 0 to 1"),
    ("pretrain --data a --output-dir b --scaffold-temperature 0", "temperature"),
    ("pretrain --data nowhere --output-dir b --max-steps 1", "nowhere"),
    ("finetune nowhere.csv --targets a --output-dir b", "nowhere.csv does not exist"),
    ("finetune in.csv --targets nothing --output-dir b", "no column nothing"),
    ("finetune in.csv --targets y --output-dir in.csv", "output folder"),
    ("finetune in.csv --targets y --output-dir /proc/nothing", "output folder"),
    ("finetune in.csv --targets y --output-dir b --epochs 1.5", "whole number"),
    ("predict nowhere in.csv --output out.csv", "nowhere cannot be loaded"),
    ("predict in.csv in.csv --output out.csv", "in.csv cannot be loaded"),
    ("embed nowhere.smi out", "nowhere.smi does not exist"),
    ("embed in.csv in.csv", "output folder"),
    ("embed in.csv out --model nowhere", "nowhere cannot be loaded"),
    ("embed in.csv out --num-conformers 0", "leave no conformer"),
    ("embed in.csv out --device cuda:99", "cannot be used on cuda:99"),
    ("conformers build in.csv out --keep-columns nothing", "no column nothing"),
    ("conformers build in.csv out --num-conformers 1000000000", "use 0 to 1000"),
    ("conformers stats nowhere", "nowhere"),
    ("conformers push nowhere a/b --origin x --license unknown", "nowhere holds no finished library"),
    ("conformers push . a/b --origin x", "--license"),
    ("export nowhere out --to torch", "nowhere cannot be loaded"),
    ("export in.csv out --to torch", "in.csv cannot be loaded"),
    ("export unimol2-nano in.csv", "in.csv exists already"),
    ("export unimol2-nano /proc/nothing --to torch", "cannot be"),
    ("export unimol2-nano out --to tflite", "tflite"),
]
