"""A small Hugging Face Hub on this machine: repositories in memory, a log of requests, refusals with the real codes.

It answers what `huggingface_hub` and `datasets` ask about models and data sets. A repository has one branch, `main`.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

TOKEN, READ_ONLY_TOKEN = "hf_writes_here", "hf_only_reads"
MAIN = "main"


class RefusedError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}


def break_off() -> None:
    """What `HubServer.before` holds for a request whose connection is to break instead of being answered."""
    raise ConnectionAbortedError


@dataclass(frozen=True)
class Blob:
    """A file, kept in git itself or as a large one."""

    content: bytes
    is_lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def git_oid(self) -> str:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        stored = pointer.encode() if self.is_lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.git_oid

    def entry(self, path: str) -> dict[str, Any]:
        lfs = {"lfs": {"oid": self.sha256, "size": len(self.content), "pointerSize": 130}} if self.is_lfs else {}
        return {"type": "file", "path": path, "size": len(self.content), "oid": self.git_oid, **lfs}


@dataclass(frozen=True)
class Commit:
    oid: str
    message: str
    files: Mapping[str, Blob]


@dataclass
class Repository:
    """Commits of `main`, the first one first; large files that were sent, by their sha256."""

    kind: str
    id: str
    is_private: bool = False
    commits: list[Commit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("initial commit", {".gitattributes": Blob(b"*.safetensors filter=lfs\n")})

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    @property
    def url_path(self) -> str:
        return f"datasets/{self.id}" if self.kind == "dataset" else self.id

    def commit(self, message: str, changes: Mapping[str, Blob | None]) -> Commit:
        """Put files in, and take those out that are `None`."""
        before = dict(self.head.files) if self.commits else {}
        files = {path: blob for path, blob in {**before, **changes}.items() if blob is not None}
        told = f"{self.kind} {self.id} {len(self.commits)} {message} {[(p, b.git_oid) for p, b in files.items()]}"
        self.commits.append(Commit(hashlib.sha1(told.encode()).hexdigest(), message, files))
        return self.head

    def at(self, revision: str) -> Commit:
        wanted = self.head.oid if revision == MAIN else self.tags.get(revision, revision)
        for commit in self.commits:
            if commit.oid == wanted:
                return commit
        raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


@dataclass(frozen=True)
class Request:
    """One of the log: the route's name, and what was asked."""

    name: str
    method: str
    path: str


@dataclass(frozen=True)
class Asked:
    """What a route answers."""

    groups: Mapping[str, str]
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, content: Any, status: int = 200) -> "Answer":
        return cls(json.dumps(content).encode(), status, {"Content-Type": "application/json"})


