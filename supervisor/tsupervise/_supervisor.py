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
    ProcessState,
)

from ._background import open_background
from ._cgroup import open_subtree
from ._containment import Containment
from ._disk import Disk
from ._environment_info import environment_info
from ._inherited import own_environment
from ._journal import Journal, bytes_of
from ._lifecycle import State
from ._limits import Limiter
from ._metrics import Now, ProcessBytes
from ._process import Process
from ._retained_total import RetainedTotal
from ._session import Holder, ProcessIndex, Session
from ._settings import Settings
from ._spawn import Spawner, spawn
from ._spill import SpillSpace, open_spill_space
from ._tracing import RequestTracer
from ._version import __version__

log = logging.getLogger(__name__)


_OVER = (State.CLOSED, State.GONE)

_STATES: tuple[ProcessState, ...] = ("starting", "running", "exited", "closed")


class Supervisor:
    """All sessions of one daemon. Made by `open_supervisor_core`, which also ends it."""

    def __init__(
        self,
        settings: Settings,
        spawner: Spawner,
        containment: Containment,
        limiter: Limiter,
        journal: Journal,
        nursery: trio.Nursery,
        spill_space: SpillSpace | None,
    ) -> None:
        self.settings = settings
        self.containment = containment
        self.journal = journal
        self.metrics = journal.metrics
        self.tracer: RequestTracer | None = None
        """Makes a span of each request, where that is wanted."""
        self.disk = Disk(nursery)
        self.draining = False
        """Whether it takes no new sessions and starts no processes any more."""
        self.inherited = own_environment()
        """What `inherit` in an envPolicy means."""
        capabilities = (*OWN_CAPABILITIES, *limiter.capabilities)
        self._environment = environment_info(__version__, capabilities, self.inherited)
        self._limiter = limiter
        self._spawner = spawner
        self._nursery = nursery
        self.started_at_ms = time.time_ns() // 1_000_000
        self.listen: str | None = None
        """The URL of the listener, if there is one."""
        self._sessions: dict[str, Session] = {}
        self._index: ProcessIndex = {}
        self._live: set[Process] = set()
        self._retained = RetainedTotal(settings.retained_total_bytes)
        self._spill_space = spill_space
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
            RpcError: INVALID_REQUEST, no session of that id; SESSION_ATTACHED, another connection holds it;
                SHUTTING_DOWN, there will be no new session; LIMIT_REACHED, there is no room for another one.
        """
        if params.resume_session_id is not None:
            session = self._resume(holder, params.resume_session_id)
            session.client_name = params.client_name
            self.journal.session_resumed(session)
            return session
        self.refuse_if_draining()
        if len(self._sessions) >= self.settings.max_sessions:
            text = f"this server has {len(self._sessions)} sessions and opens no more (--max-sessions)"
            raise RpcError(ErrorCode.LIMIT_REACHED, text)
        session = Session(
            str(uuid.uuid4()),
            self.settings,
            self._spawner,
            self._retained,
            self._index,
            self._live,
            self.containment,
            self._limiter,
            self.journal,
            self._spill_space,
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
        self.journal.session_opened(session)
        return session

    def refuse_if_draining(self) -> None:
        """Let no new work in once the daemon is on its way out.

        Raises:
            RpcError: SHUTTING_DOWN.
        """
        if self.draining:
            text = "the daemon is shutting down and takes no new work; what runs may still end"
            raise RpcError(ErrorCode.SHUTTING_DOWN, text)

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
            processes=dict(self._count_states()),
            retained_bytes=self._retained.bytes,
            retained_total_bytes=self.settings.retained_total_bytes,
            containment=self.containment.kind,
            spilled_bytes=self.spilled_bytes,
            spill_total_bytes=0 if self._spill_space is None else self.settings.spill_total_bytes,
        )

    def metrics_text(self) -> str:
        """All counts, in the Prometheus text format."""
        sessions = self._sessions.values()
        attached = sum(session.holder is not None for session in sessions)
        total = ProcessBytes()
        for _, process in self._index.values():
            total.add(bytes_of(process))
        return self.metrics.render(
            Now(
                version=__version__,
                started_at_s=self.started_at_ms / 1000,
                draining=self.draining,
                sessions={"attached": attached, "detached": len(sessions) - attached},
                processes={**dict.fromkeys(_STATES, 0), **self._count_states()},
                process_bytes=total,
                retained_bytes=self._retained.bytes,
                spill_files_bytes=self.spilled_bytes,
                spilled_bytes=0 if self._spill_space is None else self._spill_space.moved_bytes,
                kills={**self.containment.kills},
            )
        )

    def _count_states(self) -> Counter[ProcessState]:
        return Counter(process.state_name for _, process in self._index.values())

    async def wait_until_idle(self) -> None:
        """Wait until all that runs has ended and its clients have been told."""
        while running := next((p for _, p in self._index.values() if p.state not in _OVER), None):
            await running.wait_changed()
        for session in self.sessions:
            if session.holder is not None:
                await session.holder.outbox.wait_until_empty()

    def kill_all(self) -> None:
        """SIGKILL to everything at once, without waiting for any of it: for leaving in a hurry."""
        for session in self._sessions.values():
            session.kill_all()
        self.containment.kill_everything()

    @property
    def spilled_bytes(self) -> int:
        """How much all spill files take together, in bytes."""
        return 0 if self._spill_space is None else self._spill_space.bytes

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
    limiter: Limiter | None = None,
    journal: Journal | None = None,
    *,
    outlast_cancel: bool = False,
) -> AsyncGenerator[Supervisor]:
    """A supervisor for the time of the block; at its end every session ends and every process is killed.

    Args:
        settings: times and bounds; the daemon's defaults if None.
        spawner: starts children.
        containment: how their descendants are found; None for what can be done inside another program.
        limiter: how they are bounded; None for what this process can do.
        journal: where all of it is told; None for the log alone.
        outlast_cancel: whether the sessions go on until the block ends even if it is cancelled from outside,
            so that a client in the block can end its processes in order.

    Raises:
        CannotSpill: the settings name a directory for older output that cannot be used.
    """
    settings = settings or Settings()
    if containment is None:
        containment = Containment(owns_process=False, subtree=open_subtree())
    limiter = limiter or Limiter()
    try:
        async with (
            open_spill_space(settings) as spill_space,
            # Children of this nursery: the sessions.
            open_background(outlast_cancel=outlast_cancel) as nursery,
        ):
            journal = journal or Journal()
            yield Supervisor(settings, spawner, containment, limiter, journal, nursery, spill_space)
    finally:
        containment.close()
        limiter.close()
