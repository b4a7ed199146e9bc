"""What is installed, found, and wrong, with what to do about it."""

from __future__ import annotations

import http.client
import os
import platform
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import requires, version
from pathlib import Path
from typing import Final, NamedTuple

import pygit2

from coordjournal import overview
from coordjournal.authority.settings import Settings
from coordjournal.authority.wire import Keys, Role, range_of
from coordjournal.errors import CoordJournalError
from coordjournal.etcd import Compare, Delete, EtcdError, Get, Operation, Put, Refused
from coordjournal.etcd.client import EndpointStatus, EtcdClient
from coordjournal.etcd.endpoints import Tls, endpoints_of
from coordjournal.store import ETCD, pack
from coordjournal.store.files import file_system, is_network, is_sharable
from coordjournal.store.git import GitStore
from coordjournal.store.repository import Repository

_MANY_PACKS: Final = 200
_OLD_LOCK_SECONDS: Final = 60.0
_LITTLE_BYTES: Final = 100 << 20
_CALL_SECONDS: Final = 5.0
_MANY_REVISIONS: Final = 1_000_000
_DEFAULT_QUOTA_BYTES: Final = 2 << 30
_MANY_SPACES: Final = 1000
_METRICS_SECONDS: Final = 2.0
_MAX_METRICS_BYTES: Final = 8 << 20
_HOW_TO_GRANT: Final = "grant the user a role that docs/deployment.md names"
_OLDEST_SUPPORTED: Final = (3, 5)
"""The oldest etcd line that its project still mends: the newest two are (etcd.io/docs, "Versioning")."""
_FAULTY: Final = {
    (3, 5, 0): "data inconsistency after a crash",
    (3, 5, 1): "data inconsistency after a crash",
    (3, 5, 2): "data inconsistency after a crash",
}
"""https://etcd.io/blog/2022/ (postmortem of 20 April 2022): 3.5.0 to 3.5.2 may apply an entry twice, or not."""


class Finding(NamedTuple):
    """One thing that was examined: `ok` is None where it is a fact and no judgement."""

    name: str
    ok: bool | None
    found: str
    advice: str = ""


def doctor(path: str | os.PathLike[str] | None, settings: Settings | None = None) -> list[Finding]:
    """Examine this machine, and the repository and etcd if they are named; never raises for what it finds."""
    findings = [
        Finding("coordjournal", None, version("coordjournal")),
        Finding("python", None, platform.python_version()),
        Finding("platform", platform.system() in ("Linux", "Darwin"), platform.platform()),
        Finding("pygit2", None, f"{version('pygit2')} with libgit2 {pygit2.LIBGIT2_VERSION}"),
        *(Finding(name, None, version(name)) for name in _libraries()),
        _git(),
    ]
    if path is None:
        findings.append(Finding("repository", None, "none named", "name one with --repo or COORDJOURNAL_REPO"))
    else:
        try:
            findings.extend(_examine(_store(path), etcd=bool(settings and settings.etcd)))
        except (CoordJournalError, OSError) as error:
            findings.append(Finding("repository", False, str(error)))
    if settings is not None and settings.etcd:
        findings.extend(examine_etcd(settings))
        if path is not None and not any(
            finding.ok is False and finding.name.startswith("etcd") for finding in findings
        ):
            findings.extend(_journal(path, settings))
    return findings


def _journal(path: str | os.PathLike[str], settings: Settings) -> Iterator[Finding]:
    """Tell whether repository and etcd are one journal's, and know the same heads."""
    place = settings.prefix
    try:
        owner = _store(path).repository.owner()
        with closing(settings.client()) as client:
            _, found = client.get(Get(Keys(place).journal), timeout=_CALL_SECONDS)
        known = found.kvs[0].value.decode("ascii", "replace") if found.kvs else ""
        if owner is None:
            yield Finding("journal", None, f"a mirror clone; etcd has journal {known or 'none'} under {place}")
        elif owner.authority != ETCD:
            yield Finding("journal", False, "the repository is embedded, and an etcd is named", "`coordjournal adopt`")
        elif owner.place != place:
            found_there = f"the repository's heads are under {owner.place}, not under {place}"
            yield Finding("journal", False, found_there, f"use --prefix {owner.place}")
        elif known != owner.journal:
            found_there = f"etcd has journal {known or 'none'} under {place}, the repository is {owner.journal}"
            yield Finding("journal", False, found_there, "name the right etcd; if it was wiped, `coordjournal recover`")
        else:
            yield Finding("journal", True, f"{known}, under {place} as in the repository")
            for space in overview.status(path, settings)[0]:
                if space.fault:
                    yield Finding(f"space {space.space}", False, space.fault)
    except (CoordJournalError, EtcdError, OSError) as error:
        yield Finding("journal", False, str(error))


