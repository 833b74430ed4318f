"""Libraries to Parquet: one row for each row, the same after any kill, with its reason where it failed."""

import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import run_command
from conftest import MIXED_SMILES
from embed_job import run as run_job
from kills import forkserver, run_whole
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from rich.console import Console

from unimol2_hf import (
    ModelError,
    OutputFolderError,
    SettingsError,
    UniMol2FeatureExtractor,
    UniMol2ForPreTraining,
    UniMol2Model,
)
from unimol2_hf.conformers import LADDER_VERSION
from unimol2_hf.data.shards import PROVENANCE, finished_shards
from unimol2_hf.jobs.embed import embed
from unimol2_hf.jobs.library_job import RowSummary
from unimol2_hf.jobs.settings import EmbedSettings
from unimol2_hf.pipeline_unimol2 import MoleculeEmbeddingPipeline

pytestmark = pytest.mark.numerical

SMILES = [*MIXED_SMILES[:20], "C1CC", "", "[H][H]", "CCO"]
Job = Callable[..., RowSummary]
QUIET = Console(quiet=True)


@pytest.fixture
def model_dir(tmp_path: Path, pretraining_model: UniMol2ForPreTraining, extractor: UniMol2FeatureExtractor) -> str:
    folder = tmp_path / "model"
    pretraining_model.unimol2.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "library.csv"
    pd.DataFrame({"code": [f"M{n}" for n in range(len(SMILES))], "smiles": SMILES}).to_csv(path, index=False)
    return path


@pytest.fixture
def job(tmp_path: Path, library: Path, model_dir: str) -> Job:
    def run(name: str = "out", source: Path = library, **settings: Any) -> RowSummary:
        settings = {"model": model_dir, "num_workers": 0, "rows_per_shard": 5, **settings}
        return embed(source, tmp_path / name, EmbedSettings(**settings), Console(quiet=True))

    return run


def output(folder: Path, kind: str = "embeddings") -> pd.DataFrame:
    return pd.read_parquet(folder / kind)


def assert_same_output(actual: Path, expected: Path, kind: str = "embeddings") -> None:
    """Equal to the last bit."""
    names = sorted(path.name for path in (expected / kind).iterdir())
    assert sorted(path.name for path in (actual / kind).iterdir()) == names
    for name in names:
        a, b = (pd.read_parquet(folder / kind / name) for folder in (actual, expected))
        pd.testing.assert_frame_equal(a, b, check_exact=True)


def test_one_row_for_each_row(tmp_path: Path, job: Job, model_dir: str) -> None:
    summary = job(id_column="code")
    table = output(tmp_path / "out")
    assert table["row"].tolist() == list(range(len(SMILES)))
    assert table["id"].tolist() == [f"M{n}" for n in range(len(SMILES))]
    assert table["smiles"].tolist() == SMILES
    failed = table[table["error"].notna()]
    assert failed["smiles"].tolist() == ["C1CC", "", "[H][H]"]
    assert failed["error_code"].tolist() == ["smiles", "empty", "empty"]
    assert table["error_code"].isna().tolist() == table["error"].isna().tolist()
    assert failed["embedding"].isna().all()
    assert summary == RowSummary(rows=len(SMILES), failed=3, flat=0)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == {"rows": len(SMILES), "failed": 3, "flat": 0}
    model = UniMol2Model.from_pretrained(model_dir).eval()
    pipeline = MoleculeEmbeddingPipeline(model=model, feature_extractor=UniMol2FeatureExtractor())
    expected = np.stack([pipeline(smiles)["embedding"] for smiles in SMILES[:20]])
    assert np.abs(np.stack(list(table["embedding"][:20])) - expected).max() < 1e-5
    assert table["provenance"][0][0]["method"] == "etkdg"


def test_mean_and_atom_vectors(tmp_path: Path, job: Job) -> None:
    job(pooling="mean", per_atom=True, store_precision="float16")
    table = output(tmp_path / "out")
    first = np.stack(table["atom_embeddings"][0])
    assert first.shape[0] == table["num_heavy_atoms"][0]
    assert first.dtype == np.float16
    assert np.abs(first.astype(np.float32).mean(0) - table["embedding"][0].astype(np.float32)).max() < 2e-3
    assert table["atom_embeddings"][20] is None


