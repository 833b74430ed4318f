"""From a checkpoint or a fitted model to a checked repository, on this disk and on the local Hub."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
import yaml
from code_blocks import code_blocks
from command_line import run_command
from conformance import run_without_the_package
from conftest import GOLDEN
from hub_server import HubServer, break_off
from huggingface_hub import ModelCard, snapshot_download
from oracle import relative_difference
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModel, TrainingArguments, pipeline

from unimol2_hf import (
    CheckpointError,
    DataCollatorForUniMol2,
    HubError,
    ModelError,
    OutputFolderError,
    SettingsError,
    UniMol2Config,
    UniMol2FeatureExtractor,
    UniMol2ForPreTraining,
    UniMol2ForPropertyRegression,
    UniMol2Trainer,
    check,
)
from unimol2_hf.finetuning.finetune import finetune
from unimol2_hf.finetuning.settings import FinetuneSettings
from unimol2_hf.hub import cards
from unimol2_hf.hub import publish as publishing
from unimol2_hf.hub.convert import config_from_weights, convert_checkpoint, load_reference_checkpoint
from unimol2_hf.hub.publish import checkpoint_of, publish
from unimol2_hf.hub.repository import check_unimol2
from unimol2_hf.hub.settings import PublishSettings
from unimol2_hf.settings_unimol2 import SCALES

ROOT = Path(__file__).parents[2]
TINY = GOLDEN / "tiny_checkpoint.pt"
QUIET = Console(quiet=True)
DRUGS = pd.read_csv(ROOT / "examples" / "drugs.csv").head(120)


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> str:
    """A published scale's name, given to the golden checkpoint's sizes."""
    checkpoint = load_reference_checkpoint(TINY, ignore_head=True)
    config = config_from_weights(checkpoint.state_dict)
    monkeypatch.setitem(SCALES, "84m", {name: getattr(config, name) for name in SCALES["84m"]})
    return "84m"


@pytest.fixture
def official(scale: str, tmp_path: Path) -> Path:
    """One repository made from an official checkpoint."""
    settings = PublishSettings(scale=scale, checkpoint=str(TINY))
    (folder,) = publish(None, tmp_path / "out", settings, QUIET)
    return folder


def fitted(folder: Path, drugs: pd.DataFrame, **settings: Any) -> Path:
    data = folder.with_suffix(".csv")
    drugs.assign(acid=(drugs["tpsa"] > 60).map({True: "yes", False: "no"})).to_csv(data, index=False)
    options = {"targets": ("tpsa",), "split_method": "random", "num_workers": 0, "conformer_cache": "auto"}
    finetune(data, folder, FinetuneSettings(**{**options, **settings}), QUIET)
    return folder


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten frozen heads with intervals, of a number and of two classes."""
    folder = tmp_path_factory.mktemp("frozen") / "solubility"
    return fitted(folder, DRUGS, targets=("tpsa", "acid"), head="frozen", folds=5, descriptors="rdkit")


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three trained models."""
    folder = tmp_path_factory.mktemp("ensemble") / "three"
    return fitted(
        folder, DRUGS.head(48), scale="micro", folds=3, epochs=1, learning_rate=1e-3, featurizer={"embed_timeout": 60}
    )


def published(model: str | Path, output_dir: Path, **settings: Any) -> Path:
    (folder,) = publish(str(model), output_dir, PublishSettings(**settings), QUIET)
    return folder


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def quick_start_of(folder: Path) -> str:
    (block,) = code_blocks(folder / "README.md", "python")
    return block


def assert_told(told: str, block: str) -> None:
    """The card's Python printed what its last line says."""
    expected = block.strip().splitlines()[-1].removeprefix("# ")
    numbers = [np.array(re.findall(r"-?\d+\.\d+", text), dtype=float) for text in (told, expected)]
    assert len(numbers[0])
    np.testing.assert_allclose(numbers[0], numbers[1], atol=2e-3, rtol=1e-3)


