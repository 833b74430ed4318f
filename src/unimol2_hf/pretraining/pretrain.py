"""`unimol2-hf pretrain`: a YAML file to a pretrained model, on one process or many; killed, it goes on."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from transformers import TrainingArguments, set_seed

from ..batching import plan_batches
from ..configuration_unimol2 import UniMol2Config
from ..data.atomic_files import SETTINGS_FILE, make_output_folder, write_json_whole, write_settings
from ..data.conformer_library import ConformerLibrary, LibraryIndex
from ..errors import LibraryError, ModelError, OutputFolderError, SettingsError
from ..feature_extraction_unimol2 import UniMol2FeatureExtractor
from ..modeling_unimol2 import UniMol2ForPreTraining
from ..models.loading import load_config, load_model
from ..training.checkpoints import (
    MarkComplete,
    last_complete_checkpoint,
    remove_incomplete_checkpoints,
    step_of,
)
from .collator import DRAW, DataCollatorForUniMol2Pretraining
from .graph_targets import TargetScale, scale_of_library
from .plan import SamplingPlan
from .settings import PretrainSettings
from .stream import PretrainingStream, Share
from .trainer import (
    UniMol2PretrainingTrainer,
    WeightAverage,
    held_out_rows,
)

CHECKPOINTS, MODEL, LOG_FILE = "checkpoints", "model", "log_history.json"
MOST_OF_ONE_SCAFFOLD = 0.25  # of the draws, before the user is warned
# A step is the same however it is cut into micro-batches and wherever it is computed.
WHERE_IT_RUNS = ("data", "output_dir", "compile", "max_rows", "max_pairs", "num_workers", "report_to")
HOW_IT_IS_KEPT = ("save_steps", "save_total_limit")
_DEFAULTS = asdict(PretrainSettings(data="", output_dir=""))
VALIDATION_SEED = 2**32 - 1  # noise of the validation set: no run's own


def pretrain(settings: PretrainSettings, console: Console) -> list[dict[str, float]]:
    """Train until `max_steps`, from the last whole checkpoint if there is one.

    Writes into `output_dir`: `checkpoints/`, `model/` (the pretraining model and its featurizer; the average's weights
    if one is kept), `log_history.json` and `settings.json`.

    Returns:
        The logged values, each with its `step`.

    Raises:
        LibraryError: the library cannot be used.
        OutputFolderError: the output folder cannot be used, or holds another run.
        ModelError: the model's fields do not fit together, or the loss was not finite (its batches are saved).
    """
    output_dir = Path(settings.output_dir)
    args = training_arguments(settings)
    with args.main_process_first(desc="output folder"):
        _claim(output_dir, settings)
    set_seed(settings.seed)
    model = make_model(settings)
    if args.use_cpu:
        # What PyTorch's own attention does on a CPU for a bias with a gradient costs 5 % of a small model's step.
        model.set_attn_implementation("eager")
    share = Share(args.process_index, args.world_size)
    library, plan, stream, validation = make_data(settings, share, target_scale_of(model))
    checkpoint = last_complete_checkpoint(output_dir / CHECKPOINTS)
    stream.first_step = settings.start_step + (0 if checkpoint is None else step_of(checkpoint))
    # The Trainer would make one more step with a run that is at its end.
    stream.end_step = settings.start_step + settings.max_steps
    average = None if settings.ema_decay is None else WeightAverage(model, settings.ema_decay)
    if average is not None and checkpoint is not None:
        average.load(checkpoint)
    if settings.compile:
        compile_blocks(model)
    trainer = UniMol2PretrainingTrainer(
        model=model,
        args=args,
        stream=stream,
        validation=validation,
        loss_weights=settings.all_loss_weights(),
        callbacks=[*([average] if average else []), MarkComplete()],
    )
    if share.rank == 0:
        _announce(console, settings, model, library, plan, checkpoint)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    _save(trainer, average, output_dir)
    history: list[dict[str, float]] = trainer.state.log_history
    return history


def training_arguments(settings: PretrainSettings) -> TrainingArguments:
    """The run as the Trainer's arguments; `settings.trainer` has the last word."""
    cpu = not torch.cuda.is_available()
    arguments: dict[str, Any] = {
        "output_dir": str(Path(settings.output_dir) / CHECKPOINTS),
        "max_steps": settings.max_steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": settings.warmup_steps,
        "weight_decay": settings.weight_decay,
        "adam_beta1": settings.beta1,
        "adam_beta2": settings.beta2,
        "adam_epsilon": settings.adam_epsilon,
        "max_grad_norm": settings.max_grad_norm,
        "bf16": settings.precision == "bfloat16",
        "logging_steps": settings.logging_steps,
        "eval_strategy": "steps" if settings.validation_molecules else "no",
        "eval_steps": settings.eval_steps,
        "save_steps": settings.save_steps,
        "save_total_limit": settings.save_total_limit,
        "seed": settings.seed,
        "report_to": settings.report_to,
        "dataloader_num_workers": settings.num_workers,
        "dataloader_pin_memory": not cpu,
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
        # The stream goes on at the step itself.
        "ignore_data_skip": True,
        "use_cpu": cpu,
        "ddp_find_unused_parameters": False,
        "disable_tqdm": True,
        **settings.trainer,
    }
    try:
        return TrainingArguments(**arguments)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"the settings make no TrainingArguments: {error}") from error