def _libraries() -> list[str]:
    """Return the names of the packages that this one needs, as its metadata says; pygit2 is told apart."""
    needed = (re.match(r"[\w-]+", line) for line in requires("coordjournal") or () if "extra ==" not in line)
    return sorted(match[0] for match in needed if match and match[0] != "pygit2")


def _git() -> Finding:
    program = shutil.which("git")
    if program is None:
        return Finding("git", None, "not installed", "coordjournal does without; install it to read the log with it")
    try:
        done = subprocess.run(  # noqa: S603  # the git of the PATH, with a fixed argument
            [program, "--version"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("git", False, f"{program} does not run: {error}", "install git again")
    return Finding("git", True, done.stdout.strip())


def _examine(store: GitStore, *, etcd: bool) -> Iterator[Finding]:
    repository = store.repository
    owner = repository.owner()
    yield Finding("repository", True, str(repository.path))
    if owner is None:
        yield Finding("owner", None, "a mirror clone: read only", "run `coordjournal adopt` to append to it")
    else:
        place = f" under {owner.place}" if owner.place else ""
        yield Finding("owner", True, f"journal {owner.journal}, authority {owner.authority}{place}")
    kind = file_system(repository.path)
    unfit = not is_sharable(kind) if etcd else is_network(kind)
    yield Finding("file system", not unfit, kind or "unknown", "move it to a disk of this host" if unfit else "")
    free = shutil.disk_usage(repository.path).free
    roomy = free > _LITTLE_BYTES
    yield Finding("free space", roomy, f"{free / (1 << 20):,.0f} MiB", "" if roomy else "make room")
    writable = os.access(repository.path, os.W_OK)
    yield Finding("writable", writable or None, "yes" if writable else "no, reading only")
    yield Finding("spaces", True, str(len(store.spaces())))
    packs = len(pack.ours(repository.packs))
    many = packs > _MANY_PACKS
    yield Finding("packs", not many, str(packs), "run `coordjournal compact`" if many else "")
    yield from _locks(repository)


def _locks(repository: Repository) -> Iterator[Finding]:
    now = datetime.now(UTC).timestamp()
    for lock in sorted((repository.path / "refs" / "heads").glob("*.lock")):
        try:
            age = now - lock.stat().st_mtime
        except FileNotFoundError:
            continue
        old = age > _OLD_LOCK_SECONDS
        advice = "the next append to that space clears it" if old else ""
        yield Finding("ref lock", not old, f"{lock.name}, {age:.0f} s old", advice)


# Etcd.


def examine_etcd(settings: Settings) -> Iterator[Finding]:
    """Yield what there is to say of an etcd: reachable, who may do what, how it is kept."""
    try:
        settings.check()
        client = settings.client()
    except CoordJournalError as error:
        yield Finding("etcd", False, str(error))
        return
    try:
        secured = settings.tls is not None or "https://" in settings.etcd
        yield Finding(
            "etcd TLS",
            True if secured else None,
            "yes" if secured else "no: anyone on the network may read and write",
            "" if secured else "give it certificates (docs/deployment.md), unless it is on a network of its own",
        )
        statuses = client.statuses(timeout=_CALL_SECONDS)
        for status in statuses:
            yield from _endpoint(status, settings.tls)
        if any(not status.error for status in statuses):
            yield from _alarms(client)
            yield from _rights(client, Keys(settings.prefix), settings.role)
    finally:
        client.close()


def _endpoint(status: EndpointStatus, tls: Tls | None = None) -> Iterator[Finding]:
    name = f"etcd {status.endpoint}"
    if status.error:
        yield Finding(name, False, status.error, "see that it runs, and that address, certificates and names are right")
        return
    found = f"version {status.version}, {'leads' if status.is_leader else 'follows'}"
    yield Finding(name, bool(status.leader), found, "" if status.leader else "the cluster has no leader")
    parts = tuple(int(part) for part in re.findall(r"\d+", status.version)[:3])
    if parts in _FAULTY:
        yield Finding(
            f"{name} version", False, f"{status.version}: {_FAULTY[parts]}", "upgrade to the newest 3.5 or 3.6"
        )
    elif parts[:2] < _OLDEST_SUPPORTED:
        line = ".".join(map(str, parts[:2]))
        yield Finding(f"{name} version", None, f"{line} is out of support", "upgrade, one minor version at a time")
    used, size = status.db_size_in_use or status.db_size, status.db_size
    loose = size > 4 * max(used, 16 << 20)
    yield Finding(
        f"{name} size",
        None if loose else True,
        f"{size / (1 << 20):,.1f} MiB, {used / (1 << 20):,.1f} in use",
        "run `etcdctl defrag`; with --auto-compaction-retention it stays small" if loose else "",
    )
    yield _quota(status, tls)
    for problem in status.problems:
        yield Finding(f"{name} problem", False, problem)


def _alarms(client: EtcdClient) -> Iterator[Finding]:
    try:
        alarms = client.alarms(timeout=_CALL_SECONDS)
    except EtcdError as error:
        yield Finding("etcd alarms", None, f"not known: {error}")
        return
    for alarm in alarms:
        advice = "make room: compact, `etcdctl defrag`, `etcdctl alarm disarm`" if alarm.kind == "NOSPACE" else ""
        yield Finding("etcd alarm", False, f"{alarm.kind} of member {alarm.member:x}", advice)


def _rights(client: EtcdClient, keys: Keys, role: Role) -> Iterator[Finding]:
    """Try all that each part takes, with a guard that never holds: nothing is written."""
    below = (keys.nodes, keys.holders, keys.heads, keys.intents, keys.outcomes, keys.successors)
    tries: dict[str, list[Operation]] = {
        "read": [Get(keys.journal), *(Get(*range_of(kind), only="count") for kind in below)],
        "forward": [Put(keys.nodes + b"-", b""), Put(keys.intents + b"-/-/-", b""), Delete(*range_of(keys.intents))],
        "hold": [
            *(op(kind + b"-") for kind in (keys.holders, keys.successors) for op in (_put, Delete)),
            *(Put(keys.heads + b"-", b""), Delete(*range_of(keys.intents))),
            *(Put(keys.outcomes + b"-/-/-", b""), Delete(*range_of(keys.outcomes))),
        ],
    }
    for right, operations in tries.items():
        try:
            refused = _refused(client, keys, operations)
            if right == "forward" and (spaces := _spaces_of_forwarder(client, keys, refused)):
                yield Finding("etcd may forward", True, f"to the spaces {', '.join(spaces)}")
                continue
        except EtcdError as error:
            yield Finding(f"etcd may {right}", False, str(error), _HOW_TO_GRANT if isinstance(error, Refused) else "")
            continue
        if not refused:
            yield Finding(f"etcd may {right}", True, "yes")
            continue
        needed = {_kind(keys, operation) for operation in operations}
        # Who may do nothing of it is no holder, as it should be; who may do half of it would be one that fails.
        none_wanted = right == "hold" and role != "holder" and needed - {"intents/"} <= set(refused)
        found = (
            f"not {'read' if right == 'read' else 'write'} {', '.join(sorted(refused))} below {keys.prefix.decode()}"
        )
        yield Finding(f"etcd may {right}", None if none_wanted else False, found, _HOW_TO_GRANT)
    yield from _compaction(client, keys)


def _put(key: bytes) -> Put:
    return Put(key, b"")


def _kind(keys: Keys, operation: Operation) -> str:
    kind, slash, _ = operation.key.removeprefix(keys.prefix).partition(b"/")
    return (kind + slash).decode()


def _refused(client: EtcdClient, keys: Keys, operations: Sequence[Operation]) -> set[str]:
    """Return the kinds of keys that this user may not use so; raises what else is wrong."""
    never = Compare(operations[0].key, "version", -1)
    refused = set()
    for operation in operations:
        guards = [] if isinstance(operation, Get) else [never._replace(key=operation.key)]
        try:
            client.txn(guards, [operation], timeout=_CALL_SECONDS)
        except Refused as refusal:
            if refusal.reason != "permission denied":
                raise
            refused.add(_kind(keys, operation))
    return refused


def _spaces_of_forwarder(client: EtcdClient, keys: Keys, refused: set[str]) -> list[str]:
    """Return the spaces whose appends a user may forward who may not those of all."""
    if refused != {"intents/"}:
        return []
    try:
        _, heads = client.get(Get(*range_of(keys.heads), limit=_MANY_SPACES, only="keys"), timeout=_CALL_SECONDS)
    except Refused:
        return []
    spaces = [space for kv in heads.kvs if (space := keys.space_of(keys.heads, kv.key))]
    return [space for space in spaces if not _refused(client, keys, [Put(keys.intents_of(space) + b"-/-", b"")])]


def _compaction(client: EtcdClient, keys: Keys) -> Iterator[Finding]:
    """Tell how many revisions are kept: which ones were compacted away, etcd says when asked for them."""
    try:
        revision, _ = client.get(Get(keys.journal), timeout=_CALL_SECONDS)
        gone, kept = 0, revision  # the newest that is known to be gone, the oldest that is known to be kept
        if not client.is_kept(keys.journal, 1, timeout=_CALL_SECONDS):
            gone = 1
            while kept - gone > 1:
                middle = (gone + kept) // 2
                if client.is_kept(keys.journal, middle, timeout=_CALL_SECONDS):
                    kept = middle
                else:
                    gone = middle
    except EtcdError as error:
        yield Finding("etcd compaction", None, f"not known: {error}")
        return
    many = revision - gone > _MANY_REVISIONS
    if gone:
        found = f"{revision - gone:,} revisions are kept, those before were compacted"
    else:
        found = f"none so far, at revision {revision:,}" + ("" if many else ": too young to tell whether there will be")
    advice = "start etcd with --auto-compaction-mode=periodic --auto-compaction-retention=1h"
    yield Finding(
        "etcd compaction", False if many else (True if gone else None), found, "" if gone and not many else advice
    )


def _quota(status: EndpointStatus, tls: Tls | None) -> Finding:
    """Tell how near an endpoint is to its quota, which stands in its metrics and nowhere else."""
    name, size = f"etcd {status.endpoint} quota", status.db_size
    try:
        quota = _metric(status.endpoint, tls, "etcd_server_quota_backend_bytes")
    except (OSError, http.client.HTTPException, ValueError) as error:
        share = f"{size / _DEFAULT_QUOTA_BYTES:.0%} of 2 GiB is used, which is etcd's default"
        return Finding(name, None, f"not known, its /metrics cannot be read ({error}); {share}")
    if quota < 0:
        return Finding(name, None, "switched off", "a disk that is full stops etcd: --quota-backend-bytes")
    near = size > quota * 3 / 4
    advice = "compact and defragment, or raise --quota-backend-bytes: a full etcd takes no more appends"
    return Finding(
        name, not near, f"{size / quota:.0%} of {quota / (1 << 20):,.1f} MiB is used", advice if near else ""
    )


def _metric(endpoint: str, tls: Tls | None, name: str) -> float:
    """Return a metric without labels. Raises `OSError`, `HTTPException`, `ValueError`."""
    (found,) = endpoints_of([endpoint])
    connection: http.client.HTTPConnection
    if found.tls or (found.tls is None and tls is not None):
        context = ssl.create_default_context(cafile=tls.ca if tls else None)
        if tls is not None and tls.cert is not None:
            context.load_cert_chain(tls.cert, tls.key)
        connection = http.client.HTTPSConnection(found.address, timeout=_METRICS_SECONDS, context=context)
    else:
        connection = http.client.HTTPConnection(found.address, timeout=_METRICS_SECONDS)
    with closing(connection):
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        text = answer.read(_MAX_METRICS_BYTES).decode("ascii", "replace")
    match = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    if answer.status != http.HTTPStatus.OK or match is None:
        raise ValueError(f"status {answer.status}, no {name}")
    return float(match[1])


def _store(path: str | os.PathLike[str]) -> GitStore:
    return GitStore(Path(path), node=socket.gethostname(), clock=lambda: datetime.now(UTC), random=os.urandom)
