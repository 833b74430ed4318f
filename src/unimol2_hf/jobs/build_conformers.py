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
from rdkit import Chem
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..conformers import TWO_DIMENSIONAL, Conformer, conformer_versions, depict, generate_conformers, given_conformers
from ..data.descriptors import RDKIT, descriptor_names, rdkit_descriptors
from ..data.molecule_files import MoleculeRow, kept_widths, read_molecules
from ..data.number_columns import as_stored, number_field
from ..data.scaffolds import murcko_scaffold
from ..data.shards import (
    PRETRAINING_SCHEMA,
    finished_shards,
    shard_counts,
    shard_path,
    whole_or_absent,
    write_json_whole,
)
from ..errors import MoleculeError, MoleculeTooLargeError, TableError
from ..feature_extraction_unimol2 import UniMol2FeatureExtractor
from ..molecules import molecule_of, remove_hydrogens
from ..settings_unimol2 import ConformerSettings
from ..worker_pool import map_in_order
from .output_folder import SUMMARY_FILE, fingerprint_of_source, locked_output, start_or_continue

CONFORMERS, RDKIT_DESCRIPTORS = "conformers", "rdkit_descriptors"
_READ_AHEAD = 256
_EMPTY: dict[str, Any] = {
    "atomic_numbers": None,
    "conformers": [],
    "provenance": [],
    "num_heavy_atoms": None,
    "scaffold": None,
    RDKIT_DESCRIPTORS: None,
}


