"""The YAML file of a pretraining run."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ..configuration_unimol2 import SCALES
from ..errors import TableError, UniMol2Error
from ..settings_unimol2 import PRECISIONS

PAPER_LOSSES = ("token", "coordinate", "distance")
TRACKERS = ("none", "tensorboard", "trackio", "wandb")


@dataclass(frozen=True)
class NoiseSettings:
    """The pretraining task; the defaults are the paper's.

    Attributes:
        mask_probability: share of atoms whose element is hidden; always by the mask token.
        noise_angstrom: standard deviation of the Gaussian noise on every coordinate.
        drop_graph_probability: share of samples without graph features.
        flat_probability: of the samples that keep them, the share that gets the 2D conformer.
        clean_probability: share of samples that stay as they are (nothing masked, noised or dropped; the 3D conformer):
            what a model is shown when it is used, and from which it learns graph targets alone.
        target_probability: share of a sample's graph targets, drawn anew each time, that it is asked for.
    """

    mask_probability: float = 0.15
    noise_angstrom: float = 0.2
    drop_graph_probability: float = 0.5
    flat_probability: float = 0.5
    clean_probability: float = 0.0
    target_probability: float = 1.0

    def __post_init__(self) -> None:
        for name in (each.name for each in fields(self) if each.name.endswith("_probability")):
            if not 0 <= getattr(self, name) <= 1:
                raise UniMol2Error(f"{name} is {getattr(self, name)}; use a share from 0 to 1")
        if not self.noise_angstrom >= 0:
            raise UniMol2Error(f"noise_angstrom is {self.noise_angstrom}; use 0 or more")


@dataclass(frozen=True)
class PretrainSettings:
    """Everything that decides a pretraining run; the defaults are the paper's (arXiv 2406.14969, section 3).

    Attributes:
        data: folder of `unimol2-hf conformers build`, or a data set on the Hub.
        output_dir: for checkpoints, logs and the model; a run that broke off goes on there.
        scale: named scale, with random weights.
        start_from: model whose config and weights the run begins with instead: a folder, a Hub id or `unimol2-nano`;
            converted checkpoints too, to go on in a chemistry of one's own.
        model: fields of `UniMol2Config` that replace the scale's or that model's, such as the dropout rates.
        noise: fields of `NoiseSettings` that replace the paper's.
        loss_weights: of the paper's losses, where not 1: "token", "coordinate", "distance".
        targets: graph-level targets, as column of the library: weight of its loss. A column holds numbers or fixed-size
            lists of them (`conformers build --keep-columns`, `--descriptors`), nothing where they are missing.
        max_steps: optimiser updates.
        start_step: steps of the sampling plan that the run leaves out: what the weights in `start_from` have seen.
        samples_per_step: samples of an update, over all processes.
        max_rows, max_pairs: most samples and padded pairs of a micro-batch (see `plan_batches`).
        learning_rate, warmup_steps: peak rate, reached after so many steps, then linear decay to 0.
        weight_decay, beta1, beta2, adam_epsilon, max_grad_norm: AdamW's, and the gradient's largest norm.
        ema_decay: of an exponential moving average of the weights, which is then what is exported; None for none.
        precision: "float32", or "bfloat16" for autocast.
        compile: run each layer, the pair embeddings and the coordinate head through `torch.compile`, one graph for all
            shapes; the first steps wait for the compiler.
        scaffold_temperature: of the scaffolds' softmax; None draws every molecule once an epoch.
        open_shards: shards whose molecules are mixed.
        validation_molecules: held out, the same ones for every seed; noised the same way every time.
        logging_steps, eval_steps, save_steps, save_total_limit: when to log, validate and save; the last K are kept.
        num_workers: processes that make batches.
        report_to: "none", "tensorboard", "trackio" or "wandb".
        seed: of weights, order and noise.
        trainer: further `TrainingArguments`, such as `fsdp` and `fsdp_config`, `gradient_checkpointing`.
    """

    data: str
    output_dir: str
    scale: str = "nano"
    start_from: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    noise: dict[str, Any] = field(default_factory=dict)
    loss_weights: dict[str, float] = field(default_factory=dict)
    targets: dict[str, float] = field(default_factory=dict)
    max_steps: int = 810_000
    start_step: int = 0
    samples_per_step: int = 1024
    max_rows: int = 1024
    max_pairs: int = 131_072
    learning_rate: float = 1e-4
    warmup_steps: int = 100_000
    weight_decay: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.99
    adam_epsilon: float = 1e-6
    max_grad_norm: float = 1.0
    ema_decay: float | None = None
    precision: str = "float32"
    compile: bool = False
    scaffold_temperature: float | None = 0.005
    open_shards: int = 8
    validation_molecules: int = 2000
    logging_steps: int = 100
    eval_steps: int = 1000
    save_steps: int = 1000
    save_total_limit: int = 10
    num_workers: int = 0
    report_to: str = "none"
    seed: int = 0
    trainer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, known in (("scale", tuple(SCALES)), ("precision", PRECISIONS), ("report_to", TRACKERS)):
            if getattr(self, name) not in known:
                raise TableError(f"unknown {name} {getattr(self, name)!r}; use one of {', '.join(known)}")
        for name in ("max_steps", "samples_per_step", "max_rows", "max_pairs", "open_shards", "logging_steps"):
            if getattr(self, name) < 1:
                raise TableError(f"{name} is {getattr(self, name)}; use at least 1")
        if self.save_total_limit < 2:
            raise TableError("save_total_limit must be at least 2: a kill may spoil the checkpoint being written")
        if not isinstance(self.compile, bool):
            raise TableError(f"compile is {self.compile!r}; use true or false")
        for name in ("save_steps", "eval_steps"):
            if getattr(self, name) < 1 or getattr(self, name) % self.logging_steps:
                raise TableError(
                    f"{name} ({getattr(self, name)}) must be a multiple of logging_steps ({self.logging_steps}), "
                    "or a run that goes on would log other means"
                )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise TableError(f"ema_decay is {self.ema_decay}; use a number between 0 and 1")
        if self.ema_decay is not None and self.trainer.get("fsdp"):
            raise TableError("ema_decay averages whole weights, fsdp cuts them up; leave one of the two out")
        if self.start_step < 0:
            raise TableError(f"start_step is {self.start_step}; use 0 or more")
        self.noise_settings()
        self._check_weights()

    def all_loss_weights(self) -> dict[str, float]:
        """The weight of every loss of the run, by the name under which it is logged."""
        paper = {loss_name(name): float(self.loss_weights.get(name, 1.0)) for name in PAPER_LOSSES}
        return {**paper, **{loss_name(name): float(weight) for name, weight in self.targets.items()}}

    def _check_weights(self) -> None:
        unknown = sorted(set(self.loss_weights) - set(PAPER_LOSSES))
        if unknown:
            raise TableError(f"loss_weights: unknown {', '.join(unknown)}; known are {', '.join(PAPER_LOSSES)}")
        for name, weight in [*self.loss_weights.items(), *self.targets.items()]:
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
                raise TableError(f"the weight of {name} is {weight!r}; give a number, 0 or more")
        if set(self.targets) & set(PAPER_LOSSES):
            raise TableError(f"a target may not be named {' or '.join(PAPER_LOSSES)}, as the paper's losses are")

    def noise_settings(self) -> NoiseSettings:
        try:
            return NoiseSettings(**self.noise)
        except TypeError as error:
            raise TableError(f"noise: {error}; known are {', '.join(asdict(NoiseSettings()))}") from error


def loss_name(part: str) -> str:
    """Under which a part of the loss is logged."""
    return f"{part}_loss"


def read_settings(path: Path) -> PretrainSettings:
    """Read a run's YAML file.

    Raises:
        TableError: it cannot be read, misses `data` or `output_dir`, or has a key or value that is not known.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise TableError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise TableError(f"{path} holds no settings; write `name: value` lines, such as `data: library`")
    known = {entry.name: entry for entry in fields(PretrainSettings)}
    unknown = sorted(set(map(str, content)) - set(known))
    lacking = sorted({"data", "output_dir"} - set(content))
    if unknown or lacking:
        problem = f"unknown settings {', '.join(unknown)}" if unknown else f"no {' and no '.join(lacking)}"
        raise TableError(f"{path} has {problem}; known are {', '.join(known)}")
    return PretrainSettings(**{name: _typed(path, name, value) for name, value in content.items()})


_NUMBERS: dict[Any, type] = {int: int, float: float, float | None: float}


def _typed(path: Path, name: str, value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as text: numbers are made of what looks like one."""
    kind = next(entry.type for entry in fields(PretrainSettings) if entry.name == name)
    number = _NUMBERS.get(kind)
    if number is None or (value is None and kind == float | None):
        return value
    try:
        made = number(value)
    except (TypeError, ValueError) as error:
        raise TableError(f"{path}: {name} is {value!r}; give a number") from error
    if isinstance(value, bool) or (number is int and isinstance(value, float) and made != value):
        raise TableError(f"{path}: {name} is {value!r}; give a whole number")
    return made
