"""A kernel head on the frozen vectors of a pretrained model, fitted in closed form."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from ..configuration_unimol2 import KERNEL, REGRESSION
from ..conformers import conformer_versions
from ..data.progress import stage
from ..data.splits import TRAIN, VALID
from ..data.vector_cache import made_once, vector_cache_for
from ..feature_extraction_unimol2 import MODEL_INPUT_NAMES
from ..modeling_unimol2 import UniMol2ForPropertyPrediction, encoder_options, pooled_states
from ..models.loading import encoder_fingerprint, quiet_transformers
from ..pipeline_unimol2 import MoleculePipeline
from .kernel_heads import MOST_CENTERS, KernelHead, fit_kernel_head
from .members import Members
from .prepare import PreparedTable
from .settings import FinetuneSettings
from .train import make_model

FloatArray = NDArray[np.float64]

# With nano level with what means over all layers give, ahead of the CLS alone (benchmarks/finetuning/defaults.md).
FROZEN_POOLING = "cls_mean"
_ROWS_AT_ONCE = 1024


def fit_frozen(
    prepared: PreparedTable,
    settings: FinetuneSettings,
    members: Members,
    output_dir: Path,
    console: Console,
    vectors: list[FloatArray] | None = None,
) -> list[FloatArray]:
    """Fit the heads, save model and featurizer, and give the outputs (conformers, members, num_labels) of each row.

    Heads are fitted on the mean of a molecule's conformers.

    Args:
        prepared: the table.
        settings: of the run.
        members: the ensemble.
        output_dir: for the model.
        console: where it is told how far it has come.
        vectors: what `frozen_vectors` gave for the same molecules, in whatever split.
    """
    table = prepared.table
    used = [np.flatnonzero(np.isin(split, (TRAIN, VALID))) for split in members.splits]
    count = min(MOST_CENTERS, len(np.unique(np.concatenate(used))))
    kernel = {"head_type": KERNEL, "num_centers": count, "num_members": len(members)}
    model = make_model(settings, prepared, classifier_pooling=settings.pooling or FROZEN_POOLING, **kernel).eval()
    vectors = frozen_vectors(model, prepared, settings, console) if vectors is None else vectors
    features = _features(model, prepared, vectors)
    width = next(len(each[0]) for each in features if len(each))
    means = np.stack([each.mean(axis=0) if len(each) else np.zeros(width) for each in features])
    mean, std = label_scales(prepared)
    labels = (table.labels - mean) / std
    head = fit_kernel_head(means, labels, prepared.targets, used, settings.seed, members.groups, table.row_weights)
    _put_into(model, head)
    with quiet_transformers():
        model.save_pretrained(output_dir)
        prepared.extractor.save_pretrained(output_dir)
    return _outputs(model, features)


def frozen_vectors(
    model: UniMol2ForPropertyPrediction, prepared: PreparedTable, settings: FinetuneSettings, console: Console
) -> list[FloatArray]:
    """Pooled vectors (conformers, D) of each row, from the cache where it has them; none of one that failed."""
    pipeline = _VectorPipeline(model=model, feature_extractor=prepared.extractor)
    about = {
        "encoder": encoder_fingerprint(model),
        "pooling": model.config.classifier_pooling,
        "featurizer": asdict(prepared.extractor.settings()),
        **conformer_versions(),
    }
    cache = vector_cache_for(settings.conformer_cache, about)

    def make(rows: list[int]) -> Iterator[tuple[int, FloatArray]]:
        with stage(console, "vectors", len(rows)) as advance:
            pairs = ((row, prepared.molecules[row]) for row in rows)
            for row, result in pipeline.run_pairs(pairs, settings.batch_size):
                yield row, result["vectors"]
                advance(1)

    return [np.asarray(each, dtype=np.float64) for each in made_once(prepared.table.molecules, cache, make)]


class _VectorPipeline(MoleculePipeline):
    """The pooled vector of each conformer."""

    def _forward(self, input_tensors: Any) -> dict[str, Any]:
        pooling = self.model.config.classifier_pooling
        inputs = {name: each for name, each in input_tensors.items() if name in MODEL_INPUT_NAMES}
        encoded = self.model.base_model(**inputs, **encoder_options(pooling))
        return {"rows": list(pooled_states(encoded, inputs["attention_mask"], pooling).unbind(0))}

    def _result(self, outputs: list[Any], **parameters: Any) -> dict[str, Any]:
        none = np.empty((0, self.model.config.pooled_size))
        return {"vectors": torch.stack(outputs).double().numpy() if outputs else none}


@torch.no_grad()
def _features(
    model: UniMol2ForPropertyPrediction, prepared: PreparedTable, vectors: list[FloatArray]
) -> list[FloatArray]:
    """What the head reads of each conformer (conformers, F): the vector, and what the molecule has besides."""
    counts = [len(each) for each in vectors]
    owners = [molecule for molecule, count in zip(prepared.molecules, counts, strict=True) for _ in range(count)]
    besides = [[getattr(owner, name) for owner in owners] for name in ("extra_features", "descriptors")]
    given = [None if each[0] is None else torch.from_numpy(np.stack(each)) for each in besides]
    made = model.cpu().classifier.features(torch.from_numpy(np.concatenate(vectors)).float(), *given)
    return np.split(made.double().numpy(), np.cumsum(counts)[:-1])


def label_scales(prepared: PreparedTable) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation (targets,) by which labels are standardised; classes are not."""
    scales = [
        (target["mean"], target["std"]) if target["kind"] == REGRESSION else (0.0, 1.0) for target in prepared.targets
    ]
    mean, std = np.array(scales).T
    return mean, std


@torch.no_grad()
def _put_into(model: UniMol2ForPropertyPrediction, head: KernelHead) -> None:
    for name, parameter in model.classifier.kernel.named_parameters():
        parameter.copy_(torch.from_numpy(getattr(head, name)))


@torch.no_grad()
def _outputs(model: UniMol2ForPropertyPrediction, features: list[FloatArray]) -> list[FloatArray]:
    """Of each row (conformers, members, num_labels) in the labels' units, as the model gives them."""
    counts = [len(each) for each in features]
    rows = torch.from_numpy(np.concatenate([each for each in features if len(each)])).float()
    outputs = [model.in_units(model.classifier.kernel(part)).double().numpy() for part in rows.split(_ROWS_AT_ONCE)]
    return np.split(np.concatenate(outputs), np.cumsum(counts)[:-1])
