"""What each member of an ensemble is fitted on, and which molecules it has not seen."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ..configuration_unimol2 import UniMol2Config
from ..data.splits import TEST, TRAIN, UNUSED, VALID, Parts, deal_folds, groups_of
from ..uncertainty.folds import all_pairs, neighbouring_pairs
from .defaults import MOST_FROZEN_ROWS, PUBLISHED_WIDTH
from .prepare import PreparedTable
from .settings import FinetuneSettings

NO_FOLD = -1
# Of what a member is trained on, one part in so many decides which epoch is kept.
_VALIDATION_PARTS = 10


@dataclass(frozen=True)
class Members:
    """The members of an ensemble; a single model is an ensemble of one.

    Attributes:
        frozen: whether they are kernel heads on one pretrained encoder.
        splits: of each member its training, validation and unused rows; the test part is everyone's.
        seeds: of each member.
        groups: (n,) of rows that never lie in two parts or folds; `None` for a trained model without folds.
        folds: (n,) of each row of the training and validation part, -1 elsewhere; `None` without folds.
        left_out: of each member the folds that it has not seen.
    """

    frozen: bool
    splits: list[Parts]
    seeds: list[int]
    groups: NDArray[np.intp] | None = None
    folds: NDArray[np.intp] | None = None
    left_out: tuple[tuple[int, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.splits)


def is_frozen(settings: FinetuneSettings, prepared: PreparedTable, config: UniMol2Config) -> bool:
    """Whether the head is a kernel head on frozen vectors, as asked for or by the size of table and model."""
    if settings.head != "auto":
        return settings.head == "frozen"
    if settings.options_of_training:
        return False
    # Several encoders of a published scale are for those who ask for them.
    heavy = settings.folds > 0 and config.hidden_size >= PUBLISHED_WIDTH
    return heavy or sum(len(prepared.table.rows_of(part)) for part in (TRAIN, VALID)) <= MOST_FROZEN_ROWS


def plan_members(settings: FinetuneSettings, prepared: PreparedTable, frozen: bool) -> Members:
    """Who is fitted on what.

    Each member of an ensemble on folds leaves out two of them; a trained one keeps a tenth of the others to choose its
    epoch by. Nothing of a fold decides anything about the members that leave it out.

    Raises:
        TableError: there are fewer groups of molecules than folds.
    """
    split = prepared.table.split
    groups = groups_of(prepared.names, settings.split_method) if frozen or settings.folds else None
    if groups is None or not settings.folds:
        seeds = [settings.seed + number for number in range(max(1, settings.seeds))]
        return Members(frozen, [split] * len(seeds), seeds, groups)
    own = np.isin(split, (TRAIN, VALID))
    folds = np.full(len(split), NO_FOLD, dtype=np.intp)
    folds[own] = deal_folds(groups[own], settings.folds, settings.seed)
    left_out = (all_pairs if frozen else neighbouring_pairs)(settings.folds)
    seeds = [settings.seed + number for number in range(len(left_out))]
    kept = [own & ~np.isin(folds, out) for out in left_out]
    splits = [
        _parts(split, rows, np.zeros_like(rows) if frozen else validation_rows(groups, rows, seed))
        for rows, seed in zip(kept, seeds, strict=True)
    ]
    return Members(frozen, splits, seeds, groups, folds, tuple(map(tuple, left_out)))


def validation_rows(groups: NDArray[np.intp], rows: NDArray[np.bool_], seed: int) -> NDArray[np.bool_]:
    """A tenth of the rows, or one group."""
    own = groups[rows]
    valid = np.zeros_like(rows)
    valid[rows] = deal_folds(own, min(_VALIDATION_PARTS, max(2, len(np.unique(own)))), seed) == 0
    return valid


def _parts(split: Parts, rows: NDArray[np.bool_], valid: NDArray[np.bool_]) -> Parts:
    parts = np.where(split == TEST, TEST, UNUSED).astype("<U5")
    parts[rows] = TRAIN
    parts[valid] = VALID
    return parts


def tell_members(members: Members, console: Console) -> None:
    """Which head it is, and how many there are."""
    head = "frozen, on the pretrained model's vectors" if members.frozen else "finetuned"
    many = f"; {len(members)} members" if len(members) > 1 else ""
    console.print(f"head: {head}{many}", highlight=False)
