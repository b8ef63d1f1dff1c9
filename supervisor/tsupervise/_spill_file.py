"""One append-only file without a name, for the older output of one process. No trio.

The file is created for its owner alone and unlinked at once, so it is gone with the daemon however that
ends. Every call here may block, for as long as the disk likes, and is made in a thread; a thread whose caller has
gone must not meet a recycled descriptor, so the last one to use the file closes it.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import struct
import threading
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress

from ._event_log import Chunk, Page
from ._hole_punch import punch_hole
from ._spill_index import STRIDE
from .errors import CannotSpill

_HEADER = struct.Struct("<QIB")
"""Before the bytes of each chunk: its number, their count, its stream."""

_STREAMS = ("stdout", "stderr", "pty")

BLOCK = 4096
"""What a file system gives back is a multiple of this, or of something larger that it minds by itself."""

READ_BYTES = 1 << 20
"""Read at a time, in bytes."""

_PREFIX, _SUFFIX = "tsupervise-", ".spill"


class SpillFileClosed(Exception):
    """The file was closed before the call came to it: nobody wants the output any more."""


class SpillFileDamaged(OSError):
    """What was read is not what was written."""


def record_bytes(chunk: Chunk) -> int:
    """How much of the file a chunk takes, in bytes."""
    return _HEADER.size + len(chunk.data)


class SpillFile:
    """See the module. It is created by its first write.

    Args:
        directory: where; `check_directory` has seen it.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._fd = -1
        self._users = 0
        self._closing = False
        self._lock = threading.Lock()  # held for moments only, never while the disk is asked

    @contextmanager
    def _used(self) -> Generator[None]:
        """Keep the descriptor open for the time of the block.

        Raises:
            SpillFileClosed: it is too late.
        """
        with self._lock:
            if self._closing:
                raise SpillFileClosed
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                last = self._closing and not self._users
            if last:
                self._close_now()

    def close(self) -> None:
        """Close the file, or leave it to who still uses it. Safe to call twice."""
        with self._lock:
            self._closing = True
            idle = not self._users
        if idle:
            self._close_now()

    def _close_now(self) -> None:
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd != -1:
            os.close(fd)

    def write(self, offset: int, chunks: Sequence[Chunk]) -> None:
        """Write chunks, the first at `offset`.

        Raises:
            OSError: they are not, or not all, written, and the file ends at `offset` again.
            SpillFileClosed: see there.
        """
        with self._used():
            if self._fd == -1:
                self._fd = _create(self._directory)
            rest = memoryview(b"".join(_records(chunks)))
            at = offset
            try:
                while rest:
                    count = os.pwrite(self._fd, rest, at)
                    rest = rest[count:]
                    at += count
            except OSError:
                if at > offset:
                    with suppress(OSError):
                        os.ftruncate(self._fd, offset)
                raise

    def give_back(self, start: int, end: int) -> None:
        """Let the file system have a range of whole blocks again, which is never read any more.

        Raises:
            OSError, SpillFileClosed: see there.
        """
        with self._used():
            if end > start:
                punch_hole(self._fd, start, end - start)

    def read(self, start: int, end: int, page: Page) -> None:
        """Fill a page from the records between two offsets, the first of which is where a record begins.

        Raises:
            SpillFileDamaged: there are none, or none that fit the numbers.
            OSError, SpillFileClosed: see there.
        """
        with self._used():
            last_seq = 0
            data, at = b"", 0
            position = start
            while position < end and not page.is_full:
                needed = _HEADER.size
                if len(data) - at >= needed:
                    seq, length, stream = _HEADER.unpack_from(data, at)
                    if seq <= last_seq or not length or stream >= len(_STREAMS):
                        raise SpillFileDamaged(errno.EIO, f"no record at {position}")
                    needed += length
                    if len(data) - at >= needed:
                        last_seq = seq
                        if seq > page.after:
                            page.take(Chunk(seq, _STREAMS[stream], data[at + _HEADER.size : at + needed]))
                        at += needed
                        position += needed
                        continue
                if needed > end - position:
                    raise SpillFileDamaged(errno.EIO, f"no whole record at {position}")
                size = max(needed, min(READ_BYTES, STRIDE + page.room))
                data = self._read_some(position, min(size, end - position))
                at = 0

    def _read_some(self, offset: int, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            part = os.pread(self._fd, size, offset)
            if not part:
                raise SpillFileDamaged(errno.EIO, f"the file ends at {offset}")
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return b"".join(parts)


def _records(chunks: Iterable[Chunk]) -> Generator[bytes]:
    for chunk in chunks:
        yield _HEADER.pack(chunk.seq, len(chunk.data), _STREAMS.index(chunk.stream))
        yield chunk.data


def _create(directory: str) -> int:
    name = os.path.join(directory, f"{_PREFIX}{os.getpid()}-{secrets.token_hex(8)}{_SUFFIX}")
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with suppress(FileNotFoundError):  # a daemon that starts has taken it for a stale one: so be it
            os.unlink(name)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_directory(directory: str) -> str:
    """See whether spill files can be made in a directory, and remove names that a crash has left there.

    The name may be that of a daemon that lives, caught between its creating and its unlinking: no harm is done.

    Returns:
        Its absolute path.

    Raises:
        CannotSpill: not there, not a directory, not writable, or a file system without holes.
    """
    try:
        if not stat.S_ISDIR(os.stat(directory).st_mode):
            raise CannotSpill(f"cannot spill into {directory}: it is not a directory")
        directory = os.path.abspath(directory)
        _remove_stale(directory)
        fd = _create(directory)
    except OSError as error:
        raise CannotSpill(f"cannot spill into {directory}: {_words(error)}") from None
    try:
        os.pwrite(fd, b"x" * (2 * BLOCK), 0)
        punch_hole(fd, 0, BLOCK)
    except OSError as error:
        why = _words(error)
        if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
            why = f"its file system cannot free a part of a file ({why}); ext4, xfs, btrfs and tmpfs can"
        raise CannotSpill(f"cannot spill into {directory}: {why}") from None
    finally:
        os.close(fd)
    return directory


def _remove_stale(directory: str) -> None:
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(_PREFIX) and entry.name.endswith(_SUFFIX):
                with suppress(OSError):  # somebody else's, or gone meanwhile
                    os.unlink(entry.path)


def _words(error: OSError) -> str:
    return f"{error.strerror} (os error {error.errno})"
