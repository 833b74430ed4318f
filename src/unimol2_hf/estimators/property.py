"""Property models as scikit-learn's regressor and classifier; the same fits and folders as `finetune`."""

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted
from transformers import set_seed

from ..configuration_unimol2 import BINARY, MULTICLASS, REGRESSION
from ..data.molecule_rows import text_of
from ..data.splits import TRAIN, VALID, groups_of
from ..data.tables import MoleculeTable
from ..errors import ModelError, TableError
from ..finetuning.evaluate import save_training_fingerprints
from ..finetuning.finetune import fit_model
from ..finetuning.members import is_frozen, plan_members, validation_rows
from ..finetuning.prepare import PreparedTable, prepare
from ..finetuning.settings import FinetuneSettings
from ..finetuning.train import load_start_config
from ..jobs.model_job import load_pipeline
from ..jobs.settings import PredictSettings
from ..modeling_unimol2 import UniMol2ForPropertyPrediction
from ..models.loading import load_feature_extractor
from ..pipeline_unimol2 import MoleculePropertyPipeline
from ..settings_unimol2 import NANO_NAME
from .embedder import AUTO, with_molecules
from .inputs import featurized_once, labels_in, molecules_in

TARGET, WEIGHT = "y", "weight"
_QUIET = Console(quiet=True)


