"""The root of everything that lives: sessions under one nursery, whatever doors lead to them."""

from __future__ import annotations

import logging
import os
import secrets
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec
import trio

from tsupervise_protocol.errors import ErrorCode, RpcError
from tsupervise_protocol.messages import (
    OWN_CAPABILITIES,
    EnvironmentInfo,
    InitializeParams,
    OperatorEntry,
    OperatorStatusResult,
)

from ._background import open_background
from ._cgroup import open_subtree
from ._containment import Containment
from ._environment_info import environment_info
from ._inherited import own_environment
from ._process import Process
from ._retained_total import RetainedTotal
from ._session import Holder, ProcessIndex, Session
from ._settings import Settings
from ._spawn import Spawner, spawn
from ._version import __version__

log = logging.getLogger(__name__)


class Supervisor:
    """All sessions of one daemon. Made by `open_supervisor_core`, which also ends it."""

    def __init__(
        self, settings: Settings, spawner: Spawner, containment: Containment, nursery: trio.Nursery
    ) -> None:
        self.settings = settings
        self.containment = containment
        self.inherited = own_environment()
        """What `inherit` in an envPolicy means."""
        self._environment = environment_info(__version__, OWN_CAPABILITIES, self.inherited)
        self._spawner = spawner
        self._nursery = nursery
        self.started_at_ms = time.time_ns() // 1_000_000
        self.listen: str | None = None
        """The URL of the listener, if there is one."""
        self._sessions: dict[str, Session] = {}
        self._index: ProcessIndex = {}
        self._retained = RetainedTotal(settings.retained_total_bytes)
        # Random in front, so that a uid noted before a restart names nothing after it.
        self._uid_prefix = secrets.token_hex(3)
        self._uids = 0

    @property
    def environment(self) -> EnvironmentInfo:
        """What clients are told of the place where processes run."""
        return msgspec.structs.replace(self._environment, containment=self.containment.kind)

    def next_uid(self) -> str:
        """A name for a process that this daemon gives once, and no other daemon gives."""
        self._uids += 1
        return f"{self._uid_prefix}-{self._uids}"

    async def open_session(self, holder: Holder, params: InitializeParams) -> Session:
        """Make a session for a connection, or give it back the one that it names.

        Raises:
            RpcError: INVALID_REQUEST, no session of that id; SESSION_ATTACHED, another connection holds it.
        """
        if params.resume_session_id is not None:
            session = self._resume(holder, params.resume_session_id)
            session.client_name = params.client_name
            return session
        session = Session(
            str(uuid.uuid4()), self.settings, self._spawner, self._retained, self._index, self.containment
        )
        session.client_name = params.client_name
        # Held from the first moment on: the time without a connection must not run before there was one.
        session.attach(holder)
        self._sessions[session.session_id] = session
        try:
            await self._nursery.start(self._run_session, session)
        except BaseException:
            session.detach(holder)
            raise
        log.info("session %s opened", session.session_id)
        return session

    def _resume(self, holder: Holder, session_id: str) -> Session:
        session = self.find_session(session_id)
        if session.holder is not None:
            # Its peer may have vanished without a word: the next try will find out.
            session.holder.challenge()
            raise RpcError(
                ErrorCode.SESSION_ATTACHED,
                f"session {session_id} is already attached to another connection",
            )
        session.attach(holder)
        log.info("session %s resumed", session_id)
        return session

    async def _run_session(
        self, session: Session, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        try:
            await session.run(task_status)
        except Exception:
            # A bug of ours in one session must not end the others.
            log.exception("session %s failed inside the supervisor", session.session_id)
        finally:
            self._sessions.pop(session.session_id, None)

    def find_session(self, session_id: str) -> Session:
        """The session of that id.

        Raises:
            RpcError: INVALID_REQUEST, there is none.
        """
        session = self._sessions.get(session_id)
        if session is None or session.ended:
            raise RpcError(ErrorCode.INVALID_REQUEST, f"unknown session id {session_id}")
        return session

    def find_process(self, uid: str) -> Process:
        """The process of that daemon-unique name, of whatever session.

        Raises:
            RpcError: INVALID_REQUEST, there is none (any more).
        """
        return self._find(uid)[1]

    def _find(self, uid: str) -> tuple[Session, Process]:
        if uid not in self._index:
            text = f"unknown process uid {uid}: operator/list has those that are known"
            raise RpcError(ErrorCode.INVALID_REQUEST, text)
        return self._index[uid]

    def entry(self, uid: str) -> OperatorEntry:
        """The row of one process in the operator's list.

        Raises:
            RpcError: as `find_process`.
        """
        return _operator_entry(*self._find(uid))

    def entries(self) -> list[OperatorEntry]:
        """The rows of all processes of all sessions, in order of their start."""
        return [_operator_entry(session, process) for session, process in self._index.values()]

    def status(self) -> OperatorStatusResult:
        """The daemon as a whole."""
        sessions = self._sessions.values()
        return OperatorStatusResult(
            version=__version__,
            pid=os.getpid(),
            started_at_ms=self.started_at_ms,
            listen=self.listen,
            sessions=len(sessions),
            sessions_attached=sum(session.holder is not None for session in sessions),
            sessions_kept=sum(session.kept for session in sessions),
            processes=dict(Counter(process.state_name for _, process in self._index.values())),
            retained_bytes=self._retained.bytes,
            retained_total_bytes=self.settings.retained_total_bytes,
            containment=self.containment.kind,
        )

    def kill_all(self) -> None:
        """SIGKILL to everything at once, without waiting for any of it: for leaving in a hurry."""
        for session in self._sessions.values():
            session.kill_all()
        self.containment.kill_everything()

    @property
    def sessions(self) -> list[Session]:
        """All sessions, in order of their opening."""
        return list(self._sessions.values())


def _operator_entry(session: Session, process: Process) -> OperatorEntry:
    return OperatorEntry(
        **msgspec.structs.asdict(process.entry()),
        session_id=session.session_id,
        session_kept=session.kept,
        session_attached=session.holder is not None,
        client_name=session.client_name,
    )


@asynccontextmanager
async def open_supervisor_core(
    settings: Settings | None = None,
    spawner: Spawner = spawn,
    containment: Containment | None = None,
    *,
    outlast_cancel: bool = False,
) -> AsyncGenerator[Supervisor]:
    """A supervisor for the time of the block; at its end every session ends and every process is killed.

    Args:
        settings: times and bounds; the daemon's defaults if None.
        spawner: starts children.
        containment: how their descendants are found; None for what can be done inside another program.
        outlast_cancel: whether the sessions go on until the block ends even if it is cancelled from outside,
            so that a client in the block can end its processes in order.
    """
    if containment is None:
        containment = Containment(owns_process=False, subtree=open_subtree())
    try:
        # Children of this nursery: the sessions.
        async with open_background(outlast_cancel=outlast_cancel) as nursery:
            yield Supervisor(settings or Settings(), spawner, containment, nursery)
    finally:
        containment.close()
