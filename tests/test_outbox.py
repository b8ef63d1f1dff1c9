"""What one connection has still to send: replies first, processes in turn, and wake-ups that are never lost."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tsupervise._event_log import CHUNK_BYTES, Chunk, Close, Exit
from tsupervise._outbox import JOIN_BYTES, MAX_EVENT_BYTES, MAX_FEED_BYTES, MAX_REPLY_BYTES, Feed, Outbox


@contextmanager
def corked(outbox: Outbox) -> Generator[None]:
    outbox.cork()
    yield
    outbox.uncork()


def chunk(seq: int, size: int = 1) -> Chunk:
    return Chunk(seq, "stdout", bytes(size))


def told(messages: list[bytes]) -> list[tuple[str, int]]:
    """Each message as the process that it tells of and its number; a reply as its text and 0."""
    return [_told(message) for message in messages]


def _told(message: bytes) -> tuple[str, int]:
    if not message.startswith(b"{"):
        return message.decode(), 0
    params: dict[str, Any] = json.loads(message)["params"]
    return params["processId"], params["seq"]


def take_all(outbox: Outbox) -> list[list[bytes]]:
    """Every send until there is nothing left."""
    sends: list[list[bytes]] = []
    while batch := outbox.take():
        sends.append(batch)
    return sends


def outbox_without_a_sender() -> Outbox:
    """An outbox whose sending task is busy: everything waits until the test takes it."""

    def send_now(messages: list[bytes]) -> bool:
        raise AssertionError("nothing may overtake the sending task")

    return Outbox(send_now)


def test_replies_go_before_events() -> None:
    """However long the events have waited; replies among themselves keep their order."""
    outbox = outbox_without_a_sender()
    feed = Feed(outbox, "p", MAX_FEED_BYTES)
    feed.put(chunk(1))
    outbox.reply(b"first")
    outbox.reply(b"second")
    assert told(outbox.take()) == [("first", 0), ("second", 0), ("p", 1)]


def test_processes_take_turns() -> None:
    """One event each, so that a flood delays nobody; each process's own events stay in order."""
    outbox = outbox_without_a_sender()
    flood, quiet = Feed(outbox, "flood", MAX_FEED_BYTES), Feed(outbox, "quiet", MAX_FEED_BYTES)
    for seq in range(1, 5):
        flood.put(chunk(seq))
    quiet.put(chunk(1))
    quiet.put(chunk(2))
    expected = [("flood", 1), ("quiet", 1), ("flood", 2), ("quiet", 2), ("flood", 3), ("flood", 4)]
    assert told(outbox.take()) == expected


def test_large_messages_go_alone() -> None:
    """Small messages are joined up to a bound; one that does not fit begins the next send."""
    outbox = outbox_without_a_sender()
    feed = Feed(outbox, "p", MAX_FEED_BYTES)
    for seq, size in enumerate([1, JOIN_BYTES, 1, 1, JOIN_BYTES, JOIN_BYTES], 1):
        feed.put(chunk(seq, size))
    assert [[seq for _, seq in told(send)] for send in take_all(outbox)] == [[1], [2], [3, 4], [5], [6]]
    outbox.reply(b"a" * (JOIN_BYTES - 1))
    outbox.reply(b"b")
    outbox.reply(b"c")
    assert [[reply[:1] for reply in send] for send in take_all(outbox)] == [[b"a", b"b"], [b"c"]]


def test_an_exit_and_a_close_are_told_as_such() -> None:
    """The signal is named where there was one, and left out where there was none."""
    outbox = outbox_without_a_sender()
    feed = Feed(outbox, "p", MAX_FEED_BYTES)
    for event in (chunk(1, 2), Exit(2, 137, 9), Close(3)):
        feed.put(event)
    other = Feed(outbox, "q", MAX_FEED_BYTES)
    other.put(Exit(1, 0, None))
    told = [json.loads(message) for message in outbox.take()]
    assert [message["method"] for message in told] == [
        "process/output",
        "process/exited",
        "process/exited",
        "process/closed",
    ]
    assert [message["params"] for message in told] == [
        {"processId": "p", "seq": 1, "stream": "stdout", "chunk": "AAA="},
        {"processId": "q", "seq": 1, "exitCode": 0, "sandboxDenied": False},
        {"processId": "p", "seq": 2, "exitCode": 137, "sandboxDenied": False, "termSignal": 9},
        {"processId": "p", "seq": 3},
    ]


