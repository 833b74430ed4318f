"""Training of property models by the Hugging Face Trainer: the best epoch kept, gone on with after a kill."""

import json
import math
import shutil
import warnings
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainingArguments,
    set_seed,
)
from transformers.trainer import TRAINING_ARGS_NAME

from ..batching import max_pairs_for
from ..configuration_unimol2 import KERNEL, UniMol2Config
from ..data.atomic_files import write_json_whole
from ..data.progress import stage
from ..data.splits import TRAIN, VALID
from ..errors import ModelError, SettingsError
from ..feature_extraction_unimol2 import FeaturizedMolecule
from ..modeling_unimol2 import (
    NUM_QUANTILES,
    UniMol2ForPropertyClassification,
    UniMol2ForPropertyPrediction,
    UniMol2ForPropertyRegression,
)
from ..models.loading import TASK_HEAD, load_config, load_model, quiet_transformers
from ..pipeline_unimol2 import MoleculePropertyPipeline, member_folder
from ..targets.metrics import validation_score
from ..targets.predictions import molecule_results, output_array
from ..training.checkpoints import MarkComplete, last_complete_checkpoint, remove_incomplete_checkpoints
from ..training.collator import DataCollatorForUniMol2
from ..training.trainer import UniMol2Trainer
from .defaults import Recipe, recipe_for
from .members import Members
from .prepare import PreparedTable
from .search import search
from .settings import FinetuneSettings

FloatArray = NDArray[np.float64]

CHECKPOINTS, HISTORY_FILE = "checkpoints", "log_history.json"
LOGS, SEARCH = "runs", "search"  # the first by the Trainer's own name
SCORE = "eval_score"
_MODEL_CLASSES: dict[Any, type[UniMol2ForPropertyPrediction]] = {
    "regression": UniMol2ForPropertyRegression,
    "single_label_classification": UniMol2ForPropertyClassification,
    "multi_label_classification": UniMol2ForPropertyClassification,
}


class PropertyTrainer(UniMol2Trainer):
    """Evaluates as the finished model predicts: each molecule's mean over its conformers."""

    def __init__(self, *args: Any, prepared: PreparedTable, **kwargs: Any) -> None:
        # Where evaluation is asked for, the Trainer wants to see something to evaluate on.
        super().__init__(*args, train_dataset=prepared.training_data(), eval_dataset=[], **kwargs)
        self.control: TrainerControl
        self.model: Any
        rows = prepared.table.rows_of(VALID)
        self._prepared, self._labels = prepared, prepared.table.labels[rows]
        self._molecules = [prepared.molecules[row] for row in rows]

    @property
    def property_model(self) -> UniMol2ForPropertyPrediction:
        """The model itself, with the adapters that were put into it."""
        model: Any = self.accelerator.unwrap_model(self.model)
        found: UniMol2ForPropertyPrediction = model.get_base_model() if self._has_adapters else model
        return found

    @property
    def _has_adapters(self) -> bool:
        return hasattr(self.accelerator.unwrap_model(self.model), "merge_and_unload")

    def merge_adapters(self) -> None:
        """Add adapters, if there are any, to the weights, so that the folder is a model like every other."""
        if self._has_adapters:
            self.model = self.accelerator.unwrap_model(self.model).merge_and_unload()

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """`score` (see `validation_score`) on the validation part."""
        model, targets = self.property_model, self._prepared.targets
        batch_size = self.args.per_device_eval_batch_size
        logits = member_logits(model, self._prepared, self._molecules, batch_size, model.device)
        predictions = output_array(molecule_results(logits, model.config), model.config)
        metrics = {f"{metric_key_prefix}_score": math.nan}
        if np.isfinite(predictions).all():
            metrics[f"{metric_key_prefix}_score"] = validation_score(predictions, self._labels, targets)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def train_members(
    prepared: PreparedTable, settings: FinetuneSettings, members: Members, output_dir: Path, console: Console
) -> list[FloatArray]:
    """Train each member, and give the outputs (conformers, members, num_labels) of each row.

    The first member is the folder's own model, the others lie in `members/`. One that is finished is not trained again.
    """
    found = []
    for number, (split, seed) in enumerate(zip(members.splits, members.seeds, strict=True)):
        folder = output_dir / member_folder(number) if number else output_dir
        if len(members) > 1:
            console.print(f"member {number + 1} of {len(members)}", highlight=False)
        own = prepared.with_split(split)
        if not (folder / HISTORY_FILE).exists():
            seeded = replace(settings, seed=seed)
            # The molecules may have been made in workers or read from somewhere: the random numbers begin here.
            set_seed(seed)
            _train_one(own, seeded, folder, console, num_members=1 if number else len(members))
        model = load_model(UniMol2ForPropertyPrediction, str(folder)).eval()
        found.append(member_logits(model, own, prepared.molecules, settings.batch_size))
    return [np.concatenate(each, axis=1) for each in zip(*found, strict=True)]


