"""Clients that misbehave or vanish, over real sockets: the server serves everybody else and leaks nothing.

Each test ends by the same proof: the server holds no more descriptors than before, and both an old
connection and a new one can run a command.
"""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from daemons import Daemon, start_daemon
from frames import CLOSE, CONTINUATION, PING
from procfs import listening_pid, open_descriptors, resident_kib, until
from raw_sockets import INITIALIZE, INITIALIZED, UPGRADE, dial, frame, vanish
from wire import PATIENCE_S, Answer, Peer, connect, start_params

MALFORMED, BAD_PARAMS = -32600, -32602

REQUEST = b'{"id":1,"method":"environment/status"}'


@pytest.fixture(scope="module")
def own_daemon(target: str) -> Generator[Daemon]:
    """A server for this module alone, so that nobody else opens or closes descriptors in it."""
    daemon = start_daemon(target)
    yield daemon
    assert daemon.stop() == 0


async def until_hung_up(stream: trio.SocketStream) -> bytes:
    """What the server still says until it ends the connection, by FIN or by RST."""
    said = b""
    with trio.fail_after(PATIENCE_S):
        try:
            while data := await stream.receive_some():
                said += data
        except trio.BrokenResourceError:
            pass
    await trio.aclose_forcefully(stream)
    return said


@asynccontextmanager
async def unharmed(daemon: Daemon) -> AsyncGenerator[Peer]:
    """Prove that the block does the server no harm; yields a connection that is open all the while."""
    async with connect(daemon.url) as witness:
        assert await witness.run("before", "echo", "hello") == (0, b"hello\n")
        server = listening_pid(daemon)
        before = open_descriptors(server)
        yield witness
        await until(lambda: open_descriptors(server) <= before)
        assert await witness.run("after", "echo", "hello") == (0, b"hello\n")
        async with connect(daemon.url) as newcomer:
            assert await newcomer.run("after", "echo", "hello") == (0, b"hello\n")


async def test_a_flood_of_garbage_is_answered_piece_by_piece(own_daemon: Daemon) -> None:
    """Each of 2,000 malformed messages gets its error, in order with the requests between them."""
    async with unharmed(own_daemon), connect(own_daemon.url) as peer:
        whole = json.dumps({"id": 1, "method": "process/start", "params": start_params("p", "true")})
        before = len(peer.arrivals)
        asked: list[int] = []
        for number in range(2000):
            await peer.send_raw(whole[: number % len(whole)])
            if number % 500 == 499:
                asked.append(await peer.send("environment/status"))
        await peer.answer_to(asked[-1])
        answers = [arrival for arrival in peer.arrivals[before:] if isinstance(arrival, Answer)]
        assert [answer.id for answer in answers if answer.error is None] == asked
        refused = [answer for answer in answers if answer.error is not None]
        assert {(answer.id, answer.code) for answer in refused} == {(-1, MALFORMED)}
        assert len(refused) == 2000
        assert await peer.run("p", "echo", "hello") == (0, b"hello\n")


JUNK: list[object] = [
    None,
    5,
    -1.5,
    "text",
    [],
    [1, "two", None],
    {},
    {"processId": None},
    {"processId": ["p"]},
    {"processId": "p\u0000\u2028\U0001f600"},
    {"processId": "p", "argv": {}, "cwd": [], "env": "x", "tty": {}},
    {"processId": "p", "chunk": "=", "writeId": "1"},
    {"processId": "p", "signal": {"kill": 9}},
    {"processId": "p", "afterSeq": 1e300, "maxBytes": -1, "waitMs": "long"},
    {"clientName": {}, "resumeSessionId": []},
]


async def test_junk_params_get_an_answer_and_nothing_else(own_daemon: Daemon) -> None:
    """Whatever the params of whatever method, the answer is a result or one of the known refusals."""
    methods = [f"process/{name}" for name in ("start", "read", "write", "signal", "terminate")]
    methods += ["initialize", "environment/info", "environment/status"]
    async with unharmed(own_daemon), connect(own_daemon.url) as peer:
        asked = [await peer.send(method, params) for method in methods for params in JUNK]
        for request_id in asked:
            answer = await peer.answer_to(request_id)
            assert answer.error is None or answer.code in (MALFORMED, BAD_PARAMS)
        assert not peer.by_process


LONG = frame(b'{"id":1,"method":"environment/status","x":"' + b"x" * 100_000 + b'"}')
CUTS = {
    "after one byte": LONG[:1],
    "in the length": LONG[:6],
    "in the mask": LONG[:12],
    "before the payload": LONG[:14],
    "in the payload": LONG[:50_000],
    "before the last byte": LONG[:-1],
    "between two fragments": frame(REQUEST[:10], final=False),
    "in the second fragment": frame(REQUEST[:10], final=False)
    + frame(REQUEST[10:], opcode=CONTINUATION)[:20],
    "in a ping": frame(b"hello", opcode=PING)[:-1],
    "in a close frame": frame(b"\x03\xe8", opcode=CLOSE)[:-1],
}


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
async def test_a_client_may_vanish_in_the_middle_of_a_frame(own_daemon: Daemon, reset: bool) -> None:
    """Wherever the cut falls, before the handshake or after it, the server lets go of the connection."""
    async with unharmed(own_daemon):
        for cut in CUTS.values():
            for said_before in ((), (INITIALIZE, INITIALIZED)):
                await vanish(await dial(own_daemon, UPGRADE, *said_before, cut), reset=reset)


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
async def test_a_client_may_vanish_in_the_middle_of_its_http_request(own_daemon: Daemon, reset: bool) -> None:
    """An upgrade request that is cut anywhere holds nothing once its client is gone."""
    async with unharmed(own_daemon):
        for cut in range(0, len(UPGRADE), 8):
            await vanish(await dial(own_daemon, UPGRADE[:cut]), reset=reset)


