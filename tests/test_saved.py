"""What earlier versions saved is read by this one, with the same outputs (tests/saved/make.py made the folders)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    pipeline,
)

from unimol2_hf import UniMol2ForPreTraining, UniMol2ForPropertyRegression, UniMol2Model
from unimol2_hf.conformers import conformer_versions
from unimol2_hf.data.molecule_files import read_molecules
from unimol2_hf.jobs.build_conformers import build_conformers
from unimol2_hf.jobs.embed import embed
from unimol2_hf.jobs.predict import predict
from unimol2_hf.jobs.settings import BuildSettings, EmbedSettings, PredictSettings
from unimol2_hf.pretraining.pretrain import make_data, make_model, target_scale_of
from unimol2_hf.pretraining.settings import PretrainSettings
from unimol2_hf.pretraining.stream import Share

pytestmark = pytest.mark.numerical

SAVED = Path(__file__).parent / "saved"
QUIET = Console(quiet=True)
# Of an output's largest value. The folders were made by one processor's kernels, and weights are ten times the usual.
FROM_OTHER_KERNELS = 1e-5
# Of predictions whose conformers this processor made itself: MMFF94 ends within its own tolerance.
FROM_SMILES = 2e-3


@pytest.fixture(params=sorted(path.parent.name for path in SAVED.glob("*/about.json")))
def saved(request: pytest.FixtureRequest) -> Path:
    """The folder of one version."""
    return SAVED / str(request.param)


@pytest.fixture
def in_time(saved: Path) -> Path:
    """The folder of a version that worked with this RDKit: its jobs may go on."""
    about = json.loads((saved / "about.json").read_text())
    if {name: about[name] for name in conformer_versions()} != conformer_versions():
        pytest.skip("made with another RDKit or ladder: its jobs are refused, as they should be")
    return saved


def assert_same_output(made: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(made, expected, rtol=0, atol=FROM_OTHER_KERNELS * float(expected.abs().max()))


class TestModels:
    @pytest.mark.parametrize(
        ("name", "auto_class", "model_class"),
        [
            ("base", AutoModel, UniMol2Model),
            ("property", AutoModelForSequenceClassification, UniMol2ForPropertyRegression),
            ("pretraining", AutoModelForPreTraining, UniMol2ForPreTraining),
        ],
    )
    def test_outputs(self, saved: Path, name: str, auto_class: type, model_class: type) -> None:
        inputs = load_file(saved / "inputs.safetensors")
        for loader in (auto_class, model_class):
            model, loading = loader.from_pretrained(saved / name, output_loading_info=True)  # type: ignore[attr-defined]
            assert not loading["missing_keys"]
            assert not loading["unexpected_keys"]
            with torch.no_grad():
                made = model.eval()(**inputs)
            for output, expected in load_file(saved / name / "outputs.safetensors").items():
                assert_same_output(made[output], expected)

    def test_conformer_settings(self, saved: Path) -> None:
        for folder in ("base", "property", "pretraining"):
            extractor = AutoFeatureExtractor.from_pretrained(saved / folder)
            assert (extractor.num_conformers, extractor.seed) == (2, 7)

    def test_saved_again_it_says_the_same(self, saved: Path, tmp_path: Path) -> None:
        inputs = load_file(saved / "inputs.safetensors")
        UniMol2ForPropertyRegression.from_pretrained(saved / "property").save_pretrained(tmp_path)
        with torch.no_grad():
            made = UniMol2ForPropertyRegression.from_pretrained(tmp_path).eval()(**inputs)
        assert_same_output(made.logits, load_file(saved / "property" / "outputs.safetensors")["logits"])


class TestFinetuned:
    def test_predictions(self, saved: Path, tmp_path: Path) -> None:
        predict(
            str(saved / "finetuned"),
            saved / "table.csv",
            tmp_path / "out.csv",
            PredictSettings(batch_size=4, num_workers=0),
            QUIET,
        )
        made, expected = pd.read_csv(tmp_path / "out.csv"), pd.read_csv(saved / "predictions.csv")
        assert set(expected.columns) <= set(made.columns)
        assert made["error"].notna().tolist() == expected["error"].notna().tolist()
        for name in ("predicted_logp", "predicted_tpsa"):
            np.testing.assert_allclose(made[name], expected[name], rtol=FROM_SMILES, atol=FROM_SMILES)

    def test_pipeline(self, saved: Path) -> None:
        expected = pd.read_csv(saved / "predictions.csv")
        said = pipeline("molecule-property-prediction", str(saved / "finetuned"))(expected["smiles"].tolist())
        for target in ("logp", "tpsa"):
            values = [each["predictions"] and each["predictions"][target] for each in said]
            np.testing.assert_allclose(
                np.array(values, dtype=float),
                expected[f"predicted_{target}"].to_numpy(),
                rtol=FROM_SMILES,
                atol=FROM_SMILES,
            )


class TestLibrary:
    def test_embeddings_of_its_conformers(self, saved: Path, tmp_path: Path) -> None:
        settings = EmbedSettings(
            model=str(saved / "base"), id_column="id", per_atom=True, rows_per_shard=8, num_workers=0
        )
        embed(saved / "library" / "conformers", tmp_path, settings, QUIET)
        made = pq.read_table(tmp_path / "embeddings").to_pandas()
        expected = pq.read_table(saved / "embedded" / "embeddings").to_pandas()
        for name in ("row", "id", "smiles", "error", "num_heavy_atoms", "cropped"):
            pd.testing.assert_series_equal(made[name], expected[name])
        for name in ("embedding", "atom_embeddings"):
            for ours, theirs in zip(made[name], expected[name], strict=True):
                assert (ours is None) == (theirs is None)
                if ours is not None:
                    np.testing.assert_allclose(np.stack(ours), np.stack(theirs), rtol=1e-4, atol=1e-5)

    def test_embeddings_are_a_source_again(self, saved: Path) -> None:
        """Of their SMILES; how their conformers came about is no conformer."""
        rows = list(read_molecules(saved / "embedded" / "embeddings"))
        assert [row.molecule for row in rows if row.smiles != "C1CC"] == [
            row.smiles for row in rows if row.smiles != "C1CC"
        ]

    def test_pretraining_reads_it(self, saved: Path, tmp_path: Path) -> None:
        """13 molecules; the last step of the plan holds what the columns say."""
        settings = PretrainSettings(
            data=str(saved / "library"),
            output_dir=str(tmp_path),
            start_from=str(saved / "pretraining"),
            targets={"logp": 1.0, "rdkit_descriptors": 1.0},
            samples_per_step=13,
            scaffold_temperature=None,
            validation_molecules=0,
        )
        model = make_model(settings)
        _, plan, stream, _ = make_data(settings, Share(0, 1), target_scale_of(model))
        (batch,) = next(iter(stream))["micro_batches"]
        assert len(plan) == 13
        assert sorted(batch["attention_mask"].sum(1).tolist()) == sorted(
            pq.read_table(saved / "library" / "conformers").to_pandas()["num_heavy_atoms"].dropna().tolist()
        )
        assert batch["graph_targets"].isnan().sum() == 0


class TestFinishedJobs:
    """The command that made the folder finds it finished, and leaves it as it is."""

    def test_embedding(self, in_time: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(in_time / "embedded", tmp_path / "job")
        before = {path: path.read_bytes() for path in folder.rglob("*.parquet")}
        settings = EmbedSettings(
            model=str(in_time / "base"), id_column="id", per_atom=True, rows_per_shard=8, num_workers=0
        )
        summary = embed(in_time / "library" / "conformers", folder, settings, QUIET)
        assert (summary.rows, summary.failed) == (14, 1)
        assert before == {path: path.read_bytes() for path in folder.rglob("*.parquet")}

    def test_library(self, in_time: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(in_time / "library", tmp_path / "job")
        before = {path: path.read_bytes() for path in folder.rglob("*.parquet")}
        settings = BuildSettings(
            num_conformers=2,
            id_column="name",
            keep_columns=("logp",),
            descriptors="rdkit",
            rows_per_shard=8,
            num_workers=0,
        )
        summary = build_conformers(in_time / "table.csv", folder, settings, QUIET)
        assert (summary.rows, summary.molecules, summary.failed) == (14, 13, 1)
        assert before == {path: path.read_bytes() for path in folder.rglob("*.parquet")}

    def test_metrics_of_a_finetuning(self, saved: Path) -> None:
        metrics = json.loads((saved / "finetuned" / "metrics.json").read_text())
        assert set(metrics) == {"valid", "test", "rows"}
        assert set(metrics["test"]["logp"]) == {"count", "mae", "rmse", "r2", "baseline_mae"}
