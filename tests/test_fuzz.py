"""Damaged input, a great deal of it, at everything that reads what a stranger sends.

No crash: each reader keeps its own promise of what it raises. No hang: an alarm ends the test. No leak: there are
as many objects at the end as there were after the first tenth.
"""

from __future__ import annotations

import gc
import logging
import random
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from itertools import islice
from pathlib import Path

import h11
import jwt
import pytest
import trio
import trio.testing

from in_process import open_house
from mutations import mutations
from tsupervise._channel import MemoryChannel
from tsupervise._http_door import Answer as HttpAnswer
from tsupervise._http_door import HttpDoor, Page, Respond, Upgrade
from tsupervise._settings import Settings
from tsupervise._websocket import WebSocket
from tsupervise._ws_auth import AuthOptions, read_auth
from tsupervise_protocol.codec import Notification, Request, decode_from_client
from tsupervise_protocol.errors import MalformedMessage, ProtocolViolation, RpcError

SEED = 4

HANG_S = 60
"""Far above what a hundred inputs take; an input that blows up takes for ever."""

KEPT_OBJECTS = 2_500
"""Caches come and go: trio keeps up to a thousand deadlines that were lifted, of two objects each. What is left
behind by one input in a hundred shows in the long profile."""

pytestmark = pytest.mark.case(153)


