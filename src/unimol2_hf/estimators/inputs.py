"""What scikit-learn hands over as X: molecules in a list, an array, a Series or a table of one column."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rdkit import Chem
from sklearn.utils.validation import column_or_1d

from ..data.conformer_cache import cache_for, featurize_cached
from ..data.identity import identities
from ..data.splits import groups_of
from ..errors import MoleculeTypeError
from ..feature_extraction_unimol2 import FeaturizedMolecule, UniMol2FeatureExtractor
from ..molecules import Molecule, sequence_of_molecules
from ..worker_pool import worker_count


def molecules_in(X: Any) -> list[Molecule]:
    """The molecules of an X: SMILES, RDKit molecules, or anything else that the featurizer reads.

    Raises:
        MoleculeTypeError: numbers, several columns, or a single molecule.
    """
    if isinstance(X, str | bytes | Chem.Mol):
        raise MoleculeTypeError(f"X is one molecule, {X!r}; give a list of molecules")
    if isinstance(X, pd.DataFrame | np.ndarray) and X.ndim == 2:
        if X.shape[1] != 1:
            raise MoleculeTypeError(f"X has {X.shape[1]} columns; give the one of molecules, such as df['smiles']")
        X = X.iloc[:, 0] if isinstance(X, pd.DataFrame) else X[:, 0]
    if isinstance(X, np.ndarray) and X.dtype.kind not in "OUST":
        raise MoleculeTypeError(f"X is an array of {X.dtype}; give SMILES or molecules")
    return list(sequence_of_molecules(X))


def featurized_once(
    extractor: UniMol2FeatureExtractor,
    pairs: Iterable[tuple[int, Molecule]],
    cache: str,
    num_workers: int | None,
    options: Mapping[str, Any],
) -> Iterator[tuple[int, FeaturizedMolecule]]:
    """Molecules, each with its position, featurised with the conformers that a cache (`CacheSettings`) has.

    Raises:
        MoleculeError: a molecule cannot be used; the message has its position.
    """
    known = cache_for(extractor, cache, options)
    for position, made in featurize_cached(extractor, pairs, known, num_workers=worker_count(num_workers), **options):
        if made.error is not None:
            made.error.index = position
            raise made.error
        yield position, made


def scaffold_groups(molecules: Sequence[Molecule]) -> NDArray[np.intp]:
    """The Bemis-Murcko scaffold of each molecule as a number, for `GroupKFold` and all other group splitters.

    Molecules without rings are grouped by themselves, however they are written; what cannot be read by its text.
    """
    return groups_of(identities(molecules_in(molecules), "none"), "scaffold")


def labels_in(y: Any) -> NDArray[Any]:
    """Labels (n,), a column of them too.

    Raises:
        ValueError: of several columns.
    """
    found: NDArray[Any] = column_or_1d(y, warn=True)
    return found
