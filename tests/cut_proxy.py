"""A TCP proxy on loopback that a test can cut: all its connections at once, and new ones for a while.

It carries bytes and reads none of them, so a cut falls anywhere, also in the middle of a frame. While it
is cut it still accepts, and closes at once: to let go of the port would be to risk losing it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio


@dataclass
class CutProxy:
    """One listening proxy. `carried` and `refused` count the connections that came so far."""

    target: tuple[str, int]
    port: int
    carried: int = 0
    refused: int = 0
    _cut_until: float = 0.0
    _armed_for_s: float | None = None
    _carrying: set[trio.CancelScope] = field(default_factory=set[trio.CancelScope])

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def cut(self, for_s: float) -> None:
        """Drop every connection now, and refuse new ones for `for_s` seconds."""
        self._cut_until = trio.current_time() + for_s
        for scope in self._carrying:
            scope.cancel()

    def cut_behind_next(self, for_s: float) -> None:
        """Cut as `cut` does, but as soon as the target has been given the next bytes of a client.

        What was asked for then happens, and the answer to it is lost.
        """
        self._armed_for_s = for_s

    async def carry(self, near: trio.SocketStream) -> None:
        """Carry one connection until an end closes it or it is cut."""
        if trio.current_time() < self._cut_until:
            self.refused += 1
            return
        self.carried += 1
        async with trio.open_nursery() as nursery:  # its one child copies there, the body back
            self._carrying.add(nursery.cancel_scope)
            try:
                async with await trio.open_tcp_stream(*self.target) as far:
                    nursery.start_soon(self.pump, near, far, nursery.cancel_scope, True)
                    await self.pump(far, near, nursery.cancel_scope, False)
            finally:
                self._carrying.discard(nursery.cancel_scope)

    async def pump(
        self, source: trio.SocketStream, sink: trio.SocketStream, both: trio.CancelScope, forth: bool
    ) -> None:
        """Copy until either end is gone, then end the other direction too."""
        try:
            async for data in source:
                await sink.send_all(data)
                if forth and self._armed_for_s is not None:
                    self.cut(self._armed_for_s)
                    self._armed_for_s = None
        except trio.BrokenResourceError:
            pass  # a reset is an end like any other
        both.cancel()


@asynccontextmanager
async def cut_proxy(target: tuple[str, int]) -> AsyncGenerator[CutProxy]:
    """Stand in front of `target` (host, port) on a free loopback port for the length of the block."""
    async with trio.open_nursery() as nursery:  # its one child serves the port
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy = CutProxy(target, listener.socket.getsockname()[1])
        nursery.start_soon(trio.serve_listeners, proxy.carry, [listener])
        yield proxy
        nursery.cancel_scope.cancel()
