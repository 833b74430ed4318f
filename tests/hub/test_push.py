"""A folder pushed to the local Hub: one commit, nothing but what is named, and `main` as it was where it fails."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hub_server import READ_ONLY_TOKEN, Blob, HubServer, break_off
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.numpy import save_file

from unimol2_hf import HubError, ModelError
from unimol2_hf.hub.push import files_to_push, push_folder
from unimol2_hf.models.loading import load_config

REPO = "somebody/model"
TEXTS = {
    "config.json": "{}",
    "README.md": "---\nlicense: mit\n---\n# A model\n",
    "handler.py": "",
    "modeling_unimol2.py": "# code",
    "members/1/config.json": "{}",
    ".eval_results/tasks.yaml": "[]",
}
LEFT_OUT = {
    "job.json": '{"source": "/home/somebody"}',
    "training_set.parquet": "molecules",
    "notes.py": "",
    "optimizer.pt": "",
    "members/1/log.json": "",
    "members/config.json": "{}",
    "checkpoints/1/config.json": "{}",
    "checkpoints/1/rng.pth": "",
    ".eval_results/deeper/tasks.yaml": "[]",
}
WEIGHTS = ("model.safetensors", "members/1/model-00001-of-00002.safetensors")


def write(folder: Path, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder as a job leaves it."""
    made = tmp_path / "model"
    write(made, {**TEXTS, **LEFT_OUT})
    for number, name in enumerate(WEIGHTS):
        save_file({"weight": np.full(5, number)}, made / name)
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pushed(hub: HubServer, repo_type: str = "model") -> dict[str, bytes]:
    files = hub.repository(repo_type, REPO).head.files
    return {name: blob.content for name, blob in files.items() if name != ".gitattributes"}


@pytest.mark.parametrize("mode", ["regular", "lfs"])
def test_a_push_is_one_commit_of_the_named_files(hub: HubServer, folder: Path, mode: str) -> None:
    hub.upload_mode = mode  # type: ignore[assignment]
    commit = push_folder(folder, REPO, tag="v1", message="first")
    found = hub.repository("model", REPO)
    assert len(hub.asked_for("commit")) == 1
    assert [each.message for each in found.commits] == ["initial commit", "first"]
    assert found.head.oid == commit == found.tags["v1"]
    assert pushed(hub) == {name: (folder / name).read_bytes() for name in (*TEXTS, *WEIGHTS)}
    assert found.head.files["model.safetensors"].is_lfs == (mode == "lfs")


@pytest.mark.parametrize("mode", ["regular", "lfs"])
def test_what_is_pulled_is_what_was_pushed(hub: HubServer, folder: Path, tmp_path: Path, mode: str) -> None:
    hub.upload_mode = mode  # type: ignore[assignment]
    push_folder(folder, REPO, tag="v1", message="first")
    write(folder, {"config.json": '{"changed": true}'})
    push_folder(folder, REPO, message="second")
    first, second = (snapshot_download(REPO, revision=revision) for revision in ("v1", "main"))
    assert contents(Path(second)) == {**pushed(hub), ".gitattributes": b"*.safetensors filter=lfs\n"}
    assert contents(Path(first)) == {**contents(Path(second)), "config.json": b"{}"}


def test_what_is_left_out_is_told(hub: HubServer, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, left_out = files_to_push(folder)
    assert left_out == [".eval_results/deeper/tasks.yaml", "checkpoints/", "job.json", "members/1/log.json",
                        "members/config.json", "notes.py", "optimizer.pt", "training_set.parquet"]  # fmt: skip
    push_folder(folder, REPO, message="first")
    assert f"left out: {', '.join(left_out)}" in caplog.text


def test_the_training_set_is_pushed_only_when_asked_for(hub: HubServer, folder: Path) -> None:
    push_folder(folder, REPO, message="with", include_training_set=True)
    assert pushed(hub)["training_set.parquet"] == b"molecules"
    push_folder(folder, REPO, message="without")
    assert "training_set.parquet" not in pushed(hub)


def test_of_a_data_set_its_own_files_are_pushed(hub: HubServer, folder: Path) -> None:
    shards = {f"conformers/part-{number:06d}.parquet": f"{number}" for number in range(2)}
    write(folder, {**shards, "conformers/.part-000002.parquet.draft": "", "summary.json": "{}"})
    push_folder(folder, REPO, repo_type="dataset", message="first")
    assert set(pushed(hub, "dataset")) == {"README.md", *shards}


def test_old_shards_of_weights_go_in_the_same_commit(hub: HubServer, folder: Path) -> None:
    push_folder(folder, REPO, message="one file")
    hub.repository("model", REPO).commit("somebody's own", {"picture.png": Blob(b"")})
    (folder / "model.safetensors").unlink()
    for number in (1, 2):
        save_file({f"w{number}": np.ones(2)}, folder / f"model-0000{number}-of-00002.safetensors")
    push_folder(folder, REPO, message="two files")
    assert len(hub.asked_for("commit")) == 2
    assert {name for name in pushed(hub) if name.startswith("model-")} == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }
    assert "model.safetensors" not in pushed(hub)
    assert "picture.png" in pushed(hub)


