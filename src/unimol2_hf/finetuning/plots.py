"""Figures of a fine-tuning run."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]

_PANELS_PER_ROW = 3
_PANEL_INCHES = 3.6


def save_parity_plot(
    predictions: FloatArray,
    references: FloatArray,
    metrics: dict[str, dict[str, Any]],
    path: Path,
) -> None:
    """Predicted against measured values of the test part, one panel for each target; arrays (n, targets)."""
    targets = list(metrics)
    columns = min(_PANELS_PER_ROW, len(targets))
    rows = -(-len(targets) // columns)
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(columns * _PANEL_INCHES, rows * _PANEL_INCHES), layout="constrained")
        panels = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
        for number, target in enumerate(targets):
            _draw_parity(panels[number], predictions[:, number], references[:, number], target, metrics[target])
        for panel in panels[len(targets) :]:
            panel.set_visible(False)
        figure.savefig(path, dpi=150)


def _draw_parity(
    panel: Axes, predictions: FloatArray, references: FloatArray, target: str, metrics: dict[str, Any]
) -> None:
    present = ~(np.isnan(predictions) | np.isnan(references))
    panel.set_title(target)
    panel.set_xlabel("measured")
    panel.set_ylabel("predicted")
    if not present.any():
        return
    both = np.concatenate((predictions[present], references[present]))
    margin = 0.05 * (np.ptp(both) or 1.0)
    limits = (both.min() - margin, both.max() + margin)
    panel.plot(limits, limits, color="0.6", linewidth=1, zorder=1)
    panel.scatter(references[present], predictions[present], s=14, alpha=0.6, linewidths=0, color="#1f5fa8", zorder=2)
    panel.set(xlim=limits, ylim=limits, aspect="equal")
    lines = [f"MAE {metrics['mae']:.3f} (mean: {metrics['baseline_mae']:.3f})"]
    if metrics["r2"] is not None:
        lines.append(f"R² {metrics['r2']:.2f}")
    lines.append(f"n = {metrics['count']}")
    panel.text(0.03, 0.97, "\n".join(lines), transform=panel.transAxes, va="top", fontsize=8)
