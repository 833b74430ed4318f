#!/usr/bin/env python3
"""The figure of the model cards: the paper's scaling law at the end of training, beside what the paper observed.

python benchmarks/scaling_law/paper_figure.py
"""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from scaling_law import ScalingLaw

import unimol2_hf

mpl.use("Agg")
import matplotlib.pyplot as plt

STEPS = 810_000
# Millions of parameters and validation loss at that step, as the paper quotes them.
OBSERVED = {"84m": (84.1, 0.105), "570m": (570.2, 0.0900), "1.1b": (1129.2, 0.0870)}
FIGURE = Path(unimol2_hf.__file__).parent / "hub" / "repository" / "scaling_law.png"


def main() -> None:
    """Draw and save."""
    sizes = np.geomspace(40, 1200, 200)
    losses = ScalingLaw.published().predict(sizes, np.full_like(sizes, STEPS))
    figure, axes = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    axes.plot(sizes, losses, color="0.4", label="law fitted by the paper on 42m to 310m")
    for name, (size, loss) in OBSERVED.items():
        axes.plot(size, loss, "o", color="C0", label="observed by the paper" if name == "84m" else None)
        axes.annotate(name, (size, loss), textcoords="offset points", xytext=(6, 5))
    axes.set_xscale("log")
    axes.set_xticks([42, 84, 164, 310, 570, 1100], ["42", "84", "164", "310", "570", "1,100"])
    axes.set_xlim(35, 1600)
    axes.minorticks_off()
    axes.set_xlabel("parameters, millions")
    axes.set_ylabel(f"validation loss at step {STEPS:,}")
    axes.legend(frameon=False)
    figure.savefig(FIGURE, dpi=110)


if __name__ == "__main__":
    main()