@contextmanager
def no_hang() -> Generator[None]:
    """Fail instead of hanging: the alarm rings in the middle of whatever loops."""

    def ring(*_: object) -> None:
        raise AssertionError(f"nothing came back within {HANG_S} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(HANG_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzzed(name: str, count: int) -> Iterator[bytes]:
    """`count` inputs, with an eye on time and on what is left behind."""
    level = 0
    inputs = mutations(name, SEED)
    for done in range(0, count, 100):
        with no_hang():
            yield from islice(inputs, min(100, count - done))
        if done <= count // 10 < done + 100:
            level = objects()
    grown = objects() - level
    print(f"{name}: {count:,} inputs, {grown:+} objects")
    assert grown < KEPT_OBJECTS


def objects() -> int:
    gc.collect()
    return len(gc.get_objects())


def pieces(data: bytes, rng: random.Random) -> Iterator[bytes]:
    """The same bytes, as a network may deliver them."""
    while data:
        size = rng.choice((1, 2, 7, 100, 4096))
        yield data[:size]
        data = data[size:]


def test_the_http_door(long_profile: bool) -> None:
    """Whatever comes is answered by one whole response, or waited for; in pieces it means the same."""
    rng = random.Random(SEED)
    pages = {b"/readyz": Page(lambda: HttpAnswer(HTTPStatus.OK), is_open=False)}
    for data in fuzzed("http", 200_000 if long_profile else 3_000):
        decision = HttpDoor(pages).receive(data)
        in_pieces, door = None, HttpDoor(pages)
        for piece in pieces(data, rng):
            in_pieces = door.receive(piece)
            if in_pieces is not None:
                break
        if isinstance(decision, Respond):
            assert response_in(decision.data) == decision.status
            assert isinstance(in_pieces, Respond)
        elif isinstance(decision, Upgrade):
            assert isinstance(in_pieces, Upgrade)
            assert decision.data == in_pieces.data
            assert data.endswith(decision.leftover)
        else:
            assert in_pieces is None


def response_in(data: bytes) -> int:
    """The status of a response that is whole and the only one."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    head = client.next_event()
    assert isinstance(head, h11.Response)
    if not int(dict(head.headers).get(b"content-length", b"0")) or data.endswith(b"\r\n\r\n"):
        return head.status_code
    body = client.next_event()
    assert isinstance(body, h11.Data)
    assert isinstance(client.next_event(), h11.EndOfMessage)
    assert client.trailing_data == (b"", False)
    return head.status_code


def test_tokens(long_profile: bool, tmp_path: Path) -> None:
    """A header is good or gets one of the reasons; nothing that was damaged is a well-signed token."""
    (tmp_path / "secret").write_text("s" * 40)
    one = read_auth(AuthOptions("capability-token", token_sha256="0" * 64))
    other = read_auth(AuthOptions("signed-bearer-token", shared_secret_file=str(tmp_path / "secret")))
    assert one is not None
    assert other is not None
    reasons: set[str | None] = set()
    for data in fuzzed("authorization", 200_000 if long_profile else 3_000):
        reasons |= {one.refusal(data), other.refusal(data)}
    assert reasons == {
        *("invalid authorization header", "invalid websocket bearer token", "invalid websocket jwt"),
    }


def test_well_signed_nonsense(long_profile: bool, tmp_path: Path) -> None:
    """Whatever the payload of a token is, its signature being right, there is one of the reasons or none."""
    (tmp_path / "secret").write_text("s" * 40)
    options = AuthOptions("signed-bearer-token", shared_secret_file=str(tmp_path / "secret"), issuer="me")
    auth = read_auth(options)
    assert auth is not None
    library = jwt.PyJWS()
    reasons: set[str | None] = set()
    for data in fuzzed("claims", 100_000 if long_profile else 2_000):
        reasons.add(auth.refusal(b"Bearer " + library.encode(data, "s" * 40).encode()))
    assert reasons == {
        *(None, "invalid websocket jwt", "expired websocket jwt", "websocket jwt is not valid yet"),
        "websocket jwt issuer mismatch",
    }


def test_frames(long_profile: bool) -> None:
    """In pieces or whole the same messages come out, and the same end; what is kept is bounded."""
    rng = random.Random(SEED)
    for data in fuzzed("frames", 200_000 if long_profile else 3_000):
        websocket = WebSocket(max_frame_bytes=300, max_message_bytes=1000)
        messages = websocket.receive(data)
        piecewise = WebSocket(max_frame_bytes=300, max_message_bytes=1000)
        assert [m for piece in pieces(data, rng) for m in piecewise.receive(piece)] == messages
        assert piecewise.ended == websocket.ended
        assert piecewise.take_control() == websocket.take_control()
        assert piecewise.take_close() == websocket.take_close()
        assert all(len(message) <= 1000 for message in messages)
        if websocket.ended is not None:
            assert websocket.receive(data) == []


def test_messages(long_profile: bool) -> None:
    """Each is a request, a notification, or refused in one of two ways; a faulty request knows its fault."""
    kinds: set[type] = set()
    for data in fuzzed("messages", 200_000 if long_profile else 3_000):
        try:
            message = decode_from_client(data)
        except (MalformedMessage, ProtocolViolation) as error:
            kinds.add(type(error))
            continue
        kinds.add(type(message))
        if isinstance(message, Request) and message.fault is not None:
            assert isinstance(message.fault, RpcError)
            assert message.fault.message
    assert kinds >= {MalformedMessage, ProtocolViolation, Request, Notification}


async def test_conversations(
    long_profile: bool, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A supervisor that is sent damaged requests keeps answering, fails nowhere inside, and keeps nothing."""
    count = 300_000 if long_profile else 3_000
    rng = random.Random(SEED)
    inputs = fuzzed("messages", count)
    with caplog.at_level(logging.WARNING):
        async with open_house(Settings(detached_ttl_s=0.0, retention_s=0.0)) as house:
            witness = await house.connect()
            while batch := list(islice(inputs, rng.choice((1, 5, 20, 60)))):
                peer = house.knock()
                if rng.random() < 0.9:
                    (await peer.handshake()).ok()
                assert isinstance(peer.channel, MemoryChannel)
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(peer, "take", lambda message: None)  # pyright: ignore
                    with trio.move_on_after(5):
                        await peer.channel.send(batch)
                        await trio.testing.wait_all_tasks_blocked()
                (await witness.request("environment/status")).ok()
                await peer.drop()
                for session in house.supervisor.sessions[1:]:
                    if session.kept:  # as was asked for
                        await session.end("")
                await trio.sleep(1)
                assert len(house.supervisor.sessions) == 1
                assert all(child.closed for child in house.children)
                house.children.clear()
                witness.answers.clear()
    assert [record.getMessage() for record in caplog.records] == []