@pytest.mark.parametrize("mode", ["regular", "lfs"])
def test_an_unchanged_folder_makes_no_commit(hub: HubServer, folder: Path, mode: str) -> None:
    hub.upload_mode = mode  # type: ignore[assignment]
    first = push_folder(folder, REPO, message="first")
    assert push_folder(folder, REPO, message="again", tag="v1") == first
    assert len(hub.asked_for("commit")) == 1
    assert hub.repository("model", REPO).tags == {"v1": first}


def test_somebody_elses_commit_in_between_is_not_overwritten(hub: HubServer, folder: Path) -> None:
    push_folder(folder, REPO, message="first")
    write(folder, {"config.json": '{"mine": true}'})
    found = hub.repository("model", REPO)
    hub.before["commit"] = lambda: found.commit("theirs", {"config.json": Blob(b"theirs")})
    with pytest.raises(HubError, match="somebody else's commit came in between; look at it, then push again"):
        push_folder(folder, REPO, message="second")
    assert found.head.message == "theirs"
    del hub.before["commit"]
    push_folder(folder, REPO, message="second")
    assert found.head.files["config.json"].content == b'{"mine": true}'


def test_a_file_that_changes_while_it_is_sent_is_refused(hub: HubServer, folder: Path) -> None:
    push_folder(folder, REPO, message="first")
    before = hub.repository("model", REPO).head
    hub.upload_mode = "lfs"
    save_file({"weight": np.full(5, 2)}, folder / "model.safetensors")
    hub.before["lfs_batch"] = lambda: save_file({"weight": np.full(5, 3)}, folder / "model.safetensors")
    with pytest.raises(HubError, match=r"'model.safetensors'.*does not hash.*files are as they were"):
        push_folder(folder, REPO, message="second")
    assert hub.repository("model", REPO).head is before


def test_a_connection_that_breaks_leaves_main_as_it_was(hub: HubServer, folder: Path) -> None:
    push_folder(folder, REPO, message="first")
    before = hub.repository("model", REPO).head
    write(folder, {"config.json": '{"new": true}', "LICENSE": "MIT"})
    hub.before["commit"] = break_off
    with pytest.raises(HubError, match="connection to the Hub broke"):
        push_folder(folder, REPO, tag="v2", message="second")
    assert hub.repository("model", REPO).head is before
    assert not hub.repository("model", REPO).tags
    del hub.before["commit"]
    commit = push_folder(folder, REPO, tag="v2", message="second")
    assert hub.repository("model", REPO).tags == {"v2": commit}
    assert pushed(hub)["LICENSE"] == b"MIT"


def test_a_tag_that_cannot_be_set_is_told_with_its_commit(hub: HubServer, folder: Path) -> None:
    hub.before["tag"] = break_off
    with pytest.raises(HubError, match="connection to the Hub broke"):
        push_folder(folder, REPO, tag="v1", message="first")
    head = hub.repository("model", REPO).head
    hub.before["tag"] = lambda: hub.repository("model", REPO).tags.update(v1="somebody's")
    with pytest.raises(HubError, match=f"the commit {head.oid} is there, but not its tag v1"):
        push_folder(folder, REPO, tag="v1", message="first")


