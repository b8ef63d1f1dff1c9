"""One owned, non-blocking file descriptor.

Why not trio.lowlevel.FdStream: when a child exits, everything already in its pipes must be read and numbered
before the exit, in one stretch without an await. FdStream has no read that returns at once.
"""

from __future__ import annotations

import os

import trio

READ_BYTES = 64 << 10
"""The most that one read takes: the default capacity of a pipe. Larger reads bring little (measured)."""


TYPED_BYTES = 1024
"""Less than this from a terminal is typing or its echo, not a stream."""


class Fd:
    """Owns the integer. Closing overwrites it with -1, so that a recycled number is never touched."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd

    @property
    def closed(self) -> bool:
        return self._fd == -1

    def fileno(self) -> int:
        return self._fd

    def read(self) -> bytes | None:
        """Read what is there: at most READ_BYTES, b"" at the end, None if nothing is there yet."""
        try:
            return os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            # EIO: all slaves of the terminal are closed. Linux says end-of-file so on a PTY master.
            return b""

    def read_batch(self) -> bytes | None:
        """Like `read`, but ask on until READ_BYTES or nothing more: a terminal gives 4 KiB at a time.

        A few bytes are taken for all there is: what somebody types is not worth a second question.
        """
        first = self.read()
        if not first or len(first) < TYPED_BYTES:
            return first
        parts = [first]
        size = len(first)
        while size < READ_BYTES and (more := self.read()):
            parts.append(more)
            size += len(more)
        return b"".join(parts) if len(parts) > 1 else first

    def write(self, data: memoryview) -> int | None:
        """Write what fits; None if nothing does now.

        Raises:
            OSError: EPIPE or EIO, nobody will read it.
        """
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return None

    async def wait_readable(self) -> None:
        """Raises trio.ClosedResourceError if it is closed meanwhile."""
        await trio.lowlevel.wait_readable(self._fd)

    async def wait_writable(self) -> None:
        """Raises trio.ClosedResourceError if it is closed meanwhile."""
        await trio.lowlevel.wait_writable(self._fd)

    def close(self) -> None:
        """Close, and wake who waits for it. Safe to call twice."""
        if self._fd != -1:
            fd, self._fd = self._fd, -1
            trio.lowlevel.notify_closing(fd)
            os.close(fd)
