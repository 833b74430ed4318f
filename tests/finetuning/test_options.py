"""What finetune can be told about data, splits and training; what it then keeps, and predict applies again."""

import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from finetuning_jobs import stopped_after
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from rich.console import Console
from safetensors.torch import load_file
from transformers import pipeline

from unimol2_hf import NANO, SettingsError, UniMol2Config, UniMol2ForPropertyRegression
from unimol2_hf.data import conformer_cache
from unimol2_hf.finetuning.defaults import recipe_for
from unimol2_hf.finetuning.finetune import finetune
from unimol2_hf.finetuning.prepare import ROWS_FILE
from unimol2_hf.finetuning.settings import FinetuneSettings
from unimol2_hf.jobs.predict import predict
from unimol2_hf.jobs.settings import PredictSettings

pytestmark = pytest.mark.numerical

DRUGS = pd.read_csv(Path(__file__).parents[2] / "examples" / "drugs.csv").head(40)[["smiles", "tpsa"]]
QUIET = Console(quiet=True)


def tuned(data: Any, folder: Path, console: Console = QUIET, **settings: Any) -> dict[str, Any]:
    small = {"targets": ("tpsa",), "scale": "micro", "epochs": 1, "batch_size": 8, "num_workers": 0}
    return finetune(data, folder, FinetuneSettings(**{**small, "split_method": "random", **settings}), console)


def rows_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / ROWS_FILE, keep_default_na=False)


def predicted(folder: Path, data: Any, **settings: Any) -> pd.DataFrame:
    output = Path(tempfile.mkdtemp(dir=folder.parent)) / "predicted.csv"
    predict(str(folder), data, output, PredictSettings(num_workers=0, **settings), QUIET)
    return pd.read_csv(output, keep_default_na=False)


class TestData:
    def test_tables_of_python(self, tmp_path: Path) -> None:
        """The same rows, the same run, whatever holds them."""
        DRUGS.to_csv(tmp_path / "d.csv", index=False)
        sources = {"file": tmp_path / "d.csv", "frame": DRUGS, "set": Dataset.from_pandas(DRUGS, preserve_index=False)}
        reports = [tuned(source, tmp_path / name) for name, source in sources.items()]
        assert reports[0] == reports[1] == reports[2]
        made = predicted(tmp_path / "frame", DRUGS)
        np.testing.assert_allclose(made["predicted_tpsa"], rows_of(tmp_path / "file")["predicted_tpsa"], rtol=1e-4)

    def test_conformers_are_made_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """For other runs and for predictions; a run from kept conformers is the run that made them, to the digit."""
        cache = str(tmp_path / "cache")
        first = tuned(DRUGS, tmp_path / "a", conformer_cache=cache)
        stored = sorted((tmp_path / "cache").glob("*/*.parquet"))
        assert stored
        monkeypatch.setattr(conformer_cache.ConformerCache, "add", lambda *_: pytest.fail("made again"))
        assert tuned(DRUGS, tmp_path / "b", conformer_cache=cache) == first
        assert len(predicted(tmp_path / "a", DRUGS, conformer_cache=cache)) == 40
        monkeypatch.undo()
        assert tuned(DRUGS, tmp_path / "c", conformer_cache="none") == first
        assert sorted((tmp_path / "cache").glob("*/*.parquet")) == stored

    def test_geometries_with_and_without_bonds(self, tmp_path: Path) -> None:
        """As QM9 is: SMILES, atoms with hydrogens, positions in an order of their own; and without any SMILES."""
        rows = []
        for index, smiles in enumerate(DRUGS["smiles"][:24]):
            molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
            rdDistGeom.EmbedMolecule(molecule, randomSeed=1)
            order = np.random.default_rng(index).permutation(molecule.GetNumAtoms()).tolist()
            molecule = Chem.RenumberAtoms(molecule, order)
            positions = molecule.GetConformer().GetPositions().ravel().tolist()
            numbers = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
            rows.append({"smiles": smiles, "atomic_numbers": numbers, "coordinates": positions, "tpsa": float(index)})
        table = pd.DataFrame(rows)
        graph = tuned(table, tmp_path / "graph")
        bare = tuned(table, tmp_path / "bare", featurizer={"use_graph_features": False})
        alone = tuned(table.drop(columns="smiles"), tmp_path / "alone", featurizer={"use_graph_features": False})
        assert graph["rows"]["failed"] == bare["rows"]["failed"] == alone["rows"]["failed"] == 0
        assert set(rows_of(tmp_path / "graph")["conformer"]) == {"given"}
        assert graph["test"] != bare["test"]
        assert alone["baselines"] == {}
        config = json.loads((tmp_path / "bare" / "preprocessor_config.json").read_text())
        assert config["use_graph_features"] is False
        made = predicted(tmp_path / "bare", table)
        np.testing.assert_allclose(made["predicted_tpsa"], rows_of(tmp_path / "bare")["predicted_tpsa"], rtol=1e-4)


