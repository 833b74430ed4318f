#!/usr/bin/env python3
"""The paper's tables 4 (QM9), 5 (COMPAS-1D) and 6 (QM9, little data): frozen vectors and, of two targets, fine-tuning.

    python benchmarks/finetuning/paper_tables.py --data DIR [--model unimol2-nano] [--tables qm9,compas_1d,gap,aea]

QM9: the 15,699 molecules whose eight labels are in `qm9.parquet`, DFT geometries, split by scaffold (seeds 0, 1, 2).
COMPAS-1D: RDKit's conformers, the random splits of `splits/compas_1d.csv`, beside ECFP4 with a forest. Frozen is what
`finetune --head frozen [--no-graph-features]` does, each table featurised once an arm. gap and aea are fine-tuned by
that command, seed 0, graph features included. Writes paper_tables.json and paper_tables.md.
"""

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from finetune_command import HERE, finetune, on_split, processor
from heads import Runs, baseline_table, in_parts, run_nano, run_tables, vectors_of, with_seed
from paper import COMPAS, QM9, sample
from rich.console import Console

from unimol2_hf.data.splits import TEST, TRAIN, UNUSED, VALID, Parts, make_split
from unimol2_hf.finetuning.baselines import ECFP4_FOREST, baseline_metrics
from unimol2_hf.finetuning.prepare import PreparedTable, prepare
from unimol2_hf.finetuning.settings import FinetuneSettings
from unimol2_hf.worker_pool import worker_count

TARGETS = {"qm9": QM9.split(","), "compas_1d": COMPAS.split(",")}
FINE_TUNED = {"gap": "qm9", "aea": "compas_1d"}
SEEDS = (0, 1, 2)
WITH, WITHOUT = "with graph features", "without graph features"
ARMS: dict[str, dict[str, Any]] = {WITH: {}, WITHOUT: {"use_graph_features": False}}
FOREST, TRAINED = "ECFP4, forest", "fine-tuned"
# Table 6: the training set in shares of the test set.
FEW = {"train50": 0.5, "train100": 1.0, "train200": 2.0}
ORBITALS = ("homo", "lumo", "gap")
UNITS = {
    "homo": "hartree", "lumo": "hartree", "gap": "hartree", "alpha": "a0^3", "cv": "cal/mol/K", "mu": "debye",
    "r2": "a0^2", "zpve": "hartree", "aea": "eV", "aip": "eV", "dispersion": "eV", "dipole": "debye",
}  # fmt: skip
# As printed, all of them fine-tuned: 84M, 1.1B. COMPAS-1D: with graph features (84M, 1.1B), without.
PAPER_QM9 = {
    "homo, lumo, gap": ("0.0038", "0.0035"), "alpha": ("0.376", "0.305"), "cv": ("0.178", "0.144"),
    "mu": ("0.105", "0.089"), "r2": ("4.968", "4.265"), "zpve": ("0.0010", "0.0005"),
}  # fmt: skip
PAPER_COMPAS = {
    "aea": ("0.0104", "0.0093"), "aip": ("0.0077", "0.0074"), "dispersion": ("0.0085", "0.0067"),
    "dipole": ("0.0173", "0.0170"),
}  # fmt: skip
PAPER_FEW = {"train50": ("0.0062", "0.0056"), "train100": ("0.0053", "0.0048"), "train200": ("0.0046", "0.0043")}


def settings_of(
    name: str, targets: list[str], data: Path, seed: int, model: str, featurizer: dict[str, Any]
) -> FinetuneSettings:
    """QM9 has no split of its own here, so that the default is taken: by scaffold, as in the paper."""
    split: dict[str, Any] = {}
    if name != "qm9":
        split = {"split_file": str(data / "splits" / f"{name}.csv"), "split_column": f"seed{seed}"}
    return FinetuneSettings(tuple(targets), model=model, head="frozen", seed=seed, featurizer=featurizer, **split)


def source_of(name: str, data: Path, work_dir: Path) -> Path:
    """The table; of QM9 the labelled rows."""
    if name != "qm9":
        return data / f"{name}.csv"
    output = work_dir / "qm9.parquet"
    if not output.exists():
        work_dir.mkdir(parents=True, exist_ok=True)
        sample(data / "qm9.parquet", 1.0, TARGETS[name], output)
    return output


