"""The order of one process's events: pure tables and properties, without a server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsupervise._event_order import MAX_BYTES, MAX_EVENTS, EventOrder, EventOverflow
from tsupervise.events import Closed, Event, Exited, Lost, Output


def history(length: int, exit_at: int | None = None) -> list[Output | Exited | Closed]:
    """All events of a process: output, an exit at number `exit_at` (before the close if None), a close."""
    exit_seq = length - 1 if exit_at is None else exit_at
    return [
        Closed(seq)
        if seq == length
        else Exited(seq, 0, sandbox_denied=False)
        if seq == exit_seq
        else Output(seq, "stdout", b"%d\n" % seq)
        for seq in range(1, length + 1)
    ]


def kept_after(order: EventOrder, seq: int) -> list[Event]:
    """What a reader takes one by one until nothing is there."""
    taken: list[Event] = []
    while (event := order.after(seq)) is not None:
        taken.append(event)
        seq = event.seq
    return taken


@pytest.mark.case(102)
@given(st.data())
def test_events_are_published_once_and_in_order_however_they_arrive(data: st.DataObject) -> None:
    """Any arrival order, with any event repeated, gives the same sequence, the close last."""
    events = history(data.draw(st.integers(2, 40), label="length"))
    repeats = data.draw(st.lists(st.sampled_from(events), max_size=20), label="repeats")
    order = EventOrder()
    published: list[Event] = []
    for event in data.draw(st.permutations([*events, *repeats]), label="arrivals"):
        before = order.last
        assert order.insert(event) == (order.last > before)
        published += kept_after(order, before)
        assert order.closed == (order.last == len(events))
    assert published == events


@pytest.mark.case(102)
def test_a_close_that_comes_first_waits_for_all_others() -> None:
    """3, 1, 2 is published as 1, 2, 3, and only then is the process closed."""
    output, exited, closed = history(3)
    order = EventOrder()
    assert not order.insert(closed)
    assert not order.closed
    assert order.insert(output)
    assert not order.closed
    assert order.insert(exited)
    assert order.closed
    assert order.exited == exited
    assert kept_after(order, 0) == [output, exited, closed]


@pytest.mark.case(102)
def test_nothing_comes_after_the_close() -> None:
    """An event beyond the close is dropped, whether it comes late or was waiting already."""
    order = EventOrder()
    stray = Output(4, "stdout", b"stray")
    order.insert(stray)
    for event in history(3):
        order.insert(event)
    assert not order.insert(stray)
    assert order.last == 3


@pytest.mark.case(103)
def test_as_many_early_events_as_are_allowed_are_all_published() -> None:
    """256 events that came too early wait, and the one that closes the gap publishes them with it."""
    events = history(MAX_EVENTS + 1)
    order = EventOrder()
    for event in events[1:]:
        assert not order.insert(event)
    assert order.insert(events[0])
    assert order.last == MAX_EVENTS + 1
    assert order.closed


@pytest.mark.case(103)
def test_one_early_event_more_fails_the_process() -> None:
    """The 257th early event has no place; the error says what is missing."""
    events = history(MAX_EVENTS + 2)
    order = EventOrder()
    for event in events[1:-1]:
        order.insert(event)
    with pytest.raises(EventOverflow, match="before event 1,"):
        order.insert(events[-1])


@pytest.mark.case(103)
def test_early_output_is_bounded_in_bytes() -> None:
    """More than 1 MiB of early output has no place, but the event that is due always has one."""
    half = bytes(MAX_BYTES // 2)
    order = EventOrder()
    order.insert(Output(2, "stdout", half))
    order.insert(Output(3, "stdout", half))
    with pytest.raises(EventOverflow):
        order.insert(Output(4, "stdout", b"x"))
    assert order.insert(Output(1, "stdout", half))
    assert order.last == 3


@pytest.mark.case(103)
def test_an_event_of_more_than_any_event_may_carry_fails_the_process() -> None:
    """One chunk above 1 MiB is refused even if it is due; one of exactly 1 MiB is not."""
    order = EventOrder()
    assert order.insert(Output(1, "stdout", bytes(MAX_BYTES)))
    with pytest.raises(EventOverflow):
        order.insert(Output(2, "stdout", bytes(MAX_BYTES + 1)))


@pytest.mark.parametrize(
    ("size", "kept"),
    [(1, MAX_EVENTS), (MAX_BYTES // 4, 4), (MAX_BYTES // 4 + 1, 3), (MAX_BYTES, 1)],
    ids=["by number", "by bytes", "a byte too many", "one that fills it"],
)
def test_what_is_kept_is_bounded(size: int, kept: int) -> None:
    """The last 256 events or 1 MiB of output are kept, whichever is less."""
    order = EventOrder()
    for seq in range(1, 2 * MAX_EVENTS + 1):
        order.insert(Output(seq, "stdout", bytes(size)))
    assert order.last - order.first + 1 == kept
    assert order.has_hole_after(0)
    assert not order.has_hole_after(order.first - 1)
    assert order.bytes_after(0) == kept * size
    assert order.bytes_after(order.last - 1) == size
    assert order.bytes_after(order.last) == 0


@pytest.mark.case(105)
@given(
    length=st.integers(MAX_EVENTS + 10, 3 * MAX_EVENTS),
    position=st.integers(0, 5),
    exit_back=st.integers(1, 2 * MAX_EVENTS),
    retained=st.integers(0, 3 * MAX_EVENTS),
    page=st.integers(1, 3 * MAX_EVENTS),
)
def test_a_hole_is_filled_with_all_that_anybody_has(
    length: int, position: int, exit_back: int, retained: int, page: int
) -> None:
    """A reader far behind gets every event once, in order, from two sources; the rest is told as lost.

    The server retains the output among its last `retained` events and answers at most `page` numbers at a
    time; the exit is known to the order itself, however long ago it was.
    """
    events = history(length, exit_at=max(position + 1, length - exit_back))
    order = EventOrder()
    for event in events:
        order.insert(event)
    taken: list[Event] = []
    seq = position
    while order.has_hole_after(seq):
        next_seq = min(seq + page, length) + 1
        oldest = max(seq, length - retained)
        answer = [event for event in events[oldest : next_seq - 1] if isinstance(event, Output)]
        filled = order.fill_hole(seq, answer, next_seq)
        assert filled, "an answer always leads on"
        taken += filled
        seq = filled[-1].seq
    taken += kept_after(order, seq)

    first_of = [event.first_seq if isinstance(event, Lost) else event.seq for event in taken]
    assert first_of[0] == position + 1
    assert all(event.seq + 1 == following for event, following in zip(taken, first_of[1:], strict=False))
    assert taken[-1] == events[-1]
    got = [event for event in taken if not isinstance(event, Lost)]
    assert all(event == events[event.seq - 1] for event in got)
    expected = {
        event.seq
        for event in events[position:]
        if event.seq >= order.first or isinstance(event, Exited) or event.seq > length - retained
    }
    assert {event.seq for event in got} == expected


@pytest.mark.case(105)
def test_without_an_answer_all_that_is_missing_is_lost() -> None:
    """A process that the server has forgotten leaves one `Lost`, and the rest of the events."""
    order = EventOrder()
    for event in history(MAX_EVENTS + 10):
        order.insert(event)
    assert order.fill_hole(3, (), order.first) == [Lost(4, 10)]