def test_room_is_counted_in_bytes_of_memory() -> None:
    """A feed has room until its own bound is reached, and all have until the outbox's is."""
    outbox = outbox_without_a_sender()
    feed = Feed(outbox, "p", max_bytes=10 + 2 * CHUNK_BYTES)
    other = Feed(outbox, "q", max_bytes=MAX_EVENT_BYTES)
    feed.put(chunk(1, 9))
    assert feed.has_room
    feed.put(chunk(2, 1))
    assert not feed.has_room
    assert other.has_room
    other.put(chunk(1, MAX_EVENT_BYTES - 11 - 4 * CHUNK_BYTES))
    assert other.has_room
    other.put(chunk(2, 1))
    assert not other.has_room
    take_all(outbox)
    assert outbox.events.bytes == 0
    assert feed.has_room
    assert other.has_room


def test_a_closed_feed_gives_its_room_back_and_sends_nothing() -> None:
    """Its process has been detached or forgotten; the others go on."""
    outbox = outbox_without_a_sender()
    feed, other = Feed(outbox, "p", MAX_FEED_BYTES), Feed(outbox, "q", MAX_FEED_BYTES)
    feed.put(chunk(1, 100))
    other.put(chunk(1, 5))
    feed.close()
    assert outbox.events.bytes == 5 + CHUNK_BYTES
    assert told(outbox.take()) == [("q", 1)]
    assert outbox.take() == []


def test_replies_have_room_until_the_bound_is_reached() -> None:
    """A single answer of any size finds room; the next one waits until it has been taken."""
    outbox = outbox_without_a_sender()
    outbox.reply(bytes(MAX_REPLY_BYTES - 1))
    assert outbox.has_reply_room
    outbox.reply(bytes(3 * MAX_REPLY_BYTES))
    assert not outbox.has_reply_room
    outbox.take()
    assert not outbox.has_reply_room
    outbox.take()
    assert outbox.has_reply_room


async def test_who_waits_for_room_in_a_feed_is_woken_by_its_sending() -> None:
    """Nobody else's events make room there."""
    outbox = outbox_without_a_sender()
    feed, other = Feed(outbox, "p", max_bytes=5), Feed(outbox, "q", MAX_FEED_BYTES)
    other.put(chunk(1, JOIN_BYTES))
    feed.put(chunk(1, 5))
    async with trio.open_nursery() as nursery:
        woken = await started(nursery, feed.wait_for_room)
        assert told(outbox.take()) == [("q", 1)]
        await trio.testing.wait_all_tasks_blocked()
        # The whole outbox has room again, the feed has not: whoever looks now must wait on.
        assert not feed.has_room
        assert told(outbox.take()) == [("p", 1)]
        await woken.wait()
        assert feed.has_room


async def test_who_waits_for_room_in_the_outbox_is_woken_as_it_empties() -> None:
    """All of them, once there is nothing left to send that could wake another."""
    outbox = outbox_without_a_sender()
    flood = Feed(outbox, "flood", MAX_EVENT_BYTES + 1)
    flood.put(chunk(1, MAX_EVENT_BYTES))
    feeds = [Feed(outbox, str(number), MAX_FEED_BYTES) for number in range(3)]
    async with trio.open_nursery() as nursery:
        woken = [await started(nursery, feed.wait_for_room) for feed in feeds]
        assert not any(event.is_set() for event in woken)
        outbox.take()
        for event in woken:
            await event.wait()


async def test_who_waits_for_room_is_woken_by_the_closing_of_the_feed() -> None:
    """Detaching a session must not leave a pump behind that waits for a peer that is gone.

    It may wait for its own feed, or for the outbox that others have filled: in both cases nobody will
    ever take anything from this outbox again.
    """
    outbox = outbox_without_a_sender()
    full = Feed(outbox, "full", max_bytes=MAX_EVENT_BYTES)
    full.put(chunk(1, MAX_EVENT_BYTES))
    crowded_out = Feed(outbox, "crowded out", MAX_FEED_BYTES)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            woken = [await started(nursery, feed.wait_for_room) for feed in (full, crowded_out)]
            for feed in (full, crowded_out):
                feed.close()
            for event in woken:
                await event.wait()


