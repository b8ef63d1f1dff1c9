"""The doors of the daemon: a WebSocket listener, or standard input and output; and its shutdown."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus

import trio

from ._audit_log import open_audit_log
from ._background import open_background
from ._cgroup import open_subtree
from ._connection import Connection
from ._containment import Containment
from ._discovery import announced
from ._http_door import Answer, HttpDoor, Respond, Upgrade
from ._inherited import heeded
from ._journal import Journal, tell
from ._limits import Limiter
from ._listen_address import ListenAddress, TcpAddress
from ._metrics import CONTENT_TYPE, Metrics
from ._peer_user import peer_uid
from ._service_manager import Handover, ServiceManager
from ._settings import Settings
from ._shutdown import REOPEN_SIGNAL, STOP_SIGNALS, Shutdown, watch_loop
from ._socket_stream import EagerSocketStream
from ._spawn import open_low_descriptors, spawn, what_is_lacking
from ._stdio_channel import StdioChannel
from ._supervisor import Supervisor, open_supervisor_core
from ._tracing import open_tracing
from ._websocket_channel import RECEIVE_BYTES, WebSocketChannel, linger

log = logging.getLogger(__name__)

HEAD_TIMEOUT_S = 10.0
"""Seconds that a peer has to send its HTTP request; clients of this protocol give up after as long."""

BACKLOG = 1024
"""Connections that the kernel accepts for us while we are busy."""

REAP_S = 0.5
"""Seconds between looks at dead orphans and empty control groups. Not by SIGCHLD: that would wake the loop for
every child that ends."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What one daemon does.

    Args:
        listen: where to listen, or `stdio`.
        settings: times and bounds.
        exit_on_stdin_close: when listening, whether the end of standard input ends the daemon.
        use_cgroups: whether to contain processes by control groups where the system has them.
        handover: from the service manager.
        passed: the socket to listen at, if the service manager has passed it.
        drain_s: how long what runs may take to end after the first signal, in seconds.
        audit_log: the file of the audit log, None for none.
        traces: whether spans are sent by OpenTelemetry; None if its variables are to decide.
    """

    listen: ListenAddress
    settings: Settings = field(default_factory=Settings)
    exit_on_stdin_close: bool = False
    use_cgroups: bool = True
    handover: Handover = field(default_factory=Handover)
    passed: socket.socket | None = None
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
    open_low_descriptors()
    if lacking := what_is_lacking():
        log.warning("this C library's posix_spawn is incomplete (glibc 2.34 has it all): %s", lacking)
    # Whoever started us may ignore it, and then no child could be waited for: the kernel would reap them.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return trio.run(_serve, options)


class CannotListen(Exception):
    """The address is taken, or none of this machine's."""


async def _serve(options: ServerOptions) -> int:
    metrics = Metrics()
    manager = ServiceManager(options.handover)
    with closing(manager), trio.open_signal_receiver(*heeded(STOP_SIGNALS), REOPEN_SIGNAL) as signals:
        async with (
            # Children of this nursery: the watches that stop the daemon, to its very end, and that over the loop.
            open_background(outlast_cancel=False) as watches,
            open_audit_log(options.audit_log, metrics) as audit,
            open_tracing(options.traces) as tracer,
        ):
            listener = None if options.listen == "stdio" else await _listen(options.listen, options.passed)
            serving = trio.CancelScope()
            code = 0
            with serving:
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


async def _listen(address: TcpAddress, passed: socket.socket | None) -> trio.SocketListener:
    if passed is not None:
        return trio.SocketListener(trio.socket.from_stdlib_socket(passed))
    family = socket.AF_INET6 if address.host.version == 6 else socket.AF_INET
    try:
        sock = trio.socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        await sock.bind((str(address.host), address.port))
        sock.listen(BACKLOG)
    except OSError as error:
        text = f"cannot listen at {address.url}: {error.strerror} (os error {error.errno})"
        raise CannotListen(text) from None
    return trio.SocketListener(sock)


async def _serve_listener(
    supervisor: Supervisor, listener: trio.SocketListener, manager: ServiceManager
) -> None:
    host, port = listener.socket.getsockname()[:2]
    url = supervisor.listen = f"ws://{_authority(host, port)}"

    async def serve(accepted: trio.SocketStream) -> None:
        # A bug of ours in one connection must not end the others.
        try:
            await _serve_socket(supervisor, socket.socket(fileno=accepted.socket.detach()))
        except* Exception:
            log.exception("a connection failed inside the server")

    # A few system calls on small files in memory, before anybody is served and after everybody was.
    with announced(url):
        print(url, flush=True)
        tell(logging.INFO, "daemon.listening", url=url)
        await manager.ready(url)
        await trio.serve_listeners(serve, [listener])


async def _serve_socket(supervisor: Supervisor, sock: socket.socket) -> None:
    stream = EagerSocketStream(sock)
    try:
        host, port = sock.getpeername()[:2]
        upgrade = await _pass_door(supervisor, stream)
        if upgrade is not None:
            peer = _authority(host, port)
            channel = WebSocketChannel(
                stream, peer, upgrade.leftover, stream.try_send, stream.unread, partial(peer_uid, sock)
            )
            await Connection(supervisor, channel).run()
    except (OSError, trio.BrokenResourceError):
        pass  # gone before it had said anything
    finally:
        await trio.aclose_forcefully(stream)


async def _pass_door(supervisor: Supervisor, stream: EagerSocketStream) -> Upgrade | None:
    """Read the HTTP request and answer it; None if it is no upgrade, or does not come in time."""
    door = HttpDoor(_pages(supervisor))
    with trio.move_on_after(HEAD_TIMEOUT_S):
        while data := await stream.receive_some(RECEIVE_BYTES):
            decision = door.receive(data)
            if decision is not None:
                supervisor.metrics.http_responses[decision.status] += 1
                await stream.send_all(decision.data)
                if not isinstance(decision, Respond):
                    return decision
                await linger(stream)
                return None
    return None


def _pages(supervisor: Supervisor) -> Mapping[bytes, Callable[[], Answer]]:
    """What GET and HEAD find, besides the WebSocket at `/`."""

    def ready() -> Answer:
        if supervisor.draining:
            return Answer(HTTPStatus.SERVICE_UNAVAILABLE, "the daemon is shutting down")
        return Answer(HTTPStatus.OK)

    return {
        b"/livez": lambda: Answer(HTTPStatus.OK),
        b"/readyz": ready,
        b"/metrics": lambda: Answer(HTTPStatus.OK, supervisor.metrics_text(), content_type=CONTENT_TYPE),
    }


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
