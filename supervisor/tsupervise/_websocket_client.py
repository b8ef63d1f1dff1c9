"""The client's WebSocket: a `MessageChannel` over trio-websocket, the only room of the client that knows it."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    HandshakeError,
    WebSocketConnection,
    wrap_client_stream,
)

from tsupervise_protocol.codec import MAX_MESSAGE_BYTES

from ._background import open_background
from ._channel import CloseCode
from .errors import ConnectFailed

CONNECT_S = 10.0
"""For TCP, TLS and the upgrade together; as other clients of this protocol have it."""

CLOSE_S = 1.0
"""How long a peer may take to answer a close frame; many servers never do, but end the stream at once."""

RECEIVE_BYTES = 65536
QUEUED_MESSAGES = 64
"""Messages that were received and not taken yet. A full queue also keeps the library from answering pings."""

HEARTBEAT_S = 20.0
"""Between pongs that nobody asked for (RFC 6455, 5.5.3). While output waits for its reader, the server's pings wait
behind it unseen, and servers take who sends no pong for 60 s for gone."""


class WebSocketChannel:
    """One WebSocket connection of a client. Made by `open_websocket_channel`."""

    def __init__(self, connection: WebSocketConnection) -> None:
        self._connection = connection

    @property
    def end_reason(self) -> str:
        """How the connection ended, once it has."""
        closed = self._connection.closed
        if closed is None or closed.code == 1006:
            return "the server ended it without a word"
        return f"the server closed it with {closed.code} ({closed.reason or closed.name})"

    async def receive(self) -> Sequence[bytes]:
        try:
            message = await self._connection.get_message()
        except ConnectionClosed:
            return ()
        return (message.encode() if isinstance(message, str) else message,)

    async def send(self, messages: Sequence[bytes]) -> None:
        try:
            for message in messages:
                await self._connection.send_message(message.decode())
        except ConnectionClosed:
            raise trio.BrokenResourceError from None

    async def keep_alive(self) -> None:
        """Tell the server that this end is there, whatever is left unread, until the connection ends."""
        with suppress(ConnectionClosed):
            while True:
                await trio.sleep(HEARTBEAT_S)
                await self._connection.pong()

    async def aclose(self, code: CloseCode, reason: str) -> None:
        with trio.move_on_after(CLOSE_S, shield=True):
            # The reason of a close frame is 123 bytes at most (RFC 6455, 5.5).
            await self._connection.aclose(int(code), reason.encode()[:123].decode(errors="ignore") or None)


@asynccontextmanager
async def open_websocket_channel(url: str) -> AsyncGenerator[WebSocketChannel]:
    """Connect to `ws://` or `wss://`, and close at the end of the block.

    Raises:
        ConnectFailed: no connection came about within `CONNECT_S`, or this is no such URL.
    """
    try:
        address = _Address.of(url)
        with trio.fail_after(CONNECT_S) as limit:
            stream = await address.open_stream()
    except (OSError, ValueError, trio.TooSlowError) as error:
        raise ConnectFailed(f"cannot connect to {url!r}: {_say(error)}") from error
    async with stream, open_background(outlast_cancel=True) as nursery:
        try:
            with trio.fail_at(limit.deadline):
                connection: WebSocketConnection = await nursery.start(_run_websocket, stream, address)
        except (HandshakeError, trio.TooSlowError) as error:
            raise ConnectFailed(f"cannot connect to {url!r}: {_say(error)}") from error
        channel = WebSocketChannel(connection)
        nursery.start_soon(channel.keep_alive)
        try:
            yield channel
        finally:
            await channel.aclose(CloseCode.NORMAL, "")


@dataclass(frozen=True, slots=True)
class _Address:
    encrypted: bool
    host: str
    port: int
    resource: str

    @classmethod
    def of(cls, url: str) -> _Address:
        parts = urlsplit(url)
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise ValueError("not a WebSocket URL")
        encrypted = parts.scheme == "wss"
        resource = (parts.path or "/") + (parts.query and "?" + parts.query)
        return cls(encrypted, parts.hostname, parts.port or (443 if encrypted else 80), resource)

    @property
    def host_header(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    async def open_stream(self) -> trio.SocketStream | trio.SSLStream[trio.SocketStream]:
        if self.encrypted:
            return await trio.open_ssl_over_tcp_stream(self.host, self.port, https_compatible=True)
        return await trio.open_tcp_stream(self.host, self.port)


async def _run_websocket(
    stream: trio.SocketStream | trio.SSLStream[trio.SocketStream],
    address: _Address,
    task_status: trio.TaskStatus[WebSocketConnection] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Upgrade, and hold the library's reader, until the connection ends.

    Not the library's own opening: after a refusal that leaves its socket for the garbage collector.
    """
    try:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as handshake:
                connection = await wrap_client_stream(
                    nursery,
                    cast("trio.SocketStream", _WatchedStream(stream, handshake.cancel)),
                    address.host_header,
                    address.resource,
                    receive_buffer_size=RECEIVE_BYTES,
                    message_queue_size=QUEUED_MESSAGES,
                    max_message_size=MAX_MESSAGE_BYTES,
                )
                task_status.started(connection)
                return
            raise _HandshakeCut
    except ExceptionGroup as group:
        # The reader is the only task, so that there is one error at most.
        raise group.exceptions[0] from None


class _HandshakeCut(HandshakeError):
    """The stream ended before the upgrade was answered."""


class _WatchedStream(trio.abc.Stream):
    """A stream that tells of its end: the library waits for the answer to its upgrade even beyond that."""

    def __init__(self, stream: trio.abc.Stream, on_end: Callable[[], None]) -> None:
        self._stream = stream
        self._on_end = on_end

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data: bytes | bytearray = b""
        try:
            data = await self._stream.receive_some(max_bytes)
            return data
        finally:
            if not data:
                self._on_end()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


def _say(error: Exception) -> str:
    match error:
        case trio.TooSlowError():
            return f"no answer within {CONNECT_S:.0f} s"
        case _HandshakeCut():
            return "the connection was closed before it was answered"
        case ConnectionRejected(status_code=status, body=body):
            detail = (body or b"").decode(errors="replace").strip()
            return f"the server answered HTTP {status}{detail and ': ' + detail}"
        case OSError(__cause__=ExceptionGroup(exceptions=[OSError() as first, *_])):
            reason = os.strerror(first.errno) if first.errno else str(first)
            return f"{reason}; is a server listening there?"
        case ValueError():
            return f"{error}; expected `ws://HOST:PORT`"
        case _:
            return f"{error}"