async def test_who_waits_for_room_among_replies_is_woken_when_there_is_some() -> None:
    """Parked reads make their answers one by one as the peer takes them."""
    outbox = outbox_without_a_sender()
    outbox.reply(bytes(2 * MAX_REPLY_BYTES))
    async with trio.open_nursery() as nursery:
        woken = [await started(nursery, outbox.wait_for_reply_room) for _ in range(3)]
        assert not any(event.is_set() for event in woken)
        outbox.take()
        for event in woken:
            await event.wait()


async def started(nursery: trio.Nursery, function: Any) -> trio.Event:
    """Start an async function and wait until it waits; the event is set when it has returned."""
    woken = trio.Event()

    async def run() -> None:
        await function()
        woken.set()

    nursery.start_soon(run)
    await trio.testing.wait_all_tasks_blocked()
    return woken


async def test_the_sending_task_sleeps_until_there_is_something() -> None:
    """A reply and a channel's own need wake it, and what was left over keeps it awake."""
    outbox = outbox_without_a_sender()
    async with trio.open_nursery() as nursery:
        for cause in (lambda: outbox.reply(b"x"), outbox.nudge):
            woken = await started(nursery, outbox.wait)
            assert not woken.is_set()
            cause()
            await woken.wait()
            outbox.take()
    outbox.reply(bytes(JOIN_BYTES))
    outbox.reply(bytes(JOIN_BYTES))
    await outbox.wait()
    outbox.take()
    await outbox.wait()
    assert len(outbox.take()) == 1


class Sender:
    """A channel and the task that sends on it. The channel takes `takes` messages at once, the rest it keeps."""

    def __init__(self) -> None:
        self.outbox = Outbox(self.send_now)
        self.takes = 1000
        self.at_once: list[bytes] = []
        self.kept: list[bytes] = []
        self.sent: list[bytes] = []

    def send_now(self, messages: list[bytes]) -> bool:
        assert messages, "a peer takes an empty send for the end"
        assert not self.kept, "what is left goes first"
        self.at_once += messages[: self.takes]
        self.sent += messages[: self.takes]
        self.kept = messages[self.takes :]
        return not self.kept

    async def run(self) -> None:
        while True:
            await self.outbox.wait()
            messages = self.outbox.take()
            await trio.lowlevel.checkpoint()
            self.sent += [*self.kept, *messages]
            self.kept = []


@asynccontextmanager
async def sending() -> AsyncGenerator[Sender]:
    """A sending task that waits for something to send."""
    async with trio.open_nursery() as nursery:
        sender = Sender()
        nursery.start_soon(sender.run)
        await trio.testing.wait_all_tasks_blocked()
        yield sender
        nursery.cancel_scope.cancel()


async def test_the_first_event_goes_out_at_once() -> None:
    """While the sending task has nothing to do, an event does not wait for its turn, and goes out whole."""
    async with sending() as sender:
        feed = Feed(sender.outbox, "p", MAX_FEED_BYTES)
        feed.put(chunk(1, 3))
        assert told(sender.at_once) == [("p", 1)]
        assert sender.outbox.events.bytes == 0
        assert feed.is_empty


@pytest.mark.case(38)
async def test_events_follow_in_order_however_they_go_out() -> None:
    """At once, joined by the sending task, or half and half: each once, and in the order of their numbers."""
    for takes in (0, 1, 2, 1000):
        async with sending() as sender:
            sender.takes = takes
            feeds = [Feed(sender.outbox, name, MAX_FEED_BYTES) for name in "ab"]
            for seq in range(1, 40):
                with corked(sender.outbox) if seq % 7 == 0 else nullcontext():
                    for feed in feeds:
                        feed.put(chunk(seq))
                if seq % 3 == 0:
                    await trio.testing.wait_all_tasks_blocked()
            await trio.testing.wait_all_tasks_blocked()
            for name in "ab":
                assert [seq for told_of, seq in told(sender.sent) if told_of == name] == list(range(1, 40))
            assert sender.outbox.events.bytes == 0


