"""The command line: its options are those of the settings classes, and files say the same as flags."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from command_line import run_command
from conftest import MIXED_SMILES

from unimol2_hf import SettingsError
from unimol2_hf.cli.options import read_settings
from unimol2_hf.cli.reference import FILE, reference
from unimol2_hf.finetuning.settings import FinetuneSettings
from unimol2_hf.jobs.settings import BuildSettings, EmbedSettings
from unimol2_hf.pretraining.settings import PretrainSettings
from unimol2_hf.settings_unimol2 import FeaturizerSettings


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "in.csv"
    pd.DataFrame({"code": range(3), "smiles": MIXED_SMILES[:3]}).to_csv(path, index=False)
    return path


def test_the_table_of_options_is_that_of_the_settings() -> None:
    """It freezes the command line: make it anew with `python -m unimol2_hf.cli.reference`, and tell in CHANGELOG.md."""
    assert FILE.read_text() == reference()


@pytest.mark.parametrize(
    "command",
    [
        "finetune",
        "predict",
        "embed",
        "conformers build",
        "conformers stats",
        "conformers push",
        "pretrain",
        "convert",
        "publish",
        "export",
    ],
)
def test_help_lists_every_option(command: str) -> None:
    told = run_command(*command.split(), "--help")
    assert told.exit_code == 0
    section = reference().split(f"## `unimol2-hf {command}")[1].split("\n## ")[0]
    options = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
    assert options
    assert not [option for option in [*options, "--config"] if f"{option} " not in told.output]


def test_help_loads_neither_torch_nor_rdkit() -> None:
    code = "import sys; sys.argv = ['unimol2-hf', 'embed', '--help']; from unimol2_hf.cli.app import main; main();"
    code += " print({'torch', 'rdkit', 'transformers', 'pandas'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "set()"


class TestConfigFile:
    def test_flags_win_over_the_file(self, tmp_path: Path, table: Path) -> None:
        config = tmp_path / "run.yaml"
        config.write_text("id_column: code\nnum_conformers: 2\nconformer_seed: 7\npooling: mean\nnum_workers: 0\n")
        told = run_command("conformers", "build", table, tmp_path / "a", "--config", config)
        assert told.exit_code == 2
        assert "pooling" in told.output
        config.write_text("id_column: code\nnum_conformers: 2\nconformer_seed: 7\nnum_workers: 0\n")
        arguments = ("conformers", "build", table, tmp_path / "out", "--config", config, "--num-conformers", "3")
        assert run_command(*arguments).exit_code == 0
        written = json.loads((tmp_path / "out" / "settings.json").read_text())
        assert (written["id_column"], written["num_conformers"], written["conformer_seed"]) == ("code", 3, 7)

    def test_what_a_run_writes_is_read_back(self, tmp_path: Path, table: Path) -> None:
        first, second = tmp_path / "first", tmp_path / "second"
        flags = ["--num-workers", "0", "--max-atoms", "100", "--conformer-seed", "5", "--store-precision", "float16"]
        assert run_command("embed", table, first, *flags).exit_code == 0
        assert run_command("embed", table, second, "--config", first / "settings.json").exit_code == 0
        assert (first / "settings.json").read_text() == (second / "settings.json").read_text()
        shard = Path("embeddings") / "part-000000.parquet"
        pd.testing.assert_frame_equal(pd.read_parquet(first / shard), pd.read_parquet(second / shard))

    def test_numbers_as_text_nothing_and_mappings(self, tmp_path: Path) -> None:
        """YAML 1.1 reads 1e-4 as text."""
        path = tmp_path / "run.yaml"
        path.write_text(
            "data: lib\noutput_dir: out\nlearning_rate: 1e-4\nscaffold_temperature: null\ncompile: true\n"
            "targets: {a: 2, b: 0.5}\nmodel: {num_hidden_layers: 4, pair_dropout_prob: 0.0}\ntrainer: {fsdp: [x]}\n"
        )
        settings = read_settings(PretrainSettings, path)
        assert (settings.learning_rate, settings.scaffold_temperature, settings.compile) == (1e-4, None, True)
        assert settings.targets == {"a": 2, "b": 0.5}
        assert settings.model == {"num_hidden_layers": 4, "pair_dropout_prob": 0.0}
        assert settings.trainer == {"fsdp": ["x"]}
        path.write_text(yaml.safe_dump(settings.as_options()))
        assert read_settings(PretrainSettings, path) == settings

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("data: a\noutput_dir: b\nepoch: 3\n", "epoch"),
            ("output_dir: b\n", "data"),
            ("data: a\noutput_dir: b\nmax_steps: many\n", "many"),
            ("data: a\noutput_dir: b\nmax_steps: 0\n", "max_steps is 0; use 1 or more"),
            ("data: a\noutput_dir: b\nprecision: float64\n", "float64"),
            ("- a\n", "holds no settings"),
            ("a: [\n", "cannot be read as YAML"),
        ],
    )
    def test_bad_files(self, tmp_path: Path, content: str, message: str) -> None:
        path = tmp_path / "run.yaml"
        path.write_text(content)
        with pytest.raises(SettingsError, match=message):
            read_settings(PretrainSettings, path)
        assert run_command("pretrain", "--config", path).exit_code == 2

    def test_no_such_file(self, tmp_path: Path) -> None:
        told = run_command("pretrain", "--config", tmp_path / "no.yaml")
        assert told.exit_code == 2
        assert "does not exist" in told.output


class TestChecks:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: FinetuneSettings(targets=("a",), epochs=0), "epochs is 0; use 1 or more"),
            (lambda: FinetuneSettings(targets=("a",), epochs=True), "epochs is True; give a whole number"),
            (lambda: FinetuneSettings(targets=("a",), warmup=1.5), "warmup is 1.5; use 0 to 0.99"),
            (lambda: FinetuneSettings(targets=("a",), learning_rate=float("nan")), "learning_rate is nan"),
            (lambda: FinetuneSettings(targets="ab"), "targets is 'ab'; give a list"),  # type: ignore[arg-type]
            (lambda: EmbedSettings(per_atom=1), "per_atom is 1; use true or false"),  # type: ignore[arg-type]
            (lambda: EmbedSettings(model=5), "model is 5; give text"),  # type: ignore[arg-type]
            (lambda: EmbedSettings(store_precision="half"), "unknown store_precision 'half'; use one of float32"),  # type: ignore[arg-type]
            (lambda: FeaturizerSettings(num_conformers=0), "leave no conformer"),
            (lambda: FeaturizerSettings(seed=2**31 - 1), "seed is 2147483647; use 0 to"),
            (lambda: BuildSettings(keep_columns=("a", "a")), "a column twice"),
        ],
    )
    def test_values_out_of_range(self, make: object, message: str) -> None:
        with pytest.raises(SettingsError, match=message):
            make()  # type: ignore[operator]

    def test_misspelt_flag(self, table: Path, tmp_path: Path) -> None:
        told = run_command("embed", table, tmp_path / "out", "--per-atoms")
        assert told.exit_code == 2
        assert "--per-atom" in told.output
