"""The async client: one connection to a server, the calls that are open on it, and its processes' events.

The nursery of a client belongs to the block that opened it and holds two tasks, one that receives and
one that sends; neither ever waits for a caller. A lost connection ends every call and every stream with
`ConnectionLost`. The client knows nothing of the server's core: whatever it talks to is a channel.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, Literal, TypedDict, Unpack, cast, overload

import trio
from msgspec import UNSET

from tsupervise_protocol.base64_text import decode_base64
from tsupervise_protocol.codec import (
    MALFORMED_ID,
    MAX_MESSAGE_BYTES,
    Failure,
    Notification,
    Response,
    ServerRequest,
    decode_from_server,
    decode_notification,
    decode_result,
    encode_error,
    encode_notification,
    encode_request,
)
from tsupervise_protocol.errors import ErrorCode, MalformedMessage
from tsupervise_protocol.messages import (
    METHODS,
    ClosedNotification,
    CloseStdinParams,
    EmptyResult,
    EnvironmentInfo,
    EnvironmentStatusResult,
    EnvPolicy,
    ErrorBody,
    ExitedNotification,
    InitializeParams,
    InitializeResult,
    ListResult,
    Message,
    NoParams,
    OutputNotification,
    PtySize,
    ReadParams,
    ReadResult,
    ResizeParams,
    SignalParams,
    StartParams,
    StartResult,
    TerminateParams,
    TerminateResult,
    WriteParams,
    WriteResult,
)
from tsupervise_protocol.path_uri import file_uri

from ._background import open_background
from ._channel import CloseCode, MessageChannel
from ._event_order import EventOverflow
from ._remote_process import RemoteProcess
from ._websocket_client import open_websocket_channel
from .errors import ConnectFailed, ConnectionLost, NotSupported, ServerRefused, TooManyCalls
from .events import Closed, Exited, Output

MAX_CALLS = 1024
"""Calls that may be open at once. One more is kept for `process/terminate`, so that a program that has
used up all others can still stop what it has started."""

INITIALIZE_S = 10.0
"""For the handshake of this protocol, after the connection is up."""

ENVIRONMENT_S = 30.0
"""For `environment/info`, where a server tells nothing of its environment in the handshake."""

LAST_WORDS_S = 1.0
"""After a send has failed: how long answers that are already on their way may take to be read."""

MAX_UNSENT = 4 * MAX_CALLS
"""Messages in the outbox. Callers cannot reach it: only a server could that asks and does not listen."""

INHERIT_ALL = EnvPolicy(inherit="all", ignore_default_excludes=True, exclude=[], set={}, include_only=[])
"""The whole environment of the server."""


class StartOptions(TypedDict, total=False):
    """The keywords of `Client.start`, which explains them."""

    process_id: str | None
    cwd: str | os.PathLike[str] | None
    env: Mapping[str, str] | None
    env_policy: EnvPolicy | None
    tty: bool
    pipe_stdin: bool
    size: tuple[int, int] | None
    arg0: str | None
    metadata: Mapping[str, Any] | None
    lossless: bool


class _Pending:
    """A call that waits for its answer. Neither a result nor an error means that the connection is lost."""

    __slots__ = ("done", "error", "id", "method", "result")

    def __init__(self, call_id: int, method: str) -> None:
        self.id = call_id
        self.method = method
        self.done = trio.Event()
        self.result: Message | None = None
        self.error: ErrorBody | None = None


class Client:
    """One connection to a server. Made by `connect` and `open_client`, ended by the end of their block."""

    session_id: str
    """What `resume_session_id` of a later connection takes."""

    environment: EnvironmentInfo | None
    """Where processes run and what the server can do; None if it does not say."""

    def __init__(self, channel: MessageChannel, nursery: trio.Nursery, end_reason: Callable[[], str]) -> None:
        self._channel = channel
        self._nursery = nursery
        self._end_reason = end_reason
        self._lost: str | None = None
        self._calls: dict[int, _Pending] = {}
        self._call_ids = count(1)
        # Keyed by call, so that a call that is cancelled before it was sent is not sent. Answers to the
        # server's own requests have keys below zero.
        self._outbox: dict[int, bytes] = {}
        self._answer_keys = count(-1, -1)
        self._outbox_filled = trio.lowlevel.ParkingLot()
        self._processes: dict[str, RemoteProcess] = {}
        self._process_ids = (f"{secrets.token_hex(4)}-{number}" for number in count(1))

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
    async def call(self, method: str, params: Message = ...) -> Message: ...

    async def call(self, method: str, params: Message = NoParams()) -> Message:  # noqa: B008 (it is frozen)
        """Call a method of the server and return its result.

        A cancelled call may have been carried out nonetheless; its answer is ignored.

        Raises:
            ServerRefused: the server answered with an error.
            TooManyCalls: `MAX_CALLS` are open already.
            ConnectionLost: the connection is gone, or went before the answer came.
            ValueError: no such method, or a message above `MAX_MESSAGE_BYTES`.
        """
        pending = self._begin(method, params)
        try:
            await pending.done.wait()
        finally:
            self._free(pending)
        return self._result_of(pending)

    def _begin(self, method: str, params: Message) -> _Pending:
        # No await in here: a call either finds the connection lost, or is there to be told of the loss.
        if method not in METHODS:
            raise ValueError(f"no such method: {method!r}")
        self.raise_if_lost()
        if len(self._calls) >= MAX_CALLS:
            if method != "process/terminate":
                raise TooManyCalls(f"{MAX_CALLS} calls are open on this connection already; await some first")
            if len(self._calls) > MAX_CALLS:
                # A process that should end cannot be told so. The end of the connection will do it.
                reason = f"there was no room for a process/terminate beside {len(self._calls)} other calls"
                self._lose(reason)
                self._nursery.start_soon(self._channel.aclose, CloseCode.NORMAL, reason)
                self.raise_if_lost()
        pending = _Pending(next(self._call_ids), method)
        message = encode_request(pending.id, method, params)
        if len(message) > MAX_MESSAGE_BYTES:
            raise ValueError(
                f"{method}: a message of {len(message)} bytes, above the limit of {MAX_MESSAGE_BYTES}"
            )
        self._calls[pending.id] = pending
        self._post(pending.id, message)
        return pending

    def _post(self, key: int, message: bytes) -> None:
        self._outbox[key] = message
        self._outbox_filled.unpark_all()

    def _free(self, pending: _Pending) -> bool:
        """Forget a call; return whether the server has never heard of it and never will."""
        self._calls.pop(pending.id, None)
        return self._outbox.pop(pending.id, None) is not None

    def _result_of(self, pending: _Pending) -> Message:
        if pending.error is not None:
            raise ServerRefused(pending.method, pending.error.code, pending.error.message)
        if pending.result is None:
            self.raise_if_lost()
        assert pending.result is not None, "a call that is done has an answer, or the connection is lost"
        return pending.result

    @property
    def is_lost(self) -> bool:
        """Whether the connection is gone. A client does not come back from that."""
        return self._lost is not None

    def raise_if_lost(self) -> None:
        """Raise ConnectionLost, with the reason, if the connection is gone."""
        if self._lost is not None:
            raise ConnectionLost(f"the connection is lost: {self._lost}; connect again")

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
            lossless: rather than lose output to a slow reader of `events`, stop receiving until that
                reader has caught up. It holds up every other call and process of this connection: meant for
                one that serves one process, whose `events` are being read.

        Raises:
            ServerRefused: the server cannot start it, see its text.
            ValueError: a relative `cwd`, or a `process_id` that this client uses already.
            ConnectionLost: whether the process was started is not known.
        """
        if process_id is None:
            process_id = next(self._process_ids)
        elif process_id in self._processes:
            raise ValueError(f"this client follows a process {process_id!r} already; take another id")
        if env is None and env_policy is None:
            env_policy = INHERIT_ALL
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
        )
        pending = self._begin("process/start", params)
        process = self._processes[process_id] = RemoteProcess(self, process_id, lossless=lossless)
        try:
            await pending.done.wait()
        except trio.Cancelled:
            # In the outbox still, the start can be taken back. Else it runs to its end without us.
            if pending.id not in self._outbox and self._lost is None:
                self._nursery.start_soon(self._end_abandoned_start, pending, process)
            else:
                self._free(pending)
                self._forget(process)
            raise
        self._free(pending)
        try:
            result = cast("StartResult", self._result_of(pending))
        except BaseException:
            self._forget(process)
            raise
        process.uid = None if result.uid is UNSET else result.uid
        return process

    @asynccontextmanager
    async def open_process(
        self, argv: Sequence[str], **options: Unpack[StartOptions]
    ) -> AsyncGenerator[RemoteProcess]:
        """Start a process, see `start`, and end it with the block: nothing of it is left behind."""
        process = await self.start(argv, **options)
        try:
            yield process
        finally:
            await process.end()

    async def _end_abandoned_start(self, pending: _Pending, process: RemoteProcess) -> None:
        await pending.done.wait()
        self._free(pending)
        if pending.result is not None:
            await process.end()
        self._forget(process)

    def _cwd_uri(self, cwd: str | os.PathLike[str] | None) -> str:
        if cwd is None:
            return (self.environment and self.environment.cwd) or "file:///"
        path = os.fspath(cwd)
        if path.startswith("file:"):
            return path
        if not path.startswith("/"):
            raise ValueError(f"cwd must be an absolute path of the server's or a file URI, got {path!r}")
        return file_uri(os.fsencode(path))

    def require(self, capability: str, what: str) -> None:
        """Raise NotSupported unless the server announces a capability.

        Args:
            capability: its name in `environment.capabilities`.
            what: what the server is asked to do, for the text: `resize a terminal`.
        """
        if self.environment is None or not self.environment.capabilities.get(capability, False):
            raise NotSupported(f"this server cannot {what}: it does not announce {capability!r}")

    # --- the two tasks -------------------------------------------------------------------------------

    async def _receive(self) -> None:
        try:
            while messages := await self._channel.receive():
                for message in messages:
                    slow = self._take(message)
                    if slow is not None:
                        await slow.wait_until_read()
        except MalformedMessage as error:
            self._lose(f"the server broke the protocol: {error}")
            await self._channel.aclose(CloseCode.PROTOCOL_ERROR, str(error))
        else:
            self._lose(self._end_reason())

    async def _send(self) -> None:
        while True:
            while not self._outbox:
                await self._outbox_filled.park()
            messages = list(self._outbox.values())
            self._outbox.clear()
            try:
                await self._channel.send(messages)
            except trio.BrokenResourceError:
                break
        # Answers that have arrived before the end count: the receiver tells of the loss once it has them.
        await trio.sleep(LAST_WORDS_S)
        self._lose(self._end_reason())

    def _take(self, data: bytes) -> RemoteProcess | None:
        """Handle one message; return the process to wait for before the next one, if there is one."""
        message = decode_from_server(data)
        if isinstance(message, Notification):
            return self._take_notification(message)
        if isinstance(message, ServerRequest):
            if len(self._outbox) >= MAX_UNSENT:
                raise MalformedMessage("the server asks more than it takes answers for")
            refusal = encode_error(
                message.id, ErrorCode.METHOD_NOT_FOUND, f"this client has no method {message.method[:200]!r}"
            )
            self._post(next(self._answer_keys), refusal)
            return None
        if isinstance(message, Failure) and message.id == MALFORMED_ID:
            # It names no call, so whoever waits for the answer would wait for ever.
            raise MalformedMessage(f"it could not read a message of ours: {message.error.message}")
        pending = self._calls.get(message.id) if isinstance(message.id, int) else None
        if pending is None or pending.done.is_set():
            return None
        if isinstance(message, Response):
            pending.result = decode_result(pending.method, message.result)
        else:
            pending.error = message.error
        pending.done.set()
        return None

    def _take_notification(self, notification: Notification) -> RemoteProcess | None:
        match decode_notification(notification):
            case OutputNotification(process_id=process_id, seq=seq, stream=stream, chunk=chunk):
                try:
                    event = Output(seq, stream, decode_base64(chunk))
                except ValueError as error:
                    raise MalformedMessage(f"process/output {seq} of {process_id!r}: {error}") from None
            case ExitedNotification(process_id=process_id, seq=seq, exit_code=code) as exited:
                term_signal = None if exited.term_signal is UNSET else exited.term_signal
                denied = None if exited.sandbox_denied is UNSET else exited.sandbox_denied
                event = Exited(seq, code, term_signal, denied)
            case ClosedNotification(process_id=process_id, seq=seq):
                event = Closed(seq)
            case _:
                return None
        process = self._processes.get(process_id)
        if process is None:
            return None
        try:
            process.take(event)
        except EventOverflow as overflow:
            process.fail(f"its events cannot be put in order any more: {overflow}; terminate it")
            self._forget(process)
        else:
            if process.closed:
                self._forget(process)
        return process if process.is_read_too_slowly else None

    def _forget(self, process: RemoteProcess) -> None:
        # The id may belong to a later process by now.
        if self._processes.get(process.process_id) is process:
            del self._processes[process.process_id]

    def _lose(self, reason: str) -> None:
        if self._lost is not None:
            return
        self._lost = reason
        self._outbox.clear()
        for pending in self._calls.values():
            pending.done.set()
        for process in self._processes.values():
            process.wake()

    # --- the handshake -------------------------------------------------------------------------------

    async def _initialize(self, client_name: str, resume_session_id: str | None) -> None:
        params = InitializeParams(client_name=client_name, resume_session_id=resume_session_id)
        try:
            with trio.fail_after(INITIALIZE_S):
                result = await self.call("initialize", params)
            self._post(next(self._answer_keys), encode_notification("initialized"))
            if resume_session_id not in (None, result.session_id):
                raise ConnectFailed(f"asked for session {resume_session_id!r}, got {result.session_id!r}")
            self.session_id = result.session_id
            with trio.fail_after(ENVIRONMENT_S):
                self.environment = result.environment_info or await self._ask_for_environment()
        except trio.TooSlowError:
            raise ConnectFailed("the server accepted the connection but does not answer") from None

    async def _ask_for_environment(self) -> EnvironmentInfo | None:
        try:
            return await self.call("environment/info")
        except ServerRefused as refusal:
            if refusal.code == ErrorCode.METHOD_NOT_FOUND:
                return None
            raise


