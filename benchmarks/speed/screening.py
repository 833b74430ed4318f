#!/usr/bin/env python3
"""Screening: 200,000 rows through `predict` with nano, memory and rate; neighbours of a million; how fast Ctrl-C is.

    python benchmarks/speed/screening.py --data DIR [--parts neighbours,interrupt,...] [--rows 200000]

DIR has `qm9.parquet`, `smiles_pretrain.smi.gz` and `esol.csv`. The library is QM9's molecules and the shortest SMILES
of the drug-like set, shuffled. `predict` runs as the command, in a process of its own, on all 200,000 and on the first
20,000; memory is the most that the process and its workers held together (PSS, looked at every five seconds) and the
process itself (VmHWM). "conformers" and "model" are measured apart on 10,000 of the rows: featurising on all cores, and
the model's passes over ready features. Writes screening.json and screening.md.
"""

import gzip
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from harness import machine

HERE = Path(__file__).parent
ROWS, FEW, APART, LONGEST = 200_000, 20_000, 10_000, 512
# nano's width.
VECTORS, WIDTH, VECTORS_A_SHARD, QUERIES, TOP = 1_000_000, 192, 8192, 100, 20
INTERRUPTS = 5
LOOK_SECONDS = 5  # at a process's memory: each look costs it some 50 ms
# What a shell starts in the background ignores Ctrl-C, and whatever that starts would too.
HEEDING = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
Result = dict[str, Any]


def command(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("unimol2-hf")), *arguments]


def watched(arguments: list[str]) -> Result:
    """Seconds and memory, in MB, of a process and its workers."""
    start = time.monotonic()
    process = psutil.Popen(arguments, stdout=subprocess.DEVNULL)
    together = alone = 0.0
    while process.poll() is None:
        alone = max(alone, _peak_of(process.pid))
        together = max(together, sum(map(_proportional, [process, *_children(process)])))
        time.sleep(LOOK_SECONDS)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}")
    return {"seconds": time.monotonic() - start, "together_mb": together, "process_mb": alone}


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = process.children(recursive=True)
    except psutil.Error:
        found = []
    return found


def _proportional(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().pss) / 2**20
    except (psutil.Error, OSError):
        return 0.0


def _peak_of(process: int) -> float:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


def library(data: Path, work_dir: Path, rows: int) -> Path:
    """The first rows of QM9 and the shortest SMILES of the drug-like set, shuffled: small enough for one hour.

    The longest SMILES come first: however many rows follow, the largest batch is the same.
    """
    path = work_dir / f"library_{rows}.smi"
    small = pq.read_table(data / "qm9.parquet", columns=["smiles"])["smiles"].to_pylist()
    with gzip.open(data / "smiles_pretrain.smi.gz", "rt") as source:
        drug_like = sorted((line.split()[0] for line in source), key=len)
    smiles = [*small, *drug_like[: ROWS - len(small)]]
    random.Random(0).shuffle(smiles)
    longest = set(sorted(range(len(smiles)), key=lambda row: -len(smiles[row]))[:LONGEST])
    smiles = [smiles[row] for row in sorted(range(len(smiles)), key=lambda row: row not in longest)]
    path.write_text("".join(f"{each} {number:07d}\n" for number, each in enumerate(smiles[:rows])))
    return path


def model_of(data: Path, work_dir: Path) -> Path:
    """A frozen head on ESOL."""
    folder = work_dir / "model"
    if not (folder / "metrics.json").exists():
        options = ("--targets", "logSolubility", "--head", "frozen", "--output-dir", str(folder))
        subprocess.run(command("finetune", str(data / "esol.csv"), *options), check=True)
    return folder


def measure_predict(data: Path, work_dir: Path, rows: int) -> Result:
    model = model_of(data, work_dir)
    found: Result = {"conformers_and_model_apart": apart(model, library(data, work_dir, APART))}
    for count in (FEW, rows):
        output = work_dir / f"predicted_{count}.csv"
        for old in (output, output.with_suffix(".job")):
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        source = library(data, work_dir, count)
        told = watched(command("predict", str(model), str(source), "--output", str(output)))
        with output.open() as lines:
            written = sum(1 for _ in lines) - 1
        summary = json.loads((output.with_suffix(".job") / "summary.json").read_text())
        found[str(count)] = {**told, "rows_written": written, **summary, "rate": count / told["seconds"]}
        print(count, found[str(count)], flush=True)
    of_all, few, rates = found[str(rows)], found[str(FEW)], found["conformers_and_model_apart"]
    serial = 1 / (1 / rates["conformers"] + 1 / rates["model"])
    found["memory_ratio"] = of_all["together_mb"] / few["together_mb"]
    found["memory_ratio_of_the_process"] = of_all["process_mb"] / few["process_mb"]
    found["rate_over_serial"] = of_all["rate"] / serial
    return found


