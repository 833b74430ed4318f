"""The recipe of unimol2-nano: what its library leaves out, how its run is found again and handed over."""

import json
from pathlib import Path
from typing import Any

import background
import cls_probe
import frozen_probe
import gpu_input
import handover
import leaks
import library
import numpy as np
import package
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from pretraining_jobs import TINY_MODEL, tiny_settings
from rich.console import Console
from safetensors.torch import load_file
from sklearn.kernel_ridge import KernelRidge

from unimol2_hf import UniMol2Config, UniMol2FeatureExtractor, UniMol2ForPreTraining, UniMol2Model
from unimol2_hf.cli.options import read_settings
from unimol2_hf.data.conformer_library import ConformerLibrary
from unimol2_hf.descriptors import descriptor_names
from unimol2_hf.jobs.build_conformers import RDKIT_DESCRIPTORS, build_conformers
from unimol2_hf.jobs.settings import BuildSettings
from unimol2_hf.pretraining.graph_targets import scale_of_library
from unimol2_hf.pretraining.pretrain import make_data, make_model, pretrain, target_scale_of
from unimol2_hf.pretraining.settings import PretrainSettings
from unimol2_hf.pretraining.stream import Share

RECIPE = Path(__file__).parents[2] / "recipes" / "nano"
HANDOVER = Path(__file__).parents[1] / "files" / "handover"
QUIET = Console(quiet=True)
# Atomic numbers and coordinates in angstrom, near enough for RDKit to find the bonds.
WATER = ([8, 1, 1], [0, 0, 0.12, 0, 0.76, -0.48, 0, -0.76, -0.48])
METHANE = ([6, 1, 1, 1, 1], [0, 0, 0, 0.63, 0.63, 0.63, -0.63, -0.63, 0.63, -0.63, 0.63, -0.63, 0.63, -0.63, -0.63])
FORMALDEHYDE = ([6, 8, 1, 1], [0, 0, -0.53, 0, 0, 0.68, 0, 0.94, -1.12, 0, -0.94, -1.12])
FLUOROMETHANE = ([6, 9, 1, 1, 1], [0, 0, -0.63, 0, 0, 0.75, 0, 1.03, -0.99, 0.89, -0.51, -0.99, -0.89, -0.51, -0.99])


def build_alcohols(folder: Path, count: int) -> None:
    """A library of methanol, ethanol, ..., each with its number of carbons as `y`."""
    rows = "".join(f"{'C' * carbons}O,{carbons}\n" for carbons in range(1, count + 1))
    (folder / "in.csv").write_text(f"smiles,y\n{rows}")
    kept = BuildSettings(num_conformers=1, include_2d=False, keep_columns=("y",), rows_per_shard=8, num_workers=0)
    build_conformers(folder / "in.csv", folder, kept, QUIET)


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """The public tables in small: QM9 labels water and the fluoride in full; drug-like rows hold the fluoride too."""
    molecules = {"O": WATER, "C": METHANE, "C=O": FORMALDEHYDE, "CF": FLUOROMETHANE}
    labels = {"O": 1.85, "CF": 1.8}
    qm9 = pa.table(
        {
            "gdb_index": pa.array([5, 3, 7, 9], pa.int32()),
            "smiles": list(molecules),
            "atomic_numbers": pa.array([each[0] for each in molecules.values()], pa.list_(pa.int8())),
            "coordinates": pa.array([each[1] for each in molecules.values()], pa.list_(pa.float32())),
            "mu": [labels.get(smiles) for smiles in molecules],
        }
    )
    pq.write_table(qm9, tmp_path / "qm9.parquet")
    described = {"gdb_index": pa.array([3, 5, 7, 9], pa.int32()), "x": [3.0, 5.0, 7.0, 9.0], "y": [0.3, 0.5, 0.7, 0.9]}
    pq.write_table(pa.table(described), tmp_path / "descriptors_qm9.parquet")
    drugs = ["CCO", "FC", "C[C@H](N)O", "*CC", "CF", "CCN"]
    sizes = {"CCO": 3, "FC": 2, "C[C@H](N)O": 4, "*CC": 3, "CF": 2, "CCN": 3}
    lines = {smiles: np.arange(3.0 * sizes[smiles]).tolist() for smiles in drugs}
    for name, part in zip(library.DRUG_LIKE, (drugs[:3], drugs[3:]), strict=True):
        coordinates = pa.array([lines[smiles] for smiles in part], pa.list_(pa.float32()))
        pq.write_table(pa.table({"smiles": part, "coordinates": coordinates}), tmp_path / name)
    numbers = np.arange(6.0)
    pq.write_table(pa.table({"smiles": drugs, "x": numbers, "y": -numbers}), tmp_path / "descriptors_pretrain.parquet")
    pq.write_table(pa.table({"smiles": drugs, "m": numbers}), tmp_path / "minimol_pretrain.parquet")
    return tmp_path


