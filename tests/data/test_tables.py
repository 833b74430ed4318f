"""One reader for all commands: every dialect gives the same rows, and no row is lost."""

import gzip
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from unimol2_hf import MoleculeError, TableError, UniMol2FeatureExtractor
from unimol2_hf.data.molecule_files import read_molecules
from unimol2_hf.data.output_folder import fingerprint_of_source
from unimol2_hf.data.tables import read_table

ROWS = [("CCO", "1.5", "a"), ("c1ccccc1", "", "b µM"), ("C1CC", "2", "")]
HEADER = ("smiles", "y", "note")


def delimited(delimiter: str, line_end: str = "\n") -> str:
    return line_end.join(delimiter.join(row) for row in (HEADER, *ROWS)) + line_end


def excel(path: Path) -> None:
    pd.DataFrame(ROWS, columns=list(HEADER)).to_excel(path, index=False)


def sdf(path: Path) -> None:
    """The third molecule cannot be written."""
    with Chem.SDWriter(str(path)) as writer:
        for smiles, y, note in ROWS[:2]:
            molecule = Chem.MolFromSmiles(smiles)
            molecule.SetProp("y", y)
            molecule.SetProp("note", note)
            writer.write(molecule)


DIALECTS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "comma": (".csv", lambda p: p.write_text(delimited(","))),
    "semicolon": (".csv", lambda p: p.write_text(delimited(";"))),
    "tab": (".tsv", lambda p: p.write_text(delimited("\t"))),
    "tab called txt": (".txt", lambda p: p.write_text(delimited("\t"))),
    "byte order mark and CRLF": (".csv", lambda p: p.write_bytes(delimited(",", "\r\n").encode("utf-8-sig"))),
    "latin-1": (".csv", lambda p: p.write_bytes(delimited(",").encode("latin-1"))),
    "UTF-16": (".csv", lambda p: p.write_bytes(delimited("\t").encode("utf-16"))),
    "gzip": (".csv.gz", lambda p: p.write_bytes(gzip.compress(delimited(";").encode()))),
    "Excel": (".xlsx", excel),
    "Parquet": (".parquet", lambda p: pd.DataFrame(ROWS, columns=list(HEADER)).to_parquet(p)),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_gives_the_same_table(tmp_path: Path, dialect: str) -> None:
    suffix, write = DIALECTS[dialect]
    path = tmp_path / f"table{suffix}"
    write(path)
    table = read_table(path)
    assert table.cells.columns.tolist() == list(HEADER)
    assert table.cells.to_numpy().tolist() == [list(row) for row in ROWS]
    assert table.smiles == [row[0] for row in ROWS]
    assert table.molecules == [row[0] for row in ROWS]


def test_tables_of_python() -> None:
    frame = pd.DataFrame(ROWS, columns=list(HEADER), index=[5, 3, 9])
    for source in (frame, Dataset.from_pandas(frame, preserve_index=False)):
        assert read_table(source).cells.to_numpy().tolist() == [list(row) for row in ROWS]
    assert fingerprint_of_source(frame) == fingerprint_of_source(Dataset.from_pandas(frame, preserve_index=False))
    assert fingerprint_of_source(frame) != fingerprint_of_source(frame.assign(y="0"))


