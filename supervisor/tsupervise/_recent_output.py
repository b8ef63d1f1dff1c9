"""The last of what a process has written so far, and then what it goes on to write."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace

from tsupervise_protocol.messages import OperatorEntry

from ._process_handle import EventStream
from .events import Event, Output


class Tail:
    """Keeps the last lines of output, over both streams in the order in which they came.

    Args:
        lines: how many; a last one without an end counts.
        max_bytes: with more output than that, its oldest events go though their lines were wanted.
    """

    def __init__(self, lines: int, max_bytes: float = math.inf) -> None:
        self._lines = lines
        self._max_bytes = max_bytes
        self._events: deque[Event] = deque()
        self._ends = 0
        self._bytes = 0

    def add(self, event: Event) -> None:
        """Take the next event, and forget those that can be no part of the tail any more."""
        self._events.append(event)
        self._ends += _ends_in(event)
        self._bytes += _bytes_in(event)
        while self._ends - _ends_in(self._events[0]) > self._lines or (
            self._bytes > self._max_bytes and len(self._events) > 1
        ):
            gone = self._events.popleft()
            self._ends -= _ends_in(gone)
            self._bytes -= _bytes_in(gone)

    def take(self) -> deque[Event]:
        """The events, the first of them cut to the line that comes first."""
        last = next((event.data for event in reversed(self._events) if isinstance(event, Output)), b"\n")
        # The tail begins behind the line end before it.
        surplus = self._ends - self._lines + (not last.endswith(b"\n"))
        while surplus > 0 and self._events:
            event = self._events.popleft()
            if (ends := _ends_in(event)) >= surplus:
                assert isinstance(event, Output), "nothing else has lines"
                rest = event.data.split(b"\n", surplus)[-1]
                if rest:
                    self._events.appendleft(replace(event, data=rest))
            surplus -= ends
        return self._events


def _ends_in(event: Event) -> int:
    return event.data.count(b"\n") if isinstance(event, Output) else 0


def _bytes_in(event: Event) -> int:
    return len(event.data) if isinstance(event, Output) else 0


class RecentEvents:
    """Iterates over the events of a process, those from before only as far as they are in a tail.

    Args:
        events: from the oldest that is retained.
        entry: the process; what is numbered up to its `last_seq` is from before.
        tail: of that, what is wanted; None for all.
        follow: whether to go on with what comes.
    """

    def __init__(self, events: EventStream, entry: OperatorEntry, tail: Tail | None, *, follow: bool) -> None:
        self._events = events
        self._last_seq = entry.last_seq
        self._tail = tail
        self._follow = follow
        self._ready: deque[Event] = deque()
        self._seq = 0

    def __aiter__(self) -> RecentEvents:
        return self

    async def __anext__(self) -> Event:
        if self._tail is not None:
            while self._seq < self._last_seq:
                self._tail.add(await self._next())
            self._ready = self._tail.take()
            self._tail = None
        if self._ready:
            return self._ready.popleft()
        if self._seq >= self._last_seq and not self._follow:
            raise StopAsyncIteration
        return await self._next()

    async def _next(self) -> Event:
        event = await anext(self._events)
        self._seq = event.seq
        return event
