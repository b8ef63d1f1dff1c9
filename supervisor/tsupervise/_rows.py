"""What a method is made of: its handler, how its requests are ordered, and what it may use of its connection.

A handler answers at once, or returns a coroutine when it has to wait; it fails with RpcError. It takes what it
needs from its `Peer` and never sees a connection. A result that is large comes as JSON already, so that the loop
never has to go through it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

from tsupervise_protocol.messages import InitializeParams, Message

from ._outbox import Outbox
from ._session import Session
from ._supervisor import Supervisor


class Peer(Protocol):
    """What a handler may use of the connection that its request came from."""

    supervisor: Supervisor
    outbox: Outbox

    @property
    def session(self) -> Session:
        """The session that the connection holds.

        Raises:
            RpcError: another connection holds it now.
        """
        ...

    async def open_session(self, params: InitializeParams) -> Session:
        """Hold a new session, or the one named."""
        ...

    def require_operator(self) -> None:
        """See that the peer is the user that the daemon runs as, or root.

        Raises:
            RpcError: NOT_ALLOWED, it is somebody else or cannot be told.
        """
        ...


@dataclass(frozen=True, slots=True)
class LargeResult:
    """A result that is made to be sent, in a thread.

    Args:
        encode: makes the whole response, given the beginning and the end of its envelope.
    """

    encode: Callable[[bytes, bytes], Awaitable[bytes]]


Result = Message | LargeResult

Outcome = Message | Awaitable[Result]


@dataclass(frozen=True, slots=True)
class Row:
    """How one method is handled.

    Args:
        handler: takes the peer and the typed params.
        lane: what orders requests among themselves: those of one lane are handled in order of arrival, a
            waiting one holds up the next. None: no order.
        overtakes: methods that this one does not wait for, though they hold its lane.
        holds_lane: whether the next in the lane waits when this one has to.
        inline: whether the connection handles nothing else meanwhile.
    """

    handler: Callable[[Peer, Any], Outcome]
    lane: Callable[[Any], Hashable] | None = None
    overtakes: frozenset[str] = frozenset()
    holds_lane: bool = True
    inline: bool = False