def _train_one(
    prepared: PreparedTable, settings: FinetuneSettings, folder: Path, console: Console, num_members: int
) -> None:
    """A member's whole folder; the history comes last."""
    if settings.search:

        def train_and_score(tried: FinetuneSettings, own: Path, watch: TrainerCallback) -> float:
            set_seed(settings.seed)
            return float(train(prepared, tried, own, console, watch=watch).state.best_metric)

        settings = search(settings, folder / CHECKPOINTS / SEARCH, train_and_score, console)
        set_seed(settings.seed)
    trainer = train(prepared, settings, folder, console, num_members=num_members)
    logs = folder / CHECKPOINTS / LOGS
    if logs.exists():
        # TensorBoard's files, which the Trainer writes beside its checkpoints.
        shutil.move(logs, folder / LOGS)
    write_json_whole(folder / HISTORY_FILE, trainer.state.log_history)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def training_history(output_dir: Path) -> list[dict[str, Any]]:
    """The Trainer's log of the folder's own model; empty where it was not trained."""
    path = output_dir / HISTORY_FILE
    history: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return history


def train(
    prepared: PreparedTable,
    settings: FinetuneSettings,
    output_dir: Path,
    console: Console,
    num_members: int = 1,
    watch: TrainerCallback | None = None,
) -> PropertyTrainer:
    """Train from the last whole checkpoint, keep the best epoch, and save model and featurizer."""
    model = make_model(settings, prepared, num_members=num_members)
    recipe = recipe_for(settings, model.config, prepared.training_data().lengths)
    args = training_arguments(settings, recipe, output_dir, len(prepared.table.rows_of(TRAIN)))
    callbacks: list[TrainerCallback] = [StopWhenDiverged(), MarkComplete(), ShowProgress(console)]
    if watch is not None:
        callbacks.append(watch)
    if settings.patience:
        callbacks.append(EarlyStoppingCallback(settings.patience))
    remove_incomplete_checkpoints(Path(args.output_dir))
    trainer = PropertyTrainer(
        model=with_adapters(model, settings.lora) if settings.lora else model,
        # The run's device: the model is moved there later.
        max_pairs_at_once=max_pairs_for(args.device.type, model.config.pair_hidden_size),
        args=args,
        data_collator=DataCollatorForUniMol2(prepared.extractor),
        processing_class=prepared.extractor,
        callbacks=callbacks,
        prepared=prepared,
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = last_complete_checkpoint(Path(args.output_dir))
    with quiet_transformers():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        trainer.merge_adapters()
        trainer.save_model(str(output_dir))
    # A pickle of the Trainer's; settings.json says what it says.
    (output_dir / TRAINING_ARGS_NAME).unlink(missing_ok=True)
    return trainer


class ShowProgress(TrainerCallback):
    """The steps of training as a stage on the console."""

    def __init__(self, console: Console) -> None:
        self._console, self._stage = console, ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._advance = self._stage.enter_context(stage(self._console, "training steps", state.max_steps))
        self._advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._advance(1)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stage.close()


class StopWhenDiverged(TrainerCallback):
    """Raises `ModelError` at the first validation score that is not finite; the Trainer itself would train on."""

    def on_evaluate(self, *args: Any, metrics: dict[str, float] | None = None, **kwargs: Any) -> None:
        score, state = (metrics or {}).get(SCORE, 0.0), args[1]
        if not math.isfinite(score):
            raise ModelError(
                f"training diverged in epoch {state.epoch:.0f}: validation score {score}; lower the learning rate"
            )


def load_start_config(settings: FinetuneSettings) -> UniMol2Config:
    """The config that the run begins with: of a scale, or of a pretrained model, with the run's changes.

    Raises:
        ModelError: the model cannot be loaded.
    """
    changes: dict[str, Any] = {"loss_function": settings.loss, "pooler_dropout_prob": settings.pooler_dropout}
    if settings.pooling is not None:
        changes["classifier_pooling"] = settings.pooling
    if settings.scale is not None:
        return UniMol2Config.from_scale(settings.scale, **changes)
    return load_config(settings.model, **changes)


def make_model(settings: FinetuneSettings, prepared: PreparedTable, **head: Any) -> UniMol2ForPropertyPrediction:
    """A model for the targets: from scratch for a scale name, else from pretrained weights with a new task head.

    Args:
        settings: of the run.
        prepared: what it is for; descriptors get the scale of its training part.
        **head: fields of the config; by default the head is one to be trained.
    """
    config = load_start_config(settings)
    # Of a model that was fitted before only the encoder counts.
    config.head_type = "mlp" if config.head_type == KERNEL else config.head_type
    config.num_members, config.num_centers = 1, 0
    config.num_descriptors = len(prepared.extractor.descriptor_names)
    for name, value in head.items():
        setattr(config, name, value)
    config.set_targets(prepared.targets)
    config.extra_features = prepared.extra_features or None
    model_class = _MODEL_CLASSES.get(config.problem_type, UniMol2ForPropertyPrediction)
    if settings.scale is not None:
        model = model_class(config)
    else:
        model = load_model(model_class, settings.model, config, begins_anew=(TASK_HEAD,))
    if config.num_descriptors:
        model.classifier.descriptor_scale.quantiles.data.copy_(descriptor_quantiles(prepared))
    return model


def descriptor_quantiles(prepared: PreparedTable) -> torch.Tensor:
    """(T, quantiles) of the training part; of a descriptor that is defined for none of it, zeros."""
    rows = prepared.table.rows_of(TRAIN)
    found = np.stack([prepared.molecules[row].descriptors for row in rows])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        quantiles = np.nanquantile(found, np.linspace(0, 1, NUM_QUANTILES), axis=0)
    return torch.from_numpy(np.nan_to_num(quantiles.T))


def with_adapters(model: UniMol2ForPropertyPrediction, rank: int) -> Any:
    """The model with LoRA adapters on every linear layer, and the head trained as a whole (arXiv 2106.09685).

    Raises:
        SettingsError: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model  # noqa: PLC0415
    except ImportError as error:
        raise SettingsError('lora needs peft; pip install "unimol2-hf[lora]"') from error
    adapters = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        modules_to_save=[TASK_HEAD.rstrip(".")],
        lora_dropout=0.0,
    )
    return get_peft_model(model, adapters)


def training_arguments(
    settings: FinetuneSettings, recipe: Recipe, output_dir: Path, molecules: int
) -> TrainingArguments:
    """The reference's fine-tuning recipe: Adam(0.9, 0.99, 1e-6), clip 1, linear decay, the best epoch kept."""
    half = settings.precision == "bfloat16"
    steps = recipe.epochs * math.ceil(molecules / settings.batch_size)
    return TrainingArguments(
        output_dir=str(output_dir / CHECKPOINTS),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        learning_rate=recipe.learning_rate,
        # The first step of a warm-up has a rate of 0: where there are few steps, none is spent on it.
        warmup_steps=settings.warmup if steps * settings.warmup >= 1 else 0,
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
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=SCORE,
        greater_is_better=False,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=settings.report_to,
        disable_tqdm=True,
        seed=settings.seed,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )


class _MemberPipeline(MoleculePropertyPipeline):
    """The outputs (conformers, members, num_labels) themselves; after a first epoch of warm-up a head may be as new."""

    _refuses_untrained = False

    def _result(self, outputs: list[torch.Tensor], **parameters: Any) -> dict[str, Any]:
        config = self.model.config
        none = np.empty((0, config.num_members, config.num_labels))
        return {"logits": torch.stack(outputs).double().numpy() if outputs else none}


def member_logits(
    model: Any,
    prepared: PreparedTable,
    molecules: list[FeaturizedMolecule],
    batch_size: int,
    device: torch.device | None = None,
) -> list[FloatArray]:
    """Outputs (conformers, members, num_labels) of each molecule; of one that failed there are no conformers.

    The model is moved to a device; by default to the one on which pipelines work.
    """
    training = model.training
    pipeline = _MemberPipeline(model=model.eval(), feature_extractor=prepared.extractor, device=device)
    logits = [result["logits"] for result in pipeline.run_featurized(molecules, batch_size)]
    model.train(training)
    return logits
