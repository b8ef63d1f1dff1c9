"""Which message is allowed when on one connection: a table, and the one object that walks it.

A connection says `initialize` (a request, answered with the session), then `initialized` (a
notification), and from then on everything else. An `initialize` that fails changes nothing.
"""

from enum import Enum, auto

from .errors import ErrorCode, ProtocolViolation, RpcError


class Phase(Enum):
    """How far the handshake of one connection has come."""

    NEW = auto()
    INITIALIZED_BY_SERVER = auto()
    """`initialize` has been answered; the client's `initialized` is still to come."""
    READY = auto()


# What a request of each kind meets in each phase: None means go on, a text is a refusal.
_REQUESTS: dict[Phase, dict[str, str | None]] = {
    Phase.NEW: {
        "initialize": None,
        "other": "client must call initialize before using {family} methods",
    },
    Phase.INITIALIZED_BY_SERVER: {
        "initialize": "initialize may only be sent once per connection",
        "other": "client must send initialized before using {family} methods",
    },
    Phase.READY: {
        "initialize": "initialize may only be sent once per connection",
        "other": None,
    },
}

# Where the notification `initialized` leads; None is a violation that ends the connection.
_INITIALIZED: dict[Phase, Phase | None] = {
    Phase.NEW: None,
    Phase.INITIALIZED_BY_SERVER: Phase.READY,
    Phase.READY: Phase.READY,
}


class Handshake:
    """The handshake state of one connection, from the server's side."""

    __slots__ = ("phase",)

    def __init__(self) -> None:
        self.phase = Phase.NEW

    def check_request(self, method: str, family: str) -> None:
        """Raise RpcError if a request of this method must not come now."""
        if self.phase is Phase.READY and method != "initialize":
            return
        refusal = _REQUESTS[self.phase]["initialize" if method == "initialize" else "other"]
        if refusal is not None:
            raise RpcError(ErrorCode.INVALID_REQUEST, refusal.format(family=family))

    def initialize_succeeded(self) -> None:
        """Record that `initialize` has been answered with a session."""
        assert self.phase is Phase.NEW, "initialize is checked before it is answered"
        self.phase = Phase.INITIALIZED_BY_SERVER

    def check_notification(self, method: str) -> None:
        """Take a notification; raise ProtocolViolation if it is none that a client may send now."""
        if method != "initialized":
            raise ProtocolViolation(f"clients send no notification but initialized; got {method!r}")
        following = _INITIALIZED[self.phase]
        if following is None:
            raise ProtocolViolation("initialized came before initialize")
        self.phase = following