class TestMolecules:
    SALTS = (*DRUGS["smiles"][:30], "CC(=O)[O-].[Na+]", "CC(=O)O", "CCN.Cl", "CCN")

    def table(self) -> pd.DataFrame:
        return pd.DataFrame({"smiles": self.SALTS, "tpsa": [*range(30), 5.0, 7.0, 1.0, 9.0]})

    def test_standardised_at_training_and_at_prediction(self, tmp_path: Path) -> None:
        tuned(self.table(), tmp_path / "m", featurizer={"standardize": "parent"})
        rows = rows_of(tmp_path / "m")
        assert "standardised to CC(=O)O" in rows["note"][30]
        assert "the same molecule as row 30" in rows["note"][31]
        assert rows["split"][30] == rows["split"][31]
        assert rows["split"][32] == rows["split"][33]
        made = predicted(tmp_path / "m", pd.DataFrame({"smiles": ["CC(=O)[O-].[Na+]", "CC(=O)O"]}))
        assert made["standardized"].tolist() == ["CC(=O)O", ""]
        assert made["predicted_tpsa"][0] == pytest.approx(made["predicted_tpsa"][1], rel=1e-5)
        assert made["nearest_similarity"][0] == made["nearest_similarity"][1]
        result = pipeline("molecule-property-prediction", str(tmp_path / "m"), device="cpu")("CC(=O)[O-].[Na+]")
        assert result["provenance"][0]["standardized_smiles"] == "CC(=O)O"
        assert result["predictions"]["tpsa"] == pytest.approx(made["predicted_tpsa"][0], rel=1e-4)

    def test_without_it_nothing_is_said(self, tmp_path: Path) -> None:
        tuned(self.table(), tmp_path / "m")
        assert "standardized" not in predicted(tmp_path / "m", self.table())
        assert not rows_of(tmp_path / "m")["note"].str.contains("standardised").any()

    @pytest.mark.parametrize("how", ["keep", "average", "drop"])
    def test_duplicates(self, tmp_path: Path, how: str) -> None:
        table = pd.concat([DRUGS, DRUGS[:5].assign(tpsa=lambda each: each["tpsa"] + [0, 0, 300, 0, 0])])
        out = io.StringIO()
        report = tuned(table, tmp_path / "m", Console(file=out, width=200), duplicates=how)
        assert "5 rows repeat a molecule; contradictory: 1 in tpsa" in out.getvalue()
        rows = rows_of(tmp_path / "m")
        assert "contradicts it in tpsa" in rows["note"][42]
        used = sum(report["rows"][part] for part in ("train", "valid", "test"))
        assert used == {"keep": 45, "average": 40, "drop": 39}[how]
        if how == "average":
            assert float(rows["tpsa"][2]) == pytest.approx(DRUGS["tpsa"][2] + 150)


class TestSplits:
    def test_another_runs_split_is_read_again(self, tmp_path: Path) -> None:
        tuned(DRUGS, tmp_path / "a")
        file = str(tmp_path / "a" / "training_set.parquet")
        tuned(DRUGS.iloc[::-1], tmp_path / "b", split_file=file, seed=5)
        assert rows_of(tmp_path / "b")["split"].tolist()[::-1] == rows_of(tmp_path / "a")["split"].tolist()

    def test_by_a_column(self, tmp_path: Path) -> None:
        dates = pd.date_range("2020-01-01", periods=40)[::-1].strftime("%Y-%m-%d")
        tuned(DRUGS.assign(measured=dates), tmp_path / "m", split_by="measured")
        assert rows_of(tmp_path / "m")["split"].tolist() == ["test"] * 4 + ["valid"] * 4 + ["train"] * 32

    @pytest.mark.parametrize("method", ["cluster", "scaffold"])
    def test_folds(self, tmp_path: Path, method: str) -> None:
        parts = []
        for fold in range(3):
            tuned(DRUGS, tmp_path / str(fold), split_method=method, split_folds=3, split_fold=fold)
            parts.append(rows_of(tmp_path / str(fold))["split"] == "test")
        assert (np.sum(parts, axis=0) == 1).all()


