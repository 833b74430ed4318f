"""Neighbours of a query: those of the plain matrix product, whatever the blocks, from shards that `embed` wrote."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import run_command
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import unimol2_hf
from unimol2_hf import LibraryError, OutputFolderError, SmilesParseError, TableError
from unimol2_hf.data.shards import shard_path
from unimol2_hf.jobs import neighbours as module
from unimol2_hf.jobs.embed import embed
from unimol2_hf.jobs.neighbours import NEIGHBOUR_COLUMNS, nearest, neighbours, similarity
from unimol2_hf.jobs.settings import EmbedSettings, NeighbourSettings
from unimol2_hf.settings_unimol2 import SCALES

pytestmark = pytest.mark.numerical

QUIET = Console(quiet=True)
SMILES = ["CCO", "CCN", "C1CC", "c1ccccc1O", "CCCO", "CC(=O)O", "c1ccccc1N", "CCO"]


def write_shards(folder: Path, vectors: Any, rows_per_shard: int) -> None:
    """None is a row that failed."""
    folder.mkdir(parents=True, exist_ok=True)
    width = next(len(each) for each in vectors if each is not None)
    for number, start in enumerate(range(0, len(vectors), rows_per_shard)):
        own = vectors[start : start + rows_per_shard]
        rows = range(start, start + len(own))
        columns = {"row": rows, "id": [f"0{row}" for row in rows], "smiles": ["C"] * len(own)}
        column = pa.array([None if each is None else list(each) for each in own], pa.list_(pa.float32(), width))
        pq.write_table(pa.table({**columns, "embedding": column}), shard_path(folder, number))


@given(
    seed=st.integers(0, 1000), rows=st.integers(1, 60), per_shard=st.integers(1, 25), top=st.integers(1, 70),
    block=st.sampled_from([1, 2**23]), levels=st.sampled_from([2, 1000]),
)  # fmt: skip
def test_they_are_those_of_the_plain_product(
    tmp_path_factory: pytest.TempPathFactory, seed: int, rows: int, per_shard: int, top: int, block: int, levels: int
) -> None:
    """With two levels many vectors are equal: the first in the library come first."""
    generator = np.random.default_rng(seed)
    vectors: list[Any] = list(generator.integers(levels, size=(rows, 3)) - levels / 2 + 0.5)
    failed = generator.random(rows) < 0.2
    failed[0] = False
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, [None if gone else each for gone, each in zip(failed, vectors, strict=True)], per_shard)
    queries = generator.normal(size=(4, 3)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_NUMBERS_AT_ONCE", block)
        found = nearest(folder, queries, top)
    expected = similarity(queries, np.stack(vectors))
    expected[:, failed] = -np.inf
    count = min(top, int((~failed).sum()))
    assert found.similarities.shape == (4, count)
    np.testing.assert_allclose(found.similarities, -np.sort(-expected, axis=1)[:, :count], rtol=1e-5, atol=1e-6)
    numbers = found.files * per_shard + found.rows
    for row, own in enumerate(numbers):
        assert len(set(own.tolist())) == count
        assert not failed[own].any()
        np.testing.assert_allclose(expected[row, own], found.similarities[row], rtol=1e-5, atol=1e-6)


def test_equal_vectors_come_in_the_order_of_the_library(tmp_path: Path) -> None:
    write_shards(tmp_path, [[1.0, 0.0]] * 7 + [[2.0, 0.0]] * 3, 4)
    found = nearest(tmp_path, [1.0, 0.0], 6)
    assert (found.files * 4 + found.rows).tolist() == [[0, 1, 2, 3, 4, 5]]


def test_twins_that_rounding_sets_apart_come_in_the_order_of_the_library(tmp_path: Path) -> None:
    nearly = [[0.7, 0.71], [0.7, 0.71 - 1e-7], [0.7, 0.71 + 1e-7], [0.1, 1.0]]
    write_shards(tmp_path, nearly, 2)
    for query in nearly[:3]:
        found = nearest(tmp_path, query, 3)
        assert (found.files * 2 + found.rows).tolist() == [[0, 1, 2]]


def test_similarity_by_hand() -> None:
    found = unimol2_hf.similarity([[3.0, 4.0], [0.0, 0.0]], [[4.0, 3.0], [-3.0, -4.0]])
    np.testing.assert_allclose(found, [[0.96, -1.0], [0.0, 0.0]], rtol=1e-6)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("neighbours")
    (folder / "library.csv").write_text("code,smiles\n" + "\n".join(f"00{n},{s}" for n, s in enumerate(SMILES)) + "\n")
    settings = EmbedSettings(id_column="code", rows_per_shard=3, num_workers=0, pooling="cls_mean")
    embed(folder / "library.csv", folder / "embedded", settings, QUIET)
    return folder / "embedded"


def test_a_smiles(library: Path) -> None:
    found = neighbours(library, "OCC", NeighbourSettings(top=3), QUIET)
    assert list(found.columns) == list(NEIGHBOUR_COLUMNS)
    assert found["row"].tolist()[:2] == [0, 7]
    assert found["id"].tolist()[:2] == ["000", "007"]
    assert found["similarity"].tolist()[0] == pytest.approx(1, abs=1e-4)
    assert found["similarity"].is_monotonic_decreasing
    assert found["rank"].tolist() == [1, 2, 3]


def test_a_file_and_a_folder_say_the_same(library: Path, tmp_path: Path) -> None:
    (tmp_path / "queries.smi").write_text("c1ccccc1O phenol\nnonsense bad\nCCN amine\n")
    of_file = neighbours(library, str(tmp_path / "queries.smi"), NeighbourSettings(top=2), QUIET)
    assert of_file["query_id"].tolist() == ["phenol", "phenol", "amine", "amine"]
    assert of_file["row"].tolist()[::2] == [3, 1]
    output = tmp_path / "found.csv"
    of_folder = neighbours(library, str(library), NeighbourSettings(top=1, output=str(output)), QUIET)
    # The row that failed has none, and the last is the first's twin.
    assert of_folder["row"].tolist() == [0, 1, 3, 4, 5, 6, 0]
    written = pd.read_csv(output, dtype={"id": str, "query_id": str})
    pd.testing.assert_frame_equal(written, of_folder, check_dtype=False)


def test_the_command(library: Path, tmp_path: Path) -> None:
    told = run_command("neighbours", str(library), "CCO", "--top", "2", "--output", str(tmp_path / "o.csv"))
    assert told.exit_code == 0, told.output
    assert len(pd.read_csv(tmp_path / "o.csv")) == 2
    assert "similarity" in run_command("neighbours", str(library), "CCO", "--top", "2").output


def test_what_cannot_be_searched_is_named(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = NeighbourSettings()
    with pytest.raises(LibraryError, match="holds no shards of embeddings"):
        neighbours(tmp_path, str(library), settings, QUIET)
    with pytest.raises(SmilesParseError):
        neighbours(library, "C1CC", settings, QUIET)
    with pytest.raises(TableError, match="does not exist"):
        neighbours(library, str(tmp_path / "missing.csv"), settings, QUIET)
    (tmp_path / "bad.smi").write_text("C1CC\n")
    with pytest.raises(TableError, match="no query has a vector"):
        neighbours(library, str(tmp_path / "bad.smi"), settings, QUIET)
    width = 2 * SCALES["nano"]["hidden_size"]
    with pytest.raises(LibraryError, match=f"holds vectors of {width} numbers, the query 2"):
        nearest(library, [1.0, 2.0])
    write_shards(tmp_path / "made", [[1.0, 2.0]], 1)
    with pytest.raises(LibraryError, match="does not say how it was embedded"):
        neighbours(tmp_path / "made", "CCO", settings, QUIET)
    (tmp_path / "made" / "part-000001.parquet").write_bytes(b"x")
    with pytest.raises(LibraryError, match=r"part-000001\.parquet is no shard of embeddings"):
        nearest(tmp_path / "made", [1.0, 2.0])
    monkeypatch.setattr("unimol2_hf.conformers.LADDER_VERSION", 99)
    with pytest.raises(OutputFolderError, match="ladder was"):
        neighbours(library, "CCO", settings, QUIET)
