"""The bodies of HTTP responses that arrive on one connection, piece by piece. No I/O.

Whoever receives never waits for a reader, and nothing can be sent back to slow the server down, so that a reader
that is too slow loses its body, and no other.
"""

from __future__ import annotations

from collections import deque

import trio

from tsupervise_protocol.base64_text import decode_base64
from tsupervise_protocol.http_messages import MAX_DELTA_BYTES, BodyDeltaNotification

from .errors import HttpBodyFailed

MAX_FRAMES = 256
"""Pieces of one body that wait for their reader; as other clients of this protocol have it."""

MAX_QUEUED_BYTES = 16 << 20
"""And bytes of all bodies of a connection."""


class HttpBodies:
    """The bodies of one connection that are not whole yet, and what waits for readers."""

    def __init__(self) -> None:
        self._open: dict[str, HttpBody] = {}
        self.queued_bytes = 0

    def open(self, request_id: str) -> HttpBody:
        """Expect a body; before its request is sent."""
        body = self._open[request_id] = HttpBody(self, request_id)
        return body

    def close(self, body: HttpBody) -> None:
        """Nobody wants the rest of it: what still comes is ignored, and whoever waits for it is told."""
        self._open.pop(body.request_id, None)
        body.leave()

    def take(self, delta: BodyDeltaNotification) -> None:
        """Hand a piece to its body; of an unknown body it is ignored."""
        body = self._open.get(delta.request_id)
        if body is None:
            return
        body.take(delta)
        if body.is_complete:
            del self._open[delta.request_id]

    def end(self, reason: str) -> None:
        """The connection has ended, and none of the bodies will be whole."""
        for body in self._open.values():
            body.fail(f"the connection was lost: {reason}")
        self._open.clear()


class HttpBody:
    """One body, between the connection and its reader."""

    def __init__(self, bodies: HttpBodies, request_id: str) -> None:
        self.request_id = request_id
        self.is_complete = False
        """Whether nothing more will come."""
        self._bodies = bodies
        self._pieces: deque[bytes] = deque()
        self._next_seq = 1
        self._failure: str | None = None
        self._changed = trio.lowlevel.ParkingLot()

    def take(self, delta: BodyDeltaNotification) -> None:
        """Take the next piece; one that is wrong fails the body."""
        if delta.seq != self._next_seq:
            self.fail(f"piece {delta.seq} came in place of piece {self._next_seq}")
            return
        self._next_seq += 1
        # Before it is decoded: nobody pays for what is refused.
        if len(delta.delta_base64) > (MAX_DELTA_BYTES + 2) // 3 * 4:
            self.fail(f"piece {delta.seq} is larger than {MAX_DELTA_BYTES} bytes")
            return
        try:
            piece = decode_base64(delta.delta_base64)
        except ValueError as error:
            self.fail(f"piece {delta.seq}: {error}")
            return
        if len(piece) > MAX_DELTA_BYTES:
            self.fail(f"piece {delta.seq} is larger than {MAX_DELTA_BYTES} bytes")
            return
        if piece:
            if len(self._pieces) >= MAX_FRAMES or self._bodies.queued_bytes + len(piece) > MAX_QUEUED_BYTES:
                self.drop()
                self.fail("it came faster than it was read")
                return
            self._pieces.append(piece)
            self._bodies.queued_bytes += len(piece)
        if delta.done:
            self.is_complete = True
            self._failure = delta.error
        self._changed.unpark_all()

    def fail(self, reason: str) -> None:
        """End it with an error, behind what waits already."""
        self.is_complete = True
        self._failure = reason
        self._changed.unpark_all()

    def leave(self) -> None:
        """Forget what waits, and let nobody wait for more."""
        if self._pieces or not self.is_complete:
            self.drop()
            self.fail("its block was left")

    def drop(self) -> None:
        """Forget what waits."""
        self._bodies.queued_bytes -= sum(map(len, self._pieces))
        self._pieces.clear()

    async def receive(self) -> bytes:
        """Wait for the next piece; b"" at the end.

        Raises:
            HttpBodyFailed: it has ended, and is not whole.
        """
        await trio.lowlevel.checkpoint()
        while not self._pieces:
            if self._failure is not None:
                raise HttpBodyFailed(f"the body of the HTTP response is not whole: {self._failure}")
            if self.is_complete:
                return b""
            await self._changed.park()
        piece = self._pieces.popleft()
        self._bodies.queued_bytes -= len(piece)
        return piece
