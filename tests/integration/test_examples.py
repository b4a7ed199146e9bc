"""docs/examples are started as their first lines say, with workers that are asked, killed and stopped."""

from __future__ import annotations

import ast
import http.client
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import pytest

import coordjournal as cj
from coordjournal.authority.settings import Settings
from coordjournal.overview import status
from coordjournal.testing.certificates import CertificateAuthority
from coordjournal.testing.etcd import EtcdServer
from tests.support import CHECKOUT

EXAMPLES: Final = CHECKOUT / "docs" / "examples"
SPACE: Final = "handbook"
TTL: Final = 2
SECONDS: Final = 30.0  # within which anything that is waited for has come

T = TypeVar("T")


def until(look: Callable[[], T | None], said: Callable[[], str]) -> T:
    """Return what `look` finds as soon as it finds anything."""
    deadline = time.monotonic() + SECONDS
    while not (found := look()):
        assert time.monotonic() < deadline, said()
        time.sleep(0.02)
    return found


class Answer(NamedTuple):
    """What an HTTP request got: the status, the worker's pid, the JSON."""

    status: int
    worker: int
    body: dict[str, Any]


class Server:
    """A web server that was started, and what it says."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log
        self._port = int(until(self._listening, self.said)[1])
        until(self._ready, self.said)

    def said(self) -> str:
        """Return what it has said so far."""
        return self._log.read_text(errors="replace")

    def ask(self, method: str, body: object = None, key: str = "", space: str = SPACE) -> Answer:
        """Make one request, over a connection of its own, so that any worker may get it."""
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=SECONDS)) as connection:
            headers = {"Idempotency-Key": key} if key else {}
            sent = body if isinstance(body, bytes) or body is None else json.dumps(body)
            connection.request(method, f"/{space}", sent, headers)
            response = connection.getresponse()
            return Answer(response.status, int(response.headers["X-Worker"]), json.loads(response.read()))

    def append(self, name: str) -> Answer:
        """Append an alias, again under its key until it is acknowledged, as a client does."""

        def attempt() -> Answer | None:
            try:
                answer = self.ask("POST", {"alias": name, "target": f"page:{name}"}, key=f"key-{name}")
            except (OSError, http.client.HTTPException):
                return None  # the worker was killed
            assert answer.status in (201, 503, 504), (answer, self.said())
            return answer if answer.status == 201 else None

        return until(attempt, self.said)

    def stop(self) -> None:
        """Tell it to end, and see that it does so by itself."""
        self.process.send_signal(signal.SIGTERM)
        ended = self.process.wait(SECONDS)
        assert ended in (0, -signal.SIGTERM), self.said()

    def _listening(self) -> re.Match[str] | None:
        assert self.process.poll() is None, self.said()
        return re.search(r"http://127\.0\.0\.1:(\d+)", self.said())

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.said()
        try:
            return self.ask("GET").status == 404  # there is no repository yet
        except (OSError, http.client.HTTPException):
            return False


def command_of(example: str) -> list[str]:
    """Return the command that an example's first lines give, without what it puts into the environment."""
    text = ast.get_docstring(ast.parse((EXAMPLES / example).read_text(encoding="utf-8")))
    assert text is not None
    (line,) = re.findall(r"^    COORDJOURNAL_REPO=(.*)$", text, re.MULTILINE)
    words = shlex.split(line)
    return words[next(place for place, word in enumerate(words) if word in ("gunicorn", "uvicorn")) :]


@contextmanager
def started(command: list[str], tmp_path: Path, etcd: str, **variables: str) -> Iterator[Server]:
    """Run a web server with two workers; `variables` are set besides."""
    program, *rest = command
    if importlib.util.find_spec(program) is None:
        pytest.skip(f"{program} is not installed")
    rest[rest.index("--workers") + 1] = "2"
    log = tmp_path / "server.log"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("COORDJOURNAL_")},
        "COORDJOURNAL_REPO": str(tmp_path / "wiki.git"),
        "COORDJOURNAL_ETCD": etcd,
        "COORDJOURNAL_TTL": str(TTL),
        **variables,
        "PYTHONPATH": str(CHECKOUT),
        "HOME": str(tmp_path),  # where gunicorn puts a socket of its own
        "PYTHONUNBUFFERED": "1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", program, *rest],
            cwd=CHECKOUT,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield Server(process, log)
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


GUNICORN: Final = [*command_of("prefork.py"), "--bind", "127.0.0.1:0"]
COMMANDS: Final = {
    "gunicorn with preload": GUNICORN,
    "gunicorn": [word for word in GUNICORN if word != "--preload"],
    "uvicorn": [*command_of("asgi.py"), "--port", "0"],
}


@pytest.fixture
def etcd(coordjournal_etcd_binary: str) -> Iterator[str]:
    """Give the endpoint of an etcd of one's own: the examples have the prefix that everybody has."""
    with EtcdServer(binary=coordjournal_etcd_binary) as server:
        yield server.endpoint


