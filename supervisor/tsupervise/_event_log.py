"""The numbered account of one process: output, exit, close. No trio, no clock, no fd.

One counter from 1 without holes numbers every chunk of output, the exit and the close. Chunks are
retained up to a bound and the oldest are dropped whole, or moved to a file by who owns one; exit and close are
state and never dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice, takewhile
from typing import NamedTuple

from tsupervise_protocol.messages import ExitReason, Stream, Usage

from ._spill_index import SpillIndex

RETAINED_BYTES = 1 << 20
"""Output retained for each process, in bytes; what clients of this protocol expect."""

RETAINED_CHUNKS = 50_000
"""Chunks retained for each process, so that a read's answer stays far below the limit on JSON values."""

PAGE_BYTES = 8 << 20
"""Output in one answer to a reader, in bytes: as base64, with `RETAINED_CHUNKS` around it, it stays below the
16 MiB that clients of this protocol take as one frame."""

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


class Page:
    """One answer to a reader, in the making: chunks in order, without a gap among what is retained.

    Args:
        after: the highest number already seen.
        max_bytes: how much output it should hold; the first chunk is always taken, a further one only if it
            fits. None for everything. No page takes more than `PAGE_BYTES` and `RETAINED_CHUNKS`.
    """

    __slots__ = ("_limit", "after", "chunks", "is_full", "max_bytes", "size")

    def __init__(self, after: int, max_bytes: int | None) -> None:
        self.after = after
        """What follows this number comes next."""
        self.max_bytes = max_bytes
        self._limit = PAGE_BYTES if max_bytes is None else min(max_bytes, PAGE_BYTES)
        self.chunks: list[Chunk] = []
        self.size = 0
        self.is_full = False
        """Whether a chunk was offered that found no room."""

    @property
    def room(self) -> int:
        """How much more output fits, in bytes."""
        return max(0, self._limit - self.size)

    def take(self, chunk: Chunk) -> None:
        """Add the next chunk, if there is room."""
        size = self.size + len(chunk.data)
        if self.chunks and (size > self._limit or len(self.chunks) >= RETAINED_CHUNKS):
            self.is_full = True
        if not self.is_full:
            self.chunks.append(chunk)
            self.size = size
            self.after = chunk.seq

    def take_all(self, chunks: Iterable[Chunk]) -> None:
        """Add chunks until there is no room."""
        for chunk in chunks:
            self.take(chunk)
            if self.is_full:
                break


