"""A server that does what a test says, over a real WebSocket: to show what a client does in odd cases."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
import trio_websocket

ENVIRONMENT = {"shell": {"name": "sh", "path": "/bin/sh"}, "cwd": "file:///tmp", "capabilities": {}}


class Script:
    """One connection of a client, from the server's side."""

    def __init__(self, ws: trio_websocket.WebSocketConnection) -> None:
        self.ws = ws

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
