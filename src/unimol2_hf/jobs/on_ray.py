"""Any job over a library on Ray Data: shards as items, made on every core, finished by a pool of models.

Same shards, same functions, same output folder as on one machine; a job may change between the two. Source and output
folder must be visible to all machines under the same path.
"""

import pickle
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
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
from ..data.atomic_files import make_output_folder
from ..data.molecule_files import Source
from ..data.molecule_rows import MoleculeRow
from ..data.shards import PROVENANCE, finished_shards, shard_path, whole_or_absent
from ..errors import MoleculeError, SettingsError, UniMol2Error
from ..molecules import Molecule
from .library_job import LibraryJob, RowSummary, check_versions, missing_rows, run_job
from .memory import keep_freed_memory
from .settings import RaySettings

STAGED = "staged"
_CELL, _KEPT = "cell:", "kept:"
_STAGED_FIELDS = [
    ("row", pa.int64()),
    ("id", pa.string()),
    ("smiles", pa.string()),
    ("binary", pa.binary()),
    ("coordinates", pa.list_(pa.list_(pa.float32()))),
    ("atomic_numbers", pa.list_(pa.int32())),
    ("provenance", pa.list_(PROVENANCE)),
    ("error", pa.string()),
    ("error_code", pa.string()),
]
_BINARY_OPTIONS = int(Chem.PropertyPickleOptions.AllProps | Chem.PropertyPickleOptions.CoordsAsDouble)


def run_on_ray(job: LibraryJob[Any], source: Source, ray_settings: RaySettings, console: Console) -> RowSummary:
    """`run_job`, on a Ray cluster.

    Raises:
        SettingsError: Ray is not installed, or has too few cores; else as `run_job`.
    """
    return run_job(job, source, console, partial(_complete_on_ray, ray_settings))


def _complete_on_ray(ray_settings: RaySettings, job: LibraryJob[Any], source: Source, console: Console) -> None:
    ray = _import_ray()
    staged = job.output_dir / STAGED
    missing = stage_rows(job, source, staged)
    if missing:
        if not ray.is_initialized():
            local = {"num_cpus": ray_settings.num_cpus, "include_dashboard": False}
            ray.init(address=ray_settings.address, log_to_driver=False, **({} if ray_settings.address else local))
        _run(ray, missing, job, ray_settings, console)
    shutil.rmtree(staged)


def _import_ray() -> Any:
    try:
        import ray  # noqa: PLC0415 - an extra
        import ray.data  # noqa: PLC0415
    except ImportError as error:
        raise SettingsError('Ray is not installed; pip install "unimol2-hf[ray]"') from error
    return ray


def staged_schema(job: LibraryJob[Any]) -> pa.Schema:
    """Of rows on their way to the workers: what was read, the source's columns, the numbers to keep."""
    kept = [(f"{_KEPT}{name}", pa.list_(pa.float64())) for name in job.columns.kept]
    return pa.schema([*_STAGED_FIELDS, *kept, *(each.with_name(f"{_CELL}{each.name}") for each in job.source_fields)])


def stage_rows(job: LibraryJob[Any], source: Source, staged: Path) -> list[int]:
    """Cut the source into one file for each shard that is missing; returns their numbers."""
    make_output_folder(staged)
    already = finished_shards(staged)
    schema, missing = staged_schema(job), []
    for number, shard in missing_rows(job, source):
        missing.append(number)
        if number in already:
            # Read all the same: a row may be told by those before it.
            for _ in shard:
                pass
            continue
        with whole_or_absent(shard_path(staged, number), schema) as writer:
            for row in shard:
                writer.write(staged_record(row, schema))
    return missing


def staged_record(row: MoleculeRow, schema: pa.Schema) -> dict[str, Any]:
    """A row as it is written for the workers."""
    record: dict[str, Any] = dict.fromkeys(schema.names) | {"row": row.number, "id": row.id, "smiles": row.smiles}
    record["provenance"] = [provenance.to_dict() for provenance in row.provenance]
    record |= {f"{_KEPT}{name}": values for name, values in row.kept.items()}
    record |= {f"{_CELL}{name}": value for name, value in row.cells.items() if f"{_CELL}{name}" in record}
    if isinstance(row.molecule, Chem.Mol):
        record["binary"] = row.molecule.ToBinary(_BINARY_OPTIONS)
    elif isinstance(row.molecule, dict):
        positions = np.asarray(row.molecule["coordinates"], dtype=np.float32)
        record["coordinates"] = [each.ravel() for each in (positions if positions.ndim > 2 else positions[None])]
        record["atomic_numbers"] = row.molecule.get("atomic_numbers")
    elif isinstance(row.molecule, MoleculeError):
        record |= {"error": row.molecule.reason, "error_code": row.molecule.code}
    return record


