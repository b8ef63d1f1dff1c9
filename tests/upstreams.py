"""Real HTTP servers and proxies on loopback, for what a daemon sends: sockets and bytes, no HTTP library."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

Handler = Callable[["Received", trio.abc.Stream], Awaitable[None]]


@dataclass(frozen=True)
class Received:
    """A request as it came: nothing is left out, nothing is put in order."""

    method: str
    target: str
    fields: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        """The values of a field, in order, however it is spelled."""
        return [value for key, value in self.fields if key.lower() == name]


@dataclass
class Upstream:
    """A running server."""

    port: int
    received: list[Received] = field(default_factory=list[Received])
    connections: int = 0

    def url(self, path: str = "/", host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"


def response(
    body: bytes = b"", *fields: tuple[str, str], status: int = 200, length: int | None = None
) -> bytes:
    """A response, with its length unless that is negative."""
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in fields)]
    length = len(body) if length is None else length
    if length >= 0:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def redirect(location: str, status: int = 302, body: bytes = b"") -> bytes:
    return response(body, ("Location", location), status=status)


def answering(routes: dict[str, bytes] | bytes) -> Handler:
    """Answers with fixed bytes, for all targets or for each its own; for others with `ok`."""

    async def answer(received: Received, stream: trio.abc.Stream) -> None:
        data = routes if isinstance(routes, bytes) else routes.get(received.target)
        await stream.send_all(response(b"ok") if data is None else data)

    return answer


@asynccontextmanager
async def upstream(
    handler: Handler, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncGenerator[Upstream]:
    """A server for one request on each connection, for the time of the block."""
    [listener] = await trio.open_tcp_listeners(0, host=host)
    server = Upstream(listener.socket.getsockname()[1])

    async def serve(plain: trio.SocketStream) -> None:
        server.connections += 1
        stream = plain if tls is None else trio.SSLStream(plain, tls, server_side=True, https_compatible=True)
        try:
            received = await receive(stream)
            if received is not None:
                server.received.append(received)
                await handler(received, stream)
            await stream.aclose()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has gone

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield server
        nursery.cancel_scope.cancel()


async def receive(stream: trio.abc.Stream) -> Received | None:
    """One request with its body; None if there is none."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some()
        if not more:
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    fields = [(name, value.strip(" ")) for name, _, value in (line.partition(":") for line in lines)]
    received = Received(method, target, fields, b"")
    for length in received.all("content-length")[:1]:
        while len(body) < int(length):
            body += await stream.receive_some()
    return Received(method, target, fields, body)


@asynccontextmanager
async def proxy(to: dict[str, int]) -> AsyncGenerator[Upstream]:
    """A forward proxy that looks names up in a table of its own, and nowhere else.

    It answers requests in absolute form itself, with the target as the body, and joins CONNECT to a port of
    127.0.0.1.

    Args:
        to: by host and port, as `name:443`.
    """

    async def serve(received: Received, stream: trio.abc.Stream) -> None:
        if received.method != "CONNECT":
            await stream.send_all(response(received.target.encode()))
            return
        port = to.get(received.target)
        if port is None:
            await stream.send_all(response(status=403))
            return
        async with await trio.open_tcp_stream("127.0.0.1", port) as behind:
            await stream.send_all(b"HTTP/1.1 200 Connected\r\n\r\n")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_pump, stream, behind, nursery)
                nursery.start_soon(_pump, behind, stream, nursery)

    async with upstream(serve) as server:
        yield server


async def _pump(source: trio.abc.Stream, sink: trio.abc.Stream, nursery: trio.Nursery) -> None:
    try:
        async for data in source:
            await sink.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    nursery.cancel_scope.cancel()
