"""The embedding job on Ray Data: shards as items, featurised on every core, embedded by a pool of models.

Same shards, same functions, same output folder as `embed`; a job may change between the two. Source and output
folder must be visible to all machines under the same path.
"""

import pickle
import shutil
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rdkit import Chem
from rich.console import Console
from rich.progress import Progress

from ..conformers import ConformerProvenance
from ..data.arrow_tables import stored_error
from ..data.molecule_files import read_molecules
from ..data.molecule_rows import MoleculeRow
from ..data.output_folder import locked_output
from ..data.shards import PROVENANCE, finished_shards, shard_path, whole_or_absent
from ..errors import MoleculeError, SettingsError
from ..models.loading import load_feature_extractor
from ..molecules import Molecule
from .embed import EmbedSummary, LibraryEmbedder, featurize_rows, finish, start_or_continue_embedding
from .memory import keep_freed_memory
from .settings import EmbedSettings, RaySettings

STAGED = "staged"
STAGED_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("smiles", pa.string()),
        ("binary", pa.binary()),
        ("coordinates", pa.list_(pa.list_(pa.float32()))),
        ("provenance", pa.list_(PROVENANCE)),
        ("error", pa.string()),
        ("error_code", pa.string()),
    ]
)
_BINARY_OPTIONS = int(Chem.PropertyPickleOptions.AllProps | Chem.PropertyPickleOptions.CoordsAsDouble)


def embed_with_ray(
    source: Path, output_dir: Path, settings: EmbedSettings, ray_settings: RaySettings, console: Console
) -> EmbedSummary:
    """`embed`, on a Ray cluster.

    Raises:
        SettingsError: Ray is not installed; else as `embed`.
    """
    ray = _import_ray()
    with locked_output(output_dir):
        embedder = LibraryEmbedder(settings, output_dir)
        start_or_continue_embedding(embedder, source, output_dir)
        staged = output_dir / STAGED
        missing = stage_rows(source, staged, embedder.embeddings_dir, settings)
        if missing:
            if not ray.is_initialized():
                local = {"num_cpus": ray_settings.num_cpus, "include_dashboard": False}
                ray.init(address=ray_settings.address, log_to_driver=False, **({} if ray_settings.address else local))
            _run(ray, missing, staged, output_dir, settings, ray_settings, console)
        shutil.rmtree(staged)
        return finish(output_dir, console)


def _import_ray() -> Any:
    try:
        import ray  # noqa: PLC0415 - an extra
        import ray.data  # noqa: PLC0415
    except ImportError as error:
        raise SettingsError('Ray is not installed; pip install "unimol2-hf[ray]"') from error
    return ray


