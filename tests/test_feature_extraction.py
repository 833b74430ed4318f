"""Molecules to tensors: every kind of input, padding, provenance, conformers, workers."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from conftest import MIXED_SMILES
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers
from transformers import AutoFeatureExtractor, pipeline
from transformers.feature_extraction_utils import BatchFeature

from unimol2_hf import (
    NANO,
    ConformerError,
    ConformerProvenance,
    ConformerSettings,
    MoleculeError,
    MoleculeTypeError,
    UniMol2Error,
    UniMol2FeatureExtractor,
    UniMol2ForPropertyRegression,
)
from unimol2_hf.conformers import LADDER_VERSION, generate_conformers
from unimol2_hf.feature_extraction_unimol2 import MODEL_INPUT_NAMES

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
# Wrong stereo around a cage: no geometry satisfies it, RDKit's embedding gives up.
UNEMBEDDABLE = "[C@]12(F)[C@]3(F)[C@@]1(F)[C@@]23F"
# A polycyclic aromatic whose rings cannot all be flat: ETKDG fails on every seed.
CROWDED = "c1ccc2c(c1)ccc1cc3cccc4c5cccc6cc7ccc8ccccc8c7c(c65)c(c12)c34"
# Random distances give it no starting coordinates.
TWO_TAILS = "CCCCCCCCCC[NH+](CCCCCCCCCC)CC1C(=O)OC2CC3(C)CCCC(C)C3=CC21"
# ETKDG finds its starting coordinates at the 237th attempt.
LATE = "O=C(OCc1ccccc1)C(Cc1ccc(C(F)(F)P(=O)(O)O)cc1)(Cc1ccc(C(F)(F)P(=O)(O)O)cc1)C(=O)OCc1ccccc1"


def embedded(smiles: str, seed: int = 1, hydrogens: bool = True, count: int = 1) -> Chem.Mol:
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    rdDistGeom.EmbedMultipleConfs(molecule, count, randomSeed=seed)
    return molecule if hydrogens else Chem.RemoveHs(molecule)


def heavy_positions(molecule: Chem.Mol, conformer: int = 0) -> Any:
    heavy = [atom.GetIdx() for atom in molecule.GetAtoms() if atom.GetAtomicNum() != 1]
    return molecule.GetConformer(conformer).GetPositions()[heavy]


def arrays_of(molecule: Chem.Mol) -> tuple[list[int], Any, list[tuple[int, int, float]]]:
    numbers = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
    bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), bond.GetBondTypeAsDouble()) for bond in molecule.GetBonds()]
    return numbers, molecule.GetConformer().GetPositions(), bonds


@contextmanager
def busy_machine() -> Iterator[None]:
    """Two processes beside this one that do nothing but work."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


