#!/usr/bin/env python3
"""How many molecules of a table featurise, and how their conformers came about.

    python benchmarks/featurization/coverage.py --data DIR [--tables biogen_adme,esol,bbbp]

Writes coverage.json and coverage.md beside this file.
"""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import rdkit
import typer

from unimol2_hf import UniMol2FeatureExtractor

HERE = Path(__file__).parent


def cover(path: Path, num_workers: int) -> dict[str, Any]:
    """Featurise every row of a CSV with a smiles column, one conformer each, seed 42."""
    smiles = pd.read_csv(path)["smiles"].tolist()
    start = time.monotonic()
    results = list(UniMol2FeatureExtractor().featurize(smiles, num_workers=num_workers))
    provenance = [conformer.provenance for result in results for conformer in result.conformers]
    return {
        "table": path.stem,
        "rows": len(results),
        "featurised": sum(result.error is None for result in results),
        "methods": dict(Counter(record.method for record in provenance)),
        "force_field_converged": dict(Counter(str(record.force_field_converged) for record in provenance)),
        "errors": dict(Counter(type(r.error).__name__ for r in results if r.error is not None)),
        "seconds": round(time.monotonic() - start, 1),
        "workers": num_workers,
        "rdkit": rdkit.__version__,
    }


def as_markdown(runs: list[dict[str, Any]]) -> str:
    lines = ["| table | rows | featurised | conformers by method | MMFF94 converged |", "|---|---|---|---|---|"]
    for run in runs:
        methods = ", ".join(f"{name} {count}" for name, count in run["methods"].items())
        converged = ", ".join(f"{name} {count}" for name, count in run["force_field_converged"].items())
        lines.append(f"| {run['table']} | {run['rows']} | {run['featurised']} | {methods} | {converged} |")
    lines += ["", f"RDKit {runs[0]['rdkit']}; `python benchmarks/featurization/coverage.py --data DIR`", ""]
    return "\n".join(lines)


def main(
    data: Annotated[Path, typer.Option(help="folder with <table>.csv files that have a smiles column")],
    tables: Annotated[str, typer.Option(help="comma-separated")] = "biogen_adme,esol,bbbp",
    num_workers: Annotated[int, typer.Option()] = 2,
) -> None:
    """Count what featurises."""
    runs = [cover(data / f"{table}.csv", num_workers) for table in tables.split(",")]
    (HERE / "coverage.json").write_text(json.dumps(runs, indent=1) + "\n")
    (HERE / "coverage.md").write_text(as_markdown(runs))
    print(as_markdown(runs))


if __name__ == "__main__":
    typer.run(main)