class EventLog:
    """Retained events of one process.

    Args:
        max_bytes: output to retain, in bytes; a single larger chunk is kept until the next one comes.
        max_chunks: chunks to retain.
    """

    __slots__ = (
        "_chunks",
        "closed",
        "exit",
        "last_seq",
        "max_bytes",
        "max_chunks",
        "memory_bytes",
        "output_bytes",
        "relieve",
        "spilled",
    )

    def __init__(self, max_bytes: int = RETAINED_BYTES, max_chunks: int = RETAINED_CHUNKS) -> None:
        self._chunks: deque[Chunk] = deque()
        self.max_bytes = max_bytes
        self.max_chunks = max_chunks
        self.last_seq = 0
        self.memory_bytes = 0
        """Retained output in memory, in bytes."""
        self.output_bytes = 0
        self.spilled: SpillIndex | None = None
        """What lies in a file: all that is retained and older than what is in memory. While there is such a
        file the bounds are kept by moving chunks there, by who set this; None: by dropping them, here."""
        self.relieve: Callable[[], bool] | None = None
        """Have all that is in memory moved to the file, in its own time; whether that is under way."""
        self.exit: Exit | None = None
        self.closed: Close | None = None

    def append(self, stream: Stream, data: bytes) -> Chunk:
        """Number and retain one chunk; without a file, drop the oldest while over a bound."""
        assert data, "a chunk is never empty"
        assert self.closed is None, "nothing follows the close"
        self.last_seq += 1
        chunk = Chunk(self.last_seq, stream, data)
        self._chunks.append(chunk)
        self.memory_bytes += len(data)
        self.output_bytes += len(data)
        if self.spilled is None:
            self.drop_excess()
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
    def retained_bytes(self) -> int:
        """Retained output in memory and file, in bytes."""
        return self.memory_bytes + self.spilled_bytes

    @property
    def spilled_bytes(self) -> int:
        """Retained output in the file, in bytes."""
        return self.spilled.output_bytes if self.spilled else 0

    @property
    def memory_chunks(self) -> int:
        """Retained chunks in memory."""
        return len(self._chunks)

    @property
    def footprint(self) -> int:
        """About how much memory the retained output takes, in bytes."""
        return self.memory_bytes + CHUNK_BYTES * len(self._chunks)

    @property
    def next_seq(self) -> int:
        """The number that the next event will have."""
        return self.last_seq + 1

    @property
    def first_retained_seq(self) -> int:
        """The number of the oldest retained chunk; `next_seq` if none is retained."""
        if self.spilled:
            return self.spilled.first_seq
        return self._chunks[0].seq if self._chunks else self.next_seq

    @property
    def last_retained_seq(self) -> int:
        """The number of the newest retained chunk; 0 if none is retained."""
        if self._chunks:
            return self._chunks[-1].seq
        return self.spilled.last_seq if self.spilled else 0

    def drop_excess(self) -> None:
        """Drop the oldest chunks until the bounds are kept, or only one is left."""
        while (self.memory_bytes > self.max_bytes or len(self._chunks) > self.max_chunks) and len(
            self._chunks
        ) > 1:
            self.drop_oldest()

    def drop_oldest(self) -> int:
        """Drop the oldest retained chunk, if any; return by how much the footprint shrank."""
        if not self._chunks:
            return 0
        assert not self.spilled, "what is retained has no hole in its middle"
        return self._leave_memory()

    def oldest(self, min_bytes: int, min_chunks: int, max_chunks: int) -> list[Chunk]:
        """The oldest chunks in memory: as many as make so many bytes and chunks, but not above `max_chunks`."""
        chunks: list[Chunk] = []
        size = 0
        for chunk in islice(self._chunks, max_chunks):
            if size >= min_bytes and len(chunks) >= min_chunks:
                break
            chunks.append(chunk)
            size += len(chunk.data)
        return chunks

    def move_oldest(self, record_bytes: int) -> int:
        """The oldest chunk in memory is in the file now; return by how much the footprint shrank.

        Args:
            record_bytes: how much of the file it takes.
        """
        assert self.spilled is not None, "there is a file"
        chunk = self._chunks[0]
        self.spilled.add(chunk.seq, record_bytes, len(chunk.data))
        return self._leave_memory()

    def _leave_memory(self) -> int:
        size = len(self._chunks.popleft().data)
        self.memory_bytes -= size
        return size + CHUNK_BYTES

    def is_in_file(self, after: int) -> bool:
        """Whether the first retained chunk numbered above `after` is in the file."""
        return bool(self.spilled) and self.spilled.last_seq > after

    def memory_after(self, seq: int) -> Iterable[Chunk]:
        """The chunks in memory that are numbered above `seq`, in order."""
        if not self._chunks or seq < self._chunks[0].seq:
            return self._chunks
        # From the end: who follows a process has seen all but the last few of what may be 50,000.
        behind = list(takewhile(lambda chunk: chunk.seq > seq, reversed(self._chunks)))
        behind.reverse()
        return behind

    def page(self, after: int, max_bytes: int | None) -> Page:
        """A page for a reader who has seen everything up to `after`, of what is in memory.

        Args:
            after: the highest number already seen; what follows it is not in the file.
            max_bytes: see `Page`.
        """
        page = Page(after, max_bytes)
        page.take_all(self.memory_after(after))
        return page

    def has_more(self, page: Page) -> bool:
        """Whether retained chunks follow a page."""
        return self.last_retained_seq > page.after

    def next_seq_of(self, page: Page) -> int:
        """The number to go on from: one above the last chunk of a limited page, or of one that is not all
        there is; else `next_seq`."""
        if page.chunks and (page.max_bytes is not None or self.has_more(page)):
            return page.after + 1
        return self.next_seq

    def lost_after(self, after: int) -> bool:
        """Whether output numbered above `after` has been dropped, from memory or file.

        The exit has a number too and is not a chunk: a hole that is just the exit is no loss.
        """
        first = self.first_retained_seq
        missing = first - after - 1
        for event in (self.exit, self.closed):
            if event is not None and after < event.seq < first:
                missing -= 1
        return missing > 0
