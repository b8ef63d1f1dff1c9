"""What clients have written and the child has not yet taken, and which writes were accepted. No trio, no fd.

Accepting is one step: the bytes are queued and the write id is remembered together, so that a request that is
cut off anywhere has done both or neither, and its repetition is harmless.
"""

from __future__ import annotations

from collections import deque

MAX_CHUNKS = 128
"""Accepted writes that wait for the child, as many as clients of this protocol are used to."""

MAX_BYTES = 16 << 20
"""Bytes that wait for the child: one message of the largest frame size. One chunk is always taken."""

REMEMBERED_WRITES = 4_096
"""Write ids remembered for each process; the oldest is forgotten first."""


class StdinQueue:
    """The queue and the memory of one process."""

    __slots__ = ("_chunks", "_remembered", "_size", "ending", "taken_bytes")

    def __init__(self) -> None:
        self._chunks: deque[memoryview] = deque()
        self._size = 0
        self.taken_bytes = 0
        """What the child has taken so far."""
        # A dict for its order: the first key is the oldest write.
        self._remembered: dict[str, None] = {}
        self.ending = False
        """Whether the child sees end-of-file after the last queued byte; nothing is accepted any more."""

    def __len__(self) -> int:
        return len(self._chunks)

    def has_accepted(self, write_id: str) -> bool:
        return write_id in self._remembered

    def has_room(self, size: int) -> bool:
        """Whether a chunk of `size` bytes may be queued now."""
        return not self._chunks or (len(self._chunks) < MAX_CHUNKS and self._size + size <= MAX_BYTES)

    def accept(self, write_id: str, data: bytes) -> None:
        """Queue and remember, in one step."""
        self._remembered[write_id] = None
        if len(self._remembered) > REMEMBERED_WRITES:
            del self._remembered[next(iter(self._remembered))]
        if data:
            self._chunks.append(memoryview(data))
            self._size += len(data)

    def first(self) -> memoryview | None:
        """The bytes to write next, or None if all have been taken."""
        return self._chunks[0] if self._chunks else None

    def taken(self, count: int) -> None:
        """Record that the child took `count` bytes of `first()`."""
        rest = self._chunks[0][count:]
        self._size -= count
        self.taken_bytes += count
        if rest:
            self._chunks[0] = rest
        else:
            self._chunks.popleft()

    def discard(self) -> None:
        """Drop what is queued: the child will not read it."""
        self._chunks.clear()
        self._size = 0
