"""Standard input and output as a message channel: one JSON message a line."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Sequence

import trio

from tsupervise_protocol.codec import MAX_MESSAGE_BYTES

from ._channel import CloseCode

READ_BYTES = 64 << 10
"""The most that one read takes."""


class StdioChannel:
    """Descriptors 0 and 1 of this process.

    They may be anything, and they are shared with whoever started us, so they stay blocking and are read and
    written in threads. A thread that still waits when the channel is given up ends with the process.
    """

    label = "JSON-RPC message from exec-server stdio"
    peer = "stdio"

    def __init__(self, stdin: int = 0, stdout: int = 1) -> None:
        self._stdin = stdin
        self._stdout = stdout
        self._line = bytearray()
        self._ended = False
        self._kept: Sequence[bytes] = ()

    def peer_uid(self) -> int | None:
        """Who started this process holds the other ends of its pipes."""
        return os.geteuid()

    def set_waker(self, wake: Callable[[], None]) -> None:
        """It never has anything of its own to send."""

    async def receive(self) -> Sequence[bytes]:
        while not self._ended:
            data = await trio.to_thread.run_sync(self._read, abandon_on_cancel=True)
            messages = self._take(data)
            if messages:
                return messages
        return ()

    def _read(self) -> bytes:
        return read_blocking(self._stdin)

    def _take(self, data: bytes) -> list[bytes]:
        """The messages that are complete with these bytes; b"" completes the last one.

        A line that is too long or no UTF-8 ends the channel: there is no telling where the next one begins.
        """
        *lines, rest = data.split(b"\n") if data else (b"", b"")
        if lines:
            lines[0] = bytes(self._line) + lines[0]
            self._line = bytearray(rest)
        else:
            self._line += rest
        if not data:
            self._ended = True
        messages: list[bytes] = []
        for line in lines:
            message = line.strip()
            if not message:
                continue
            if len(line) > MAX_MESSAGE_BYTES or not _is_utf8(message):
                self._ended = True
                return messages
            messages.append(message)
        if len(self._line) > MAX_MESSAGE_BYTES:
            self._ended = True
        return messages

    async def send(self, messages: Sequence[bytes]) -> None:
        messages, self._kept = [*self._kept, *messages], ()
        if not messages:
            return
        try:
            await trio.to_thread.run_sync(self._write, messages, abandon_on_cancel=True)
        except OSError as error:
            raise trio.BrokenResourceError(f"standard output: {error.strerror}") from error

    def send_nowait(self, messages: Sequence[bytes]) -> bool:
        """Whether a blocking descriptor would take them, nobody can tell: they wait for `send`."""
        self._kept = messages
        return not messages

    def _write(self, messages: Sequence[bytes]) -> None:
        if len(messages) > 1:
            messages = [b"\n".join(messages)]
        # Without a copy of a single one, which may be very large.
        for part in (*messages, b"\n"):
            self._write_all(part)

    def _write_all(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._stdout, rest) :]
            except BlockingIOError:  # somebody who shares it has made it so
                select.select([], [self._stdout], [])

    async def keep_alive(self) -> None:
        """Return when nobody reads standard output any more: without a write, only poll tells."""
        await trio.to_thread.run_sync(self._wait_for_hangup, abandon_on_cancel=True)

    def _wait_for_hangup(self) -> None:
        poll = select.poll()
        poll.register(self._stdout, 0)
        poll.poll()

    async def is_alive(self, within_s: float) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    async def aclose(self, code: CloseCode, reason: str) -> None:
        """The descriptors are not ours to close."""
        self._ended = True
        await trio.lowlevel.checkpoint()


def read_blocking(fd: int) -> bytes:
    """Wait for bytes of a descriptor that others share, and so may have made non-blocking; b"" at its end."""
    while True:
        try:
            return os.read(fd, READ_BYTES)
        except BlockingIOError:
            select.select([fd], [], [])
        except OSError:
            return b""


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