class TestBatches:
    def test_names_shapes_and_types(self, extractor: UniMol2FeatureExtractor) -> None:
        batch = extractor(["CCO", ASPIRIN])
        assert isinstance(batch, BatchFeature)
        shapes = {name: tuple(tensor.shape) for name, tensor in batch.items()}
        assert shapes == {
            "input_ids": (2, 13),
            "attention_mask": (2, 13),
            "atom_features": (2, 13, 8),
            "degrees": (2, 13),
            "edge_features": (2, 13, 13, 3),
            "shortest_paths": (2, 13, 13),
            "pair_types": (2, 13, 13, 2),
            "coordinates": (2, 13, 3),
        }
        assert batch["coordinates"].dtype == torch.float32
        assert batch["input_ids"][0].tolist() == [6, 6, 8] + [0] * 10
        assert batch["attention_mask"].sum(1).tolist() == [3, 13]
        for name, tensor in batch.items():
            assert not tensor[0, 3:].any(), name

    def test_a_batch_is_what_the_model_takes(
        self, extractor: UniMol2FeatureExtractor, property_model: UniMol2ForPropertyRegression
    ) -> None:
        assert property_model(**extractor(["CCO", ASPIRIN])).logits.shape == (2, 3)

    def test_one_molecule_makes_a_batch_of_one(self, extractor: UniMol2FeatureExtractor) -> None:
        for molecule in ("CCO", Chem.MolFromSmiles("CCO"), ([6, 6, 8], np.eye(3))):
            assert extractor(molecule)["input_ids"].tolist() == [[6, 6, 8]]

    def test_numpy_tensors(self, extractor: UniMol2FeatureExtractor) -> None:
        batch = extractor(["CCO", "C"], return_tensors="np")
        assert all(isinstance(array, np.ndarray) for array in batch.values())

    def test_any_iterable_of_molecules(self, extractor: UniMol2FeatureExtractor) -> None:
        many = ["CCO", "C"]
        for molecules in (many, tuple(many), iter(many), np.array(many), pd.Series(many)):
            assert extractor(molecules)["attention_mask"].sum(1).tolist() == [3, 1]

    def test_arrow_columns_are_sequences(self, extractor: UniMol2FeatureExtractor) -> None:
        column = pa.array(["CCO", "C"])
        for molecules in (column, pa.chunked_array([column])):
            assert extractor(molecules)["attention_mask"].sum(1).tolist() == [3, 1]

    @pytest.mark.parametrize(
        "table",
        [
            pd.DataFrame({"C": ["CCO"], "N": ["C"], "O": ["CC"]}),
            pa.table({"smiles": ["CCO"]}),
            datasets.Dataset.from_dict({"smiles": ["CCO"]}),
            np.array([["CCO"], ["C"]]),
        ],
        ids=["pandas", "arrow", "datasets", "numpy"],
    )
    def test_tables_are_refused(self, extractor: UniMol2FeatureExtractor, table: Any) -> None:
        """Their columns' names might be molecules; so might the numbers of their rows."""
        embed = pipeline("molecule-embedding", NANO)
        for take in (extractor, embed):
            with pytest.raises(MoleculeTypeError, match="no sequence of molecules; give one column"):
                take(table)

    def test_padding_is_separate(self, extractor: UniMol2FeatureExtractor) -> None:
        rows = [row for result in extractor.featurize(["CCO", ASPIRIN]) for row in result.model_inputs()]
        padded, direct = extractor.pad(rows), extractor(["CCO", ASPIRIN])
        assert all(torch.equal(padded[name], direct[name]) for name in MODEL_INPUT_NAMES)
        assert extractor.pad(rows, padding="max_length", max_length=20)["pair_types"].shape == (2, 20, 20, 2)

    def test_padding_refuses_what_it_cannot_do(self, extractor: UniMol2FeatureExtractor) -> None:
        row = next(next(extractor.featurize(ASPIRIN)).model_inputs())
        with pytest.raises(UniMol2Error, match="no molecule to pad"):
            extractor.pad([])
        with pytest.raises(UniMol2Error, match="13 atoms does not fit into max_length=5"):
            extractor.pad([row], max_length=5)
        with pytest.raises(UniMol2Error, match="coordinates missing"):
            extractor.pad([{name: value for name, value in row.items() if name != "coordinates"}])

    def test_padding_speaks_as_tokenizers_do(self, extractor: UniMol2FeatureExtractor) -> None:
        """Widths, a mapping of lists, numeric labels, and what is no padding of one batch."""
        rows = [row for result in extractor.featurize(["CCO", ASPIRIN]) for row in result.model_inputs()]
        widths = {
            13: {},
            16: {"pad_to_multiple_of": 8},
            20: {"padding": "max_length", "max_length": 20},
            24: {"padding": "max_length", "max_length": 20, "pad_to_multiple_of": 8},
        }
        for width, options in widths.items():
            assert extractor.pad(rows, **options)["edge_features"].shape == (2, width, width, 3)  # type: ignore[arg-type]
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        assert torch.equal(extractor.pad(columns)["pair_types"], extractor.pad(rows)["pair_types"])
        for name, labels in (("labels", [[1, 2.5], [float("nan"), 0]]), ("label", [1, 0])):
            batch = extractor.pad([{**row, name: label} for row, label in zip(rows, labels, strict=True)])
            torch.testing.assert_close(batch[name], torch.tensor(labels, dtype=torch.float32), equal_nan=True)
        with pytest.raises(UniMol2Error, match="1 of 2 rows lack 'labels'; use NaN labels"):
            extractor.pad([rows[0], {**rows[1], "labels": 1.0}])
        with pytest.raises(UniMol2Error, match="molecules of one batch need True"):
            extractor.pad(rows, padding=False)
        with pytest.raises(UniMol2Error, match="needs max_length"):
            extractor.pad(rows, padding="max_length")

    @pytest.mark.parametrize("size", [3, 8])
    def test_padding_is_not_confused_by_square_arrays(self, size: int, extractor: UniMol2FeatureExtractor) -> None:
        # Three atoms make coordinates (3, 3), eight make atom features (8, 8).
        batch = extractor(["C" * size, "C" * 12])
        assert batch["coordinates"].shape == (2, 12, 3)
        assert batch["atom_features"].shape == (2, 12, 8)

    def test_tuples_of_many_and_of_one(self, extractor: UniMol2FeatureExtractor) -> None:
        arrays = ((6, 6, 8), np.eye(3))
        assert len(list(extractor.featurize(arrays))) == 1
        assert len(list(extractor.featurize((arrays, arrays)))) == 2
        assert [r.error is None for r in extractor.featurize((None, "CCO", "C"))] == [False, True, True]

    def test_bonds_as_a_float_array(self, extractor: UniMol2FeatureExtractor) -> None:
        numbers, coordinates, bonds = arrays_of(embedded("c1ccccc1"))
        as_array = extractor((numbers, coordinates, np.array(bonds)))
        assert torch.equal(as_array["edge_features"], extractor((numbers, coordinates, bonds))["edge_features"])

    def test_save_and_load(self, tmp_path: Path) -> None:
        made = UniMol2FeatureExtractor(
            max_atoms=99, use_graph_features=False, num_conformers=4, include_2d=True, seed=3
        )
        made.save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text('{"model_type": "unimol2"}')
        for loaded in (
            UniMol2FeatureExtractor.from_pretrained(tmp_path),
            AutoFeatureExtractor.from_pretrained(tmp_path),
        ):
            assert type(loaded) is UniMol2FeatureExtractor
            assert loaded.settings() == made.settings()

    @pytest.mark.parametrize("saved", [{}, {"ladder": 1, "rdkit": "2020.03.1"}], ids=["none", "others"])
    def test_a_loaded_extractor_reports_its_own_versions(self, saved: dict[str, Any], tmp_path: Path) -> None:
        own = {"ladder": LADDER_VERSION, "rdkit": rdBase.rdkitVersion}
        path = tmp_path / "preprocessor_config.json"
        UniMol2FeatureExtractor().save_pretrained(tmp_path)
        written = json.loads(path.read_text())
        assert written.items() >= own.items()
        path.write_text(json.dumps({name: value for name, value in written.items() if name not in own} | saved))
        loaded = UniMol2FeatureExtractor.from_pretrained(tmp_path)
        assert loaded.to_dict().items() >= own.items()
        assert loaded.settings() == UniMol2FeatureExtractor().settings()
        loaded.save_pretrained(tmp_path)
        assert json.loads(path.read_text()) == written

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"max_atoms": 0}, "max_atoms is 0"),
            ({"max_atoms": 510}, "max_atoms is 510; use 1 to 509"),
            ({"max_atoms_policy": "random"}, "unknown max_atoms_policy 'random'"),
            ({"num_conformers": 0}, "leave no conformer"),
            ({"num_conformers": -1, "include_2d": True}, "num_conformers is -1; use 0 to 1000"),
            ({"embed_timeout": 0}, "embed_timeout is 0; use 1 or more"),
            ({"num_retries": -1}, "num_retries is -1; use 0 or more"),
            ({"seed": -1}, "seed is -1; use 0 to"),
            ({"seed": 2**31 - 1}, "seed is 2147483647"),
            ({"seed": "42"}, "seed is '42'; give a whole number"),
            ({"num_conformers": 1.5}, "num_conformers is 1.5"),
            ({"force_field": "MMFF"}, "unknown force_field 'MMFF'; use one of MMFF94, UFF, none"),
        ],
    )
    def test_impossible_settings_are_named(self, setting: dict[str, Any], message: str) -> None:
        with pytest.raises(UniMol2Error, match=message):
            UniMol2FeatureExtractor(**setting)
        with pytest.raises(UniMol2Error, match=message):
            UniMol2FeatureExtractor()("CCO", **setting)

    def test_misspelt_setting_is_named(self) -> None:
        with pytest.raises(UniMol2Error, match="'num_conformer'; did you mean 'num_conformers'"):
            UniMol2FeatureExtractor(num_conformer=5)

    def test_unknown_setting_is_named(self, extractor: UniMol2FeatureExtractor) -> None:
        with pytest.raises(UniMol2Error, match="unknown setting 'conformers'"):
            extractor("CCO", conformers=3)


