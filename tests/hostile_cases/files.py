"""The hostile table, files of molecules: what is wrong with all of a file is one error, all else is rows.

A row is a name, what is put into an empty folder, and a part of the error's message, or a check of the rows with all
their columns, as `predict` reads them.
"""

import bz2
import gzip
import lzma
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from unimol2_hf import MoleculeError
from unimol2_hf.data.molecule_files import open_rows
from unimol2_hf.data.molecule_rows import Columns, MoleculeRow

Put = Callable[[Path], Path]
Rows = list[MoleculeRow]


def file(name: str, content: str | bytes) -> Put:
    def put(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return put


def parquet(name: str = "t.parquet", **columns: Any) -> Put:
    def put(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
        return folder / name.split("/", 1)[0]

    return put


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "t.csv")
    return folder / "t.csv"


def empty_folder(folder: Path) -> Path:
    (folder / "t").mkdir()
    return folder / "t"


def cut(name: str, content: bytes, left: int) -> Put:
    return file(name, content[:-left])


def record(smiles: str = "CCO", name: str = "a", items: str = "> <code>\nX-1\n\n", v3000: bool = False) -> str:
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    rdDistGeom.EmbedMolecule(molecule, randomSeed=1)
    molecule.SetProp("_Name", name)
    return f"{Chem.MolToMolBlock(molecule, forceV3000=v3000)}{items}$$$$\n"


def read(path: Path, **columns: Any) -> tuple[list[str], Rows]:
    """Names of the columns, and rows."""
    fields, rows = open_rows(path, Columns(cells=True, **columns))
    return [each.name for each in fields], list(rows)


def told(row: MoleculeRow) -> str:
    return str(row.molecule) if isinstance(row.molecule, MoleculeError) else ""


def smiles(rows: Rows) -> list[str]:
    return [row.smiles for row in rows]


def column(rows: Rows, name: str) -> list[Any]:
    return [row.cells.get(name) for row in rows]


LIBRARY = "smiles,id\nCCO,001\nCCN,002\n"
PARQUET = b"PAR1" + bytes(40)
# fmt: off
REFUSED_FILES: list[tuple[str, Put, dict[str, Any], str]] = [
    ("commas in a .smi", file("t.smi", "CCO,S1,46.1\nCCN,S2,45.1\n"), {}, r"begins with 'CCO,S1,46.1': columns .* by blanks or tabs; name it \.csv"),
    ("semicolons in a .smi", file("t.smi", "CCO;S1\n"), {}, r"name it \.csv"),
    ("a header with commas in a .smi", file("t.smi", "smiles,id\nCCO,S1\n"), {}, r"begins with 'smiles,id'"),
    ("commas in a .smi.gz", file("t.smi.gz", gzip.compress(b"CCO,S1\n")), {}, r"name it \.csv"),
    ("a zip called csv", file("t.csv", b"PK\x03\x04" + bytes(60)), {}, "is a zip archive; unpack it"),
    ("a zip called smi", file("t.smi", b"PK\x03\x04" + bytes(60)), {}, "is a zip archive"),
    ("a zip called sdf", file("t.sdf", b"PK\x03\x04" + bytes(60)), {}, "is a zip archive"),
    ("a kind that nobody reads", file("t.mol2", "@<TRIPOS>MOLECULE\n"), {}, "of no known kind"),
    ("no suffix", file("library", LIBRARY), {}, "of no known kind"),
    ("gz cut off", cut("t.csv.gz", gzip.compress(LIBRARY.encode() * 999), 9), {}, "cannot be read to its end"),
    ("an SDF's gz cut off", cut("t.sdf.gz", gzip.compress(record().encode() * 99), 20), {}, "cannot be read to its end"),
    ("bz2 cut off", cut("t.csv.bz2", bz2.compress(LIBRARY.encode() * 999), 9), {}, "cannot be read to its end"),
    ("xz cut off", cut("t.smi.xz", lzma.compress(b"CCO\n" * 999), 20), {}, "cannot be read to its end"),
    ("gz of rubbish", file("t.smi.gz", b"\x1f\x8b" + bytes(range(40))), {}, "cannot be read to its end"),
    ("a header in other letters", file("t.csv", "SMILES,id\nCCO,1\n"), {}, "no column smiles; its columns are: SMILES, id"),
    ("the column of SMILES twice", file("t.csv", "smiles,smiles\nCCO,C\n"), {}, "the column smiles more than once"),
    ("another column twice", file("t.csv", "smiles,y,y\nCCO,1,2\n"), {}, "the column 'y' more than once; rename one"),
    ("columns without names", file("t.csv", "smiles,id,,\nCCO,1,,\n"), {}, "the column '' more than once"),
    ("a quote that is never closed", file("t.csv", 'smiles\n"CCO\n' + "C\n" * 600_000), {}, "a quote that is not closed"),
    ("the page of an error instead of the file", file("t.csv", "<!DOCTYPE html>\n<html><title>404</title></html>\n"), {}, "no column smiles"),
    ("UTF-16 without its mark", file("t.csv", LIBRARY.encode("utf-16-le")), {}, "no column smiles"),
    ("no Parquet file", file("t.parquet", LIBRARY), {}, "is no Parquet file"),
    ("a Parquet file cut off", file("t.parquet", PARQUET), {}, "is no Parquet file"),
    ("numbers where SMILES should be", parquet(smiles=[1, 2]), {}, r"the column smiles of .* is of type int64; give the one that has SMILES"),
    ("lists where SMILES should be", parquet(smiles=[["CCO"]]), {}, "is of type list"),
    ("Parquet without SMILES", parquet(structure=["CCO"]), {}, "no column smiles; its columns are: structure"),
    ("a folder of partitions", parquet("lib/part=a/0.parquet", smiles=["CCO"]), {}, r"without \.parquet files; its sub-folders have some: give one, such as .*part=a"),
    ("a folder of nothing", empty_folder, {}, r"is a folder without \.parquet files"),
    ("no file", lambda folder: folder / "none.smi", {}, "does not exist"),
    ("a pipe", pipe, {}, "is a pipe or a device, which can be read only once; save it to a file"),
    ("standard input", lambda _: Path("-"), {}, "is a pipe or a device"),
    ("an id column that a .smi lacks", file("t.smi", "smiles\tname\nCCO\ta\n"), {"id": "code"}, "has no column code: its columns are: smiles, name"),
    ("an id column without a header", file("t.smi", "CCO a\n"), {"id": "code"}, "has no column code: it has no header, and what follows is the id"),
    ("numbers to keep without a header", file("t.smi", "CCO\ta\t1\n"), {"kept": ("y",)}, "has no column y: it has no header"),
    ("a .smi's column twice", file("t.smi", "smiles\tid\tid\nCCO\ta\tb\n"), {}, "the column 'id' more than once"),
    ("an Excel file that is none", file("t.xlsx", LIBRARY), {}, "is no Excel file that can be read"),
    ("an Excel file of the old kind", file("t.xls", b"\xd0\xcf\x11\xe0"), {}, r"save it as \.xlsx"),
]

Check = Callable[[Sequence[str], Rows], bool]
READ_FILES: list[tuple[str, Put, dict[str, Any], Check]] = [
    ("a mark and line ends of Windows", file("t.csv", b"\xef\xbb\xbf" + LIBRARY.replace("\n", "\r\n").encode()), {"id": "id"}, lambda n, r: n == ["smiles", "id"] and [x.id for x in r] == ["001", "002"]),
    ("UTF-16", file("t.csv", LIBRARY.encode("utf-16")), {}, lambda _, r: smiles(r) == ["CCO", "CCN"]),
    ("line ends of old Macs", file("t.csv", LIBRARY.replace("\n", "\r")), {}, lambda _, r: smiles(r) == ["CCO", "CCN"]),
    ("mixed line ends", file("t.csv", "smiles,id\r\nCCO,1\nCCN,2\rCC,3\r\n"), {}, lambda _, r: smiles(r) == ["CCO", "CCN", "CC"]),
    ("an id in Latin-1", file("t.csv", b"smiles,id\nCCO,caf\xe9\n"), {}, lambda _, r: column(r, "id") == ["caf\xe9"]),
    ("an id in no encoding", file("t.csv", b"\xef\xbb\xbfsmiles,id\nCCO,caf\xe9\n"), {}, lambda _, r: column(r, "id") == ["caf\\xe9"]),
    ("tabs in a .txt", file("t.txt", "id\tsmiles\n01\tCCO\n"), {}, lambda _, r: column(r, "id") == ["01"]),
    ("semicolons and decimal commas", file("t.csv", "smiles;y\nCCO;1,5\n"), {}, lambda _, r: column(r, "y") == ["1,5"]),
    ("a line end inside a cell", file("t.csv", 'smiles,note\nCCO,"two\nlines"\nCCN,x\n'), {}, lambda _, r: column(r, "note") == ["two\nlines", "x"]),
    ("a cell too many", file("t.csv", "smiles,id\nCCO,1,2\nCCN,3\n"), {}, lambda _, r: "3 cells, the header 2" in told(r[0]) and not told(r[1])),
    ("a cell too few", file("t.csv", "smiles,id\nCCO\nCCN,3\n"), {}, lambda _, r: "1 cells, the header 2" in told(r[0]) and smiles(r) == ["CCO", "CCN"]),
    ("empty lines between rows", file("t.csv", "smiles,id\n\nCCO,1\n\n\n"), {}, lambda _, r: smiles(r) == ["", "CCO"]),
    ("a file of a header alone", file("t.csv", "smiles,id\n"), {}, lambda n, r: n == ["smiles", "id"] and not r),
    ("gz that does not say so", file("t.smi", gzip.compress(b"CCO a\nCCN b\n")), {}, lambda _, r: column(r, "id") == ["a", "b"]),
    ("bz2 that says gz", file("t.csv.gz", bz2.compress(LIBRARY.encode())), {}, lambda _, r: smiles(r) == ["CCO", "CCN"]),
    ("a plain file that says gz", file("t.csv.gz", LIBRARY), {}, lambda _, r: smiles(r) == ["CCO", "CCN"]),
    ("a header Structure ID", file("t.smi", "Structure ID\nCCO 01\n"), {}, lambda n, r: n == ["Structure", "ID"] and r[0].id == "01"),
    ("a header isosmiles id", file("t.smi", "isosmiles id\nCCO 01\n"), {}, lambda _, r: smiles(r) == ["CCO"]),
    ("a header #SMILES ID", file("t.smi", "#SMILES ID\nCCO 01\n"), {}, lambda n, r: n == ["SMILES", "ID"] and r[0].number == 0),
    ("a header molecule_smiles id", file("t.smi", "molecule_smiles id\nCCO 01\n"), {}, lambda _, r: smiles(r) == ["CCO"]),
    ("a .smi with columns", file("t.smi", "smiles\tidnumber\tMW\nCCO\tS1 a\t46.1\nCCN\t02\t\n"), {"id": "idnumber"}, lambda n, r: n == ["smiles", "idnumber", "MW"] and [x.id for x in r] == ["S1 a", "02"] and column(r, "MW") == ["46.1", ""]),
    ("columns by blanks", file("t.smi", "smiles id MW\nCCO S1 46.1\n"), {}, lambda _, r: column(r, "MW") == ["46.1"] and r[0].id == "S1"),
    ("tabs without a header", file("t.smi", "CCO\tS1\t46.07\nCCN\tS2\t45.08\n"), {}, lambda n, r: n == ["smiles", "id", "column_3"] and r[1].cells == {"smiles": "CCN", "id": "S2", "column_3": "45.08"}),
    ("CXSMILES and columns", file("t.cxsmiles", "smiles\tid\nC[C@H](O)F |&1:1|\tS1\n"), {}, lambda _, r: smiles(r) == ["C[C@H](O)F |&1:1|"] and r[0].id == "S1"),
    ("CXSMILES with commas inside", file("t.smi", "C[C@H](O)CN |&1:1,r,(1,2,;)| a name\n"), {}, lambda _, r: r[0].id == "a name"),
    ("numbers to keep of a .smi", file("t.smi", "smiles\tid\ty\nCCO\ta\t1.5\nCC\tb\tx\n"), {"kept": ("y",)}, lambda _, r: r[0].kept["y"].tolist() == [1.5] and "is no number" in told(r[1])),
    ("a tab too many", file("t.smi", "smiles\tid\nCCO\ta\tb\nCCN\tc\n"), {}, lambda _, r: "3 cells, the first line 2" in told(r[0]) and not told(r[1])),
    ("a name with blanks", file("t.smi", "CCO ethyl alcohol, 95 %\n"), {}, lambda _, r: r[0].id == "ethyl alcohol, 95 %"),
    ("blanks in the lines that end data items", file("t.sdf", record(items="> <EXT_ID>\n0000038266\n \n> <COMMENT>\nNatural\n \n")), {"id": "EXT_ID"}, lambda _, r: r[0].id == "0000038266" and column(r, "COMMENT") == ["Natural"]),
    ("a tab in such a line", file("t.sdf", record(items="> <id>\na-1\n\t\n> <y>\n2\n\n")), {"id": "id"}, lambda _, r: r[0].id == "a-1" and column(r, "y") == ["2"]),
    ("data items without lines between", file("t.sdf", record(items="> <id>\na-1\n> <y>\n2\n\n")), {"id": "id"}, lambda _, r: r[0].id == "a-1" and column(r, "y") == ["2"]),
    ("a data item without a name", file("t.sdf", record(items=">  <>  (1)\n2\n\n>  <EXT_ID>  (1)\na-1\n\n")), {"id": "EXT_ID"}, lambda _, r: r[0].id == "a-1" and column(r, "unnamed") == ["2"]),
    ("a data item of two lines", file("t.sdf", record(items="> <note>\none\ntwo\n\n")), {}, lambda _, r: column(r, "note") == ["one\ntwo"]),
    ("records with other items", file("t.sdf", record(items="> <a>\n1\n\n") + record(items="> <b>\n2\n\n")), {}, lambda n, r: n == ["smiles", "id", "a", "b"] and column(r, "b") == [None, "2"]),
    ("an id that a record lacks", file("t.sdf", record() + record(name="b", items="")), {"id": "code"}, lambda _, r: [x.id for x in r] == ["X-1", ""]),
    ("V3000", file("t.sdf", record(v3000=True)), {}, lambda _, r: smiles(r) == ["CCO"] and column(r, "code") == ["X-1"]),
    ("V2000 and V3000, gz", file("t.sdf.gz", gzip.compress((record() + record("CCN", v3000=True)).encode())), {}, lambda _, r: smiles(r) == ["CCO", "CCN"]),
    ("line ends of Windows in an SDF", file("t.sdf", (record() + record("CCN")).replace("\n", "\r\n")), {}, lambda _, r: smiles(r) == ["CCO", "CCN"] and column(r, "code") == ["X-1", "X-1"]),
    ("no last $$$$", file("t.sdf", record() + record("CCN").removesuffix("$$$$\n")), {}, lambda _, r: smiles(r) == ["CCO", "CCN"]),
    ("an empty record", file("t.sdf", record() + "$$$$\n" + record("CCN")), {}, lambda _, r: smiles(r) == ["CCO", "", "CCN"] and "RDKit cannot read" in told(r[1])),
    ("a record that is rubbish", file("t.sdf", record() + "x\ny\n\nz\n> <code>\nkept\n\n$$$$\n" + record("CCN")), {}, lambda _, r: column(r, "code") == ["X-1", "kept", "X-1"] and bool(told(r[1]))),
    ("a record of no atoms", file("t.sdf", record() + "none\n\n\n  0  0  0  0  0  0  0  0  0  0999 V2000\nM  END\n$$$$\n"), {}, lambda _, r: len(r) == 2 and smiles(r)[1] == ""),
    ("a title in Latin-1", file("t.sdf", record(name="caf\xe9").encode("latin-1")), {}, lambda _, r: r[0].id == "caf\xe9"),
    ("SMILES as bytes", parquet(smiles=pa.array([b"CCO", b"\xff"], pa.binary())), {}, lambda _, r: smiles(r) == ["CCO", "\\xff"]),
    ("SMILES as large text", parquet(smiles=pa.array(["CCO"], pa.large_string())), {}, lambda _, r: smiles(r) == ["CCO"]),
    ("SMILES in a dictionary", parquet(smiles=pa.array(["CCO", "CCO"]).dictionary_encode()), {}, lambda _, r: smiles(r) == ["CCO", "CCO"]),
    ("no SMILES at all", parquet(smiles=pa.nulls(2)), {}, lambda _, r: smiles(r) == ["", ""]),
    ("numbers that are ids", parquet(smiles=["CCO"], id=[7]), {}, lambda _, r: r[0].id == "7" and column(r, "id") == [7]),
    ("an empty .smi", file("t.smi", ""), {}, lambda n, r: n == ["smiles", "id"] and not r),
]
# fmt: on
