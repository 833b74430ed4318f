"""The same molecules, conformers and random 84M weights for both packages."""

import pickle
import sys
from pathlib import Path

import pandas as pd
import torch
from rdkit import Chem
from rdkit.Chem import rdDistGeom

sys.path.insert(0, str(Path(__file__).parents[2] / "conversion"))

from unimol2_hf import UniMol2Config, UniMol2ForPreTraining
from unimol2_hf.hub.convert import key_plan


def write_weights(folder: Path) -> None:
    """Random 84M weights, once for each package: `hf/` and `checkpoint.pt`."""
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
    if path.exists():
        return
    binaries: list[bytes] = []
    for smiles in pd.read_csv(table)["smiles"]:
        molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
        if rdDistGeom.EmbedMolecule(molecule, randomSeed=42) == 0:
            binaries.append(Chem.RemoveAllHs(molecule).ToBinary())
        if len(binaries) == count:
            break
    path.write_bytes(pickle.dumps(binaries))
