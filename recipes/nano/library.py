#!/usr/bin/env python3
"""The library that unimol2-nano is pretrained on, from public tables, in minutes on two cores.

    python recipes/nano/library.py --data DIR --output runs/nano

Drug-like molecules with ETKDG conformers and QM9 with its DFT geometries; of both RDKit's descriptors, of the drug-like
ones MiniMol's vectors too. Molecules that QM9 labels in full are left out of all of them, so that the model may be
judged on QM9. `source/` then holds what `unimol2-hf conformers build` reads, `library/` what it made.
"""

import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from qm9_conformers import read_geometries
from rdkit import Chem, rdBase
from rich.console import Console

from unimol2_hf.jobs.build_conformers import RDKIT_DESCRIPTORS, build_conformers
from unimol2_hf.jobs.settings import BuildSettings

TEACHER = "minimol"
# Its components come scaled to unit spread, so a loss of all of them at once asks for little but noise. In blocks each
# gets the weight of its share of the variance (nano.yaml): name, first component, the one after the last.
TEACHER_BLOCKS = ((f"{TEACHER}_1", 0, 4), (f"{TEACHER}_2", 4, 16), (f"{TEACHER}_3", 16, 64), (f"{TEACHER}_4", 64, 256))
DRUG_LIKE = ("conformers_pretrain.parquet", "conformers_pretrain_2.parquet")
# Present for the molecules that QM9 labels in full.
LABEL = "mu"
LEFT_OUT = "QM9 labels it"


def without_stereo(smiles: str) -> str | None:
    """Canonical SMILES without stereo; `None` for what RDKit cannot read."""
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
    return None if molecule is None else str(Chem.MolToSmiles(molecule, isomericSmiles=False))


def keys_of(smiles: Iterable[str], workers: int) -> list[str | None]:
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(without_stereo, smiles, chunksize=2048))


def labelled_molecules(qm9: pa.Table, keys: list[str | None]) -> set[str]:
    """The molecules of QM9 with all labels."""
    labelled = qm9[LABEL].is_valid().to_pylist()
    return {key for key, has_labels in zip(keys, labelled, strict=True) if has_labels and key is not None}


def vectors(table: pa.Table, leave: str) -> pa.FixedSizeListArray:
    """All columns but one as a single column of vectors."""
    names = [name for name in table.column_names if name != leave]
    columns = np.stack([table[name].to_numpy().astype(np.float32) for name in names], axis=1)
    return pa.FixedSizeListArray.from_arrays(pa.array(columns.ravel()), len(names))


def teacher_blocks(components: pa.FixedSizeListArray) -> dict[str, pa.FixedSizeListArray]:
    """The teacher's components in blocks of falling variance."""
    values = components.flatten().to_numpy(zero_copy_only=False).reshape(len(components), -1)
    parts = {name: values[:, first:end] for name, first, end in TEACHER_BLOCKS if first < values.shape[1]}
    return {
        name: pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), part.shape[1]) for name, part in parts.items()
    }


def drug_like(data: Path) -> pa.Table:
    """SMILES, coordinates and targets of the drug-like molecules."""
    columns = ["smiles", "coordinates"]
    conformers = pa.concat_tables([pq.read_table(data / name, columns=columns) for name in DRUG_LIKE])
    for name, file in ((RDKIT_DESCRIPTORS, "descriptors_pretrain.parquet"), (TEACHER, "minimol_pretrain.parquet")):
        table = pq.read_table(data / file)
        if table["smiles"].to_pylist() != conformers["smiles"].to_pylist():
            raise ValueError(f"{file} is of other molecules than {', '.join(DRUG_LIKE)}")
        described = vectors(table, "smiles")
        columns_of = teacher_blocks(described) if name == TEACHER else {name: described}
        for column, values in columns_of.items():
            conformers = conformers.append_column(column, values)
    return conformers


def qm9_molecules(data: Path, qm9: pa.Table, workers: int, console: Console) -> pa.Table:
    """SMILES, coordinates and descriptors of molecules of QM9; MiniMol's vectors are missing."""
    geometries, outcomes = read_geometries(qm9, workers)
    console.print(f"QM9: {dict(outcomes)}")
    read = [number for number, geometry in enumerate(geometries) if geometry is not None]
    table = pq.read_table(data / "descriptors_qm9.parquet")
    place = {index: number for number, index in enumerate(table["gdb_index"].to_pylist())}
    indices = qm9["gdb_index"].to_pylist()
    described = vectors(table, "gdb_index").take(pa.array([place[indices[number]] for number in read]))
    found = [geometry for geometry in geometries if geometry is not None]
    return pa.table(
        {
            "smiles": [smiles for smiles, _ in found],
            "coordinates": pa.array([flat for _, flat in found], type=pa.list_(pa.float32())),
            RDKIT_DESCRIPTORS: described,
        }
    )


def without(table: pa.Table, labelled: set[str], workers: int) -> tuple[pa.Table, int]:
    """The rows whose molecule is not among the labelled ones, and how many were left out."""
    kept = [key not in labelled for key in keys_of(table["smiles"].to_pylist(), workers)]
    return table.filter(pa.array(kept)), kept.count(False)


def evenly(table: pa.Table, count: int) -> pa.Table:
    """That many rows, evenly spaced, or all."""
    return table.take(np.unique(np.linspace(0, len(table) - 1, min(count, len(table))).astype(int)))


def write_sources(data: Path, folder: Path, qm9_count: int, workers: int, console: Console) -> None:
    """Write drug_like.parquet and qm9.parquet, in the order in which the library reads them."""
    qm9 = pq.read_table(data / "qm9.parquet")
    keys = keys_of(qm9["smiles"].to_pylist(), workers)
    labelled = labelled_molecules(qm9, keys)
    usable = [key not in labelled for key in keys]
    drugs, left_out = without(drug_like(data), labelled, workers)
    left: Counter[str] = Counter({"drug-like": left_out, "QM9": usable.count(False)})
    console.print(f"left out, because {LEFT_OUT}: {dict(left)}")
    folder.mkdir(parents=True, exist_ok=True)
    small = qm9_molecules(data, evenly(qm9.filter(pa.array(usable)), qm9_count), workers, console)
    for name in drugs.column_names[len(small.column_names) :]:
        small = small.append_column(name, pa.nulls(len(small), drugs.schema.field(name).type))
    pq.write_table(drugs, folder / "a_drug_like.parquet")
    pq.write_table(small.select(drugs.column_names), folder / "b_qm9.parquet")


def main(
    data: Annotated[Path, typer.Option(help="folder with the public tables")],
    output: Annotated[Path, typer.Option(help="folder for source/ and library/")],
    qm9_count: Annotated[int, typer.Option(help="molecules of QM9 to read: a fifth of all draws")] = 35_000,
    workers: Annotated[int, typer.Option(help="processes")] = 2,
) -> None:
    """Make source/ and library/; what is there already stays."""
    console = Console(file=sys.stdout)
    source = output / "source"
    if not (source / "b_qm9.parquet").exists():
        write_sources(data, source, qm9_count, workers, console)
    columns = pq.read_schema(source / "a_drug_like.parquet").names
    settings = BuildSettings(
        num_conformers=1,
        keep_columns=(RDKIT_DESCRIPTORS, *(name for name, _, _ in TEACHER_BLOCKS if name in columns)),
        rows_per_shard=8192,
        num_workers=workers,
    )
    build_conformers(source, output / "library", settings, console)


if __name__ == "__main__":
    typer.run(main)