class HubServer:
    """The Hub at `endpoint`.

    Attributes:
        upload_mode: how files are to be sent; the real Hub decides it by size and `.gitattributes`.
        before: called when a route of that name is asked, before it does anything; `break_off` breaks the connection.
        requests: the log.
    """

    def __init__(self) -> None:
        self.upload_mode: Literal["regular", "lfs"] = "regular"
        self.before: dict[str, Callable[[], object]] = {}
        self.requests: list[Request] = []
        self._repositories: dict[tuple[str, str], Repository] = {}
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._http.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator["HubServer"]:
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            thread.join()

    def asked_for(self, name: str) -> list[Request]:
        """The log of one route."""
        return [request for request in self.requests if request.name == name]

    def create(self, kind: str, repo_id: str, is_private: bool = False) -> Repository:
        made = Repository(kind, repo_id, is_private)
        self._repositories[kind, repo_id] = made
        return made

    def repository(self, kind: str, repo_id: str) -> Repository:
        return self._repositories[kind, repo_id]

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        parts = urlsplit(path)
        for name, methods, pattern in _ROUTES:
            found = re.fullmatch(pattern, parts.path)
            if found and method in methods:
                groups = {key: unquote(value or "") for key, value in found.groupdict().items()}
                asked = Asked(groups, parse_qs(parts.query), headers, body)
                with self._lock:
                    self.requests.append(Request(name, method, parts.path))
                    self.before.get(name, lambda: None)()
                    made: Answer = getattr(self, f"_{name}")(asked)
                    return made
        self.requests.append(Request("unknown", method, parts.path))
        raise RefusedError(404, f"Cannot {method} {parts.path}")

    def _token_of(self, asked: Asked) -> str:
        return asked.headers.get("authorization", "").removeprefix("Bearer ")

    def _require_writer(self, asked: Asked) -> None:
        token = self._token_of(asked)
        if token == READ_ONLY_TOKEN:
            raise RefusedError(403, "You don't have the rights to write into this namespace")
        if token != TOKEN:
            raise RefusedError(401, "Invalid username or password.")

    def _found(self, asked: Asked) -> Repository:
        kind = asked.groups.get("kind") or ("dataset" if asked.groups.get("prefix") else "model")
        found = self._repositories.get((kind, asked.groups["id"]))
        known = self._token_of(asked) in (TOKEN, READ_ONLY_TOKEN)
        if found is None or (found.is_private and not known):
            # The real one does not tell strangers what is missing and what is private.
            raise RefusedError(404 if known else 401, "Repository not found", "RepoNotFound")
        return found

    def _create(self, asked: Asked) -> Answer:
        self._require_writer(asked)
        kind, repo_id = asked.json.get("type", "model"), f"{asked.json['organization']}/{asked.json['name']}"
        if (kind, repo_id) in self._repositories:
            raise RefusedError(409, f"You already created this {kind} repo")
        made = self.create(kind, repo_id, asked.json.get("visibility") == "private")
        return Answer.of({"url": f"{self.endpoint}/{made.url_path}", "name": repo_id})

    def _validate_yaml(self, asked: Asked) -> Answer:
        header = re.match(r"---\n(.*?)\n---", asked.json["content"], re.DOTALL)
        try:
            yaml.safe_load(header[1] if header else "")
        except yaml.YAMLError as error:
            return Answer.of({"errors": [{"message": str(error)}], "warnings": []}, status=400)
        return Answer.of({"errors": [], "warnings": []})

    def _whoami(self, asked: Asked) -> Answer:
        self._require_writer(asked)
        return Answer.of({"type": "user", "name": "somebody", "orgs": []})

    def _info(self, asked: Asked) -> Answer:
        found = self._found(asked)
        commit = found.at(asked.groups["revision"] or MAIN)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        return Answer.of(
            {"id": found.id, "sha": commit.oid, "private": found.is_private, "tags": [], "siblings": siblings}
        )

    def _tree(self, asked: Asked) -> Answer:
        files = self._found(asked).at(asked.groups["revision"]).files
        recursive = asked.query.get("recursive", ["false"])[0].lower() == "true"
        return Answer.of(_entries(files, asked.groups["path"], recursive))

    def _paths_info(self, asked: Asked) -> Answer:
        files = self._found(asked).at(asked.groups["revision"]).files
        wanted = parse_qs(asked.body.decode())["paths"]
        return Answer.of([entry for entry in _entries(files, "", recursive=True) if entry["path"] in wanted])

    def _preupload(self, asked: Asked) -> Answer:
        self._require_writer(asked)
        files = self._found(asked).at(asked.groups["revision"]).files
        return Answer.of({"files": [self._upload_of(each["path"], files) for each in asked.json["files"]]})

    def _upload_of(self, path: str, files: Mapping[str, Blob]) -> dict[str, Any]:
        known = {"oid": files[path].etag} if path in files else {}
        return {"path": path, "uploadMode": self.upload_mode, "shouldIgnore": False, **known}

    def _lfs_batch(self, asked: Asked) -> Answer:
        self._require_writer(asked)
        found = self._found(asked)
        answers = [self._lfs_action(found, each) for each in asked.json["objects"]]
        return Answer.of({"transfer": "basic", "objects": answers})

    def _lfs_action(self, found: Repository, wanted: Mapping[str, Any]) -> dict[str, Any]:
        known = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] in found.uploads:
            return known
        place = f"{self.endpoint}/lfs/{found.kind}s/{found.id}/{wanted['oid']}"
        return {**known, "actions": {"upload": {"href": place}}}

    def _lfs_upload(self, asked: Asked) -> Answer:
        oid = asked.groups["oid"]
        if hashlib.sha256(asked.body).hexdigest() != oid:
            raise RefusedError(400, f"The content does not hash to {oid}", "XAmzContentSHA256Mismatch")
        self._found_by_link(asked).uploads[oid] = asked.body
        return Answer(b"")

    def _found_by_link(self, asked: Asked) -> Repository:
        """Whoever has the link may send: it was given to one that may write."""
        return self._repositories[asked.groups["kind"], asked.groups["id"]]

    def _commit(self, asked: Asked) -> Answer:
        self._require_writer(asked)
        found = self._found(asked)
        lines = [json.loads(line) for line in asked.body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit", found.head.oid) != found.head.oid:
            raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
        changes = dict(_change(found, line["key"], line["value"]) for line in lines[1:])
        made = found.commit(header["summary"], changes)
        place = f"{self.endpoint}/{found.url_path}/commit/{made.oid}"
        return Answer.of({"success": True, "commitOid": made.oid, "commitUrl": place})

    def _refs(self, asked: Asked) -> Answer:
        found = self._found(asked)
        main = {"name": MAIN, "ref": f"refs/heads/{MAIN}", "targetCommit": found.head.oid}
        tags = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": oid} for name, oid in found.tags.items()]
        return Answer.of({"branches": [main], "converts": [], "tags": tags})

    def _tag(self, asked: Asked) -> Answer:
        self._require_writer(asked)
        found = self._found(asked)
        name, commit = asked.json["tag"], found.at(asked.groups["revision"])
        if name in found.tags:
            raise RefusedError(409, f"Tag reference exists already: {name}")
        found.tags[name] = commit.oid
        return Answer.of({})

    def _resolve(self, asked: Asked) -> Answer:
        commit = self._found(asked).at(asked.groups["revision"])
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        blob = commit.files.get(asked.groups["path"])
        if blob is None:
            raise RefusedError(404, "Entry not found", "EntryNotFound", **headers)
        headers["ETag"] = f'"{blob.etag}"'
        if blob.is_lfs:
            headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.content))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", asked.headers.get("range", ""))
        if not wanted:
            return Answer(blob.content, 200, headers)
        size, first = len(blob.content), int(wanted[1])
        if first >= size:
            raise RefusedError(416, "Range not satisfiable", **headers, **{"Content-Range": f"bytes */{size}"})
        part = blob.content[first : int(wanted[2]) + 1 if wanted[2] else size]
        return Answer(part, 206, {**headers, "Content-Range": f"bytes {first}-{first + len(part) - 1}/{size}"})


