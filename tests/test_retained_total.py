"""The daemon's bound on all retained output: who gives up what, and that the account is right."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tsupervise._event_log import CHUNK_BYTES, EventLog
from tsupervise._retained_total import RetainedTotal

UNIT = 1_000
"""What a chunk of size 1 weighs here, in bytes of memory."""


def weight(log: EventLog) -> int:
    return log.footprint // UNIT


def append(total: RetainedTotal, log: EventLog, size: int) -> None:
    """As a process does it: append, then say by how much the log has grown."""
    before = log.footprint
    log.append("stdout", bytes(size * UNIT - CHUNK_BYTES))
    total.changed(log, log.footprint - before)


def close(total: RetainedTotal, log: EventLog) -> None:
    log.record_exit(0, None)
    log.record_close()
    total.closed(log)


def test_what_has_been_closed_longest_goes_first() -> None:
    """Output of live processes is touched only when no closed one has any left."""
    total = RetainedTotal(limit=10 * UNIT)
    first, second, live = EventLog(), EventLog(), EventLog()
    for log in (second, first):
        append(total, log, 2)
        append(total, log, 2)
    close(total, first)
    close(total, second)
    append(total, live, 4)
    assert [weight(log) for log in (first, second, live)] == [2, 4, 4]
    append(total, live, 4)
    assert [weight(log) for log in (first, second, live)] == [0, 2, 8]
    append(total, live, 4)
    assert [weight(log) for log in (first, second, live)] == [0, 0, 8]
    assert total.bytes == 8 * UNIT


def test_a_chunk_that_fills_the_bound_exactly_costs_nothing() -> None:
    """The bound itself is still allowed; one byte more is not."""
    total = RetainedTotal(limit=10 * UNIT)
    log = EventLog()
    append(total, log, 4)
    append(total, log, 6)
    assert (weight(log), total.bytes // UNIT) == (10, 10)
    append(total, log, 1)
    assert (weight(log), total.bytes // UNIT) == (7, 7)


def test_forgetting_gives_everything_back() -> None:
    """A forgotten log weighs nothing, whether it was closed or not."""
    total = RetainedTotal(limit=100 * UNIT)
    closed, live = EventLog(), EventLog()
    append(total, closed, 30)
    append(total, live, 40)
    close(total, closed)
    total.forgotten(closed)
    assert (total.bytes // UNIT, weight(closed)) == (40, 0)
    total.forgotten(live)
    assert (total.bytes // UNIT, weight(live)) == (0, 0)


def test_who_has_no_file_does_not_count_on_that_of_another() -> None:
    """A closed log that is being moved takes its time, and nothing else would hold up who grows meanwhile."""
    total = RetainedTotal(limit=10 * UNIT)
    closed, live = EventLog(), EventLog()
    append(total, closed, 6)
    close(total, closed)
    closed.relieve = lambda: True
    for _ in range(4):
        append(total, live, 2)
    assert [weight(log) for log in (closed, live)] == [6, 4]


def test_a_forgotten_log_is_not_taken_from() -> None:
    """A closed log that was forgotten or emptied is passed over, and the next closed one gives."""
    total = RetainedTotal(limit=10 * UNIT)
    forgotten, closed, live = EventLog(), EventLog(), EventLog()
    append(total, forgotten, 3)
    append(total, closed, 3)
    close(total, forgotten)
    close(total, closed)
    total.forgotten(forgotten)
    append(total, live, 9)
    assert [weight(log) for log in (forgotten, closed, live)] == [0, 0, 9]
    assert total.bytes == 9 * UNIT


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["append", "close", "forget"]), st.integers(0, 4), st.integers(1, 8)),
    max_size=60,
)


@settings(deadline=None)
@given(actions=ACTIONS, limit=st.integers(1, 30))
def test_the_account_is_always_the_sum_of_the_logs(actions: list[tuple[str, int, int]], limit: int) -> None:
    """Whatever happens in whatever order, bytes are counted once and the bound holds after each step."""
    total = RetainedTotal(limit * UNIT)
    logs = {number: EventLog(max_bytes=20 * UNIT) for number in range(5)}
    for action, number, size in actions:
        log = logs[number]
        match action:
            case "append" if log.closed is None:
                append(total, log, size)
            case "close" if log.closed is None:
                close(total, log)
            case "forget":
                total.forgotten(log)
                logs[number] = EventLog(max_bytes=20 * UNIT)
            case _:
                continue
        assert total.bytes == sum(log.footprint for log in logs.values())
        assert total.bytes <= limit * UNIT
