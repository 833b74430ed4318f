"""Batches for the Hugging Face `Trainer`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..feature_extraction_unimol2 import UniMol2FeatureExtractor


@dataclass
class DataCollatorForUniMol2:
    """Pads unpadded molecules and stacks their labels.

    What `transformers.DataCollatorWithPadding(feature_extractor)` does, with labels under a name of one's own.

    Attributes:
        feature_extractor: whose `pad` is used.
        label_name: key of a row's labels, a sequence of one float per target, NaN where missing; rows without it give
            a batch without labels.
    """

    feature_extractor: UniMol2FeatureExtractor
    label_name: str = "labels"

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        named = [{"labels" if name == self.label_name else name: value for name, value in row.items()} for row in rows]
        batch: dict[str, Tensor] = dict(self.feature_extractor.pad(named))
        if self.label_name != "labels" and "labels" in batch:
            batch[self.label_name] = batch.pop("labels")
        return batch
