"""A folder to the Hub in one commit: what may be published, checked here first; all of it arrives or nothing does."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of httpx or httpx2, whichever the installed version works with
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError, safe_open
from transformers.utils import logging

from ..data.shards import CONFORMERS
from ..errors import HubError
from .export import source_files
from .repository.check_unimol2 import CHECKSUMS_FILE, checksums_of

logger = logging.get_logger(__name__)

_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
# All that is ever published, besides the package's own code files. A folder also holds checkpoints, logs, predictions
# and the paths of the machine that made it: what is not named here stays here.
PUBLISHED = (
    "config.json",
    "preprocessor_config.json",
    *_WEIGHTS,
    "fingerprints.safetensors",
    "reference_outputs.safetensors",
    "calibration.json",
    "publication.json",
    "README.md",
    "LICENSE",
    "SHA256SUMS",
    "requirements.txt",
    "handler.py",
    "check_unimol2.py",
    "scaling_law.png",
    ".eval_results/*.yaml",
    *(f"members/[0-9]*/{name}" for name in ("config.json", *_WEIGHTS)),
)
PUBLISHED_OF_DATA_SETS = ("README.md", f"{CONFORMERS}/part-*.parquet")
TRAINING_SET = "training_set.parquet"  # only where it is asked for


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    repo_type: str = "model",
    tag: str | None = None,
    message: str,
    private: bool = False,
    include_training_set: bool = False,
    token: str | None = None,
) -> str:
    """Make the repository's published files those of the folder, in one commit, and return the commit's id.

    A repository that is missing is created. A published file that the folder no longer has, such as a shard of older
    weights, is deleted in the same commit. A commit of somebody else's in between is not overwritten.
    What is there under the tag already, checksum by checksum, is not pushed again: a loop over several goes on where it
    broke off.

    Args:
        folder: of a model, or of a data set.
        repo_id: "ORG/NAME".
        repo_type: "model" or "dataset".
        tag: a name for this version, of which nothing else may be there.
        message: of the commit.
        private: whether a repository that is created is private.
        include_training_set: also the training molecules with their labels.
        token: with the right to write; default: the one of `hf auth login` or HF_TOKEN.

    Raises:
        HubError: the folder holds what must not be published under its name, or the Hub refuses.
    """
    files, left_out = files_to_push(folder, repo_type, include_training_set)
    if left_out:
        logger.warning(f"left out: {', '.join(left_out)}")
    with hub_errors(repo_id):
        _require_owner(repo_id)
        _require_token(token)
        api = HfApi(token=token)
        head = _head(api, repo_id, repo_type, private)
        known = None if tag is None else _commit_of(api, repo_id, repo_type, tag)
        if known is not None:
            _require_same(api, repo_id, repo_type, str(tag), checksums_of(folder, files))
            return known
        commit = api.create_commit(
            repo_id,
            [*_additions(folder, files), *_deletions(api, repo_id, repo_type, head, files)],
            commit_message=message,
            repo_type=repo_type,
            parent_commit=head,
        ).oid
    if tag is not None:
        with hub_errors(repo_id, f"the commit {commit} is there, but not its tag {tag}"):
            api.create_tag(repo_id, tag=tag, revision=commit, repo_type=repo_type)
    return commit


def files_to_push(
    folder: Path, repo_type: str = "model", include_training_set: bool = False
) -> tuple[list[str], list[str]]:
    """The files of a folder that are published, and what is left out: files, and folders of which nothing is published.

    Raises:
        HubError: there are none, one leads out of the folder, or one is not what its name says.
    """
    if not folder.is_dir():
        raise HubError(f"{folder} is no folder")
    patterns = _published(repo_type) + ((TRAINING_SET,) if include_training_set else ())
    names = list(_names_in(folder))
    files = [name for name in names if _matches(name, patterns)]
    if not files:
        raise HubError(f"{folder} holds nothing to publish; give the folder with the {repo_type}'s files")
    for name in files:
        if name.endswith(".safetensors"):
            _check_safetensors(folder / name)
    tops = {name.split("/")[0] for name in files}
    rest = {name if name.split("/")[0] in tops else _top(name) for name in set(names) - set(files)}
    return files, sorted(rest)


@contextmanager
def hub_errors(repo_id: str, state: str = "its files are as they were") -> Iterator[None]:
    """Name what the Hub, or the way to it, refuses, and what to do.

    Args:
        repo_id: of which repository.
        state: what is so now, for the message.

    Raises:
        HubError: from whatever came.
    """
    try:
        yield
    except HubError:
        raise
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} is no repository's name: {error}; give ORG/NAME") from error
    except OfflineModeIsEnabled as error:
        raise HubError(f"{repo_id}: HF_HUB_OFFLINE=1 forbids to reach the Hub; unset it for this command") from error
    except LocalTokenNotFoundError as error:
        raise HubError(f"{repo_id}: {_LOG_IN}") from error
    except HfHubHTTPError as error:
        raise HubError(f"{repo_id}: {_advice(error)}; {state}") from error
    except RuntimeError as error:
        # huggingface_hub's name for a large file that did not arrive; what happened to it is the cause.
        cause = error.__cause__
        told = _advice(cause) if isinstance(cause, HfHubHTTPError) else str(cause or error)
        raise HubError(f"{repo_id}: {error} {told}; {state}") from error
    except HTTPError as error:
        raise HubError(
            f"{repo_id}: the connection to the Hub broke ({error}); look there or run it again: what has arrived whole "
            "is not sent twice"
        ) from error
    except (OSError, ValueError) as error:
        raise HubError(f"{repo_id}: {error}; {state}") from error


_LOG_IN = "no right to write there; log in by `hf auth login`, or set HF_TOKEN to a token that may write to it"
_ADVICE = {
    401: _LOG_IN,
    403: _LOG_IN,
    409: "it is there already",
    412: "somebody else's commit came in between; look at it, then push again",
}


def _advice(error: HfHubHTTPError) -> str:
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is private and your token may not see it"
    status = error.response.status_code
    if status in _ADVICE:
        return _ADVICE[status]
    told = error.server_message or " ".join(str(error).split())
    return f"the Hub answers {status}: {told}"


def _published(repo_type: str) -> tuple[str, ...]:
    if repo_type == "dataset":
        return PUBLISHED_OF_DATA_SETS
    return PUBLISHED + tuple(path.name for path in source_files())


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """Part by part: a star stands for no slash."""
    parts = name.split("/")
    return any(
        len(parts) == pattern.count("/") + 1 and all(map(fnmatchcase, parts, pattern.split("/")))
        for pattern in patterns
    )


def _names_in(folder: Path) -> Iterator[str]:
    """Paths of all files below a folder, sorted."""
    root = folder.resolve()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
            raise HubError(f"{name} is a link that leads out of {folder}; put the file itself there, or remove it")
        if path.is_file():
            yield name


def _top(name: str) -> str:
    top, *below = PurePosixPath(name).parts
    return f"{top}/" if below else top


def _check_safetensors(path: Path) -> None:
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise HubError(f"{path} is no safetensors file: {error}; save the model again") from error


def _require_owner(repo_id: str) -> None:
    if "/" not in repo_id:
        raise HubError(f"{repo_id!r} names no owner; give ORG/NAME")


def _require_token(token: str | None) -> None:
    if not (token or get_token()):
        raise LocalTokenNotFoundError


def _head(api: HfApi, repo_id: str, repo_type: str, private: bool) -> str:
    """The commit that `main` is at, of a repository that was created if it was missing."""
    try:
        found = api.repo_info(repo_id, repo_type=repo_type)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, repo_type=repo_type, private=private)
        found = api.repo_info(repo_id, repo_type=repo_type)
    if private and not found.private:
        raise HubError(f"{repo_id} is public already; choose another name, or make it private in its settings")
    return str(found.sha)


def _commit_of(api: HfApi, repo_id: str, repo_type: str, revision: str) -> str | None:
    """What a tag or branch points at, if there is one of this name."""
    refs = api.list_repo_refs(repo_id, repo_type=repo_type)
    return next((str(ref.target_commit) for ref in chain(refs.tags, refs.branches) if ref.name == revision), None)


def _require_same(api: HfApi, repo_id: str, repo_type: str, revision: str, checksums: str) -> None:
    """Raise `HubError` unless a revision's files are those of the checksums; a data set has none to tell by."""
    with suppress(EntryNotFoundError):
        there = api.hf_hub_download(repo_id, CHECKSUMS_FILE, revision=revision, repo_type=repo_type)
        if Path(there).read_text() == checksums:
            return
    raise HubError(f"{repo_id} has a revision {revision} already, which stays what it is; choose another --revision")


def with_owner(repo_id: str, token: str | None) -> str:
    """ORG/NAME: where ORG is missing, the account of the token.

    Raises:
        HubError: there is no token, or the Hub cannot be asked.
    """
    if "/" in repo_id:
        return repo_id
    with hub_errors(repo_id):
        _require_token(token)
        return f"{HfApi(token=token).whoami()['name']}/{repo_id}"


def _additions(folder: Path, files: Iterable[str]) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(name, os.fspath(folder / name)) for name in files]


def _deletions(
    api: HfApi, repo_id: str, repo_type: str, head: str, files: Iterable[str]
) -> list[CommitOperationDelete]:
    """What a folder does not have any more, or not for everybody: a training set that was published before."""
    patterns = (*_published(repo_type), TRAINING_SET)
    there: Iterable[Any] = api.list_repo_tree(repo_id, recursive=True, revision=head, repo_type=repo_type)
    names = {each.path for each in there}
    return [CommitOperationDelete(name) for name in sorted(names - set(files)) if _matches(name, patterns)]
