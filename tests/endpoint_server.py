"""huggingface-inference-toolkit's server in small: a handler, loaded as the toolkit does it, asked over HTTP.

Run with a folder it prints its port, and serves until it is ended. Unlike the toolkit, which answers 400 whatever was
raised, it answers 500 where a handler raises, and 400 where one returns an error; and it tells how much memory is in
use to whoever asks with GET.
"""

import ctypes
import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"


def load_handler(folder: Path) -> Any:
    """The folder goes on Python's path, and its handler.py is loaded by its own."""
    sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location("handler", folder / "handler.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["handler"] = module
    spec.loader.exec_module(module)
    return module.EndpointHandler(str(folder))


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # clients that connect at the same moment

    def __init__(self, handler: Any) -> None:
        super().__init__((HOST, 0), Requests)
        self.handler = handler


class Heap(ctypes.Structure):
    """What glibc's mallinfo2 gives."""

    _names = ("arena", "ordblks", "smblks", "hblks", "mapped", "usmblks", "fsmblks", "allocated", "free", "keepcost")
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names)


def megabytes_in_use() -> float:
    """What was allocated and not freed; freed pieces that the process keeps are not counted."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Heap
    heap = libc.mallinfo2()
    return (heap.allocated + heap.mapped) / 2**20


class Requests(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._send(200, json.dumps(megabytes_in_use()).encode())

    def do_POST(self) -> None:
        self._send(*answer(self.server.handler, self.rfile.read(int(self.headers["Content-Length"]))))

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Not a line for each request."""


def answer(handler: Any, body: bytes) -> tuple[int, bytes]:
    """Status and content."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        return 400, json.dumps({"error": str(error)}).encode()
    try:
        found = handler(asked)
        content = json.dumps(found, allow_nan=False)
    except Exception as error:
        return 500, json.dumps({"error": str(error)}).encode()
    return 400 if isinstance(found, dict) and "error" in found else 200, content.encode()


def ask(port: int, body: Any) -> tuple[int, Any]:
    """Status and answer of a request; bytes are sent as they are."""
    return _exchange(port, "POST", body if isinstance(body, bytes) else json.dumps(body).encode())


def ask_for_memory(port: int) -> float:
    """The server's heap in use, MB."""
    return _exchange(port, "GET")[1]


def _exchange(port: int, method: str, content: bytes | None = None) -> tuple[int, Any]:
    connection = HTTPConnection(HOST, port, timeout=120)
    try:
        connection.request(method, "/", content)
        reply = connection.getresponse()
        return reply.status, json.load(reply)
    finally:
        connection.close()


@contextmanager
def served(handler: Any) -> Iterator[int]:
    """The port at which a handler is served in here."""
    with Server(handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    with Server(load_handler(Path(sys.argv[1]))) as own:
        print(own.server_address[1], flush=True)
        own.serve_forever()
