"""`standardize`: what of a molecule is read; saved with the model, said for each row."""

from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from transformers import AutoFeatureExtractor

from unimol2_hf import UniMol2FeatureExtractor
from unimol2_hf.errors import SanitizationError
from unimol2_hf.molecules import remove_hydrogens, standardize_heavy_atoms

CASES = [
    ("CC(=O)[O-].[Na+]", "CC(=O)[O-]", "CC(=O)O"),
    ("C[NH3+].[Cl-]", "C[NH3+]", "CN"),
    ("[NH3+]CC([O-])=O", None, "NCC(=O)O"),
    ("C[N+](C)(C)CC(=O)[O-]", None, None),  # a zwitterion that has no neutral form
    ("C[N+](=O)[O-]", None, None),
    ("CC[Hg]Br.c1ccccc1O", "Oc1ccccc1", None),
    ("CCO", None, None),
]


@pytest.mark.parametrize(("written", "largest", "parent"), CASES[:5] + CASES[6:])
def test_what_is_read(written: str, largest: str | None, parent: str | None) -> None:
    for how, expected in (("none", None), ("largest-fragment", largest), ("parent", parent)):
        made = next(UniMol2FeatureExtractor(standardize=how).featurize([written]))
        assert made.standardized_smiles == expected
        assert made.provenance()[0]["standardized_smiles"] == expected
        read = next(UniMol2FeatureExtractor().featurize([expected or written]))
        assert made.num_heavy_atoms == read.num_heavy_atoms
        assert sorted(made.features["input_ids"]) == sorted(read.features["input_ids"])  # type: ignore[index]


def test_it_is_saved_and_applied_again(tmp_path: Path) -> None:
    UniMol2FeatureExtractor(standardize="parent").save_pretrained(tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert next(loaded.featurize(["CC(=O)[O-].[Na+]"])).standardized_smiles == "CC(=O)O"


def test_twice_is_once() -> None:
    for written, _, _ in CASES:
        heavy = remove_hydrogens(Chem.MolFromSmiles(written))
        for how in ("largest-fragment", "parent"):
            once = standardize_heavy_atoms(heavy, how)  # type: ignore[arg-type]
            twice = standardize_heavy_atoms(once, how)  # type: ignore[arg-type]
            assert Chem.MolToSmiles(once) == Chem.MolToSmiles(twice)


@pytest.mark.parametrize("how", ["largest-fragment", "parent"])
def test_own_coordinates_stay_with_their_atoms(how: str) -> None:
    molecule = Chem.AddHs(Chem.MolFromSmiles("[Na+].CC(=O)[O-]"))
    rdDistGeom.EmbedMolecule(molecule, randomSeed=1)
    positions = molecule.GetConformer().GetPositions()[1:5]
    made = next(UniMol2FeatureExtractor(standardize=how).featurize([molecule]))
    assert made.conformers[0].provenance.method == "given"
    np.testing.assert_allclose(made.conformers[0].coordinates, positions - positions.mean(0), atol=1e-5)


def test_what_rdkit_cannot_standardise_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from unimol2_hf import molecules

    def fails(_: Chem.Mol) -> Chem.Mol:
        raise RuntimeError("no parent")

    monkeypatch.setitem(molecules._STANDARDIZERS, "parent", fails)  # type: ignore[arg-type]
    made = next(UniMol2FeatureExtractor(standardize="parent").featurize(["CCO"]))
    assert isinstance(made.error, SanitizationError)
    assert "RDKit finds no parent (no parent)" in made.error.reason