class TestLibrary:
    def test_labelled_molecules_are_left_out_of_all_files(self, tables: Path) -> None:
        library.main(tables, tables / "out", qm9_count=100, workers=1)
        made = pq.read_table(tables / "out" / "library" / "conformers").to_pandas().set_index("smiles")
        assert set(made.index) == {"CCO", "C[C@H](N)O", "*CC", "CCN", "C", "C=O"}
        assert "wildcard" in made.loc["*CC", "error"]
        assert made["error"].isna().sum() == 5
        np.testing.assert_array_equal(made.loc["CCN", RDKIT_DESCRIPTORS], [5.0, -5.0])
        np.testing.assert_array_equal(made.loc["C=O", RDKIT_DESCRIPTORS], [7.0, np.float32(0.7)])
        assert made.loc["C=O", "minimol_1"] is None or np.isnan(made.loc["C=O", "minimol_1"])
        assert made.loc["CCN", "minimol_1"] == 5.0

    def test_tables_of_other_molecules_are_refused(self, tables: Path) -> None:
        pq.write_table(pa.table({"smiles": ["C"] * 6, "m": np.arange(6.0)}), tables / "minimol_pretrain.parquet")
        with pytest.raises(ValueError, match="of other molecules"):
            library.main(tables, tables / "out", qm9_count=100, workers=1)


class TestGpuInput:
    def test_what_is_unpacked_is_what_was_packed(self, tables: Path) -> None:
        gpu_input.pack(tables, tables / "gpu" / "input.parquet", workers=1)
        gpu_input.unpack(tables / "gpu" / "input.parquet", tables / "gpu")
        made = pq.read_table(tables / "gpu" / "library" / "conformers").to_pandas().set_index("smiles")
        assert set(made.index) == {"CCO", "C[C@H](N)O", "*CC", "CCN"}
        coordinates = np.arange(9.0).reshape(3, 3)
        np.testing.assert_allclose(
            made.loc["CCN", "conformers"][0], (coordinates - coordinates.mean(0)).ravel(), atol=0.005
        )
        assert made.loc["CCN", "minimol_1"] == 5.0
        described = dict(zip(descriptor_names(), made.loc["CCO", RDKIT_DESCRIPTORS], strict=True))
        assert described["MolWt"] == pytest.approx(46.07, abs=0.01)