@asynccontextmanager
async def open_client(
    channel: MessageChannel,
    *,
    client_name: str = "tsupervise",
    resume_session_id: str | None = None,
    end_reason: Callable[[], str] = lambda: "the other end of the channel has closed",
) -> AsyncGenerator[Client]:
    """Speak with the server at the other end of a channel; close the channel at the end of the block.

    Args:
        channel: it belongs to the client from now on.
        client_name: what the server may log.
        resume_session_id: the session to go on with, a new one if None.
        end_reason: says how the channel ended, once it has, for the text of `ConnectionLost`.

    Raises:
        ConnectFailed: the handshake was not answered in time.
        ServerRefused: the handshake was refused, as with a session that is not known any more.
    """
    async with open_background(outlast_cancel=True) as nursery:
        client = Client(channel, nursery, end_reason)
        nursery.start_soon(client._receive)  # pyright: ignore[reportPrivateUsage]
        nursery.start_soon(client._send)  # pyright: ignore[reportPrivateUsage]
        try:
            await client._initialize(client_name, resume_session_id)  # pyright: ignore[reportPrivateUsage]
            yield client
        finally:
            client._lose("its block has ended")  # pyright: ignore[reportPrivateUsage]
            await channel.aclose(CloseCode.NORMAL, "")


@asynccontextmanager
async def connect(
    url: str, *, client_name: str = "tsupervise", resume_session_id: str | None = None
) -> AsyncGenerator[Client]:
    """Connect to a server and disconnect at the end of the block.

    The session outlives the connection by the server's detached time, and so do processes that were
    started by `Client.start` and have not ended.

    Args:
        url: `ws://HOST:PORT`, as a server prints it.
        client_name: what the server may log.
        resume_session_id: the session to go on with, a new one if None.

    Raises:
        ConnectFailed: nobody listens there, or not for this protocol, or no answer came in time.
        ServerRefused: the handshake was refused, as with a session that is not known any more.
    """
    async with (
        open_websocket_channel(url) as channel,
        open_client(
            channel,
            client_name=client_name,
            resume_session_id=resume_session_id,
            end_reason=lambda: channel.end_reason,
        ) as client,
    ):
        yield client
