"""The states of a process: each step from each state, and what the table as a whole promises."""

from __future__ import annotations

from itertools import product

import pytest

from tsupervise._lifecycle import TRANSITIONS, Lifecycle, State, Step

PATHS_TO: dict[State, list[Step]] = {
    State.STARTING: [],
    State.RUNNING: [Step.SPAWNED],
    State.EXITED: [Step.SPAWNED, Step.EXITED],
    State.CLOSED: [Step.SPAWNED, Step.EXITED, Step.STREAMS_ENDED],
    State.GONE: [Step.FORGOTTEN],
}

ALLOWED = {
    (State.STARTING, Step.SPAWNED): State.RUNNING,
    (State.STARTING, Step.FORGOTTEN): State.GONE,
    (State.RUNNING, Step.EXITED): State.EXITED,
    (State.RUNNING, Step.FORGOTTEN): State.GONE,
    (State.EXITED, Step.STREAMS_ENDED): State.CLOSED,
    (State.EXITED, Step.FORGOTTEN): State.GONE,
    (State.CLOSED, Step.FORGOTTEN): State.GONE,
}


@pytest.mark.parametrize(("state", "step"), list(product(State, Step)))
def test_a_step_leads_where_the_table_says_or_is_refused(state: State, step: Step) -> None:
    """All pairs: a refused step names itself and its state, and changes nothing."""
    lifecycle = Lifecycle()
    for earlier in PATHS_TO[state]:
        lifecycle.take(earlier)
    assert lifecycle.state is state
    following = ALLOWED.get((state, step))
    if following is None:
        with pytest.raises(RuntimeError, match=f"no step {step.name} from {state.name}"):
            lifecycle.take(step)
        assert lifecycle.state is state
    else:
        assert lifecycle.take(step) is lifecycle.state is following


def test_nothing_happens_twice() -> None:
    """No step leads back: from no state can the state be reached again, so exit and close come once."""
    for start in State:
        reached: set[State] = set()
        frontier = [start]
        while frontier:
            following = set(TRANSITIONS[frontier.pop()].values()) - reached
            reached |= following
            frontier += following
        assert start not in reached


def test_every_state_can_be_forgotten_but_the_last() -> None:
    """The end of a session may meet a process in any state."""
    assert [state for state in State if Step.FORGOTTEN not in TRANSITIONS[state]] == [State.GONE]
