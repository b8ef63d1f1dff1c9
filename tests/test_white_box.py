"""Promises that only show from the inside: what happens at each suspension point, and after hours of waiting.

The supervisor runs in the test, behind in-memory channels. Where the clock is virtual the children are pipes
held by the test, for no real process keeps virtual time.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from frames import CLOSE as CLOSE_FRAME
from frames import PING, PONG, TEXT, client_frame
from in_process import PATIENCE_S, House, MemoryPeer, PipeChild, open_house, write_params
from tsupervise._channel import CloseCode
from tsupervise._connection import PROBE_S, Connection
from tsupervise._containment import Containment, Enclosure
from tsupervise._event_log import EventLog
from tsupervise._handlers import ROWS
from tsupervise._lifecycle import State
from tsupervise._outbox import Feed
from tsupervise._process import Process
from tsupervise._retained_total import RetainedTotal
from tsupervise._settings import MAX_OPEN_REQUESTS, Settings
from tsupervise._spawn import Child, SpawnRequest, spawn
from tsupervise._stdin_queue import MAX_CHUNKS
from tsupervise._websocket import MAX_FRAME_BYTES
from tsupervise._websocket_channel import PING_INTERVAL_S, PONG_TIMEOUT_S, WebSocketChannel
from tsupervise.embedded import open_supervisor
from tsupervise_protocol.base64_text import encode_base64_str
from tsupervise_protocol.errors import ErrorCode
from tsupervise_protocol.messages import Message, StartParams, WriteParams, WriteResult
from wire import PATIENCE_S as REAL_PATIENCE_S
from wire import Answer

SMALLEST_PIPE = 4096
"""F_SETPIPE_SZ gives no less than a page."""


def process_in(house: House, process_id: str = "p") -> Process:
    (session,) = house.supervisor.sessions
    process = session.find(process_id)
    assert process is not None
    return process


# --- a WebSocket in virtual time ---------------------------------------------------------------------


@dataclass
class FramePeer:
    """The client's side of a WebSocket after its upgrade, frame by frame."""

    stream: trio.abc.Stream
    connection: Connection
    gone: trio.Event = field(default_factory=trio.Event)
    answers_pings: bool = True
    pings: list[float] = field(default_factory=list[float])
    """When they came."""
    closes: list[int] = field(default_factory=list[int])
    """The codes of close frames."""
    answers: list[Answer] = field(default_factory=list[Answer])
    _changed: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    async def receive(self) -> None:
        buffer = b""
        while data := await self.stream.receive_some():
            buffer += data
            while frame := first_frame(buffer):
                opcode, payload, buffer = frame
                await self.take(opcode, payload)
            self._changed.unpark_all()

    async def take(self, opcode: int, payload: bytes) -> None:
        match opcode:
            case 0x9:
                self.pings.append(trio.current_time())
                if self.answers_pings:
                    await self.stream.send_all(client_frame(PONG, payload))
            case 0x8:
                self.closes.append(int.from_bytes(payload[:2], "big"))
            case _:
                message = json.loads(payload)
                if "id" in message:
                    self.answers.append(Answer(message["id"], message.get("result"), message.get("error")))

    async def request(self, method: str, params: Any) -> Answer:
        """One at a time."""
        known = len(self.answers)
        await self.say({"id": known, "method": method, "params": params})
        with trio.fail_after(PATIENCE_S):
            while len(self.answers) == known:
                await self._changed.park()
        return self.answers[-1]

    async def say(self, message: dict[str, Any]) -> None:
        await self.stream.send_all(client_frame(TEXT, json.dumps(message).encode()))

    async def handshake(self) -> str:
        result = (await self.request("initialize", {"clientName": "tests"})).ok()
        await self.say({"method": "initialized"})
        return result["sessionId"]


def first_frame(data: bytes) -> tuple[int, bytes, bytes] | None:
    """Opcode and payload of a server's first frame, and what is left; None if it is not whole."""
    if len(data) < 2:
        return None
    size, start = data[1], 2
    if size >= 126:
        start = 4 if size == 126 else 10
        size = int.from_bytes(data[2:start], "big")
    if len(data) < start + size:
        return None
    return data[0] & 0xF, data[start : start + size], data[start + size :]


def test_the_frame_reader_of_these_tests_reads_frames() -> None:
    """Short, medium and cut."""
    for size in (0, 5, 125, 126, 70_000):
        frame = client_frame(TEXT, bytes(size), mask=None)
        assert first_frame(frame + b"x") == (TEXT, bytes(size), b"x")
        assert first_frame(frame[:-1]) is None
    assert (PING, CLOSE_FRAME) == (0x9, 0x8)


def open_frames(house: House, pair: tuple[Any, Any]) -> FramePeer:
    """Serve a WebSocket on one end of a pair of streams."""
    ours, theirs = pair
    channel = WebSocketChannel(theirs, "127.0.0.1:1")
    peer = FramePeer(ours, Connection(house.supervisor, channel))
    house.serve(channel, peer.connection, peer.gone)
    return peer


@pytest.mark.case(12)
async def test_an_idle_peer_is_pinged_every_thirty_seconds(autojump_clock: trio.testing.MockClock) -> None:
    """From its coming on, at even intervals, for as long as it answers."""
    async with open_house() as house:
        began = trio.current_time()
        peer = open_frames(house, trio.testing.memory_stream_pair())
        house.nursery.start_soon(peer.receive)
        await trio.sleep(10.5 * PING_INTERVAL_S)
        assert [time - began for time in peer.pings] == [PING_INTERVAL_S * number for number in range(1, 11)]
        assert PING_INTERVAL_S == 30
        assert not peer.gone.is_set()


