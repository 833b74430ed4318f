"""From a table to a model that predicts its columns: prepare, fit or train, evaluate."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from transformers import set_seed

from ..calibration import save_calibration
from ..configuration_unimol2 import UniMol2Config
from ..data.atomic_files import SETTINGS_FILE, write_settings
from ..data.molecule_files import Source
from ..data.output_folder import about_source, fingerprint_of_source, locked_output, start_or_continue
from ..models.loading import load_config
from ..models.packaged import resolve_model
from .evaluate import METRICS_FILE, evaluate, print_report, write_outputs
from .fitted import FittedTable, predict_all, tell_calibration
from .frozen import fit_frozen
from .members import Members, is_frozen, plan_members, tell_members
from .prepare import PreparedTable, prepare
from .settings import FinetuneSettings
from .train import load_start_config, train_members, training_history


def finetune(data: Source, output_dir: Path, settings: FinetuneSettings, console: Console) -> dict[str, Any]:
    """Fit a head or train the model, evaluate on the held-out part, and write model, metrics, row report and figures.

    `data` is whatever `read_molecules` reads, a DataFrame or a `datasets.Dataset` too.

    A run that was killed goes on where it was, with the same losses, by the same call; a finished one is told anew.

    Returns:
        What `metrics.json` holds: `test` and `valid` metrics by target, and the counts of rows.

    Raises:
        TableError: the table cannot be used (see `prepare`), or every molecule of a part failed.
        OutputFolderError: the folder cannot be used, another process is at work there, or it holds another run.
        ModelError: the model cannot be loaded, or training diverged.
    """
    # Before anything is made: a name that is mistyped is told at once.
    config = load_start_config(settings)
    with locked_output(output_dir):
        _claim(data, output_dir, settings)
        finished = output_dir / METRICS_FILE
        if finished.exists():
            console.print(f"this run is finished: {escape(str(finished))}", highlight=False)
            report: dict[str, Any] = json.loads(finished.read_text())
            return report
        return _run(data, output_dir, settings, config, console)


def _claim(data: Source, output_dir: Path, settings: FinetuneSettings) -> None:
    """Note what the folder is for; refuse one that holds another run."""
    job = {"settings": settings.of_output(), "data": fingerprint_of_source(data), "model": _model_fingerprint(settings)}
    # Later, and in another folder, nobody can tell a Hub id from a path.
    about = {**about_source(data), "model_is_folder": Path(resolve_model(settings.model)).exists()}
    start_or_continue(output_dir, job, (output_dir / METRICS_FILE).exists(), about)
    write_settings(output_dir / SETTINGS_FILE, settings)


def _model_fingerprint(settings: FinetuneSettings) -> Any:
    folder = None if settings.scale is not None else Path(resolve_model(settings.model))
    weights = [] if folder is None else sorted(folder.glob("*.safetensors"))
    return [fingerprint_of_source(path)[0] for path in weights] or settings.scale or settings.model


def _run(
    data: Source, output_dir: Path, settings: FinetuneSettings, config: UniMol2Config, console: Console
) -> dict[str, Any]:
    set_seed(settings.seed)
    prepared = prepare(data, settings, console)
    members = plan_members(settings, prepared, is_frozen(settings, prepared, config))
    fitted = fit_model(prepared, settings, members, output_dir, console)
    report = evaluate(prepared, fitted, settings)
    report["head"] = "frozen" if members.frozen else "finetuned"
    write_outputs(output_dir, prepared, fitted, report, training_history(output_dir))
    print_report(console, prepared, report, output_dir)
    return report


def fit_model(
    prepared: PreparedTable, settings: FinetuneSettings, members: Members, output_dir: Path, console: Console
) -> FittedTable:
    """Fit or train all members, save them with what was calibrated on them, and predict all rows."""
    tell_members(members, console)
    fit = fit_frozen if members.frozen else train_members
    logits = fit(prepared, settings, members, output_dir, console)
    fitted = predict_all(prepared, members, logits, load_config(str(output_dir)), settings.coverage)
    if fitted.calibration is not None:
        save_calibration(output_dir, fitted.calibration)
        tell_calibration(prepared, fitted.calibration, console)
    return fitted
