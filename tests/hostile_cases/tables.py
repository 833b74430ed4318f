"""The hostile table, what chemists' files hold: refused by name with a mend, or used with what was odd recorded.

A row is a name, what is done in an empty folder, the error's class and a part of its message (refused), or a check of
what `metrics.json` and the folder say (used).
"""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rdkit import Chem
from rich.console import Console

from unimol2_hf import OutputFolderError, SettingsError, TableError
from unimol2_hf.finetuning.finetune import finetune
from unimol2_hf.finetuning.prepare import ROWS_FILE
from unimol2_hf.finetuning.settings import FinetuneSettings
from unimol2_hf.jobs.predict import predict
from unimol2_hf.jobs.settings import PredictSettings

Call = Callable[[Path], Any]
QUIET = Console(quiet=True)
N = 20
SMILES = [f"{'C' * (1 + row)}O" for row in range(N)]
PARTS = ["train"] * 14 + ["valid"] * 3 + ["test"] * 3
Y = [float(row) for row in range(N)]


def tuned(data: Any, folder: Path, **settings: Any) -> dict[str, Any]:
    """The smallest fine-tuning that there is; its report."""
    small = {"targets": ("y",), "scale": "micro", "epochs": 1, "num_workers": 0, "split_method": "random"}
    featurizer = {"num_conformers": 0, "include_2d": True}
    return finetune(data, folder / "out", FinetuneSettings(**{**small, "featurizer": featurizer, **settings}), QUIET)


def frame(**columns: Any) -> Call:
    """Fine-tune on a table of molecules with these columns; what begins with `_` is a setting."""
    settings = {name[1:]: value for name, value in columns.items() if name.startswith("_")}
    table = pd.DataFrame({"smiles": SMILES, **{n: v for n, v in columns.items() if not n.startswith("_")}})
    return lambda folder: tuned(table, folder, **settings)


def file(name: str, content: str | bytes, **settings: Any) -> Call:
    def call(folder: Path) -> Any:
        path = folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return tuned(path, folder, **settings)

    return call


def lines(delimiter: str = ",", rows: int = N, header: str | None = None) -> str:
    cells = [delimiter.join((SMILES[row], str(Y[row]))) for row in range(rows)]
    return "\n".join([header or delimiter.join(("smiles", "y")), *cells]) + "\n"


def sdf(folder: Path, properties: bool) -> Path:
    with Chem.SDWriter(str(folder / "t.sdf")) as writer:
        for smiles, y in zip(SMILES, Y, strict=True):
            molecule = Chem.MolFromSmiles(smiles)
            if properties:
                molecule.SetProp("y", str(y))
            writer.write(molecule)
    return folder / "t.sdf"


def excel(folder: Path, **sheets: pd.DataFrame) -> Path:
    with pd.ExcelWriter(folder / "t.xlsx") as writer:
        for name, sheet in sheets.items():
            sheet.to_excel(writer, sheet_name=name, index=False)
    return folder / "t.xlsx"


def two_runs(**changes: Any) -> Call:
    def call(folder: Path) -> Any:
        table = pd.DataFrame({"smiles": SMILES, "y": Y, "z": Y[::-1]})
        tuned(table, folder)
        return tuned(changes.pop("table", table), folder, **changes)

    return call


def predicted(columns: dict[str, Any], settings: dict[str, Any], **of_training: Any) -> Call:
    def call(folder: Path) -> Any:
        tuned(pd.DataFrame({"smiles": SMILES, "y": Y, "ph": Y}), folder, batch_size=4, **of_training)
        chosen = PredictSettings(num_workers=0, **settings)
        return predict(str(folder / "out"), pd.DataFrame(columns), folder / "p.csv", chosen, QUIET)

    return call


