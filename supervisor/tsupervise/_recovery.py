"""Whether a client is connected, on its way back, or done for: a state and its transitions. Pure: no trio, no I/O.

Whoever owns the connection tells what happens and obeys what comes out; nothing in here waits, so that
there is one state at any time and every user of the client sees the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from tsupervise_protocol.errors import ErrorCode, MalformedMessage

from .errors import ConnectFailed, ServerRefused

RECOVERY_S = 45.0
"""How long a client tries to come back after a disconnect; as other clients of this protocol have it."""

RETRY_S = 0.1
"""Between two attempts to come back; the first one starts at once."""

RETRY_JITTER_S = 0.02
"""Up to so much is added to `RETRY_S`, so that clients that were cut off together do not come back in step."""


class Disconnected(Exception):
    """One connection has ended.

    Args:
        reason: how.
        is_final: whether to connect again would not help, as when the server breaks the protocol.
    """

    def __init__(self, reason: str, *, is_final: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_final = is_final


class OtherSession(ConnectFailed):
    """The server answered the handshake with another session than the one that was asked for."""


@dataclass(frozen=True, slots=True)
class Connected:
    """Calls go out by the connection of this generation; each connection has one, from 1."""

    generation: int


@dataclass(frozen=True, slots=True)
class Recovering:
    """The connection is gone and attempts are made to replace it, until `deadline`."""

    lost_generation: int
    reason: str
    deadline: float
    """On the caller's clock, in seconds."""
    last_error: str | None = None
    """Why the last attempt failed."""


@dataclass(frozen=True, slots=True)
class Failed:
    """For good, and with one message for everybody."""

    message: str


State = Connected | Recovering | Failed


def is_worth_retrying(error: Exception) -> bool:
    """Whether another attempt to come back may succeed where this one met `error`."""
    match error:
        case Disconnected(is_final=is_final):
            return not is_final
        case OtherSession() | MalformedMessage():
            return False
        case ConnectFailed():
            return True
        case ServerRefused(code=code):
            return code == ErrorCode.SESSION_ATTACHED
        case _:
            return False


class Recovery:
    """See the module. It starts connected, in generation 1.

    Args:
        budget_s: seconds that coming back may take; 0 for a client that does not come back.
    """

    __slots__ = ("_budget_s", "state")

    def __init__(self, budget_s: float) -> None:
        self._budget_s = budget_s
        self.state: State = Connected(1)

    def disconnected(self, generation: int, disconnect: Disconnected, now: float) -> bool:
        """Take the end of a connection; return whether it was the one in use."""
        if self.state != Connected(generation):
            return False
        if disconnect.is_final or self._budget_s <= 0:
            self.fail(disconnect.reason)
        else:
            self.state = Recovering(generation, disconnect.reason, now + self._budget_s)
        return True

    def succeeded(self) -> int:
        """An attempt has succeeded: return the generation of the new connection."""
        assert isinstance(self.state, Recovering), "there is one attempt at a time, and only while recovering"
        self.state = Connected(self.state.lost_generation + 1)
        return self.state.generation

    def attempt_failed(self, error: Exception, jitter: float) -> float | None:
        """An attempt has failed.

        Args:
            error: what it met.
            jitter: a random number between 0 and 1.

        Returns:
            How many seconds to wait before the next attempt; None if there is none.
        """
        if not isinstance(self.state, Recovering):
            return None
        before = self.state
        if not is_worth_retrying(error):
            self._fail_to_resume(before.reason, str(error))
            return None
        self.state = Recovering(before.lost_generation, before.reason, before.deadline, str(error))
        return RETRY_S + jitter * RETRY_JITTER_S

    def expired(self) -> None:
        """The time is up."""
        if isinstance(self.state, Recovering):
            error = self.state.last_error or "no attempt came to an end"
            self._fail_to_resume(self.state.reason, f"gave up after {self._budget_s:g} s: {error}")

    def fail(self, reason: str) -> None:
        """Fail for good, if it has not yet, without an attempt to come back."""
        if not isinstance(self.state, Failed):
            self.state = Failed(f"the connection is lost: {reason}; connect again")

    def _fail_to_resume(self, reason: str, error: str) -> None:
        self.fail(f"{reason}; its session could not be resumed: {error}")
