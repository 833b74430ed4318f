"""The embedding job on a local Ray cluster of two workers: the same rows as without Ray."""

import os
import pickle
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import MIXED_SMILES
from rdkit import Chem
from rich.console import Console

from unimol2_hf import (
    MoleculeError,
    OutputFolderError,
    UniMol2Error,
    UniMol2FeatureExtractor,
    UniMol2ForPreTraining,
)
from unimol2_hf.conformers import ConformerProvenance, conformer_versions
from unimol2_hf.data.molecule_rows import Columns, MoleculeRow
from unimol2_hf.data.shards import whole_or_absent
from unimol2_hf.jobs.build_conformers import build_conformers, build_job
from unimol2_hf.jobs.embed import EmbedJob, embed, embed_job
from unimol2_hf.jobs.library_job import RowSummary
from unimol2_hf.jobs.on_ray import read_staged, run_on_ray, staged_record, staged_schema
from unimol2_hf.jobs.predict import predict, predict_job
from unimol2_hf.jobs.settings import BuildSettings, EmbedSettings, PredictSettings, RaySettings
from unimol2_hf.settings_unimol2 import SCALES

ray = pytest.importorskip("ray")

QUIET = Console(quiet=True)


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


def on_ray(library: Path, output_dir: Path, settings: EmbedSettings, **ray_settings: Any) -> RowSummary:
    return run_on_ray(embed_job(library, output_dir, settings), library, RaySettings(**ray_settings), QUIET)


def test_same_rows_as_without_ray(tmp_path: Path, two_workers: None, settings: EmbedSettings, library: Path) -> None:
    plain = embed(library, tmp_path / "plain", settings, QUIET)
    # One shard lost: the job goes on with that one.
    clustered = on_ray(library, tmp_path / "ray", settings)
    (tmp_path / "ray" / "embeddings" / "part-000001.parquet").unlink()
    resumed = on_ray(library, tmp_path / "ray", settings)
    assert plain == clustered == resumed
    assert plain.failed == 2
    for kind in ("embeddings", "conformers"):
        expected, actual = (pd.read_parquet(tmp_path / name / kind) for name in ("plain", "ray"))
        pd.testing.assert_frame_equal(actual, expected, rtol=1e-5, atol=1e-6)
    assert not (tmp_path / "ray" / "staged").exists()


def test_predictions_with_every_column(tmp_path: Path, two_workers: None, property_dir: str) -> None:
    """Of a typed table: numbers, lists and empty cells come through the workers as they were."""
    source = tmp_path / "library.parquet"
    smiles = [*MIXED_SMILES[:10], "C1CC", None]
    columns = {"smiles": smiles, "code": [f"00{row}" for row in range(12)], "count": [*range(11), None]}
    pq.write_table(pa.table({**columns, "list": [[row, row] for row in range(12)]}), source)
    settings = PredictSettings(rows_per_shard=5, num_workers=0)
    predict(property_dir, source, tmp_path / "plain.parquet", settings, QUIET)
    run_on_ray(predict_job(property_dir, source, tmp_path / "ray.parquet", settings), source, RaySettings(), QUIET)
    plain, clustered = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("plain", "ray"))
    assert plain.schema == clustered.schema
    assert plain.select(list(columns)).to_pydict() == columns
    pd.testing.assert_frame_equal(plain.to_pandas(), clustered.to_pandas(), rtol=1e-5, atol=1e-6)


def test_a_library_of_conformers(tmp_path: Path, two_workers: None) -> None:
    """A duplicate is told by rows of other shards, whichever worker has them."""
    source = tmp_path / "library.csv"
    rows = [f"{smiles},{number}.5" for number, smiles in enumerate([*MIXED_SMILES[:8], "OCC", "CCO", "C1CC", "CCO"])]
    source.write_text("smiles,y\n" + "\n".join(rows) + "\n")
    settings = BuildSettings(num_conformers=2, rows_per_shard=4, num_workers=0, keep_columns=("y",))
    plain = build_conformers(source, tmp_path / "plain", settings, QUIET)
    clustered = run_on_ray(build_job(source, tmp_path / "ray", settings), source, RaySettings(), QUIET)
    assert plain == clustered
    assert plain.duplicates >= 2
    expected, actual = (pd.read_parquet(tmp_path / name / "conformers") for name in ("plain", "ray"))
    pd.testing.assert_frame_equal(actual, expected)
    (tmp_path / "ray" / "conformers" / "part-000000.parquet").unlink()
    assert run_on_ray(build_job(source, tmp_path / "ray", settings), source, RaySettings(), QUIET) == plain
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "ray" / "conformers"), expected)


