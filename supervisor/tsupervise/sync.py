"""The client for code that is not async: the same few calls, from any thread, each waiting for its outcome.

`connect` and `open_supervisor` return a `Client` that is closed at the end of its `with` block, by `close`,
or at the exit of the interpreter. Its work is done by a thread of its own. Every call may be made from
any thread, also while others wait; one direction of a process's streams is used by one thread at a time
(else `trio.BusyResourceError`).

`timeout` is in seconds everywhere: when it is over, the call is cancelled and raises TimeoutError. Ctrl-C
cancels the call that the main thread waits in. A cancelled `run` or `start` leaves no process behind.

After `os.fork` a client works in the parent only: in the child every call raises ConnectionLost, and
leaving its blocks does nothing.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from types import TracebackType
from typing import Self, Unpack, final

from tsupervise_protocol.file_messages import OpenMode
from tsupervise_protocol.messages import EnvironmentInfo, OperatorEntry, OperatorStatusResult, SignalName

from . import client as async_client
from ._http_call import Headers
from ._loop_thread import Held, LoopThread
from ._process_handle import EventStream, ProcessHandle
from ._process_streams import OutputStream, StdinStream
from ._recovery import RECOVERY_S
from ._remote_files import Path
from ._remote_process import RemoteProcess
from ._run_command import MAX_OUTPUT_BYTES
from ._settings import Settings
from ._sync_files import FileBlock, HttpBlock, HttpResponse, MissingWatch, RemoteFile, RemoteFiles
from ._websocket_client import SILENCE_S
from .client import RunOptions, StartOptions
from .completed import Completed
from .events import Event

__all__ = [
    "Client",
    "Events",
    "FileBlock",
    "HttpBlock",
    "HttpResponse",
    "MissingWatch",
    "OwnProcess",
    "Process",
    "ProcessBlock",
    "RemoteFile",
    "RemoteFiles",
    "Stdin",
    "StreamReader",
    "connect",
    "open_supervisor",
]


def connect(
    url: str,
    *,
    client_name: str = "tsupervise",
    resume_session_id: str | None = None,
    token: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    insecure_token: bool = False,
    recovery_s: float = RECOVERY_S,
    silence_s: float = SILENCE_S,
    timeout: float | None = None,
) -> Client:
    """Connect to a server; see `tsupervise.connect` for what is common to both.

    Raises:
        TimeoutError: not connected within `timeout` seconds.
    """
    return Client(
        LoopThread(
            lambda: async_client.connect(
                url,
                client_name=client_name,
                resume_session_id=resume_session_id,
                token=token,
                token_file=token_file,
                ssl_context=ssl_context,
                insecure_token=insecure_token,
                recovery_s=recovery_s,
                silence_s=silence_s,
            ),
            timeout,
        )
    )


def open_supervisor(settings: Settings | None = None) -> Client:
    """Supervise processes in this process, see `tsupervise.open_supervisor`; they end when it is closed."""
    from .embedded import open_supervisor

    return Client(LoopThread(lambda: open_supervisor(settings), None))


@final
class Client:
    """A session at a server. Made by `connect` and `open_supervisor`."""

    def __init__(self, loop: LoopThread[async_client.Client]) -> None:
        self._loop = loop
        self._client = loop.value
        self.files = RemoteFiles(loop)
        """Files and directories at the server, see `tsupervise.RemoteFiles`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes of open blocks, disconnect, and let every waiting call raise ConnectionLost.

        A process of `start` lives on with its session; one of `open_supervisor` does not.
        """
        self._loop.close()

    @property
    def session_id(self) -> str:
        """What `resume_session_id` of a later connection takes."""
        return self._client.session_id

    @property
    def environment(self) -> EnvironmentInfo | None:
        """Where processes run and what the server can do; None if it does not say."""
        return self._client.environment

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        check: bool = True,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
        timeout: float | None = None,
        **options: Unpack[RunOptions],
    ) -> Completed:
        """Run a command to its end and collect its output, see `tsupervise.Client.run`."""
        return self._loop.call(
            lambda: self._client.run(
                argv, input=input, check=check, max_output_bytes=max_output_bytes, **options
            ),
            timeout,
        )

    def start(
        self, argv: Sequence[str], *, timeout: float | None = None, **options: Unpack[StartOptions]
    ) -> OwnProcess:
        """Start a process that lives with the session, see `tsupervise.Client.start`."""
        return OwnProcess(self._loop, self._loop.call(lambda: self._client.start(argv, **options), timeout))

    def open_process(
        self, argv: Sequence[str], *, timeout: float | None = None, **options: Unpack[StartOptions]
    ) -> ProcessBlock:
        """Start a process and end it with the `with` block, see `tsupervise.Client.open_process`."""
        return ProcessBlock(
            self._loop, self._loop.hold(lambda: self._client.open_process(argv, **options), timeout)
        )

    def open_file(
        self,
        path: Path,
        mode: OpenMode = "read",
        *,
        offset: int = 0,
        unix_mode: int | None = None,
        timeout: float | None = None,
    ) -> FileBlock:
        """Open a file for the `with` block, see `tsupervise.Client.open_file`; `timeout` is for the opening."""
        held = self._loop.hold(
            lambda: self._client.open_file(path, mode, offset=offset, unix_mode=unix_mode), timeout
        )
        return FileBlock(self._loop, held)

    def http_request(
        self,
        method: str,
        url: str,
        *,
        headers: Headers = (),
        body: bytes | None = None,
        timeout_s: float | None = None,
        follow_redirects: bool = True,
        timeout: float | None = None,
    ) -> HttpBlock:
        """Send an HTTP request and read its response in the `with` block, see `tsupervise.Client.http_request`.

        `timeout` is for the answer to come, `timeout_s` for all of it.
        """
        held = self._loop.hold(
            lambda: self._client.http_request(
                method,
                url,
                headers=headers,
                body=body,
                timeout_s=timeout_s,
                follow_redirects=follow_redirects,
            ),
            timeout,
        )
        return HttpBlock(self._loop, held)

    def attach(self, name: str, *, timeout: float | None = None) -> Process:
        """A handle of a process that runs already, see `tsupervise.Client.attach`."""
        return Process(self._loop, self._loop.call(lambda: self._client.attach(name), timeout))

    def processes(self, *, timeout: float | None = None) -> list[OperatorEntry]:
        """All processes of all sessions of the daemon, see `tsupervise.Client.processes`."""
        return self._loop.call(self._client.processes, timeout)

    def status(self, *, timeout: float | None = None) -> OperatorStatusResult:
        """What the daemon is and holds."""
        return self._loop.call(self._client.status, timeout)

    def keep_session(self, kept: bool = True, *, timeout: float | None = None) -> None:
        """Let the session outlive this connection, see `tsupervise.Client.keep_session`."""
        self._loop.call(lambda: self._client.keep_session(kept), timeout)

    def end_session(self, session_id: str | None = None, *, timeout: float | None = None) -> None:
        """Kill all processes of a session and forget it, see `tsupervise.Client.end_session`."""
        self._loop.call(lambda: self._client.end_session(session_id), timeout)


@final
class ProcessBlock:
    """What `Client.open_process` returns, for one `with`."""

    def __init__(self, loop: LoopThread[async_client.Client], held: Held[RemoteProcess]) -> None:
        self._loop = loop
        self._held = held

    def __enter__(self) -> OwnProcess:
        return OwnProcess(self._loop, self._held.__enter__())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._held.__exit__(kind, error, traceback)


class Process:
    """A process at the server; every method is explained at `tsupervise.ProcessHandle`."""

    def __init__(self, loop: LoopThread[async_client.Client], process: ProcessHandle) -> None:
        self._loop = loop
        self._process = process
        self.stdin = Stdin(loop, process.stdin)
        """What the process reads, see `tsupervise.ProcessHandle.stdin`."""
        self.stdout = StreamReader(loop, process.stdout)
        """What it writes, see `tsupervise.ProcessHandle.stdout`."""
        self.stderr = StreamReader(loop, process.stderr)
        """What it writes to its stderr, see `tsupervise.ProcessHandle.stderr`."""

    def __repr__(self) -> str:
        return repr(self._process)

    @property
    def process_id(self) -> str:
        """The key of the process in its session."""
        return self._process.process_id

    @property
    def uid(self) -> str | None:
        """The daemon-unique name of the process, where the server gives one."""
        return self._process.uid

    @property
    def exit_code(self) -> int | None:
        """The exit code once the process is known to have ended."""
        return self._process.exit_code

    def events(self, *, after_seq: int = 0, timeout: float | None = None) -> Events:
        """Iterate over the events of the process; `timeout` is for each of them."""
        return Events(self._loop, self._process.events(after_seq=after_seq), timeout)

    def wait(self, *, timeout: float | None = None) -> int:
        """Wait until the process has ended and return its exit code."""
        return self._loop.call(self._process.wait, timeout)

    def wait_closed(self, *, timeout: float | None = None) -> None:
        """Wait until the process has ended and all of its output has arrived."""
        self._loop.call(self._process.wait_closed, timeout)

    def write(self, data: bytes, *, timeout: float | None = None) -> None:
        """Write to the process's stdin or terminal."""
        self._loop.call(lambda: self._process.write(data), timeout)

    def close_stdin(self, *, timeout: float | None = None) -> None:
        """Let the process see the end of its input."""
        self._loop.call(self._process.close_stdin, timeout)

    def signal(self, name: SignalName, *, timeout: float | None = None) -> None:
        """Send a signal to the process group, or on a terminal to the foreground group."""
        self._loop.call(lambda: self._process.signal(name), timeout)

    def interrupt(self, *, timeout: float | None = None) -> None:
        """Do what Ctrl-C does."""
        self._loop.call(self._process.interrupt, timeout)

    def terminate(self, *, timeout: float | None = None) -> bool:
        """Kill the process at once, and what belongs to it; return whether it was running."""
        return self._loop.call(self._process.terminate, timeout)

    def resize(self, rows: int, cols: int, *, timeout: float | None = None) -> None:
        """Change the size of the process's terminal."""
        self._loop.call(lambda: self._process.resize(rows, cols), timeout)