MIXED = [str(row) if row % 3 else f">{row}" for row in range(N)]
# fmt: off
REFUSED_TABLES: list[tuple[str, Call, type[Exception], str]] = [
    # Labels.
    ("qualified numbers", frame(y=MIXED), TableError, r"7 of 20 labels of y are no finite numbers, e.g. '>0' in row 0"),
    ("numbers with units", frame(y=[f"{row} nM" for row in range(N)]), TableError, "write a number or leave the cell empty"),
    ("decimal commas", frame(y=[f"{row},5" for row in range(N)]), TableError, "write a decimal point for the decimal comma"),
    ("numbers with errors", frame(y=[f"{row} ± 0.1" for row in range(N)]), TableError, "no finite numbers"),
    ("inf", frame(y=[*Y[:-1], "inf"]), TableError, "e.g. 'inf' in row 19"),
    ("minus infinity", frame(y=[*Y[:-1], -np.inf]), TableError, "e.g. '-inf' in row 19"),
    ("beyond single precision", frame(y=[*Y[:-1], 1e39]), TableError, "no finite numbers"),
    ("a constant column", frame(y=[3.0] * N), TableError, "1 different labels in the training part"),
    ("nearly constant", frame(y=[1e6 + row * 1e-4 for row in range(N)]), TableError, "too little for single precision"),
    ("one class", frame(y=["active"] * N), TableError, "1 different labels"),
    ("one class in training", frame(y=["a"] * 14 + ["b"] * 6, part=PARTS, _split_column="part"), TableError, "1 different labels in the training part"),
    ("no label at all", frame(y=[None] * N), TableError, "no labelled row in the train part"),
    ("no label in the test part", frame(y=[*Y[:17], None, None, None], part=PARTS, _split_column="part"), TableError, "no labelled row in the test part"),
    ("a hundred names", frame(y=[f"class {row}" for row in range(N)], _tasks=("y=binary",)), TableError, "20 different labels .* at most 2 are binary"),
    ("an identifier as target", lambda p: tuned(pd.DataFrame({"smiles": [f"{'C' * (1 + n)}" for n in range(120)], "y": [f"id{n}" for n in range(120)]}), p), TableError, "120 different labels .*name another column"),
    ("an unknown kind", frame(y=Y, _tasks=("y=ordinal",)), SettingsError, "is not column=kind"),
    ("a kind without column", frame(y=Y, _tasks=("binary",)), SettingsError, "is not column=kind"),
    # Columns.
    ("no such target", frame(x=Y), TableError, "has no column y; it has: smiles, x"),
    ("the SMILES as target", frame(y=Y, _targets=("smiles",)), TableError, "target smiles clashes"),
    ("the split as target", frame(split=PARTS, _split_column="split", _targets=("split",)), TableError, "target split clashes"),
    ("a target twice", frame(y=Y, _targets=("y", "y")), TableError, "target y clashes"),
    ("a feature column without numbers", frame(y=Y, ph=["acid"] * N, _feature_columns=("ph",)), TableError, "column ph has no number"),
    ("a constant feature column", frame(y=Y, ph=[7.4] * N, _feature_columns=("ph",)), TableError, "column ph varies by 0"),
    ("a feature column that is not there", frame(y=Y, _feature_columns=("ph",)), TableError, "has no column ph"),
    ("negative weights", frame(y=Y, w=[*Y[:-1], -1], _weight_column="w"), TableError, "weight '-1.0' of row 19"),
    ("weights of zero", frame(y=Y, w=[0] * N, _weight_column="w"), TableError, "all weights in w are 0"),
    ("weights that are words", frame(y=Y, w=["high"] * N, _weight_column="w"), TableError, "column w has no number"),
    # Splits.
    ("an empty test part", frame(y=Y, part=["train"] * 15 + ["valid"] * 5, _split_column="part"), TableError, "no labelled row in the test part"),
    ("parts by other names", frame(y=Y, part=["A"] * N, _split_column="part"), TableError, "no labelled row in the train part"),
    ("no such split column", frame(y=Y, _split_column="fold"), TableError, "has no column fold"),
    ("one scaffold", lambda p: tuned(pd.DataFrame({"smiles": [f"c1ccccc1{'C' * n}" for n in range(N)], "y": Y}), p, split_method="scaffold"), TableError, "leave nothing to hold out; use the random split"),
    ("the same molecule in every row", lambda p: tuned(pd.DataFrame({"smiles": ["CCO"] * N, "y": Y}), p), TableError, "1 molecules are too few to split"),
    ("nine rows", lambda p: tuned(pd.DataFrame({"smiles": SMILES[:9], "y": Y[:9]}), p), TableError, "9 molecules are too few to split"),
    ("split by words", frame(y=Y, batch=["first"] * N, _split_by="batch"), TableError, "needs numbers or dates"),
    ("two ways to split", frame(y=Y, part=PARTS, _split_by="y", _split_column="part"), SettingsError, "three ways to split"),
    ("two folds", frame(y=Y, _split_folds=2), SettingsError, "use 3 or more folds"),
    ("a fold that is not there", frame(y=Y, _split_folds=5, _split_fold=5), SettingsError, "fold 5 of 5 folds"),
    ("a split file that is not there", frame(y=Y, _split_file="none.csv"), TableError, "none.csv does not exist"),
    # Files.
    ("no file", lambda p: tuned(p / "none.csv", p), TableError, "does not exist"),
    ("an empty file", file("t.csv", ""), TableError, "no column smiles"),
    ("a header alone", file("t.csv", "smiles,y\n"), TableError, "the table has no rows"),
    ("another delimiter", file("t.csv", lines("|")), TableError, r"no column smiles; its columns are: smiles\|y"),
    ("blanks as delimiter", file("t.csv", lines(" ")), TableError, "no column smiles"),
    ("no header", file("t.csv", "\n".join(lines().splitlines()[1:])), TableError, "no column smiles"),
    ("a column twice", file("t.csv", lines(header="smiles,y,y")), TableError, "column .y. more than once"),
    ("an Excel file that is none", file("t.xlsx", "smiles,y\n"), TableError, "is no Excel file that can be read"),
    ("an Excel file cut off", lambda p: tuned(_cut(excel(p, a=pd.DataFrame({"smiles": SMILES, "y": Y}))), p), TableError, "is no Excel file that can be read"),
    ("an Excel file of the old kind", file("t.xls", b"\xd0\xcf\x11\xe0"), TableError, "save it as .xlsx"),
    ("the table on the second sheet", lambda p: tuned(excel(p, notes=pd.DataFrame({"note": ["see b"]}), b=pd.DataFrame({"smiles": SMILES})), p), TableError, "no column smiles; its columns are: note"),
    ("gzip cut off", file("t.csv.gz", gzip.compress(lines().encode())[:-12]), TableError, "cannot be read to its end"),
    ("an SDF without properties", lambda p: tuned(sdf(p, properties=False), p), TableError, "has no column y; it has: smiles, id"),
    ("an SDF of nothing", file("t.sdf", ""), TableError, "no column y"),
    ("an unknown kind of file", file("t.docx", "x"), TableError, "no known kind"),
    ("an open quote", file("t.csv", 'smiles,y\n"CCO,1\n' + "C,2\n" * 400_000), TableError, "a quote that is not closed"),
    ("every molecule unreadable", lambda p: tuned(pd.DataFrame({"smiles": ["C1CC"] * N, "y": Y}), p), TableError, "no usable molecule is left"),
    # Runs.
    ("two runs in one folder", two_runs(targets=("z",)), OutputFolderError, "holds the output of another job .*targets"),
    ("another table in one folder", two_runs(table=pd.DataFrame({"smiles": SMILES, "y": [*Y[:-1], 0.5], "z": Y})), OutputFolderError, "holds the output of another job .*data"),
    ("another seed in one folder", two_runs(seed=1), OutputFolderError, "another job .*seed"),
    ("a column of predictions is there", predicted({"smiles": ["C"], "predicted_y": [1]}, {}), TableError, "predicted_y; rename"),
    ("features that prediction lacks", predicted({"smiles": ["C"]}, {}, feature_columns=("ph",)), TableError, "has no column ph"),
    ("another column of SMILES", predicted({"SMILES": ["C"]}, {}), TableError, "no column smiles; its columns are: SMILES"),
]


