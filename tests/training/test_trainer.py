"""Planned batches for `Trainer`: every molecule once an epoch, on every process the same number of batches."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import IterableDataset
from transformers import TrainingArguments

from unimol2_hf import (
    DataCollatorForUniMol2,
    UniMol2Config,
    UniMol2Error,
    UniMol2FeatureExtractor,
    UniMol2ForPropertyRegression,
    UniMol2Trainer,
)
from unimol2_hf.training.micro_batches import label_shares, parts_of
from unimol2_hf.training.samplers import PairBudgetBatchSampler, PlannedStream, lengths_of

pytestmark = pytest.mark.numerical

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=120)


@given(lengths=LENGTHS, max_rows=st.integers(1, 16), world_size=st.integers(1, 4), epoch=st.integers(0, 3))
def test_processes_share_an_epoch(lengths: list[int], max_rows: int, world_size: int, epoch: int) -> None:
    shares = []
    for rank in range(world_size):
        sampler = PairBudgetBatchSampler(lengths, max_rows, 4000, rank=rank, world_size=world_size)
        sampler.set_epoch(epoch)
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler)
    batches = [batch for share in shares for batch in share]
    seen = Counter(row for batch in batches for row in batch)
    assert set(seen) == set(range(len(lengths)))
    # Rows come twice only where there are fewer rows than processes need batches.
    assert max(seen.values()) == 1 or all(len(batch) == 1 for batch in batches)
    for batch in batches:
        assert len(batch) <= max_rows
        assert len(batch) == 1 or len(batch) * (max(lengths[row] for row in batch) + 1) ** 2 <= 4000


def test_epochs_differ_and_repeat() -> None:
    sampler = PairBudgetBatchSampler([20] * 40, 8)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert first != second
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(PairBudgetBatchSampler([20] * 40, 8, seed=1)) != first


class Rows(IterableDataset[dict[str, Any]]):
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


@given(lengths=LENGTHS, window=st.integers(1, 40), world_size=st.integers(1, 3))
def test_a_stream_gives_every_row_once(lengths: list[int], window: int, world_size: int) -> None:
    rows = [{"number": number, "input_ids": [6] * length} for number, length in enumerate(lengths)]
    seen: list[int] = []
    for rank in range(world_size):
        stream = PlannedStream(rows, 8, 4000, window, rank=rank, world_size=world_size)
        for batch in stream:
            assert len(batch) == 1 or len(batch) * (max(len(row["input_ids"]) for row in batch) + 1) ** 2 <= 4000
            seen += [row["number"] for row in batch]
    assert sorted(seen) == list(range(len(lengths)))


@pytest.fixture
def labelled(extractor: UniMol2FeatureExtractor, mixed_rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "labels": [float(len(row["input_ids"]))] * 3} for row in mixed_rows[:24]]


def train(
    folder: Path,
    model: UniMol2ForPropertyRegression,
    rows: Any,
    extractor: UniMol2FeatureExtractor,
    resume: bool = False,
    max_pairs_at_once: int | None = None,
    **settings: Any,
) -> UniMol2Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        remove_unused_columns=False,
        label_names=["labels"],
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        **{"save_strategy": "no", **settings},
    )
    trainer = UniMol2Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows if hasattr(rows, "__len__") else None,
        data_collator=DataCollatorForUniMol2(extractor),
        processing_class=extractor,
        max_pairs=2500,
        max_pairs_at_once=max_pairs_at_once,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses(trainer: UniMol2Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_trainer_plans_lists(
    tmp_path: Path,
    property_model: UniMol2ForPropertyRegression,
    extractor: UniMol2FeatureExtractor,
    labelled: list[dict[str, Any]],
) -> None:
    trainer = train(tmp_path, property_model, labelled, extractor, num_train_epochs=2)
    loader = trainer.get_train_dataloader()
    shapes = [batch["shortest_paths"].shape for batch in loader]
    assert all(rows * (atoms + 1) ** 2 <= 2500 or rows == 1 for rows, atoms, _ in shapes)
    assert sum(rows for rows, _, _ in shapes) == len(labelled)
    assert trainer.state.global_step == 2 * len(loader)
    assert trainer.evaluate()["eval_loss"] >= 0
    # In the dataset's order, whatever the batches.
    predicted = trainer.predict(labelled)
    assert predicted.label_ids[:, 0].tolist() == [row["labels"][0] for row in labelled]


def test_trainer_plans_streams(
    tmp_path: Path,
    property_model: UniMol2ForPropertyRegression,
    extractor: UniMol2FeatureExtractor,
    labelled: list[dict[str, Any]],
) -> None:
    torch_stream = train(tmp_path / "a", property_model, Rows(labelled), extractor, max_steps=5)
    assert torch_stream.state.global_step == 5
    plain = [
        {name: getattr(value, "tolist", lambda value=value: value)() for name, value in row.items()} for row in labelled
    ]
    hub_stream = datasets.Dataset.from_list(plain).to_iterable_dataset()
    assert train(tmp_path / "b", property_model, hub_stream, extractor, max_steps=5).state.global_step == 5


def test_resumed_training_repeats_the_losses(
    tmp_path: Path,
    property_model: UniMol2ForPropertyRegression,
    extractor: UniMol2FeatureExtractor,
    labelled: list[dict[str, Any]],
) -> None:
    start = {name: tensor.clone() for name, tensor in property_model.state_dict().items()}
    options: dict[str, Any] = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3}
    whole = losses(train(tmp_path, property_model, labelled, extractor, **options))
    for checkpoint in sorted(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))[1:]:
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    property_model.load_state_dict(start)
    resumed = losses(train(tmp_path, property_model, labelled, extractor, resume=True, **options))
    assert len(resumed) == len(whole)
    assert torch.allclose(torch.tensor(resumed), torch.tensor(whole), rtol=1e-5)


class TestParts:
    def config(self) -> dict[str, float]:
        return {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pair_dropout_prob": 0.0}

    @given(rows=st.integers(1, 20), atoms=st.integers(1, 30), max_pairs=st.integers(1, 9000))
    def test_they_hold_every_row_once_within_the_budget(self, rows: int, atoms: int, max_pairs: int) -> None:
        batch = {"input_ids": torch.arange(rows * atoms).view(rows, atoms), "labels": torch.zeros(rows, 2)}
        parts = parts_of(batch, max_pairs)
        assert torch.equal(torch.cat([part["input_ids"] for part in parts]), batch["input_ids"])
        sizes = [len(part["labels"]) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) == 1 or max(sizes) * (atoms + 1) ** 2 <= max_pairs

    def test_missing_labels_do_not_count(self) -> None:
        nan = float("nan")
        labels = [torch.tensor([[1.0, nan], [2.0, 3.0]]), torch.tensor([[nan, nan]]), torch.tensor([[4.0, nan]])]
        assert label_shares([{"labels": each} for each in labels]) == [0.75, 0.0, 0.25]
        assert label_shares([{"labels": labels[1]}]) == [0.0]

    @pytest.mark.parametrize("accumulation", [1, 2])
    def test_a_run_in_parts_is_the_run(
        self,
        tmp_path: Path,
        small_config: UniMol2Config,
        extractor: UniMol2FeatureExtractor,
        labelled: list[dict[str, Any]],
        accumulation: int,
    ) -> None:
        for number, row in enumerate(labelled):
            row["labels"] = [1.0 + number, float("nan") if number % 3 else 2.0]
        small_config.update(self.config())
        model = UniMol2ForPropertyRegression(small_config)
        start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        found = []
        for max_pairs_at_once in (None, 700):
            model.load_state_dict(start)
            options: dict[str, Any] = {"max_steps": 4, "gradient_accumulation_steps": accumulation}
            trainer = train(
                tmp_path, model, labelled, extractor, max_pairs_at_once=max_pairs_at_once, learning_rate=1e-3, **options
            )
            norms = [entry["grad_norm"] for entry in trainer.state.log_history if "loss" in entry]
            found.append(torch.tensor([losses(trainer), norms]))
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
        assert any(len(parts_of(batch, 700)) > 1 for batch in trainer.get_train_dataloader())


def test_lengths_come_from_where_they_are_cheap() -> None:
    table = datasets.Dataset.from_dict({"length": [3, 4], "input_ids": [[1], [1]]})
    assert lengths_of(table) == [3, 4]
    assert lengths_of([{"input_ids": [1, 2]}]) == [2]
    with pytest.raises(UniMol2Error, match="without input_ids"):
        lengths_of([{"smiles": "C"}])


def test_columns_must_be_kept(tmp_path: Path, property_model: UniMol2ForPropertyRegression) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(UniMol2Error, match="remove_unused_columns=False"):
        UniMol2Trainer(model=property_model, args=arguments)
