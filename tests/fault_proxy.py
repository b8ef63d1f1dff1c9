"""A TCP proxy on loopback that fails as a test wants: cut now or at a byte, by FIN, RST, silence or on one side.

It carries bytes and reads none of them, so a cut falls anywhere, also in the middle of a frame. While it
is cut it still accepts, and closes at once: to let go of the port would be to risk losing it. It doubles
and changes nothing.
"""

from __future__ import annotations

import math
import socket
import struct
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import trio

How = Literal["fin", "rst", "half-open", "silent"]
"""Both ends are closed, or both are reset; or the client's is reset and the server hears nothing of it; or
the server's is, and the client hears nothing any more."""

Direction = Literal["forth", "back"]
"""From the client to the server, or from the server to the client."""


@dataclass
class _Fuse:
    """A cut that waits for bytes to pass in one direction."""

    direction: Direction
    after_bytes: int | None
    """None for the next piece, whatever its size."""
    for_s: float
    how: How
    stall_s: float = 0.0


@dataclass(eq=False)
class _Carried:
    """One connection through the proxy."""

    near: trio.SocketStream
    far: trio.SocketStream
    scope: trio.CancelScope
    how: How = "fin"


@dataclass
class FaultProxy:
    """One listening proxy. `carried`, `refused` and `cuts` count what has happened so far."""

    target: tuple[str, int]
    port: int
    carried: int = 0
    refused: int = 0
    cuts: int = 0
    refusal: bytes = b""
    """What a refused connection is told before it is closed, such as an HTTP answer."""
    when_carrying: Callable[[], None] = lambda: None
    """Called whenever a new connection is carried."""
    delay_s: float = 0.0
    """Each piece waits so long before it is passed on."""
    hold_s: float = math.inf
    """How long a server hears nothing of a half-open cut, if `close_held` is not called before."""
    _refuse_until: float = 0.0
    _fuse: _Fuse | None = None
    _carrying: set[_Carried] = field(default_factory=set[_Carried])
    _let_go: trio.Event = field(default_factory=trio.Event)
    _flowing: trio.Event = field(default_factory=trio.Event)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def cut(self, for_s: float, how: How = "fin") -> None:
        """Drop every connection now, and refuse new ones for `for_s` seconds."""
        self.cuts += 1
        self._refuse_until = trio.current_time() + for_s
        for connection in self._carrying:
            if not connection.scope.cancel_called:  # else it is held since an earlier cut
                connection.how = how
                connection.scope.cancel()

    def cut_behind_next(self, for_s: float, how: How = "fin") -> None:
        """Cut as `cut` does, but as soon as the target has been given the next bytes of a client.

        What was asked for then happens, and the answer to it is lost.
        """
        self._fuse = _Fuse("forth", None, for_s, how)

    def cut_after(
        self, direction: Direction, count: int, for_s: float = 0.0, how: How = "fin", stall_s: float = 0.0
    ) -> None:
        """Cut as `cut` does, once `count` more bytes have passed in one direction, and none beyond them.

        For `stall_s` before the cut nothing passes at all, in either direction.
        """
        self._fuse = _Fuse(direction, count, for_s, how, stall_s)

    @property
    def is_armed(self) -> bool:
        """Whether a cut waits for its bytes."""
        return self._fuse is not None

    def stall(self) -> None:
        """Pass nothing on, and close nothing, until `flow`."""
        self._flowing = trio.Event()

    def flow(self) -> None:
        """End a `stall`."""
        self._flowing.set()

    async def carry(self, near: trio.SocketStream) -> None:
        """Carry one connection until an end closes it or it is cut."""
        if trio.current_time() < self._refuse_until:
            self.refused += 1
            if self.refusal:
                try:
                    await near.receive_some()  # else the close would be a reset, and the refusal lost
                    await near.send_all(self.refusal)
                except trio.BrokenResourceError:
                    pass
            return
        self.carried += 1
        self.when_carrying()
        far = await trio.open_tcp_stream(*self.target)
        connection = _Carried(near, far, trio.CancelScope())
        self._carrying.add(connection)
        held: trio.SocketStream | None = far
        try:
            with connection.scope:
                async with trio.open_nursery() as nursery:  # its one child copies there, the body back
                    nursery.start_soon(self._pump, connection, "forth")
                    await self._pump(connection, "back")
            held = {"half-open": far, "silent": near}.get(connection.how)
            for stream in {near, far} - {held}:
                _close(stream, connection.how)
            if held is not None:
                with trio.move_on_after(self.hold_s if held is far else math.inf):
                    await self._let_go.wait()
        finally:
            self._carrying.discard(connection)
            if held is not None:
                _close(held, "rst")

    async def _pump(self, connection: _Carried, direction: Direction) -> None:
        """Copy until either end is gone, then end the other direction too."""
        source, sink = connection.near, connection.far
        if direction == "back":
            source, sink = sink, source
        try:
            async for data in source:
                if self.delay_s:
                    await trio.sleep(self.delay_s)
                await self._flowing.wait()
                fuse = self._fuse if self._fuse is not None and self._fuse.direction == direction else None
                if fuse is None or (fuse.after_bytes is not None and fuse.after_bytes >= len(data)):
                    if fuse is not None and fuse.after_bytes is not None:
                        fuse.after_bytes -= len(data)
                    await sink.send_all(data)
                    continue
                self._fuse = None
                await sink.send_all(data[: fuse.after_bytes])
                if fuse.stall_s:
                    self.stall()
                    try:
                        await trio.sleep(fuse.stall_s)
                    finally:
                        self.flow()  # whoever waited for this is cut before it can pass anything on
                self.cut(fuse.for_s, fuse.how)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # a reset is an end like any other
        connection.scope.cancel()

    def close_held(self) -> None:
        """Reset every end that is held open."""
        self._let_go.set()
        self._let_go = trio.Event()


def _close(stream: trio.SocketStream, how: How) -> None:
    if how != "fin" and stream.socket.fileno() != -1:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


@asynccontextmanager
async def fault_proxy(target: tuple[str, int]) -> AsyncGenerator[FaultProxy]:
    """Stand in front of `target` (host, port) on a free loopback port for the length of the block."""
    async with trio.open_nursery() as nursery:  # its one child serves the port
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy = FaultProxy(target, listener.socket.getsockname()[1])
        proxy.flow()
        nursery.start_soon(trio.serve_listeners, proxy.carry, [listener])
        try:
            yield proxy
        finally:
            nursery.cancel_scope.cancel()