async def test_half_requests_hold_up_nobody(own_daemon: Daemon) -> None:
    """While 50 clients sit on half a request and 50 on half a frame, others are served as ever."""
    async with unharmed(own_daemon) as witness:
        idle = [await dial(own_daemon, UPGRADE[: len(UPGRADE) // 2]) for _ in range(50)]
        idle += [await dial(own_daemon, UPGRADE, LONG[:1000]) for _ in range(50)]
        assert await witness.run("meanwhile", "echo", "hello") == (0, b"hello\n")
        async with connect(own_daemon.url) as newcomer:
            assert await newcomer.run("meanwhile", "echo", "hello") == (0, b"hello\n")
        for stream in idle:
            await vanish(stream, reset=False)


@pytest.mark.parametrize(
    "said",
    [(), (UPGRADE,), (UPGRADE, INITIALIZE), (UPGRADE, INITIALIZE, INITIALIZED)],
    ids=["connected", "upgraded", "initialize sent", "handshake sent"],
)
async def test_200_connections_come_and_go(own_daemon: Daemon, said: tuple[bytes, ...]) -> None:
    """Connections dropped at any stage, all open at once, cost the server nothing that stays."""
    async with unharmed(own_daemon):
        streams = [await dial(own_daemon, *said) for _ in range(200)]
        for number, stream in enumerate(streams):
            await vanish(stream, reset=number % 2 == 1)


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
async def test_a_client_may_vanish_with_its_answers_unread(own_daemon: Daemon, reset: bool) -> None:
    """1,000 requests from a client that reads no answer, and then is gone, are nobody else's trouble."""
    asks = frame(b'{"id":1,"method":"environment/info"}') * 1000
    async with unharmed(own_daemon):
        for _ in range(5):
            stream = await dial(own_daemon, UPGRADE, INITIALIZE, INITIALIZED, asks)
            await vanish(stream, reset=reset)


NO_HTTP = {
    "TLS hello": bytes.fromhex("16030100c4010000c00303") + bytes(range(180)),
    "another protocol": b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
    "zeros": bytes(1000),
    "high bytes": b"\xff" * 1000 + b"\r\n\r\n",
    "no such version": b"GET / HTTP/9.9\r\n\r\n",
    "bad header": b"GET / HTTP/1.1\r\nno colon here\r\n\r\n",
    "length twice": b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
}


@pytest.mark.parametrize("data", NO_HTTP.values(), ids=NO_HTTP.keys())
async def test_what_is_no_http_is_hung_up_on(own_daemon: Daemon, data: bytes) -> None:
    """Bytes that are no HTTP request get at most a refusal, and their connection is ended."""
    async with unharmed(own_daemon):
        said = await until_hung_up(await dial(own_daemon, data))
        assert said == b"" or said.startswith(b"HTTP/1.1 4")


async def test_an_endless_request_head_is_hung_up_on(own_daemon: Daemon) -> None:
    """The head of a request has a bound: a client that never ends its headers is refused."""
    async with unharmed(own_daemon):
        stream = await dial(own_daemon, UPGRADE[:-2])
        with trio.fail_after(PATIENCE_S), suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"X-More: " + b"x" * 8000 + b"\r\n")
        await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("length", [1 << 30, (1 << 63) - 1, 1 << 63], ids=["1 GiB", "most", "too many bits"])
async def test_a_frame_that_announces_too_much_is_hung_up_on(own_daemon: Daemon, length: int) -> None:
    """A length alone costs the server no memory: it ends the connection on sight of the header."""
    async with unharmed(own_daemon):
        server = listening_pid(own_daemon)
        before_kib = resident_kib(server)
        header = b"\x81\xff" + struct.pack("!Q", length) + bytes(4)
        await until_hung_up(await dial(own_daemon, UPGRADE, header + b"x" * 1000))
        assert resident_kib(server) < before_kib + 64 * 1024


@pytest.mark.ours_only("the detached time of the reference is fixed at 80 s")
async def test_processes_of_a_vanished_client_go_with_its_session(target: str) -> None:
    """Sessions whose clients never come back are ended in time, and give back their descriptors."""
    daemon = start_daemon(target, "--detached-ttl", "0.2", "--retention", "0.2")
    try:
        async with unharmed(daemon):
            for number in range(10):
                async with connect(daemon.url) as peer:
                    (await peer.start("pipes", "cat", pipeStdin=True)).ok()
                    (await peer.start("terminal", "cat", tty=True)).ok()
                    if number % 2:
                        await peer.send_raw('{"method":"no/such/notification"}')
    finally:
        daemon.stop()
