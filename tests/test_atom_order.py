"""The same answer however a molecule is written."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import MIXED_SMILES
from rdkit import Chem

from unimol2_hf import NANO, FeaturizedMolecule, UniMol2FeatureExtractor, UniMol2Model
from unimol2_hf.feature_extraction_unimol2 import PAIRWISE_INPUT_NAMES
from unimol2_hf.ops_unimol2 import mean_of_atoms

pytestmark = pytest.mark.numerical

DRUGS = Path(__file__).parents[1] / "examples" / "drugs.csv"
# Isotopes, salts, ions, stereo at atoms and bonds.
HARD = [
    "[13CH3][C@H](N)C(=O)O",
    "[2H]OC([2H])([2H])C",
    "CC(=O)[O-].[Na+]",
    "[NH4+].[Cl-].O",
    "C[N+](C)(C)CC([O-])=O.Cl",
    "F/C=C\\C=C/Cl",
    "C[C@@H]1CC[C@H](C)CC1",
    "O=C1N[C@@H](Cc2ccccc2)C(=O)N[C@H]1C",
    "C[S@](=O)c1ccccc1",
    "OC[C@H]1O[C@@H](O)[C@H](O)[C@@H](O)[C@@H]1O",
]


def molecules() -> list[str]:
    """More than 450: drugs, mixed ones and hard ones."""
    return [*HARD, *MIXED_SMILES, *pd.read_csv(DRUGS)["smiles"]]


def written_anew(smiles: str) -> str:
    """The same molecule from another atom on, branches in another order."""
    return str(Chem.MolToSmiles(Chem.MolFromSmiles(smiles), doRandom=True))


def positions(one: str, other: str) -> np.ndarray:
    """Index in `one` of each heavy atom of `other`, both as written."""
    orders = []
    for smiles in (one, other):
        heavy = Chem.RemoveAllHs(Chem.MolFromSmiles(smiles))
        Chem.MolToSmiles(heavy)
        orders.append(np.array(heavy.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"]))
    return orders[0][np.argsort(orders[1])]


def assert_same_atoms(one: FeaturizedMolecule, other: FeaturizedMolecule, places: np.ndarray) -> None:
    assert one.features is not None
    assert other.features is not None
    for name, values in one.features.items():
        expected = values[np.ix_(places, places)] if name in PAIRWISE_INPUT_NAMES else values[places]
        np.testing.assert_array_equal(other.features[name], expected, err_msg=name)
    for ours, theirs in zip(one.conformers, other.conformers, strict=True):
        np.testing.assert_array_equal(theirs.coordinates, ours.coordinates[places])


@pytest.fixture(autouse=True)
def _same_writings() -> None:
    Chem.rdBase.SeedRandomNumberGenerator(7)


def test_features_and_coordinates_follow_the_atoms() -> None:
    """Of a drawing, which is as much a matter of order as an embedded conformer, and cheap."""
    extractor = UniMol2FeatureExtractor(num_conformers=0, include_2d=True)
    for smiles in molecules():
        other = written_anew(smiles)
        first, second = extractor.featurize([smiles, other])
        assert_same_atoms(first, second, positions(smiles, other))


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_vectors_are_the_same(count: int) -> None:
    """Worst relative change of CLS and mean of atoms below 1e-4; 3D conformers."""
    extractor, model = UniMol2FeatureExtractor(), UniMol2Model.from_pretrained(NANO).eval()
    for smiles in molecules()[:count]:
        both = []
        for each in (smiles, written_anew(smiles)):
            batch = extractor(each)
            with torch.no_grad():
                output = model(**batch)
            mean = mean_of_atoms(output.last_hidden_state, batch["attention_mask"])
            both.append(torch.cat((output.pooler_output, mean)))
        change = (both[0] - both[1]).norm(dim=-1) / both[0].norm(dim=-1)
        assert change.max() < 1e-4, smiles


def test_as_written_is_the_order_of_the_text() -> None:
    """ETKDG starts from the order of the atoms: two ways of writing, two conformers."""
    extractor = UniMol2FeatureExtractor(atom_order="as_written")
    first, second = (
        extractor(each)["coordinates"][0] for each in ("CC(C)Cc1ccc(C(C)C(=O)O)cc1", "OC(=O)C(C)c1ccc(CC(C)C)cc1")
    )
    distances = [np.sort(torch.cdist(each, each).numpy().ravel()) for each in (first, second)]
    assert np.abs(distances[0] - distances[1]).max() > 0.01


def test_given_coordinates_stay_with_their_atoms() -> None:
    coordinates = np.arange(9.0).reshape(3, 3) ** 1.5
    (made,) = UniMol2FeatureExtractor().featurize([{"smiles": "OCC", "coordinates": coordinates}])
    assert made.features is not None
    assert made.features["input_ids"].tolist() == [8, 6, 6]
    np.testing.assert_allclose(made.conformers[0].coordinates, coordinates - coordinates.mean(0), atol=1e-5)


def test_a_crop_keeps_the_same_atoms() -> None:
    extractor = UniMol2FeatureExtractor(max_atoms=8, max_atoms_policy="crop", num_conformers=0, include_2d=True)
    for smiles in molecules()[:60]:
        first, second = extractor.featurize([smiles, written_anew(smiles)])
        sums = [sorted(map(tuple, each.features["atom_features"].tolist())) for each in (first, second)]  # type: ignore[index]
        assert sums[0] == sums[1]


def test_folders_of_earlier_versions_say_what_they_said(tmp_path: Path) -> None:
    UniMol2FeatureExtractor().save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    content = json.loads(path.read_text())
    assert content.pop("atom_order") == "canonical"
    assert UniMol2FeatureExtractor.from_pretrained(tmp_path).atom_order == "canonical"
    path.write_text(json.dumps(content))
    assert UniMol2FeatureExtractor.from_pretrained(tmp_path).atom_order == "as_written"