@dataclass(frozen=True)
class BuildSettings:
    """Everything that decides a library of conformers; the defaults are the paper's (10 in 3D, one in 2D).

    Attributes:
        smiles_column, id_column: columns of a table; for SDF `id_column` names a property.
        num_conformers: 3D conformers a molecule; those that the file brings are kept and count.
        include_2d: add RDKit's 2D depiction.
        seed: of the first conformer; the k-th uses `seed + k`.
        keep_columns: numeric columns of the source that the library keeps (pretraining's graph targets): numbers, in
            Parquet also lists of numbers of one length; empty cells are missing values.
        descriptors: "rdkit" adds RDKit's descriptors as a column `rdkit_descriptors` (7 ms a molecule).
        embed_timeout: seconds after which RDKit is stopped; the last resort.
        max_atoms: a molecule with more heavy atoms is a row with an error.
        rows_per_shard: consecutive input rows of a Parquet file; what a kill can cost.
        num_workers: processes.
    """

    smiles_column: str = "smiles"
    id_column: str | None = None
    num_conformers: int = 10
    include_2d: bool = True
    seed: int = 42
    embed_timeout: int = ConformerSettings.embed_timeout
    max_atoms: int = 256
    keep_columns: tuple[str, ...] | None = None
    descriptors: str | None = None
    rows_per_shard: int = 4096
    num_workers: int = 2

    def __post_init__(self) -> None:
        if self.rows_per_shard < 1 or self.num_workers < 0:
            raise TableError(f"rows_per_shard={self.rows_per_shard} must be at least 1, num_workers at least 0")
        if self.descriptors not in (None, RDKIT):
            raise TableError(f"unknown descriptors {self.descriptors!r}; use {RDKIT}")
        taken = {*PRETRAINING_SCHEMA.names, *([RDKIT_DESCRIPTORS] if self.descriptors else [])}
        clash = sorted(taken & set(self.kept))
        if clash or len(set(self.kept)) < len(self.kept):
            raise TableError(f"keep_columns names {', '.join(clash) or 'a column twice'}; a library has it already")
        # The featurizer's own rules, told before the first molecule.
        UniMol2FeatureExtractor(
            max_atoms=self.max_atoms,
            num_conformers=self.num_conformers,
            include_2d=self.include_2d,
            seed=self.seed,
            embed_timeout=self.embed_timeout,
        )

    @property
    def kept(self) -> tuple[str, ...]:
        return self.keep_columns or ()

    def schema(self, source: Path) -> pa.Schema:
        """Columns of a shard: those of every library, then the kept ones and the descriptors.

        Raises:
            TableError: the source lacks a column to keep.
        """
        kept = [number_field(name, width) for name, width in kept_widths(source, self.kept).items()]
        names = {b"names": json.dumps(descriptor_names()).encode()}
        described = number_field(RDKIT_DESCRIPTORS, len(descriptor_names())).with_metadata(names)
        return pa.schema([*PRETRAINING_SCHEMA, *kept, *([described] if self.descriptors else [])])

    def of_output(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "num_workers"}


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
        TableError: the source cannot be read, or the folder holds another job's output.
        UniMol2Error: a conformer setting is out of range.
    """
    next(_rows_of(source, settings), None)
    shards = output_dir / CONFORMERS
    with locked_output(output_dir):
        shards.mkdir(exist_ok=True)
        job = {
            "source": fingerprint_of_source(source),
            "conformers": conformer_versions(),
            "settings": settings.of_output(),
        }
        start_or_continue(output_dir, shards, job, {"source": str(source.resolve())})
        _build_missing_shards(source, shards, settings, console)
        return _finish(output_dir, console)


def _rows_of(source: Path, settings: BuildSettings) -> Iterator[MoleculeRow]:
    return read_molecules(source, settings.smiles_column, settings.id_column, settings.kept)


def _build_missing_shards(source: Path, shards: Path, settings: BuildSettings, console: Console) -> None:
    done = finished_shards(shards)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.completed} rows"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("conformers", total=None)
        rows, schema = _rows_of(source, settings), settings.schema(source)
        first_rows = _FirstRows()

        def missing() -> Iterator[tuple[int, Any]]:
            for number, shard in groupby(rows, lambda row: row.number // settings.rows_per_shard):
                if number in done:
                    first_rows.remember_shard(shard_path(shards, number))
                    progress.advance(task, sum(1 for _ in shard))
                else:
                    yield from ((row.number, first_rows.check(row)) for row in shard)

        work = partial(build_row, settings=settings)
        numbered = map_in_order(work, missing(), settings.num_workers, _READ_AHEAD)
        records = ({"row": row, **record} for row, record in numbered)
        for number, group in groupby(records, lambda record: record["row"] // settings.rows_per_shard):
            with whole_or_absent(shard_path(shards, number), schema) as writer:
                summary = BuildSummary()
                for record in group:
                    summary.add(record, record.pop("duplicate"))
                    writer.write(record)
                    progress.advance(task)
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
            smiles = str(Chem.MolToSmiles(heavy))
        except MoleculeError as error:
            return _Task(row.id, row.smiles, error, row.kept)
        except (RuntimeError, ValueError) as error:
            return _Task(row.id, row.smiles, MoleculeError(f"unexpected {type(error).__name__}: {error}"), row.kept)
        first = self._rows.setdefault(_digest(smiles), row.number)
        if first != row.number:
            return _Task(row.id, smiles, MoleculeError(f"duplicate of row {first}"), row.kept, duplicate=True)
        return _Task(row.id, smiles, _FrozenHeavyAtoms.of(heavy, smiles), row.kept)

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
    def of(cls, heavy: Chem.Mol, smiles: str) -> "_FrozenHeavyAtoms":
        order = np.array(heavy.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"])
        given = given_conformers(heavy, heavy.GetNumConformers()) if heavy.GetNumConformers() else []
        return cls(smiles, tuple(replace(each, coordinates=each.coordinates[order]) for each in given))


def build_row(task: _Task, settings: BuildSettings) -> dict[str, Any]:
    """A row of `PRETRAINING_SCHEMA` and whether it is a duplicate; a molecule that fails keeps its reason."""
    record = {"id": task.id, "smiles": task.smiles, "duplicate": task.duplicate, **_EMPTY}
    record |= {name: as_stored(task.kept[name]) if name in task.kept else None for name in settings.kept}
    try:
        if isinstance(task.molecule, MoleculeError):
            raise task.molecule
        return {**record, **_conformers_of(task.molecule, settings), "error": None}
    except MoleculeError as error:
        return {**record, "error": error.reason}
    except Exception as error:
        # RDKit raises bare C++ errors for molecules nobody thought of; one of them must not end a library's run.
        return {**record, "error": f"unexpected {type(error).__name__}: {error}"}


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
    wanted = ConformerSettings(num_conformers=count, seed=settings.seed, embed_timeout=settings.embed_timeout)
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
