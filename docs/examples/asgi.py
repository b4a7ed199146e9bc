"""Decisions over HTTP from one event loop a worker; plain ASGI.

    COORDJOURNAL_REPO=wiki.git COORDJOURNAL_ETCD=10.0.0.1:2379 \
        uvicorn --app-dir docs/examples --workers 4 asgi:app

Nothing of the log is awaited in the loop itself: `submit` returns at once, its future is wrapped, and reads
are for a thread. Of many requests at a time one group is made, so a loop needs no pool of threads to append.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any, Final

import coordjournal as cj

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LOG: Final = cj.DecisionLog.from_environment(os.environ)  # the variables that docs/cli.md names: TLS, user, role, …

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


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """POST appends an alias to the space that the path names, GET tells what is true there."""
    if scope["type"] == "lifespan":
        await _live(receive, send)
    elif scope["type"] == "http":
        status, answer = await _answer(scope, receive)
        headers = [(b"content-type", b"application/json"), (b"x-worker", str(os.getpid()).encode())]
        await send({"type": "http.response.start", "status": status.value, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.shutdown":
            await asyncio.to_thread(LOG.close)  # finishes what was submitted, and hands over
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _answer(scope: Message, receive: Receive) -> tuple[HTTPStatus, dict[str, Any]]:
    space = scope["path"].strip("/")
    try:
        if scope["method"] == "POST":
            key = dict(scope["headers"]).get(b"idempotency-key")
            return HTTPStatus.CREATED, await _append(space, await _body(receive), key.decode() if key else None)
        state = await asyncio.to_thread(LOG.state, space)  # linearizable: whichever worker appended it, it is there
    except (cj.CoordJournalError, ValueError, RecursionError) as error:
        return _failed(error)
    return HTTPStatus.OK, {"seq": state.seq, "aliases": dict(state.aliases)}


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


async def _append(space: str, body: bytes, key: str | None) -> dict[str, Any]:
    asked = json.loads(body)
    if not isinstance(asked, dict) or not asked.keys() >= {"alias", "target"}:
        raise ValueError("an alias and a target are needed")
    decision = cj.AliasSet(alias=asked["alias"], target=asked["target"])
    append = asyncio.wrap_future(LOG.submit(space, decision, actor="web@example.org", key=key))
    # Not `wait_for`, which would cancel: to take an append back may keep the loop waiting for etcd.
    done, _ = await asyncio.wait({append}, timeout=_SECONDS)
    if not done:
        append.add_done_callback(lambda late: late.cancelled() or late.exception())  # nobody will ask for it
        raise cj.Undecided(f"not decided within {_SECONDS:g} s; send it again with the same Idempotency-Key")
    receipt = append.result()
    return {"seq": receipt.seq, "commit": receipt.commit, "key": receipt.key, "via": receipt.via}


async def _body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        part: bytes = message.get("body", b"")
        body += part
        if not message.get("more_body"):
            return body
