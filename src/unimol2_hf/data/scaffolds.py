"""Bemis-Murcko scaffolds."""

from rdkit import Chem
from rdkit.Chem.Scaffolds import MurckoScaffold


def murcko_scaffold(molecule: Chem.Mol) -> str:
    """Bemis-Murcko scaffold as SMILES; "" for a molecule without rings."""
    return str(MurckoScaffold.MurckoScaffoldSmiles(mol=molecule))