def test_workers_and_shards_change_nothing_but_files(tmp_path: Path, job: Job) -> None:
    job("one", rows_per_shard=100)
    job("two", num_workers=2)
    one, two = output(tmp_path / "one"), output(tmp_path / "two")
    vectors = [np.stack(list(table.pop("embedding").dropna())) for table in (one, two)]
    assert np.abs(vectors[0] - vectors[1]).max() < 1e-5
    pd.testing.assert_frame_equal(one, two)


def test_kept_conformers_are_a_library(tmp_path: Path, job: Job) -> None:
    job("first", keep_conformers=True, featurizer={"num_conformers": 2, "include_2d": True})
    job("again", source=tmp_path / "first" / "conformers", featurizer={"num_conformers": 3}, keep_conformers=True)
    first, again = output(tmp_path / "first"), output(tmp_path / "again")
    assert [c["method"] for c in again["provenance"][0]] == ["etkdg", "etkdg", "2d"]
    assert again["error"].tolist() == first["error"].tolist()
    assert again["error_code"].tolist() == first["error_code"].tolist()
    vectors = [np.stack(list(table.pop("embedding").dropna())) for table in (first, again)]
    assert np.abs(vectors[0] - vectors[1]).max() < 1e-5
    pd.testing.assert_frame_equal(first, again)
    kept = output(tmp_path / "again", "conformers")
    assert kept["atomic_numbers"][19].tolist() is not None
    assert len(kept["conformers"][0]) == 3


def test_conformers_of_an_sdf_are_kept_in_the_order_of_its_smiles(tmp_path: Path, job: Job) -> None:
    records = []
    # Written so that RDKit's canonical SMILES has another atom order; no stereocentre, whose tag depends on the order.
    for smiles in ("OCCCN", "Clc1ccc(O)cc1C(=O)N"):
        molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
        rdDistGeom.EmbedMolecule(molecule, randomSeed=1)
        records.append(f"{Chem.MolToMolBlock(molecule)}$$$$\n")
    source = tmp_path / "library.sdf"
    source.write_text("".join(records))
    job("first", source=source, keep_conformers=True)
    job("again", source=tmp_path / "first" / "conformers")
    first, again = output(tmp_path / "first"), output(tmp_path / "again")
    assert first["provenance"][0][0]["method"] == "given"
    assert first["error"].isna().all()
    assert np.abs(np.stack(list(first["embedding"])) - np.stack(list(again["embedding"]))).max() < 1e-4


def test_file_conformers_can_be_ignored(tmp_path: Path, job: Job) -> None:
    job("first", keep_conformers=True, featurizer={"seed": 7})
    job("again", source=tmp_path / "first" / "conformers", ignore_conformers=True)
    assert output(tmp_path / "again")["provenance"][0][0]["seed"] == 42


def test_cropped_molecules_are_kept_without_coordinates(tmp_path: Path, job: Job) -> None:
    job(keep_conformers=True, featurizer={"max_atoms": 6, "max_atoms_policy": "crop"})
    table, kept = output(tmp_path / "out"), output(tmp_path / "out", "conformers")
    assert table["cropped"].any()
    assert (kept["conformers"].map(len) > 0).tolist() == (table["error"].isna() & ~table["cropped"]).tolist()


def test_a_missing_shard_is_made_again_and_no_other(tmp_path: Path, job: Job) -> None:
    job("whole")
    job("mended")
    shards = sorted((tmp_path / "mended" / "embeddings").glob("*.parquet"))
    shards[2].unlink()
    before = {path: path.stat().st_mtime_ns for path in shards if path.exists()}
    job("mended")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert_same_output(tmp_path / "mended", tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"pooling": "mean"}, "pooling was"),
        ({"rows_per_shard": 6}, "and is 6"),
        ({"featurizer": {"seed": 1}}, "seed was"),
    ],
)
def test_another_job_does_not_mix_in(job: Job, change: dict[str, Any], told: str) -> None:
    job()
    with pytest.raises(OutputFolderError, match=f"holds the output of another job.*{told}"):
        job(**change)


