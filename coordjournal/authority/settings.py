"""How a process reaches etcd, and what part it takes: what a user configures."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Final, NamedTuple, cast, get_args

from coordjournal.authority.wire import Keys, Role
from coordjournal.errors import InvalidEvent
from coordjournal.etcd.client import EtcdClient
from coordjournal.etcd.endpoints import Tls, parse_endpoints
from coordjournal.etcd.session import MIN_TTL_SECONDS

DEFAULT_PREFIX: Final = "/coordjournal/"
"""Where the keys are in etcd, unless told otherwise."""

DEFAULT_TTL: Final = 10
"""Seconds for which a dead process keeps what it holds, unless told otherwise."""

_MAX_TTL: Final = 3600
_MAX_PASSWORD_BYTES: Final = 1 << 16
_TEXTS: Final = ("etcd", "username", "password", "prefix")


class Settings(NamedTuple):
    """The arguments of `DecisionLog.open` that are about etcd; `etcd` is empty without it."""

    etcd: str = ""
    tls: Tls | None = None
    username: str = ""
    password: str = ""
    prefix: str = DEFAULT_PREFIX
    ttl: int = DEFAULT_TTL
    role: Role = "auto"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Return what the command line's variables say, `COORDJOURNAL_ETCD` and those that docs/cli.md names.

        Reads the password's file, and sees that the certificates' can be read. Raises `InvalidEvent`, which
        names the variable.
        """
        return read(lambda name: environment.get(variable(name)) or None, variable)

    def check(self) -> None:
        """Raise `InvalidEvent` for the first that is not of its form. No I/O."""
        for name in _TEXTS:
            if not isinstance(text := getattr(self, name), str):
                raise InvalidEvent(f"{name}: a text, not {_kind(text)}")
            if name in ("username", "password"):
                _check_text(text, f"etcd's {name}")
        self._check_tls()
        Keys(self.prefix)
        if type(self.ttl) is not int or not MIN_TTL_SECONDS <= self.ttl <= _MAX_TTL:
            raise InvalidEvent(f"ttl: whole seconds from {MIN_TTL_SECONDS} to {_MAX_TTL}, not {self.ttl!r}")
        if self.role not in get_args(Role):
            raise InvalidEvent(f"role: one of {', '.join(get_args(Role))}, not {self.role!r}")
        if self.etcd:
            self.client()

    def _check_tls(self) -> None:
        if self.tls is None:
            return
        if not isinstance(self.tls, Tls):
            raise InvalidEvent(f"tls: a Tls, not {_kind(self.tls)}")
        for name, path in self.tls._asdict().items():
            if path is not None and not isinstance(path, (str, PathLike)):
                raise InvalidEvent(f"tls: {name} is the path of a file, not {_kind(path)}")

    def client(self) -> EtcdClient:
        """Return a client, not connected yet. Raises `InvalidEvent`."""
        try:
            return EtcdClient(parse_endpoints(self.etcd), tls=self.tls, username=self.username, password=self.password)
        except ValueError as error:
            raise InvalidEvent(f"etcd: {error}") from error


def variable(name: str) -> str:
    """Return the variable of the environment that is what the command line calls `name`."""
    return f"COORDJOURNAL_{name.upper()}"


def read(given: Callable[[str], str | None], called: Callable[[str], str]) -> Settings:
    """Return the settings that a user gave as texts, checked, and read from the files that they name.

    `given` returns what was given by a name, such as `etcd_cacert`, or None; `called` how the user knows that
    name. Raises `InvalidEvent`.
    """
    files = {name: _file(given(f"etcd_{name}"), called(f"etcd_{name}")) for name in ("cacert", "cert", "key")}
    found = Settings(
        given("etcd") or "",
        Tls(files["cacert"], files["cert"], files["key"]) if any(files.values()) else None,
        given("etcd_user") or "",
        _password(given, called("etcd_password_file")),
        given("prefix") or DEFAULT_PREFIX,
        _whole(given("ttl"), variable("ttl")),
        cast(Role, given("role") or "auto"),  # `check` looks
    )
    found.check()
    return found


def _file(path: str | None, called: str) -> str | None:
    """Return the path of a file, which can be read."""
    if path is not None:
        _head(path, called, 1)
    return path


def _password(given: Callable[[str], str | None], called: str) -> str:
    """Return etcd's password: never an argument, which every process of the host could read."""
    path = given("etcd_password_file")
    if path is None:
        return given("etcd_password") or ""
    content = _head(path, called, _MAX_PASSWORD_BYTES + 1)
    if len(content) > _MAX_PASSWORD_BYTES or b"\0" in content:
        raise InvalidEvent(
            f"{called}: {path!r} is no password: it has a NUL, or more than {_MAX_PASSWORD_BYTES:,} bytes"
        )
    try:
        password = content.decode().rstrip("\r\n")
    except ValueError as error:
        raise InvalidEvent(f"{called}: {path!r} cannot be read: it is no text") from error
    if not password:
        raise InvalidEvent(f"{called}: {path!r} is empty; it is to have the password of etcd's user")
    return password


def _head(path: str, called: str, size: int) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123  # a hostile name is told as what is wrong with it
            return file.read(size)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidEvent(f"{called}: {path!r} cannot be read: {reason}") from error


def _whole(text: str | None, called: str) -> int:
    if text is None:
        return DEFAULT_TTL
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise InvalidEvent(f"{called}: a whole number of seconds, not {text!r}")
    return int(text)


def _check_text(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidEvent(f"{what} is not UTF-8") from error


def _kind(value: object) -> str:
    return "None" if value is None else f"of the type {type(value).__name__}"