def apart(model: Path, source: Path) -> Result:
    """Molecules a second of the two halves of the job, in a process of their own."""
    script = f"""
import json, time
from pathlib import Path
from unimol2_hf.jobs.predict import predict_job
from unimol2_hf.jobs.settings import PredictSettings
from unimol2_hf.data.molecule_files import read_molecules
from unimol2_hf.worker_pool import worker_count
job = predict_job({str(model)!r}, Path({str(source)!r}), Path({str(source.with_name("apart"))!r}), PredictSettings())
start = time.monotonic()
made = list(job.make(read_molecules(Path({str(source)!r})), worker_count(None)))
conformers = len(made) / (time.monotonic() - start)
start = time.monotonic()
pairs = list(job._completed(made))
for _ in job.pipeline.run_pairs(pairs, 32):
    pass
print(json.dumps({{"conformers": conformers, "model": len(made) / (time.monotonic() - start)}}))
"""
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    found: Result = json.loads(told.stdout.splitlines()[-1])
    print(found, flush=True)
    return found


def measure_neighbours(work_dir: Path) -> Result:
    folder = work_dir / "vectors"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    generator = np.random.default_rng(0)
    kind = pa.list_(pa.float32(), WIDTH)
    for number, start in enumerate(range(0, VECTORS, VECTORS_A_SHARD)):
        rows = min(VECTORS_A_SHARD, VECTORS - start)
        flat = pa.array(generator.standard_normal(rows * WIDTH, dtype=np.float32))
        columns = {"row": np.arange(start, start + rows), "id": [f"{row:07d}" for row in range(start, start + rows)]}
        vectors = pa.FixedSizeListArray.from_arrays(flat, WIDTH)
        table = pa.table({**columns, "smiles": ["C"] * rows, "embedding": vectors.cast(kind)})
        pq.write_table(table, folder / f"part-{number:06d}.parquet", compression="zstd")
    queries = work_dir / "queries.npy"
    np.save(queries, generator.standard_normal((QUERIES, WIDTH), dtype=np.float32))
    ours = f"""
import time, resource, numpy as np
from pathlib import Path
from unimol2_hf.jobs.neighbours import nearest
queries = np.load({str(queries)!r})
start = time.monotonic()
found = nearest(Path({str(folder)!r}), queries, {TOP})
print(time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
np.save({str(work_dir / "ours.npy")!r}, found.similarities)
"""
    plain = f"""
import time, resource, numpy as np, pyarrow.parquet as pq
queries = np.load({str(queries)!r})
table = pq.read_table({str(folder)!r}, columns=["embedding"])["embedding"].combine_chunks()
vectors = table.flatten().to_numpy().reshape(-1, {WIDTH})
start = time.monotonic()
queries /= np.linalg.norm(queries, axis=1, keepdims=True)
similarities = queries @ vectors.T / np.linalg.norm(vectors, axis=1)
best = -np.sort(-np.partition(similarities, -{TOP}, axis=1)[:, -{TOP}:], axis=1)
print(time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
np.save({str(work_dir / "plain.npy")!r}, best)
"""
    runs: dict[str, list[tuple[float, float]]] = {"streamed": [], "plain product": []}
    for _ in range(3):
        for name, script in (("streamed", ours), ("plain product", plain)):
            told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
            seconds, memory = map(float, told.stdout.split())
            runs[name].append((seconds, memory))
            print(name, seconds, memory, flush=True)
    difference = np.abs(np.load(work_dir / "ours.npy") - np.load(work_dir / "plain.npy")).max()
    return {
        "largest_difference": float(difference),
        **{
            name: {"seconds": statistics.median(s for s, _ in each), "memory_mb": max(m for _, m in each)}
            for name, each in runs.items()
        },
    }