def test_another_model_or_source_does_not_mix_in(
    tmp_path: Path, job: Job, library: Path, pretraining_model: UniMol2ForPreTraining, model_dir: str
) -> None:
    job()
    with library.open("a") as file:
        file.write("M99,CCN\n")
    with pytest.raises(OutputFolderError, match=r"\(another source\)"):
        job()
    library.write_text("".join(library.read_text().splitlines(keepends=True)[:-1]))
    job()
    next(pretraining_model.unimol2.parameters()).data += 1
    pretraining_model.unimol2.save_pretrained(model_dir)
    with pytest.raises(OutputFolderError, match=r"\(another model\)"):
        job()


@pytest.mark.parametrize(
    ("name", "value", "told"), [("LADDER_VERSION", 1, "ladder was"), ("rdBase.rdkitVersion", "2020.03.1", "rdkit was")]
)
def test_conformers_of_another_ladder_or_rdkit_do_not_mix_in(
    name: str, value: Any, told: str, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    job()
    monkeypatch.setattr(f"unimol2_hf.conformers.{name}", value)
    with pytest.raises(OutputFolderError, match=f"{told} .* and is {value!r}"):
        job()


def test_a_library_from_before_versions_were_recorded_is_read(tmp_path: Path, job: Job) -> None:
    job("first", keep_conformers=True)
    (tmp_path / "old").mkdir()
    for path in (tmp_path / "first" / "conformers").glob("*.parquet"):
        table = pq.read_table(path)
        # Without its last two fields, the record is as it was.
        entries = [[dict(list(entry.items())[:-2]) for entry in row] for row in table["provenance"].to_pylist()]
        old = pa.list_(pa.struct(list(PROVENANCE)[:-2]))
        place = table.schema.get_field_index("provenance")
        pq.write_table(table.set_column(place, "provenance", pa.array(entries, old)), tmp_path / "old" / path.name)
    job("again", source=tmp_path / "old")
    first, again = output(tmp_path / "first"), output(tmp_path / "again")
    assert {entry["ladder"] for row in first["provenance"] for entry in row} == {LADDER_VERSION}
    expected = [[{**entry, "ladder": None, "rdkit": None} for entry in row] for row in first["provenance"]]
    assert [list(row) for row in again["provenance"]] == expected


def test_one_process_at_a_time(tmp_path: Path, job: Job, library: Path, model_dir: str) -> None:
    import fcntl

    job()
    with (tmp_path / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OutputFolderError, match="another process writes into"):
            job()


def test_bad_settings_are_told_first(tmp_path: Path, job: Job, model_dir: str) -> None:
    with pytest.raises(SettingsError, match="unknown pooling 'max'"):
        EmbedSettings(model=model_dir, pooling="max")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="max_atoms is 0"):
        job(featurizer={"max_atoms": 0})
    with pytest.raises(ModelError, match="cannot be loaded"):
        job(model=str(tmp_path / "nothing"))
    with pytest.raises(ModelError, match="cannot be used on"):
        job(device="cuda:99")


def test_an_empty_library_is_done_at_once(tmp_path: Path, job: Job) -> None:
    empty = tmp_path / "empty.smi"
    empty.touch()
    assert job(source=empty) == RowSummary()


