"""The local Hub refuses what the real one refuses, so that `huggingface_hub` raises what it would raise there."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import READ_ONLY_TOKEN, Blob, HubServer
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_session,
    get_token,
    hf_hub_download,
    hf_hub_url,
)
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

REPO = "somebody/model"


@pytest.fixture
def api(hub: HubServer) -> HfApi:
    hub.create("model", REPO).commit("a file", {"config.json": Blob(b"0123456789")})
    return HfApi()


def commit(api: HfApi, content: bytes, parent: str) -> str:
    operations = [CommitOperationAdd("weights", content)]
    return str(api.create_commit(REPO, operations, commit_message="weights", parent_commit=parent).oid)


def status_of(call: Callable[[], object]) -> int:
    with pytest.raises(HfHubHTTPError) as raised:
        call()
    return int(raised.value.response.status_code)


def test_an_unknown_repository(api: HfApi) -> None:
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("somebody/nothing")
    with pytest.raises(RepositoryNotFoundError):
        api.dataset_info(REPO)


def test_an_unknown_revision(api: HfApi) -> None:
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="v9")


def test_a_missing_file(api: HfApi) -> None:
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download(REPO, "nothing.json")
    with pytest.raises(RemoteEntryNotFoundError):
        api.create_commit(REPO, [CommitOperationDelete("nothing.json")], commit_message="gone")


def test_a_stale_parent(api: HfApi) -> None:
    before = str(api.model_info(REPO).sha)
    after = commit(api, b"one", parent=before)
    assert status_of(lambda: commit(api, b"other", parent=before)) == 412
    assert api.model_info(REPO).sha == after


def test_an_object_that_does_not_hash_to_its_name(hub: HubServer, api: HfApi) -> None:
    response = get_session().put(f"{hub.endpoint}/lfs/models/{REPO}/{'0' * 64}", content=b"content")
    assert response.status_code == 400
    assert not hub.repository("model", REPO).uploads


def test_an_object_that_was_never_uploaded(hub: HubServer, api: HfApi) -> None:
    addition = CommitOperationAdd("weights", b"content")
    hub.upload_mode = "lfs"
    addition._upload_mode, addition._should_ignore, addition._is_uploaded = "lfs", False, True
    with pytest.raises(BadRequestError, match="never uploaded"):
        api.create_commit(REPO, [addition], commit_message="weights")


@pytest.mark.parametrize(("token", "status"), [(READ_ONLY_TOKEN, 403), ("hf_unknown", 401)])
def test_who_may_not_write(api: HfApi, token: str, status: int) -> None:
    assert status_of(lambda: api.create_repo("somebody/other", token=token)) == status


def test_a_private_repository_is_nobody_elses(hub: HubServer, api: HfApi) -> None:
    hub.create("model", "somebody/secret", is_private=True)
    assert api.model_info("somebody/secret").private
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("somebody/secret", token=False)


def test_what_exists_already(api: HfApi) -> None:
    api.create_tag(REPO, tag="v1")
    assert status_of(lambda: api.create_tag(REPO, tag="v1")) == 409
    assert status_of(lambda: api.create_repo(REPO)) == 409


def test_parts_of_a_file(api: HfApi) -> None:
    url = hf_hub_url(REPO, "config.json")

    def read(part: str) -> tuple[int, bytes]:
        response = get_session().get(url, headers={"Range": part})
        return response.status_code, response.content

    assert read("bytes=2-4") == (206, b"234")
    assert read("bytes=7-") == (206, b"789")
    assert read("bytes=10-")[0] == 416
    assert get_session().head(url).headers["Content-Length"] == "10"


def test_a_card_with_broken_metadata(api: HfApi) -> None:
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.create_commit(REPO, [CommitOperationAdd("README.md", b"---\na: [\n---\n")], commit_message="card")


def test_nothing_outside_is_seen(hub: HubServer, tmp_path: Path) -> None:
    assert get_token() == "hf_writes_here"
    assert HfApi().endpoint == hub.endpoint == hf_hub_url("a/b", "c").rsplit("/", 5)[0]
