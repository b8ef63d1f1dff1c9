"""Coming back after a disconnect: the decisions and the catching up, as tables and properties, without a server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsupervise import ConnectFailed, ServerRefused
from tsupervise._event_order import MAX_BYTES, EventOrder, EventOverflow, Snapshot, WindowLost
from tsupervise._recovery import (
    RETRY_JITTER_S,
    RETRY_S,
    Connected,
    Disconnected,
    Failed,
    OtherSession,
    Recovering,
    Recovery,
    is_worth_retrying,
)
from tsupervise.events import Closed, Event, Exited, Output
from tsupervise_protocol.errors import MalformedMessage
from tsupervise_protocol.messages import Usage

CUT = Disconnected("cut")


def output(seq: int) -> Output:
    return Output(seq, "stdout", b"%d\n" % seq)


# --- the state and its transitions ---------------------------------------------------------------------


@pytest.mark.case(113)
@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (ConnectFailed("nobody there, HTTP 503, or no answer in time"), True),
        (Disconnected("lost again"), True),
        (ServerRefused("initialize", -32010, "attached still"), True),
        (ServerRefused("initialize", -32600, "unknown session id s"), False),
        (ServerRefused("process/read", -32603, "an internal error"), False),
        (OtherSession("asked for 'a', got 'b'"), False),
        (Disconnected("it broke the protocol", is_final=True), False),
        (MalformedMessage("no JSON"), False),
        (ValueError("anything else"), False),
    ],
    ids=lambda value: str(value),
)
def test_what_is_tried_again(error: Exception, retried: bool) -> None:
    """A server that is away, slow or not ready yet is tried again; one that said no, or nonsense, is not."""
    assert is_worth_retrying(error) == retried
    recovery = Recovery(45)
    recovery.disconnected(1, CUT, now=0)
    pause = recovery.attempt_failed(error, jitter=0.5)
    if retried:
        assert pause == RETRY_S + RETRY_JITTER_S / 2
        assert recovery.state == Recovering(1, "cut", 45, str(error))
    else:
        assert pause is None
        assert recovery.state == Failed(
            f"the connection is lost: cut; its session could not be resumed: {error}; connect again"
        )


@pytest.mark.case(114)
def test_the_end_of_an_older_connection_is_ignored() -> None:
    """Whenever it is noticed: during the recovery that it began, after it, and after a failure."""
    recovery = Recovery(45)
    assert recovery.disconnected(1, CUT, now=0)
    recovering = recovery.state
    assert not recovery.disconnected(1, Disconnected("again"), now=1)
    assert recovery.state is recovering
    assert recovery.succeeded() == 2
    assert not recovery.disconnected(1, Disconnected("late", is_final=True), now=2)
    assert recovery.state == Connected(2)
    assert recovery.disconnected(2, CUT, now=3)
    recovery.expired()
    failed = recovery.state
    assert not recovery.disconnected(2, CUT, now=4)
    assert recovery.state is failed


@pytest.mark.case(112)
def test_the_budget_of_each_outage_is_its_own() -> None:
    """The time runs from the disconnect, and a later outage has all of it again."""
    recovery = Recovery(45)
    recovery.disconnected(1, CUT, now=100)
    assert recovery.state == Recovering(1, "cut", 145)
    recovery.attempt_failed(ConnectFailed("no"), jitter=0)
    assert recovery.state == Recovering(1, "cut", 145, "no")
    recovery.succeeded()
    recovery.disconnected(2, CUT, now=1000)
    assert recovery.state == Recovering(2, "cut", 1045)
    recovery.attempt_failed(ConnectFailed("still no"), jitter=0)
    recovery.expired()
    assert isinstance(recovery.state, Failed)
    assert "gave up after 45 s: still no" in recovery.state.message


@pytest.mark.parametrize(
    ("budget_s", "disconnect"), [(0, CUT), (45, Disconnected("nonsense", is_final=True))], ids=str
)
def test_some_ends_are_final(budget_s: float, disconnect: Disconnected) -> None:
    """Without a budget, or when the server broke the protocol, there is no attempt."""
    recovery = Recovery(budget_s)
    assert recovery.disconnected(1, disconnect, now=0)
    assert recovery.state == Failed(f"the connection is lost: {disconnect}; connect again")
    assert recovery.attempt_failed(ConnectFailed("no"), jitter=0) is None


def test_the_first_failure_stays() -> None:
    """Once failed, there is one message for everybody, whatever comes after."""
    recovery = Recovery(45)
    recovery.fail("first")
    recovery.fail("second")
    recovery.expired()
    assert recovery.state == Failed("the connection is lost: first; connect again")


# --- catching up ---------------------------------------------------------------------------------------


def order_of(*events: Output | Exited | Closed) -> EventOrder:
    order = EventOrder()
    for event in events:
        order.insert(event)
    return order


def all_of(order: EventOrder) -> list[Event]:
    taken: list[Event] = []
    while (event := order.after(len(taken))) is not None:
        taken.append(event)
    return taken


def test_an_exit_that_was_missed_says_as_much_as_any_other() -> None:
    """Usage and reason come with the answer that tells of it."""
    order = EventOrder()
    usage = Usage(user_ms=1, system_ms=2)
    assert order.catch_up(Snapshot([], 2, 137, False, 9, False, usage, "timeout"))
    assert order.exited == Exited(1, 137, 9, False, usage, "timeout")


@pytest.mark.case(110)
@pytest.mark.parametrize("exit_at", [1, 2, 3, 4, 5])
def test_the_exit_takes_the_one_number_that_is_left(exit_at: int) -> None:
    """Before, between and behind late chunks; the close is the last number."""
    order = EventOrder()
    chunks = [output(seq) for seq in range(1, 6) if seq != exit_at]
    assert order.catch_up(Snapshot(chunks, 7, 9, True, term_signal=None, sandbox_denied=True))
    assert order.exited == Exited(exit_at, 9, None, True)
    assert [event.seq for event in all_of(order)] == [1, 2, 3, 4, 5, 6]
    assert order.closed


@pytest.mark.case(110)
def test_an_exit_that_came_early_is_not_inferred_again() -> None:
    """It keeps its number, and learns from the answer that a sandbox was in the way."""
    order = order_of(output(1), Exited(4, 3, None, False), Closed(6))
    assert order.catch_up(Snapshot([output(2), output(3), output(5)], 7, 3, True, sandbox_denied=True))
    assert all_of(order) == [
        *(output(1), output(2), output(3), Exited(4, 3, None, True), output(5), Closed(6))
    ]


def test_nothing_new_is_nothing_to_do() -> None:
    """An answer that ends where the events do publishes nothing, and neither does one after the close."""
    order = order_of(output(1), output(2))
    assert not order.catch_up(Snapshot([], 3, None, False))
    order.insert(Exited(3, 0, None, False))
    order.insert(Closed(4))
    assert not order.catch_up(Snapshot([output(9)], 99, None, False))
    assert order.last == 4


@pytest.mark.case(111)
@pytest.mark.parametrize(
    ("chunks", "next_seq", "exit_code", "closed"),
    [
        ([3, 4], 5, None, False),
        ([4], 5, 0, False),
        ([4], 6, 0, True),
        ([], 2**63, 0, False),
        ([], 4, None, False),
    ],
    ids=["one, and no exit", "two, and one exit", "before the close", "very many", "all"],
)
def test_more_missing_than_an_exit_explains_is_a_lost_window(
    chunks: list[int], next_seq: int, exit_code: int | None, closed: bool
) -> None:
    """The error names the number up to which events would be needed, and nothing is published."""
    order = order_of(output(1))
    with pytest.raises(WindowLost, match=f"through sequence {next_seq - 1}"):
        order.catch_up(Snapshot([output(seq) for seq in chunks], next_seq, exit_code, closed))
    assert order.last == 1


@pytest.mark.parametrize(
    ("chunks", "next_seq", "exit_code", "closed"),
    [
        ([2, 3], 3, None, False),
        ([2, 3], 4, 0, True),
        ([2, 3], 4, 0, False),
        ([2], 4, None, True),
        ([], 2, 0, True),
        ([], 1, 0, True),
    ],
    ids=["beyond the end", "on the close", "no exit left", "closed alive", "closed before", "long before"],
)
def test_an_answer_that_contradicts_itself_breaks_the_protocol(
    chunks: list[int], next_seq: int, exit_code: int | None, closed: bool
) -> None:
    """Such an answer is of no use, and a server that gives it is not believed any further."""
    order = order_of(output(1))
    with pytest.raises(MalformedMessage):
        order.catch_up(Snapshot([output(seq) for seq in chunks], next_seq, exit_code, closed))


def test_a_chunk_too_large_overflows_here_too() -> None:
    """No event may carry more than 1 MiB, by whatever way it came."""
    order = EventOrder()
    with pytest.raises(EventOverflow):
        order.catch_up(Snapshot([Output(1, "pty", bytes(MAX_BYTES + 1))], 2, None, False))


def test_what_a_reader_has_not_read_is_kept() -> None:
    """With a promise to a reader the bounds wait for it, so that it never meets a hole."""
    order = EventOrder()
    order.read_seq = 0
    order.catch_up(Snapshot([output(seq) for seq in range(1, 1001)], 1001, None, False))
    assert not order.has_hole_after(0)
    order.read_seq = 900
    order.insert(output(1001))
    assert order.first == 1001 - 255


@pytest.mark.parametrize(
    ("exit_at", "closed"),
    [(None, False), (7, False), (7, True), (249, True)],
    ids=["runs", "has exited", "closed", "closed at once"],
)
def test_what_no_answer_holds_is_skipped_and_left_to_readers(exit_at: int | None, closed: bool) -> None:
    """All numbers are published, exit and close known at once; a reader's pages fill the hole, in order."""
    exited = None if exit_at is None else Exited(exit_at, 3, None, False)
    last: Event = Closed(250) if closed else output(250)
    history = [exited if seq == exit_at else output(seq) for seq in range(1, 250)] + [last]
    chunks = [event for event in history if isinstance(event, Output)]
    order = order_of(output(1))
    for early in (5, 251):
        order.insert(output(early))
    assert order.skip(250, exited, closed)
    assert (order.exited, order.closed) == (exited, closed)
    assert order.last == (250 if closed else 251), "what follows the answer is there already"
    events: list[Event] = [output(1)]
    while order.has_hole_after(seq := events[-1].seq):
        page = [chunk for chunk in chunks if chunk.seq > seq][:100]
        events += order.fill_hole(seq, page, page[-1].seq + 1 if page else 251)
    while (event := order.after(events[-1].seq)) is not None:
        events.append(event)
    assert events == (history if closed else [*history, output(251)])


