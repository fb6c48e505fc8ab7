"""What a request may have fetched or read: against real servers that lie, drip, redirect and never end."""

from __future__ import annotations

import asyncio
import base64
import gzip
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.engines import RequestError
from foveate.serve.sources import SourceLimits, Sources, is_public

CONTENT = bytes(range(256)) * 20
LIMITS = SourceLimits(max_bytes=10_000, connect_seconds=5, total_seconds=5)
SECRET = "the-internal-answer"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers)))  # type: ignore[attr-defined]
        getattr(self, f"send_{self.path.partition('?')[0].strip('/') or 'good'}", self.send_good)()

    def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True

    def send_good(self) -> None:
        self.answer(CONTENT)

    def send_empty(self) -> None:
        self.answer(b"")

    def send_redirect(self) -> None:
        self.answer(b"", 302, Location="/good")

    def send_missing(self) -> None:
        self.answer(SECRET.encode(), 404)

    def send_large(self) -> None:
        self.answer(bytes(LIMITS.max_bytes + 1))

    def send_endless(self) -> None:
        self.answer(bytes(1_000_000), Content_Length="")

    def send_short(self) -> None:
        self.answer(CONTENT, Content_Length=str(len(CONTENT) + 100))

    def send_huge_length(self) -> None:
        self.answer(CONTENT, Content_Length="9" * 40)

    def send_odd_length(self) -> None:
        self.answer(CONTENT, Content_Length="-3")

    def send_bomb(self) -> None:
        self.answer(gzip.compress(bytes(10_000_000)), Content_Encoding="gzip")

    def send_chunked(self) -> None:
        self.answer(b"5\r\nhello\r\n0\r\n\r\n", Content_Length="", Transfer_Encoding="chunked")

    def send_broken_chunks(self) -> None:
        self.answer(b"zz\r\nhello", Content_Length="", Transfer_Encoding="chunked")

    def send_no_http(self) -> None:
        self.wfile.write(SECRET.encode() + b"\r\n\r\n")
        self.close_connection = True

    def send_drip(self) -> None:
        self.answer(b"", Content_Length="1000")
        self.drip(b"x" * 1000)

    def send_drip_without_a_length(self) -> None:
        self.answer(b"", Content_Length="")
        self.drip(b"x" * 1000)

    def send_drip_head(self) -> None:
        self.drip(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 1000)

    def drip(self, content: bytes) -> None:
        for byte in content:
            self.wfile.write(bytes([byte]))
            time.sleep(0.05)

    def log_message(self, *arguments: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *arguments: Any) -> None:
        """Clients that hang up are what is tested."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


def get(sources: Sources, url: str) -> bytes:
    return asyncio.run(sources.resolve(url, "image"))


def refusal(sources: Sources, url: str) -> str:
    with pytest.raises(RequestError) as caught:
        get(sources, url)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def local(server: Server) -> Iterator[tuple[Sources, str]]:
    """Sources that may ask the server, and its address."""
    where = f"127.0.0.1:{server.server_port}"
    sources = Sources([where], limits=LIMITS)
    yield sources, f"http://{where}"
    sources.close()


def test_what_a_host_has(local: tuple[Sources, str], server: Server) -> None:
    sources, url = local
    assert get(sources, f"{url}/good?a=b%20c#part") == CONTENT
    path, headers = server.seen[-1]  # type: ignore[attr-defined]
    assert path == "/good?a=b%20c"
    assert headers["Host"] == f"127.0.0.1:{server.server_port}"
    assert headers["Accept-Encoding"] == "identity"
    assert get(sources, url) == CONTENT
    assert get(sources, f"{url}/chunked") == b"hello"
    assert get(sources, f"{url}/ключ") == CONTENT


@pytest.mark.parametrize(
    ("path", "fact"),
    [
        ("redirect", "is redirected, which is not followed"),
        ("missing", "could not be fetched"),
        ("empty", "is empty"),
        ("large", "more than 10000 bytes"),
        ("endless", "more than 10000 bytes"),
        ("huge_length", "more than 10000 bytes"),
        ("short", "could not be fetched"),
        ("bomb", "compressed"),
        ("broken_chunks", "could not be fetched"),
        ("no_http", "could not be fetched"),
    ],
)
def test_what_is_no_image_is_refused(path: str, fact: str, local: tuple[Sources, str]) -> None:
    sources, url = local
    assert fact in refusal(sources, f"{url}/{path}")


def test_a_length_that_is_none_is_read_to_the_end(local: tuple[Sources, str]) -> None:
    assert get(local[0], f"{local[1]}/odd_length") == CONTENT


@pytest.mark.parametrize("path", ["drip", "drip_without_a_length", "drip_head"])
def test_a_slow_drip_ends_in_time_and_keeps_nobody_waiting(path: str, server: Server) -> None:
    where = f"127.0.0.1:{server.server_port}"
    sources = Sources([where], limits=SourceLimits(total_seconds=1))

    async def both() -> tuple[int, float]:
        slow = asyncio.create_task(sources.resolve(f"http://{where}/{path}", "video"))
        begun, ticks = time.monotonic(), 0
        while not slow.done():
            await asyncio.sleep(0.02)
            ticks += 1
        with pytest.raises(RequestError, match="was not here within 1 s"):
            await slow
        return ticks, time.monotonic() - begun

    ticks, took = asyncio.run(both())
    assert took < 10  # the whole drip takes 50 s
    assert ticks > 5
    sources.close()


def test_its_threads_end_with_the_drip(server: Server) -> None:
    where = f"127.0.0.1:{server.server_port}"
    sources = Sources([where], limits=SourceLimits(total_seconds=0.5))
    assert "was not here" in refusal(sources, f"http://{where}/drip")
    begun = time.monotonic()
    sources._pool.shutdown(wait=True)
    assert time.monotonic() - begun < 10


def test_only_hosts_that_are_named(local: tuple[Sources, str], server: Server) -> None:
    sources, port = local[0], server.server_port
    before = len(server.seen)  # type: ignore[attr-defined]
    for host in (
        f"localhost:{port}",
        "127.0.0.1",
        f"127.1:{port}",
        f"2130706433:{port}",
        f"[::ffff:127.0.0.1]:{port}",
        "a.b",
        "0",
    ):
        assert "nothing may be fetched from" in refusal(sources, f"http://{host}/good")
    for odd in (f"http://127.0.0.1:{port}@a.b/", f"http://a@127.0.0.1:{port}/", f"http://127.0.0.1:{port}\\@a.b/", "http:///x"):
        refusal(sources, odd)
    for odd in (
        "http://127.0.0.1:99999/",
        "https://[::1/",
        "http://a b/",
        "http://x\r\nHost: y/",
        "ftp://127.0.0.1/",
        "x.png",
        "",
    ):
        refusal(sources, odd)
    assert len(server.seen) == before  # type: ignore[attr-defined]
    assert "nothing may be fetched from" in refusal(Sources(), f"http://127.0.0.1:{port}/good")


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1", "10.0.0.1", "192.168.1.1", "0.0.0.0", "224.0.0.1"),
        *("fe80::1%lo", "fd00::1", "ff02::1", "100.64.0.1", "64:ff9b::a00:1", "2002:a00:1::", "::ffff:8.8.8.8"),
        "255.255.255.255",
    ],
)
def test_a_name_that_leads_inside_is_not_followed(address: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    port = server.server_port
    before = len(server.seen)  # type: ignore[attr-defined]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sources = Sources([f"example.org:{port}"], limits=LIMITS)
    for found in ([address], ["93.184.216.34", address]):  # one bad address of several is enough
        answer = [(family, socket.SOCK_STREAM, 6, "", (one, port)) for one in found]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *given, answer=answer, **named: answer)
        assert "it has no public address" in refusal(sources, f"http://example.org:{port}/good")
    assert len(server.seen) == before  # type: ignore[attr-defined]


def test_a_name_is_looked_up_once_and_its_address_kept(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second look-up would lead to the server inside."""
    port, lookups, opened = server.server_port, list[str](), list[Any]()

    def look_up(host: str, *given: Any, **named: Any) -> Any:
        lookups.append(host)
        address = "93.184.216.34" if len(lookups) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    def connect(address: Any, timeout: float) -> socket.socket:
        opened.append(address)
        return _to_loopback(port)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "create_connection", connect)
    assert get(Sources([f"example.org:{port}"], limits=LIMITS), f"http://EXAMPLE.org.:{port}/good") == CONTENT
    assert lookups == ["example.org"]
    assert opened == [("93.184.216.34", port)]
    assert server.seen[-1][1]["Host"] == f"example.org:{port}"  # type: ignore[attr-defined]


