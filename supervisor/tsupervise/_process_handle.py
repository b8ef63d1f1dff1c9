"""What can be done with a process, whoever started it: be told something, be waited for, be followed.

A handle knows how the server is asked for each of these (`RemoteProcess` for processes of the own session,
`ObservedProcess` for all others); what a caller sees of it is decided here, once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING

import trio

from tsupervise_protocol.base64_text import decode_base64, encode_base64_str
from tsupervise_protocol.messages import ReadResult, SignalName, WriteStatus

from .errors import OutcomeUnknown, StdinClosed
from .events import Closed, Event, Output

if TYPE_CHECKING:
    from .client import Client

WRITE_BYTES = 65536
"""The largest piece of one write: the capacity of a pipe."""

_REFUSED_WRITES: dict[WriteStatus, str] = {
    "stdinClosed": "it has ended, or its stdin is closed or /dev/null; start it with pipe_stdin or tty",
    "unknownProcess": "the server does not know it any more",
    "starting": "it is starting still",
}


class ProcessHandle(ABC):
    """A process at the server. Made by `Client.start`, `Client.open_process` and `Client.attach`.

    Every method raises ConnectionLost once the connection is gone for good, and ServerRefused if the
    server answers with an error. While the connection is being recovered, all of them wait. Those that
    tell the process something raise OutcomeUnknown if the connection went before they were answered;
    not so `write` and `close_stdin`, which are repeated and take effect once.

    Args:
        client: whom the handle calls by.
        process_id: the name of the process in its session.
        uid: its daemon-unique name, where the server gives one.
        write_id_prefix: what sets this handle's writes apart from those of other handles.
    """

    def __init__(self, client: Client, process_id: str, uid: str | None, write_id_prefix: str) -> None:
        self.process_id = process_id
        self.uid = uid
        self._client = client
        # The order of calls is the order of bytes: one write at a time, in the order of asking.
        self._stdin = trio.StrictFIFOLock()
        self._write_ids: Iterator[str] = (f"{write_id_prefix}{number}" for number in count(1))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.process_id!r}>"

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

    @abstractmethod
    async def wait(self) -> int:
        """Wait until the process has ended and return its exit code, 128 + n after signal n.

        Output may still come; `wait_closed` waits for that, too.

        Raises:
            ProcessFailed: it cannot be followed any more.
        """

    @abstractmethod
    async def wait_closed(self) -> None:
        """Wait until the process has ended and all of its output has arrived.

        It may take longer than `wait` by as long as a descendant lives that holds the output open.

        Raises:
            ProcessFailed: it cannot be followed any more.
        """

    @property
    @abstractmethod
    def exit_code(self) -> int | None:
        """The exit code once the process is known to have ended."""

    @abstractmethod
    async def read(
        self, after_seq: int | None = None, max_bytes: int | None = None, wait_ms: int | None = None
    ) -> ReadResult:
        """Ask the server for retained output and the state of the process, see `process/read`.

        Args:
            after_seq: only chunks with higher numbers.
            max_bytes: how much output at most, though always at least one chunk if there is one.
            wait_ms: how long the server waits for news if there are none, in milliseconds.
        """

    @abstractmethod
    async def next_events(self, seq: int) -> list[Event]:
        """Wait for what follows the event numbered `seq`: one event or several, none if nothing ever will."""

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
                chunk = encode_base64_str(bytes(view[start : start + WRITE_BYTES]))
                self._check_write(await self._send_write(chunk, next(self._write_ids)))

    async def close_stdin(self) -> None:
        """Let the process see the end of its input, after all that was written before.

        Raises:
            NotSupported: the server has no `process/closeStdin`.
            StdinClosed: it takes no input, or none any more.
        """
        self._client.require("tsuperviseCloseStdin", "close the stdin of a process")
        was_asked = False
        async with self._stdin:
            while True:
                try:
                    status = await self._send_close_stdin()
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
        await self._send_signal(name)

    async def interrupt(self) -> None:
        """Do what Ctrl-C does."""
        await self.signal("interrupt")

    @abstractmethod
    async def terminate(self) -> bool:
        """Kill the process at once, and what belongs to it; return whether it was running."""

    async def resize(self, rows: int, cols: int) -> None:
        """Change the size of the process's terminal.

        Raises:
            NotSupported: the server has no `process/resize`.
        """
        self._client.require("tsuperviseResize", "resize a terminal")
        await self._send_resize(rows, cols)

    @abstractmethod
    async def _send_write(self, chunk: str, write_id: str) -> WriteStatus: ...

    @abstractmethod
    async def _send_close_stdin(self) -> WriteStatus: ...

    @abstractmethod
    async def _send_signal(self, name: SignalName) -> None: ...

    @abstractmethod
    async def _send_resize(self, rows: int, cols: int) -> None: ...


def chunks_of(answer: ReadResult) -> list[Output]:
    """The output in an answer to a read.

    Raises:
        ValueError: a chunk is no base64.
    """
    return [Output(chunk.seq, chunk.stream, decode_base64(chunk.chunk)) for chunk in answer.chunks]


class EventStream:
    """An iteration over the events of one process, see `ProcessHandle.events`. For one task at a time.

    A class and not an async generator, so that it can be left at any point without a clean-up.
    """

    def __init__(self, process: ProcessHandle, seq: int) -> None:
        self._process = process
        self._seq = seq
        self._ready: deque[Event] = deque()
        self._closed = False

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        await trio.lowlevel.checkpoint()
        if not self._ready:
            events = [] if self._closed else await self._process.next_events(self._seq)
            if not events:
                raise StopAsyncIteration
            self._ready.extend(events)
            self._seq = events[-1].seq
            self._closed = isinstance(events[-1], Closed)
        return self._ready.popleft()
