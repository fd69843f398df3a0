"""Proxies of the environment, as real ones on this machine: credentials, no scheme, socks5, exceptions."""

from __future__ import annotations

import http.client
import http.server
import socketserver
import threading
import urllib.parse

import pytest
from completions_server import CompletionsServer

from lacy_jax.clients import CompletionsClient
from lacy_jax.errors import ConfigError, PartnerError

VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class _HttpProxy(http.server.BaseHTTPRequestHandler):
    """Passes on what comes with the right credentials."""

    def do_POST(self):
        self.server.seen.append(self.headers["Proxy-Authorization"])
        body = self.rfile.read(int(self.headers["Content-Length"]))
        wanted = self.server.credentials
        if wanted and self.headers["Proxy-Authorization"] != wanted:
            status, data = 407, b"who are you?"
        else:
            url = urllib.parse.urlsplit(self.path)
            onward = http.client.HTTPConnection(url.hostname, url.port)
            onward.request("POST", url.path, body, {"Content-Type": "application/json"})
            answer = onward.getresponse()
            status, data = answer.status, answer.read()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class _Socks5(socketserver.BaseRequestHandler):
    """The handshake with user and password (RFC 1928, 1929), then bytes both ways."""

    def handle(self):
        read = self.request.recv
        _, methods = read(2)
        self.server.seen.append(read(methods))
        self.request.sendall(b"\x05\x02")
        read(1)
        name = read(read(1)[0])
        password = read(read(1)[0])
        self.server.seen.append((name, password))
        self.request.sendall(b"\x01\x00")
        *_, kind = read(4)
        host = read(read(1)[0]).decode() if kind == 3 else ".".join(map(str, read(4)))
        self.server.seen.append((kind, host))
        port = int.from_bytes(read(2), "big")
        self.request.sendall(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
        onward = http.client.HTTPConnection("127.0.0.1", port)
        request = self.request.makefile("rb")
        request.readline()
        headers = http.client.parse_headers(request)
        body = request.read(int(headers["Content-Length"]))
        onward.request("POST", "/v1/completions", body)
        data = onward.getresponse().read()
        self.request.sendall(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(data) + data
        )


@pytest.fixture
def proxy(request):
    kind = getattr(request, "param", "http")
    if kind == "http":
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _HttpProxy)
    else:
        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Socks5)
    server.daemon_threads = True
    server.seen, server.credentials = [], ""
    server.place = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server():
    with CompletionsServer(lambda prompt: " Oslo") as server:
        yield server


def _answer(server):
    (answer,) = CompletionsClient(server.url, "m", retries=0).complete(["a"], max_tokens=1)
    return answer


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
@pytest.mark.parametrize("scheme", ["http://", ""])
def test_a_proxy_with_credentials_with_or_without_a_scheme(proxy, server, monkeypatch, variable, scheme):
    if variable == "HTTP_PROXY":
        monkeypatch.delenv("REQUEST_METHOD", raising=False)
    monkeypatch.setenv(variable, f"{scheme}ada:p%40ss%3Aw%C3%B6rd@{proxy.place}")
    proxy.credentials = "Basic YWRhOnBAc3M6d8O2cmQ="  # ada:p@ss:wörd
    assert _answer(server).text == " Oslo"
    assert proxy.seen == [proxy.credentials]


def test_a_proxy_that_refuses_is_said_without_the_password(proxy, server, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://ada:secret@{proxy.place}")
    proxy.credentials = "Basic other"
    error = _answer(server)
    assert isinstance(error, PartnerError)
    assert "HTTP 407 who are you?" in str(error)
    assert "secret" not in str(error)


@pytest.mark.parametrize("proxy", ["socks"], indirect=True)
@pytest.mark.parametrize(("scheme", "seen"), [("socks5", (1, "127.0.0.1")), ("socks5h", (3, "localhost"))])
def test_socks5_with_credentials(proxy, server, monkeypatch, scheme, seen):
    pytest.importorskip("socks")
    monkeypatch.setenv("all_proxy", f"{scheme}://ada:p%40ss@{proxy.place}")
    server.url = server.url.replace("127.0.0.1", "localhost")
    assert _answer(server).text == " Oslo"
    assert proxy.seen[1:] == [(b"ada", b"p@ss"), seen]


@pytest.mark.parametrize(
    "no_proxy",
    [
        "127.0.0.1",
        "localhost,127.0.0.0/8",
        "*",
        " 127.0.0.1:{port} ",
        "10.0.0.0/8, 127.0.0.1/32",
        "::1,127.0.0.1",
    ],
)
def test_no_proxy(proxy, server, monkeypatch, no_proxy):
    monkeypatch.setenv("http_proxy", proxy.place)
    monkeypatch.setenv("no_proxy", no_proxy.format(port=server.url.rsplit(":")[-1].removesuffix("/v1")))
    assert _answer(server).text == " Oslo"
    assert proxy.seen == []


@pytest.mark.parametrize("no_proxy", ["", "example.org", "10.0.0.0/8", "localhost"])
def test_no_proxy_of_others(proxy, server, monkeypatch, no_proxy):
    monkeypatch.setenv("http_proxy", proxy.place)
    monkeypatch.setenv("no_proxy", no_proxy)
    assert _answer(server).text == " Oslo"
    assert len(proxy.seen) == 1


@pytest.mark.parametrize("given", ["ftp://proxy:1", "http://", "http://[", "http://a:b@:80"])
def test_what_is_no_proxy_is_one_line(monkeypatch, given):
    monkeypatch.setenv("http_proxy", given)
    with pytest.raises(ConfigError, match=r"^proxy of the environment for http://h/v1: expected") as error:
        CompletionsClient("http://h/v1", "m")
    assert "b@" not in str(error.value)


def test_a_proxy_that_is_down_is_named_as_such(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://ada:secret@127.0.0.1:9")
    (error,) = CompletionsClient("http://h/v1", "m", retries=0).complete(["a"], max_tokens=1)
    assert "proxy" in str(error)
    assert "secret" not in str(error)


def test_credentials_in_the_address_are_sent_and_not_shown(server):
    with_them = server.url.replace("http://", "http://ada:secret@")
    client = CompletionsClient(with_them, "m")
    assert client.url == server.url
    client.complete(["a"], max_tokens=1)
    assert server.headers[0]["Authorization"] == "Basic YWRhOnNlY3JldA=="
