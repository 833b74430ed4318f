"""Which folds each member of an ensemble leaves out, so that every molecule's error and spread can be told honestly."""

from itertools import combinations


def all_pairs(folds: int) -> list[list[int]]:
    """Every two folds are left out by one member: K (K - 1) / 2 members, K - 1 of which have not seen a fold.

    For heads that are fitted in seconds.
    """
    return [list(pair) for pair in combinations(range(folds), 2)]


def neighbouring_pairs(folds: int) -> list[list[int]]:
    """Fold k and the next one are left out by member k: K members, two of which have not seen a fold.

    Two at least, since the spread over members that have seen a molecule's label says nothing of how sure they are
    of a new one.
    """
    return [[fold, (fold + 1) % folds] for fold in range(folds)]
