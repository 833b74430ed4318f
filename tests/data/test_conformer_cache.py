"""What comes from the cache is, to the bit, what would have been made; and nothing else comes from it."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from unimol2_hf import UniMol2FeatureExtractor, conformers, feature_extraction_unimol2
from unimol2_hf.data import cache_folder
from unimol2_hf.data.conformer_cache import cache_for, featurize_cached
from unimol2_hf.data.molecule_files import read_molecules
from unimol2_hf.errors import LibraryError
from unimol2_hf.feature_extraction_unimol2 import FeaturizedMolecule

MOLECULES = ["OCC(N)C", "c1ccccc1C(=O)[O-].[Na+]", "C1CC", "F[C@H](Cl)C", "CCO"]


def featurized(
    extractor: UniMol2FeatureExtractor, root: Path, molecules: Any, **options: Any
) -> list[FeaturizedMolecule]:
    overrides = {name: value for name, value in options.items() if name != "num_workers"}
    cache = cache_for(extractor, str(root), overrides)
    return [made for _, made in featurize_cached(extractor, enumerate(molecules), cache, **options)]


def assert_same(ours: list[FeaturizedMolecule], theirs: list[FeaturizedMolecule]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert (one.error is None) == (other.error is None)
        if one.features is None or other.features is None:
            continue
        for name, values in one.features.items():
            np.testing.assert_array_equal(values, other.features[name])
        assert one.provenance() == other.provenance()
        for conformer, its in zip(one.conformers, other.conformers, strict=True):
            np.testing.assert_array_equal(conformer.coordinates, its.coordinates)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """SMILES of the molecules of which conformers are made."""
    made: list[str] = []

    def counted(heavy: Chem.Mol, settings: Any) -> Any:
        made.append(str(Chem.MolToSmiles(heavy)))
        return conformers.generate_conformers(heavy, settings)

    monkeypatch.setattr(feature_extraction_unimol2, "generate_conformers", counted)
    return made


def test_the_second_time_nothing_is_made(tmp_path: Path, calls: list[str]) -> None:
    extractor = UniMol2FeatureExtractor(num_conformers=2, include_2d=True)
    plain = list(extractor.featurize(MOLECULES))
    cold = featurized(extractor, tmp_path, MOLECULES)
    assert len(calls) == 8  # the unreadable one never comes so far
    warm = featurized(extractor, tmp_path, MOLECULES)
    assert len(calls) == 8
    assert_same(cold, plain)
    assert_same(warm, plain)


def test_however_a_molecule_is_written(tmp_path: Path, calls: list[str]) -> None:
    extractor = UniMol2FeatureExtractor()
    featurized(extractor, tmp_path, MOLECULES)
    calls.clear()
    other = ["CC(N)CO", "[Na+].[O-]C(=O)c1ccccc1", "C1CC", "C[C@H](F)Cl", "[CH3:2][CH2:1][OH]"]
    made = featurized(extractor, tmp_path, other)
    assert not calls
    assert_same(made, list(extractor.featurize(other)))


def test_with_workers_and_duplicates(tmp_path: Path) -> None:
    extractor = UniMol2FeatureExtractor()
    molecules = MOLECULES * 3
    plain = list(extractor.featurize(molecules))
    for _ in range(2):
        assert_same(featurized(extractor, tmp_path, molecules, num_workers=2), plain)
    assert len(cache_for(extractor, str(tmp_path)) or ()) == 4


@pytest.mark.parametrize("change", [{"num_conformers": 2}, {"seed": 7}, {"force_field": "none"}, {"num_retries": 1}])
def test_other_settings_have_their_own(tmp_path: Path, calls: list[str], change: dict[str, Any]) -> None:
    extractor = UniMol2FeatureExtractor()
    featurized(extractor, tmp_path, MOLECULES)
    calls.clear()
    featurized(extractor, tmp_path, MOLECULES, **change)
    assert len(calls) == 4


def test_another_ladder_has_its_own(tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    featurized(UniMol2FeatureExtractor(), tmp_path, MOLECULES)
    calls.clear()
    monkeypatch.setattr(conformers, "LADDER_VERSION", 99)
    featurized(UniMol2FeatureExtractor(), tmp_path, MOLECULES)
    assert len(calls) == 4


def test_what_does_not_decide_conformers_shares_them(tmp_path: Path, calls: list[str]) -> None:
    featurized(UniMol2FeatureExtractor(), tmp_path, MOLECULES)
    calls.clear()
    featurized(UniMol2FeatureExtractor(max_atoms=60, use_graph_features=False), tmp_path, MOLECULES)
    assert not calls
    # The parent of the salt is another molecule.
    featurized(UniMol2FeatureExtractor(standardize="parent"), tmp_path, MOLECULES)
    assert calls == ["O=C(O)c1ccccc1"]


def test_given_coordinates_and_crops_are_not_kept(tmp_path: Path) -> None:
    molecule = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    rdDistGeom.EmbedMolecule(molecule, randomSeed=5)
    extractor = UniMol2FeatureExtractor(max_atoms=4, max_atoms_policy="crop")
    arrays = {"atomic_numbers": [6, 8], "coordinates": [[0.0, 0, 0], [1.2, 0, 0]]}
    molecules: Any = [molecule, "CCCCCCN", arrays]
    for _ in range(2):
        assert_same(featurized(extractor, tmp_path, molecules), list(extractor.featurize(molecules)))
    assert not list(tmp_path.glob("*/*.parquet"))


def test_as_written_or_none_is_not_cached(tmp_path: Path) -> None:
    assert cache_for(UniMol2FeatureExtractor(atom_order="as_written"), str(tmp_path)) is None
    assert cache_for(UniMol2FeatureExtractor(), "none") is None


def test_it_is_a_library(tmp_path: Path) -> None:
    extractor = UniMol2FeatureExtractor()
    made = featurized(extractor, tmp_path, MOLECULES)
    (folder,) = tmp_path.iterdir()
    rows = {row.smiles: row for row in read_molecules(folder)}
    assert set(rows) == {"CC(N)CO", "O=C([O-])c1ccccc1.[Na+]", "C[C@H](F)Cl", "CCO"}
    read = next(extractor.featurize([rows["CCO"].molecule]))
    assert np.abs(read.conformers[0].coordinates - made[4].conformers[0].coordinates).max() < 1e-6


def test_a_kill_costs_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was made is on disk after so many molecules, and where the reader stops."""
    monkeypatch.setattr(cache_folder, "_ROWS_PER_FILE", 2)
    extractor = UniMol2FeatureExtractor()
    cache = cache_for(extractor, str(tmp_path))
    stream: Any = featurize_cached(extractor, enumerate(MOLECULES), cache)
    for _ in range(3):
        next(stream)
    assert sum(pq.read_metadata(path).num_rows for path in tmp_path.glob("*/*.parquet")) == 2
    stream.close()
    assert len(cache_for(extractor, str(tmp_path)) or ()) >= 2


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    extractor = UniMol2FeatureExtractor()
    featurized(extractor, tmp_path, MOLECULES)
    (path,) = tmp_path.glob("*/*.parquet")
    path.write_bytes(b"x" * 100)
    with pytest.raises(LibraryError, match=r"of the cache of conformers, is damaged .* delete it"):
        cache_for(extractor, str(tmp_path))
