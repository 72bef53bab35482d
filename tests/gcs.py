"""A Google Cloud Storage on this machine, with the faults of the real one.

PyPI's `gcp-storage-emulator` holds the objects. A proxy before it adds what that leaves
out (preconditions, generations that are gone, pages) and the faults that a test asks for.
"""

import contextlib
import functools
import http.client
import json
import re
import socket
import struct
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from gcp_storage_emulator.server import Server, create_server

from model import object_store

BUCKET = "archive"
_POLL_S = 0.02
_NAME = re.compile(rb'"name": ?("(?:[^"\\]|\\.)*")')
_MOVED_AS_IT_IS = ("transfer-encoding", "content-length", "connection", "date", "server")


class FaultyStore:
    """What stands before the emulator: what it was asked, and what it is to get wrong.

    Attributes:
      requests: Method and path of each request so far, unquoted.
      page_size: Most names in an answer to a listing.
    """

    def __init__(self, emulator_port: int):
        self._port = emulator_port
        self._lock = threading.Lock()
        self._faults: list[tuple[str, str, str]] = []
        self.requests: list[tuple[str, str]] = []
        self.page_size = 1000

    def fail(self, method: str, part: str, fault: str, times: int = 1) -> None:
        """Answers the next requests by a fault.

        Args:
          method: Of the requests.
          part: Of their path and query, unquoted, or of what they upload.
          fault: `503`; `reset`, before anything is done; `lost`, a reset after it is done;
            `cut`, a reset in the middle of the answer.
          times: How many requests.
        """
        with self._lock:
            self._faults += [(method, part, fault)] * times

    def faults_left(self) -> list[tuple[str, str, str]]:
        """Returns the faults that no request has met."""
        return list(self._faults)

    def handle(self, method: str, path: str, headers: dict, body: bytes):
        """Returns the fault to answer by, and the status, headers and content of the answer."""
        asked = urllib.parse.unquote(path)
        with self._lock:
            self.requests.append((method, asked))
            head = body[:2000].decode("latin-1")
            fault = next((f for f in self._faults if f[0] == method and f[1] in asked + head), None)
            if fault:
                self._faults.remove(fault)
            kind = fault and fault[2]
            if kind == "503":
                return None, (503, [], b"{}")
            if kind == "reset":
                return kind, (0, [], b"")
            return kind, self._answer(method, path, headers, body)

    def _answer(self, method: str, path: str, headers: dict, body: bytes):
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(path).query))
        asked = urllib.parse.urlsplit(path).path
        named = urllib.parse.unquote(asked.partition("/o/")[2])
        wanted = query.get("ifGenerationMatch")
        if wanted is not None and method in ("POST", "PUT", "DELETE"):
            found = _NAME.search(body)
            name = named or (json.loads(found[1]) if found else query["name"])
            if wanted != self._generation(name):
                return 412, [], b'{"error": {"code": 412, "message": "conditionNotMet"}}'
        wanted = query.get("generation")
        is_read = wanted is not None and asked.startswith("/download/")
        if is_read and wanted != self._generation(named):
            return 404, [], b'{"error": {"code": 404, "message": "notFound"}}'
        answer = self._forward(method, path, headers, body)
        if method == "GET" and urllib.parse.urlsplit(path).path.endswith("/o"):
            return self._page(answer, int(query.get("pageToken", 0)))
        return answer

    def _generation(self, name: str) -> str:
        quoted = urllib.parse.quote(name, safe="")
        status, _, content = self._forward("GET", f"/storage/v1/b/{BUCKET}/o/{quoted}", {}, b"")
        return json.loads(content)["generation"] if status == 200 else "0"

    def _page(self, answer, start: int):
        status, headers, content = answer
        if status != 200:
            return answer
        listing = json.loads(content)
        items, end = sorted(listing["items"], key=lambda item: item["name"]), start + self.page_size
        if end < len(items):
            listing["nextPageToken"] = str(end)
        return status, headers, json.dumps({**listing, "items": items[start:end]}).encode()

    def _forward(self, method: str, path: str, headers: dict, body: bytes):
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()


def _handler(store: FaultyStore) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path == "/token":
                answer = {"access_token": "none", "expires_in": 3600, "token_type": "Bearer"}
                return self._send(200, [("Content-Type", "application/json")], json.dumps(answer))
            fault, (status, headers, content) = store.handle(
                self.command, self.path, dict(self.headers), body
            )
            if fault in ("reset", "lost"):
                return self._reset()
            if fault == "cut":
                self._send(status, headers, content, content[: len(content) // 2])
                return self._reset()
            self._send(status, headers, content)

        def _send(self, status, headers, content, sent=None):
            content = content.encode() if isinstance(content, str) else content
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in _MOVED_AS_IT_IS:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content if sent is None else sent)

        def _reset(self):
            # To linger for no time is to send a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

        def log_message(self, *_):
            pass

        def finish(self):
            with contextlib.suppress(OSError, ValueError):
                super().finish()

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _serve

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Says nothing: connections that break are what is asked for."""


@contextlib.contextmanager
def storage(folder) -> Iterator[FaultyStore]:
    """Runs a store with an empty bucket, for this process and those that it starts."""
    emulator, port = _emulator()
    emulator.wipe(keep_buckets=True)
    store = FaultyStore(port)
    proxy = _Server(("127.0.0.1", 0), _handler(store))
    threading.Thread(target=proxy.serve_forever, args=[_POLL_S], daemon=True).start()
    address = f"http://127.0.0.1:{proxy.server_port}"
    credentials = folder / "credentials.json"
    credentials.write_text(json.dumps(_service_account(address)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", address)
        # Else Beam looks for credentials for 20 s.
        patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(credentials))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        object_store._client.cache_clear()
        try:
            yield store
        finally:
            object_store._client.cache_clear()
            proxy.shutdown()


@functools.cache
def _emulator() -> tuple[Server, int]:
    """Returns the emulator of this process, which runs until that ends, and its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    emulator = create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET)
    emulator._api.daemon = True
    emulator.start()
    return emulator, port


@functools.cache
def _private_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def _service_account(address: str) -> dict:
    return {
        "type": "service_account",
        "project_id": "none",
        "private_key_id": "none",
        "private_key": _private_key(),
        "client_email": "nobody@none.iam.gserviceaccount.com",
        "token_uri": f"{address}/token",
    }
