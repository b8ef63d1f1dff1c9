"""The root of everything that lives: sessions under one nursery, whatever doors lead to them."""

from __future__ import annotations

import logging
import secrets
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from tsupervise_protocol.errors import ErrorCode, RpcError
from tsupervise_protocol.messages import OWN_CAPABILITIES, EnvironmentInfo

from ._background import open_background
from ._environment_info import environment_info
from ._inherited import own_environment
from ._retained_total import RetainedTotal
from ._session import Holder, Session
from ._settings import Settings
from ._spawn import Spawner, spawn
from ._spill import SpillSpace, open_spill_space
from ._version import __version__

log = logging.getLogger(__name__)


class Supervisor:
    """All sessions of one daemon. Made by `open_supervisor_core`, which also ends it."""

    def __init__(
        self, settings: Settings, spawner: Spawner, nursery: trio.Nursery, spill_space: SpillSpace | None
    ) -> None:
        self.settings = settings
        self.inherited = own_environment()
        """What `inherit` in an envPolicy means."""
        self.environment: EnvironmentInfo = environment_info(__version__, OWN_CAPABILITIES, self.inherited)
        self._spawner = spawner
        self._nursery = nursery
        self._sessions: dict[str, Session] = {}
        self._retained = RetainedTotal(settings.retained_total_bytes)
        self._spill_space = spill_space
        # Random in front, so that a uid noted before a restart names nothing after it.
        self._uid_prefix = secrets.token_hex(3)
        self._uids = 0

    def next_uid(self) -> str:
        """A name for a process that this daemon gives once, and no other daemon gives."""
        self._uids += 1
        return f"{self._uid_prefix}-{self._uids}"

    async def open_session(self, holder: Holder, resume: str | None) -> Session:
        """Make a session for a connection, or give it back the one that it names.

        Raises:
            RpcError: INVALID_REQUEST, no session of that id; SESSION_ATTACHED, another connection holds it.
        """
        if resume is not None:
            return self._resume(holder, resume)
        session = Session(str(uuid.uuid4()), self.settings, self._spawner, self._retained, self._spill_space)
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
        session = self._sessions.get(session_id)
        if session is None or session.ended:
            raise RpcError(ErrorCode.INVALID_REQUEST, f"unknown session id {session_id}")
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

    def kill_all(self) -> None:
        """SIGKILL to everything at once, without waiting for any of it: for leaving in a hurry."""
        for session in self._sessions.values():
            session.kill_all()

    @property
    def spilled_bytes(self) -> int:
        """How much all spill files take together, in bytes."""
        return 0 if self._spill_space is None else self._spill_space.bytes

    @property
    def sessions(self) -> list[Session]:
        """All sessions, in order of their opening."""
        return list(self._sessions.values())


@asynccontextmanager
async def open_supervisor_core(
    settings: Settings | None = None, spawner: Spawner = spawn
) -> AsyncGenerator[Supervisor]:
    """A supervisor for the time of the block; at its end every session ends and every process is killed.

    Raises:
        CannotSpill: the settings name a directory for older output that cannot be used.
    """
    settings = settings or Settings()
    async with (
        open_spill_space(settings) as spill_space,
        # Children of this nursery: the sessions.
        open_background(outlast_cancel=False) as nursery,
    ):
        yield Supervisor(settings, spawner, nursery, spill_space)
