"""Sockets for the HTTP library: errors say in our words what failed, and a close is at once."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable
from typing import Any, cast

import httpcore2
import trio


class Network(httpcore2.AsyncNetworkBackend):
    """Opens TCP connections.

    In place of the library's own for trio: that one keeps the brackets around IPv6 addresses, tells more than it
    should of what went wrong, and when a request is cancelled it stays, shielded, to say the goodbye of TLS.
    """

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            return _Stream(await trio.open_tcp_stream(host.strip("[]"), port))
        except (OSError, UnicodeError) as error:
            text = f"cannot connect to {host}:{port}: {_why(error)}"
            raise httpcore2.ConnectError(text) from None


def _why(error: Exception) -> str:
    """The system's words for the first thing that went wrong: of several addresses each has failed."""
    cause = error.__cause__
    while isinstance(cause, ExceptionGroup):
        cause = cast("Exception", cause.exceptions[0])
    first = cause if isinstance(cause, OSError) else error
    if not isinstance(first, OSError):
        return "the host name cannot be looked up"
    # A resolver has numbers of its own, which are below 0.
    return (
        os.strerror(first.errno)
        if first.errno and first.errno > 0
        else first.strerror or "no address answers"
    )


class _Stream(httpcore2.AsyncNetworkStream):
    """A connection, with or without TLS. Time limits are those of the scope around it."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            return bytes(await self._stream.receive_some(max_bytes))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise httpcore2.ReadError("the connection has broken") from None

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            await self._stream.send_all(buffer)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise httpcore2.WriteError("the connection has broken") from None

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        name = (server_hostname or "").strip("[]")
        # https_compatible: many servers end a connection without the goodbye of TLS.
        secured = trio.SSLStream(
            self._stream, ssl_context, server_hostname=name, https_compatible=True, server_side=False
        )
        try:
            await secured.do_handshake()
        except BaseException as error:
            # Nobody else knows of this stream any more.
            await self.aclose()
            if not isinstance(error, trio.BrokenResourceError):
                raise
            raise httpcore2.ConnectError(f"no TLS with {name}: {_why_not_secure(error.__cause__)}") from None
        return _Stream(secured)

    def get_extra_info(self, info: str) -> Any:
        # A connection serves one request: one that is idle is taken for readable, which is to say ended.
        return True if info == "is_readable" else None


def _why_not_secure(cause: BaseException | None) -> str:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not believed: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError):
        return (cause.reason or "the handshake has failed").lower().replace("_", " ")
    return "the connection has broken"
