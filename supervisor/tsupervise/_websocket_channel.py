"""A WebSocket as a message channel: the byte layer of `_websocket` on a trio stream, and its pings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from ._channel import CloseCode
from ._websocket import WebSocket

RECEIVE_BYTES = 64 << 10
"""The most that one receive takes from the socket."""

SEND_BYTES = 256 << 10
"""A larger message is handed to the stream in pieces of this size: each may be encrypted, and be sent, at once, and
the loop has others to serve in between."""

PING_INTERVAL_S = 30.0
"""Seconds between pings, the first one this long after the connection; as the reference server."""

PONG_TIMEOUT_S = 60.0
"""Seconds that an unanswered ping may be old; the reference keeps the same time on its relay connections. A
peer that reads nothing cannot answer, so this bounds a blocked send, too."""

LINGER_S = 0.3
"""Seconds that the peer has to read our last words before the socket is closed. Closed at once, they would be
lost to a reset if the peer had still sent something."""


class WebSocketChannel:
    """One upgraded connection.

    Args:
        stream: the socket, owned from now on.
        peer: IP:PORT of the other side.
        leftover: bytes that came behind the upgrade request.
        try_send: sends what the stream takes without waiting, and returns how many bytes that was.
        unread: how many bytes of the peer the stream holds that have not been received.
        peer_uid: tells which user is at the other end, None for unknown.
    """

    def __init__(
        self,
        stream: trio.abc.HalfCloseableStream,
        peer: str,
        leftover: bytes = b"",
        try_send: Callable[[bytes], int] = lambda _: 0,
        unread: Callable[[], int] = lambda: 0,
        peer_uid: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.label = f"websocket JSON-RPC message from exec-server websocket {peer}"
        self.peer = peer
        self._stream = stream
        self._websocket = WebSocket()
        self._leftover = leftover
        self._try_send = try_send
        self._unsent = b""
        self._unread = unread
        self.peer_uid = peer_uid
        self._reads = 0
        self._heard = trio.lowlevel.ParkingLot()
        self._peer_has_ended = False
        self._sending = False
        self._pieces_sent = 0
        self._closed = False
        self._wake: Callable[[], None] = _nobody

    def set_waker(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    async def receive(self) -> Sequence[bytes]:
        while self._websocket.ended is None:
            data = await self._receive_bytes()
            if not data:
                self._peer_has_ended = True
                break
            self._reads += 1
            messages = self._websocket.receive(data)
            if self._websocket.has_control:
                self._wake()
            if self._heard:
                self._heard.unpark_all()
            if messages:
                return messages
        return ()

    async def _receive_bytes(self) -> bytes | bytearray:
        if self._leftover:
            leftover, self._leftover = self._leftover, b""
            return leftover
        try:
            return await self._stream.receive_some(RECEIVE_BYTES)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""

    async def send(self, messages: Sequence[bytes]) -> None:
        if len(messages) == 1 and len(messages[0]) > SEND_BYTES:
            await self._send_large(messages[0])
            return
        data = self._bytes_of(messages)
        if self._unsent:
            data, self._unsent = self._unsent + data, b""
        if data:
            self._sending = True
            await self._stream.send_all(data)
            self._sending = False

    async def _send_large(self, message: bytes) -> None:
        """Send a message without a copy of it; pongs, which the peer may wait for, go between its frames."""
        head, self._unsent = self._unsent, b""
        self._sending = True
        for header, payload in self._websocket.frames_of(message):
            await self._stream.send_all(head + self._websocket.take_control() + header)
            head = b""
            for start in range(0, len(payload), SEND_BYTES):
                await self._stream.send_all(payload[start : start + SEND_BYTES])
                self._pieces_sent += 1
                await trio.lowlevel.checkpoint()
        self._sending = False

    def send_nowait(self, messages: Sequence[bytes]) -> bool:
        data = self._bytes_of(messages)
        sent = self._try_send(data)
        if sent == len(data):
            return True
        self._unsent = data[sent:]
        return False

    def _bytes_of(self, messages: Sequence[bytes]) -> bytes:
        frames = self._websocket.frame(messages)
        control = self._websocket.take_control()
        return control + frames if control else frames

    async def keep_alive(self) -> None:
        ping_at = trio.current_time()
        while True:
            ping_at = max(ping_at + PING_INTERVAL_S, trio.current_time())
            await trio.sleep_until(ping_at)
            pongs = self._websocket.pongs_received
            unread, pieces = self._unread(), self._pieces_sent
            self._ping()
            with trio.move_on_after(PONG_TIMEOUT_S):
                while self._websocket.pongs_received == pongs:
                    await self._heard.park()
            # A ping waits behind a large message; that the peer goes on taking it is a sign of life as well.
            taken = self._pieces_sent > pieces
            if self._websocket.pongs_received == pongs and self._unread() <= unread and not taken:
                return

    async def is_alive(self, within_s: float) -> bool:
        reads, unread = self._reads, self._unread()
        self._ping()
        with trio.move_on_after(within_s):
            while self._reads == reads:
                await self._heard.park()
        # Nobody receives while answers wait for a peer that reads slowly; what it sends still counts.
        return self._reads != reads or self._unread() > unread

    def _ping(self) -> None:
        self._websocket.ping()
        self._wake()

    async def aclose(self, code: CloseCode, reason: str) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            if (
                not self._sending and not self._unsent
            ):  # else half a message may be out: nothing more can be said
                self._websocket.close(code, reason)  # if the peer has not closed or earned a close already
                await self._stream.send_all(self._websocket.take_close())
                if not self._peer_has_ended:
                    await linger(self._stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            pass
        finally:
            await trio.aclose_forcefully(self._stream)


async def linger(stream: trio.abc.HalfCloseableStream) -> None:
    """Say that nothing more comes, and let the peer read it all before the socket is closed."""
    await stream.send_eof()
    with trio.move_on_after(LINGER_S):
        while await stream.receive_some(RECEIVE_BYTES):
            pass


def _nobody() -> None:
    """Wakes nobody: until a connection says whom."""
