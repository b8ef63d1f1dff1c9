"""A supervisor inside the test, with children made of pipes and peers behind in-memory channels.

Nothing here is a real process and nothing takes real time: a child says, reads and ends what the test lets
it, so that with `autojump_clock` an hour of waiting costs nothing and every order of events can be had.
A test that waits for what never comes fails at once too, for then the clock jumps to PATIENCE_S.
"""

from __future__ import annotations

import base64
import json
import os
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from tsupervise._background import open_background
from tsupervise._channel import CloseCode, MemoryChannel, ServerChannel, memory_channels
from tsupervise._connection import Connection
from tsupervise._containment import Enclosure
from tsupervise._fd import Fd
from tsupervise._settings import Settings
from tsupervise._spawn import Child, ProcessGroup, Spawner, SpawnRequest
from tsupervise._supervisor import Supervisor, open_supervisor_core
from tsupervise_protocol.messages import Stream
from wire import Answer, Event, start_params

PATIENCE_S = 1e6
"""How long a test waits for something that must happen, in virtual seconds."""


class PipeGroup(ProcessGroup):
    """The group of a child that is none: signals are written down, SIGKILL ends it."""

    def __init__(self, child: PipeChild) -> None:
        super().__init__(0)
        self.child = child
        self.signals: list[int] = []

    def signal(self, number: int) -> None:
        if not self.child.dead:
            self.signals.append(number)
            if number == signal.SIGKILL:
                self.child.end(128 + number, number)

    def leader_was_reaped(self) -> None:
        assert self.child.dead


class PipeChild(Child):
    """A child whose other side the test holds: it speaks, listens and dies as told."""

    def __init__(self, request: SpawnRequest, enclosure: Enclosure) -> None:
        self.request = request
        self.dead = False
        self.reaped = False
        self.status: tuple[int, int | None] = (0, None)
        pidfd, self._death = os.pipe2(os.O_CLOEXEC)
        stdout, self._stdout = os.pipe2(os.O_CLOEXEC)
        stderr, self._stderr = os.pipe2(os.O_CLOEXEC)
        for fd in (self._stdout, self._stderr):
            os.set_blocking(fd, False)
        stdin: Fd | None = None
        self.stdin_end = -1
        if request.pipe_stdin:
            self.stdin_end, ours = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self.stdin_end, False)
            stdin = Fd(ours)
        outputs: list[tuple[Stream, Fd]] = [("stdout", Fd(stdout)), ("stderr", Fd(stderr))]
        super().__init__(1, pidfd, PipeGroup(self), enclosure, outputs, stdin)

    def has_exited(self) -> bool:
        return self.dead

    def exit_status(self) -> tuple[int, int | None]:
        assert self.dead
        return self.status

    def reap(self) -> None:
        assert self.dead
        self.reaped = True

    def say(self, data: bytes, stream: Stream = "stdout") -> int:
        """Write to a stream as much as its pipe takes; returns how much that was."""
        try:
            return os.write(self._stdout if stream == "stdout" else self._stderr, data)
        except BlockingIOError:
            return 0

    def heard(self) -> bytes:
        """Read what has been written to stdin and not been heard yet."""
        data = b""
        try:
            while part := os.read(self.stdin_end, 1 << 20):
                data += part
        except BlockingIOError:
            pass
        return data

    def die(self, code: int = 0, term_signal: int | None = None) -> None:
        """Exit, and leave the streams to a grandchild that holds them."""
        self.dead = True
        self.status = (code, term_signal)
        os.close(self._death)

    def let_go(self) -> None:
        """End both output streams."""
        for fd in (self._stdout, self._stderr):
            os.close(fd)
        self._stdout = self._stderr = -1

    def end(self, code: int = 0, term_signal: int | None = None) -> None:
        """Exit, and let go of everything, as an ordinary child does."""
        if not self.dead:
            self.die(code, term_signal)
        if self._stdout != -1:
            self.let_go()
        if self.stdin_end != -1:
            os.close(self.stdin_end)
            self.stdin_end = -1

    @property
    def closed(self) -> bool:
        """Whether every descriptor on the supervisor's side is closed."""
        ours = [output for _, output in self.outputs] + ([self.stdin] if self.stdin else [])
        return self.pidfd == -1 and all(fd.closed for fd in ours)


