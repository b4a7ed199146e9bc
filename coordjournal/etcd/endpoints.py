"""Where an etcd is, as a user writes it, and what it takes to speak TLS with it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from os import PathLike
from typing import Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

DEFAULT_PORT: Final = 2379

_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_ADDRESS_6: Final = re.compile(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?")


class Tls(NamedTuple):
    """Files in PEM: who vouches for etcd (`ca`; the system's roots without one), and who we are."""

    ca: str | PathLike[str] | None = None
    cert: str | PathLike[str] | None = None
    key: str | PathLike[str] | None = None


class Endpoint(NamedTuple):
    """One member's address: `host:port`, and whether TLS is spoken there (None: if there is a `Tls`)."""

    address: str
    tls: bool | None

    def __str__(self) -> str:
        if self.tls is None:
            return self.address
        return f"{'https' if self.tls else 'http'}://{self.address}"


def parse_endpoints(text: str) -> list[str]:
    """Return the endpoints of a list with commas between, in one form, each once.

    An endpoint is `host:port`, `http://host:port` or `https://host:port`; an IPv6 address stands in
    brackets, and the port is 2379 if it is left out. Raises `ValueError`, in a user's words.
    """
    if not text.strip():
        raise ValueError("no etcd endpoint is given; write it as host:port, such as 10.0.0.1:2379")
    return [str(endpoint) for endpoint in endpoints_of(text.split(","))]


def endpoints_of(texts: Iterable[str]) -> list[Endpoint]:
    """Return the endpoints, each once. Raises `ValueError`."""
    found = list(dict.fromkeys(_endpoint(text.strip()) for text in texts))
    if not found:
        raise ValueError("no etcd endpoint is given; write it as host:port, such as 10.0.0.1:2379")
    return found


def _endpoint(text: str) -> Endpoint:
    if not text:
        raise ValueError("an etcd endpoint is empty; write it as host:port, with commas between several")
    tls: bool | None = None
    parts = _split(text if "://" in text else f"//{text}", text)
    if "://" in text:
        if parts.scheme not in ("http", "https"):
            raise ValueError(f"the etcd endpoint {text!r} begins with neither http:// nor https://")
        tls = parts.scheme == "https"
    if "@" in parts.netloc:
        raise ValueError("an etcd endpoint has no user in it; give user and password on their own")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"the etcd endpoint {text!r} has something after the port; write only host:port")
    return Endpoint(f"{_host(parts, text)}:{_port(parts, text)}", tls)


def _split(url: str, text: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise ValueError(f"the etcd endpoint {text!r} is no address ({error})") from error


def _host(parts: SplitResult, text: str) -> str:
    host = parts.hostname or ""
    if parts.netloc.startswith("[") and _ADDRESS_6.fullmatch(host):
        return f"[{host}]"
    if parts.netloc.count(":") > 1:
        raise ValueError(f"an IPv6 address stands in brackets, such as [::1]:2379, not {text!r}")
    if not _HOST.fullmatch(host):
        raise ValueError(f"the etcd endpoint {text!r} has no host; write host:port, such as 10.0.0.1:2379")
    return host


def _port(parts: SplitResult, text: str) -> int:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port is None:
        port = 0 if parts.netloc.endswith(":") else DEFAULT_PORT
    if not port:
        raise ValueError(f"the etcd endpoint {text!r} has a port that is no number from 1 to 65535")
    return port
