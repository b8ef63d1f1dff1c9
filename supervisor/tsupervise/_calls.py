"""The calls that are open on one connection, and the messages that wait to be sent on it. No I/O.

A call leaves either by its answer or by the end of the connection; whether it was sent by then decides
whether the server can have heard of it.
"""

from __future__ import annotations

import math
from itertools import count

import trio

from tsupervise_protocol.codec import MAX_MESSAGE_BYTES, Failure, Response, decode_result, encode_request
from tsupervise_protocol.errors import MalformedMessage
from tsupervise_protocol.messages import ErrorBody, Message, ReadParams

from ._tracing import current_trace

MAX_UNSENT = 4096
"""Messages in the outbox. Callers cannot reach it: only a server could that asks and does not listen."""


IN_ORDER_CALLS = 100
"""Calls that are open at a time. A server that does one thing at a time keeps about so many waiting (the reference:
128); with more, it neither receives nor sends anything until the one that it is at is over (observed)."""


class Pending:
    """A call that waits. Done with neither a result nor an error, its connection has ended."""

    __slots__ = ("done", "error", "id", "method", "result", "wait_s", "was_sent")

    def __init__(self, call_id: int, method: str, wait_s: float = 0.0) -> None:
        self.id = call_id
        self.method = method
        self.wait_s = wait_s
        """How long the server was asked to wait before it answers."""
        self.done = trio.Event()
        self.result: Message | None = None
        self.error: ErrorBody | None = None
        self.was_sent = True
        """False once it is certain that the server has not heard of it and never will."""

    @property
    def was_answered(self) -> bool:
        return self.result is not None or self.error is not None


class CallTable:
    """See the module. One belongs to each connection."""

    def __init__(self) -> None:
        self._open: dict[int, Pending] = {}
        self._ids = count(1)
        # Keyed by call, so that a call that is cancelled before it was sent is not sent. Messages that
        # are no calls have keys below zero.
        self._outbox: dict[int, bytes] = {}
        self._other_keys = count(-1, -1)
        self._filled = trio.lowlevel.ParkingLot()

    def begin(self, method: str, params: Message) -> Pending:
        """Open a call and put its message into the outbox.

        Raises:
            ValueError: a message above `MAX_MESSAGE_BYTES`.
        """
        wait_ms = (params.wait_ms or 0) if isinstance(params, ReadParams) else 0
        pending = Pending(next(self._ids), method, wait_ms / 1000)
        message = encode_request(pending.id, method, params, current_trace())
        if len(message) > MAX_MESSAGE_BYTES:
            raise ValueError(
                f"{method}: a message of {len(message)} bytes, above the limit of {MAX_MESSAGE_BYTES}"
            )
        self._open[pending.id] = pending
        self._put(pending.id, message)
        return pending

    @property
    def excused_s(self) -> float:
        """How long the server may be busy with one of these calls and hear of nothing else, in seconds."""
        if len(self._open) < IN_ORDER_CALLS:
            return 0.0
        return max(pending.wait_s for pending in self._open.values())

    def free(self, pending: Pending) -> None:
        """Forget a call, and do not send it if that has not happened."""
        self._open.pop(pending.id, None)
        self._outbox.pop(pending.id, None)

    def take_back(self, pending: Pending) -> bool:
        """Forget a call if it has not been sent; return whether that is so."""
        if pending.id not in self._outbox and pending.was_sent:
            return False
        self.free(pending)
        return True

    def post(self, message: bytes) -> None:
        """Put a message that is no call into the outbox.

        Raises:
            MalformedMessage: the outbox is full, which only a server can bring about.
        """
        if len(self._outbox) >= MAX_UNSENT:
            raise MalformedMessage("the server asks more than it takes answers for")
        self._put(next(self._other_keys), message)

    def _put(self, key: int, message: bytes) -> None:
        self._outbox[key] = message
        self._filled.unpark_all()

    async def take_outbox(self) -> list[bytes]:
        """Wait for messages to be sent, and take them all."""
        while not self._outbox:
            await self._filled.park()
        messages = list(self._outbox.values())
        self._outbox.clear()
        return messages

    def answer(self, message: Response | Failure) -> None:
        """Hand an answer to its call; one to no call, or to one that was given up, is ignored.

        Raises:
            MalformedMessage: the result does not fit the method.
        """
        pending = self._open.get(message.id) if isinstance(message.id, int) else None
        if pending is None or pending.done.is_set():
            return
        if isinstance(message, Response):
            pending.result = decode_result(pending.method, message.result)
        else:
            pending.error = message.error
        pending.done.set()

    def end(self) -> None:
        """End every call that is open, for the connection has ended."""
        for pending in self._open.values():
            if pending.id in self._outbox:
                pending.was_sent = False
            pending.done.set()
        self._open.clear()
        self._outbox.clear()


def millis(seconds: float) -> int:
    """A time limit as it stands in messages.

    Raises:
        ValueError: not above 0, or without end.
    """
    if not 0 < seconds < math.inf:
        raise ValueError(f"timeout_s must be a number of seconds above 0, got {seconds}")
    return math.ceil(seconds * 1000)
