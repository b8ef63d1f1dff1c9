"""The numbered account of one process: output, exit, close. No trio, no clock, no fd.

One counter from 1 without holes numbers every chunk of output, the exit and the close. Chunks are
retained up to a bound and the oldest are dropped whole; exit and close are state and never dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import takewhile
from typing import NamedTuple

from tsupervise_protocol.messages import ExitReason, Stream, Usage

RETAINED_BYTES = 1 << 20
"""Output retained for each process, in bytes; what clients of this protocol expect."""

RETAINED_CHUNKS = 50_000
"""Chunks retained for each process, so that a read's answer stays far below the limit on JSON values."""


CHUNK_BYTES = 128
"""About what a chunk takes beside its bytes (measured: 120 to 136): for bounds that are meant for memory."""


class Chunk(NamedTuple):
    """What one read of a pipe or terminal returned; never empty."""

    seq: int
    stream: Stream
    data: bytes


class Exit(NamedTuple):
    """How the process ended. `code` is the exit code, or 128 + `term_signal`."""

    seq: int
    code: int
    term_signal: int | None
    usage: Usage | None = None
    reason: ExitReason | None = None
    """Both are None if they cannot be told."""


class Close(NamedTuple):
    """Exit known and all output streams ended: nothing follows."""

    seq: int


Event = Chunk | Exit | Close


class EventLog:
    """Retained events of one process.

    Args:
        max_bytes: output to retain, in bytes; a single larger chunk is kept until the next one comes.
        max_chunks: chunks to retain.
    """

    __slots__ = (
        "_chunks",
        "_max_bytes",
        "_max_chunks",
        "closed",
        "exit",
        "last_seq",
        "output_bytes",
        "retained_bytes",
    )

    def __init__(self, max_bytes: int = RETAINED_BYTES, max_chunks: int = RETAINED_CHUNKS) -> None:
        self._chunks: deque[Chunk] = deque()
        self._max_bytes = max_bytes
        self._max_chunks = max_chunks
        self.last_seq = 0
        self.retained_bytes = 0
        self.output_bytes = 0
        self.exit: Exit | None = None
        self.closed: Close | None = None

    def append(self, stream: Stream, data: bytes) -> Chunk:
        """Number and retain one chunk; drop the oldest while over a bound."""
        assert data, "a chunk is never empty"
        assert self.closed is None, "nothing follows the close"
        self.last_seq += 1
        chunk = Chunk(self.last_seq, stream, data)
        self._chunks.append(chunk)
        self.retained_bytes += len(data)
        self.output_bytes += len(data)
        while (self.retained_bytes > self._max_bytes or len(self._chunks) > self._max_chunks) and len(
            self._chunks
        ) > 1:
            self.drop_oldest()
        return chunk

    def record_exit(
        self,
        code: int,
        term_signal: int | None,
        usage: Usage | None = None,
        reason: ExitReason | None = None,
    ) -> Exit:
        """Number the exit; once."""
        assert self.exit is None, "a process exits once"
        self.last_seq += 1
        self.exit = Exit(self.last_seq, code, term_signal, usage, reason)
        return self.exit

    def record_close(self) -> Close:
        """Number the close; once, after the exit."""
        assert self.exit is not None, "the exit comes before the close"
        assert self.closed is None, "a process closes once"
        self.last_seq += 1
        self.closed = Close(self.last_seq)
        return self.closed

    @property
    def footprint(self) -> int:
        """About how much memory the retained output takes, in bytes."""
        return self.retained_bytes + CHUNK_BYTES * len(self._chunks)

    @property
    def next_seq(self) -> int:
        """The number that the next event will have."""
        return self.last_seq + 1

    @property
    def first_retained_seq(self) -> int:
        """The number of the oldest retained chunk; `next_seq` if none is retained."""
        return self._chunks[0].seq if self._chunks else self.next_seq

    def drop_oldest(self) -> int:
        """Drop the oldest retained chunk, if any; return by how much the footprint shrank."""
        if not self._chunks:
            return 0
        size = len(self._chunks.popleft().data)
        self.retained_bytes -= size
        return size + CHUNK_BYTES

    def chunks_after(self, seq: int) -> Iterable[Chunk]:
        """The retained chunks numbered above `seq`, in order."""
        if seq < self.first_retained_seq:
            return self._chunks
        # From the end: who follows a process has seen all but the last few of what may be 50,000.
        behind = list(takewhile(lambda chunk: chunk.seq > seq, reversed(self._chunks)))
        behind.reverse()
        return behind

    def page(self, after: int, max_bytes: int | None) -> tuple[list[Chunk], int]:
        """One answer to a reader who has seen everything up to `after`.

        Args:
            after: the highest number already seen.
            max_bytes: how much output the answer should hold; the first chunk is always taken, a further
                one only if it fits. None for everything.

        Returns:
            The chunks, and the number to go on from: one above the last chunk of a limited answer,
            else `next_seq`.
        """
        if max_bytes is None:
            return list(self.chunks_after(after)), self.next_seq
        chunks: list[Chunk] = []
        total = 0
        for chunk in self.chunks_after(after):
            if chunks and total + len(chunk.data) > max_bytes:
                break
            chunks.append(chunk)
            total += len(chunk.data)
        return chunks, (chunks[-1].seq + 1 if chunks else self.next_seq)

    def lost_after(self, after: int) -> bool:
        """Whether output numbered above `after` has been dropped.

        The exit has a number too and is not a chunk: a hole that is just the exit is no loss.
        """
        first = self.first_retained_seq
        missing = first - after - 1
        for event in (self.exit, self.closed):
            if event is not None and after < event.seq < first:
                missing -= 1
        return missing > 0
