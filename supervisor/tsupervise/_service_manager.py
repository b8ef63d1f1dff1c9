"""What a service manager such as systemd passes to a daemon and hears from it: sd_notify(3), sd_listen_fds(3).

What it passes is meant for the process that it started, which is our keeper; so its number counts as ours. The
main process of the service stays the keeper, and it is the daemon that tells how things are: the unit needs
`NotifyAccess=all`.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address

import trio

from ._listen_address import ListenRefused, SocketAddress, TcpAddress, UnixAddress

log = logging.getLogger(__name__)

FIRST_DESCRIPTOR = 3
"""Of those that are passed: SD_LISTEN_FDS_START."""

SEND_S = 1.0
"""How long a manager that does not read may hold up what it is told, in seconds."""

LONGEST_S = 1e9
"""Three decades: what a manager is told of a time without an end."""


@dataclass(frozen=True, slots=True)
class Handover:
    """What has been passed.

    Args:
        notify_address: the socket that wants to hear how we are: a path, or `@` and an abstract name.
        watchdog_s: how long the manager waits for a sign of life, in seconds.
        descriptors: listening sockets.
    """

    notify_address: str | None = None
    watchdog_s: float | None = None
    descriptors: range = range(0)


def take_handover(environ: MutableMapping[str, str]) -> Handover:
    """Read what is meant for this process, and take all of it out of the environment: it is not for children.

    Numbers that are none count as not given.
    """
    ours = (str(os.getpid()), str(os.getppid()))
    names = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID")
    notify, usec, watchdog_pid, count, listen_pid = (environ.pop(name, None) for name in names)
    for name in ("LISTEN_FDNAMES", "LISTEN_PIDFDID"):
        environ.pop(name, None)
    microseconds = _number(usec) if watchdog_pid in (None, *ours) else 0
    descriptors = range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + (_number(count) if listen_pid in ours else 0))
    for fd in descriptors:
        with suppress(OSError):  # not open; who needs it will say so
            os.set_inheritable(fd, False)
    return Handover(notify or None, microseconds / 1e6 if microseconds else None, descriptors)


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdecimal() else 0


class ServiceManager:
    """Tells the service manager how the daemon is; does nothing without one.

    Args:
        handover: what it has passed.
    """

    def __init__(self, handover: Handover) -> None:
        self.watchdog_s = handover.watchdog_s
        self._socket: trio.socket.SocketType | None = None
        self._turn = trio.Lock()
        if handover.notify_address is not None:
            try:
                self._socket = trio.socket.from_stdlib_socket(_connect(handover.notify_address))
            except OSError as error:
                _warn(error)

    async def ready(self, url: str) -> None:
        """The daemon can be connected to."""
        await self._tell("READY=1", f"STATUS=Listening at {url}.")

    async def stopping(self, status: str, within_s: float) -> None:
        """The daemon is on its way out.

        Args:
            status: for people.
            within_s: how long that may take, in seconds: the manager must not become impatient earlier.
        """
        microseconds = int(min(within_s, LONGEST_S) * 1e6)
        await self._tell("STOPPING=1", f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={microseconds}")

    async def alive(self) -> None:
        """A sign of life, if one is wanted."""
        if self.watchdog_s is not None:
            await self._tell("WATCHDOG=1")

    async def _tell(self, *fields: str) -> None:
        if self._socket is None:
            return
        try:
            with trio.move_on_after(SEND_S) as waiting:
                async with self._turn:
                    await self._socket.send("\n".join(fields).encode())
        except OSError as error:
            _warn(error)
            self.close()
        else:
            if waiting.cancelled_caught:
                log.warning("the service manager does not read what it is told")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _connect(address: str) -> socket.socket:
    # Connected, so that a wait for room is one for the manager's queue and not for our own. Never blocks.
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
    except BaseException:
        sock.close()
        raise
    return sock


def _warn(error: OSError) -> None:
    log.warning("the service manager cannot be told anything: %s", error.strerror)


def passed_listener(handover: Handover, *, encrypted: bool) -> tuple[socket.socket, SocketAddress]:
    """The one listening socket that the manager has passed, and where it listens.

    Args:
        handover: what the manager has passed.
        encrypted: whether TLS is to be spoken there, if it is a TCP socket.

    Raises:
        ListenRefused: it has passed none or several, or something else.
    """
    if len(handover.descriptors) != 1:
        raise ListenRefused(
            f"{len(handover.descriptors)} sockets were passed to this process (LISTEN_FDS), and `--listen "
            "systemd` needs one: start it from a socket unit with one ListenStream="
        )
    (fd,) = handover.descriptors
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise ListenRefused(f"descriptor {fd}, which was passed, is no socket: {error.strerror}") from None
    wrong = None
    if (
        sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
        or sock.type != socket.SOCK_STREAM
    ):
        kind = f"{socket.AddressFamily(sock.family).name}, {socket.SocketKind(sock.type).name}"
        wrong = f"is neither a TCP socket nor one of streams in the file system ({kind})"
    elif not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        wrong = "does not listen: use ListenStream= and Accept=no"
    elif sock.family == socket.AF_UNIX and not isinstance(sock.getsockname(), str):
        wrong = "has no place in the file system: use ListenStream= with a path"
    if wrong is not None:
        sock.close()
        raise ListenRefused(f"the socket that was passed {wrong}")
    if sock.family == socket.AF_UNIX:
        return sock, UnixAddress(sock.getsockname())
    host, port = sock.getsockname()[:2]
    return sock, TcpAddress(ip_address(host.partition("%")[0]), port, encrypted)
