"""Fine-tune a Uni-Mol2 model on a table, with the Hugging Face Trainer: prepare, train, evaluate."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer import TRAINING_ARGS_NAME

from ..batching import max_pairs_for
from ..configuration_unimol2 import REGRESSION, UniMol2Config
from ..data.atomic_files import SETTINGS_FILE, make_output_folder, write_json_whole, write_settings
from ..data.splits import TEST, TRAIN, UNUSED, VALID
from ..data.tables import conformer_summary
from ..errors import ModelError, TableError
from ..feature_extraction_unimol2 import FeaturizedMolecule, UniMol2FeatureExtractor
from ..modeling_unimol2 import UniMol2ForPropertyRegression
from ..models.loading import TASK_HEAD, load_config, load_feature_extractor, load_model
from ..pipeline_unimol2 import MoleculePropertyPipeline
from ..targets.labels import PREDICTED, LabelledTable, check_parts, read_labelled_table
from ..targets.metrics import metrics_by_target, regression_metrics
from ..training.collator import DataCollatorForUniMol2
from ..training.trainer import UniMol2Trainer
from ..worker_pool import worker_count
from .dataset import FeaturizedDataset, featurize_with_progress
from .plots import save_parity_plot
from .settings import FinetuneSettings

FloatArray = NDArray[np.floating[Any]]
Targets = list[dict[str, Any]]

SMALLEST_RELATIVE_STD = 1e-4


@dataclass(frozen=True)
class PreparedTable:
    """A table ready to train on.

    Attributes:
        table: labels and split; molecules that failed are unused.
        molecules: featurised, one for each row.
        extractor: that made them, and goes into the model's folder.
        targets: as `UniMol2Config.targets`, scaled by the training part.
    """

    table: LabelledTable
    molecules: list[FeaturizedMolecule]
    extractor: UniMol2FeatureExtractor
    targets: Targets

    def dataset(self, part: str) -> FeaturizedDataset:
        """The rows of a part; in training a conformer is drawn anew each time."""
        rows = self.table.rows_of(part)
        return FeaturizedDataset([self.molecules[row] for row in rows], self.table.labels[rows], part == TRAIN)


def finetune(data: Path, output_dir: Path, settings: FinetuneSettings, console: Console) -> dict[str, Any]:
    """Fine-tune, evaluate on the held-out part, and write model, metrics, predictions, row report and parity plot.

    Returns:
        What `metrics.json` holds: `test` and `valid` metrics by target, and the counts of rows.

    Raises:
        TableError: the table cannot be used (see `read_labelled_table`), or every molecule of a part failed.
        OutputFolderError: the folder cannot be used.
        ModelError: the model cannot be loaded, or training diverged.
    """
    make_output_folder(output_dir)
    set_seed(settings.seed)
    # Before the conformers are made: a name that is mistyped is told at once.
    load_start_config(settings)
    prepared = prepare(data, settings, console)
    trainer = train(prepared, settings, output_dir)
    predictions = predict_rows(trainer.model, prepared, settings.batch_size)
    report = evaluate(prepared, predictions)
    write_outputs(output_dir, prepared, predictions, report)
    write_json_whole(output_dir / "log_history.json", trainer.state.log_history)
    write_settings(output_dir / SETTINGS_FILE, settings)
    print_report(console, report, output_dir)
    return report


def prepare(data: Path, settings: FinetuneSettings, console: Console) -> PreparedTable:
    """Read, split and featurise a table."""
    table = read_labelled_table(
        data, settings.smiles_column, settings.targets, settings.split_column, settings.split_method, settings.seed
    )
    if settings.scale is not None:
        extractor = UniMol2FeatureExtractor(**settings.featurizer)
    else:
        extractor = load_feature_extractor(settings.model, optional=True, **settings.featurizer)
    workers = worker_count(settings.num_workers)
    molecules = featurize_with_progress(extractor, table.smiles, len(table.smiles), workers, console)
    _exclude_failed(table, molecules)
    return PreparedTable(table, molecules, extractor, scaled_targets(table))


def train(prepared: PreparedTable, settings: FinetuneSettings, output_dir: Path) -> UniMol2Trainer:
    """Train, keep the best epoch, and save model and featurizer."""
    model = make_model(settings, prepared.targets)
    args = training_arguments(settings, output_dir)
    stds = np.array([target["std"] for target in prepared.targets])
    callbacks: list[TrainerCallback] = [StopWhenDiverged()]
    if settings.patience:
        callbacks.append(EarlyStoppingCallback(settings.patience))
    trainer = UniMol2Trainer(
        model=model,
        # The run's device: the model is moved there later.
        max_pairs_at_once=max_pairs_for(args.device.type, model.config.pair_hidden_size),
        args=args,
        train_dataset=prepared.dataset(TRAIN),
        eval_dataset=prepared.dataset(VALID),
        data_collator=DataCollatorForUniMol2(prepared.extractor),
        processing_class=prepared.extractor,
        compute_metrics=lambda prediction: _validation_metrics(prediction, prepared.table.targets, stds),
        callbacks=callbacks,
    )
    trainer.train()
    trainer.save_model(str(output_dir))
    # A pickle of the Trainer's; settings.json says what it says.
    (output_dir / TRAINING_ARGS_NAME).unlink(missing_ok=True)
    return trainer


class StopWhenDiverged(TrainerCallback):
    """Raises `ModelError` at the first validation loss that is not finite; the Trainer itself would train on."""

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        loss = (metrics or {}).get("eval_loss", 0.0)
        if not math.isfinite(loss):
            raise ModelError(
                f"training diverged in epoch {state.epoch:.0f}: validation loss {loss}; lower the learning rate"
            )


def load_start_config(settings: FinetuneSettings) -> UniMol2Config:
    """The config that the run begins with: of a scale, or of a pretrained model, with the run's changes.

    Raises:
        ModelError: the model cannot be loaded.
    """
    changes: dict[str, Any] = {"loss_function": settings.loss}
    if settings.pooling is not None:
        changes["classifier_pooling"] = settings.pooling
    if settings.scale is not None:
        return UniMol2Config.from_scale(settings.scale, **changes)
    return load_config(settings.model, **changes)


def make_model(settings: FinetuneSettings, targets: Targets) -> UniMol2ForPropertyRegression:
    """A model for the targets: from scratch for a scale name, else from pretrained weights with a new task head."""
    config = load_start_config(settings)
    config.set_targets(targets)
    if settings.scale is not None:
        return UniMol2ForPropertyRegression(config)
    return load_model(UniMol2ForPropertyRegression, settings.model, config, begins_anew=(TASK_HEAD,))


def _exclude_failed(table: LabelledTable, molecules: list[FeaturizedMolecule]) -> None:
    """A molecule without features leaves its split; the row report keeps it."""
    failed = np.array([molecule.error is not None for molecule in molecules])
    table.split[failed] = UNUSED
    for part in (TRAIN, VALID, TEST):
        if failed.any() and not len(table.rows_of(part)):
            reasons = sorted({str(molecule.error.reason) for molecule in molecules if molecule.error is not None})
            raise TableError(f"no usable molecule is left in the {part} part; failures: {'; '.join(reasons[:3])}")


def scaled_targets(table: LabelledTable) -> Targets:
    """The targets with mean and standard deviation of their training labels.

    Raises:
        TableError: a part of the split is empty, or a target hardly varies.
    """
    check_parts(table)
    labels = table.labels[table.rows_of(TRAIN)]
    means, stds = np.nanmean(labels, axis=0).tolist(), np.nanstd(labels, axis=0).tolist()
    for target, mean, std in zip(table.targets, means, stds, strict=True):
        if std < SMALLEST_RELATIVE_STD * abs(mean):
            raise TableError(
                f"target {target} varies by {std:.3g} around {mean:.6g}: too little for single precision; "
                "subtract the offset from the labels"
            )
    scale = zip(table.targets, means, stds, strict=True)
    return [{"name": name, "kind": REGRESSION, "mean": mean, "std": std} for name, mean, std in scale]


def training_arguments(settings: FinetuneSettings, output_dir: Path) -> TrainingArguments:
    """The reference's fine-tuning recipe: Adam(0.9, 0.99, 1e-6), clip 1, linear decay, the best epoch kept."""
    half = settings.precision == "bfloat16"
    return TrainingArguments(
        output_dir=str(output_dir / "checkpoints"),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup,
        lr_scheduler_type="linear",
        weight_decay=settings.weight_decay,
        adam_beta1=0.9,
        adam_beta2=0.99,
        adam_epsilon=1e-6,
        max_grad_norm=1.0,
        bf16=half,
        # The Trainer wants to be told; in float32 it finds whatever accelerator there is.
        use_cpu=half and not torch.cuda.is_available(),
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_score",
        greater_is_better=False,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        seed=settings.seed,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )


