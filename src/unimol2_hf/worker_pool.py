"""Work in processes, results in order: workers run ahead of what the caller takes out, and end with their parent."""

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from rdkit import Chem

Context = TypeVar("Context")
Result = TypeVar("Result")

DEFAULT_READ_AHEAD = 64
_CHUNK = 16
_WATCH_SECONDS = 1.0


def worker_count(wanted: int | None) -> int:
    """Processes for the wanted number; None is one for each core."""
    return (os.cpu_count() or 1) if wanted is None else wanted


def map_in_order(
    work: Callable[[Any], Result],
    pairs: Iterable[tuple[Context, Any]],
    num_workers: int = 0,
    read_ahead: int = DEFAULT_READ_AHEAD,
) -> Iterator[tuple[Context, Result]]:
    """Apply `work` to the item of each (context, item), yielding (context, result) in order.

    Args:
        work: a function that worker processes can import.
        pairs: read ahead of what is taken out by about `read_ahead` items a worker. The context, whatever belongs to
            the item, stays in this process.
        num_workers: processes; 0 works in this one.
        read_ahead: see `pairs`.
    """
    if num_workers <= 0:
        yield from ((context, work(item)) for context, item in pairs)
        return
    # Forked workers start at once and need no importable __main__; they run RDKit only, never torch.
    methods = multiprocessing.get_all_start_methods()
    start = multiprocessing.get_context("fork" if "fork" in methods else None)
    remaining = iter(pairs)
    most_pending = num_workers * max(1, read_ahead // _CHUNK)
    with _pool(ProcessPoolExecutor(num_workers, start, _begin, (os.getpid(),))) as pool:
        pending: deque[tuple[list[Context], Future[list[Result]]]] = deque()
        broken: Exception | None = None
        while broken is None:
            contexts, items, broken = _read_chunk(work, remaining)
            if not items:
                break
            pending.append((contexts, pool.submit(_apply_to_all, work, items)))
            if len(pending) > most_pending:
                yield from _results(*pending.popleft())
        while pending:
            yield from _results(*pending.popleft())
        if broken is not None:
            raise broken


def _results(contexts: Sequence[Context], future: Future[list[Result]]) -> Iterator[tuple[Context, Result]]:
    return zip(contexts, future.result(), strict=True)


@contextmanager
def _pool(pool: ProcessPoolExecutor) -> Iterator[ProcessPoolExecutor]:
    """A pool that ends at once where its work is broken off; its own way is to finish all that was submitted."""
    try:
        yield pool
    except BaseException:
        workers = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()
        raise
    pool.shutdown()


def _begin(parent: int) -> None:
    """Leave interrupts to the parent, and end when it was killed: without its clean-up a worker waits for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _read_chunk(
    work: Callable[[Any], Any], remaining: Iterator[tuple[Context, Any]]
) -> tuple[list[Context], list[Any], Exception | None]:
    """The next contexts and frozen items, and the error with which the input broke off, if it did."""
    contexts: list[Context] = []
    items: list[Any] = []
    try:
        for context, item in islice(remaining, _CHUNK):
            items.append(_freeze(work, item))
            contexts.append(context)
    except Exception as error:
        return contexts, items, error
    return contexts, items, None


@dataclass(frozen=True)
class _Pickled:
    """An item on its way to a worker."""

    content: bytes


@dataclass(frozen=True)
class _PickledMolecule:
    """RDKit's own pickles round coordinates to float32."""

    binary: Any


def _freeze(work: Callable[[Any], Any], item: Any) -> Any:
    """An item as it is now: the caller may change its molecule the moment the next one is read.

    What cannot cross process borders is worked on at once.
    """
    if isinstance(item, Chem.Mol):
        options = Chem.PropertyPickleOptions.AllProps | Chem.PropertyPickleOptions.CoordsAsDouble
        return _PickledMolecule(item.ToBinary(int(options)))
    try:
        return _Pickled(pickle.dumps(item))
    except Exception:
        return work(item)


def _apply_to_all(work: Callable[[Any], Result], frozen: list[Any]) -> list[Result]:
    return [work(_thaw(each)) if isinstance(each, _Pickled | _PickledMolecule) else each for each in frozen]


def _thaw(frozen: _Pickled | _PickledMolecule) -> Any:
    return Chem.Mol(frozen.binary) if isinstance(frozen, _PickledMolecule) else pickle.loads(frozen.content)