def run_quick_start(folder: Path, name: str) -> None:
    """The card's Python where the package is imported, from the folder instead of the Hub."""
    block = quick_start_of(folder)
    assert name in block
    with contextlib.redirect_stdout(io.StringIO()) as told:
        exec(block.replace(name, str(folder)), {})
    assert_told(told.getvalue(), block)


@pytest.mark.numerical
class TestOfficial:
    def test_the_repository(self, official: Path, scale: str, tmp_path: Path) -> None:
        told = json.loads((official / "publication.json").read_text())
        assert told["source"]["name"] == "tiny_checkpoint.pt"
        assert max(told["verification"]["differences"].values()) <= 1e-5
        beside = json.loads((official.parent / "published.json").read_text())[official.name]
        assert beside["peak_memory_gib"] > 0
        assert {"LICENSE", "handler.py", "requirements.txt", "scaling_law.png", "SHA256SUMS"} <= names_in(official)
        assert not [name for name in names_in(official) if name.endswith((".pt", ".bin", ".pkl", ".pth"))]
        assert str(tmp_path) not in "".join(path.read_text() for path in official.glob("*.[jm][sd]*"))

    def test_it_answers_as_the_checkpoint(self, official: Path, pretraining_model: UniMol2ForPreTraining) -> None:
        batch = UniMol2FeatureExtractor()("CC(=O)Oc1ccccc1C(=O)O")
        with torch.no_grad():
            ours = AutoModel.from_pretrained(official).eval()(**batch).pooler_output
            expected = pretraining_model.unimol2(**batch).pooler_output
        assert relative_difference(ours, expected) < 1e-6

    def test_its_own_check_without_the_package(self, official: Path, tmp_path: Path) -> None:
        told = run_without_the_package("check_repository.py", official, where=tmp_path)
        assert "is what was published; largest difference of 3 outputs" in told

    def test_the_card(self, official: Path) -> None:
        card = ModelCard.load(official / "README.md")
        assert card.data.library_name == "transformers"
        assert card.data.pipeline_tag == "graph-ml"
        assert card.data.base_model == "dptech/Uni-Mol2"
        run_quick_start(official, "org/unimol2-84m")

    def test_a_second_time_nothing_is_made_again(self, official: Path, scale: str) -> None:
        before = (official / "model.safetensors").stat().st_mtime_ns
        settings = PublishSettings(scale=scale, checkpoint=str(TINY), revision="v9", space="org/page")
        publish(None, official.parent, settings, QUIET)
        assert (official / "model.safetensors").stat().st_mtime_ns == before
        card = (official / "README.md").read_text()
        assert 'revision="v9"' in card or '"revision": "v9"' in card
        assert "https://huggingface.co/spaces/org/page" in card
        check(official)

    def test_another_checkpoint_is_not_mixed_in(self, official: Path, scale: str, tmp_path: Path) -> None:
        torch.save({"model": load_reference_checkpoint(TINY).state_dict}, tmp_path / "other.pt")
        settings = PublishSettings(scale=scale, checkpoint=str(tmp_path / "other.pt"))
        with pytest.raises(OutputFolderError, match="published from another checkpoint"):
            publish(None, official.parent, settings, QUIET)

    def test_a_folder_that_was_changed(self, official: Path, scale: str) -> None:
        with (official / "model.safetensors").open("ab") as weights:
            weights.write(b"\0")
        with pytest.raises(ModelError, match=r"changed since it was made \(model.safetensors\)"):
            publish(None, official.parent, PublishSettings(scale=scale, checkpoint=str(TINY)), QUIET)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda path: shutil.copy(TINY, path), r"is not of the scale 164m: num_hidden_layers"),
            (lambda path: path.write_bytes(TINY.read_bytes()[:-20_000]), "cannot be read|no PyTorch checkpoint"),
            (lambda path: path.write_text("<html>"), "no PyTorch checkpoint"),
            (lambda path: torch.save({"model": {"a": torch.ones(2)}}, path), "no Uni-Mol2 checkpoint"),
        ],
        ids=["another size", "broken off", "an error page", "another model"],
    )
    def test_refused_before_anything_is_written(
        self, change: Callable[[Path], Any], message: str, tmp_path: Path
    ) -> None:
        change(tmp_path / "checkpoint.pt")
        settings = PublishSettings(scale="164m", checkpoint=str(tmp_path / "checkpoint.pt"))
        with pytest.raises(CheckpointError, match=message):
            publish(None, tmp_path / "out", settings, QUIET)
        assert not (tmp_path / "out").exists()

    def test_weights_that_are_no_numbers(self, scale: str, tmp_path: Path) -> None:
        weights = dict(load_reference_checkpoint(TINY, ignore_head=True).state_dict)
        weights["lm_head.bias"] = torch.full_like(weights["lm_head.bias"], torch.nan)
        torch.save({"model": weights}, tmp_path / "checkpoint.pt")
        settings = PublishSettings(scale=scale, checkpoint=str(tmp_path / "checkpoint.pt"))
        with pytest.raises(CheckpointError, match=r"lm_head.bias holds numbers that are not finite"):
            publish(None, tmp_path / "out", settings, QUIET)
        assert not (tmp_path / "out").exists()

    def test_a_conversion_that_answers_otherwise(
        self, scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = convert_checkpoint

        def wrong(*args: Any) -> Any:
            model = original(*args)
            with torch.no_grad():
                model.unimol2.layers[1].outer_product.out_proj.weight.mul_(1.01)
            return model

        monkeypatch.setattr(publishing, "convert_checkpoint", wrong)
        with pytest.raises(CheckpointError, match="answers otherwise than the checkpoint"):
            publish(None, tmp_path / "out", PublishSettings(scale=scale, checkpoint=str(TINY)), QUIET)
        assert not list((tmp_path / "out").glob("unimol2*"))

    def test_where_checkpoints_are_looked_for(self, tmp_path: Path) -> None:
        (tmp_path / "modelzoo" / "1.1B").mkdir(parents=True)
        path = tmp_path / "modelzoo" / "1.1B" / "checkpoint.pt"
        path.touch()
        assert checkpoint_of(str(tmp_path), "1.1b") == (path, "modelzoo/1.1B/checkpoint.pt")
        assert checkpoint_of(str(path), "1.1b") == (path, "checkpoint.pt")
        with pytest.raises(CheckpointError, match=r"no checkpoint of 84m; it was looked for at .*modelzoo/84M"):
            checkpoint_of(str(tmp_path), "84m")

    @pytest.mark.parametrize(
        ("model", "settings", "message"),
        [
            (None, {}, "name the folder of a model"),
            ("m", {"scale": "84m"}, "name the folder of a model"),
            ("m", {"checkpoint": "c"}, "belongs to --scale"),
            (None, {"scale": "84m"}, "needs --checkpoint"),
            (None, {"scale": "42m", "checkpoint": "c"}, "of 42m no official checkpoint was published"),
            (None, {"scale": "84m,2b", "checkpoint": "c"}, "unknown scale 2b"),
            (None, {"scale": "all", "checkpoint": "c", "push": "org/one"}, "is one repository, and there are 5"),
        ],
    )
    def test_what_is_asked_for(self, model: str | None, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match=message):
            publish(model, tmp_path / "out", PublishSettings(**settings), QUIET)

    def test_the_command(self, scale: str, tmp_path: Path) -> None:
        told = run_command("publish", "--scale", scale, "--checkpoint", str(TINY), "--output-dir", str(tmp_path / "o"))
        assert told.exit_code == 0, told.output
        assert "reference_outputs.safetensors" in told.output
        assert run_command("check", str(tmp_path / "o" / "unimol2-84m")).exit_code == 0


class TestOwn:
    @pytest.mark.parametrize("kind", ["frozen", "ensemble"])
    def test_the_same_without_the_package(self, kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
        origin: Path = request.getfixturevalue(kind)
        folder = published(origin, tmp_path / "out")
        run_without_the_package("check_repository.py", folder, where=tmp_path)
        ours = pipeline("molecule-property-prediction", str(origin))("CCOC(=O)c1ccccc1N")
        found = json.loads(run_without_the_package("predict.py", folder, '["CCOC(=O)c1ccccc1N"]', where=tmp_path))
        for name, value in ours["predictions"].items():
            assert found["pipeline"][0]["predictions"][name] == pytest.approx(value, rel=1e-4)

    def test_what_is_left_out(self, frozen: Path, tmp_path: Path) -> None:
        names = names_in(published(frozen, tmp_path / "out"))
        assert {"calibration.json", "fingerprints.safetensors", "model.safetensors"} <= names
        assert not {"training_set.parquet", "metrics.json", "settings.json", "job.json"} & names
        assert "training_set.parquet" in names_in(published(frozen, tmp_path / "two", include_training_set=True))

    def test_the_card_is_filled_by_the_run(self, frozen: Path, tmp_path: Path) -> None:
        folder = published(frozen, tmp_path / "out", model_license="cc-by-4.0")
        card, metrics = (folder / "README.md").read_text(), json.loads((frozen / "metrics.json").read_text())
        own = metrics["test"]["tpsa"]
        lower, upper = own["mae_interval"]
        assert f"| tpsa | mae | {own['mae']:.3f} ({lower:.3f} to {upper:.3f}) |" in card
        assert f"{metrics['rows']['train']} molecules to train on" in card
        assert "hold 90 % of new molecules" in card
        assert "The weights: cc-by-4.0." in card
        assert str(frozen.parent) not in card
        assert "\n# {'tpsa': " in quick_start_of(folder)
        run_quick_start(folder, "org/solubility")

    def test_the_card_has_the_folders_own_featurizer(self, frozen: Path, tmp_path: Path) -> None:
        shutil.copytree(frozen, tmp_path / "model")
        options = {"num_conformers": 3, "force_field": "UFF", "seed": 7, "max_atoms": 80, "standardize": "parent"}
        UniMol2FeatureExtractor.from_pretrained(frozen, **options).save_pretrained(tmp_path / "model")
        card = (published(tmp_path / "model", tmp_path / "out") / "README.md").read_text()
        assert "at most 80;" in card
        assert "Up to 3 conformers: given, or ETKDG from RDKit, relaxed by UFF (seed 7)." in card
        assert "the parent is read" in card

    @pytest.mark.parametrize("is_folder", [True, False])
    def test_a_folders_name_is_not_told(self, is_folder: bool, frozen: Path, tmp_path: Path) -> None:
        shutil.copytree(frozen, tmp_path / "model")
        settings, job = (json.loads((frozen / name).read_text()) for name in ("settings.json", "job.json"))
        job["about"]["model_is_folder"] = is_folder
        (tmp_path / "model" / "settings.json").write_text(json.dumps(settings | {"model": "acme/secret"}))
        (tmp_path / "model" / "job.json").write_text(json.dumps(job))
        folder = published(tmp_path / "model", tmp_path / "out")
        told = "".join(path.read_text() for path in (folder / "README.md", folder / "publication.json"))
        assert ("acme/secret" in told) is not is_folder
        assert ModelCard.load(folder / "README.md").data.base_model == (None if is_folder else "acme/secret")

    def test_of_another_version(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        published("unimol2-nano", tmp_path)
        monkeypatch.setattr(publishing, "versions", lambda: {"unimol2_hf": "99"})
        with pytest.raises(OutputFolderError, match=r"was made by unimol2-hf .*; delete it, and publish again"):
            published("unimol2-nano", tmp_path)

    def test_results_of_a_data_set_of_the_hub(self, frozen: Path, tmp_path: Path) -> None:
        shutil.copytree(frozen, tmp_path / "model")
        job = json.loads((tmp_path / "model" / "job.json").read_text())
        job["about"]["source"] = "hf://datasets/org/adme"
        (tmp_path / "model" / "job.json").write_text(json.dumps(job))
        folder = published(tmp_path / "model", tmp_path / "out")
        entries = yaml.safe_load((folder / ".eval_results" / "unimol2_hf.yaml").read_text())
        metrics = json.loads((frozen / "metrics.json").read_text())["test"]
        assert entries[0]["dataset"]["id"] == "org/adme"
        assert entries[0]["value"] == metrics["tpsa"]["mae"]
        assert ModelCard.load(folder / "README.md").data.datasets == ["org/adme"]

    def test_names_that_are_markup(self, property_model: UniMol2ForPropertyRegression, tmp_path: Path) -> None:
        names = ["a | b", "[x](http://y)", "line\n---\nlicense: evil"]
        property_model.config.set_targets([{"name": each, "kind": "regression"} for each in names])
        property_model.save_pretrained(tmp_path / "m")
        UniMol2FeatureExtractor().save_pretrained(tmp_path / "m")
        card = ModelCard.load(published(tmp_path / "m", tmp_path / "out") / "README.md")
        assert card.data.license is None
        assert r"| a \| b | regression |" in card.text
        assert r"\[x\](http://y)" in card.text

    def test_the_command_in_a_process_of_its_own(self, tmp_path: Path) -> None:
        """Which registers nothing with Transformers unless it needs to."""
        command = [sys.executable, "-m", "unimol2_hf.cli"]
        made = [*command, "publish", "unimol2-nano", "--output-dir", str(tmp_path)]
        for each in (made, [*command, "check", str(tmp_path / "unimol2-nano")]):
            run = subprocess.run(each, capture_output=True, text=True, check=False)
            assert run.returncode == 0, run.stdout + run.stderr

    def test_nano(self, tmp_path: Path) -> None:
        folder = published("unimol2-nano", tmp_path)
        assert folder.name == "unimol2-nano"
        assert set(check(folder)) == {"embedding", "token_logits", "predicted_coordinates"}


class TestCheck:
    def test_a_file_that_was_broken_off(self, official: Path) -> None:
        weights = official / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        with pytest.raises(ModelError, match=r"model.safetensors differs \(1,000 bytes here\).*fetch it again"):
            check(official)

    def test_a_file_that_is_missing(self, official: Path) -> None:
        (official / "modeling_unimol2.py").unlink()
        with pytest.raises(ModelError, match=r"modeling_unimol2.py is missing"):
            check(official)

    def test_from_a_folder_beside_it(self, official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(official)
        check(Path("..") / official.name)

    def test_what_lies_beside_a_download(self, official: Path) -> None:
        for name in (".cache/huggingface/trees.json", "notes.txt", "__pycache__/handler.cpython-312.pyc"):
            (official / name).parent.mkdir(parents=True, exist_ok=True)
            (official / name).touch()
        check(official)

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json", "handler.py", "publication.json"])
    def test_a_file_without_a_checksum(self, official: Path, name: str) -> None:
        sums = official / "SHA256SUMS"
        sums.write_text("".join(each for each in sums.open() if not each.endswith(f"  {name}\n")))
        with (official / name).open("a") as file:
            file.write("\n")
        with pytest.raises(ModelError, match=f"SHA256SUMS leaves out {re.escape(name)}"):
            check(official)

    def test_a_file_that_went_with_its_checksum(self, official: Path) -> None:
        (official / "modeling_unimol2.py").unlink()
        check_unimol2.write_checksums(official, names_in(official))
        with pytest.raises(ModelError, match=r"SHA256SUMS leaves out modeling_unimol2\.py"):
            check(official)

    def test_a_module_that_was_not_published(self, official: Path) -> None:
        (official / "members").mkdir()
        (official / "members" / "torch.py").touch()
        with pytest.raises(ModelError, match=r"SHA256SUMS leaves out members/torch\.py"):
            check(official)

    def test_not_published(self, property_dir: str) -> None:
        with pytest.raises(ModelError, match=r"has no SHA256SUMS: it was not published"):
            check(property_dir)

    def test_other_weights_with_checksums_of_their_own(self, official: Path) -> None:
        weights = load_file(official / "model.safetensors")
        name = "unimol2.layers.0.mlp.fc1.weight"
        weights[name] = weights[name] * 1.05
        save_file(weights, official / "model.safetensors", {"format": "pt"})
        check_unimol2.write_checksums(official, names_in(official))
        with pytest.raises(
            ModelError, match=r"does not answer as it did.*embedding by.*publication.json names under made_with"
        ):
            check(official)

    def test_random_weights_loaded_in_silence(self, official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What Transformers has done to others' remote code: no error, no warning, other answers."""
        original = transformers.PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]

        def forgetful(cls: Any, *args: Any, **kwargs: Any) -> Any:
            model = original(cls, *args, **kwargs)
            torch.nn.init.normal_(model.base_model.embeddings.atom_embeddings.weight, std=0.02)
            return model

        monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", classmethod(forgetful))
        with pytest.raises(ModelError, match="does not answer as it did when it was published"):
            check(official)


class TestHub:
    @pytest.mark.parametrize("kind", ["frozen", "ensemble"])
    def test_there_and_back(self, kind: str, hub: HubServer, tmp_path: Path, request: pytest.FixtureRequest) -> None:
        folder = published(request.getfixturevalue(kind), tmp_path / "out", push="org", revision="v1")
        repo_id = f"org/{folder.name}"
        assert len(hub.asked_for("commit")) == 1
        fetched = Path(snapshot_download(repo_id, revision="v1"))
        assert names_in(fetched) - {".gitattributes"} == names_in(folder)
        assert all((fetched / name).read_bytes() == (folder / name).read_bytes() for name in names_in(folder))
        check(repo_id, revision="v1")
        pipe = pipeline("molecule-property-prediction", repo_id, revision="v1", trust_remote_code=True)
        expected = pipeline("molecule-property-prediction", str(request.getfixturevalue(kind)))("CCOc1ccccc1")
        assert pipe("CCOc1ccccc1")["predictions"]["tpsa"] == pytest.approx(expected["predictions"]["tpsa"], rel=1e-4)

    def test_the_card_s_commands(
        self, hub: HubServer, scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = PublishSettings(scale=scale, checkpoint=str(TINY), push="org", revision="v1")
        (folder,) = publish(None, tmp_path / "out", settings, QUIET)
        install, check_it = code_blocks(folder / "README.md", "bash")
        assert install.startswith("pip install ")
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        told = subprocess.run(
            ["bash", "-ec", check_it], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200
        )
        assert told.returncode == 0, told.stderr
        assert "model is what was published" in told.stdout

    def test_the_card_s_python_without_the_package(self, hub: HubServer, scale: str, tmp_path: Path) -> None:
        settings = PublishSettings(scale=scale, checkpoint=str(TINY), push="org", revision="v7")
        (folder,) = publish(None, tmp_path / "out", settings, QUIET)
        block = quick_start_of(folder)
        assert '"org/unimol2-84m"' in block
        assert '"revision": "v7"' in block
        assert_told(run_without_the_package("run_code.py", block, where=tmp_path), block)

    def test_a_fitted_model_s_card_without_the_package(self, hub: HubServer, frozen: Path, tmp_path: Path) -> None:
        block = quick_start_of(published(frozen, tmp_path / "out", push="org", revision="v7"))
        assert_told(run_without_the_package("run_code.py", block, where=tmp_path), block)

    def test_a_loop_that_broke_off_goes_on(
        self, hub: HubServer, scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(SCALES, "164m", SCALES[scale])
        settings = PublishSettings(scale=f"{scale},164m", checkpoint=str(TINY), push="org")
        # The first commit arrives.
        hub.before["commit"] = lambda: hub.before.update(commit=break_off)
        with pytest.raises(HubError, match="run it again"):
            publish(None, tmp_path / "out", settings, QUIET)
        del hub.before["commit"]
        publish(None, tmp_path / "out", settings, QUIET)
        for name in ("84m", "164m"):
            found = hub.repository("model", f"org/unimol2-{name}")
            assert set(found.tags.values()) == {found.head.oid}
        assert len(hub.asked_for("commit")) == 3

    def test_another_model_under_the_same_tag(
        self, hub: HubServer, frozen: Path, ensemble: Path, tmp_path: Path
    ) -> None:
        published(frozen, tmp_path / "out", push="org/one", revision="v1")
        with pytest.raises(HubError, match="has a revision v1 already"):
            published(ensemble, tmp_path / "other", push="org/one", revision="v1")

    def test_a_failed_check_sends_nothing(
        self, hub: HubServer, scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any) -> None:
            raise ModelError("does not answer as it did")

        monkeypatch.setattr(publishing, "check", fail)
        with pytest.raises(ModelError):
            publish(None, tmp_path / "out", PublishSettings(scale=scale, checkpoint=str(TINY), push="org"), QUIET)
        assert not hub.requests

    def test_a_truncated_cache(self, hub: HubServer, frozen: Path, tmp_path: Path) -> None:
        published(frozen, tmp_path / "out", push="org")
        blob = (Path(snapshot_download("org/solubility")) / "model.safetensors").resolve()
        blob.write_bytes(blob.read_bytes()[:-100])
        with pytest.raises(ModelError, match=r"model.safetensors differs.*--force-download"):
            check("org/solubility")

    def test_unknown(self, hub: HubServer) -> None:
        with pytest.raises(HubError, match="no such repository"):
            check("org/nothing")

    def test_the_trainer(self, hub: HubServer, tmp_path: Path) -> None:
        torch.manual_seed(0)
        config = UniMol2Config.from_scale("micro")
        model = UniMol2ForPropertyRegression(config)
        extractor = UniMol2FeatureExtractor(embed_timeout=60)
        rows = [
            {**next(iter(each.model_inputs())), "labels": [float(number)]}
            for number, each in enumerate(extractor.featurize(list(DRUGS["smiles"][:8])))
        ]
        arguments = TrainingArguments(
            str(tmp_path / "run"), max_steps=2, report_to="none", remove_unused_columns=False, use_cpu=True,
            save_strategy="steps", save_steps=1, push_to_hub=True, hub_model_id="org/trained",
        )  # fmt: skip
        trainer = UniMol2Trainer(
            model, arguments, train_dataset=rows, data_collator=DataCollatorForUniMol2(extractor),
            processing_class=extractor,
        )  # fmt: skip
        trainer.train()
        assert not hub.asked_for("commit")
        trainer.push_to_hub(license="mit")
        assert len(hub.asked_for("commit")) == 1
        fetched = Path(snapshot_download("org/trained"))
        assert not [name for name in names_in(fetched) if name.endswith((".bin", ".pt", ".pkl"))]
        check("org/trained")
        run_without_the_package("check_repository.py", fetched, where=tmp_path)
        with pytest.raises(SettingsError, match="cannot follow tags"):
            trainer.push_to_hub(tags="x")
        arguments.hub_model_id = None
        trainer.push_to_hub()
        assert "model.safetensors" in hub.repository("model", "somebody/run").head.files


def test_the_roots_card_is_the_familys() -> None:
    assert (ROOT / "model_card.md").read_text() == cards.family_card()


def test_what_others_install_is_what_the_package_needs() -> None:
    """The card's line and the endpoint's file, beside pyproject.toml's bounds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    card = re.findall(r'"([a-z]+>=[^"]+)"', re.findall(r"pip install .*", cards.family_card())[0])
    endpoint = (ROOT / "src/unimol2_hf/hub/repository/requirements.txt").read_text().split()
    assert len(card) == 2
    assert set(card) | set(endpoint) <= set(project)
