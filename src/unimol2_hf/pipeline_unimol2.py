"""Pipelines: molecules in, embeddings or properties out, the same answer in every batch."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import GeneratorType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers.pipelines.base import Pipeline

from .batching import map_in_batches, max_pairs_for, most_rows
from .calibration import load_calibration, property_result, save_calibration
from .configuration_unimol2 import KERNEL
from .errors import NOT_FINITE, ModelError
from .fingerprints import load_fingerprints, morgan_bits, nearest_similarity, save_fingerprints
from .modeling_unimol2 import encoder_options, pooled_states
from .molecules import has_bonds, is_single_molecule, molecule_of, sequence_of_molecules
from .packed_linear import pack_linear_layers
from .settings_unimol2 import FEATURIZER_OPTIONS, POOLINGS

Context = TypeVar("Context")

_WINDOW_BATCHES = 8  # batches that are sorted by length together
_STATIC_LENGTH_STEP = 4  # atoms
_MOST_STATIC_SHAPES = 256
_SINGLE_MOLECULE_ROWS = 32  # conformers of a molecule given alone that are run together


class MoleculePipeline(Pipeline):
    """What the two tasks share: featurisation, batches, and one result a molecule, bad molecules included.

    Call it with one molecule or many (see `UniMol2FeatureExtractor`), `batch_size`, `num_workers` (processes for
    conformers and features) and any featurizer setting. With several conformers a result is their mean. A bad
    molecule raises its `MoleculeError` when given alone; among many it gives a result whose `error` says why, and
    `error_code` in a word.
    """

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = True
    _load_tokenizer = False
    _static_shapes = False
    _length_step = 1

    @property
    def models(self) -> list[Any]:
        """The model, or all members of an ensemble."""
        return [self.model]

    def _sanitize_parameters(self, **parameters: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess = {name: parameters.pop(name) for name in FEATURIZER_OPTIONS if name in parameters}
        forward = self._pop_forward_parameters(parameters)
        if parameters:
            raise TypeError(f"unknown parameters: {', '.join(sorted(parameters))}")
        return preprocess, forward, {}

    def _pop_forward_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        return {}

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_single_molecule(inputs):
            inputs = sequence_of_molecules(inputs)
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
        return next(self.run_featurized([featurized], _SINGLE_MOLECULE_ROWS, **forward_params))

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[dict[str, Any]]:
        featurized = self._featurize(_iterate(inputs), num_workers=num_workers, **preprocess_params)
        return self.run_featurized(featurized, batch_size, **forward_params)

    def _featurize(self, inputs: Iterable[Any], **settings: Any) -> Iterator[Any]:
        featurized: Iterator[Any] = self.feature_extractor.featurize(inputs, **settings)
        return featurized

    def run_featurized(
        self, featurized: Iterable[Any], batch_size: int, **forward_params: Any
    ) -> Iterator[dict[str, Any]]:
        """Results, in order, for molecules that went through `UniMol2FeatureExtractor.featurize` already."""
        pairs = ((None, molecule) for molecule in featurized)
        yield from (result for _, result in self.run_pairs(pairs, batch_size, **forward_params))

    def run_pairs(
        self, pairs: Iterable[tuple[Context, Any]], batch_size: int, **forward_params: Any
    ) -> Iterator[tuple[Context, dict[str, Any]]]:
        """As `run_featurized`, for molecules that each come with a context (`featurize_pairs`)."""
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; use at least 1")
        _, forward_params, _ = self._sanitize_parameters(**forward_params)
        for window in _windows(pairs, batch_size * _WINDOW_BATCHES if batch_size > 1 else 1):
            rows = [row for _, molecule in window for row in molecule.model_inputs()]
            outputs = self._run_rows(rows, batch_size, forward_params)
            for context, molecule in window:
                # A failed molecule has no conformers, and no outputs.
                own = list(islice(outputs, len(molecule.conformers)))
                yield context, self.postprocess((molecule, own), **forward_params)

    def _run_rows(self, rows: list[dict[str, Any]], batch_size: int, forward_params: dict[str, Any]) -> Iterator[Any]:
        """The model's output for each conformer, in order."""
        max_pairs = max_pairs_for(self.device.type, self.model.config.pair_hidden_size)

        def length_of(row: dict[str, Any]) -> int:
            return -(-len(row["input_ids"]) // self._length_step) * self._length_step

        def run(batch: list[dict[str, Any]]) -> list[Any]:
            length = max(map(length_of, batch))
            if not self._static_shapes:
                return self._run_padded(self._padded(batch, length), forward_params)
            # Copies fill the batch up to the one shape that this length has.
            copies = most_rows(length, batch_size, max_pairs) - len(batch)
            filled = self._padded([*batch, *batch[:1] * copies], length)
            return self._run_padded(filled, forward_params)[: len(batch)]

        return map_in_batches(run, rows, length_of, max_rows=batch_size, max_pairs=max_pairs, window=max(1, len(rows)))

    def _padded(self, rows: list[dict[str, Any]], length: int) -> Any:
        return self.feature_extractor.pad(rows, padding="max_length", max_length=length)

    def _run_padded(self, batch: Any, forward_params: dict[str, Any]) -> list[Any]:
        if self.device.type == "cuda":
            # From pinned memory the copy need not be waited for. Pairs travel as int16, 12 bytes each.
            batch = {name: tensor.pin_memory().to(self.device, non_blocking=True) for name, tensor in batch.items()}
        outputs: list[Any] = self.forward(batch, **forward_params)["rows"]
        return outputs

    def pack_weights(self) -> None:
        """Keep the weights a second time in the layout that this processor multiplies fastest: float32 on a CPU only.

        The answers stay the same to rounding, weights may still be trained or changed. `unimol2-hf embed` does this by
        itself for models of up to 200 million parameters. Not together with `compile_model`.
        """
        for model in self.models:
            pack_linear_layers(model.base_model)

    def compile_model(self, static_shapes: bool = False) -> None:
        """Run the model through `torch.compile` from now on; the answers stay the same to rounding.

        The first batches wait for the compiler (a C++ compiler must be installed). On a CPU the weights are baked in:
        training or changing them afterwards has no effect here.

        Args:
            static_shapes: round molecules up to multiples of 4 atoms and fill every batch, one graph for each length,
                CUDA graphs on a GPU; else one graph for all shapes.
        """
        self._static_shapes = static_shapes
        self._length_step = _STATIC_LENGTH_STEP if static_shapes else 1
        on_cpu = self.device.type == "cpu"
        if on_cpu:
            torch._inductor.config.freezing = True
        if static_shapes:
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_STATIC_SHAPES)
        mode = "reduce-overhead" if static_shapes and not on_cpu else None
        for model in self.models:
            model.base_model.compile(dynamic=not static_shapes, mode=mode)

    def preprocess(self, input_: Any, **settings: Any) -> Any:
        featurized = next(iter(self._featurize([input_], **settings)))
        if featurized.error is not None:
            featurized.error.index = None  # a molecule given alone has no position
        return featurized

    def postprocess(self, model_outputs: tuple[Any, list[Any]], **parameters: Any) -> dict[str, Any]:
        molecule, outputs = model_outputs
        error, code = (None, None) if molecule.error is None else (molecule.error.reason, molecule.error.code)
        if outputs and not all(_is_finite(output) for output in outputs):
            outputs, error, code = [], "the model's output is not finite; check its weights and precision", NOT_FINITE
        told = {"provenance": molecule.provenance(), "error": error, "error_code": code}
        return {**self._result(outputs, **parameters), **told}

    def _result(self, outputs: list[Any], **parameters: Any) -> dict[str, Any]:
        """The task's part of a result; of empty outputs, the same keys with None."""
        raise NotImplementedError


