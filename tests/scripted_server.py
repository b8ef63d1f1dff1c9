"""A server that does what a test says, over a WebSocket: to show what a client does in odd cases.

`scripted_server` listens on a real socket, with real time. `scripted_client` is joined to its server by streams
inside the test, so that with `autojump_clock` an hour of silence costs nothing.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, cast

import trio
import trio.testing
import trio_websocket

from tsupervise import Client
from tsupervise._websocket_client import (
    CONNECT_S,
    SILENCE_S,
    Address,
    WebSocketChannel,
    open_channel_over,
)
from tsupervise.client import _open as open_client_over  # pyright: ignore[reportPrivateUsage]

ENVIRONMENT = {"shell": {"name": "sh", "path": "/bin/sh"}, "cwd": "file:///tmp", "capabilities": {}}


PATIENCE_S = 36_000.0
"""How long a block with a `scripted_client` may take, in virtual seconds."""


class Ear(trio.abc.Stream):
    """The stream of a server that can fall silent: what comes then is written down, and nothing answers it."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.is_deaf = False
        self.is_stuck = False
        """Whether it does not even take what comes."""
        self.unheard: list[tuple[float, bytes]] = []
        """What came, and when."""
        self._stream = stream

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        while True:
            data = await self._stream.receive_some(max_bytes)
            if not self.is_deaf:
                return data
            self.unheard.append((trio.current_time(), bytes(data)))
            if self.is_stuck:
                await trio.sleep_forever()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


class Script:
    """One connection of a client, from the server's side."""

    def __init__(self, ws: trio_websocket.WebSocketConnection, ear: Ear | None = None) -> None:
        self.ws = ws
        self._ear = ear

    @property
    def ear(self) -> Ear:
        """What hears the client, of a `scripted_client`."""
        assert self._ear is not None, "this script listens on a socket"
        return self._ear

    async def receive(self) -> dict[str, Any]:
        """The next message, whatever it is."""
        return json.loads(await self.ws.get_message())

    async def expect(self, method: str) -> dict[str, Any]:
        """The next message, which must be of this method."""
        message = await self.receive()
        assert message.get("method") == method, f"expected {method}, got {message}"
        return message

    async def send(self, **message: Any) -> None:
        await self.ws.send_message(json.dumps(message))

    async def answer(self, request: dict[str, Any], result: Any = None) -> None:
        await self.send(id=request["id"], result={} if result is None else result)

    async def refuse(self, request: dict[str, Any], code: int, message: str) -> None:
        await self.send(id=request["id"], error={"code": code, "message": message})

    async def handshake(self, **result: Any) -> None:
        request = await self.expect("initialize")
        await self.answer(request, {"sessionId": "s", "environmentInfo": ENVIRONMENT, **result})
        await self.expect("initialized")

    async def start(self) -> str:
        """Accept a start; returns the process id."""
        request = await self.expect("process/start")
        process_id = request["params"]["processId"]
        await self.answer(request, {"processId": process_id, "sandboxType": "none"})
        return process_id

    async def output(self, process_id: str, seq: int, data: bytes | None = None) -> None:
        """One output event; its data is its number unless given."""
        chunk = base64.b64encode(b"%d\n" % seq if data is None else data).decode()
        await self.send(
            method="process/output",
            params={"processId": process_id, "seq": seq, "stream": "stdout", "chunk": chunk},
        )

    async def exited(self, process_id: str, seq: int, **fields: Any) -> None:
        fields = {"exitCode": 0, "sandboxDenied": False, **fields}
        fields = {name: value for name, value in fields.items() if value is not None}
        await self.send(method="process/exited", params={"processId": process_id, "seq": seq, **fields})

    async def closed(self, process_id: str, seq: int) -> None:
        await self.send(method="process/closed", params={"processId": process_id, "seq": seq})

    async def until_gone(self) -> None:
        """Answer every call with an empty object until the client leaves: for the end of a script."""
        try:
            while True:
                message = await self.receive()
                if "id" in message and "method" in message:
                    result = {"running": False} if message["method"] == "process/terminate" else {}
                    await self.answer(message, result)
        except trio_websocket.ConnectionClosed:
            pass


def connections(*plays: Callable[[Script], Awaitable[None]]) -> Callable[[Script], Awaitable[None]]:
    """One script for each connection, in the order in which they come."""
    left = list(plays)

    async def play(script: Script) -> None:
        assert left, "the client came once more than the test expects"
        await left.pop(0)(script)

    return play


async def resume(script: Script) -> None:
    """The handshake of a client that comes back."""
    request = await script.expect("initialize")
    assert request["params"]["resumeSessionId"] == "s"
    await script.answer(request, {"sessionId": "s"})
    await script.expect("initialized")


async def expect_catch_up(script: Script, process_id: str, after_seq: int) -> dict[str, Any]:
    read = await script.expect("process/read")
    params = {"processId": process_id, "afterSeq": after_seq, "maxBytes": None, "waitMs": 0}
    assert read["params"] == params
    return read


def state(next_seq: int, *seqs: int, exit_code: int | None = None, closed: bool = False) -> dict[str, Any]:
    """The result of a read: chunks of these numbers."""
    return {
        "chunks": [{"seq": seq, "stream": "stdout", "chunk": "eA=="} for seq in seqs],
        "nextSeq": next_seq,
        "exited": exit_code is not None,
        "exitCode": exit_code,
        "closed": closed,
        "failure": None,
        "sandboxDenied": False,
    }


@asynccontextmanager
async def scripted_server(play: Callable[[Script], Awaitable[None]]) -> AsyncGenerator[str]:
    """Run a script against each connection; yields the URL. A connection ends with its script.

    A script that fails fails the test. The block waits for scripts that still run, which end when their
    client does, and must end within a generous bound.
    """
    running = 0
    all_ended = trio.Event()

    async def serve(request: trio_websocket.WebSocketRequest) -> None:
        nonlocal running
        running += 1
        try:
            await play(Script(await request.accept()))
        finally:
            running -= 1
            if not running:
                all_ended.set()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(partial(trio_websocket.serve_websocket, serve, "127.0.0.1", 0, None))
            yield f"ws://127.0.0.1:{server.port}"
            if running:
                await all_ended.wait()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def scripted_client(
    play: Callable[[Script], Awaitable[None]], *, recovery_s: float = 0.0, silence_s: float = SILENCE_S
) -> AsyncGenerator[Client]:
    """A client of a server that runs a script against each connection. The scripts are cancelled at the end.

    Nothing is buffered in between: a send waits until the other side has received all of it. The block may take
    `PATIENCE_S`, which is meant for virtual time.
    """

    async def serve(stream: trio.abc.Stream) -> None:
        ear = Ear(stream)
        async with ear, trio.open_nursery() as reader:
            request = await trio_websocket.wrap_server_stream(reader, cast("trio.SocketStream", ear))
            with suppress(trio_websocket.ConnectionClosed, trio.BrokenResourceError):  # its client has left
                await play(Script(await request.accept(), ear))
            reader.cancel_scope.cancel()

    @asynccontextmanager
    async def open_channel() -> AsyncGenerator[WebSocketChannel]:
        near, far = trio.testing.lockstep_stream_pair()
        scripts.start_soon(serve, far)
        deadline = trio.current_time() + CONNECT_S
        async with open_channel_over(near, Address.of("ws://script"), deadline, silence_s) as channel:
            yield channel

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as scripts:
            async with open_client_over(open_channel, "tests", None, recovery_s) as client:
                yield client
            scripts.cancel_scope.cancel()