def test_a_host_that_is_not_there_says_nothing_about_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        said = refusal(Sources([f"127.0.0.1:{port}"]), f"http://127.0.0.1:{port}/")
    assert said == "the image could not be fetched from '127.0.0.1'. Try again, or send it as data:."


def test_a_host_that_speaks_no_tls(local: tuple[Sources, str]) -> None:
    assert "could not be fetched" in refusal(local[0], local[1].replace("http:", "https:"))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, to make a certificate")
def test_https_wants_the_certificate_of_the_name(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=example.org"
    command = [*make.split(), "-addext", "subjectAltName=DNS:example.org"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    context, asked = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), list[str | None]()
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    context.sni_callback = lambda raw, name, given: asked.append(name)
    secure = Server(("127.0.0.1", 0), Handler)
    secure.seen = []  # type: ignore[attr-defined]
    secure.socket = context.wrap_socket(secure.socket, server_side=True)
    threading.Thread(target=secure.serve_forever, daemon=True).start()
    port = secure.server_port
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **named: answer)
    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: _to_loopback(port))
    sources = Sources([f"example.org:{port}", f"other.org:{port}"], limits=LIMITS)
    assert get(sources, f"https://example.org:{port}/good") == CONTENT
    assert "could not be fetched" in refusal(sources, f"https://other.org:{port}/good")
    assert asked == ["example.org", "other.org"]
    assert [headers["Host"] for _, headers in secure.seen] == [f"example.org:{port}"]  # type: ignore[attr-defined]
    secure.shutdown()
    secure.server_close()


