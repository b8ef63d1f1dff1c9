"""Which events are the last lines of output."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsupervise._recent_output import RecentEvents, Tail
from tsupervise.events import Closed, Event, Exited, Lost, Output


def output_of(events: list[Event]) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, Output))


def tail_of(chunks: list[bytes], lines: int, max_bytes: float = math.inf) -> list[Event]:
    tail = Tail(lines, max_bytes)
    for seq, chunk in enumerate(chunks, 1):
        tail.add(Output(seq, "stderr" if seq % 2 else "stdout", chunk))
    return list(tail.take())


@given(
    st.lists(st.sampled_from([b"\n", b"a", b"b\n", b"\nc", b"d\ne\n", b"\n\n"]), max_size=12),
    st.integers(0, 6),
)
def test_a_tail_is_what_tail_prints(chunks: list[bytes], lines: int) -> None:
    """However the lines are cut into events, and whichever stream they are on."""
    whole = b"".join(chunks).splitlines(keepends=True)
    assert output_of(tail_of(chunks, lines)) == b"".join(
        whole[len(whole) - lines :] if lines < len(whole) else whole
    )


def test_a_tail_keeps_little_of_what_it_has_seen() -> None:
    """It holds no more than its lines, and with a bound on bytes not even long ones."""
    tail = Tail(3)
    for seq in range(1, 10_000):
        tail.add(Output(seq, "stdout", b"x" * 100 + b"\n"))
    assert len(tail.take()) <= 4
    [only] = tail_of([b"x" * 100, b"y" * 100], 24, max_bytes=100)
    assert output_of([only]) == b"y" * 100


def test_what_else_happened_stays_in_its_place() -> None:
    """A gap is told only if the tail reaches back to it; the end belongs to it."""
    events = [Lost(1, 4), Output(5, "pty", b"a\nb\n"), Exited(6, 0), Output(7, "pty", b"c\n"), Closed(8)]

    def last(lines: int) -> list[Event]:
        tail = Tail(lines)
        for event in events:
            tail.add(event)
        return list(tail.take())

    assert last(9) == last(3) == events
    assert last(2) == [Output(5, "pty", b"b\n"), *events[2:]]
    assert last(1) == events[2:]
    assert last(0) == [events[4]]


@pytest.mark.parametrize("lines", [0, 1, 5])
def test_the_tail_of_nothing_is_nothing(lines: int) -> None:
    """No output, no lines."""
    assert list(Tail(lines).take()) == []


@pytest.mark.parametrize(("every", "looked_at"), [(1, 256), (400, 9 * 256), (10_000, 1_000_000)])
async def test_a_tail_is_looked_for_at_the_end_of_all_that_is_retained(every: int, looked_at: int) -> None:
    """What came long before it is not asked for: it may be gigabytes."""
    asked = 0

    class Events:
        def __init__(self, after_seq: int = 0) -> None:
            self._seq = after_seq

        async def __anext__(self) -> Event:
            nonlocal asked
            asked += 1
            self._seq += 1
            return Output(self._seq, "stdout", b"x" if self._seq % every else b"x\n")

    process = cast("Any", SimpleNamespace(entry=SimpleNamespace(last_seq=20_000), events=Events))
    recent = [event async for event in RecentEvents(process, Tail(2), follow=False)]
    assert output_of(recent) == (b"x" * every + b"\n") * 2
    assert recent[-1].seq == 20_000
    assert asked <= looked_at
