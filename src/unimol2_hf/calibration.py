"""How sure a prediction is: intervals and calibrated probabilities, applied; `uncertainty/` fits them.

`calibration.json` lies in the folder of a model that was fitted on folds.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers.utils import cached_file

from .configuration_unimol2 import BINARY, MULTICLASS, REGRESSION, UniMol2Config
from .errors import ModelError

CALIBRATION_FILE = "calibration.json"
CALIBRATION_VERSION = 2

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class TargetPrediction:
    """Of one target of one molecule.

    Attributes:
        values: (1,) value or probability of the positive class, or (classes,) probabilities.
        spread: standard deviation over the members of an ensemble, of classes that of the likeliest one's probability;
            `None` for a single model.
        interval: lower and upper end; `None` where none was fitted.
    """

    values: FloatArray
    spread: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Calibration:
    """What was fitted on predictions of molecules that a member had not seen.

    Attributes:
        coverage: share of new molecules that intervals are to hold, unless another one is asked for.
        left_out: of each member the folds that it has not seen.
        targets: by name. Of a regression target `scores`, of each fold's molecules the sorted |error| / difficulty, and
            `floor`, which the difficulty adds to the spread; of a binary one `slope` and `offset` of its logit; of a
            multiclass one `temperature`, by which its logits are divided.
    """

    coverage: float
    left_out: list[list[int]]
    targets: dict[str, dict[str, Any]]

    @cached_property
    def unseen(self) -> list[tuple[int, ...]]:
        """For each fold the members that have not seen it."""
        return members_without(self.left_out)

    @property
    def interval_names(self) -> list[str]:
        """The targets that have intervals, in order."""
        return [name for name, fitted in self.targets.items() if "scores" in fitted]

    def to_dict(self) -> dict[str, Any]:
        """As `calibration.json` holds it."""
        return {
            "version": CALIBRATION_VERSION,
            "coverage": self.coverage,
            "left_out": self.left_out,
            "targets": self.targets,
        }

    def interval(self, name: str, members: FloatArray, coverage: float | None = None) -> tuple[float, float] | None:
        """Lower and upper end of a regression target's interval; None where it has too few scores for the coverage.

        Cross-conformal ("CV+", Barber et al., Ann. Stat. 2021, 49, 486): each score says where the label would lie if
        the molecule were one of its fold, by the mean and the difficulty of the members that have not seen that fold;
        the ends are quantiles of these. The mean of all members is less uncertain than that of a fold's few, so a
        score times the mean difficulty around it would hold too many.

        Args:
            name: of the target.
            members: (members,) values.
            coverage: by default the calibration's own.
        """
        fitted = self.targets.get(name, {})
        rank = self.rank(name, coverage)
        if rank is None:
            return None
        lower, upper = [], []
        for scores, own in zip(fitted["scores"], self.unseen, strict=True):
            mean, difficulty = members[list(own)].mean(), fitted["floor"] + members[list(own)].std(ddof=1)
            half = difficulty * np.asarray(scores)
            lower.append(mean - half)
            upper.append(mean + half)
        value = members.mean()
        ends = np.sort(np.concatenate(lower))[-rank], np.sort(np.concatenate(upper))[rank - 1]
        return float(min(ends[0], value)), float(max(ends[1], value))

    def rank(self, name: str, coverage: float | None = None) -> int | None:
        """Which of a target's scores, from the smallest, ends an interval; None where there are too few."""
        count = sum(map(len, self.targets.get(name, {}).get("scores", ())))
        return conformal_rank(count, self.coverage if coverage is None else coverage)


