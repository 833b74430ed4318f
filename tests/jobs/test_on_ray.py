"""The embedding job on a local Ray cluster of two workers: the same rows as without Ray."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import MIXED_SMILES
from rdkit import Chem
from rich.console import Console

from unimol2_hf import MoleculeError, UniMol2Error, UniMol2FeatureExtractor, UniMol2ForPreTraining
from unimol2_hf.conformers import ConformerProvenance
from unimol2_hf.data.molecule_rows import MoleculeRow
from unimol2_hf.data.shards import whole_or_absent
from unimol2_hf.jobs.embed import embed
from unimol2_hf.jobs.on_ray import (
    STAGED_SCHEMA,
    _FeaturizeShards,
    _staged_record,
    embed_with_ray,
    read_staged,
)
from unimol2_hf.jobs.settings import EmbedSettings, RaySettings

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def two_workers() -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def settings(
    tmp_path: Path, pretraining_model: UniMol2ForPreTraining, extractor: UniMol2FeatureExtractor
) -> EmbedSettings:
    pretraining_model.unimol2.save_pretrained(tmp_path / "model")
    extractor.save_pretrained(tmp_path / "model")
    return EmbedSettings(model=str(tmp_path / "model"), rows_per_shard=6, keep_conformers=True, num_workers=0)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "library.smi"
    path.write_text("\n".join([*MIXED_SMILES[:14], "C1CC", "", "CCO"]) + "\n")
    return path


def test_same_rows_as_without_ray(tmp_path: Path, two_workers: None, settings: EmbedSettings, library: Path) -> None:
    quiet = Console(quiet=True)
    plain = embed(library, tmp_path / "plain", settings, quiet)
    # One shard lost: the job goes on with that one.
    clustered = embed_with_ray(library, tmp_path / "ray", settings, RaySettings(), quiet)
    (tmp_path / "ray" / "embeddings" / "part-000001.parquet").unlink()
    resumed = embed_with_ray(library, tmp_path / "ray", settings, RaySettings(), quiet)
    assert plain == clustered == resumed
    assert plain.failed == 2
    for kind in ("embeddings", "conformers"):
        expected, actual = (pd.read_parquet(tmp_path / name / kind) for name in ("plain", "ray"))
        pd.testing.assert_frame_equal(actual, expected, rtol=1e-5, atol=1e-6)
    assert not (tmp_path / "ray" / "staged").exists()


def test_more_models_than_cores_are_refused(
    tmp_path: Path, two_workers: None, settings: EmbedSettings, library: Path
) -> None:
    with pytest.raises(UniMol2Error, match="2 models on 2 cores leave none"):
        embed_with_ray(library, tmp_path / "out", settings, RaySettings(num_models=2), Console(quiet=True))


def test_staged_rows_come_back_as_they_were(tmp_path: Path, extractor: UniMol2FeatureExtractor) -> None:
    conformer = next(extractor.featurize("CCO")).conformers[0]
    molecule = Chem.MolFromMolBlock(Chem.MolToMolBlock(Chem.MolFromSmiles("CO")))
    given: dict[str, Any] = {"smiles": "CCO", "coordinates": conformer.coordinates[None]}
    rows = [
        MoleculeRow(0, "a", "CCO", "CCO"),
        MoleculeRow(1, "b", "CO", molecule),
        MoleculeRow(2, "", "CCO", given, (ConformerProvenance("etkdg", is_3d=True, seed=42),)),
        MoleculeRow(3, "", "", MoleculeError("no record")),
    ]
    with whole_or_absent(tmp_path / "staged.parquet", STAGED_SCHEMA) as writer:
        for row in rows:
            writer.write(_staged_record(row))
    back = list(read_staged(tmp_path / "staged.parquet"))
    assert [(row.number, row.id, row.smiles) for row in back] == [(row.number, row.id, row.smiles) for row in rows]
    assert back[0].molecule == "CCO"
    assert isinstance(back[1].molecule, Chem.Mol)
    assert (back[1].molecule.GetConformer().GetPositions() == molecule.GetConformer().GetPositions()).all()
    assert isinstance(back[2].molecule, dict)
    assert (back[2].molecule["coordinates"] == given["coordinates"]).all()
    assert back[2].provenance == rows[2].provenance
    assert isinstance(back[3].molecule, MoleculeError)


def test_its_featurizing_actors_know_the_packaged_model(tmp_path: Path) -> None:
    """The default of the command; once only the actors with the model did."""
    assert _FeaturizeShards(EmbedSettings(), tmp_path)._extractor.to_dict() == UniMol2FeatureExtractor().to_dict()
