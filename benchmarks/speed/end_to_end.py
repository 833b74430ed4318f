#!/usr/bin/env python3
"""SMILES to Parquet beside conformer generation alone, on the same cores; then the same job killed 20 times.

    python benchmarks/speed/end_to_end.py --data DIR

"Alone" is a pool of processes that only runs RDKit's ETKDG and MMFF94 as the featurizer does. "embed" is the whole of
`unimol2-hf embed` with a small model of random weights, from opening the CSV to the last shard on disk.
"""

import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # as the command sets it

import pandas as pd
import torch
import typer
from harness import in_turn, machine, median, publish, seconds_of
from rdkit import Chem
from rich.console import Console

from unimol2_hf import ConformerSettings, UniMol2Config, UniMol2FeatureExtractor, UniMol2Model
from unimol2_hf.conformers import generate_conformers
from unimol2_hf.jobs.embed import embed
from unimol2_hf.jobs.settings import EmbedSettings

SMALL = "micro"  # 0.46 million parameters
KILL_ROWS_PER_SHARD = 100


def one_conformer(smiles: str) -> int:
    return len(generate_conformers(Chem.MolFromSmiles(smiles), ConformerSettings()))


def conformers_alone(smiles: list[str], workers: int) -> None:
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        for _ in pool.imap(one_conformer, smiles, chunksize=16):
            pass


def run_embed(source: Path, output: Path, model: Path, workers: int, rows_per_shard: int = 8192) -> None:
    settings = EmbedSettings(model=str(model), num_workers=workers, rows_per_shard=rows_per_shard)
    embed(source, output, settings, Console(quiet=True))


def killed_until_done(command: list[str], kills: int, seconds: float) -> int:
    """Start the job and kill it at random moments, `kills` times, then let it end; returns the kills that hit it."""
    moments = random.Random(0)
    hit = 0
    while hit < kills:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(moments.uniform(0.0, 1.2 * seconds / kills) + 5.0)
            return hit
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            hit += 1
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return hit


def main(
    data: Annotated[Path, typer.Option(help="folder with biogen_adme.csv")],
    count: Annotated[int, typer.Option()] = 2000,
    repeats: Annotated[int, typer.Option()] = 3,
    kills: Annotated[int, typer.Option()] = 20,
    workers: Annotated[int, typer.Option()] = 2,
) -> None:
    """Write end_to_end.json and .md beside this file."""
    folder = Path(tempfile.mkdtemp())
    source, model_dir = folder / "library.csv", folder / "model"
    table = pd.read_csv(data / "biogen_adme.csv")[["smiles"]].head(count)
    table.to_csv(source, index=False)
    torch.manual_seed(0)
    model = UniMol2Model(UniMol2Config.from_scale(SMALL))
    model.save_pretrained(model_dir)
    UniMol2FeatureExtractor().save_pretrained(model_dir)
    outputs = iter(range(1000))

    def embedded() -> float:
        return seconds_of(partial(run_embed, source, folder / f"out{next(outputs)}", model_dir, workers))

    times = in_turn(
        {"alone": lambda: seconds_of(partial(conformers_alone, table["smiles"].tolist(), workers)), "embed": embedded},
        repeats,
        warm_ups=0,
    )
    rates = {name: count / median(values) for name, values in times.items()}
    shares = [alone / whole for alone, whole in zip(times["alone"], times["embed"], strict=True)]
    killed = kill_test(source, model_dir, folder, workers, kills) if kills else {}
    row: dict[str, Any] = {
        "molecules": count,
        "parameters": sum(p.numel() for p in model.parameters()),
        "conformers alone, molecules/s": rates["alone"],
        "SMILES to Parquet, molecules/s": rates["embed"],
        "share (median of pairs)": median(shares),
        **killed,
    }
    notes = (
        f"{count} Biogen SMILES, {workers} workers (`python benchmarks/speed/end_to_end.py --data DIR`). Kills are -9 "
        f"of the main process at random moments, shards of {KILL_ROWS_PER_SHARD} rows."
    )
    report = {"machine": machine(torch.get_num_threads()), "seconds": times, "shares": shares}
    publish("end_to_end", report, [row], notes)
    shutil.rmtree(folder)


def kill_test(source: Path, model_dir: Path, folder: Path, workers: int, kills: int) -> dict[str, Any]:
    """Embed once unbroken and once with kills; compare the shards cell by cell."""
    command = [sys.executable, __file__, "--run", str(source), "OUT", str(model_dir), str(workers)]
    unbroken, broken = folder / "unbroken", folder / "broken"

    def of(output: Path) -> list[str]:
        return [str(output) if part == "OUT" else part for part in command]

    start = time.perf_counter()
    subprocess.run(of(unbroken), check=True, stdout=subprocess.DEVNULL)
    hit = killed_until_done(of(broken), kills, time.perf_counter() - start)
    frames = []
    for output in (unbroken, broken):
        names = sorted(path.name for path in (output / "embeddings").glob("part-*.parquet"))
        frames.append((names, [pd.read_parquet(output / "embeddings" / name) for name in names]))
    same = frames[0][0] == frames[1][0] and all(
        one.equals(other) for one, other in zip(frames[0][1], frames[1][1], strict=True)
    )
    rows = sum(len(frame) for frame in frames[1][1])
    return {"kills": hit, "rows after the kills": rows, "identical to the unbroken run": same}


if __name__ == "__main__":
    if "--run" in sys.argv:
        at = sys.argv.index("--run")
        source_, output_, model_, workers_ = sys.argv[at + 1 : at + 5]
        torch.set_num_threads(2)
        run_embed(Path(source_), Path(output_), Path(model_), int(workers_), KILL_ROWS_PER_SHARD)
        print(json.dumps({"done": True}))
    else:
        typer.run(main)
