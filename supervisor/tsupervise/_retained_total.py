"""The daemon's bound on retained output over all processes. No trio.

Each process keeps its own bound; this one is for ten thousand of them. What has been closed longest goes first:
to a file, where there is one.
"""

from __future__ import annotations

from collections import deque

from ._event_log import EventLog

RETAINED_TOTAL_BYTES = 256 << 20
"""Output retained by the daemon in memory, in bytes."""


class RetainedTotal:
    """Counts what all logs retain and drops from the oldest closed ones while it is too much."""

    __slots__ = ("_closed", "_limit", "bytes")

    def __init__(self, limit: int = RETAINED_TOTAL_BYTES) -> None:
        self._limit = limit
        self._closed: deque[EventLog] = deque()
        self.bytes = 0

    def changed(self, log: EventLog, difference: int) -> None:
        """The footprint of a log has grown by `difference` bytes (or shrunk, if negative).

        With no closed process left to take from, the log that grew gives up its own oldest output. A log that
        has a file is relieved instead, which takes its time: until then `is_exceeded` holds up who grows. Who has
        no file (any more) is not held up, and gives up its own.
        """
        self.bytes += difference
        while self.is_exceeded:
            self._skip_empty()
            victim = self._closed[0] if self._closed else log
            if victim.relieve is not None and victim.relieve():
                if log.relieve is not None:
                    return
                victim = log
            freed = victim.drop_oldest()
            if not freed:
                return
            self.bytes -= freed

    @property
    def is_exceeded(self) -> bool:
        return self.bytes > self._limit

    @property
    def is_half_full(self) -> bool:
        return self.bytes > self._limit // 2

    def closed(self, log: EventLog) -> None:
        """A log gets no more output; it may be taken from from now on."""
        if log.memory_bytes:
            self._closed.append(log)

    def forgotten(self, log: EventLog) -> None:
        """A log is thrown away."""
        while freed := log.drop_oldest():
            self.bytes -= freed
        self._skip_empty()

    def _skip_empty(self) -> None:
        while self._closed and not self._closed[0].memory_bytes:
            self._closed.popleft()