def measure_interrupt(data: Path, work_dir: Path) -> Result:
    """Seconds from Ctrl-C to the end, while conformers are made."""
    model, source = model_of(data, work_dir), library(data, work_dir, FEW)
    moments = random.Random(0)
    found: dict[str, list[float]] = {"predict": [], "embed": [], "conformers build": []}
    for number in range(INTERRUPTS):
        for name, seconds in found.items():
            output = work_dir / f"interrupted_{name.replace(' ', '_')}_{number}"
            shutil.rmtree(output, ignore_errors=True)
            given = ["--rows-per-shard", "64"]
            arguments = {
                "predict": ["predict", str(model), str(source), "--output", str(output)],
                "embed": ["embed", str(source), str(output)],
                "conformers build": ["conformers", "build", str(source), str(output)],
            }[name]
            process = subprocess.Popen(
                [sys.executable, "-c", HEEDING, *command(*arguments, *given)],
                start_new_session=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            while process.poll() is None and not list(output.glob("*/part-*.parquet")):
                time.sleep(0.05)
            time.sleep(moments.uniform(0, 2))
            os.killpg(process.pid, signal.SIGINT)
            start = time.monotonic()
            told, _ = process.communicate(timeout=120)
            if process.returncode != 130 or "interrupted" not in told:
                raise SystemExit(f"{name} ended with {process.returncode}: {told}")
            seconds.append(time.monotonic() - start)
            print(name, round(seconds[-1], 2), "s", flush=True)
    return {name: {"median": statistics.median(each), "most": max(each)} for name, each in found.items()}


def measure_cross_validation(data: Path, work_dir: Path) -> Result:
    """Seconds of five folds of ESOL with the frozen head, the first time and again, in processes of their own."""
    cache = work_dir / "cross_validation"
    shutil.rmtree(cache, ignore_errors=True)
    script = f"""
import time, pandas as pd
from sklearn.model_selection import GroupKFold, cross_val_score
from unimol2_hf import UniMol2Regressor, scaffold_groups
table = pd.read_csv({str(data / "esol.csv")!r})
start = time.monotonic()
model = UniMol2Regressor(head="frozen", conformer_cache={str(cache)!r})
groups = scaffold_groups(table["smiles"])
scores = cross_val_score(model, table["smiles"], table["logSolubility"], cv=GroupKFold(5), groups=groups)
print(time.monotonic() - start, scores.mean())
"""
    runs = []
    for _ in range(3):
        told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
        runs.append(list(map(float, told.stdout.split())))
        print("cross-validation", runs[-1], flush=True)
    return {"first": runs[0][0], "again": [run[0] for run in runs[1:]], "r2": runs[0][1]}


def as_markdown(results: Result) -> str:
    lines = [f"`python benchmarks/speed/screening.py --data DIR`, {results['machine']}.", ""]
    if "predict" in results:
        found = results["predict"]
        lines += [
            "| rows of `predict` | seconds | rows a second | memory with workers, MB | the process's own peak, MB |",
            "|---|---|---|---|---|",
        ]
        for count in (name for name in found if name.isdigit()):
            own = found[count]
            cells = f"{own['seconds']:.0f} | {own['rate']:.1f} | {own['together_mb']:.0f} | {own['process_mb']:.0f}"
            lines.append(f"| {int(count):,} ({own['rows_written']:,} written, {own['failed']} failed) | {cells} |")
        rates = found["conformers_and_model_apart"]
        lines += [
            "",
            f"Memory of all rows over that of {FEW:,}: {found['memory_ratio']:.3f} with workers, "
            f"{found['memory_ratio_of_the_process']:.3f} the process (bound 1.05).",
            f"Apart, on {APART:,} rows: conformers {rates['conformers']:.1f}/s, model {rates['model']:.1f}/s; the "
            f"job's rate over that of one after the other: {found['rate_over_serial']:.2f} (bound 0.95).",
            "",
        ]
    if "neighbours" in results:
        found = results["neighbours"]
        lines.append(
            f"{QUERIES} queries against {VECTORS:,} vectors of {WIDTH}, top {TOP} (medians of three, in turn; the "
            "plain product has all vectors in memory, reading them not timed): "
            + "; ".join(
                f"{name} {found[name]['seconds']:.1f} s, {found[name]['memory_mb']:.0f} MB"
                for name in ("streamed", "plain product")
            )
            + f". Largest difference {found['largest_difference']:.1e}; bound 1,000 MB."
        )
        lines.append("")
    if "interrupt" in results:
        told = ", ".join(
            f"{name} {own['median']:.1f} s (most {own['most']:.1f})" for name, own in results["interrupt"].items()
        )
        lines.append(f"From Ctrl-C to the end, {INTERRUPTS} times while conformers are made: {told}; bound 5 s.")
        lines.append("")
    if "cross_validation" in results:
        found = results["cross_validation"]
        lines.append(
            f"`cross_val_score` of a frozen `UniMol2Regressor` on ESOL, five folds by scaffold (R2 {found['r2']:.2f}): "
            f"{found['first']:.0f} s, conformers included; again {statistics.median(found['again']):.0f} s."
        )
    return "\n".join(lines).rstrip() + "\n"


def main(
    data: Annotated[Path, typer.Option(help="folder with the data files")],
    parts: Annotated[str, typer.Option(help="comma-separated")] = "predict,neighbours,interrupt,cross_validation",
    rows: Annotated[int, typer.Option(help="of the large library")] = ROWS,
    work_dir: Annotated[Path, typer.Option()] = Path("runs/screening"),
) -> None:
    """Run the parts; what the others found before stays."""
    work_dir.mkdir(parents=True, exist_ok=True)
    measures: dict[str, Callable[[], Result]] = {
        "predict": lambda: measure_predict(data, work_dir, rows),
        "neighbours": lambda: measure_neighbours(work_dir),
        "interrupt": lambda: measure_interrupt(data, work_dir),
        "cross_validation": lambda: measure_cross_validation(data, work_dir),
    }
    path = HERE / "screening.json"
    results: Result = json.loads(path.read_text()) if path.exists() else {}
    for part in parts.split(","):
        results |= {"machine": machine(os.cpu_count() or 1)["cpu"], part: measures[part]()}
        path.write_text(json.dumps(results, indent=1) + "\n")
        path.with_suffix(".md").write_text(as_markdown(results))


if __name__ == "__main__":
    typer.run(main)
