"""A library of conformers: every row with its outcome, each molecule once, the same after any kill."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import run_command
from conftest import MIXED_SMILES
from kills import forkserver, run_killed, run_whole
from pretraining_jobs import build
from rdkit import Chem
from rich.console import Console

from unimol2_hf import UniMol2FeatureExtractor
from unimol2_hf.data.molecule_files import read_molecules
from unimol2_hf.data.scaffolds import murcko_scaffold
from unimol2_hf.data.shards import PRETRAINING_SCHEMA, finished_shards
from unimol2_hf.errors import LibraryError, OutputFolderError
from unimol2_hf.jobs.build_conformers import BuildSummary, build_conformers
from unimol2_hf.jobs.library_statistics import library_statistics
from unimol2_hf.jobs.settings import BuildSettings

SMILES = [
    "OCC",
    "c1ccccc1C(=O)O",
    "CCO",
    "C1CC",
    "",
    "[13CH3]CO",
    "C[C@H](N)C(=O)O",
    "*CC",
    "O=C(O)c1ccccc1",
    "[Na+].[Cl-]",
]


def write_smiles(path: Path, smiles: list[str]) -> Path:
    path.write_text("smiles\n" + "".join(f"{each}\n" for each in smiles))
    return path


def rows_of(folder: Path) -> list[dict[str, Any]]:
    paths = sorted((folder / "conformers").glob("part-*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def run(source: Path, output_dir: Path, **settings: object) -> BuildSummary:
    made = BuildSettings(**{"num_conformers": 2, "num_workers": 0, "rows_per_shard": 4, **settings})  # type: ignore[arg-type]
    return build_conformers(source, output_dir, made, Console(quiet=True))


class TestRows:
    def test_every_row_stays_with_its_outcome(self, tmp_path: Path) -> None:
        summary = run(write_smiles(tmp_path / "in.csv", SMILES), tmp_path / "out")
        rows = rows_of(tmp_path / "out")
        assert [row["row"] for row in rows] == list(range(len(SMILES)))
        errors = {row["row"]: row["error"] for row in rows if row["error"]}
        assert set(errors) == {2, 3, 4, 7, 8}
        assert errors[2] == "duplicate of row 0"
        assert errors[8] == "duplicate of row 1"
        assert "SMILES" in str(errors[3])
        # RDKit lays the two ions on each other: no 3D conformer.
        assert summary == BuildSummary(rows=10, molecules=5, duplicates=2, failed=3, flat=1)
        assert json.loads((tmp_path / "out" / "summary.json").read_text())["duplicates"] == 2

    def test_an_isotope_is_another_molecule(self, tmp_path: Path) -> None:
        run(write_smiles(tmp_path / "in.csv", SMILES), tmp_path / "out")
        assert rows_of(tmp_path / "out")[5]["error"] is None

    def test_conformers_are_those_of_the_canonical_smiles(self, tmp_path: Path) -> None:
        run(write_smiles(tmp_path / "in.csv", SMILES), tmp_path / "out")
        extractor = UniMol2FeatureExtractor(num_conformers=2, include_2d=True)
        for row in rows_of(tmp_path / "out"):
            smiles = str(row["smiles"])
            if row["error"] or "." in smiles:
                continue
            assert smiles == Chem.CanonSmiles(smiles)
            (molecule,) = extractor.featurize([smiles])
            assert [kind["method"] for kind in row["provenance"]] == ["etkdg", "etkdg", "2d"]
            for flat, conformer in zip(row["conformers"], molecule.conformers, strict=True):
                np.testing.assert_array_equal(np.float32(flat).reshape(-1, 3), conformer.coordinates)
            assert molecule.features is not None
            assert row["atomic_numbers"] == molecule.features["input_ids"].tolist()
            assert row["num_heavy_atoms"] == molecule.num_heavy_atoms
            assert row["scaffold"] == murcko_scaffold(Chem.MolFromSmiles(smiles))

    def test_given_coordinates_are_kept_in_canonical_order(self, tmp_path: Path) -> None:
        molecule = Chem.AddHs(Chem.MolFromSmiles("OC(=O)c1ccccc1N"))
        assert Chem.rdDistGeom.EmbedMolecule(molecule, randomSeed=1) == 0
        with Chem.SDWriter(str(tmp_path / "in.sdf")) as writer:
            writer.write(molecule)
        run(tmp_path / "in.sdf", tmp_path / "out", num_conformers=1)
        (row,) = rows_of(tmp_path / "out")
        assert [kind["method"] for kind in row["provenance"]] == ["given", "2d"]
        built = Chem.MolFromSmiles(str(row["smiles"]))
        match = molecule.GetSubstructMatch(built)
        expected = molecule.GetConformer().GetPositions()[list(match)]
        found = np.float32(row["conformers"][0]).reshape(-1, 3)
        # The molecule has no symmetry but its carboxylate's, whose oxygens differ in their hydrogen.
        np.testing.assert_allclose(found, expected - expected.mean(0), atol=1e-3)

    def test_given_and_generated_conformers_add_up(self, tmp_path: Path) -> None:
        run(write_smiles(tmp_path / "in.csv", ["CCO"]), tmp_path / "one", num_conformers=1, include_2d=False)
        run(tmp_path / "one" / "conformers", tmp_path / "out", num_conformers=3)
        (row,) = rows_of(tmp_path / "out")
        assert [kind["method"] for kind in row["provenance"]] == ["given", "etkdg", "etkdg", "2d"]

    def test_a_library_is_embeddable(self, tmp_path: Path) -> None:
        run(write_smiles(tmp_path / "in.csv", SMILES), tmp_path / "out")
        read = list(read_molecules(tmp_path / "out" / "conformers"))
        assert len(read) == len(SMILES)
        results = list(UniMol2FeatureExtractor().featurize([row.molecule for row in read]))
        assert sum(result.error is None for result in results) == 5
        assert results[2].error is not None
        assert results[2].error.reason == "duplicate of row 0"

    def test_too_many_atoms_and_gz(self, tmp_path: Path) -> None:
        with gzip.open(tmp_path / "in.smi.gz", "wt") as file:
            file.write("CCCCCC hexane\nCC ethane\n")
        summary = run(tmp_path / "in.smi.gz", tmp_path / "out", max_atoms=4)
        first, second = rows_of(tmp_path / "out")
        assert "6 heavy atoms are more than max_atoms=4" in str(first["error"])
        assert second["id"] == "ethane"
        assert summary.failed == 1

    def test_workers_change_nothing(self, tmp_path: Path) -> None:
        source = write_smiles(tmp_path / "in.csv", SMILES)
        run(source, tmp_path / "a")
        run(source, tmp_path / "b", num_workers=2)
        assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")

    def test_schema(self, tmp_path: Path) -> None:
        run(write_smiles(tmp_path / "in.csv", SMILES), tmp_path / "out")
        assert pq.read_schema(tmp_path / "out" / "conformers" / "part-000000.parquet").equals(PRETRAINING_SCHEMA)


class TestJobs:
    @pytest.mark.slow
    def test_killed_ten_times_it_ends_with_the_same_data(self, tmp_path: Path) -> None:
        processes = forkserver("unimol2_hf.jobs.build_conformers", "unimol2_hf.pretraining.pretrain")
        source = write_smiles(tmp_path / "in.csv", [*MIXED_SMILES[:36], *MIXED_SMILES[:8]])
        run_whole(processes, build, str(source), str(tmp_path / "whole"))
        shards = tmp_path / "killed" / "conformers"
        total = len(finished_shards(tmp_path / "whole" / "conformers"))
        arguments = (str(source), str(tmp_path / "killed"))
        killed = run_killed(processes, build, arguments, lambda: len(finished_shards(shards)), total, 10, 0.5, 2)
        assert killed.kills == 10
        assert {count for count in killed.progress_at_kills if 0 < count < total}
        assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole")
        summaries = [(tmp_path / name / "summary.json").read_text() for name in ("killed", "whole")]
        assert summaries[0] == summaries[1]

    def test_duplicates_of_finished_shards_are_known_after_a_restart(self, tmp_path: Path) -> None:
        source = write_smiles(tmp_path / "in.csv", ["CCO", "CCC", "CC", "C", "OCC", "CCCC"])
        run(source, tmp_path / "out")
        (tmp_path / "out" / "conformers" / "part-000001.parquet").unlink()
        run(source, tmp_path / "out")
        assert rows_of(tmp_path / "out")[4]["error"] == "duplicate of row 0"

    def test_another_jobs_folder_is_refused(self, tmp_path: Path) -> None:
        source = write_smiles(tmp_path / "in.csv", SMILES)
        run(source, tmp_path / "out")
        with pytest.raises(OutputFolderError, match="num_conformers"):
            run(source, tmp_path / "out", num_conformers=3)

    def test_another_ladders_conformers_do_not_mix_in(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = write_smiles(tmp_path / "in.csv", SMILES)
        run(source, tmp_path / "out")
        monkeypatch.setattr("unimol2_hf.conformers.LADDER_VERSION", 1)
        with pytest.raises(OutputFolderError, match=r"ladder was .* and is 1"):
            run(source, tmp_path / "out")

    @pytest.mark.parametrize("bad", [{"num_conformers": -1}, {"rows_per_shard": 0}, {"seed": -1}, {"max_atoms": 0}])
    def test_bad_settings_are_told_at_once(self, bad: dict[str, int]) -> None:
        with pytest.raises(ValueError, match=next(iter(bad))):
            BuildSettings(**bad)  # type: ignore[arg-type]


class TestStatistics:
    def test_counts(self, tmp_path: Path) -> None:
        smiles = ["Cc1ccccc1", "CCc1ccccc1", "CCO", "C1CCCCC1C", "bad", "CCO"]
        run(write_smiles(tmp_path / "in.csv", smiles), tmp_path / "lib", num_conformers=1)
        statistics = library_statistics(tmp_path / "lib")
        assert statistics.scaffolds == {"c1ccccc1": 2, "": 1, "C1CCCCC1": 1}
        assert statistics.top(2)[0] == ("c1ccccc1", 2, 0.5)
        assert (statistics.rows, statistics.molecules, statistics.conformers_3d, statistics.conformers_2d) == (
            6,
            4,
            4,
            4,
        )
        assert sum(statistics.failed.values()) == 2
        assert statistics.failed["duplicate"] == 1
        assert statistics.heavy_atoms == {3: 1, 7: 2, 8: 1}

    def test_command_writes_table_and_picture(self, tmp_path: Path) -> None:
        source = write_smiles(tmp_path / "in.csv", MIXED_SMILES[:8])
        options = ["--num-conformers", "1", "--num-workers", "0"]
        built = run_command("conformers", "build", str(source), str(tmp_path / "lib"), *options)
        assert built.exit_code == 0, built.output
        told = run_command("conformers", "stats", *[str(tmp_path / "lib")] * 2, "--output-dir", str(tmp_path / "stats"))
        assert told.exit_code == 0, told.output
        content = json.loads((tmp_path / "stats" / "scaffolds.json").read_text())
        assert [entry["molecules"] for entry in content] == [8, 8]
        assert (tmp_path / "stats" / "scaffolds.png").stat().st_size > 10_000

    def test_a_folder_without_shards_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(LibraryError, match="conformers build"):
            library_statistics(tmp_path)
