"""What decides a pretraining run; the defaults are the paper's (arXiv 2406.14969, section 3)."""

from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

from ..errors import SettingsError
from ..settings_unimol2 import MACHINE, OUTPUT, SCALES, TRAINING, Settings, TrainingPrecision, option

PAPER_LOSSES = ("token", "coordinate", "distance")
DATA, TASK = "Data", "Task"


@dataclass(frozen=True)
class NoiseSettings(Settings):
    """The pretraining task."""

    mask_probability: float = option(
        0.15, "share of atoms whose element is hidden, always by the mask token", minimum=0, maximum=1
    )
    noise_angstrom: float = option(0.2, "standard deviation of the Gaussian noise on every coordinate", minimum=0)
    drop_graph_probability: float = option(0.5, "share of samples without graph features", minimum=0, maximum=1)
    flat_probability: float = option(
        0.5, "of the samples that keep them, the share that gets the 2D conformer", minimum=0, maximum=1
    )
    clean_probability: float = option(
        0.0,
        "share of samples that stay as they are (nothing masked, noised or dropped; the 3D conformer): what a model is "
        "shown when it is used, and from which it learns graph targets alone",
        minimum=0,
        maximum=1,
    )
    target_probability: float = option(
        1.0, "share of a sample's graph targets, drawn anew each time, that it is asked for", minimum=0, maximum=1
    )


@dataclass(frozen=True)
class PretrainSettings(Settings):
    """A pretraining run."""

    data: str = option(MISSING, "folder of `unimol2-hf conformers build`, or a data set on the Hub")
    output_dir: str = option(MISSING, "folder for checkpoints, logs and the model; a run that broke off goes on there")
    scale: str = option("nano", "named scale, with random weights")
    start_from: str | None = option(
        None, "model whose config and weights the run begins with instead: a folder, a Hub id or unimol2-nano"
    )
    max_steps: int = option(810_000, "optimiser updates", minimum=1)
    samples_per_step: int = option(1024, "samples of an update, over all processes", minimum=1)
    targets: dict[str, float] = option(
        {},
        "graph-level targets: columns of the library (numbers, or fixed-size lists of them), each with its loss's "
        "weight",
        group=TASK,
    )
    loss_weights: dict[str, float] = option(
        {}, "of the paper's losses token, coordinate and distance, where not 1", group=TASK
    )
    noise: dict[str, float] = option(
        {}, f"of the task, where not the paper's: {', '.join(each.name for each in fields(NoiseSettings))}", group=TASK
    )
    model: dict[str, Any] = option(
        {}, "fields of UniMol2Config that replace the scale's or that model's, such as the dropout rates", group=TASK
    )
    scaffold_temperature: float | None = option(
        0.005, "of the scaffolds' softmax; null draws every molecule once an epoch", group=DATA
    )
    open_shards: int = option(8, "shards whose molecules are mixed", group=DATA, minimum=1)
    validation_molecules: int = option(
        2000, "held out, the same ones for every seed, noised the same way every time", group=DATA, minimum=0
    )
    start_step: int = option(
        0, "steps of the sampling plan that are left out: what start_from has seen", group=DATA, minimum=0
    )
    num_workers: int = option(0, "processes that make batches", group=DATA, minimum=0)
    learning_rate: float = option(1e-4, "peak rate, then linear decay to 0", group=TRAINING, minimum=0)
    warmup_steps: int = option(100_000, "steps in which the rate rises", group=TRAINING, minimum=0)
    weight_decay: float = option(1e-4, "AdamW's", group=TRAINING, minimum=0)
    beta1: float = option(0.9, "AdamW's", group=TRAINING, minimum=0, maximum=1)
    beta2: float = option(0.99, "AdamW's", group=TRAINING, minimum=0, maximum=1)
    adam_epsilon: float = option(1e-6, "AdamW's", group=TRAINING, minimum=0)
    max_grad_norm: float = option(1.0, "largest norm of the gradient", group=TRAINING, minimum=0)
    ema_decay: float | None = option(
        None, "of an exponential moving average of the weights, which is then what is exported", group=TRAINING
    )
    seed: int = option(0, "of weights, order and noise", group=TRAINING, minimum=0)
    trainer: dict[str, Any] = option(
        {}, "further TrainingArguments, such as fsdp and fsdp_config, gradient_checkpointing", group=TRAINING
    )
    precision: TrainingPrecision = option("float32", "of training; bfloat16 is autocast", group=MACHINE)
    compile: bool = option(
        False, "compile layers, pair embeddings and coordinate head; the first steps wait for it", group=MACHINE
    )
    max_rows: int = option(1024, "most samples of a micro-batch", group=MACHINE, minimum=1)
    max_pairs: int = option(131_072, "most padded pairs of atoms of a micro-batch", group=MACHINE, minimum=1)
    logging_steps: int = option(100, "steps between two lines of the log", group=OUTPUT, minimum=1)
    eval_steps: int = option(1000, "steps between two validations", group=OUTPUT, minimum=1)
    save_steps: int = option(1000, "steps between two checkpoints", group=OUTPUT, minimum=1)
    save_total_limit: int = option(
        10,
        "checkpoints that are kept; two at least, since a kill may spoil the one being written",
        group=OUTPUT,
        minimum=2,
    )
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] = option(
        "none", "where the log goes besides", group=OUTPUT
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale.lower() not in SCALES:
            raise SettingsError(f"unknown scale {self.scale!r}; use one of {', '.join(SCALES)}")
        for name in ("save_steps", "eval_steps"):
            if getattr(self, name) % self.logging_steps:
                raise SettingsError(
                    f"{name} ({getattr(self, name)}) must be a multiple of logging_steps ({self.logging_steps}), "
                    "or a run that goes on would log other means"
                )
        if self.scaffold_temperature is not None and self.scaffold_temperature <= 0:
            raise SettingsError(f"scaffold_temperature is {self.scaffold_temperature}; use a positive number, or null")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise SettingsError(f"ema_decay is {self.ema_decay}; use a number between 0 and 1")
        if self.ema_decay is not None and self.trainer.get("fsdp"):
            raise SettingsError("ema_decay averages whole weights, fsdp cuts them up; leave one of the two out")
        self.noise_settings()
        self._check_weights()

    def all_loss_weights(self) -> dict[str, float]:
        """The weight of every loss of the run, by the name under which it is logged."""
        paper = {loss_name(name): float(self.loss_weights.get(name, 1.0)) for name in PAPER_LOSSES}
        return {**paper, **{loss_name(name): float(weight) for name, weight in self.targets.items()}}

    def _check_weights(self) -> None:
        unknown = sorted(set(self.loss_weights) - set(PAPER_LOSSES))
        if unknown:
            raise SettingsError(f"loss_weights: unknown {', '.join(unknown)}; known are {', '.join(PAPER_LOSSES)}")
        for name, weight in [*self.loss_weights.items(), *self.targets.items()]:
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
                raise SettingsError(f"the weight of {name} is {weight!r}; give a number, 0 or more")
        if set(self.targets) & set(PAPER_LOSSES):
            raise SettingsError(f"a target may not be named {' or '.join(PAPER_LOSSES)}, as the paper's losses are")

    def noise_settings(self) -> NoiseSettings:
        known = [each.name for each in fields(NoiseSettings)]
        unknown = sorted(set(self.noise) - set(known))
        if unknown:
            raise SettingsError(f"noise: unknown {', '.join(unknown)}; known are {', '.join(known)}")
        return NoiseSettings(**self.noise)


def loss_name(part: str) -> str:
    """Under which a part of the loss is logged."""
    return f"{part}_loss"
