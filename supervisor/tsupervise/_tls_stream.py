"""The server's side of TLS on a connected socket, as a stream whose two directions end one after the other.

trio's own TLS stream closes its socket at once. An answer that was just sent would be lost then to a reset, if the
peer had still said something: so the end is told, and what still comes is read, before the socket goes.
"""

from __future__ import annotations

import ssl

import trio

from ._socket_stream import EagerSocketStream


class TlsStream(trio.abc.HalfCloseableStream):
    """Owns a socket. The handshake happens with the first byte that is sent or received.

    Args:
        transport: the socket.
        context: with the certificate of this server.
    """

    def __init__(self, transport: EagerSocketStream, context: ssl.SSLContext) -> None:
        self._transport = transport
        self._tls = trio.SSLStream(_HalfClosed(transport), context, server_side=True)
        self._has_ended = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        # After our own end nobody looks at what comes, and it need not be decrypted.
        return await (self._transport if self._has_ended else self._tls).receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._tls.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._tls.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        self._has_ended = True
        await self._tls.aclose()

    async def aclose(self) -> None:
        await self._transport.aclose()


class _HalfClosed(trio.abc.Stream):
    """The socket as the TLS engine has it: its close is the end of what is sent."""

    def __init__(self, transport: EagerSocketStream) -> None:
        self._transport = transport

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self._transport.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._transport.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._transport.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._transport.send_eof()
