"""A raw peer for the tests: JSON-RPC over a real WebSocket, by trio-websocket, with nothing of ours in it.

It knows no types and no rules, so that a test can send what a correct client never would, and so that
the same test runs against this daemon and against the reference server. Its only convenience is that
notifications are filed by process id, and that waiting for something has a generous limit.
"""

from __future__ import annotations

import base64
import json
import ssl
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import trio
import trio_websocket

PATIENCE_S = 20.0
"""How long a test waits for something that must happen. Never a measurement: a bound on a hang."""


@dataclass
class Answer:
    """One response: `result` or `error`, and the id it came with."""

    id: Any
    result: Any = None
    error: dict[str, Any] | None = None

    def ok(self) -> Any:
        """The result; an AssertionError if the answer is an error."""
        assert self.error is None, f"unexpected error answer: {self.error}"
        return self.result

    @property
    def code(self) -> int:
        assert self.error is not None, f"expected an error answer, got {self.result!r}"
        return self.error["code"]

    @property
    def message(self) -> str:
        assert self.error is not None, f"expected an error answer, got {self.result!r}"
        return self.error["message"]


@dataclass
class Event:
    """One notification about a process; `kind` is output, exited or closed."""

    kind: str
    params: dict[str, Any]

    @property
    def seq(self) -> int:
        return self.params["seq"]

    @property
    def data(self) -> bytes:
        return base64.b64decode(self.params["chunk"], validate=True)


@dataclass
class Peer:
    """One connection. Made by `connect`; its reader task belongs to that block's nursery."""

    ws: trio_websocket.WebSocketConnection
    answers: dict[Any, Answer] = field(default_factory=dict[Any, Answer])
    arrivals: list[Answer | Event] = field(default_factory=list[Answer | Event])
    by_process: defaultdict[str, list[Event]] = field(
        default_factory=lambda: defaultdict[str, list[Event]](list)
    )
    ended: bool = False
    session_id: str | None = None
    _changed: trio.Condition = field(default_factory=trio.Condition)
    _next_id: int = 0

    @property
    def session_name(self) -> str:
        """What logs call its session: so much of the id that it cannot be resumed by it."""
        assert self.session_id is not None, "there is a session after the handshake"
        return self.session_id[:8]

    async def read(self) -> None:
        try:
            while True:
                text = await self.ws.get_message()
                assert isinstance(text, str), "the server must send text frames"
                message = json.loads(text)
                if "method" in message:
                    kind = message["method"].removeprefix("process/")
                    event = Event(kind, message.get("params") or {})
                    self.arrivals.append(event)
                    self.by_process[event.params.get("processId", "")].append(event)
                else:
                    answer = Answer(message["id"], message.get("result"), message.get("error"))
                    self.arrivals.append(answer)
                    self.answers[answer.id] = answer
                async with self._changed:
                    self._changed.notify_all()
        except trio_websocket.ConnectionClosed:
            pass
        finally:
            self.ended = True
            with trio.CancelScope(shield=True):
                async with self._changed:
                    self._changed.notify_all()

    async def until(self, condition: Any) -> None:
        """Wait until `condition()` is true; it is asked again after every message."""
        with trio.fail_after(PATIENCE_S):
            async with self._changed:
                while not condition():
                    assert not self.ended or condition(), "the connection ended while waiting"
                    await self._changed.wait()

    async def until_ended(self) -> None:
        """Wait until the server has ended the connection."""
        with trio.fail_after(PATIENCE_S):
            async with self._changed:
                while not self.ended:
                    await self._changed.wait()

    async def send_raw(self, message: str | bytes) -> None:
        await self.ws.send_message(message)

    async def send(self, method: str, params: Any = None, **members: Any) -> int:
        """Send one request and return its id at once; pass `omit_params=True` to leave params out."""
        self._next_id += 1
        omit = members.pop("omit_params", False)
        message: dict[str, Any] = {"id": self._next_id, "method": method}
        if not omit:
            message["params"] = params
        await self.send_raw(json.dumps({**message, **members}))
        return self._next_id

    async def answer_to(self, request_id: Any) -> Answer:
        await self.until(lambda: request_id in self.answers)
        return self.answers[request_id]

    async def request(self, method: str, params: Any = None, **members: Any) -> Answer:
        return await self.answer_to(await self.send(method, params, **members))

    async def notify(self, method: str, params: Any = None) -> None:
        message: dict[str, Any] = {"method": method}
        if params is not None:
            message["params"] = params
        await self.send_raw(json.dumps(message))

    async def handshake(self, resume: str | None = None) -> dict[str, Any]:
        params: dict[str, Any] = {"clientName": "tests"}
        if resume is not None:
            params["resumeSessionId"] = resume
        result = (await self.request("initialize", params)).ok()
        await self.notify("initialized")
        self.session_id = result["sessionId"]
        return result

    async def start(self, process_id: str, *argv: str, **fields: Any) -> Answer:
        """Start `argv`; `fields` are further members of process/start."""
        return await self.request("process/start", start_params(process_id, *argv, **fields))

    async def write(self, process_id: str, data: bytes, write_id: str) -> Answer:
        return await self.request("process/write", write_params(process_id, data, write_id))

    async def process_read(self, process_id: str, **fields: Any) -> Answer:
        return await self.request("process/read", {"processId": process_id, **fields})

    async def terminate(self, process_id: str) -> Answer:
        return await self.request("process/terminate", {"processId": process_id})

    def events(self, process_id: str) -> list[Event]:
        """All events of one process so far, in order of arrival."""
        return self.by_process[process_id]

    def output(self, process_id: str, stream: str | None = None) -> bytes:
        """All output of one process so far, joined; of one stream if named."""
        return b"".join(
            event.data
            for event in self.events(process_id)
            if event.kind == "output" and stream in (None, event.params["stream"])
        )

    def exit(self, process_id: str) -> dict[str, Any] | None:
        """The params of the exited event, if it came."""
        return next((e.params for e in self.events(process_id) if e.kind == "exited"), None)

    async def until_output(self, process_id: str, needle: bytes) -> bytes:
        await self.until(lambda: needle in self.output(process_id))
        return self.output(process_id)

    async def until_exited(self, process_id: str) -> dict[str, Any]:
        await self.until(lambda: self.exit(process_id) is not None)
        params = self.exit(process_id)
        assert params is not None
        return params

    async def until_closed(self, process_id: str) -> list[Event]:
        await self.until(lambda: any(e.kind == "closed" for e in self.events(process_id)))
        return self.events(process_id)

    async def run(self, process_id: str, *argv: str, **fields: Any) -> tuple[int, bytes]:
        """Start, wait until closed, return the exit code and all output joined."""
        (await self.start(process_id, *argv, **fields)).ok()
        await self.until_closed(process_id)
        return (await self.until_exited(process_id))["exitCode"], self.output(process_id)


