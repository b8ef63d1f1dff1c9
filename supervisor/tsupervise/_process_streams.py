"""The stdin, stdout and stderr of a process as trio streams, made of what any handle of a process can do.

A stream owns nothing of the process: to close one tells the process no more than the end of its input.
Output is read from the numbered events, each stream with a position of its own, so that one that nobody
reads holds up neither the other nor the process.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, final

import trio

from tsupervise_protocol.messages import Stream

from .errors import OutputLost, StdinClosed, TsuperviseError
from .events import Lost, Output

if TYPE_CHECKING:
    from ._process_handle import EventStream, ProcessHandle

END_OF_INPUT = b"\x04"
"""Ctrl-D: how a terminal in its usual mode is told that nothing follows."""

CLOSE_S = 1.0
"""How long a cancelled `aclose` of a stdin goes on trying to tell the process."""


class _Gate:
    """One direction of a stream: one task at a time goes through, and none once it is closed."""

    def __init__(self, name: str) -> None:
        self.is_closed = False
        self._name = name
        self._scope: trio.CancelScope | None = None

    @contextmanager
    def passing(self) -> Generator[None]:
        if self._scope is not None:
            raise trio.BusyResourceError(f"another task uses this {self._name} already")
        if self.is_closed:
            raise trio.ClosedResourceError(f"this {self._name} was closed")
        self._scope = scope = trio.CancelScope()
        with scope:
            try:
                yield
            finally:
                self._scope = None
        if scope.cancelled_caught:
            raise trio.ClosedResourceError(f"another task closed this {self._name}")

    def close(self) -> None:
        self.is_closed = True
        if self._scope is not None:
            self._scope.cancel()


@final
class StdinStream(trio.abc.SendStream):
    """The stdin of a process, or the keyboard of its terminal. See `ProcessHandle.stdin`."""

    def __init__(self, process: ProcessHandle, *, is_terminal: bool) -> None:
        self._process = process
        self._is_terminal = is_terminal
        self._at_line_start = True
        self._gate = _Gate("stdin")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send to the process; return when the server has taken all of it.

        If it is cancelled, a part may have been sent.

        Raises:
            StdinClosed: the process takes no input, or none any more.
            trio.ClosedResourceError: this stream was closed.
            trio.BusyResourceError: another task is sending.
        """
        with self._gate.passing():
            sent = bytes(data)
            if sent:
                self._at_line_start = sent.endswith(b"\n")
            await self._process.write(sent)

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once: only the server knows how full its queue is."""
        with self._gate.passing():
            await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Let the process see the end of its input, after all that was sent. A second time does nothing.

        It waits while what was sent waits for room. On a terminal this types Ctrl-D, twice in the middle of
        a line, where the first one only hands over what there is of it. A process that takes no input any
        more is no error.

        Raises:
            NotSupported: the server cannot end the input of a process without a terminal.
        """
        if self._gate.is_closed:
            await trio.lowlevel.checkpoint()
            return
        self._gate.close()
        with suppress(StdinClosed):
            if self._is_terminal:
                await self._process.write(END_OF_INPUT if self._at_line_start else END_OF_INPUT * 2)
                return
            try:
                await self._process.close_stdin()
            except trio.Cancelled:
                # A process that never sees the end may wait for it for ever. Asking twice does no harm.
                with trio.move_on_after(CLOSE_S, shield=True), suppress(TsuperviseError):
                    await self._process.close_stdin()
                raise


@final
class OutputStream(trio.abc.ReceiveStream):
    """What a process writes to one of its streams. See `ProcessHandle.stdout`."""

    def __init__(self, process: ProcessHandle, events: EventStream, streams: Sequence[Stream]) -> None:
        self._process_id = process.process_id
        self._events = events
        self._streams = streams
        self._rest = memoryview(b"")
        self._gate = _Gate("output stream")

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for output and return it; b"" once the process is closed.

        A stream that the process itself closes ends no sooner. If it is cancelled, nothing is lost.

        Args:
            max_bytes: return at most so many, at least 1; None for as many as there are in one piece.

        Raises:
            OutputLost: output is missing here. The next call goes on behind the gap.
            ProcessFailed: the output cannot be followed any more.
            ConnectionLost: the connection is gone for good.
            trio.ClosedResourceError: this stream was closed.
            trio.BusyResourceError: another task is receiving.
        """
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, got {max_bytes}")
        with self._gate.passing():
            if self._rest:
                await trio.lowlevel.checkpoint()
            else:
                self._rest = await self._next_piece()
            size = len(self._rest) if max_bytes is None else max_bytes
            data, self._rest = bytes(self._rest[:size]), self._rest[size:]
        return data

    async def aclose(self) -> None:
        """Read no more. The process and its other streams do not notice."""
        self._gate.close()
        self._events.leave()
        await trio.lowlevel.checkpoint()

    async def _next_piece(self) -> memoryview:
        async for event in self._events:
            if isinstance(event, Lost):
                raise OutputLost(self._process_id, event.first_seq, event.seq)
            # A piece of no bytes would look like the end.
            if isinstance(event, Output) and event.stream in self._streams and event.data:
                return memoryview(event.data)
        return memoryview(b"")