class MoleculeEmbeddingPipeline(MoleculePipeline):
    """Task "molecule-embedding": {"embedding": (D,) float32 array or None, "provenance", "error", "error_code"}.

    Parameters:
        pooling: "cls" (default), "mean" over the atoms, "cls_mean", both, (2 D,), or "layers_mean", both as means over
            all layers, (2 D,).
        per_atom: add "atom_embeddings", (n, D) in atom order.
    """

    def _pop_forward_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        chosen: dict[str, Any] = {name: parameters.pop(name) for name in ("pooling", "per_atom") if name in parameters}
        if chosen.get("pooling", "cls") not in POOLINGS:
            raise ValueError(f"pooling is {chosen['pooling']!r}; use one of {POOLINGS}")
        return chosen

    def _forward(self, input_tensors: Any, pooling: str = "cls", per_atom: bool = False) -> dict[str, Any]:
        options = encoder_options("mean" if per_atom and pooling == "cls" else pooling)
        encoded = self.model.base_model(**input_tensors, **options)
        mask = input_tensors["attention_mask"].bool()
        vectors = pooled_states(encoded, mask, pooling)
        if not per_atom:
            return {"rows": [{"embedding": vector} for vector in vectors]}
        atoms = zip(encoded.last_hidden_state[:, 1:].float(), mask, strict=True)
        return {
            "rows": [
                {"embedding": vector, "atom_embeddings": own[present]}
                for vector, (own, present) in zip(vectors, atoms, strict=True)
            ]
        }

    def _result(self, outputs: list[dict[str, Tensor]], **parameters: Any) -> dict[str, Any]:
        names = ("embedding", "atom_embeddings") if parameters.get("per_atom") else ("embedding",)
        return {
            name: torch.stack([row[name] for row in outputs]).mean(0).numpy() if outputs else None for name in names
        }


