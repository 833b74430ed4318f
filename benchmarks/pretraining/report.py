"""How the figures of this folder are written down."""

import json
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent


def write_report(name: str, title: str, report: Mapping[str, float]) -> None:
    """Write NAME.json and NAME.md beside this file, and print the table."""
    (HERE / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    lines = [f"| {key.replace('_', ' ')} | {value:,.4g} |" for key, value in report.items()]
    text = "\n".join([f"| {title} | |", "|---|---|", *lines]) + "\n"
    (HERE / f"{name}.md").write_text(text)
    print(text)
