"""Generated histories of a client over faults: real children, a real daemon, real sockets, and a proxy that cuts.

A history is a list of steps that hypothesis makes, played by one client in one loop against a daemon that
serves all of them. Each child keeps its own account of what it read and what it wrote, and reports it as its
last words, so that what must hold is the child's word and not the client's.
"""

from __future__ import annotations

import base64
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import pytest
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from daemons import Daemon, running, start_daemon
from fault_proxy import Direction, FaultProxy, How, fault_proxy
from procfs import children_of, listening_pid, open_descriptors, until
from tsupervise import (
    Client,
    Closed,
    ConnectFailed,
    Event,
    Exited,
    OutcomeUnknown,
    Output,
    RemoteProcess,
    StdinClosed,
    connect,
)

PATIENCE_S = 15.0
"""For one history, which takes less than a second."""

SILENCE_S = 0.3
"""For a server that hears nothing more to be taken for gone."""

HOLD_S = 0.1
"""For a server to hear nothing of a half-open cut; meanwhile it refuses its session."""

DIGEST_BYTES = 8

ACCOUNTANT = """
import os, select, signal, sys
from _blake2 import blake2b
count, code = int(sys.argv[1]), int(sys.argv[2])
heard, interrupts, extra = blake2b(digest_size=8), 0, 0
def interrupted(*_):
    global interrupts
    interrupts += 1
def say(data):
    while data:
        data = data[os.write(1, data):]
signal.signal(signal.SIGINT, interrupted)
if os.isatty(0):
    import tty
    tty.setraw(0)
say(b"ready")
while count:
    data = os.read(0, min(count, 65536))
    if not data:
        break
    count -= len(data)
    heard.update(data)
    say(data)
while select.select([0], [], [], 0)[0] and os.read(0, 65536):
    extra += 1
say(b" %s %d %d %d" % (heard.hexdigest().encode(), count, extra, interrupts))
os._exit(code)
"""
"""A child that reads so many bytes, says each back, and then what it read and how often it was interrupted."""

READY = b"ready"


# --- what a history is made of ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Write:
    process: int
    size: int


@dataclass(frozen=True)
class Drop:
    """The connection is cut: now, or in the middle of the bytes that follow."""

    how: How
    behind: tuple[Direction, int] | None
    for_s: float
    stall_s: float


@dataclass(frozen=True)
class Interrupt:
    process: int


@dataclass(frozen=True)
class Read:
    process: int


@dataclass(frozen=True)
class Settle:
    """Everything that was written has come back: after a cut that means the client has."""


@dataclass(frozen=True)
class Terminate:
    process: int


HOWS: tuple[How, ...] = ("fin", "rst", "fin", "rst", "fin", "rst", "half-open", "silent")

Step = Write | Drop | Interrupt | Read | Settle | Terminate


