"""The async client: calls, and processes to start, at a server that is reached by one connection at a time.

A client belongs to the block that opened it, and so do its tasks. What happens below a call, how a
connection is made, lost and replaced, is `_lifeline`'s business; here is decided what a loss means for
each call. The client knows nothing of the server's core: whatever it talks to is a channel.
"""

from __future__ import annotations

import os
import secrets
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from functools import partial
from itertools import count
from typing import Any, Literal, TypedDict, TypeVarTuple, Unpack, cast, overload

import trio
from msgspec import UNSET

from tsupervise_protocol.errors import ErrorCode, MalformedMessage
from tsupervise_protocol.file_messages import OpenMode
from tsupervise_protocol.messages import (
    CloseStdinParams,
    EmptyResult,
    EnvironmentInfo,
    EnvironmentStatusResult,
    EnvPolicy,
    InitializeParams,
    InitializeResult,
    Limits,
    ListResult,
    Message,
    NoParams,
    OperatorCloseStdinParams,
    OperatorEntry,
    OperatorListResult,
    OperatorReadParams,
    OperatorResizeParams,
    OperatorSignalParams,
    OperatorStatusResult,
    OperatorTerminateParams,
    OperatorWaitParams,
    OperatorWriteParams,
    PtySize,
    ReadParams,
    ReadResult,
    ResizeParams,
    SessionEndParams,
    SessionKeepParams,
    SignalParams,
    StartParams,
    StartResult,
    TerminateParams,
    TerminateResult,
    WriteParams,
    WriteResult,
)
from tsupervise_protocol.methods import METHODS
from tsupervise_protocol.path_uri import file_uri

from ._background import open_background
from ._calls import Pending, millis
from ._channel import ClientChannel
from ._event_order import EventOverflow, WindowLost
from ._http_call import Headers, HttpResponse, http_request
from ._lifeline import ChannelOpener, Lifeline
from ._link import Link
from ._observed_process import ObservedProcess, entry_named
from ._process_handle import ProcessHandle
from ._process_table import ProcessTable
from ._recovery import RECOVERY_S
from ._remote_file import RemoteFile, WritesInFlight, open_file
from ._remote_files import Path, RemoteFiles, text_of, uri_of
from ._remote_process import RemoteProcess
from ._run_command import MAX_OUTPUT_BYTES, complete, raise_if_failed
from ._way_in import Credentials
from ._websocket_client import SILENCE_S, open_websocket_channel
from .completed import Completed
from .errors import (
    ConnectionLost,
    NoSuchProcess,
    NotSupported,
    OutcomeUnknown,
    ProcessFailed,
    ServerRefused,
    TooManyCalls,
)

Ts = TypeVarTuple("Ts")

MAX_CALLS = 1024
"""Calls that may be open at once. One more is kept for `process/terminate`, so that a program that has
used up all others can still stop what it has started."""

REPEATED = frozenset(
    {
        *("process/read", "process/write", "operator/read", "operator/write"),
        *("operator/wait", "operator/list", "operator/status", "session/keep"),
        *("process/list", "environment/info", "environment/status"),
        *("fs/readFile", "fs/getMetadata", "fs/canonicalize", "fs/readDirectory", "fs/walk"),
        *("environmentConfig/read", "capabilityRoots/discoverV1"),
    }
)
"""What is asked again after a disconnect: a read changes nothing, a write carries an id by which the server
knows the second one, and keeping a session twice is keeping it. Whatever else was sent and not answered is
not known to have happened."""

INHERIT_ALL = EnvPolicy(inherit="all", ignore_default_excludes=True, exclude=[], set={}, include_only=[])
"""The whole environment of the server."""


class RunOptions(TypedDict, total=False):
    """The keywords that `Client.run` and `Client.start` share; the latter explains them."""

    process_id: str | None
    cwd: str | os.PathLike[str] | None
    env: Mapping[str, str] | None
    env_policy: EnvPolicy | None
    tty: bool
    size: tuple[int, int] | None
    arg0: str | None
    metadata: Mapping[str, Any] | None
    timeout_s: float | None
    limits: Limits | None


