"""Graph-level targets: from the columns of a table to a loss that both read-outs learn from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import MIXED_SMILES
from kills import run_killed, run_whole
from pretraining_jobs import TINY_MODEL, WITHOUT_DROPOUT, tiny_settings, train
from pretraining_runs import assert_same_losses, history_of, jobs, train_in_two_processes
from rdkit import Chem
from rdkit.Chem import rdMolDescriptors
from rich.console import Console
from transformers import AutoModelForPreTraining

from unimol2_hf import ModelError, TableError, UniMol2Config, UniMol2Error, UniMol2ForPreTraining, export_with_code
from unimol2_hf.data.conformer_library import GRAPH_TARGETS, ConformerLibrary
from unimol2_hf.descriptors import descriptor_names, rdkit_descriptors
from unimol2_hf.errors import LibraryError, OutputFolderError, SettingsError
from unimol2_hf.jobs.build_conformers import RDKIT_DESCRIPTORS, build_conformers
from unimol2_hf.jobs.settings import BuildSettings
from unimol2_hf.modeling_unimol2 import graph_target_losses
from unimol2_hf.pretraining.collator import DRAW, DataCollatorForUniMol2Pretraining
from unimol2_hf.pretraining.graph_targets import WINSORIZED_AT, TargetScale, fitted_scale, scale_of_library
from unimol2_hf.pretraining.losses import validation_metrics, validation_sums
from unimol2_hf.pretraining.pretrain import make_data, make_model, pretrain, target_scale_of
from unimol2_hf.pretraining.settings import NoiseSettings, PretrainSettings
from unimol2_hf.pretraining.stream import Share
from unimol2_hf.training.checkpoints import last_complete_checkpoint

pytestmark = pytest.mark.numerical

QUIET = Console(quiet=True)
TARGETS = {"logp": 2.0, "teacher": 0.5}
TARGET_NAMES = ("logp_loss", "teacher_loss")
DETERMINISTIC: dict[str, Any] = {"model": {**TINY_MODEL, **WITHOUT_DROPOUT}, "targets": TARGETS, "ema_decay": None}
BLOCKS = [{"name": "a", "mean": [0.0], "std": [1.0]}, {"name": "b", "mean": [1.0, 2.0], "std": [3.0, 4.0]}]


def built(source: Path, folder: Path, **settings: Any) -> pd.DataFrame:
    made = BuildSettings(num_conformers=1, include_2d=False, rows_per_shard=8, num_workers=0, **settings)
    build_conformers(source, folder, made, QUIET)
    return pq.read_table(folder / "conformers").to_pandas()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 molecules with a number, of which some are missing, and a vector, which a third of them have."""
    folder = tmp_path_factory.mktemp("targets")
    smiles = MIXED_SMILES[:40]
    logp = [
        None if number % 5 == 0 else rdMolDescriptors.CalcCrippenDescriptors(Chem.MolFromSmiles(each))[0]
        for number, each in enumerate(smiles)
    ]
    random = np.random.default_rng(0)
    teacher = [None if number % 3 else random.normal(5.0, 2.0, 4).tolist() for number in range(len(smiles))]
    table = pa.table({"smiles": smiles, "logp": logp, "teacher": pa.array(teacher, pa.list_(pa.float32()))})
    pq.write_table(table, folder / "source.parquet")
    built(folder / "source.parquet", folder, keep_columns=("logp", "teacher"))
    return folder


