"""The server's side of a WebSocket as a pure object: bytes in, messages out, and back.

The stream of bytes is fed whole, one byte at a time and cut anywhere. That also plays the two parsers
against each other: a small frame that arrives whole is read by hand, a cut one by the library.
"""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

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
from tsupervise._websocket import MAX_FRAME_BYTES, MAX_MESSAGE_BYTES, Ended, WebSocket

READ_BYTES = 64 << 10
EURO = "€".encode()


def server_control(opcode: int, payload: bytes) -> bytes:
    """A control frame as the server sends it: short and unmasked."""
    return client_frame(opcode, payload, mask=None)


def close_code(control: bytes) -> int:
    """The code of the close frame that stands alone in `control`."""
    assert control[0] == 0x80 | CLOSE
    assert control[1] == len(control) - 2
    return struct.unpack("!H", control[2:4])[0]


@dataclass
class Outcome:
    """All that a stream of bytes led to."""

    messages: list[bytes]
    control: bytes
    pongs: int
    ended: Ended | None


def feed(*parts: bytes, socket: WebSocket | None = None) -> Outcome:
    """Feed the parts one by one and collect what comes of them."""
    socket = socket or WebSocket()
    messages = [message for part in parts for message in socket.receive(part)]
    return Outcome(messages, socket.take_control() + socket.take_close(), socket.pongs_received, socket.ended)


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    """`stream` in parts, cut at the given places, which are taken modulo its length."""
    edges = sorted({0, len(stream), *(place % (len(stream) + 1) for place in places)})
    return [stream[start:stop] for start, stop in pairwise(edges)]


def one_byte_each(stream: bytes) -> list[bytes]:
    return [stream[index : index + 1] for index in range(len(stream))]


