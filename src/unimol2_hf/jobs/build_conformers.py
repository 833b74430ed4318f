"""Build a library of conformers to pretrain on: molecules to Parquet shards, every row with its outcome.

A shard depends on nothing but its rows and the molecules before them.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rdkit import Chem
from rich.console import Console

from ..conformers import TWO_DIMENSIONAL, Conformer, depict, generate_conformers, given_conformers
from ..data.molecule_files import kept_widths
from ..data.molecule_rows import Columns, MoleculeRow
from ..data.number_columns import as_stored, number_field
from ..data.scaffolds import murcko_scaffold
from ..data.shards import CONFORMERS, PRETRAINING_SCHEMA, shard_path, whole_or_absent
from ..descriptors import descriptor_names, rdkit_descriptors
from ..errors import (
    DuplicateMoleculeError,
    MoleculeError,
    MoleculeTooLargeError,
    SettingsError,
    UnexpectedMoleculeError,
)
from ..molecules import canonical_order, molecule_of, remove_hydrogens
from ..worker_pool import map_in_order
from .library_job import LibraryJob, RowSummary, check_source, run_job
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
class BuildSummary(RowSummary):
    """Rows of a library: kept molecules and duplicates of an earlier row besides; `flat` are molecules without 3D."""

    molecules: int = 0
    duplicates: int = 0

    def add(self, record: Mapping[str, Any]) -> None:
        duplicate = record["error_code"] == DuplicateMoleculeError.code
        self.rows += 1
        self.duplicates += duplicate
        self.failed += record["error"] is not None and not duplicate
        self.molecules += record["error"] is None
        self.flat += record["error"] is None and not any(entry["is_3d"] for entry in record["provenance"])

    def told(self) -> str:
        return (
            f"{self.molecules} molecules, {self.duplicates} duplicates, {self.failed} failed (reason in the error "
            f"column), {self.flat} without a 3D conformer"
        )


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
    summary = run_job(build_job(source, output_dir, settings), source, console)
    assert isinstance(summary, BuildSummary)
    return summary


def build_job(source: Path, output_dir: Path, settings: BuildSettings) -> "BuildJob":
    """What `build_conformers` does, checked before anything is made."""
    columns = Columns(settings.smiles_column, settings.id_column, settings.kept)
    check_source(source, columns)
    return BuildJob(settings, output_dir, columns, schema=library_schema(settings, source))


@dataclass
class BuildJob(LibraryJob[dict[str, Any]]):
    """Conformers of each molecule, once."""

    folder: ClassVar[str] = CONFORMERS
    title: ClassVar[str] = "conformers"
    summary: ClassVar[type[RowSummary]] = BuildSummary

    schema: pa.Schema = PRETRAINING_SCHEMA

    @cached_property
    def _first_rows(self) -> dict[bytes, int]:
        """The row at which each molecule came first."""
        return {}

    @staticmethod
    def todays_settings(recorded: dict[str, Any]) -> dict[str, Any]:
        """What had no setting then was as by default."""
        return {**BuildSettings().of_output(), **recorded}

    def taken(self, row: MoleculeRow) -> MoleculeRow:
        """With its canonical SMILES, and the coordinates that the file gave in that order; or why it has none."""
        try:
            heavy = remove_hydrogens(molecule_of(row.molecule))
            smiles, order = canonical_order(heavy)
        except MoleculeError as error:
            return replace(row, molecule=error)
        except (RuntimeError, ValueError) as error:
            return replace(row, molecule=UnexpectedMoleculeError.of(error))
        first = self._first_rows.setdefault(_digest(smiles), row.number)
        if first != row.number:
            return replace(row, smiles=smiles, molecule=DuplicateMoleculeError(f"duplicate of row {first}"))
        given = given_conformers(heavy, heavy.GetNumConformers()) if heavy.GetNumConformers() else []
        if not given:
            return replace(row, smiles=smiles, molecule=smiles)
        coordinates = np.stack([each.coordinates[order] for each in given])
        provenance = tuple(each.provenance for each in given)
        return replace(
            row, smiles=smiles, molecule={"smiles": smiles, "coordinates": coordinates}, provenance=provenance
        )

    def passed(self, number: int) -> None:
        table = pq.read_table(shard_path(self.shards, number), columns=["row", "smiles"]).to_pydict()
        for row, smiles in zip(table["row"], table["smiles"], strict=True):
            self._first_rows.setdefault(_digest(smiles), row)

    def make(self, rows: Iterable[MoleculeRow], num_workers: int) -> Iterator[tuple[int, dict[str, Any]]]:
        work = partial(build_row, settings=self.settings)
        pairs = ((row.number, row) for row in rows)
        for number, record in map_in_order(work, pairs, num_workers, _READ_AHEAD):
            yield number, {"row": number, **record}

    def write_shard(
        self, number: int, made: Iterable[tuple[int, dict[str, Any]]], after_row: Callable[[], object] = lambda: None
    ) -> int:
        summary = BuildSummary()
        with whole_or_absent(shard_path(self.shards, number), self.schema) as writer:
            for _, record in made:
                summary.add(record)
                writer.write(record)
                after_row()
            writer.counts = asdict(summary)
        return summary.rows


def _digest(smiles: str) -> bytes:
    return hashlib.blake2b(smiles.encode(), digest_size=12).digest()


def build_row(row: MoleculeRow, settings: BuildSettings) -> dict[str, Any]:
    """A row of `PRETRAINING_SCHEMA`; a molecule that fails keeps its reason."""
    record = {"id": row.id, "smiles": row.smiles, **_EMPTY}
    record |= {name: as_stored(row.kept[name]) if name in row.kept else None for name in settings.kept}
    try:
        if isinstance(row.molecule, MoleculeError):
            raise row.molecule
        return {**record, **_conformers_of(row, settings), "error": None, "error_code": None}
    except MoleculeError as known:
        error = known
    except Exception as unknown:
        # RDKit raises bare C++ errors for molecules nobody thought of; one of them must not end a library's run.
        error = UnexpectedMoleculeError.of(unknown)
    return {**record, "error": error.reason, "error_code": error.code}


def _conformers_of(row: MoleculeRow, settings: BuildSettings) -> dict[str, Any]:
    heavy = remove_hydrogens(molecule_of(row.smiles))
    count = heavy.GetNumAtoms()
    if count > settings.max_atoms:
        raise MoleculeTooLargeError(f"{count} heavy atoms are more than max_atoms={settings.max_atoms}")
    coordinates = row.molecule["coordinates"] if isinstance(row.molecule, Mapping) else ()
    given = [Conformer(*pair) for pair in zip(coordinates, row.provenance, strict=True)]
    conformers = [*given, *_generated(heavy, settings, settings.num_conformers - len(given))]
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
