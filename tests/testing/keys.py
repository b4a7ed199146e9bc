"""Keys of an etcd, through its own gateway: so that these tests rest on nothing of ours."""

from __future__ import annotations

import base64
from typing import Any

from coordjournal.testing.etcd import EtcdServer


def put(server: EtcdServer, key: str, value: str, **options: Any) -> None:
    server.call("kv/put", key=coded(key), value=coded(value), **options)


def get(server: EtcdServer, key: str, **options: Any) -> str | None:
    """Return the value of a key, read linearizably."""
    found = server.call("kv/range", key=coded(key), **options).get("kvs", [])
    return base64.b64decode(found[0]["value"]).decode() if found else None


def coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