def test_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network: `datasets` takes a folder of the same name for it."""
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "train.csv").write_text(delimited(","))
    monkeypatch.chdir(tmp_path)
    table = read_table(Path("hf://datasets/org/name"))
    assert table.smiles == [row[0] for row in ROWS]
    assert table.cells["y"].tolist() == ["1.5", "", "2.0"]
    assert [row.smiles for row in read_molecules(Path("hf://datasets/org/name"))] == table.smiles


def test_numbers_and_dates_are_texts_that_say_the_same() -> None:
    frame = pd.DataFrame(
        {
            "smiles": ["C", "CC"],
            "n": [1, None],
            "x": [0.1, np.nan],
            "ok": [True, False],
            "when": pd.Timestamp("2020-01-02"),
        }
    )
    cells = read_table(frame).cells
    assert cells.to_numpy().tolist()[0] == ["C", "1.0", "0.1", "True", "2020-01-02 00:00:00"]
    assert cells.to_numpy().tolist()[1][1:3] == ["", ""]


def test_an_sdf_is_a_table_of_its_properties(tmp_path: Path) -> None:
    sdf(tmp_path / "t.sdf")
    table = read_table(tmp_path / "t.sdf")
    assert table.cells[["smiles", "y", "note"]].to_numpy().tolist() == [list(row) for row in ROWS[:2]]
    assert all(isinstance(molecule, Chem.Mol) for molecule in table.molecules)


def test_records_of_an_sdf_may_have_properties_of_their_own(tmp_path: Path) -> None:
    with Chem.SDWriter(str(tmp_path / "t.sdf")) as writer:
        for name in ("a", "b"):
            molecule = Chem.MolFromSmiles("CCO")
            molecule.SetProp(name, "1")
            writer.write(molecule)
    assert read_table(tmp_path / "t.sdf").cells[["a", "b"]].to_numpy().tolist() == [["1", ""], ["", "1"]]


def test_one_line_with_a_comma_too_many_is_one_failed_row(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("smiles,y\nCC,1\nCCC,1,5\nC,2,\n")
    table = read_table(tmp_path / "t.csv")
    assert isinstance(table.molecules[1], MoleculeError)
    assert "3 cells, the header 2" in table.molecules[1].reason
    assert table.molecules[::2] == ["CC", "C"]  # an empty cell at the end is none
    assert table.cells["smiles"].tolist() == ["CC", "CCC", "C"]


def test_cells_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("smiles,id\nCCO,NA\n,\nC,007\n\n\n")
    assert read_table(tmp_path / "t.csv").cells.to_numpy().tolist() == [["CCO", "NA"], ["", ""], ["C", "007"]]


class TestGeometries:
    """Atoms and coordinates, hydrogens included, in an order that is not the SMILES'."""

    @pytest.fixture(scope="class")
    def frame(self) -> pd.DataFrame:
        rows = []
        for smiles in ("C[C@H](N)O", "c1ccncc1C=O"):
            molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
            rdDistGeom.EmbedMolecule(molecule, randomSeed=3)
            order = np.random.default_rng(0).permutation(molecule.GetNumAtoms()).tolist()
            shuffled = Chem.RenumberAtoms(molecule, order)
            symbols = [atom.GetSymbol() for atom in shuffled.GetAtoms()]
            positions = shuffled.GetConformer().GetPositions().ravel().tolist()
            rows.append({"smiles": smiles, "atoms": symbols, "coordinates": positions})
        return pd.DataFrame(rows)

    def test_with_bonds_from_the_smiles(self, frame: pd.DataFrame, extractor: UniMol2FeatureExtractor) -> None:
        made = list(extractor.featurize(read_table(frame).molecules))
        for row, result in zip(frame.itertuples(), made, strict=True):
            assert result.error is None
            assert result.has_graph_features
            assert result.conformers[0].provenance.method == "given"
            # Bonded atoms lie at the distance of a bond, so each position belongs to its atom.
            positions = result.conformers[0].coordinates
            for bond in Chem.MolFromSmiles(str(row.smiles)).GetBonds():
                length = np.linalg.norm(positions[bond.GetBeginAtomIdx()] - positions[bond.GetEndAtomIdx()])
                assert 1.1 < length < 1.7
            graph = next(extractor.featurize(str(row.smiles)))
            assert graph.features is not None
            assert result.features is not None
            np.testing.assert_array_equal(graph.features["input_ids"], result.features["input_ids"])
            np.testing.assert_array_equal(graph.features["atom_features"], result.features["atom_features"])

    def test_without(self, frame: pd.DataFrame, extractor: UniMol2FeatureExtractor) -> None:
        molecules = read_table(frame).molecules
        for result in extractor.featurize(molecules, use_graph_features=False):
            assert result.error is None
            assert not result.has_graph_features
        alone = read_table(frame.drop(columns="smiles"))
        assert alone.smiles == ["", ""]
        assert [result.has_graph_features for result in extractor.featurize(alone.molecules)] == [False, False]

    def test_another_molecules_geometry(self, frame: pd.DataFrame, extractor: UniMol2FeatureExtractor) -> None:
        molecules = read_table(frame.assign(smiles=["C[C@H](O)F", "c1ccncc1C=O"])).molecules
        first, second = extractor.featurize(molecules)
        assert first.error is not None
        assert "the geometry's bonds are not those of the SMILES" in first.error.reason
        assert second.error is None

    def test_stereo_is_the_geometrys(self, frame: pd.DataFrame, extractor: UniMol2FeatureExtractor) -> None:
        mirrored = frame.assign(smiles=["C[C@@H](N)O", "c1ccncc1C=O"])
        ours, theirs = (next(extractor.featurize(read_table(each).molecules[:1])) for each in (frame, mirrored))
        assert ours.features is not None
        assert theirs.features is not None
        np.testing.assert_array_equal(ours.features["atom_features"], theirs.features["atom_features"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "smiles,y,y\nCCO,1,2\n", "column 'y' more than once"),
        ("t.csv", "SMILES,y\nCCO,1\n", "no column smiles; its columns are: SMILES, y"),
        ("t.csv", "smiles|y\nCCO|1\n", r"no column smiles; its columns are: smiles\|y"),
        ("t.csv", "", "no column smiles"),
        ("t.xls", "x", "old kind; save it as .xlsx"),
        ("t.xlsx", "no zip", "is no Excel file that can be read"),
        ("t.docx", "x", "no known kind; use .csv"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(TableError, match=message):
        read_table(tmp_path / name)


def test_excel_without_openpyxl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    excel(tmp_path / "t.xlsx")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(TableError, match=r'needs openpyxl; pip install "unimol2-hf\[excel\]", or save it as CSV'):
        read_table(tmp_path / "t.xlsx")


def test_a_frame_with_a_column_twice() -> None:
    with pytest.raises(TableError, match="the table has the column 'y' more than once; rename one"):
        read_table(pd.DataFrame([["C", 1, 2]], columns=["smiles", "y", "y"]))


def test_what_is_no_table_of_python() -> None:
    with pytest.raises(TableError, match="a list is no table; give a path, a DataFrame or a Dataset"):
        read_table(["CCO"])


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(TableError, match="is a pipe or a device, which can be read only once; save it to a file"):
        read_table(tmp_path / "t.csv")
