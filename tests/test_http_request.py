"""HTTP requests of the daemon when something is wrong, slow, large or secret; and many at once."""

from __future__ import annotations

import base64
import json
import logging
import os
import socket
import ssl
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio
import trio.testing
import trio_websocket
import trustme
from msgspec import structs

from daemons import Daemon, running, start_daemon
from http_calls import body_of, call, params, send, streamed, until_done
from http_pages import get
from procfs import listening_pid, resident_kib, until
from raw_sockets import bare
from tsupervise._event_log import Chunk
from tsupervise._http_body import BodyFeed
from tsupervise._http_client import HttpClient
from tsupervise._http_message import request_of
from tsupervise._outbox import MAX_BODY_BYTES, MAX_FEED_BYTES, Feed, Outbox
from tsupervise_protocol.http_messages import HttpRequestHeader, HttpRequestParams
from upstreams import Received, answering, redirect, response, upstream
from wire import PATIENCE_S, connect

pytestmark = pytest.mark.ours_only("about bounds and texts of this daemon")

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def pour(stream: trio.abc.Stream, data: bytes) -> None:
    """Send the same over and over, until the connection ends."""
    while True:
        await stream.send_all(data)


# --- what servers do wrong ---------------------------------------------------------------------------


@pytest.mark.case(327)
@pytest.mark.parametrize(
    ("first", "endless", "text"),
    [
        (b"HTTP/1.1 200 OK\r\nX: ", b"a" * 1000, "longer than 100 KiB"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", "longer than 100 KiB"),
        (b"", b"a" * 1000, "longer than 100 KiB"),
        (CHUNKED, b"0" * 1000, "longer than 100 KiB"),
        (CHUNKED, b"x\r\n", "HTTP/1.1"),
        (CHUNKED + b"1;", b"a" * 1000, "longer than 100 KiB"),
        (CHUNKED + b"0\r\n", b"X: y\r\n", "longer than 100 KiB"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"a", "HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", b"a", "HTTP/1.1"),
    ],
)
async def test_a_response_that_is_none_is_an_error_and_bounded(
    daemon: Daemon, first: bytes, endless: bytes, text: str
) -> None:
    """Even if it never ends; the connection to such a server is closed."""
    gone = trio.Event()

    async def misbehave(received: Received, stream: trio.abc.Stream) -> None:
        try:
            await stream.send_all(first)
            await pour(stream, endless)
        finally:
            gone.set()

    async with upstream(misbehave) as server, connect(daemon.url) as peer:
        answer = await call(peer, server.url())
        assert answer.code == -32603
        assert text in answer.message
        with trio.fail_after(PATIENCE_S):
            await gone.wait()


@pytest.mark.case(277)
@pytest.mark.parametrize(
    ("code", "fields"),
    [
        (-32602, {"headers": [("content-length", "3")], "body": b"hello"}),
        (-32602, {"headers": [("content-length", "3")]}),
        (-32602, {"headers": [("content-length", "5"), ("transfer-encoding", "chunked")], "body": b"hello"}),
        (-32603, {"headers": [("host", "a"), ("host", "b")]}),
        (-32603, {"headers": [("transfer-encoding", "gzip")], "body": b"hello"}),
    ],
)
async def test_headers_that_contradict_the_request_are_an_error(
    daemon: Daemon, code: int, fields: dict[str, Any]
) -> None:
    """And not a request that says one thing and is another."""
    async with upstream(answering({})) as server, connect(daemon.url) as peer:
        answer = await call(peer, server.url(), "POST", **fields)
    assert answer.code == code
    assert server.received == []


@pytest.mark.case(263)
async def test_a_body_may_be_sent_in_chunks(daemon: Daemon) -> None:
    """If the caller's transfer-encoding says so; then it has no length."""
    got = bytearray()

    async def read(received: Received, stream: trio.abc.Stream) -> None:
        got.extend(received.body)
        while not got.endswith(b"0\r\n\r\n"):
            got.extend(await stream.receive_some())
        await stream.send_all(response(b"ok"))

    async with upstream(read) as server, connect(daemon.url) as peer:
        headers = [("Transfer-Encoding", "chunked")]
        assert body_of((await call(peer, server.url(), "POST", body=b"hello", headers=headers)).ok()) == b"ok"
    assert bytes(got) == b"5\r\nhello\r\n0\r\n\r\n"
    assert server.received[0].all("content-length") == []


@pytest.mark.case(331)
async def test_a_server_that_reads_nothing_holds_up_no_end(daemon: Daemon, tmp_path: Path) -> None:
    """An upload to it over TLS, a goodbye included, ends with the connection: its session can be resumed."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)  # pyright: ignore[reportUnknownMemberType]
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    deaf = trio.Event()

    async def hear_nothing(stream: trio.SocketStream) -> None:
        secure = trio.SSLStream(stream, context, server_side=True)
        await secure.do_handshake()
        deaf.set()
        await trio.sleep_forever()

    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    url = f"https://127.0.0.1:{listener.socket.getsockname()[1]}/"
    environment = {**os.environ, "TSUPERVISE_CA_CERTIFICATE": str(tmp_path / "ca.pem")}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, hear_nothing, [listener])
        with running(start_daemon(env=environment)) as own:
            async with connect(own.url) as peer:
                await send(peer, url, method="POST", body=bytes(11 << 20))
                with trio.fail_after(PATIENCE_S):
                    await deaf.wait()
                assert (await peer.request("environment/status")).ok() == {"status": "ready"}
                session = peer.session_id
            with trio.fail_after(PATIENCE_S):
                resumed = False
                while not resumed:
                    async with connect(own.url, handshake=False) as peer:
                        hello = {"clientName": "t", "resumeSessionId": session}
                        resumed = (await peer.request("initialize", hello)).error is None
        nursery.cancel_scope.cancel()


# --- how much ----------------------------------------------------------------------------------------


@pytest.mark.case(325)
async def test_a_body_that_is_not_streamed_is_bounded() -> None:
    """By an option; the same one streamed is not."""
    body = bytes(1001)
    async with upstream(answering({"/1000": response(body[:1000]), "/1001": response(body)})) as server:
        with running(start_daemon("ours", "--max-http-body-bytes", "1000")) as daemon:
            async with connect(daemon.url) as peer:
                assert body_of((await call(peer, server.url("/1000"))).ok()) == body[:1000]
                answer = await call(peer, server.url("/1001"))
                assert answer.code == -32603
                assert "longer than 1000 bytes" in answer.message
                (await call(peer, server.url("/1001"), streamResponse=True)).ok()
                await until_done(peer)
                assert streamed(peer) == body


@pytest.mark.case(325)
async def test_bodies_that_are_not_streamed_are_bounded_together() -> None:
    """All that a connection has under way count; what has been answered, or has failed, does not."""
    begun, held = trio.Event(), trio.Event()

    async def hold(received: Received, stream: trio.abc.Stream) -> None:
        if received.target != "/held":
            await stream.send_all(response(bytes(600)))
            return
        await stream.send_all(response(bytes(600), length=601))
        begun.set()
        await held.wait()
        await stream.send_all(b"!")

    async with upstream(hold) as server:
        with running(start_daemon("ours", "--max-http-body-bytes", "1000")) as daemon:
            async with connect(daemon.url) as peer:
                for _ in range(2):
                    assert body_of((await call(peer, server.url())).ok()) == bytes(600)
                    waiting = await send(peer, server.url("/held"))
                    with trio.fail_after(PATIENCE_S):
                        await begun.wait()
                    # Its bytes are at the daemon already; those of the next one have a connection to make first.
                    answer = await call(peer, server.url())
                    assert "such bodies of this connection are together longer than 1000" in answer.message
                    held.set()
                    assert body_of((await peer.answer_to(waiting)).ok()) == bytes(600) + b"!"
                    begun, held = trio.Event(), trio.Event()


@pytest.mark.case(308)
async def test_a_large_body_comes_whole(daemon: Daemon) -> None:
    """Of several megabytes, with its headers, three at a time."""
    body = os.urandom(3 << 20)
    answer = response(body, ("X-Text", 'a "quoted" text'))
    async with upstream(answering(answer)) as server, connect(daemon.url) as peer:
        asked = [await send(peer, server.url()) for _ in range(3)]
        for request_id in asked:
            result = (await peer.answer_to(request_id)).ok()
            assert body_of(result) == body
            assert {"name": "x-text", "value": 'a "quoted" text'} in result["headers"]


@pytest.mark.case(328)
async def test_streams_count_as_open_requests_until_they_end() -> None:
    """More of them are refused, and nothing else is; one that has ended makes room."""
    go = trio.Event()

    async def wait(received: Received, stream: trio.abc.Stream) -> None:
        await stream.send_all(response(b"abc", length=6))
        await go.wait()
        await stream.send_all(b"def")

    async with upstream(wait) as server:
        with running(start_daemon("ours", "--max-open-requests", "2")) as daemon:
            async with connect(daemon.url) as peer:
                for name in ("a", "b"):
                    (await call(peer, server.url(), requestId=name, streamResponse=True)).ok()
                assert (await call(peer, server.url())).code == -32011
                assert (await peer.request("environment/status")).ok()
                go.set()
                for name in ("a", "b"):
                    await until_done(peer, name)
                (await peer.request("environment/status")).ok()
                assert body_of((await call(peer, server.url())).ok()) == b"abcdef"


@pytest.mark.case(326)
async def test_a_fast_server_and_a_client_that_does_not_read_take_no_memory() -> None:
    """The server is read only as fast as the client reads; others notice nothing, and the end is the end."""
    streams = 8
    sent = 0
    stalled, gone = trio.Semaphore(0), trio.Semaphore(0)

    async def flood(received: Received, stream: trio.abc.Stream) -> None:
        nonlocal sent
        if received.target == "/small":
            await stream.send_all(response(b"ok"))
            return
        await stream.send_all(response(length=1 << 40))
        waiting = trio.CancelScope()
        while not waiting.cancelled_caught:
            with trio.move_on_after(1) as waiting:
                await stream.send_all(bytes(1 << 20))
                sent += 1 << 20
        stalled.release()
        try:
            await stream.receive_some()
        finally:
            gone.release()

    with running(start_daemon()) as daemon:
        pid = listening_pid(daemon)
        async with upstream(flood) as server, connect(daemon.url) as other:
            (await call(other, server.url("/small"))).ok()
            before = resident_kib(pid)
            with trio.fail_after(PATIENCE_S):
                async with bare(daemon) as client:
                    await client.handshake()
                    for number in range(streams):
                        request = params(server.url(), requestId=f"r{number}", streamResponse=True)
                        await client.send({"id": 10 + number, "method": "http/request", "params": request})
                    for _ in range(streams):
                        await stalled.acquire()
                    assert await other.run("p", "echo", "hi") == (0, b"hi\n")
                    grown = (resident_kib(pid) - before) << 10
                for _ in range(streams):
                    await gone.acquire()
    print(f"{sent >> 20} MiB sent by {streams} servers, the daemon has grown by {grown >> 10} KiB")
    assert sent < 256 << 20
    assert grown < 32 << 20


def outbox_without_a_sender() -> Outbox:
    def send_now(messages: list[bytes]) -> bool:
        raise AssertionError("nothing may overtake the sending task")

    return Outbox(send_now)


@pytest.mark.case(326)
async def test_a_body_waits_at_its_own_bound_and_all_bodies_at_theirs() -> None:
    """Neither takes the room of processes, whose events go out in turn with the parts of bodies."""
    outbox = outbox_without_a_sender()
    bodies = [BodyFeed(outbox, f"b{number}", set()) for number in range(9)]

    async def pour_into(body: BodyFeed) -> None:
        while True:
            await body.send(bytes(16 << 10))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pour_into, bodies[0])
        await trio.testing.wait_all_tasks_blocked()
        assert MAX_FEED_BYTES <= outbox.bodies.bytes < MAX_FEED_BYTES + (17 << 10)
        for body in bodies[1:]:
            nursery.start_soon(pour_into, body)
        await trio.testing.wait_all_tasks_blocked()
        assert MAX_BODY_BYTES <= outbox.bodies.bytes < MAX_BODY_BYTES + 9 * (17 << 10)
        process = Feed(outbox, "p", MAX_FEED_BYTES)
        assert process.has_room
        process.put(Chunk(1, "stdout", b"hi"))
        turn = [outbox.take() for _ in range(len(bodies) + 1)]
        assert sum(b'"processId":"p"' in message for batch in turn for message in batch) == 1
        # As they are taken more is read, of all that wait.
        for _ in range(100):
            outbox.take()
            await trio.testing.wait_all_tasks_blocked()
        assert outbox.bodies.bytes >= MAX_BODY_BYTES - (17 << 10)
        nursery.cancel_scope.cancel()
    for body in bodies:
        body.close()
    assert outbox.bodies.bytes == 0


@pytest.mark.case(273)
async def test_a_name_is_free_when_the_end_is_taken() -> None:
    """Not only when the task that waits for it has had its turn: the client's next request may be there before."""
    outbox = outbox_without_a_sender()
    names = {"b"}
    body = BodyFeed(outbox, "b", names)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(body.end, None)
        await trio.testing.wait_all_tasks_blocked()
        assert names == {"b"}
        assert outbox.take()
        assert names == set()


async def test_tiny_parts_are_bounded_by_what_they_take() -> None:
    """A server that sends byte by byte does not fill the memory with what surrounds them."""
    outbox = outbox_without_a_sender()
    body = BodyFeed(outbox, "b", set())
    with trio.move_on_after(0.1):
        for _ in range(MAX_FEED_BYTES):
            await body.send(b"x")
    messages: list[bytes] = []
    while batch := outbox.take():
        messages += batch
    assert 0 < len(messages) < MAX_FEED_BYTES // 100


@pytest.mark.case(326)
async def test_a_hundred_streams_at_once_are_all_whole(daemon: Daemon) -> None:
    """Each in order, beside a process that writes and exits."""
    bodies = {f"/{number}": os.urandom(50_000 + number) for number in range(100)}
    routes = {path: response(body) for path, body in bodies.items()}
    async with upstream(answering(routes)) as server, connect(daemon.url) as peer:
        for path in bodies:
            await send(peer, server.url(path), requestId=path, streamResponse=True)
        assert await peer.run("p", "echo", "hi") == (0, b"hi\n")
        for path, body in bodies.items():
            assert (await until_done(peer, path))["error"] is None
            assert streamed(peer, path) == body


async def test_a_gibibyte_is_streamed_whole(daemon: Daemon, long_profile: bool) -> None:
    """With a bounded memory of the daemon, whatever the sizes are in which it comes."""
    total = (1 << 30) if long_profile else (16 << 20)
    block = os.urandom(1 << 20)
    expected = sha256()
    pid = listening_pid(daemon)

    async def stream_all(received: Received, stream: trio.abc.Stream) -> None:
        await stream.send_all(response(length=total))
        for _ in range(total >> 20):
            expected.update(block)
            await stream.send_all(block)

    # A peer of the tests keeps everything; this one does not.
    address = urlsplit(daemon.url)
    before, started = resident_kib(pid), trio.current_time()
    async with (
        upstream(stream_all) as server,
        trio_websocket.open_websocket(
            "127.0.0.1", address.port or 0, "/", use_ssl=False, max_message_size=4 << 20
        ) as ws,
    ):
        for message in (
            {"id": 1, "method": "initialize", "params": {"clientName": "t"}},
            {"method": "initialized"},
            {"id": 2, "method": "http/request", "params": params(server.url(), streamResponse=True)},
        ):
            await ws.send_message(json.dumps(message))
        got, length, seq = sha256(), 0, 0
        part: dict[str, Any] = {"done": False}
        while not part["done"]:
            message = json.loads(await ws.get_message())
            if message.get("method") != "http/request/bodyDelta":
                continue
            part = message["params"]
            seq += 1
            assert part["seq"] == seq
            data = base64.b64decode(part["deltaBase64"])
            got.update(data)
            length += len(data)
        assert part["error"] is None
    seconds = trio.current_time() - started
    grown = resident_kib(pid) - before
    print(f"{length >> 20} MiB in {seq} parts and {seconds:.1f} s; the daemon has grown by {grown} KiB")
    assert (length, got.digest()) == (total, expected.digest())
    assert grown < 32 << 10


# --- what stays secret, and what is not loaded -------------------------------------------------------------

CANARY = "canary"


@pytest.mark.case(329)
async def test_secrets_of_requests_are_in_no_log_and_in_no_error(tmp_path: Path) -> None:
    """Headers, queries, user and password, bodies, cookies, whoever sends them and whatever goes wrong."""
    log = tmp_path / "log"
    secret = (("X-Secret", CANARY), ("Set-Cookie", f"__cf_bm={CANARY}"))
    routes = {
        "/ok?canary": response(CANARY.encode(), *secret),
        "/bad": f"HTTP/1.1 {CANARY} {CANARY}\r\n{CANARY}\r\n\r\n".encode(),
        "/head": f"HTTP/1.1 200 OK\r\n{CANARY} {CANARY}\r\n\r\n".encode(),
        "/length": response(b"", ("Content-Length", CANARY), length=-1),
        "/chunks": CHUNKED + f"{CANARY}\r\n".encode(),
        "/short": response(CANARY.encode(), length=99),
        "/ftp": redirect(f"ftp://{CANARY}/{CANARY}"),
        "/closed": redirect(f"http://{CANARY}:{CANARY}@127.0.0.1:1/?{CANARY}"),
    }
    environment = {**os.environ, "V": f"{CANARY}\n", "HTTPS_PROXY": f"socks5://{CANARY}@127.0.0.1:1"}
    texts: list[str] = []
    with running(start_daemon("ours", "--log-level", "debug", env=environment, stderr=log)) as daemon:
        async with upstream(answering(routes)) as server, connect(daemon.url) as peer:
            plain = f"http://{CANARY}:{CANARY}@127.0.0.1:{server.port}/"
            header = {"name": "authorization", "value": CANARY}
            assert (await call(peer, f"{plain}ok?canary", "POST", headers=[header], body=b"canary")).ok()
            refused: list[tuple[str, dict[str, Any]]] = [
                *((plain + path[1:], {"headers": [header]}) for path in list(routes)[1:]),
                *((plain + path[1:], {"timeoutMs": 0}) for path in routes),
                (f"http://{CANARY}:{CANARY}@[/", {}),
                (f"http://h:{CANARY}/", {}),
                (f"https://h.example/{CANARY}", {}),
                (plain, {"method": f"{CANARY} x"}),
                (plain, {"headers": [{"name": f"{CANARY} x", "value": "x"}]}),
                (plain, {"headers": [{"name": "x", "value": f"{CANARY}\n"}]}),
                (plain, {"headers": [{"name": "x", "value": "", "valueEnvVar": "V"}]}),
                (plain, {"headers": [{"name": "content-length", "value": CANARY}]}),
                (plain, {"headers": [{"name": "x", "value": [CANARY]}]}),
                (plain, {"bodyBase64": CANARY + "="}),
                (plain, {"timeoutMs": CANARY}),
            ]
            for url, fields in refused:
                answer = await call(peer, url, **fields)
                assert answer.error is not None, f"was to be refused: {url} {fields}"
                texts.append(answer.message)
            (await call(peer, plain + "short", streamResponse=True)).ok()
            texts.append((await until_done(peer))["error"])
        texts.append((await get(daemon, "/metrics"))[1])
        assert await trio.to_thread.run_sync(daemon.stop) == 0
    texts.append(log.read_text())
    assert "session opened" in texts[-1]
    assert [text for text in texts if CANARY in text] == []


@pytest.mark.case(329)
async def test_the_library_writes_nothing_into_the_log_of_a_host_program(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not even if that program logs everything."""
    caplog.set_level(logging.DEBUG)
    asked = HttpRequestParams(
        method="GET",
        url="http://x",
        request_id="r",
        headers=[HttpRequestHeader(name="authorization", value=CANARY)],
    )
    async with upstream(answering(response(b"", ("X", CANARY)))) as server:
        request = request_of(structs.replace(asked, url=server.url()), {})
        async with HttpClient({}).send(request, follow=True) as got:
            assert got.status == 200
    assert CANARY not in caplog.text


@pytest.mark.case(330)
async def test_a_daemon_that_sends_no_request_loads_no_http_library() -> None:
    """Its start does not wait for what few need."""
    names = {"httpcore2", "http.cookiejar", "truststore"}
    code = f"import sys, tsupervise.server; print(sorted({names} & set(sys.modules)))"
    done = await trio.run_process([sys.executable, "-c", code], capture_stdout=True)
    assert done.stdout == b"[]\n"


HANGING_RESOLVER = """
import socket, threading
numeric_too = socket.getaddrinfo
def getaddrinfo(host, port, family=0, type=0, proto=0, flags=0):
    if not flags & socket.AI_NUMERICHOST:
        threading.Event().wait()
    return numeric_too(host, port, family, type, proto, flags)
socket.getaddrinfo = getaddrinfo
"""


@pytest.mark.case(332)
async def test_a_resolver_that_does_not_answer_holds_up_nothing_else(tmp_path: Path) -> None:
    """Fifty requests look up names in vain, and give up: the audit log is written, processes run, and requests to
    addresses are sent."""
    (tmp_path / "sitecustomize.py").write_text(HANGING_RESOLVER)
    audit = tmp_path / "audit.log"
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with (
        trio.fail_after(60),
        running(start_daemon("ours", "--audit-log", str(audit), env=environ)) as daemon,
    ):
        async with upstream(answering(response(b""))) as server, connect(daemon.url) as peer:
            ids = [await send(peer, f"http://name{number}.invalid/", timeoutMs=300) for number in range(50)]
            for request_id in ids:
                assert "timed out" in (await peer.answer_to(request_id)).message
            assert (await call(peer, server.url())).ok()["status"] == 200
            assert await peer.run("audited", "echo", "hello") == (0, b"hello\n")
            await until(lambda: b'"audited"' in audit.read_bytes())
