"""Fingerprints beside a model: RDKit's own similarities, whole files, and no answer where there is none."""

from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator

from unimol2_hf.errors import EmptyMoleculeError, ModelError
from unimol2_hf.fingerprints import (
    FINGERPRINTS_FILE,
    BitArray,
    load_fingerprints,
    morgan_bits,
    nearest_similarity,
    save_fingerprints,
)

SMILES = (Path(__file__).parent / "files" / "mixed_64.smi").read_text().split()


def bits_of(smiles: list[str]) -> BitArray:
    return np.stack([morgan_bits(Chem.MolFromSmiles(each)) for each in smiles])


def test_similarities_are_rdkits() -> None:
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    fingerprints = [generator.GetFingerprint(Chem.RemoveAllHs(Chem.MolFromSmiles(each))) for each in SMILES]
    queries, training = fingerprints[:24], fingerprints[24:]
    expected = [max(DataStructs.BulkTanimotoSimilarity(query, training)) for query in queries]
    nearest = nearest_similarity(bits_of(SMILES[:24]), bits_of(SMILES[24:]))
    assert nearest.dtype == np.float32
    np.testing.assert_array_equal(nearest, np.array(expected, dtype=np.float32))


def test_hydrogens_do_not_count() -> None:
    molecule = Chem.MolFromSmiles("CC(=O)Nc1ccccc1")
    np.testing.assert_array_equal(morgan_bits(Chem.AddHs(molecule)), morgan_bits(molecule))


def test_a_molecule_of_the_training_set_is_at_one() -> None:
    bits = bits_of(SMILES)
    np.testing.assert_array_equal(nearest_similarity(bits, bits), np.ones(len(bits), dtype=np.float32))


def test_no_fingerprint_no_similarity() -> None:
    bits = bits_of(["CCO", "CCN"])
    queries = np.stack([bits[0], morgan_bits(None)])
    np.testing.assert_array_equal(nearest_similarity(queries, bits), np.array([1.0, np.nan], dtype=np.float32))
    assert np.isnan(nearest_similarity(bits, bits[:0])).all()
    # Nor does a training molecule without one come near anything.
    assert nearest_similarity(bits[:1], queries[1:]) == 0


def test_no_heavy_atom() -> None:
    with pytest.raises(EmptyMoleculeError):
        morgan_bits(Chem.MolFromSmiles("[H][H]"))


def test_saved_and_loaded(tmp_path: Path) -> None:
    bits = bits_of(SMILES)
    save_fingerprints(tmp_path, bits[::2])
    save_fingerprints(tmp_path, bits)
    loaded = load_fingerprints(tmp_path)
    assert loaded is not None
    np.testing.assert_array_equal(loaded, bits)
    assert [path.name for path in tmp_path.iterdir()] == [FINGERPRINTS_FILE]


def test_a_model_without_fingerprints(tmp_path: Path) -> None:
    assert load_fingerprints(tmp_path) is None
    assert load_fingerprints("someone/a-model-that-is-not-cached", cache_dir=tmp_path) is None


def test_of_a_cached_hub_repository(tmp_path: Path) -> None:
    repository = tmp_path / "models--someone--a-model"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    bits = bits_of(SMILES[:3])
    save_fingerprints(snapshot, bits)
    loaded = load_fingerprints("someone/a-model", cache_dir=tmp_path, local_files_only=True)
    assert loaded is not None
    np.testing.assert_array_equal(loaded, bits)


def test_a_damaged_file(tmp_path: Path) -> None:
    save_fingerprints(tmp_path, bits_of(SMILES))
    path = tmp_path / FINGERPRINTS_FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"is damaged: .*fit the model again"):
        load_fingerprints(tmp_path)
    save_fingerprints(tmp_path, np.zeros((2, 128), dtype=np.uint8))
    with pytest.raises(ModelError, match=r"uint8 of shape \(2, 128\)"):
        load_fingerprints(tmp_path)
