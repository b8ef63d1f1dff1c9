"""The files that one connection has open, by the names that its peer gave them.

Every call here may block for as long as the file system likes, and is made in a thread; one whose caller has left
still ends well, for what it opens or uses belongs to `OpenFiles` and not to the caller.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress

from tsupervise_protocol.errors import ErrorCode, RpcError
from tsupervise_protocol.file_messages import OpenMode

from ._disk import SharedFd, shown

MAX_OPEN_FILES = 128
"""Of one connection; the reference allows as many."""

_MAX_OFFSET = (1 << 63) - 1
"""The farthest that a file reaches, in bytes."""

# Without waiting for the other end of a FIFO.
_FLAGS = {
    "read": os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY,
    "replace": os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_NOCTTY,
    "update": os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY,
}


class OpenFiles:
    """The open files of one connection. Safe in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held for moments only, never while a file system is asked
        self._files: dict[str, SharedFd | None] = {}
        """None while it is being opened."""
        self._ended = False

    def open(self, handle_id: str, path: bytes, mode: OpenMode, unix_mode: int) -> None:
        """Open a regular file; `unix_mode` is for one that is made.

        Raises:
            OSError: the system refuses it.
            RpcError: INVALID_REQUEST, it is no regular file; the name is in use; too many are open.
        """
        self._reserve(handle_id)
        try:
            file = SharedFd(_open_regular(path, _FLAGS[mode], unix_mode))
        except BaseException:
            self._forget(handle_id, None)
            raise
        with self._lock:
            has_ended = self._ended
            if not has_ended:
                self._files[handle_id] = file
        if has_ended:
            file.give_up()

    def read(self, handle_id: str, offset: int, size: int) -> bytes:
        """Read a block: `size` bytes, or fewer at the end of the file. A file that this fails on is closed.

        Raises:
            OSError: the system refuses it.
            RpcError: NOT_FOUND, no open file of that name.
        """
        with self._using(handle_id) as fd:
            _check_offset(offset)
            data = os.pread(fd, size, offset)
            if len(data) == size or not data:
                return data
            parts = [data]
            missing = size - len(data)
            # Some file systems give a page at a time.
            while missing and (data := os.pread(fd, missing, offset + size - missing)):
                parts.append(data)
                missing -= len(data)
            return b"".join(parts)

    def write(self, handle_id: str, offset: int, data: bytes) -> None:
        """Write a block, all of it. A file that this fails on is closed; a part may have been written.

        Raises:
            OSError: the system refuses it.
            RpcError: NOT_FOUND, no open file of that name.
        """
        with self._using(handle_id) as fd:
            _check_offset(offset)
            rest = memoryview(data)
            while rest:
                written = os.pwrite(fd, rest, offset)
                rest = rest[written:]
                offset += written

    def close(self, handle_id: str) -> None:
        """Close a file; one that is not open is none to be closed.

        Raises:
            OSError: what was written has not arrived.
        """
        with self._lock:
            file = self._files.pop(handle_id, None)
        if file is not None:
            file.give_up()

    def end(self) -> list[SharedFd]:
        """Open nothing any more; returns what the caller is to give up. Does not block."""
        with self._lock:
            self._ended = True
            files = [file for file in self._files.values() if file is not None]
            self._files.clear()
        return files

    def _reserve(self, handle_id: str) -> None:
        with self._lock:
            if handle_id in self._files:
                raise RpcError(ErrorCode.INVALID_REQUEST, f"file handle `{handle_id}` already exists")
            if len(self._files) == MAX_OPEN_FILES:
                text = f"at most {MAX_OPEN_FILES} file handles may be open per connection: close one first"
                raise RpcError(ErrorCode.INVALID_REQUEST, text)
            self._files[handle_id] = None

    def _forget(self, handle_id: str, file: SharedFd | None) -> bool:
        """Take a file out; False if somebody else has done so."""
        with self._lock:
            if self._files.get(handle_id, self) is not file:
                return False
            del self._files[handle_id]
            return True

    @contextmanager
    def _using(self, handle_id: str) -> Generator[int]:
        with self._lock:
            file = self._files.get(handle_id)
        if file is None:
            raise RpcError(ErrorCode.NOT_FOUND, f"unknown file handle `{handle_id}`")
        try:
            with file.use() as fd:
                yield fd
        except OSError:
            if self._forget(handle_id, file):
                with suppress(OSError):  # the first error is the one to be told
                    file.give_up()
            raise


def _open_regular(path: bytes, flags: int, unix_mode: int) -> int:
    refusal = RpcError(ErrorCode.INVALID_REQUEST, f"path `{shown(path)}` is not a file")
    with suppress(OSError):
        kind = os.stat(path).st_mode
        # A look first: to open a device may do something to it.
        if stat.S_ISCHR(kind) or stat.S_ISBLK(kind):
            raise refusal
    fd = os.open(path, flags, unix_mode)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise refusal
    return fd


def _check_offset(offset: int) -> None:
    if offset > _MAX_OFFSET:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
