"""The port as a peer meets it: the HTTP surface, frames good and bad, closing, and small frames in a row.

Everything goes over raw sockets, with frames written by hand, so that a test may send what no library
would, and sees exactly which frames come back.
"""

from __future__ import annotations

import json
import signal
import statistics
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from daemons import Daemon, start_daemon
from frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    NO_MASK,
    PING,
    PONG,
    TEXT,
    client_frame,
    close_payload,
    frame_header,
)
from wire import PATIENCE_S, connect

MAX_FRAME_BYTES = 16 << 20
MAX_MESSAGE_BYTES = 64 << 20

UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
"""The answer to that key, by RFC 6455, 1.3."""

INITIALIZE = b'{"id":1,"method":"initialize","params":{"clientName":"tests"}}'
INITIALIZED = b'{"method":"initialized"}'

DELAYED_ACK_S = 0.040
"""How long Linux may put off the acknowledgement that a server with Nagle's algorithm waits for."""


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class RawPeer:
    """One TCP connection: whole frames in, whole frames out."""

    stream: trio.SocketStream
    received: bytearray = field(default_factory=bytearray)
    was_reset: bool = False

    async def more(self) -> bool:
        """Wait for more bytes; False once the server has ended the connection."""
        try:
            data = await self.stream.receive_some()
        except trio.BrokenResourceError:  # it closed before it had read all that we sent
            self.was_reset = True
            data = b""
        self.received += data
        return bool(data)

    async def take(self, size: int) -> bytes | None:
        """The next `size` bytes; None at the end of the connection."""
        while len(self.received) < size:
            if not await self.more():
                return None
        data = bytes(self.received[:size])
        del self.received[:size]
        return data

    async def send(self, data: bytes) -> None:
        """Send as much of `data` as the server wants to have."""
        try:
            await self.stream.send_all(data)
        except trio.BrokenResourceError:
            self.was_reset = True

    async def response(self, *, has_body: bool = True) -> Response:
        """One HTTP response."""
        while b"\r\n\r\n" not in self.received:
            assert await self.more(), "the server hung up on a request"
        head = await self.take(self.received.index(b"\r\n\r\n") + 4)
        assert head is not None
        line, *fields = head.decode().strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
        body = await self.take(int(headers.get("content-length", "0")) if has_body else 0)
        assert body is not None
        return Response(int(line.split()[1]), headers, body)

    async def frame(self) -> tuple[int, bytes] | None:
        """The next frame as its first byte and its payload; None at the end of the connection."""
        head = await self.take(2)
        if head is None:
            return None
        first, size = head
        assert size < 0x80, "a server must not mask"
        if size > 125:
            extended = await self.take(2 if size == 126 else 8)
            assert extended is not None
            size = int.from_bytes(extended, "big")
        payload = await self.take(size)
        assert payload is not None
        return first, payload

    async def answer(self) -> Any:
        """The next frame, which must be one whole text frame with a JSON-RPC message."""
        received = await self.frame()
        assert received is not None, "the server ended the connection"
        first, payload = received
        assert first == 0x80 | TEXT
        return json.loads(payload)

    async def close_codes(self) -> list[int]:
        """Answer close frames, the only ones that may come, until the connection ends; return their codes."""
        codes: list[int] = []
        while (received := await self.frame()) is not None:
            first, payload = received
            assert first == 0x80 | CLOSE, f"unexpected frame before the end: {received}"
            codes.append(int.from_bytes(payload[:2], "big"))
            await self.send(client_frame(CLOSE, payload))
        return codes

    async def works(self) -> None:
        """A handshake succeeds on this fresh connection."""
        await self.send(client_frame(TEXT, INITIALIZE))
        assert "sessionId" in (await self.answer())["result"]
        await self.send(client_frame(TEXT, INITIALIZED))


@asynccontextmanager
async def dial(daemon: Daemon) -> AsyncGenerator[RawPeer]:
    """A bare TCP connection, with a limit on everything done in the block."""
    with trio.fail_after(PATIENCE_S):
        async with await trio.open_tcp_stream(*daemon.address) as stream:
            yield RawPeer(stream)


@asynccontextmanager
async def upgraded(daemon: Daemon) -> AsyncGenerator[RawPeer]:
    """A connection that is a WebSocket already."""
    async with dial(daemon) as peer:
        await peer.send(request("GET", "/", UPGRADE))
        response = await peer.response()
        assert (response.status, response.headers["sec-websocket-accept"]) == (101, ACCEPT)
        yield peer