class TestTraining:
    def test_lora_leaves_a_model_like_every_other(self, tmp_path: Path) -> None:
        tuned(DRUGS, tmp_path / "m", lora=4, epochs=2, learning_rate=1e-2)
        start = UniMol2ForPropertyRegression.from_pretrained(tmp_path / "m")
        assert not [name for name in load_file(tmp_path / "m" / "model.safetensors") if "lora" in name]
        assert start.config.architectures == ["UniMol2ForPropertyRegression"]
        made = predicted(tmp_path / "m", DRUGS)
        np.testing.assert_allclose(made["predicted_tpsa"], rows_of(tmp_path / "m")["predicted_tpsa"], rtol=1e-4)

    def test_lora_trains_adapters_and_head(self, tmp_path: Path) -> None:
        """Norms and biases of the encoder stay as they were, its linears and the head move."""
        tuned(DRUGS, tmp_path / "m", scale=None, lora=4, learning_rate=1e-2)
        before, after = load_file(Path(NANO) / "model.safetensors"), load_file(tmp_path / "m" / "model.safetensors")
        before = {name if name.startswith("unimol2.") else f"unimol2.{name}": each for name, each in before.items()}
        shared = sorted(before.keys() & after.keys())
        moved = {name for name in shared if not before[name].equal(after[name])}
        assert len(shared) > 50
        assert moved
        assert all(name.endswith(".weight") and "norm" not in name for name in moved)
        assert after["classifier.out_proj.bias"].any()

    def test_lora_goes_on_after_a_kill(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = tuned(DRUGS, tmp_path / "whole", lora=4, epochs=3)
        with stopped_after(2, monkeypatch):
            tuned(DRUGS, tmp_path / "m", lora=4, epochs=3)
        assert tuned(DRUGS, tmp_path / "m", lora=4, epochs=3) == whole

    def test_without_peft(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import sys

        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(SettingsError, match=r'lora needs peft; pip install "unimol2-hf\[lora\]"'):
            tuned(DRUGS, tmp_path / "m", lora=4)

    def test_tensorboard(self, tmp_path: Path) -> None:
        tuned(DRUGS, tmp_path / "m", report_to="tensorboard")
        assert list((tmp_path / "m").rglob("events.out.tfevents.*"))

    def test_early_stopping_on_the_validation_score(self, tmp_path: Path) -> None:
        tuned(DRUGS, tmp_path / "m", epochs=30, patience=1, learning_rate=0.0)
        history = json.loads((tmp_path / "m" / "log_history.json").read_text())
        assert max(entry["epoch"] for entry in history) == 2

    @pytest.mark.parametrize(
        ("rows", "heavy_atoms", "epochs"),
        [(30, 20, 30), (1_200, 34, 7), (900, 12, 30), (1_600, 24, 10), (100_000, 20, 7)],
    )
    def test_defaults_follow_table_and_model(self, rows: int, heavy_atoms: int, epochs: int) -> None:
        atoms = [heavy_atoms] * rows
        settings = FinetuneSettings(targets=("y",))
        small, large = (recipe_for(settings, UniMol2Config.from_scale(scale), atoms) for scale in ("nano", "84m"))
        assert small.epochs == large.epochs == epochs
        assert small.learning_rate > large.learning_rate
        own = recipe_for(FinetuneSettings(targets=("y",), epochs=3, learning_rate=1e-5), UniMol2Config(), atoms)
        assert (own.epochs, own.learning_rate) == (3, 1e-5)


def test_a_log_file_stays_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No bars and no warnings of libraries: what was taken for what, the table, one last line."""
    out = io.StringIO()
    tuned(DRUGS, tmp_path / "m", Console(file=out, width=100), scale=None)
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err == ""
    lines = out.getvalue().splitlines()
    assert lines[0] == "tpsa: regression"
    assert lines[1] == "head: finetuned"
    assert "held-out test part" in lines[2]
    assert len(lines) < 14
