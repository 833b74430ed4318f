#!/usr/bin/env python3
"""Which epochs and rate suit unimol2-nano: arms on three tables, judged on the validation part alone.

    python benchmarks/finetuning/defaults.py --data DIR [--work-dir runs/defaults]

Epochs are told as training samples (epochs times rows). Started again it goes on; writes defaults.json and defaults.md.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from run import processor

HERE = Path(__file__).parent
# Targets, rows of the training part.
TABLES = {
    "esol": ("logSolubility", 900),
    "bbbp": ("p_np", 1630),
    "biogen_adme": ("hlm_clint,mdr1_er,solubility,rlm_clint", 2800),
}
# (training samples, peak rate)
ARMS = [(6_000, 4e-4), (12_000, 4e-4), (12_000, 8e-4), (20_000, 4e-4)]
SEED = 1  # a split that no reported figure is of


def run_arm(name: str, samples: int, rate: float, data: Path, work_dir: Path) -> dict[str, Any]:
    """One fine-tuning; returns its validation metrics and what it took."""
    targets, rows = TABLES[name]
    epochs = max(1, round(samples / rows))
    folder = work_dir / f"{name}_{samples}_{rate}"
    command = [str(Path(sys.executable).with_name("unimol2-hf")), "finetune", str(data / f"{name}.csv")]
    command += ["--targets", targets, "--split-file", str(data / "splits" / f"{name}.csv")]
    command += ["--split-column", f"seed{SEED}", "--epochs", str(epochs), "--learning-rate", str(rate)]
    start = time.monotonic()
    subprocess.run([*command, "--output-dir", str(folder)], check=True)
    history = json.loads((folder / "log_history.json").read_text())
    scores = [entry["eval_score"] for entry in history if "eval_score" in entry]
    return {
        "table": name,
        "samples": samples,
        "rate": rate,
        "epochs": epochs,
        "score": min(scores),
        "best_epoch": 1 + scores.index(min(scores)),
        "seconds": round(time.monotonic() - start),
        "valid": json.loads((folder / "metrics.json").read_text())["valid"],
    }


def as_markdown(runs: list[dict[str, Any]], command: str) -> str:
    lines = [
        f"`{command}`, {processor()}, one seed, validation part (scaffold split, seed 1).",
        "Regression: MAE, the mean over targets; bbbp: ROC-AUC. In brackets the best epoch of how many.",
        "",
        f"| samples | rate | {' | '.join(TABLES)} |",
        "|---|---|" + "---|" * len(TABLES),
    ]
    for samples, rate in ARMS:
        own = {run["table"]: run for run in runs if (run["samples"], run["rate"]) == (samples, rate)}
        cells = [_cell(own[name]) if name in own else "-" for name in TABLES]
        lines.append(f"| {samples:,} | {rate:g} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(run: dict[str, Any]) -> str:
    key = "roc_auc" if run["table"] == "bbbp" else "mae"
    values = [metrics[key] for metrics in run["valid"].values()]
    return f"{sum(values) / len(values):.4f} ({run['best_epoch']} of {run['epochs']}; {run['seconds']} s)"


def main(
    data: Annotated[Path, typer.Option(help="folder with the CSV files and splits/")],
    work_dir: Annotated[Path, typer.Option()] = Path("runs/defaults"),
) -> None:
    """Run every arm that is missing."""
    results = HERE / "defaults.json"
    runs: list[dict[str, Any]] = json.loads(results.read_text()) if results.exists() else []
    for samples, rate in ARMS:
        for name in TABLES:
            if not any((run["table"], run["samples"], run["rate"]) == (name, samples, rate) for run in runs):
                runs.append(run_arm(name, samples, rate, data, work_dir))
                results.write_text(json.dumps(runs, indent=1) + "\n")
                results.with_suffix(".md").write_text(as_markdown(runs, "python benchmarks/finetuning/defaults.py"))


if __name__ == "__main__":
    typer.run(main)
