"""The states of a process and what leads from one to the next: a table. Nothing here awaits.

`exited` is announced on the way that EXITED leads, `closed` on entering CLOSED; that `closed` comes last and
exactly once can be read off the table. A child that ends its output early changes no state: its exit does.
"""

from __future__ import annotations

from enum import Enum, auto


class State(Enum):
    STARTING = auto()
    """The id is reserved; there is no child yet."""
    RUNNING = auto()
    EXITED = auto()
    """The child is dead, but something may still hold its output open."""
    CLOSED = auto()
    """Exit known and all output ended; readable until forgotten."""
    GONE = auto()


class Step(Enum):
    SPAWNED = auto()
    EXITED = auto()
    STREAMS_ENDED = auto()
    FORGOTTEN = auto()
    """The start failed or was cancelled, the retention time is over, or the session ends."""


TRANSITIONS: dict[State, dict[Step, State]] = {
    State.STARTING: {Step.SPAWNED: State.RUNNING, Step.FORGOTTEN: State.GONE},
    State.RUNNING: {Step.EXITED: State.EXITED, Step.FORGOTTEN: State.GONE},
    State.EXITED: {Step.STREAMS_ENDED: State.CLOSED, Step.FORGOTTEN: State.GONE},
    State.CLOSED: {Step.FORGOTTEN: State.GONE},
    State.GONE: {},
}


class Lifecycle:
    """The state of one process. The only thing that changes it is `take`."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state = State.STARTING

    def take(self, step: Step) -> State:
        """Make a step and return the new state.

        Raises:
            RuntimeError: the table has no such step; a bug of ours, never the peer's doing.
        """
        following = TRANSITIONS[self.state].get(step)
        if following is None:
            raise RuntimeError(f"no step {step.name} from {self.state.name}")
        self.state = following
        return following