class StartOptions(RunOptions, total=False):
    """The keywords of `Client.start`, which explains them."""

    pipe_stdin: bool
    lossless: bool


class Client:
    """A session at a server. Made by `connect` and `open_client`, ended by the end of their block."""

    def __init__(
        self, open_channel: ChannelOpener, nursery: trio.Nursery, *, client_name: str, recovery_s: float
    ) -> None:
        self._nursery = nursery
        self._processes = ProcessTable()
        self._lifeline = Lifeline(
            open_channel, self._processes, nursery, client_name=client_name, recovery_s=recovery_s
        )
        self._open_calls = 0
        self._process_ids = (f"{secrets.token_hex(4)}-{number}" for number in count(1))
        self.files = RemoteFiles(self)
        """Files and directories at the server."""
        self._writes = WritesInFlight()

    @property
    def session_id(self) -> str:
        """What `resume_session_id` of a later connection takes."""
        assert self._lifeline.session_id is not None, "there is no client before the handshake"
        return self._lifeline.session_id

    @property
    def environment(self) -> EnvironmentInfo | None:
        """Where processes run and what the server can do; None if it does not say."""
        return self._lifeline.environment

    # --- calls ---------------------------------------------------------------------------------------

    @overload
    async def call(self, method: Literal["environment/info"]) -> EnvironmentInfo: ...
    @overload
    async def call(self, method: Literal["environment/status"]) -> EnvironmentStatusResult: ...
    @overload
    async def call(self, method: Literal["process/list"]) -> ListResult: ...
    @overload
    async def call(self, method: Literal["initialize"], params: InitializeParams) -> InitializeResult: ...
    @overload
    async def call(self, method: Literal["process/start"], params: StartParams) -> StartResult: ...
    @overload
    async def call(self, method: Literal["process/read"], params: ReadParams) -> ReadResult: ...
    @overload
    async def call(self, method: Literal["process/write"], params: WriteParams) -> WriteResult: ...
    @overload
    async def call(self, method: Literal["process/signal"], params: SignalParams) -> EmptyResult: ...
    @overload
    async def call(
        self, method: Literal["process/terminate"], params: TerminateParams
    ) -> TerminateResult: ...
    @overload
    async def call(self, method: Literal["process/resize"], params: ResizeParams) -> EmptyResult: ...
    @overload
    async def call(self, method: Literal["process/closeStdin"], params: CloseStdinParams) -> WriteResult: ...
    @overload
    async def call(self, method: Literal["session/keep"], params: SessionKeepParams) -> EmptyResult: ...
    @overload
    async def call(self, method: Literal["session/end"], params: SessionEndParams) -> EmptyResult: ...
    @overload
    async def call(self, method: Literal["operator/status"]) -> OperatorStatusResult: ...
    @overload
    async def call(self, method: Literal["operator/list"]) -> OperatorListResult: ...
    @overload
    async def call(self, method: Literal["operator/wait"], params: OperatorWaitParams) -> OperatorEntry: ...
    @overload
    async def call(self, method: Literal["operator/read"], params: OperatorReadParams) -> ReadResult: ...
    @overload
    async def call(self, method: Literal["operator/write"], params: OperatorWriteParams) -> WriteResult: ...
    @overload
    async def call(self, method: Literal["operator/signal"], params: OperatorSignalParams) -> EmptyResult: ...
    @overload
    async def call(
        self, method: Literal["operator/terminate"], params: OperatorTerminateParams
    ) -> TerminateResult: ...
    @overload
    async def call(self, method: Literal["operator/resize"], params: OperatorResizeParams) -> EmptyResult: ...
    @overload
    async def call(
        self, method: Literal["operator/closeStdin"], params: OperatorCloseStdinParams
    ) -> WriteResult: ...
    @overload
    async def call(self, method: str, params: Message = ...) -> Message: ...

    async def call(self, method: str, params: Message = NoParams()) -> Message:  # noqa: B008 (it is frozen)
        """Call a method of the server and return its result.

        A cancelled call may have been carried out nonetheless; its answer is ignored. Without a
        connection the call waits until there is one.

        Raises:
            ServerRefused: the server answered with an error.
            TooManyCalls: `MAX_CALLS` are open already.
            OutcomeUnknown: the connection went before the answer came, and the call is none of `REPEATED`.
            ConnectionLost: the connection is gone for good.
            ValueError: no such method, or a message above `MAX_MESSAGE_BYTES`.
        """
        if method not in METHODS:
            raise ValueError(f"no such method: {method!r}")
        with self.slot(method):
            while True:
                link = await self._lifeline.ready()
                pending = await link.settle(method, params)
                if pending.was_answered:
                    return link.result_of(pending)
                if pending.was_sent and method not in REPEATED:
                    raise self.outcome_unknown(method)

    async def ready(self) -> Link:
        """The connection in use, for what belongs to one; there is no await between that and the end of this.

        Raises:
            ConnectionLost: there is none and will be none.
        """
        return await self._lifeline.ready()

    async def call_on(self, link: Link, method: str, params: Message) -> Message:
        """Call a method on one connection and no other.

        Raises:
            ServerRefused, TooManyCalls: as `call`.
            Disconnected: the connection has ended.
        """
        with self.slot(method):
            return await link.call(method, params)

    def in_background(self, function: Callable[[*Ts], Awaitable[None]], *args: *Ts) -> None:
        """Let something be done that nobody waits for, and that does not raise; not once the connection is lost."""
        if not self.is_lost:
            self._nursery.start_soon(function, *args)

    @contextmanager
    def slot(self, method: str) -> Generator[None]:
        """Count a call that is open, also while it waits for a connection."""
        self.raise_if_lost()
        if self._open_calls >= MAX_CALLS:
            if method != "process/terminate":
                raise TooManyCalls(f"{MAX_CALLS} calls are open on this connection already; await some first")
            if self._open_calls > MAX_CALLS:
                # A process that should end cannot be told so. The end of the connection will do it.
                self._lifeline.fail(
                    f"there was no room for a process/terminate beside {self._open_calls} other calls"
                )
                self.raise_if_lost()
        self._open_calls += 1
        try:
            yield
        finally:
            self._open_calls -= 1

    def outcome_unknown(self, method: str) -> Exception:
        """The error for a call whose answer is lost."""
        if self._lifeline.failure is not None:
            return ConnectionLost(self._lifeline.failure)
        return OutcomeUnknown(
            f"{method}: the connection was lost before the answer came, and this is not repeated by itself"
        )

    @property
    def is_lost(self) -> bool:
        """Whether the connection is gone for good. A client does not come back from that."""
        return self._lifeline.failure is not None

    async def wait_connected(self, connected: bool = True) -> None:
        """Wait until there is a connection, or, if `connected` is false, until it is being recovered.

        It also returns when the connection is gone for good, see `is_lost`.
        """
        await trio.lowlevel.checkpoint()
        await self._lifeline.wait_connected(connected)

    def give_up(self, reason: str) -> None:
        """End the connection for good, as when nobody wants to wait for it to come back. The session lives on.

        Args:
            reason: for the text of ConnectionLost.
        """
        self._lifeline.fail(reason)

    def raise_if_lost(self) -> None:
        """Raise ConnectionLost, with the reason, if the connection is gone for good."""
        if self._lifeline.failure is not None:
            raise ConnectionLost(self._lifeline.failure)

    # --- processes -----------------------------------------------------------------------------------

    async def start(
        self,
        argv: Sequence[str],
        *,
        process_id: str | None = None,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        env_policy: EnvPolicy | None = None,
        tty: bool = False,
        pipe_stdin: bool = False,
        size: tuple[int, int] | None = None,
        arg0: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        lossless: bool = False,
        timeout_s: float | None = None,
        limits: Limits | None = None,
    ) -> RemoteProcess:
        """Start a process that lives until it ends, is terminated, or its session ends.

        If the caller is cancelled meanwhile, the process is terminated as soon as it has started.

        Args:
            argv: the program and its arguments. A bare name is looked up in the PATH of the process.
            process_id: the key of the process in its session; made up if None.
            cwd: an absolute path or a file URI; None for the server's own working directory.
            env: without `env_policy` the whole environment, with it what is laid over it; None for all
                of the server's environment.
            env_policy: how to make the environment from the server's.
            tty: run it on a terminal; its output is one stream then.
            pipe_stdin: without `tty`, whether it can be written to; if not, it reads from /dev/null.
            size: rows and columns of the terminal; None for 24 x 80.
            arg0: what the program is told as its own name, if not `argv[0]`.
            metadata: labels of the caller's own.
            lossless: rather than lose output to a slow reader of `events`, `stdout` or `stderr`, stop
                receiving until that reader has caught up. It holds up every other call and process of this
                connection: meant for one that serves one process, whose output is being read.
            timeout_s: how long after its start it is killed by the server, in seconds, with all that comes of it;
                `Exited.reason` is `timeout` then. None for never.
            limits: bounds on memory, processes, CPU time and other things. Which of them the server can
                enforce its capabilities say (`tsuperviseLimitMemoryBytes` and so on).

        Raises:
            ServerRefused: the server cannot start it, or cannot enforce a limit, see its text.
            NotSupported: the server knows no limits.
            ValueError: a relative `cwd`, a `timeout_s` that is not above 0, or a `process_id` that this client
                uses already.
            OutcomeUnknown: the connection went before the answer came. If the process was started, it is
                terminated once there is a connection again; until then its id is taken.
            ConnectionLost: whether the process was started is not known.
        """
        if process_id is None:
            process_id = next(self._process_ids)
        if env is None and env_policy is None:
            env_policy = INHERIT_ALL
        if timeout_s is not None or limits is not None:
            self.require("tsuperviseLimits", "limit a process")
        params = StartParams(
            process_id=process_id,
            argv=list(argv),
            cwd=self._cwd_uri(cwd),
            env=dict(env or {}),
            env_policy=env_policy,
            tty=tty,
            pipe_stdin=pipe_stdin,
            size=None if size is None else PtySize(rows=size[0], cols=size[1]),
            arg0=arg0,
            metadata=None if metadata is None else dict(metadata),
            timeout_ms=None if timeout_s is None else millis(timeout_s),
            limits=limits,
        )
        with self.slot("process/start"):
            while True:
                link = await self._lifeline.ready()
                if process_id in self._processes:
                    raise ValueError(f"this client follows a process {process_id!r} already; take another id")
                pending = link.begin("process/start", params)
                process = RemoteProcess(self, process_id, tty=tty, lossless=lossless)
                self._processes.add(process)
                try:
                    await pending.done.wait()
                except trio.Cancelled:
                    # Not sent yet, the start can be taken back. Else it runs to its end without us.
                    if link.take_back(pending) or self.is_lost:
                        self._processes.forget(process)
                    else:
                        self._nursery.start_soon(self._end_abandoned_start, link, pending, process)
                    raise
                link.free(pending)
                if pending.was_answered:
                    break
                if pending.was_sent:
                    self.terminate_later(process)
                    raise self.outcome_unknown("process/start")
                self._processes.forget(process)
        try:
            result = cast("StartResult", link.result_of(pending))
        except BaseException:
            self._processes.forget(process)
            raise
        process.is_confirmed = True
        process.uid = None if result.uid is UNSET else result.uid
        return process

    @asynccontextmanager
    async def open_process(
        self, argv: Sequence[str], **options: Unpack[StartOptions]
    ) -> AsyncGenerator[RemoteProcess]:
        """Start a process, see `start`, and end it with the block: nothing of it is left behind.

        Unless `RemoteProcess.detach` is called in the block: then it runs on.
        """
        process = await self.start(argv, **options)
        try:
            yield process
        finally:
            if not process.is_detached:
                await process.end()

    async def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        check: bool = True,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
        **options: Unpack[RunOptions],
    ) -> Completed:
        """Run a command to its end, collect what it writes, and leave nothing of it behind.

        It ends when the command has ended and nobody holds its output open any more. If it is cancelled
        meanwhile, the command is terminated.

        Args:
            argv: as for `start`, and so are all other keywords.
            input: what the command reads, and then its end; it need not read all of it. None for
                /dev/null, and on a terminal for a keyboard that nobody touches.
            check: whether an end with anything but 0 is an error.
            max_output_bytes: how much output is collected, both streams together.

        Raises:
            CommandFailed, CommandCrashed: with `check`, it did not end with 0, or a signal ended it.
            OutcomeUnknown: the server does not know how it ended, or whether it was started.
            TooMuchOutput: it wrote more, and was terminated.
            NotSupported: there is `input`, no terminal, and a server that cannot end the input of a
                process. Nothing was started.
            ServerRefused, ValueError, ConnectionLost, ProcessFailed: as `start` and `events`.
        """
        pipe_stdin = input is not None and not options.get("tty", False)
        if pipe_stdin:
            self.require(
                "tsuperviseCloseStdin", "end the input of a process, which would wait for it for ever"
            )
        async with self.open_process(argv, pipe_stdin=pipe_stdin, lossless=True, **options) as process:
            completed = await complete(process, argv, input, max_output_bytes)
        if check:
            raise_if_failed(completed)
        return completed

    # --- files and HTTP ------------------------------------------------------------------------------

    def open_file(
        self, path: Path, mode: OpenMode = "read", *, offset: int = 0, unix_mode: int | None = None
    ) -> AbstractAsyncContextManager[RemoteFile]:
        """Open a file at the server for the time of a block, to read or write it in blocks of 1 MiB.

        A lost connection is no event: see `RemoteFile`. At the end of the block everything is written, unless
        it is left by an error.

        Args:
            path: of a regular file, see `files`.
            mode: `read`; `replace` to write it anew: it is made, or emptied at once, and keeps its mode and its
                links; `update` to write into it and keep what is not written over.
            offset: where reading or writing begins, in bytes.
            unix_mode: of a file that is made, 0 to 0o777; the daemon's umask is taken off. None for the usual one.

        Raises:
            FileError: the server cannot open it; FileNotFoundError and the like where the cause has one.
            NotSupported: it cannot be written in that mode, or made with one, there.
        """
        return open_file(self, self._writes, text_of(path), uri_of(path), mode, offset, unix_mode)

    def http_request(
        self,
        method: str,
        url: str,
        *,
        headers: Headers = (),
        body: bytes | None = None,
        timeout_s: float | None = None,
        follow_redirects: bool = True,
    ) -> AbstractAsyncContextManager[HttpResponse]:
        """Send an HTTP request from where the server is, and read the response in the block.

        It is not repeated after a lost connection, unless it was never sent.

        Args:
            method: such as GET.
            url: absolute, `http:` or `https:`.
            headers: names and values, in order; a value may be an `EnvHeader`.
            body: what is sent; None for nothing.
            timeout_s: for all of it, the body of the response included, in seconds; None for no bound.
            follow_redirects: else a redirect is the response.

        Raises:
            ServerRefused: the request is not valid, or there was no response.
            OutcomeUnknown: the connection was lost before the answer came.
            NotSupported: there is an `EnvHeader`, and the server has none.
        """
        return http_request(self, method, url, headers, body, timeout_s, follow_redirects)

    # --- the daemon ----------------------------------------------------------------------------------

    async def processes(self) -> list[OperatorEntry]:
        """All processes of all sessions of the daemon, in order of their start.

        Raises:
            NotSupported: the server has no operator's methods.
            ServerRefused: this user is not the one that the daemon runs as.
        """
        self.require("tsuperviseOperator", "list the processes of all sessions")
        return (await self.call("operator/list")).processes

    async def status(self) -> OperatorStatusResult:
        """What the daemon is and holds.

        Raises:
            NotSupported, ServerRefused: as `processes`.
        """
        self.require("tsuperviseOperator", "tell its status")
        return await self.call("operator/status")

    async def attach(self, name: str) -> ProcessHandle:
        """A handle of a process that runs already, or has ended and is retained.

        Its events begin with what the daemon retains; nothing happens to the process when the handle is
        left alone.

        Args:
            name: a process id, of this session or another one, or a uid. Of several with the same
                process id the one that lives is meant, or else the newest.

        Raises:
            NoSuchProcess: no process is meant by that, or several that live.
        """
        try:
            entry = entry_named(await self.processes(), name)
        except (NotSupported, ServerRefused) as refusal:
            if isinstance(refusal, ServerRefused) and refusal.code != ErrorCode.NOT_ALLOWED:
                raise
            # Then there is this session and nothing else.
            return self._processes.get(name) or await self._attach_own(name, tty=False)
        if entry.session_id != self.session_id:
            return ObservedProcess(self, entry)
        process = self._processes.get(entry.process_id) or await self._attach_own(
            entry.process_id, tty=entry.tty
        )
        process.uid = entry.uid
        return process

    async def _attach_own(self, process_id: str, *, tty: bool) -> RemoteProcess:
        # Another client may have written to it, in this session, and numbered its writes from 1.
        process = RemoteProcess(self, process_id, tty=tty, write_id_prefix=f"{secrets.token_hex(8)}-")
        process.begin_to_miss()
        # What arrives from now on waits in it for what came before.
        self._processes.add(process)
        try:
            answer = await self.call("process/read", process.ask_for_missed())
            process.begin_at(answer)
            process.catch_up(answer)
            while process.is_missing:
                process.catch_up(await self.call("process/read", process.ask_for_missed()))
        except BaseException as error:
            self._processes.forget(process)
            # Another task may have asked for the same process and got this handle of it.
            process.fail("to attach to it came to nothing; attach again")
            if isinstance(error, ServerRefused) and error.code == ErrorCode.INVALID_REQUEST:
                raise NoSuchProcess(process_id, error.message) from None
            if isinstance(error, WindowLost | EventOverflow | MalformedMessage):
                raise ProcessFailed(process_id, f"it cannot be followed: {error}") from None
            raise
        process.is_confirmed = True
        if process.closed:
            self._processes.forget(process)
        return process

    async def keep_session(self, kept: bool = True) -> None:
        """Let the session and its processes outlive this connection until the session is ended.

        A kept session that nobody is connected to ends by itself only when all of its processes have
        been closed and forgotten.

        Raises:
            NotSupported: the server has no `session/keep`.
            ServerRefused: this user is not the one that the daemon runs as.
        """
        self.require("tsuperviseSessions", "keep a session")
        await self.call("session/keep", SessionKeepParams(kept=kept))

    async def end_session(self, session_id: str | None = None) -> None:
        """Kill all processes of a session and forget it; return when that is done.

        Args:
            session_id: None for the session of this client, which can start nothing any more then.

        Raises:
            NotSupported: the server has no `session/end`.
            ServerRefused: there is no such session, or it is another one and this user is not the one
                that the daemon runs as.
        """
        self.require("tsuperviseSessions", "end a session")
        await self.call("session/end", SessionEndParams(session_id=session_id))

    async def _end_abandoned_start(self, link: Link, pending: Pending, process: RemoteProcess) -> None:
        """See a start to its end whose caller has gone, and then the process to its own."""
        await pending.done.wait()
        link.free(pending)
        if pending.error is None and pending.was_sent:
            await self._lifeline.clean_up(process)
        self._processes.forget(process)

    def terminate_later(self, process: RemoteProcess) -> None:
        """Terminate a process, however long it takes until there is a connection to do it."""
        if self.is_lost:
            self._processes.forget(process)
        else:
            self._nursery.start_soon(self._lifeline.clean_up, process)

    def _cwd_uri(self, cwd: str | os.PathLike[str] | None) -> str:
        if cwd is None:
            return (self.environment and self.environment.cwd) or "file:///"
        path = os.fspath(cwd)
        if path.startswith("file:"):
            return path
        if not path.startswith("/"):
            raise ValueError(f"cwd must be an absolute path of the server's or a file URI, got {path!r}")
        return file_uri(os.fsencode(path))

    def has(self, capability: str) -> bool:
        """Whether the server announces a capability, by its name in `environment.capabilities`."""
        return self.environment is not None and self.environment.capabilities.get(capability, False)

    def require(self, capability: str, what: str) -> None:
        """Raise NotSupported unless the server announces a capability.

        Args:
            capability: its name in `environment.capabilities`.
            what: what the server is asked to do, for the text: `resize a terminal`.
        """
        if not self.has(capability):
            raise NotSupported(f"this server cannot {what}: it does not announce {capability!r}")