def start_params(process_id: str, *argv: str, **fields: Any) -> dict[str, Any]:
    """The params of a plain process/start: pipes, cwd /tmp, PATH alone in the environment."""
    return {
        "processId": process_id,
        "argv": list(argv),
        "cwd": "file:///tmp",
        "env": {"PATH": "/usr/local/bin:/usr/bin:/bin"},
        "tty": False,
        **fields,
    }


def write_params(process_id: str, data: bytes, write_id: str) -> dict[str, Any]:
    """The params of a process/write."""
    return {"processId": process_id, "chunk": base64.b64encode(data).decode(), "writeId": write_id}


def env_policy(inherit: str = "none", **fields: Any) -> Mapping[str, Any]:
    """An envPolicy with all five members."""
    return {
        "inherit": inherit,
        "ignoreDefaultExcludes": True,
        "exclude": [],
        "set": {},
        "includeOnly": [],
        **fields,
    }


async def open_stream(url: str, tls: ssl.SSLContext | None = None) -> trio.abc.Stream:
    """A connection to where a URL points, TLS included."""
    address = urlsplit(url)
    if address.scheme == "unix":
        return await trio.open_unix_socket(address.path)
    stream = await trio.open_tcp_stream(address.hostname or "", address.port or 80)
    return stream if tls is None else trio.SSLStream(stream, tls, server_hostname=address.hostname)


@asynccontextmanager
async def connect(
    url: str,
    *,
    handshake: bool = True,
    resume: str | None = None,
    headers: Sequence[tuple[str, str]] = (),
    tls: ssl.SSLContext | None = None,
) -> AsyncGenerator[Peer]:
    """Open a connection, do the handshake unless told otherwise, and drop it at the end of the block."""
    with trio.fail_after(PATIENCE_S):
        stream = await open_stream(url, tls)
    # The library leaves its socket open when the server ends the stream without a close frame.
    async with stream, trio.open_nursery() as nursery:
        with trio.fail_after(PATIENCE_S):
            ws = await trio_websocket.wrap_client_stream(
                nursery,
                cast("trio.SocketStream", stream),
                urlsplit(url).netloc or "localhost",
                "/",
                extra_headers=[(name.encode(), value.encode()) for name, value in headers],
                max_message_size=256 << 20,
                message_queue_size=64,
            )
        peer = Peer(ws)
        nursery.start_soon(peer.read)
        try:
            if handshake:
                await peer.handshake(resume)
            yield peer
        finally:
            if not peer.ended:
                with trio.move_on_after(2, shield=True):
                    await ws.aclose()
            nursery.cancel_scope.cancel()
