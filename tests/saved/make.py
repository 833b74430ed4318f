#!/usr/bin/env python3
"""Write what a version saves, and its outputs, for every later version to read: once, when a version is released.

    python tests/saved/make.py tests/saved/0.1.0

Small folders: a base, a fine-tuned and a pretraining model with the outputs of one batch, a library of conformers, a
finished embedding job over it, and a finished fine-tuning. `test_saved.py` reads them all.
"""

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from safetensors.torch import save_file

import unimol2_hf
from unimol2_hf import (
    UniMol2Config,
    UniMol2FeatureExtractor,
    UniMol2ForPreTraining,
    UniMol2ForPropertyRegression,
    UniMol2Model,
    UniMol2PreTrainedModel,
)
from unimol2_hf.conformers import conformer_versions
from unimol2_hf.finetuning.finetune import finetune
from unimol2_hf.finetuning.settings import FinetuneSettings
from unimol2_hf.jobs.build_conformers import build_conformers
from unimol2_hf.jobs.embed import embed
from unimol2_hf.jobs.predict import predict
from unimol2_hf.jobs.settings import BuildSettings, EmbedSettings, PredictSettings

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pair_hidden_size": 16,
    "pair_inner_size": 8,
    # Ten times the usual: every part then shows in the outputs.
    "initializer_range": 0.2,
}
BATCH = ["CCO", "c1ccccc1O", "C[C@H](N)C(=O)O", "C[N+](C)(C)CC([O-])=O", "F/C=C/Cl", "[Na+].[Cl-]"]
# As a chemist's table has them: labels are missing, a row cannot be read, another has no split.
TABLE = """name,smiles,logp,tpsa,part
ethanol,CCO,-0.31,20.2,train
phenol,Oc1ccccc1,1.46,20.2,train
aniline,Nc1ccccc1,0.9,,train
aspirin,CC(=O)Oc1ccccc1C(=O)O,1.19,63.6,train
caffeine,Cn1c(=O)c2c(ncn2C)n(C)c1=O,-0.07,58.4,train
glycine,NCC(=O)O,-3.21,63.3,train
toluene,Cc1ccccc1,2.73,0,train
alanine,C[C@H](N)C(=O)O,-2.96,63.3,train
benzoate,O=C([O-])c1ccccc1,1.87,40.1,valid
acetone,CC(C)=O,-0.24,17.1,valid
naphthalene,c1ccc2ccccc2c1,3.3,0,test
ibuprofen,CC(C)Cc1ccc(C(C)C(=O)O)cc1,3.97,37.3,test
unreadable,C1CC,1,1,train
unused,CCN,-0.13,26,later
"""
QUIET = Console(quiet=True)


def save_model(
    model: UniMol2PreTrainedModel, folder: Path, outputs: tuple[str, ...], inputs: dict[str, torch.Tensor]
) -> None:
    """A model folder with its feature extractor, and what the model says of one batch."""
    model.eval().save_pretrained(folder)
    UniMol2FeatureExtractor(num_conformers=2, seed=7).save_pretrained(folder)
    with torch.no_grad():
        made = model(**inputs)
    save_file({name: made[name].contiguous() for name in outputs}, folder / "outputs.safetensors")


def save_models(folder: Path) -> None:
    """Three models of random weights."""
    torch.manual_seed(0)
    inputs = dict(UniMol2FeatureExtractor()(BATCH))
    save_file(inputs, folder / "inputs.safetensors")
    encoder = ("last_hidden_state", "pooler_output", "pair_hidden_state")
    save_model(UniMol2Model(UniMol2Config(**SIZES)), folder / "base", encoder, inputs)
    targets = {0: "logp", 1: "tpsa"}
    labels = {"id2label": targets, "label2id": {name: number for number, name in targets.items()}}
    scale = {"label_mean": [1.5, 40.0], "label_std": [2.0, 25.0], "loss_function": "l1", "head_pooling": "mean"}
    config = UniMol2Config(**SIZES, **labels, **scale)
    save_model(UniMol2ForPropertyRegression(config), folder / "property", ("logits",), inputs)
    blocks = [{"name": "logp", "mean": [1.0], "std": [2.0]}, {"name": "xy", "mean": [0.0, 3.0], "std": [1.0, 0.5]}]
    config = UniMol2Config(**SIZES, graph_targets=blocks, graph_head_size=16)
    heads = ("token_logits", "predicted_coordinates", "predicted_distances", "predicted_graph_targets")
    save_model(UniMol2ForPreTraining(config), folder / "pretraining", heads, inputs)


def main(folder: Path) -> None:
    """Write the folder, which must not exist."""
    folder.mkdir(parents=True)
    save_models(folder)
    table = folder / "table.csv"
    table.write_text(TABLE)
    settings = BuildSettings(
        num_conformers=2, id_column="name", keep_columns=("logp",), descriptors="rdkit", rows_per_shard=8, num_workers=0
    )
    build_conformers(table, folder / "library", settings, QUIET)
    embed(
        folder / "library" / "conformers",
        folder / "embedded",
        EmbedSettings(model=str(folder / "base"), id_column="id", per_atom=True, rows_per_shard=8, num_workers=0),
        QUIET,
    )
    finetune(
        table,
        folder / "finetuned",
        FinetuneSettings(
            model=str(folder / "base"),
            targets=("logp", "tpsa"),
            split_column="part",
            epochs=2,
            batch_size=4,
            num_workers=0,
        ),
        QUIET,
    )
    shutil.rmtree(folder / "finetuned" / "checkpoints")
    # A pickle, which nobody reads.
    (folder / "finetuned" / "training_args.bin").unlink()
    predict(
        str(folder / "finetuned"),
        table,
        folder / "predictions.csv",
        PredictSettings(batch_size=4, num_workers=0),
        QUIET,
    )
    for lock in folder.rglob(".lock"):
        lock.unlink()
    predicted = pd.read_csv(folder / "predictions.csv")
    assert predicted["error"].notna().sum() == 1
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    about = {
        "version": unimol2_hf.__version__,
        "commit": commit,
        "torch": torch.__version__,
        "machine": platform.machine(),
        **conformer_versions(),
    }
    (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
