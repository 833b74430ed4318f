"""Featurised molecules as a dataset for the Trainer."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ..feature_extraction_unimol2 import FeaturizedMolecule


class FeaturizedDataset(Dataset[dict[str, Any]]):
    """Unpadded model inputs with labels (n, targets) and, if given, weights (n,).

    A molecule with several conformers gives a random one at each access (the reference's practice; the draw follows
    torch's seed).
    """

    def __init__(
        self,
        molecules: Sequence[FeaturizedMolecule],
        labels: NDArray[np.floating[Any]],
        row_weights: NDArray[np.floating[Any]] | None = None,
    ) -> None:
        if len(molecules) != len(labels):
            raise ValueError(f"{len(molecules)} molecules but {len(labels)} rows of labels")
        self.molecules = molecules
        self.labels = labels.astype(np.float32)
        self.row_weights = row_weights

    def __len__(self) -> int:
        return len(self.molecules)

    @property
    def lengths(self) -> list[int]:
        """Atoms of each molecule, by which batches are planned."""
        return [len(molecule.features["input_ids"]) if molecule.features else 0 for molecule in self.molecules]

    def __getitem__(self, index: int) -> dict[str, Any]:
        molecule = self.molecules[index]
        count = len(molecule.conformers)
        chosen = int(torch.randint(count, ())) if count > 1 else 0
        row = next(islice(molecule.model_inputs(), chosen, None))
        weights = {} if self.row_weights is None else {"row_weights": self.row_weights[index]}
        return {**row, "labels": self.labels[index], **weights}
