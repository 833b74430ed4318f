"""The pretraining task's statistics, the sampling plan, and streams that any process finds again."""

import pickle
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch.utils.data import DataLoader

from unimol2_hf import UniMol2Error
from unimol2_hf.data.conformer_library import ConformerLibrary, LibraryIndex
from unimol2_hf.errors import LibraryError
from unimol2_hf.pretraining.collator import DRAW, DataCollatorForUniMol2Pretraining, align
from unimol2_hf.pretraining.plan import SamplingPlan, scaffold_probabilities
from unimol2_hf.pretraining.settings import NoiseSettings
from unimol2_hf.pretraining.stream import PretrainingStream, Share

SAMPLES = 10_000


@pytest.fixture(scope="session")
def library_rows(library_dir: Path) -> list[dict[str, Any]]:
    library = ConformerLibrary(library_dir)
    sizes = library.index().shard_sizes
    return [library.row(shard, place) for shard, size in enumerate(sizes) for place in range(size)]


@pytest.fixture(scope="session")
def drawn(library_rows: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
    """10,000 samples, as batches."""
    collator = DataCollatorForUniMol2Pretraining(seed=3)
    numbers = range(SAMPLES)
    rows = [{**library_rows[number % len(library_rows)], DRAW: number} for number in numbers]
    return [collator(rows[start : start + 100]) for start in range(0, SAMPLES, 100)]


def atoms_and(batches: list[dict[str, torch.Tensor]], name: str) -> list[NDArray[Any]]:
    """A tensor's rows without their padding."""
    return [
        row[mask.bool()].numpy()
        for batch in batches
        for row, mask in zip(batch[name], batch["attention_mask"], strict=True)
    ]


class TestCollatorStatistics:
    def test_fifteen_percent_of_tokens_are_masked(self, drawn: list[dict[str, torch.Tensor]]) -> None:
        labels, tokens = atoms_and(drawn, "labels"), atoms_and(drawn, "input_ids")
        masked = sum(int((row != -100).sum()) for row in labels)
        share = masked / sum(map(len, labels))
        # Rounding up or down at random adds at most 0.5 sqrt(10,000) = 50 atoms of deviation.
        assert share == pytest.approx(0.15, abs=0.001)
        for row, token in zip(labels, tokens, strict=True):
            assert ((token == 127) == (row != -100)).all()

    def test_masked_positions_are_uniform(self, drawn: list[dict[str, torch.Tensor]]) -> None:
        places = np.concatenate([(np.flatnonzero(row != -100) + 0.5) / len(row) for row in atoms_and(drawn, "labels")])
        counts = np.histogram(places, bins=5, range=(0, 1))[0] / len(places)
        assert np.abs(counts - 0.2).max() < 0.02

    def test_labels_are_the_hidden_elements(
        self, drawn: list[dict[str, torch.Tensor]], library_rows: list[dict[str, Any]]
    ) -> None:
        pairs = zip(atoms_and(drawn, "labels"), atoms_and(drawn, "input_ids"), strict=True)
        for number, (labels, tokens) in enumerate(pairs):
            elements = library_rows[number % len(library_rows)]["atomic_numbers"]
            assert (np.where(labels == -100, tokens, labels) == elements).all()

    def test_noise_has_the_right_size(self, library_rows: list[dict[str, Any]]) -> None:
        """Before the alignment, which takes the six rigid motions out."""
        collator = DataCollatorForUniMol2Pretraining(seed=4)
        noise = []
        for number in range(SAMPLES):
            features, clean, _, _ = collator.sample({**library_rows[number % len(library_rows)], DRAW: number})
            noise.append(features["coordinates"] - clean)
        values = np.concatenate([each.ravel() for each in noise])
        assert values.std() == pytest.approx(0.2, abs=0.001)
        assert values.mean() == pytest.approx(0.0, abs=0.001)
        # Gaussian: kurtosis 3.
        assert np.mean((values / values.std()) ** 4) == pytest.approx(3.0, abs=0.05)

    def test_alignment_takes_six_degrees_of_freedom(self, drawn: list[dict[str, torch.Tensor]]) -> None:
        noised, clean = atoms_and(drawn, "coordinates"), atoms_and(drawn, "target_coordinates")
        large = [(a, b) for a, b in zip(noised, clean, strict=True) if len(a) >= 10]
        squared = sum(float(((a - b) ** 2).sum()) for a, b in large)
        assert squared / sum(3 * len(a) - 6 for a, _ in large) == pytest.approx(0.04, rel=0.01)

    def test_no_rotation_brings_them_nearer(self, drawn: list[dict[str, torch.Tensor]]) -> None:
        noised, clean = atoms_and(drawn[:3], "coordinates"), atoms_and(drawn[:3], "target_coordinates")
        for moving, fixed in zip(noised, clean, strict=True):
            assert np.abs(moving.mean(0) - fixed.mean(0)).max() < 1e-5
            assert np.abs(fixed.mean(0)).max() < 1e-5
            if len(moving) >= 4:
                rotation, _ = Rotation.align_vectors(fixed, moving - moving.mean(0))
                assert rotation.magnitude() < 1e-3

    def test_half_are_dropped_and_half_of_the_rest_are_flat(
        self, drawn: list[dict[str, torch.Tensor]], library_rows: list[dict[str, Any]]
    ) -> None:
        degrees, paths = atoms_and(drawn, "degrees"), atoms_and(drawn, "atom_features")
        dropped = np.array([(row == 1).all() for row in degrees])
        assert (dropped == np.array([(row == 1).all() for row in paths])).all()
        flat = np.array([np.abs(row[:, 2]).max() < 1e-6 for row in atoms_and(drawn, "target_coordinates")])
        has_both = [len(row["conformers"]) == 4 and len(row["atomic_numbers"]) > 3 for row in library_rows]
        both = np.array([has_both[number % len(library_rows)] for number in range(SAMPLES)])
        # Four standard deviations of a binomial.
        assert dropped.mean() == pytest.approx(0.5, abs=0.02)
        assert flat[both & ~dropped].mean() == pytest.approx(0.5, abs=0.03)
        assert not flat[both & dropped].any()

    def test_conformers_are_drawn_evenly(self, library_rows: list[dict[str, Any]]) -> None:
        collator = DataCollatorForUniMol2Pretraining(noise=NoiseSettings(drop_graph_probability=1.0))
        row = max(library_rows, key=lambda each: len(each["atomic_numbers"]))
        found = [collator.sample({**row, DRAW: number})[1] for number in range(3000)]
        known = [
            np.reshape(each, (-1, 3)) for each, three in zip(row["conformers"], row["is_3d"], strict=True) if three
        ]
        counts = [sum(np.allclose(each, one, atol=1e-4) for each in found) for one in known]
        assert sum(counts) == 3000
        assert max(counts) - min(counts) < 150


class TestCollator:
    def test_a_sample_is_the_same_in_every_batch(self, library_rows: list[dict[str, Any]]) -> None:
        collator = DataCollatorForUniMol2Pretraining(seed=1)
        rows = [{**row, DRAW: number} for number, row in enumerate(library_rows[:6])]
        alone, among = collator(rows[2:3]), collator(rows)
        count = int(alone["attention_mask"].sum())
        for name, value in alone.items():
            width = tuple(slice(count) if size == value.shape[1] else slice(None) for size in value.shape[1:])
            torch.testing.assert_close(among[name][2][width], value[0], rtol=0, atol=1e-6)

    def test_draws_differ_by_number_seed_and_epoch(self, library_rows: list[dict[str, Any]]) -> None:
        row = library_rows[0]
        made = [
            DataCollatorForUniMol2Pretraining(seed=seed, epoch=epoch)([{**row, DRAW: number}])["coordinates"]
            for number, seed, epoch in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
        ]
        assert len({tuple(each.flatten().tolist()) for each in made}) == 4

    def test_rows_of_a_datasets_table_will_do(self, library_dir: Path) -> None:
        from datasets import load_dataset

        files = sorted(str(path) for path in (library_dir / "conformers").glob("*.parquet"))
        table = load_dataset("parquet", data_files=files, split="train", streaming=True)
        rows = [row for row in table if row["error"] is None]
        batch = DataCollatorForUniMol2Pretraining()(rows[:4])
        assert batch["coordinates"].shape[0] == 4

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_alignment_of_few_atoms(self, count: int) -> None:
        random = np.random.default_rng(0)
        fixed = random.normal(size=(1, count, 3)).astype(np.float32)
        moving = fixed @ Rotation.random(random_state=1).as_matrix().astype(np.float32) + np.float32(5)
        aligned = align(moving, fixed, np.ones((1, count)))
        np.testing.assert_allclose(aligned, fixed, atol=1e-5)

    def test_alignment_never_mirrors(self) -> None:
        fixed = np.random.default_rng(0).normal(size=(1, 8, 3)).astype(np.float32)
        mirrored = fixed * np.array([1, 1, -1], dtype=np.float32)
        aligned = align(mirrored, fixed, np.ones((1, 8)))
        expected, _ = Rotation.align_vectors(fixed[0] - fixed[0].mean(0), mirrored[0] - mirrored[0].mean(0))
        np.testing.assert_allclose(
            aligned[0] - fixed[0].mean(0), expected.apply(mirrored[0] - mirrored[0].mean(0)), atol=1e-4
        )

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"conformers": []}, "no conformer"),
            ({"conformers": [np.zeros(4, np.float32)], "is_3d": [True]}, "4 coordinates"),
            ({"smiles": "CC"}, "heavy atoms"),
        ],
    )
    def test_rows_that_do_not_fit(self, change: dict[str, Any], message: str) -> None:
        row = {"smiles": "CCO", "atomic_numbers": [6, 6, 8], "conformers": [np.arange(9.0)], "is_3d": [True], DRAW: 0}
        collator = DataCollatorForUniMol2Pretraining(noise=NoiseSettings(drop_graph_probability=0.0))
        collator([row])
        with pytest.raises(UniMol2Error, match=message):
            collator([{**row, **change}])
        with pytest.raises(UniMol2Error, match="draw"):
            collator([{name: value for name, value in row.items() if name != DRAW}])

    @pytest.mark.parametrize("bad", [{"mask_probability": 1.5}, {"noise_angstrom": -0.1}])
    def test_bad_noise(self, bad: dict[str, float]) -> None:
        with pytest.raises(UniMol2Error, match=next(iter(bad))):
            NoiseSettings(**bad)


