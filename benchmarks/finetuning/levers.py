#!/usr/bin/env python3
"""What each lever gains, and costs, on human liver microsomes (Biogen) and BBBP, seed 0: one `finetune` an arm.

    python benchmarks/finetuning/levers.py --data DIR [--arms "frozen, CLS;fine-tuned"] [--tables hlm,bbbp]

DIR as for run.py, which makes the conformers that this takes from the cache. Writes levers.json and levers.md.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from finetune_command import HERE, finetune, on_split, processor
from rdkit import Chem

from unimol2_hf.descriptors import descriptor_names, rdkit_descriptors

TABLES = {"hlm": ("biogen_adme", "hlm_clint", "mae"), "bbbp": ("bbbp", "p_np", "roc_auc")}
ADAPTED = "adapted"  # stands for the folder of a model that learned descriptors of the training molecules first
EPOCHS_OF_ADAPTATION = 10
FROZEN, TRAINED = ["--head", "frozen"], ["--head", "finetuned"]
# Cheap ones first.
ARMS: dict[str, list[str]] = {
    "frozen (mean over layers)": [*FROZEN, "--pooling", "layers_mean"],
    "frozen, CLS": [*FROZEN, "--pooling", "cls"],
    "frozen, mean of atoms": [*FROZEN, "--pooling", "mean"],
    "frozen, CLS and mean": [*FROZEN, "--pooling", "cls_mean"],
    "frozen + descriptors": [*FROZEN, "--descriptors", "rdkit"],
    "frozen, 5 folds": [*FROZEN, "--folds", "5"],
    "frozen + descriptors, 5 folds": [*FROZEN, "--descriptors", "rdkit", "--folds", "5"],
    "fine-tuned": TRAINED,
    "fine-tuned + descriptors": [*TRAINED, "--descriptors", "rdkit"],
    "fine-tuned, LoRA of rank 8": [*TRAINED, "--lora", "8"],
    "adapted to descriptors, frozen": [*FROZEN, "--model", ADAPTED],
    "adapted to descriptors, fine-tuned": [*TRAINED, "--model", ADAPTED],
    "frozen, mean of 3 conformers": [*FROZEN, "--num-conformers", "3"],
}


def adapted_model(data: Path, name: str, work_dir: Path) -> tuple[Path, float]:
    """nano after ten epochs on descriptors of the table's training molecules (arXiv 2503.03360), and the minutes."""
    folder, table = work_dir / f"{name}_adapted", work_dir / f"{name}_descriptors.csv"
    parts = pd.read_csv(data / "splits" / f"{name}.csv")
    smiles = parts.loc[parts["seed0"] == "train", "smiles"].tolist()
    values = np.stack([rdkit_descriptors(Chem.MolFromSmiles(each)) for each in smiles]).astype(np.float64)
    # By ranks, so that no descriptor's outliers outweigh the others; those that hardly vary are left out.
    ranks = pd.DataFrame(values, columns=[f"d_{each}" for each in descriptor_names()]).rank(pct=True)
    kept = ranks.loc[:, ranks.std() > 0.05]
    generator = np.random.default_rng(0)
    part = np.where(generator.random(len(smiles)) < 0.05, "valid", "train")
    part[:20] = "test"
    kept.assign(smiles=smiles, part=part).to_csv(table, index=False)
    options = ["--split-column", "part", "--epochs", str(EPOCHS_OF_ADAPTATION)]
    return folder, finetune(table, list(kept.columns), folder, *options).minutes


def run_arm(arm: str, table: str, data: Path, work_dir: Path) -> dict[str, Any]:
    name, target, key = TABLES[table]
    options, before = list(ARMS[arm]), 0.0
    if ADAPTED in options:
        known = work_dir / f"{name}_adapted" / "metrics.json"
        folder, before = (known.parent, 0.0) if known.exists() else adapted_model(data, name, work_dir)
        options[options.index(ADAPTED)] = str(folder)
    output = work_dir / f"{table}_{list(ARMS).index(arm)}"
    run = finetune(data / f"{name}.csv", [target], output, *on_split(name, data, 0), *options)
    metrics = run.report["test"][target]
    told = run.command.replace(str(data), "DIR").replace(str(work_dir), "runs/levers")
    found = {"value": metrics[key], "interval": metrics[f"{key}_interval"], "minutes": run.minutes, "before": before}
    return {"arm": arm, "table": table, "command": told, **found}


def as_markdown(runs: list[dict[str, Any]]) -> str:
    lines = [
        f"`python benchmarks/finetuning/levers.py --data DIR` on {processor()}, two cores, other work beside. Test",
        "part of seed 0 with its 95 % interval: MAE of hlm (lower is better), ROC-AUC of bbbp (higher is better);",
        "minutes of the whole command, baselines included, conformers not (but for the 3). adapted: ten epochs on",
        "descriptors of the training molecules first, whose minutes are added where they were spent.",
        "",
        "| arm | hlm | minutes | bbbp | minutes |",
        "|---|---|---|---|---|",
    ]
    for arm in ARMS:
        own = {run["table"]: run for run in runs if run["arm"] == arm}
        if own:
            lines.append(f"| {arm} | {' | '.join(_cells(own.get(table)) for table in TABLES)} |")
    return "\n".join([*lines, "", "Commands:", "", *(f"- `{run['command']}`" for run in runs)]) + "\n"


def _cells(run: dict[str, Any] | None) -> str:
    if run is None:
        return " | "
    before = f" + {run['before']:.1f}" if run["before"] else ""
    return f"{run['value']:.3f} ({run['interval'][0]:.3f} to {run['interval'][1]:.3f}) | {run['minutes']:.1f}{before}"


def main(
    data: Annotated[Path, typer.Option(help="folder with the CSV files and splits/")],
    arms: Annotated[str, typer.Option(help="semicolons between them; default: all")] = "",
    tables: Annotated[str, typer.Option(help="comma-separated")] = "hlm,bbbp",
    work_dir: Annotated[Path, typer.Option()] = Path("runs/levers"),
) -> None:
    """Run every arm in turn."""
    work_dir.mkdir(parents=True, exist_ok=True)
    results = HERE / "levers.json"
    runs = json.loads(results.read_text()) if results.exists() else []
    for arm in arms.split(";") if arms else ARMS:
        for table in tables.split(","):
            run = run_arm(arm, table, data, work_dir)
            print(arm, table, round(run["value"], 4), round(run["minutes"], 1), "min", flush=True)
            runs = [old for old in runs if (old["arm"], old["table"]) != (arm, table)] + [run]
            results.write_text(json.dumps(runs, indent=1) + "\n")
            results.with_suffix(".md").write_text(as_markdown(runs))


if __name__ == "__main__":
    typer.run(main)
