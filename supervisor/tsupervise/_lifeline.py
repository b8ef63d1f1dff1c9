"""The connection of a client over time: one link, and after each loss the next, with nothing missed in between.

A single task makes the attempts, so that all users share them. `_recovery` decides; this obeys: it opens
channels, does the handshake with the session that it has learned, and lets every process catch up before
anybody may use the new link.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import cast

import trio

from tsupervise_protocol.errors import ErrorCode, MalformedMessage
from tsupervise_protocol.messages import (
    EnvironmentInfo,
    InitializeParams,
    InitializeResult,
    NoParams,
    ReadResult,
    TerminateParams,
)

from ._background import open_background
from ._calls import Pending
from ._channel import ClientChannel
from ._event_order import EventOverflow, WindowLost
from ._link import Link
from ._process_table import ProcessTable
from ._recovery import Connected, Disconnected, Failed, OtherSession, Recovering, Recovery
from ._remote_process import RemoteProcess
from .errors import ConnectFailed, ConnectionLost, ServerRefused

logger = logging.getLogger(__name__)

INITIALIZE_S = 10.0
"""For the handshake of this protocol, after the connection is up."""

ENVIRONMENT_S = 30.0
"""For `environment/info`, where a server tells nothing of its environment in the handshake."""

CATCH_UP_S = 15.0
"""For each answer while catching up. With three times as much to come back in, there is another attempt or two."""

CATCH_UP_CALLS = 256
"""Processes that are asked for at a time while catching up."""

ChannelOpener = Callable[[], AbstractAsyncContextManager[ClientChannel]]
"""Opens a channel to the server, for the time of a block. Raises ConnectFailed."""


class Lifeline:
    """See the module.

    Args:
        open_channel: called for each attempt.
        processes: those that catch up after a loss.
        nursery: of the client; the links live in it.
        client_name: what the server may log.
        recovery_s: seconds that coming back may take; 0 for not at all.
    """

    def __init__(
        self,
        open_channel: ChannelOpener,
        processes: ProcessTable,
        nursery: trio.Nursery,
        *,
        client_name: str,
        recovery_s: float,
    ) -> None:
        self.session_id: str | None = None
        self.environment: EnvironmentInfo | None = None
        self._open_channel = open_channel
        self._processes = processes
        self._nursery = nursery
        self._client_name = client_name
        self._recovery = Recovery(recovery_s)
        self._link: Link | None = None
        self._changed = trio.lowlevel.ParkingLot()

    # --- what users of the connection see ------------------------------------------------------------

    @property
    def failure(self) -> str | None:
        """The one message of a client that has failed for good."""
        state = self._recovery.state
        return state.message if isinstance(state, Failed) else None

    async def ready(self) -> Link:
        """Wait for a link to use; while there is one, this does not even yield.

        Raises:
            ConnectionLost: there is none and will be none.
        """
        while True:
            match self._recovery.state:
                case Connected():
                    assert self._link is not None, "the first link comes before the first user"
                    return self._link
                case Recovering():
                    await self._changed.park()
                case Failed(message):
                    raise ConnectionLost(message)

    def fail(self, reason: str) -> None:
        """End the connection for good."""
        self._recovery.fail(reason)
        if self._link is not None:
            self._link.end(Disconnected(reason, is_final=True))
        self._announce()

    # --- one link at a time --------------------------------------------------------------------------

    async def open(self, resume_session_id: str | None) -> None:
        """Make the first connection.

        Raises:
            ConnectFailed, ServerRefused: there is none.
        """
        self.session_id = resume_session_id
        try:
            self._link = await self._nursery.start(self._run_link)
        except Disconnected as disconnect:
            raise ConnectFailed(f"the connection ended before it could be used: {disconnect}") from None
        self._nursery.start_soon(self._keep)

    async def _run_link(self, task_status: trio.TaskStatus[Link]) -> None:
        """Open a link, get it ready, and hold it until it ends."""
        async with self._open_channel() as channel, open_background(outlast_cancel=False) as tasks:
            link = Link(channel, self._processes, self._on_end)
            # Anew for each attempt: what the last one had caught up with has gone on without a connection since.
            self._processes.begin_to_miss()
            tasks.start_soon(link.receive)
            tasks.start_soon(link.send)
            tasks.start_soon(link.watch)
            try:
                await self._prepare(link)
                # No await from here to the end of `started`: it is in use, or it has ended before.
                if link.disconnect is not None:
                    raise link.disconnect
                if self.failure is not None:
                    raise Disconnected(self.failure, is_final=True)
                recovering = isinstance(self._recovery.state, Recovering)
                link.generation = self._recovery.succeeded() if recovering else 1
                self._link = link
                task_status.started(link)
                self._announce()
                await link.ended.wait()
            finally:
                link.end(Disconnected("its block has ended", is_final=True))
                await channel.aclose(link.close_code, "" if link.disconnect is None else str(link.disconnect))

    def _on_end(self, link: Link) -> None:
        disconnect = link.disconnect
        assert disconnect is not None, "this is called because it has ended"
        if self._recovery.disconnected(link.generation, disconnect, trio.current_time()):
            logger.info("the connection is lost: %s", disconnect)
            self._announce()

    def _announce(self) -> None:
        self._changed.unpark_all()
        if self.failure is not None:
            self._processes.wake()

    # --- coming back ---------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Come back after each loss, until the client has failed for good."""
        while True:
            match self._recovery.state:
                case Connected():
                    await self._changed.park()
                case Recovering(deadline=deadline):
                    with trio.move_on_at(deadline) as scope:
                        await self._come_back()
                    if scope.cancelled_caught:
                        self._recovery.expired()
                    self._announce()
                case Failed():
                    return

    async def _come_back(self) -> None:
        while True:
            try:
                await self._nursery.start(self._run_link)
                return
            except (ConnectFailed, Disconnected, MalformedMessage, ServerRefused) as error:
                logger.info("an attempt to come back failed: %s", error)
                pause = self._recovery.attempt_failed(error, random.random())
            if pause is None:
                return
            await trio.sleep(pause)

    async def _prepare(self, link: Link) -> None:
        try:
            with trio.fail_after(INITIALIZE_S):
                result = await self._initialize(link)
            link.notify_initialized()
            with trio.fail_after(ENVIRONMENT_S):
                info = result.environment_info or self.environment or await _ask_for_environment(link)
        except trio.TooSlowError:
            raise ConnectFailed("the server accepted the connection but does not answer") from None
        self.environment = info
        while processes := self._processes.recoverable():
            await self._catch_up(link, processes[:CATCH_UP_CALLS])

    async def _initialize(self, link: Link) -> InitializeResult:
        params = InitializeParams(client_name=self._client_name, resume_session_id=self.session_id)
        result = cast("InitializeResult", await link.call("initialize", params))
        if self.session_id not in (None, result.session_id):
            raise OtherSession(f"asked for session {self.session_id!r}, got {result.session_id!r}")
        self.session_id = result.session_id
        return result

    async def _catch_up(self, link: Link, processes: list[RemoteProcess]) -> None:
        """Ask once for what each process has missed; a process that overflowed meanwhile is left for later."""
        asked: list[tuple[RemoteProcess, Pending]] = []
        for process in processes:
            asked.append((process, link.begin("process/read", process.ask_for_missed())))
        for process, pending in asked:
            with trio.move_on_after(CATCH_UP_S) as patience:
                await pending.done.wait()
            link.free(pending)
            if patience.cancelled_caught:
                raise ConnectFailed(
                    f"the server does not tell what {process.process_id!r} has done meanwhile"
                )
            try:
                process.catch_up(cast("ReadResult", link.result_of(pending)))
            except (WindowLost, EventOverflow) as error:
                self._give_up(process, str(error))
            except ServerRefused as refusal:
                if refusal.code != ErrorCode.INVALID_REQUEST:
                    raise
                self._give_up(process, refusal.message)
            else:
                if process.closed:
                    self._processes.forget(process)

    # --- processes that are not followed any more ----------------------------------------------------

    def _give_up(self, process: RemoteProcess, reason: str) -> None:
        """Fail one process that cannot be followed any further, and terminate it."""
        process.fail(f"it could not be recovered and is terminated: {reason}")
        self._nursery.start_soon(self.clean_up, process)

    async def clean_up(self, process: RemoteProcess) -> None:
        """Terminate a process until the server has answered, over as many links as it takes; free its id."""
        params = TerminateParams(process_id=process.process_id)
        answered = False
        while not answered:
            try:
                link = await self.ready()
            except ConnectionLost:
                break
            pending = link.begin("process/terminate", params)
            await pending.done.wait()
            link.free(pending)
            answered = pending.was_answered
        self._processes.forget(process)


async def _ask_for_environment(link: Link) -> EnvironmentInfo | None:
    try:
        return cast("EnvironmentInfo", await link.call("environment/info", NoParams()))
    except ServerRefused as refusal:
        if refusal.code == ErrorCode.METHOD_NOT_FOUND:
            return None
        raise