def request(method: str, path: str, *fields: dict[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name}: {value}" for field in fields for name, value in field.items()]
    return "\r\n".join([*lines, "", ""]).encode()


async def ask(daemon: Daemon, method: str, path: str, *fields: dict[str, str]) -> Response:
    async with dial(daemon) as peer:
        await peer.send(request(method, path, *fields))
        return await peer.response(has_body=method != "HEAD")


@pytest.mark.case(5)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("fields", [{}, UPGRADE], ids=["plain", "upgrade"])
async def test_readiness_is_an_empty_200(daemon: Daemon, method: str, fields: dict[str, str]) -> None:
    """A probe gets its 200, and nobody is upgraded there."""
    response = await ask(daemon, method, "/readyz", fields)
    assert (response.status, response.body) == (200, b"")


@pytest.mark.case(5)
async def test_readiness_is_only_read(daemon: Daemon) -> None:
    """Other methods are refused with the list of the good ones."""
    response = await ask(daemon, "POST", "/readyz")
    assert (response.status, response.headers["allow"], response.body) == (405, "GET,HEAD", b"")


@pytest.mark.case(6)
@pytest.mark.parametrize("origin", ["x", ""], ids=["named", "empty"])
@pytest.mark.parametrize("path", ["/", "/readyz", "/foo"])
@pytest.mark.parametrize("fields", [{}, UPGRADE], ids=["plain", "upgrade"])
async def test_a_web_page_is_refused_everywhere(
    daemon: Daemon, origin: str, path: str, fields: dict[str, str]
) -> None:
    """Whatever carries an Origin header gets an empty 403."""
    response = await ask(daemon, "GET", path, {"Origin": origin}, fields, {"Authorization": "Bearer token"})
    assert (response.status, response.body) == (403, b"")


def changed(name: str, value: str | None) -> dict[str, str]:
    """The upgrade headers with one of them replaced, or left out."""
    fields = {**UPGRADE, name: value}
    return {name: value for name, value in fields.items() if value is not None}


REFUSALS: dict[str, tuple[str, str, dict[str, str], int]] = {
    "unknown path": ("GET", "/foo", {}, 404),
    "unknown path with upgrade": ("GET", "/healthz", UPGRADE, 404),
    "slash too many": ("GET", "/readyz/", {}, 404),
    "post": ("POST", "/", UPGRADE, 405),
    "head": ("HEAD", "/", {}, 405),
    "no upgrade": ("GET", "/", {}, 400),
    "no upgrade header": ("GET", "/", changed("Upgrade", None), 400),
    "version 12": ("GET", "/", changed("Sec-WebSocket-Version", "12"), 400),
    "no version": ("GET", "/", changed("Sec-WebSocket-Version", None), 400),
    "no key": ("GET", "/", changed("Sec-WebSocket-Key", None), 400),
    "too many fields": ("GET", "/readyz", {f"A{number}": "" for number in range(100)}, 431),
}


@pytest.mark.case(7)
@pytest.mark.parametrize(("method", "path", "fields", "status"), REFUSALS.values(), ids=REFUSALS)
async def test_what_is_no_websocket_request_is_refused(
    daemon: Daemon, method: str, path: str, fields: dict[str, str], status: int
) -> None:
    """Each kind of wrong request has its status."""
    response = await ask(daemon, method, path, fields)
    assert response.status == status
    if status == 400:
        assert response.body, "a refused upgrade says what is wrong"


@pytest.mark.case(7)
async def test_what_is_no_http_is_refused(daemon: Daemon) -> None:
    """A client that speaks TLS, or anything else, gets a 400 and the end of the connection."""
    async with dial(daemon) as peer:
        await peer.send(bytes.fromhex("160301020001000001fc0303") + bytes(64))
        assert (await peer.response()).status == 400
        assert await peer.frame() is None


@pytest.mark.case(7)
async def test_offers_are_declined(daemon: Daemon) -> None:
    """No extension and no subprotocol is selected, whatever is offered."""
    offers = {"Sec-WebSocket-Extensions": "permessage-deflate", "Sec-WebSocket-Protocol": "chat, superchat"}
    async with dial(daemon) as peer:
        await peer.send(request("GET", "/?a=query", UPGRADE, offers))
        response = await peer.response()
        assert response.status == 101
        assert response.headers.keys() - {"date"} == {"connection", "upgrade", "sec-websocket-accept"}
        assert response.headers["upgrade"] == "websocket"
        assert response.headers["sec-websocket-accept"] == ACCEPT
        await peer.works()


@pytest.mark.case(7)
async def test_frames_sent_with_the_request_are_read(daemon: Daemon) -> None:
    """A client need not wait for the 101 before it speaks."""
    async with dial(daemon) as peer:
        await peer.send(request("GET", "/", UPGRADE) + client_frame(TEXT, INITIALIZE))
        assert (await peer.response()).status == 101
        assert "sessionId" in (await peer.answer())["result"]


@pytest.mark.case(8)
async def test_text_binary_and_fragments_are_the_same(daemon: Daemon) -> None:
    """However a request is framed, its answer is one whole text frame."""
    async with upgraded(daemon) as peer:
        await peer.works()
        ask_status = b'{"id":"x","method":"environment/status"}'
        ways = [
            client_frame(TEXT, ask_status),
            client_frame(BINARY, ask_status),
            client_frame(TEXT, ask_status[:10], fin=False) + client_frame(CONTINUATION, ask_status[10:]),
            client_frame(BINARY, ask_status[:10], fin=False) + client_frame(CONTINUATION, ask_status[10:]),
        ]
        answers: list[Any] = []
        for frames in ways:
            await peer.send(frames)
            answers.append(await peer.answer())
        assert answers == [{"id": "x", "result": {"status": "ready"}}] * len(ways)


@pytest.mark.case(8)
async def test_a_frame_may_come_in_many_pieces(daemon: Daemon) -> None:
    """The bytes of a frame may trickle in one by one."""
    async with upgraded(daemon) as peer:
        for byte in client_frame(TEXT, INITIALIZE):
            await peer.send(bytes((byte,)))
        assert "sessionId" in (await peer.answer())["result"]


@pytest.mark.case(8)
async def test_pings_are_answered_and_pongs_ignored(daemon: Daemon) -> None:
    """A pong returns the payload of its ping, between fragments too; a stray pong changes nothing."""
    async with upgraded(daemon) as peer:
        await peer.send(client_frame(PONG, b"stray") + client_frame(PING, b"hello"))
        assert await peer.frame() == (0x80 | PONG, b"hello")
        await peer.send(client_frame(TEXT, INITIALIZE[:5], fin=False) + client_frame(PING, b"x" * 125))
        assert await peer.frame() == (0x80 | PONG, b"x" * 125)
        await peer.send(client_frame(CONTINUATION, INITIALIZE[5:]))
        assert "sessionId" in (await peer.answer())["result"]


def padded(size: int) -> bytes:
    """A request of exactly `size` bytes, most of them in a member that nobody knows."""
    start, end = b'{"id":9,"method":"environment/status","padding":"', b'"}'
    return start + b"x" * (size - len(start) - len(end)) + end


@pytest.mark.case(9)
async def test_a_frame_of_exactly_16_mib_is_answered(daemon: Daemon) -> None:
    """The limit on one frame is inclusive."""
    async with upgraded(daemon) as peer:
        await peer.works()
        await peer.send(client_frame(TEXT, padded(MAX_FRAME_BYTES), mask=NO_MASK))
        assert await peer.answer() == {"id": 9, "result": {"status": "ready"}}


@pytest.mark.case(9)
async def test_fragments_of_exactly_64_mib_are_answered(daemon: Daemon) -> None:
    """The limit on one message is inclusive, and may be reached by frames of the largest size."""
    async with upgraded(daemon) as peer:
        await peer.works()
        message = padded(MAX_MESSAGE_BYTES)
        for start in range(0, MAX_MESSAGE_BYTES, MAX_FRAME_BYTES):
            piece = message[start : start + MAX_FRAME_BYTES]
            fin = start + MAX_FRAME_BYTES == MAX_MESSAGE_BYTES
            await peer.send(client_frame(CONTINUATION if start else TEXT, piece, fin=fin, mask=NO_MASK))
        assert await peer.answer() == {"id": 9, "result": {"status": "ready"}}


@pytest.mark.case(9)
@pytest.mark.parametrize("in_fragments", [False, True])
async def test_one_byte_more_ends_the_connection_alone(daemon: Daemon, in_fragments: bool) -> None:
    """Too large a frame or message costs its sender the connection, without an answer; the server lives."""
    async with upgraded(daemon) as peer:
        await peer.works()
        if in_fragments:
            piece = b"x" * MAX_FRAME_BYTES
            for index in range(MAX_MESSAGE_BYTES // MAX_FRAME_BYTES):
                await peer.send(client_frame(CONTINUATION if index else TEXT, piece, fin=False, mask=NO_MASK))
            await peer.send(client_frame(CONTINUATION, b"x"))
        else:
            await peer.send(client_frame(TEXT, b"x" * (MAX_FRAME_BYTES + 1), mask=NO_MASK))
        assert await peer.close_codes() in ([], [1009])
    async with upgraded(daemon) as peer:
        await peer.works()


VIOLATIONS = {
    "unmasked": (client_frame(TEXT, INITIALIZE, mask=None), 1002),
    "invalid UTF-8": (client_frame(TEXT, b'{"id":1,"method":"\xff"}'), 1007),
    "reserved opcode": (client_frame(3, b""), 1002),
    "reserved control opcode": (client_frame(11, b""), 1002),
    "reserved bit": (client_frame(TEXT, INITIALIZE, rsv=4), 1002),
    "long ping": (client_frame(PING, b"x" * 126), 1002),
    "continuation of nothing": (client_frame(CONTINUATION, INITIALIZE), 1002),
    "announced too large": (frame_header(BINARY, MAX_FRAME_BYTES + 1), 1009),
}


@pytest.mark.case(9, 10)
@pytest.mark.parametrize(("frames", "code"), VIOLATIONS.values(), ids=VIOLATIONS)
async def test_a_violation_of_the_framing_ends_the_connection(
    daemon: Daemon, frames: bytes, code: int
) -> None:
    """The connection ends with no JSON-RPC answer; a server that closes politely says why."""
    async with upgraded(daemon) as peer:
        await peer.works()
        await peer.send(frames)
        assert await peer.close_codes() == ([code] if daemon.is_ours else [])


@pytest.mark.case(11)
@pytest.mark.ours_only("the reference never sends a close frame")
@pytest.mark.parametrize("payload", [close_payload(1000, b"bye"), b""], ids=["1000", "no code"])
async def test_a_close_frame_comes_back(daemon: Daemon, payload: bytes) -> None:
    """The peer's close is answered in kind before the connection ends."""
    async with upgraded(daemon) as peer:
        await peer.works()
        await peer.send(client_frame(CLOSE, payload))
        assert await peer.frame() == (0x80 | CLOSE, payload)
        assert await peer.frame() is None
        assert not peer.was_reset


@pytest.mark.case(11)
@pytest.mark.ours_only("the reference never sends a close frame")
async def test_answers_that_are_due_leave_before_the_close_frame(daemon: Daemon) -> None:
    """A message that must never be sent ends the connection with 1008, after the answers before it."""
    async with upgraded(daemon) as peer:
        await peer.send(client_frame(TEXT, INITIALIZE) + client_frame(TEXT, b'{"id":5,"result":{}}'))
        assert "sessionId" in (await peer.answer())["result"]
        assert await peer.close_codes() == [1008]


@pytest.mark.case(11)
@pytest.mark.ours_only("the reference never sends a close frame")
async def test_shutdown_says_going_away() -> None:
    """SIGTERM closes every connection with 1001, an idle one and one that never shook hands."""
    daemon = start_daemon()
    try:
        async with upgraded(daemon) as idle, upgraded(daemon) as silent:
            await idle.works()
            for peer in (idle, silent):  # so that nothing of theirs lies unread when the signal comes
                await peer.send(client_frame(PING, b""))
                assert await peer.frame() == (0x80 | PONG, b"")
            daemon.process.send_signal(signal.SIGTERM)
            assert await idle.close_codes() == [1001]
            assert await silent.close_codes() == [1001]
            assert await trio.to_thread.run_sync(daemon.process.wait, PATIENCE_S) == 0
    finally:
        daemon.stop()


@pytest.mark.case(14)
@pytest.mark.ours_only("the reference leaves Nagle's algorithm on")
async def test_small_frames_in_a_row_do_not_wait_for_an_acknowledgement(daemon: Daemon) -> None:
    """With an ordinary client, which delays its ACKs, a short process is over well before such a delay."""
    took: list[float] = []
    async with connect(daemon.url) as peer:
        for number in range(50):
            began = trio.current_time()
            code, _ = await peer.run(f"short-{number}", "/usr/bin/true")
            took.append(trio.current_time() - began)
            assert code == 0
    median = statistics.median(took)
    print(f"start to closed: median {median * 1e3:.1f} ms of {len(took)}")
    # The one figure that tells: Nagle's algorithm would add its 40 ms to almost every single run.
    assert median < DELAYED_ACK_S