async def test_what_is_queued_in_one_go_is_joined() -> None:
    """Replies to a batch of requests go out in one send, before the events that came between them."""
    async with sending() as sender:
        feed = Feed(sender.outbox, "p", MAX_FEED_BYTES)
        with corked(sender.outbox):
            feed.put(chunk(1))
            sender.outbox.reply(b"first")
            sender.outbox.reply(b"second")
            assert sender.sent == []
        assert told(sender.at_once) == [("first", 0), ("second", 0), ("p", 1)]


async def test_a_feed_that_is_closed_before_it_was_sent_makes_no_empty_send() -> None:
    """Nothing is left to say, so nothing is said: an empty send would be taken for the end."""
    async with sending() as sender:
        feed = Feed(sender.outbox, "p", MAX_FEED_BYTES)
        with corked(sender.outbox):
            feed.put(chunk(1))
            feed.close()
        await trio.testing.wait_all_tasks_blocked()
        assert sender.sent == []


async def test_emptiness_means_taken_and_sent() -> None:
    """Who says farewell waits for the sending task to come back for more, not just for an empty queue."""
    outbox = outbox_without_a_sender()
    on_its_way = trio.Event()
    peer_reads = trio.Event()

    async def send() -> None:
        while True:
            await outbox.wait()
            outbox.take()
            on_its_way.set()
            await peer_reads.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        outbox.reply(b"last words")
        await on_its_way.wait()
        empty = await started(nursery, outbox.wait_until_empty)
        assert not empty.is_set()
        peer_reads.set()
        await empty.wait()
        await outbox.wait_until_empty()
        nursery.cancel_scope.cancel()


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 3), st.sampled_from([1, 900, 20_000])),
        st.tuples(st.just("reply"), st.just(0), st.sampled_from([1, 900, 20_000])),
        st.tuples(st.just("take"), st.just(0), st.just(0)),
        st.tuples(st.just("close"), st.integers(0, 3), st.just(0)),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(actions=ACTIONS)
def test_everything_goes_out_once_and_in_order(actions: list[tuple[str, int, int]]) -> None:
    """Whatever the order of puts, replies, sends and closings: no loss, no double, no count that drifts."""
    outbox = outbox_without_a_sender()
    feeds = {str(number): Feed(outbox, str(number), MAX_FEED_BYTES) for number in range(4)}
    numbers = dict.fromkeys(feeds, 0)
    due: dict[str, list[int]] = {name: [] for name in feeds}
    replies: list[bytes] = []

    def send() -> bool:
        batch = outbox.take()
        assert sum(map(len, batch)) <= JOIN_BYTES + 200 or len(batch) == 1
        for message in batch:
            if message.startswith(b"{"):
                name, seq = _told(message)
                assert not replies, "an event went before a reply"
                assert due[name].pop(0) == seq
            else:
                assert replies.pop(0) == message
        return bool(batch)

    for action, number, size in actions:
        name = str(number)
        match action:
            case "put":
                numbers[name] += 1
                due[name].append(numbers[name])
                feeds[name].put(chunk(numbers[name], size))
            case "reply":
                replies.append(b"r" * size)
                outbox.reply(replies[-1])
            case "take":
                send()
            case _:
                feeds[name].close()
                due[name].clear()
                feeds[name] = Feed(outbox, name, MAX_FEED_BYTES)
    while send():
        pass
    assert replies == []
    assert all(waiting == [] for waiting in due.values())
    assert outbox.events.bytes == 0
    assert outbox.has_reply_room


@pytest.mark.case(34)
async def test_a_flood_of_replies_does_not_starve_the_events_for_ever() -> None:
    """Once the replies are out, the events follow in the same send where they fit."""
    outbox = outbox_without_a_sender()
    feed = Feed(outbox, "p", MAX_FEED_BYTES)
    feed.put(chunk(1))
    for _ in range(2000):
        outbox.reply(b"r" * 100)
    sends = take_all(outbox)
    assert sum(len(send) for send in sends) == 2001
    assert told(sends[-1])[-1] == ("p", 1)
