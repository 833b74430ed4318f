"""Every row of the hostile table: a named error with a mend, or a sound result; no crash, no silent nonsense.

The rows are in `hostile_cases/`; whoever mends a fault of this kind adds its row there.
"""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from command_line import run_command
from hostile_cases.calls import COMMANDS, ROWS, Call
from hostile_cases.files import READ_FILES, REFUSED_FILES, Put, read
from hostile_cases.heads import REFUSED_HEADS, USED_HEADS
from hostile_cases.hub import HUB_ROWS
from hostile_cases.molecules import ACCEPTED, REFUSED
from hostile_cases.tables import REFUSED_TABLES, USED_TABLES, Check
from rdkit import Chem

from unimol2_hf import (
    MoleculeError,
    MoleculeTooLargeError,
    MoleculeTypeError,
    SmilesParseError,
    TableError,
    UniMol2FeatureExtractor,
    UniMol2ForPropertyRegression,
)

CALLS = [*ROWS, *HUB_ROWS]
NOT_FITTED, FITTED = [*REFUSED_TABLES, *REFUSED_HEADS], [*USED_TABLES, *USED_HEADS]


@pytest.mark.parametrize(("call", "error", "message"), [row[1:] for row in CALLS], ids=[row[0] for row in CALLS])
def test_calls(call: Call, error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        call(tmp_path)


@pytest.mark.parametrize(("command", "message"), COMMANDS, ids=[command for command, _ in COMMANDS])
def test_commands(command: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line or one box, exit code 2, no traceback."""
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"smiles": ["CCO", "C"], "y": [1.0, 2.0]}).to_csv("in.csv", index=False)
    told = run_command(*command.split())
    assert told.exit_code == 2
    assert "Traceback" not in told.output
    assert message in " ".join(told.output.split())


@pytest.mark.parametrize(
    ("call", "error", "message"), [row[1:] for row in NOT_FITTED], ids=[row[0] for row in NOT_FITTED]
)
def test_tables_that_are_refused(call: Call, error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        call(tmp_path)


@pytest.mark.parametrize(("call", "check"), [row[1:] for row in FITTED], ids=[row[0] for row in FITTED])
def test_tables_that_are_used(call: Call, check: Check, tmp_path: Path) -> None:
    assert check(call(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("put", "columns", "message"), [row[1:] for row in REFUSED_FILES], ids=[row[0] for row in REFUSED_FILES]
)
def test_files_that_are_refused(put: Put, columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    """One error for the file, whoever reads it."""
    with pytest.raises(TableError, match=message):
        read(put(tmp_path), **columns)


@pytest.mark.parametrize(
    ("put", "columns", "check"), [row[1:] for row in READ_FILES], ids=[row[0] for row in READ_FILES]
)
def test_files_that_are_read(put: Put, columns: dict[str, Any], check: Any, tmp_path: Path) -> None:
    assert check(*read(put(tmp_path), **columns))


def test_there_are_enough() -> None:
    assert len(REFUSED_FILES) + len(READ_FILES) >= 60
    assert len(REFUSED) + len(ACCEPTED) + len(ROWS) + len(COMMANDS) >= 120
    assert len(REFUSED_TABLES) + len(USED_TABLES) >= 60
    assert len(REFUSED_HEADS) + len(USED_HEADS) >= 30


@pytest.mark.parametrize(("molecule", "error"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refused_with_a_named_error(
    molecule: Any, error: type[MoleculeError], extractor: UniMol2FeatureExtractor
) -> None:
    results = list(extractor.featurize(["CCO", molecule, "C"]))
    # In a batch the row stays, with its reason, and its neighbours are whole.
    assert [result.error is None for result in results] == [True, False, True]
    recorded = results[1].error
    assert type(recorded) is error
    assert recorded.index == 1
    assert str(recorded).startswith("molecule 1: ")
    assert len(str(recorded)) < 2000
    assert list(results[1].model_inputs()) == []
    with pytest.raises(error) as raised:
        extractor(["CCO", molecule])
    assert raised.value.reason == recorded.reason


@pytest.mark.parametrize(("molecule", "record"), [case[1:] for case in ACCEPTED], ids=[case[0] for case in ACCEPTED])
def test_accepted_and_recorded(
    molecule: Any,
    record: dict[str, Any],
    extractor: UniMol2FeatureExtractor,
    property_model: UniMol2ForPropertyRegression,
) -> None:
    batch = extractor([molecule, "CCO"], return_provenance=True)
    provenance = batch.pop("provenance")[0]
    assert {name: provenance[name] for name in record} == record
    with torch.no_grad():
        encoded = property_model.unimol2(**batch)
        alone = property_model(**extractor(molecule)).logits[0]
        together = property_model(**batch).logits[0]
    assert torch.isfinite(encoded.last_hidden_state).all()
    assert torch.isfinite(together).all()
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    count = int(batch["attention_mask"][0].sum())
    if count > 1:
        assert float(torch.pdist(batch["coordinates"][0, :count]).max()) > 0.5


def test_errors_survive_worker_processes(extractor: UniMol2FeatureExtractor) -> None:
    molecules = [case[1] for case in REFUSED]
    results = list(extractor.featurize(molecules, num_workers=2))
    assert [type(result.error) for result in results] == [case[2] for case in REFUSED]
    assert [result.index for result in results] == list(range(len(molecules)))


def test_a_lone_molecule_has_no_position_in_its_error(extractor: UniMol2FeatureExtractor) -> None:
    with pytest.raises(SmilesParseError) as raised:
        extractor("C1CC")
    assert "molecule 0" not in str(raised.value)
    assert "'C1CC'" in str(raised.value)


def test_a_giant_is_refused_before_its_conformer(extractor: UniMol2FeatureExtractor) -> None:
    # RDKit would work on it for minutes, whatever its timeout says.
    with pytest.raises(MoleculeTooLargeError, match=r"15002 atoms with hydrogens are too many.*give coordinates"):
        extractor("C" * 5000, max_atoms_policy="crop")


V3000 = """query
     RDKit          3D

  0  0  0  0  0  0  0  0  0  0999 V3000
M  V30 BEGIN CTAB
M  V30 COUNTS 2 1 0 0 0
M  V30 BEGIN ATOM
M  V30 1 C 0 0 0.1 0
M  V30 2 {atom} 1.5 0 0 0
M  V30 END ATOM
M  V30 BEGIN BOND
M  V30 1 {bond} 1 2
M  V30 END BOND
M  V30 END CTAB
M  END
"""


@pytest.mark.parametrize(
    ("atom", "bond", "message"),
    [
        ("C", 8, "bond 1 has type 8, a query; give it type 1, 2, 3 or 4"),
        ("C", 6, "bond 1 has type 6, a query"),
        ("Q", 1, r"atom 2 is \[!#6&!#1\], a query; give it an element"),
        ("[C,N]", 1, r"atom 2 is \[#6,#7\], a query"),
    ],
)
def test_queries_of_a_file_are_named(extractor: UniMol2FeatureExtractor, atom: str, bond: int, message: str) -> None:
    with pytest.raises(MoleculeTypeError, match=message):
        extractor(Chem.MolFromMolBlock(V3000.format(atom=atom, bond=bond)))
