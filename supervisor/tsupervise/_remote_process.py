"""One process of a client: what it can be told to do, and its events for any number of readers.

Events that arrive are put in order and kept for a while (`_event_order`); the receiving task never waits
for a reader. A reader brings its position and takes what follows it, and if that is kept no more, it asks
the server once for all that it missed. An outage of the connection is nothing that a reader sees: the
process catches up before anything new is published.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

import trio

from tsupervise_protocol.base64_text import decode_base64, encode_base64_str
from tsupervise_protocol.errors import ErrorCode, MalformedMessage
from tsupervise_protocol.messages import (
    UNSET,
    CloseStdinParams,
    ReadParams,
    ReadResult,
    ResizeParams,
    SignalName,
    SignalParams,
    TerminateParams,
    WriteParams,
    WriteStatus,
)

from ._event_order import MAX_BYTES, MAX_EVENTS, EventOrder, EventOverflow, Snapshot
from .errors import (
    ConnectionLost,
    OutcomeUnknown,
    ProcessFailed,
    ServerRefused,
    StdinClosed,
    TsuperviseError,
)
from .events import Closed, Event, Exited, Output

if TYPE_CHECKING:
    from .client import Client

logger = logging.getLogger(__name__)

WRITE_BYTES = 65536
"""The largest piece of one `process/write`: the capacity of a pipe."""

END_S = 5.0
"""How long the end of a process may take at the end of its block, before the caller goes on without it."""

DENIAL_S = 5.0
"""How long an exit is kept back for the server to tell whether a sandbox was in the way."""

_REFUSED_WRITES: dict[WriteStatus, str] = {
    "stdinClosed": "it has ended, or its stdin is closed or /dev/null; start it with pipe_stdin or tty",
    "unknownProcess": "the server does not know it any more",
    "starting": "it is starting still",
}


class RemoteProcess:
    """A process at the server. Made by `Client.start` and `Client.open_process`.

    Every method raises ConnectionLost once the connection is gone for good, and ServerRefused if the
    server answers with an error. While the connection is being recovered, all of them wait. Those that
    tell the process something raise OutcomeUnknown if the connection went before they were answered;
    not so `write` and `close_stdin`, which are repeated and take effect once.
    """

    def __init__(self, client: Client, process_id: str, *, lossless: bool) -> None:
        self.process_id = process_id
        self.is_confirmed = False
        """Whether the server has said that it was started."""
        self.uid: str | None = None
        """The daemon-unique name of this process, where the server gives one."""
        self._client = client
        self._order = EventOrder()
        self._failure: str | None = None
        self._changed = trio.lowlevel.ParkingLot()
        # The order of calls is the order of bytes: one write at a time, in the order of asking.
        self._stdin = trio.StrictFIFOLock()
        self._write_ids = count(1)
        self._lossless = lossless
        self._read_seq = 0
        if lossless:
            self._order.read_seq = 0
        self._is_missing = False
        self._has_dropped = False
        self._room = trio.lowlevel.ParkingLot()
        self._asking_for_denial = trio.Lock()
        self._whole_exit: Exited | None = None

    def __repr__(self) -> str:
        return f"<RemoteProcess {self.process_id!r}>"

    # --- what a process does -------------------------------------------------------------------------

    def events(self, *, after_seq: int = 0) -> EventStream:
        """Iterate over the events of this process, numbered without holes, until it is closed.

        Each iteration has a position of its own, and starts with what was retained from before it. One
        that is too slow is told by `Lost` what it has missed, unless the process is `lossless`.

        Args:
            after_seq: start after the event of this number.

        Raises:
            ProcessFailed: while iterating: the events cannot be followed any more.
        """
        return EventStream(self, after_seq)

    async def wait(self) -> int:
        """Wait until the process has ended and return its exit code, 128 + n after signal n.

        Output may still come; `wait_closed` waits for that, too.

        Raises:
            ProcessFailed: its events cannot be followed any more.
        """
        await trio.lowlevel.checkpoint()
        while self._order.exited is None:
            if self._order.closed:
                raise ProcessFailed(self.process_id, "the server closed it and did not say how it ended")
            self._raise_if_over()
            await self._changed.park()
        return self._order.exited.exit_code

    async def wait_closed(self) -> None:
        """Wait until the process has ended and all of its output has arrived.

        It may take longer than `wait` by as long as a descendant lives that holds the output open.

        Raises:
            ProcessFailed: its events cannot be followed any more.
        """
        await trio.lowlevel.checkpoint()
        while not self._order.closed:
            self._raise_if_over()
            await self._changed.park()

    @property
    def exit_code(self) -> int | None:
        """The exit code once the process is known to have ended."""
        return None if self._order.exited is None else self._order.exited.exit_code

    @property
    def closed(self) -> bool:
        """Whether the last event has arrived."""
        return self._order.closed

    async def read(
        self, after_seq: int | None = None, max_bytes: int | None = None, wait_ms: int | None = None
    ) -> ReadResult:
        """Ask the server for retained output and the state of the process, see `process/read`.

        Args:
            after_seq: only chunks with higher numbers.
            max_bytes: how much output at most, though always at least one chunk if there is one.
            wait_ms: how long the server waits for news if there are none, in milliseconds.
        """
        return await self._client.call(
            "process/read",
            ReadParams(process_id=self.process_id, after_seq=after_seq, max_bytes=max_bytes, wait_ms=wait_ms),
        )

    # --- what a process is told ----------------------------------------------------------------------

    async def write(self, data: bytes) -> None:
        """Write to the process's stdin or terminal; return when the server has taken all of it.

        It waits while the server's queue for this process is full. If it is cancelled, a part may have
        been written. Writes of several tasks do not mix.

        Raises:
            StdinClosed: the process takes no input, or none any more.
        """
        async with self._stdin:
            view = memoryview(data)
            for start in range(0, len(view), WRITE_BYTES):
                result = await self._client.call(
                    "process/write",
                    WriteParams(
                        process_id=self.process_id,
                        chunk=encode_base64_str(bytes(view[start : start + WRITE_BYTES])),
                        write_id=str(next(self._write_ids)),
                    ),
                )
                self._check_write(result.status)

    async def close_stdin(self) -> None:
        """Let the process see the end of its input, after all that was written before.

        Raises:
            NotSupported: the server has no `process/closeStdin`.
            StdinClosed: it takes no input, or none any more.
        """
        self._client.require("tsuperviseCloseStdin", "close the stdin of a process")
        params = CloseStdinParams(process_id=self.process_id)
        was_asked = False
        async with self._stdin:
            while True:
                try:
                    status = (await self._client.call("process/closeStdin", params)).status
                except OutcomeUnknown:
                    was_asked = True
                else:
                    break
        # Closed already is what a question that lost its answer to a disconnect has brought about.
        if not (was_asked and status == "stdinClosed"):
            self._check_write(status)

    def _check_write(self, status: WriteStatus) -> None:
        if status != "accepted":
            raise StdinClosed(self.process_id, _REFUSED_WRITES[status])

    async def signal(self, name: SignalName) -> None:
        """Send a signal to the process group, or on a terminal to the foreground group.

        It has no effect on a process that has ended.

        Raises:
            NotSupported: the server knows no signal but `interrupt`.
        """
        if name != "interrupt":
            self._client.require("tsuperviseSignals", f"send the signal {name!r}")
        await self._client.call("process/signal", SignalParams(process_id=self.process_id, signal=name))

    async def interrupt(self) -> None:
        """Do what Ctrl-C does."""
        await self.signal("interrupt")

    async def terminate(self) -> bool:
        """Kill the process at once, and what belongs to it; return whether it was running."""
        params = TerminateParams(process_id=self.process_id)
        return (await self._client.call("process/terminate", params)).running

    async def resize(self, rows: int, cols: int) -> None:
        """Change the size of the process's terminal.

        Raises:
            NotSupported: the server has no `process/resize`.
        """
        self._client.require("tsuperviseResize", "resize a terminal")
        params = ResizeParams(process_id=self.process_id, rows=rows, cols=cols)
        await self._client.call("process/resize", params)

    async def end(self) -> None:
        """Terminate the process and wait until it is closed, at most `END_S`, come what may.

        A closed process is terminated as well: a descendant of it may be left. If there is no connection
        in all that time, the client terminates it when there is one again.
        """
        self._lossless = False
        self._order.read_seq = None
        self._room.unpark_all()
        was_told = False
        with trio.move_on_after(END_S, shield=True) as scope, suppress(TsuperviseError):
            while not was_told:
                with suppress(OutcomeUnknown):
                    await self.terminate()
                    was_told = True
            await self.wait_closed()
        if scope.cancelled_caught:
            if not was_told:
                self._client.terminate_later(self)
            logger.warning(
                "process %r was terminated but is not closed after %s s; the server ends it with its session",
                self.process_id,
                END_S,
            )

    # --- what the client's receiver does -------------------------------------------------------------

    def take(self, event: Output | Exited | Closed) -> None:
        """Take an event as it arrives.

        Raises:
            EventOverflow: as `EventOrder.insert`.
        """
        try:
            published = self._order.insert(event)
        except EventOverflow:
            if not self._is_missing:
                raise
            # It comes again with what else was missed.
            self._has_dropped = True
        else:
            if published:
                self._changed.unpark_all()

    def begin_to_miss(self) -> None:
        """From now on there may be events that do not arrive, until it has caught up."""
        self._is_missing = True

    @property
    def can_catch_up(self) -> bool:
        """Whether it misses events and the server can be asked for them."""
        return self._is_missing and self.is_confirmed and self._failure is None and not self._order.closed

    def ask_for_missed(self) -> ReadParams:
        """The question whose answer `catch_up` takes."""
        self._has_dropped = False
        return ReadParams(process_id=self.process_id, after_seq=self._order.last, max_bytes=None, wait_ms=0)

    def catch_up(self, answer: ReadResult) -> None:
        """Take what was missed. It goes on missing if it had no room for what arrived since it was asked.

        Raises:
            WindowLost, EventOverflow, MalformedMessage: as `EventOrder.catch_up`.
        """
        try:
            chunks = _decoded(answer)
        except ValueError as error:
            raise MalformedMessage(f"process/read of {self.process_id!r}: {error}") from None
        snapshot = Snapshot(
            chunks,
            answer.next_seq,
            (-1 if answer.exit_code is None else answer.exit_code) if answer.exited else None,
            answer.closed,
            None if answer.term_signal is UNSET else answer.term_signal,
            answer.sandbox_denied,
        )
        if self._order.catch_up(snapshot):
            self._changed.unpark_all()
        self._is_missing = self._has_dropped

    def fail(self, reason: str) -> None:
        """End every stream of this process with ProcessFailed."""
        self._failure = reason
        self.wake()

    def wake(self) -> None:
        """Let every waiting task look again, as after the loss of the connection."""
        self._changed.unpark_all()
        self._room.unpark_all()

    @property
    def is_read_too_slowly(self) -> bool:
        """Whether nothing more should be received until a reader of this lossless process has caught up."""
        return (
            self._lossless
            and self._failure is None
            and not self._client.is_lost
            and (
                self._order.last - self._read_seq > MAX_EVENTS // 2
                or self._order.bytes_after(self._read_seq) > MAX_BYTES // 4
            )
        )

    async def wait_until_read(self) -> None:
        """Wait until it is read fast enough again."""
        while self.is_read_too_slowly:
            await self._room.park()

    # --- what its event streams do -------------------------------------------------------------------

    def _raise_if_over(self) -> None:
        if self._failure is not None:
            raise ProcessFailed(self.process_id, self._failure)
        self._client.raise_if_lost()

    async def next_events(self, seq: int) -> list[Event]:
        """Wait for what follows the event numbered `seq`: one event, or all that fills a hole."""
        while not self._order.has_hole_after(seq):
            event = self._order.after(seq)
            if event is not None:
                self._read_seq = max(self._read_seq, event.seq)
                if self._lossless:
                    self._order.read_seq = self._read_seq
                self._room.unpark_all()
                return [await self._with_denial(event)]
            self._raise_if_over()
            await self._changed.park()
        return await self._read_hole(seq)

    async def _read_hole(self, seq: int) -> list[Event]:
        try:
            answer = await self.read(after_seq=seq, wait_ms=0)
        except ServerRefused as refusal:
            if refusal.code != ErrorCode.INVALID_REQUEST:
                raise
            # Closed long ago, and forgotten.
            return self._order.fill_hole(seq, (), self._order.first)
        try:
            chunks = _decoded(answer)
        except ValueError as error:
            self.fail(f"an answer to process/read is no use: {error}; terminate it")
            self._raise_if_over()
            raise
        events = self._order.fill_hole(seq, chunks, answer.next_seq)
        return [await self._with_denial(event, answer) for event in events]

    async def _with_denial(self, event: Event, answer: ReadResult | None = None) -> Event:
        """Complete an exit that does not say whether a sandbox was in the way, by one read for all streams.

        Args:
            answer: an answer from after the exit, if there is one already.
        """
        if not isinstance(event, Exited) or event.sandbox_denied is not None:
            return event
        async with self._asking_for_denial:
            if self._whole_exit is None:
                with suppress(ServerRefused, ConnectionLost), trio.move_on_after(DENIAL_S):
                    answer = answer or await self.read(after_seq=event.seq - 1, wait_ms=0)
                self._whole_exit = replace(event, sandbox_denied=answer and answer.sandbox_denied)
        return self._whole_exit


def _decoded(answer: ReadResult) -> list[Output]:
    return [Output(chunk.seq, chunk.stream, decode_base64(chunk.chunk)) for chunk in answer.chunks]


class EventStream:
    """An iteration over the events of one process, see `RemoteProcess.events`. For one task at a time.

    A class and not an async generator, so that it can be left at any point without a clean-up.
    """

    def __init__(self, process: RemoteProcess, seq: int) -> None:
        self._process = process
        self._seq = seq
        self._ready: deque[Event] = deque()
        self._closed = False

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        await trio.lowlevel.checkpoint()
        if not self._ready:
            if self._closed:
                raise StopAsyncIteration
            events = await self._process.next_events(self._seq)
            self._ready.extend(events)
            self._seq = events[-1].seq
            self._closed = isinstance(events[-1], Closed)
        return self._ready.popleft()
