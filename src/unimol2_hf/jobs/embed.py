"""Embed a library: a file of molecules to Parquet shards of vectors, one row for each of its rows."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rdkit import Chem
from rich.console import Console

from ..data.molecule_files import Source
from ..data.molecule_rows import Columns, MoleculeRow
from ..data.shards import CONFORMER_SCHEMA, CONFORMERS, embedding_schema, shard_path, whole_or_absent
from ..feature_extraction_unimol2 import FeaturizedMolecule
from ..modeling_unimol2 import UniMol2Model
from ..molecules import canonical_order, heavy_atoms_to_read
from ..pipeline_unimol2 import MoleculeEmbeddingPipeline
from ..settings_unimol2 import Standardization
from .library_job import RowSummary, check_source, run_job
from .model_job import Featurized, ModelJob, load_pipeline
from .settings import EmbedSettings

EMBEDDINGS = "embeddings"


def embed(source: Source, output_dir: Path, settings: EmbedSettings, console: Console) -> RowSummary:
    """Embed every row of `source` (see `read_molecules`) into `output_dir`; after a kill, go on where it was.

    Writes `embeddings/part-*.parquet` (see `shards.embedding_schema`), on request `conformers/part-*.parquet`,
    `job.json` (what the job is) and, when all is done, `summary.json`.

    Raises:
        TableError: the source cannot be read.
        OutputFolderError: the folder cannot be used, or holds another job's output.
        ModelError: the model cannot be loaded.
        SettingsError: a featurizer setting is out of range.
    """
    return run_job(embed_job(source, output_dir, settings), source, console)


def embed_job(source: Source, output_dir: Path, settings: EmbedSettings) -> "EmbedJob":
    columns = Columns(settings.smiles_column, settings.id_column)
    check_source(source, columns)
    return EmbedJob(settings, output_dir, columns, model=settings.model)


@dataclass
class EmbedJob(ModelJob):
    """Vectors, and on request conformers."""

    folder: ClassVar[str] = EMBEDDINGS
    title: ClassVar[str] = "embedding"

    @cached_property
    def pipeline(self) -> Any:
        return load_pipeline(MoleculeEmbeddingPipeline, UniMol2Model, self.model, self.settings, self.extractor)

    @staticmethod
    def todays_settings(recorded: dict[str, Any]) -> dict[str, Any]:
        """Today's names for those of version 0.1; what had no setting then was as by default."""
        if "dtype" in recorded:
            recorded["store_precision"] = "float16" if recorded.pop("half") else "float32"
            recorded["precision"] = recorded.pop("dtype")
        return {**EmbedSettings().of_output(), **recorded}

    def write_shard(
        self, number: int, made: Iterable[tuple[int, Featurized]], after_row: Callable[[], object] = lambda: None
    ) -> int:
        settings = self.settings
        config = self.pipeline.model.config
        sizes = config.pooled_size_of(settings.pooling), config.hidden_size if settings.per_atom else None
        schema = embedding_schema(*sizes, settings.store_precision)
        standardize = self.extractor.settings(**settings.featurizer).standardize
        with ExitStack() as stack:
            # Left first, moved into place last: a shard with embeddings has its conformers.
            embeddings = stack.enter_context(whole_or_absent(shard_path(self.shards, number), schema))
            conformers = None
            if settings.keep_conformers:
                path = shard_path(self.output_dir / CONFORMERS, number)
                path.parent.mkdir(exist_ok=True)
                conformers = stack.enter_context(whole_or_absent(path, CONFORMER_SCHEMA))
            summary = RowSummary()
            pairs = (((row, molecule), molecule) for _, (row, molecule) in made)
            options = {"pooling": settings.pooling, "per_atom": settings.per_atom}
            for (row, molecule), result in self.pipeline.run_pairs(pairs, settings.batch_size, **options):
                record = self._record(row, molecule, result)
                summary.add(record)
                embeddings.write(record)
                if conformers is not None:
                    conformers.write(conformer_record(row, molecule, standardize))
                after_row()
            embeddings.counts = asdict(summary)
            return summary.rows

    def _record(self, row: MoleculeRow, molecule: FeaturizedMolecule, result: Mapping[str, Any]) -> dict[str, Any]:
        kind = np.dtype(self.settings.store_precision)
        vector, atoms = result["embedding"], result.get("atom_embeddings")
        record = {
            "row": row.number,
            "id": row.id,
            "smiles": row.smiles,
            "embedding": None if vector is None else vector.astype(kind),
            "num_heavy_atoms": molecule.num_heavy_atoms if molecule.conformers else None,
            "cropped": molecule.cropped,
            "has_graph_features": molecule.has_graph_features,
            "standardized_smiles": molecule.standardized_smiles,
            "provenance": [conformer.provenance.to_dict() for conformer in molecule.conformers],
            "error": result["error"],
            "error_code": result["error_code"],
        }
        if self.settings.per_atom:
            record["atom_embeddings"] = None if atoms is None else list(atoms.astype(kind))
        return record


def conformer_record(
    row: MoleculeRow, molecule: FeaturizedMolecule, standardize: Standardization = "none"
) -> dict[str, Any]:
    """A row of `CONFORMER_SCHEMA`; a cropped molecule is kept without its coordinates, which are not whole."""
    record: dict[str, Any] = {"row": row.number, "id": row.id, "smiles": row.smiles}
    record["error"] = None if molecule.error is None else molecule.error.reason
    record["error_code"] = None if molecule.error is None else molecule.error.code
    if molecule.features is None or molecule.cropped:
        return {**record, "atomic_numbers": None, "conformers": [], "provenance": []}
    numbers, order = molecule.features["input_ids"], np.arange(molecule.num_heavy_atoms)
    if isinstance(row.molecule, Chem.Mol) or molecule.standardized_smiles is not None:
        heavy = heavy_atoms_to_read(row.molecule, standardize)
        record["smiles"], order = canonical_order(heavy)
    return {
        **record,
        "atomic_numbers": numbers[order].astype(np.uint8),
        "conformers": [conformer.coordinates[order].ravel() for conformer in molecule.conformers],
        "provenance": [conformer.provenance.to_dict() for conformer in molecule.conformers],
    }
