"""What a fine-tuned model is worth: metrics of the held-out part, a line for every row, figures."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..configuration_unimol2 import BINARY, MULTICLASS, REGRESSION
from ..data.atomic_files import write_json_whole
from ..data.splits import TEST, TRAIN, VALID
from ..data.tables import conformer_summary
from ..targets.metrics import METRICS_VERSION, metrics_by_target, outputs_by_target
from ..targets.predictions import PREDICTED
from .plots import save_learning_curve, save_test_plot
from .prepare import PreparedTable

FloatArray = NDArray[np.floating[Any]]

ROWS_FILE, METRICS_FILE = "rows.csv", "metrics.json"
# What is shown of each kind of target, beside what the training labels alone would give.
_SHOWN = {
    REGRESSION: (("MAE", "mae"), ("RMSE", "rmse"), ("R2", "r2"), ("MAE of the mean", "baseline_mae")),
    BINARY: (
        ("ROC-AUC", "roc_auc"),
        ("PR-AUC", "pr_auc"),
        ("log loss", "log_loss"),
        ("of shares", "baseline_log_loss"),
    ),
    MULTICLASS: (
        ("ROC-AUC", "roc_auc"),
        ("accuracy", "accuracy"),
        ("log loss", "log_loss"),
        ("of shares", "baseline_log_loss"),
    ),
}


def evaluate(prepared: PreparedTable, predictions: FloatArray) -> dict[str, Any]:
    """Metrics of the validation and the test part, and the counts of rows; predictions (n, outputs)."""
    table, molecules = prepared.table, prepared.molecules
    training = table.labels[table.rows_of(TRAIN)]
    metrics = {
        part: metrics_by_target(predictions[rows], table.labels[rows], prepared.targets, training)
        for part, rows in ((part, table.rows_of(part)) for part in (VALID, TEST))
    }
    failed = [molecule for molecule in molecules if molecule.error is not None]
    flat = [molecule for molecule in molecules if any(not c.provenance.is_3d for c in molecule.conformers)]
    rows = {part: len(table.rows_of(part)) for part in (TRAIN, VALID, TEST)}
    counts = {**rows, "all": len(molecules), "failed": len(failed), "with_flat_conformer": len(flat)}
    return {"version": METRICS_VERSION, **metrics, "rows": counts}


def write_outputs(
    output_dir: Path,
    prepared: PreparedTable,
    predictions: FloatArray,
    report: dict[str, Any],
    history: list[dict[str, Any]],
) -> None:
    """Write rows.csv, log_history.json, the figures and, last, metrics.json: with it a run is finished."""
    row_report(prepared, predictions).to_csv(output_dir / ROWS_FILE, index=False)
    write_json_whole(output_dir / "log_history.json", history)
    rows = prepared.table.rows_of(TEST)
    blocks = outputs_by_target(predictions[rows], prepared.targets)
    save_test_plot(blocks, prepared.table.labels[rows], prepared.targets, report[TEST], output_dir / "parity.png")
    save_learning_curve(history, output_dir / "learning_curve.png")
    write_json_whole(output_dir / METRICS_FILE, report)


def row_report(prepared: PreparedTable, predictions: FloatArray) -> pd.DataFrame:
    """One line for every row of the input: its split, predictions, conformer, and why it failed or was not used."""
    table, molecules = prepared.table, prepared.molecules
    columns: dict[str, Any] = {"smiles": table.smiles, "split": table.split}
    blocks = outputs_by_target(predictions, prepared.targets)
    for target, labels, block in zip(prepared.targets, table.labels.T, blocks, strict=True):
        columns |= _label_and_prediction(target, labels, block)
    methods = ([conformer.provenance.method for conformer in molecule.conformers] for molecule in molecules)
    columns["conformer"] = [conformer_summary(each) for each in methods]
    columns["error"] = ["" if molecule.error is None else molecule.error.reason for molecule in molecules]
    columns["error_code"] = ["" if molecule.error is None else molecule.error.code for molecule in molecules]
    columns["note"] = table.notes
    return pd.DataFrame(columns)


def _label_and_prediction(target: dict[str, Any], labels: FloatArray, block: FloatArray) -> dict[str, Any]:
    """As the user has the labels; a multiclass target's class and probabilities, as `predict` writes them."""
    name, kind = str(target["name"]), target["kind"]
    if kind == REGRESSION:
        return {name: labels, f"{PREDICTED}{name}": block}
    classes = list(map(str, target["classes"]))
    shown = ["" if np.isnan(label) else classes[int(label)] for label in labels]
    if kind == BINARY:
        return {name: shown, f"{PREDICTED}{name}": block}
    likeliest = ["" if np.isnan(row).any() else classes[int(row.argmax())] for row in block]
    probabilities = {f"{PREDICTED}{name}_{each}": block[:, index] for index, each in enumerate(classes)}
    return {name: shown, f"{PREDICTED}{name}": likeliest, **probabilities}


def print_report(console: Console, prepared: PreparedTable, report: dict[str, Any], output_dir: Path) -> None:
    """Test metrics, a table for each kind of target, and the count of rows that failed."""
    for kind, shown in _SHOWN.items():
        names = [target["name"] for target in prepared.targets if target["kind"] == kind]
        if names:
            table = Table("target", "n", *(title for title, _ in shown), title="held-out test part")
            for name in names:
                metrics = report[TEST][name]
                table.add_row(escape(name), str(metrics["count"]), *(_cell(metrics, key) for _, key in shown))
            console.print(table)
    rows = report["rows"]
    console.print(
        f"{rows['failed']} of {rows['all']} rows failed, {rows['with_flat_conformer']} have a 2D conformer; "
        f"see {ROWS_FILE}, {METRICS_FILE} and parity.png in {escape(str(output_dir))}"
    )


def _cell(metrics: dict[str, Any], key: str) -> str:
    """The number, with its interval where there is one."""
    value, interval = metrics[key], metrics.get(f"{key}_interval")
    if value is None:
        return "-"
    return f"{value:.3f}" if interval is None else f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