class TestKeptColumns:
    def test_numbers_and_vectors_of_a_parquet_file(self, library: Path) -> None:
        source = pq.read_table(library / "source.parquet").to_pandas()
        kept = pq.read_table(library / "conformers").to_pandas()
        np.testing.assert_array_equal(kept["logp"], source["logp"])
        for found, given in zip(kept["teacher"], source["teacher"], strict=True):
            assert (found is None) == (given is None)
            if given is not None:
                np.testing.assert_array_equal(found, np.float32(given))

    def test_numbers_of_a_csv(self, tmp_path: Path) -> None:
        """Missing ones stay missing; a cell that is no number is a row with its reason; rows that fail keep theirs."""
        (tmp_path / "in.csv").write_text("smiles,y,z\nCCO,1.5,2\nCCN,,3\nCCC,>10,4\nC1CC,7,5\nOCC,8,6\n")
        kept = built(tmp_path / "in.csv", tmp_path / "out", keep_columns=("y", "z"))
        np.testing.assert_array_equal(kept["y"], [1.5, np.nan, np.nan, 7.0, 8.0])
        assert kept["z"].iloc[[0, 1, 3, 4]].tolist() == [2, 3, 5, 6]
        assert "'y' holds '>10', which is no number" in kept["error"][2]
        assert "duplicate of row 0" in kept["error"][4]

    def test_properties_of_an_sdf(self, tmp_path: Path) -> None:
        with Chem.SDWriter(str(tmp_path / "in.sdf")) as writer:
            for smiles, value in (("CCO", "1.5"), ("CCN", None), ("CCC", "no")):
                molecule = Chem.MolFromSmiles(smiles)
                if value is not None:
                    molecule.SetProp("y", value)
                writer.write(molecule)
        kept = built(tmp_path / "in.sdf", tmp_path / "out", keep_columns=("y",))
        np.testing.assert_array_equal(kept["y"], [1.5, np.nan, np.nan])
        assert "'y' holds 'no'" in kept["error"][2]

    @pytest.mark.parametrize(
        ("name", "content", "keep", "problem"),
        [
            ("in.csv", "smiles,y\nCCO,1\n", ("x",), "no column x"),
            ("in.smi", "CCO a\n", ("y",), "no column y: it has no header"),
            ("in.csv", "smiles,error\nCCO,1\n", ("error",), "names error; a library has it already"),
            ("in.csv", "smiles,y\nCCO,1\n", ("y", "y"), "a column twice"),
        ],
    )
    def test_what_cannot_be_kept_is_named(
        self, tmp_path: Path, name: str, content: str, keep: tuple[str, ...], problem: str
    ) -> None:
        (tmp_path / name).write_text(content)
        with pytest.raises((TableError, SettingsError), match=problem):
            built(tmp_path / name, tmp_path / "out", keep_columns=keep)

    @pytest.mark.parametrize(
        ("values", "problem"),
        [
            (pa.array(["a", "b"]), "is of type string"),
            (pa.array([[1.0], [1.0, 2.0]]), "lists of different lengths"),
            (pa.array([{"x": 1.0}, {"x": 2.0}]), "is of type struct"),
        ],
        ids=["text", "lengths", "struct"],
    )
    def test_columns_of_parquet_that_are_no_numbers(self, tmp_path: Path, values: pa.Array, problem: str) -> None:
        pq.write_table(pa.table({"smiles": ["CCO", "CCN"], "y": values}), tmp_path / "in.parquet")
        with pytest.raises(TableError, match=problem):
            built(tmp_path / "in.parquet", tmp_path / "out", keep_columns=("y",))

    def test_a_library_is_a_source_again(self, library: Path, tmp_path: Path) -> None:
        kept = built(library / "conformers", tmp_path, keep_columns=("teacher",))
        first = pq.read_table(library / "conformers").to_pandas()
        for one, other in zip(kept["teacher"], first["teacher"], strict=True):
            np.testing.assert_array_equal(one, other)

    def test_another_choice_of_columns_is_another_job(self, library: Path) -> None:
        with pytest.raises(OutputFolderError, match="keep_columns"):
            built(library / "source.parquet", library, keep_columns=("logp",))


class TestDescriptors:
    def test_they_are_rdkits(self, tmp_path: Path) -> None:
        (tmp_path / "in.smi").write_text("CC(=O)Oc1ccccc1C(=O)O\nC1CC\n[Na+].[Cl-]\n")
        kept = built(tmp_path / "in.smi", tmp_path / "out", descriptors="rdkit")[RDKIT_DESCRIPTORS]
        aspirin = dict(zip(descriptor_names(), kept[0], strict=True))
        assert aspirin["MolWt"] == pytest.approx(180.159, abs=1e-3)
        assert aspirin["RingCount"] == 1
        assert kept[1] is None
        assert len(kept[2]) == len(descriptor_names()) == 214

    def test_their_names_are_in_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "in.smi").write_text("CCO\n")
        built(tmp_path / "in.smi", tmp_path / "out", descriptors="rdkit")
        (path,) = (tmp_path / "out" / "conformers").glob("*.parquet")
        metadata = pq.read_schema(path).field(RDKIT_DESCRIPTORS).metadata
        assert tuple(json.loads(metadata[b"names"])) == descriptor_names()

    @pytest.mark.parametrize("smiles", ["[Na+]", "[H][H]", "C", "[U]", "[O-][Cl+3]([O-])([O-])[O-].[K+]"])
    def test_odd_molecules_have_numbers_or_nothing(self, smiles: str) -> None:
        values = rdkit_descriptors(Chem.MolFromSmiles(smiles))
        assert values.dtype == np.float32
        assert not np.isinf(values).any()

    def test_other_descriptors_are_refused(self) -> None:
        with pytest.raises(SettingsError, match="unknown descriptors 'mordred'; use one of rdkit"):
            BuildSettings(descriptors="mordred")  # type: ignore[arg-type]