@final
class OwnProcess(Process):
    """A process that this client has started, see `tsupervise.RemoteProcess`."""

    def __init__(self, loop: LoopThread[async_client.Client], process: RemoteProcess) -> None:
        super().__init__(loop, process)
        self._own_process = process

    @property
    def closed(self) -> bool:
        """Whether the last event has arrived."""
        return self._own_process.closed

    def detach(self) -> None:
        """Let the process run on when its `open_process` block ends."""
        self._own_process.detach()


@final
class Stdin:
    """The stdin of a process; its `with` block ends the input."""

    def __init__(self, loop: LoopThread[async_client.Client], stream: StdinStream) -> None:
        self._loop = loop
        self._stream = stream

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def send_all(self, data: bytes, *, timeout: float | None = None) -> None:
        """Send to the process; return when the server has taken all of it."""
        self._loop.call(lambda: self._stream.send_all(data), timeout)

    def close(self, *, timeout: float | None = None) -> None:
        """Let the process see the end of its input, after all that was sent."""
        self._loop.call(self._stream.aclose, timeout)


@final
class StreamReader:
    """What a process writes to one of its streams; iterate over it for piece after piece."""

    def __init__(self, loop: LoopThread[async_client.Client], stream: OutputStream) -> None:
        self._loop = loop
        self._stream = stream

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        if not (data := self.receive_some()):
            raise StopIteration
        return data

    def receive_some(self, max_bytes: int | None = None, *, timeout: float | None = None) -> bytes:
        """Wait for output and return it; b"" once the process is closed."""
        return self._loop.call(lambda: self._stream.receive_some(max_bytes), timeout)

    def close(self) -> None:
        """Read no more. The process and its other streams do not notice."""
        self._loop.call(self._stream.aclose)


@final
class Events:
    """An iteration over the events of one process. For one thread at a time."""

    def __init__(
        self, loop: LoopThread[async_client.Client], stream: EventStream, timeout: float | None
    ) -> None:
        self._loop = loop
        self._stream = stream
        self._timeout = timeout

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        event = self._loop.call(self._next, self._timeout)
        if event is None:
            raise StopIteration
        return event

    async def _next(self) -> Event | None:
        # StopAsyncIteration would not pass through a Future as an end.
        return await anext(self._stream, None)
