"""Parquet shards that are either whole or absent, whatever happens to the process that writes them."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .atomic_files import draft_of, move_into_place, writing

CONFORMERS = "conformers"  # folder of a library's shards, inside that of its job
COUNTS_KEY = "unimol2_hf_counts"
_ROWS_AT_A_TIME = 1024

PROVENANCE = pa.struct(
    [
        ("method", pa.string()),
        ("is_3d", pa.bool_()),
        ("seed", pa.int64()),
        ("force_field", pa.string()),
        ("force_field_converged", pa.bool_()),
        ("note", pa.string()),
        ("ladder", pa.int32()),
        ("rdkit", pa.string()),
    ]
)

_ROW_FIELDS = [("row", pa.int64()), ("id", pa.string()), ("smiles", pa.string())]
# Why a row failed, and that in a word (`errors.UniMol2Error.code`).
_ERROR_FIELDS = [("error", pa.string()), ("error_code", pa.string())]


def embedding_schema(width: int, width_of_atoms: int | None, store_precision: str) -> pa.Schema:
    """Columns of an embedding shard: what the row was, its vectors, where its conformers come from, why it failed.

    Args:
        width: of a molecule's vector.
        width_of_atoms: of each atom's; `None` for none.
        store_precision: of both.
    """
    kind = pa.float16() if store_precision == "float16" else pa.float32()
    return pa.schema(
        [
            *_ROW_FIELDS,
            ("embedding", pa.list_(kind, width)),
            *([("atom_embeddings", pa.list_(pa.list_(kind, width_of_atoms)))] if width_of_atoms else []),
            ("num_heavy_atoms", pa.int32()),
            ("cropped", pa.bool_()),
            ("has_graph_features", pa.bool_()),
            ("standardized_smiles", pa.string()),
            ("provenance", pa.list_(PROVENANCE)),
            *_ERROR_FIELDS,
        ]
    )


# `conformers`: flat coordinates (3 n) of the n heavy atoms in the order of `smiles`, angstrom, centred.
CONFORMER_SCHEMA = pa.schema(
    [
        *_ROW_FIELDS,
        ("atomic_numbers", pa.list_(pa.uint8())),
        ("conformers", pa.list_(pa.list_(pa.float32()))),
        ("provenance", pa.list_(PROVENANCE)),
        *_ERROR_FIELDS,
    ]
)

# What pretraining streams: a row of a library of conformers, which `unimol2-hf embed` reads as well.
PRETRAINING_SCHEMA = pa.schema(
    [
        *CONFORMER_SCHEMA,
        ("num_heavy_atoms", pa.int32()),
        ("scaffold", pa.string()),
    ]
)


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.parquet"


def finished_shards(folder: Path) -> set[int]:
    """Numbers of the shards that are whole."""
    return {int(path.stem.removeprefix("part-")) for path in folder.glob("part-*.parquet")}


class ShardWriter:
    """Rows of one Parquet file, gathered to row groups; `counts` are kept in its footer."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.counts: dict[str, int] = {}
        self._schema, self._path = schema, path
        with writing(path):
            self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._rows: list[Mapping[str, Any]] = []

    def write(self, row: Mapping[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == _ROWS_AT_A_TIME:
            self._flush()

    def close(self) -> None:
        """Write what is left, and the counts."""
        if self._rows:
            self._flush()
        with writing(self._path):
            self._writer.add_key_value_metadata({COUNTS_KEY: json.dumps(self.counts)})
            self._writer.close()

    def abandon(self) -> None:
        """Let go of the file, whose content is of no use."""
        with suppress(OSError, pa.ArrowException):
            self._writer.close()

    def _flush(self) -> None:
        columns = [pa.array([row[field.name] for row in self._rows], type=field.type) for field in self._schema]
        with writing(self._path):
            self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._rows = []


@contextmanager
def whole_or_absent(path: Path, schema: pa.Schema) -> Iterator[ShardWriter]:
    """Write a shard beside its place and move it there, safe on disk, when it is complete."""
    draft = draft_of(path)
    writer = None
    # An interrupt comes at any moment: while the file is opened, and while it reaches the disk.
    try:
        writer = ShardWriter(draft, schema)
        yield writer
        writer.close()
        move_into_place(draft, path)
    except BaseException:
        if writer is not None:
            writer.abandon()
        draft.unlink(missing_ok=True)
        raise


def shard_counts(path: Path) -> dict[str, int]:
    """What the writer counted, from the footer alone."""
    metadata = pq.read_metadata(path).metadata or {}
    counts: dict[str, int] = json.loads(metadata[COUNTS_KEY.encode()])
    return counts
