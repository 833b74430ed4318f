"""Vectors that were made once are, to the bit, those that were made; and come for nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rdkit import Chem

from unimol2_hf import UniMol2Config, UniMol2Model
from unimol2_hf.data.vector_cache import VectorCache, vector_cache_for
from unimol2_hf.models.loading import encoder_fingerprint

pytestmark = pytest.mark.numerical

ABOUT = {"encoder": "a", "pooling": "cls"}


def test_the_next_run_finds_them(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    vectors[0, 0] = np.nan
    first = VectorCache(tmp_path, ABOUT)
    assert first.look_up("CCO") is None
    first.add("CCO", vectors)
    first.write()
    second = VectorCache(tmp_path, ABOUT)
    found = second.look_up("CCO")
    assert found is not None
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, vectors)


def test_nothing_else_finds_them(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path, ABOUT)
    cache.add("CCO", np.ones((1, 2)))
    cache.write()
    # The same molecule in another order of atoms may differ in the last bit.
    assert cache.look_up("OCC") is None
    assert VectorCache(tmp_path, {**ABOUT, "pooling": "mean"}).look_up("CCO") is None
    assert vector_cache_for("none", ABOUT) is None


def test_only_texts_are_kept(tmp_path: Path) -> None:
    """A molecule or arrays may have coordinates of their own; a failed one has no vectors."""
    cache = VectorCache(tmp_path, ABOUT)
    molecules: Any = [Chem.MolFromSmiles("CCO"), {"smiles": "CCO", "coordinates": np.zeros((3, 3))}]
    for molecule in molecules:
        cache.add(molecule, np.ones((1, 2)))
        assert cache.look_up(molecule) is None
    cache.add("CCN", np.empty((0, 2)))
    cache.write()
    assert len(cache) == 0


def test_an_encoder_is_its_weights_and_what_they_do_not_tell() -> None:
    config = UniMol2Config.from_scale("micro")
    model = UniMol2Model(config)
    before = encoder_fingerprint(model)
    config.set_targets([{"name": "other", "kind": "regression"}])
    assert encoder_fingerprint(model) == before
    config.layer_norm_eps = 1e-3
    assert encoder_fingerprint(model) != before
    config.layer_norm_eps = 1e-5
    next(iter(model.parameters())).data.view(-1)[0] += 1
    assert encoder_fingerprint(model) != before