@dataclass(frozen=True)
class History:
    kinds: tuple[Literal["pipes", "terminal"], ...]
    """Of each process; it is started by the first step that is about it."""
    steps: tuple[Step, ...]
    seed: int


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Up to three processes, at least ten writes, and at least one cut that falls on a live connection."""
    kinds = draw(st.lists(st.sampled_from(("pipes", "terminal")), min_size=1, max_size=3))
    process = st.integers(0, len(kinds) - 1)
    behind = st.tuples(st.sampled_from(("forth", "back")), st.integers(0, 2500))
    how = st.sampled_from(HOWS)
    for_s, stall_s = st.sampled_from((0.0, 0.0, 0.0, 0.05)), st.sampled_from((0.0, 0.0, 0.02))
    steps: list[Step] = [
        *draw(st.lists(st.builds(Write, process, st.integers(1, 900)), min_size=10, max_size=18)),
        draw(st.builds(Drop, how, st.none(), for_s, st.just(0.0))),
        *draw(st.lists(st.builds(Drop, how, behind, for_s, stall_s), max_size=3)),
        *draw(st.lists(st.one_of(st.builds(Interrupt, process), st.builds(Read, process)), max_size=3)),
        *draw(st.lists(st.just(Settle()), max_size=2)),
        *draw(st.lists(st.builds(Terminate, process), max_size=1)),
    ]
    return History(tuple(kinds), tuple(draw(st.permutations(steps))), draw(st.integers(0, 1 << 30)))


# --- how it is played ------------------------------------------------------------------------------------


@dataclass
class Followed:
    """One process of a history, and what is known of it."""

    process: RemoteProcess
    code: int
    to_write: trio.MemorySendChannel[bytes]
    planned: trio.MemoryReceiveChannel[bytes]
    sent: bytes = b""
    """What was asked to be written so far."""
    output: bytes = b""
    events: list[Event] = field(default_factory=list[Event])
    interrupts: Counter[str] = field(default_factory=Counter[str])
    terminated: bool = False
    _changed: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    async def write(self) -> None:
        """Write what is planned, in order."""
        async for data in self.planned:
            try:
                await self.process.write(data)
            except StdinClosed:
                assert self.terminated

    async def follow(self) -> None:
        """Take every event until the close."""
        async for event in self.process.events():
            self.events.append(event)
            if isinstance(event, Output):
                self.output += event.data
            self._changed.unpark_all()

    async def until_said(self, size: int) -> None:
        while len(self.output) < size and not self.process.closed:
            await self._changed.park()


class Play:
    """One history being played."""

    def __init__(
        self, history: History, client: Client, proxy: FaultProxy, nursery: trio.Nursery, tally: Counter[str]
    ) -> None:
        self.client = client
        self.proxy = proxy
        self.nursery = nursery
        self.tally = tally
        self.history = history
        self.chance = random.Random(history.seed)
        self.followed: dict[int, Followed] = {}

    async def run(self) -> None:
        for step in self.history.steps:
            await self.take(step)
        for number in range(len(self.history.kinds)):
            one = await self.started(number)
            # Its last byte comes now, so that a signal that was answered has found it alive.
            self.plan(one, 1)
            one.to_write.close()

    async def take(self, step: Step) -> None:
        match step:
            case Write(number, size):
                self.plan(await self.started(number), size)
                self.tally["writes"] += 1
                await trio.lowlevel.checkpoint()
            case Drop(how, behind, for_s, stall_s):
                if behind is None:
                    self.proxy.cut(for_s, how)
                else:
                    self.proxy.cut_after(*behind, for_s, how, stall_s)
            case Settle():
                for one in self.followed.values():
                    await one.until_said(len(READY) + len(one.sent))
            case Interrupt(number):
                one = await self.started(number)
                await one.until_said(len(READY))
                try:
                    await one.process.interrupt()
                    one.interrupts["answered"] += 1
                except OutcomeUnknown:
                    one.interrupts["unknown"] += 1
            case Read(number):
                one = await self.started(number)
                answer = await one.process.read()
                chunks = b"".join(base64.b64decode(chunk.chunk) for chunk in answer.chunks)
                assert (READY + one.sent).startswith(chunks)
            case Terminate(number):
                one = await self.started(number)
                one.terminated = True
                was_told = False
                while not was_told:
                    with suppress(OutcomeUnknown):
                        await one.process.terminate()
                        was_told = True

    def plan(self, one: Followed, size: int) -> None:
        data = self.chance.randbytes(size)
        one.sent += data
        one.to_write.send_nowait(data)

    async def started(self, number: int) -> Followed:
        if number not in self.followed:
            steps = self.history.steps
            size = 1 + sum(step.size for step in steps if isinstance(step, Write) and step.process == number)
            code = self.chance.randrange(100)
            argv = [sys.executable, "-I", "-S", "-c", ACCOUNTANT, str(size), str(code)]
            is_terminal = self.history.kinds[number] == "terminal"
            process = None
            while process is None:
                try:
                    process = await self.client.start(argv, tty=is_terminal, pipe_stdin=True)
                except OutcomeUnknown:
                    self.tally["starts whose answer was lost"] += 1
            to_write, planned = trio.open_memory_channel[bytes](len(steps) + 1)
            one = self.followed[number] = Followed(process, code, to_write, planned)
            self.nursery.start_soon(one.follow)
            self.nursery.start_soon(self.write_when_ready if is_terminal else Followed.write, one)
        return self.followed[number]

    async def write_when_ready(self, one: Followed) -> None:
        """A terminal echoes and edits its input until its program has told it not to."""
        await one.until_said(len(READY))
        await one.write()

    def check(self) -> None:
        """What must hold of each process when it is closed."""
        for one in self.followed.values():
            assert [event.seq for event in one.events] == list(range(1, len(one.events) + 1))
            assert sum(isinstance(event, Exited) for event in one.events) == 1
            assert isinstance(one.events[-1], Closed)
            all_said = READY + one.sent
            if one.terminated:
                assert one.process.exit_code == 137
                assert all_said.startswith(one.output)
                self.tally["terminated"] += 1
                continue
            assert one.process.exit_code == one.code
            assert one.output[: len(all_said)] == all_said
            heard, missing, extra, interrupts = one.output[len(all_said) :].decode().split()
            digest = blake2b(one.sent, digest_size=DIGEST_BYTES).hexdigest()
            assert (heard, missing, extra) == (digest, "0", "0")
            assert bool(one.interrupts["answered"]) <= int(interrupts) <= one.interrupts.total()
            self.tally["bytes"] += len(one.sent)
            self.tally["interrupts"] += int(interrupts)


async def play(
    history: History, daemon: Daemon, daemon_pid: int, descriptors: int, tally: Counter[str]
) -> None:
    """Play one history to its end and check it, and that the daemon has nothing left of it."""
    with trio.fail_after(PATIENCE_S):
        async with fault_proxy(daemon.address) as proxy:
            proxy.hold_s = HOLD_S
            async with AsyncExitStack() as stack:
                client = None
                while client is None:
                    with suppress(ConnectFailed):  # the machine stalled for as long as a silence takes
                        client = await stack.enter_async_context(connect(proxy.url, silence_s=SILENCE_S))
                async with trio.open_nursery() as nursery:
                    actors = Play(history, client, proxy, nursery, tally)
                    await actors.run()
                actors.check()
        await until(lambda: not children_of(daemon_pid))
        await until(lambda: open_descriptors(daemon_pid) == descriptors)
    tally["histories"] += 1
    tally["processes"] += len(history.kinds)
    tally["connections"] += proxy.carried
    tally["cuts"] += proxy.cuts
    writes = sum(isinstance(step, Write) for step in history.steps)
    tally["histories that count"] += proxy.cuts >= 1 and writes >= 10 and proxy.carried >= 1


@pytest.fixture
def quiet_daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that serves these histories and nothing else."""
    with running(start_daemon("ours", stderr=tmp_path / "log")) as daemon:
        yield daemon


@pytest.mark.case(106, 108, 109, 110, 114)
def test_whatever_happens_to_the_connection_nothing_is_lost_or_doubled(
    quiet_daemon: Daemon, long_profile: bool
) -> None:
    """Each byte of stdin is read once and in order, events agree with the child's account, nothing stays behind."""
    tally: Counter[str] = Counter()
    pid = listening_pid(quiet_daemon)
    descriptors = open_descriptors(pid)

    @settings(
        max_examples=2000 if long_profile else 20,
        deadline=None,
        database=None,
        phases=(Phase.generate,),  # what depends on time does not get smaller
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(history=histories())
    def check(history: History) -> None:
        try:
            trio.run(play, history, quiet_daemon, pid, descriptors, tally)
        except BaseException:
            for child in children_of(pid):  # else the next history would fail for it
                os.kill(child, signal.SIGKILL)
            raise

    check()
    print(", ".join(f"{count} {name}" for name, count in tally.items()))
    assert tally["histories that count"] == tally["histories"]
