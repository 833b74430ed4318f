"""Fine-tune a Uni-Mol2 model on a table, with the Hugging Face Trainer: prepare, train, evaluate."""

import json
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from transformers import set_seed

from ..data.atomic_files import SETTINGS_FILE, write_settings
from ..data.molecule_files import Source
from ..data.output_folder import about_source, fingerprint_of_source, locked_output, start_or_continue
from ..models.packaged import resolve_model
from .evaluate import METRICS_FILE, evaluate, print_report, write_outputs
from .prepare import prepare
from .settings import FinetuneSettings
from .train import CHECKPOINTS, load_start_config, predict_molecules, train

LOGS = "runs"  # by the Trainer's own name


def finetune(data: Source, output_dir: Path, settings: FinetuneSettings, console: Console) -> dict[str, Any]:
    """Fine-tune, evaluate on the held-out part, and write model, metrics, predictions, row report and figures.

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
    load_start_config(settings)
    with locked_output(output_dir):
        _claim(data, output_dir, settings)
        finished = output_dir / METRICS_FILE
        if finished.exists():
            console.print(f"this run is finished: {escape(str(finished))}", highlight=False)
            report: dict[str, Any] = json.loads(finished.read_text())
            return report
        return _run(data, output_dir, settings, console)


def _claim(data: Source, output_dir: Path, settings: FinetuneSettings) -> None:
    """Note what the folder is for; refuse one that holds another run."""
    job = {"settings": settings.of_output(), "data": fingerprint_of_source(data), "model": _model_fingerprint(settings)}
    start_or_continue(output_dir, job, (output_dir / METRICS_FILE).exists(), about_source(data))
    write_settings(output_dir / SETTINGS_FILE, settings)


def _model_fingerprint(settings: FinetuneSettings) -> Any:
    folder = None if settings.scale is not None else Path(resolve_model(settings.model))
    weights = [] if folder is None else sorted(folder.glob("*.safetensors"))
    return [fingerprint_of_source(path)[0] for path in weights] or settings.scale or settings.model


def _run(data: Source, output_dir: Path, settings: FinetuneSettings, console: Console) -> dict[str, Any]:
    set_seed(settings.seed)
    prepared = prepare(data, settings, console)
    # The molecules may have been made in workers or read from somewhere: the model's random numbers begin here.
    set_seed(settings.seed)
    trainer = train(prepared, settings, output_dir, console)
    predictions = predict_molecules(trainer.property_model, prepared, prepared.molecules, settings.batch_size)
    report = evaluate(prepared, predictions, settings)
    write_outputs(output_dir, prepared, predictions, report, trainer.state.log_history)
    _keep_logs(output_dir)
    shutil.rmtree(output_dir / CHECKPOINTS, ignore_errors=True)
    print_report(console, prepared, report, output_dir)
    return report


def _keep_logs(output_dir: Path) -> None:
    """TensorBoard's files, which the Trainer writes beside its checkpoints."""
    logs = output_dir / CHECKPOINTS / LOGS
    if logs.exists():
        shutil.move(logs, output_dir / LOGS)