def in_seed(prepared: PreparedTable, settings: FinetuneSettings) -> PreparedTable:
    """The same molecules as the split of the settings' seed has them."""
    if settings.split_file is not None:
        return with_seed(prepared, settings)
    return in_parts(prepared, make_split(prepared.names, settings.split_method, settings.seed))


def with_few(split: Parts, share: float, seed: int) -> Parts:
    """So many molecules to fit on as this share of the test part has; a tenth of them as the validation part."""
    known = np.flatnonzero(np.isin(split, (TRAIN, VALID)))
    count = round(share * (split == TEST).sum())
    drawn = np.random.default_rng(seed).choice(known, count, replace=False)
    few = np.where(split == TEST, TEST, UNUSED).astype(split.dtype)
    few[drawn], few[drawn[: count // 10]] = TRAIN, VALID
    return few


def run_fine_tuned(target: str, data: Path, work_dir: Path, model: str) -> Runs:
    """One `unimol2-hf finetune`, baselines included."""
    name = FINE_TUNED[target]
    split = ["--seed", "0"] if name == "qm9" else on_split(name, data, 0)
    options = ["--model", model, "--head", "finetuned", *split]
    run = finetune(source_of(name, data, work_dir), [target], work_dir / target, *options)
    own = {"table": target, "seed": 0, "minutes": run.minutes}
    forest = {**own, "arm": FOREST, "test": run.report["baselines"][ECFP4_FOREST]}
    told = run.command.replace(str(data), "DIR")
    return [{**own, "arm": TRAINED, "command": told, "test": run.report["test"]}, forest]


def run_table(name: str, data: Path, work_dir: Path, model: str) -> Runs:
    """Every arm of a table."""
    if name in FINE_TUNED:
        return run_fine_tuned(name, data, work_dir, model)
    runs: Runs = []
    workers = worker_count(None)

    def add(arm: str, seed: int, table: PreparedTable, metrics: dict[str, Any], start: float) -> None:
        seconds, fitted = round(time.monotonic() - start), int(np.isin(table.table.split, (TRAIN, VALID)).sum())
        kept = {target: {key: each.get(key) for key in ("mae", "baseline_mae")} for target, each in metrics.items()}
        about = {"table": name, "seed": seed, "arm": arm, "seconds": seconds, "fitted": fitted}
        runs.append({**about, "test": kept})
        print(name, seed, arm, seconds, "s", {key: round(each["mae"], 5) for key, each in metrics.items()}, flush=True)

    for arm, featurizer in ARMS.items():
        settings = settings_of(name, TARGETS[name], data, 0, model, featurizer)
        prepared = prepare(source_of(name, data, work_dir), settings, Console())
        vectors = vectors_of(prepared, settings)
        for seed in SEEDS:
            settings = settings_of(name, TARGETS[name], data, seed, model, featurizer)
            own = in_seed(prepared, settings)
            start = time.monotonic()
            add(arm, seed, own, run_nano(own, settings, vectors)[0], start)
            for title, share in (FEW if name == "qm9" else {}).items():
                start = time.monotonic()
                few = in_parts(prepared, with_few(own.table.split, share, seed))
                add(f"{title}, {arm}", seed, few, run_nano(few, settings, vectors)[0], start)
            if name == "compas_1d" and arm == WITH:
                start = time.monotonic()
                add(FOREST, seed, own, baseline_metrics(ECFP4_FOREST, baseline_table(own), seed, workers), start)
    return runs


def cell(runs: Runs, table: str, arm: str, targets: tuple[str, ...], key: str = "mae") -> str:
    """Mean and, in brackets, sample standard deviation over the seeds, of several targets their mean."""
    own = [run["test"] for run in runs if (run["table"], run["arm"]) == (table, arm)]
    values = [float(np.mean([metrics[target][key] for target in targets])) for metrics in own]
    return f"{np.mean(values):.4g} ({np.std(values, ddof=1):.2g})" if len(values) > 1 else ""


def as_markdown(runs: Runs) -> str:
    lines = [
        f"`python benchmarks/finetuning/paper_tables.py --data DIR` on {processor()}, two cores. Test MAE, mean of",
        "three splits and, in brackets, their sample standard deviation. The paper's models are fine-tuned, on all of",
        "QM9's 133,885 molecules split 8:1:1; here 15,699 have labels. COMPAS-1D is of another level of theory here.",
    ]
    if any(run["table"] == "qm9" for run in runs):
        lines += ["", "## QM9 (table 4)", "", _head("unit", "the mean", WITH, WITHOUT, "paper 84M", "paper 1.1B")]
        rows = {"homo, lumo, gap": ORBITALS, **{name: (name,) for name in TARGETS["qm9"]}}
        for title, targets in rows.items():
            unit = UNITS[targets[0]]
            paper = PAPER_QM9.get(title, ("", ""))
            cells = [cell(runs, "qm9", WITH, targets, "baseline_mae"), *_arms(runs, "qm9", "", targets)]
            lines.append(f"| {title} | {' | '.join([unit, *cells, *paper])} |")
        lines += ["", "## QM9, little data: HOMO, LUMO, gap (table 6), hartree", ""]
        lines += ["Shares of the test part, as in the paper, whose test part is about nine times as large.", ""]
        lines.append(_head("molecules to fit on", WITH, WITHOUT, "paper 84M", "paper 1.1B"))
        for title in FEW:
            counts = {run["fitted"] for run in runs if run["arm"] == f"{title}, {WITH}"}
            cells = [", ".join(f"{each:,}" for each in sorted(counts)), *_arms(runs, "qm9", f"{title}, ", ORBITALS)]
            lines.append(f"| {title} | {' | '.join([*cells, *PAPER_FEW[title]])} |")
    if any(run["table"] == "compas_1d" for run in runs):
        lines += ["", "## COMPAS-1D (table 5)", ""]
        lines.append(_head("unit", "the mean", WITH, WITHOUT, FOREST, "paper 84M, with", "paper 1.1B, with"))
        for name in TARGETS["compas_1d"]:
            cells = [UNITS[name], cell(runs, "compas_1d", WITH, (name,), "baseline_mae")]
            cells += [*_arms(runs, "compas_1d", "", (name,)), cell(runs, "compas_1d", FOREST, (name,))]
            lines.append(f"| {name} | {' | '.join([*cells, *PAPER_COMPAS[name]])} |")
    if trained := [run for run in runs if run["arm"] == TRAINED]:
        lines += ["", "## Fine-tuned, seed 0", "", _head("unit", "the mean", "frozen", TRAINED, FOREST, "minutes")]
        for run in trained:
            lines.append(f"| {run['table']} | {' | '.join(_trained_cells(runs, run))} |")
        lines += ["", "Commands:", "", *(f"- `{run['command']}`" for run in trained)]
    return "\n".join(lines) + "\n"


def _arms(runs: Runs, table: str, prefix: str, targets: tuple[str, ...]) -> list[str]:
    return [cell(runs, table, f"{prefix}{arm}", targets) for arm in ARMS]


def _trained_cells(runs: Runs, run: dict[str, Any]) -> list[str]:
    """Of the same split the fine-tuned model, the frozen one and the forest."""
    target = run["table"]

    def found(table: str, arm: str) -> str:
        own = [each for each in runs if (each["table"], each["arm"], each["seed"]) == (table, arm, run["seed"])]
        return f"{own[0]['test'][target]['mae']:.4g}" if own else ""

    mean = f"{run['test'][target]['baseline_mae']:.4g}"
    frozen, forest = found(FINE_TUNED[target], WITH), found(target, FOREST)
    return [UNITS[target], mean, frozen, found(target, TRAINED), forest, f"{run['minutes']:.0f}"]


def _head(*columns: str) -> str:
    return f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}"


def main(
    data: Annotated[Path, typer.Option(help="folder with qm9.parquet, compas_1d.csv and splits/")],
    model: Annotated[str, typer.Option()] = "unimol2-nano",
    tables: Annotated[str, typer.Option(help="comma-separated")] = ",".join([*TARGETS, *FINE_TUNED]),
    work_dir: Annotated[Path, typer.Option()] = Path("runs/paper_tables"),
) -> None:
    """Run every arm of each table in turn."""
    run_tables(HERE / "paper_tables.json", tables, lambda name: run_table(name, data, work_dir, model), as_markdown)


if __name__ == "__main__":
    typer.run(main)
