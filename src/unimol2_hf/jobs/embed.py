"""Embed a library: a file of molecules to Parquet shards, one row for each of its rows, resumable at any moment.

Rows are cut into shards of consecutive rows. A shard is computed from its own rows alone, in batches that depend on
nothing else, and appears whole or not at all: a job that was killed goes on with the shards that are missing, and
its output is that of an unbroken run.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rdkit import Chem
from rich.console import Console
from rich.markup import escape

from ..conformers import conformer_versions
from ..data.atomic_files import SETTINGS_FILE, write_json_whole, write_settings
from ..data.conformer_cache import ConformerCache, cache_for, featurize_cached
from ..data.molecule_files import Source, approximate_rows, read_molecules
from ..data.molecule_rows import MoleculeRow
from ..data.output_folder import SUMMARY_FILE, about_source, fingerprint_of_source, locked_output, start_or_continue
from ..data.progress import stage
from ..data.shards import (
    CONFORMER_SCHEMA,
    CONFORMERS,
    embedding_schema,
    finished_shards,
    shard_counts,
    shard_path,
    whole_or_absent,
)
from ..errors import ModelError
from ..feature_extraction_unimol2 import FeaturizedMolecule, UniMol2FeatureExtractor
from ..modeling_unimol2 import UniMol2Model
from ..models.loading import load_feature_extractor, load_model
from ..molecules import canonical_order, heavy_atoms_to_read
from ..packed_linear import LARGEST_PACKED_MODEL
from ..pipeline_unimol2 import MoleculeEmbeddingPipeline
from ..settings_unimol2 import Standardization
from ..worker_pool import worker_count
from .settings import EmbedSettings

EMBEDDINGS = "embeddings"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Features of this many molecules a worker wait for the model: enough to keep workers busy while it runs a window.
_READ_AHEAD = 512


@dataclass
class EmbedSummary:
    """Rows of a job or shard: all, failed ones, and ones with a conformer that is not 3D."""

    rows: int = 0
    failed: int = 0
    flat: int = 0

    def add(self, record: Mapping[str, Any]) -> None:
        self.rows += 1
        self.failed += record["error"] is not None
        self.flat += any(not conformer["is_3d"] for conformer in record["provenance"])


def embed(source: Source, output_dir: Path, settings: EmbedSettings, console: Console) -> EmbedSummary:
    """Embed every row of `source` (see `read_molecules`) into `output_dir`; after a kill, go on where it was.

    Writes `embeddings/part-*.parquet` (see `shards.embedding_schema`), on request `conformers/part-*.parquet`,
    `job.json` (what the job is) and, when all is done, `summary.json`.

    Raises:
        TableError: the source cannot be read.
        OutputFolderError: the folder cannot be used, or holds another job's output.
        ModelError: the model cannot be loaded.
        SettingsError: a featurizer setting is out of range.
    """
    first_row = next(read_molecules(source, settings.smiles_column, settings.id_column), None)
    with locked_output(output_dir):
        embedder = LibraryEmbedder(settings, output_dir)
        start_or_continue_embedding(embedder, source, output_dir)
        if first_row is not None:
            _embed_missing_shards(embedder, source, console)
        return finish(output_dir, console)


def start_or_continue_embedding(embedder: "LibraryEmbedder", source: Source, output_dir: Path) -> None:
    """Record the job in its folder; raise `TableError` where the folder holds another one."""
    embedder.embeddings_dir.mkdir(exist_ok=True)
    job = {
        "source": fingerprint_of_source(source),
        "model": embedder.fingerprint(),
        "conformers": conformer_versions(),
        "settings": embedder.settings.of_output(),
    }
    about = {**about_source(source), "model": embedder.settings.model, "torch": torch.__version__}
    holds_output = bool(finished_shards(embedder.embeddings_dir))
    start_or_continue(output_dir, job, holds_output, about, _todays_settings)
    write_settings(output_dir / SETTINGS_FILE, embedder.settings)


def _todays_settings(recorded: dict[str, Any]) -> dict[str, Any]:
    """Today's names for those of version 0.1; what had no setting then was as by default."""
    if "dtype" in recorded:
        recorded["store_precision"] = "float16" if recorded.pop("half") else "float32"
        recorded["precision"] = recorded.pop("dtype")
    return {**EmbedSettings().of_output(), **recorded}