class TestRun:
    def checkpoint(self, folder: Path, step: int, complete: bool = True) -> None:
        path = folder / "train" / "checkpoints" / f"checkpoint-{step}"
        path.mkdir(parents=True)
        if complete:
            (path / "complete.json").write_text("{}")

    def test_the_furthest_run_goes_on(self, tmp_path: Path) -> None:
        """A run of this machine, unless another machine handed over more; a checkpoint cut short does not count."""
        away = tmp_path / "handover"
        assert background.furthest_run(tmp_path, away) == tmp_path / "run-0"
        self.checkpoint(tmp_path / "run-0", 300)
        self.checkpoint(tmp_path / "run-0", 400, complete=False)
        assert background.reached(tmp_path / "run-0") == 300
        away.mkdir()
        (away / "handover.json").write_text(json.dumps({"step": 1000}))
        assert background.furthest_run(tmp_path, away) == tmp_path / "run-1000"
        self.checkpoint(tmp_path / "run-1000", 50)
        assert background.reached(tmp_path / "run-1000") == 1050
        (away / "handover.json").write_text(json.dumps({"step": 1050}))
        assert background.furthest_run(tmp_path, away) == tmp_path / "run-1000"

    def test_settings_of_a_run_from_a_handover(self, tmp_path: Path) -> None:
        """They can be read, and are nano.yaml's but for where the run begins."""
        made = {}
        for step in (0, 700):
            folder = tmp_path / f"run-{step}"
            folder.mkdir()
            made[step] = read_settings(
                PretrainSettings, background.write_settings(folder, tmp_path, RECIPE / "nano.yaml", HANDOVER)
            )
        assert (made[0].start_from, made[0].start_step) == (None, 0)
        assert made[700].start_from == str(tmp_path / "run-700" / "handover")
        assert (made[700].start_step, made[700].warmup_steps) == (700, background.WARMUP_AFTER_HANDOVER)
        assert made[700].targets == made[0].targets
        assert made[0].trainer == {"lr_scheduler_type": "constant_with_warmup"}

    def test_the_rate_falls_in_a_straight_line_over_the_last_fifth(self, tmp_path: Path, library_dir: Path) -> None:
        """From the checkpoint of the run at a constant rate, in a folder of its own, which then is the furthest run."""
        run = tmp_path / "run-100"
        constant = {"trainer": {"lr_scheduler_type": "constant_with_warmup"}, "warmup_steps": 2}
        schedule = {"max_steps": 12, "save_steps": 4, "eval_steps": 4, "logging_steps": 1}
        settings = tiny_settings(str(library_dir), str(run / "train"), start_step=100, **constant, **schedule)
        pretrain(settings, QUIET)
        (run / "run.yaml").write_text(yaml.safe_dump(json.loads((run / "train" / "settings.json").read_text())))
        (run / "hours.csv").write_text("100,1900,3600,10\n")
        (run / "handover").mkdir()
        (run / "handover" / "handover.json").write_text('{"hours": 3.5}')
        assert background.reached(run) * settings.samples_per_step < background.DECAY_FROM
        assert not background.is_due(run)
        decayed = background.begin_decay(run)
        assert background.furthest_run(tmp_path, tmp_path / "none") == decayed == tmp_path / "decayed-100"
        assert background.hours_of(decayed) == background.hours_of(run)
        assert not background.is_due(decayed)
        assert not background.is_finished(decayed)
        path = background.write_settings(decayed, tmp_path, RECIPE / "nano.yaml", HANDOVER)
        falling = (100 + 12) // 4
        history = pretrain(read_settings(PretrainSettings, path), QUIET)
        rates = {entry["step"]: entry["learning_rate"] for entry in history if "learning_rate" in entry}
        assert list(rates) == list(range(1, 12 + falling + 1))
        # A step is logged with the rate that it was made with.
        assert [rates[step] for step in (3, 8, 12)] == [settings.learning_rate] * 3
        found = [rates[12 + 1 + done] / settings.learning_rate for done in range(falling)]
        np.testing.assert_allclose(found, 1 - np.arange(falling) / falling, atol=1e-9)
        with pytest.raises(SystemExit, match="package it"):
            background.hand_over(tmp_path, tmp_path, tmp_path / "none", tmp_path / "progress.csv")

    def test_the_rate_is_due_to_fall_after_a_million_samples(self, tmp_path: Path) -> None:
        run = tmp_path / "run-30000"
        self.checkpoint(run, 1249)
        (run / "run.yaml").write_text("{samples_per_step: 32, warmup_steps: 300}\n")
        assert not background.is_due(run)
        self.checkpoint(run, 1250)
        assert background.is_due(run)

    def test_a_run_from_a_later_handover_warms_up_first(self, tmp_path: Path) -> None:
        run = tmp_path / "run-40000"
        run.mkdir()
        (run / "run.yaml").write_text("{samples_per_step: 32, warmup_steps: 300}\n")
        assert not background.is_due(run)
        self.checkpoint(run, 200)
        assert not background.is_due(run)
        self.checkpoint(run, 400)
        assert background.is_due(run)

    def test_hours_are_the_last_note_of_each_start(self, tmp_path: Path) -> None:
        (tmp_path / "hours.csv").write_text("100,1900,3600,10\n100,3700,5400,20\n9000,12600,1800,30\n")
        assert background.hours_of(tmp_path) == (2.0, 2.0)
        assert background.hours_of(tmp_path / "none") == (0.0, 0.0)
        (tmp_path / "handover").mkdir()
        (tmp_path / "handover" / "handover.json").write_text('{"hours": 3.5, "processor_hours": 4.5}')
        assert background.hours_of(tmp_path) == (5.5, 6.5)

    def test_processor_time_counts_children(self) -> None:
        import os

        assert background._processor_seconds(os.getpid()) > 0


