"""Pipelines: molecules in, embeddings or properties out, the same answer in every batch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from types import GeneratorType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers.pipelines.base import Pipeline

from .batching import map_in_batches, max_pairs_for
from .feature_extraction_unimol2 import is_single_molecule

_FEATURIZER_SETTINGS = (
    "num_conformers",
    "include_2d",
    "seed",
    "embed_timeout",
    "num_retries",
    "allow_2d_fallback",
    "max_atoms",
    "max_atoms_policy",
    "use_graph_features",
)
_WINDOW_BATCHES = 16  # batches that are sorted by length together
_POOLINGS = ("cls", "mean")


class MoleculePipeline(Pipeline):
    """What the two tasks share: featurisation, batches, and one result a molecule, bad molecules included.

    Call it with one molecule or many (see `UniMol2FeatureExtractor`), `batch_size`, `num_workers` (processes for
    conformers and features) and any featurizer setting. With several conformers a result is their mean. A bad
    molecule raises its `MoleculeError` when given alone; among many it gives a result whose `error` says why.
    """

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = True
    _load_tokenizer = False

    def _sanitize_parameters(self, **parameters: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess = {name: parameters.pop(name) for name in _FEATURIZER_SETTINGS if name in parameters}
        forward = self._pop_forward_parameters(parameters)
        if parameters:
            raise TypeError(f"unknown parameters: {', '.join(sorted(parameters))}")
        return preprocess, forward, {}

    def _pop_forward_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        return {}

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        # The base class takes whatever is no list, generator or dataset for a single input.
        if not is_single_molecule(inputs) and not isinstance(inputs, list | GeneratorType | Dataset):
            inputs = (item for item in inputs) if isinstance(inputs, Iterator) else list(inputs)
        if isinstance(inputs, list) and not inputs:
            return []
        return super().__call__(inputs, *args, **kwargs)

    def run_single(
        self,
        inputs: Any,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> dict[str, Any]:
        featurized = self.preprocess(inputs, **preprocess_params)
        if featurized.error is not None:
            raise featurized.error
        return self._run_batch([featurized], forward_params)[0]

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[dict[str, Any]]:
        featurized = self.feature_extractor.featurize(_iterate(inputs), num_workers=num_workers, **preprocess_params)
        return self.run_featurized(featurized, batch_size, **forward_params)

    def run_featurized(
        self, featurized: Iterable[Any], batch_size: int, **forward_params: Any
    ) -> Iterator[dict[str, Any]]:
        """Results, in order, for molecules that went through `UniMol2FeatureExtractor.featurize` already."""
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; use at least 1")
        yield from map_in_batches(
            lambda batch: self._run_batch(batch, forward_params),
            featurized,
            # Every conformer of a molecule is a row of its batch, and a failed molecule is none.
            lambda molecule: len(molecule.features["input_ids"]) if molecule.features else 0,
            max_rows=batch_size,
            max_pairs=max_pairs_for(self.device.type, self.model.config.pair_hidden_size),
            window=batch_size * _WINDOW_BATCHES if batch_size > 1 else 1,
        )

    def preprocess(self, input_: Any, **settings: Any) -> Any:
        return next(iter(self.feature_extractor.featurize(input_, **settings)))

    def _run_batch(self, molecules: Sequence[Any], forward_params: dict[str, Any]) -> list[dict[str, Any]]:
        rows = [row for molecule in molecules for row in molecule.model_inputs()]
        outputs: Iterator[Any] = iter(())
        if rows:
            batch = self.feature_extractor.pad(rows)
            outputs = iter(self.forward(batch, **forward_params)["rows"])
        pairs = [(molecule, list(islice(outputs, len(molecule.conformers)))) for molecule in molecules]
        return [self.postprocess(pair, **forward_params) for pair in pairs]

    def postprocess(self, model_outputs: tuple[Any, list[Any]], **parameters: Any) -> dict[str, Any]:
        molecule, outputs = model_outputs
        error = None if molecule.error is None else molecule.error.reason
        if outputs and not all(_is_finite(output) for output in outputs):
            outputs, error = [], "the model's output is not finite; check its weights and precision"
        return {**self._result(outputs, **parameters), "conformers": molecule.provenance(), "error": error}

    def _result(self, outputs: list[Any], **parameters: Any) -> dict[str, Any]:
        """The task's part of a result; of empty outputs, the same keys with None."""
        raise NotImplementedError


class MoleculeEmbeddingPipeline(MoleculePipeline):
    """Task "molecule-embedding": {"embedding": (D,) float32 array or None, "conformers", "error"}.

    Parameters:
        pooling: "cls" (default) or "mean" over the atoms.
        per_atom: add "atom_embeddings", (n, D) in atom order.
    """

    def _pop_forward_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        chosen: dict[str, Any] = {name: parameters.pop(name) for name in ("pooling", "per_atom") if name in parameters}
        if chosen.get("pooling", "cls") not in _POOLINGS:
            raise ValueError(f"pooling is {chosen['pooling']!r}; use one of {_POOLINGS}")
        return chosen

    def _forward(self, input_tensors: Any, pooling: str = "cls", per_atom: bool = False) -> dict[str, Any]:
        if pooling == "cls" and not per_atom:
            pooled = self.model.base_model(**input_tensors, read_out="cls").pooler_output.float()
            return {"rows": [{"embedding": vector} for vector in pooled]}
        states = self.model.base_model(**input_tensors, read_out="atoms").last_hidden_state.float()
        rows = []
        for cls, atoms, mask in zip(states[:, 0], states[:, 1:], input_tensors["attention_mask"].bool(), strict=True):
            row = {"embedding": cls if pooling == "cls" else atoms[mask].mean(0)}
            rows.append({**row, "atom_embeddings": atoms[mask]} if per_atom else row)
        return {"rows": rows}

    def _result(self, outputs: list[dict[str, Tensor]], **parameters: Any) -> dict[str, Any]:
        names = ("embedding", "atom_embeddings") if parameters.get("per_atom") else ("embedding",)
        return {
            name: torch.stack([row[name] for row in outputs]).mean(0).numpy() if outputs else None for name in names
        }


class MoleculePropertyPipeline(MoleculePipeline):
    """Task "molecule-property-prediction": {"predictions": {target: value} or None, "conformers", "error"}.

    Values are in the units of the labels that the model was fine-tuned on.
    """

    def _forward(self, input_tensors: Any) -> dict[str, Any]:
        return {"rows": list(self.model(**input_tensors).logits.unbind(0))}

    def _result(self, outputs: list[Tensor], **parameters: Any) -> dict[str, Any]:
        if not outputs:
            return {"predictions": None}
        values = torch.stack(outputs).mean(0).tolist()
        id2label = self.model.config.id2label
        return {"predictions": {str(id2label[index]): value for index, value in enumerate(values)}}


def _is_finite(output: Tensor | dict[str, Tensor]) -> bool:
    tensors = output.values() if isinstance(output, dict) else (output,)
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _iterate(inputs: Any) -> Iterable[Any]:
    """Datasets with only `__len__` and `__getitem__` iterate too."""
    if hasattr(inputs, "__iter__"):
        return inputs  # type: ignore[no-any-return]
    getter: Callable[[int], Any] = inputs.__getitem__
    return map(getter, range(len(inputs)))


__all__ = ["MoleculeEmbeddingPipeline", "MoleculePropertyPipeline"]