class TestScale:
    def test_without_outliers_it_is_mean_and_deviation(self) -> None:
        values = np.random.default_rng(0).normal([3.0, -1.0], [2.0, 0.1], (500, 2))
        values[::7, 1] = np.nan
        scale = fitted_scale(("a", "b"), (1, 1), values)
        np.testing.assert_allclose(scale.mean, np.nanmean(values, 0), rtol=1e-5)
        np.testing.assert_allclose(scale.std, np.nanstd(values, 0), rtol=1e-5)
        made = scale.standardised(values.astype(np.float32))
        assert np.isnan(made).sum() == np.isnan(values).sum()

    def test_outliers_do_not_decide(self) -> None:
        values = np.random.default_rng(0).normal(0.0, 1.0, (10_000, 1))
        values[:5] = 1e9
        scale = fitted_scale(("a",), (1,), values)
        assert 0.9 < scale.std[0] < 1.2
        assert scale.standardised(values.astype(np.float32)).max() == WINSORIZED_AT

    def test_infinity_is_missing_and_a_constant_is_zero(self) -> None:
        values = np.array([[np.inf, 7.0], [1.0, 7.0], [3.0, 7.0]])
        scale = fitted_scale(("a",), (2,), values)
        np.testing.assert_array_equal(scale.standardised(values.astype(np.float32)), [[np.nan, 0], [-1, 0], [1, 0]])

    def test_a_column_without_a_number_is_named(self) -> None:
        with pytest.raises(TableError, match="'b' has a target without any number"):
            fitted_scale(("a", "b"), (1, 2), np.array([[1.0, 2.0, np.nan], [2.0, 3.0, np.nan]]))

    def test_a_config_holds_it(self) -> None:
        scale = TargetScale.of_blocks(BLOCKS)
        assert (scale.names, scale.sizes, scale.blocks()) == (("a", "b"), (1, 2), BLOCKS)

    def test_it_is_the_librarys(self, library: Path) -> None:
        found = scale_of_library(ConformerLibrary(library, targets=("logp", "teacher")))
        source = pq.read_table(library / "conformers").to_pandas()
        source = source[source["error"].isna()]
        assert found.sizes == (1, 4)
        assert found.mean[0] == pytest.approx(source["logp"].mean(), rel=1e-5)
        np.testing.assert_allclose(found.mean[1:], np.stack(source["teacher"].dropna()).mean(0), rtol=1e-5)

    @pytest.mark.parametrize(("name", "problem"), [("nowhere", "lacks nowhere"), ("smiles", "is of type string")])
    def test_columns_that_are_no_targets(self, library: Path, name: str, problem: str) -> None:
        with pytest.raises((LibraryError, TableError), match=problem):
            make_model(tiny_settings(str(library), "unused", targets={name: 1.0}))