class MoleculePropertyPipeline(MoleculePipeline):
    """Task "molecule-property-prediction": {"predictions": {target: prediction} or None, "provenance", "error",
    "error_code"}.

    A prediction is the value of a regression target, in the units of its labels; the probability of a binary target's
    positive class; the likeliest class of a multiclass target, with "probabilities": {target: {class: p}} beside. With
    several conformers values and probabilities are means. A head that was never trained is refused.

    Of an ensemble it is the mean over the members, and a result has "spreads": {target: standard deviation over the
    members}, of classes that of the probability. Where the folder has a `calibration.json`, probabilities are
    calibrated, and regression targets have "intervals": {target: (lower, upper)}, which hold `coverage` of new
    molecules.

    Where the model reads numbers besides the molecule (`config.extra_features`), a molecule comes as {"molecule":
    molecule, "features": {name: number}}. Where its folder has the training molecules' fingerprints, a result has
    "nearest_similarity", the Tanimoto similarity to the nearest of them; None without bonds to read.

    Parameters:
        coverage: of the intervals, between 0 and 1; by default the one that was asked for when they were fitted.
    """

    _refuses_untrained = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        head = getattr(self.model, "classifier", None)
        if self._refuses_untrained and (head is None or head.is_new):
            raise ModelError(
                "the model has no trained property head: fine-tune it first, or ask for the task molecule-embedding"
            )
        self._training_molecules = self._calibration = None
        self._others: list[Any] = []
        name = self.model.name_or_path
        if name and self._refuses_untrained:
            revision = {"revision": commit} if (commit := getattr(self.model.config, "_commit_hash", None)) else {}
            self._training_molecules = load_fingerprints(name, **revision)
            self._calibration = load_calibration(name, **revision)
            self._others = load_other_members(self.model, **revision)

    def _pop_forward_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        chosen: dict[str, Any] = {name: parameters.pop(name) for name in ("coverage",) if name in parameters}
        coverage = chosen.get("coverage")
        if coverage is not None and not (isinstance(coverage, int | float) and 0 < coverage < 1):
            raise ValueError(f"coverage is {coverage!r}; use a number between 0 and 1, such as 0.9")
        return chosen

    @property
    def models(self) -> list[Any]:
        return [self.model, *self._others]

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As Transformers has it, with what the folder has besides: fingerprints, calibration, members."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if self._training_molecules is not None:
            save_fingerprints(save_directory, self._training_molecules)
        if self._calibration is not None:
            save_calibration(save_directory, self._calibration)
        for number, model in enumerate(self._others, start=1):
            model.save_pretrained(Path(save_directory) / member_folder(number))

    @property
    def calibration(self) -> Any:
        """What was fitted on molecules that members had not seen (`Calibration`); `None` where there is none."""
        return self._calibration

    @property
    def has_similarity(self) -> bool:
        """Whether results have "nearest_similarity"."""
        return self._training_molecules is not None

    def _featurize(self, inputs: Iterable[Any], **settings: Any) -> Iterator[Any]:
        given = map(_features_and_molecule, inputs)
        pairs = (((features, molecule), molecule) for features, molecule in given)
        for (features, molecule), featurized in self.feature_extractor.featurize_pairs(pairs, **settings):
            yield self.complete(featurized, molecule, features)

    def complete(self, featurized: Any, molecule: Any, features: Mapping[str, Any]) -> Any:
        """A featurised molecule with what this model wants besides: extra numbers, the fingerprint."""
        made = featurized.with_extra_features(self.model.config.extra_feature_names, features)
        if made.error is not None or not self.has_similarity:
            return made
        read = made.standardized_smiles or molecule
        return replace(made, fingerprint=morgan_bits(molecule_of(read) if has_bonds(read) else None))

    def postprocess(self, model_outputs: tuple[Any, list[Any]], **parameters: Any) -> dict[str, Any]:
        result = super().postprocess(model_outputs, **parameters)
        if self._training_molecules is not None:
            bits = model_outputs[0].fingerprint
            found = math.nan if bits is None else float(nearest_similarity(bits[None], self._training_molecules)[0])
            result["nearest_similarity"] = None if math.isnan(found) else found
        return result

    def _forward(self, input_tensors: Any, coverage: float | None = None) -> dict[str, Any]:
        outputs = (model(**input_tensors) for model in self.models)
        logits = [each.logits.unsqueeze(1) if each.member_logits is None else each.member_logits for each in outputs]
        return {"rows": list(torch.cat(logits, dim=1).unbind(0))}

    def _result(self, outputs: list[Tensor], **parameters: Any) -> dict[str, Any]:
        logits = torch.stack(outputs).double().numpy() if outputs else None
        return property_result(self.model.config, logits, self._calibration, parameters.get("coverage"))


