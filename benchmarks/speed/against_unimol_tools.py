#!/usr/bin/env python3
"""Embedding throughput at 84M beside unimol_tools 0.1.6: same random weights, molecules, conformers, batch and threads.

    python3 -m venv PEER && PEER/bin/pip install torch==2.13.0 "numpy<2.3" && PEER/bin/pip install unimol_tools==0.1.6
    python benchmarks/speed/against_unimol_tools.py --data DIR --peer-python PEER/bin/python

Runs alternate, one process each; the ratio is of medians. Conformers are made once, before any clock starts.
"""

import json
import pickle
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from rdkit import Chem
from rdkit.Chem import rdDistGeom

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "conversion"))

from convert_unimol2_to_hf import key_plan  # noqa: E402 - conversion/ is no package

from unimol2_hf import UniMol2Config, UniMol2ForPreTraining  # noqa: E402


def write_weights(folder: Path) -> None:
    """Random 84M weights, once for each package."""
    if (folder / "checkpoint.pt").exists():
        return
    torch.manual_seed(0)
    model = UniMol2ForPreTraining(UniMol2Config.from_scale("84m"))
    model.unimol2.save_pretrained(folder / "hf")
    plan = key_plan(model.config.num_hidden_layers)
    shapes = {name: shape for target, names in plan.sources.items() for name, shape in _shapes(model, target, names)}
    weights = plan.split(dict(model.state_dict()), shapes)
    weights["se3_invariant_kernel.gaussian.mean"] = torch.linspace(0, 9, 128)
    torch.save({"model": {name: tensor.clone() for name, tensor in weights.items()}}, folder / "checkpoint.pt")


def _shapes(model: UniMol2ForPreTraining, target: str, names: tuple[str, ...]) -> list[tuple[str, torch.Size]]:
    """First-axis sizes of the reference tensors that one tensor here is stacked of."""
    rows = model.state_dict()[target].shape[0]
    if len(names) == 1 or target.endswith("qkv_proj.weight"):
        sizes = [rows // len(names)] * len(names)
    else:
        inner = 2 * model.config.pair_inner_size
        sizes = [inner, inner, rows - 2 * inner]
    return [(name, torch.Size([size])) for name, size in zip(names, sizes, strict=True)]


def write_molecules(table: Path, count: int, path: Path) -> None:
    """The first molecules of a table with one ETKDG conformer each, hydrogens removed."""
    binaries: list[bytes] = []
    for smiles in pd.read_csv(table)["smiles"]:
        molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
        if rdDistGeom.EmbedMolecule(molecule, randomSeed=42) == 0:
            binaries.append(Chem.RemoveAllHs(molecule).ToBinary())
        if len(binaries) == count:
            break
    path.write_bytes(pickle.dumps(binaries))


def run(python: str, worker: str, *arguments: object) -> dict[str, Any]:
    command = [python, str(HERE / worker), *map(str, arguments)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    result: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return result


def main(
    data: Annotated[Path, typer.Option(help="folder with biogen_adme.csv")],
    peer_python: Annotated[str, typer.Option(help="python of an environment with unimol_tools 0.1.6")],
    count: Annotated[int, typer.Option()] = 1000,
    batch_size: Annotated[int, typer.Option()] = 32,
    threads: Annotated[int, typer.Option()] = 2,
    repeats: Annotated[int, typer.Option()] = 3,
    work_dir: Annotated[Path, typer.Option()] = Path("runs/speed"),
) -> None:
    """Alternate runs of both packages and write against_unimol_tools.json beside this file."""
    work_dir.mkdir(parents=True, exist_ok=True)
    write_weights(work_dir)
    molecules = work_dir / f"molecules_{count}.pkl"
    write_molecules(data / "biogen_adme.csv", count, molecules)
    own, peer = [], []
    for _ in range(repeats):
        own.append(run(sys.executable, "own_worker.py", work_dir / "hf", molecules, batch_size, threads))
        peer.append(run(peer_python, "peer_worker.py", work_dir / "checkpoint.pt", molecules, batch_size, threads))
    rates = {
        name: [entry["molecules"] / entry["seconds"] for entry in runs]
        for name, runs in (("unimol2_hf", own), ("unimol_tools", peer))
    }
    medians = {name: statistics.median(values) for name, values in rates.items()}
    report = {
        "molecules": count,
        "batch_size": batch_size,
        "threads": threads,
        "torch": torch.__version__,
        "molecules_per_second": rates,
        "medians": medians,
        "ratio": medians["unimol2_hf"] / medians["unimol_tools"],
    }
    (HERE / "against_unimol_tools.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    typer.run(main)
