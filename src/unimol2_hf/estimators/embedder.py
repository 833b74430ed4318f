"""Embeddings as a scikit-learn transformer."""

from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from ..conformers import conformer_versions
from ..data.vector_cache import made_once, vector_cache_for
from ..jobs.model_job import load_pipeline
from ..jobs.settings import EmbedSettings
from ..modeling_unimol2 import UniMol2Model
from ..models.loading import encoder_fingerprint, load_feature_extractor
from ..pipeline_unimol2 import MoleculeEmbeddingPipeline
from ..settings_unimol2 import NANO_NAME
from .inputs import featurized_once, molecules_in

AUTO = "auto"


class UniMol2Embedder(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Molecules to the vectors of a pretrained model; nothing is learned.

    A molecule's vector is computed once: it is kept beside its conformers (`conformer_cache`) for other folds, runs and
    programs.

    Args:
        model: "unimol2-nano", a folder or a Hub id.
        pooling: "cls", "mean", "cls_mean" or "layers_mean"; see the pipeline "molecule-embedding".
        featurizer: options of the featurizer, such as `{"num_conformers": 3}`.
        batch_size: most conformers of a batch.
        num_workers: processes for conformers; default: all cores.
        conformer_cache: see `unimol2-hf finetune --help`.
        device: "auto", "cpu", "cuda", ...
    """

    def __init__(
        self,
        model: str = NANO_NAME,
        *,
        pooling: str = "cls",
        featurizer: Mapping[str, Any] | None = None,
        batch_size: int = 32,
        num_workers: int | None = None,
        conformer_cache: str = AUTO,
        device: str = AUTO,
    ) -> None:
        self.model = model
        self.pooling = pooling
        self.featurizer = featurizer
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.conformer_cache = conformer_cache
        self.device = device

    def fit(self, X: Any, y: Any = None) -> Self:
        """Load the model; X is not looked at further.

        Raises:
            ModelError: the model cannot be loaded.
            SettingsError: an option is not known or out of range.
        """
        molecules_in(X)
        self._load()
        self.n_features_out_ = self._pipeline.model.config.pooled_size_of(self.pooling)
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Vectors (n, D).

        Raises:
            MoleculeError: a molecule cannot be used; the message has its position.
        """
        check_is_fitted(self)
        molecules = molecules_in(X)
        cache = vector_cache_for(self.conformer_cache, self._about())

        def make(rows: list[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
            for row, vector in zip(rows, self._vectors([molecules[row] for row in rows], rows), strict=True):
                yield row, vector[None]

        none = np.empty((0, self.n_features_out_), dtype=np.float32)
        # Every molecule has a vector by now: one that cannot be used has raised its error.
        return np.concatenate([none, *(each for each in made_once(molecules, cache, make) if each is not None)])

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Names of the columns of `transform`."""
        check_is_fitted(self)
        return np.array([f"unimol2_{number}" for number in range(self.n_features_out_)], dtype=object)

    def _vectors(self, molecules: list[Any], positions: list[int]) -> list[NDArray[np.float32]]:
        extractor, options = self._pipeline.feature_extractor, dict(self.featurizer or {})
        pairs = zip(positions, molecules, strict=True)
        made = featurized_once(extractor, pairs, self.conformer_cache, self.num_workers, options)
        results = self._pipeline.run_featurized((each for _, each in made), self.batch_size, pooling=self.pooling)
        return [result["embedding"] for result in results]

    def _load(self) -> None:
        settings = EmbedSettings(
            model=self.model, pooling=self.pooling, batch_size=self.batch_size, device=self.device  # type: ignore[arg-type]
        )  # fmt: skip
        extractor = load_feature_extractor(self.model)
        extractor.settings(**(self.featurizer or {}))
        self._pipeline = load_pipeline(MoleculeEmbeddingPipeline, UniMol2Model, self.model, settings, extractor)

    def _about(self) -> dict[str, Any]:
        model, extractor = self._pipeline.model, self._pipeline.feature_extractor
        featurizer = vars(extractor.settings(**(self.featurizer or {})))
        return {
            "encoder": encoder_fingerprint(model),
            "embedding": self.pooling,
            "featurizer": featurizer,
            **conformer_versions(),
        }

    def __getstate__(self) -> dict[str, Any]:
        # By reference to the model: its weights stay where they are.
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_pipeline"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "n_features_out_" in state:
            self._load()

    def __sklearn_tags__(self) -> Tags:
        return with_molecules(super().__sklearn_tags__())


def with_molecules(tags: Tags) -> Tags:
    """Of an estimator whose X is molecules."""
    tags.input_tags.string = True
    tags.input_tags.one_d_array = True
    tags.input_tags.two_d_array = False
    tags.no_validation = True
    tags.non_deterministic = False
    return tags
