"""A listening socket, and what happens to each connection from its acceptance to its end."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus

import trio

from ._connection import Connection
from ._doorkeeper import Doorkeeper
from ._http_door import Answer, HttpDoor, Page, Pages, Respond, Upgrade
from ._listen_address import SocketAddress, TcpAddress, UnixAddress
from ._metrics import CONTENT_TYPE
from ._peer_user import peer_uid
from ._socket_stream import EagerSocketStream
from ._supervisor import Supervisor
from ._tls_stream import TlsStream
from ._unix_listener import unix_listener
from ._websocket_channel import RECEIVE_BYTES, WebSocketChannel, linger

log = logging.getLogger(__name__)

HANDSHAKE_S = 10.0
"""Seconds that a peer has to send its HTTP request, TLS included, and then again for `initialize`; clients of this
protocol give up after as long."""

MAX_AT_DOOR = 256
"""Connections that have not sent their whole HTTP request, or were refused and have not left. For one more, the one
that has waited longest goes: a peer that means it sends its request at once."""

BACKLOG = 1024
"""Connections that the kernel accepts for us while we are busy."""


class CannotListen(Exception):
    """The address is taken, or none of this machine's; or a certificate cannot be used."""


@dataclass(frozen=True, slots=True)
class ListenOptions:
    """Where to listen, and for whom.

    Args:
        address: where.
        doorkeeper: decides who may come in.
        tls: for an encrypted address, with the certificate.
        socket_mode: of a socket in the file system.
        handshake_s: how long a peer may take for its HTTP request, and again for `initialize`, in seconds.
        passed: a socket that listens there already.
    """

    address: SocketAddress
    doorkeeper: Doorkeeper = field(default_factory=Doorkeeper)
    tls: ssl.SSLContext | None = None
    socket_mode: int = 0o600
    handshake_s: float = HANDSHAKE_S
    passed: socket.socket | None = None


