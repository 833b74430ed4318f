"""Splits: the same molecule, scaffold or cluster never lies in two parts, and the same seed gives the same split."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator
from rdkit.Chem.Scaffolds import MurckoScaffold
from rdkit.ML.Cluster import Butina

from unimol2_hf import TableError
from unimol2_hf.data import splits
from unimol2_hf.data.identity import identities
from unimol2_hf.data.splits import (
    CLUSTER_DISTANCE,
    make_split,
    one_part_a_molecule,
    split_by_column,
    split_by_file,
)

DRUGS = Path(__file__).parents[2] / "examples" / "drugs.csv"
NAMES = [f"{'C' * (n + 1)}O" for n in range(200)]


@pytest.fixture(scope="module")
def drugs() -> list[str]:
    return identities(pd.read_csv(DRUGS)["smiles"].tolist())


def counts(split: Any) -> list[int]:
    return [int((split == part).sum()) for part in ("train", "valid", "test")]


def parts_by(groups: Sequence[str], split: Any) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for group, part in zip(groups, split, strict=True):
        found.setdefault(group, set()).add(str(part))
    return found


class TestIdentity:
    """Two rows with equal model input are the same molecule."""

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("CCO", "OCC"),
            ("CC(=O)NC", "CNC(C)=O"),
            ("CC(=O)[O-].[Na+]", "[Na+].CC([O-])=O"),
            ("[CH3:1][CH2:2][OH:3]", "CCO"),
            ("[13CH3]CO", "CCO"),
            ("[2H]OCC", "CCO"),
            ("C1=CC=CC=C1", "c1ccccc1"),
        ],
    )
    def test_however_it_is_written(self, one: str, other: str) -> None:
        assert len(set(identities([one, other]))) == 1

    @pytest.mark.parametrize(
        ("one", "other"), [("C[C@H](N)O", "C[C@@H](N)O"), ("CC(=O)O", "CC(=O)[O-]"), ("CC", "C=C")]
    )
    def test_what_the_model_tells_apart(self, one: str, other: str) -> None:
        assert len(set(identities([one, other]))) == 2

    def test_what_cannot_be_read_is_like_nothing_else(self) -> None:
        assert len(set(identities(["C1CC", "C1CC", ""]))) == 3

    def test_after_standardisation(self) -> None:
        salts = ["CC(=O)[O-].[Na+]", "CC(=O)O", "CC(=O)O.Cl"]
        assert len(set(identities(salts))) == 3
        assert len(set(identities(salts, "parent"))) == 1

    def test_atoms_and_coordinates(self) -> None:
        one = {"atomic_numbers": [6, 8], "coordinates": [[0, 0, 0], [1.2, 0, 0]]}
        moved = {"atomic_numbers": [6, 8], "coordinates": [[5, 0, 0], [6.2, 0, 0]]}
        other = {"atomic_numbers": [6, 8], "coordinates": [[0, 0, 0], [1.4, 0, 0]]}
        names = identities([one, moved, other])
        assert names[0] == names[1] != names[2]


class TestGroups:
    @pytest.mark.parametrize("method", ["scaffold", "random", "cluster"])
    @pytest.mark.parametrize("folds", [0, 4])
    def test_a_molecule_lies_in_one_part(self, drugs: list[str], method: str, folds: int) -> None:
        rows = drugs + drugs[::3]
        split = make_split(rows, method, 0, folds=folds)
        assert all(len(found) == 1 for found in parts_by(rows, split).values())
        assert set(split) == {"train", "valid", "test"}
        assert (make_split(rows, method, 0, folds=folds) == split).all()
        assert (make_split(rows, method, 1, folds=folds) != split).any()

    @pytest.mark.parametrize("seed", range(3))
    def test_scaffolds_stay_together(self, drugs: list[str], seed: int) -> None:
        split = make_split(drugs, "scaffold", seed)
        assert 0.7 < counts(split)[0] / len(drugs) < 0.9
        scaffolds = [MurckoScaffold.MurckoScaffoldSmiles(smiles=text) or text for text in drugs]
        assert all(len(found) == 1 for found in parts_by(scaffolds, split).values())

    def test_atom_maps_do_not_leak(self, drugs: list[str]) -> None:
        """Half of the rows are the other half with numbers of a reaction."""

        def mapped(smiles: str) -> str:
            molecule = Chem.MolFromSmiles(smiles)
            for atom in molecule.GetAtoms():
                atom.SetAtomMapNum(atom.GetIdx() + 1)
            return str(Chem.MolToSmiles(molecule))

        rows = drugs[:40] + [mapped(each) for each in drugs[:40]]
        split = make_split(identities(rows), "scaffold", 0)
        assert (split[:40] == split[40:]).all()

    def test_random_has_exact_shares(self) -> None:
        assert counts(make_split(NAMES, "random", 0)) == [160, 20, 20]

    def test_clusters_are_rdkits(self, drugs: list[str]) -> None:
        generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
        names = sorted(set(drugs))
        prints = [generator.GetFingerprint(Chem.MolFromSmiles(each)) for each in names]
        distances = [
            1 - similarity
            for row in range(1, len(prints))
            for similarity in DataStructs.BulkTanimotoSimilarity(prints[row], prints[:row])
        ]
        theirs = Butina.ClusterData(distances, len(prints), CLUSTER_DISTANCE, isDistData=True)
        ours = np.array(splits._cluster_groups(names))
        found = {tuple(sorted(np.flatnonzero(ours == number).tolist())) for number in set(ours.tolist())}
        assert found == {tuple(sorted(cluster)) for cluster in theirs}

    def test_too_many_to_cluster(self, monkeypatch: pytest.MonkeyPatch, drugs: list[str]) -> None:
        monkeypatch.setattr(splits, "MOST_CLUSTERED", 20)
        with pytest.raises(TableError, match=r"too many to cluster \(at most 20\); split by scaffold"):
            make_split(drugs, "cluster", 0)

    def test_too_few(self) -> None:
        series = [f"c1ccccc1{'C' * n}" for n in range(1, 20)]
        with pytest.raises(TableError, match=r"1 groups by scaffold, the largest with 19 of 19.*random split"):
            make_split(series, "scaffold", 0)
        with pytest.raises(TableError, match="5 molecules are too few to split"):
            make_split(NAMES[:5] * 4, "random", 0)


class TestFolds:
    @pytest.mark.parametrize("method", ["random", "scaffold", "cluster"])
    def test_each_molecule_is_tested_on_once(self, drugs: list[str], method: str) -> None:
        tested = np.stack([make_split(drugs, method, 0, folds=5, fold=fold) == "test" for fold in range(5)])
        assert (tested.sum(axis=0) == 1).all()
        assert tested.sum(axis=1).min() > len(drugs) / 10

    def test_the_next_fold_validates(self) -> None:
        first, second = (make_split(NAMES, "random", 0, folds=4, fold=fold) for fold in (0, 1))
        assert ((first == "valid") == (second == "test")).all()
        assert counts(first) == [100, 50, 50]


class TestOrder:
    def test_the_last_are_tested_on(self) -> None:
        order = pd.Series(np.arange(200)[::-1].astype(str), name="n")
        split = make_split(NAMES, "random", 0, order=order)
        assert counts(split) == [160, 20, 20]
        assert set(split[:20]) == {"test"}
        assert set(split[40:]) == {"train"}

    @pytest.mark.parametrize("form", ["%Y-%m-%d", "%d %b %Y", "%Y/%m/%d %H:%M"])
    def test_dates(self, form: str) -> None:
        days = pd.date_range("2020-12-20", periods=200).strftime(form)
        split = make_split(NAMES, "random", 0, order=pd.Series(days, name="when"))
        assert split.tolist() == ["train"] * 160 + ["valid"] * 20 + ["test"] * 20

    def test_a_molecule_stands_where_it_was_first(self) -> None:
        names = [*NAMES[:-1], NAMES[0]]
        split = make_split(names, "random", 0, order=pd.Series(np.arange(200).astype(str)))
        assert split[-1] == split[0] == "train"

    def test_rows_without_a_value_are_unused(self) -> None:
        order = pd.Series(np.arange(200).astype(str)).where(np.arange(200) % 4 != 0, "")
        split = make_split(NAMES, "random", 0, order=order)
        assert (split[::4] == "").all()
        assert counts(split) == [120, 15, 15]

    def test_folds_follow_each_other(self) -> None:
        split = make_split(NAMES, "random", 0, order=pd.Series(np.arange(200).astype(str)), folds=4, fold=2)
        assert split.tolist() == ["train"] * 100 + ["test"] * 50 + ["valid"] * 50

    def test_neither_numbers_nor_dates(self) -> None:
        with pytest.raises(TableError, match=r"cannot be ordered by batch: it needs numbers or dates .*'x3' in row 0"):
            make_split(NAMES, "random", 0, order=pd.Series(["x3"] * 200, name="batch"))
        with pytest.raises(TableError, match="it is empty"):
            make_split(NAMES, "random", 0, order=pd.Series([""] * 200, name="batch"))


class TestOwnSplits:
    def test_column(self) -> None:
        notes = [""] * 4
        split = split_by_column(pd.Series(["Train", "dev", "TEST", "holdout"], name="part"), notes)
        assert split.tolist() == ["train", "valid", "test", ""]
        assert notes[3] == "part is 'holdout', not train, valid or test: row unused"

    def test_a_molecule_of_the_test_part_leaves_training(self) -> None:
        notes = [""] * 5
        split = np.array(["train", "test", "valid", "train", ""], dtype="<U5")
        assert one_part_a_molecule(split, ["a", "a", "b", "b", "c"], notes) == 2
        assert split.tolist() == ["", "test", "valid", "", ""]
        assert notes[0] == "the same molecule is in the test part: row unused"

    @given(
        rows=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["train", "valid", "test", ""])), min_size=1)
    )
    def test_no_molecule_is_left_in_two_parts(self, rows: list[tuple[str, str]]) -> None:
        names, parts = [row[0] for row in rows], np.array([row[1] for row in rows], dtype="<U5")
        before = parts.copy()
        count = one_part_a_molecule(parts, names, [""] * len(rows))
        assert all(len(found - {""}) <= 1 for found in parts_by(names, parts).values())
        assert count == int((before != parts).sum())
        assert (parts[before == "test"] == "test").all()

    def test_file_by_molecule(self, tmp_path: Path) -> None:
        pd.DataFrame({"smiles": ["OCC", "C", "CC"], "seed1": ["test", "train", "valid"]}).to_csv(
            tmp_path / "split.csv", index=False
        )
        notes = [""] * 4
        names = identities(["C", "CCO", "CC", "CCC"])
        split = split_by_file(tmp_path / "split.csv", "seed1", "smiles", names, notes)
        assert split.tolist() == ["train", "test", "valid", ""]
        assert "split.csv: row unused" in notes[3]

    def test_a_molecule_that_a_file_lists_twice_is_in_the_last_part(self, tmp_path: Path) -> None:
        pd.DataFrame({"smiles": ["OCC", "CCO", "CC(=O)O", "CC(=O)[O-].[Na+]"], "split": ["test", "train"] * 2}).to_csv(
            tmp_path / "s.csv", index=False
        )
        names = ["CCO", "CC(=O)O"]
        assert split_by_file(tmp_path / "s.csv", "split", "smiles", names, [""] * 2, "parent").tolist() == ["test"] * 2
