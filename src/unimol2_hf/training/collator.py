"""Batches for the Hugging Face `Trainer`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import SettingsError
from ..feature_extraction_unimol2 import UniMol2FeatureExtractor


@dataclass
class DataCollatorForUniMol2:
    """Pads unpadded molecules and stacks their labels.

    Attributes:
        feature_extractor: whose `pad` is used.
        label_name: key of a row's labels, a sequence of one float per target, NaN where missing; rows without it give
            a batch without labels.
    """

    feature_extractor: UniMol2FeatureExtractor
    label_name: str = "labels"

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = dict(self.feature_extractor.pad(rows))
        labelled = sum(self.label_name in row for row in rows)
        if 0 < labelled < len(rows):
            raise SettingsError(f"{len(rows) - labelled} of {len(rows)} rows lack {self.label_name!r}; use NaN labels")
        if labelled:
            labels = np.stack([np.asarray(row[self.label_name], dtype=np.float32) for row in rows])
            batch[self.label_name] = torch.from_numpy(labels)
        return batch
