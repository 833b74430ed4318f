#!/usr/bin/env python3
"""Throughput beside unimol_tools 0.1.6: same random 84M weights, molecules, conformers, batch size and threads.

    python3 -m venv PEER && PEER/bin/pip install torch==2.13.0 "numpy<2.3"
    PEER/bin/pip install unimol_tools==0.1.6 rdkit==2026.9.1
    python benchmarks/speed/against_unimol_tools.py embed --data DIR --peer-python PEER/bin/python
    python benchmarks/speed/against_unimol_tools.py featurize --data DIR --peer-python PEER/bin/python

Each package is a process that lives through the whole measurement; they take turns over the same chunks of molecules.
Conformers are made before any clock starts. "embed" is the pipeline as it is; "packed" is what `unimol2-hf embed` does
by itself, `pipeline.pack_weights()` and `keep_freed_memory()`; "compiled" is `pipeline.compile_model()`, one graph for
all shapes, and `keep_freed_memory()`. With `--peer-keeps-memory` glibc keeps freed memory for unimol_tools too, which
it does not ask for.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from harness import Worker, machine, median, publish
from matplotlib.axes import Axes
from molecules import write_molecules, write_weights

# What `keep_freed_memory` sets, as environment variables of glibc.
KEEPS_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_THRESHOLD_": str(2**30)}


def main(
    what: Annotated[str, typer.Argument(help="embed or featurize")],
    data: Annotated[Path, typer.Option(help="folder with biogen_adme.csv")],
    peer_python: Annotated[str, typer.Option(help="python of an environment with unimol_tools 0.1.6")],
    count: Annotated[int, typer.Option()] = 1000,
    chunk: Annotated[int, typer.Option(help="molecules of a turn")] = 250,
    batch_size: Annotated[int, typer.Option()] = 32,
    repeats: Annotated[int, typer.Option(help="passes over all molecules")] = 2,
    kinds: Annotated[str, typer.Option(help="of this package, for embed")] = "embed,packed,compiled",
    peer_keeps_memory: Annotated[bool, typer.Option(help="glibc's options for unimol_tools")] = False,
    work_dir: Annotated[Path, typer.Option()] = Path("runs/speed"),
) -> None:
    """Write against_unimol_tools_WHAT.json, .md and .png beside this file."""
    threads = 2 if what == "embed" else 1
    work_dir.mkdir(parents=True, exist_ok=True)
    write_weights(work_dir)
    molecules = work_dir / f"molecules_{count}.pkl"
    write_molecules(data / "biogen_adme.csv", count, molecules)
    own = dict.fromkeys(kinds.split(",") if what == "embed" else (what,), ("own_worker.py", work_dir / "hf"))
    workers = {
        name: Worker(sys.executable, *where, molecules, batch_size, threads, name) for name, where in own.items()
    }
    workers["unimol_tools"] = Worker(
        peer_python,
        "peer_worker.py",
        work_dir / "checkpoint.pt",
        molecules,
        batch_size,
        threads,
        what,
        environment=KEEPS_MEMORY if peer_keeps_memory else None,
    )
    for worker in workers.values():
        worker.seconds(0, 0)  # loaded, compiled and warm: no clock runs while another one starts
    rows: list[dict[str, Any]] = []
    for repeat in range(repeats):
        for start in range(0, count, chunk):
            end = min(start + chunk, count)
            seconds = {name: worker.seconds(start, end) for name, worker in workers.items()}
            row: dict[str, Any] = {"pass": repeat, "molecules": f"{start}-{end - 1}"}
            row |= {f"{name} molecules/s": (end - start) / value for name, value in seconds.items()}
            row |= {f"{name} ratio": seconds["unimol_tools"] / seconds[name] for name in own}
            rows.append(row)
            print(row, flush=True)
    for worker in workers.values():
        worker.close()
    columns = [name for name in rows[0] if name not in ("pass", "molecules")]
    medians = {name: median([row[name] for row in rows]) for name in columns}
    rows.append({"pass": "median", "molecules": "", **medians})

    def draw(axes: Axes) -> None:
        rates = {name: value for name, value in medians.items() if name.endswith("/s")}
        axes.bar([name.removesuffix(" molecules/s") for name in rates], list(rates.values()))
        axes.set_ylabel("molecules a second")

    notes = (
        f"{count} Biogen molecules with given conformers, batch size {batch_size}, {threads} thread(s), "
        "float32; ratios are of the same chunk, taken in turn "
        f"(`python benchmarks/speed/against_unimol_tools.py {what} --data DIR --peer-python PEER/bin/python"
        f"{' --peer-keeps-memory' * peer_keeps_memory}`)."
    )
    report = {"machine": machine(threads), "count": count, "batch_size": batch_size, "medians": medians}
    name = f"against_unimol_tools_{what}{'_both_keep_memory' * peer_keeps_memory}"
    publish(name, report, rows, notes, draw)


if __name__ == "__main__":
    typer.run(main)