class TestSamples:
    row: dict[str, Any] = {  # noqa: RUF012 - never changed
        "smiles": "CCO",
        "atomic_numbers": [6, 6, 8],
        "conformers": [[0.0, 0, 0, 1, 1, 1, 2, 2, 0], [0.0, 0, 0, 1, 0, 0, 2, 1, 0]],
        "is_3d": [True, False],
        GRAPH_TARGETS: [4.0, np.nan, 10.0],
    }

    def collator(self, **noise: float) -> DataCollatorForUniMol2Pretraining:
        return DataCollatorForUniMol2Pretraining(noise=NoiseSettings(**noise), targets=TargetScale.of_blocks(BLOCKS))

    def test_they_are_standardised(self) -> None:
        batch = self.collator()([{**self.row, DRAW: 0}, {**self.row, DRAW: 1}])
        np.testing.assert_array_equal(batch[GRAPH_TARGETS], [[4.0, np.nan, 2.0]] * 2)

    def test_without_them_every_draw_is_the_same(self) -> None:
        rows = [{**self.row, DRAW: number} for number in range(20)]
        plain, with_targets = DataCollatorForUniMol2Pretraining()(rows), self.collator(target_probability=0.3)(rows)
        assert set(with_targets) - set(plain) == {GRAPH_TARGETS}
        for name, value in plain.items():
            assert torch.equal(value, with_targets[name])

    def test_shares_of_clean_samples_and_of_targets(self) -> None:
        collator = self.collator(clean_probability=0.3, target_probability=0.4)
        samples = [collator.sample({**self.row, DRAW: number}) for number in range(4000)]
        clean = [bool((each.features["coordinates"] == each.coordinates).all()) for each in samples]
        assert np.mean(clean) == pytest.approx(0.3, abs=0.03)
        for sample, is_clean in zip(samples, clean, strict=True):
            if is_clean:
                assert sample.features["input_ids"].tolist() == [6, 6, 8]
                assert (sample.labels == -100).all()
                assert sample.features["degrees"].tolist() == [3, 4, 3]
                assert sample.coordinates[0, 2] != 0  # the 3D conformer
        asked = np.mean([~np.isnan(each.targets) for each in samples if each.targets is not None], axis=0)
        np.testing.assert_allclose(asked, [0.4, 0.0, 0.4], atol=0.03)

    def test_a_row_without_them_is_named(self) -> None:
        row = {name: value for name, value in self.row.items() if name != GRAPH_TARGETS}
        with pytest.raises(UniMol2Error, match="needs 'graph_targets', its values of a, b"):
            self.collator()([{**row, DRAW: 0}])

    @pytest.mark.parametrize("name", ["clean_probability", "target_probability"])
    def test_shares_out_of_range(self, name: str) -> None:
        with pytest.raises(UniMol2Error, match=name):
            NoiseSettings(**{name: 1.5})


