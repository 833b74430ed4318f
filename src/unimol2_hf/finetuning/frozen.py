"""A kernel head on the frozen vectors of a pretrained model, fitted in closed form."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from ..configuration_unimol2 import KERNEL, REGRESSION
from ..data.progress import stage
from ..data.splits import TRAIN, VALID
from ..modeling_unimol2 import UniMol2ForPropertyPrediction, encoder_options, pooled_states
from ..models.loading import quiet_transformers
from ..pipeline_unimol2 import MoleculePipeline
from .kernel_heads import MOST_CENTERS, KernelHead, fit_kernel_head
from .members import Members
from .prepare import PreparedTable
from .settings import FinetuneSettings
from .train import make_model

FloatArray = NDArray[np.float64]

# The best frozen vectors by measurement (benchmarks/finetuning/heads.md).
FROZEN_POOLING = "layers_mean"


def fit_frozen(
    prepared: PreparedTable, settings: FinetuneSettings, members: Members, output_dir: Path, console: Console
) -> list[FloatArray]:
    """Fit the heads, save model and featurizer, and give the outputs (conformers, members, num_labels) of each row.

    Heads are fitted on the mean of a molecule's conformers.
    """
    table = prepared.table
    used = [np.flatnonzero(np.isin(split, (TRAIN, VALID))) for split in members.splits]
    count = min(MOST_CENTERS, len(np.unique(np.concatenate(used))))
    kernel = {"head_type": KERNEL, "num_centers": count, "num_members": len(members)}
    model = make_model(settings, prepared, classifier_pooling=settings.pooling or FROZEN_POOLING, **kernel).eval()
    features = _features(model, prepared, settings, console)
    width = next(len(each[0]) for each in features if len(each))
    means = np.stack([each.mean(axis=0) if len(each) else np.zeros(width) for each in features])
    head = fit_kernel_head(
        means, _standardized_labels(prepared), prepared.targets, used, settings.seed, members.groups, table.row_weights
    )
    _put_into(model, head)
    with quiet_transformers():
        model.save_pretrained(output_dir)
        prepared.extractor.save_pretrained(output_dir)
    return [_outputs(model, each) for each in features]


class _FeaturePipeline(MoleculePipeline):
    """What the head reads of each conformer."""

    def _forward(self, input_tensors: Any) -> dict[str, Any]:
        given = {name: input_tensors.pop(name, None) for name in ("extra_features", "descriptors")}
        pooling = self.model.config.classifier_pooling
        encoded = self.model.base_model(**input_tensors, **encoder_options(pooling))
        pooled = pooled_states(encoded, input_tensors["attention_mask"], pooling)
        return {"rows": list(self.model.classifier.features(pooled, **given).unbind(0))}

    def _result(self, outputs: list[Any], **parameters: Any) -> dict[str, Any]:
        return {"features": np.stack([each.numpy() for each in outputs]).astype(np.float64) if outputs else []}


def _features(
    model: UniMol2ForPropertyPrediction, prepared: PreparedTable, settings: FinetuneSettings, console: Console
) -> list[FloatArray]:
    """Of each row (conformers, F), nothing of a molecule that failed."""
    pipeline = _FeaturePipeline(model=model, feature_extractor=prepared.extractor)
    found = []
    with stage(console, "vectors", len(prepared.molecules)) as advance:
        for result in pipeline.run_featurized(prepared.molecules, settings.batch_size):
            found.append(result["features"])
            advance(1)
    return found


def _standardized_labels(prepared: PreparedTable) -> FloatArray:
    scales = [
        (target["mean"], target["std"]) if target["kind"] == REGRESSION else (0.0, 1.0) for target in prepared.targets
    ]
    mean, std = np.array(scales).T
    return (prepared.table.labels - mean) / std


@torch.no_grad()
def _put_into(model: UniMol2ForPropertyPrediction, head: KernelHead) -> None:
    for name, parameter in model.classifier.kernel.named_parameters():
        parameter.copy_(torch.from_numpy(getattr(head, name)))


@torch.no_grad()
def _outputs(model: UniMol2ForPropertyPrediction, features: FloatArray) -> FloatArray:
    """(conformers, members, num_labels) in the labels' units, as the model gives them."""
    if not len(features):
        return np.empty((0, model.config.num_members, model.config.num_labels))
    outputs = model.classifier.kernel(torch.from_numpy(features).to(model.device).float())
    return model.in_units(outputs).double().cpu().numpy()