def make_model(settings: PretrainSettings) -> UniMol2ForPreTraining:
    """Random weights of a scale, or those of `start_from`; with a head for the run's graph targets."""
    if settings.start_from is not None:
        return _model_to_start_from(settings.start_from, settings)
    blocks = _target_blocks(settings, None)
    try:
        return UniMol2ForPreTraining(
            UniMol2Config.from_scale(settings.scale, **{**settings.model, "graph_targets": blocks})
        )
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise ModelError(f"the model's settings do not fit together: {error}") from error


def _model_to_start_from(name: str, settings: PretrainSettings) -> UniMol2ForPreTraining:
    """That model, its heads included, with other config fields; they may not change a weight's shape."""
    try:
        config = load_config(name, **settings.model)
        known, config.graph_targets = config.graph_targets, _target_blocks(settings, config.graph_targets)
        # Other targets than that model's: their head begins anew.
        anew = ("graph_target_head.",) if config.graph_targets != known else ()
        return load_model(UniMol2ForPreTraining, name, config, torch.float32, begins_anew=anew)
    except ModelError as error:
        raise ModelError(f"start_from: {error}; it cannot be used with these fields, or is incomplete") from error


def _target_blocks(settings: PretrainSettings, known: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """The run's graph targets with their scale: the library's, or that of a model to start from which has the same."""
    if not settings.targets:
        return None
    if known is not None and [block["name"] for block in known] == list(settings.targets):
        return known
    return scale_of_library(ConformerLibrary(settings.data, targets=tuple(settings.targets))).blocks()


def target_scale_of(model: UniMol2ForPreTraining) -> TargetScale | None:
    """The scale of what a model was made to predict of whole molecules."""
    blocks = model.config.graph_targets
    return TargetScale.of_blocks(blocks) if blocks else None


def compile_blocks(model: UniMol2ForPreTraining) -> None:
    """Compile what takes the time of a step, in place: one graph serves all layers and shapes."""
    for block in (*model.unimol2.layers, model.unimol2.pair_embeddings, model.coordinate_head):
        block.compile(dynamic=True)


def make_data(
    settings: PretrainSettings, share: Share, targets: TargetScale | None = None
) -> tuple[LibraryIndex, SamplingPlan, PretrainingStream, list[Mapping[str, Any]]]:
    """The library's index, its sampling plan, the stream of training steps, and the validation batches."""
    shards = ConformerLibrary(settings.data, settings.open_shards + 1, () if targets is None else targets.names)
    index = shards.index()
    held_out = held_out_rows(len(index), settings.validation_molecules)
    if len(held_out) >= len(index):
        raise LibraryError(f"{len(index)} molecules leave none to train on beside {len(held_out)} for validation")
    plan = SamplingPlan(index, settings.seed, settings.scaffold_temperature, settings.open_shards, held_out)
    collator = DataCollatorForUniMol2Pretraining(
        UniMol2FeatureExtractor(), settings.noise_settings(), seed=settings.seed, targets=targets
    )
    stream = PretrainingStream(
        shards,
        plan,
        index.num_heavy_atoms,
        collator,
        settings.samples_per_step,
        settings.max_rows,
        settings.max_pairs,
        share,
    )
    return index, plan, stream, validation_batches(settings, shards, plan, index, held_out, share, targets)


def validation_batches(
    settings: PretrainSettings,
    shards: ConformerLibrary,
    plan: SamplingPlan,
    index: LibraryIndex,
    held_out: NDArray[np.int64],
    share: Share,
    targets: TargetScale | None,
) -> list[Mapping[str, Any]]:
    """This process's padded batches of the held-out molecules; conformers, masks and noise are every run's."""
    noise = settings.noise_settings()
    collator = DataCollatorForUniMol2Pretraining(noise=noise, seed=VALIDATION_SEED, targets=targets)
    order, places = plan.shard_of(held_out), plan.place_in_shard(held_out)

    def row(number: int) -> dict[str, Any]:
        return {**shards.row(int(order[number]), int(places[number])), DRAW: int(held_out[number])}

    # Read shard after shard, whatever the batches: the held-out rows are few, the open shards too.
    batches = plan_batches(index.num_heavy_atoms[held_out].tolist(), settings.max_rows, settings.max_pairs)
    own = batches[share.rank :: share.world_size]
    rows = {number: row(number) for number in sorted(number for batch in own for number in batch)}
    return [collator([rows[number] for number in batch]) for batch in own]


def _claim(output_dir: Path, settings: PretrainSettings) -> None:
    """Note what the folder is for; refuse one that holds another run, or data of another size."""
    path = output_dir / SETTINGS_FILE
    decisive = {name: value for name, value in asdict(settings).items() if name not in WHERE_IT_RUNS + HOW_IT_IS_KEPT}
    make_output_folder(output_dir / CHECKPOINTS)
    if path.exists():
        # A run that began before there was a setting began with its default.
        recorded = {**_DEFAULTS, **json.loads(path.read_text())}
        different = sorted(name for name in decisive if recorded.get(name) != decisive[name])
        if different:
            raise OutputFolderError(
                f"{output_dir} holds another run ({', '.join(different)} differ); choose another folder or delete it"
            )
    elif last_complete_checkpoint(output_dir / CHECKPOINTS) is not None:
        raise OutputFolderError(f"{output_dir} holds checkpoints of an unknown run; choose another folder or delete it")
    else:
        write_settings(path, settings)
    remove_incomplete_checkpoints(output_dir / CHECKPOINTS)


def _announce(
    console: Console,
    settings: PretrainSettings,
    model: UniMol2ForPreTraining,
    index: LibraryIndex,
    plan: SamplingPlan,
    checkpoint: Path | None,
) -> None:
    table = Table(show_header=False, title="pretraining")
    table.add_row(
        "model", f"{settings.start_from or settings.scale}, {sum(p.numel() for p in model.parameters()):,} parameters"
    )
    table.add_row("library", f"{len(index):,} molecules, {len(index.shard_sizes)} shards")
    share = plan.largest_scaffold_share()
    if settings.targets:
        sizes = zip(settings.targets, model.config.graph_target_sizes, strict=True)
        table.add_row("targets", ", ".join(f"{size} of {name}" for name, size in sizes))
    table.add_row("draws", f"{share:.2%} of the most drawn scaffold")
    table.add_row("steps", f"{settings.max_steps:,} of {settings.samples_per_step:,} samples")
    table.add_row("from", (settings.start_from or "random weights") if checkpoint is None else checkpoint.name)
    console.print(table)
    if settings.scaffold_temperature is not None and share > MOST_OF_ONE_SCAFFOLD:
        console.print(
            f"[bold yellow]warning:[/] {share:.0%} of all draws are of one scaffold; raise scaffold_temperature for a "
            "library in which one is so frequent, or set it to null",
            highlight=False,
        )


def _save(trainer: UniMol2PretrainingTrainer, average: WeightAverage | None, output_dir: Path) -> None:
    model = trainer.accelerator.unwrap_model(trainer.model)
    if average is not None:
        model.load_state_dict(average.average.module.state_dict())
    trainer.save_model(str(output_dir / MODEL))
    if trainer.is_world_process_zero():
        UniMol2FeatureExtractor().save_pretrained(output_dir / MODEL)
        write_json_whole(output_dir / LOG_FILE, trainer.state.log_history)
