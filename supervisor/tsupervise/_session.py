"""A session: the processes of one client, which outlive its connections.

The session owns the processes, a connection borrows it: at most one holds it at a time. Without a holder it
goes on for a time, and then it ends with everything in it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Mapping
from math import inf
from typing import Protocol

import trio

from tsupervise_protocol.errors import ErrorCode, RpcError
from tsupervise_protocol.messages import StartParams

from ._containment import Containment, Enclosure
from ._event_log import EventLog
from ._journal import Journal
from ._lifecycle import State
from ._limits import Limiter
from ._outbox import Outbox
from ._process import Process
from ._retained_total import RetainedTotal
from ._settings import Settings
from ._spawn import Child, Spawner, SpawnRequest
from ._spill import SpillSpace

log = logging.getLogger(__name__)

SURVIVOR_CHECK_S = 1.0
"""Seconds between looks at what is left of a kept session that nobody holds and that has no process any more."""


END_S = 2.0
"""How long the processes of a session that is ended may take to be closed, in seconds; then it ends without."""


class Holder(Protocol):
    """The connection that holds a session."""

    outbox: Outbox

    @property
    def origin(self) -> Mapping[str, object]:
        """Where its peer is: `peer`, and `peer_uid` if it is known."""
        ...

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
        live: all processes of the daemon that are not closed; this session keeps its own part of it.
        containment: the daemon's enclosures.
        limiter: the daemon's limits.
        journal: where its steps are told.
        spill_space: where older output goes, if there is such a place.
    """

    def __init__(
        self,
        session_id: str,
        settings: Settings,
        spawner: Spawner,
        retained: RetainedTotal,
        index: ProcessIndex,
        live: set[Process],
        containment: Containment,
        limiter: Limiter,
        journal: Journal,
        spill_space: SpillSpace | None,
    ) -> None:
        self.session_id = session_id
        self.client_name = ""
        """What the client calls itself that holds it, or held it last."""
        self.origin: Mapping[str, object] = {}
        """Where that client is, or was."""
        self.holder: Holder | None = None
        self.kept = False
        """Whether it goes on without a holder until it is ended, or has nothing left to keep."""
        self.over = trio.Event()
        self._index = index
        self._containment = containment
        self._limiter = limiter
        self._tag = containment.next_session()
        self._journal = journal
        self._settings = settings
        self._spawner = spawner
        self._retained = retained
        self._spill_space = spill_space
        self._processes: dict[str, Process] = {}
        self._all_live = live
        self._live: set[Process] = set()
        self._nursery: trio.Nursery | None = None
        self._ending = False
        self._ended = False
        self._farewell = ""
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
            self._limiter.remove_empty()
            self.over.set()
            self._journal.session_ended(self)
            if self.holder is not None and self._farewell:
                self.holder.dismiss(self._farewell)

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
        self.origin = holder.origin
        self._expires_at = inf
        for process in self._processes.values():
            process.attach(holder.outbox)

    def detach(self, holder: Holder) -> None:
        """Take the session from a connection, if it still holds it; from now on its time runs."""
        if self.holder is not holder:
            return
        self.holder = None
        self._journal.session_detached(self)
        for process in self._processes.values():
            process.detach()
        self._let_time_run()

    def _let_time_run(self) -> None:
        """Without a holder it ends after a time; a kept one only once it has nothing left."""
        if self._ending:
            return
        kept = self.kept and (bool(self._processes) or self._containment.has_members(self._tag))
        self._expires_at = inf if kept else trio.current_time() + self._settings.detached_ttl_s
        self._times_changed.unpark_all()

    async def end(self, farewell: str) -> None:
        """End it now: kill every process, let the holder hear of each, then forget them all.

        Cancelled, as by the loss of the connection that asked for it, it ends nonetheless.

        Args:
            farewell: with this reason the holder is sent away at the end; "" for not at all.
        """
        self._farewell = self._farewell or farewell
        if not self.ended:
            assert self._nursery is not None, "a session is opened when its nursery is"
            self._ending = True
            for process in self._processes.values():
                process.terminate()
            self._nursery.start_soon(self._expire_when_closed)
        await self.over.wait()

    async def _expire_when_closed(self) -> None:
        with trio.move_on_after(END_S):
            for process in list(self._processes.values()):
                while process.state not in (State.CLOSED, State.GONE):
                    await process.wait_changed()
            if self.holder is not None:
                # A process that is forgotten is told of no more, and an answer goes before events that wait.
                await self.holder.outbox.wait_until_empty()
        self._expires_at = -inf
        self._times_changed.unpark_all()

    # --- its processes ---------------------------------------------------------------------------

    def start(self, params: StartParams, request: SpawnRequest, uid: str) -> Process | Awaitable[Process]:
        """Start a process, at once where the spawner can.

        Awaited and cancelled, it leaves nothing behind and the id is free again.

        Raises:
            RpcError: the id is taken, the start was cancelled by a terminate, a limit cannot be enforced, the
                system refused, or there are as many processes as there may be.
        """
        self._raise_if_ended()
        if params.process_id in self._processes:
            raise RpcError(ErrorCode.INVALID_REQUEST, f"process {params.process_id} already exists")
        self._raise_if_full()
        restraint = None if params.limits is None else self._limiter.restrain(params.limits)
        event_log = EventLog(self._settings.retained_bytes)
        space = self._spill_space
        spill = None if space is None else space.open(event_log, self._retained, uid)
        process = Process(
            params,
            uid,
            event_log,
            self._retained,
            self._settings.retained_bytes // 2,
            self._sweep_later,
            self._process_exited,
            spill,
        )
        self._processes[params.process_id] = process
        self._index[uid] = self, process
        self._live.add(process)
        self._all_live.add(process)
        enclosure = self._containment.enclose(self._tag, restraint)
        try:
            child = self._spawner(request, enclosure)
        except BaseException:
            enclosure.dispose()
            self._journal.start_failed(self, process)
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
            self._journal.start_failed(self, process)
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
        self._journal.process_started(self, process)
        if self.holder is not None:
            process.attach(self.holder.outbox)
        self._nursery.start_soon(self._run_process, process, name=f"process {process.uid}")
        if process.params.timeout_ms is not None:
            self._nursery.start_soon(process.enforce_timeout)
        return process

    def _raise_if_ended(self) -> None:
        if self._ended or self._ending:
            raise RpcError(ErrorCode.INVALID_REQUEST, f"session {self.session_id} has ended")

    def _raise_if_full(self) -> None:
        settings = self._settings
        if len(self._live) >= settings.max_session_processes:
            text = (
                f"this session has {len(self._live)} processes and starts no more (--max-session-processes)"
            )
        elif len(self._all_live) >= settings.max_processes:
            text = f"this server has {len(self._all_live)} processes and starts no more (--max-processes)"
        else:
            return
        raise RpcError(ErrorCode.LIMIT_REACHED, text)

    async def _run_process(self, process: Process) -> None:
        try:
            await process.run()
        except Exception:
            # A bug of ours in one process must not end the others. It has killed its child on the way out.
            log.exception("process %s failed inside the supervisor", process.uid)
            self._forget(process)
            return
        finally:
            if process.log.exit is None:
                self._journal.process_killed(self, process)
        self._is_over(process)
        self._journal.process_closed(self, process)
        self._closed.append((trio.current_time() + self._settings.retention_s, process))
        if len(self._closed) == 1:
            self._times_changed.unpark_all()

    def _sweep_later(self, enclosure: Enclosure) -> None:
        if not self._ended and self._nursery is not None:
            self._nursery.start_soon(enclosure.sweep)

    def _process_exited(self, process: Process) -> None:
        if self._ended:
            # It is killed with the session, which may or may not notice its exit.
            self._journal.process_killed(self, process)
        else:
            self._journal.process_exited(self, process)

    def _is_over(self, process: Process) -> None:
        self._live.discard(process)
        self._all_live.discard(process)

    def _forget(self, process: Process) -> None:
        self._is_over(process)
        # Only this very process: its id may have been taken by a newer one.
        if self._processes.get(process.process_id) is process:
            del self._processes[process.process_id]
        self._index.pop(process.uid, None)
        if process.state is State.GONE:
            return
        self._journal.process_forgotten(process)
        process.forget()

    def find(self, process_id: str) -> Process | None:
        """The process of that id, or None if there is none or it has been forgotten."""
        return self._processes.get(process_id)

    @property
    def processes(self) -> list[Process]:
        """All that are known, in order of their start."""
        return list(self._processes.values())
