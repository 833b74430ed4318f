"""Build a library of conformers to pretrain on: molecules to Parquet shards, resumable, every row with its outcome.

As in `embed`, a shard of consecutive rows appears whole or not at all and depends on nothing but its rows and the
molecules before them: a job that was killed goes on and ends with the unbroken run's data.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rdkit import Chem
from rich.console import Console
from rich.markup import escape

from ..conformers import TWO_DIMENSIONAL, Conformer, conformer_versions, depict, generate_conformers, given_conformers
from ..data.atomic_files import SETTINGS_FILE, write_json_whole, write_settings
from ..data.molecule_files import approximate_rows, kept_widths, read_molecules
from ..data.molecule_rows import MoleculeRow
from ..data.number_columns import as_stored, number_field
from ..data.output_folder import SUMMARY_FILE, about_source, fingerprint_of_source, locked_output, start_or_continue
from ..data.progress import stage
from ..data.scaffolds import murcko_scaffold
from ..data.shards import (
    CONFORMERS,
    PRETRAINING_SCHEMA,
    finished_shards,
    shard_counts,
    shard_path,
    whole_or_absent,
)
from ..descriptors import descriptor_names, rdkit_descriptors
from ..errors import (
    DuplicateMoleculeError,
    MoleculeError,
    MoleculeTooLargeError,
    SettingsError,
    UnexpectedMoleculeError,
)
from ..molecules import canonical_order, molecule_of, remove_hydrogens
from ..worker_pool import map_in_order, worker_count
from .settings import BuildSettings

RDKIT_DESCRIPTORS = "rdkit_descriptors"
_READ_AHEAD = 256
_EMPTY: dict[str, Any] = {
    "atomic_numbers": None,
    "conformers": [],
    "provenance": [],
    "num_heavy_atoms": None,
    "scaffold": None,
    RDKIT_DESCRIPTORS: None,
}


def library_schema(settings: BuildSettings, source: Path) -> pa.Schema:
    """Columns of a shard: those of every library, then the kept ones and the descriptors.

    Raises:
        TableError: the source lacks a column to keep.
        SettingsError: a column to keep has a name that every library uses.
    """
    taken = {*PRETRAINING_SCHEMA.names, *([RDKIT_DESCRIPTORS] if settings.descriptors else [])}
    clash = sorted(taken & set(settings.kept))
    if clash:
        raise SettingsError(f"keep_columns names {', '.join(clash)}; a library has it already")
    kept = [number_field(name, width) for name, width in kept_widths(source, settings.kept).items()]
    names = {b"names": json.dumps(descriptor_names()).encode()}
    described = number_field(RDKIT_DESCRIPTORS, len(descriptor_names())).with_metadata(names)
    return pa.schema([*PRETRAINING_SCHEMA, *kept, *([described] if settings.descriptors else [])])


@dataclass
class BuildSummary:
    """Rows of a library: all, kept molecules, duplicates of an earlier row, failures; and molecules without 3D."""

    rows: int = 0
    molecules: int = 0
    duplicates: int = 0
    failed: int = 0
    flat: int = 0

    def add(self, record: Mapping[str, Any], duplicate: bool) -> None:
        self.rows += 1
        self.duplicates += duplicate
        self.failed += record["error"] is not None and not duplicate
        self.molecules += record["error"] is None
        self.flat += record["error"] is None and not any(entry["is_3d"] for entry in record["provenance"])


def build_conformers(source: Path, output_dir: Path, settings: BuildSettings, console: Console) -> BuildSummary:
    """Make conformers for every row of `source`; started again after a kill, go on where it was.

    Writes `conformers/part-*.parquet` (see `shards.PRETRAINING_SCHEMA`; `smiles` is canonical where the row could be
    read, its atoms in the order of the coordinates), `job.json` and, when all is done, `summary.json`. A molecule
    whose canonical SMILES came before is a row with an error that names the first one.

    Raises:
        TableError: the source cannot be read.
        OutputFolderError: the folder cannot be used, or holds another job's output.
        SettingsError: a column to keep has a name that every library uses.
    """
    next(_rows_of(source, settings), None)
    schema = library_schema(settings, source)
    shards = output_dir / CONFORMERS
    with locked_output(output_dir):
        shards.mkdir(exist_ok=True)
        job = {
            "source": fingerprint_of_source(source),
            "conformers": conformer_versions(),
            "settings": settings.of_output(),
        }
        start_or_continue(output_dir, job, bool(finished_shards(shards)), about_source(source), _todays_settings)
        write_settings(output_dir / SETTINGS_FILE, settings)
        _build_missing_shards(source, shards, settings, schema, console)
        return _finish(output_dir, console)


def _todays_settings(recorded: dict[str, Any]) -> dict[str, Any]:
    """What had no setting then was as by default."""
    return {**BuildSettings().of_output(), **recorded}


def _rows_of(source: Path, settings: BuildSettings) -> Iterator[MoleculeRow]:
    return read_molecules(source, settings.smiles_column, settings.id_column, settings.kept)


def _build_missing_shards(
    source: Path, shards: Path, settings: BuildSettings, schema: pa.Schema, console: Console
) -> None:
    done = finished_shards(shards)
    with stage(console, "conformers", approximate_rows(source)) as advance:
        rows = _rows_of(source, settings)
        first_rows = _FirstRows()

        def missing() -> Iterator[tuple[int, Any]]:
            for number, shard in groupby(rows, lambda row: row.number // settings.rows_per_shard):
                if number in done:
                    first_rows.remember_shard(shard_path(shards, number))
                    advance(sum(1 for _ in shard))
                else:
                    yield from ((row.number, first_rows.check(row)) for row in shard)

        work = partial(build_row, settings=settings)
        numbered = map_in_order(work, missing(), worker_count(settings.num_workers), _READ_AHEAD)
        records = ({"row": row, **record} for row, record in numbered)
        for number, group in groupby(records, lambda record: record["row"] // settings.rows_per_shard):
            with whole_or_absent(shard_path(shards, number), schema) as writer:
                summary = BuildSummary()
                for record in group:
                    summary.add(record, record.pop("duplicate"))
                    writer.write(record)
                    advance(1)
                writer.counts = asdict(summary)


@dataclass(frozen=True)
class _Task:
    """A row on its way to a worker: the heavy atoms, or the error that it ends with."""

    id: str
    smiles: str
    molecule: Any
    kept: Mapping[str, Any]
    duplicate: bool = False


class _FirstRows:
    """The row at which each molecule came first."""

    def __init__(self) -> None:
        self._rows: dict[bytes, int] = {}

    def check(self, row: MoleculeRow) -> _Task:
        try:
            heavy = remove_hydrogens(molecule_of(row.molecule))
            smiles, order = canonical_order(heavy)
        except MoleculeError as error:
            return _Task(row.id, row.smiles, error, row.kept)
        except (RuntimeError, ValueError) as error:
            return _Task(row.id, row.smiles, UnexpectedMoleculeError.of(error), row.kept)
        first = self._rows.setdefault(_digest(smiles), row.number)
        if first != row.number:
            return _Task(row.id, smiles, DuplicateMoleculeError(f"duplicate of row {first}"), row.kept, duplicate=True)
        return _Task(row.id, smiles, _FrozenHeavyAtoms.of(heavy, smiles, order), row.kept)

    def remember_shard(self, path: Path) -> None:
        """The molecules of a shard that was finished before."""
        table = pq.read_table(path, columns=["row", "smiles"]).to_pydict()
        for number, smiles in zip(table["row"], table["smiles"], strict=True):
            self._rows.setdefault(_digest(smiles), number)


def _digest(smiles: str) -> bytes:
    return hashlib.blake2b(smiles.encode(), digest_size=12).digest()


@dataclass(frozen=True)
class _FrozenHeavyAtoms:
    """A molecule in the order of its canonical SMILES, with the coordinates that the file gave."""

    smiles: str
    given: tuple[Conformer, ...]

    @classmethod
    def of(cls, heavy: Chem.Mol, smiles: str, order: NDArray[np.intp]) -> "_FrozenHeavyAtoms":
        given = given_conformers(heavy, heavy.GetNumConformers()) if heavy.GetNumConformers() else []
        return cls(smiles, tuple(replace(each, coordinates=each.coordinates[order]) for each in given))


def build_row(task: _Task, settings: BuildSettings) -> dict[str, Any]:
    """A row of `PRETRAINING_SCHEMA` and whether it is a duplicate; a molecule that fails keeps its reason."""
    record = {"id": task.id, "smiles": task.smiles, "duplicate": task.duplicate, **_EMPTY}
    record |= {name: as_stored(task.kept[name]) if name in task.kept else None for name in settings.kept}
    try:
        if isinstance(task.molecule, MoleculeError):
            raise task.molecule
        return {**record, **_conformers_of(task.molecule, settings), "error": None, "error_code": None}
    except MoleculeError as known:
        error = known
    except Exception as unknown:
        # RDKit raises bare C++ errors for molecules nobody thought of; one of them must not end a library's run.
        error = UnexpectedMoleculeError.of(unknown)
    return {**record, "error": error.reason, "error_code": error.code}


def _conformers_of(frozen: _FrozenHeavyAtoms, settings: BuildSettings) -> dict[str, Any]:
    heavy = remove_hydrogens(molecule_of(frozen.smiles))
    count = heavy.GetNumAtoms()
    if count > settings.max_atoms:
        raise MoleculeTooLargeError(f"{count} heavy atoms are more than max_atoms={settings.max_atoms}")
    conformers = [*frozen.given, *_generated(heavy, settings, settings.num_conformers - len(frozen.given))]
    if settings.include_2d and not any(each.provenance.method == TWO_DIMENSIONAL for each in conformers):
        conformers.append(depict(heavy))
    described = {RDKIT_DESCRIPTORS: rdkit_descriptors(heavy)} if settings.descriptors else {}
    return {
        **described,
        "atomic_numbers": np.array([atom.GetAtomicNum() for atom in heavy.GetAtoms()], dtype=np.uint8),
        "conformers": [conformer.coordinates.ravel() for conformer in conformers],
        "provenance": [conformer.provenance.to_dict() for conformer in conformers],
        "num_heavy_atoms": count,
        "scaffold": murcko_scaffold(heavy),
    }


def _generated(heavy: Chem.Mol, settings: BuildSettings, count: int) -> Iterable[Conformer]:
    if count < 1:
        return ()
    wanted = replace(settings, num_conformers=count, include_2d=False)
    return generate_conformers(heavy, wanted)


def _finish(output_dir: Path, console: Console) -> BuildSummary:
    summary = BuildSummary()
    for number in finished_shards(output_dir / CONFORMERS):
        counts = shard_counts(shard_path(output_dir / CONFORMERS, number))
        summary = BuildSummary(**{name: value + counts[name] for name, value in asdict(summary).items()})
    write_json_whole(output_dir / SUMMARY_FILE, asdict(summary))
    console.print(
        f"{summary.rows} rows in {escape(str(output_dir / CONFORMERS))}: {summary.molecules} molecules, "
        f"{summary.duplicates} duplicates, {summary.failed} failed (reason in the error column), "
        f"{summary.flat} without a 3D conformer"
    )
    return summary
