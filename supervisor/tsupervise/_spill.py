"""Older output of processes in files: who moves it there, who reads it back, and what goes when there is no room.

A process that has more output in memory than it should gets a task that moves the oldest to its file, batch by
batch, until that is no longer so. What is written is known to the log when it is written, not before, so each
chunk is in one of the two at any time. Only who produces the output waits for the disk, see `Spill.has_room`.
All that blocks is done in threads; one that the disk never answers is left behind, and with it its file.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TypeVarTuple, Unpack

import trio

from ._background import open_background
from ._event_log import Chunk, EventLog, Page
from ._retained_total import RetainedTotal
from ._settings import Settings
from ._spill_file import BLOCK, SpillFile, SpillFileClosed, check_directory, record_bytes
from ._spill_index import SpillIndex

log = logging.getLogger(__name__)

Ts = TypeVarTuple("Ts")

START_BYTES = 256 << 10
"""How far a process that runs is above its bound before output is moved, in bytes: writing little costs as much as
writing this much."""

WAIT_BYTES = 512 << 10
"""How far above its bound it is when it has to wait for the disk, in bytes."""

START_CHUNKS = 4_096
"""The same as `START_BYTES` in chunks; with as many again it has to wait. No call moves more."""

BATCH_BYTES = 1 << 20
"""Moved by one call, in bytes; the last chunk may lie above."""

THREADS = 4
"""Calls that write at a time, over all processes; as many read."""

FAREWELL_S = 2.0
"""How long closing files may take when the supervisor ends, in seconds; then it is left to the system."""

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class SpillSpace:
    """The spill files of one supervisor, and their bound. Made by `open_spill_space`.

    Args:
        directory: where the files are.
        process_bytes: the most that one file takes.
        total_bytes: the most that all take.
        nursery: of the supervisor; whatever is under way with a file is a task there.
    """

    def __init__(self, directory: str, process_bytes: int, total_bytes: int, nursery: trio.Nursery) -> None:
        self.directory = directory
        self.process_bytes = process_bytes
        self.total_bytes = total_bytes
        self.bytes = 0
        """What all files take together, and what is being written; in bytes."""
        self.moved_bytes = 0
        """Output that has been moved to files so far, in bytes."""
        self.nursery = nursery
        self.files = set[SpillFile]()
        """Those that are not closed yet."""
        self.closed = dict[Spill, None]()
        """Of closed processes, oldest first: they give way to others."""
        self._writers = trio.CapacityLimiter(THREADS)
        self._readers = trio.CapacityLimiter(THREADS)

    def open(self, event_log: EventLog, retained: RetainedTotal, name: str) -> Spill:
        """A place for the older output of one process.

        Args:
            event_log: of the process; from now on its bounds are kept here.
            retained: the account that the log is part of.
            name: what the daemon's log calls the process.
        """
        return Spill(self, event_log, retained, name)

    async def write(self, function: Callable[[Unpack[Ts]], None], *arguments: *Ts) -> None:
        """Make a call that writes to a file, in a thread; cancelled, leave it behind there."""
        await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True, limiter=self._writers)

    async def read(self, function: Callable[[Unpack[Ts]], None], *arguments: *Ts) -> None:
        """Make a call that reads a file, likewise; writers do not hold it up."""
        await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True, limiter=self._readers)

    def close(self, file: SpillFile) -> None:
        """Close a file in its own time: to free a gigabyte may take the system a while."""
        self.nursery.start_soon(self._close, file)

    async def _close(self, file: SpillFile) -> None:
        await self.write(file.close)
        self.files.discard(file)

    def close_all(self) -> None:
        """Close every file that is left. Blocks."""
        for file in list(self.files):
            file.close()


class Spill:
    """The older output of one process. Made by `SpillSpace.open`, ended by `forget`."""

    def __init__(self, space: SpillSpace, event_log: EventLog, retained: RetainedTotal, name: str) -> None:
        self._space = space
        self._log = event_log
        self._retained = retained
        self._name = name
        self._index = SpillIndex()
        self._file: SpillFile | None = None
        self._given_back = 0
        """Up to this offset the file system has it all again."""
        self._over = False
        """Forgotten, or given up: nothing is moved any more."""
        self._closed = False
        self._wants_out = False
        """Whether all that is in memory shall be moved, and not just what is above the bound."""
        self._moving: trio.CancelScope | None = None
        self._moved = trio.lowlevel.ParkingLot()
        self._told = set[str]()
        event_log.spilled = self._index
        event_log.relieve = self.relieve

    # --- who produces the output ---------------------------------------------------------------------

    def appended(self) -> None:
        """The log has grown: begin to move its oldest output if it is too much."""
        if self._moving is None and not self._over and self._is_due:
            self._moving = trio.CancelScope()
            self._space.nursery.start_soon(self._move, self._moving)

    @property
    def has_room(self) -> bool:
        """Whether more output should be produced now. Without room there is always something under way."""
        if self._moving is None or self._over:
            return True
        return (
            not self._retained.is_exceeded
            and self._excess_bytes <= WAIT_BYTES
            and self._excess_chunks <= 2 * START_CHUNKS
        )

    async def wait_for_room(self) -> None:
        """Wait until there may be room; ask again then."""
        await self._moved.park()

    def wake(self) -> None:
        """Let who waits for room look again."""
        self._moved.unpark_all()

    def settle(self) -> None:
        """No output follows: keep in memory what the bound allows, and nothing if memory is getting scarce."""
        self._closed = True
        if self._index:
            self._space.closed[self] = None
        self._wants_out = self._retained.is_half_full
        self.appended()

    def relieve(self) -> bool:
        """Begin to move all that is in memory; whether there is anything to move, and a file for it."""
        if self._over or not self._log.memory_chunks:
            return False
        self._wants_out = True
        self.appended()
        return True

    # --- moving --------------------------------------------------------------------------------------

    @property
    def _excess_bytes(self) -> int:
        everything = self._wants_out or self._retained.is_exceeded
        return self._log.memory_bytes - (0 if everything else self._log.max_bytes)

    @property
    def _excess_chunks(self) -> int:
        return self._log.memory_chunks - self._log.max_chunks

    @property
    def _is_due(self) -> bool:
        at_once = self._closed or self._wants_out or self._retained.is_exceeded
        return self._excess_bytes > (0 if at_once else START_BYTES) or self._excess_chunks > (
            0 if at_once else START_CHUNKS
        )

    async def _move(self, scope: trio.CancelScope) -> None:
        """Move the oldest output until no more is in memory than should be."""
        failed = False
        with scope:
            try:
                while not self._over and not failed and (batch := self._batch()):
                    if await self._write(batch):
                        self._commit(batch)
                    else:
                        self._lose_excess()
                        failed = True
            except SpillFileClosed:
                assert self._over, "a file is closed when it is given up"
            except Exception:
                # A bug of ours in one process must not end the others.
                log.exception("process %s: spilling failed inside the supervisor", self._name)
                self.give_up("of an error inside the supervisor")
        self._moving = None
        self._wants_out = False
        self.wake()
        if not failed:
            # What has been added since the last look may be too much by now.
            self.appended()

    def _batch(self) -> list[Chunk]:
        excess_bytes, excess_chunks = self._excess_bytes, self._excess_chunks
        if excess_bytes <= 0 and excess_chunks <= 0:
            return []
        # Never so much that what is written now would be all that the budget can hold.
        most = min(BATCH_BYTES, self._space.process_bytes // 2, self._space.total_bytes // 2)
        return self._log.oldest(min(excess_bytes, most), min(excess_chunks, START_CHUNKS), START_CHUNKS)

    async def _write(self, batch: list[Chunk]) -> bool:
        """Write chunks behind those in the file; whether that was possible. Older ones make room."""
        space, index = self._space, self._index
        size = sum(map(record_bytes, batch))
        if index and (over := index.file_bytes + size - space.process_bytes) > 0:
            self._tell("budget", f"more than {space.process_bytes} bytes of output: the oldest is dropped")
            await self._free(over)
        while not self._over and (over := space.bytes + size - space.total_bytes) > 0:
            self._tell("total", f"all spill files have {space.total_bytes} bytes: older output is dropped")
            if not await self._make_room(over):
                return False
        if self._over or index.file_bytes + size > space.process_bytes:
            return False  # a budget below a single chunk
        if self._file is None:
            self._file = SpillFile(space.directory)
            space.files.add(self._file)
        space.bytes += size
        written = False
        try:
            while not written and not self._over:
                try:
                    await space.write(self._file.write, index.end, batch)
                    written = not self._over
                except OSError as error:
                    if error.errno not in _NO_SPACE:
                        self.give_up(f"{space.directory} cannot be written: {error}")
                    else:
                        self._tell("full", f"{space.directory} is full: older output is dropped ({error})")
                        if not await self._make_room(size):
                            break
        finally:
            if not written:
                space.bytes -= size
        return written

    def _commit(self, batch: list[Chunk]) -> None:
        # Without an await: no reader finds a chunk twice, or not at all.
        freed = sum(self._log.move_oldest(record_bytes(chunk)) for chunk in batch)
        self._retained.changed(self._log, -freed)
        self._space.moved_bytes += sum(len(chunk.data) for chunk in batch)
        if self._closed:
            self._space.closed[self] = None
        self.wake()

    def _lose_excess(self) -> None:
        """There is no room in any file: what is above the bounds goes, as it does without a file."""
        if self._over:
            return
        assert not self._index, "older output has made room, all of it"
        before = self._log.footprint
        # Not to be relieved while the log is asked to give something up.
        self._log.relieve = None
        self._log.drop_excess()
        self._retained.changed(self._log, self._log.footprint - before)
        self._log.relieve = self.relieve

    async def _make_room(self, size: int) -> bool:
        """Drop about so many bytes of older output: of this process, else of the one that was closed first."""
        for spill in (self, *self._space.closed):
            if spill._index:
                await spill._free(size)
                return True
        return False

    async def _free(self, size: int) -> None:
        """Drop the oldest output of this process in the file, and give its place back."""
        assert self._file is not None, "there is something in the file"
        start, end = self._drop_from_file(size)
        try:
            await self._space.write(self._file.give_back, start, end)
        except SpillFileClosed:
            pass
        except OSError as error:
            self.give_up(f"{self._space.directory} cannot free a part of a file: {error}")

    def _drop_from_file(self, size: int) -> tuple[int, int]:
        """Drop the oldest output in the file; return which range of it is not needed any more."""
        self._space.bytes -= self._index.drop(size)
        if not self._index:
            self._space.closed.pop(self, None)
        start = self._given_back
        self._given_back = max(start, self._index.start // BLOCK * BLOCK)
        return start, self._given_back

    # --- reading -------------------------------------------------------------------------------------

    async def page(self, after: int, max_bytes: int | None) -> Page:
        """A page for a reader, of what is in the file and then of what is in memory.

        Args:
            after: the highest number already seen.
            max_bytes: see `Page`.
        """
        page = Page(after, max_bytes)
        while not page.is_full and self._log.is_in_file(page.after):
            assert self._file is not None, "there is something in the file"
            start = self._index.offset_for(page.after)
            found = Page(page.after, page.room)
            try:
                await self._space.read(self._file.read, start, self._index.end, found)
            except SpillFileClosed:
                assert self._over, "a file is closed when it is given up"
            except OSError as error:
                # What is dropped while it is read reads as zeros: then what is left is read.
                if not self._over and self._index.start <= start:
                    self.give_up(f"{self._space.directory} cannot be read: {error}")
            else:
                first = self._log.first_retained_seq
                page.take_all(chunk for chunk in found.chunks if chunk.seq >= first)
        page.take_all(self._log.memory_after(page.after))
        return page

    # --- the end -------------------------------------------------------------------------------------

    def give_up(self, reason: str) -> None:
        """Use the file no more: what is in it is lost, and from now on the bounds are kept by dropping."""
        if self._over:
            return
        log.warning("process %s spills no more, because %s", self._name, reason)
        self._end()
        before = self._log.footprint
        self._log.drop_excess()
        self._retained.changed(self._log, self._log.footprint - before)

    def forget(self) -> None:
        """Nobody will read any more."""
        if not self._over:
            self._end()

    def _end(self) -> None:
        self._over = True
        self._drop_from_file(self._index.file_bytes)
        self._log.spilled = self._log.relieve = None
        if self._file is not None:
            self._space.close(self._file)
        if self._moving is not None:
            self._moving.cancel()
        self.wake()

    def _tell(self, cause: str, text: str) -> None:
        """Log once for each cause."""
        if cause not in self._told:
            self._told.add(cause)
            log.warning("process %s: %s", self._name, text)


@asynccontextmanager
async def open_spill_space(settings: Settings) -> AsyncGenerator[SpillSpace | None]:
    """The place for spill files of a supervisor, for the time of the block; None if its settings name none.

    Raises:
        CannotSpill: the directory cannot be used.
    """
    if settings.spill_dir is None:
        yield None
        return
    directory = await trio.to_thread.run_sync(check_directory, settings.spill_dir, abandon_on_cancel=True)
    # Children of this nursery: for each process whose output is being moved the task that does it, and for each
    # that is over the one that closes its file. Sessions that are cancelled still need both.
    async with open_background(outlast_cancel=True) as nursery:
        space = SpillSpace(directory, settings.spill_bytes, settings.spill_total_bytes, nursery)
        try:
            yield space
        finally:
            with trio.move_on_after(FAREWELL_S, shield=True):
                await trio.to_thread.run_sync(space.close_all, abandon_on_cancel=True)
