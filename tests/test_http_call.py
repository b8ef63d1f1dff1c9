"""HTTP by the Python client: real requests by each server, and bodies that go wrong, from servers with a script."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from doors import Door
from scripted_server import Script, connections, resume, scripted_server
from tsupervise import (
    Client,
    EnvHeader,
    HttpBodyFailed,
    HttpResponse,
    OutcomeUnknown,
    ServerRefused,
    connect,
)
from tsupervise._http_bodies import MAX_FRAMES, MAX_QUEUED_BYTES
from tsupervise_protocol.http_messages import MAX_DELTA_BYTES

BIG = os.urandom(3 << 20)


@pytest.fixture
async def client(door: Door) -> AsyncGenerator[Client]:
    async with door.open() as client:
        yield client


@asynccontextmanager
async def web_server(answer: Callable[[bytes], bytes]) -> AsyncGenerator[str]:
    """A server on loopback that answers each request, as it came, and closes."""

    async def serve(stream: trio.SocketStream) -> None:
        request = b""
        while b"\r\n\r\n" not in request or len(request.partition(b"\r\n\r\n")[2]) < _length_of(request):
            request += await stream.receive_some()
        head, _, body = answer(request).partition(b"\r\n")
        await stream.send_all(head + b"\r\nConnection: close\r\n" + body if head else b"")
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


def _length_of(request: bytes) -> int:
    head = request.partition(b"\r\n\r\n")[0].lower()
    _, found, rest = head.partition(b"content-length: ")
    return int(rest.split(b"\r\n")[0]) if found else 0


@pytest.mark.case(345)
async def test_a_request_goes_out_and_its_response_comes_back(client: Client) -> None:
    """Body and headers both ways, double headers in order; any status is a response."""

    def answer(request: bytes) -> bytes:
        head, _, body = request.partition(b"\r\n\r\n")
        assert head.startswith(b"POST /path HTTP/1.1")
        assert b"x-one: 1" in head.lower()
        return b"HTTP/1.1 404 Gone\r\nX-Two: a\r\nx-two: b\r\nContent-Length: %d\r\n\r\n%s" % (
            len(body),
            body,
        )

    async with (
        web_server(answer) as url,
        client.http_request("POST", f"{url}/path", headers={"X-One": "1"}, body=b"\0body") as response,
    ):
        assert response.status == 404
        assert [value for name, value in response.headers if name == "x-two"] == ["a", "b"]
        assert response.header("X-Two") == "a"
        assert response.header("missing") is None
        assert await response.read() == b"\0body"
        assert await response.read() == b""


@pytest.mark.case(345)
async def test_a_body_streams(client: Client) -> None:
    """In pieces of 1 MiB at most, several responses at a time, each whole; a bound on what is kept holds."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BIG)

    async def fetch(url: str) -> None:
        async with client.http_request("GET", url) as response:
            pieces = [piece async for piece in response]
            assert b"".join(pieces) == BIG
            assert max(map(len, pieces)) <= MAX_DELTA_BYTES

    async with web_server(lambda _: head + BIG) as url:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(fetch, url)
        with pytest.raises(HttpBodyFailed, match="larger than 1000 bytes"):
            async with client.http_request("GET", url) as response:
                await response.read(1000)
        async with client.http_request("GET", url) as response:
            assert response.status == 200  # and nobody wants the rest
        await fetch(url)


@pytest.mark.case(346)
async def test_a_body_that_was_left_is_read_by_nobody() -> None:
    """Who still waits for it when its block ends, and who asks later, is told so instead of waiting for ever."""

    async def play(script: Script, request_id: str) -> None:
        await delta(script, request_id, 1, b"part")

    async def read(response: HttpResponse) -> None:
        with pytest.raises(HttpBodyFailed, match="was left"):
            await response.read()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery, response_of(play) as response:
            nursery.start_soon(read, response)
            await trio.testing.wait_all_tasks_blocked()
        await read(response)