@asynccontextmanager
async def open_client(
    channel: ClientChannel, *, client_name: str = "tsupervise", resume_session_id: str | None = None
) -> AsyncGenerator[Client]:
    """Speak with the server at the other end of a channel; close the channel at the end of the block.

    There is no other channel to come back by, so that the end of this one is the end of the client.

    Args:
        channel: it belongs to the client from now on.
        client_name: what the server may log.
        resume_session_id: the session to go on with, a new one if None.

    Raises:
        ConnectFailed: the handshake was not answered in time.
        ServerRefused: the handshake was refused, as with a session that is not known any more.
    """
    async with _open(lambda: nullcontext(channel), client_name, resume_session_id, 0.0) as client:
        yield client


@asynccontextmanager
async def connect(
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
) -> AsyncGenerator[Client]:
    """Connect to a server and disconnect at the end of the block.

    When the connection is lost, the client comes back by itself: calls wait meanwhile, processes and
    their streams go on where they were. The session outlives the connection by the server's detached
    time, and so do processes that were started by `Client.start` and have not ended.

    Args:
        url: `ws://HOST:PORT`, `wss://HOST:PORT` or `unix:///PATH`, as a server prints it.
        client_name: what the server may log.
        resume_session_id: the session to go on with, a new one if None.
        token: what the server's `--ws-auth` asks for.
        token_file: a file with it instead, read anew for each connection, so that it may be renewed.
        ssl_context: whom to believe with `wss://`; None for the authorities that this system trusts.
        insecure_token: send the token to another machine even if it is not encrypted.
        recovery_s: how long the client tries to come back after each disconnect, in seconds, before it
            fails for good; 0 to fail at once.
        silence_s: how long the server may say nothing, though it was pinged, before the connection is taken
            for lost, in seconds; `math.inf` for never.

    Raises:
        ConnectFailed: nobody listens there, or not for this protocol, or no answer came in time.
        ServerRefused: the handshake was refused, as with a session that is not known any more.
        ValueError: `silence_s` is not above 0; both `token` and `token_file`, or a token that no header can carry.
    """
    if not silence_s > 0:
        raise ValueError(f"silence_s must be above 0 (math.inf for never), got {silence_s!r}")
    credentials = Credentials(token, token_file, ssl_context, insecure_token)
    opener = partial(open_websocket_channel, url, silence_s=silence_s, credentials=credentials)
    async with _open(opener, client_name, resume_session_id, recovery_s) as client:
        yield client


@asynccontextmanager
async def _open(
    open_channel: ChannelOpener, client_name: str, resume_session_id: str | None, recovery_s: float
) -> AsyncGenerator[Client]:
    async with open_background(outlast_cancel=True) as nursery:
        client = Client(open_channel, nursery, client_name=client_name, recovery_s=recovery_s)
        lifeline = client._lifeline  # pyright: ignore[reportPrivateUsage]
        await lifeline.open(resume_session_id)
        try:
            yield client
        finally:
            lifeline.fail("its block has ended")
