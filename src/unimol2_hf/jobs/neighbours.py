"""The molecules of an embedded library that are most like a query: exact search by cosine, in blocks, streamed."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..data.atomic_files import whole_file
from ..data.molecule_files import check_readable, read_molecules
from ..data.output_folder import JOB_FILE, read_job, require_same
from ..errors import LibraryError, TableError
from .embed import EMBEDDINGS, EmbedJob
from .settings import EmbedSettings, NeighbourSettings

FloatArray = NDArray[np.float32]

NEIGHBOUR_COLUMNS = ("query", "query_id", "rank", "row", "id", "smiles", "similarity")
_EMBEDDING = "embedding"
# Numbers of a block of vectors, and of its similarities to the queries: 32 MiB each.
_NUMBERS_AT_ONCE = 2**23
# A product rounds by its shape, and twins are embedded in different batches: finer than this, order is chance.
_DECIMALS = 6
_MOST_SHOWN = 40  # lines


def similarity(a: ArrayLike, b: ArrayLike) -> FloatArray:
    """Cosine similarities (n, m) of vectors (n, D) and (m, D); a vector of zeros is like nothing, 0."""
    left, right = (_unit(np.atleast_2d(np.asarray(each, dtype=np.float32))) for each in (a, b))
    found: FloatArray = left @ right.T
    return found


def _unit(vectors: FloatArray) -> FloatArray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True).astype(np.float32)
    made: FloatArray = np.divide(vectors, np.where(lengths > 0, lengths, np.float32(1)), dtype=np.float32)
    return made


@dataclass(frozen=True)
class Neighbours:
    """Of q queries the nearest rows of a library, the most similar first; of equal ones the first in the library.

    Attributes:
        similarities: (q, k) cosines to six decimals.
        files: (q, k) numbers of the shards, in the order of `paths`.
        rows: (q, k) positions in these.
        paths: of the shards.
    """

    similarities: FloatArray
    files: NDArray[np.int64]
    rows: NDArray[np.int64]
    paths: list[Path]


def nearest(embeddings: Path, queries: ArrayLike, top: int = 20) -> Neighbours:
    """The nearest of all rows that have a vector; the library is never in memory.

    Args:
        embeddings: folder that `embed` wrote, or of shards with a column `embedding`.
        queries: (q, D).
        top: how many for each query, fewer where the library is smaller.

    Raises:
        LibraryError: no shards, of vectors of another width, or damaged.
    """
    wanted = _unit(np.atleast_2d(np.asarray(queries, dtype=np.float32)))
    paths = shards_of(embeddings)
    found = [np.empty((len(wanted), 0), dtype=kind) for kind in (np.float32, np.int64, np.int64)]
    for number, path in enumerate(paths):
        for start, rows, vectors in _blocks(path, wanted.shape):
            own = np.round(wanted @ _unit(vectors).T, _DECIMALS)
            best = _best(own, top)
            places = (np.full_like(best, number), start + rows[best])
            joined = [np.hstack(pair) for pair in zip(found, (np.take_along_axis(own, best, 1), *places), strict=True)]
            kept = _best(joined[0], top)
            found = [np.take_along_axis(each, kept, 1) for each in joined]
    return Neighbours(found[0], found[1], found[2], paths)


def _best(similarities: FloatArray, top: int) -> NDArray[np.int64]:
    """Columns (q, k) of the greatest, in order; of equal ones the first."""
    count = similarities.shape[1]
    if count > top:
        # All that reach the least of the best, so that equal ones do not fall to chance.
        least = np.partition(similarities, count - top, axis=1)[:, count - top]
        columns = [np.flatnonzero(own >= bound) for own, bound in zip(similarities, least, strict=True)]
        best = [own[np.argsort(-row[own], kind="stable")[:top]] for own, row in zip(columns, similarities, strict=True)]
        return np.stack(best)
    return np.argsort(-similarities, axis=1, kind="stable")


def _blocks(path: Path, shape: tuple[int, int]) -> Iterator[tuple[int, NDArray[np.int64], FloatArray]]:
    """Position of a block's first row, positions in it of the rows that have a vector, and these."""
    queries, width = shape
    rows_at_once = max(256, _NUMBERS_AT_ONCE // max(queries, width))
    try:
        start = 0
        for batch in pq.ParquetFile(path).iter_batches(rows_at_once, columns=[_EMBEDDING]):
            column = batch.column(0)
            present = column.is_valid().to_numpy(zero_copy_only=False)
            vectors = column.drop_null().flatten().to_numpy(zero_copy_only=False).astype(np.float32)
            if vectors.size != present.sum() * width:
                raise LibraryError(
                    f"{path} holds vectors of {vectors.size // max(1, present.sum())} numbers, the query {width}; "
                    "embed both with the same model and pooling"
                )
            if present.any():
                yield start, np.flatnonzero(present), vectors.reshape(-1, width)
            start += len(present)
    except (OSError, pa.ArrowException, KeyError, AttributeError) as error:
        raise LibraryError(f"{path} is no shard of embeddings that can be read ({error}); embed it again") from error


def shards_of(embeddings: Path) -> list[Path]:
    """The shards of a folder that `embed` wrote, or that holds them itself.

    Raises:
        LibraryError: there are none.
    """
    folder = embeddings / EMBEDDINGS if (embeddings / EMBEDDINGS).is_dir() else embeddings
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        raise LibraryError(f"{embeddings} holds no shards of embeddings; give the folder that `embed` wrote")
    return paths


def neighbours(embeddings: Path, query: str, settings: NeighbourSettings, console: Console) -> pd.DataFrame:
    """The molecules of a library that are most like each of a query, as a table, which is also told or written.

    Args:
        embeddings: folder that `embed` wrote.
        query: a SMILES; a file of molecules, which are embedded as the library was; or another folder that `embed`
            wrote.
        settings: how many, and where they go.
        console: for the table, unless a file is asked for.

    Returns:
        Rows of `NEIGHBOUR_COLUMNS`: `row`, `id` and `smiles` are of the library; a query that failed has none.

    Raises:
        LibraryError: no embeddings, or of vectors of another width.
        TableError: the file of queries cannot be read.
        OutputFolderError: this machine would embed the query otherwise than the library was.
        MoleculeError: a SMILES that cannot be used.
    """
    texts, names, vectors, known = _queries(embeddings, query, settings)
    found = nearest(embeddings, vectors, settings.top)
    rows = []
    labels = _labels(found)
    for number, place in enumerate(np.flatnonzero(known)):
        hits = zip(found.similarities[number], found.files[number], found.rows[number], strict=True)
        for rank, (value, file, row) in enumerate(hits, start=1):
            rows.append((texts[place], names[place], rank, *labels[int(file), int(row)], float(value)))
    table = pd.DataFrame(rows, columns=list(NEIGHBOUR_COLUMNS))
    failed = len(texts) - int(known.sum())
    if failed:
        console.print(f"{failed} of {len(texts)} queries have no vector, and no neighbours", highlight=False)
    _tell(table, settings, console)
    return table


def _queries(
    embeddings: Path, query: str, settings: NeighbourSettings
) -> tuple[list[str], list[str], FloatArray, NDArray[np.bool_]]:
    """SMILES, ids, vectors (q, D) of those that have one, and which these are."""
    path = Path(query)
    if path.is_dir():
        tables = [pq.read_table(each, columns=["smiles", "id", _EMBEDDING]) for each in shards_of(path)]
        table = pa.concat_tables(tables)
        vectors = [None if each is None else np.asarray(each, np.float32) for each in table[_EMBEDDING].to_pylist()]
        return _with_known(table["smiles"].to_pylist(), table["id"].to_pylist(), vectors)
    if _is_file(query):
        check_readable(path)
        rows = list(read_molecules(path, settings.smiles_column, settings.id_column))
        results = _embedded(embeddings, [row.molecule for row in rows])
        return _with_known([row.smiles for row in rows], [row.id for row in rows], results)
    return _with_known([query], [""], _embedded(embeddings, [query], alone=True))


def _is_file(query: str) -> bool:
    """A path that is mistyped is no SMILES either."""
    path = Path(query)
    return path.exists() or path.suffix.lower() in (".csv", ".tsv", ".smi", ".sdf", ".parquet", ".gz", ".xlsx", ".txt")


def _with_known(
    texts: list[str], names: list[str], vectors: list[FloatArray | None]
) -> tuple[list[str], list[str], FloatArray, NDArray[np.bool_]]:
    known = [each for each in vectors if each is not None]
    if not known:
        raise TableError("no query has a vector: none of its molecules could be used")
    return texts, names, np.stack(known), np.array([each is not None for each in vectors])


def _embedded(embeddings: Path, molecules: list[Any], alone: bool = False) -> list[FloatArray | None]:
    """Vectors of molecules, made as the library's were."""
    if not (embeddings / JOB_FILE).exists():
        raise LibraryError(
            f"{embeddings} does not say how it was embedded ({JOB_FILE}); give the folder that `embed` wrote, or embed "
            "the query too"
        )
    recorded = read_job(embeddings)
    settings = EmbedSettings(model=recorded["about"]["model"], **EmbedJob.todays_settings(recorded["job"]["settings"]))
    job = EmbedJob(settings, embeddings, model=settings.model)
    require_same(embeddings, job.decisive())
    options = {"pooling": settings.pooling, **settings.featurizer}
    if alone:
        return [job.pipeline(molecules[0], **options)["embedding"]]
    results = job.pipeline(molecules, batch_size=settings.batch_size, **options)
    return [result["embedding"] for result in results]


def _labels(found: Neighbours) -> dict[tuple[int, int], tuple[int, str, str]]:
    """Row number, id and SMILES of each hit, read from its shard alone."""
    labels = {}
    for file in np.unique(found.files):
        rows = np.unique(found.rows[found.files == file])
        parquet = pq.ParquetFile(found.paths[file])
        names = [name for name in ("row", "id", "smiles") if name in parquet.schema_arrow.names]
        start = 0
        for batch in parquet.iter_batches(columns=names):
            own = rows[(rows >= start) & (rows < start + len(batch))]
            for row, record in zip(own, batch.take(pa.array(own - start)).to_pylist(), strict=True):
                labels[int(file), int(row)] = (record.get("row", row), record.get("id", ""), record.get("smiles", ""))
            start += len(batch)
    return labels


def _tell(table: pd.DataFrame, settings: NeighbourSettings, console: Console) -> None:
    if settings.output is not None:
        path = Path(settings.output)
        with whole_file(path) as draft:
            table.to_csv(draft, index=False, quoting=csv.QUOTE_MINIMAL)
        console.print(f"{len(table)} neighbours in {escape(str(path))}", highlight=False)
        return
    shown = Table("query", "rank", "row", "id", "smiles", "similarity")
    for row in table.head(_MOST_SHOWN).itertuples():
        cells = (row.query, row.rank, row.row, row.id, row.smiles, f"{row.similarity:.4f}")
        shown.add_row(*(escape(str(cell)) for cell in cells))
    console.print(shown)
    if len(table) > _MOST_SHOWN:
        console.print(f"and {len(table) - _MOST_SHOWN} more; --output FILE writes them all", highlight=False)