def zipf_index(molecules: int = 6000, shards: int = 12) -> LibraryIndex:
    random = np.random.default_rng(0)
    scaffolds = np.minimum(random.zipf(1.6, molecules), 900).astype(np.int32)
    sizes = random.integers(5, 60, molecules).astype(np.uint16)
    return LibraryIndex((molecules // shards,) * shards, sizes, scaffolds)


class TestPlan:
    def test_softmax_by_hand(self) -> None:
        """P = (0.5, 0.3, 0.2), tau = 0.1: weights e^5, e^3, e^2."""
        expected = np.exp([5.0, 3.0, 2.0])
        found = scaffold_probabilities(np.array([50, 30, 20]), 0.1)
        np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-12)

    @pytest.mark.parametrize("temperature", [0.005, 0.05, 1.0])
    def test_scaffolds_come_as_often_as_the_softmax_says(self, temperature: float) -> None:
        index = zipf_index()
        plan = SamplingPlan(index, seed=5, temperature=temperature)
        _, members, counts = np.unique(index.scaffolds, return_inverse=True, return_counts=True)
        expected = len(index) * scaffold_probabilities(counts, temperature)
        for epoch in range(3):
            order = plan.samples(epoch * len(plan), len(plan))
            assert len(order) == len(index)
            found = np.bincount(members[order], minlength=len(counts))
            assert np.abs(found - expected).max() < 1.0

    def test_the_share_of_the_most_drawn_scaffold(self) -> None:
        index = LibraryIndex((10,), np.full(10, 9, np.uint16), np.array([0] * 6 + [1, 2, 3, 4], np.int32))
        expected = np.exp(0.6 / 0.2) / (np.exp(0.6 / 0.2) + 4 * np.exp(0.1 / 0.2))
        assert SamplingPlan(index, temperature=0.2).largest_scaffold_share() == pytest.approx(expected)
        assert SamplingPlan(index, temperature=None).largest_scaffold_share() == pytest.approx(0.6)

    def test_molecules_of_a_scaffold_come_evenly_over_epochs(self) -> None:
        index = zipf_index(600, 3)
        plan = SamplingPlan(index, temperature=0.2)
        draws = sum(plan.draws_of_epoch(epoch) for epoch in range(400))
        common = np.bincount(index.scaffolds).argmax()
        mine = np.asarray(draws)[index.scaffolds == common]
        # Within 4.5 standard deviations of fair draws.
        assert np.abs(mine - mine.mean()).max() < 4.5 * np.sqrt(mine.mean() * (1 - mine.mean() / 400))

    def test_without_temperature_every_molecule_comes_once(self) -> None:
        plan = SamplingPlan(zipf_index(), temperature=None)
        assert (np.sort(plan.samples(0, len(plan))) == np.arange(6000)).all()
        assert (plan.samples(0, 6000) != plan.samples(6000, 6000)).any()

    def test_any_stretch_is_found_again(self) -> None:
        whole = SamplingPlan(zipf_index(), seed=2).samples(0, 15_000)
        for first, count in ((0, 10), (5990, 30), (11_999, 3001)):
            assert (SamplingPlan(zipf_index(), seed=2).samples(first, count) == whole[first : first + count]).all()
        assert (SamplingPlan(zipf_index(), seed=3).samples(0, 100) != whole[:100]).any()

    def test_few_shards_are_open_at_a_time(self) -> None:
        plan = SamplingPlan(zipf_index(), open_shards=3)
        shards = plan.shard_of(plan.samples(0, 6000))
        first = [np.flatnonzero(shards == shard).min() for shard in range(12)]
        last = [np.flatnonzero(shards == shard).max() for shard in range(12)]
        open_at = [sum(a <= at <= b for a, b in zip(first, last, strict=True)) for at in range(0, 6000, 50)]
        assert max(open_at) == 3
        # And within them the shards are mixed.
        assert (np.diff(shards[:1000]) != 0).mean() > 0.5

    def test_what_is_held_out_never_comes(self) -> None:
        held_out = np.arange(0, 6000, 7)
        plan = SamplingPlan(zipf_index(), held_out=held_out)
        assert len(plan) == 6000 - len(held_out)
        assert not np.isin(plan.samples(0, 3 * len(plan)), held_out).any()

    def test_bad_arguments(self) -> None:
        with pytest.raises(UniMol2Error, match="temperature"):
            SamplingPlan(zipf_index(), temperature=0.0)
        with pytest.raises(UniMol2Error, match="open_shards"):
            SamplingPlan(zipf_index(), open_shards=0)
        with pytest.raises(UniMol2Error, match="no molecule is left"):
            SamplingPlan(zipf_index(12, 3), held_out=np.arange(12))


def make_stream(library_dir: Path, share: Share | None = None, first_step: int = 0) -> PretrainingStream:
    library = ConformerLibrary(library_dir, open_shards=2)
    index = library.index()
    plan = SamplingPlan(index, seed=1, open_shards=2)
    collator = DataCollatorForUniMol2Pretraining(seed=1)
    return PretrainingStream(library, plan, index.num_heavy_atoms, collator, 12, 4, 3000, share, first_step)


def samples_of(step: dict[str, Any]) -> list[tuple[float, ...]]:
    """Each sample of a step by its coordinates."""
    return sorted(
        tuple(row[mask.bool()].flatten().tolist())
        for batch in step["micro_batches"]
        for row, mask in zip(batch["coordinates"], batch["attention_mask"], strict=True)
    )


class TestStream:
    def test_rows_with_errors_are_left_out(self, library_dir: Path, library_rows: list[dict[str, Any]]) -> None:
        assert len(library_rows) == 39
        for row in library_rows:
            assert len(row["conformers"]) == len(row["is_3d"])
            assert len(row["conformers"]) in (1, 4)  # a molecule of which no 3D conformer can be made has the 2D one
            assert all(len(each) == 3 * len(row["atomic_numbers"]) for each in row["conformers"])

    def test_a_step_is_found_again_by_its_number(self, library_dir: Path) -> None:
        steps = list(islice(make_stream(library_dir), 9))
        again = next(iter(make_stream(library_dir, first_step=7)))
        assert [step["step"] for step in steps] == list(range(9))
        assert samples_of(again) == samples_of(steps[7])
        assert len(samples_of(again)) == 12

    def test_processes_share_a_step(self, library_dir: Path) -> None:
        whole = make_stream(library_dir).step(5)
        parts = [make_stream(library_dir, Share(rank, 3)).step(5) for rank in range(3)]
        assert all(part["micro_batches"] for part in parts)
        assert sorted(sample for part in parts for sample in samples_of(part)) == samples_of(whole)

    def test_processes_get_as_many_samples_of_like_lengths(self, library_dir: Path) -> None:
        parts = [make_stream(library_dir, Share(rank, 3)).step(5)["micro_batches"] for rank in range(3)]
        lengths = [sorted(int(n) for batch in part for n in batch["attention_mask"].sum(-1)) for part in parts]
        assert [len(each) for each in lengths] == [4, 4, 4]
        # Dealt like cards: the k-th shortest of one process is no longer than that of the next.
        for one, next_one in pairwise(lengths):
            assert all(a <= b for a, b in zip(one, next_one, strict=True))

    def test_workers_keep_the_order(self, library_dir: Path) -> None:
        loader = DataLoader(make_stream(library_dir), batch_size=None, num_workers=2)
        found = list(islice(loader, 5))
        expected = list(islice(make_stream(library_dir), 5))
        assert [step["step"] for step in found] == list(range(5))
        for one, other in zip(found, expected, strict=True):
            assert samples_of(one) == samples_of(other)

    def test_micro_batches_keep_the_budget(self, library_dir: Path) -> None:
        for step in islice(make_stream(library_dir), 10):
            for batch in step["micro_batches"]:
                rows, width = batch["input_ids"].shape
                assert rows <= 4
                assert rows == 1 or rows * (width + 1) ** 2 <= 3000

    def test_more_processes_than_samples_are_refused(self, library_dir: Path) -> None:
        with pytest.raises(UniMol2Error, match="processes"):
            make_stream(library_dir, Share(0, 13))

    def test_no_library(self, tmp_path: Path) -> None:
        with pytest.raises(LibraryError, match="conformers build"):
            ConformerLibrary(tmp_path)
        with pytest.raises(LibraryError, match="neither a folder nor a data set"):
            ConformerLibrary(tmp_path / "nowhere")

    def test_a_data_set_on_the_hub_is_read_by_its_urls(
        self, library_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`datasets` resolves the id; there is no network here, so its answer is given."""
        files = [f"file://{path}" for path in sorted((library_dir / "conformers").glob("*.parquet"))]
        builder = SimpleNamespace(config=SimpleNamespace(data_files={"train": files}))
        monkeypatch.setattr("unimol2_hf.data.conformer_library.load_dataset_builder", lambda _: builder)
        remote, local = ConformerLibrary("org/conformers"), ConformerLibrary(library_dir)
        assert remote.index().shard_sizes == local.index().shard_sizes
        assert remote.row(1, 2)["smiles"] == local.row(1, 2)["smiles"]

    def test_it_travels_to_spawned_workers(self, library_dir: Path) -> None:
        stream = make_stream(library_dir)
        stream.step(0)
        assert samples_of(pickle.loads(pickle.dumps(stream)).step(3)) == samples_of(stream.step(3))

    def test_a_table_of_another_kind_is_refused(self, tmp_path: Path) -> None:
        import pandas as pd

        pd.DataFrame({"smiles": ["C"]}).to_parquet(tmp_path / "part-000000.parquet")
        with pytest.raises(LibraryError, match="lacks"):
            ConformerLibrary(tmp_path).index()
