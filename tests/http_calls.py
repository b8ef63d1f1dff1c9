"""`http/request` as tests make it, with a raw peer."""

from __future__ import annotations

import base64
from typing import Any

from wire import Answer, Peer


def params(url: str, method: str = "GET", **fields: Any) -> dict[str, Any]:
    """The params of a request; `body` is bytes, `headers` are pairs."""
    body: bytes | None = fields.pop("body", None)
    if body is not None:
        fields["bodyBase64"] = base64.b64encode(body).decode()
    fields["headers"] = [
        header if isinstance(header, dict) else {"name": header[0], "value": header[1]}
        for header in fields.pop("headers", [])
    ]
    return {"method": method, "url": url, "requestId": "r", **fields}


async def call(peer: Peer, url: str, method: str = "GET", **fields: Any) -> Answer:
    """Make a request and wait for its answer."""
    return await peer.request("http/request", params(url, method, **fields))


async def send(peer: Peer, url: str, **fields: Any) -> int:
    """Make a request; returns the id of its answer."""
    return await peer.send("http/request", params(url, **fields))


def body_of(result: dict[str, Any]) -> bytes:
    return base64.b64decode(result["bodyBase64"], validate=True)


def values(result: dict[str, Any], name: str) -> list[str]:
    """The values of a header of a response, in order."""
    return [header["value"] for header in result["headers"] if header["name"] == name]


def deltas(peer: Peer, request_id: str = "r") -> list[dict[str, Any]]:
    """All parts of one streamed body so far, in order of arrival."""
    return [
        event.params
        for event in peer.events("")
        if event.kind == "http/request/bodyDelta" and event.params["requestId"] == request_id
    ]


def streamed(peer: Peer, request_id: str = "r") -> bytes:
    """What of a streamed body has come so far; its numbers have no holes."""
    parts = deltas(peer, request_id)
    assert [part["seq"] for part in parts] == list(range(1, len(parts) + 1))
    return b"".join(base64.b64decode(part["deltaBase64"], validate=True) for part in parts)


async def until_done(peer: Peer, request_id: str = "r") -> dict[str, Any]:
    """Wait for the end of a streamed body; returns its last message."""
    await peer.until(lambda: any(part["done"] for part in deltas(peer, request_id)))
    *parts, last = deltas(peer, request_id)
    assert all(not part["done"] and part["error"] is None for part in parts)
    assert last["done"]
    assert last["deltaBase64"] == ""
    return last