def test_command_line(tmp_path: Path, library: Path, model_dir: str) -> None:
    arguments = ["embed", str(library), str(tmp_path / "out"), "--model", model_dir, "--num-workers", "0"]
    result = run_command(*arguments, "--id-column", "code", "--num-conformers", "2")
    assert result.exit_code == 0, result.output
    assert "3 failed" in " ".join(result.output.split())
    assert len(output(tmp_path / "out")["provenance"][0]) == 2
    refused = run_command(*arguments, "--smiles-column", "structure")
    assert refused.exit_code == 2
    assert "no column structure" in " ".join(refused.output.split())


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(tmp_path: Path, library: Path, model_dir: str) -> None:
    processes = forkserver("unimol2_hf.jobs.embed")

    def start(name: str) -> Any:
        process = processes.Process(target=run_job, args=(str(library), str(tmp_path / name), model_dir))
        process.start()
        return process

    run_whole(processes, run_job, str(library), str(tmp_path / "whole"), model_dir)
    shards = len(finished_shards(tmp_path / "whole" / "embeddings"))
    moments = random.Random(0)
    workers: list[psutil.Process] = []
    kills = 0
    shards_at_kills: set[int] = set()
    while True:
        process = start("killed")
        # Each start may finish one or two shards more, and is killed at a random moment of the next.
        goal = min(shards - 1, max(shards_at_kills, default=0) + moments.randint(1, 2))
        while process.is_alive() and len(finished_shards(tmp_path / "killed" / "embeddings")) < goal:
            time.sleep(0.002)
        process.join(moments.uniform(0.0, 0.05))
        if process.exitcode is not None or kills == 2 * shards:
            break
        workers += psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, 9)
        process.join()
        kills += 1
        shards_at_kills.add(len(finished_shards(tmp_path / "killed" / "embeddings")))
    process.join()
    assert process.exitcode == 0
    assert kills >= 2
    assert {count for count in shards_at_kills if 0 < count < shards}, "no kill came between two shards"
    assert_same_output(tmp_path / "killed", tmp_path / "whole")
    assert_same_output(tmp_path / "killed", tmp_path / "whole", "conformers")
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive, "workers outlived their killed job"


def test_a_shard_of_which_writing_failed_is_absent(tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("unimol2_hf.data.shards.pq.ParquetWriter.write_table", broken)
        with pytest.raises(RuntimeError, match="disk full"):
            job()
    assert not list((tmp_path / "out" / "embeddings").iterdir())
    assert job().rows == len(SMILES)


def test_settings_that_do_not_change_the_output_may_change(job: Job) -> None:
    job()
    assert job(num_workers=1).rows == len(SMILES)
    settings = EmbedSettings(model="a")
    assert replace(settings, device="cuda", num_workers=9).of_output() == settings.of_output()


def test_kept_conformers_give_the_same_vectors(model_dir: str, library: Path, tmp_path: Path) -> None:
    settings = EmbedSettings(model=model_dir, num_workers=0)
    embed(library, tmp_path / "plain", settings, QUIET)
    for name in ("cold", "warm"):
        embed(library, tmp_path / name, replace(settings, conformer_cache=str(tmp_path / "cache")), QUIET)
    assert list((tmp_path / "cache").glob("*/*.parquet"))
    plain, cold, warm = (pq.read_table(tmp_path / name / "embeddings") for name in ("plain", "cold", "warm"))
    assert plain.equals(cold)
    assert plain.equals(warm)


def test_a_table_of_python(model_dir: str, library: Path, tmp_path: Path) -> None:
    settings = EmbedSettings(model=model_dir, num_workers=0)
    embed(library, tmp_path / "file", settings, QUIET)
    embed(pd.read_csv(library, keep_default_na=False), tmp_path / "frame", settings, QUIET)
    file, frame = (pq.read_table(tmp_path / name / "embeddings") for name in ("file", "frame"))
    assert file.equals(frame)


def test_standardised_molecules_and_their_conformers(model_dir: str, tmp_path: Path) -> None:
    """What was read is said; the kept conformers are of that, and embed to the same vector."""
    source = pd.DataFrame({"smiles": ["[Na+].[O-]C(=O)C(F)CN", "CCO"]})
    settings = EmbedSettings(model=model_dir, num_workers=0, keep_conformers=True, featurizer={"standardize": "parent"})
    embed(source, tmp_path / "out", settings, QUIET)
    made = pq.read_table(tmp_path / "out" / "embeddings").to_pandas()
    assert made["standardized_smiles"].fillna("").tolist() == ["NCC(F)C(=O)O", ""]
    embed(tmp_path / "out" / "conformers", tmp_path / "again", EmbedSettings(model=model_dir, num_workers=0), QUIET)
    again = pq.read_table(tmp_path / "again" / "embeddings").to_pandas()
    assert again["smiles"].tolist() == ["NCC(F)C(=O)O", "CCO"]
    np.testing.assert_allclose(np.stack(made["embedding"]), np.stack(again["embedding"]), rtol=1e-4, atol=1e-5)
