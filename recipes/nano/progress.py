#!/usr/bin/env python3
"""What longer training gave unimol2-nano: progress.csv as a figure, beside its teacher.

python recipes/nano/progress.py
"""

from pathlib import Path

import matplotlib as mpl
import pandas as pd
from background import DECAY_FROM

mpl.use("Agg")

from matplotlib import pyplot as plt

HERE = Path(__file__).parent
TITLES = {"hlm": "human liver microsomes", "mdr1": "MDR1 efflux", "rlm": "rat liver microsomes"}
# The same kernel ridge on the same splits (baselines).
MINIMOL = {"hlm": 0.321, "mdr1": 0.297, "solubility": 0.327, "rlm": 0.371, "ESOL": 0.571}


def main() -> None:
    """Draw progress.png."""
    table = pd.read_csv(HERE / "progress.csv")
    figure, axes = plt.subplots(1, len(MINIMOL), figsize=(14, 3.2), layout="constrained")
    for axis, (task, teacher) in zip(axes, MINIMOL.items(), strict=True):
        for pooling, label in (("cls", "CLS"), ("cls_mean", "CLS and mean")):
            axis.plot(table["samples"] / 1e6, table[f"{task}_{pooling}"], marker="o", markersize=4, label=label)
        axis.axhline(teacher, color="0.5", linestyle="--", linewidth=0.9, label="MiniMol")
        axis.axvspan(DECAY_FROM / 1e6, table["samples"].max() / 1e6, color="0.93", zorder=0, label="rate falls")
        axis.set(xlabel="million samples", title=TITLES.get(task, task))
    axes[0].set_ylabel("test MAE, frozen")
    axes[0].legend(frameon=False)
    figure.savefig(HERE / "progress.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
