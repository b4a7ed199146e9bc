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
import os
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import coordjournal as cj

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

LOG: Final = cj.DecisionLog.open(
    os.environ["COORDJOURNAL_REPO"],
    etcd=os.environ.get("COORDJOURNAL_ETCD", ""),
    ttl=int(os.environ.get("COORDJOURNAL_TTL", "10")),
)
atexit.register(LOG.close)  # a worker that is told to end finishes what it took on, and hands over

_SECONDS: Final = 10.0
_STATUS: Final[dict[type[Exception], HTTPStatus]] = {
    cj.Conflict: HTTPStatus.CONFLICT,
    cj.NotFound: HTTPStatus.NOT_FOUND,
    cj.Rejected: HTTPStatus.UNPROCESSABLE_ENTITY,
    cj.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,  # certainly not appended
    cj.Undecided: HTTPStatus.GATEWAY_TIMEOUT,  # the same Idempotency-Key may be sent again
    ValueError: HTTPStatus.BAD_REQUEST,
}


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
    except (cj.CoordJournalError, ValueError) as error:
        known = (found for kind, found in _STATUS.items() if isinstance(error, kind))
        status, answer = next(known, HTTPStatus.INTERNAL_SERVER_ERROR), {"error": str(error)}
    headers = [("Content-Type", "application/json"), ("X-Worker", str(os.getpid()))]
    start_response(f"{status.value} {status.phrase}", headers)
    return [json.dumps(answer).encode()]


def _append(space: str, body: bytes, key: str | None) -> dict[str, Any]:
    asked = json.loads(body)
    if not isinstance(asked, dict) or not asked.keys() >= {"alias", "target"}:
        raise ValueError("an alias and a target are needed")
    decision = cj.AliasSet(alias=asked["alias"], target=asked["target"])
    receipt = LOG.append(space, decision, actor="web@example.org", key=key, timeout=_SECONDS)
    return {"seq": receipt.seq, "commit": receipt.commit, "key": receipt.key, "via": receipt.via}
