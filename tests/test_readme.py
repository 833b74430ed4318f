"""The README's Python and commands run as they stand, against a Hub on this machine."""

import gzip
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from code_blocks import code_blocks
from command_line import run_command
from conftest import GOLDEN, MIXED_SMILES
from hub_server import Blob, HubServer
from rdkit import Chem
from rich.console import Console

import unimol2_hf
from unimol2_hf.finetuning.finetune import finetune
from unimol2_hf.finetuning.settings import FinetuneSettings
from unimol2_hf.hub.cards import OFFICIAL_SCALES
from unimol2_hf.hub.convert import config_from_weights, load_reference_checkpoint
from unimol2_hf.settings_unimol2 import SCALES

README = Path(__file__).parents[1] / "README.md"
DRUGS = pd.read_csv(README.parent / "examples" / "drugs.csv").head(60)


def test_readme_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = code_blocks(README, "python")
    assert len(blocks) == 3
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(block, namespace)
    assert namespace["output"].pooler_output.shape == (2, SCALES["nano"]["hidden_size"])  # type: ignore[attr-defined]
    assert (tmp_path / "to_publish" / "modeling_unimol2.py").is_file()


def test_the_packaged_model_s_card_runs() -> None:
    (block,) = code_blocks(Path(unimol2_hf.NANO) / "README.md", "python")
    namespace: dict[str, object] = {}
    exec(block, namespace)
    assert namespace["embedding"].shape == (1, SCALES["nano"]["hidden_size"])  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_page_for_scikit_learn_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = code_blocks(README.parent / "docs" / "coming_from.md", "python")
    exec(block, {"smiles": DRUGS["smiles"], "y": DRUGS["tpsa"], "new_smiles": ["CCO", "CCN"]})
    assert (tmp_path / "model" / "calibration.json").is_file()


def test_commands_of_the_page_are_known() -> None:
    """Every option that the page names for a command is one of it."""
    options = (README.parent / "src" / "unimol2_hf" / "cli" / "OPTIONS.md").read_text()
    page = (README.parent / "docs" / "coming_from.md").read_text()
    ours = [line.split("|")[2] for line in page.splitlines() if line.startswith("|") and line.count("|") == 3]
    named = {flag for cell in ours for flag in re.findall(r"--[a-z][a-z-]*", cell)}
    assert len(named) > 15
    assert not {flag for flag in named if f"`{flag}`" not in options} - {"--output-dir", "--output"}


def blocks_of_commands() -> list[list[str]]:
    blocks = code_blocks(README, "bash")
    return [[line for line in block.splitlines() if line.startswith("unimol2-hf")] for block in blocks]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for the blocks that begin with one."""
    folder = tmp_path_factory.mktemp("fitted") / "model"
    settings = FinetuneSettings(targets=("tpsa",), split_method="random", num_workers=0)
    finetune(DRUGS, folder, settings, Console(quiet=True))
    return folder


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library_dir: Path) -> None:
    """The files that the README names, in the folder where its commands run."""
    monkeypatch.chdir(tmp_path)
    with gzip.open("library.smi.gz", "wt") as library:
        library.writelines(f"{smiles} id{number}\n" for number, smiles in enumerate(MIXED_SMILES[:32]))
    with Chem.SDWriter("library.sdf") as writer:
        for smiles in MIXED_SMILES[:6]:
            writer.write(Chem.MolFromSmiles(smiles))
    Path("library.sdf.gz").write_bytes(gzip.compress(Path("library.sdf").read_bytes()))
    pd.DataFrame({"smiles": MIXED_SMILES[:6]}).to_csv("library.csv", index=False)
    logp, drugs = DRUGS["crippen_logp"], DRUGS["smiles"]
    classes = np.array(["water", "oil", "both"])[np.arange(len(DRUGS)) % 3]
    data = pd.DataFrame({"smiles": drugs, "logS": -logp, "active": logp > 2, "solvent_class": classes})
    data.to_csv("data.csv", index=False)
    assays = pd.DataFrame({"smiles": drugs[:8], "logD": logp[:8], "pIC50": logp[:8] + 3})
    assays.to_parquet("assays.parquet")
    shutil.copytree(library_dir, "other_library")
    Path("run.yaml").write_text(small_run())


def small_run() -> str:
    """The README's run; what would take days, or a compiler, is made small."""
    run = code_blocks(README, "yaml")[0]
    for told, small in (("84m", "micro"), ("true", "false"), ("100000", "2"), ("10000", "1"), ("bfloat16", "float32")):
        run = run.replace(f": {told}", f": {small}")
    return f"{run}validation_molecules: 4\n"


@pytest.fixture
def official(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The official repository, with the golden checkpoint in the place of each scale."""
    tiny = GOLDEN / "tiny_checkpoint.pt"
    config = config_from_weights(load_reference_checkpoint(tiny).state_dict)
    for scale in OFFICIAL_SCALES:
        monkeypatch.setitem(SCALES, scale, {name: getattr(config, name) for name in SCALES[scale]})
    files: dict[str, Blob | None] = {
        f"modelzoo/{scale.upper()}/checkpoint.pt": Blob(tiny.read_bytes()) for scale in OFFICIAL_SCALES
    }
    hub.create("model", "dptech/Uni-Mol2").commit("the authors'", files)


@pytest.fixture
def packaged(hub: HubServer) -> Callable[[], None]:
    """Puts the packaged model where the README has the 84m."""

    def put() -> None:
        nano = Path(unimol2_hf.NANO)
        files: dict[str, Blob | None] = {
            path.name: Blob(path.read_bytes()) for path in nano.iterdir() if path.is_file()
        }
        hub.create("model", "org/unimol2-84m").commit("nano", files)

    return put


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("inputs", "official")
@pytest.mark.parametrize("commands", [each for each in blocks_of_commands() if each], ids=lambda each: each[0][11:40])
def test_readme_commands_run(commands: list[str], packaged: Callable[[], None], fitted: Path) -> None:
    text = "\n".join(commands)
    if "--push" not in text:
        packaged()
    if "--output-dir model" not in text:
        shutil.copytree(fitted, "model")
    for command in commands:
        told = run_command(*shlex.split(command, comments=True)[1:])
        assert told.exit_code == 0, f"{command}\n{told.output}"


@pytest.mark.slow
@pytest.mark.usefixtures("inputs")
def test_readme_targets_are_learned() -> None:
    (command,) = next(block for block in blocks_of_commands() if any("assays.parquet" in line for line in block))
    assert run_command(*shlex.split(command, comments=True)[1:]).exit_code == 0
    _, targets = code_blocks(README, "yaml")
    Path("run.yaml").write_text(small_run() + targets)
    told = run_command("pretrain", "--config", "run.yaml")
    assert told.exit_code == 0, told.output
    (history,) = Path("runs").rglob("log_history.json")
    assert all(name in history.read_text() for name in ("rdkit_descriptors", "logD", "pIC50"))
