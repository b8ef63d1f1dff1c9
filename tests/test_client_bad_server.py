"""A server that talks nonsense: the connection, or the one process, fails with one clear error, and nothing hangs.

Over streams inside the test and in virtual time: whoever waits for ever here is told of the silence at last.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from frames import BINARY, CLOSE, PING, TEXT, client_frame, frame_header
from scripted_server import Script, connections, expect_catch_up, resume, scripted_client, state
from tsupervise import ConnectFailed, ConnectionLost, ProcessFailed, TsuperviseError, connect
from tsupervise._event_order import MAX_BYTES, MAX_EVENTS
from tsupervise._websocket_client import SILENCE_S
from tsupervise_protocol.codec import MAX_MESSAGE_BYTES
from tsupervise_protocol.messages import ReadParams


def frame(opcode: int, payload: bytes) -> bytes:
    """A whole message as servers send it: not masked."""
    return client_frame(opcode, payload, mask=None)


def text(message: Any) -> bytes:
    return frame(TEXT, json.dumps(message).encode())


def output(seq: Any, **members: Any) -> dict[str, Any]:
    """An output event of the process `p`."""
    params = {"processId": "p", "seq": seq, "stream": "stdout", "chunk": "eA==", **members}
    return {"method": "process/output", "params": params}


# --- what is no HTTP, and no WebSocket -------------------------------------------------------------------


@pytest.mark.parametrize("reset", [False, True], ids=["stays", "resets"])
@pytest.mark.parametrize(
    "greeting", [b"SSH-2.0-server\r\n\r\n", bytes(100), b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]
)
async def test_what_answers_no_upgrade_is_no_connection(greeting: bytes, reset: bool) -> None:
    """Whatever listens there, the attempt fails with a ConnectFailed, and long before it would be given up."""

    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(greeting)
        if not reset:
            await stream.receive_some()

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, answer, [listener])
        url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"
        with trio.fail_after(5), pytest.raises(ConnectFailed, match=url):
            async with connect(url):
                pass
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([b"\x83\x01a"], "opcode"),
        ([b"\xf1\x01a"], "[Rr]eserved"),
        ([b"\x81\x81abcda"], "masked"),
        ([b"\x80\x01a"], "CONTINUATION"),
        ([b"\x81\x7f" + b"\xff" * 8], "length"),
        ([frame(TEXT, b"\xff\xfe")], "utf-8"),
        ([frame(PING, bytes(126))], "125"),
        ([frame(CLOSE, b"\x03")], "CLOSE"),
        ([frame(CLOSE, b"\x00\x05")], "CLOSE"),
        ([frame_header(TEXT, 1 << 62, mask=None), *[bytes(1 << 20)] * 65], str(MAX_MESSAGE_BYTES)),
    ],
    ids=[
        *("opcode", "reserved", "masked", "continuation", "length", "utf-8", "long ping"),
        *("short close", "close code", "huge frame"),
    ],
)
async def test_frames_that_cannot_be_end_the_client(
    autojump_clock: trio.testing.MockClock, frames: list[bytes], reason: str
) -> None:
    """The reason says what was wrong; there is no second attempt, which would meet the same."""

    async def play(script: Script) -> None:
        await script.handshake()
        await script.expect("environment/status")
        script.ear.is_deaf = True
        for data in frames:
            await script.ear.send_all(data)
        await trio.sleep_forever()

    async with scripted_client(connections(play), recovery_s=45) as client:
        with pytest.raises(ConnectionLost, match=f"the server broke the protocol: .*{reason}"):
            await client.call("environment/status")
        assert trio.current_time() < SILENCE_S


async def test_half_a_frame_is_waited_for_as_long_as_any_silence(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A server that stops in the middle of a message is one that has fallen silent."""

    async def play(script: Script) -> None:
        await script.handshake()
        await script.expect("environment/status")
        await script.ear.send_all(text({"id": 2, "result": {"status": "ready"}})[:-5])
        script.ear.is_deaf = True
        await trio.sleep_forever()

    async with scripted_client(play) as client:
        with pytest.raises(ConnectionLost, match="silent"):
            await client.call("environment/status")


