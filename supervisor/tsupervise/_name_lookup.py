"""Looking up host names, in threads of their own: a resolver that does not answer holds up nothing else.

A look-up cannot be ended. One that nobody waits for any more keeps its thread until the resolver gives up, which
takes half a minute as a rule; without this it would be one of those in which the audit log is written.
"""

from __future__ import annotations

import socket
from functools import partial
from typing import Any

import trio

MAX_LOOKUPS = 64
"""How many look-ups run at a time, those that nobody waits for counted; then the others wait for one of them."""


class Lookups(trio.abc.HostnameResolver):
    """The resolver of one daemon, see `trio.socket.set_custom_hostname_resolver`."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(MAX_LOOKUPS)

    async def getaddrinfo(
        self,
        host: bytes | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        look_up = partial(socket.getaddrinfo, host, port, family, type, proto, flags)
        return await trio.to_thread.run_sync(look_up, abandon_on_cancel=True, limiter=self._limiter)

    async def getnameinfo(self, sockaddr: tuple[str, int] | tuple[str, int, int, int], flags: int) -> Any:
        look_up = partial(socket.getnameinfo, sockaddr, flags)
        return await trio.to_thread.run_sync(look_up, abandon_on_cancel=True, limiter=self._limiter)
