"""From a chemist's table to a fine-tuned model and back, through the command line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_line import run_command
from finetuning_jobs import stopped_after
from transformers import pipeline

from unimol2_hf import ModelError, UniMol2Config, UniMol2FeatureExtractor, UniMol2ForPropertyRegression
from unimol2_hf.data import output_folder
from unimol2_hf.finetuning.dataset import FeaturizedDataset
from unimol2_hf.finetuning.prepare import ROWS_FILE
from unimol2_hf.models.loading import TASK_HEAD, load_model

pytestmark = pytest.mark.numerical

DRUGS = Path(__file__).parents[2] / "examples" / "drugs.csv"
SPLIT_CYCLE = ["train"] * 8 + ["valid", "test"]


def run(*arguments: object, code: int = 0) -> str:
    result = run_command(*arguments)
    assert result.exit_code == code, result.output
    return result.output


def write(path: Path, **columns: Any) -> Path:
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A table with every kind of odd row, a model fine-tuned on it, and what the run printed."""
    folder = tmp_path_factory.mktemp("finetune")
    table = pd.read_csv(DRUGS).head(60)
    smiles = table["smiles"].tolist()
    # Far from zero mean and unit variance; the second target is often missing.
    logp = [100 + 10 * value for value in table["crippen_logp"]]
    labels = pd.DataFrame({"smiles": smiles, "logp": logp, "size": [float(len(text)) for text in smiles]})
    labels["split"] = [SPLIT_CYCLE[row % 10] for row in range(len(labels))]
    labels.loc[labels.index % 3 == 1, "size"] = None
    odd = pd.DataFrame(
        {
            "smiles": ["C1CC", "", "*", "CCO", "CCC", "CCCC", "[C@]12(F)[C@]3(F)[C@@]1(F)[C@@]23F"],
            "logp": ["1.0", "2.0", "3.0", None, "n/d", "5.0", "90"],
            "size": [None, None, None, None, None, "3", "9"],
            "split": ["train", "test", "train", "train", "valid", "holdout", "train"],
        }
    )
    data = folder / "data.csv"
    pd.concat([labels, odd]).to_csv(data, index=False)
    output = run(
        "finetune", data, "--targets", "logp,size", "--split-column", "split", "--output-dir", folder / "out",
        "--scale", "micro", "--epochs", 8, "--batch-size", 16, "--learning-rate", 1e-3, "--num-workers", 2,
    )  # fmt: skip
    return data, folder / "out", output


