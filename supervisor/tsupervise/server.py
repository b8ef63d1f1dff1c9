"""The doors of the daemon: a WebSocket listener, or standard input and output; and its shutdown."""

from __future__ import annotations

import logging
import signal
import sys
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import trio

from ._audit_log import open_audit_log
from ._background import open_background
from ._cgroup import open_subtree
from ._connection import Connection
from ._containment import Containment
from ._discovery import announced
from ._inherited import heeded
from ._journal import Journal, tell
from ._limits import Limiter
from ._listener import Listener, ListenOptions, open_listener
from ._metrics import Metrics
from ._name_lookup import Lookups
from ._service_manager import Handover, ServiceManager
from ._settings import Settings
from ._shutdown import REOPEN_SIGNAL, STOP_SIGNALS, Shutdown, watch_loop
from ._spawn import open_low_descriptors, spawn, what_is_lacking
from ._stdio_channel import StdioChannel
from ._supervisor import Supervisor, open_supervisor_core
from ._tracing import open_tracing

log = logging.getLogger(__name__)

REAP_S = 0.5
"""Seconds between looks at dead orphans and empty control groups. Not by SIGCHLD: that would wake the loop for
every child that ends."""

TURN_S = 0.0005
"""How long a thread may keep the interpreter from the loop, in seconds. With the usual 5 ms a start beside many
calls to file systems takes five times as long as alone (measured): it has several turns of the loop to wait for."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What one daemon does.

    Args:
        listen: where to listen and for whom, or `stdio`.
        settings: times and bounds.
        exit_on_stdin_close: when listening, whether the end of standard input ends the daemon.
        use_cgroups: whether to contain processes by control groups where the system has them.
        handover: from the service manager.
        drain_s: how long what runs may take to end after the first signal, in seconds.
        audit_log: the file of the audit log, None for none.
        traces: whether spans are sent by OpenTelemetry; None if its variables are to decide.
    """

    listen: ListenOptions | Literal["stdio"]
    settings: Settings = field(default_factory=Settings)
    exit_on_stdin_close: bool = False
    use_cgroups: bool = True
    handover: Handover = field(default_factory=Handover)
    drain_s: float = 0.0
    audit_log: str | None = None
    traces: bool | None = None


def serve_forever(options: ServerOptions) -> int:
    """Run a daemon until it is told to stop; returns its exit code.

    Prints the URL as the only line on standard output as soon as it can be connected to.

    Raises:
        CannotListen: the address is taken, or none of this machine's.
        CannotSpill: the directory for older output cannot be used.
        CannotAudit: the audit log cannot be opened.
        CannotTrace: what makes traces is not installed.
    """
    sys.setswitchinterval(TURN_S)
    open_low_descriptors()
    if lacking := what_is_lacking():
        log.warning("this C library's posix_spawn is incomplete (glibc 2.34 has it all): %s", lacking)
    # Whoever started us may ignore it, and then no child could be waited for: the kernel would reap them.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return trio.run(_serve, options)


async def _serve(options: ServerOptions) -> int:
    trio.socket.set_custom_hostname_resolver(Lookups())
    metrics = Metrics()
    manager = ServiceManager(options.handover)
    with closing(manager), trio.open_signal_receiver(*heeded(STOP_SIGNALS), REOPEN_SIGNAL) as signals:
        async with (
            # Children of this nursery: the watches that stop the daemon, to its very end, and that over the loop.
            open_background(outlast_cancel=False) as watches,
            open_audit_log(options.audit_log, metrics) as audit,
            open_tracing(options.traces) as tracer,
        ):
            serving = trio.CancelScope()
            code = 0
            opening = nullcontext() if options.listen == "stdio" else open_listener(options.listen)
            with opening as listener, serving:
                subtree = open_subtree() if options.use_cgroups else None
                containment = Containment(owns_process=True, subtree=subtree)
                limiter = Limiter()
                watches.start_soon(_clear_away, containment, limiter)
                async with open_supervisor_core(
                    options.settings, spawn, containment, limiter, Journal(metrics, audit)
                ) as supervisor:
                    supervisor.tracer = tracer
                    shutdown = Shutdown(serving, supervisor, manager, options.drain_s, watches)
                    watches.start_soon(shutdown.obey, signals, audit)
                    watches.start_soon(watch_loop, metrics, manager)
                    if listener is None:
                        await manager.ready("stdio")
                        code = await _serve_stdio(supervisor)
                    else:
                        if options.exit_on_stdin_close:
                            watches.start_soon(shutdown.obey_stdin)
                        await _serve_listener(supervisor, listener, manager)
    return code


async def _clear_away(containment: Containment, limiter: Limiter) -> None:
    """Whoever daemonises below us becomes our child; when it has died, somebody must take it away.

    So it is with the control group of its limits.
    """
    while True:
        await trio.sleep(REAP_S)
        containment.reap_orphans()
        limiter.remove_empty()


async def _serve_stdio(supervisor: Supervisor) -> int:
    connection = Connection(supervisor, StdioChannel())
    await connection.run()
    return 1 if connection.violated else 0


async def _serve_listener(supervisor: Supervisor, listener: Listener, manager: ServiceManager) -> None:
    url = supervisor.listen = listener.url
    # A few system calls on small files in memory, before anybody is served and after everybody was.
    with announced(url):
        print(url, flush=True)
        tell(logging.INFO, "daemon.listening", url=url)
        await manager.ready(url)
        await listener.serve(supervisor)
