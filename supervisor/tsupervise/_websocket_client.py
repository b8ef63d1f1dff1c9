"""The client's WebSocket: a `MessageChannel` over trio-websocket, the only room of the client that knows it."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
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
from tsupervise_protocol.errors import MalformedMessage

from ._background import open_background
from ._channel import CloseCode
from ._way_in import Credentials
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

SILENCE_S = 45.0
"""How long a server may say nothing before it is taken for gone. A third of it passes before it is pinged, the rest
is for the answer; any byte will do for one."""

ENDED_WITHOUT_CLOSE = 1006
"""The code of a connection that ended without a close frame (RFC 6455, 7.1.5)."""

SILENT_TICKS = 9
"""Silence is counted in so many ticks, of which one that took far too long is one: a machine that was suspended, or
a program that held up the loop, has heard nothing because it did not listen."""

PING_TICK = 3
"""The server is pinged after so many silent ticks."""


class WebSocketChannel:
    """One WebSocket connection of a client. Made by `open_websocket_channel`."""

    def __init__(self, connection: WebSocketConnection, stream: _WatchedStream, silence_s: float) -> None:
        self._connection = connection
        self._stream = stream
        self._silence_s = silence_s
        self._is_receiving = False
        self._is_pinging = False
        self._is_gone = False

    @property
    def end_reason(self) -> str:
        """How the connection ended, once it has."""
        closed = self._connection.closed
        if self._is_gone:
            return f"the server has been silent for {self._silence_s:g} s and answers no ping"
        if closed is None or closed.code == ENDED_WITHOUT_CLOSE:
            return "the server ended it without a word"
        return f"the server closed it with {closed.code} ({closed.reason or closed.name})"

    async def receive(self) -> Sequence[bytes]:
        self._is_receiving = True
        try:
            message = await self._connection.get_message()
        except ConnectionClosed:
            self._raise_if_malformed()
            return ()
        finally:
            self._is_receiving = False
        return (message.encode() if isinstance(message, str) else message,)

    def _raise_if_malformed(self) -> None:
        """Tell the end that the library makes when it cannot go on reading from the end that the server makes."""
        closed = self._connection.closed
        if closed is None or closed.code == ENDED_WITHOUT_CLOSE:
            return
        # The library says it nowhere else: its `closed` looks the same for both.
        state = self._connection._wsproto.state  # pyright: ignore[reportPrivateUsage]
        if state.name != "CLOSED":
            raise MalformedMessage(f"{closed.reason or closed.name} (WebSocket {closed.code})")

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

    async def watch(self, excused_s: Callable[[], float]) -> None:
        async with trio.open_nursery() as pings:
            tick_s = self._silence_s / SILENT_TICKS
            silent = 0
            while silent < SILENT_TICKS + excused_s() / tick_s:
                heard = self._stream.heard
                await trio.sleep(tick_s)
                # Who does not take messages, because a reader is slow, hears nothing whoever speaks.
                silent = silent + 1 if self._is_receiving and self._stream.heard == heard else 0
                # One that is not answered yet, or not even sent, asks for all that follow.
                if silent >= PING_TICK and not self._is_pinging:
                    self._is_pinging = True
                    pings.start_soon(self._ping)
            self._is_gone = True
            pings.cancel_scope.cancel()

    async def _ping(self) -> None:
        with suppress(ConnectionClosed):
            await self._connection.ping()
            self._is_pinging = False

    async def aclose(self, code: CloseCode, reason: str) -> None:
        with trio.move_on_after(0 if self._is_gone else CLOSE_S, shield=True):
            # The reason of a close frame is 123 bytes at most (RFC 6455, 5.5).
            await self._connection.aclose(int(code), reason.encode()[:123].decode(errors="ignore") or None)


@asynccontextmanager
async def open_websocket_channel(
    url: str, *, silence_s: float = SILENCE_S, credentials: Credentials | None = None
) -> AsyncGenerator[WebSocketChannel]:
    """Connect to `ws://`, `wss://` or `unix://`, and close at the end of the block.

    Args:
        url: where to.
        credentials: what to show there, and whom to believe; None for no token and the system's authorities.
        silence_s: how long the server may be silent before it is taken for gone, in seconds.

    Raises:
        ConnectFailed: no connection came about within `CONNECT_S` or `silence_s`, or this is no such URL; or a
            token would go where others can read it.
    """
    credentials = credentials or Credentials()
    try:
        address = Address.of(url)
        token = await credentials.read_token()
        with trio.fail_after(min(CONNECT_S, silence_s)) as limit:
            stream = await address.open_stream(credentials.ssl_context)
    except (OSError, ValueError, trio.TooSlowError, trio.BrokenResourceError) as error:
        raise ConnectFailed(f"cannot connect to {url!r}: {_say(error)}") from error
    if token is not None and not credentials.insecure_token and not _is_private(stream):
        await trio.aclose_forcefully(stream)
        raise ConnectFailed(
            f"refused to send a token to {url!r}, which is not encrypted and on another machine: use wss://, or "
            "forward the port (`ssh -L`), or allow it by insecure_token=True (--insecure-token)"
        )
    async with open_channel_over(stream, address, limit.deadline, silence_s, token) as channel:
        yield channel


def _is_private(stream: trio.abc.Stream) -> bool:
    """Whether nobody between the two ends can read along: encrypted, or inside this machine."""
    if not isinstance(stream, trio.SocketStream) or stream.socket.family == socket.AF_UNIX:
        return True
    # Who is really there: a name may mean anything.
    peer = ip_address(stream.socket.getpeername()[0].partition("%")[0])
    return ((isinstance(peer, IPv6Address) and peer.ipv4_mapped) or peer).is_loopback


@asynccontextmanager
async def open_channel_over(
    stream: trio.abc.Stream, address: Address, deadline: float, silence_s: float, token: str | None = None
) -> AsyncGenerator[WebSocketChannel]:
    """Upgrade a stream to a WebSocket, and close it at the end of the block.

    Args:
        stream: to the server; it belongs to the block.
        address: whom to ask for.
        deadline: when the upgrade must have been answered, on trio's clock.
        silence_s: as `open_websocket_channel`.
        token: to show; None for none.

    Raises:
        ConnectFailed: it was not answered, or refused.
    """
    async with stream, open_background(outlast_cancel=True) as nursery:
        watched = _WatchedStream(stream)
        try:
            with trio.fail_at(deadline):
                connection: WebSocketConnection = await nursery.start(_run_websocket, watched, address, token)
        except (HandshakeError, trio.TooSlowError) as error:
            text = _say(error)
            if token is not None:
                text = text.replace(token, "...")  # a server may answer with what it was sent
            raise ConnectFailed(f"cannot connect to {address.url!r}: {text}") from error
        channel = WebSocketChannel(connection, watched, silence_s)
        nursery.start_soon(channel.keep_alive)
        try:
            yield channel
        finally:
            await channel.aclose(CloseCode.NORMAL, "")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is."""

    url: str
    encrypted: bool
    host: str
    port: int
    resource: str
    path: str | None = None
    """Of a socket in the file system; what else is there means nothing then."""

    @classmethod
    def of(cls, url: str) -> Address:
        """Raises ValueError unless it is a WebSocket URL."""
        if url.startswith("unix:///"):
            return cls(url, False, "localhost", 80, "/", url.removeprefix("unix://"))
        parts = urlsplit(url)
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise ValueError("not a WebSocket URL")
        encrypted = parts.scheme == "wss"
        resource = (parts.path or "/") + (parts.query and "?" + parts.query)
        return cls(url, encrypted, parts.hostname, parts.port or (443 if encrypted else 80), resource)

    @property
    def host_header(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    async def open_stream(self, ssl_context: ssl.SSLContext | None = None) -> trio.abc.Stream:
        """Connect, TLS included.

        Args:
            ssl_context: for an encrypted address; None for one with the authorities that this system trusts.
        """
        if self.path is not None:
            return await trio.open_unix_socket(self.path)
        if not self.encrypted:
            return await trio.open_tcp_stream(self.host, self.port)
        stream = await trio.open_ssl_over_tcp_stream(
            self.host, self.port, https_compatible=True, ssl_context=ssl_context
        )
        try:
            # Now and not with the first byte, so that what is wrong with the certificate can be told.
            await stream.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return stream


async def _run_websocket(
    stream: _WatchedStream,
    address: Address,
    token: str | None,
    task_status: trio.TaskStatus[WebSocketConnection] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Upgrade, and hold the library's reader, until the connection ends.

    Not the library's own opening: after a refusal that leaves its socket for the garbage collector.
    """
    connection = None
    headers = [] if token is None else [(b"Authorization", b"Bearer " + token.encode())]
    try:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as handshake:
                stream.on_end = handshake.cancel
                connection = await wrap_client_stream(
                    nursery,
                    cast("trio.SocketStream", stream),
                    address.host_header,
                    address.resource,
                    extra_headers=headers,
                    receive_buffer_size=RECEIVE_BYTES,
                    message_queue_size=QUEUED_MESSAGES,
                    max_message_size=MAX_MESSAGE_BYTES,
                )
                task_status.started(connection)
                return
            raise HandshakeError(stream.end_reason)
    except ExceptionGroup as group:
        # The reader is the only task, so that there is one error at most. To an answer that is no HTTP it tries to
        # answer in turn, which fails in several ways.
        error = group.exceptions[0]
        if connection is None and not isinstance(error, HandshakeError):
            raise HandshakeError(stream.end_reason) from error
        raise error from None


class _WatchedStream(trio.abc.Stream):
    """A stream that tells what is heard, and of its end: the library waits for its upgrade even beyond that."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.heard = 0
        """How many times something was received."""
        self.on_end: Callable[[], None] = lambda: None
        self.end_reason = "what answered speaks no HTTP"
        self._stream = stream

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data: bytes | bytearray = b""
        try:
            data = await self._stream.receive_some(max_bytes)
            self.heard += 1
            return data
        finally:
            if not data:
                self.end_reason = "the connection was closed before it was answered"
                self.on_end()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        self.on_end()
        await self._stream.aclose()


def _say(error: Exception) -> str:
    match error:
        case trio.TooSlowError():
            return "no answer in time"
        case ConnectionRejected(status_code=status, body=body):
            detail = (body or b"").decode(errors="replace").strip()
            return f"the server answered HTTP {status}{detail and ': ' + detail}"
        case trio.BrokenResourceError(__cause__=ssl.SSLCertVerificationError() as cause):
            return f"its certificate is not trusted: {cause.verify_message}; --tls-ca names whom to trust"
        case trio.BrokenResourceError():
            return "the connection ended in the TLS handshake; does a server with wss:// listen there?"
        case OSError(__cause__=ExceptionGroup(exceptions=[OSError() as first, *_])):
            reason = os.strerror(first.errno) if first.errno else str(first)
            return f"{reason}; is a server listening there?"
        case ValueError():
            return f"{error}; expected `ws://HOST:PORT`, `wss://HOST:PORT` or `unix:///PATH`"
        case _:
            return f"{error}"
