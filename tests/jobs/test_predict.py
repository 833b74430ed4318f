"""Predictions for a library: every row and column of every kind of file, whole or absent, ranked where asked for."""

import gzip
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import run_command
from conftest import MIXED_SMILES
from filelock import FileLock
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from rich.console import Console

from unimol2_hf import OutputFolderError, SettingsError, TableError
from unimol2_hf.jobs.predict import predict, warning_of
from unimol2_hf.jobs.settings import PredictSettings

QUIET = Console(quiet=True)
SMILES = ["CCO", "c1ccccc1O", "C1CC", "C[C@H](N)C(=O)O", "", "CCOC(=O)c1ccccc1", "C[C@H](F)Cl"]
CODES = ["001", "002", "", "0 4", 'a "b", c', "006", "007"]
ADDED = ["predicted_logd", "predicted_phase", "predicted_phase_gas", "predicted_phase_liquid", "predicted_phase_solid",
         "conformer", "warning", "error", "error_code"]  # fmt: skip

Predict = Callable[..., pd.DataFrame]


@pytest.fixture
def predicted(property_dir: str, tmp_path: Path) -> Predict:
    def run(source: Any, name: str = "out.csv", **settings: Any) -> pd.DataFrame:
        made = {"num_workers": 0, "rows_per_shard": 3, **settings}
        predict(property_dir, source, tmp_path / name, PredictSettings(**made), QUIET)
        if name.endswith(".csv"):
            return pd.read_csv(tmp_path / name, dtype=str, keep_default_na=False)
        return pd.read_parquet(tmp_path / name if name.endswith(".parquet") else tmp_path / name / "predictions")

    return run


@pytest.fixture
def table(tmp_path: Path) -> Path:
    pd.DataFrame({"code": CODES, "smiles": SMILES, "assay": [1.50] * 7}).to_csv(tmp_path / "in.csv", index=False)
    return tmp_path / "in.csv"


def test_every_row_and_column_stays(predicted: Predict, table: Path) -> None:
    made = predicted(table)
    assert list(made.columns) == ["code", "smiles", "assay", *ADDED]
    assert made["code"].tolist() == CODES
    assert made["smiles"].tolist() == SMILES
    assert (made["predicted_logd"] == "").tolist() == [smiles in ("C1CC", "") for smiles in SMILES]
    assert made["error_code"].tolist()[2] == "smiles"
    assert made["conformer"].tolist()[0] == "etkdg"
    shares = made.loc[[0], ADDED[2:5]].astype(float)
    assert shares.sum(axis=1).iloc[0] == pytest.approx(1)
    assert made["predicted_phase"][0] == ["gas", "liquid", "solid"][int(shares.to_numpy().argmax())]


def test_a_file_a_parquet_and_a_folder_say_the_same(predicted: Predict, table: Path, tmp_path: Path) -> None:
    text, typed, shards = predicted(table), predicted(table, "out2.parquet"), predicted(table, "folder")
    names = sorted(path.name for path in (tmp_path / "folder" / "predictions").iterdir())
    assert names == [f"part-00000{number}.parquet" for number in range(3)]
    pd.testing.assert_frame_equal(typed, shards)
    numbers = pd.to_numeric(text["predicted_logd"])
    np.testing.assert_array_equal(numbers, typed["predicted_logd"])
    assert text["error"].tolist() == typed["error"].fillna("").tolist()
    # Nothing of the job is left but what it was.
    assert sorted(path.name for path in (tmp_path / "out.job").iterdir() if not path.name.startswith(".")) == [
        "job.json", "predictions", "settings.json", "summary.json",
    ]  # fmt: skip


def _sdf(smiles: str, name: str, v3000: bool) -> str:
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    rdDistGeom.EmbedMolecule(molecule, randomSeed=1)
    molecule.SetProp("_Name", name)
    return f"{Chem.MolToMolBlock(molecule, forceV3000=v3000)}> <code>\n0{name}\n\n$$$$\n"


def test_every_kind_of_file(predicted: Predict, tmp_path: Path) -> None:
    """The same molecules, the same predictions; names and columns as each kind has them."""
    smiles = [each for each in SMILES if each and each != "C1CC"]
    (tmp_path / "a.smi").write_text("".join(f"{each} m{number}\n" for number, each in enumerate(smiles)))
    (tmp_path / "b.smi").write_text(
        "SMILES\tname\tdose\n" + "".join(f"{each}\tm{number}\t0{number}\n" for number, each in enumerate(smiles))
    )
    (tmp_path / "c.tsv").write_text("smiles\tid\n" + "".join(f"{each}\tm{n}\n" for n, each in enumerate(smiles)))
    pq.write_table(pa.table({"smiles": smiles, "id": [f"m{n}" for n in range(5)]}), tmp_path / "d.parquet")
    for name, v3000 in (("e", False), ("f", True)):
        text = "".join(_sdf(each, f"m{number}", v3000) for number, each in enumerate(smiles))
        (tmp_path / f"{name}.sdf.gz").write_bytes(gzip.compress(text.encode()))
    made = {path.name: predicted(path, f"{path.name[0]}.out.csv") for path in sorted(tmp_path.glob("[a-f].*"))}
    assert len(made) == 6
    first = pd.to_numeric(made["a.smi"]["predicted_logd"])
    for name, table in made.items():
        generated = predicted(tmp_path / name, f"{name[0]}.own.csv", ignore_conformers=True)
        np.testing.assert_allclose(pd.to_numeric(generated["predicted_logd"]), first, rtol=1e-4)
        assert (table["conformer"] == ("given" if "sdf" in name else "etkdg")).all()
    assert made["b.smi"]["dose"].tolist() == ["00", "01", "02", "03", "04"]
    assert made["e.sdf.gz"]["id"].tolist() == made["a.smi"]["id"].tolist() == [f"m{n}" for n in range(5)]
    assert made["f.sdf.gz"]["code"].tolist() == [f"0m{n}" for n in range(5)]