def member_folder(number: int) -> str:
    """Where an ensemble's folder has a member; the first one is the folder's own model."""
    return f"members/{number}"


def load_other_members(model: Any, **hub_kwargs: Any) -> list[Any]:
    """The members of an ensemble besides the folder's own model; none where the members are heads on one encoder.

    Raises:
        ModelError: a member is missing or damaged.
    """
    if model.config.head_type == KERNEL:
        return []
    members = []
    for number in range(1, model.config.num_members):
        folder = member_folder(number)
        try:
            member = type(model).from_pretrained(model.name_or_path, subfolder=folder, dtype=model.dtype, **hub_kwargs)
        # A damaged file raises what is an Exception only, of a package that is not imported here.
        except Exception as error:
            raise ModelError(
                f"{model.name_or_path} is an ensemble of {model.config.num_members} models, of which {folder} cannot "
                f"be loaded ({error}); copy the whole folder, or save the pipeline instead of the model"
            ) from error
        members.append(member.eval().to(model.device))
    return members


def _features_and_molecule(item: Any) -> tuple[Mapping[str, Any], Any]:
    if isinstance(item, Mapping) and "molecule" in item:
        return item.get("features") or {}, item["molecule"]
    return {}, item


def _windows(pairs: Iterable[tuple[Context, Any]], conformers: int) -> Iterator[list[tuple[Context, Any]]]:
    """The pairs in lists of which each holds at least so many conformers, the last one fewer."""
    window: list[tuple[Context, Any]] = []
    count = 0
    for pair in pairs:
        window.append(pair)
        count += len(pair[1].conformers)
        if count >= conformers:
            yield window
            window, count = [], 0
    if window:
        yield window


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
