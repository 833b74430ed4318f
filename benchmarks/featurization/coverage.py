#!/usr/bin/env python3
"""How many molecules of a table featurise, how their conformers came about, and which one took longest.

    python benchmarks/featurization/coverage.py --data DIR [--tables biogen_adme,esol,bbbp,compas_1d]

Writes coverage.json and coverage.md beside this file. Seconds are those of a molecule's process (CPU), which other work
on the machine hardly changes, and by the clock. Started again with the same `--records`, it goes on where it was.
"""

import json
import os
import platform
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from unimol2_hf import UniMol2FeatureExtractor
from unimol2_hf.conformers import conformer_versions
from unimol2_hf.feature_extraction_unimol2 import featurize_molecule
from unimol2_hf.settings_unimol2 import FeaturizerSettings
from unimol2_hf.worker_pool import map_in_order

HERE = Path(__file__).parent
COMMAND = "python benchmarks/featurization/coverage.py --data DIR"
READ_AHEAD = 64
SLOWEST_OF = 5


def timed_record(smiles: str, settings: FeaturizerSettings) -> dict[str, Any]:
    """How one molecule fared, one conformer, seed 42."""
    cpu, wall = time.thread_time(), time.monotonic()
    result = featurize_molecule(smiles, settings)
    seconds = {"cpu_seconds": round(time.thread_time() - cpu, 3), "wall_seconds": round(time.monotonic() - wall, 3)}
    record = {"smiles": smiles, **seconds, "error": None, "method": None, "is_3d": None, "converged": None}
    if result.error is not None:
        return record | {"error": type(result.error).__name__}
    made = result.conformers[0].provenance
    return record | {"method": made.method, "is_3d": made.is_3d, "converged": made.force_field_converged}


def records_of(table: Path, records: Path, num_workers: int) -> list[dict[str, Any]]:
    """One record for each row of a CSV with a smiles column; those that lie in `records` are not made again."""
    smiles = pd.read_csv(table)["smiles"].tolist()
    records.mkdir(parents=True, exist_ok=True)
    versions = "-".join(str(version) for version in conformer_versions().values())
    path = records / f"{table.stem}-{versions}.jsonl"
    done = len(path.read_text().splitlines()) if path.exists() else 0
    work = partial(timed_record, settings=UniMol2FeatureExtractor().settings())
    with path.open("a") as file:
        for _, record in map_in_order(work, enumerate(smiles[done:]), num_workers, READ_AHEAD):
            file.write(json.dumps(record) + "\n")
            file.flush()
    return [json.loads(line) for line in path.read_text().splitlines()]


def summary(table: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The counts of a table, and its slowest molecules by CPU time."""
    made = [record for record in records if record["error"] is None]
    slowest = sorted(records, key=lambda record: -float(record["cpu_seconds"]))[:SLOWEST_OF]
    shown = ("smiles", "method", "cpu_seconds", "wall_seconds")
    return {
        "table": table,
        "rows": len(records),
        "featurised": len(made),
        "not_3d": sum(not record["is_3d"] for record in made),
        "methods": dict(Counter(record["method"] for record in made)),
        "force_field_converged": dict(Counter(str(record["converged"]) for record in made)),
        "errors": dict(Counter(record["error"] for record in records if record["error"] is not None)),
        "cpu_seconds": round(sum(record["cpu_seconds"] for record in records), 1),
        "slowest": [{name: record[name] for name in shown} for record in slowest],
        "longest_wall_seconds": max(record["wall_seconds"] for record in records),
        **conformer_versions(),
    }


def processor() -> str:
    """Its name, as `lscpu` has it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def as_markdown(runs: list[dict[str, Any]]) -> str:
    names = ("table", "rows", "featurised", "not 3D", "conformers by method", "MMFF94 converged", "CPU s")
    lines = [
        f"| {' | '.join(names)} | slowest molecule, CPU s (by the clock) | longest by the clock, s |",
        "|---" * 9 + "|",
    ]
    for run in runs:
        methods = ", ".join(f"{name} {count}" for name, count in run["methods"].items())
        converged = ", ".join(f"{name} {count}" for name, count in run["force_field_converged"].items())
        first = run["slowest"][0]
        lines.append(
            f"| {run['table']} | {run['rows']} | {run['featurised']} | {run['not_3d']} | {methods} | {converged} "
            f"| {run['cpu_seconds']} | {first['cpu_seconds']} ({first['wall_seconds']}) "
            f"| {run['longest_wall_seconds']} |"
        )
    lines += ["", "The slowest of each:", ""]
    lines += [f"- {run['table']}: `{run['slowest'][0]['smiles']}` ({run['slowest'][0]['method']})" for run in runs]
    about = f"RDKit {runs[0]['rdkit']}, ladder {runs[0]['ladder']}, {runs[0]['processor']}"
    return "\n".join([*lines, "", f"{about}; `{COMMAND}`", ""])


def main(
    data: Annotated[Path, typer.Option(help="folder with <table>.csv files that have a smiles column")],
    tables: Annotated[str, typer.Option(help="comma-separated")] = "biogen_adme,esol,bbbp,compas_1d",
    num_workers: Annotated[int, typer.Option()] = 2,
    records: Annotated[Path, typer.Option(help="folder for what is finished")] = Path("runs/coverage"),
) -> None:
    """Count what featurises."""
    runs = [
        {**summary(table, records_of(data / f"{table}.csv", records, num_workers)), "processor": processor()}
        for table in tables.split(",")
    ]
    (HERE / "coverage.json").write_text(json.dumps(runs, indent=1) + "\n")
    (HERE / "coverage.md").write_text(as_markdown(runs))
    print(as_markdown(runs))


if __name__ == "__main__":
    typer.run(main)