def _validation_metrics(prediction: EvalPrediction, targets: list[str], stds: FloatArray) -> dict[str, float]:
    """MAE of each target, and `score`: their mean in units of the training labels' standard deviation."""
    predictions = prediction.predictions
    values = np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)
    references = np.asarray(prediction.label_ids)
    errors = [regression_metrics(values[:, n], references[:, n])["mae"] for n in range(len(targets))]
    metrics = {f"mae_{target}": error for target, error in zip(targets, errors, strict=True) if error is not None}
    scaled = [error / std for error, std in zip(errors, stds, strict=True) if error is not None]
    return {**metrics, "score": float(np.mean(scaled))}


def predict_rows(model: UniMol2ForPropertyRegression, prepared: PreparedTable, batch_size: int) -> FloatArray:
    """Predictions (n, targets) in the labels' units, mean over conformers, NaN for failed molecules."""
    pipeline = MoleculePropertyPipeline(model=model.eval(), feature_extractor=prepared.extractor, device=model.device)
    targets = model.config.target_names
    values = np.full((len(prepared.molecules), len(targets)), np.nan)
    for row, result in enumerate(pipeline.run_featurized(prepared.molecules, batch_size)):
        if result["predictions"] is not None:
            values[row] = [result["predictions"][target] for target in targets]
    return values