# --- messages that are none, or do not fit ---------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        frame(BINARY, b"\x00\x01"),
        frame(TEXT, b""),
        frame(TEXT, b"null"),
        frame(TEXT, b"[" * 100_000),
        frame(TEXT, b'{"id":' + b"9" * 5000 + b',"result":{}}'),
        text({"id": None, "result": {}}),
        text({"id": True, "result": {}}),
        text({"id": 2.0, "result": {}}),
        text({"id": 3, "result": None}),
        text({"id": 3, "result": []}),
        text({"id": 3, "result": {"status": None}}),
        text({"id": 3, "error": "no object"}),
        text({"id": 3, "method": 5}),
        text(output("1")),
        text(output(1.5)),
        text(output(1, stream="stdin")),
        text(output(1, chunk="no base64")),
        text(output(1, chunk="é")),
        text(output(1, chunk=None)),
        text({"method": "process/exited", "params": {"processId": "p", "seq": 1, "exitCode": "zero"}}),
        text({"method": "process/closed", "params": []}),
    ],
    ids=lambda message: message[2:50].decode(errors="replace"),
)
async def test_messages_that_cannot_be_end_the_client(
    autojump_clock: trio.testing.MockClock, message: bytes
) -> None:
    """One clear error for every call and every stream, and no second attempt."""

    async def play(script: Script) -> None:
        await script.handshake()
        await script.start()
        assert (await script.expect("environment/status"))["id"] == 3
        await script.ear.send_all(message)
        await script.until_gone()

    texts: list[str] = []

    async def note(call: Callable[[], Awaitable[Any]]) -> None:
        with pytest.raises(ConnectionLost, match="the server broke the protocol") as caught:
            await call()
        texts.append(str(caught.value))

    async with scripted_client(connections(play), recovery_s=45) as client:
        process = await client.start(["true"], process_id="p")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(note, process.wait)
            nursery.start_soon(note, lambda: anext(process.events()))
            nursery.start_soon(note, lambda: client.call("environment/status"))
        await note(process.terminate)
    assert len(texts) == 4
    assert len(set(texts)) == 1


