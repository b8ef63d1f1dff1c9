"""One HTTP request at a server's port, and what it says to it: nothing but a socket and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import trio

from daemons import Daemon
from wire import PATIENCE_S

UPGRADE = (
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
)


@dataclass(frozen=True)
class Reply:
    """A response: its status, its text, and all of it."""

    status: int
    text: str
    head: str


def request(
    *fields: tuple[str, str], path: str = "/", host: str | None = "localhost", method: str = "GET"
) -> bytes:
    """An upgrade request with more header fields, which go in front; or any other, for another path."""
    hosts = [] if host is None else [("Host", host)]
    upgrade = UPGRADE if path == "/" else ()
    lines = [
        f"{method} {path} HTTP/1.1",
        *(f"{name}: {value}" for name, value in (*hosts, *fields, *upgrade)),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


async def reply_on(stream: trio.abc.Stream, data: bytes) -> Reply:
    """Send a request on a connection and read the response."""
    await stream.send_all(data)
    received = bytearray()
    while b"\r\n\r\n" not in received:
        more = await stream.receive_some()
        assert more, "the server hung up on a request"
        received += more
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    while len(body) < int(fields.get("content-length", "0")):
        body += await stream.receive_some()
    return Reply(int(lines[0].split()[1]), body.decode(), head.decode("latin-1").lower())


async def knock(
    daemon: Daemon, *fields: tuple[str, str], path: str = "/", host: str | None = "localhost"
) -> Reply:
    """Ask a server for an upgrade, or for a page, on a connection of its own."""
    with trio.fail_after(PATIENCE_S):
        async with await trio.open_tcp_stream(*daemon.address) as stream:
            return await reply_on(stream, request(*fields, path=path, host=host))


def bearer(token: str) -> tuple[str, str]:
    return ("Authorization", f"Bearer {token}")


async def answers(daemon: Daemon, headers: Sequence[str | None]) -> list[tuple[int, str]]:
    """What each of several Authorization headers gets, None being no header."""
    got: list[tuple[int, str]] = []
    for header in headers:
        reply = await knock(daemon, *(() if header is None else (("Authorization", header),)))
        got.append((reply.status, reply.text))
    return got