class TestGivenCoordinates:
    @pytest.mark.parametrize("hydrogens", [True, False])
    def test_a_molecules_own_conformer_is_used(self, hydrogens: bool, extractor: UniMol2FeatureExtractor) -> None:
        molecule = embedded(ASPIRIN, hydrogens=hydrogens)
        batch = extractor(molecule, return_provenance=True)
        expected = heavy_positions(molecule)
        np.testing.assert_allclose(batch["coordinates"][0], expected - expected.mean(0), atol=1e-5)
        assert batch["provenance"][0]["method"] == "given"
        assert batch["provenance"][0]["is_3d"]

    def test_several_own_conformers(self, extractor: UniMol2FeatureExtractor) -> None:
        molecule = embedded(ASPIRIN, count=3)
        assert extractor(molecule, num_conformers=2)["coordinates"].shape == (2, 13, 3)
        batch = extractor(molecule, num_conformers=5)
        assert batch["coordinates"].shape == (3, 13, 3)
        expected = heavy_positions(molecule, 2)
        np.testing.assert_allclose(batch["coordinates"][2], expected - expected.mean(0), atol=1e-5)

    def test_a_drawing_is_no_conformer(self, extractor: UniMol2FeatureExtractor) -> None:
        """One that RDKit made, and one that a file calls 2D."""
        drawn = Chem.MolFromSmiles(ASPIRIN)
        Chem.rdDepictor.Compute2DCoords(drawn)
        for molecule in (drawn, Chem.MolFromMolBlock(Chem.MolToMolBlock(drawn))):
            batch = extractor(molecule, num_conformers=2, return_provenance=True)
            assert [record["method"] for record in batch["provenance"]] == ["etkdg", "etkdg"]

    @pytest.mark.parametrize("smiles", ["c1ccccc1", "C#N", "O=C=O"])
    def test_planar_coordinates_that_a_file_calls_3d_are_the_users(
        self, extractor: UniMol2FeatureExtractor, smiles: str
    ) -> None:
        molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
        Chem.rdDepictor.Compute2DCoords(molecule)
        conformer = molecule.GetConformer()
        conformer.Set3D(True)
        for text in (Chem.MolToMolBlock(molecule), Chem.MolToV3KMolBlock(molecule)):
            read = Chem.MolFromMolBlock(text, removeHs=False)
            batch = extractor(read, return_provenance=True)
            heavy = Chem.RemoveHs(read).GetConformer().GetPositions()
            np.testing.assert_allclose(batch["coordinates"][0], heavy - heavy.mean(0), atol=1e-3)
            assert (batch["provenance"][0]["method"], batch["provenance"][0]["is_3d"]) == ("given", True)

    @pytest.mark.parametrize("hydrogens", [True, False])
    @pytest.mark.parametrize(
        "smiles", [ASPIRIN, "C[C@H](N)C(=O)O", "F/C=C/Cl", "c1ccc2c(c1)ccc1ccccc12", "CS(=O)(=O)N"]
    )
    def test_arrays_with_bonds_give_the_molecules_features(
        self, smiles: str, hydrogens: bool, extractor: UniMol2FeatureExtractor
    ) -> None:
        molecule = embedded(smiles, hydrogens=hydrogens)
        from_arrays, from_molecule = extractor(arrays_of(molecule)), extractor(molecule)
        for name in MODEL_INPUT_NAMES:
            torch.testing.assert_close(from_arrays[name], from_molecule[name], msg=name)

    def test_mapping_with_charges(self, extractor: UniMol2FeatureExtractor) -> None:
        molecule = embedded("C[N+](C)(C)CC(=O)[O-]")
        numbers, coordinates, bonds = arrays_of(molecule)
        arrays: dict[str, Any] = {"atomic_numbers": numbers, "coordinates": coordinates, "bonds": bonds}
        with pytest.raises(MoleculeError, match="formal charges"):
            extractor(arrays)
        charges = [atom.GetFormalCharge() for atom in molecule.GetAtoms()]
        batch, expected = extractor(dict(arrays, formal_charges=charges)), extractor(molecule)
        assert torch.equal(batch["atom_features"], expected["atom_features"])

    def test_arrays_without_bonds_get_dropped_features(self, extractor: UniMol2FeatureExtractor) -> None:
        molecule = embedded("CCO")
        numbers, coordinates, _ = arrays_of(molecule)
        batch = extractor((numbers, coordinates), return_provenance=True)
        dropped = extractor(molecule, use_graph_features=False)
        assert batch["input_ids"].tolist() == [[6, 6, 8]]
        assert not batch["provenance"][0]["has_graph_features"]
        for name in MODEL_INPUT_NAMES:
            torch.testing.assert_close(batch[name], dropped[name], msg=name)

    def test_dropped_features_are_the_papers(self, extractor: UniMol2FeatureExtractor) -> None:
        batch = extractor("CCO", use_graph_features=False)
        for name in ("atom_features", "degrees", "edge_features"):
            assert (batch[name] == 1).all(), name
        assert (batch["shortest_paths"] == 511).all()
        assert batch["pair_types"].unique().tolist() == [2, 130]