async def test_a_request_of_the_server_in_a_binary_frame_is_answered_like_any(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The kind of frame means nothing; a method of the client's does not exist; the call goes on."""

    async def play(script: Script) -> None:
        await script.handshake()
        request = await script.expect("environment/status")
        await script.ws.send_message(b'{"id": 2, "method": "process/start", "params": {"processId": "p"}}')
        assert (await script.receive())["error"]["code"] == -32601
        await script.ws.send_message(
            json.dumps({"id": request["id"], "result": {"status": "ready"}}).encode()
        )
        await script.until_gone()

    async with scripted_client(play) as client:
        assert (await client.call("environment/status")).status == "ready"


async def test_a_server_that_only_asks_is_left(autojump_clock: trio.testing.MockClock) -> None:
    """Requests without end, from one who takes no answers, do not fill the memory."""

    async def play(script: Script) -> None:
        await script.handshake()
        await script.expect("environment/status")
        script.ear.is_deaf = script.ear.is_stuck = True
        for number in range(10_000):
            await script.send(id=number, method="network/policyRequest")

    async with scripted_client(connections(play), recovery_s=45) as client:
        with pytest.raises(ConnectionLost, match="asks more than it takes answers for"):
            await client.call("environment/status")


# --- events that have no place ---------------------------------------------------------------------------


@pytest.mark.case(103)
@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([output(0)], "no event 0: numbers start at 1"),
        ([output(-1)], "no event -1"),
        ([output(1), output(2**64)], f"event {2**64} came before event 2"),
        ([output(1), output(MAX_EVENTS + 3)], f"further ahead than {MAX_EVENTS}"),
        ([{"method": "process/closed", "params": {"processId": "p", "seq": 2**62}}], "came before event 1"),
        ([output(1, chunk="A" * (4 * ((MAX_BYTES + 3) // 3)))], "more than the 1048576 of any event"),
    ],
    ids=["zero", "negative", "jump", "too far", "closed far off", "too large"],
)
async def test_an_event_that_cannot_be_fails_its_process_alone(
    autojump_clock: trio.testing.MockClock, events: list[dict[str, Any]], reason: str
) -> None:
    """Its streams and waits say why; another process and the connection go on; it can still be terminated."""

    async def play(script: Script) -> None:
        await script.handshake()
        await script.start()
        fine = await script.start()
        for event in events:
            await script.ear.send_all(text(event))
        await script.exited(fine, 1)
        await script.closed(fine, 2)
        await script.until_gone()

    async with scripted_client(connections(play), recovery_s=45) as client:
        lost, fine = await client.start(["true"], process_id="p"), await client.start(["true"])
        with pytest.raises(ProcessFailed, match=reason):
            await lost.wait()
        with pytest.raises(ProcessFailed, match=reason):
            _ = [event async for event in lost.events()]
        await fine.wait_closed()
        await lost.terminate()


@pytest.mark.parametrize("next_seq", [0, -5])
async def test_a_server_that_counts_from_below_one_is_left(
    autojump_clock: trio.testing.MockClock, next_seq: int
) -> None:
    """What it says of the events that were missed is of no use, now or later."""

    async def first(script: Script) -> None:
        await script.handshake()
        await script.start()

    async def second(script: Script) -> None:
        await resume(script)
        await script.answer(await expect_catch_up(script, "p", 0), state(next_seq))
        await script.until_gone()

    async with scripted_client(connections(first, second), recovery_s=45) as client:
        process = await client.start(["true"], process_id="p")
        with pytest.raises(ConnectionLost, match=f"nextSeq is {next_seq}"):
            await process.wait()


async def test_a_hole_that_is_answered_by_nonsense_fails_its_process_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A reader who came too late and asks what it missed is told that the answer is no use."""
    count = 2 * MAX_EVENTS

    async def play(script: Script) -> None:
        await script.handshake()
        p = await script.start()
        for seq in range(1, count):
            await script.output(p, seq)
        await script.answer(await script.expect("environment/status"), {"status": "ready"})
        answer = state(count, 1)
        answer["chunks"][0]["chunk"] = "no base64"
        await script.answer(await script.expect("process/read"), answer)
        await script.answer(await script.expect("environment/status"), {"status": "ready"})
        await script.until_gone()

    async with scripted_client(play) as client:
        process = await client.start(["true"], process_id="p")
        await client.call("environment/status")
        with pytest.raises(ProcessFailed, match="not base64"):
            await anext(process.events())
        await client.call("environment/status")


# --- whatever it is --------------------------------------------------------------------------------------

VALID = [
    text({"id": 3, "result": {"status": "ready"}}),
    text({"id": 4, "result": state(2, 1)}),
    text({"id": 3, "error": {"code": -32603, "message": "no"}}),
    text(output(1)),
    text({"method": "process/exited", "params": {"processId": "p", "seq": 2, "exitCode": 0}}),
    text({"method": "process/closed", "params": {"processId": "p", "seq": 3}}),
    text({"id": "x", "method": "fs/watch", "params": {}}),
    frame(PING, b"there?"),
    frame(CLOSE, b"\x03\xe9away"),
]


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Messages of a server, in any order, with bytes changed, left out or put in."""
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(VALID), max_size=6))))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        data[start : start + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
    return bytes(data)


def test_whatever_a_server_sends_every_call_comes_to_an_end(long_profile: bool) -> None:
    """With an answer or one of the client's own errors, in bounded time, and the client's block ends as ever."""

    @settings(max_examples=5000 if long_profile else 100, deadline=None)
    @given(data=streams(), then=st.sampled_from(["falls silent", "ends"]))
    def check(data: bytes, then: str) -> None:
        async def play(script: Script) -> None:
            await script.handshake()
            await script.start()
            await script.receive()
            await script.receive()
            script.ear.is_deaf = True
            await script.ear.send_all(data)
            if then == "falls silent":
                await trio.sleep_forever()

        async def settle(call: Callable[[], Awaitable[Any]]) -> None:
            with suppress(TsuperviseError):
                await call()

        async def run() -> None:
            async with scripted_client(play) as client:
                process = await client.start(["true"], process_id="p")
                with trio.fail_after(4 * SILENCE_S):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(settle, lambda: client.call("environment/status"))
                        await trio.testing.wait_all_tasks_blocked()
                        nursery.start_soon(settle, lambda: client.call("process/read", READ))
                        nursery.start_soon(settle, process.wait_closed)

        trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))

    check()


READ = ReadParams(process_id="p")
