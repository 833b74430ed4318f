"""Fine-tune a Uni-Mol2 model on a table, with the Hugging Face Trainer."""

import json
import math
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

from ..batching import max_pairs_for
from ..configuration_unimol2 import SCALES, UniMol2Config
from ..data.splits import TEST, TRAIN, UNUSED, VALID
from ..data.tables import conformer_summary
from ..errors import ModelError, TableError
from ..feature_extraction_unimol2 import FeaturizedMolecule, UniMol2FeatureExtractor
from ..modeling_unimol2 import UniMol2ForPropertyRegression
from ..models.loading import _has_extractor, check_model_type, load_regression_model
from ..pipeline_unimol2 import MoleculePropertyPipeline
from ..targets.labels import PREDICTED, LabelledTable, check_parts, read_labelled_table
from ..targets.metrics import metrics_by_target, regression_metrics
from ..training.collator import DataCollatorForUniMol2
from ..training.trainer import UniMol2Trainer
from .dataset import FeaturizedDataset, featurize_with_progress
from .plots import save_parity_plot
from .settings import FinetuneSettings

FloatArray = NDArray[np.floating[Any]]

SMALLEST_RELATIVE_STD = 1e-4


def finetune(data: Path, output_dir: Path, settings: FinetuneSettings, console: Console) -> dict[str, Any]:
    """Fine-tune, evaluate on the held-out part, and write model, metrics, predictions, row report and parity plot.

    Returns:
        What `metrics.json` holds: `test` and `valid` metrics by target, and the counts of rows.

    Raises:
        TableError: the table cannot be used (see `read_labelled_table`), or every molecule of a part failed.
    """
    _check_output_folder(output_dir)
    if settings.model.lower() not in SCALES:
        check_model_type(settings.model)
    table = read_labelled_table(
        data, settings.smiles_column, settings.targets, settings.split_column, settings.split_method, settings.seed
    )
    set_seed(settings.seed)
    extractor = load_feature_extractor(settings)
    molecules = featurize_with_progress(extractor, table.smiles, len(table.smiles), settings.num_workers, console)
    _exclude_failed(table, molecules)
    means, stds = _label_statistics(table)
    model = load_model(settings, means, stds)
    trainer = _make_trainer(model, extractor, table, molecules, settings, output_dir)
    trainer.train()
    trainer.save_model(str(output_dir))
    predictions = _predict_all(model, extractor, molecules, settings.batch_size)
    report = _evaluate(table, molecules, predictions, means)
    _write_outputs(output_dir, table, molecules, predictions, report)
    (output_dir / "log_history.json").write_text(json.dumps(trainer.state.log_history, indent=1))
    print_report(console, report, output_dir)
    return report


def _check_output_folder(output_dir: Path) -> None:
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TableError(f"{output_dir} cannot be used as the output folder: {error}") from error


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


def load_feature_extractor(settings: FinetuneSettings) -> UniMol2FeatureExtractor:
    """The model folder's own feature extractor where it has one, with this run's conformer settings."""
    conformers: dict[str, Any] = {"num_conformers": settings.num_conformers, "include_2d": settings.include_2d}
    if settings.model.lower() in SCALES or not _has_extractor(settings.model):
        return UniMol2FeatureExtractor(max_atoms=settings.max_atoms, **conformers)
    return UniMol2FeatureExtractor.from_pretrained(settings.model, max_atoms=settings.max_atoms, **conformers)


def load_model(settings: FinetuneSettings, means: list[float], stds: list[float]) -> UniMol2ForPropertyRegression:
    """A regression model for the targets: from scratch for a scale name, else from pretrained weights."""
    id2label = dict(enumerate(settings.targets))
    overrides: dict[str, Any] = {
        "id2label": id2label,
        "label2id": {name: number for number, name in id2label.items()},
        "label_mean": means,
        "label_std": stds,
        "loss_function": settings.loss,
    }
    if settings.pooling is not None:
        overrides["head_pooling"] = settings.pooling
    if settings.model.lower() in SCALES:
        return UniMol2ForPropertyRegression(UniMol2Config.from_scale(settings.model, **overrides))
    return load_regression_model(settings.model, new_head=True, **overrides)


def _exclude_failed(table: LabelledTable, molecules: list[FeaturizedMolecule]) -> None:
    """A molecule without features leaves its split; the row report keeps it."""
    failed = np.array([molecule.error is not None for molecule in molecules])
    table.split[failed] = UNUSED
    for part in (TRAIN, VALID, TEST):
        if failed.any() and not len(table.rows_of(part)):
            reasons = sorted({str(molecule.error.reason) for molecule in molecules if molecule.error is not None})
            raise TableError(f"no usable molecule is left in the {part} part; failures: {'; '.join(reasons[:3])}")