@dataclass
class MemoryPeer:
    """One client, behind an in-memory channel. Everything that it is sent is kept."""

    channel: MemoryChannel
    connection: Connection
    gone: trio.Event = field(default_factory=trio.Event)
    """Set when the server is through with this connection."""
    receiving: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Cancelled, the peer reads no more, and the server's next send waits for ever."""
    answers: dict[Any, Answer] = field(default_factory=dict[Any, Answer])
    events: list[Event] = field(default_factory=list[Event])
    _changed: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)
    _next_id: int = 0

    async def receive(self) -> None:
        with self.receiving:
            while messages := await self.channel.receive():
                for message in map(json.loads, messages):
                    self.take(message)
                self._changed.unpark_all()

    def take(self, message: dict[str, Any]) -> None:
        if "method" in message:
            self.events.append(Event(message["method"].removeprefix("process/"), message["params"]))
        else:
            answer = Answer(message["id"], message.get("result"), message.get("error"))
            self.answers[answer.id] = answer

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition()` is true; it is asked again after every receive."""
        with trio.fail_after(PATIENCE_S):
            while not condition():
                await self._changed.park()

    async def send(self, method: str, params: Any = None) -> int:
        self._next_id += 1
        message = {"id": self._next_id, "method": method, "params": params}
        await self.channel.send([json.dumps(message).encode()])
        return self._next_id

    async def answer_to(self, request_id: int) -> Answer:
        await self.until(lambda: request_id in self.answers)
        return self.answers[request_id]

    async def request(self, method: str, params: Any = None) -> Answer:
        return await self.answer_to(await self.send(method, params))

    async def handshake(self, resume: str | None = None) -> Answer:
        answer = await self.request("initialize", {"clientName": "tests", "resumeSessionId": resume})
        if answer.error is None:
            await self.channel.send([b'{"method":"initialized"}'])
        return answer

    async def start(self, process_id: str, **fields: Any) -> Answer:
        return await self.request("process/start", start_params(process_id, "fake", **fields))

    async def read(self, process_id: str, **fields: Any) -> Answer:
        return await self.request("process/read", {"processId": process_id, **fields})

    async def terminate(self, process_id: str) -> Answer:
        return await self.request("process/terminate", {"processId": process_id})

    async def write(self, process_id: str, data: bytes, write_id: str) -> Answer:
        return await self.request("process/write", write_params(process_id, data, write_id))

    async def until_closed(self, process_id: str) -> list[Event]:
        def own() -> list[Event]:
            return [event for event in self.events if event.params["processId"] == process_id]

        await self.until(lambda: any(event.kind == "closed" for event in own()))
        return own()

    async def drop(self) -> None:
        """Leave, and wait until the server has noticed."""
        await self.channel.aclose(CloseCode.NORMAL, "")
        with trio.fail_after(PATIENCE_S):
            await self.gone.wait()


def write_params(process_id: str, data: bytes, write_id: str) -> dict[str, Any]:
    return {"processId": process_id, "chunk": base64.b64encode(data).decode(), "writeId": write_id}


@dataclass
class House:
    """A supervisor, the children that it was given, and a nursery for connections."""

    supervisor: Supervisor
    children: list[PipeChild]
    nursery: trio.Nursery

    async def connect(self, resume: str | None = None) -> MemoryPeer:
        """A peer that has done its handshake."""
        peer = self.knock()
        (await peer.handshake(resume)).ok()
        return peer

    def knock(self) -> MemoryPeer:
        """A peer that has said nothing yet."""
        ours, theirs = memory_channels()
        peer = MemoryPeer(ours, Connection(self.supervisor, theirs))
        self.nursery.start_soon(peer.receive)
        self.serve(theirs, peer.connection, peer.gone)
        return peer

    def serve(self, channel: ServerChannel, connection: Connection, gone: trio.Event) -> None:
        async def run() -> None:
            await connection.run()
            gone.set()

        self.nursery.start_soon(run)


@asynccontextmanager
async def open_house(
    settings: Settings | None = None, spawner: Spawner | None = None
) -> AsyncGenerator[House]:
    """A supervisor for the block. Its children are `PipeChild`, unless a spawner makes others."""
    children: list[PipeChild] = []

    def spawn(request: SpawnRequest, enclosure: Enclosure) -> PipeChild:
        child = PipeChild(request, enclosure)
        children.append(child)
        return child

    try:
        async with (
            open_supervisor_core(settings, spawner or spawn) as supervisor,
            open_background(outlast_cancel=True) as nursery,
        ):
            yield House(supervisor, children, nursery)
    finally:
        for child in children:
            child.end()
