"""Decisions over HTTP from the workers of a prefork server; plain WSGI.

    COORDJOURNAL_REPO=wiki.git COORDJOURNAL_ETCD=10.0.0.1:2379 \
        gunicorn --chdir docs/examples --workers 4 --threads 8 --preload prefork:app

    curl -X POST -H 'Idempotency-Key: request-1' -d '{"alias": "Home", "target": "a:Start"}' localhost:8000/handbook
    curl localhost:8000/handbook

Every worker has a session of its own. The log is made at import, which connects nothing, so that the same
module does with `--preload` and without: what is used before the fork, and only that, cannot be used after it.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import coordjournal as cj

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

LOG: Final = cj.DecisionLog.from_environment(os.environ)  # the variables that docs/cli.md names: TLS, user, role, …
atexit.register(LOG.close)  # a worker that is told to end finishes what it took on, and hands over

# Whoever held the space may be killed: it is free again when its TTL is over, and then there is the append to make.
_SECONDS: Final = float(os.environ.get("COORDJOURNAL_TTL") or 10) + 5.0
_STATUS: Final[dict[type[Exception], HTTPStatus]] = {
    cj.Conflict: HTTPStatus.CONFLICT,
    cj.NotFound: HTTPStatus.NOT_FOUND,
    cj.Rejected: HTTPStatus.UNPROCESSABLE_ENTITY,
    cj.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,  # certainly not appended
    cj.Undecided: HTTPStatus.GATEWAY_TIMEOUT,  # the same Idempotency-Key may be sent again
    ValueError: HTTPStatus.BAD_REQUEST,
    RecursionError: HTTPStatus.BAD_REQUEST,  # JSON that is nested too deeply
}
_FOR_CLIENTS: Final = (cj.Conflict, cj.Rejected, ValueError)
"""What is wrong with the request; in the text of other errors are paths and hosts, which are for the operator."""

logger = logging.getLogger(__name__)


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """POST appends an alias to the space that the path names, GET tells what is true there."""
    space = environ["PATH_INFO"].strip("/")
    try:
        if environ["REQUEST_METHOD"] == "POST":
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status, answer = HTTPStatus.CREATED, _append(space, body, environ.get("HTTP_IDEMPOTENCY_KEY"))
        else:
            state = LOG.state(space)  # linearizable: whichever worker appended it, it is there
            status, answer = HTTPStatus.OK, {"seq": state.seq, "aliases": dict(state.aliases)}
    except (cj.CoordJournalError, ValueError, RecursionError) as error:
        status, answer = _failed(error)
    headers = [("Content-Type", "application/json"), ("X-Worker", str(os.getpid()))]
    start_response(f"{status.value} {status.phrase}", headers)
    return [json.dumps(answer).encode()]


def _failed(error: Exception) -> tuple[HTTPStatus, dict[str, Any]]:
    status = next((found for kind, found in _STATUS.items() if isinstance(error, kind)), None)
    if isinstance(error, _FOR_CLIENTS):
        return status or HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)}
    if status is None:  # OperatorNeeded, say: no retry mends it
        logger.error("%s: %s", type(error).__name__, error)
    else:
        logger.info("%s: %s", type(error).__name__, error)
    status = status or HTTPStatus.INTERNAL_SERVER_ERROR
    return status, {"error": status.description}


def _append(space: str, body: bytes, key: str | None) -> dict[str, Any]:
    asked = json.loads(body)
    if not isinstance(asked, dict) or not asked.keys() >= {"alias", "target"}:
        raise ValueError("an alias and a target are needed")
    decision = cj.AliasSet(alias=asked["alias"], target=asked["target"])
    receipt = LOG.append(space, decision, actor="web@example.org", key=key, timeout=_SECONDS)
    return {"seq": receipt.seq, "commit": receipt.commit, "key": receipt.key, "via": receipt.via}