class TestConformers:
    def test_the_k_th_conformer_is_seed_plus_k(self, extractor: UniMol2FeatureExtractor) -> None:
        several = extractor(ASPIRIN, num_conformers=3, return_provenance=True)
        assert [record["seed"] for record in several["provenance"]] == [42, 43, 44]
        assert [record["conformer_index"] for record in several["provenance"]] == [0, 1, 2]
        for number in range(3):
            alone = extractor(ASPIRIN, seed=42 + number)["coordinates"][0]
            assert torch.equal(several["coordinates"][number], alone)
        assert not torch.allclose(several["coordinates"][0], several["coordinates"][1], atol=0.1)

    @pytest.mark.parametrize(
        ("changes", "warned"),
        [({}, False), ({"rdkit": "2026.09.9"}, False), ({"rdkit": "2020.03.1"}, True), ({"ladder": 1}, True)],
    )
    def test_a_folder_of_another_rdkit_or_ladder_warns_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], warned: bool
    ) -> None:
        said: list[str] = []
        monkeypatch.setattr("unimol2_hf.feature_extraction_unimol2.logger.warning_once", said.append)
        monkeypatch.setattr(rdBase, "rdkitVersion", "2026.09.1")
        UniMol2FeatureExtractor().save_pretrained(tmp_path)
        path = tmp_path / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        AutoFeatureExtractor.from_pretrained(tmp_path)
        assert bool(said) == warned
        assert all(f"{name} {value}" in said[0] for name, value in changes.items() if warned)

    def test_force_fields(self, extractor: UniMol2FeatureExtractor) -> None:
        """Each relaxes to coordinates of its own; without one the embedded ones stay, and nothing is claimed."""
        made = {
            name: extractor(ASPIRIN, force_field=name, return_provenance=True) for name in ("MMFF94", "UFF", "none")
        }
        for name, batch in made.items():
            (record,) = batch["provenance"]
            assert record["force_field"] == (None if name == "none" else name)
            assert record["force_field_converged"] == (None if name == "none" else True)
            assert record["note"] == ""
        assert torch.equal(made["MMFF94"]["coordinates"], extractor(ASPIRIN)["coordinates"])
        for one, other in (("MMFF94", "UFF"), ("UFF", "none"), ("none", "MMFF94")):
            assert not torch.allclose(made[one]["coordinates"], made[other]["coordinates"], atol=0.02)

    def test_the_flat_conformer_comes_last(self, extractor: UniMol2FeatureExtractor) -> None:
        batch = extractor(ASPIRIN, num_conformers=2, include_2d=True, return_provenance=True)
        assert [record["method"] for record in batch["provenance"]] == ["etkdg", "etkdg", "2d"]
        assert float(batch["coordinates"][2, :, 2].abs().max()) == 0
        only = extractor(ASPIRIN, num_conformers=0, include_2d=True, return_provenance=True)
        assert [record["method"] for record in only["provenance"]] == ["2d"]

    def test_force_field_is_recorded(self, extractor: UniMol2FeatureExtractor) -> None:
        records = extractor([ASPIRIN, "C[As](C)C"], return_provenance=True)["provenance"]
        assert (records[0]["force_field"], records[0]["force_field_converged"]) == ("MMFF94", True)
        assert (records[1]["force_field"], records[1]["force_field_converged"]) == (None, None)
        assert "MMFF94 has no parameters" in records[1]["note"]

    def test_ladder_ends_in_two_dimensions_and_says_why(self, extractor: UniMol2FeatureExtractor) -> None:
        record = extractor(UNEMBEDDABLE, return_provenance=True)["provenance"][0]
        assert (record["method"], record["is_3d"]) == ("2d", False)
        rungs = [part.partition(" (seed")[0] for part in record["note"].removeprefix("no 3D conformer: ").split("; ")]
        random_start = ["etkdg-random-coordinates", "etdg-random-coordinates"]
        assert rungs == ["etkdg", "etdg", *["etkdg-other-seed"] * 3, *random_start]
        assert "etkdg (seed 42): embedding failed in 30 attempts" in record["note"]

    def test_a_crowded_aromatic_gets_the_rung_without_flat_rings(self, extractor: UniMol2FeatureExtractor) -> None:
        batch = extractor(CROWDED, return_provenance=True)
        record = batch["provenance"][0]
        assert (record["method"], record["is_3d"], record["seed"]) == ("etdg", True, 42)
        # Few attempts come before it, however slow they are.
        assert record["note"] == "etkdg (seed 42): embedding failed in 30 attempts"
        assert record["force_field_converged"]
        ends = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in Chem.MolFromSmiles(CROWDED).GetBonds()]
        start, end = torch.tensor(ends).T
        lengths = (batch["coordinates"][0, start] - batch["coordinates"][0, end]).norm(dim=-1)
        assert 1.33 < float(lengths.min()) < float(lengths.max()) < 1.5

    def test_late_success_of_the_references_call_is_kept(self, extractor: UniMol2FeatureExtractor) -> None:
        molecule = Chem.AddHs(Chem.MolFromSmiles(LATE))
        parameters: Any = rdDistGeom.ETKDGv2()
        parameters.randomSeed = 42
        assert rdDistGeom.EmbedMolecule(molecule, parameters) == 0
        rdForceFieldHelpers.MMFFOptimizeMolecule(molecule)
        expected = heavy_positions(molecule)
        batch = extractor(LATE, return_provenance=True)
        assert batch["provenance"][0]["method"] == "etkdg"
        np.testing.assert_allclose(batch["coordinates"][0], expected - expected.mean(0), atol=1e-5)

    @pytest.mark.parametrize(
        ("smiles", "method"),
        [(TWO_TAILS, "etkdg-random-coordinates"), (f"{CROWDED}.{TWO_TAILS}", "etdg-random-coordinates")],
        ids=["two tails", "beside a crowded aromatic"],
    )
    def test_random_coordinates_follow_where_there_is_no_start(
        self, smiles: str, method: str, extractor: UniMol2FeatureExtractor
    ) -> None:
        record = extractor(smiles, return_provenance=True)["provenance"][0]
        assert (record["method"], record["is_3d"]) == (method, True)

    def test_nothing_is_tried_that_has_the_same_lack_of_a_start(self, extractor: UniMol2FeatureExtractor) -> None:
        note = extractor(TWO_TAILS, return_provenance=True)["provenance"][0]["note"]
        assert note == "etkdg (seed 42): no starting coordinates"

    def test_a_busy_machine_changes_nothing(self, extractor: UniMol2FeatureExtractor) -> None:
        smiles = [CROWDED, TWO_TAILS, ASPIRIN, UNEMBEDDABLE, "[Na+].[Cl-]"]
        idle = extractor(smiles, return_provenance=True)
        with busy_machine():
            busy = extractor(smiles, return_provenance=True)
        assert busy["provenance"] == idle["provenance"]
        assert torch.equal(busy["coordinates"], idle["coordinates"])
        methods = {record["method"] for record in idle["provenance"]}
        assert methods == {"etkdg", "etdg", "etkdg-random-coordinates", "2d"}

    def test_the_clock_is_told_where_it_decides(self, extractor: UniMol2FeatureExtractor) -> None:
        # Its first attempt from random coordinates is four seconds of work.
        record = extractor("C" * 128, embed_timeout=1, return_provenance=True)["provenance"][0]
        assert (record["method"], record["is_3d"]) == ("2d", False)
        assert "etkdg-random-coordinates (seed 42): embedding timed out" in record["note"]

    def test_two_dimensions_can_be_refused(self, extractor: UniMol2FeatureExtractor) -> None:
        with pytest.raises(ConformerError, match="no 3D conformer"):
            extractor(UNEMBEDDABLE, allow_2d_fallback=False)

    def test_one_fallback_serves_all_conformers(self, extractor: UniMol2FeatureExtractor) -> None:
        records = extractor(UNEMBEDDABLE, num_conformers=4, return_provenance=True)["provenance"]
        assert [record["method"] for record in records] == ["2d"]

    def test_other_rungs_are_recorded(
        self, monkeypatch: pytest.MonkeyPatch, extractor: UniMol2FeatureExtractor
    ) -> None:
        import unimol2_hf.conformers as module

        original = module._embed

        def failing(molecule: Chem.Mol, method: str, seed: int, timeout: int) -> str | None:
            return "embedding failed" if method != wanted else original(molecule, method, seed, timeout)

        monkeypatch.setattr(module, "_embed", failing)
        for wanted, seed in (
            ("etdg", 42),
            ("etkdg-other-seed", 10042),
            ("etkdg-random-coordinates", 42),
            ("etdg-random-coordinates", 42),
        ):
            record = extractor(ASPIRIN, return_provenance=True)["provenance"][0]
            assert (record["method"], record["seed"], record["is_3d"]) == (wanted, seed, True)
            assert "etkdg (seed 42): embedding failed" in record["note"]

    def test_a_timeout_skips_the_other_seeds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import unimol2_hf.conformers as module

        tried: list[str] = []

        def slow(molecule: Chem.Mol, method: str, seed: int, timeout: int) -> str:
            tried.append(method)
            return module.TIMED_OUT

        monkeypatch.setattr(module, "_embed", slow)
        conformers = generate_conformers(Chem.MolFromSmiles(ASPIRIN), ConformerSettings(num_retries=5))
        assert tried == ["etkdg", "etdg", "etkdg-random-coordinates", "etdg-random-coordinates"]
        assert "timed out" in conformers[0].provenance.note

    def test_lone_ions_never_share_a_point(self, extractor: UniMol2FeatureExtractor) -> None:
        # RDKit embeds the fragments apart and leaves both in the origin.
        batch = extractor("[Na+].[Cl-]", return_provenance=True)
        assert float((batch["coordinates"][0, 0] - batch["coordinates"][0, 1]).norm()) > 0.5
        assert "fragments coincide" in batch["provenance"][0]["note"]

    def test_fragments_are_noted(self, extractor: UniMol2FeatureExtractor) -> None:
        record = extractor("C[N+](C)(C)CCO.[Cl-]", return_provenance=True)["provenance"][0]
        assert (record["method"], record["is_3d"]) == ("etkdg", True)
        assert "fragments were embedded apart" in record["note"]

    def test_coordinates_are_centred_float32(self, extractor: UniMol2FeatureExtractor) -> None:
        coordinates = extractor(ASPIRIN)["coordinates"]
        assert coordinates.dtype == torch.float32
        assert float(coordinates.mean(1).abs().max()) < 1e-5

    def test_any_worker_count_gives_the_same(self, extractor: UniMol2FeatureExtractor) -> None:
        smiles = [*MIXED_SMILES[:40], "not a molecule"]
        runs = [list(extractor.featurize(smiles, num_workers=count, num_conformers=2)) for count in (0, 1, 3)]
        for results in zip(*runs, strict=True):
            first = results[0]
            for other in results[1:]:
                assert other.index == first.index
                assert str(other.error) == str(first.error)
                for one, two in zip(first.model_inputs(), other.model_inputs(), strict=True):
                    assert all(np.array_equal(one[name], two[name]) for name in MODEL_INPUT_NAMES)
        assert runs[0][-1].error is not None

    @pytest.mark.parametrize("workers", [0, 2])
    def test_workers_keep_given_coordinates_to_the_bit(self, workers: int, extractor: UniMol2FeatureExtractor) -> None:
        molecule = embedded(ASPIRIN)
        positions = molecule.GetConformer().GetPositions() + 1e4
        molecule.GetConformer().SetPositions(positions)
        result = next(extractor.featurize([molecule], num_workers=workers))
        expected = heavy_positions(molecule)
        assert np.array_equal(result.conformers[0].coordinates, (expected - expected.mean(0)).astype(np.float32))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_molecule_is_read_as_it_is_at_its_turn(self, workers: int, extractor: UniMol2FeatureExtractor) -> None:
        def trajectory() -> Any:
            molecule = embedded("CCO")
            start = molecule.GetConformer().GetPositions()
            for frame in range(1, 4):
                molecule.GetConformer().SetPositions(start * frame)
                yield molecule

        sizes = [np.ptp(r.conformers[0].coordinates) for r in extractor.featurize(trajectory(), num_workers=workers)]
        np.testing.assert_allclose(sizes, np.array([1, 2, 3]) * sizes[0], rtol=1e-5)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_an_input_that_breaks_off_keeps_what_came_before(
        self, workers: int, extractor: UniMol2FeatureExtractor
    ) -> None:
        def broken() -> Any:
            yield from ["C", "CC", "CCC"]
            raise OSError("disk gone")

        stream = extractor.featurize(broken(), num_workers=workers)
        collected = [next(stream).num_heavy_atoms for _ in range(3)]
        with pytest.raises(OSError, match="disk gone"):
            next(stream)
        assert collected == [1, 2, 3]

    def test_an_edited_molecule_gets_its_own_conformer(self, extractor: UniMol2FeatureExtractor) -> None:
        edited = Chem.RWMol(Chem.MolFromSmiles("CCCC"))
        edited.GetAtomWithIdx(1).SetAtomicNum(8)  # hydrogen counts are now stale
        batch = extractor([edited, "COCC", Chem.MolFromSmiles("COCC", sanitize=False)], return_provenance=True)
        assert [record["method"] for record in batch["provenance"]] == ["etkdg"] * 3
        assert torch.equal(batch["coordinates"][0], batch["coordinates"][1])
        assert torch.equal(batch["coordinates"][2], batch["coordinates"][1])

    def test_streaming_reads_little_ahead(self, extractor: UniMol2FeatureExtractor) -> None:
        taken = 0

        def endless() -> Any:
            nonlocal taken
            while True:
                taken += 1
                yield "C"

        stream = extractor.featurize(endless(), num_workers=2)
        for _ in range(3):
            next(stream)
        assert taken < 500
        stream.close()  # type: ignore[attr-defined]

    def test_provenance_is_public(self) -> None:
        record = ConformerProvenance("given", is_3d=True).to_dict()
        names = {"method", "is_3d", "seed", "force_field", "force_field_converged", "note", "ladder", "rdkit"}
        assert set(record) == names

    def test_versions_are_those_of_what_made_the_conformer(self, extractor: UniMol2FeatureExtractor) -> None:
        generated = extractor(ASPIRIN, include_2d=True, return_provenance=True)["provenance"]
        given_ones = extractor(embedded(ASPIRIN), return_provenance=True)["provenance"]
        versions = [(record["ladder"], record["rdkit"]) for record in (*generated, *given_ones)]
        assert versions == [(LADDER_VERSION, rdBase.rdkitVersion)] * 2 + [(None, None)]


