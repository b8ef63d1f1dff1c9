"""The doors of the daemon: a WebSocket listener, or standard input and output; and its shutdown."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial

import trio

from ._background import open_background
from ._cgroup import open_subtree
from ._connection import Connection
from ._containment import Containment
from ._http_door import HttpDoor, Respond, Upgrade
from ._inherited import heeded
from ._listen_address import ListenAddress, TcpAddress
from ._peer_user import peer_uid
from ._settings import Settings
from ._socket_stream import EagerSocketStream
from ._spawn import open_low_descriptors, what_is_lacking
from ._stdio_channel import StdioChannel, read_blocking
from ._supervisor import Supervisor, open_supervisor_core
from ._websocket_channel import RECEIVE_BYTES, WebSocketChannel, linger

log = logging.getLogger(__name__)

HEAD_TIMEOUT_S = 10.0
"""Seconds that a peer has to send its HTTP request; clients of this protocol give up after as long."""

BACKLOG = 1024
"""Connections that the kernel accepts for us while we are busy."""

REAP_S = 0.5
"""Seconds between looks at dead orphans. Not by SIGCHLD: that would wake the loop for every child that ends."""

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What one daemon does.

    Args:
        listen: where to listen, or `stdio`.
        settings: times and bounds.
        exit_on_stdin_close: when listening, whether the end of standard input ends the daemon.
        use_cgroups: whether to contain processes by control groups where the system has them.
    """

    listen: ListenAddress
    settings: Settings = field(default_factory=Settings)
    exit_on_stdin_close: bool = False
    use_cgroups: bool = True


def serve_forever(options: ServerOptions) -> int:
    """Run a daemon until it is told to stop; returns its exit code.

    Prints the URL as the only line on standard output as soon as it can be connected to.

    Raises:
        CannotListen: the address is taken, or none of this machine's.
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
    code = 0
    with trio.open_signal_receiver(*heeded(_STOP_SIGNALS)) as signals:
        # Children of this nursery: the watches that stop the daemon.
        async with open_background(outlast_cancel=False) as watches:
            serving = trio.CancelScope()
            if options.exit_on_stdin_close and options.listen != "stdio":
                watches.start_soon(_stop_on_stdin_end, serving)
            listener = None if options.listen == "stdio" else await _listen(options.listen)
            with serving:
                subtree = open_subtree() if options.use_cgroups else None
                containment = Containment(owns_process=True, subtree=subtree)
                watches.start_soon(_reap_orphans, containment)
                async with open_supervisor_core(options.settings, containment=containment) as supervisor:
                    watches.start_soon(_stop_on_signal, signals, serving, supervisor)
                    if listener is None:
                        code = await _serve_stdio(supervisor)
                    else:
                        await _serve_listener(supervisor, listener)
    return code


async def _stop_on_signal(
    signals: AsyncIterator[int], serving: trio.CancelScope, supervisor: Supervisor
) -> None:
    async for number in signals:
        if serving.cancel_called:
            log.warning("%s again: leaving at once", signal.Signals(number).name)
            supervisor.kill_all()
            os._exit(0)
        log.info("%s: stopping", signal.Signals(number).name)
        serving.cancel()


async def _reap_orphans(containment: Containment) -> None:
    """Whoever daemonises below us becomes our child; when it has died, somebody must take it away."""
    while True:
        await trio.sleep(REAP_S)
        containment.reap_orphans()


async def _stop_on_stdin_end(serving: trio.CancelScope) -> None:
    await trio.to_thread.run_sync(_read_to_end, abandon_on_cancel=True)
    log.info("standard input has ended: stopping")
    serving.cancel()


def _read_to_end() -> None:
    while read_blocking(0):
        pass


async def _serve_stdio(supervisor: Supervisor) -> int:
    connection = Connection(supervisor, StdioChannel())
    await connection.run()
    return 1 if connection.violated else 0


async def _listen(address: TcpAddress) -> trio.SocketListener:
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


async def _serve_listener(supervisor: Supervisor, listener: trio.SocketListener) -> None:
    host, port = listener.socket.getsockname()[:2]
    supervisor.listen = f"ws://{_authority(host, port)}"
    print(supervisor.listen, flush=True)
    log.info("listening at %s", _authority(host, port))

    async def serve(accepted: trio.SocketStream) -> None:
        # A bug of ours in one connection must not end the others.
        try:
            await _serve_socket(supervisor, socket.socket(fileno=accepted.socket.detach()))
        except* Exception:
            log.exception("a connection failed inside the server")

    await trio.serve_listeners(serve, [listener])


async def _serve_socket(supervisor: Supervisor, sock: socket.socket) -> None:
    stream = EagerSocketStream(sock)
    try:
        host, port = sock.getpeername()[:2]
        upgrade = await _pass_door(stream)
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


async def _pass_door(stream: EagerSocketStream) -> Upgrade | None:
    """Read the HTTP request and answer it; None if it is no upgrade, or does not come in time."""
    door = HttpDoor()
    with trio.move_on_after(HEAD_TIMEOUT_S):
        while data := await stream.receive_some(RECEIVE_BYTES):
            decision = door.receive(data)
            if decision is not None:
                await stream.send_all(decision.data)
                if not isinstance(decision, Respond):
                    return decision
                await linger(stream)
                return None
    return None


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