class TestFinetune:
    def test_every_row_is_reported(self, trained: tuple[Path, Path, str]) -> None:
        data, folder, _ = trained
        rows, table = pd.read_csv(folder / ROWS_FILE), pd.read_csv(data)
        assert len(rows) == len(table) == 67
        good = rows.iloc[:60]
        assert good["error"].isna().all()
        assert (good["split"] == table["split"][:60]).all()
        assert good["predicted_logp"].notna().all()
        assert (good["conformer"] == "etkdg").all()

    def test_bad_rows_stay_with_their_reason(self, trained: tuple[Path, Path, str]) -> None:
        rows = pd.read_csv(trained[1] / ROWS_FILE).iloc[60:].reset_index()
        reasons = ("ring closures", "empty", "wildcard")
        assert all(reason in error for reason, error in zip(reasons, rows["error"], strict=False))
        assert rows.loc[:2, "predicted_logp"].isna().all()
        assert rows.loc[:2, "split"].isna().all()
        assert rows.loc[3, "note"] == "no label"
        notes = rows["note"].tolist()
        assert "'n/d' of logp is no number" in notes[4]
        assert "'holdout', not train, valid or test" in notes[5]
        assert rows.loc[3:5, "split"].isna().all()
        # Usable molecules are predicted even where they were not trained on.
        assert rows.loc[3:, "predicted_logp"].notna().all()
        assert rows.loc[6, "conformer"] == "2d"

    def test_counts_are_printed_and_written(self, trained: tuple[Path, Path, str]) -> None:
        _, folder, output = trained
        assert "3 of 67 rows failed" in output
        assert "1 have a 2D conformer" in output
        report = json.loads((folder / "metrics.json").read_text())
        assert report["rows"] == {
            "train": 49, "valid": 6, "test": 6, "all": 67, "failed": 3, "with_flat_conformer": 1,
        }  # fmt: skip

    def test_metrics_are_those_of_the_written_predictions(self, trained: tuple[Path, Path, str]) -> None:
        folder = trained[1]
        rows = pd.read_csv(folder / ROWS_FILE)
        train, test = rows[rows["split"] == "train"], rows[rows["split"] == "test"]
        report = json.loads((folder / "metrics.json").read_text())["test"]
        for target in ("logp", "size"):
            present = test[test[target].notna()]
            errors = present[f"predicted_{target}"] - present[target]
            assert report[target]["count"] == len(present) > 0
            assert report[target]["mae"] == pytest.approx(errors.abs().mean(), rel=1e-6)
            assert report[target]["rmse"] == pytest.approx((errors**2).mean() ** 0.5, rel=1e-6)
            baseline = (present[target] - train[target].mean()).abs().mean()
            assert report[target]["baseline_mae"] == pytest.approx(baseline, rel=1e-6)

    def test_labels_come_back_in_their_units(self, trained: tuple[Path, Path, str]) -> None:
        folder = trained[1]
        config = UniMol2Config.from_pretrained(folder)
        rows = pd.read_csv(folder / ROWS_FILE)
        train = rows[rows["split"] == "train"]
        assert config.target_names == ["logp", "size"]
        assert config.architectures == ["UniMol2ForPropertyRegression"]
        assert config.problem_type == "regression"
        assert [target["kind"] for target in config.targets] == ["regression"] * 2
        for target in config.targets:
            labels = train[target["name"]]
            assert (target["mean"], target["std"]) == pytest.approx((labels.mean(), labels.std(ddof=0)))
        assert 60 < rows["predicted_logp"].mean() < 200

    def test_files_are_all_there(self, trained: tuple[Path, Path, str]) -> None:
        names = {path.name for path in trained[1].iterdir()}
        wanted = {"config.json", "model.safetensors", "preprocessor_config.json", "metrics.json", "report"}
        assert wanted | {"parity.png", "log_history.json", "settings.json"} <= names
        # A pickle.
        assert "training_args.bin" not in names
        assert (trained[1] / "parity.png").read_bytes().startswith(b"\x89PNG")

    def test_training_lowers_the_loss(self, trained: tuple[Path, Path, str]) -> None:
        history = json.loads((trained[1] / "log_history.json").read_text())
        losses = [entry["loss"] for entry in history if "loss" in entry]
        assert len(losses) == 8
        assert min(losses[4:]) < losses[0]

    def test_a_second_run_is_the_same(self, trained: tuple[Path, Path, str], tmp_path: Path) -> None:
        data = trained[0]
        reports = []
        for number in range(2):
            run(
                "finetune", data, "--targets", "logp", "--split-column", "split",
                "--output-dir", tmp_path / str(number), "--scale", "micro", "--epochs", 1,
                "--num-conformers", 2, "--num-workers", number,
            )  # fmt: skip
            reports.append(json.loads((tmp_path / str(number) / "metrics.json").read_text()))
        assert reports[0] == reports[1]

    def test_in_bfloat16_the_errors_are_nearly_those_of_float32(
        self, trained: tuple[Path, Path, str], tmp_path: Path
    ) -> None:
        found = []
        for precision in ("bfloat16", "float32"):
            run(
                "finetune", trained[0], "--targets", "logp", "--split-column", "split", "--num-workers", 0,
                "--output-dir", tmp_path / precision, "--scale", "micro", "--epochs", 1, "--precision", precision,
            )  # fmt: skip
            metrics = json.loads((tmp_path / precision / "metrics.json").read_text())
            found.append(metrics["test"]["logp"]["mae"])
        assert found[0] != found[1]
        assert found[0] == pytest.approx(found[1], rel=0.02)

    def test_a_fine_tuned_model_is_a_starting_point(self, trained: tuple[Path, Path, str], tmp_path: Path) -> None:
        output = run(
            "finetune", trained[0], "--targets", "size", "--split-column", "split",
            "--output-dir", tmp_path / "next", "--model", trained[1], "--epochs", 1, "--num-workers", 0,
        )  # fmt: skip
        assert "held-out test part" in output
        assert UniMol2Config.from_pretrained(tmp_path / "next").target_names == ["size"]


