"""Configuration of Uni-Mol2 models (arXiv 2406.14969, table 2)."""

# No `from __future__ import annotations` here: it would silently disable the strict validation.
import math
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

from .settings_unimol2 import LARGEST_ATOMIC_NUMBER, MASK_TOKEN, SCALES

logger = logging.get_logger(__name__)

# Of a model folder: 1 had label_mean and label_std, 2 has targets.
FORMAT_VERSION = 2

ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]
REGRESSION, BINARY, MULTICLASS = "regression", "binary", "multiclass"
KINDS = (REGRESSION, BINARY, MULTICLASS)
_PROBLEM_TYPES: dict[Any, ProblemType] = {REGRESSION: "regression", BINARY: "multi_label_classification"}

KERNEL = "kernel"  # type of a head

HEAD_DIM = 16  # at every published scale


@strict
class UniMol2Config(PreTrainedConfig):
    r"""
    Configuration of a Uni-Mol2 model; the defaults are the published 84M scale.

    Args:
        vocab_size: rows of the element table; an atom's token is its atomic number.
        hidden_size: width D of the atom track.
        num_hidden_layers: two-track layers.
        num_attention_heads: attention heads H; must divide `hidden_size`. Published models have heads of width 16.
        intermediate_size: width of the atom track's feed-forward; `None` means `hidden_size`, as published.
        pair_hidden_size: width P of the pair track, and of its feed-forward.
        pair_inner_size: width d inside the outer product and the triangle update.
        hidden_act: activation of both feed-forwards.
        hidden_dropout_prob: dropout on the attention, feed-forward and outer-product branches.
        attention_probs_dropout_prob: dropout on attention weights, coordinate head included.
        activation_dropout_prob: dropout inside the feed-forwards.
        pair_dropout_prob: dropout on the triangle branch, one mask shared along the first atom axis.
        pooler_dropout_prob: dropout around the task head's dense layer.
        layer_norm_eps: epsilon of every layer norm.
        initializer_range: standard deviation of initial weights.
        num_gaussians: Gaussian basis functions of the distance embedding.
        gaussian_max_angstrom: centre of the last one; the first is at 0.
        length_normalizer: "molecule" divides outer products and triangle sums by the molecule's own length n + 1 (the
            same answer in every batch); "padded" by the batch's padded length, as the reference does.
        targets: what the task head predicts: a list of {"name", "kind", "classes", "class_weights", "mean", "std"}.
            `kind` is "regression", "binary" or "multiclass"; `classes` names a target's classes, of a binary one the
            negative, then the positive; `class_weights` multiply its losses; `mean` and `std` are those of a
            regression target's training labels, in the user's units, since the head works on standardised labels.
            `problem_type` and `id2label` follow from it. `None` where these two say what there is to say.
        extra_features: numbers that the task head reads besides the molecule (assay pH, dose): a list of {"name",
            "mean", "std"}, which standardise them.
        loss_function: loss of regression targets, on standardised labels.
        num_descriptors: RDKit's descriptors that the task head reads besides (`UniMol2FeatureExtractor` has their
            names).
        head_type: task head: "mlp" (dense, tanh, linear: the reference), "linear" (unimol_tools) or "kernel" (Gaussian
            kernels around training molecules, fitted in closed form).
        num_centers: molecules around which a kernel head has its kernels.
        num_members: of an ensemble: kernel heads on this one encoder, or models, the others in the folder's `members/`.
        classifier_pooling: what the task head reads: the "cls" (the reference), the "mean" of the atoms, "cls_mean",
            both, or "layers_mean", both as means over the embeddings and all layers.
        format_version: of the folder; a newer one than this package's is refused.
        graph_targets: what `UniMol2ForPreTraining` predicts of the whole molecule besides the paper's task; `None` for
            nothing. A list of blocks {"name", "mean", "std"}, where `mean` and `std`, a number for each target of the
            block, standardise it.
        graph_head_size: inner width of the head for these.

    Configs of version 0.1 are read: `label_mean`, `label_std` and `head_pooling` become `targets` and
    `classifier_pooling`.

    Raises:
        huggingface_hub.errors.StrictDataclassError (a `ValueError` or `TypeError` is its cause): a value of the wrong
        type or an impossible size; the message names both values.
    """

    model_type = "unimol2"
    keys_to_ignore_at_inference = ["hidden_states", "pair_hidden_states", "attentions"]  # noqa: RUF012 - as in Transformers
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {"layers.*": "free_full_weight"}

    vocab_size: int = 128
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 48
    intermediate_size: int | None = None
    pair_hidden_size: int = 512
    pair_inner_size: int = 64
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    activation_dropout_prob: float | int = 0.0
    pair_dropout_prob: float | int = 0.25
    pooler_dropout_prob: float | int = 0.0
    layer_norm_eps: float | int = 1e-5
    initializer_range: float | int = 0.02
    num_gaussians: int = 128
    gaussian_max_angstrom: float | int = 9.0
    pad_token_id: int = 0
    mask_token_id: int = MASK_TOKEN
    length_normalizer: Literal["molecule", "padded"] = "molecule"
    targets: list[dict[str, Any]] | None = None
    extra_features: list[dict[str, Any]] | None = None
    loss_function: Literal["smooth_l1", "l1", "mse"] = "smooth_l1"
    num_descriptors: int = 0
    head_type: Literal["mlp", "linear", "kernel"] = "mlp"
    num_centers: int = 0
    num_members: int = 1
    classifier_pooling: Literal["cls", "mean", "cls_mean", "layers_mean"] = "cls"
    graph_targets: list[dict[str, Any]] | None = None
    graph_head_size: int = 512
    problem_type: ProblemType | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        if self.intermediate_size is None:
            self.intermediate_size = self.hidden_size
        if self.id2label is not None and not isinstance(self.id2label, dict):
            raise ValueError(f"id2label is {self.id2label!r}; give a mapping of indices to names")
        label_mean, label_std = kwargs.pop("label_mean", None), kwargs.pop("label_std", None)
        if (pooling := kwargs.pop("head_pooling", None)) is not None:
            self.classifier_pooling = pooling
        # One target unless told otherwise; Transformers' own default is two.
        if self.id2label is None and kwargs.get("num_labels") is None:
            if self.targets is None:
                kwargs["num_labels"] = 1
            else:
                self._name_outputs()
        if self.problem_type is None and self.targets is None:
            self.problem_type = "regression"
        super().__post_init__(**kwargs)
        if label_mean is not None or label_std is not None:
            self.targets = _regression_targets(self.output_names, label_mean, label_std)
        self.forget_other_task()
        if self.targets is not None:
            self.problem_type = problem_type_of(self.targets)

    @classmethod
    def from_scale(cls, scale: str, **kwargs: Any) -> "UniMol2Config":
        """The configuration of a named scale, single fields overridden by `kwargs`.

        Args:
            scale: "42m", "84m", "164m", "310m", "570m", "1.1b" (published) or "nano", "micro" (small, for CPUs); case
                does not matter.

        Raises:
            ValueError: unknown scale; the message names it and the known ones.
        """
        sizes = SCALES.get(scale.lower()) if isinstance(scale, str) else None
        if sizes is None:
            raise ValueError(f"unknown scale {scale!r}; use one of {', '.join(SCALES)}")
        # The head count follows an overridden width, so that heads stay 16 wide.
        heads = kwargs.get("hidden_size", sizes["hidden_size"]) // HEAD_DIM
        return cls(**{"num_attention_heads": heads, **sizes, **kwargs})

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_attention_heads

    def set_targets(self, targets: list[dict[str, Any]]) -> None:
        """Replace the task; `id2label` and `problem_type` follow.

        Raises:
            ValueError: a target is not complete, or a name comes twice.
        """
        _require_targets(targets)
        self.targets = targets
        self._name_outputs()
        self.problem_type = problem_type_of(targets)

    def forget_other_task(self) -> None:
        """Let go of targets that `id2label`, changed since they were set, does not name: another task's, and scale."""
        if self.targets is None or output_names(self.targets) == self.output_names:
            return
        logger.warning_once(
            f"the outputs are {', '.join(self.output_names[:3])}, not {', '.join(output_names(self.targets)[:3])} any "
            "more: another task, whose labels are not standardised until set_targets says how"
        )
        # A kind of problem that was asked for with the new outputs stays.
        if self.problem_type == problem_type_of(self.targets):
            self.problem_type = "regression"
        self.targets = None

    def _name_outputs(self) -> None:
        names = output_names(self.targets or [])
        self.id2label: dict[int, str] | None = dict(enumerate(names))
        self.label2id: dict[str, int] | None = {name: index for index, name in enumerate(names)}

    @property
    def task(self) -> list[dict[str, Any]]:
        """The targets, or what `problem_type` and `id2label` say where there are none."""
        if self.targets is not None:
            return self.targets
        names = self.output_names
        if self.problem_type == "single_label_classification":
            return [{"name": "label", "kind": MULTICLASS, "classes": names}]
        kind = BINARY if self.problem_type == "multi_label_classification" else REGRESSION
        return [{"name": name, "kind": kind} for name in names]

    @property
    def pooled_size(self) -> int:
        """Width of the vector that the task head reads of the encoder."""
        return self.pooled_size_of(self.classifier_pooling)

    def pooled_size_of(self, pooling: str) -> int:
        """Width of a molecule's vector in a pooling."""
        return self.hidden_size * (2 if pooling in ("cls_mean", "layers_mean") else 1)

    @property
    def target_names(self) -> list[str]:
        """Names of the targets, in order."""
        return [str(target["name"]) for target in self.task]

    @property
    def target_sizes(self) -> list[int]:
        """Number of outputs of each target."""
        return [len(target["classes"]) if target["kind"] == MULTICLASS else 1 for target in self.task]

    @property
    def extra_feature_names(self) -> list[str]:
        """Names of the numbers that the task head reads besides the molecule, in order."""
        return [str(each["name"]) for each in self.extra_features or ()]

    @property
    def output_names(self) -> list[str]:
        """Names of the task head's outputs, in order."""
        id2label = self.id2label or {}
        return [str(id2label[index]) for index in sorted(id2label)]

    @property
    def graph_target_sizes(self) -> list[int]:
        """Number of targets of each block of `graph_targets`."""
        return [len(block["mean"]) for block in self.graph_targets or ()]

    @property
    def num_graph_targets(self) -> int:
        """Number of all graph targets T."""
        return sum(self.graph_target_sizes)

    def validate_architecture(self) -> None:
        """Part of the strict validation: sizes that fit together."""
        self._require_positive()
        self._require_probabilities()
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) is not a multiple of num_attention_heads "
                f"({self.num_attention_heads}); choose a width that the heads divide"
            )
        if self.vocab_size <= LARGEST_ATOMIC_NUMBER:
            raise ValueError(
                f"vocab_size ({self.vocab_size}) must exceed the largest element ({LARGEST_ATOMIC_NUMBER})"
            )
        if self.pad_token_id != 0:
            raise ValueError(f"pad_token_id must be 0, not {self.pad_token_id}: atom tokens are atomic numbers")
        if not 0 <= self.mask_token_id < self.vocab_size:
            raise ValueError(f"mask_token_id ({self.mask_token_id}) must be below vocab_size ({self.vocab_size})")
        if self.format_version > FORMAT_VERSION:
            raise ValueError(
                f"format_version is {self.format_version}, this package reads up to {FORMAT_VERSION}: the folder was "
                "written by a newer unimol2-hf; upgrade it"
            )
        self._require_outputs()
        self._require_graph_targets()

    def _require_positive(self) -> None:
        names = (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "pair_hidden_size",
            "pair_inner_size",
            "graph_head_size",
            "num_members",
        )
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("gaussian_max_angstrom", "layer_norm_eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, not {getattr(self, name)}")
        if self.num_descriptors < 0 or self.num_centers < 0 or (self.head_type == KERNEL and not self.num_centers):
            raise ValueError(
                f"num_descriptors ({self.num_descriptors}) and num_centers ({self.num_centers}) count what the head "
                "reads and is made of; a kernel head has at least one centre"
            )
        if self.num_gaussians < 2:
            raise ValueError(f"num_gaussians must be at least 2, not {self.num_gaussians}")

    def _require_probabilities(self) -> None:
        names = ("hidden", "attention_probs", "activation", "pair", "pooler")
        for name in (f"{part}_dropout_prob" for part in names):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), not {getattr(self, name)}")

    def _require_outputs(self) -> None:
        if self.targets is not None:
            _require_targets(self.targets)
        _require_extra_features(self.extra_features or [])
        names = self.output_names
        if not names or len(set(names)) < len(names):
            raise ValueError(f"id2label must name at least one target, each differently, not {names}")

    def _require_graph_targets(self) -> None:
        blocks = self.graph_targets or []
        names = [block.get("name") for block in blocks]
        if len(set(names)) < len(names):
            raise ValueError(f"graph_targets must have names of their own, not {names}")
        for block in blocks:
            if set(block) != {"name", "mean", "std"} or not block["mean"] or len(block["mean"]) != len(block["std"]):
                raise ValueError(
                    f"the graph targets {block.get('name')!r} need name, mean and std, one mean and std per target"
                )
            numbers = [*block["mean"], *block["std"]]
            if not all(math.isfinite(number) for number in numbers) or min(block["std"]) <= 0:
                raise ValueError(f"mean and std of the graph targets {block['name']!r} must be finite, std positive")

    def to_diff_dict(self) -> dict[str, Any]:
        """What is written to `config.json`; always with the targets, since the default here is one, not two."""
        full = self.to_dict()
        always = ("id2label", "label2id", "format_version")
        return {**super().to_diff_dict(), **{name: full[name] for name in always}}