def _label_statistics(table: LabelledTable) -> tuple[list[float], list[float]]:
    check_parts(table)
    labels = table.labels[table.rows_of(TRAIN)]
    means, stds = np.nanmean(labels, axis=0), np.nanstd(labels, axis=0)
    for target, mean, std in zip(table.targets, means, stds, strict=True):
        if std < SMALLEST_RELATIVE_STD * abs(mean):
            raise TableError(
                f"target {target} varies by {std:.3g} around {mean:.6g}: too little for single precision; "
                "subtract the offset from the labels"
            )
    return means.tolist(), stds.tolist()


def _make_trainer(
    model: UniMol2ForPropertyRegression,
    extractor: UniMol2FeatureExtractor,
    table: LabelledTable,
    molecules: list[FeaturizedMolecule],
    settings: FinetuneSettings,
    output_dir: Path,
) -> UniMol2Trainer:
    def dataset(part: str) -> FeaturizedDataset:
        rows = table.rows_of(part)
        return FeaturizedDataset([molecules[row] for row in rows], table.labels[rows], part == TRAIN)

    stds = np.array(model.config.label_std)
    callbacks: list[TrainerCallback] = [StopWhenDiverged()]
    if settings.patience:
        callbacks.append(EarlyStoppingCallback(settings.patience))
    args = training_arguments(settings, output_dir)
    return UniMol2Trainer(
        model=model,
        # The run's device: the model is moved there later.
        max_pairs_at_once=max_pairs_for(args.device.type, model.config.pair_hidden_size),
        args=args,
        train_dataset=dataset(TRAIN),
        eval_dataset=dataset(VALID),
        data_collator=DataCollatorForUniMol2(extractor),
        processing_class=extractor,
        compute_metrics=lambda prediction: _validation_metrics(prediction, table.targets, stds),
        callbacks=callbacks,
    )


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


def _predict_all(
    model: UniMol2ForPropertyRegression,
    extractor: UniMol2FeatureExtractor,
    molecules: list[FeaturizedMolecule],
    batch_size: int,
) -> FloatArray:
    """Predictions (n, targets) in the labels' units, mean over conformers, NaN for failed molecules."""
    pipeline = MoleculePropertyPipeline(model=model.eval(), feature_extractor=extractor, device=model.device)
    targets = model.config.target_names
    values = np.full((len(molecules), len(targets)), np.nan)
    for row, result in enumerate(pipeline.run_featurized(molecules, batch_size)):
        if result["predictions"] is not None:
            values[row] = [result["predictions"][target] for target in targets]
    return values


def _evaluate(
    table: LabelledTable, molecules: list[FeaturizedMolecule], predictions: FloatArray, means: list[float]
) -> dict[str, Any]:
    parts = {part: table.rows_of(part) for part in (VALID, TEST)}
    metrics = {
        part: metrics_by_target(predictions[rows], table.labels[rows], table.targets, means)
        for part, rows in parts.items()
    }
    failed = [molecule for molecule in molecules if molecule.error is not None]
    flat = [molecule for molecule in molecules if any(not c.provenance.is_3d for c in molecule.conformers)]
    rows = {part: len(table.rows_of(part)) for part in (TRAIN, VALID, TEST)}
    return {**metrics, "rows": {**rows, "all": len(molecules), "failed": len(failed), "with_flat_conformer": len(flat)}}


def _write_outputs(
    output_dir: Path,
    table: LabelledTable,
    molecules: list[FeaturizedMolecule],
    predictions: FloatArray,
    report: dict[str, Any],
) -> None:
    (output_dir / "metrics.json").write_text(json.dumps(report, indent=2))
    _row_report(table, molecules, predictions).to_csv(output_dir / "rows.csv", index=False)
    rows = table.rows_of(TEST)
    save_parity_plot(predictions[rows], table.labels[rows], report[TEST], output_dir / "parity.png")


def _row_report(table: LabelledTable, molecules: list[FeaturizedMolecule], predictions: FloatArray) -> pd.DataFrame:
    """One line for every row of the input: its split, predictions, conformer, and why it failed or was not used."""
    columns: dict[str, Any] = {"smiles": table.smiles, "split": table.split}
    for number, target in enumerate(table.targets):
        columns[target] = table.labels[:, number]
        columns[f"{PREDICTED}{target}"] = predictions[:, number]
    methods = ([conformer.provenance.method for conformer in molecule.conformers] for molecule in molecules)
    columns["conformer"] = [conformer_summary(each) for each in methods]
    columns["error"] = ["" if molecule.error is None else molecule.error.reason for molecule in molecules]
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
        f"{rows['failed']} of {rows['all']} rows failed, {rows['with_flat_conformer']} have a flat conformer; "
        f"see rows.csv, metrics.json and parity.png in {escape(str(output_dir))}"
    )
