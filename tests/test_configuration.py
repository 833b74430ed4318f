"""UniMol2Config: strict, named scales, exact round trips."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from unimol2_hf import UniMol2Config
from unimol2_hf.settings_unimol2 import SCALES

PUBLISHED = {
    "42m": (6, 768),
    "84m": (12, 768),
    "164m": (24, 768),
    "310m": (32, 1024),
    "570m": (32, 1536),
    "1.1b": (64, 1536),
}


@pytest.mark.parametrize("scale", PUBLISHED)
def test_published_scales_follow_table_2(scale: str) -> None:
    config = UniMol2Config.from_scale(scale.upper())
    assert (config.num_hidden_layers, config.hidden_size) == PUBLISHED[scale]
    assert config.head_dim == 16
    assert (config.pair_hidden_size, config.pair_inner_size) == (512, 64)
    assert config.intermediate_size == config.hidden_size
    dropouts = (
        config.hidden_dropout_prob,
        config.attention_probs_dropout_prob,
        config.activation_dropout_prob,
        config.pair_dropout_prob,
        config.pooler_dropout_prob,
    )
    assert dropouts == (0.1, 0.1, 0.0, 0.25, 0.0)


def test_from_scale_overrides_single_fields() -> None:
    config = UniMol2Config.from_scale("nano", hidden_size=64, num_labels=3)
    assert (config.hidden_size, config.num_attention_heads, config.num_labels) == (64, 4, 3)


@pytest.mark.parametrize("num_labels", [None, 1, 2, 3, 12])
def test_number_of_targets_survives_saving(num_labels: int | None, tmp_path: Path) -> None:
    # The base class leaves two labels out of the file; a default of one must not change them on loading.
    config = UniMol2Config.from_scale("micro", **({} if num_labels is None else {"num_labels": num_labels}))
    config.save_pretrained(tmp_path)
    reloaded = AutoConfig.from_pretrained(tmp_path)
    assert type(reloaded) is UniMol2Config
    assert reloaded.num_labels == (num_labels or 1)
    assert {**reloaded.to_dict(), "_name_or_path": ""} == config.to_dict()


def test_every_field_survives_saving(tmp_path: Path) -> None:
    config = UniMol2Config(
        hidden_size=48,
        num_attention_heads=3,
        intermediate_size=96,
        pair_hidden_size=20,
        pair_inner_size=5,
        hidden_dropout_prob=0,
        pair_dropout_prob=0.5,
        num_gaussians=16,
        gaussian_max_angstrom=12,
        length_normalizer="padded",
        targets=[
            {"name": "logS", "kind": "regression", "mean": 1.5, "std": 0.5},
            {"name": "logD", "kind": "regression", "mean": -2.0, "std": 3},
        ],
        loss_function="l1",
        head_type="linear",
    )
    config.save_pretrained(tmp_path)
    reloaded = UniMol2Config.from_pretrained(tmp_path)
    assert {**reloaded.to_dict(), "_name_or_path": ""} == config.to_dict()
    assert reloaded.target_names == ["logS", "logD"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 100, "num_attention_heads": 48}, r"hidden_size \(100\).*num_attention_heads \(48\)"),
        ({"hidden_size": "768"}, "hidden_size.*expected int, got str"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1, not 0"),
        ({"pair_inner_size": -1}, "pair_inner_size must be at least 1, not -1"),
        ({"num_gaussians": 1}, "num_gaussians must be at least 2"),
        ({"pair_dropout_prob": 1.0}, r"pair_dropout_prob must lie in \[0, 1\), not 1.0"),
        ({"length_normalizer": "batch"}, "padded.*batch"),
        ({"loss_function": "huber"}, "huber"),
        ({"mask_token_id": 128}, r"mask_token_id \(128\).*vocab_size \(128\)"),
        ({"label_std": [0.0]}, "std of target 'LABEL_0' must be positive"),
        ({"label_std": [float("nan")]}, "std of target 'LABEL_0' must be finite"),
        ({"id2label": {0: "a", 1: "a"}}, "each differently"),
        ({"vocab_size": 20, "mask_token_id": 19}, r"vocab_size \(20\) must exceed the largest element"),
        ({"pad_token_id": 6}, "pad_token_id must be 0, not 6"),
        ({"gaussian_max_angstrom": 0.0}, "gaussian_max_angstrom must be positive"),
    ],
)
def test_impossible_settings_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(StrictDataclassError, match=f"(?s){message}"):
        UniMol2Config(**fields)


def test_wrong_types_are_refused_on_assignment() -> None:
    config = UniMol2Config()
    with pytest.raises(StrictDataclassError, match="num_attention_heads"):
        config.num_attention_heads = "many"  # type: ignore[assignment]


@pytest.mark.parametrize("scale", ["2b", "", 84, None])
def test_unknown_scale_is_named(scale: Any) -> None:
    with pytest.raises(ValueError, match=f"unknown scale {scale!r}.*84m") as error:
        UniMol2Config.from_scale(scale)
    assert all(name in str(error.value) for name in SCALES)


class TestTargets:
    REGRESSION: ClassVar[dict[str, Any]] = {"name": "logS", "kind": "regression", "mean": -2.0, "std": 1.5}
    BINARY: ClassVar[dict[str, Any]] = {"name": "toxic", "kind": "binary"}
    CLASSES: ClassVar[dict[str, Any]] = {"name": "phase", "kind": "multiclass", "classes": ["gas", "liquid", "solid"]}

    @pytest.mark.parametrize(
        ("targets", "outputs", "problem_type"),
        [
            ([REGRESSION], ["logS"], "regression"),
            ([BINARY], ["toxic"], "multi_label_classification"),
            ([BINARY, {"name": "active", "kind": "binary"}], ["toxic", "active"], "multi_label_classification"),
            ([CLASSES], ["gas", "liquid", "solid"], "single_label_classification"),
            ([REGRESSION, BINARY], ["logS", "toxic"], None),
            ([REGRESSION, CLASSES], ["logS", "phase: gas", "phase: liquid", "phase: solid"], None),
            ([BINARY, CLASSES], ["toxic", "phase: gas", "phase: liquid", "phase: solid"], None),
        ],
    )
    def test_outputs_and_problem_type_follow(
        self, targets: list[dict[str, Any]], outputs: list[str], problem_type: str | None, tmp_path: Path
    ) -> None:
        made, changed = UniMol2Config(targets=targets), UniMol2Config(num_labels=9)
        changed.set_targets(targets)
        made.save_pretrained(tmp_path)
        for config in (made, changed, UniMol2Config.from_pretrained(tmp_path)):
            assert config.output_names == outputs
            assert config.target_names == [target["name"] for target in targets]
            assert (config.num_labels, config.problem_type) == (len(outputs), problem_type)
            config.validate()

    @pytest.mark.parametrize(
        ("fields", "kinds"),
        [
            ({"num_labels": 2}, ["regression", "regression"]),
            ({"num_labels": 3, "problem_type": "single_label_classification"}, ["multiclass"]),
            ({"num_labels": 3, "problem_type": "multi_label_classification"}, ["binary"] * 3),
        ],
    )
    def test_without_targets_the_problem_type_says_it(self, fields: dict[str, Any], kinds: list[str]) -> None:
        assert [target["kind"] for target in UniMol2Config(**fields).task] == kinds

    @pytest.mark.parametrize(
        ("targets", "message"),
        [
            ([], "at least one entry"),
            ([REGRESSION, REGRESSION], "a name of its own"),
            ([{"kind": "binary"}], "a name of its own"),
            ([{"name": "y", "kind": "ordinal"}], "'y' is of kind 'ordinal'; use one of regression, binary, multiclass"),
            ([{"name": "y", "kind": "multiclass", "classes": ["a"]}], "at least two classes"),
            ([{"name": "y", "kind": "multiclass", "classes": ["a", "b", "a"]}], "each named differently"),
            ([{"name": "y", "kind": "binary", "classes": ["a", "b", "c"]}], "binary and needs two classes"),
            ([{"name": "y", "kind": "binary", "class_weights": [1, 0]}], "must be 2 positive numbers"),
            ([{"name": "y", "kind": "regression", "class_weights": [1, 1]}], "must be 0 positive numbers"),
            ([{"name": "y", "kind": "regression", "std": 0.0}], "std of target 'y' must be positive"),
            ([{"name": "y", "kind": "regression", "median": 0.0}], "unknown median"),
        ],
    )
    def test_targets_that_are_not_complete(self, targets: list[dict[str, Any]], message: str) -> None:
        with pytest.raises((StrictDataclassError, ValueError), match=f"(?s){message}"):
            UniMol2Config(targets=targets)

    @pytest.mark.parametrize(
        ("features", "message"),
        [
            ([{"name": "ph"}], "'ph' needs name, mean and std"),
            ([{"name": "ph", "mean": 7.0, "std": 0.0}], "std of extra feature 'ph' must be positive"),
            ([{"name": "ph", "mean": 7.0, "std": 1.0}] * 2, "names of their own"),
        ],
    )
    def test_extra_features_that_are_not_complete(self, features: list[dict[str, Any]], message: str) -> None:
        with pytest.raises((StrictDataclassError, ValueError), match=f"(?s){message}"):
            UniMol2Config(extra_features=features)

    def test_a_problem_type_asked_for_with_new_outputs_stays(self) -> None:
        config = UniMol2Config(targets=[self.REGRESSION])
        config.num_labels = 3
        config.problem_type = "single_label_classification"
        config.forget_other_task()
        assert [target["kind"] for target in config.task] == ["multiclass"]

    def test_a_newer_folder_is_refused(self, small_config: UniMol2Config, tmp_path: Path) -> None:
        small_config.save_pretrained(tmp_path)
        content = json.loads((tmp_path / "config.json").read_text())
        assert content["format_version"] == 2
        (tmp_path / "config.json").write_text(json.dumps(content | {"format_version": 3}))
        with pytest.raises(StrictDataclassError, match=r"(?s)newer unimol2-hf; upgrade it"):
            UniMol2Config.from_pretrained(tmp_path)
