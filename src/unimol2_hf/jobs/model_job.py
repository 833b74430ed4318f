"""What the jobs with a model share: the model on its device, and the features of rows."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from rdkit import Chem

from ..data.conformer_cache import cache_for, featurize_cached
from ..data.molecule_rows import MoleculeRow
from ..errors import ModelError
from ..feature_extraction_unimol2 import FeaturizedMolecule, UniMol2FeatureExtractor
from ..modeling_unimol2 import UniMol2PreTrainedModel
from ..models.loading import add_weights, load_config, load_feature_extractor, load_model
from ..packed_linear import LARGEST_PACKED_MODEL
from ..pipeline_unimol2 import MoleculePipeline
from .library_job import LibraryJob
from .settings import ModelJobSettings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Features of this many molecules a worker wait for the model: enough to keep workers busy while it runs a window.
_READ_AHEAD = 512

Featurized = tuple[MoleculeRow, FeaturizedMolecule]


@dataclass
class ModelJob(LibraryJob[Featurized]):
    """A job that runs a model on every row's conformers."""

    model: str = ""

    @cached_property
    def extractor(self) -> UniMol2FeatureExtractor:
        load_config(self.model)  # a name that is mistyped is no matter of the extractor
        return load_feature_extractor(self.model)

    @cached_property
    def pipeline(self) -> Any:
        """The model on its device, with its featurizer."""
        raise NotImplementedError

    def decisive(self) -> dict[str, Any]:
        # Bad settings are told before the first molecule.
        self.extractor.settings(**self.settings.featurizer)
        return {**self.versions(), "model": self.fingerprint()}

    def about(self) -> dict[str, Any]:
        return {"model": self.model, "device": str(self.pipeline.device), "torch": torch.__version__}

    def fingerprint(self) -> str:
        """Hash of the model's configuration and weights and of the featurizer's settings."""
        digest = hashlib.blake2b(self.pipeline.model.config.to_json_string().encode())
        digest.update(json.dumps(asdict(self.extractor.settings())).encode())
        for model in self.pipeline.models:
            add_weights(digest, model)
        return digest.hexdigest()[:32]

    def make(self, rows: Iterable[MoleculeRow], num_workers: int) -> Iterator[tuple[int, Featurized]]:
        """Rows with their features, in order; coordinates that came with their provenance keep it."""
        settings: ModelJobSettings = self.settings
        cache = cache_for(self.extractor, settings.conformer_cache, settings.featurizer)
        molecules = ((row, self.to_featurize(row)) for row in rows)
        options = {"num_workers": num_workers, "read_ahead": _READ_AHEAD, **settings.featurizer}
        for row, molecule in featurize_cached(self.extractor, molecules, cache, **options):
            known = () if settings.ignore_conformers else row.provenance
            conformers = tuple(
                replace(conformer, provenance=provenance)
                for conformer, provenance in zip(molecule.conformers, known, strict=False)
            )
            yield row.number, (row, replace(molecule, conformers=conformers + molecule.conformers[len(conformers) :]))

    def to_featurize(self, row: MoleculeRow) -> Any:
        """The row's molecule as the settings ask for it."""
        return _without_conformers(row.molecule) if self.settings.ignore_conformers else row.molecule


def _without_conformers(molecule: Any) -> Any:
    if isinstance(molecule, Mapping):
        return molecule["smiles"]
    if isinstance(molecule, Chem.Mol):
        molecule = Chem.Mol(molecule)
        molecule.RemoveAllConformers()
    return molecule


def load_pipeline(
    kind: type[MoleculePipeline],
    model_class: type[UniMol2PreTrainedModel],
    model_name: str,
    settings: ModelJobSettings,
    extractor: UniMol2FeatureExtractor,
) -> Any:
    """A model and its featurizer on the chosen device, compiled if asked for, else (if not large) packed.

    Raises:
        ModelError: the folder or Hub id cannot be loaded, or there is no such device.
    """
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(model_class, model_name, dtype=DTYPES[settings.precision]).eval()
    try:
        model = model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"{model_name} cannot be used on {device}: {error}") from error
    pipeline = kind(model=model, feature_extractor=extractor, device=device)
    if settings.compile == "none":
        if model.num_parameters() <= LARGEST_PACKED_MODEL:
            pipeline.pack_weights()
    else:
        pipeline.compile_model(static_shapes=settings.compile == "static")
    return pipeline
