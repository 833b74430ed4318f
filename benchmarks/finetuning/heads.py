#!/usr/bin/env python3
"""Heads on frozen vectors, of unimol2-nano as packaged and of MiniMol, on four public tables, three scaffold splits.

    python benchmarks/finetuning/heads.py --data DIR [--tables esol,bbbp,biogen_adme,tox21] [--seeds 0,1,2]

DIR as for run.py, with `peers/minimol_<name>.npz`. nano: what `unimol2-hf finetune --head frozen [--descriptors rdkit]
[--folds 5]` does, step by step, each table featurised once. MiniMol: the same head on its vectors. Beside them what
run.py found. Writes heads.json, heads.md and, of each member, `predictions/heads_<name>.parquet`.
"""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from finetune_command import BINARY, HERE, processor, targets_of
from numpy.typing import NDArray
from rdkit import Chem
from rich.console import Console

from unimol2_hf.calibration import calibrated_values
from unimol2_hf.configuration_unimol2 import KERNEL
from unimol2_hf.data.splits import TEST, TRAIN, VALID, Parts, split_by_file
from unimol2_hf.finetuning.baselines import BaselineTable, baseline_report
from unimol2_hf.finetuning.evaluate import metrics_of
from unimol2_hf.finetuning.fitted import FittedTable, predict_all
from unimol2_hf.finetuning.frozen import FROZEN_POOLING, fit_frozen, frozen_vectors, label_scales
from unimol2_hf.finetuning.kernel_heads import fit_kernel_head
from unimol2_hf.finetuning.members import plan_members
from unimol2_hf.finetuning.prepare import PreparedTable, prepare, scaled_targets
from unimol2_hf.finetuning.settings import FinetuneSettings
from unimol2_hf.finetuning.train import descriptor_quantiles, make_model
from unimol2_hf.modeling_unimol2 import UniMol2DescriptorScale
from unimol2_hf.models.loading import load_config
from unimol2_hf.targets.metrics import metrics_by_target
from unimol2_hf.worker_pool import worker_count

QUIET = Console(quiet=True)
FOLDS = 5
# Arms by the options of `finetune`.
ARMS: dict[str, dict[str, Any]] = {
    "frozen": {},
    "frozen + descriptors": {"descriptors": "rdkit"},
    "5-fold, frozen + descriptors": {"descriptors": "rdkit", "folds": FOLDS},
}
PEERS = ("MiniMol", "MiniMol + descriptors")
Runs = list[dict[str, Any]]
FloatArray = NDArray[np.float64]


def settings_for(name: str, data: Path, seed: int, **options: Any) -> FinetuneSettings:
    return FinetuneSettings(
        targets=tuple(targets_of(name, data)), head="frozen", split_file=str(data / "splits" / f"{name}.csv"),
        split_column=f"seed{seed}", seed=seed, **options,
    )  # fmt: skip


def with_seed(prepared: PreparedTable, settings: FinetuneSettings) -> PreparedTable:
    """The same molecules as a seed's split has them."""
    file, column = Path(str(settings.split_file)), str(settings.split_column)
    return in_parts(prepared, split_by_file(file, column, "smiles", prepared.names, [""] * len(prepared.names)))


def in_parts(prepared: PreparedTable, split: Parts) -> PreparedTable:
    """The same molecules in another split, scaled by its training part."""
    failed = np.array([molecule.error is not None for molecule in prepared.molecules])
    table = replace(prepared.table, split=np.where(failed | np.isnan(prepared.table.labels).all(axis=1), "", split))
    return replace(prepared, table=table, targets=scaled_targets(table))


def vectors_of(prepared: PreparedTable, settings: FinetuneSettings) -> list[Any]:
    """nano's vectors, the same for every arm and split."""
    kernel = {"head_type": KERNEL, "num_centers": 1}
    model = make_model(settings, prepared, classifier_pooling=settings.pooling or FROZEN_POOLING, **kernel).eval()
    return frozen_vectors(model, prepared, settings, Console())


def run_nano(
    prepared: PreparedTable, settings: FinetuneSettings, vectors: list[Any]
) -> tuple[dict[str, Any], FittedTable, list[Any]]:
    """Metrics, predictions, and outputs (conformers, members, targets) of each row."""
    members = plan_members(settings, prepared, frozen=True)
    with tempfile.TemporaryDirectory() as folder:
        logits = fit_frozen(prepared, settings, members, Path(folder), QUIET, vectors)
        fitted = predict_all(prepared, members, logits, load_config(folder), settings.coverage)
    return metrics_of(prepared, fitted, prepared.table.rows_of(TEST)), fitted, logits


