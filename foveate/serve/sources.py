"""Where images and videos of a request come from: what may be fetched or read, and how much of it.

HTTP is the standard library's: it connects to the one address that was looked up and checked, follows nothing and unpacks
nothing by itself, and brings no package. A fetch has a thread of a small pool, so that the event loop never waits.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import http.client
import ipaddress
import os
import re
import socket
import ssl
import stat
import threading
import urllib.parse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Literal, Self

from foveate.engines import RequestError
from foveate.engines.errors import shown
from foveate.serve.room import Holding, Room

Kind = Literal["image", "video"]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_DATA = re.compile(r"data:[\w.+/-]*(?:;[\w.+=\"-]+)*;base64,", re.ASCII | re.IGNORECASE)
_LONGEST_HEAD = 256
"""Characters in which a `data:` address has to come to its content."""
_LONGEST_ADDRESS = 8_192
"""Characters of one that is no `data:`."""
_QUOTED = {"%2B": "+", "%2b": "+", "%2F": "/", "%2f": "/", "%3D": "=", "%3d": "="}
"""What base64 may have that stands quoted in addresses."""
_SAFE = "/%:?#[]@!$&'()*+,;=-._~"
_CONTROL = re.compile(r"[\x00-\x20\x7f]")
_PORTS = {"http": 80, "https": 443}
_READ_BYTES = 65_536
_THREADS = 32
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class SourceLimits:
    """What is too much to fetch.

    Attributes:
        max_bytes: of all that one request names, and so of each of it.
        connect_seconds: until the host has answered the connection.
        total_seconds: until the whole of it is here, however slowly it comes.
    """

    max_bytes: int = 64 * 1024**2
    connect_seconds: float = 5.0
    total_seconds: float = 20.0


class Sources:
    """Reads the addresses that requests name; threads may share it.

    Args:
        allow_hosts: names of hosts from which may be fetched, `name` for the usual port or `name:port`. A name is looked up
            once for each fetch, and refused if any of its addresses is private, loopback, link-local, multicast or reserved.
            Such an address is fetched from only if it stands here itself (`10.0.0.5`, `[::1]:8000`). Redirects are refused.
        allow_folders: below which files may be read, links resolved first.
        limits: what is too much.
    """

    def __init__(
        self, allow_hosts: Sequence[str] = (), allow_folders: Sequence[Path] = (), limits: SourceLimits | None = None
    ) -> None:
        self._hosts = frozenset(host.lower() for host in allow_hosts)
        self._folders = tuple(Path(folder).resolve() for folder in allow_folders)
        self._limits = limits or SourceLimits()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="foveate-source")

    async def resolve(self, url: str, kind: Kind, holding: Holding | None = None) -> bytes:
        """What an address leads to.

        Args:
            url: the address.
            kind: what it has to be.
            holding: the request's, which what is fetched or read counts for.

        Raises:
            RequestError: it may not be used, or can't be read; nothing of what a host answered is in the message.
        """
        scheme = url[:10].partition(":")[0].lower()
        if scheme == "data":
            return await asyncio.to_thread(self._data, url, kind)
        if len(url) > _LONGEST_ADDRESS:
            fact = f"the address of the {kind} has {len(url)} characters, the limit is {_LONGEST_ADDRESS}"
            raise RequestError(f"{fact}. Give a shorter one, or send it as data:.")
        holding = holding or Holding(Room())
        if scheme == "file":
            return await asyncio.to_thread(self._file, url, kind, holding)
        if scheme not in _PORTS:
            raise RequestError(
                f"the address of the {kind} is {shown(url)}, expected data:. Send it as data:TYPE;base64,CONTENT."
            )
        try:
            async with asyncio.timeout(self._limits.total_seconds):  # a look-up of a name has no limit of its own
                return await asyncio.get_running_loop().run_in_executor(self._pool, self._fetch, url, kind, holding)
        except TimeoutError:
            raise self._slow(kind) from None

    def close(self) -> None:
        """Ends its threads; what is being fetched is left to its own end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _data(self, url: str, kind: Kind) -> bytes:
        head = _DATA.match(url, 0, _LONGEST_HEAD)
        if head is None:
            raise RequestError(f"the address of the {kind} is not of the form data:TYPE;base64,CONTENT. Send it so.")
        content = url[head.end() :]
        self._check_size(len(content) * 3 // 4 - 2, kind)
        try:
            for quoted, character in _QUOTED.items():
                content = content.replace(quoted, character)
            found = base64.b64decode(content, validate=True)
        except (binascii.Error, ValueError) as error:
            raise RequestError(f"the {kind} is not base64. Encode it again.") from error
        return self._whole(found, kind)

    def _file(self, url: str, kind: Kind, holding: Holding) -> bytes:
        refused = RequestError(
            f"the file of the {kind} may not be read, or is not there. Name one below an allowed folder, or send it as data:."
        )
        if not self._folders:
            raise RequestError(f"files may not be read here. Send the {kind} as data:TYPE;base64,CONTENT.")
        host, slash, name = url[len("file:") :].removeprefix("//").partition("/")
        if (
            not url[len("file:") :].startswith("//")
            or not slash
            or host.lower() not in ("", "localhost")
            or set(name) & {*"?#"}
        ):
            raise RequestError(f"the address of the {kind} is not of the form file:///FOLDER/FILE. Write it so.")
        try:
            path = Path("/" + urllib.parse.unquote(name, errors="strict")).resolve(strict=True)
            inside = any(path.is_relative_to(folder) for folder in self._folders)
            opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) if inside else None
        except (OSError, ValueError, RuntimeError):  # not there, no name of a file, links in a circle
            raise refused from None
        if opened is None:
            raise refused
        facts = os.fstat(opened)  # of what is read, whatever its name leads to now
        if not stat.S_ISREG(facts.st_mode):
            os.close(opened)
            raise refused
        with open(opened, "rb") as file:
            self._check_size(facts.st_size, kind)
            return self._whole(self._gather(file.read, kind, holding), kind)

    def _gather(self, read: Callable[[int], bytes], kind: Kind, holding: Holding) -> bytes:
        """All of it, piece by piece."""
        pieces, size = [], 0
        while piece := read(_READ_BYTES):
            size += len(piece)
            self._check_size(size, kind)
            holding.take_fetched(len(piece), self._limits.max_bytes)
            pieces.append(piece)
        return b"".join(pieces)

    def _fetch(self, url: str, kind: Kind, holding: Holding) -> bytes:
        ends = monotonic() + self._limits.total_seconds
        scheme, host, port, target = self._split(url, kind)
        address = self._look_up(host, port, kind)
        failed = RequestError(f"the {kind} could not be fetched from {shown(host)}. Try again, or send it as data:.")
        try:
            raw = socket.create_connection((address, port), self._limits.connect_seconds)
        except OSError:  # what it was may tell of an internal host
            raise failed from None
        with _Deadline(raw, ends) as deadline:
            try:
                if scheme == "https":
                    deadline.secure(host)
                found = self._read(_connection(deadline.socket, scheme, host, port), target, kind, holding)
            except (OSError, http.client.HTTPException, ValueError):
                raise (self._slow(kind) if deadline.passed else failed) from None
            if deadline.passed:  # what was cut looks whole where no length was given
                raise self._slow(kind)
        return self._whole(found, kind)

    def _split(self, url: str, kind: Kind) -> tuple[str, str, int, str]:
        """Scheme, host, port and target, where the host is allowed."""
        odd = RequestError(f"the address of the {kind} is {shown(url)}, expected https://HOST/PATH. Write it so.")
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
            host = host if ":" in host else host.encode("idna").decode()
            target = urllib.parse.quote(urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, "")), safe=_SAFE)
        except ValueError:  # UnicodeError too
            raise odd from None
        if not host or _CONTROL.search(url) or "\\" in url or parts.username is not None or parts.password is not None:
            raise odd
        name = f"[{host}]" if ":" in host else host
        usual = _PORTS[parts.scheme]
        allowed = {f"{name}:{port or usual}", *((name, host) if port in (None, usual) else ())}
        if not allowed & self._hosts:
            remedy = f"Send the {kind} as data:TYPE;base64,CONTENT, or ask the operator to allow it."
            raise RequestError(f"nothing may be fetched from {shown(parts.netloc)}. {remedy}")
        return parts.scheme, host, port or usual, target

    def _look_up(self, host: str, port: int, kind: Kind) -> str:
        """The one address that is connected to."""
        try:
            found = [entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
            addresses = [ipaddress.ip_address(str(address).partition("%")[0]) for address in found]
        except (OSError, ValueError):
            addresses = []
        literal = _is_address(host)  # the operator has named the address itself
        if not addresses or not (literal or all(map(is_public, addresses))):
            raise RequestError(
                f"nothing may be fetched from {shown(host)}: it has no public address. Send the {kind} as data:."
            )
        return str(addresses[0])

    def _read(self, connection: http.client.HTTPConnection, target: str, kind: Kind, holding: Holding) -> bytes:
        connection.putrequest("GET", target, skip_accept_encoding=True)
        for name, value in (
            ("Accept-Encoding", "identity"),
            ("Accept", "*/*"),
            ("User-Agent", "foveate"),
            ("Connection", "close"),
        ):
            connection.putheader(name, value)
        connection.endheaders()
        with connection.getresponse() as answer:
            return self._content(answer, kind, holding)

    def _content(self, answer: http.client.HTTPResponse, kind: Kind, holding: Holding) -> bytes:
        if 300 <= answer.status < 400:
            raise RequestError(f"the address of the {kind} is redirected, which is not followed. Give the final address.")
        if answer.status != 200:
            raise RequestError(f"the {kind} could not be fetched. Check its address, or send it as data:.")
        if answer.headers.get("Content-Encoding", "identity").strip().lower() not in ("identity", ""):
            raise RequestError(f"the host sends the {kind} compressed, though it was asked not to. Send it as data:.")
        said = answer.headers.get("Content-Length", "")
        if said.isascii() and said.isdigit():
            self._check_size(int(said[:20]), kind)
        content = self._gather(answer.read1, kind, holding)
        if said.isascii() and said.isdigit() and len(content) < int(said[:20]):
            raise http.client.IncompleteRead(b"")
        return content

    def _slow(self, kind: Kind) -> RequestError:
        limit = f"{self._limits.total_seconds:g} s"
        return RequestError(f"the {kind} was not here within {limit}. Try again, or send it as data:TYPE;base64,CONTENT.")

    def _check_size(self, size: int, kind: Kind) -> None:
        if size > self._limits.max_bytes:
            raise RequestError(f"the {kind} has more than {self._limits.max_bytes} bytes, the limit. Send a smaller one.")

    def _whole(self, content: bytes, kind: Kind) -> bytes:
        self._check_size(len(content), kind)
        if not content:
            raise RequestError(f"the {kind} is empty. Send one with content.")
        return content


class _Deadline:
    """A socket that is shut at a time, whatever it is in the middle of: limits of single reads let a slow drip through."""

    def __init__(self, raw: socket.socket, ends: float) -> None:
        self.socket = raw
        self.passed = False
        self._ends = ends
        self._timer = threading.Timer(max(0.0, ends - monotonic()), self._shut)
        self._timer.daemon = True

    def secure(self, host: str) -> None:
        """Speaks TLS from now on; the certificate has to be that of the name, not of the address."""
        context = ssl.create_default_context()
        self.socket = context.wrap_socket(self.socket, server_hostname=host, do_handshake_on_connect=False)
        self.socket.do_handshake()

    def _shut(self) -> None:
        self.passed = True
        with contextlib.suppress(OSError):  # it is over already
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)  # the connection's own, below TLS

    def __enter__(self) -> Self:
        self.socket.settimeout(max(0.001, self._ends - monotonic()))
        self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()
        self.socket.close()


def _connection(raw: socket.socket, scheme: str, host: str, port: int) -> http.client.HTTPConnection:
    """Over a socket that is open; it opens none itself."""
    connection = http.client.HTTPConnection(host, port)
    connection.default_port = _PORTS[scheme]
    connection.auto_open = 0
    connection.sock = raw
    return connection


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_public(address: Address) -> bool:
    """Whether an address is one of the Internet's own. Those that carry an IPv4 address inside are none: what they lead to,
    the machine decides."""
    if isinstance(address, ipaddress.IPv6Address):
        carries = (address.ipv4_mapped, address.sixtofour, address.teredo, address in _NAT64 or None)
        if any(one is not None for one in carries):
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved)
