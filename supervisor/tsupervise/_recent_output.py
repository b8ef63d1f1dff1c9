"""The last of what a process has written so far, and then what it goes on to write."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace

from ._observed_process import ObservedProcess
from ._process_handle import EventStream
from .events import Event, Output

SPAN = 256
"""Events that a tail is looked for in at first; in eight times as many if it begins before them, and so on. What
is retained may be gigabytes."""


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
        self.has_enough = False
        """Whether it has forgotten something: what came before that is no part of it."""

    def clear(self) -> None:
        """Begin anew."""
        self._events.clear()
        self._ends = self._bytes = 0
        self.has_enough = False

    def add(self, event: Event) -> None:
        """Take the next event, and forget those that can be no part of the tail any more."""
        self._events.append(event)
        self._ends += _ends_in(event)
        self._bytes += _bytes_in(event)
        while self._ends - _ends_in(self._events[0]) > self._lines or (
            self._bytes > self._max_bytes and len(self._events) > 1
        ):
            gone = self._events.popleft()
            self.has_enough = True
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
        process: what is numbered up to the `last_seq` of its entry is from before.
        tail: of that, what is wanted; None for all that is retained.
        follow: whether to go on with what comes.
    """

    def __init__(self, process: ObservedProcess, tail: Tail | None, *, follow: bool) -> None:
        self._process = process
        self._last_seq = process.entry.last_seq
        self._tail = tail
        self._follow = follow
        self._ready: deque[Event] = deque()
        self._seq = 0
        self._events: EventStream = process.events()

    def __aiter__(self) -> RecentEvents:
        return self

    async def __anext__(self) -> Event:
        if self._tail is not None:
            await self._fill(self._tail)
            self._ready = self._tail.take()
            self._tail = None
        if self._ready:
            return self._ready.popleft()
        if self._seq >= self._last_seq and not self._follow:
            raise StopAsyncIteration
        return await self._next()

    async def _fill(self, tail: Tail) -> None:
        span = SPAN
        while True:
            self._seq = after = max(0, self._last_seq - span)
            self._events = self._process.events(after_seq=after)
            while self._seq < self._last_seq:
                tail.add(await self._next())
            if tail.has_enough or not after:
                return
            tail.clear()
            span *= 8

    async def _next(self) -> Event:
        event = await anext(self._events)
        self._seq = event.seq
        return event