def _cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:2000])
    return path


def rows_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "out" / ROWS_FILE)


Check = Callable[[dict[str, Any], Path], bool]
USED_TABLES: list[tuple[str, Call, Check]] = [
    ("ten rows", lambda p: tuned(pd.DataFrame({"smiles": SMILES[:10], "y": Y[:10]}), p), lambda r, _: r["rows"]["train"] == 8),
    ("700 targets", lambda p: tuned(pd.DataFrame({"smiles": SMILES, **{f"t{n}": np.roll(Y, n) for n in range(700)}}), p, targets=tuple(f"t{n}" for n in range(700))), lambda r, _: len(r["test"]) == 700),
    ("labels of -1", frame(y=[-1.0, 1.0] * 10), lambda r, _: r["test"]["y"]["count"] == 2 and "roc_auc" in r["test"]["y"]),
    ("numbers with a few words", frame(y=[*Y[:-1], "n/d"]), lambda _, p: "label 'n/d' of y is no number" in rows_of(p)["note"][19]),
    ("True and False", frame(y=[True, False] * 10), lambda r, _: "roc_auc" in r["test"]["y"]),
    ("one class in the test part", frame(y=["a", "b"] * 7 + ["a"] * 6, part=PARTS, _split_column="part"), lambda r, _: r["test"]["y"]["roc_auc"] is None),
    ("semicolons and a mark", file("t.csv", b"\xef\xbb\xbf" + lines(";").encode()), lambda r, _: r["rows"]["all"] == N),
    ("an SDF with properties", lambda p: tuned(sdf(p, properties=True), p), lambda r, _: r["rows"]["all"] == N),
    ("one line with a comma too many", file("t.csv", lines() + "CCCCN,1,5\n"), lambda r, p: r["rows"]["failed"] == 1 and "3 cells, the header 2" in rows_of(p)["error"][20]),
    ("one molecule in three spellings", lambda p: tuned(pd.DataFrame({"smiles": [*SMILES, "OCC", "[CH3:1][CH2:2][OH:3]"], "y": [*Y, 1.0, 1.0]}), p), lambda _, p: len(set(rows_of(p)["split"][[1, 20, 21]])) == 1),
    ("a training molecule in the test part", lambda p: tuned(pd.DataFrame({"smiles": [*SMILES, "OC"], "y": [*Y, 0.0], "part": [*PARTS, "test"]}), p, split_column="part"), lambda r, p: r["rows"]["train"] == 13 and "in the test part: row unused" in rows_of(p)["note"][0]),
    ("the same run again", two_runs(), lambda r, _: r["rows"]["all"] == N),
]
# fmt: on
