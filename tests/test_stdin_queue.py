"""What waits for a child's stdin: bounds, order, and the memory of accepted writes."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tsupervise._stdin_queue import MAX_BYTES, MAX_CHUNKS, REMEMBERED_WRITES, StdinQueue


def queued(queue: StdinQueue) -> bytes:
    """Take everything, as a child would that reads it all."""
    data = b""
    while (first := queue.first()) is not None:
        data += first
        queue.taken(len(first))
    return data


def test_bytes_come_out_in_the_order_they_went_in() -> None:
    """However little the child takes at a time, nothing is skipped and nothing comes twice."""
    queue = StdinQueue()
    queue.accept("1", b"abc")
    queue.accept("2", b"")
    queue.accept("3", b"defg")
    taken = b""
    while (first := queue.first()) is not None:
        taken += first[:2]
        queue.taken(len(first[:2]))
    assert taken == b"abcdefg"
    assert len(queue) == 0


@pytest.mark.case(87)
def test_the_queue_is_bounded_in_chunks() -> None:
    """The chunk that fills the queue is accepted, the next has no room until one is taken whole."""
    queue = StdinQueue()
    for number in range(MAX_CHUNKS):
        assert queue.has_room(2)
        queue.accept(str(number), b"ab")
    assert not queue.has_room(2)
    assert not queue.has_room(0), "an empty chunk waits its turn like any other"
    queue.taken(1)
    assert not queue.has_room(1)
    queue.taken(1)
    assert queue.has_room(1)


def test_the_queue_is_bounded_in_bytes() -> None:
    """Exactly the bound has room, one byte more has not; bytes taken make room at once."""
    queue = StdinQueue()
    queue.accept("1", bytes(MAX_BYTES - 10))
    assert queue.has_room(10)
    assert not queue.has_room(11)
    queue.taken(1)
    assert queue.has_room(11)
    assert not queue.has_room(12)


def test_one_chunk_is_always_taken() -> None:
    """However large, a chunk finds room in an empty queue, or it could never be written."""
    queue = StdinQueue()
    assert queue.has_room(MAX_BYTES + 1)
    queue.accept("large", bytes(MAX_BYTES + 1))
    assert not queue.has_room(1)
    queue.taken(MAX_BYTES + 1)
    assert queue.has_room(MAX_BYTES + 1)


@pytest.mark.case(84)
def test_the_oldest_write_id_is_forgotten_first() -> None:
    """4,096 ids are remembered; the next one costs the oldest, and no other."""
    queue = StdinQueue()
    for number in range(REMEMBERED_WRITES):
        queue.accept(str(number), b"")
    assert REMEMBERED_WRITES == 4_096
    assert queue.has_accepted("0")
    queue.accept("new", b"")
    assert not queue.has_accepted("0")
    assert queue.has_accepted("1")
    assert queue.has_accepted("new")


def test_discarding_drops_the_bytes_and_keeps_the_memory() -> None:
    """A child that reads no more leaves a queue that takes everything, and retries stay harmless."""
    queue = StdinQueue()
    queue.accept("1", bytes(MAX_BYTES))
    queue.discard()
    assert queue.first() is None
    assert queue.has_room(MAX_BYTES)
    assert queue.has_accepted("1")


class QueueMachine(RuleBasedStateMachine):
    """The queue beside a list of bytes and a list of ids."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = StdinQueue()
        self.chunks: deque[bytes] = deque()
        self.ids: dict[str, None] = {}

    @rule(write_id=st.integers(0, 40), size=st.integers(0, 5))
    def write(self, write_id: int, size: int) -> None:
        """As the process does: known ids are not written again, and without room nothing happens."""
        name, data = str(write_id), bytes([write_id]) * size
        known = name in self.ids
        room = len(self.chunks) < MAX_CHUNKS
        assert self.queue.has_accepted(name) == known
        assert self.queue.has_room(size) == room
        if room and not known:
            self.queue.accept(name, data)
            self.remember(name)
            if data:
                self.chunks.append(data)

    @rule(first=st.integers(0, 1 << 40), count=st.sampled_from([1, 100, REMEMBERED_WRITES - 3]))
    def write_many_empty_chunks(self, first: int, count: int) -> None:
        """Floods the memory without touching the queue."""
        for number in range(count):
            name = f"{first}-{number}"
            if name not in self.ids:
                self.queue.accept(name, b"")
                self.remember(name)

    def remember(self, name: str) -> None:
        self.ids[name] = None
        if len(self.ids) > REMEMBERED_WRITES:
            del self.ids[next(iter(self.ids))]

    @precondition(lambda self: self.chunks)
    @rule(share=st.floats(0, 1))
    def take(self, share: float) -> None:
        """The child takes part of the first chunk, or all of it."""
        count = max(1, round(len(self.chunks[0]) * share))
        self.queue.taken(count)
        self.chunks[0] = self.chunks[0][count:]
        if not self.chunks[0]:
            self.chunks.popleft()

    @rule()
    def discard(self) -> None:
        """The child is gone, or has closed its stdin."""
        self.queue.discard()
        self.chunks.clear()

    @invariant()
    def the_queue_holds_what_the_model_holds(self) -> None:
        first = self.queue.first()
        assert len(self.queue) == len(self.chunks)
        assert (None if first is None else bytes(first)) == (self.chunks[0] if self.chunks else None)

    def teardown(self) -> None:
        assert queued(self.queue) == b"".join(self.chunks)


QueueMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestQueueMachine = QueueMachine.TestCase
