"""Files of molecules: every row once and in order, whatever is in it; what no row can tell is a named error."""

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem
from rdkit.Chem import rdDepictor, rdDistGeom

from unimol2_hf import MoleculeError, OutputFolderError, TableError, UniMol2FeatureExtractor
from unimol2_hf.data.atomic_files import make_output_folder
from unimol2_hf.data.molecule_files import local_source, read_molecules
from unimol2_hf.data.molecule_rows import MoleculeRow


def rows_of(path: Path, **columns: str) -> list[MoleculeRow]:
    return list(read_molecules(path, **columns))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def error_of(row: MoleculeRow) -> str:
    assert isinstance(row.molecule, MoleculeError)
    return row.molecule.reason


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv(tmp_path: Path, delimiter: str) -> None:
    lines = ["name", "smiles", "x"], ["a", "CCO", "1"], ["b", "", ""], ["c", "C1CC", "2"]
    path = write(tmp_path / "library.csv", "\n".join(delimiter.join(line) for line in lines) + "\n")
    rows = rows_of(path, id_column="name")
    assert [(row.number, row.id, row.smiles) for row in rows] == [(0, "a", "CCO"), (1, "b", ""), (2, "c", "C1CC")]


def test_csv_rows_that_are_no_rows_keep_their_place(tmp_path: Path) -> None:
    path = write(tmp_path / "library.csv", 'smiles,name\nCCO,a\n\nC,b,c\n"C",d\nO\n\n,\n')
    rows = rows_of(path, id_column="name")
    assert [row.smiles for row in rows] == ["CCO", "", "C", "C", "O"]
    assert "3 cells, the header 2" in error_of(rows[2])
    assert "1 cells, the header 2" in error_of(rows[4])
    assert [row.id for row in rows] == ["a", "", "b", "d", ""]


