"""A library of conformers on the local Hub: its card, and that training on it is training on it from disk."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from code_blocks import code_blocks
from command_line import run_command
from hub_server import HubServer, hub_environment
from huggingface_hub import DatasetCard
from pretraining_jobs import tiny_settings, train
from pretraining_runs import assert_same_losses

from unimol2_hf import LibraryError
from unimol2_hf.hub.data_set import data_set_card

REPO = "somebody/library"
EXAMPLE = Path(__file__).parents[2] / "examples" / "pretrain_with_trainer.py"
SAID = ("--origin", "hand-picked, https://example.org/molecules", "--license", "cc-by-4.0")


@pytest.fixture
def library(tmp_path: Path, library_dir: Path) -> Path:
    """A copy: the card is written into it."""
    return Path(shutil.copytree(library_dir, tmp_path / "library"))


def push(library: Path, *more: str, said: tuple[str, ...] = SAID) -> None:
    told = run_command("conformers", "push", library, REPO, *said, *more)
    assert told.exit_code == 0, told.output
    assert f"{REPO} is at commit" in told.output


def run_from_the_hub(hub: HubServer, home: Path, *arguments: object) -> str:
    """What it printed. A process of its own: `datasets` reads where the Hub is when it is imported."""
    command = [sys.executable, *(str(argument) for argument in arguments)]
    run = subprocess.run(
        command, env={**os.environ, **hub_environment(hub, home)}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


def losses_of_example(hub: HubServer, data: object, folder: Path) -> list[float]:
    run_from_the_hub(hub, folder / "hf_home", EXAMPLE, data, "--output-dir", folder)
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def test_a_library_is_pushed_in_one_commit(hub: HubServer, library: Path) -> None:
    push(library, "--revision", "v1", "--private")
    found = hub.repository("dataset", REPO)
    shards = sorted(path.relative_to(library).as_posix() for path in (library / "conformers").iterdir())
    assert len(shards) == 6
    assert set(found.head.files) == {".gitattributes", "README.md", *shards}
    assert all(found.head.files[name].content == (library / name).read_bytes() for name in ("README.md", *shards))
    assert len(hub.asked_for("commit")) == 1
    assert found.is_private
    assert found.tags == {"v1": found.head.oid}


def test_the_card_says_what_the_library_is(library: Path) -> None:
    text = data_set_card(library, REPO, "hand-picked", "cc-by-4.0")
    metadata = DatasetCard(text).data.to_dict()
    assert metadata["license"] == "cc-by-4.0"
    assert metadata["size_categories"] == ["n<1K"]
    assert metadata["configs"][0]["data_files"] == [{"split": "train", "path": "conformers/part-*.parquet"}]
    job = json.loads((library / "job.json").read_text())["job"]
    summary = json.loads((library / "summary.json").read_text())
    assert (summary["rows"], summary["failed"]) == (41, 2)
    for line in (
        "- Molecules: hand-picked",
        "| all | 41 |",
        f"| molecules with a conformer | {summary['molecules']} |",
        f"| duplicates of an earlier row | {summary['duplicates']} |",
        "| failed | 2 |",
        f"RDKit {job['conformers']['rdkit']}.",
        f"(version {job['conformers']['ladder']} of this ladder)",
        f'load_dataset("{REPO}", split="train", streaming=True)',
    ):
        assert line in text
    settings = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", text.split("How the conformers came about")[1], re.M))
    assert (settings["num_conformers"], settings["include_2d"], settings["conformer_seed"]) == ("3", "True", "42")
    columns = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text.split("What it holds")[1].split("## How")[0], re.M)
    assert [name for name, _ in columns] == pq.read_schema(library / "conformers" / "part-000000.parquet").names
    assert ("conformers", "list of list of float") in columns


def test_nothing_tells_where_the_library_was_made(hub: HubServer, library: Path) -> None:
    source = json.loads((library / "job.json").read_text())["about"]["source"]
    assert source.startswith("/")
    push(library)
    for name, blob in hub.repository("dataset", REPO).head.files.items():
        assert str(Path(source).parent).encode() not in blob.content, name
        assert str(library).encode() not in blob.content, name


def test_origin_and_license_may_be_unknown_but_not_left_out(hub: HubServer, library: Path) -> None:
    told = run_command("conformers", "push", library, REPO, "--origin", "unknown")
    assert told.exit_code == 2
    assert "--license" in told.output
    assert not hub.requests
    push(library, said=("--origin", "unknown", "--license", "unknown"))
    assert DatasetCard((library / "README.md").read_text()).data.to_dict()["license"] == "unknown"


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("summary.json", "holds no finished library"),
        ("conformers", "holds no finished library"),
        ("conformers/part-000002.parquet", "has 33 of its 41 rows"),
    ],
)
def test_an_unfinished_library_is_refused(library: Path, gone: str, message: str) -> None:
    path = library / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(LibraryError, match=message):
        data_set_card(library, REPO, "unknown", "unknown")


@pytest.mark.parametrize("content", ["[]", "{", '{"sheep": 3}'])
def test_a_foreign_summary_is_refused(library: Path, content: str) -> None:
    (library / "summary.json").write_text(content)
    with pytest.raises(LibraryError, match="was not written by"):
        data_set_card(library, REPO, "unknown", "unknown")


def test_the_card_s_python_runs(hub: HubServer, library: Path, tmp_path: Path) -> None:
    push(library)
    (block,) = code_blocks(library / "README.md", "python")
    smiles = pq.read_table(library / "conformers", columns=["smiles", "error"]).to_pylist()
    expected = next(row["smiles"] for row in smiles if row["error"] is None)
    assert run_from_the_hub(hub, tmp_path / "hf_home", "-c", block).split() == [expected]


@pytest.mark.numerical
def test_the_example_learns_from_the_hub_what_it_learns_from_disk(
    hub: HubServer, library: Path, tmp_path: Path
) -> None:
    hub.upload_mode = "lfs"
    push(library)
    streamed = losses_of_example(hub, REPO, tmp_path / "hub")
    assert hub.asked_for("resolve")
    hub.requests.clear()
    assert streamed == losses_of_example(hub, library / "conformers", tmp_path / "disk")
    assert not hub.asked_for("resolve")
    assert len(streamed) == 20
    assert streamed[-1] < streamed[0]


@pytest.mark.numerical
def test_pretraining_from_the_hub_logs_the_losses_from_disk(hub: HubServer, library: Path, tmp_path: Path) -> None:
    push(library)
    settings = tiny_settings(REPO, str(tmp_path / "hub"))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings.as_options()))
    arguments = ("-m", "unimol2_hf.cli", "pretrain", "--config", tmp_path / "run.yaml")
    run_from_the_hub(hub, tmp_path / "hf_home", *arguments)
    assert hub.asked_for("resolve")
    train(str(library), str(tmp_path / "disk"))
    assert_same_losses(tmp_path / "hub", tmp_path / "disk", 1e-6)


def test_a_library_that_is_not_on_the_hub_is_told(hub: HubServer, tmp_path: Path) -> None:
    arguments = ("pretrain", "--data", "somebody/nothing", "--output-dir", str(tmp_path / "out"))
    environment = {**os.environ, **hub_environment(hub, tmp_path / "hf_home"), "COLUMNS": "300"}
    run = subprocess.run(
        [sys.executable, "-m", "unimol2_hf.cli", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert "somebody/nothing is neither a folder nor a data set on the Hub" in run.stdout
    assert "Traceback" not in run.stdout + run.stderr