_KIND, _ID, _REVISION = r"(?P<kind>model|dataset)s", r"(?P<id>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
_API, _PAGE = rf"/api/{_KIND}/{_ID}", rf"/(?P<prefix>datasets/)?{_ID}"
_ROUTES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("create", ("POST",), r"/api/repos/create"),
    ("validate_yaml", ("POST",), r"/api/validate-yaml"),
    ("whoami", ("GET",), r"/api/whoami-v2"),
    ("refs", ("GET",), rf"{_API}/refs"),
    ("info", ("GET",), rf"{_API}(?:/revision/{_REVISION})?"),
    ("tree", ("GET",), rf"{_API}/tree/{_REVISION}(?:/(?P<path>.+))?"),
    ("paths_info", ("POST",), rf"{_API}/paths-info/{_REVISION}"),
    ("preupload", ("POST",), rf"{_API}/preupload/{_REVISION}"),
    ("commit", ("POST",), rf"{_API}/commit/{_REVISION}"),
    ("tag", ("POST",), rf"{_API}/tag/{_REVISION}"),
    ("lfs_batch", ("POST",), rf"{_PAGE}\.git/info/lfs/objects/batch"),
    ("lfs_upload", ("PUT",), rf"/lfs/{_KIND}/{_ID}/(?P<oid>[0-9a-f]+)"),
    ("resolve", ("GET", "HEAD"), rf"{_PAGE}/resolve/{_REVISION}/(?P<path>.+)"),
)


def _change(found: Repository, key: str, value: Mapping[str, Any]) -> tuple[str, Blob | None]:
    """A path and what becomes of it, from a line of a commit."""
    path = value["path"]
    if key == "file":
        return path, Blob(base64.b64decode(value["content"]))
    if key == "lfsFile":
        if value["oid"] not in found.uploads:
            raise RefusedError(400, f"{path} points to an LFS object that was never uploaded: {value['oid']}")
        return path, Blob(found.uploads[value["oid"]], is_lfs=True)
    if key == "deletedFile":
        if path not in found.head.files:
            raise RefusedError(404, "A file with this name doesn't exist", "EntryNotFound")
        return path, None
    raise RefusedError(400, f"unknown operation {key}")


def _entries(files: Mapping[str, Blob], below: str, recursive: bool) -> list[dict[str, Any]]:
    """Files and folders of a tree, as the Hub lists them."""
    prefix = f"{below}/" if below else ""
    inside = sorted(path for path in files if path.startswith(prefix))
    if below and not inside:
        raise RefusedError(404, f"{below} does not exist", "EntryNotFound")
    parents = {str(parent) for path in inside for parent in PurePosixPath(path).parents} - {"."}
    folders = [{"type": "directory", "path": each, "size": 0, "oid": hashlib.sha1(each.encode()).hexdigest()}
               for each in sorted(parents) if each.startswith(prefix)]  # fmt: skip
    listed = [*folders, *(files[path].entry(path) for path in inside)]
    return [entry for entry in listed if recursive or "/" not in str(entry["path"])[len(prefix) :]]


class _Handler(BaseHTTPRequestHandler):
    """HTTP to and from `HubServer.answer`."""

    hub: ClassVar[HubServer]
    protocol_version = "HTTP/1.1"
    # An answer in two packets would wait for the client's acknowledgement of the first.
    disable_nagle_algorithm, wbufsize = True, -1

    def _serve(self) -> None:
        body = self._read_body()
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            self._send(self.hub.answer(self.command, self.path, headers, body))
        except RefusedError as refused:
            told = Answer.of({"error": str(refused)}, refused.status)
            self._send(Answer(told.body, told.status, {**told.headers, **refused.headers}))
        except ConnectionAbortedError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815 - what the base class looks for

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, answer: Answer) -> None:
        # A reader that has seen enough hangs up.
        with suppress(ConnectionError):
            self.send_response(answer.status)
            for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)
            self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        """Nothing: `HubServer.requests` is the log."""


def hub_environment(hub: HubServer, home: Path) -> dict[str, str]:
    """What a process must have in its environment to see this Hub, and nothing but it."""
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
    }


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A running Hub, and this process set up for it: what reads the environment at import is told by hand."""
    import datasets.config  # noqa: F401 - what is imported later would keep this Hub for good
    from huggingface_hub import close_session, constants

    server = HubServer()
    environment = hub_environment(server, tmp_path / "hf_home")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf_home" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    # Transformers keeps the one that it asked first.
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
    close_session()
    with server.running():
        yield server
    close_session()