def test_bytes_that_are_no_utf8_stay_visible(tmp_path: Path) -> None:
    path = tmp_path / "library.csv"
    path.write_bytes(b"\xef\xbb\xbfsmiles,name\nCCO,caf\xe9\n")
    assert rows_of(path, id_column="name")[0].id == "caf\\xe9"


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_compressed(tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"library.smi{suffix}"
    path.write_bytes(compress(b"CCO ethanol\nC\n"))
    assert [(row.smiles, row.id) for row in rows_of(path)] == [("CCO", "ethanol"), ("C", "")]


def test_a_file_that_breaks_off_is_an_error_after_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "library.smi.gz"
    path.write_bytes(gzip.compress(b"CCO\n" * 50_000)[:-20])
    stream = read_molecules(path)
    assert next(stream).smiles == "CCO"
    with pytest.raises(TableError, match="cannot be read to its end"):
        list(stream)


def test_smiles_file(tmp_path: Path) -> None:
    text = "smiles name\nCCO\tethyl alcohol\n\nC[C@H](N)O |&1:1| a name\n  N  \nnot a smiles\n\n\n"
    rows = rows_of(write(tmp_path / "library.smi", text))
    assert [row.smiles for row in rows] == ["CCO", "", "C[C@H](N)O |&1:1|", "N", "not"]
    assert [row.id for row in rows] == ["ethyl alcohol", "", "a name", "", "a smiles"]


@given(lines=st.lists(st.text(alphabet="CNO=()1 ", max_size=6), max_size=20))
def test_smiles_file_holds_every_line_but_the_empty_end(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    path = write(tmp_path_factory.mktemp("smi") / "library.smi", "\n".join(lines) + "\n")
    filled = [number for number, line in enumerate(lines) if line.strip()]
    expected = [line.split()[0] if line.strip() else "" for line in lines[: filled[-1] + 1 if filled else 0]]
    assert [row.smiles for row in rows_of(path)] == expected


def _record(smiles: str, name: str, embed: bool) -> str:
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    if embed:
        rdDistGeom.EmbedMolecule(molecule, randomSeed=1)
    else:
        rdDepictor.Compute2DCoords(molecule)
    molecule.SetProp("_Name", name)
    return f"{Chem.MolToMolBlock(molecule)}> <code>\nX-{name}\n\n$$$$\n"


def test_sdf(tmp_path: Path) -> None:
    text = _record("CCO", "one", True) + "broken\n\n\nnonsense\n$$$$\n" + _record("c1ccccc1O", "three", False)
    path = write(tmp_path / "library.sdf", text)
    rows = rows_of(path)
    assert [row.id for row in rows] == ["one", "broken", "three"]
    assert [row.smiles for row in rows] == ["CCO", "", "Oc1ccccc1"]
    assert "RDKit cannot read the record" in error_of(rows[1])
    assert isinstance(rows[0].molecule, Chem.Mol)
    assert isinstance(rows[2].molecule, Chem.Mol)
    assert rows[0].molecule.GetNumConformers() == 1
    assert not rows[2].molecule.GetConformer().Is3D()  # a drawing is no conformer, which the featurizer knows
    assert [row.id for row in rows_of(path, id_column="code")] == ["X-one", "", "X-three"]


def test_sdf_without_a_last_separator(tmp_path: Path) -> None:
    path = write(
        tmp_path / "library.sdf", _record("CCO", "one", True) + _record("CO", "two", True).removesuffix("$$$$\n")
    )
    assert [row.smiles for row in rows_of(path)] == ["CCO", "CO"]


def test_parquet_folder_in_the_order_of_its_names(tmp_path: Path) -> None:
    for name, smiles in (("b", ["N", None]), ("a", ["CCO", "O"])):
        pq.write_table(pa.table({"smiles": smiles, "id": [1, 2]}), tmp_path / f"{name}.parquet")
    rows = rows_of(tmp_path)
    assert [(row.number, row.id, row.smiles) for row in rows] == [
        (0, "1", "CCO"),
        (1, "2", "O"),
        (2, "1", "N"),
        (3, "2", ""),
    ]


def test_parquet_coordinates_are_used(tmp_path: Path, extractor: UniMol2FeatureExtractor) -> None:
    generated = next(extractor.featurize("CCO")).conformers[0].coordinates
    table = {"smiles": ["CCO", "CCO", "CC"], "coordinates": [generated.ravel(), [0.0, 1.0], None]}
    pq.write_table(pa.table(table), tmp_path / "library.parquet")
    rows = rows_of(tmp_path / "library.parquet")
    first, second, third = extractor.featurize([row.molecule for row in rows])
    assert np.abs(first.conformers[0].coordinates - generated).max() < 1e-6
    assert first.conformers[0].provenance.method == "given"
    assert second.error is not None
    assert "2 coordinates are no multiple of 3" in second.error.reason
    assert third.conformers[0].provenance.method == "etkdg"


def test_a_column_called_error_is_the_users_own(tmp_path: Path) -> None:
    pq.write_table(pa.table({"smiles": ["CCO"], "error": [0.3]}), tmp_path / "library.parquet")
    assert rows_of(tmp_path / "library.parquet")[0].molecule == "CCO"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("library.csv", "a,b\n1,2\n", "no column smiles; its columns are: a, b"),
        ("library.csv", "smiles,smiles\n1,2\n", "column smiles more than once"),
        ("library.csv", "", "no column smiles"),
        ("library.csv", "smiles\nC\n" + '"' + "C" * 1_100_000, "not closed"),
        ("library.doc", "x", "no known kind; use .csv"),
        ("library.parquet", "CCO\n", "no Parquet file"),
        ("library", "CCO\n", "no known kind"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        rows_of(write(tmp_path / name, text))


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="does not exist"):
        rows_of(tmp_path / "library.csv")
    with pytest.raises(TableError, match=r"without \.parquet files"):
        rows_of(tmp_path)


class TestElsewhere:
    """What fsspec can fetch; in memory here, since tests have no network."""

    def test_a_file_and_a_folder(self) -> None:
        files = fsspec.filesystem("memory")
        files.pipe("/bucket/library.smi", b"CCO a\nCCN b\n")
        found = local_source("memory://bucket/library.smi")
        assert found.name == "library.smi"
        assert [row.id for row in read_molecules(found)] == ["a", "b"]
        table = io.BytesIO()
        pq.write_table(pa.table({"smiles": ["CCO"]}), table)
        files.pipe("/bucket/folder/part-0.parquet", table.getvalue())
        assert [row.smiles for row in read_molecules(local_source("memory://bucket/folder"))] == ["CCO"]

    def test_what_lies_here_stays_where_it_is(self, tmp_path: Path) -> None:
        assert local_source(str(tmp_path / "a.csv")) == tmp_path / "a.csv"
        assert local_source("hf://datasets/org/name") == Path("hf://datasets/org/name")

    @pytest.mark.parametrize("place", ["memory://bucket/none.smi", "nonsense://a/b.csv"])
    def test_what_cannot_be_fetched(self, place: str) -> None:
        with pytest.raises(TableError, match=f"{place} cannot be fetched: .*; copy it here yourself"):
            local_source(place)

    def test_output_goes_here(self) -> None:
        with pytest.raises(OutputFolderError, match="is no folder of this machine; write here, and copy it there"):
            make_output_folder(Path("s3://bucket/out"))