def test_a_worker_that_is_killed(tmp_path: Path, two_workers: None, settings: EmbedSettings, library: Path) -> None:
    """With -9, while it makes conformers: its shard is made again."""
    source = tmp_path / "longer.smi"
    source.write_text(library.read_text() * 8)
    plain = embed(source, tmp_path / "plain", settings, QUIET)
    killed = threading.Event()

    def kill_one() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not killed.is_set():
            for process in psutil.process_iter(["cmdline"]):
                if "MakeShards" in " ".join(process.info["cmdline"] or ()):
                    process.kill()
                    killed.set()
                    return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_one)
    killer.start()
    clustered = on_ray(source, tmp_path / "ray", settings)
    killer.join()
    assert killed.is_set()
    assert clustered == plain
    expected, actual = (pd.read_parquet(tmp_path / name / "embeddings") for name in ("plain", "ray"))
    pd.testing.assert_frame_equal(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_worker_whose_machine_would_make_others_is_refused(
    tmp_path: Path, two_workers: None, settings: EmbedSettings, library: Path
) -> None:
    """Another RDKit makes other conformers: named, and nothing is mixed."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # which workers cannot import
    job = _OfAnotherMachine(settings, tmp_path / "out", model=settings.model)
    with pytest.raises(OutputFolderError, match=r"rdkit was '.*' and is '2020\.03\.1'"):
        run_on_ray(job, library, RaySettings(), QUIET)
    assert not list((tmp_path / "out" / "embeddings").iterdir())


class _OfAnotherMachine(EmbedJob):
    """Its workers have an RDKit of their own."""

    def versions(self) -> dict[str, Any]:
        there = ray.get_runtime_context().get_actor_id() is not None
        return {"conformers": {**conformer_versions(), **({"rdkit": "2020.03.1"} if there else {})}}


def test_more_models_than_cores_are_refused(
    tmp_path: Path, two_workers: None, settings: EmbedSettings, library: Path
) -> None:
    with pytest.raises(UniMol2Error, match="2 models on 2 cores leave none"):
        on_ray(library, tmp_path / "out", settings, num_models=2)


def test_staged_rows_come_back_as_they_were(tmp_path: Path, extractor: UniMol2FeatureExtractor) -> None:
    conformer = next(extractor.featurize("CCO")).conformers[0]
    molecule = Chem.MolFromMolBlock(Chem.MolToMolBlock(Chem.MolFromSmiles("CO")))
    given: dict[str, Any] = {"smiles": "CCO", "coordinates": conformer.coordinates[None]}
    rows = [
        MoleculeRow(0, "a", "CCO", "CCO"),
        MoleculeRow(1, "b", "CO", molecule),
        MoleculeRow(2, "", "CCO", given, (ConformerProvenance("etkdg", is_3d=True, seed=42),)),
        MoleculeRow(3, "", "", MoleculeError("no record")),
        MoleculeRow(4, "", "", {"atomic_numbers": [6, 8], "coordinates": np.ones((2, 3))}),
    ]
    rows = [replace(row, cells={"code": f"0{row.number}"}, kept={"y": np.array([np.nan, 1.5])}) for row in rows]
    columns = Columns(kept=("y",), cells=True)
    schema = staged_schema(EmbedJob(EmbedSettings(), tmp_path, columns, [pa.field("code", pa.string())]))
    with whole_or_absent(tmp_path / "staged.parquet", schema) as writer:
        for row in rows:
            writer.write(staged_record(row, schema))
    back = list(read_staged(tmp_path / "staged.parquet"))
    assert [(row.number, row.id, row.smiles) for row in back] == [(row.number, row.id, row.smiles) for row in rows]
    assert back[0].molecule == "CCO"
    assert isinstance(back[1].molecule, Chem.Mol)
    assert (back[1].molecule.GetConformer().GetPositions() == molecule.GetConformer().GetPositions()).all()
    assert isinstance(back[2].molecule, dict)
    assert (back[2].molecule["coordinates"] == given["coordinates"]).all()
    assert back[2].provenance == rows[2].provenance
    assert isinstance(back[3].molecule, MoleculeError)
    assert isinstance(back[4].molecule, dict)
    assert (back[4].molecule["atomic_numbers"], back[4].molecule["coordinates"].shape) == ([6, 8], (2, 3))
    assert [row.cells["code"] for row in back] == ["00", "01", "02", "03", "04"]
    np.testing.assert_array_equal(back[0].kept["y"], [np.nan, 1.5])


def test_what_a_job_has_loaded_stays_behind() -> None:
    job = EmbedJob(EmbedSettings(device="cpu"), Path("out"), model="unimol2-nano")
    assert job.pipeline.model.config.num_hidden_layers == SCALES["nano"]["num_hidden_layers"]
    there = pickle.loads(pickle.dumps(job))
    assert set(vars(there)) == {each.name for each in fields(job)}
    assert there == job
