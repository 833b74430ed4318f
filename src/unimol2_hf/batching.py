"""Batches of molecules of like length, sized by pairs of atoms: no compute lost to padding, flat memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from .errors import SettingsError

Item = TypeVar("Item")
Result = TypeVar("Result")

# 190 drug-sized molecules, or one of 256 atoms and a neighbour; the 84M pair track then takes 0.27 GB.
DEFAULT_MAX_PAIRS = 131_072


# A pair track of 8 MiB in float32. Past 32 MiB the C library maps and unmaps every tensor anew: at 84M, batches of
# 32 drug-sized molecules then embed 4.8 molecules a second instead of 8.
CPU_TRACK_ELEMENTS = 2**21


def max_pairs_for(device_type: str, pair_width: int) -> int:
    """Most pairs of a batch on a device, for a pair track of the given width."""
    return max(1, CPU_TRACK_ELEMENTS // pair_width) if device_type == "cpu" else DEFAULT_MAX_PAIRS


def plan_batches(lengths: Sequence[int], max_rows: int, max_pairs: int = DEFAULT_MAX_PAIRS) -> list[list[int]]:
    """Group positions into batches of like length, shortest first.

    Args:
        lengths: number of heavy atoms of each molecule.
        max_rows: most molecules of a batch.
        max_pairs: most entries of a batch's padded pair track, rows * (longest + 1)^2. A molecule that alone exceeds it
            gets a batch of its own.

    Returns:
        Positions, each exactly once; equal lengths keep their order.

    Raises:
        SettingsError: a limit below 1.
    """
    if max_rows < 1 or max_pairs < 1:
        raise SettingsError(f"max_rows={max_rows} and max_pairs={max_pairs} must be at least 1")
    batches: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lengths.__getitem__):
        # Sorted, so the newcomer is the longest of its batch.
        pairs_of_one = (lengths[position] + 1) ** 2
        if batches and len(batches[-1]) < max_rows and (len(batches[-1]) + 1) * pairs_of_one <= max_pairs:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches


def most_rows(length: int, max_rows: int, max_pairs: int) -> int:
    """Rows of a full batch of molecules of `length` heavy atoms, at least one."""
    return max(1, min(max_rows, max_pairs // (length + 1) ** 2))


def map_in_batches(
    work: Callable[[list[Item]], Sequence[Result]],
    items: Iterable[Item],
    length_of: Callable[[Item], int],
    max_rows: int,
    max_pairs: int = DEFAULT_MAX_PAIRS,
    window: int = 1024,
) -> Iterator[Result]:
    """Apply `work` to planned batches of a stream; results come in the stream's order.

    Args:
        work: a batch of items to one result for each, in the batch's order.
        items: read `window` at a time.
        length_of: number of heavy atoms of an item.
        max_rows, max_pairs: see `plan_batches`.
        window: items that are sorted together; more means less padding and later first results.
    """
    remaining = iter(items)
    while chunk := list(islice(remaining, window)):
        results: dict[int, Result] = {}
        for batch in plan_batches([length_of(item) for item in chunk], max_rows, max_pairs):
            results.update(zip(batch, work([chunk[position] for position in batch]), strict=True))
        yield from (results[position] for position in range(len(chunk)))