def test_types_of_a_parquet_file(predicted: Predict, tmp_path: Path) -> None:
    fields = {
        "smiles": pa.array(["CCO", None], pa.large_string()), "n": pa.array([1, None], pa.int32()),
        "when": pa.array([1, 2], pa.timestamp("ms")), "list": pa.array([[1.5], None]), "raw": pa.array([b"x", b"\xff"]),
    }  # fmt: skip
    pq.write_table(pa.table(fields), tmp_path / "in.parquet")
    predicted(tmp_path / "in.parquet", "out.parquet")
    made = pq.read_table(tmp_path / "out.parquet")
    assert [made.schema.field(name).type for name in fields] == [each.type for each in fields.values()]
    assert made.select(list(fields)).to_pydict() == pa.table(fields).to_pydict()
    text = predicted(tmp_path / "in.parquet", "out2.csv")
    assert text["list"].tolist() == ["[1.5]", ""]
    assert text["raw"].tolist() == ["x", "\\xff"]


class TestFolders:
    def test_a_finished_job_is_told(self, predicted: Predict, table: Path, tmp_path: Path) -> None:
        predicted(table)
        before = (tmp_path / "out.csv").stat().st_mtime_ns
        predicted(table)
        assert (tmp_path / "out.csv").stat().st_mtime_ns == before
        (tmp_path / "out.csv").unlink()
        assert len(predicted(table)) == len(SMILES)

    def test_nothing_is_replaced(self, predicted: Predict, table: Path, tmp_path: Path) -> None:
        (tmp_path / "out.csv").write_text("mine")
        with pytest.raises(OutputFolderError, match="exists already; delete it, or choose another name"):
            predicted(table)
        assert (tmp_path / "out.csv").read_text() == "mine"
        predicted(table, "other.csv")
        with table.open("a") as file:
            file.write("008,CC,2\n")
        with pytest.raises(OutputFolderError, match="another source"):
            predicted(table, "other.csv")

    def test_what_the_predictions_need(self, predicted: Predict, table: Path, tmp_path: Path) -> None:
        frame = pd.read_csv(table)
        with pytest.raises(TableError, match="columns that the predictions need: predicted_logd, error"):
            predicted(frame.assign(predicted_logd=1, error=""))
        with pytest.raises(SettingsError, match=r"written as \.csv, as \.parquet, or into a folder"):
            predicted(table, "out.xlsx")
        assert not (tmp_path / "out.job").exists()

    def test_a_second_process_is_refused(
        self, predicted: Predict, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("unimol2_hf.data.output_folder._LOCK_SECONDS", 0.1)
        (tmp_path / "out.job").mkdir()
        with FileLock(tmp_path / "out.job" / ".lock"), pytest.raises(OutputFolderError, match="another process writes"):
            predicted(table)

    def test_where_nothing_can_be_written(self, property_dir: str, table: Path) -> None:
        with pytest.raises(OutputFolderError, match="cannot be used as the output folder"):
            predict(property_dir, table, Path("/proc/out.csv"), PredictSettings(num_workers=0), QUIET)


class TestRanking:
    def test_a_table(self, predicted: Predict, table: Path, tmp_path: Path) -> None:
        made = predicted(table, top=3)
        best = pd.read_csv(tmp_path / "out.top.csv", dtype=str)
        values = pd.to_numeric(made["predicted_logd"])
        assert best["rank"].tolist() == ["1", "2", "3"]
        assert pd.to_numeric(best["predicted_logd"]).tolist() == values.sort_values(ascending=False)[:3].tolist()
        # Of a finished job another one is made without a model's work.
        predicted(table, top=2, lowest=True, rank_by="predicted_phase_gas", top_output=str(tmp_path / "low.csv"))
        low = pd.read_csv(tmp_path / "low.csv")
        gas = pd.to_numeric(made["predicted_phase_gas"])
        np.testing.assert_allclose(low["predicted_phase_gas"], gas.sort_values()[:2])

    @pytest.mark.parametrize("name", ["out.csv", "folder"])
    def test_molecules(self, predicted: Predict, table: Path, tmp_path: Path, name: str) -> None:
        predicted(table, name, top=99, top_output=str(tmp_path / "top.sdf"))
        read = list(Chem.SDMolSupplier(str(tmp_path / "top.sdf")))
        assert len(read) == 5
        values = [float(each.GetProp("predicted_logd")) for each in read]
        assert values == sorted(values, reverse=True)
        for rank, each in enumerate(read, start=1):
            assert each.GetIntProp("rank") == rank
            assert each.GetConformer().Is3D()
            assert Chem.MolToSmiles(each) == Chem.CanonSmiles(each.GetProp("smiles"))

    def test_the_files_own_conformer_is_written(self, predicted: Predict, tmp_path: Path) -> None:
        (tmp_path / "in.sdf").write_text(_sdf("CCO", "one", False) + _sdf("CCN", "two", False))
        predicted(tmp_path / "in.sdf", top=2, top_output=str(tmp_path / "top.sdf"))
        given = {m.GetProp("_Name"): m for m in Chem.SDMolSupplier(str(tmp_path / "in.sdf"), removeHs=True)}
        for each in Chem.SDMolSupplier(str(tmp_path / "top.sdf")):
            own, theirs = (Chem.Get3DDistanceMatrix(molecule) for molecule in (each, given[each.GetProp("_Name")]))
            np.testing.assert_allclose(own, theirs, atol=1e-3)

    def test_what_cannot_be_ranked_is_told_first(self, predicted: Predict, table: Path, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="rank_by is tpsa, which is no column of predictions"):
            predicted(table, top=3, rank_by="tpsa")
        with pytest.raises(SettingsError, match=r"a ranking is written as \.csv or \.sdf"):
            predicted(table, top=3, top_output="best.xlsx")
        assert not (tmp_path / "out.job").exists()
        with pytest.raises(SettingsError, match=r"which holds .* and no numbers"):
            predicted(table, top=3, rank_by="phase")


def test_warnings() -> None:
    fine = {"is_3d": True, "cropped": False, "undefined_descriptors": 0, "has_graph_features": True}
    assert warning_of([]) is None
    assert warning_of([fine, fine]) is None
    odd = {"is_3d": False, "cropped": True, "undefined_descriptors": 2, "has_graph_features": False}
    assert warning_of([fine, odd, odd]) == (
        "the conformer is 2D; the molecule is cropped; 2 descriptors are undefined; bonds are unknown"
    )


class TestProcesses:
    """The command as a process of its own."""

    @pytest.fixture
    def command(self, property_dir: str, tmp_path: Path) -> list[str]:
        source = tmp_path / "library.smi"
        source.write_text("\n".join(MIXED_SMILES * 20) + "\n")
        options = ["--rows-per-shard", "8", "--num-workers", "2", "--output", str(tmp_path / "out.csv")]
        return [sys.executable, "-m", "unimol2_hf.cli", "predict", property_dir, str(source), *options]

    def test_a_full_disk(self, command: list[str], tmp_path: Path) -> None:
        """Named in a line; shards that were finished before stay whole, and the job goes on from them."""
        limit = 40 * 1024

        def limited() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        # The joined file is longer than any of its shards.
        told = subprocess.run(command, capture_output=True, text=True, preexec_fn=limited, check=False)
        assert told.returncode == 2, told.stdout + told.stderr
        assert "Traceback" not in told.stdout + told.stderr
        assert "out.csv cannot be written: File too large; free the space" in " ".join(told.stdout.split())
        shards = sorted((tmp_path / "out.job" / "predictions").glob("part-*.parquet"))
        assert len(shards) == len(MIXED_SMILES) * 20 / 8
        assert all(len(pq.read_table(path)) == 8 for path in shards)
        assert not (tmp_path / "out.csv").exists()
        assert not list(tmp_path.glob(".*.draft"))
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0
        assert len(pd.read_csv(tmp_path / "out.csv")) == len(MIXED_SMILES) * 20

    def test_an_interrupt(self, command: list[str], tmp_path: Path) -> None:
        """While conformers are made: a line, no traceback, finished shards stay."""
        # What the background starts ignores it, and whatever that starts would too.
        heeding = "import os, signal as s, sys; s.signal(s.SIGINT, s.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
        process = subprocess.Popen(
            [sys.executable, "-c", heeding, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        shards = tmp_path / "out.job" / "predictions"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not list(shards.glob("part-*.parquet")):
            time.sleep(0.01)
        # As a terminal does: to the whole group.
        os.killpg(process.pid, signal.SIGINT)
        told, _ = process.communicate(timeout=60)
        assert process.returncode == 130, told
        assert "Traceback" not in told
        assert "interrupted; what is finished is kept, the same command goes on" in " ".join(told.split())
        assert list(shards.glob("part-*.parquet"))
        assert not list(shards.glob(".*.draft"))


def test_the_command(property_dir: str, table: Path, tmp_path: Path) -> None:
    told = run_command("predict", property_dir, str(table), "--output", str(tmp_path / "o.parquet"), "--top", "2")
    assert told.exit_code == 0, told.output
    assert "7 rows in" in " ".join(told.output.split())
    assert "2 failed" in " ".join(told.output.split())
    assert len(pd.read_parquet(tmp_path / "o.parquet")) == 7
    assert len(pd.read_csv(tmp_path / "o.top.csv")) == 2