@pytest.mark.parametrize(
    ("last_seq", "exit_seq", "closed"),
    [(9, None, True), (9, 1, False), (9, 10, False), (9, 9, True)],
    ids=["closed alive", "exit before", "exit behind", "exit on the close"],
)
def test_a_skip_that_contradicts_itself_breaks_the_protocol(
    last_seq: int, exit_seq: int | None, closed: bool
) -> None:
    """Such an answer is of no use, and nothing is published."""
    order = order_of(output(1))
    with pytest.raises(MalformedMessage):
        order.skip(last_seq, None if exit_seq is None else Exited(exit_seq, 0, None, False), closed)
    assert (order.last, order.exited, order.closed) == (1, None, False)


@pytest.mark.case(109, 110)
@given(st.data())
def test_whatever_was_missed_events_come_out_complete_and_once(data: st.DataObject) -> None:
    """Any history, cut anywhere, with any events pushed early, late, twice, before and after the answer."""
    length = data.draw(st.integers(2, 30), label="length")
    exit_at = data.draw(st.integers(1, length - 1), label="exit at")
    history = [
        Closed(seq) if seq == length else Exited(seq, 7, None, False) if seq == exit_at else output(seq)
        for seq in range(1, length + 1)
    ]
    before = data.draw(st.lists(st.sampled_from(history), max_size=length), label="before")
    now = data.draw(st.integers(max([0, *(event.seq for event in before)]), length), label="now")
    order = order_of(*before)
    asked_after = order.last
    for event in data.draw(st.lists(st.sampled_from(history), max_size=10), label="pushed meanwhile"):
        if event.seq <= now:
            order.insert(event)
    snapshot = Snapshot(
        [event for event in history[asked_after:now] if isinstance(event, Output)],
        now + 1,
        7 if exit_at <= now else None,
        now == length,
    )
    order.catch_up(snapshot)
    assert order.last >= now
    for event in data.draw(st.permutations(history), label="after"):
        order.insert(event)
    assert all_of(order) == history