class TestHandover:
    def test_a_committed_one_loads(self) -> None:
        """Made when the first run began: every later version goes on from such a folder, head of targets included."""
        settings = PretrainSettings(
            "unused", "unused", start_from=str(HANDOVER), targets={"numbers": 1.0, "teacher": 1.0}
        )
        model = make_model(settings).eval()
        assert model.config.graph_target_sizes == [3, 4]
        expected = load_file(HANDOVER / "expected.safetensors")
        inputs = {name.removeprefix("inputs."): each for name, each in expected.items() if name.startswith("inputs.")}
        with torch.no_grad():
            output = model(**inputs)
        for name in ("predicted_graph_targets", "token_logits", "predicted_coordinates"):
            torch.testing.assert_close(output[name], expected[name], rtol=1e-4, atol=1e-5)

    def test_a_run_goes_on_from_its_own_handover(self, tmp_path: Path) -> None:
        """Its weights in half precision, and the plan without a repetition."""
        build_alcohols(tmp_path, 29)
        changes: dict[str, Any] = {"targets": {"y": 1.0}, "validation_molecules": 4, "model": TINY_MODEL}
        first = tiny_settings(
            str(tmp_path), str(tmp_path / "first"), max_steps=100, save_steps=100, eval_steps=100, **changes
        )
        pretrain(first, QUIET)
        checkpoint = tmp_path / "first" / "checkpoints" / "checkpoint-100"
        size = handover.write_handover(checkpoint, tmp_path / "away", {"step": 100})
        assert size == sum(path.stat().st_size for path in (tmp_path / "away").iterdir())
        assert background.handed_over(tmp_path / "away") == 100
        second = tiny_settings(
            str(tmp_path), "unused", start_from=str(tmp_path / "away"), start_step=100, **{**changes, "model": {}}
        )
        model, raw = make_model(second), UniMol2ForPreTraining.from_pretrained(checkpoint)
        for name, value in raw.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-6)
            assert model.state_dict()[name].dtype == torch.float32
        stream = make_data(second, Share(), target_scale_of(model))[2]
        before = make_data(first, Share(), target_scale_of(raw))[2]
        for name, value in before.step(100)["micro_batches"][0].items():
            assert torch.equal(stream.step(second.start_step)["micro_batches"][0][name], value)

    def test_the_average_is_read_for_the_probe(self, tmp_path: Path, library_dir: Path) -> None:
        pretrain(tiny_settings(str(library_dir), str(tmp_path), max_steps=4), QUIET)
        average = handover.averaged_model(tmp_path / "checkpoints" / "checkpoint-4")
        exported = UniMol2ForPreTraining.from_pretrained(tmp_path / "model").unimol2
        for name, value in exported.state_dict().items():
            assert torch.equal(average.state_dict()[name], value)


class TestPackage:
    def test_only_a_run_that_came_to_its_end_is_packaged(self, tmp_path: Path) -> None:
        (tmp_path / "run-0").mkdir()
        with pytest.raises(SystemExit, match="has not come to its end"):
            package.decayed_model(tmp_path)
        (tmp_path / "decayed-0").mkdir()
        with pytest.raises(SystemExit, match="has not come to its end"):
            package.decayed_model(tmp_path)
        (tmp_path / "decayed-0" / "train" / "model").mkdir(parents=True)
        with pytest.raises(SystemExit, match="has not come to its end"):
            package.decayed_model(tmp_path)
        (tmp_path / "decayed-0" / "train" / "log_history.json").write_text("[]")
        assert package.decayed_model(tmp_path) == tmp_path / "decayed-0" / "train" / "model"

    def test_half_precision_on_disk_is_float32_in_use(self, tmp_path: Path, library_dir: Path) -> None:
        pretrain(tiny_settings(str(library_dir), str(tmp_path), max_steps=4), QUIET)
        moved = package.write_package(tmp_path / "model", tmp_path / "packaged")
        assert 0 < moved["mean"] <= moved["greatest"] < 0.01
        assert {each.dtype for each in load_file(tmp_path / "packaged" / "model.safetensors").values()} == {
            torch.float16
        }
        raw, packaged = (UniMol2ForPreTraining.from_pretrained(tmp_path / name) for name in ("model", "packaged"))
        for name, value in raw.state_dict().items():
            assert torch.equal(packaged.state_dict()[name], value.half().float())
        assert packaged.config.classifier_pooling == "cls"
        assert packaged.config.pair_dropout_prob == UniMol2Config().pair_dropout_prob