@pytest.mark.case(12)
async def test_a_peer_that_pings_during_a_large_message_is_answered_between_its_frames(
    nursery: trio.Nursery,
) -> None:
    """It may not wait for hundreds of megabytes before it takes this end for gone."""
    ours, theirs = trio.testing.memory_stream_pair()
    channel = WebSocketChannel(theirs, "127.0.0.1:1")
    message = bytes(MAX_FRAME_BYTES + 1)
    sent = trio.Event()

    async def send() -> None:
        await channel.send([message])
        sent.set()

    nursery.start_soon(channel.receive)
    nursery.start_soon(send)
    data = bytearray(await ours.receive_some())  # it has begun
    await ours.send_all(client_frame(PING, b"there?"))
    with trio.fail_after(PATIENCE_S):
        await sent.wait()
        while len(data) < len(message) + (10 + 2) + (2 + 6):  # two headers, and the pong
            data += await ours.receive_some()
    first = first_frame(bytes(data))
    assert first is not None
    pong = first_frame(first[2])
    assert pong is not None
    assert pong[:2] == (PONG, b"there?")
    last = first_frame(pong[2])
    assert last is not None
    assert (first[1] + last[1], last[2]) == (message, b"")
    nursery.cancel_scope.cancel()


@pytest.mark.case(13)
async def test_a_peer_that_never_pongs_is_dropped_and_its_session_lives(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Sixty seconds after the ping the connection is closed with 1008; whoever resumes finds everything."""
    async with open_house() as house:
        began = trio.current_time()
        peer = open_frames(house, trio.testing.memory_stream_pair())
        peer.answers_pings = False
        house.nursery.start_soon(peer.receive)
        session_id = await peer.handshake()
        (await peer.request("process/start", start_of("p"))).ok()
        with trio.fail_after(PATIENCE_S):
            await peer.gone.wait()
        waited = trio.current_time() - began
        assert PONG_TIMEOUT_S == 60
        assert PING_INTERVAL_S + PONG_TIMEOUT_S <= waited <= PING_INTERVAL_S + PONG_TIMEOUT_S + 1
        assert peer.closes == [CloseCode.POLICY_VIOLATION]
        again = await house.connect(session_id)
        house.children[0].say(b"alive")
        house.children[0].end(0)
        assert [event.kind for event in await again.until_closed("p")] == ["output", "exited", "closed"]


async def test_any_traffic_but_a_pong_leaves_a_ping_unanswered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A peer whose pongs never come is broken, however much it asks."""
    async with open_house() as house:
        peer = open_frames(house, trio.testing.memory_stream_pair())
        peer.answers_pings = False
        house.nursery.start_soon(peer.receive)
        await peer.handshake()
        with trio.move_on_after(1000) as asking:
            while not peer.gone.is_set():
                await peer.say({"id": 1, "method": "environment/status"})
                with trio.move_on_after(5):
                    await peer.gone.wait()
        assert not asking.cancelled_caught
        assert peer.closes == [CloseCode.POLICY_VIOLATION]


@pytest.mark.case(13)
async def test_a_peer_that_reads_nothing_cannot_hold_a_send_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It cannot answer pings either, so its blocked connection ends, and the session is free."""
    async with open_house() as house:
        began = trio.current_time()
        # A lockstep stream takes a send only when the other side receives.
        peer = open_frames(house, trio.testing.lockstep_stream_pair())
        await peer.say({"id": 1, "method": "initialize", "params": {"clientName": "tests"}})
        with trio.fail_after(PATIENCE_S):
            await peer.gone.wait()
        assert trio.current_time() - began <= PING_INTERVAL_S + PONG_TIMEOUT_S + 2
        (session,) = house.supervisor.sessions
        assert session.holder is None


@pytest.mark.case(50)
async def test_a_silent_holder_loses_its_session_to_whoever_asks(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The first try is refused and finds out; two seconds later the session is free."""
    async with open_house() as house:
        silent = open_frames(house, trio.testing.memory_stream_pair())
        silent.answers_pings = False
        house.nursery.start_soon(silent.receive)
        session_id = await silent.handshake()
        began = trio.current_time()
        other = house.knock()
        tries = 0
        while (answer := await other.handshake(session_id)).error is not None:
            assert answer.code == ErrorCode.SESSION_ATTACHED
            tries += 1
            await trio.sleep(0.1)
        assert answer.result["sessionId"] == session_id
        assert PROBE_S == 2
        assert PROBE_S <= trio.current_time() - began <= PROBE_S + 0.5
        assert 19 <= tries <= 25
        with trio.fail_after(PATIENCE_S):
            await silent.gone.wait()
        assert silent.closes == [CloseCode.POLICY_VIOLATION]


@pytest.mark.case(43, 50)
async def test_a_live_holder_keeps_its_session(autojump_clock: trio.testing.MockClock) -> None:
    """However often somebody asks for it; the holder is pinged and otherwise undisturbed."""
    async with open_house() as house:
        holder = open_frames(house, trio.testing.memory_stream_pair())
        house.nursery.start_soon(holder.receive)
        session_id = await holder.handshake()
        other = house.knock()
        for _ in range(100):
            assert (await other.handshake(session_id)).code == ErrorCode.SESSION_ATTACHED
            await trio.sleep(0.1)
        assert (await holder.request("environment/status", None)).ok() == {"status": "ready"}
        assert not holder.gone.is_set()
        assert holder.pings


# --- sessions in virtual time ------------------------------------------------------------------------


@pytest.mark.case(42, 47)
async def test_a_detached_session_ends_with_its_processes(autojump_clock: trio.testing.MockClock) -> None:
    """After its time, and not before; then nothing is left that could be resumed."""
    async with open_house(Settings(detached_ttl_s=80)) as house:
        peer = await house.connect()
        (session,) = house.supervisor.sessions
        (await peer.start("p")).ok()
        await trio.sleep(1000)  # a session that is held does not age
        await peer.drop()
        await trio.sleep(79.9)
        assert not house.children[0].dead
        assert house.supervisor.sessions == [session]
        await trio.sleep(0.2)
        assert house.children[0].dead
        assert house.children[0].reaped
        assert house.children[0].closed
        assert house.supervisor.sessions == []
        answer = await house.knock().handshake(session.session_id)
        assert (answer.code, answer.message) == (-32600, f"unknown session id {session.session_id}")


@pytest.mark.case(47)
async def test_resuming_stops_the_time_and_dropping_starts_it_anew(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Each detachment has its full time, whatever of the last one was left."""
    async with open_house(Settings(detached_ttl_s=80)) as house:
        peer = await house.connect()
        (session,) = house.supervisor.sessions
        (await peer.start("p")).ok()
        for _ in range(5):
            await peer.drop()
            await trio.sleep(79)
            peer = await house.connect(session.session_id)
            await trio.sleep(200)
            assert not house.children[0].dead
        await peer.drop()
        await trio.sleep(81)
        assert house.children[0].dead


async def test_a_session_that_may_not_outlive_its_connection_still_works(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A detached time of 0 ends a session when its connection ends, not before it has begun."""
    async with open_house(Settings(detached_ttl_s=0)) as house:
        peer = await house.connect()
        (await peer.start("p")).ok()
        house.children[0].say(b"x")
        await peer.until(lambda: len(peer.events) == 1)
        await peer.drop()
        await trio.sleep(0.1)
        assert house.children[0].dead
        assert house.supervisor.sessions == []


async def test_nothing_is_started_in_a_session_that_has_ended(autojump_clock: trio.testing.MockClock) -> None:
    """A request that is still under way when the supervisor ends its session leaves no child without an owner."""
    async with open_house() as house:
        peer = await house.connect()
        (session,) = house.supervisor.sessions
        session._ended = True  # pyright: ignore[reportPrivateUsage] (it lasts for a moment of the shutdown)
        answer = await peer.start("p")
        assert answer.error is not None
        assert all(child.dead and child.closed for child in house.children)


@pytest.mark.case(49)
async def test_a_read_that_is_parked_when_the_session_moves_fails(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Whoever lost the session gets nothing of it any more, and the new holder gets everything."""
    async with open_house() as house:
        loser = await house.connect()
        (await loser.start("p")).ok()
        parked = await loser.send("process/read", {"processId": "p", "waitMs": 60_000})
        await trio.testing.wait_all_tasks_blocked()
        (session,) = house.supervisor.sessions
        session.detach(loser.connection)
        winner = await house.connect(session.session_id)
        house.children[0].say(b"secret")
        answer = await loser.answer_to(parked)
        assert (answer.code, answer.message) == (
            -32600,
            f"session {session.session_id} has been resumed by another connection",
        )
        for late in (await loser.read("p"), await loser.start("q"), await loser.write("p", b"x", "w")):
            assert late.message == answer.message
        await winner.until(lambda: len(winner.events) == 1)
        assert loser.events == []
        # Its end must not take the session from the new holder.
        await loser.drop()
        assert session.holder is winner.connection


@pytest.mark.case(37, 45)
async def test_a_stalled_peer_stops_no_pipe_once_it_is_gone(autojump_clock: trio.testing.MockClock) -> None:
    """While it holds the session its pipes wait; detached, every one of them is read on, full feed or not."""
    names = [f"p{number}" for number in range(8)]
    async with open_house() as house:
        peer = await house.connect()
        (session,) = house.supervisor.sessions
        for name in names:
            (await peer.start(name)).ok()
        peer.receiving.cancel()
        for child in house.children:
            await flood(child)
        read = {name: process_in(house, name).log.output_bytes for name in names}
        assert sum(read.values()) < 3 << 20, "a peer that does not read must stop the pipes"
        await peer.drop()
        for child in house.children:
            await flood(child, limit=2 << 20)
        for name in names:
            assert process_in(house, name).log.output_bytes >= read[name] + (1 << 20), name
        again = await house.connect(session.session_id)
        for child in house.children:
            child.end(0)
        for name in names:
            assert (await again.until_closed(name))[-1].kind == "closed"


async def flood(child: PipeChild, limit: int = 8 << 20) -> None:
    """Speak until nobody reads any more, or `limit` bytes have been said."""
    said = 0
    while said < limit and (taken := child.say(bytes(1 << 16))):
        said += taken
        await trio.testing.wait_all_tasks_blocked()


# --- processes in virtual time -----------------------------------------------------------------------


@pytest.mark.case(55)
async def test_an_id_is_taken_from_the_start_to_the_end_of_retention(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Starting, running, exited, closed: taken. Forgotten: free, and the new process is another one."""
    release = trio.Event()
    children: list[PipeChild] = []

    async def slow_spawn(request: SpawnRequest, enclosure: Enclosure) -> Child:
        await release.wait()
        children.append(PipeChild(request, enclosure))
        return children[-1]

    async with open_house(Settings(retention_s=80), slow_spawn) as house:
        peer = await house.connect()
        second = await house.connect()
        first = await peer.send("process/start", start_of("p"))
        await trio.testing.wait_all_tasks_blocked()
        # A second start waits behind the first on one connection, so here a handler is asked directly.
        with pytest.raises(Exception, match="process p already exists"):
            ROWS["process/start"].handler(peer.connection, start_params_of("p"))
        release.set()
        (await peer.answer_to(first)).ok()

        async def refused() -> None:
            answer = await peer.start("p")
            assert (answer.code, answer.message) == (-32600, "process p already exists")

        await refused()
        children[0].die(0)
        await peer.until(lambda: any(event.kind == "exited" for event in peer.events))
        await refused()
        await trio.sleep(100)
        await refused()  # the time runs from the close, not from the exit
        children[0].let_go()
        await peer.until_closed("p")
        await trio.sleep(79.9)
        await refused()
        await trio.sleep(0.2)
        uid = (await peer.start("p")).ok()["uid"]
        await trio.sleep(200)
        assert (await peer.request("process/list")).ok()["processes"][0]["uid"] == uid
        assert (await second.request("process/list")).ok()["processes"] == []
        children[1].end()


@pytest.mark.case(66, 67)
async def test_a_closed_process_is_readable_until_it_is_forgotten(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Retention counts from each process's own close, whether the session is held or detached meanwhile."""
    async with open_house(Settings(retention_s=80, detached_ttl_s=1000)) as house:
        peer = await house.connect()
        (session,) = house.supervisor.sessions
        for name in ("a", "b"):
            (await peer.start(name)).ok()
        house.children[0].say(b"last words")
        house.children[0].end(3)
        await peer.until_closed("a")
        await trio.sleep(30)
        house.children[1].end(4)
        await peer.until_closed("b")
        await peer.drop()
        await trio.sleep(49.9)
        peer = await house.connect(session.session_id)
        result = (await peer.read("a")).ok()
        assert (result["closed"], result["exitCode"], len(result["chunks"])) == (True, 3, 1)
        await trio.sleep(0.2)
        forgotten = await peer.read("a")
        assert (forgotten.code, forgotten.message) == (-32600, "unknown process id a")
        assert (await peer.write("a", b"x", "w")).ok() == {"status": "unknownProcess"}
        assert (await peer.read("b")).ok()["exitCode"] == 4
        await trio.sleep(30)
        assert (await peer.read("b")).message == "unknown process id b"


async def timed(answer: Awaitable[Answer]) -> tuple[float, Any]:
    """How long an answer took in virtual time, and its result."""
    began = trio.current_time()
    result = (await answer).ok()
    return round(trio.current_time() - began, 6), result


@pytest.mark.case(76)
async def test_a_read_waits_as_long_as_it_was_told_to(autojump_clock: trio.testing.MockClock) -> None:
    """Exactly so long on a silent process, and not at all if it was told nothing."""
    async with open_house() as house:
        peer = await house.connect()
        (await peer.start("p")).ok()
        for fields, expected in (({"waitMs": 300}, 0.3), ({"waitMs": 0}, 0), ({}, 0), ({"waitMs": None}, 0)):
            took, result = await timed(peer.read("p", **fields))
            assert (took, result["chunks"], result["nextSeq"]) == (expected, [], 1)
        house.children[0].say(b"x")
        await peer.until(lambda: len(peer.events) == 1)
        took, result = await timed(peer.read("p", waitMs=5000))
        assert (took, len(result["chunks"])) == (0, 1)
        house.nursery.start_soon(say_later, house.children[0], 1.0)
        took, result = await timed(peer.read("p", afterSeq=100, waitMs=2000))
        assert (took, result["chunks"], result["nextSeq"]) == (2, [], 3)


async def say_later(child: PipeChild, delay: float) -> None:
    await trio.sleep(delay)
    child.say(b"x")


@pytest.mark.case(77)
async def test_each_event_wakes_a_poll_when_it_happens(autojump_clock: trio.testing.MockClock) -> None:
    """Output, exit and close, each once; a poll on a closed process does not wait."""

    async def live(child: PipeChild) -> None:
        await trio.sleep(0.5)
        child.say(b"out")
        await trio.sleep(0.5)
        child.die(3)
        await trio.sleep(0.5)
        child.let_go()

    async with open_house() as house:
        peer = await house.connect()
        (await peer.start("p")).ok()
        house.nursery.start_soon(live, house.children[0])
        seen: list[tuple[float, int, int, bool, bool]] = []
        after = 0
        for _ in range(4):
            took, result = await timed(peer.read("p", afterSeq=after, waitMs=5000))
            after = result["nextSeq"] - 1
            seen.append((took, len(result["chunks"]), after, result["exited"], result["closed"]))
        assert seen == [
            (0.5, 1, 1, False, False),
            (0.5, 0, 2, True, False),
            (0.5, 0, 3, True, True),
            (0, 0, 3, True, True),
        ]


@pytest.mark.case(78)
async def test_the_longest_wait_ends_with_the_process(autojump_clock: trio.testing.MockClock) -> None:
    """2^64-1 milliseconds are taken as meant."""
    async with open_house() as house:
        peer = await house.connect()
        (await peer.start("p")).ok()
        poll = await peer.send("process/read", {"processId": "p", "waitMs": 2**64 - 1})
        await trio.sleep(5000)
        assert poll not in peer.answers
        house.children[0].end(1)
        assert (await peer.answer_to(poll)).ok()["exited"]
        assert (await peer.request("environment/status")).ok() == {"status": "ready"}


async def test_a_poll_outlives_the_forgetting_of_its_process(autojump_clock: trio.testing.MockClock) -> None:
    """Other polls on the same connection, and the connection itself, go on."""
    async with open_house(Settings(retention_s=10)) as house:
        peer = await house.connect()
        (await peer.start("p")).ok()
        house.children[0].end(0)
        await peer.until_closed("p")
        took, result = await timed(peer.read("p", afterSeq=100, waitMs=60_000))
        assert (took, result["closed"]) == (0, True)
        await trio.sleep(11)
        assert (await peer.read("p", waitMs=5)).code == -32600


@pytest.mark.case(80)
async def test_no_poll_sleeps_through_an_event(
    autojump_clock: trio.testing.MockClock, long_profile: bool
) -> None:
    """A thousand lives in random order: whoever polls learns of each event at the moment when it happens.

    The poller never stops asking, each time for longer than any life lasts, and the child acts at the very
    moment of the asking, a few steps of the scheduler later, or after a time. If one poll slept through an
    event, then its answer would come at the time of a later event, or after the hour that it is ready to wait.
    """
    rounds = 10_000 if long_profile else 1000
    dice = random.Random(80)
    async with open_house() as house:
        peer = await house.connect()
        for number in range(rounds):
            name = f"p{number}"
            (await peer.start(name)).ok()
            child = house.children.pop()
            happened: list[float] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(live_at_random, child, dice, happened)
                await follow(peer, name, happened, dice)
            child.end()


async def live_at_random(child: PipeChild, dice: random.Random, happened: list[float]) -> None:
    """Speak some times, exit, end the output, at random moments; note when something last happened."""
    acts: list[Callable[[], object]] = [lambda: child.say(b"x") for _ in range(dice.randrange(3))]
    late = [lambda: child.say(b"y") for _ in range(dice.randrange(2))]
    for act in [*acts, child.die, *late, child.let_go]:
        pause = dice.choice(["none", "steps", "steps", "time"])
        if pause == "steps":
            for _ in range(dice.randrange(12)):
                await trio.lowlevel.checkpoint()
        elif pause == "time":
            await trio.sleep(1)
        act()
        happened.append(trio.current_time())


async def follow(peer: MemoryPeer, name: str, happened: list[float], dice: random.Random) -> None:
    after = 0
    while True:
        for _ in range(dice.randrange(4)):
            await trio.lowlevel.checkpoint()
        limit = dice.choice([None, 1])
        result = (await peer.read(name, afterSeq=after, waitMs=3_600_000, maxBytes=limit)).ok()
        assert trio.current_time() == happened[-1], "the answer came later than what it tells of"
        if result["closed"] and not result["chunks"]:
            return
        assert result["nextSeq"] - 1 > after
        after = result["nextSeq"] - 1


# --- slow starts -------------------------------------------------------------------------------------


def start_of(process_id: str) -> dict[str, Any]:
    return {"processId": process_id, "argv": ["fake"], "cwd": "file:///", "env": {}, "tty": False}


def start_params_of(process_id: str, **fields: Any) -> StartParams:
    return StartParams(process_id=process_id, argv=["fake"], cwd="file:///", env={}, tty=False, **fields)


@dataclass
class SlowSpawner:
    """A spawner that waits at a gate; a stubborn one cannot be talked out of it."""

    stubborn: bool
    gate: trio.Event = field(default_factory=trio.Event)
    waiting: trio.Event = field(default_factory=trio.Event)
    children: list[PipeChild] = field(default_factory=list[PipeChild])

    async def __call__(self, request: SpawnRequest, enclosure: Enclosure) -> Child:
        with trio.CancelScope(shield=self.stubborn):
            self.waiting.set()
            await self.gate.wait()
        self.children.append(PipeChild(request, enclosure))
        return self.children[-1]


@asynccontextmanager
async def start_held_up(stubborn: bool) -> AsyncGenerator[tuple[House, MemoryPeer, SlowSpawner, int]]:
    """A house where the start of `p` is under way and waits at the spawner's gate; its request id comes last."""
    spawner = SlowSpawner(stubborn)
    try:
        async with open_house(spawner=spawner) as house:
            peer = await house.connect()
            request_id = await peer.send("process/start", start_of("p"))
            await spawner.waiting.wait()
            yield house, peer, spawner, request_id
    finally:
        for child in spawner.children:
            child.end()


@pytest.mark.case(95)
@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_terminate_overtakes_a_start_that_is_held_up(
    autojump_clock: trio.testing.MockClock, stubborn: bool
) -> None:
    """It says true, the start fails, a child that comes all the same is killed, and the id is free."""
    async with start_held_up(stubborn) as (house, peer, spawner, request_id):
        assert (await peer.terminate("p")).ok() == {"running": True}
        spawner.gate.set()
        answer = await peer.answer_to(request_id)
        assert (answer.code, answer.message) == (-32600, "process p start was cancelled")
        assert len(spawner.children) == stubborn
        assert all(child.dead and child.reaped and child.closed for child in spawner.children)
        assert house.supervisor.sessions[0].find("p") is None
        assert (await peer.terminate("p")).ok() == {"running": False}
        (await peer.start("p")).ok()


@pytest.mark.case(48, 95)
async def test_a_disconnect_rolls_a_start_back(autojump_clock: trio.testing.MockClock) -> None:
    """Before the session can be resumed the id is free, and nothing has been started."""
    async with start_held_up(stubborn=False) as (house, peer, spawner, _):
        (session,) = house.supervisor.sessions
        await peer.drop()
        again = await house.connect(session.session_id)
        assert (await again.read("p")).message == "unknown process id p"
        assert spawner.children == []
        spawner.gate.set()
        (await again.start("p")).ok()
        assert len(spawner.children) == 1


@pytest.mark.case(48)
async def test_a_start_that_cannot_be_stopped_is_completed(autojump_clock: trio.testing.MockClock) -> None:
    """A child that comes after the disconnect belongs to the session; its id is never stuck in between."""
    async with start_held_up(stubborn=True) as (house, peer, spawner, _):
        (session,) = house.supervisor.sessions
        house.nursery.start_soon(peer.drop)
        await trio.testing.wait_all_tasks_blocked()
        spawner.gate.set()
        with trio.fail_after(PATIENCE_S):
            await peer.gone.wait()
        again = await house.connect(session.session_id)
        answer = await again.read("p")
        if answer.error is None:
            assert process_in(house).state is State.RUNNING
            spawner.children[0].end(0)
            await again.until_closed("p")
        else:
            assert answer.message == "unknown process id p"
            assert spawner.children[0].closed


@pytest.mark.case(95)
async def test_a_real_child_of_a_cancelled_start_is_killed_and_reaped() -> None:
    """No process is left, not even a zombie."""
    before = children_of_ours()
    gate, waiting = trio.Event(), trio.Event()

    async def slow_spawn(request: SpawnRequest, enclosure: Enclosure) -> Child:
        child = spawn(request, enclosure)
        waiting.set()
        with trio.CancelScope(shield=True):
            await gate.wait()
        return child

    with trio.fail_after(REAL_PATIENCE_S):
        async with open_house(spawner=slow_spawn) as house:
            peer = await house.connect()
            request_id = await peer.send("process/start", start_of("p") | {"argv": ["/bin/sleep", "600"]})
            await waiting.wait()
            assert children_of_ours() != before
            assert (await peer.terminate("p")).ok() == {"running": True}
            gate.set()
            assert (await peer.answer_to(request_id)).message == "process p start was cancelled"
            assert children_of_ours() == before


async def test_a_start_that_is_one_request_too_many_reserves_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Refused for the number of open requests, it has not begun: the id is free and nobody waits."""
    async with start_held_up(stubborn=False) as (house, peer, spawner, request_id):
        spawner.gate.set()
        (await peer.answer_to(request_id)).ok()
        spawner.gate = trio.Event()
        for _ in range(MAX_OPEN_REQUESTS):
            await peer.send("process/read", {"processId": "p", "waitMs": 3_600_000})
        refused = await peer.start("q")
        await trio.testing.wait_all_tasks_blocked()
        reserved = house.supervisor.sessions[0].find("q")
    gc.collect()  # a start that nobody ever awaits would be a warning, and should be one here
    assert refused.code == ErrorCode.TOO_MANY_REQUESTS
    assert reserved is None


# --- cancellation at every suspension point ----------------------------------------------------------


class CancelAt(trio.abc.Instrument):
    """Cancels `scope` when the tasks below `root` have been suspended a number of times."""

    def __init__(self, suspensions: int) -> None:
        self.left = suspensions
        self.scope = trio.CancelScope()
        self.root: trio.lowlevel.Task | None = None

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.is_below_root(task):
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()

    def is_below_root(self, task: trio.lowlevel.Task | None) -> bool:
        while task is not None and task is not self.root:
            nursery = task.parent_nursery
            task = nursery.parent_task if nursery is not None else None
        return task is not None

    async def run(self, function: Callable[[], Awaitable[object]]) -> bool:
        """Run a function, as a task of its own; returns whether it was cut off."""

        async def run() -> None:
            self.root = trio.lowlevel.current_task()
            with self.scope:
                await function()
            self.root = None

        trio.lowlevel.add_instrument(self)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
        finally:
            trio.lowlevel.remove_instrument(self)
        return self.scope.cancelled_caught


async def test_the_canceller_of_these_tests_reaches_every_point() -> None:
    """Three suspensions can be cut at three points, in child tasks too."""
    reached: list[list[str]] = []
    for suspensions in range(1, 9):
        steps: list[str] = []

        async def three(steps: list[str] = steps) -> None:
            for name in "abc":
                steps.append(name)
                await trio.lowlevel.checkpoint()
            steps.append("end")

        cut = await CancelAt(suspensions).run(three)
        assert cut == (steps[-1] != "end")
        reached.append(steps)
    assert {"".join(steps) for steps in reached} == {"a", "ab", "abc", "abcend"}


def open_descriptors() -> set[tuple[str, str]]:
    """Our descriptors and what they are."""
    found: set[tuple[str, str]] = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add((fd, os.readlink(f"/proc/self/fd/{fd}")))
        except FileNotFoundError:  # the listing's own
            continue
    return found


def children_of_ours() -> set[int]:
    """The pids of our children, zombies included."""
    return {
        int(pid)
        for task in Path("/proc/self/task").iterdir()
        for pid in (task / "children").read_text().split()
    }


@pytest.mark.parametrize("tty", [False, True])
async def test_a_process_cut_off_anywhere_leaves_nothing(tty: bool) -> None:
    """At whatever suspension its task is cancelled: the child is dead and reaped, every descriptor is closed."""
    script = "echo out; read line; echo $line >&2; exit 3"
    request_fields: dict[str, Any] = {"argv": ["/bin/sh", "-c", script], "cwd": b"/", "env": {}}
    containment = Containment(owns_process=False)
    before = (open_descriptors(), children_of_ours())
    with trio.fail_after(REAL_PATIENCE_S):
        for suspensions in count(1):
            params = start_params_of("p", pipe_stdin=True)
            enclosure = containment.enclose(containment.next_session())
            process = Process(params, "u", EventLog(), RetainedTotal(), 1 << 20, lambda _: None)
            child = spawn(SpawnRequest(**request_fields, tty=tty, pipe_stdin=True), enclosure)
            process.spawned(child)
            assert process.write_now("w", b"in\n") == "accepted"
            cut = await CancelAt(suspensions).run(process.run)
            assert (open_descriptors(), children_of_ours()) == before, suspensions
            assert (process.log.closed is None) == cut
            if not cut:
                assert suspensions > 1
                output = b"".join(chunk.data for chunk in process.log.page(0, None).chunks)
                heard = [b"in", b"in"] if tty else [b"in"]  # a terminal echoes
                assert sorted(output.split()) == [*heard, b"out"]
                assert process.log.exit is not None
                assert process.log.exit.code == 3
                return


def fill_stdin(process: Process, child: PipeChild) -> bytes:
    """Write until the next write has to wait; returns what was accepted."""
    fcntl.fcntl(child.stdin_end, fcntl.F_SETPIPE_SZ, SMALLEST_PIPE)
    accepted = b""
    for number in range(MAX_CHUNKS + 1):
        data = bytes([number & 0x7F]) * (SMALLEST_PIPE if number == 0 else 2)
        assert process.write_now(f"fill{number}", data) == "accepted"
        accepted += data
    assert process.write_now("one too many", b"x") is None
    return accepted


MARK = b"<once>"


@pytest.mark.case(86)
@pytest.mark.parametrize("heard_after", [0, 1, 2, 3, 5, 8, None])
async def test_a_write_cut_off_by_a_disconnect_and_retried_arrives_once(
    autojump_clock: trio.testing.MockClock, heard_after: int | None
) -> None:
    """The connection ends after any number of scheduler steps, while the write waits for room or just got it."""
    for steps in range(14):
        async with open_house() as house:
            peer = await house.connect()
            (await peer.start("p", pipeStdin=True)).ok()
            (session,) = house.supervisor.sessions
            (child,) = house.children
            expected = fill_stdin(process_in(house), child) + MARK
            heard = b""
            await peer.send("process/write", write_params("p", MARK, "the one"))
            for step in range(steps):
                if step == heard_after:
                    heard += child.heard()
                await trio.lowlevel.checkpoint()
            await peer.drop()
            again = await house.connect(session.session_id)
            retried = await again.send("process/write", write_params("p", MARK, "the one"))
            heard += await hear_until(child, again, retried)
            assert (await again.answer_to(retried)).ok() == {"status": "accepted"}
            heard += child.heard()
            assert heard == expected, (steps, heard.count(MARK))


async def hear_until(child: PipeChild, peer: MemoryPeer, request_id: int) -> bytes:
    """Listen until a request has been answered and nothing more comes."""
    heard = b""
    while True:
        await trio.testing.wait_all_tasks_blocked()
        more = child.heard()
        heard += more
        if not more and request_id in peer.answers:
            return heard


@pytest.mark.case(87)
async def test_no_write_sleeps_through_the_coming_of_room(autojump_clock: trio.testing.MockClock) -> None:
    """Room comes once, any number of scheduler steps after the asking, and the write that waits for it is told."""
    async with open_house() as house:
        peer = await house.connect()
        # Several times each: in which order tasks run within one step is the scheduler's dice.
        for number in range(100):
            steps, name = number % 5, f"p{number}"
            (await peer.start(name, pipeStdin=True)).ok()
            child = house.children[-1]
            fill_stdin(process_in(house, name), child)
            waiting = await peer.send("process/write", write_params(name, MARK, "the one"))
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            child.heard()
            await trio.testing.wait_all_tasks_blocked()
            assert waiting in peer.answers, steps


@pytest.mark.case(86)
async def test_a_write_cancelled_at_any_suspension_has_done_all_or_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The request's own task is cut at each point where it is suspended, with room coming and going around it."""
    async with open_house() as house:
        peer = await house.connect()
        for suspensions in count(1):
            name = f"p{suspensions}"
            (await peer.start(name, pipeStdin=True)).ok()
            child, process = house.children[-1], process_in(house, name)
            expected = fill_stdin(process, child) + MARK
            params = WriteParams(process_id=name, chunk=encode_base64_str(MARK), write_id="the one")
            heard = b""

            async def request(params: WriteParams = params) -> None:
                outcome = ROWS["process/write"].handler(peer.connection, params)
                assert not isinstance(outcome, Message), "the queue is full, so it has to wait"
                await outcome

            async with trio.open_nursery() as nursery:
                canceller = CancelAt(suspensions)
                nursery.start_soon(canceller.run, request)
                await trio.testing.wait_all_tasks_blocked()
                # Somebody else takes the first room, so that the request looks, and waits, again.
                heard += child.heard()
                process.write_now("another", b"\xff")
                await trio.testing.wait_all_tasks_blocked()
                heard += child.heard()
            status = process.write_now("the one", MARK)
            while status is None:
                heard += child.heard()
                await trio.testing.wait_all_tasks_blocked()
                status = process.write_now("the one", MARK)
            assert status == "accepted"
            while more := child.heard():
                heard += more
                await trio.testing.wait_all_tasks_blocked()
            assert heard.count(MARK) == 1
            assert heard.replace(b"\xff", b"") == expected
            if not canceller.scope.cancelled_caught:
                assert suspensions > 1
                return


async def test_a_write_with_room_is_accepted_without_a_checkpoint(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Nothing can come between the queueing and the remembering, so nothing can be cut between them."""
    async with open_house() as house:
        peer = await house.connect()
        (await peer.start("p", pipeStdin=True)).ok()
        process = process_in(house)
        with trio.testing.assert_no_checkpoints():
            assert process.write_now("1", b"a") == "accepted"
            params = WriteParams(process_id="p", chunk=encode_base64_str(b"b"), write_id="2")
            assert ROWS["process/write"].handler(peer.connection, params) == WriteResult(status="accepted")
            assert process.write_now("2", b"again") == "accepted"
        assert house.children[0].heard() == b"ab"


# --- writes against a model --------------------------------------------------------------------------


class WriteMachine(RuleBasedStateMachine):
    """One client that writes, loses its connection and retries, beside the list of what it meant to write.

    The supervisor lives in a loop of its own thread; each rule runs there until nothing moves any more.
    """

    def __init__(self) -> None:
        super().__init__()
        self.meant: dict[str, bytes] = {}
        """The first content of each id, in order: what the child must hear."""
        self.open: dict[int, tuple[str, dict[str, Any], set[str]]] = {}
        """Requests without an answer, by id: method, params and the answers that are right."""
        self.heard = b""
        self.ending = False
        started: SimpleQueue[trio.lowlevel.TrioToken] = SimpleQueue()
        self.thread = Thread(target=trio.run, args=(self.live, started))
        self.thread.start()
        self.token = started.get()
        self.settle()

    async def live(self, started: SimpleQueue[trio.lowlevel.TrioToken]) -> None:
        self.stop = trio.Event()
        async with open_house() as house:
            self.house = house
            self.peer = await house.connect()
            (await self.peer.start("p", pipeStdin=True)).ok()
            (self.session,), (self.child,) = house.supervisor.sessions, house.children
            fcntl.fcntl(self.child.stdin_end, fcntl.F_SETPIPE_SZ, SMALLEST_PIPE)
            started.put(trio.lowlevel.current_trio_token())
            await self.stop.wait()

    def settle(self, function: Callable[[], Awaitable[None]] | None = None) -> None:
        """Run something in the loop, wait until all is quiet, and check the answers that have come."""

        async def run() -> None:
            if function is not None:
                await function()
            await trio.testing.wait_all_tasks_blocked()

        trio.from_thread.run(run, trio_token=self.token)
        for request_id in [known for known in self.open if known in self.peer.answers]:
            _, _, due = self.open.pop(request_id)
            assert self.peer.answers[request_id].ok()["status"] in due

    async def ask(self, method: str, params: dict[str, Any], due: set[str]) -> None:
        self.open[await self.peer.send(method, params)] = (method, params, due)

    @rule(first=st.integers(0, 300), times=st.integers(1, 150), size=st.integers(0, 40))
    def write(self, first: int, times: int, size: int) -> None:
        """Neighbouring ids, some of them known; with other content a known one is still a repetition."""

        async def write() -> None:
            for number in range(first, first + times):
                write_id, data = str(number), b"%d," % len(self.meant) * size
                known = write_id in self.meant
                if not known and not self.ending:
                    self.meant[write_id] = data
                due = {"accepted" if known or not self.ending else "stdinClosed"}
                await self.ask("process/write", write_params("p", data, write_id), due)

        self.settle(write)

    @rule()
    def hear(self) -> None:
        """The child reads what is in its pipe, which makes room."""
        self.heard += self.child.heard()
        assert b"".join(self.meant.values()).startswith(self.heard)
        self.settle()

    @rule(steps=st.integers(0, 12), hears=st.booleans())
    def lose_the_connection(self, steps: int, hears: bool) -> None:
        """At any moment, with room being made or not; what had no answer is sent again, in order."""

        async def lose() -> None:
            if hears:
                self.heard += self.child.heard()
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            await self.peer.drop()
            unanswered = [self.open[known] for known in self.open if known not in self.peer.answers]
            self.open.clear()
            self.peer = await self.house.connect(self.session.session_id)
            for method, params, due in unanswered:
                # Unlike a write, an end that was accepted unheard cannot be told from an earlier one.
                again = due if method == "process/write" else due | {"stdinClosed"}
                await self.ask(method, params, again)

        self.settle(lose)

    @precondition(lambda self: not self.ending)
    @precondition(lambda self: len(self.meant) > 50)
    @rule()
    def close_stdin(self) -> None:
        """End-of-file comes behind everything written before."""
        self.ending = True
        self.settle(lambda: self.ask("process/closeStdin", {"processId": "p"}, {"accepted"}))

    def teardown(self) -> None:
        """A child that reads on hears everything meant, once and in order, and the end where it was asked for."""
        try:
            progress = -1
            while progress != len(self.heard):
                progress = len(self.heard)
                self.hear()
            assert self.open == {}
            assert self.heard == b"".join(self.meant.values())
            if self.ending:
                assert os.read(self.child.stdin_end, 1) == b""
        finally:
            self.token.run_sync_soon(self.stop.set)
            self.thread.join()


WriteMachine.TestCase.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
TestWriteMachine = WriteMachine.TestCase


async def test_forgotten_processes_leave_no_object() -> None:
    """When the retention time is over, nothing of a process is left in the supervisor, not even its log."""
    async with open_supervisor(Settings(retention_s=0.05)) as client:
        for _ in range(20):
            async with client.open_process(["echo", "hello"]) as process:
                assert await process.wait() == 0
        with trio.fail_after(REAL_PATIENCE_S):
            # What is forgotten is announced to nobody.
            while (await client.call("process/list")).processes:
                pass
        gc.collect()
        left = [thing for thing in gc.get_objects() if isinstance(thing, Process | EventLog | Feed | Child)]
        assert not left
