"""A connected socket as a trio stream that does the likely thing first.

Why not trio.SocketStream: its `receive_some` tries to read before it waits, though a request has just been taken
and the next one is hardly there, and its `send_all` goes through the scheduler once more after a send that has
succeeded. A 64-byte echo took 1.8 times as long as the reference's with it, and 1.55 times with this (measured
by bench/latency.py, pipe-echo).
"""

from __future__ import annotations

import errno
import fcntl
import socket
import sys
import termios

import trio


class EagerSocketStream(trio.abc.HalfCloseableStream):
    """Owns a socket. One task sends, one task receives.

    Args:
        sock: a connected stream socket; made non-blocking and, if it is TCP, told not to hold back small segments.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        while True:
            try:
                await trio.lowlevel.wait_readable(self._sock)
                return self._sock.recv(max_bytes or 65536)
            except BlockingIOError:
                continue
            except OSError as error:
                raise _translated(error) from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything. No checkpoint if the kernel takes it all at once, which it nearly always does."""
        sent = self.try_send(data)
        if sent == len(data):
            return
        rest = memoryview(data)[sent:]
        while rest:
            await self.wait_send_all_might_not_block()
            try:
                rest = rest[self._sock.send(rest) :]
            except BlockingIOError:
                pass
            except OSError as error:
                raise _translated(error) from error

    def try_send(self, data: bytes | bytearray | memoryview) -> int:
        """Send what the kernel takes now; a broken connection takes nothing, which the next send will say."""
        try:
            return self._sock.send(data)
        except OSError:
            return 0

    def unread(self) -> int:
        """How many bytes have come that have not been received."""
        count = bytearray(4)
        try:
            fcntl.ioctl(self._sock, termios.FIONREAD, count)
        except (OSError, ValueError):  # closed
            return 0
        return int.from_bytes(count, sys.byteorder)

    async def wait_send_all_might_not_block(self) -> None:
        try:
            await trio.lowlevel.wait_writable(self._sock)
        except OSError as error:
            raise _translated(error) from error

    async def send_eof(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise _translated(error) from error

    async def aclose(self) -> None:
        if self._sock.fileno() != -1:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
        await trio.lowlevel.checkpoint()


def _translated(error: OSError) -> Exception:
    if error.errno == errno.EBADF:
        return trio.ClosedResourceError("this socket was closed here")
    return trio.BrokenResourceError(f"the connection is broken: {error.strerror}")