def read_staged(path: Path) -> Iterator[MoleculeRow]:
    """The rows of one shard, as `read_molecules` gave them."""
    for record in pq.read_table(path).to_pylist():
        provenance = tuple(ConformerProvenance(**entry) for entry in record["provenance"])
        kept = {
            name.removeprefix(_KEPT): np.array(values, dtype=np.float64)
            for name, values in record.items()
            if name.startswith(_KEPT) and values is not None
        }
        cells = {name.removeprefix(_CELL): value for name, value in record.items() if name.startswith(_CELL)}
        row = record["row"], record["id"], record["smiles"]
        yield MoleculeRow(*row, _staged_molecule(record), provenance, kept, cells)


def _staged_molecule(record: dict[str, Any]) -> Molecule:
    if record["binary"] is not None:
        return Chem.Mol(record["binary"])
    if record["coordinates"] is not None:
        flat = [np.asarray(each, dtype=np.float32).reshape(-1, 3) for each in record["coordinates"]]
        made: dict[str, Any] = {"smiles": record["smiles"]} if record["smiles"] else {}
        if record["atomic_numbers"] is not None:
            return {**made, "atomic_numbers": record["atomic_numbers"], "coordinates": flat[0]}
        return {**made, "coordinates": np.stack(flat)}
    if record["error"] is not None:
        return stored_error(record)
    return str(record["smiles"])


class _Actor:
    """A worker process: it refuses to do what its machine would do otherwise than the one that began.

    What a user can mend comes back as `refused`, a pickled error: what is raised here reaches the driver as text alone.
    """

    whole = False

    def __init__(self, job: LibraryJob[Any]) -> None:
        keep_freed_memory()  # an actor is a process of its own
        self._job, self._checked = job, False

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        refused = batch.get("refused", [b""])[0]
        try:
            if not self._checked:
                check_versions(self._job, self.whole)
                self._checked = True
            made = self._work(batch) if not refused else [b""]
        except UniMol2Error as error:
            made, refused = [b""], pickle.dumps(error)
        # Bytes, in arrays of objects: NumPy would cut bytes at a trailing zero.
        columns = {"made": made, "refused": [refused]}
        return {"shard": batch["shard"], **{name: np.array(each, dtype=object) for name, each in columns.items()}}

    def _work(self, batch: dict[str, Any]) -> list[bytes]:
        raise NotImplementedError


class _MakeShards(_Actor):
    """Shard numbers to what is made of their rows without a model."""

    def _work(self, batch: dict[str, Any]) -> list[bytes]:
        paths = [shard_path(self._job.output_dir / STAGED, int(number)) for number in batch["shard"]]
        return [pickle.dumps(list(self._job.make(read_staged(path), 0))) for path in paths]


class _WriteShards(_Actor):
    """A copy of the model, if the job has one: what was made to Parquet files."""

    whole = True

    def _work(self, batch: dict[str, Any]) -> list[bytes]:
        for number, made in zip(batch["shard"], batch["made"], strict=True):
            self._job.write_shard(int(number), pickle.loads(made))
        return [b""] * len(batch["shard"])


def _cores_for_conformers(ray: Any, ray_settings: RaySettings) -> int:
    cores = int(ray.cluster_resources().get("CPU", 0))
    free = cores - (0 if ray_settings.gpus_per_model else ray_settings.num_models)
    if free < 1:
        raise SettingsError(
            f"{ray_settings.num_models} models on {cores} cores leave none for conformers; ask for fewer models"
        )
    return free


def _run(ray: Any, missing: Iterable[int], job: LibraryJob[Any], ray_settings: RaySettings, console: Console) -> None:
    ray.data.DataContext.get_current().enable_progress_bars = False
    items = [{"shard": number} for number in missing]
    free_cores = _cores_for_conformers(ray, ray_settings)
    shards = ray.data.from_items(items, override_num_blocks=len(items))
    options: dict[str, Any] = {"fn_constructor_args": (job,), "batch_size": 1}
    # Two pools: Ray would fuse a task with the actor after it, and the model would wait for every conformer.
    pools: dict[Callable[..., Any], dict[str, Any]] = {
        _MakeShards: {"compute": ray.data.ActorPoolStrategy(min_size=1, max_size=free_cores), "num_cpus": 1},
        _WriteShards: {
            "compute": ray.data.ActorPoolStrategy(size=ray_settings.num_models),
            "num_gpus": ray_settings.gpus_per_model or None,
            "num_cpus": None if ray_settings.gpus_per_model else 1,
        },
    }
    for actor, pool in pools.items():
        shards = shards.map_batches(actor, **options, **pool)
    with Progress(console=console) as progress:
        task = progress.add_task("shards", total=len(items))
        for batch in shards.iter_batches(batch_size=1):
            if batch["refused"][0]:
                raise pickle.loads(batch["refused"][0])
            progress.advance(task, 1)