def test_the_examples_say_how_they_are_started() -> None:
    assert "--preload" in GUNICORN
    assert COMMANDS["gunicorn"] != GUNICORN
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"prefork.py", "asgi.py"}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_workers_append_and_read_what_others_appended_and_outlive_one(
    command: list[str], tmp_path: Path, etcd: str
) -> None:
    """All acknowledged appends stand in the log once, in the order of each client; the server ends in order."""
    settings = Settings(etcd)
    with started(command, tmp_path, etcd) as server, ThreadPoolExecutor(4) as clients:
        assert server.ask("POST", {"alias": "x"}).status == 400
        assert server.ask("POST", b"[" * 100_000).status == 400
        assert server.ask("POST", b"\xff").status == 400
        assert server.ask("POST", {"alias": "x", "target": "x"}).status == 422
        assert server.ask("GET", space="No").status == 422

        def client(number: int) -> list[Answer]:
            return [server.append(f"{number}-{turn}") for turn in range(8)]

        answers = [answer for part in clients.map(client, range(4)) for answer in part]
        workers = {answer.worker for answer in answers}
        while len(workers) < 2:
            answers.append(server.append(f"more-{len(answers)}"))
            workers.add(answers[-1].worker)
            assert len(answers) < 500, server.said()
        assert len(workers) == 2
        _read_in_both(server, workers, {f"{number}-{turn}" for number in range(4) for turn in range(8)})
        assert {answer.body["via"] for answer in answers} == {"local", "forwarded"}, "one holds, the other forwards"

        again = server.ask("POST", {"alias": "0-0", "target": "page:0-0"}, key="key-0-0")
        assert (again.status, again.body["seq"]) == (201, answers[0].body["seq"]), "a key is appended once"

        holder = next(node.pid for node in status(tmp_path / "wiki.git", settings)[1] if node.holds)
        assert holder in workers
        os.kill(holder, signal.SIGKILL)
        answers += [server.append(f"after-{turn}") for turn in range(4)]
        assert holder not in {answer.worker for answer in answers[-4:]}

        before = time.monotonic()
        server.stop()
        assert time.monotonic() - before < SECONDS / 2
        assert not re.search("Traceback|ForkedProcess|Exception", server.said()), server.said()
    _, nodes = status(tmp_path / "wiki.git", settings)
    assert {node.pid for node in nodes} <= {holder}, "who ends in order leaves no session"
    with cj.DecisionLog.open(tmp_path / "wiki.git", etcd=etcd) as log:
        found = {entry.key: entry.seq for entry in log.events(SPACE)}
        assert found == {answer.body["key"]: answer.body["seq"] for answer in answers}
        own = [[found[f"key-{number}-{turn}"] for turn in range(8)] for number in range(4)]
        assert all(seqs == sorted(seqs) for seqs in own)


@pytest.mark.parametrize("command", [COMMANDS["gunicorn"], COMMANDS["uvicorn"]], ids=["gunicorn", "uvicorn"])
def test_what_is_for_an_operator_is_logged_and_not_sent(command: list[str], tmp_path: Path, etcd: str) -> None:
    with started(command, tmp_path, etcd) as server:
        with cj.DecisionLog.open(tmp_path / "wiki.git") as another:
            another.append(SPACE, cj.AliasSet("Home", "a:Start"))  # embedded: not for those under etcd
        answer = server.ask("POST", {"alias": "x", "target": "y"})
        assert (answer.status, answer.body) == (500, {"error": HTTPStatus.INTERNAL_SERVER_ERROR.description})
        said = server.said()
        assert "WrongAuthority: appends go through the authority 'embedded' here" in said
        assert "Traceback" not in said
        (tmp_path / "wiki.git").rename(tmp_path / "elsewhere.git")
        answer = server.ask("GET", space="other")
        assert (answer.status, answer.body) == (404, {"error": HTTPStatus.NOT_FOUND.description})


@pytest.mark.parametrize("command", [COMMANDS["gunicorn"], COMMANDS["uvicorn"]], ids=["gunicorn", "uvicorn"])
def test_the_examples_run_on_an_etcd_with_tls_under_a_prefix_in_a_role(
    command: list[str], tmp_path: Path, coordjournal_etcd_binary: str
) -> None:
    authority = CertificateAuthority(tmp_path / "authority")
    tls = authority.server("etcd", "127.0.0.1")
    with EtcdServer(tmp_path / "etcd", tls=tls, binary=coordjournal_etcd_binary) as guarded:
        me = authority.client("web")
        files = {"ETCD_CACERT": me.ca, "ETCD_CERT": me.cert, "ETCD_KEY": me.key}
        others = {"PREFIX": "/web/", "ROLE": "client", "ACTOR": "web"}
        variables = {f"COORDJOURNAL_{name}": str(value) for name, value in (files | others).items()}
        holder = cj.DecisionLog.open(
            tmp_path / "wiki.git", etcd=guarded.endpoint, tls=cj.Tls(*me), prefix="/web/", role="holder", ttl=TTL
        )
        with started(command, tmp_path, guarded.endpoint, **variables) as server, holder:
            holder.serve()
            assert server.append("x").body["via"] == "forwarded"
            assert server.ask("GET").body["aliases"] == {"x": "page:x"}


@pytest.mark.parametrize("example", ["prefork", "asgi"])
def test_a_request_waits_for_longer_than_a_failover_takes(example: str) -> None:
    code = f"import {example}; print({example}._SECONDS)"
    for ttl, seconds in (("", 10), ("30", 30)):
        environment = {"COORDJOURNAL_REPO": "wiki.git", "COORDJOURNAL_TTL": ttl, "PYTHONPATH": f"{EXAMPLES}:{CHECKOUT}"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd=CHECKOUT
        )
        assert float(done.stdout) > seconds


def _read_in_both(server: Server, workers: set[int], names: set[str]) -> None:
    """Assert that whichever worker is asked has all that any of them acknowledged; ask until both were."""
    asked: set[int] = set()
    for _ in range(500):
        answer = server.ask("GET")
        assert names <= answer.body["aliases"].keys()
        asked.add(answer.worker)
        if workers <= asked:
            return
    raise AssertionError(f"only {asked} of {workers} answer")