@pytest.mark.parametrize("taken", ["v1", "main"])
def test_a_revision_that_exists_is_refused_before_anything_is_sent(hub: HubServer, folder: Path, taken: str) -> None:
    push_folder(folder, REPO, tag="v1", message="first")
    write(folder, {"config.json": '{"new": true}'})
    hub.requests.clear()
    with pytest.raises(HubError, match=f"a revision {taken} already.* choose another --revision"):
        push_folder(folder, REPO, tag=taken, message="second")
    assert {request.method for request in hub.requests} == {"GET", "HEAD"}


def test_a_public_repository_is_not_taken_for_a_private_one(hub: HubServer, folder: Path) -> None:
    push_folder(folder, "somebody/secret", message="first", private=True)
    assert hub.repository("model", "somebody/secret").is_private
    hub.create("model", REPO)
    with pytest.raises(HubError, match="is public already"):
        push_folder(folder, REPO, message="first", private=True)
    assert not pushed(hub)


def test_an_unknown_repository_cannot_be_pulled(hub: HubServer) -> None:
    with pytest.raises(RepositoryNotFoundError):
        snapshot_download("somebody/nothing")
    with pytest.raises(ModelError, match="somebody/nothing cannot be loaded"):
        load_config("somebody/nothing")


def test_a_pickle_by_the_name_of_weights_is_refused(hub: HubServer, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weight": [1.0] * 100}))
    with pytest.raises(HubError, match=r"model.safetensors is no safetensors file"):
        push_folder(folder, REPO, message="first")
    assert not hub.requests


def test_weights_that_were_cut_off_are_refused(hub: HubServer, folder: Path) -> None:
    weights = folder / WEIGHTS[1]
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(HubError, match="no safetensors file"):
        push_folder(folder, REPO, message="first")
    assert not hub.requests


@pytest.mark.parametrize("name", ["calibration.json", "members/2"])
def test_a_link_out_of_the_folder_is_refused(hub: HubServer, folder: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    write(outside, {"config.json": "secret"})
    (folder / name).symlink_to(outside / "config.json" if name.endswith("json") else outside)
    with pytest.raises(HubError, match=f"{name} is a link that leads out"):
        push_folder(folder, REPO, message="first")
    assert not hub.requests


def test_a_link_inside_the_folder_is_followed(hub: HubServer, folder: Path) -> None:
    (folder / "calibration.json").symlink_to("config.json")
    push_folder(folder, REPO, message="first")
    assert pushed(hub)["calibration.json"] == b"{}"


@pytest.mark.parametrize(
    ("repo_id", "message"),
    [
        ("model", "names no owner; give ORG/NAME"),
        ("a/b/c", "is no repository's name"),
        ("somebody/a--b", "is no repository's name"),
        ("/", "is no repository's name"),
        ("", "names no owner; give ORG/NAME"),
    ],
)
def test_bad_names_are_refused_here(hub: HubServer, folder: Path, repo_id: str, message: str) -> None:
    with pytest.raises(HubError, match=message):
        push_folder(folder, repo_id, message="first")
    assert not hub.requests


def test_nobody_may_not_push(hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match="no right to write there; log in"):
        push_folder(folder, REPO, message="first", token=READ_ONLY_TOKEN)
    with pytest.raises(HubError, match="no right to write there; log in"):
        push_folder(folder, REPO, message="first", token="hf_expired")
    hub.requests.clear()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(HubError, match="hf auth login"):
        push_folder(folder, REPO, message="first")
    assert not hub.requests


def test_offline_is_told(hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE=1 forbids"):
        push_folder(folder, REPO, message="first")


def test_a_hub_that_is_not_there_is_told(hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="connection to the Hub broke"):
        push_folder(folder, REPO, message="first")


def test_a_card_with_broken_metadata_is_told(hub: HubServer, folder: Path) -> None:
    write(folder, {"README.md": "---\nlicense: [\n---\n"})
    with pytest.raises(HubError, match=r"Invalid metadata in README.md"):
        push_folder(folder, REPO, message="first")
    assert not hub.asked_for("commit")


@pytest.mark.parametrize("name", ["empty", "nowhere"])
def test_a_folder_without_a_model_is_refused(hub: HubServer, tmp_path: Path, name: str) -> None:
    write(tmp_path, {"empty/notes.txt": ""})
    with pytest.raises(HubError, match=r"nothing to publish|is no folder"):
        push_folder(tmp_path / name, REPO, message="first")
    assert not hub.requests
