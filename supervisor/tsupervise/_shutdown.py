"""How a daemon comes to its end: by signals, by the end of standard input, at once or when all is done.

The first signal ends the daemon, or with a drain time lets what runs come to its end first; the next one ends
the drain; one more leaves at once. All of it is an orderly end with exit code 0.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import AsyncIterator

import trio

from ._audit_log import AuditLog
from ._journal import tell
from ._metrics import Metrics
from ._service_manager import ServiceManager
from ._stdio_channel import read_blocking
from ._supervisor import Supervisor

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

REOPEN_SIGNAL = signal.SIGUSR1
"""Opens the audit log anew."""

KILL_S = 10.0
"""What the service manager is told that the end takes beyond the drain, in seconds; it is milliseconds."""

LAG_SAMPLE_S = 1.0
"""Seconds between two looks at how late the event loop is."""


class Shutdown:
    """The end of one daemon.

    Args:
        serving: cancelled, the daemon ends.
        supervisor: whose processes are let end, or killed.
        manager: is told of it.
        drain_s: how long what runs may take to end by itself, in seconds; 0 for not at all.
        nursery: for the wait.
    """

    def __init__(
        self,
        serving: trio.CancelScope,
        supervisor: Supervisor,
        manager: ServiceManager,
        drain_s: float,
        nursery: trio.Nursery,
    ) -> None:
        self._serving = serving
        self._supervisor = supervisor
        self._manager = manager
        self._drain_s = drain_s
        self._nursery = nursery

    async def obey(self, signals: AsyncIterator[int], audit: AuditLog | None) -> None:
        """Do what each signal asks for."""
        async for number in signals:
            if number != REOPEN_SIGNAL:
                await self._stop(signal.Signals(number).name)
            elif audit is not None:
                audit.reopen()

    async def _stop(self, name: str) -> None:
        if self._serving.cancel_called:
            log.warning("%s again: leaving at once", name)
            self._supervisor.kill_all()
            os._exit(0)
        if self._drain_s and not self._supervisor.draining:
            self._supervisor.draining = True
            tell(logging.INFO, "daemon.draining", signal=name, within_s=self._drain_s)
            self._nursery.start_soon(self._drain)
        else:
            await self.stop_now(signal=name)

    async def _drain(self) -> None:
        status = f"Draining: what runs may take {self._drain_s:g} s."
        await self._manager.stopping(status, self._drain_s + KILL_S)
        with trio.move_on_after(self._drain_s) as limit:
            await self._supervisor.wait_until_idle()
        tell(logging.INFO, "daemon.drained", in_time=not limit.cancelled_caught)
        self._serving.cancel()

    async def stop_now(self, **why: object) -> None:
        """Kill what runs, and end."""
        tell(logging.INFO, "daemon.stopping", **why)
        self._serving.cancel()
        await self._manager.stopping("Stopping.", KILL_S)

    async def obey_stdin(self) -> None:
        """End when standard input does."""
        await trio.to_thread.run_sync(_read_to_end, abandon_on_cancel=True)
        await self.stop_now(reason="standard input has ended")


def _read_to_end() -> None:
    while read_blocking(0):
        pass


async def watch_loop(metrics: Metrics, manager: ServiceManager) -> None:
    """Measure how late the event loop is, and let the service manager's watchdog know that it turns at all."""
    interval = LAG_SAMPLE_S
    if manager.watchdog_s is not None:
        # As sd_watchdog_enabled(3) advises: half of the time, and some more for a busy machine.
        interval = min(interval, manager.watchdog_s / 3)
    await manager.alive()
    due = trio.current_time()
    while True:
        due = max(due + interval, trio.current_time())
        await trio.sleep_until(due)
        metrics.loop_lag.observe(trio.current_time() - due)
        await manager.alive()