class _PropertyEstimator(BaseEstimator):  # type: ignore[misc]
    """What regressor and classifier share: fit a folder, predict with its pipeline."""

    def __init__(
        self,
        model: str = NANO_NAME,
        *,
        head: str = AUTO,
        descriptors: str = "none",
        folds: int = 0,
        coverage: float = 0.9,
        epochs: int | None = None,
        learning_rate: float | None = None,
        pooling: str | None = None,
        seed: int = 0,
        featurizer: Mapping[str, Any] | None = None,
        batch_size: int = 32,
        num_workers: int | None = None,
        conformer_cache: str = AUTO,
        output_dir: str | None = None,
    ) -> None:
        self.model = model
        self.head = head
        self.descriptors = descriptors
        self.folds = folds
        self.coverage = coverage
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.pooling = pooling
        self.seed = seed
        self.featurizer = featurizer
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.conformer_cache = conformer_cache
        self.output_dir = output_dir

    def _fit(self, X: Any, labels: list[Any], kind: str, sample_weight: Any) -> None:
        """Fit on all rows, into a folder that `finetune` could have written."""
        molecules = molecules_in(X)
        check_consistent_length(molecules, labels)
        settings = self._settings(kind, sample_weight is not None)
        cells = pd.DataFrame({TARGET: list(map(text_of, labels))}, dtype=object)
        if sample_weight is not None:
            cells[WEIGHT] = list(map(repr, np.asarray(sample_weight, dtype=np.float64).tolist()))
        texts = [molecule if isinstance(molecule, str) else "" for molecule in molecules]
        set_seed(self.seed)
        prepared = prepare(MoleculeTable(texts, molecules, cells), settings, _QUIET, held_out=False)
        self._refuse_failures(prepared)
        frozen = is_frozen(settings, prepared, load_start_config(settings))
        if not frozen and not settings.folds:
            prepared = _with_validation(prepared, settings)
        folder = Path(self.output_dir or tempfile.mkdtemp(prefix="unimol2_hf_"))
        members = plan_members(settings, prepared, frozen)
        fitted = fit_model(prepared, settings, members, folder, _QUIET)
        save_training_fingerprints(folder, prepared, fitted)
        self.model_dir_ = str(folder)
        if self.output_dir is None:
            self._forget = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._load()

    def _settings(self, kind: str, weighted: bool) -> FinetuneSettings:
        names = ("model", "head", "descriptors", "folds", "coverage", "epochs", "learning_rate", "pooling", "seed",
                 "batch_size", "num_workers", "conformer_cache")  # fmt: skip
        return FinetuneSettings(
            targets=(TARGET,),
            tasks=(f"{TARGET}={kind}",),
            split_method="random",
            weight_column=WEIGHT if weighted else None,
            featurizer=dict(self.featurizer or {}),
            **{name: getattr(self, name) for name in names},
        )

    @staticmethod
    def _refuse_failures(prepared: PreparedTable) -> None:
        for row, molecule in enumerate(prepared.molecules):
            if molecule.error is not None:
                molecule.error.index = row
                raise molecule.error

    def _load(self) -> None:
        if not (Path(self.model_dir_) / "config.json").exists():
            raise ModelError(
                f"{self.model_dir_}, the folder of this fitted estimator, is gone; fit it again with output_dir=..., "
                "and keep that folder"
            )
        settings = PredictSettings(batch_size=self.batch_size)
        kinds = MoleculePropertyPipeline, UniMol2ForPropertyPrediction
        self._pipeline = load_pipeline(*kinds, self.model_dir_, settings, load_feature_extractor(self.model_dir_))

    def _results(self, X: Any, **parameters: Any) -> list[dict[str, Any]]:
        check_is_fitted(self)
        molecules = molecules_in(X)
        if not molecules:
            return []
        extractor = self._pipeline.feature_extractor
        made = featurized_once(extractor, enumerate(molecules), self.conformer_cache, self.num_workers, {})
        complete = (self._pipeline.complete(each, molecules[row], {}) for row, each in made)
        results = list(self._pipeline.run_featurized(complete, self.batch_size, **parameters))
        for row, result in enumerate(results):
            if result["error"] is not None:
                raise ModelError(f"molecule {row}: {result['error']}")
        return results

    def __getstate__(self) -> dict[str, Any]:
        # By reference to the folder, which must outlive whoever unpickles this.
        state: dict[str, Any] = super().__getstate__()
        if "_forget" in state:
            state["_forget"].detach()
        return {name: value for name, value in state.items() if name not in ("_pipeline", "_forget")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "model_dir_" in state:
            self._load()

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_dir_")

    def __sklearn_tags__(self) -> Tags:
        return with_molecules(super().__sklearn_tags__())


def _with_validation(prepared: PreparedTable, settings: FinetuneSettings) -> PreparedTable:
    """A trained model without folds keeps a tenth of the molecules to choose its epoch by."""
    rows = prepared.table.split == TRAIN
    held = validation_rows(groups_of(prepared.names, settings.split_method), rows, settings.seed)
    return prepared.with_split(np.where(held, VALID, prepared.table.split))


class UniMol2Regressor(RegressorMixin, _PropertyEstimator):  # type: ignore[misc]
    """A property as a number: frozen vectors with a kernel head, or fine-tuned, with intervals where there are folds.

    Args:
        model: to start from: "unimol2-nano", a folder or a Hub id.
        head: "frozen", "finetuned" or "auto"; this and what follows as `unimol2-hf finetune --help` has them.
        descriptors: "rdkit" lets the head read RDKit's descriptors.
        folds: of an ensemble; with folds there are intervals.
        coverage: share of new molecules that intervals are to hold.
        epochs, learning_rate: of training; asking for one means "finetuned".
        pooling: of the vectors.
        seed: of the fit.
        featurizer: options of the featurizer.
        batch_size: molecules of a batch.
        num_workers: processes for conformers; default: all cores.
        conformer_cache: where conformers and vectors are kept.
        output_dir: for the model's folder, which `predict` and pipelines read too; by default a temporary one, which
            goes with the estimator unless that is pickled: a pickle refers to it.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit on molecules X (n) and values y (n,).

        Raises:
            MoleculeError: a molecule cannot be used; the message has its position.
            TableError: labels that cannot be learned from.
        """
        values = np.asarray(labels_in(y), dtype=np.float64)
        self._fit(X, values.tolist(), REGRESSION, sample_weight)
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Values (n,).

        Raises:
            MoleculeError: a molecule cannot be used; the message has its position.
        """
        return np.array([result["predictions"][TARGET] for result in self._results(X)], dtype=np.float64)

    def predict_interval(self, X: Any, coverage: float | None = None) -> NDArray[np.float64]:
        """Lower and upper ends (n, 2), which hold `coverage` of new molecules.

        Raises:
            ModelError: the model was fitted without folds.
        """
        check_is_fitted(self)
        calibration = self._pipeline.calibration
        if calibration is None or not calibration.interval_names:
            raise ModelError("the model has no intervals; fit it with folds=5, on 10 labels or more")
        results = self._results(X, **({} if coverage is None else {"coverage": coverage}))
        ends = [result["intervals"][TARGET] or (-np.inf, np.inf) for result in results]
        return np.array(ends, dtype=np.float64).reshape(-1, 2)


class UniMol2Classifier(ClassifierMixin, _PropertyEstimator):  # type: ignore[misc]
    """Classes, two or more, with their probabilities, which are calibrated where there are folds.

    Arguments as for `UniMol2Regressor`.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit on molecules X (n) and classes y (n,), of any type.

        Raises:
            MoleculeError: a molecule cannot be used; the message has its position.
            TableError: labels that cannot be learned from.
        """
        labels = labels_in(y)
        check_classification_targets(labels)
        self.classes_, indices = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise TableError(f"y has one class, {self.classes_.tolist()}; at least 2 are needed")
        names = [f"class {index:06d}" for index in indices]
        self._fit(X, names, BINARY if len(self.classes_) == 2 else MULTICLASS, sample_weight)
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities (n, classes), in the order of `classes_`.

        Raises:
            MoleculeError: a molecule cannot be used; the message has its position.
        """
        results = self._results(X)
        if len(self.classes_) == 2:
            positive = np.array([result["predictions"][TARGET] for result in results], dtype=np.float64)
            return np.column_stack([1 - positive, positive])
        rows = [list(result["probabilities"][TARGET].values()) for result in results]
        return np.array(rows, dtype=np.float64).reshape(-1, len(self.classes_))

    def predict(self, X: Any) -> NDArray[Any]:
        """The likeliest class (n,) of each molecule."""
        likeliest = self.predict_proba(X).argmax(axis=1)
        found: NDArray[Any] = self.classes_[likeliest]
        return found