def members_without(left_out: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """For each fold the members that have not seen it, at least two."""
    folds = sorted({fold for own in left_out for fold in own})
    return [tuple(member for member, own in enumerate(left_out) if fold in own) for fold in folds]


def conformal_rank(count: int, coverage: float) -> int | None:
    """Which of so many scores, from the smallest, a new molecule's exceeds with probability 1 - coverage, at most.

    The ceil((n + 1) coverage)-th (Vovk et al., Algorithmic Learning in a Random World, 2005); None where there are too
    few.
    """
    rank = max(1, math.ceil((count + 1) * coverage - 1e-9))
    return None if rank > count else rank


def predict_target(
    target: Mapping[str, Any], logits: FloatArray, calibration: Calibration | None, coverage: float | None = None
) -> TargetPrediction:
    """The prediction of a molecule from a model's outputs.

    Values, and probabilities of classes, are means over conformers; those of a molecule's conformer come from the mean
    over the members.

    Args:
        target: its entry in `UniMol2Config.targets`.
        logits: (conformers, members, outputs of the target).
        calibration: of the model, if it has one.
        coverage: of intervals, by default the calibration's.
    """
    fitted = {} if calibration is None else calibration.targets.get(str(target["name"]), {})
    values = calibrated_values(target, logits.mean(axis=1), fitted).mean(axis=0)
    if logits.shape[1] == 1:
        return TargetPrediction(values)
    members = calibrated_values(target, logits, fitted).mean(axis=0)
    spread = float(members[:, values.argmax()].std(ddof=1))
    if calibration is None or target["kind"] != REGRESSION:
        return TargetPrediction(values, spread)
    return TargetPrediction(values, spread, calibration.interval(str(target["name"]), members[:, 0], coverage))


def property_result(
    config: UniMol2Config, logits: FloatArray | None, calibration: Calibration | None, coverage: float | None = None
) -> dict[str, Any]:
    """What the pipeline of properties gives of a molecule; with None where there are no outputs.

    Args:
        config: of the model.
        logits: (conformers, members, num_labels); `None` for a molecule that failed.
        calibration: of the model, if it has one.
        coverage: of intervals, by default the calibration's.
    """
    task = config.task
    found: dict[str, TargetPrediction] | None = None
    if logits is not None:
        blocks = np.split(logits, np.cumsum(config.target_sizes)[:-1], axis=2)
        each = zip(task, blocks, strict=True)
        found = {str(target["name"]): predict_target(target, block, calibration, coverage) for target, block in each}
    result: dict[str, Any] = {"predictions": found and {str(each["name"]): _told(each, found) for each in task}}
    classes = {str(each["name"]): list(map(str, each["classes"])) for each in task if each["kind"] == MULTICLASS}
    if classes:
        result["probabilities"] = found and {
            name: dict(zip(own, found[name].values.tolist(), strict=True)) for name, own in classes.items()
        }
    if config.num_members > 1:
        result["spreads"] = found and {name: each.spread for name, each in found.items()}
    if calibration is not None and calibration.interval_names:
        result["intervals"] = found and {name: found[name].interval for name in calibration.interval_names}
    return result


def _told(target: Mapping[str, Any], found: Mapping[str, TargetPrediction]) -> float | str:
    """The value, the probability of the positive class, or the likeliest class."""
    values = found[str(target["name"])].values
    return str(target["classes"][int(values.argmax())]) if target["kind"] == MULTICLASS else float(values[0])


def calibrated_values(target: Mapping[str, Any], logits: FloatArray, fitted: Mapping[str, float]) -> FloatArray:
    """Values, or probabilities, of a target's outputs (..., outputs)."""
    if target["kind"] == BINARY:
        scaled = fitted.get("slope", 1.0) * logits + fitted.get("offset", 0.0)
        return np.exp(-np.logaddexp(0.0, -scaled))
    if target["kind"] == MULTICLASS:
        scaled = logits / fitted.get("temperature", 1.0)
        exponents = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
        return exponents / exponents.sum(axis=-1, keepdims=True)
    return logits


def save_calibration(folder: str | Path, calibration: Calibration) -> None:
    """Write `calibration.json` into a model's folder."""
    (Path(folder) / CALIBRATION_FILE).write_text(json.dumps(calibration.to_dict(), indent=1) + "\n", encoding="utf-8")


def load_calibration(model: str | Path, **hub_kwargs: Any) -> Calibration | None:
    """What is in a model's folder or Hub repository; None where it has none.

    Raises:
        ModelError: the file is damaged, or of another version.
    """
    quiet = {f"_raise_exceptions_for_{case}": False for case in ("missing_entries", "connection_errors")}
    path = cached_file(str(model), CALIBRATION_FILE, **quiet, **hub_kwargs)
    if path is None:
        return None
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if found["version"] > CALIBRATION_VERSION:
            raise ModelError(f"{path} was written by a newer unimol2-hf; upgrade it")
        if found["version"] < CALIBRATION_VERSION:
            raise ModelError(f"{path} was written by an older unimol2-hf; fit the model again, or remove the file")
        return Calibration(found["coverage"], found["left_out"], found["targets"])
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path} is damaged ({error!r}); fit the model again, or remove the file") from error
