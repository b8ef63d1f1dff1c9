"""One open file at a server, read or written in blocks, with a few of them on their way at a time.

The server knows an open file by a handle that ends with the connection. After a lost one the file is opened
again, and gone on with where it was: what was read already is not read again, and a block that was not
acknowledged is written again at its place, which changes nothing if it had been written.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Self, cast

import trio

from tsupervise_protocol.base64_text import decode_base64, encode_base64_str
from tsupervise_protocol.file_messages import (
    MAX_BLOCK_BYTES,
    CloseFileParams,
    GetMetadataParams,
    GetMetadataResult,
    OpenMode,
    OpenParams,
    ReadBlockParams,
    ReadBlockResult,
    WriteBlockParams,
)

from ._calls import Pending
from ._link import Link
from ._recovery import Disconnected
from .errors import BadAnswer, FileChanged, FileInterrupted, ServerRefused, file_error

if TYPE_CHECKING:
    from .client import Client

IN_FLIGHT = 4
"""Blocks of one file that are on their way at a time, or have arrived and are not taken: enough to keep a link busy
while the other end is at its disk."""

MAX_UNANSWERED_WRITES = 16
"""Blocks of all files of a client that are being written: in base64 a third of the bytes that a server lets a
connection have waiting."""


_handle_ids = count(1)


@dataclass(slots=True)
class _Block:
    """Bytes on their way to their place."""

    offset: int
    data: bytes
    pending: Pending | None = None
    """The call by which they go; None if they have to be sent, perhaps once more."""

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


class WritesInFlight:
    """The blocks that one client has on their way, so that many files do not ask too much of a server at once.

    Each of them is done at some time: answered, taken back, or with its connection.
    """

    def __init__(self) -> None:
        self._pending: list[Pending] = []

    async def wait_for_room(self) -> None:
        """Wait until one more may be sent. There is no await between that and the end of this."""
        while True:
            self._pending = [pending for pending in self._pending if not pending.done.is_set()]
            if len(self._pending) < MAX_UNANSWERED_WRITES:
                return
            await self._pending[0].done.wait()

    def add(self, pending: Pending) -> None:
        self._pending.append(pending)


class RemoteFile:
    """An open file at the server. Made by `Client.open_file`, which explains the modes.

    It has one position, for `read_some`, iteration and `write`; `read_at` and `write_at` leave it alone. What
    several tasks ask of it is done one after the other.

    Every method raises ConnectionLost once the connection is gone for good, FileError if the server cannot do it,
    and while the connection is being recovered it waits. After that, FileChanged if this is not the same file any
    more, and FileInterrupted if it cannot be gone on with.
    """

    def __init__(
        self,
        client: Client,
        writes: WritesInFlight,
        path: str,
        uri: str,
        mode: OpenMode,
        offset: int,
        unix_mode: int | None,
    ) -> None:
        self.path = path
        self.mode: OpenMode = mode
        self.position = offset
        """Where the next `read_some` or `write` is, in bytes from the beginning."""
        self._client = client
        self._writes = writes
        self._uri = uri
        self._new_mode = unix_mode
        self._link: Link | None = None
        self._handle_id = ""
        self._was_open = False
        self._is_closed = False
        self._failure: Exception | None = None
        self._found: GetMetadataResult | None = None
        self._written_end = self._sent_end = 0
        self._at_end = False
        self._ahead: deque[tuple[int, Pending]] = deque()
        self._blocks: deque[_Block] = deque()
        self._use = trio.StrictFIFOLock()

    def __repr__(self) -> str:
        return f"<RemoteFile {self.path!r} {self.mode}>"

    @property
    def size(self) -> int | None:
        """What is known of its size, in bytes: as it was opened for reading; None for writing."""
        return None if self._found is None else self._found.size

    @property
    def unix_mode(self) -> int | None:
        """Who may do what with it, as it was opened for reading; None for writing, or if that is not told."""
        return None if self._found is None else self._found.unix_mode

    @property
    def acknowledged(self) -> int:
        """The end of what the server has acknowledged to be written, in bytes from the beginning."""
        return self._written_end

    # --- reading -------------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if block := await self.read_some():
            return block
        raise StopAsyncIteration

    async def read_some(self) -> bytes:
        """Return the next block, 1 MiB or what there is until the end of the file; b"" at its end."""
        self._check("read")
        async with self._use:
            if self._at_end:
                return b""
            while True:
                link = await self._opened()
                while len(self._ahead) < IN_FLIGHT:
                    offset = self._ahead[-1][0] + MAX_BLOCK_BYTES if self._ahead else self.position
                    self._ahead.append((offset, self._begin_read(link, offset, MAX_BLOCK_BYTES)))
                # Left where it is while it is waited for: whoever is cancelled here finds it again.
                pending = self._ahead[0][1]
                await pending.done.wait()
                if not pending.was_answered:
                    continue
                self._ahead.popleft()
                data, self._at_end = self._block_of(link, pending, MAX_BLOCK_BYTES)
                self.position += len(data)
                if self._at_end:
                    self._forget_ahead()
                return data

    async def read_at(self, offset: int, max_bytes: int) -> bytes:
        """Return what is at a place: fewer bytes only where the file ends.

        Args:
            offset: in bytes from the beginning.
            max_bytes: how many, all of which are kept in memory.
        """
        self._check("read")
        if offset < 0 or max_bytes < 0:
            raise ValueError(f"offset and max_bytes must not be below 0, got {offset} and {max_bytes}")
        found = bytearray()
        async with self._use:
            while len(found) < max_bytes:
                count = min(MAX_BLOCK_BYTES, max_bytes - len(found))
                link = await self._opened()
                pending = self._begin_read(link, offset + len(found), count)
                try:
                    await pending.done.wait()
                finally:
                    link.free(pending)
                if not pending.was_answered:
                    continue
                data, at_end = self._block_of(link, pending, count)
                found += data
                if at_end:
                    break
        return bytes(found)

    def _begin_read(self, link: Link, offset: int, count: int) -> Pending:
        params = ReadBlockParams(handle_id=self._handle_id, offset=offset, len=count)
        return link.begin("fs/readBlock", params)

    def _block_of(self, link: Link, pending: Pending, count: int) -> tuple[bytes, bool]:
        """The bytes of an answer, and whether the file ends behind them."""
        link.free(pending)
        try:
            result = cast("ReadBlockResult", link.result_of(pending))
            data = decode_base64(result.chunk)
        except ServerRefused as refusal:
            raise self._failed(file_error(refusal, self.path)) from None
        except ValueError as error:
            raise self._failed(BadAnswer(f"a block of {self.path!r}: {error}")) from None
        if len(data) > count or (len(data) < count) != result.eof:
            text = f"a block of {self.path!r}: {len(data)} bytes for {count}, and eof is {result.eof}"
            raise self._failed(BadAnswer(text))
        return data, result.eof

    def _forget_ahead(self) -> None:
        for _, pending in self._ahead:
            if self._link is not None:
                self._link.free(pending)
            pending.done.set()  # somebody may wait for it, and looks again
        self._ahead.clear()

    # --- writing -------------------------------------------------------------------------------------

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write at the position, which moves behind it.

        It returns once all but the last few blocks are acknowledged. An error may so be raised by a later call;
        `flush` and the end of the block wait for all. A write that was cancelled may have written a part.
        """
        await self._write(None, data)

    async def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write at a place; what is missing before it is filled with zeros. Returns as `write` does.

        Args:
            offset: in bytes from the beginning.
            data: what is to stand there.
        """
        if offset < 0:
            raise ValueError(f"offset must not be below 0, got {offset}")
        await self._write(offset, data)

    async def flush(self) -> None:
        """Wait until the server has written everything. It is not asked to force it onto its disk."""
        self._check("write")
        async with self._use:
            await self._settle(0)

    async def _write(self, offset: int | None, data: bytes | bytearray | memoryview) -> None:
        self._check("write")
        view = memoryview(data).cast("B")
        async with self._use:
            for start in range(0, len(view), MAX_BLOCK_BYTES):
                await self._settle(IN_FLIGHT - 1)
                piece = bytes(view[start : start + MAX_BLOCK_BYTES])
                self._blocks.append(_Block(self.position if offset is None else offset + start, piece))
                if offset is None:
                    self.position += len(piece)
                await self._send_blocks()

    async def _settle(self, count: int) -> None:
        """Wait until no more than so many blocks are not acknowledged."""
        while len(self._blocks) > count:
            link = await self._send_blocks()
            block = self._blocks[0]
            assert block.pending is not None, "all have been sent"
            await block.pending.done.wait()
            if not block.pending.was_answered:
                continue
            link.free(block.pending)
            try:
                link.result_of(block.pending)
            except ServerRefused as refusal:
                raise self._failed(file_error(refusal, self.path)) from None
            self._blocks.popleft()
            self._written_end = max(self._written_end, block.end)

    async def _send_blocks(self) -> Link:
        """Send every block that is to be sent, and return the link where all of them are."""
        while True:
            link = await self._opened()
            unsent = [block for block in self._blocks if block.pending is None]
            if not unsent:
                return link
            await self._writes.wait_for_room()
            if link.disconnect is not None:
                continue
            block = unsent[0]
            params = WriteBlockParams(
                handle_id=self._handle_id, offset=block.offset, chunk=encode_base64_str(block.data)
            )
            block.pending = link.begin("fs/writeBlock", params)
            self._sent_end = max(self._sent_end, block.end)
            self._writes.add(block.pending)

    # --- the handle ----------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Write what is to be written, and close. A second time it does nothing."""
        try:
            async with self._use:
                if not self._is_closed and self._failure is None:
                    await self._settle(0)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close at once; what has not been sent is not written. A second time it does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._let_go()

    def _check(self, direction: str) -> None:
        if (direction == "read") != (self.mode == "read"):
            raise io.UnsupportedOperation(f"{self.path!r} is open to {self.mode}, not to {direction}")
        self._check_usable()

    def _check_usable(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError(f"{self.path!r} is closed")
        if self._failure is not None:
            raise self._failure

    def _failed(self, error: Exception) -> Exception:
        """Note an error after which this file is of no use: the server has closed it, or makes no sense."""
        self._failure = error
        self._let_go()
        return error

    def _let_go(self) -> None:
        self._forget_ahead()
        if self._link is None or self._link.disconnect is not None:
            return
        for block in self._blocks:
            if block.pending is None or block.pending.done.is_set():
                continue
            if self._link.take_back(block.pending):
                block.pending.done.set()
            else:
                # It is on its way, and counts until it is answered.
                self._client.in_background(_forget, self._link, block.pending)
        self._close(self._link, self._handle_id)
        self._link = None

    async def open(self) -> None:
        """Open it: the beginning of its block."""
        await self._opened()

    async def _opened(self) -> Link:
        """The connection in use, with the file open on it; there is no await between that and the end of this."""
        while True:
            self._check_usable()
            link = await self._client.ready()
            if link is self._link:
                return link
            self._forget_ahead()
            self._link = None
            for block in self._blocks:
                block.pending = None
            try:
                await self._open_on(link)
            except Disconnected:
                pass
            except ServerRefused as refusal:
                error = file_error(refusal, self.path)
                raise self._failed(error) if self._was_open else error from None
            except (FileChanged, FileInterrupted) as error:
                self._failure = error
                raise

    async def _open_on(self, link: Link) -> None:
        mode = self.mode
        if mode == "replace" and self._was_open:
            # What is in it by now is ours, and must not be lost again.
            if not self._client.has("tsuperviseFileUpdate"):
                raise FileInterrupted(self.path)
            mode = "update"
        if mode == "read" and self._found is None:
            # Before it is opened: whatever it is replaced by later has another time or size than this.
            self._found = await self._look(link)
        handle_id = str(next(_handle_ids))
        params = OpenParams(handle_id=handle_id, path=self._uri, mode=mode, unix_mode=self._new_mode)
        try:
            await self._client.call_on(link, "fs/open", params)
            if self._was_open:
                self._check_same(await self._look(link))
            self._check_usable()
        except BaseException as error:
            # Whoever is cancelled does not know whether it was opened.
            if not isinstance(error, ServerRefused):
                self._close(link, handle_id)
            raise
        self._link, self._handle_id, self._was_open = link, handle_id, True

    def _close(self, link: Link, handle_id: str) -> None:
        """Have the server forget a handle, without waiting for it. With the connection it is forgotten anyway."""
        if link.disconnect is None:
            pending = link.begin("fs/close", CloseFileParams(handle_id=handle_id))
            self._client.in_background(_forget, link, pending)

    async def _look(self, link: Link) -> GetMetadataResult:
        found = await self._client.call_on(link, "fs/getMetadata", GetMetadataParams(path=self._uri))
        return cast("GetMetadataResult", found)

    def _check_same(self, now: GetMetadataResult) -> None:
        if self._found is None:
            if now.size < self._written_end:
                reason = f"{self._written_end} bytes were written, and it has {now.size}"
                raise FileChanged(self.path, reason)
            if self.mode == "replace" and now.size > self._sent_end:
                reason = f"{self._sent_end} bytes were sent, and it has {now.size}"
                raise FileChanged(self.path, reason)
            return
        before = self._found
        for name, old, new in (
            ("size", before.size, now.size),
            ("time of change", before.modified_at_ms, now.modified_at_ms),
        ):
            if old != new:
                raise FileChanged(self.path, f"its {name} was {old} and is {new}")


async def _forget(link: Link, pending: Pending) -> None:
    await pending.done.wait()
    link.free(pending)


@asynccontextmanager
async def open_file(
    client: Client,
    writes: WritesInFlight,
    path: str,
    uri: str,
    mode: OpenMode,
    offset: int,
    unix_mode: int | None,
) -> AsyncGenerator[RemoteFile]:
    """The block of an open file; see `Client.open_file`."""
    if offset < 0:
        raise ValueError(f"offset must not be below 0, got {offset}")
    if mode != "read":
        client.require("fileWriteStreaming", "write a file in blocks")
    if mode == "update":
        client.require("tsuperviseFileUpdate", "write into a file that it does not empty first")
    require_modes(client, unix_mode)
    file = RemoteFile(client, writes, path, uri, mode, offset, unix_mode)
    try:
        await file.open()
        yield file
        await file.aclose()
    finally:
        file.abandon()


def require_modes(client: Client, unix_mode: int | None) -> None:
    """Raise what there is to be said against a mode of a new file."""
    if unix_mode is None:
        return
    if not 0 <= unix_mode <= 0o777:
        raise ValueError(f"unix_mode must be from 0 to 0o777, got {unix_mode:#o}")
    client.require("tsuperviseFileModes", "make a file with a mode")
