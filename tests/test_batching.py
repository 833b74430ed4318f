"""The batch planner: every molecule once, in order, within the memory budget."""

from collections.abc import Iterator
from itertools import count, islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimol2_hf import UniMol2Error
from unimol2_hf.batching import map_in_batches, max_pairs_for, plan_batches

LENGTHS = st.lists(st.integers(0, 256), max_size=200)


@given(lengths=LENGTHS, max_rows=st.integers(1, 64), max_pairs=st.integers(1, 200_000))
def test_every_molecule_once_and_within_the_budget(lengths: list[int], max_rows: int, max_pairs: int) -> None:
    batches = plan_batches(lengths, max_rows, max_pairs)
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    for batch in batches:
        pairs = len(batch) * (max(lengths[position] for position in batch) + 1) ** 2
        assert len(batch) <= max_rows
        assert pairs <= max_pairs or len(batch) == 1


@given(lengths=LENGTHS)
def test_batches_hold_molecules_of_like_length(lengths: list[int]) -> None:
    ordered = [lengths[position] for batch in plan_batches(lengths, 8) for position in batch]
    assert ordered == sorted(lengths)


def test_no_batch_could_be_merged_with_the_next() -> None:
    lengths = [20] * 50 + [60] * 10
    batches = plan_batches(lengths, max_rows=32, max_pairs=20_000)
    for batch, following in pairwise(batches):
        first = lengths[following[0]]
        assert len(batch) == 32 or (len(batch) + 1) * (first + 1) ** 2 > 20_000


@given(lengths=LENGTHS, window=st.integers(1, 50))
def test_results_come_in_the_order_of_the_stream(lengths: list[int], window: int) -> None:
    items = list(enumerate(lengths))
    seen = map_in_batches(lambda batch: batch, items, lambda item: item[1], max_rows=4, window=window)
    assert list(seen) == items


def test_a_stream_is_read_one_window_ahead() -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        for number in count():
            taken += 1
            yield number

    results = map_in_batches(lambda batch: batch, endless(), lambda _: 5, max_rows=4, window=10)
    assert list(islice(results, 15)) == list(range(15))
    assert taken == 20


def test_wide_pair_tracks_get_fewer_pairs_on_a_cpu() -> None:
    assert max_pairs_for("cpu", 512) == 4096
    assert max_pairs_for("cpu", 48) > 40_000
    assert max_pairs_for("cuda", 512) == max_pairs_for("cuda", 48)


def test_a_result_too_few_is_not_passed_over() -> None:
    with pytest.raises(ValueError, match="shorter"):
        list(map_in_batches(lambda batch: batch[1:], [1, 2, 3], lambda _: 1, max_rows=4))


@pytest.mark.parametrize(("max_rows", "max_pairs"), [(0, 10), (1, 0), (-1, 5)])
def test_impossible_limits_are_named(max_rows: int, max_pairs: int) -> None:
    with pytest.raises(UniMol2Error, match=f"max_rows={max_rows} and max_pairs={max_pairs}"):
        plan_batches([1], max_rows, max_pairs)
