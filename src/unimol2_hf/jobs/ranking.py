"""The best rows of a library by a prediction, as a table or as molecules."""

import csv
import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rdkit import Chem
from rich.console import Console
from rich.markup import escape

from ..data.atomic_files import whole_file
from ..data.molecule_files import Source, open_rows
from ..data.molecule_rows import text_of
from ..errors import SettingsError
from ..feature_extraction_unimol2 import FeaturizedMolecule
from ..molecules import Molecule, has_bonds, heavy_atoms_to_read
from ..settings_unimol2 import Standardization
from .model_job import ModelJob

RANK = "rank"
_ROWS_AT_A_TIME = 4096


@dataclass(frozen=True)
class Ranking:
    """What is ranked, and how.

    Attributes:
        column: of predictions, to rank by.
        count: rows of the ranking.
        lowest: whether the lowest values come first.
        output: CSV or SDF.
        files: CSV or Parquet, with all rows in order.
    """

    column: str
    count: int
    lowest: bool
    output: Path
    files: Sequence[Path] = ()

    def check(self, columns: Sequence[str]) -> None:
        """Raise `SettingsError` where there is no such column, or the output is of no known kind."""
        if self.column not in columns:
            known = ", ".join(columns)
            raise SettingsError(f"rank_by is {self.column}, which is no column of predictions; use one of {known}")
        if self.output.suffix.lower() not in (".csv", ".sdf"):
            raise SettingsError(f"top_output is {self.output}; a ranking is written as .csv or .sdf")

    def records(self) -> Iterator[dict[str, Any]]:
        """All rows."""
        for path in self.files:
            if path.suffix.lower() == ".csv":
                with path.open(newline="", encoding="utf-8") as text:
                    yield from csv.DictReader(text)
            else:
                for batch in pq.ParquetFile(path).iter_batches(_ROWS_AT_A_TIME):
                    yield from batch.to_pylist()


def write_ranking(ranking: Ranking, job: ModelJob, source: Source, console: Console) -> None:
    """Write the first rows by a column of predictions; rows without one are not ranked.

    Args:
        ranking: what is ranked.
        job: that predicted, from whose conformers the molecules of an SDF are made.
        source: of the job.
        console: where it is told.
    """
    ranked = _ranked(_values(ranking.records(), ranking.column), ranking.count, ranking.lowest)
    ranks = {row: rank for rank, row in enumerate(ranked, start=1)}
    records = {row: record for row, record in enumerate(ranking.records()) if row in ranks}
    with whole_file(ranking.output) as draft:
        if ranking.output.suffix.lower() == ".sdf":
            _write_molecules(draft, job, source, ranks, records)
        else:
            _write_table(draft, ranks, records)
    console.print(f"{len(ranks)} rows by {ranking.column} in {escape(str(ranking.output))}", highlight=False)


def _values(records: Iterable[dict[str, Any]], column: str) -> Iterator[tuple[float, int]]:
    for row, record in enumerate(records):
        value = record[column]
        try:
            number = math.nan if value in (None, "") else float(value)
        except ValueError as error:
            raise SettingsError(f"rank_by is {column}, which holds {value!r} and no numbers; use another") from error
        if not math.isnan(number):
            yield number, row


def _ranked(values: Iterable[tuple[float, int]], count: int, lowest: bool) -> list[int]:
    """Rows from the best; of equal ones the first in the file."""
    if lowest:
        return [row for _, row in heapq.nsmallest(count, values)]
    best = heapq.nlargest(count, values, key=lambda pair: (pair[0], -pair[1]))
    return [row for _, row in best]


def _write_table(draft: Path, ranks: dict[int, int], records: dict[int, dict[str, Any]]) -> None:
    with draft.open("w", newline="", encoding="utf-8") as text:
        names = list(next(iter(records.values()), {}))
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow([RANK, *names])
        for row, rank in ranks.items():
            lines.writerow([rank, *(text_of(records[row][name]) for name in names)])


def _write_molecules(
    draft: Path, job: ModelJob, source: Source, ranks: dict[int, int], records: dict[int, dict[str, Any]]
) -> None:
    """Each molecule with the conformer that was predicted from, made again, and the row's values as data items."""
    _, rows = open_rows(source, job.columns)
    chosen = (row for row in rows if row.number in ranks)
    made = dict(job.make(chosen, 0))
    standardize = job.extractor.settings(**job.settings.featurizer).standardize
    with Chem.SDWriter(str(draft)) as writer:
        for row, rank in ranks.items():
            given, molecule = made[row]
            heavy = _with_conformer(_heavy_atoms(given.molecule, molecule, standardize), molecule)
            record = records[row]
            heavy.SetProp("_Name", given.id or text_of(record.get("id")) or f"row {row}")
            heavy.SetIntProp(RANK, rank)
            for name, value in record.items():
                if name and text_of(value):
                    heavy.SetProp(name, text_of(value))
            writer.write(heavy)


def _heavy_atoms(given: Molecule, molecule: FeaturizedMolecule, standardize: Standardization) -> Chem.Mol:
    """In the order of the conformer; atoms alone where the source has no bonds."""
    if has_bonds(given):
        return heavy_atoms_to_read(given, standardize)
    atoms = Chem.RWMol()
    for number in (molecule.features or {}).get("input_ids", ()):
        atoms.AddAtom(Chem.Atom(int(number)))
    return atoms.GetMol()


def _with_conformer(heavy: Chem.Mol, molecule: FeaturizedMolecule) -> Chem.Mol:
    found = Chem.Mol(heavy)
    found.RemoveAllConformers()
    # A cropped molecule's is not whole.
    for each in () if molecule.cropped else molecule.conformers[:1]:
        conformer = Chem.Conformer(found.GetNumAtoms())
        conformer.SetPositions(each.coordinates.astype(float))
        conformer.Set3D(each.provenance.is_3d)
        found.AddConformer(conformer)
    return found
