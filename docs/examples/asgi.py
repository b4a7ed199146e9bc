"""Decisions over HTTP from one event loop a worker; plain ASGI.

    COORDJOURNAL_REPO=wiki.git COORDJOURNAL_ETCD=10.0.0.1:2379 \
        uvicorn --app-dir docs/examples --workers 4 asgi:app

Nothing of the log is awaited in the loop itself: `submit` returns at once, its future is wrapped, and reads
are for a thread. Of many requests at a time one group is made, so a loop needs no pool of threads to append.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any, Final

import coordjournal as cj

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LOG: Final = cj.DecisionLog.open(
    os.environ["COORDJOURNAL_REPO"],
    etcd=os.environ.get("COORDJOURNAL_ETCD", ""),
    ttl=int(os.environ.get("COORDJOURNAL_TTL", "10")),
)

_SECONDS: Final = 10.0
_STATUS: Final[dict[type[Exception], HTTPStatus]] = {
    cj.Conflict: HTTPStatus.CONFLICT,
    cj.NotFound: HTTPStatus.NOT_FOUND,
    cj.Rejected: HTTPStatus.UNPROCESSABLE_ENTITY,
    cj.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,  # certainly not appended
    cj.Undecided: HTTPStatus.GATEWAY_TIMEOUT,  # the same Idempotency-Key may be sent again
    ValueError: HTTPStatus.BAD_REQUEST,
}


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
    except (cj.CoordJournalError, ValueError) as error:
        known = (found for kind, found in _STATUS.items() if isinstance(error, kind))
        return next(known, HTTPStatus.INTERNAL_SERVER_ERROR), {"error": str(error)}
    return HTTPStatus.OK, {"seq": state.seq, "aliases": dict(state.aliases)}


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
