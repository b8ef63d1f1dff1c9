"""A process of another session, followed and driven by its daemon-unique name: for operators.

Nothing is pushed here. Every reader asks for what follows its own position, so that it never holds up
the process, its owner or another reader, and one that is too slow for what the daemon retains is told.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar

from tsupervise_protocol.errors import ErrorCode
from tsupervise_protocol.messages import (
    UNSET,
    OperatorCloseStdinParams,
    OperatorEntry,
    OperatorReadParams,
    OperatorResizeParams,
    OperatorSignalParams,
    OperatorTerminateParams,
    OperatorWaitParams,
    OperatorWriteParams,
    ReadResult,
    SignalName,
    WriteStatus,
)

from ._process_handle import ProcessHandle, chunks_of
from .errors import NoSuchProcess, ProcessFailed, ServerRefused
from .events import Closed, Event, Exited, Lost

if TYPE_CHECKING:
    from .client import Client

PAGE_BYTES = 256 << 10
"""Output asked for at a time: enough to make the round trips cheap, little enough to be held."""

POLL_MS = 30_000
"""How long the server may wait for news before it answers that there are none, in milliseconds."""

Result = TypeVar("Result")


class ObservedProcess(ProcessHandle):
    """See the module. Made by `Client.attach`; leaving it alone has no effect on the process."""

    def __init__(self, client: Client, entry: OperatorEntry) -> None:
        # Whoever writes to a process shares one space of write ids with all others who do.
        prefix = f"{secrets.token_hex(8)}-"
        super().__init__(client, entry.process_id, entry.uid, tty=entry.tty, write_id_prefix=prefix)
        self.entry = entry
        """What the daemon said of it last."""
        self._uid = entry.uid
        self._exit_code = entry.exit_code

    async def wait(self) -> int:
        await self._wait_until("exited")
        assert self.entry.exit_code is not None, "what has exited has an exit code"
        return self.entry.exit_code

    async def wait_closed(self) -> None:
        await self._wait_until("closed")

    async def _wait_until(self, until: Literal["exited", "closed"]) -> None:
        over = ("exited", "closed") if until == "exited" else ("closed",)
        params = OperatorWaitParams(uid=self._uid, until=until, wait_ms=POLL_MS)
        while self.entry.state not in over:
            self.entry = await self._known(self._client.call("operator/wait", params))
            self._exit_code = self.entry.exit_code

    @property
    def exit_code(self) -> int | None:
        return self._exit_code

    async def read(
        self, after_seq: int | None = None, max_bytes: int | None = None, wait_ms: int | None = None
    ) -> ReadResult:
        params = OperatorReadParams(uid=self._uid, after_seq=after_seq, max_bytes=max_bytes, wait_ms=wait_ms)
        answer = await self._known(self._client.call("operator/read", params))
        self._exit_code = answer.exit_code
        return answer

    async def next_events(self, seq: int) -> list[Event]:
        while True:
            answer = await self.read(after_seq=seq, max_bytes=PAGE_BYTES, wait_ms=POLL_MS)
            try:
                events = events_of(answer, seq)
            except ValueError as error:
                raise ProcessFailed(
                    self.process_id, f"an answer to operator/read is no use: {error}"
                ) from None
            if events or answer.closed:
                return events

    def wait_for_reader(self, reader: object, seq: int | None) -> None:
        """Nobody waits for an observer."""

    async def terminate(self) -> bool:
        params = OperatorTerminateParams(uid=self._uid)
        return (await self._known(self._client.call("operator/terminate", params))).running

    async def _send_write(self, chunk: str, write_id: str) -> WriteStatus:
        params = OperatorWriteParams(uid=self._uid, chunk=chunk, write_id=write_id)
        return (await self._known(self._client.call("operator/write", params))).status

    async def _send_close_stdin(self) -> WriteStatus:
        params = OperatorCloseStdinParams(uid=self._uid)
        return (await self._known(self._client.call("operator/closeStdin", params))).status

    async def _send_signal(self, name: SignalName) -> None:
        params = OperatorSignalParams(uid=self._uid, signal=name)
        await self._known(self._client.call("operator/signal", params))

    async def _send_resize(self, rows: int, cols: int) -> None:
        params = OperatorResizeParams(uid=self._uid, rows=rows, cols=cols)
        await self._known(self._client.call("operator/resize", params))

    async def _known(self, call: Awaitable[Result]) -> Result:
        """Await a call about this process.

        Raises:
            ProcessFailed: the daemon does not know it any more.
        """
        try:
            return await call
        except ServerRefused as refusal:
            if refusal.code != ErrorCode.INVALID_REQUEST:
                raise
            raise ProcessFailed(self.process_id, refusal.message) from None


def events_of(answer: ReadResult, seq: int) -> list[Event]:
    """What an answer to `operator/read` says of the numbers from `seq` + 1 to its `nextSeq` - 1.

    Returns:
        Ascending, without gaps: what nobody has any more is told as `Lost`.

    Raises:
        ValueError: a chunk is no base64.
    """
    known: dict[int, Event] = {chunk.seq: chunk for chunk in chunks_of(answer)}
    if answer.exit_seq is not UNSET and answer.exit_code is not None:
        signal = None if answer.term_signal is UNSET else answer.term_signal
        known[answer.exit_seq] = Exited(
            answer.exit_seq,
            answer.exit_code,
            signal,
            answer.sandbox_denied,
            answer.usage or None,
            answer.reason or None,
        )
    if answer.closed_seq is not UNSET:
        known[answer.closed_seq] = Closed(answer.closed_seq)
    events: list[Event] = []
    for number, event in sorted(known.items()):
        if seq < number < answer.next_seq:
            if seq + 1 < number:
                events.append(Lost(seq + 1, number - 1))
            events.append(event)
            seq = number
    if seq + 1 < answer.next_seq:
        events.append(Lost(seq + 1, answer.next_seq - 1))
    return events


def entry_named(entries: Sequence[OperatorEntry], name: str) -> OperatorEntry:
    """The process that a person means by a name: its uid, or its process id.

    Of several with the same process id the one that lives is meant, or else the newest.

    Args:
        entries: in order of their start.

    Raises:
        NoSuchProcess: there is none, or several of them live.
    """
    for entry in entries:
        if entry.uid == name:
            return entry
    named = [entry for entry in entries if entry.process_id == name]
    alive = [entry for entry in named if entry.state in ("starting", "running")]
    if len(alive) > 1:
        raise NoSuchProcess(name, f"several live processes have it; use one of {_uids(alive)}")
    if named:
        return (alive or named)[-1]
    raise NoSuchProcess(name, f"the daemon knows {_uids(entries)}" if entries else "the daemon knows none")


MAX_NAMED = 20
"""Processes that an error text names."""


def _uids(entries: Sequence[OperatorEntry]) -> str:
    names = [f"{entry.uid} ({entry.process_id})" for entry in entries[-MAX_NAMED:]]
    more = len(entries) - len(names)
    return ", ".join(names) + (f" and {more} older ones" if more else "")