def _to_loopback(port: int) -> socket.socket:
    """A connection to a server here, which stands for a host outside."""
    raw = socket.socket()
    raw.connect(("127.0.0.1", port))
    return raw


@given(st.ip_addresses())
def test_no_public_address_is_private(address: Any) -> None:
    if is_public(address):
        assert not any((address.is_private, address.is_loopback, address.is_link_local, address.is_multicast)), address
    assert is_public(ip_address("8.8.8.8"))
    assert is_public(ip_address("2606:4700:4700::1111"))


def data(content: bytes, head: str = "data:image/png;base64,") -> str:
    return head + base64.b64encode(content).decode()


def test_data() -> None:
    sources = Sources(limits=LIMITS)
    for head in (
        "data:image/png;base64,",
        "DATA:image/png;charset=utf-8;BASE64,",
        "data:;base64,",
        "data:image/svg+xml;base64,",
    ):
        assert get(sources, data(CONTENT, head)) == CONTENT
    assert get(sources, "data:;base64,%2B%2F8%3D") == b"\xfb\xff"
    assert get(sources, data(bytes(LIMITS.max_bytes))) == bytes(LIMITS.max_bytes)


@pytest.mark.parametrize(
    ("url", "fact"),
    [
        ("data:", "not of the form"),
        ("data:image/png,abc", "not of the form"),
        ("data:image/png;base64", "not of the form"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png;base64,a", "not base64"),
        ("data:image/png;base64,ab=c", "not base64"),
        ("data:image/png;base64,aGVs\nbG8=", "not base64"),
        ("data:image/png;base64,ключ", "not base64"),
        ("data:image/png;base64,\ud800abc", "not base64"),
        ("data:image/png;base64,%", "not base64"),
        (data(bytes(LIMITS.max_bytes + 1)), "more than 10000 bytes"),
        ("data:" + ";a=b" * 50_000, "not of the form"),
    ],
)
def test_broken_data(url: str, fact: str) -> None:
    assert fact in refusal(Sources(limits=LIMITS), url)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "allowed"
    (inside / "deep").mkdir(parents=True)
    for file in (inside / "a b%20é.png", inside / "deep" / "x.png", tmp_path / "secret.png"):
        file.write_bytes(CONTENT)
    return inside


def test_files(folder: Path) -> None:
    sources = Sources(allow_folders=[folder], limits=LIMITS)
    assert get(sources, f"file://{folder}/deep/x.png") == CONTENT
    assert get(sources, f"file://localhost{folder}/deep/../deep/x.png") == CONTENT
    assert get(sources, f"file://{folder}/a%20b%2520%C3%A9.png") == CONTENT
    (folder / "link.png").symlink_to(folder / "deep" / "x.png")
    assert get(sources, f"file://{folder}/link.png") == CONTENT
    assert "files may not be read here" in refusal(Sources(), f"file://{folder}/deep/x.png")


def test_files_elsewhere_or_of_another_kind(folder: Path) -> None:
    sources = Sources(allow_folders=[folder], limits=LIMITS)
    (folder / "out.png").symlink_to(folder.parent / "secret.png")
    (folder / "up").symlink_to(folder.parent)
    (folder / "circle").symlink_to(folder / "circle")
    os.mkfifo(folder / "pipe")
    (folder.parent / "allowed2").mkdir()
    (folder.parent / "allowed2" / "x.png").write_bytes(CONTENT)
    names = ("out.png", "up/secret.png", "circle", "pipe", "", "deep", "missing.png", "../secret.png", "%2e%2e/secret.png")
    names += ("..%2fsecret.png", "%252e%252e/secret.png", "x%00.png", "../allowed2/x.png", "a" * 5_000, "%ff", "deep/x.png/")
    for name in names[:-1]:
        assert "may not be read, or is not there" in refusal(sources, f"file://{folder}/{name}"), name
    for url in (
        f"file:{folder}/deep/x.png",
        f"file://host{folder}/deep/x.png",
        "file://",
        "file://x",
        f"file://{folder}/deep/x.png?a",
    ):
        assert "not of the form file:///" in refusal(sources, url)
    for url in ("file:///etc/passwd", "file:///dev/zero", "file:///proc/self/environ"):
        refusal(sources, url)
    (folder / "large.png").write_bytes(bytes(LIMITS.max_bytes + 1))
    assert "more than 10000 bytes" in refusal(sources, f"file://{folder}/large.png")


pieces = st.sampled_from(
    [
        "http",
        "https",
        "file",
        "data",
        ":",
        "/",
        "//",
        "@",
        "[",
        "]",
        "%",
        "%00",
        "..",
        "\\",
        "?",
        "#",
        ";base64,",
        "127.0.0.1",
        "::1",
    ]
)
urls = st.one_of(st.text(), st.lists(st.one_of(pieces, st.text(max_size=3)), max_size=12).map("".join))
surrogates = st.text(st.characters(categories=["Cs", "L", "P"]), max_size=5)


@settings(max_examples=300, deadline=None)
@given(st.one_of(urls, st.tuples(st.sampled_from(["http://", "https://a", "file:///", "data:"]), surrogates).map("".join)))
def test_any_address_is_read_or_a_request_error(url: str) -> None:
    sources = Sources(["127.0.0.1:1", "[::1]:1"], [Path("/nowhere")], LIMITS)
    with suppress(RequestError):
        get(sources, url)
    sources.close()
