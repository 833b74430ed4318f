"""Figures of a fine-tuning run."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from ..configuration_unimol2 import REGRESSION
from ..data.atomic_files import whole_file

FloatArray = NDArray[np.floating[Any]]

_PANELS_PER_ROW = 3
_PANEL_INCHES = 3.6
_MOST_PANELS = 24
_BLUE, _GREY = "#1f5fa8", "0.6"
_STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def save_test_plot(
    predictions: list[FloatArray],
    references: FloatArray,
    targets: list[dict[str, Any]],
    metrics: dict[str, dict[str, Any]],
    path: Path,
) -> None:
    """The test part, one panel for each of the first 24 targets.

    Predicted against measured values of a regression target, ROC curves of the others.

    Args:
        predictions: an array for each target, (n,), or (n, classes) of a multiclass one.
        references: (n, targets).
    """
    shown = targets[:_MOST_PANELS]
    columns = min(_PANELS_PER_ROW, len(shown))
    rows = -(-len(shown) // columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(columns * _PANEL_INCHES, rows * _PANEL_INCHES), layout="constrained")
        panels = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
        for index, target in enumerate(shown):
            draw = _draw_parity if target["kind"] == REGRESSION else _draw_roc
            panels[index].set_title(target["name"])
            draw(panels[index], predictions[index], references[:, index], target, metrics[target["name"]])
        for panel in panels[len(shown) :]:
            panel.set_visible(False)
        with whole_file(path) as draft:
            figure.savefig(draft, dpi=150, format=path.suffix[1:])


def save_learning_curve(history: list[dict[str, Any]], path: Path) -> None:
    """Training loss and validation score by epoch."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_PANEL_INCHES * 1.5, _PANEL_INCHES), layout="constrained")
        panel = figure.subplots()
        for key, label, color in (("loss", "training loss", _GREY), ("eval_score", "validation score", _BLUE)):
            points = [(entry["epoch"], float(entry[key])) for entry in history if key in entry]
            if points:
                panel.plot(*zip(*points, strict=True), label=label, color=color, marker=".")
        panel.set(xlabel="epoch")
        panel.legend(frameon=False)
        with whole_file(path) as draft:
            figure.savefig(draft, dpi=150, format=path.suffix[1:])


def _draw_roc(
    panel: Axes, probabilities: FloatArray, references: FloatArray, target: dict[str, Any], metrics: dict[str, Any]
) -> None:
    """Of the positive class, or of each class against the rest."""
    panel.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    panel.plot((0, 1), (0, 1), color=_GREY, linewidth=1)
    binary = probabilities.ndim == 1
    columns = {1: probabilities} if binary else dict(enumerate(probabilities.T))
    for index, column in columns.items():
        present = ~(np.isnan(column) | np.isnan(references))
        positive = references[present] == index
        if 0 < positive.sum() < len(positive):
            false_rate, true_rate, _ = roc_curve(positive, column[present])
            panel.plot(false_rate, true_rate, label=None if binary else str(target["classes"][index]))
    if not binary:
        panel.legend(frameon=False, fontsize=7)
    area = "-" if metrics["roc_auc"] is None else f"{metrics['roc_auc']:.3f}"
    panel.text(0.97, 0.03, f"ROC-AUC {area}\nn = {metrics['count']}", ha="right", va="bottom", fontsize=8)


def _draw_parity(
    panel: Axes, predictions: FloatArray, references: FloatArray, target: dict[str, Any], metrics: dict[str, Any]
) -> None:
    present = ~(np.isnan(predictions) | np.isnan(references))
    panel.set_xlabel("measured")
    panel.set_ylabel("predicted")
    if not present.any():
        return
    both = np.concatenate((predictions[present], references[present]))
    margin = 0.05 * (np.ptp(both) or 1.0)
    limits = (both.min() - margin, both.max() + margin)
    panel.plot(limits, limits, color=_GREY, linewidth=1, zorder=1)
    panel.scatter(references[present], predictions[present], s=14, alpha=0.6, linewidths=0, color=_BLUE, zorder=2)
    panel.set(xlim=limits, ylim=limits, aspect="equal")
    lines = [f"MAE {metrics['mae']:.3f} (mean: {metrics['baseline_mae']:.3f})"]
    if metrics["r2"] is not None:
        lines.append(f"R² {metrics['r2']:.2f}")
    lines.append(f"n = {metrics['count']}")
    panel.text(0.03, 0.97, "\n".join(lines), transform=panel.transAxes, va="top", fontsize=8)
