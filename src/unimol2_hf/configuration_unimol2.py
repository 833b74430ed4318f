"""Configuration of Uni-Mol2 models (arXiv 2406.14969, table 2)."""

# No `from __future__ import annotations` here: it would silently disable the strict validation.
import math
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

LARGEST_ATOMIC_NUMBER = 118
HEAD_DIM = 16  # at every published scale

# Sizes that differ between scales. Published: paper, table 2. nano and micro are this package's own.
SCALES: dict[str, dict[str, int]] = {
    "42m": {"num_hidden_layers": 6, "hidden_size": 768, "pair_hidden_size": 512, "pair_inner_size": 64},
    "84m": {"num_hidden_layers": 12, "hidden_size": 768, "pair_hidden_size": 512, "pair_inner_size": 64},
    "164m": {"num_hidden_layers": 24, "hidden_size": 768, "pair_hidden_size": 512, "pair_inner_size": 64},
    "310m": {"num_hidden_layers": 32, "hidden_size": 1024, "pair_hidden_size": 512, "pair_inner_size": 64},
    "570m": {"num_hidden_layers": 32, "hidden_size": 1536, "pair_hidden_size": 512, "pair_inner_size": 64},
    "1.1b": {"num_hidden_layers": 64, "hidden_size": 1536, "pair_hidden_size": 512, "pair_inner_size": 64},
    "nano": {"num_hidden_layers": 6, "hidden_size": 192, "pair_hidden_size": 64, "pair_inner_size": 16},
    "micro": {"num_hidden_layers": 4, "hidden_size": 96, "pair_hidden_size": 48, "pair_inner_size": 16},
}


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
        label_mean, label_std: mean and standard deviation of each target over the training labels, in the user's
            units; the task head works on standardised labels. `None` means 0 and 1.
        loss_function: loss of `UniMol2ForPropertyRegression` on standardised labels.
        head_type: task head: "mlp" (dense, tanh, linear: the reference) or "linear" (unimol_tools).
        head_pooling: what the task head reads, the "cls" (the reference) or the "mean" of the atoms.
        graph_targets: what `UniMol2ForPreTraining` predicts of the whole molecule besides the paper's task; `None` for
            nothing. A list of blocks {"name", "mean", "std"}, where `mean` and `std`, a number for each target of the
            block, standardise it.
        graph_head_size: inner width of the head for these.

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
    mask_token_id: int = 127
    length_normalizer: Literal["molecule", "padded"] = "molecule"
    label_mean: list[float | int] | None = None
    label_std: list[float | int] | None = None
    loss_function: Literal["smooth_l1", "l1", "mse"] = "smooth_l1"
    head_type: Literal["mlp", "linear"] = "mlp"
    head_pooling: Literal["cls", "mean"] = "cls"
    graph_targets: list[dict[str, Any]] | None = None
    graph_head_size: int = 512
    problem_type: Literal["regression", "single_label_classification", "multi_label_classification"] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.intermediate_size is None:
            self.intermediate_size = self.hidden_size
        # One target unless told otherwise; Transformers' own default is two.
        if self.id2label is None and kwargs.get("num_labels") is None:
            kwargs["num_labels"] = 1
        if self.problem_type is None:
            self.problem_type = "regression"
        super().__post_init__(**kwargs)

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

    @property
    def target_names(self) -> list[str]:
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
        self._require_label_scale()
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
        )
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("gaussian_max_angstrom", "layer_norm_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.num_gaussians < 2:
            raise ValueError(f"num_gaussians must be at least 2, not {self.num_gaussians}")

    def _require_probabilities(self) -> None:
        names = ("hidden", "attention_probs", "activation", "pair", "pooler")
        for name in (f"{part}_dropout_prob" for part in names):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), not {getattr(self, name)}")

    def _require_label_scale(self) -> None:
        names = self.target_names
        if not names or len(set(names)) < len(names):
            raise ValueError(f"id2label must name at least one target, each differently, not {names}")
        for name in ("label_mean", "label_std"):
            values = getattr(self, name)
            if values is not None and len(values) != self.num_labels:
                raise ValueError(
                    f"{name} has {len(values)} values for {self.num_labels} targets; give one per target, "
                    f"or {name}=None to start anew"
                )
            if values is not None and not all(math.isfinite(value) for value in values):
                raise ValueError(f"{name} must be finite, not {values}")
        if self.label_std is not None and min(self.label_std) <= 0:
            raise ValueError(f"label_std must be positive, not {self.label_std}; a constant target cannot be learned")

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
        return {**super().to_diff_dict(), "id2label": full["id2label"], "label2id": full["label2id"]}


__all__ = ["SCALES", "UniMol2Config"]