class TestPredict:
    def test_predictions_equal_those_of_the_run(self, trained: tuple[Path, Path, str], tmp_path: Path) -> None:
        data, folder, _ = trained
        output = run("predict", folder, data, "--output", tmp_path / "new" / "predictions.csv")
        predicted, rows = pd.read_csv(tmp_path / "new" / "predictions.csv"), pd.read_csv(folder / ROWS_FILE)
        given = pd.read_csv(data)
        pd.testing.assert_frame_equal(predicted[given.columns], given)
        for target in ("logp", "size"):
            np.testing.assert_allclose(predicted[f"predicted_{target}"], rows[f"predicted_{target}"], rtol=1e-4)
        assert predicted["error"].notna().sum() == 3
        assert predicted["error"].notna().equals(predicted["predicted_logp"].isna())
        assert "67 rows in" in output
        assert "3 failed" in output
        assert "1 from a 2D conformer" in output

    def test_other_columns_survive(self, trained: tuple[Path, Path, str], tmp_path: Path) -> None:
        data = write(tmp_path / "in.csv", name=["007", "b"], structure=["CCO", "x y"], note=["a,b", None])
        run("predict", trained[1], data, "--output", tmp_path / "out.csv", "--smiles-column", "structure")
        predicted = pd.read_csv(tmp_path / "out.csv", dtype=str)
        assert predicted["name"].tolist() == ["007", "b"]
        assert predicted["note"].tolist()[0] == "a,b"
        assert predicted["predicted_logp"].isna().tolist() == [False, True]

    def test_refusals_are_one_clear_line(self, trained: tuple[Path, Path, str], tmp_path: Path) -> None:
        data = write(tmp_path / "in.csv", smiles=["CCO"])
        output = run("predict", trained[1], data, "--output", tmp_path / "o.csv", "--smiles-column", "x", code=2)
        assert "no column x; its columns are: smiles" in " ".join(output.split())
        output = run("predict", trained[1], tmp_path / "none.csv", "--output", tmp_path / "o.csv", code=2)
        assert "does not exist" in output
        output = run("predict", tmp_path, data, "--output", tmp_path / "o.csv", code=2)
        assert "holds no Uni-Mol2 model" in output
        assert "Traceback" not in output

    def test_a_model_without_a_head_is_refused(self, tmp_path: Path) -> None:
        from unimol2_hf import UniMol2Model

        UniMol2Model(UniMol2Config.from_scale("micro")).save_pretrained(tmp_path / "base")
        UniMol2FeatureExtractor().save_pretrained(tmp_path / "base")
        data = write(tmp_path / "in.csv", smiles=["CCO"])
        output = run("predict", tmp_path / "base", data, "--output", tmp_path / "o.csv", code=2)
        assert "is not fine-tuned" in output


