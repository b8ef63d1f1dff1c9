"""A small MCP server over HTTP, with its event stream: one tool, which asks its caller back before it answers.

It owns one endpoint, `/mcp`, on loopback. The tool `greet` answers only when the client has answered a ping that
came to it over the event stream of its GET request, so that an answer shows that both directions work. One
connection carries one request, as the client does not mind.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import h11
import trio

SESSION = "one-session"


@dataclass
class McpServer:
    """What one server has seen: `requests` are method and MCP method of each HTTP request, in order."""

    port: int
    requests: list[str] = field(default_factory=list[str])
    headers: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    listens: trio.Event = field(default_factory=trio.Event)
    """Somebody has opened the event stream."""
    asked: trio.Event = field(default_factory=trio.Event)
    """The tool has been called: the one who listens is to be pinged."""
    pinged: trio.Event = field(default_factory=trio.Event)
    """The ping has been answered."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    async def answer(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to one JSON-RPC message; None for what has none."""
        match message:
            case {"method": "initialize", "params": {"protocolVersion": version}}:
                result: dict[str, Any] = {
                    "protocolVersion": version,
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": "greeter", "version": "1"},
                }
            case {"method": "tools/list"}:
                schema = {"type": "object", "properties": {"name": {"type": "string"}}}
                tool = {"name": "greet", "description": "Greets.", "inputSchema": schema}
                result = {"tools": [tool]}
            case {"method": "tools/call", "params": {"name": "greet", "arguments": {"name": name}}}:
                self.asked.set()
                await self.pinged.wait()
                result = {"content": [{"type": "text", "text": f"hello {name}"}]}
            case {"id": "ping-1", "result": {}}:
                self.pinged.set()
                return None
            case {"id": _, "method": method}:
                error = {"code": -32601, "message": f"no {method} here"}
                return {"jsonrpc": "2.0", "id": message["id"], "error": error}
            case _:
                return None
        return {"jsonrpc": "2.0", "id": message["id"], "result": result}


def event(message: dict[str, Any]) -> bytes:
    return f"event: message\ndata: {json.dumps(message)}\n\n".encode()


async def answer_request(server: McpServer, stream: trio.SocketStream) -> None:
    """Read one request and answer it; the caller closes the stream."""
    connection = h11.Connection(h11.SERVER)
    request: h11.Request | None = None
    body = b""
    while not isinstance(part := connection.next_event(), h11.EndOfMessage):
        match part:
            case h11.NEED_DATA:
                connection.receive_data(await stream.receive_some())
            case h11.Request():
                request = part
            case h11.Data():
                body += part.data
            case _:
                return
    assert request is not None
    method = request.method.decode()
    message: dict[str, Any] = json.loads(body) if body else {}
    server.requests.append(f"{method} {message.get('method', '')}".rstrip())
    server.headers.append({name.decode(): value.decode() for name, value in request.headers})

    async def send(part: h11.Response | h11.Data | h11.EndOfMessage) -> None:
        await stream.send_all(connection.send(part) or b"")

    async def begin(status: int, *headers: tuple[str, str]) -> None:
        await send(h11.Response(status_code=status, headers=[*headers, ("connection", "close")]))

    if method == "GET":
        await begin(200, ("content-type", "text/event-stream"))
        server.listens.set()
        await server.asked.wait()
        await send(h11.Data(data=event({"jsonrpc": "2.0", "id": "ping-1", "method": "ping"})))
        await trio.sleep_forever()
    if method == "DELETE":
        await begin(200, ("content-length", "0"))
    elif message.get("method") == "tools/call":
        # Begun at once: some executors send nothing else while a response has no head yet.
        await begin(200, ("content-type", "text/event-stream"))
        answer = await server.answer(message)
        assert answer is not None
        await send(h11.Data(data=event(answer)))
    elif (answer := await server.answer(message)) is None:
        await begin(202, ("content-length", "0"))
    else:
        data = json.dumps(answer).encode()
        length = ("content-length", str(len(data)))
        await begin(200, ("content-type", "application/json"), length, ("mcp-session-id", SESSION))
        await send(h11.Data(data=data))
    await send(h11.EndOfMessage())


async def serve_one(server: McpServer, stream: trio.SocketStream) -> None:
    # A client may go at any time; what it asked for is nobody's business then.
    with suppress(trio.BrokenResourceError, h11.RemoteProtocolError):
        await answer_request(server, stream)


@asynccontextmanager
async def mcp_http_server() -> AsyncGenerator[McpServer]:
    """Serve on a free loopback port for the length of the block."""
    async with trio.open_nursery() as nursery:  # its one child serves the port
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        server = McpServer(listener.socket.getsockname()[1])
        nursery.start_soon(trio.serve_listeners, partial(serve_one, server), [listener])
        yield server
        nursery.cancel_scope.cancel()