def output_names(targets: list[dict[str, Any]]) -> list[str]:
    """Of the task head: a target's name; of a multiclass one its classes, with its name in front among others."""
    names: list[str] = []
    for target in targets:
        classes = [str(each) for each in target.get("classes") or ()] if target.get("kind") == MULTICLASS else []
        name = str(target.get("name"))
        names += [each if len(targets) == 1 else f"{name}: {each}" for each in classes] or [name]
    return names


def problem_type_of(targets: list[dict[str, Any]]) -> ProblemType | None:
    """As Transformers names it; None where kinds are mixed, or several targets have classes."""
    kinds = {target.get("kind") for target in targets}
    if kinds == {MULTICLASS}:
        return "single_label_classification" if len(targets) == 1 else None
    return _PROBLEM_TYPES.get(next(iter(kinds))) if len(kinds) == 1 else None


def _regression_targets(names: list[str], means: list[float] | None, stds: list[float] | None) -> list[dict[str, Any]]:
    """Of a config of version 0.1; where the scale is another task's, the validation tells."""
    count = len(means or stds or names)
    named = [*names, *(f"LABEL_{index}" for index in range(len(names), count))][:count]
    scale = zip(named, means or [0.0] * count, stds or [1.0] * count, strict=True)
    return [{"name": name, "kind": REGRESSION, "mean": mean, "std": std} for name, mean, std in scale]


