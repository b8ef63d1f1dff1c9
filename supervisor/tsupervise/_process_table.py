"""The processes that a client follows, by id: where their events go.

An id is free again when its process is closed, or when the server has said that it is gone; until then a
second process of the same id would get the events, or the end, of the first.
"""

from __future__ import annotations

from tsupervise_protocol.base64_text import decode_base64
from tsupervise_protocol.errors import MalformedMessage
from tsupervise_protocol.messages import (
    UNSET,
    ClosedNotification,
    ExitedNotification,
    Message,
    OutputNotification,
)

from ._event_order import EventOverflow
from ._remote_process import RemoteProcess
from .events import Closed, Exited, Output


class ProcessTable:
    """See the module."""

    def __init__(self) -> None:
        self._by_id: dict[str, RemoteProcess] = {}

    def __contains__(self, process_id: str) -> bool:
        return process_id in self._by_id

    def get(self, process_id: str) -> RemoteProcess | None:
        return self._by_id.get(process_id)

    def add(self, process: RemoteProcess) -> None:
        assert process.process_id not in self._by_id, "an id that is taken is refused before"
        self._by_id[process.process_id] = process

    def forget(self, process: RemoteProcess) -> None:
        """Free the id of a process, unless it belongs to a later one by now."""
        if self._by_id.get(process.process_id) is process:
            del self._by_id[process.process_id]

    def take(self, notification: Message) -> RemoteProcess | None:
        """Hand an event to its process; return the process to wait for before the next, if there is one.

        Raises:
            MalformedMessage: output that is no base64.
        """
        match notification:
            case OutputNotification(process_id=process_id, seq=seq, stream=stream, chunk=chunk):
                try:
                    event = Output(seq, stream, decode_base64(chunk))
                except ValueError as error:
                    raise MalformedMessage(f"process/output {seq} of {process_id!r}: {error}") from None
            case ExitedNotification(process_id=process_id, seq=seq, exit_code=code) as exited:
                term_signal = None if exited.term_signal is UNSET else exited.term_signal
                denied = None if exited.sandbox_denied is UNSET else exited.sandbox_denied
                event = Exited(seq, code, term_signal, denied, exited.usage or None, exited.reason or None)
            case ClosedNotification(process_id=process_id, seq=seq):
                event = Closed(seq)
            case _:
                return None
        process = self._by_id.get(process_id)
        if process is None:
            return None
        try:
            process.take(event)
        except EventOverflow as overflow:
            process.fail(f"its events cannot be put in order any more: {overflow}; terminate it")
            self.forget(process)
        else:
            if process.closed:
                self.forget(process)
        return process if process.is_read_too_slowly else None

    def begin_to_miss(self) -> None:
        """There was no connection, so that each process misses events, until it has caught up."""
        for process in self._by_id.values():
            process.begin_to_miss()

    def recoverable(self) -> list[RemoteProcess]:
        """The processes that have missed events, and that are known to have been started."""
        return [process for process in self._by_id.values() if process.can_catch_up]

    def wake(self) -> None:
        """Let everybody who waits for an event look again."""
        for process in self._by_id.values():
            process.wake()