def run_minimol(prepared: PreparedTable, data: Path, name: str, descriptors: bool) -> dict[str, Any]:
    """The same head on MiniMol's vectors (and, scaled as nano's, on the descriptors)."""
    stored = np.load(data / "peers" / f"minimol_{name}.npz")
    rows = {smiles: row for row, smiles in enumerate(stored["smiles"].tolist())}
    smiles = prepared.table.smiles
    found = [rows.get(Chem.CanonSmiles(each)) if Chem.MolFromSmiles(each) else None for each in smiles]
    known = np.array([row is not None for row in found])
    vectors = np.where(known[:, None], stored["vectors"][[row or 0 for row in found]].astype(np.float64), np.nan)
    if descriptors:
        scale = UniMol2DescriptorScale(len(prepared.extractor.descriptor_names))
        scale.quantiles.data.copy_(descriptor_quantiles(prepared))
        width = len(prepared.extractor.descriptor_names)
        raw = [np.zeros(width) if each.descriptors is None else each.descriptors for each in prepared.molecules]
        with torch.no_grad():
            vectors = np.hstack([vectors, scale(torch.from_numpy(np.stack(raw)).float()).double().numpy()])
    return metrics_of_head(prepared, vectors, settings_for(name, data, 0), (TRAIN, VALID), TEST)


def metrics_of_head(
    prepared: PreparedTable, vectors: FloatArray, settings: FinetuneSettings, fitted_on: tuple[str, ...], judged: str
) -> dict[str, Any]:
    """A kernel head fitted on some parts of a table and judged on another; a row of NaN is a molecule without one."""
    table, known = prepared.table, np.asarray(~np.isnan(vectors).any(axis=1))
    vectors = np.where(known[:, None], vectors, 0.0)
    used = np.flatnonzero(known & np.isin(table.split, fitted_on))
    mean, std = label_scales(prepared)
    groups = plan_members(settings, prepared, frozen=True).groups
    head = fit_kernel_head(vectors, (table.labels - mean) / std, prepared.targets, [used], 0, groups)
    # None of these tables has a target of several outputs.
    columns = zip(prepared.targets, (head.predict(vectors)[0] * std + mean).T, strict=True)
    outputs = np.stack([calibrated_values(target, column, {}) for target, column in columns], axis=1)
    outputs[~known] = np.nan
    rows, training = table.rows_of(judged), table.labels[table.rows_of(TRAIN)]
    return metrics_by_target(outputs[rows], table.labels[rows], prepared.targets, training)


def baseline_table(prepared: PreparedTable) -> BaselineTable:
    """The same molecules and split for the simple models."""
    table = prepared.table
    return BaselineTable(prepared.read_molecules(), table.labels, prepared.targets, table.split)


def members_of(prepared: PreparedTable, logits: list[NDArray[np.float64]], seed: int) -> pd.DataFrame:
    """Of each test row what each member gives: values, or logits of binary targets."""
    parts = []
    for index, name in enumerate(prepared.table.target_names):
        rows = prepared.table.rows_of(TEST)
        own = np.stack([logits[row].mean(axis=0)[:, index] for row in rows]).astype(np.float32)
        labels = prepared.table.labels[rows, index]
        columns = {f"member_{number}": column for number, column in enumerate(own.T)}
        parts.append(pd.DataFrame({"row": rows, "seed": seed, "target": name, "label": labels, **columns}))
    return pd.concat(parts)


def run_table(name: str, data: Path, seeds: list[int]) -> Runs:
    """Every arm of a table."""
    runs, kept = [], []
    prepared = prepare(data / f"{name}.csv", settings_for(name, data, seeds[0], descriptors="rdkit"), Console())
    plain = replace(
        prepared,
        extractor=type(prepared.extractor)(),
        molecules=[replace(each, descriptors=None) for each in prepared.molecules],
    )
    start = time.monotonic()
    vectors = vectors_of(prepared, settings_for(name, data, seeds[0]))
    print(name, "vectors", round(time.monotonic() - start), "s", flush=True)
    for seed in seeds:

        def add(arm: str, metrics: dict[str, Any], start: float, seed: int = seed) -> None:
            runs.append({"table": name, "seed": seed, "arm": arm, "seconds": time.monotonic() - start, "test": metrics})
            print(name, seed, arm, round(time.monotonic() - start), "s", shown(metrics, name), flush=True)

        own = with_seed(prepared, settings_for(name, data, seed))
        for arm, options in ARMS.items():
            start = time.monotonic()
            table = own if "descriptors" in options else with_seed(plain, settings_for(name, data, seed))
            metrics, _, logits = run_nano(table, settings_for(name, data, seed, **options), vectors)
            add(arm, metrics, start)
            if "folds" in options:
                kept.append(members_of(table, logits, seed))
        for arm in PEERS:
            start = time.monotonic()
            add(arm, run_minimol(own, data, name, descriptors="descriptors" in arm), start)
        start = time.monotonic()
        for arm, metrics in baseline_report(baseline_table(own), seed, worker_count(None)).items():
            add(arm, metrics, start)
    pd.concat(kept).to_parquet(HERE / "predictions" / f"heads_{name}.parquet", index=False)
    return runs


def shown(metrics: dict[str, Any], name: str) -> str:
    return " ".join(f"{each[key_of(name)]:.3f}" for each in metrics.values())


