"""What a fine-tuned model is worth: metrics of the held-out part, a line for every row, figures."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rdkit import rdBase
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..configuration_unimol2 import BINARY, KERNEL, MULTICLASS, REGRESSION
from ..data.atomic_files import make_output_folder, whole_file, write_json_whole
from ..data.splits import TEST, TRAIN, UNUSED, VALID
from ..data.tables import conformer_summary
from ..data.vector_cache import vector_cache_for
from ..descriptors import RDKIT, descriptor_names
from ..fingerprints import bits_of_all, save_fingerprints
from ..molecules import has_bonds, molecule_of
from ..targets.metrics import METRICS_VERSION, Metrics, metrics_by_target, outputs_by_target
from ..worker_pool import worker_count
from .baselines import DESCRIPTOR_BOOSTING, ECFP4_FOREST, BaselineTable, baseline_report, descriptors_of
from .fitted import FittedTable, coverage_of
from .members import NO_FOLD
from .plots import save_learning_curve, save_test_plot
from .prepare import ROWS_FILE, PreparedTable
from .settings import FinetuneSettings

FloatArray = NDArray[np.floating[Any]]

METRICS_FILE, TRAINING_SET_FILE, OUT_OF_FOLD = "metrics.json", "training_set.parquet", "out_of_fold"
# What is shown of each kind of target; the first with its interval.
_SHOWN = {
    REGRESSION: (("MAE", "mae"), ("RMSE", "rmse"), ("R2", "r2")),
    BINARY: (("ROC-AUC", "roc_auc"), ("PR-AUC", "pr_auc"), ("log loss", "log_loss")),
    MULTICLASS: (("ROC-AUC", "roc_auc"), ("accuracy", "accuracy"), ("log loss", "log_loss")),
}
_BASELINE = "baseline_"
_MOST_SHOWN = 12  # targets

# Seven milliseconds a molecule, and two models a target: beside larger tables they take longer than they tell.
MOST_BASELINE_ROWS, MOST_BASELINE_TARGETS = 20_000, 50
_TITLES = {DESCRIPTOR_BOOSTING: "descriptors, boosting", ECFP4_FOREST: "ECFP4, forest"}


def evaluate(prepared: PreparedTable, fitted: FittedTable, settings: FinetuneSettings) -> dict[str, Any]:
    """Metrics of the test and (unless it was fitted on) the validation part, of baselines on the test part, and counts.

    With folds also of all molecules that lie in one (`out_of_fold`), and how many labels the intervals hold.
    """
    table, molecules = prepared.table, prepared.molecules
    # A single head in closed form was fitted on the validation part too: of it there is nothing to tell.
    fitted_on_valid = fitted.config.head_type == KERNEL and fitted.folds is None
    parts = {part: table.rows_of(part) for part in ((TEST,) if fitted_on_valid else (VALID, TEST))}
    if fitted.folds is not None:
        parts[OUT_OF_FOLD] = np.flatnonzero(fitted.folds != NO_FOLD)
    metrics = {part: metrics_of(prepared, fitted, rows) for part, rows in parts.items()}
    failed = [molecule for molecule in molecules if molecule.error is not None]
    flat = [molecule for molecule in molecules if any(not c.provenance.is_3d for c in molecule.conformers)]
    rows = {part: len(table.rows_of(part)) for part in (TRAIN, VALID, TEST)}
    counts = {**rows, "all": len(molecules), "failed": len(failed), "with_flat_conformer": len(flat)}
    beside = _baselines(prepared, settings) if _is_small(prepared) else {}
    return {"version": METRICS_VERSION, **metrics, "baselines": beside, "rows": counts}


def metrics_of(prepared: PreparedTable, fitted: FittedTable, rows: NDArray[np.intp]) -> dict[str, Metrics]:
    """Metrics by target of some rows, with what the intervals hold of them."""
    table = prepared.table
    labels, training = table.labels[rows], table.labels[table.rows_of(TRAIN)]
    metrics = metrics_by_target(fitted.outputs[rows], labels, prepared.targets, training)
    for name in () if fitted.calibration is None else fitted.calibration.interval_names:
        metrics[name] |= coverage_of(fitted, rows, name, labels[:, table.target_names.index(name)])
    return metrics


def _is_small(prepared: PreparedTable) -> bool:
    """Whether baselines are quick, and there are bonds to compute descriptors from."""
    small = len(prepared.molecules) <= MOST_BASELINE_ROWS and len(prepared.targets) <= MOST_BASELINE_TARGETS
    return small and any(has_bonds(each) for each in prepared.read_molecules())


def _baselines(prepared: PreparedTable, settings: FinetuneSettings) -> dict[str, Any]:
    table, molecules, workers = prepared.table, prepared.read_molecules(), worker_count(settings.num_workers)
    if settings.descriptors == RDKIT:
        # A molecule that failed has none, and is in no part.
        none = np.full(len(descriptor_names()), np.nan, dtype=np.float32)
        descriptors = np.stack([none if each.descriptors is None else each.descriptors for each in prepared.molecules])
    else:
        about = {"descriptors": descriptor_names(), "rdkit": rdBase.rdkitVersion}
        descriptors = descriptors_of(molecules, workers, vector_cache_for(settings.conformer_cache, about))
    baselines = BaselineTable(molecules, table.labels, prepared.targets, table.split, table.row_weights, descriptors)
    return baseline_report(baselines, settings.seed, workers)


def write_outputs(
    output_dir: Path,
    prepared: PreparedTable,
    fitted: FittedTable,
    report: dict[str, Any],
    history: list[dict[str, Any]],
) -> None:
    """Write what the model was trained on, report/rows.csv, figures and, last, metrics.json.

    With that a run is finished. `fingerprints.safetensors` (of the training molecules) goes with the model;
    `training_set.parquet` (which `--split-file` reads) and `report/` hold the user's own data, which publishing leaves
    out.
    """
    table = prepared.table
    save_training_fingerprints(output_dir, prepared, fitted)
    labels = pd.DataFrame(table.labels, columns=table.target_names)
    own = pd.concat([pd.DataFrame({"smiles": table.smiles, "split": table.split}), labels], axis=1)
    with whole_file(output_dir / TRAINING_SET_FILE) as draft:
        own[table.split != UNUSED].to_parquet(draft)
    make_output_folder(output_dir / ROWS_FILE.parent)
    with whole_file(output_dir / ROWS_FILE) as draft:
        row_report(prepared, fitted).to_csv(draft, index=False)
    rows = prepared.table.rows_of(TEST)
    blocks = outputs_by_target(fitted.outputs[rows], prepared.targets)
    save_test_plot(blocks, prepared.table.labels[rows], prepared.targets, report[TEST], output_dir / "parity.png")
    if history:
        save_learning_curve(history, output_dir / "learning_curve.png")
    write_json_whole(output_dir / METRICS_FILE, report)


def save_training_fingerprints(output_dir: Path, prepared: PreparedTable, fitted: FittedTable) -> None:
    """Of the molecules that the model has learned from, for `nearest_similarity`."""
    # A head in closed form, and an ensemble on folds, have learned from the validation part too.
    learned = (TRAIN, VALID) if fitted.config.head_type == KERNEL or fitted.folds is not None else (TRAIN,)
    read = prepared.read_molecules()
    training = [read[row] for row in np.flatnonzero(np.isin(prepared.table.split, learned))]
    save_fingerprints(output_dir, bits_of_all(molecule_of(each) if has_bonds(each) else None for each in training))


def row_report(prepared: PreparedTable, fitted: FittedTable) -> pd.DataFrame:
    """One line for every row of the input: its split, predictions, conformer, and why it failed or was not used.

    With folds the predictions of rows that lie in one (`fold`) are by members that have not seen them.
    """
    table, molecules = prepared.table, prepared.molecules
    columns: dict[str, Any] = {"smiles": table.smiles, "split": table.split}
    if fitted.folds is not None:
        columns["fold"] = ["" if fold == NO_FOLD else fold for fold in fitted.folds]
    for target, labels in zip(prepared.targets, table.labels.T, strict=True):
        columns[str(target["name"])] = _as_given(target, labels)
    columns |= fitted.columns()
    methods = ([conformer.provenance.method for conformer in molecule.conformers] for molecule in molecules)
    columns["conformer"] = [conformer_summary(each) for each in methods]
    columns["error"] = ["" if molecule.error is None else molecule.error.reason for molecule in molecules]
    columns["error_code"] = ["" if molecule.error is None else molecule.error.code for molecule in molecules]
    columns["note"] = table.notes
    return pd.DataFrame(columns)


def _as_given(target: dict[str, Any], labels: FloatArray) -> Any:
    """Labels as the user has them."""
    if target["kind"] == REGRESSION:
        return labels
    return ["" if np.isnan(label) else str(target["classes"][int(label)]) for label in labels]


def print_report(console: Console, prepared: PreparedTable, report: dict[str, Any], output_dir: Path) -> None:
    """Test metrics, a table for each kind of target, and the count of rows that failed."""
    models = {"this model": report[TEST]} | {_TITLES[name]: each for name, each in report["baselines"].items()}
    for kind, shown in _SHOWN.items():
        names = [target["name"] for target in prepared.targets if target["kind"] == kind]
        if names:
            table = Table("target", "n", "model", *(title for title, _ in shown), title="held-out test part")
            shown_targets = names if len(names) <= _MOST_SHOWN else []
            for name in shown_targets:
                _add_rows(table, name, {model: metrics[name] for model, metrics in models.items()}, shown)
            if len(names) > 1:
                means = {model: _mean([metrics[name] for name in names]) for model, metrics in models.items()}
                _add_rows(table, f"mean of {len(names)}", means, shown)
            console.print(table)
    rows = report["rows"]
    console.print(
        f"{rows['failed']} of {rows['all']} rows failed, {rows['with_flat_conformer']} have a 2D conformer; "
        f"see {ROWS_FILE}, {METRICS_FILE} and parity.png in {escape(str(output_dir))}"
    )


def _add_rows(table: Table, name: str, metrics: dict[str, Metrics], shown: tuple[tuple[str, str], ...]) -> None:
    """A line for each model, and one for what the training labels alone would give."""
    keys = [key for _, key in shown]
    for index, (model, own) in enumerate(metrics.items()):
        told = (escape(name), str(own.get("count", ""))) if index == 0 else ("", "")
        table.add_row(*told, model, *_cells(own, keys))
    of_labels = next(iter(metrics.values()))
    table.add_row("", "", "training labels", *(_number(of_labels.get(f"{_BASELINE}{key}")) for key in keys))


def _mean(metrics: list[Metrics]) -> Metrics:
    """Of each number over the targets that have it."""
    values = {name: [each[name] for each in metrics] for name in metrics[0] if name != "count"}
    numbers = {name: [each for each in found if isinstance(each, float)] for name, found in values.items()}
    return {name: float(np.mean(found)) if found else None for name, found in numbers.items()}


def _cells(metrics: dict[str, Any], keys: list[str]) -> list[str]:
    """The numbers, the first with its interval where there is one."""
    first, *others = (_number(metrics.get(key)) for key in keys)
    interval = metrics.get(f"{keys[0]}_interval")
    told = "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"
    return [first + told, *others]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