def _require_targets(targets: list[dict[str, Any]]) -> None:
    names = [target.get("name") for target in targets]
    if not targets or len(set(names)) < len(names) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"targets must have at least one entry, each with a name of its own, not {names}")
    for target in targets:
        name, kind = target["name"], target.get("kind")
        if kind not in KINDS:
            raise ValueError(f"target {name!r} is of kind {kind!r}; use one of {', '.join(KINDS)}")
        unknown = sorted(set(target) - {"name", "kind", "classes", "class_weights", "mean", "std"})
        if unknown:
            raise ValueError(f"target {name!r} has unknown {', '.join(unknown)}")
        _require_classes(target)
        _require_scale(f"target {name!r}", target)


def _require_classes(target: dict[str, Any]) -> None:
    name, kind, classes, weights = (target.get(key) for key in ("name", "kind", "classes", "class_weights"))
    different = len({str(each) for each in classes}) if isinstance(classes, list) else 0
    if kind == MULTICLASS and (different < 2 or different < len(classes or ())):
        raise ValueError(f"target {name!r} needs at least two classes, each named differently, not {classes}")
    if kind == BINARY and classes is not None and (different != 2 or len(classes) != 2):
        raise ValueError(f"target {name!r} is binary and needs two classes, the negative first, not {classes}")
    if weights is None:
        return
    count = 0 if kind == REGRESSION else max(2, different)
    if not isinstance(weights, list) or len(weights) != count or not all(0 < each < math.inf for each in weights):
        raise ValueError(f"class_weights of target {name!r} must be {count} positive numbers, not {weights}")


def _require_extra_features(features: list[dict[str, Any]]) -> None:
    names = [each.get("name") for each in features]
    if len(set(names)) < len(names):
        raise ValueError(f"extra_features must have names of their own, not {names}")
    for each in features:
        if set(each) != {"name", "mean", "std"} or not isinstance(each["name"], str):
            raise ValueError(f"the extra feature {each.get('name')!r} needs name, mean and std")
        _require_scale(f"extra feature {each['name']!r}", each)


def _require_scale(what: str, scale: dict[str, Any]) -> None:
    mean, std = scale.get("mean"), scale.get("std")
    for key, value in (("mean", mean), ("std", std)):
        if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
            raise ValueError(f"{key} of {what} must be finite, not {value}")
    if std is not None and std <= 0:
        raise ValueError(f"std of {what} must be positive, not {std}; a constant cannot be learned")


__all__ = ["SCALES", "UniMol2Config"]