def _embed_missing_shards(embedder: "LibraryEmbedder", source: Source, console: Console) -> None:
    settings = embedder.settings
    rows = read_molecules(source, settings.smiles_column, settings.id_column)
    with stage(console, "embedding", approximate_rows(source)) as advance:

        def missing() -> Iterator[MoleculeRow]:
            done = finished_shards(embedder.embeddings_dir)
            for row in rows:
                if row.number // settings.rows_per_shard in done:
                    advance(1)
                else:
                    yield row

        featurized = embedder.featurize(missing(), worker_count(settings.num_workers))
        for number, shard in groupby(featurized, lambda pair: pair[0].number // settings.rows_per_shard):
            embedder.write_shard(number, shard, lambda: advance(1))


class LibraryEmbedder:
    """Model, featurizer and output folder of a job; a shard at a time."""

    def __init__(self, settings: EmbedSettings, output_dir: Path) -> None:
        self.settings = settings
        self.embeddings_dir = output_dir / EMBEDDINGS
        self.conformers_dir = output_dir / CONFORMERS
        self.pipeline = load_embedding_pipeline(settings)
        # Bad settings are told before the first molecule.
        featurizer = self.pipeline.feature_extractor.settings(**settings.featurizer)
        self._standardize: Standardization = featurizer.standardize

    def fingerprint(self) -> str:
        """Hash of the model's configuration and weights and of the featurizer's settings."""
        digest = hashlib.blake2b(self.pipeline.model.config.to_json_string().encode())
        digest.update(json.dumps(asdict(self.pipeline.feature_extractor.settings())).encode())
        for name, tensor in sorted(self.pipeline.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:32]

    def featurize(
        self, rows: Iterable[MoleculeRow], num_workers: int
    ) -> Iterator[tuple[MoleculeRow, FeaturizedMolecule]]:
        """Rows with their features, in order; workers run ahead."""
        extractor, settings = self.pipeline.feature_extractor, self.settings
        cache = cache_for(extractor, settings.conformer_cache, settings.featurizer)
        return featurize_rows(extractor, rows, settings, num_workers, cache)

    def write_shard(
        self,
        number: int,
        pairs: Iterable[tuple[MoleculeRow, FeaturizedMolecule]],
        after_row: Callable[[], object] = lambda: None,
    ) -> int:
        """Embed the rows of a shard and write it; returns their number, and calls back after each."""
        width = self.pipeline.model.config.hidden_size
        schema = embedding_schema(width, self.settings.per_atom, self.settings.store_precision)
        with ExitStack() as stack:
            # Left first, moved into place last: a shard with embeddings has its conformers.
            embeddings = stack.enter_context(whole_or_absent(shard_path(self.embeddings_dir, number), schema))
            conformers = None
            if self.settings.keep_conformers:
                self.conformers_dir.mkdir(exist_ok=True)
                path = shard_path(self.conformers_dir, number)
                conformers = stack.enter_context(whole_or_absent(path, CONFORMER_SCHEMA))
            summary = EmbedSummary()
            for row, molecule, result in self._embed(pairs):
                record = self._embedding_record(row, molecule, result)
                summary.add(record)
                embeddings.write(record)
                if conformers is not None:
                    conformers.write(conformer_record(row, molecule, self._standardize))
                after_row()
            embeddings.counts = asdict(summary)
            return summary.rows

    def _embed(
        self, pairs: Iterable[tuple[MoleculeRow, FeaturizedMolecule]]
    ) -> Iterator[tuple[MoleculeRow, FeaturizedMolecule, dict[str, Any]]]:
        settings = self.settings
        with_rows = ((pair, pair[1]) for pair in pairs)
        results = self.pipeline.run_pairs(
            with_rows, settings.batch_size, pooling=settings.pooling, per_atom=settings.per_atom
        )
        for (row, molecule), result in results:
            yield row, molecule, result

    def _embedding_record(
        self, row: MoleculeRow, molecule: FeaturizedMolecule, result: Mapping[str, Any]
    ) -> dict[str, Any]:
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


def featurize_rows(
    extractor: UniMol2FeatureExtractor,
    rows: Iterable[MoleculeRow],
    settings: EmbedSettings,
    num_workers: int,
    cache: ConformerCache | None = None,
) -> Iterator[tuple[MoleculeRow, FeaturizedMolecule]]:
    """Rows with their features, in order; coordinates that came with their provenance keep it."""
    molecules = (
        (row, _without_conformers(row.molecule) if settings.ignore_conformers else row.molecule) for row in rows
    )
    options = {"num_workers": num_workers, "read_ahead": _READ_AHEAD, **settings.featurizer}
    featurized = featurize_cached(extractor, molecules, cache, **options)
    for row, molecule in featurized:
        known = () if settings.ignore_conformers else row.provenance
        conformers = tuple(
            replace(conformer, provenance=provenance)
            for conformer, provenance in zip(molecule.conformers, known, strict=False)
        )
        yield row, replace(molecule, conformers=conformers + molecule.conformers[len(conformers) :])


def _without_conformers(molecule: Any) -> Any:
    if isinstance(molecule, Mapping):
        return molecule["smiles"]
    if isinstance(molecule, Chem.Mol):
        molecule = Chem.Mol(molecule)
        molecule.RemoveAllConformers()
    return molecule


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


def load_embedding_pipeline(settings: EmbedSettings) -> MoleculeEmbeddingPipeline:
    """The encoder and its featurizer on the chosen device, compiled if asked for, else (if not large) packed.

    Raises:
        ModelError: the folder or Hub id cannot be loaded, or there is no such device.
    """
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(UniMol2Model, settings.model, dtype=DTYPES[settings.precision]).eval()
    extractor = load_feature_extractor(settings.model)
    try:
        model = model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"{settings.model} cannot be used on {device}: {error}") from error
    pipeline = MoleculeEmbeddingPipeline(model=model, feature_extractor=extractor, device=device)
    if settings.compile == "none":
        if model.num_parameters() <= LARGEST_PACKED_MODEL:
            pipeline.pack_weights()
    else:
        pipeline.compile_model(static_shapes=settings.compile == "static")
    return pipeline


def finish(output_dir: Path, console: Console) -> EmbedSummary:
    """Count what lies in the shards, write `summary.json`, and tell."""
    summary = EmbedSummary()
    for number in finished_shards(output_dir / EMBEDDINGS):
        counts = shard_counts(shard_path(output_dir / EMBEDDINGS, number))
        summary = EmbedSummary(*(getattr(summary, name) + counts[name] for name in ("rows", "failed", "flat")))
    write_json_whole(output_dir / SUMMARY_FILE, asdict(summary))
    console.print(
        f"{summary.rows} rows in {escape(str(output_dir / EMBEDDINGS))}: {summary.failed} failed "
        f"(reason in the error column), {summary.flat} from a 2D conformer"
    )
    return summary
