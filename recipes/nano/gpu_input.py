#!/usr/bin/env python3
"""What unimol2-nano's training needs on a machine with a GPU that nothing else can be fetched to: at most 40 MiB.

    python recipes/nano/gpu_input.py pack --data DIR --output runs/nano_gpu/input.parquet
    python recipes/nano/gpu_input.py unpack runs/nano_gpu/input.parquet --output runs/nano_gpu

Coordinates are kept to a hundredth of an angstrom (the noise is twenty of them), MiniMol's vectors to a tenth, as they
are stored; RDKit's descriptors are made there, on all cores.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import typer
from library import (
    DRUG_LIKE,
    TEACHER,
    TEACHER_BLOCKS,
    keys_of,
    labelled_molecules,
    teacher_blocks,
    vectors,
    without,
)
from rich.console import Console

from unimol2_hf.jobs.build_conformers import build_conformers
from unimol2_hf.jobs.settings import BuildSettings

LARGEST_INPUT = 40 * 2**20
PER_ANGSTROM, PER_UNIT = 100, 10
_INT16, _INT8 = np.iinfo(np.int16), np.iinfo(np.int8)
app = typer.Typer(no_args_is_help=True)


def packed(conformers: pa.Table, teacher: pa.Table) -> pa.Table:
    """The same rows in small whole numbers."""
    coordinates = conformers["coordinates"].combine_chunks()
    positions = np.rint(coordinates.flatten().to_numpy() * PER_ANGSTROM).clip(_INT16.min, _INT16.max)
    described = vectors(teacher, "smiles")
    values = np.rint(described.flatten().to_numpy() * PER_UNIT).clip(_INT8.min, _INT8.max)
    return pa.table(
        {
            "smiles": conformers["smiles"],
            "coordinates": pa.ListArray.from_arrays(coordinates.offsets, pa.array(positions.astype(np.int16))),
            TEACHER: pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.int8)), described.type.list_size),
        }
    )


def unpacked(table: pa.Table) -> pa.Table:
    """Angstrom and the teacher's own unit again."""
    coordinates, teacher = table["coordinates"].combine_chunks(), table[TEACHER].combine_chunks()
    positions = pc.divide(coordinates.flatten().cast(pa.float32()), np.float32(PER_ANGSTROM))
    values = pc.divide(teacher.flatten().cast(pa.float32()), np.float32(PER_UNIT))
    return pa.table(
        {
            "smiles": table["smiles"],
            "coordinates": pa.ListArray.from_arrays(coordinates.offsets, positions),
            **teacher_blocks(pa.FixedSizeListArray.from_arrays(values, teacher.type.list_size)),
        }
    )


@app.command()
def pack(
    data: Annotated[Path, typer.Option(help="folder with the public tables")],
    output: Annotated[Path, typer.Option(help="Parquet file to write")],
    workers: Annotated[int, typer.Option(help="processes")] = 2,
) -> None:
    """Write the drug-like molecules that QM9 does not label."""
    qm9 = pq.read_table(data / "qm9.parquet", columns=["smiles", "mu"])
    labelled = labelled_molecules(qm9, keys_of(qm9["smiles"].to_pylist(), workers))
    columns = ["smiles", "coordinates"]
    conformers = pa.concat_tables([pq.read_table(data / name, columns=columns) for name in DRUG_LIKE])
    kept, left_out = without(packed(conformers, pq.read_table(data / "minimol_pretrain.parquet")), labelled, workers)
    output.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(kept, output, compression="zstd", compression_level=19)
    print(f"{len(kept):,} molecules in {output.stat().st_size:,} bytes; {left_out} left out")
    if output.stat().st_size > LARGEST_INPUT:
        raise SystemExit(f"that is more than {LARGEST_INPUT:,} bytes")


@app.command()
def unpack(
    packed_file: Annotated[Path, typer.Argument(help="what `pack` wrote")],
    output: Annotated[Path, typer.Option(help="folder for source/ and library/")],
) -> None:
    """Make the library, descriptors included."""
    source = output / "source"
    source.mkdir(parents=True, exist_ok=True)
    made = unpacked(pq.read_table(packed_file))
    pq.write_table(made, source / "drug_like.parquet")
    settings = BuildSettings(
        num_conformers=1,
        keep_columns=tuple(name for name, _, _ in TEACHER_BLOCKS if name in made.column_names),
        descriptors="rdkit",
        rows_per_shard=8192,
        num_workers=os.cpu_count() or 1,
    )
    build_conformers(source, output / "library", settings, Console(file=sys.stdout))


if __name__ == "__main__":
    app()
