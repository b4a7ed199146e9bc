"""Fixtures for pytest: a real etcd, and an open log whose authority it is.

============================  ====================================================================
`coordjournal_etcd_binary`    the etcd on the PATH, for `coordjournal.testing.etcd`
`coordjournal_etcdctl`        the etcdctl on the PATH
`coordjournal_etcd`           for the session: an `EtcdAtHand`, with `endpoints` and `source`
`coordjournal_prefix`         for one test: a prefix of keys that no other test has
`coordjournal_log`            for one test: an open `DecisionLog` at that etcd under that prefix
============================  ====================================================================

The etcd is, in this order: the one at `COORDJOURNAL_TEST_ETCD` (`host:port,…`, without TLS), a process of
the `etcd` on the PATH, a container by testcontainers. Where there is none of them the tests that ask for it
are skipped, and told why; with `COORDJOURNAL_REQUIRE_ETCD=1` they fail. They fail too where
`COORDJOURNAL_TEST_ETCD` is set and no etcd answers there.

All tests of a session share one etcd, and a repository belongs to the prefix that it was made under. So a second
log on the same repository is opened under the test's own prefix; without it, it is a `ForeignRepository`:

    def test_two_processes(coordjournal_log, coordjournal_etcd, coordjournal_prefix, tmp_path):
        etcd = coordjournal_etcd.endpoints
        other = DecisionLog.open(tmp_path / "wiki.git", etcd=etcd, prefix=coordjournal_prefix)
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

import pytest

if TYPE_CHECKING:
    from coordjournal.log import DecisionLog

ENDPOINTS: Final = "COORDJOURNAL_TEST_ETCD"
"""The variable that names an etcd to use."""

REQUIRE: Final = "COORDJOURNAL_REQUIRE_ETCD"
"""The variable that turns skips for want of an etcd into failures."""

_NO_BINARY: Final = "there is no etcd on the PATH (Debian: apt-get install etcd-server)"
_NO_CLIENT: Final = "there is no etcdctl on the PATH (Debian: apt-get install etcd-client)"
_ANSWER_SECONDS: Final = 3.0


class EtcdAtHand(NamedTuple):
    """An etcd to test with: where clients find it, and where it came from, in words."""

    endpoints: str
    source: str
    lasting: bool = False
    """Whether it outlives the tests, so that they have to clean up after themselves."""


def _give_up(reason: str) -> NoReturn:
    if os.environ.get(REQUIRE, "0") not in ("", "0"):
        pytest.fail(f"{REQUIRE} is set, and there is no etcd to test with: {reason}", pytrace=False)
    pytest.skip(f"there is no etcd to test with: {reason}")


@pytest.fixture(scope="session")
def coordjournal_etcd_binary() -> str:
    """Give the path of the `etcd` program, for tests that do to it what only a process of one's own puts up with."""
    if (binary := shutil.which("etcd")) is None:
        _give_up(_NO_BINARY)
    return binary


@pytest.fixture(scope="session")
def coordjournal_etcdctl() -> str:
    """Give the path of the `etcdctl` program, for tests that run what an operator would."""
    if (program := shutil.which("etcdctl")) is None:
        _give_up(_NO_CLIENT)
    return program


@pytest.fixture(scope="session")
def coordjournal_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdAtHand]:
    """Give a real etcd for the whole session; every process of pytest-xdist has its own unless one is named."""
    with ExitStack() as stack:
        yield _find(tmp_path_factory, stack)


@pytest.fixture
def coordjournal_prefix(coordjournal_etcd: EtcdAtHand) -> Iterator[str]:
    """Give a prefix of keys to one test alone; in an etcd that outlives the tests, delete what is there after it."""
    prefix = f"/coordjournal-test-{secrets.token_hex(8)}/"
    yield prefix
    if coordjournal_etcd.lasting:
        _clean(coordjournal_etcd.endpoints, prefix)


@pytest.fixture
def coordjournal_log(coordjournal_etcd: EtcdAtHand, coordjournal_prefix: str, tmp_path: Path) -> Iterator[DecisionLog]:
    """Give an open log in `tmp_path / "wiki.git"`, whose authority is the etcd; no space is in it yet."""
    from coordjournal.authority.settings import Settings
    from coordjournal.log import DecisionLog
    from coordjournal.maintenance import init

    endpoints, prefix = coordjournal_etcd.endpoints, coordjournal_prefix
    init(tmp_path / "wiki.git", Settings(endpoints, prefix=prefix))  # so that it can be read before the first append
    with DecisionLog.open(tmp_path / "wiki.git", etcd=endpoints, prefix=prefix) as log:
        yield log


def _find(tmp_path_factory: pytest.TempPathFactory, stack: ExitStack) -> EtcdAtHand:
    if endpoints := os.environ.get(ENDPOINTS):
        if reason := _deaf(endpoints):  # who names one wants the tests to run
            pytest.fail(f"there is no etcd to test with: {ENDPOINTS} is {endpoints}: {reason}", pytrace=False)
        return EtcdAtHand(endpoints, f"{ENDPOINTS}={endpoints}", lasting=True)
    reasons = []
    for attempt in (_process, _container):
        try:
            return attempt(tmp_path_factory, stack)
        except _NotHere as error:
            reasons.append(str(error))
    _give_up(f"{ENDPOINTS} is not set; {'; '.join(reasons)}")


class _NotHere(Exception):
    """One kind of etcd cannot be had, and why."""


def _process(tmp_path_factory: pytest.TempPathFactory, stack: ExitStack) -> EtcdAtHand:
    from coordjournal.testing.etcd import EtcdFailed, EtcdServer

    if (binary := shutil.which("etcd")) is None:
        raise _NotHere(_NO_BINARY)
    try:
        server = stack.enter_context(EtcdServer(tmp_path_factory.mktemp("etcd"), binary=binary))
    except EtcdFailed as error:
        raise _NotHere(f"{binary} did not start: {error}") from error
    return EtcdAtHand(server.endpoints, binary)


def _container(_: pytest.TempPathFactory, stack: ExitStack) -> EtcdAtHand:
    try:
        from coordjournal.testing.container import ContainerFailed, EtcdContainer
    except ImportError as error:
        raise _NotHere(f"testcontainers is not installed ({error})") from error
    try:
        container = stack.enter_context(EtcdContainer())
    except ContainerFailed as error:
        raise _NotHere(str(error)) from error
    return EtcdAtHand(container.endpoint, f"container of {container.image}")


def _deaf(endpoints: str) -> str:
    """Return why no etcd answers a linearizable read at the endpoints, or nothing."""
    from coordjournal.etcd import EtcdError, Get
    from coordjournal.etcd.client import EtcdClient

    try:
        with closing(EtcdClient(endpoints)) as client:
            client.get(Get(b"\0"), timeout=_ANSWER_SECONDS)
    except (EtcdError, ValueError) as error:
        return str(error)
    return ""


def _clean(endpoints: str, prefix: str) -> None:
    from coordjournal.etcd import Delete, end_of
    from coordjournal.etcd.client import EtcdClient

    key = prefix.encode()
    with closing(EtcdClient(endpoints)) as client:
        client.txn([], [Delete(key, end_of(key))], timeout=_ANSWER_SECONDS)