def load_certificate(cert_file: str, key_file: str) -> ssl.SSLContext:
    """What TLS needs of a server: its certificate, with those that lead to its root, and the key, in PEM.

    Raises:
        CannotListen: a file cannot be read, or they do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # With a password to give, OpenSSL does not ask the terminal for the one of an encrypted key.
        context.load_cert_chain(cert_file, key_file, password=b"")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, FileNotFoundError | PermissionError) else str(error)
        raise CannotListen(f"cannot use certificate {cert_file} with key {key_file}: {reason}") from None
    return context


class Listener:
    """A listening socket. Made by `open_listener`."""

    def __init__(self, options: ListenOptions, sock: trio.socket.SocketType) -> None:
        self._options = options
        self._listener = trio.SocketListener(sock)
        self._at_door: dict[trio.CancelScope, None] = {}
        address = options.address
        if isinstance(address, TcpAddress):
            address = TcpAddress(address.host, sock.getsockname()[1], address.encrypted)
        for warning in options.doorkeeper.auth.warnings if options.doorkeeper.auth else ():
            log.warning("%s", warning)
        self.url = address.url
        """By which clients connect, with the real port."""
        self._any_host = not (isinstance(address, TcpAddress) and address.is_loopback)

    async def serve(self, supervisor: Supervisor) -> None:
        """Serve whoever connects, until this is cancelled."""

        async def serve(accepted: trio.SocketStream) -> None:
            # A bug of ours in one connection must not end the others.
            try:
                await self._serve_socket(supervisor, socket.socket(fileno=accepted.socket.detach()))
            except* Exception:
                log.exception("a connection failed inside the server")

        await trio.serve_listeners(serve, [self._listener])

    async def _serve_socket(self, supervisor: Supervisor, sock: socket.socket) -> None:
        options = self._options
        transport = EagerSocketStream(sock)
        stream = transport if options.tls is None else TlsStream(transport, options.tls)
        try:
            peer = _name_of_peer(sock)
            upgrade = await self._answer_request(supervisor, stream, sock, peer)
            if upgrade is not None:
                # Before the next await: those who are in have been counted a moment ago.
                with options.doorkeeper.entered():
                    await stream.send_all(upgrade.data)
                    channel = WebSocketChannel(
                        stream,
                        peer,
                        upgrade.leftover,
                        transport.try_send if stream is transport else _send_later,
                        transport.unread,
                        partial(peer_uid, sock),
                    )
                    await Connection(supervisor, channel, options.handshake_s).run()
        except (OSError, trio.BrokenResourceError):
            pass  # gone before it had said anything
        finally:
            await trio.aclose_forcefully(transport)

    async def _answer_request(
        self, supervisor: Supervisor, stream: trio.abc.HalfCloseableStream, sock: socket.socket, peer: str
    ) -> Upgrade | None:
        """Read the HTTP request and decide about it.

        Returns:
            The upgrade, if it is one; None if it has been answered, or does not come in time, or not at all.
        """

        def admit(authorization: bytes | None, *, enters: bool) -> Answer | None:
            doorkeeper = self._options.doorkeeper
            return doorkeeper.refusal(authorization, partial(peer_uid, sock), enters=enters)

        door = HttpDoor(_pages(supervisor), admit, any_host=self._any_host)
        with trio.move_on_after(self._options.handshake_s) as patience:
            # Until it is in or gone: a peer that lets its refusal lie takes a place, too.
            with self._waiting(patience):
                decision = await _read_request(door, stream)
                if decision is not None:
                    supervisor.metrics.http_responses[decision.status] += 1
                if isinstance(decision, Upgrade):
                    return decision
                if decision is not None:
                    log.debug("%s was answered %d", peer, decision.status)
                    patience.deadline = trio.current_time() + self._options.handshake_s
                    await stream.send_all(decision.data)
                    await linger(stream)
        return None

    @contextmanager
    def _waiting(self, patience: trio.CancelScope) -> Generator[None]:
        """Take a place at the door, if need be from the one that has had its place for longest."""
        if len(self._at_door) >= MAX_AT_DOOR:
            longest = next(iter(self._at_door))
            del self._at_door[longest]
            longest.cancel()
        self._at_door[patience] = None
        try:
            yield
        finally:
            self._at_door.pop(patience, None)


async def _read_request(door: HttpDoor, stream: trio.abc.ReceiveStream) -> Respond | Upgrade | None:
    """What the door says to the request; None if it does not come."""
    while data := await stream.receive_some(RECEIVE_BYTES):
        decision = door.receive(data)
        if decision is not None:
            return decision
    return None


@contextmanager
def open_listener(options: ListenOptions) -> Generator[Listener]:
    """Listen for the time of the block, inside a trio program; at its end the socket and its file are gone.

    Raises:
        CannotListen: the address is taken, or none of this machine's.
    """
    address = options.address
    with ExitStack() as stack:
        try:
            if options.passed is not None:
                sock = stack.enter_context(options.passed)
            elif isinstance(address, UnixAddress):
                sock = stack.enter_context(unix_listener(address.path, options.socket_mode, BACKLOG))
            else:
                sock = stack.enter_context(_tcp_listener(address))
        except OSError as error:
            reason = error.strerror or str(error)
            number = f" (os error {error.errno})" if error.errno else ""
            raise CannotListen(f"cannot listen at {address.url}: {reason}{number}") from None
        yield Listener(options, trio.socket.from_stdlib_socket(sock))


def _tcp_listener(address: TcpAddress) -> socket.socket:
    family = socket.AF_INET6 if address.host.version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((str(address.host), address.port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _pages(supervisor: Supervisor) -> Pages:
    """What GET and HEAD find, besides the WebSocket at `/`."""

    def ready() -> Answer:
        if supervisor.draining:
            return Answer(HTTPStatus.SERVICE_UNAVAILABLE, "the daemon is shutting down")
        return Answer(HTTPStatus.OK)

    def metrics() -> Answer:
        return Answer(HTTPStatus.OK, supervisor.metrics_text(), content_type=CONTENT_TYPE)

    return {
        b"/livez": Page(lambda: Answer(HTTPStatus.OK)),
        b"/readyz": Page(ready),
        b"/metrics": Page(metrics, is_open=False),
    }


def _name_of_peer(sock: socket.socket) -> str:
    """Of the other end, for people: IP:PORT, or `unix`."""
    if sock.family == socket.AF_UNIX:
        return "unix"
    host, port = sock.getpeername()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _send_later(data: bytes) -> int:
    """TLS sends nothing at once: what is out of a message cannot be told while it is encrypted."""
    return 0
