"""How the figures of this folder are written down."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent


def write_report(name: str, title: str, report: Mapping[str, float]) -> None:
    """Write NAME.json and NAME.md beside this file, and print the table."""
    (HERE / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    lines = [f"| {key.replace('_', ' ')} | {value:,.4g} |" for key, value in report.items()]
    text = "\n".join([f"| {title} | |", "|---|---|", *lines]) + "\n"
    (HERE / f"{name}.md").write_text(text)
    print(text)


def comparison_row(target: str, mae: Mapping[str, Sequence[float]], trivial: float) -> str:
    """A line on pretrained and random weights: mean (standard deviation) of each, their difference seed by seed."""
    cells = [f"{statistics.mean(values):.3f} ({statistics.stdev(values):.3f})" for values in mae.values()]
    gaps = ", ".join(f"{a - b:+.3f}" for a, b in zip(*mae.values(), strict=True))
    return f"| {target} | {' | '.join(cells)} | {gaps} | {trivial:.3f} |"