class TestModel:
    def batch(self, library: Path) -> tuple[UniMol2ForPreTraining, dict[str, Any]]:
        settings = tiny_settings(str(library), "unused", max_rows=100, max_pairs=10**6, **DETERMINISTIC)
        model = make_model(settings)
        return model, make_data(settings, Share(), target_scale_of(model))[2].step(0)["micro_batches"][0]

    def test_off_by_default(self, small_config: UniMol2Config) -> None:
        """What official checkpoints load into is as it was."""
        model = UniMol2ForPreTraining(small_config)
        assert not any("graph" in name for name in model.state_dict())
        assert small_config.graph_targets is None

    def test_losses_are_means_over_what_is_present(self) -> None:
        predicted = torch.tensor([[[0.5, 3.0, 1.0]], [[1.5, 0.0, 1.0]]])
        losses = graph_target_losses(predicted, torch.tensor([[1.0, float("nan"), 1.0]]), (1, 2))
        torch.testing.assert_close(losses, torch.tensor([0.125, 0.0]))

    def test_both_read_outs_learn(self, library: Path) -> None:
        model, batch = self.batch(library)
        output = model(**batch)
        assert output.predicted_graph_targets.shape == (2, len(batch["input_ids"]), 5)
        output.graph_losses.sum().backward()
        gradients = [p.grad for name, p in model.named_parameters() if name.startswith("graph_target_head.")]
        assert len(gradients) == 12
        assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)

    def test_one_molecules_prediction_does_not_depend_on_the_batch(self, library: Path) -> None:
        model, batch = self.batch(library)
        whole = model.eval()(**batch).predicted_graph_targets
        row = int(batch["attention_mask"].sum(1).argmin())
        count = int(batch["attention_mask"][row].sum())
        single = {
            name: value[row : row + 1] if name == GRAPH_TARGETS else _cut(value[row : row + 1], count)
            for name, value in batch.items()
        }
        torch.testing.assert_close(model(**single).predicted_graph_targets[:, 0], whole[:, row], rtol=1e-4, atol=1e-5)

    def test_targets_that_the_model_does_not_have_are_refused(self, library: Path, small_config: UniMol2Config) -> None:
        model, batch = self.batch(library)
        with pytest.raises(ValueError, match=r"do not fit the 5 of config\.graph_targets"):
            model(**{**batch, GRAPH_TARGETS: batch[GRAPH_TARGETS][:, :3]})
        with pytest.raises(ValueError, match=r"do not fit the 0 of config\.graph_targets"):
            UniMol2ForPreTraining(small_config)(**batch)

    def test_without_targets_in_the_batch_there_is_no_loss_of_theirs(self, library: Path) -> None:
        model, batch = self.batch(library)
        output = model(**{name: value for name, value in batch.items() if name != GRAPH_TARGETS})
        assert output.graph_losses is None
        assert output.predicted_graph_targets is not None

    @pytest.mark.parametrize(
        ("blocks", "problem"),
        [
            ([{"name": "a", "mean": [0.0]}], "need name, mean and std"),
            ([{"name": "a", "mean": [0.0], "std": [0.0]}], "std positive"),
            ([{"name": "a", "mean": [], "std": []}], "need name, mean and std"),
            ([BLOCKS[0], BLOCKS[0]], "names of their own"),
        ],
    )
    def test_a_config_that_cannot_be(self, blocks: list[dict[str, Any]], problem: str) -> None:
        with pytest.raises(Exception, match=problem) as caught:
            UniMol2Config.from_scale("micro", graph_targets=blocks)
        assert isinstance(caught.value, ValueError) or isinstance(caught.value.__cause__, ValueError)

    def test_an_export_leaves_them_out_unless_asked(self, library: Path, tmp_path: Path) -> None:
        model, batch = self.batch(library)
        export_with_code(model, tmp_path / "plain")
        export_with_code(model, tmp_path / "whole", keep_graph_targets=True)
        assert model.graph_target_head is not None
        plain, loading = AutoModelForPreTraining.from_pretrained(tmp_path / "plain", output_loading_info=True)
        assert not any(loading[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert plain.config.graph_targets is None
        batch.pop(GRAPH_TARGETS)
        whole = AutoModelForPreTraining.from_pretrained(tmp_path / "whole").eval()
        model.eval()
        for loaded, names in ((plain, ("token_logits",)), (whole, ("token_logits", "predicted_graph_targets"))):
            for name in names:
                torch.testing.assert_close(loaded.eval()(**batch)[name], model(**batch)[name], rtol=1e-5, atol=1e-5)


def _cut(value: torch.Tensor, count: int) -> torch.Tensor:
    """Without padding: an array with one or two dimensions of atoms."""
    pairwise = value.ndim > 2 and value.shape[1] == value.shape[2]
    return value[:, :count, :count] if pairwise else value[:, :count]


class TestRuns:
    @pytest.mark.slow
    def test_killed_it_ends_with_the_losses_of_the_unbroken_run(self, library: Path, tmp_path: Path) -> None:
        changes = {"targets": TARGETS, "noise": {"clean_probability": 0.5, "target_probability": 0.7}}

        def steps() -> int:
            last = last_complete_checkpoint(tmp_path / "killed" / "checkpoints")
            return 0 if last is None else int(last.name.split("-")[1]) // 2

        run_whole(jobs(), train, str(library), str(tmp_path / "whole"), changes)
        killed = run_killed(jobs(), train, (str(library), str(tmp_path / "killed"), changes), steps, 12, 4, 0.1, 3)
        assert killed.kills == 4
        assert_same_losses(tmp_path / "killed", tmp_path / "whole", 1e-6, TARGET_NAMES)

    def test_two_processes_train_as_one(self, library: Path, tmp_path: Path) -> None:
        changes = {**DETERMINISTIC, "max_steps": 8}
        run_whole(jobs(), train, str(library), str(tmp_path / "one"), changes)
        train_in_two_processes(library, tmp_path / "two", changes)
        assert_same_losses(tmp_path / "one", tmp_path / "two", 2e-5, TARGET_NAMES)

    def test_a_step_is_one_batch_however_it_is_cut(self, library: Path, tmp_path: Path) -> None:
        """Also where a part holds no target of a kind."""
        for name, rows in (("small", 1), ("large", 8)):
            pretrain(
                tiny_settings(str(library), str(tmp_path / name), max_rows=rows, max_steps=4, **DETERMINISTIC), QUIET
            )
        assert_same_losses(tmp_path / "small", tmp_path / "large", 2e-5, TARGET_NAMES)

    def test_the_losses_are_logged_apart_and_weighted_in_the_sum(self, library: Path, tmp_path: Path) -> None:
        changes = {**DETERMINISTIC, "loss_weights": {"token": 0.5, "distance": 0.0}}
        pretrain(
            tiny_settings(
                str(library), str(tmp_path), max_steps=60, logging_steps=20, save_steps=20, eval_steps=20, **changes
            ),
            QUIET,
        )
        training = [entry for entry in history_of(tmp_path) if "loss" in entry]
        for entry in training:
            weighted = 0.5 * entry["token_loss"] + entry["coordinate_loss"]
            weighted += 2.0 * entry["logp_loss"] + 0.5 * entry["teacher_loss"]
            assert entry["loss"] == pytest.approx(weighted, rel=1e-4)
        assert training[-1]["logp_loss"] < training[0]["logp_loss"]

    def test_held_out_r2(self, library: Path) -> None:
        """Against a plain computation in one batch."""
        settings = tiny_settings(str(library), "unused", max_rows=100, max_pairs=10**6, **DETERMINISTIC)
        model = make_model(settings)
        batches = make_data(settings, Share(), target_scale_of(model))[3]
        found = validation_metrics(validation_sums(model, batches))
        with torch.no_grad():
            predicted = torch.cat([model.eval()(**batch).predicted_graph_targets[0] for batch in batches]).numpy()
        wanted = np.concatenate([batch[GRAPH_TARGETS].numpy() for batch in batches])
        present = ~np.isnan(wanted[:, 0])
        values, said = wanted[present, 0], predicted[present, 0]
        expected = 1 - ((said - values) ** 2).sum() / ((values - values.mean()) ** 2).sum()
        assert found["logp_r2"] == pytest.approx(expected, rel=1e-4)

    def test_a_run_goes_on_from_a_model_with_its_scale(self, library: Path, tmp_path: Path) -> None:
        """Targets and heads are that model's; other targets get a new head, none at all leave it out."""
        model = make_model(tiny_settings(str(library), "unused", **DETERMINISTIC))
        blocks = model.config.graph_targets or []
        blocks[0]["mean"] = [123.0]
        model.save_pretrained(tmp_path)

        def started(**targets: float) -> UniMol2ForPreTraining:
            return make_model(PretrainSettings(str(library), "unused", start_from=str(tmp_path), targets=targets))

        same = started(logp=1.0, teacher=1.0)
        assert same.config.graph_targets == blocks
        for name, value in model.state_dict().items():
            assert torch.equal(same.state_dict()[name], value)
        assert started(teacher=1.0).config.graph_target_sizes == [4]
        assert started().graph_target_head is None

    def test_the_plan_goes_on_where_another_run_ended(self, library: Path, tmp_path: Path) -> None:
        """With `start_step` a run's first step is that step of the plan, and its samples come in no step before."""
        seen = []
        for start in (0, 3):
            settings = tiny_settings(str(library), str(tmp_path / str(start)), start_step=start, **DETERMINISTIC)
            model = make_model(settings)
            stream = make_data(settings, Share(), target_scale_of(model))[2]
            stream.first_step = settings.start_step
            seen.append([step["step"] for step, _ in zip(stream, range(4), strict=False)])
        assert seen == [[0, 1, 2, 3], [3, 4, 5, 6]]
        pretrain(
            tiny_settings(str(library), str(tmp_path / "run"), start_step=3, **{**DETERMINISTIC, "max_steps": 2}), QUIET
        )
        pretrain(tiny_settings(str(library), str(tmp_path / "other"), **{**DETERMINISTIC, "max_steps": 2}), QUIET)
        assert history_of(tmp_path / "run")[0]["loss"] != history_of(tmp_path / "other")[0]["loss"]

    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"targets": {"logp": "much"}}, "the weight of logp is 'much'"),
            ({"targets": {"logp": -1.0}}, "the weight of logp is -1.0"),
            ({"targets": {"token": 1.0}}, "may not be named token"),
            ({"loss_weights": {"tokens": 1.0}}, "unknown tokens; known are token, coordinate, distance"),
            ({"start_step": -1}, "start_step is -1"),
        ],
    )
    def test_settings_that_cannot_be_used_are_named(self, changes: dict[str, Any], problem: str) -> None:
        with pytest.raises(SettingsError, match=problem):
            tiny_settings("library", "run", **changes)

    def test_a_model_that_lacks_more_than_the_head_is_refused(self, library: Path, tmp_path: Path) -> None:
        UniMol2ForPreTraining(UniMol2Config.from_scale("micro", **TINY_MODEL)).unimol2.save_pretrained(tmp_path)
        with pytest.raises(ModelError, match="no usable weights for coordinate_head"):
            make_model(PretrainSettings(str(library), "unused", start_from=str(tmp_path), targets={"logp": 1.0}))
