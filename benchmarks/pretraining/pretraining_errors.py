#!/usr/bin/env python3
"""A pretrained model's own task: masked elements and noised coordinates, beside what needs no model.

    python benchmarks/pretraining/pretraining_errors.py --config recipes/nano/first_edition/nano.yaml

On the run's held-out molecules with their fixed noise. "bonds" is a table: the element seen most often, among molecules
that are not held out, with an atom's bonds (how many single, double, triple, aromatic); it knows the graph of every
molecule, which the model is shown for half of them.
"""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rdkit import Chem
from report import write_report

from unimol2_hf import UniMol2ForPreTraining
from unimol2_hf.cli.options import read_settings
from unimol2_hf.data.conformer_library import ConformerLibrary
from unimol2_hf.pretraining.collator import DRAW, DataCollatorForUniMol2Pretraining
from unimol2_hf.pretraining.losses import validation_metrics, validation_sums
from unimol2_hf.pretraining.pretrain import VALIDATION_SEED, make_data
from unimol2_hf.pretraining.settings import PretrainSettings
from unimol2_hf.pretraining.stream import Share
from unimol2_hf.pretraining.trainer import held_out_rows

CARBON = 6
BOND_TYPES = (Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE, Chem.BondType.AROMATIC)
Bonds = tuple[int, ...]


def bonds_of(smiles: str) -> list[Bonds]:
    """How many bonds of each type every heavy atom has to heavy atoms."""
    molecule = Chem.RemoveAllHs(Chem.MolFromSmiles(smiles))
    kinds = [[bond.GetBondType() for bond in atom.GetBonds()] for atom in molecule.GetAtoms()]
    return [tuple(each.count(kind) for kind in BOND_TYPES) for each in kinds]


def table_of(rows: list[dict[str, Any]]) -> dict[Bonds, int]:
    """The most frequent element for each pattern of bonds."""
    counts: defaultdict[Bonds, Counter[int]] = defaultdict(Counter)
    for row in rows:
        for bonds, element in zip(bonds_of(row["smiles"]), row["atomic_numbers"], strict=True):
            counts[bonds][int(element)] += 1
    return {bonds: seen.most_common(1)[0][0] for bonds, seen in counts.items()}


def main(
    config: Annotated[Path, typer.Option(help="the run's YAML file")],
    molecules: Annotated[int, typer.Option(help="from which the table of bonds is made")] = 20_000,
) -> None:
    """Write pretraining_errors.json and .md beside this file."""
    settings = read_settings(PretrainSettings, config)
    model = UniMol2ForPreTraining.from_pretrained(Path(settings.output_dir) / "model").eval()
    index, plan, _, batches = make_data(settings, Share())
    found = validation_metrics(validation_sums(model, batches))
    shards = ConformerLibrary(settings.data, settings.open_shards + 1)

    def row(number: int) -> dict[str, Any]:
        where = np.array([number])
        return {**shards.row(int(plan.shard_of(where)[0]), int(plan.place_in_shard(where)[0])), DRAW: number}

    held_out = held_out_rows(len(index), settings.validation_molecules)
    others = np.setdiff1d(np.random.default_rng(1).permutation(len(index))[: molecules + len(held_out)], held_out)
    table = table_of([row(int(number)) for number in np.sort(others)[:molecules]])
    collator = DataCollatorForUniMol2Pretraining(noise=settings.noise_settings(), seed=VALIDATION_SEED)
    right: Counter[str] = Counter()
    for number in held_out:
        held = row(int(number))
        labels = collator.sample(held)[2]
        bonds = bonds_of(held["smiles"])
        for place in np.flatnonzero(labels >= 0):
            right["masked"] += 1
            right["carbon"] += labels[place] == CARBON
            right["bonds"] += labels[place] == table.get(bonds[place], CARBON)
    report = {
        "held_out_molecules": len(held_out),
        "masked_atoms": right["masked"],
        "token_accuracy": found["token_accuracy"],
        "always_carbon_accuracy": right["carbon"] / right["masked"],
        "bonds_table_accuracy": right["bonds"] / right["masked"],
        "coordinate_rmse_angstrom": found["coordinate_rmse"],
        "noise_rmse_angstrom": found["noise_rmse"],
        "token_loss": found["token_loss"],
        "coordinate_loss": found["coordinate_loss"],
        "distance_loss": found["distance_loss"],
    }
    write_report("pretraining_errors", "held-out molecules, fixed noise", report)


if __name__ == "__main__":
    typer.run(main)
