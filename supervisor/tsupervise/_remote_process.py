"""A process of the own session: its events come by themselves, for any number of readers.

Events that arrive are put in order and kept for a while (`_event_order`); the receiving task never waits
for a reader. A reader brings its position and takes what follows it, and if that is kept no more, it asks
the server for what it missed, page by page. An outage of the connection is nothing that a reader sees: the
process catches up before anything new is published.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

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

from ._event_order import MAX_BYTES, MAX_EVENTS, EventOrder, EventOverflow, Snapshot, WindowLost
from ._process_handle import ProcessHandle, chunks_of
from .errors import (
    ConnectionLost,
    OutcomeUnknown,
    ProcessFailed,
    ServerRefused,
    TsuperviseError,
)
from .events import Closed, Event, Exited, Output

if TYPE_CHECKING:
    from .client import Client

logger = logging.getLogger(__name__)

END_S = 5.0
"""How long the end of a process may take at the end of its block, before the caller goes on without it."""

DENIAL_S = 5.0
"""How long an exit is kept back for the server to tell whether a sandbox was in the way."""


class RemoteProcess(ProcessHandle):
    """A process of the own session, whose events the server pushes.

    Args:
        tty: as for `ProcessHandle`.
        lossless: whether receiving stops while a reader is too slow, see `Client.start`.
        write_id_prefix: as for `ProcessHandle`; "" for the one handle of a process that it has started.
    """

    def __init__(
        self,
        client: Client,
        process_id: str,
        *,
        tty: bool,
        lossless: bool = False,
        write_id_prefix: str = "",
    ) -> None:
        super().__init__(client, process_id, None, tty=tty, write_id_prefix=write_id_prefix)
        self.is_confirmed = False
        """Whether the server has said that it was started."""
        self._order = EventOrder()
        self._failure: str | None = None
        self._changed = trio.lowlevel.ParkingLot()
        self._lossless = lossless
        self._read_seq = 0
        self._waited_for: dict[object, int] = {}
        self._questions = 0
        if lossless:
            self._order.read_seq = 0
        self._is_missing = False
        self._has_dropped = False
        self._room = trio.lowlevel.ParkingLot()
        self._asking_for_denial = trio.Lock()
        self._whole_exit: Exited | None = None
        self.is_detached = False
        """Whether `detach` was called."""

    # --- what a process does -------------------------------------------------------------------------

    async def wait(self) -> int:
        await trio.lowlevel.checkpoint()
        while self._order.exited is None:
            if self._order.closed:
                raise ProcessFailed(self.process_id, "the server closed it and did not say how it ended")
            self._raise_if_over()
            await self._changed.park()
        return self._order.exited.exit_code

    async def wait_closed(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self._order.closed:
            self._raise_if_over()
            await self._changed.park()

    @property
    def exit_code(self) -> int | None:
        return None if self._order.exited is None else self._order.exited.exit_code

    @property
    def closed(self) -> bool:
        """Whether the last event has arrived."""
        return self._order.closed

    async def read(
        self, after_seq: int | None = None, max_bytes: int | None = None, wait_ms: int | None = None
    ) -> ReadResult:
        return await self._client.call(
            "process/read",
            ReadParams(process_id=self.process_id, after_seq=after_seq, max_bytes=max_bytes, wait_ms=wait_ms),
        )

    # --- what a process is told ----------------------------------------------------------------------

    async def terminate(self) -> bool:
        params = TerminateParams(process_id=self.process_id)
        return (await self._client.call("process/terminate", params)).running

    async def _send_write(self, chunk: str, write_id: str) -> WriteStatus:
        params = WriteParams(process_id=self.process_id, chunk=chunk, write_id=write_id)
        return (await self._client.call("process/write", params)).status

    async def _send_close_stdin(self) -> WriteStatus:
        params = CloseStdinParams(process_id=self.process_id)
        return (await self._client.call("process/closeStdin", params)).status

    async def _send_signal(self, name: SignalName) -> None:
        await self._client.call("process/signal", SignalParams(process_id=self.process_id, signal=name))

    async def _send_resize(self, rows: int, cols: int) -> None:
        params = ResizeParams(process_id=self.process_id, rows=rows, cols=cols)
        await self._client.call("process/resize", params)

    def detach(self) -> None:
        """Let the process run on when its `open_process` block ends, as if `Client.start` had started it."""
        self.is_detached = True

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
    def is_missing(self) -> bool:
        """Whether there may be events that have not arrived and will not by themselves."""
        return self._is_missing

    @property
    def can_catch_up(self) -> bool:
        """Whether it misses events and the server can be asked for them."""
        return self._is_missing and self.is_confirmed and self._failure is None and not self._order.closed

    def ask_for_missed(self) -> ReadParams:
        """The question whose answer `catch_up` takes."""
        self._has_dropped = False
        return ReadParams(process_id=self.process_id, after_seq=self._order.last, max_bytes=None, wait_ms=0)

    def begin_at(self, answer: ReadResult) -> None:
        """Follow a process that was started by somebody else, from what the server retains of it on.

        Args:
            answer: to the first `ask_for_missed`; `catch_up` takes it next.

        Raises:
            MalformedMessage: it cannot be read.
        """
        snapshot = self._snapshot(answer)
        if answer.more is True:  # then it is no account of how the process stands at its end
            snapshot = replace(snapshot, exit_code=None, closed=False)
        self._order.begin_at(snapshot)
        if answer.more is True and answer.exit_seq is not UNSET and answer.exit_seq <= self._order.last:
            self._order.exited = self._exited(answer, answer.exit_seq)

    def catch_up(self, answer: ReadResult) -> None:
        """Take what was missed. It goes on missing if it had no room for what arrived since it was asked.

        Raises:
            WindowLost, EventOverflow, MalformedMessage: as `EventOrder.catch_up` and `EventOrder.skip`.
        """
        if answer.more is True:
            self._skip(answer)
        elif self._order.catch_up(self._snapshot(answer)):
            self._changed.unpark_all()
        self._is_missing = self._has_dropped

    def _skip(self, answer: ReadResult) -> None:
        """There is more than one answer holds: readers get it from the server, each as fast as it reads."""
        if answer.truncated is True and answer.chunks and answer.chunks[0].seq > self._order.last + 1:
            raise WindowLost(f"its events after sequence {self._order.last} are no longer retained")
        if answer.last_seq is UNSET:
            raise MalformedMessage(f"process/read of {self.process_id!r}: there is more, and no lastSeq")
        exited = None
        if answer.exited:
            if answer.exit_seq is UNSET:
                raise MalformedMessage(f"process/read of {self.process_id!r}: it has exited, without exitSeq")
            exited = self._exited(answer, answer.exit_seq)
        if self._order.skip(answer.last_seq, exited, answer.closed):
            self._have_read()
            self._changed.unpark_all()

    def _exited(self, answer: ReadResult, seq: int) -> Exited:
        code = -1 if answer.exit_code is None else answer.exit_code
        term_signal = None if answer.term_signal is UNSET else answer.term_signal
        return Exited(
            seq, code, term_signal, answer.sandbox_denied, answer.usage or None, answer.reason or None
        )

    def _snapshot(self, answer: ReadResult) -> Snapshot:
        try:
            chunks = chunks_of(answer)
        except ValueError as error:
            raise MalformedMessage(f"process/read of {self.process_id!r}: {error}") from None
        return Snapshot(
            chunks,
            answer.next_seq,
            (-1 if answer.exit_code is None else answer.exit_code) if answer.exited else None,
            answer.closed,
            None if answer.term_signal is UNSET else answer.term_signal,
            answer.sandbox_denied,
            answer.usage or None,
            answer.reason or None,
        )

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
            # A reader of this process waits for an answer, which may be behind what would not be received.
            and not self._questions
            and (
                self._order.last - self._slowest > MAX_EVENTS // 2
                or self._order.bytes_after(self._slowest) > MAX_BYTES // 4
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
        while not self._order.has_hole_after(seq):
            event = self._order.after(seq)
            if event is not None:
                self._read_seq = max(self._read_seq, event.seq)
                self._have_read()
                return [await self._with_denial(event)]
            if self._order.closed:
                return []
            self._raise_if_over()
            await self._changed.park()
        return await self._read_hole(seq)

    def wait_for_reader(self, reader: object, seq: int | None) -> None:
        if seq is None:
            self._waited_for.pop(reader, None)
        elif not self._order.has_hole_after(seq):
            self._waited_for[reader] = seq
        self._have_read()

    @property
    def _slowest(self) -> int:
        """The number up to which every reader has read that a lossless process waits for."""
        return min(self._read_seq, *self._waited_for.values()) if self._waited_for else self._read_seq

    def _have_read(self) -> None:
        if self._lossless:
            # While a reader is in a hole, the server keeps for it what it has not read.
            in_hole = self._order.has_hole_after(self._slowest)
            self._order.read_seq = None if in_hole else self._slowest
        self._room.unpark_all()

    async def _ask(self, after_seq: int) -> ReadResult:
        """Ask for what a reader needs to go on; until the answer is there, everything is received."""
        self._questions += 1
        self._room.unpark_all()
        try:
            return await self.read(after_seq=after_seq, wait_ms=0)
        finally:
            self._questions -= 1

    async def _read_hole(self, seq: int) -> list[Event]:
        self._have_read()
        try:
            answer = await self._ask(seq)
        except ServerRefused as refusal:
            if refusal.code != ErrorCode.INVALID_REQUEST:
                raise
            # Closed long ago, and forgotten.
            return self._order.fill_hole(seq, (), self._order.first)
        try:
            chunks = chunks_of(answer)
        except ValueError as error:
            self.fail(f"an answer to process/read is no use: {error}; terminate it")
            self._raise_if_over()
            raise
        events = self._order.fill_hole(seq, chunks, answer.next_seq)
        self._read_seq = max(self._read_seq, events[-1].seq)
        self._have_read()
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
                    answer = answer or await self._ask(event.seq - 1)
                self._whole_exit = replace(event, sandbox_denied=answer and answer.sandbox_denied)
        return self._whole_exit