class TestRefusedRuns:
    """What a user can mend is told in one line, before the long work starts."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--loss", "huber"], 'Invalid value "huber" for --loss. Choose from: "smooth_l1"'),
            (["--split-method", "time"], 'Invalid value "time" for --split-method'),
            (["--pooling", "max"], 'Invalid value "max" for --pooling'),
            (["--precision", "int8"], 'Invalid value "int8" for --precision'),
            (["--seed", "-1"], "seed is -1"),
            (["--model", "no/such-model"], "no/such-model cannot be loaded"),
            (["--model", "Micro"], "Micro is a scale, not a model"),
            (["--scale", "huge"], "unknown scale 'huge'"),
            (["--learning-rate", "1e30", "--split-method", "random", "--epochs", "5"], "training diverged"),
        ],
    )
    def test_one_line(self, options: list[str], message: str, tmp_path: Path) -> None:
        given = dict(zip(options[::2], options[1::2], strict=True))
        usual = {**({} if "--model" in given else {"--scale": "micro"}), "--epochs": "1", **given}
        arguments = [
            "--targets",
            "tpsa",
            "--output-dir",
            tmp_path / "out",
            *(word for each in usual.items() for word in each),
        ]
        data = tmp_path / "data.csv"
        pd.read_csv(DRUGS).head(30).to_csv(data, index=False)
        output = run("finetune", data, *arguments, code=2)
        assert message in " ".join(output.split())
        assert "Traceback" not in output

    def test_another_models_folder(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
        with pytest.raises(ModelError, match=r"holds no Uni-Mol2 model .*'bert'"):
            load_model(UniMol2ForPropertyRegression, str(tmp_path))

    def test_an_incomplete_encoder(self, small_config: UniMol2Config, tmp_path: Path) -> None:
        UniMol2ForPropertyRegression(small_config).save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
        with pytest.raises(ModelError, match=r"is incomplete: no usable weights for unimol2\.layers\.2"):
            load_model(UniMol2ForPropertyRegression, str(tmp_path), begins_anew=(TASK_HEAD,))

    def test_columns_that_predictions_need(self, trained: tuple[Path, Path, str], tmp_path: Path) -> None:
        data = write(tmp_path / "in.csv", smiles=["CCO"], error=["0.5"], predicted_logp=["1"])
        output = run("predict", trained[1], data, "--output", tmp_path / "o.csv", code=2)
        assert "columns that the predictions need: predicted_logp, error" in output

    def test_brackets_in_names_are_printed(self, tmp_path: Path) -> None:
        output = run("finetune", tmp_path / "x [/y].csv", "--targets", "a", "--output-dir", tmp_path / "o", code=2)
        assert "x [/y].csv does not exist" in " ".join(output.split())

    def test_labels_beyond_single_precision(self, tmp_path: Path) -> None:
        table = pd.read_csv(DRUGS).head(20)
        data = write(tmp_path / "d.csv", smiles=table["smiles"], y=[-1e9 + 0.01 * n for n in range(20)])
        output = run(
            "finetune", data, "--targets", "y", "--output-dir", tmp_path / "o", "--split-method", "random", code=2
        )
        assert "subtract the offset" in " ".join(output.split())


class TestEveryKind:
    """A number, two values and classes in one table; extra numbers, weights, missing labels."""

    @pytest.fixture(scope="class")
    def mixed(self, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
        folder = tmp_path_factory.mktemp("mixed")
        table = pd.read_csv(DRUGS).head(60)
        data = write(
            folder / "data.csv",
            smiles=table["smiles"],
            logp=table["crippen_logp"],
            toxic=["active" if value > 2 else "inactive" for value in table["crippen_logp"]],
            size=[("small", "medium", "large")[min(2, len(text) // 25)] for text in table["smiles"]],
            ph=[7.0 + row % 3 for row in range(60)],
            weight=[1.0 + row % 2 for row in range(60)],
            split=[SPLIT_CYCLE[row % 10] for row in range(60)],
        )
        table = pd.read_csv(data)
        table.loc[table.index % 7 == 1, "toxic"] = None
        table.loc[5, "ph"] = None
        table.to_csv(data, index=False)
        output = run(
            "finetune", data, "--targets", "logp,toxic,size", "--split-column", "split", "--feature-columns", "ph",
            "--weight-column", "weight", "--class-weights", "balanced", "--output-dir", folder / "out", "--scale",
            "micro", "--epochs", 2, "--batch-size", 16, "--num-workers", 2, "--num-conformers", 2,
        )  # fmt: skip
        return data, folder / "out", output

    def test_the_guess_is_told(self, mixed: tuple[Path, Path, str]) -> None:
        told = " ".join(mixed[2].split())
        assert "logp: regression; toxic: binary, positive is active (not inactive); size: 3 classes" in told

    def test_the_config_says_the_task(self, mixed: tuple[Path, Path, str]) -> None:
        config = UniMol2Config.from_pretrained(mixed[1])
        assert [target["kind"] for target in config.targets] == ["regression", "binary", "multiclass"]
        assert config.targets[2]["classes"] == ["large", "medium", "small"]
        assert len(config.targets[2]["class_weights"]) == 3
        assert config.extra_feature_names == ["ph"]
        assert config.architectures == ["UniMol2ForPropertyPrediction"]
        assert config.problem_type is None

    def test_every_row_has_its_prediction(self, mixed: tuple[Path, Path, str]) -> None:
        rows, table = pd.read_csv(mixed[1] / ROWS_FILE), pd.read_csv(mixed[0])
        assert (rows["size"] == table["size"]).all()
        assert rows["toxic"].isna().tolist() == table["toxic"].isna().tolist()
        assert rows.loc[5, "error_code"] == "extra_features"
        assert rows["split"].isna().tolist() == [row == 5 for row in range(60)]
        sizes = rows[[f"predicted_size_{name}" for name in ("large", "medium", "small")]].drop(index=5)
        np.testing.assert_allclose(sizes.sum(axis=1), 1.0, rtol=1e-5)
        assert rows["predicted_toxic"].drop(index=5).between(0, 1).all()
        assert (sizes.idxmax(axis=1) == "predicted_size_" + rows["predicted_size"].drop(index=5)).all()

    def test_metrics_are_of_their_kind(self, mixed: tuple[Path, Path, str]) -> None:
        report = json.loads((mixed[1] / "metrics.json").read_text())["test"]
        assert {"mae", "rmse", "r2"} <= report["logp"].keys()
        assert {"roc_auc", "pr_auc", "log_loss"} <= report["toxic"].keys()
        assert {"accuracy", "log_loss", "log_loss_interval"} <= report["size"].keys()

    def test_a_reloaded_model_predicts_the_same(self, mixed: tuple[Path, Path, str]) -> None:
        """The folder alone, by the pipeline: what the row report says, conformers and all."""
        rows, table = pd.read_csv(mixed[1] / ROWS_FILE), pd.read_csv(mixed[0])
        pipe = pipeline("molecule-property-prediction", str(mixed[1]), device="cpu")
        given = zip(table["smiles"][:5], table["ph"], strict=False)
        results = pipe([{"molecule": smiles, "features": {"ph": ph}} for smiles, ph in given])
        for result, (_, row) in zip(results, rows.iterrows(), strict=False):
            assert result["predictions"]["logp"] == pytest.approx(row["predicted_logp"], rel=1e-4, abs=1e-5)
            assert result["predictions"]["toxic"] == pytest.approx(row["predicted_toxic"], rel=1e-4)
            assert result["predictions"]["size"] == row["predicted_size"]

    def test_the_folder_knows_what_it_was_trained_on(self, mixed: tuple[Path, Path, str]) -> None:
        rows, own = pd.read_csv(mixed[1] / ROWS_FILE), pd.read_parquet(mixed[1] / "training_set.parquet")
        used = rows[rows["split"].notna()]
        assert own["smiles"].tolist() == used["smiles"].tolist()
        assert own["split"].tolist() == used["split"].tolist()
        pipe = pipeline("molecule-property-prediction", str(mixed[1]), device="cpu")
        training = rows.loc[rows["split"] == "train", "smiles"].iloc[0]
        arrays = ([6, 6], np.array([[0.0, 0, 0], [1.5, 0, 0]]))
        given = [{"molecule": each, "features": {"ph": 7.0}} for each in (training, "CCCCCCCCCCCCCC", arrays, "C1CC")]
        similar = [result["nearest_similarity"] for result in pipe(given)]
        assert similar[0] == 1.0
        assert 0 < similar[1] < 0.9
        assert similar[2:] == [None, None]

    def test_simple_models_stand_beside_it(self, mixed: tuple[Path, Path, str]) -> None:
        report = json.loads((mixed[1] / "metrics.json").read_text())
        assert report["version"] == 1
        for metrics in report["baselines"].values():
            assert metrics["logp"]["count"] == report["test"]["logp"]["count"]
            assert metrics["size"]["log_loss"] > 0
        told = " ".join(mixed[2].split())
        assert "descriptors, boosting" in told
        assert "ECFP4, forest" in told

    def test_missing_extra_features_are_asked_for(self, mixed: tuple[Path, Path, str], tmp_path: Path) -> None:
        data = write(tmp_path / "new.csv", smiles=["CCO", "CCN"], other=[1, 2])
        output = run("predict", mixed[1], data, "--output", tmp_path / "out.csv", code=2)
        assert "no column ph" in " ".join(output.split())


class TestOneRunOneFolder:
    OPTIONS = ("--scale", "micro", "--epochs", 3, "--batch-size", 16, "--num-workers", 0, "--split-method", "random")

    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        table = pd.read_csv(DRUGS).head(30)
        return write(tmp_path / "data.csv", smiles=table["smiles"], tpsa=table["tpsa"], logp=table["crippen_logp"])

    def finetune(self, data: Path, output: Path, target: str = "tpsa", code: int = 0) -> str:
        told = run("finetune", data, "--targets", target, "--output-dir", output, *self.OPTIONS, code=code)
        return " ".join(told.split())

    def test_a_finished_run_is_told_and_another_refused(self, data: Path, tmp_path: Path) -> None:
        self.finetune(data, tmp_path / "out")
        weights = (tmp_path / "out" / "model.safetensors").read_bytes()
        assert "this run is finished" in self.finetune(data, tmp_path / "out")
        assert "another job (targets was ['tpsa'] and is ['logp'])" in self.finetune(
            data, tmp_path / "out", "logp", code=2
        )
        data.write_text(data.read_text().replace("smiles,", "smiles,").replace("CC", "CN", 1))
        assert "another job (other data)" in self.finetune(data, tmp_path / "out", code=2)
        assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights

    def test_a_second_process_is_refused(self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(output_folder, "_LOCK_SECONDS", 0.1)
        with output_folder.locked_output(tmp_path / "out"):
            assert "another process writes into" in self.finetune(data, tmp_path / "out", code=2)

    def test_stopped_after_an_epoch_it_goes_on_with_the_same_losses(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.finetune(data, tmp_path / "whole")

        with stopped_after(2, monkeypatch):
            self.finetune(data, tmp_path / "stopped")
        assert not (tmp_path / "stopped" / "metrics.json").exists()
        self.finetune(data, tmp_path / "stopped")
        for name in ("metrics.json", ROWS_FILE):
            assert (tmp_path / "stopped" / name).read_text() == (tmp_path / "whole" / name).read_text()
        losses = [
            [
                entry["loss"]
                for entry in json.loads((tmp_path / run / "log_history.json").read_text())
                if "loss" in entry
            ]
            for run in ("whole", "stopped")
        ]
        assert losses[0] == losses[1]


class TestDataset:
    def test_training_draws_conformers_at_random(self) -> None:
        molecules = list(UniMol2FeatureExtractor(num_conformers=3).featurize(["CCOCC", "C"]))
        dataset = FeaturizedDataset(molecules, np.zeros((2, 1)))
        known = [conformer.coordinates for conformer in molecules[0].conformers]
        draws = [dataset[0]["coordinates"] for _ in range(50)]
        drawn = {n for n, coordinates in enumerate(known) for draw in draws if np.array_equal(coordinates, draw)}
        assert all(any(np.array_equal(coordinates, draw) for coordinates in known) for draw in draws)
        assert drawn == {0, 1, 2}

    def test_lengths_must_agree(self) -> None:
        with pytest.raises(ValueError, match="0 molecules but 2 rows"):
            FeaturizedDataset([], np.zeros((2, 1)))


def test_model_in_memory_can_be_trained_by_hand() -> None:
    """The README's short loop: extractor, model, labels in the user's units."""
    extractor = UniMol2FeatureExtractor()
    model = UniMol2ForPropertyRegression(
        UniMol2Config.from_scale("micro", targets=[{"name": "y", "kind": "regression", "mean": 5.0, "std": 2.0}])
    )
    import torch

    batch, labels = extractor(["CCO", "c1ccccc1"]), torch.tensor([[3.0], [8.0]])
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(30):
        loss = model.eval()(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