class TestGoldenFrames:
    def test_the_masked_hello_of_the_standard_is_read(self) -> None:
        """The example frame of RFC 6455 gives its payload."""
        assert WebSocket().receive(bytes.fromhex("818537fa213d7f9f4d5158")) == [b"Hello"]

    @pytest.mark.parametrize(
        ("size", "header"),
        [
            (0, "8100"),
            (5, "8105"),
            (125, "817d"),
            (126, "817e007e"),
            (65535, "817effff"),
            (65536, "817f0000000000010000"),
        ],
    )
    def test_every_width_of_length_is_written(self, size: int, header: str) -> None:
        """A message leaves as one final, unmasked text frame with the shortest length field."""
        assert WebSocket.frame([b"x" * size]) == bytes.fromhex(header) + b"x" * size

    @pytest.mark.parametrize("more", [0, 1, 125, 126, 65536, MAX_FRAME_BYTES, MAX_FRAME_BYTES + 1])
    def test_what_no_client_takes_in_one_frame_leaves_in_several(self, more: int) -> None:
        """A message of more than 16 MiB is cut into frames of that size, each with the shortest length field."""
        message = b"x" * (MAX_FRAME_BYTES + more)
        client = client_protocol()
        data = WebSocket.frame([b"before", message, b"behind"])
        client.receive_data(data)
        before, *parts, behind = (event for event in client.events_received() if isinstance(event, Frame))
        assert (before.data, behind.data) == (b"before", b"behind")
        assert b"".join(part.data for part in parts) == message
        assert [len(part.data) for part in parts[:-1]] == [MAX_FRAME_BYTES] * (len(parts) - 1)
        assert [part.fin for part in parts] == [False] * (len(parts) - 1) + [True]
        assert len(data) == sum(len(part.serialize(mask=False)) for part in (before, *parts, behind))

    def test_several_messages_leave_in_one_piece(self) -> None:
        """Frames that are ready together are joined in order."""
        assert WebSocket.frame([b"a", b"", b"bc"]) == b"\x81\x01a\x81\x00\x81\x02bc"
        assert WebSocket.frame([]) == b""

    @pytest.mark.parametrize("size", [0, 1, 4, 125, 126, 127, 1023, 1024, 1025, 65535, 65536])
    @pytest.mark.parametrize("opcode", [TEXT, BINARY])
    def test_every_width_of_length_is_read(self, opcode: int, size: int) -> None:
        """Text and binary messages of any size come out as they were sent, whole or cut in two."""
        payload = (bytes(range(128)) * (size // 128 + 1))[:size]
        stream = client_frame(opcode, payload)
        assert feed(stream).messages == [payload]
        assert feed(stream[:-1], stream[-1:]).messages == [payload]
        assert feed(stream[:3], stream[3:]).messages == [payload]

    def test_any_buffer_is_taken(self) -> None:
        """A bytearray or a memoryview is as good as bytes, and may be reused afterwards."""
        socket = WebSocket()
        for payload in (b"x" * 10, b"x" * 5000):
            buffer = bytearray(client_frame(TEXT, payload))
            messages = socket.receive(buffer[:3]) + socket.receive(memoryview(buffer)[3:])
            buffer[:] = bytes(len(buffer))
            assert messages == [payload]
            assert type(messages[0]) is bytes


@dataclass
class Sent:
    """Frames in order, and what must come of them."""

    stream: bytes
    messages: list[bytes]
    pongs_due: bytes
    pongs: int


@st.composite
def conversations(draw: st.DrawFn) -> Sent:
    """A correct client's frames: messages whole and in fragments, with pings and pongs in between."""
    sent = Sent(b"", [], b"", 0)
    sizes = st.sampled_from([0, 1, 5, 85, 125, 126, 300, 1024, 1025, 2000])

    def control() -> None:
        for opcode, payload in draw(
            st.lists(st.tuples(st.sampled_from([PING, PONG]), st.binary(max_size=8)), max_size=1)
        ):
            sent.stream += client_frame(opcode, payload, mask=draw(st.binary(min_size=4, max_size=4)))
            if opcode == PING:
                sent.pongs_due += server_control(PONG, payload)
            else:
                sent.pongs += 1

    for _ in range(draw(st.integers(1, 6))):
        control()
        opcode = draw(st.sampled_from([TEXT, BINARY]))
        payload = draw(st.sampled_from([b"x", EURO])) * draw(sizes)
        pieces = cut(payload, draw(st.lists(st.integers(0, 6000), max_size=3))) or [b""]
        for index, piece in enumerate(pieces):
            control()
            sent.stream += client_frame(
                CONTINUATION if index else opcode,
                piece,
                fin=index == len(pieces) - 1,
                mask=draw(st.binary(min_size=4, max_size=4)),
            )
        sent.messages.append(payload)
    return sent


@given(sent=conversations(), places=st.lists(st.integers(0, 1 << 16), max_size=12))
@settings(deadline=None, max_examples=60)
def test_the_way_the_bytes_are_cut_changes_nothing(sent: Sent, places: list[int]) -> None:
    """Reads may end anywhere, inside a header, a mask or a character: the messages and pongs are the same."""
    expected = Outcome(sent.messages, sent.pongs_due, sent.pongs, None)
    assert feed(sent.stream) == expected
    assert feed(*cut(sent.stream, places)) == expected


def client_protocol() -> ClientProtocol:
    return ClientProtocol(parse_uri("ws://localhost/"), state=State.OPEN, max_size=None)


@given(
    messages=st.lists(st.tuples(st.text(max_size=400), st.integers(0, 2)), max_size=8),
    places=st.lists(st.integers(0, 1 << 14), max_size=6),
)
@settings(deadline=None, max_examples=60)
def test_a_library_client_and_this_end_understand_each_other(
    messages: list[tuple[str, int]], places: list[int]
) -> None:
    """What another implementation encodes is read here, and it reads what is framed here."""
    client = client_protocol()
    for text, fragments in messages:
        data = text.encode()
        client.send_text(data[: len(data) // 2] if fragments else data, fin=not fragments)
        if fragments:
            client.send_ping(b"between")
            client.send_continuation(data[len(data) // 2 :], fin=True)
    socket = WebSocket()
    outcome = feed(*cut(b"".join(client.data_to_send()), places), socket=socket)
    assert outcome.messages == [text.encode() for text, _ in messages]

    client.receive_data(outcome.control + socket.frame(outcome.messages))
    events = [event for event in client.events_received() if isinstance(event, Frame)]
    assert [bytes(e.data) for e in events if e.opcode is Opcode.TEXT] == outcome.messages
    pongs = [bytes(e.data) for e in events if e.opcode is Opcode.PONG]
    assert pongs == [b"between" for _, fragments in messages if fragments]
    assert all(event.fin for event in events)


VIOLATIONS = {
    "unmasked text": (client_frame(TEXT, b"hi", mask=None), 1002),
    "unmasked and empty": (client_frame(TEXT, b"", mask=None), 1002),
    "unmasked and large": (client_frame(TEXT, b"x" * 70_000, mask=None), 1002),
    "unmasked ping": (client_frame(PING, b"", mask=None), 1002),
    **{f"opcode {code}": (client_frame(code, b""), 1002) for code in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    **{f"reserved bits {rsv}": (client_frame(TEXT, b"{}", rsv=rsv), 1002) for rsv in (1, 2, 4, 7)},
    "ping of 126 bytes": (client_frame(PING, b"x" * 126), 1002),
    "fragmented ping": (client_frame(PING, b"", fin=False), 1002),
    "continuation of nothing": (client_frame(CONTINUATION, b"x"), 1002),
    "text inside a message": (client_frame(TEXT, b"a", fin=False) + client_frame(TEXT, b"b"), 1002),
    "close of one byte": (client_frame(CLOSE, b"\x03"), 1002),
    "close with a code that is never sent": (client_frame(CLOSE, close_payload(1006)), 1002),
    "close with a broken reason": (client_frame(CLOSE, close_payload(1000, b"\xff")), 1007),
    "broken text": (client_frame(TEXT, b'"\xff"'), 1007),
    "broken large text": (client_frame(TEXT, b"x" * 70_000 + EURO[:1]), 1007),
    "a surrogate": (client_frame(TEXT, b"\xed\xa0\x80"), 1007),
    "text that ends inside a character": (client_frame(TEXT, EURO[:2]), 1007),
    "broken text in fragments": (
        client_frame(TEXT, EURO[:2], fin=False) + client_frame(CONTINUATION, b"x"),
        1007,
    ),
    "too large a frame": (frame_header(TEXT, MAX_FRAME_BYTES + 1), 1009),
    "an absurd frame": (frame_header(BINARY, (1 << 63) - 1), 1009),
}


class TestViolations:
    @pytest.mark.parametrize(("stream", "code"), VIOLATIONS.values(), ids=VIOLATIONS)
    def test_a_violation_ends_the_connection_with_its_code(self, stream: bytes, code: int) -> None:
        """The close code tells framing, text and size apart; earlier messages count, later ones do not."""
        before, after = client_frame(TEXT, b"before"), client_frame(TEXT, b"after")
        for outcome in (
            feed(before + stream + after),
            feed(before, *one_byte_each(stream[:4000]), stream[4000:]),
        ):
            assert outcome.messages == [b"before"]
            assert outcome.ended is not None
            assert (outcome.ended.code, outcome.ended.by_peer) == (code, False)
            assert close_code(outcome.control) == code

    def test_the_dead_connection_stays_dead(self) -> None:
        """After a violation nothing is read, answered or queued any more."""
        socket = WebSocket()
        socket.receive(client_frame(TEXT, b"hi", mask=None))
        socket.take_control()
        assert socket.receive(client_frame(TEXT, b"more") + client_frame(PING, b"")) == []
        socket.ping()
        socket.close(1001)
        assert socket.take_control() == b""

    def test_binary_is_not_looked_into(self) -> None:
        """A binary message need not be UTF-8 here; whether it is JSON is decided elsewhere."""
        assert feed(client_frame(BINARY, b"\xff")).messages == [b"\xff"]
        pieces = client_frame(BINARY, b"\xff", fin=False) + client_frame(CONTINUATION, b"\xfe")
        assert feed(pieces).messages == [b"\xff\xfe"]

    def test_a_character_may_be_split_between_fragments(self) -> None:
        """Text is judged as a whole message, not fragment by fragment."""
        pieces = [EURO[:1], b"", EURO[1:2], EURO[2:]]
        stream = b"".join(
            client_frame(CONTINUATION if index else TEXT, piece, fin=index == 3)
            for index, piece in enumerate(pieces)
        )
        assert feed(stream).messages == [EURO]
        assert feed(*one_byte_each(stream)).messages == [EURO]

    def test_a_large_text_may_hold_any_character_anywhere(self) -> None:
        """The piecewise check of a large text is not misled by a character at the edge of a piece."""
        for shift in range(4):
            text = b"x" * (READ_BYTES - shift) + "😀".encode()
            assert feed(client_frame(TEXT, text, mask=NO_MASK)).messages == [text]


class TestLimits:
    def test_a_frame_of_exactly_the_limit_is_accepted(self) -> None:
        """16 MiB come through, in reads much smaller than the frame."""
        payload = b"x" * MAX_FRAME_BYTES
        stream = client_frame(TEXT, payload, mask=NO_MASK)
        parts = [stream[start : start + 4096] for start in range(0, len(stream), 4096)]
        outcome = feed(*parts)
        assert outcome.messages == [payload]
        assert outcome.ended is None

    @pytest.mark.parametrize("fin", [True, False])
    def test_one_byte_more_is_refused_by_its_header(self, fin: bool) -> None:
        """The announced length is enough: nothing of the payload is waited for."""
        header = frame_header(BINARY, MAX_FRAME_BYTES + 1, fin=fin)
        outcome = feed(header[:10])
        assert outcome.ended is not None
        assert outcome.ended.code == 1009

    def test_a_message_of_exactly_the_limit_is_accepted_in_fragments(self) -> None:
        """64 MiB come through in four frames, none of them over its own limit."""
        piece = b"x" * MAX_FRAME_BYTES
        count = MAX_MESSAGE_BYTES // MAX_FRAME_BYTES
        socket = WebSocket()
        messages: list[bytes] = []
        for index in range(count):
            fin = index == count - 1
            frame = client_frame(CONTINUATION if index else TEXT, piece, fin=fin, mask=NO_MASK)
            messages += socket.receive(frame)
        assert [len(message) for message in messages] == [MAX_MESSAGE_BYTES]
        assert socket.ended is None

    def test_a_message_of_one_byte_more_is_refused(self) -> None:
        """The limit of a message counts all its fragments; the last straw is refused by its header."""
        socket = WebSocket(max_frame_bytes=100, max_message_bytes=250)
        for index in range(2):
            socket.receive(client_frame(CONTINUATION if index else TEXT, b"x" * 100, fin=False))
        socket.receive(frame_header(CONTINUATION, 51))
        assert socket.ended is not None
        assert socket.ended.code == 1009

    def test_small_limits_hold_on_the_fast_path(self) -> None:
        """A limit below the size that is read by hand is kept to the byte as well."""
        socket = WebSocket(max_frame_bytes=100, max_message_bytes=250)
        assert socket.receive(client_frame(TEXT, b"x" * 100)) == [b"x" * 100]
        assert socket.receive(client_frame(TEXT, b"x" * 101)) == []
        assert close_code(socket.take_close()) == 1009

    def test_the_next_message_starts_from_nothing(self) -> None:
        """The bytes of a finished message in fragments do not count against the next one."""
        socket = WebSocket(max_frame_bytes=100, max_message_bytes=150)
        message = client_frame(TEXT, b"x" * 100, fin=False) + client_frame(CONTINUATION, b"x" * 50)
        assert socket.receive(message * 3) == [b"x" * 150] * 3


class TestMemory:
    """What a connection costs when it has nothing to say."""

    def test_a_large_message_leaves_nothing_behind(self) -> None:
        """Once its payload is handed over, whole or as a first fragment, no copy of it is kept."""
        frames = [
            client_frame(TEXT, b"x" * (1 << 20), mask=NO_MASK),
            client_frame(BINARY, b"x" * (1 << 20), fin=False, mask=NO_MASK) + client_frame(CONTINUATION, b""),
        ]
        for stream in frames:
            socket = WebSocket()
            socket.receive(client_frame(PONG, b""))
            tracemalloc.start()
            try:
                assert len(socket.receive(stream)) == 1
                assert tracemalloc.get_traced_memory()[0] < 20_000
            finally:
                tracemalloc.stop()
            assert socket.pongs_received == 1

    def test_empty_fragments_do_not_pile_up(self) -> None:
        """A message in very many fragments costs what its bytes cost, not what its frames cost."""
        socket = WebSocket()
        socket.receive(client_frame(BINARY, b"x", fin=False))
        tracemalloc.start()
        try:
            socket.receive(client_frame(CONTINUATION, b"", fin=False) * 5000)
            assert tracemalloc.get_traced_memory()[0] < 20_000
        finally:
            tracemalloc.stop()
        assert socket.receive(client_frame(CONTINUATION, b"y")) == [b"xy"]


class TestControlFrames:
    def test_pings_are_answered_in_order_with_their_payload(self) -> None:
        """Each ping gets its pong, also one in the middle of a fragmented message."""
        stream = (
            client_frame(PING, b"hello")
            + client_frame(TEXT, b"a", fin=False)
            + client_frame(PING, b"x" * 125)
            + client_frame(CONTINUATION, b"b")
            + client_frame(PING, b"")
        )
        outcome = feed(stream)
        assert outcome.messages == [b"ab"]
        assert outcome.control == (
            server_control(PONG, b"hello") + server_control(PONG, b"x" * 125) + server_control(PONG, b"")
        )
        assert feed(*one_byte_each(stream)) == outcome

    def test_pongs_are_counted_and_otherwise_ignored(self) -> None:
        """A pong, asked for or not, disturbs nothing; the keep-alive sees that it came."""
        outcome = feed(client_frame(PONG, b"stray") * 3 + client_frame(TEXT, b"m"))
        assert outcome == Outcome([b"m"], b"", 3, None)

    def test_a_flood_of_pings_does_not_pile_up(self) -> None:
        """A peer that pings and never reads costs a bounded number of bytes, and gets its newest pong."""
        socket = WebSocket()
        for number in range(2000):
            socket.receive(client_frame(PING, b"%0125d" % number, mask=NO_MASK))
        control = socket.take_control()
        assert len(control) < 70_000
        assert control.endswith(server_control(PONG, b"%0125d" % 1999))
        assert control.startswith(server_control(PONG, b"%0125d" % 0))
        assert socket.take_control() == b""
        socket.receive(client_frame(PING, b"later"))
        assert socket.take_control() == server_control(PONG, b"later")

    def test_our_pings_wait_among_the_other_control_frames(self) -> None:
        """Pings and pongs leave in the order in which they were queued, each once."""
        socket = WebSocket()
        assert not socket.has_control
        socket.ping()
        assert socket.has_control
        socket.receive(client_frame(PING, b"p"))
        socket.ping(b"two")
        assert socket.take_control() == b"\x89\x00" + b"\x8a\x01p" + b"\x89\x03two"
        assert not socket.has_control
        assert socket.take_control() == b""

    def test_a_ping_that_does_not_fit_is_refused(self) -> None:
        """Control frames carry 125 bytes at most."""
        socket = WebSocket()
        socket.ping(b"x" * 125)
        with pytest.raises(ValueError, match="126 bytes"):
            socket.ping(b"x" * 126)


class TestClosing:
    def test_the_close_of_the_peer_is_answered_in_kind(self) -> None:
        """Code and reason are echoed, known afterwards, and what follows is ignored."""
        stream = client_frame(TEXT, b"m") + client_frame(CLOSE, close_payload(1000, b"bye"))
        outcome = feed(stream + client_frame(TEXT, b"late") + client_frame(PING, b""))
        assert outcome.messages == [b"m"]
        assert outcome.control == server_control(CLOSE, close_payload(1000, b"bye"))
        assert outcome.ended == Ended(1000, "bye", by_peer=True)
        assert feed(*one_byte_each(stream)) == outcome

    def test_a_close_without_code_is_answered_without_code(self) -> None:
        """No code is invented on the wire; 1005 says so inside."""
        outcome = feed(client_frame(CLOSE, b""))
        assert outcome.control == server_control(CLOSE, b"")
        assert outcome.ended == Ended(1005, "", by_peer=True)

    def test_only_the_first_close_is_sent(self) -> None:
        """A second close, the peer's answer, a later violation and later pings add nothing to ours."""
        socket = WebSocket()
        socket.ping(b"before")
        socket.close(1008, "why")
        socket.close(1001)
        socket.ping(b"after")
        assert socket.receive(client_frame(PING, b"") + client_frame(TEXT, b"still read")) == [b"still read"]
        assert socket.take_control() == server_control(PING, b"before")
        assert socket.take_close() == server_control(CLOSE, close_payload(1008, b"why"))
        socket.receive(client_frame(CLOSE, close_payload(1008)))
        assert socket.ended == Ended(1008, "", by_peer=True)
        assert socket.take_control() == socket.take_close() == b""

    def test_a_violation_after_our_close_ends_without_another_close(self) -> None:
        """The peer's misbehaviour is noted, but a close frame was already sent."""
        socket = WebSocket()
        socket.close(1001)
        socket.take_close()
        socket.receive(client_frame(TEXT, b"", mask=None))
        assert socket.ended is not None
        assert (socket.ended.code, socket.ended.by_peer) == (1002, False)
        assert socket.take_control() == socket.take_close() == b""

    @pytest.mark.parametrize(
        ("reason", "sent"),
        [
            ("", b""),
            ("short", b"short"),
            ("x" * 200, b"x" * 123),
            ("€" * 50, EURO * 41),
            ("xx" + "€" * 50, b"xx" + EURO * 40),
        ],
    )
    def test_a_long_reason_is_cut_between_characters(self, reason: str, sent: bytes) -> None:
        """The reason fits its 123 bytes and stays valid text."""
        socket = WebSocket()
        socket.close(1001, reason)
        control = socket.take_close()
        assert control[:4] == struct.pack("!BBH", 0x88, len(control) - 2, 1001)
        assert control[4:] == sent