def key_of(name: str) -> str:
    return "roc_auc" if name in BINARY else "mae"


def fine_tuned() -> Runs:
    """What run.py found."""
    path = HERE / "results.json"
    runs = json.loads(path.read_text()) if path.exists() else []
    return [{"table": run["table"], "seed": run["seed"], "arm": "fine-tuned", "test": run["test"]} for run in runs]


TITLES = {"descriptor_boosting": "descriptors, boosting", "ecfp4_forest": "ECFP4, forest"}


def as_markdown(runs: Runs) -> str:
    everything = [*runs, *fine_tuned()]
    arms = list(dict.fromkeys(run["arm"] for run in everything))
    lines = [
        f"`python benchmarks/finetuning/heads.py --data DIR` on {processor()}, two cores. Test part; MAE (lower is",
        "better), of bbbp and tox21 ROC-AUC (higher is better); mean of three splits and, in brackets, their least and",
        "greatest; the best mean in bold. fine-tuned: by run.py.",
        "",
        f"| arm | {' | '.join(columns := columns_of(runs))} |",
        "|---|" + "---|" * len(columns),
    ]
    cells = {arm: [cell_values(everything, arm, column) for column in columns] for arm in arms}
    for arm in arms:
        told = []
        for number, column in enumerate(columns):
            means = [np.mean(cells[each][number]) for each in arms if len(cells[each][number]) > 1]
            values = cells[arm][number]
            best = len(values) > 1 and np.mean(values) == (max if column in BINARY else min)(means)
            told.append(as_cell(values, best))
        lines.append(f"| {TITLES.get(arm, arm)} | {' | '.join(told)} |")
    lines += ["", "Seed 0 alone:", "", f"| arm | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for arm in arms:
        first = [cell_values([run for run in everything if run["seed"] == 0], arm, column) for column in columns]
        lines.append(f"| {TITLES.get(arm, arm)} | {' | '.join(as_cell(each, False) for each in first)} |")
    lines += ["", "Intervals of the five-fold ensembles that are to hold 90 %: share of test labels held, by seed.", ""]
    for name in dict.fromkeys(run["table"] for run in runs):
        for run in runs:
            held = {t: m["interval_coverage"] for t, m in run["test"].items() if m.get("interval_coverage") is not None}
            if run["table"] == name and held:
                lines.append(f"- {name}, seed {run['seed']}: {', '.join(f'{t} {v:.3f}' for t, v in held.items())}")
    lines += ["", "Seconds of a fit on ready vectors: the mean of all seeds.", ""]
    for name in dict.fromkeys(run["table"] for run in runs):
        of_arms = {arm: np.mean([r["seconds"] for r in runs if (r["table"], r["arm"]) == (name, arm)]) for arm in ARMS}
        lines.append(f"- {name}: {', '.join(f'{arm} {seconds:.0f}' for arm, seconds in of_arms.items())}")
    return "\n".join(lines) + "\n"


def columns_of(runs: Runs) -> list[str]:
    """Tables, of Biogen the targets."""
    columns = []
    for run in runs:
        columns += list(run["test"]) if run["table"] == "biogen_adme" else [run["table"]]
    return list(dict.fromkeys(columns))


def cell_values(runs: Runs, arm: str, column: str) -> list[float]:
    """Of each seed the metric, of tables with several targets their mean."""
    values = []
    for run in runs:
        if run["arm"] == arm and (run["table"] == column or column in run["test"]):
            own = [run["test"][column]] if column in run["test"] else run["test"].values()
            values.append(float(np.mean([metrics[key_of(run["table"])] for metrics in own])))
    return values


def as_cell(values: list[float], best: bool) -> str:
    if not values:
        return ""
    mean = f"**{np.mean(values):.3f}**" if best else f"{np.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def main(
    data: Annotated[Path, typer.Option(help="folder with the CSV files, splits/ and peers/")],
    tables: Annotated[str, typer.Option(help="comma-separated")] = "esol,bbbp,biogen_adme,tox21",
    seeds: Annotated[str, typer.Option(help="comma-separated")] = "0,1,2",
) -> None:
    """Run every arm of each table in turn."""
    chosen = [int(seed) for seed in seeds.split(",")]
    run_tables(HERE / "heads.json", tables, lambda name: run_table(name, data, chosen), as_markdown)


def run_tables(results: Path, tables: str, run: Callable[[str], Runs], as_markdown: Callable[[Runs], str]) -> None:
    """Run each table in turn; its runs replace those of before in the results, and in what is told of them."""
    runs: Runs = json.loads(results.read_text()) if results.exists() else []
    for name in tables.split(","):
        found = run(name)
        runs = [old for old in runs if old["table"] != name] + found
        results.write_text(json.dumps(runs, indent=1) + "\n")
        results.with_suffix(".md").write_text(as_markdown(runs))


if __name__ == "__main__":
    typer.run(main)