def evaluate(prepared: PreparedTable, predictions: FloatArray) -> dict[str, Any]:
    """Metrics of the validation and the test part, and the counts of rows."""
    table, molecules = prepared.table, prepared.molecules
    training = table.labels[table.rows_of(TRAIN)]
    metrics = {
        part: metrics_by_target(predictions[rows], table.labels[rows], prepared.targets, training)
        for part, rows in ((part, table.rows_of(part)) for part in (VALID, TEST))
    }
    failed = [molecule for molecule in molecules if molecule.error is not None]
    flat = [molecule for molecule in molecules if any(not c.provenance.is_3d for c in molecule.conformers)]
    rows = {part: len(table.rows_of(part)) for part in (TRAIN, VALID, TEST)}
    return {**metrics, "rows": {**rows, "all": len(molecules), "failed": len(failed), "with_flat_conformer": len(flat)}}


def write_outputs(output_dir: Path, prepared: PreparedTable, predictions: FloatArray, report: dict[str, Any]) -> None:
    """Write metrics.json, rows.csv and parity.png."""
    write_json_whole(output_dir / "metrics.json", report)
    row_report(prepared, predictions).to_csv(output_dir / "rows.csv", index=False)
    rows = prepared.table.rows_of(TEST)
    save_parity_plot(predictions[rows], prepared.table.labels[rows], report[TEST], output_dir / "parity.png")


def row_report(prepared: PreparedTable, predictions: FloatArray) -> pd.DataFrame:
    """One line for every row of the input: its split, predictions, conformer, and why it failed or was not used."""
    table, molecules = prepared.table, prepared.molecules
    columns: dict[str, Any] = {"smiles": table.smiles, "split": table.split}
    for number, target in enumerate(table.targets):
        columns[target] = table.labels[:, number]
        columns[f"{PREDICTED}{target}"] = predictions[:, number]
    methods = ([conformer.provenance.method for conformer in molecule.conformers] for molecule in molecules)
    columns["conformer"] = [conformer_summary(each) for each in methods]
    columns["error"] = ["" if molecule.error is None else molecule.error.reason for molecule in molecules]
    columns["error_code"] = ["" if molecule.error is None else molecule.error.code for molecule in molecules]
    columns["note"] = table.notes
    return pd.DataFrame(columns)


def print_report(console: Console, report: dict[str, Any], output_dir: Path) -> None:
    """Test metrics as a table, and the count of rows that failed."""
    table = Table("target", "n", "MAE", "RMSE", "R2", "MAE of the mean", title="held-out test part")
    for target, metrics in report[TEST].items():
        numbers = (metrics[name] for name in ("mae", "rmse", "r2", "baseline_mae"))
        table.add_row(
            escape(target), str(metrics["count"]), *("-" if value is None else f"{value:.3f}" for value in numbers)
        )
    console.print(table)
    rows = report["rows"]
    console.print(
        f"{rows['failed']} of {rows['all']} rows failed, {rows['with_flat_conformer']} have a 2D conformer; "
        f"see rows.csv, metrics.json and parity.png in {escape(str(output_dir))}"
    )