class TestSize:
    def test_too_large_is_an_error_by_default(self, extractor: UniMol2FeatureExtractor) -> None:
        with pytest.raises(MoleculeError, match=r'13 heavy atoms are more than max_atoms=12.*"crop"'):
            extractor(ASPIRIN, max_atoms=12)

    def test_crop_keeps_the_centre_and_is_recorded(self, extractor: UniMol2FeatureExtractor) -> None:
        chain = "C" * 9 + "O"
        batch = extractor(chain, max_atoms=5, max_atoms_policy="crop", return_provenance=True)
        whole = extractor(chain)
        assert batch["provenance"][0]["cropped"]
        assert batch["provenance"][0]["num_heavy_atoms"] == 10
        # The middle of a chain of ten, and the features that the whole molecule has there.
        kept = [2, 3, 4, 5, 6]
        assert torch.equal(batch["shortest_paths"][0], whole["shortest_paths"][0][kept][:, kept])
        assert torch.equal(batch["atom_features"][0], whole["atom_features"][0, kept])
        moved = batch["coordinates"][0] - whole["coordinates"][0, kept]
        torch.testing.assert_close(moved, moved[:1].expand_as(moved))
        assert torch.equal(extractor(chain, max_atoms=5, max_atoms_policy="crop")["coordinates"], batch["coordinates"])

    def test_crop_of_arrays_without_bonds(self, extractor: UniMol2FeatureExtractor) -> None:
        line = np.stack([np.arange(9.0), np.zeros(9), np.zeros(9)], axis=1)
        batch = extractor(([6] * 9, line), max_atoms=3, max_atoms_policy="crop")
        assert batch["coordinates"][0, :, 0].tolist() == [-1, 0, 1]

    def test_a_molecule_at_the_limit_is_whole(self, extractor: UniMol2FeatureExtractor) -> None:
        batch = extractor("C" * 256, num_conformers=0, include_2d=True, return_provenance=True)
        assert batch["input_ids"].shape == (1, 256)
        assert not batch["provenance"][0]["cropped"]
        assert int(batch["shortest_paths"].max()) == 256


@settings(max_examples=25, deadline=None)
@given(smiles=st.sampled_from(MIXED_SMILES), seed=st.integers(0, 2**31 - 1))
def test_features_follow_the_atoms_through_any_spelling(smiles: str, seed: int) -> None:
    """A random spelling of a SMILES gives the same features, in the spelling's atom order."""
    extractor = UniMol2FeatureExtractor(num_conformers=0, include_2d=True)
    molecule = Chem.MolFromSmiles(smiles)
    spelled = Chem.MolToRandomSmilesVect(molecule, 1, randomSeed=seed)[0]
    first, second = extractor(smiles), extractor(spelled)

    # Chirality tags depend on neighbour order by design; everything else must agree as a multiset.
    def signature(batch: BatchFeature) -> Any:
        columns = torch.cat((batch["input_ids"][0, :, None], batch["atom_features"][0, :, 1:]), dim=1)
        return sorted(map(tuple, columns.tolist())), sorted(batch["shortest_paths"].flatten().tolist())

    assert signature(first) == signature(second)
