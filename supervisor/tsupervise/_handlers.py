"""What each method does: the table of all rows, and the handlers of the handshake, processes and sessions."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import trio

from tsupervise_protocol.base64_text import decode_base64
from tsupervise_protocol.errors import ErrorCode, RpcError
from tsupervise_protocol.messages import (
    CloseStdinParams,
    EmptyResult,
    EnvironmentInfo,
    EnvironmentStatusResult,
    InitializeParams,
    InitializeResult,
    ListResult,
    Message,
    NoParams,
    OperatorCloseStdinParams,
    OperatorListResult,
    OperatorReadParams,
    OperatorResizeParams,
    OperatorSignalParams,
    OperatorTerminateParams,
    OperatorWaitParams,
    OperatorWriteParams,
    ReadParams,
    ReadRange,
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

from ._child_environment import child_environment
from ._disk import native_path, refuse_sandbox
from ._environment_handlers import ENVIRONMENT_ROWS
from ._file_handlers import FILE_ROWS
from ._lifecycle import State
from ._process import Process
from ._rows import Outcome, Peer, Row
from ._session import Session
from ._spawn import DEFAULT_COLS, DEFAULT_ROWS, SpawnRequest


def _initialize(peer: Peer, params: InitializeParams) -> Outcome:
    async def initialize() -> Message:
        session = await peer.open_session(params)
        return InitializeResult(session_id=session.session_id, environment_info=peer.supervisor.environment)

    return initialize()


def _environment_info(peer: Peer, params: NoParams) -> EnvironmentInfo:
    return peer.supervisor.environment


def _environment_status(peer: Peer, params: NoParams) -> EnvironmentStatusResult:
    return EnvironmentStatusResult(status="ready")


def _start(peer: Peer, params: StartParams) -> Outcome:
    peer.supervisor.refuse_if_draining()
    request = _spawn_request(params, peer.supervisor.inherited)
    outcome = peer.session.start(params, request, peer.supervisor.next_uid())
    if isinstance(outcome, Process):
        return _started(outcome)

    async def finish_start() -> Message:
        return _started(await outcome)

    return finish_start()


def _started(process: Process) -> StartResult:
    return StartResult(process_id=process.process_id, sandbox_type="none", uid=process.uid)


def _spawn_request(params: StartParams, inherited: Mapping[str, str]) -> SpawnRequest:
    if not params.argv:
        raise RpcError(ErrorCode.INVALID_PARAMS, "argv must not be empty")
    _refuse_what_cannot_be_kept(params)
    cwd = native_path("cwd", params.cwd, foreign=ErrorCode.INVALID_PARAMS)
    if params.size is not None and not params.tty:
        raise RpcError(ErrorCode.INVALID_PARAMS, "size is for a terminal: pass tty: true with it")
    size = (DEFAULT_ROWS, DEFAULT_COLS) if params.size is None else (params.size.rows, params.size.cols)
    return SpawnRequest(
        argv=params.argv,
        cwd=cwd,
        env=child_environment(params.env, params.env_policy, inherited, params.metadata),
        arg0=params.arg0,
        tty=params.tty,
        pipe_stdin=params.pipe_stdin,
        size=size,
    )


def _refuse_what_cannot_be_kept(params: StartParams) -> None:
    refuse_sandbox(params.sandbox)
    refusals = (
        (
            params.enforce_managed_network,
            "enforceManagedNetwork cannot be kept on this executor: send false to run without it",
        ),
        (
            params.network_proxy is not None,
            "networkProxy is not available on this executor (capability networkProxyLaunch is false)",
        ),
        (
            params.shell_snapshot is not None,
            "shellSnapshot is not available on this executor (capability shellSnapshotV2 is false)",
        ),
    )
    for refused, text in refusals:
        if refused:
            raise RpcError(ErrorCode.INVALID_PARAMS, text)


def _find(peer: Peer, process_id: str) -> Process:
    process = peer.session.find(process_id)
    if process is None:
        raise RpcError(ErrorCode.INVALID_REQUEST, f"unknown process id {process_id}")
    return process


def _read(peer: Peer, params: ReadParams) -> Outcome:
    return _read_from(peer, _find(peer, params.process_id), params)


def _read_from(peer: Peer, process: Process, params: ReadRange) -> Outcome:
    if process.state is State.STARTING:
        raise RpcError(ErrorCode.INVALID_REQUEST, f"process id {process.process_id} is starting")
    if peer.outbox.has_reply_room and (process.has_news(params) or not params.wait_ms):
        result = process.read(params)
        if result is not None:
            return result
    return _read_later(peer, process, params)


async def _read_later(peer: Peer, process: Process, params: ReadRange) -> ReadResult:
    with trio.move_on_after((params.wait_ms or 0) / 1000):
        while not process.has_news(params):
            await process.wait_changed()
    # A large answer is made only when there is room for it, so that parked reads take no memory.
    await peer.outbox.wait_for_reply_room()
    result = process.read(params)
    if result is None:
        # One at a time: none of these is counted as a reply before it is read.
        async with peer.outbox.large_reply:
            await peer.outbox.wait_for_reply_room()
            result = process.read(params) or await process.read_file(params)
    if process.state is State.GONE:
        raise RpcError(
            ErrorCode.INVALID_REQUEST, f"process {process.process_id} has been forgotten meanwhile"
        )
    _ = peer.session  # it may have been resumed by another connection meanwhile
    return result


def _write(peer: Peer, params: WriteParams) -> Outcome:
    return _write_to(lambda: peer.session.find(params.process_id), params)


def _write_to(find: Callable[[], Process | None], params: WriteParams | OperatorWriteParams) -> Outcome:
    # What is wrong with the request itself comes before whom it is for.
    if not params.write_id:
        raise RpcError(ErrorCode.INVALID_PARAMS, "writeId must not be empty")
    try:
        data = decode_base64(params.chunk)
    except ValueError as error:
        raise RpcError(ErrorCode.INVALID_PARAMS, f"chunk: {error}") from None
    process = find()
    if process is None:
        return WriteResult(status="unknownProcess")
    if process.state is State.STARTING:
        return WriteResult(status="starting")
    status = process.write_now(params.write_id, data)
    if status is not None:
        return WriteResult(status=status)
    return _write_later(process, params.write_id, data)


async def _write_later(process: Process, write_id: str, data: bytes) -> WriteResult:
    # Between the look and the park there is no await: a request that is cut off has written all or nothing.
    while (status := process.write_now(write_id, data)) is None:
        await process.wait_stdin_moved()
    return WriteResult(status=status)


def _close_stdin(peer: Peer, params: CloseStdinParams) -> WriteResult:
    return _close_stdin_of(peer.session.find(params.process_id))


def _close_stdin_of(process: Process | None) -> WriteResult:
    if process is None:
        return WriteResult(status="unknownProcess")
    if process.state is State.STARTING:
        return WriteResult(status="starting")
    return WriteResult(status=process.close_stdin())


def _signal(peer: Peer, params: SignalParams) -> EmptyResult:
    process = peer.session.find(params.process_id)
    if process is not None:
        process.signal(params.signal)
    return EmptyResult()


def _terminate(peer: Peer, params: TerminateParams) -> TerminateResult:
    process = peer.session.find(params.process_id)
    return TerminateResult(running=process is not None and process.terminate())


def _resize(peer: Peer, params: ResizeParams) -> EmptyResult:
    _find(peer, params.process_id).resize(params.rows, params.cols)
    return EmptyResult()


def _list(peer: Peer, params: NoParams) -> ListResult:
    return ListResult(processes=[process.entry() for process in peer.session.processes])


# --- the own session, and the operator's methods ---------------------------------------------------------


def _keep_session(peer: Peer, params: SessionKeepParams) -> EmptyResult:
    peer.require_operator()
    peer.session.kept = params.kept
    return EmptyResult()


def _end_session(peer: Peer, params: SessionEndParams) -> Outcome:
    if params.session_id is None or params.session_id == peer.session.session_id:
        return _end(peer.session, "")
    peer.require_operator()
    session = peer.supervisor.find_session(params.session_id)
    return _end(session, f"session {session.session_id} was ended by an operator")


async def _end(session: Session, farewell: str) -> EmptyResult:
    await session.end(farewell)
    return EmptyResult()


def _operator_status(peer: Peer, params: NoParams) -> Message:
    peer.require_operator()
    return peer.supervisor.status()


def _operator_list(peer: Peer, params: NoParams) -> Message:
    peer.require_operator()
    return OperatorListResult(processes=peer.supervisor.entries())


def _find_anywhere(peer: Peer, uid: str) -> Process:
    peer.require_operator()
    return peer.supervisor.find_process(uid)


def _operator_wait(peer: Peer, params: OperatorWaitParams) -> Outcome:
    process = _find_anywhere(peer, params.uid)
    states = _OVER[params.until]
    if process.state in states or not params.wait_ms:
        return peer.supervisor.entry(params.uid)

    async def wait() -> Message:
        with trio.move_on_after(params.wait_ms / 1000):
            while process.state not in states:
                await process.wait_changed()
        return peer.supervisor.entry(params.uid)

    return wait()


_OVER: dict[str, tuple[State, ...]] = {
    "exited": (State.EXITED, State.CLOSED, State.GONE),
    "closed": (State.CLOSED, State.GONE),
}


def _operator_read(peer: Peer, params: OperatorReadParams) -> Outcome:
    return _read_from(peer, _find_anywhere(peer, params.uid), params)


def _operator_write(peer: Peer, params: OperatorWriteParams) -> Outcome:
    return _write_to(lambda: _find_anywhere(peer, params.uid), params)


def _operator_close_stdin(peer: Peer, params: OperatorCloseStdinParams) -> WriteResult:
    return _close_stdin_of(_find_anywhere(peer, params.uid))


def _operator_signal(peer: Peer, params: OperatorSignalParams) -> EmptyResult:
    _find_anywhere(peer, params.uid).signal(params.signal)
    return EmptyResult()


def _operator_terminate(peer: Peer, params: OperatorTerminateParams) -> TerminateResult:
    return TerminateResult(running=_find_anywhere(peer, params.uid).terminate())


def _operator_resize(peer: Peer, params: OperatorResizeParams) -> EmptyResult:
    _find_anywhere(peer, params.uid).resize(params.rows, params.cols)
    return EmptyResult()


def _by_process(params: Any) -> Hashable:
    return params.process_id


def _by_uid(params: Any) -> Hashable:
    return "uid", params.uid


def _by_session(params: Any) -> Hashable:
    return "session", params.session_id


# Reads wait for a start, so that a client may send both at once; a write that waits for its process to take
# its input must not keep it from being read. Everything without a lane acts at once, whatever waits.
ROWS: dict[str, Row] = (
    {
        "initialize": Row(_initialize, inline=True),
        "environment/info": Row(_environment_info),
        "environment/status": Row(_environment_status),
        "process/start": Row(_start, lane=_by_process),
        "process/read": Row(
            _read,
            lane=_by_process,
            overtakes=frozenset({"process/write", "process/closeStdin"}),
            holds_lane=False,
        ),
        "process/write": Row(_write, lane=_by_process),
        "process/closeStdin": Row(_close_stdin, lane=_by_process),
        "process/signal": Row(_signal),
        "process/terminate": Row(_terminate),
        "process/resize": Row(_resize),
        "process/list": Row(_list),
        "session/keep": Row(_keep_session),
        "session/end": Row(_end_session, lane=_by_session, holds_lane=False),
        "operator/status": Row(_operator_status),
        "operator/list": Row(_operator_list),
        "operator/wait": Row(
            _operator_wait,
            lane=_by_uid,
            overtakes=frozenset({"operator/write", "operator/closeStdin"}),
            holds_lane=False,
        ),
        "operator/read": Row(
            _operator_read,
            lane=_by_uid,
            overtakes=frozenset({"operator/write", "operator/closeStdin"}),
            holds_lane=False,
        ),
        "operator/write": Row(_operator_write, lane=_by_uid),
        "operator/closeStdin": Row(_operator_close_stdin, lane=_by_uid),
        "operator/signal": Row(_operator_signal),
        "operator/terminate": Row(_operator_terminate),
        "operator/resize": Row(_operator_resize),
    }
    | FILE_ROWS
    | ENVIRONMENT_ROWS
)