class TestClsProbe:
    def test_r2_of_what_is_linear_and_of_what_is_not(self) -> None:
        """On new molecules; a target that does not vary among them is left out, a missing label is none."""
        random = np.random.default_rng(0)
        vectors = random.normal(size=(600, 4))
        targets = np.stack([vectors @ [1, 2, 0, -1], vectors[:, 0] ** 2 - 1, np.ones(600)], axis=1)
        targets[::50, 0] = np.nan
        found = cls_probe.linear_r2((vectors[:400], targets[:400]), (vectors[400:], targets[400:]))
        assert len(found) == 2
        assert found[0] > 0.99
        assert abs(found[1]) < 0.1

    def test_the_cls_is_that_of_the_model_in_use(self, tmp_path: Path) -> None:
        """Nothing masked or noised, and beside each vector its own molecule's target."""
        build_alcohols(tmp_path, 19)
        library = ConformerLibrary(tmp_path, 8, ("y",))
        scale = scale_of_library(library)
        model = UniMol2Model(UniMol2Config.from_scale("micro", **TINY_MODEL)).eval()
        rows = np.array([2, 9, 17])
        vectors, targets = cls_probe.cls_and_descriptors(model, library, library.index(), rows, scale)
        carbons = np.rint(targets[:, 0] * scale.std[0] + scale.mean[0]).astype(int)
        assert sorted(carbons) == [3, 10, 18]
        with torch.no_grad():
            own = model(**UniMol2FeatureExtractor()([f"{'C' * count}O" for count in carbons])).pooler_output
        np.testing.assert_allclose(vectors, own.numpy(), atol=1e-4)


class TestLeaks:
    def test_molecules_are_compared_without_stereo(self) -> None:
        tables = {"a": ["CCO", "OCC", "C[C@H](N)O", "not a molecule"], "b": ["CCC"]}
        assert leaks.overlaps(tables, {"CC(N)O", "CCN"}, 1) == {"a": (2, 1), "b": (1, 0)}


def test_recipe_and_commit_belong_together() -> None:
    assert len((RECIPE / "COMMIT").read_text().strip()) == 40
    settings = {**yaml.safe_load((RECIPE / "nano.yaml").read_text()), "data": "a", "output_dir": "b"}
    blocks = {name for name, _, _ in library.TEACHER_BLOCKS}
    assert set(PretrainSettings(**settings).targets) == {RDKIT_DESCRIPTORS, *blocks}


def test_the_teacher_comes_in_blocks() -> None:
    components = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(512, dtype=np.float32)), 256)
    blocks = library.teacher_blocks(components)
    assert [block.type.list_size for block in blocks.values()] == [4, 12, 48, 192]
    assert blocks["minimol_2"].to_pylist()[1] == list(range(260, 272))


def test_kernel_ridge_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    vectors, split = random.normal(size=(120, 6)), np.array(["train"] * 80 + ["valid"] * 20 + ["test"] * 20)
    labels = np.sin(vectors[:, 0]) + 3.0
    labels[::9] = np.nan
    found = frozen_probe.kernel_ridge_error(vectors, labels, split)
    known = ~np.isnan(labels)
    train, valid, test = (np.flatnonzero(known & (split == part)) for part in ("train", "valid", "test"))
    scaled = ((vectors - vectors[train].mean(0)) / vectors[train].std(0)).clip(-5, 5)
    median = np.median(((scaled[train, None] - scaled[None, train]) ** 2).sum(-1))

    def error(fitted: Any, judged: Any, width: float, ridge: float) -> float:
        model = KernelRidge(alpha=ridge, kernel="rbf", gamma=1 / (width * median))
        center = labels[fitted].mean()
        predicted = model.fit(scaled[fitted], labels[fitted] - center).predict(scaled[judged]) + center
        return float(np.abs(predicted - labels[judged]).mean())

    grid = [(width, ridge) for width in frozen_probe.WIDTHS for ridge in frozen_probe.RIDGES]
    best = min(grid, key=lambda chosen: error(train, valid, *chosen))
    assert found == pytest.approx(error(np.concatenate([train, valid]), test, *best), rel=1e-6)