def stage_rows(source: Path, staged: Path, embeddings_dir: Path, settings: EmbedSettings) -> list[int]:
    """Cut the source into one file for each shard that is missing; returns their numbers."""
    staged.mkdir(exist_ok=True)
    done = finished_shards(embeddings_dir)
    already = finished_shards(staged)
    rows = read_molecules(source, settings.smiles_column, settings.id_column)
    missing = []
    for number, shard in groupby(rows, lambda row: row.number // settings.rows_per_shard):
        if number in done:
            continue
        missing.append(number)
        if number not in already:
            with whole_or_absent(shard_path(staged, number), STAGED_SCHEMA) as writer:
                for row in shard:
                    writer.write(_staged_record(row))
    return missing


def _staged_record(row: MoleculeRow) -> dict[str, Any]:
    record: dict[str, Any] = {"row": row.number, "id": row.id, "smiles": row.smiles}
    record |= {"binary": None, "coordinates": None, "error": None, "error_code": None}
    record["provenance"] = [provenance.to_dict() for provenance in row.provenance]
    if isinstance(row.molecule, Chem.Mol):
        record["binary"] = row.molecule.ToBinary(_BINARY_OPTIONS)
    elif isinstance(row.molecule, dict):
        record["coordinates"] = [positions.ravel() for positions in row.molecule["coordinates"]]
    elif isinstance(row.molecule, MoleculeError):
        record |= {"error": row.molecule.reason, "error_code": row.molecule.code}
    return record


def read_staged(path: Path) -> Iterator[MoleculeRow]:
    """The rows of one shard, as `read_molecules` gave them."""
    for record in pq.read_table(path).to_pylist():
        provenance = tuple(ConformerProvenance(**entry) for entry in record["provenance"])
        yield MoleculeRow(record["row"], record["id"], record["smiles"], _staged_molecule(record), provenance)


def _staged_molecule(record: dict[str, Any]) -> Molecule:
    if record["binary"] is not None:
        return Chem.Mol(record["binary"])
    if record["coordinates"] is not None:
        positions = np.stack([np.asarray(flat, dtype=np.float32).reshape(-1, 3) for flat in record["coordinates"]])
        return {"smiles": record["smiles"], "coordinates": positions}
    if record["error"] is not None:
        return stored_error(record)
    return str(record["smiles"])


class _FeaturizeShards:
    """An actor: shard numbers to their featurised rows."""

    def __init__(self, settings: EmbedSettings, staged: Path) -> None:
        self._extractor = load_feature_extractor(settings.model)
        self._staged, self._settings = staged, settings

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        numbers = [int(number) for number in batch["shard"]]
        paths = [shard_path(self._staged, number) for number in numbers]
        shards = [list(featurize_rows(self._extractor, read_staged(path), self._settings, 0)) for path in paths]
        # Bytes, in an array of objects: NumPy would cut bytes at a trailing zero.
        pickled = np.array([pickle.dumps(shard) for shard in shards], dtype=object)
        return {"shard": np.array(numbers), "pairs": pickled}


class _EmbedShards:
    """An actor: one copy of the model, featurised shards to Parquet files."""

    def __init__(self, settings: EmbedSettings, output_dir: Path) -> None:
        keep_freed_memory()  # an actor is a process of its own
        self._embedder = LibraryEmbedder(settings, output_dir)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        counts = []
        for number, pickled in zip(batch["shard"], batch["pairs"], strict=True):
            counts.append(self._embedder.write_shard(int(number), pickle.loads(pickled)))
        return {"shard": batch["shard"], "rows": np.array(counts)}


def _cores_for_conformers(ray: Any, ray_settings: RaySettings) -> int:
    cores = int(ray.cluster_resources().get("CPU", 0))
    free = cores - (0 if ray_settings.gpus_per_model else ray_settings.num_models)
    if free < 1:
        raise SettingsError(
            f"{ray_settings.num_models} models on {cores} cores leave none for conformers; ask for fewer models"
        )
    return free


def _run(
    ray: Any,
    missing: Iterable[int],
    staged: Path,
    output_dir: Path,
    settings: EmbedSettings,
    ray_settings: RaySettings,
    console: Console,
) -> None:
    ray.data.DataContext.get_current().enable_progress_bars = False
    items = [{"shard": number} for number in missing]
    free_cores = _cores_for_conformers(ray, ray_settings)
    shards = ray.data.from_items(items, override_num_blocks=len(items))
    # Two pools: Ray would fuse a task with the actor after it, and the model would wait for every conformer.
    featurized = shards.map_batches(
        _FeaturizeShards,
        fn_constructor_args=(settings, staged),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=free_cores),
        num_cpus=1,
    )
    written = featurized.map_batches(
        _EmbedShards,
        fn_constructor_args=(settings, output_dir),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=ray_settings.num_models),
        num_gpus=ray_settings.gpus_per_model or None,
        num_cpus=None if ray_settings.gpus_per_model else 1,
    )
    with Progress(console=console) as progress:
        task = progress.add_task("shards", total=len(items))
        for batch in written.iter_batches(batch_size=1):
            progress.advance(task, len(batch["shard"]))
