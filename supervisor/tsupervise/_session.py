"""A session: the processes of one client, which outlive its connections.

The session owns the processes, a connection borrows it: at most one holds it at a time. Without a holder it
goes on for a time, and then it ends with everything in it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable
from math import inf
from typing import Protocol

import trio

from tsupervise_protocol.errors import ErrorCode, RpcError
from tsupervise_protocol.messages import StartParams

from ._containment import Containment, Enclosure
from ._event_log import EventLog
from ._lifecycle import State
from ._outbox import Outbox
from ._process import Process
from ._retained_total import RetainedTotal
from ._settings import Settings
from ._spawn import Child, Spawner, SpawnRequest

log = logging.getLogger(__name__)

SURVIVOR_CHECK_S = 1.0
"""Seconds between looks at what is left of a kept session that nobody holds and that has no process any more."""


END_S = 2.0
"""How long the processes of a session that is ended may take to be closed, in seconds; then it ends without."""


class Holder(Protocol):
    """The connection that holds a session."""

    outbox: Outbox

    def challenge(self) -> None:
        """Somebody else wants the session: find out whether the peer is still there, and leave if not."""
        ...

    def dismiss(self, reason: str) -> None:
        """The session has ended: tell the peer why, and leave."""
        ...


ProcessIndex = dict[str, tuple["Session", Process]]
"""All processes of all sessions by uid."""


class Session:
    """The process table of one client.

    Args:
        session_id: what the client resumes it by.
        settings: times and bounds.
        spawner: starts children.
        retained: the daemon's account of retained output.
        index: the daemon's index of all processes; this session keeps its own part of it.
        containment: the daemon's enclosures.
    """

    def __init__(
        self,
        session_id: str,
        settings: Settings,
        spawner: Spawner,
        retained: RetainedTotal,
        index: ProcessIndex,
        containment: Containment,
    ) -> None:
        self.session_id = session_id
        self.client_name = ""
        """What the client calls itself that holds it, or held it last."""
        self.holder: Holder | None = None
        self.kept = False
        """Whether it goes on without a holder until it is ended, or has nothing left to keep."""
        self.over = trio.Event()
        self._index = index
        self._containment = containment
        self._tag = containment.next_session()
        self._settings = settings
        self._spawner = spawner
        self._retained = retained
        self._processes: dict[str, Process] = {}
        self._nursery: trio.Nursery | None = None
        self._ending = False
        self._ended = False
        self._expires_at = inf
        self._closed: deque[tuple[float, Process]] = deque()
        """When to forget which closed process; rising, for all are kept equally long."""
        self._times_changed = trio.lowlevel.ParkingLot()

    # --- its life --------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own all processes of the session, until it has had no holder for too long."""
        try:
            # Children of this nursery: each process, from its start to its close.
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                try:
                    await self._keep_time()
                finally:
                    # Here and not later: a start in the very moment of the end must find no way in.
                    self._ended = True
                    self.kill_all()
                    await self._containment.sweep(self._tag)
                nursery.cancel_scope.cancel()
        finally:
            self.kill_all()
            for process in list(self._processes.values()):
                self._forget(process)
            # What is left behind belonged to the session until now.
            await self._containment.sweep(self._tag)
            self.over.set()
            log.info("session %s ended", self.session_id)

    async def _keep_time(self) -> None:
        """Forget closed processes when their time is over; return when the session's is."""
        while trio.current_time() < self._expires_at:
            while self._closed and self._closed[0][0] <= trio.current_time():
                self._forget(self._closed.popleft()[1])
            look_at = inf
            if self.kept and self.holder is None and self._expires_at == inf and not self._processes:
                # Only what its processes have left behind keeps it now, and of that nobody is told the end.
                self._let_time_run()
                look_at = trio.current_time() + SURVIVOR_CHECK_S
            forget_at = self._closed[0][0] if self._closed else inf
            with trio.move_on_at(min(look_at, forget_at, self._expires_at)):
                await self._times_changed.park()

    def kill_all(self) -> None:
        """SIGKILL to every process; nothing else happens here."""
        for process in self._processes.values():
            process.kill()

    @property
    def ended(self) -> bool:
        """Whether it can be resumed no more, even if the sweeping is not over."""
        return self._ending or self._ended or trio.current_time() >= self._expires_at

    # --- who holds it ----------------------------------------------------------------------------

    def attach(self, holder: Holder) -> None:
        """Give the session to a connection: every event from now on goes there."""
        assert self.holder is None, "a session has one holder"
        self.holder = holder
        self._expires_at = inf
        for process in self._processes.values():
            process.attach(holder.outbox)

    def detach(self, holder: Holder) -> None:
        """Take the session from a connection, if it still holds it; from now on its time runs."""
        if self.holder is not holder:
            return
        self.holder = None
        for process in self._processes.values():
            process.detach()
        self._let_time_run()

    def _let_time_run(self) -> None:
        """Without a holder it ends after a time; a kept one only once it has nothing left."""
        kept = self.kept and (bool(self._processes) or self._containment.has_members(self._tag))
        self._expires_at = inf if kept else trio.current_time() + self._settings.detached_ttl_s
        self._times_changed.unpark_all()

    async def end(self, farewell: str) -> None:
        """End it now: kill every process, let the holder hear of each, then forget them all.

        Args:
            farewell: with this reason the holder is sent away at the end; "" for not at all.
        """
        self._ending = True
        for process in list(self._processes.values()):
            process.terminate()
        with trio.move_on_after(END_S):
            for process in list(self._processes.values()):
                while process.state not in (State.CLOSED, State.GONE):
                    await process.wait_changed()
        self._expires_at = -inf
        self._times_changed.unpark_all()
        await self.over.wait()
        if self.holder is not None and farewell:
            self.holder.dismiss(farewell)

    # --- its processes ---------------------------------------------------------------------------

    def start(self, params: StartParams, request: SpawnRequest, uid: str) -> Process | Awaitable[Process]:
        """Start a process, at once where the spawner can.

        Awaited and cancelled, it leaves nothing behind and the id is free again.

        Raises:
            RpcError: the id is taken, the start was cancelled by a terminate, or the system refused.
        """
        self._raise_if_ended()
        if params.process_id in self._processes:
            raise RpcError(ErrorCode.INVALID_REQUEST, f"process {params.process_id} already exists")
        event_log = EventLog(self._settings.retained_bytes)
        process = Process(
            params,
            uid,
            event_log,
            self._retained,
            self._settings.retained_bytes // 2,
            self._sweep_later,
        )
        self._processes[params.process_id] = process
        self._index[uid] = self, process
        enclosure = self._containment.enclose(self._tag)
        try:
            child = self._spawner(request, enclosure)
        except BaseException:
            enclosure.dispose()
            self._forget(process)
            raise
        if isinstance(child, Child):
            return self._own(process, child)
        return self._start_later(process, child, enclosure)

    async def _start_later(
        self, process: Process, spawning: Awaitable[Child], enclosure: Enclosure
    ) -> Process:
        child: Child | None = None
        try:
            with process.start_scope:
                child = await spawning
            if child is None or process.start_scope.cancel_called:
                raise RpcError(ErrorCode.INVALID_REQUEST, f"process {process.process_id} start was cancelled")
            return self._own(process, child)
        except BaseException:
            self._forget(process)
            if child is not None:
                await child.destroy()
            else:
                enclosure.dispose()
            raise

    def _own(self, process: Process, child: Child) -> Process:
        # Without an await: a child that exists has an owner.
        self._raise_if_ended()
        assert self._nursery is not None, "a session is opened when its nursery is"
        process.spawned(child)
        if self.holder is not None:
            process.attach(self.holder.outbox)
        self._nursery.start_soon(self._run_process, process, name=f"process {process.uid}")
        return process

    def _raise_if_ended(self) -> None:
        if self._ended or self._ending:
            raise RpcError(ErrorCode.INVALID_REQUEST, f"session {self.session_id} has ended")

    async def _run_process(self, process: Process) -> None:
        try:
            await process.run()
        except Exception:
            # A bug of ours in one process must not end the others. It has killed its child on the way out.
            log.exception("process %s failed inside the supervisor", process.uid)
            self._forget(process)
            return
        self._closed.append((trio.current_time() + self._settings.retention_s, process))
        if len(self._closed) == 1:
            self._times_changed.unpark_all()

    def _sweep_later(self, enclosure: Enclosure) -> None:
        if not self._ended and self._nursery is not None:
            self._nursery.start_soon(enclosure.sweep)

    def _forget(self, process: Process) -> None:
        # Only this very process: its id may have been taken by a newer one.
        if self._processes.get(process.process_id) is process:
            del self._processes[process.process_id]
        self._index.pop(process.uid, None)
        if process.state is State.GONE:
            return
        process.forget()

    def find(self, process_id: str) -> Process | None:
        """The process of that id, or None if there is none or it has been forgotten."""
        return self._processes.get(process_id)

    @property
    def processes(self) -> list[Process]:
        """All that are known, in order of their start."""
        return list(self._processes.values())
