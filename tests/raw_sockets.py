"""TCP connections to a server on which a test says what it likes, and from which it vanishes as it likes."""

from __future__ import annotations

import json
import re
import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio

from daemons import Daemon
from frames import CLOSE, NO_MASK, TEXT, client_frame, close_payload
from wire import PATIENCE_S, start_params

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)

ATTACHED = -32010
"""The error code for a session that another connection holds; a client tries again later."""


def frame(payload: bytes, *, opcode: int = TEXT, final: bool = True) -> bytes:
    """A client's frame whose mask changes nothing."""
    return client_frame(opcode, payload, fin=final, mask=NO_MASK)


INITIALIZE = frame(b'{"id":0,"method":"initialize","params":{"clientName":"tests"}}')
INITIALIZED = frame(b'{"method":"initialized"}')


async def dial(daemon: Daemon, *parts: bytes) -> trio.SocketStream:
    """A TCP connection on which `parts` have been sent, the first answer being awaited after an upgrade."""
    stream = await trio.open_tcp_stream(*daemon.address)
    for part in parts:
        await stream.send_all(part)
        if part is UPGRADE:
            answer = b""
            with trio.fail_after(PATIENCE_S):
                while b"\r\n\r\n" not in answer:
                    answer += await stream.receive_some()
            assert answer.startswith(b"HTTP/1.1 101 ")
    return stream


async def vanish(stream: trio.SocketStream, *, reset: bool) -> None:
    """Drop a connection without a goodbye: by FIN, or by RST as a crashed machine's router would."""
    if reset:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await trio.aclose_forcefully(stream)


@dataclass
class BareClient:
    """A WebSocket client that is only a socket: it answers no ping, no close frame, and may just vanish."""

    stream: trio.SocketStream
    session_id: str = ""
    received: bytes = b""

    async def send(self, message: dict[str, Any]) -> None:
        await self.stream.send_all(frame(json.dumps(message).encode()))

    async def until(self, pattern: bytes) -> re.Match[bytes]:
        """Receive until `pattern` occurs, and forget everything up to its end; frames stay as they are."""
        with trio.fail_after(PATIENCE_S):
            while (match := re.search(pattern, self.received)) is None:
                data = await self.stream.receive_some()
                assert data, "the server ended the connection"
                self.received += data
        self.received = self.received[match.end() :]
        return match

    async def handshake(self, resume: str | None = None) -> None:
        """Begin a session, or resume one, asking again for as long as another connection holds it."""
        params = {"clientName": "tests", "resumeSessionId": resume}
        answer = None
        while answer is None or answer["session"] is None:
            assert answer is None or int(answer["code"]) == ATTACHED
            await self.send({"id": 1, "method": "initialize", "params": params})
            answer = await self.until(rb'"sessionId":\s*"(?P<session>[^"]+)"|"code":\s*(?P<code>-\d+)')
        self.session_id = answer["session"].decode()
        await self.send({"method": "initialized"})

    async def start(self, process_id: str, *argv: str) -> None:
        await self.send({"id": 2, "method": "process/start", "params": start_params(process_id, *argv)})
        await self.until(rb'"id":\s*2\b')

    async def reset(self) -> None:
        """End the connection with a RST."""
        await vanish(self.stream, reset=True)

    async def half_close(self) -> None:
        """Send a FIN and go on listening."""
        await self.stream.send_eof()

    async def send_close_frame(self) -> None:
        """Send a close frame with code 1000, and do nothing more."""
        await self.stream.send_all(frame(close_payload(1000), opcode=CLOSE))


@asynccontextmanager
async def bare(daemon: Daemon) -> AsyncGenerator[BareClient]:
    """A bare client after the WebSocket upgrade; the socket is closed at the end of the block."""
    async with await dial(daemon, UPGRADE) as stream:
        yield BareClient(stream)
