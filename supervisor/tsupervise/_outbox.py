"""What one connection has still to send: replies first, then the events of its processes, each in turn.

Nothing is copied here and nothing waits here but who asks to: a process puts its events into its `Feed` and
looks at `has_room` before it reads more output, the sending task takes messages. So a peer that does not read
stops the pipes that flow towards it, and nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import perf_counter

import trio

from tsupervise_protocol.codec import OutputTemplate, encode_notification
from tsupervise_protocol.messages import UNSET, ClosedNotification, ExitedNotification, Stream

from ._event_log import CHUNK_BYTES, Chunk, Event, Exit

MAX_EVENT_BYTES = 1 << 20
"""Output waiting to be sent on one connection, in bytes of memory; all its pipes wait while it is reached."""

MAX_FEED_BYTES = 256 << 10
"""Output of one process waiting to be sent, in bytes of memory; its pipes wait while it is reached."""

MAX_REPLY_BYTES = 1 << 20
"""Replies waiting to be sent, in bytes. Beyond it large answers wait, one of any size at a time; the peer's
next requests wait too, for they could only add to it."""

JOIN_BYTES = 16 << 10
"""Messages are joined into one send while they are smaller than this together. Joining small ones is ten times
faster; joining large ones costs almost half of the throughput (measured)."""


JOIN_WINDOW_S = 50e-6
"""Events that come within this time of the last one that was sent at once wait for the sending task, which joins
what it finds: one echo goes out without a task switch (it is a fifth faster so, measured), and the output of a
hundred processes in one send."""


class Feed:
    """The events of one process on their way to one connection."""

    __slots__ = ("_events", "_outbox", "_process_id", "_room", "_size", "_templates", "max_bytes")

    def __init__(self, outbox: Outbox, process_id: str, max_bytes: int) -> None:
        self._outbox = outbox
        self._process_id = process_id
        self._events: deque[Event] = deque()
        self._templates: dict[Stream, OutputTemplate] = {}
        self._size = 0
        self._room = trio.lowlevel.ParkingLot()
        self.max_bytes = max_bytes

    def put(self, event: Event) -> None:
        """Queue an event. Never waits: `has_room` is asked before output is read, not after."""
        was_empty = not self._events
        self._events.append(event)
        if isinstance(event, Chunk):
            size = len(event.data) + CHUNK_BYTES
            self._size += size
            self._outbox.event_bytes += size
        if was_empty:
            self._outbox.feed_is_ready(self)

    @property
    def has_room(self) -> bool:
        """Whether more output should be read for this feed."""
        return self._size < self.max_bytes and self._outbox.event_bytes < MAX_EVENT_BYTES

    async def wait_for_room(self) -> None:
        """Wait until there may be room, or the feed is closed; ask again then."""
        lot = self._outbox.event_room if self._size < self.max_bytes else self._room
        await lot.park()

    @property
    def next_bytes(self) -> int:
        """About how long the next message is."""
        event = self._events[0]
        return len(event.data) * 4 // 3 if isinstance(event, Chunk) else 0

    def take(self) -> bytes:
        """The next event as a message."""
        event = self._events.popleft()
        if isinstance(event, Chunk):
            size = len(event.data) + CHUNK_BYTES
            self._size -= size
            self._outbox.event_bytes -= size
            if self._room:
                self._room.unpark_all()
            template = self._templates.get(event.stream)
            if template is None:
                template = self._templates[event.stream] = OutputTemplate(self._process_id, event.stream)
            return template.encode(event.seq, event.data)
        if isinstance(event, Exit):
            return encode_notification(
                "process/exited",
                ExitedNotification(
                    process_id=self._process_id,
                    seq=event.seq,
                    exit_code=event.code,
                    sandbox_denied=False,
                    term_signal=UNSET if event.term_signal is None else event.term_signal,
                    usage=event.usage or UNSET,
                    reason=event.reason or UNSET,
                ),
            )
        return encode_notification(
            "process/closed", ClosedNotification(process_id=self._process_id, seq=event.seq)
        )

    @property
    def is_empty(self) -> bool:
        return not self._events

    def close(self) -> None:
        """Drop what is queued and wake who waits: the connection is gone, the log has it all."""
        self._outbox.event_bytes -= self._size
        self._size = 0
        self._events.clear()
        self._room.unpark_all()
        self._outbox.event_room.unpark_all()


class Outbox:
    """All that waits to be sent on one connection.

    Args:
        send_now: sends what can be sent without waiting; False if something is left, which the next send of
            the sending task begins with.
    """

    def __init__(self, send_now: Callable[[list[bytes]], bool]) -> None:
        self._send_now = send_now
        self._replies: deque[bytes] = deque()
        self._ready: deque[Feed] = deque()
        self._waiting = trio.lowlevel.ParkingLot()
        self._emptied = trio.lowlevel.ParkingLot()
        self._reply_room = trio.lowlevel.ParkingLot()
        self._nudged = False
        self._corked = False
        self._sent_now_at = 0.0
        self._reply_bytes = 0
        self.large_reply = trio.Lock()
        """Held by who makes a large reply over several awaits."""
        self.huge_reply = trio.Lock()
        """Held by who makes a reply that may be of any size: together with `wait_for_huge_turn`."""
        self._huge_under_way = False
        self.sent_bytes = 0
        """Of all messages that have been taken so far."""
        self.event_bytes = 0
        self.event_room = trio.lowlevel.ParkingLot()

    def reply(self, message: bytes) -> None:
        """Queue a reply. Never waits: large ones ask `has_reply_room` before they are made."""
        self._replies.append(message)
        self._reply_bytes += len(message)
        if not self._corked:
            self._waiting.unpark_all()

    def feed_is_ready(self, feed: Feed) -> None:
        """A feed has its first event."""
        self._ready.append(feed)
        if self._corked:
            return
        now = perf_counter()
        if now - self._sent_now_at > JOIN_WINDOW_S:
            self._sent_now_at = now
            self.flush()
        else:
            self._waiting.unpark_all()

    def nudge(self) -> None:
        """The channel has something of its own to send."""
        self._nudged = True
        self._waiting.unpark_all()

    def cork(self) -> None:
        """Join what is queued from now on, until `uncork`."""
        self._corked = True

    def uncork(self) -> None:
        """Send what has been queued meanwhile."""
        self._corked = False
        if self._replies or self._ready:
            self.flush()

    def flush(self) -> None:
        """Send at once what the channel takes at once, if the sending task has nothing under way."""
        if not self._waiting:
            return
        messages = self.take()
        if messages and not self._send_now(messages):
            self.nudge()
        elif self._replies or self._ready:
            self._waiting.unpark_all()

    @property
    def has_reply_room(self) -> bool:
        return self._reply_bytes < MAX_REPLY_BYTES

    async def wait_for_reply_room(self) -> None:
        while not self.has_reply_room:
            await self._reply_room.park()

    async def wait_for_huge_turn(self) -> None:
        """Wait until no large reply waits to be sent, and the last one of any size has been sent."""
        while self._huge_under_way or not self.has_reply_room:
            await self._reply_room.park()

    async def wait(self) -> None:
        """Wait until there may be something to send. For one task, which has sent what it took."""
        if self._huge_under_way:
            self._huge_under_way = False
            self._reply_room.unpark_all()
        while not (self._nudged or self._replies or self._ready):
            self._emptied.unpark_all()
            await self._waiting.park()
        self._nudged = False

    async def wait_until_empty(self) -> None:
        """Wait until everything has been taken and sent, and the sending task waits for more."""
        while self._nudged or self._replies or self._ready or not self._waiting:
            await self._emptied.park()

    def take(self) -> list[bytes]:
        """Take the messages of one send: small ones joined up to JOIN_BYTES, a large one alone.

        Replies come first. Feeds take turns, one event each, so that a flood delays no other process.
        """
        batch: list[bytes] = []
        size = 0
        while self._replies and (not batch or size + len(self._replies[0]) <= JOIN_BYTES):
            message = self._replies.popleft()
            self._reply_bytes -= len(message)
            size += len(message)
            batch.append(message)
        self._huge_under_way |= size > MAX_REPLY_BYTES
        if batch and self.has_reply_room:
            self._reply_room.unpark_all()
        while self._ready and not self._replies:
            feed = self._ready[0]
            if feed.is_empty:  # closed meanwhile
                self._ready.popleft()
                continue
            if batch and size + feed.next_bytes > JOIN_BYTES:
                break
            self._ready.popleft()
            message = feed.take()
            size += len(message)
            batch.append(message)
            if not feed.is_empty:
                self._ready.append(feed)
        self.sent_bytes += size
        if not self.event_room:
            return batch
        if not self._ready:
            self.event_room.unpark_all()
        elif self.event_bytes < MAX_EVENT_BYTES:
            self.event_room.unpark()
        return batch