@pytest.mark.case(345)
async def test_what_comes_to_no_response_is_refused(client: Client) -> None:
    """A URL of another kind, nobody there, a time that is over, a body that is cut short."""
    with pytest.raises(ServerRefused, match="ftp"):
        async with client.http_request("GET", "ftp://127.0.0.1/"):
            pass
    with pytest.raises(ValueError, match="timeout_s"):
        async with client.http_request("GET", "http://127.0.0.1/", timeout_s=0):
            pass
    async with web_server(lambda _: b"") as url:
        with pytest.raises(ServerRefused):
            async with client.http_request("GET", url, timeout_s=20):
                pass
    async with (
        web_server(lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort") as url,
        client.http_request("GET", url) as response,
    ):
        assert await response.receive_some() == b"short"
        with pytest.raises(HttpBodyFailed, match="not whole"):
            await response.receive_some()


@pytest.mark.case(345)
async def test_a_redirect_is_followed_or_is_the_response(client: Client) -> None:
    """As one says."""

    def answer(request: bytes) -> bytes:
        if request.startswith(b"GET /there"):
            return b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nthere"
        return b"HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n"

    async with web_server(answer) as url:
        async with client.http_request("GET", url) as response:
            assert (response.status, await response.read()) == (200, b"there")
        async with client.http_request("GET", url, follow_redirects=False) as response:
            assert (response.status, response.header("location")) == (302, "/there")


@pytest.mark.case(345)
async def test_a_header_may_come_from_the_environment_of_the_server(client: Client) -> None:
    """What the variable holds is sent, and the client never sees it; one that is not set is refused."""
    seen: list[bytes] = []

    def answer(request: bytes) -> bytes:
        seen.append(request)
        return b"HTTP/1.1 204 No Content\r\n\r\n"

    async with web_server(answer) as url:
        headers = [("X-Home", EnvHeader("is ", "HOME"))]
        async with client.http_request("GET", url, headers=headers) as response:
            assert response.status == 204
        assert f"x-home: is {os.environ['HOME']}".encode() in seen[0].replace(b"X-Home", b"x-home")
        with pytest.raises(ServerRefused, match="NOT_SET_ANYWHERE"):
            async with client.http_request("GET", url, headers=[("X", EnvHeader("", "NOT_SET_ANYWHERE"))]):
                pass
    assert len(seen) == 1


# --- servers that do it wrong ----------------------------------------------------------------------------

Play = Callable[[Script, str], Awaitable[None]]


async def delta(
    script: Script,
    request_id: str,
    seq: int,
    data: bytes = b"",
    *,
    done: bool = False,
    error: str | None = None,
) -> None:
    params = {
        "requestId": request_id,
        "seq": seq,
        "deltaBase64": base64.b64encode(data).decode(),
        "done": done,
        "error": error,
    }
    await script.send(method="http/request/bodyDelta", params=params)


async def accept(script: Script) -> str:
    """Answer a request with its headers; returns the id of its body."""
    request = await script.expect("http/request")
    params = request["params"]
    assert params["streamResponse"] is True
    await script.answer(request, {"status": 200, "headers": [], "bodyBase64": ""})
    return params["requestId"]


@asynccontextmanager
async def response_of(play: Play) -> AsyncGenerator[HttpResponse]:
    """A response whose body a script sends. Its server answers whatever comes later."""

    async def serve(script: Script) -> None:
        await script.handshake()
        await play(script, await accept(script))
        await script.answer(await script.expect("environment/status"), {"status": "ready"})
        await script.until_gone()

    async with (
        scripted_server(serve) as url,
        connect(url) as client,
        client.http_request("GET", "http://somewhere/") as response,
    ):
        yield response
        await client.call("environment/status")  # the connection is none the worse for it


async def until_failed(response: HttpResponse) -> tuple[bytes, str]:
    body = b""
    try:
        async for piece in response:
            body += piece
    except HttpBodyFailed as failure:
        return body, str(failure)
    raise AssertionError("it came to a good end")


@pytest.mark.case(346)
@pytest.mark.parametrize(
    ("frames", "body", "reason"),
    [
        ([(1, b"a"), (3, b"c")], b"a", "piece 3 came in place of piece 2"),
        ([(1, b"a"), (1, b"a")], b"a", "piece 1 came in place of piece 2"),
        ([(2, b"a")], b"", "piece 2 came in place of piece 1"),
        ([(1, b"a" * (MAX_DELTA_BYTES + 1))], b"", "larger than 1048576 bytes"),
        ([(1, b"a" * (MAX_DELTA_BYTES + 3))], b"", "larger than 1048576 bytes"),
    ],
)
async def test_a_body_with_a_wrong_piece_fails(
    frames: list[tuple[int, bytes]], body: bytes, reason: str
) -> None:
    """A hole, a piece twice, one that is too large: it ends with an error, behind what was right."""

    async def play(script: Script, request_id: str) -> None:
        for seq, data in frames:
            await delta(script, request_id, seq, data)

    async with response_of(play) as response:
        received, text = await until_failed(response)
        assert received == body
        assert reason in text


@pytest.mark.case(346)
async def test_an_error_at_the_end_comes_behind_the_bytes() -> None:
    """And an end without one is an end."""

    async def play(script: Script, request_id: str) -> None:
        await delta(script, "http-of-nobody", 7, b"x")
        await delta(script, request_id, 1, b"abc")
        await delta(script, request_id, 2, done=True, error="it broke")
        await delta(script, request_id, 3, b"x")

    async with response_of(play) as response:
        received, text = await until_failed(response)
        assert received == b"abc"
        assert "it broke" in text


@pytest.mark.case(346)
@pytest.mark.parametrize(
    ("count", "size"), [(MAX_FRAMES + 1, 1), (MAX_QUEUED_BYTES // MAX_DELTA_BYTES + 1, MAX_DELTA_BYTES)]
)
async def test_a_body_that_nobody_reads_fails_and_no_other(count: int, size: int) -> None:
    """What waits for readers is bounded, in pieces and in bytes of all; the body that goes beyond is dropped."""

    async def serve(script: Script) -> None:
        await script.handshake()
        unread, read = await accept(script), await accept(script)
        assert unread != read
        await delta(script, read, 1, b"before ")
        for seq in range(1, count + 1):
            await delta(script, unread, seq, b"x" * size)
        await delta(script, read, 2, b"behind")
        await delta(script, read, 3, done=True)
        await script.until_gone()

    async with (
        scripted_server(serve) as url,
        connect(url) as client,
        client.http_request("GET", "http://somewhere/") as unread,
        client.http_request("GET", "http://somewhere/") as read,
    ):
        assert await read.read() == b"before behind"
        received, text = await until_failed(unread)
        assert received == b""
        assert "faster than it was read" in text


@pytest.mark.case(346)
async def test_a_reader_that_keeps_up_gets_more_than_the_bound() -> None:
    """What was taken counts no more."""
    count = MAX_QUEUED_BYTES // MAX_DELTA_BYTES + 4

    async def play(script: Script, request_id: str) -> None:
        for seq in range(1, count + 1):
            await delta(script, request_id, seq, b"x" * MAX_DELTA_BYTES)
            await script.answer(await script.expect("environment/status"), {"status": "ready"})
        await delta(script, request_id, count + 1, done=True)

    async def serve(script: Script) -> None:
        await script.handshake()
        await play(script, await accept(script))
        await script.until_gone()

    async with (
        scripted_server(serve) as url,
        connect(url) as client,
        client.http_request("GET", "http://somewhere/") as response,
    ):
        received = 0
        async for piece in response:
            received += len(piece)
            await client.call("environment/status")
        assert received == count * MAX_DELTA_BYTES


@pytest.mark.case(346)
async def test_a_lost_connection_fails_every_body_and_repeats_no_request() -> None:
    """What had arrived is still read; a request that was sent is not sent again, one that was not is."""

    async def first(script: Script) -> None:
        await script.handshake()
        await delta(script, await accept(script), 1, b"part")
        await script.expect("http/request")  # and no answer

    async def second(script: Script) -> None:
        await resume(script)
        request_id = await accept(script)
        await delta(script, request_id, 1, b"whole")
        await delta(script, request_id, 2, done=True)
        await script.until_gone()

    async with scripted_server(connections(first, second)) as url, connect(url) as client:
        async with client.http_request("GET", "http://somewhere/") as response:
            with pytest.raises(OutcomeUnknown, match="http/request"):
                async with client.http_request("GET", "http://somewhere/"):
                    pass
            received, text = await until_failed(response)
            assert received == b"part"
            assert "connection was lost" in text
        async with client.http_request("GET", "http://somewhere/") as response:
            assert await response.read() == b"whole"
