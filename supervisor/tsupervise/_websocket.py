"""One WebSocket after its upgrade, the server's side: bytes in, messages out; messages in, bytes out.

It owns framing, limits, pings and close codes, and knows neither sockets nor time. Two parsers share the
incoming bytes. Small whole frames, which is what JSON-RPC traffic is made of, are read by hand; every
other frame (large, cut by the end of a read, fragmented, control, forbidden) goes, whole, to the
`websockets` library. They cannot drift apart, because the library only ever sees complete frames: once a
frame is begun there it is ended there.

Measured per message (CPython 3.11, these calls alone): 85 bytes are read in 1.0 us by hand, 0.8 if a
hundred come in one read, and in 2.4 us by the library; 200 bytes are framed in 0.2 us by hand and 0.8 by
the library. From about 1 KiB on the order is the other way round, as the library unmasks in C: 88 KB take
it 6 us, and a long integer 214, a translation table 72. So a large frame gains from being odd.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

MAX_FRAME_BYTES = 16 << 20
"""Payload of one incoming frame; what the reference server accepts, to the byte. Its client accepts as much, and
hangs up at more, so that it is the most of an outgoing frame as well."""

MAX_MESSAGE_BYTES = 64 << 20
"""An incoming message in fragments; what the reference server accepts, to the byte."""

MAX_CONTROL_PAYLOAD = 125
"""RFC 6455, 5.5."""

_SMALL = 1024
"""Largest payload that is read by hand: where unmasking as one long integer has eaten up the lead."""

_CONTROL_LIMIT = 64 << 10
"""Bytes of unsent control frames; past them only the newest pong is kept, as RFC 6455, 5.5.3 allows."""

_FINAL = 0x80
"""In the first byte of a frame that ends its message."""

# The first byte of a frame that is whole, not a fragment.
_TEXT, _BINARY, _CLOSE, _PING = (
    _FINAL | code for code in (Opcode.TEXT, Opcode.BINARY, Opcode.CLOSE, Opcode.PING)
)

_FORGET = 16 << 10
"""The library's parser holds on to the payload of its last frame; larger ones it is made to let go."""

_EMPTY_PONG = bytes((0x80 | Opcode.PONG, 0x80, 0, 0, 0, 0))
"""As a client sends it, masked. The shortest frame that changes nothing."""

_WHOLE_MESSAGE = frozenset((_TEXT, _BINARY))

_SHORT_HEADERS = tuple(bytes((_TEXT, size)) for size in range(126))
_pack_medium_header = struct.Struct("!BBH").pack
_pack_long_header = struct.Struct("!BBQ").pack


@dataclass(frozen=True, slots=True)
class Ended:
    """Why no more messages come.

    `code` and `reason` are those of the peer's close frame (1005 if it gave none) where `by_peer` is true,
    else those of the close frame that answers the peer's violation: 1002, 1007 or 1009.
    """

    code: int
    reason: str
    by_peer: bool


class WebSocket:
    """The framing state of one connection. An idle one holds no library object and a few hundred bytes."""

    __slots__ = (
        "_close_frame",
        "_closing",
        "_control",
        "_fragments",
        "_is_text",
        "_latest_pong",
        "_max_frame_bytes",
        "_max_message_bytes",
        "_owed",
        "_protocol",
        "_tail",
        "ended",
        "pongs_received",
    )

    def __init__(
        self, *, max_frame_bytes: int = MAX_FRAME_BYTES, max_message_bytes: int = MAX_MESSAGE_BYTES
    ) -> None:
        self.pongs_received = 0
        self.ended: Ended | None = None
        self._max_frame_bytes = max_frame_bytes
        self._max_message_bytes = max_message_bytes
        self._tail = b""  # the beginning of a header, 9 bytes at most
        self._owed = 0  # bytes that complete the frame which the library has begun
        self._protocol: ServerProtocol | None = None  # made on the first odd frame; 1.1 KiB
        self._fragments: bytearray | None = None  # not a list: a flood of tiny fragments must not grow it
        self._is_text = False  # the message that the library is reading
        self._control = bytearray()
        self._latest_pong = b""
        self._close_frame = b""
        self._closing = False

    def receive(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """Take bytes from the peer; return the payloads of the messages that they complete, in order.

        Text, binary and fragmented messages come out alike; text is valid UTF-8, binary is as it came.
        Never raises: look at `ended` afterwards. Messages before a violation are still returned; what
        follows it, or follows the peer's close frame, is ignored. `take_control` has the due answers.
        """
        messages: list[bytes] = []
        if self.ended is not None:
            return messages
        data = self._tail + data  # the very same object in the usual case: bytes, and no tail
        self._tail = b""
        position = 0
        while position < len(data):
            if not self._owed:
                if self._fragments is None:
                    position = self._read_small(data, position, messages)
                    if position == len(data):
                        break
                self._owed = _frame_size(data, position)
                if not self._owed:
                    self._tail = data[position:]
                    break
            part = data[position : position + self._owed]
            position += len(part)
            self._owed -= len(part)
            self._read_odd(part, messages)
            if self.ended is not None:
                break
        return messages

    @staticmethod
    def frame(messages: Sequence[bytes]) -> bytes:
        """Text frames ready for a single send: one for each message, which must be UTF-8, more for a large one."""
        parts: list[bytes | memoryview] = []
        for message in messages:
            if len(message) > MAX_FRAME_BYTES:
                for frame in WebSocket.frames_of(message):
                    parts += frame
            else:
                parts += (_header(_TEXT, len(message)), message)
        return b"".join(parts)

    @staticmethod
    def frames_of(message: bytes) -> Iterator[tuple[bytes, memoryview]]:
        """The frames of one message, header and payload of each: several if it is too large for one."""
        view = memoryview(message)
        first: int = Opcode.TEXT
        for start in range(0, len(message), MAX_FRAME_BYTES):
            payload = view[start : start + MAX_FRAME_BYTES]
            if start + len(payload) == len(message):
                first |= _FINAL
            yield _header(first, len(payload)), payload
            first = Opcode.CONT

    def ping(self, payload: bytes = b"") -> None:
        """Queue a ping.

        Raises:
            ValueError: the payload is longer than 125 bytes.
        """
        if len(payload) > MAX_CONTROL_PAYLOAD:
            raise ValueError(f"cannot ping with {len(payload)} bytes; at most {MAX_CONTROL_PAYLOAD} fit")
        self._queue(bytes((_PING, len(payload))) + payload)

    def close(self, code: int, reason: str = "") -> None:
        """Queue a close frame; a second one is ignored, and so is every control frame after the first.

        A reason longer than 123 bytes of UTF-8 is cut, between two characters. Messages that the peer
        sends before it answers are still received.
        """
        text = reason.encode()[: MAX_CONTROL_PAYLOAD - 2].decode(errors="ignore").encode()
        self._queue_close(struct.pack("!BBH", _CLOSE, 2 + len(text), code) + text)

    @property
    def has_control(self) -> bool:
        """Whether `take_control` has anything to give."""
        return bool(self._control)

    def take_control(self) -> bytes:
        """The queued pings and pongs in order, b"" if there are none. They may overtake messages."""
        if not self._control:
            return b""
        control = bytes(self._control) + self._latest_pong
        self._control.clear()
        self._latest_pong = b""
        return control

    def take_close(self) -> bytes:
        """The close frame, once there is one, else b"". It goes behind every message that is still due."""
        frame, self._close_frame = self._close_frame, b""
        return frame

    def _read_small(self, data: bytes, position: int, messages: list[bytes]) -> int:
        """Read whole small frames by hand; return where the first other frame, or the end, is."""
        end = len(data)
        limit = min(_SMALL, self._max_frame_bytes)
        while end - position >= 6:  # the shortest header with its mask
            first = data[position]
            size = data[position + 1] - 0x80  # negative: not masked
            start = position + 6
            if size == 126:
                size = data[position + 2] << 8 | data[position + 3]
                start += 2
            elif size > 125:
                break
            stop = start + size
            if first not in _WHOLE_MESSAGE or not 0 <= size <= limit or stop > end:
                break
            # One XOR of two long integers: below 1 KiB faster than anything else that is pure Python.
            mask = data[start - 4 : start] * (size // 4) + data[start - 4 : start - 4 + size % 4]
            number = int.from_bytes(data[start:stop], "little") ^ int.from_bytes(mask, "little")
            payload = number.to_bytes(size, "little")
            if first == _TEXT and not _is_utf8(payload):
                break  # the library is asked to fail the connection, which it does for all violations
            messages.append(payload)
            position = stop
        return position

    def _read_odd(self, part: bytes, messages: list[bytes]) -> None:
        """Give the library a frame or a piece of one, and take what it makes of it."""
        protocol = self._protocol
        if protocol is None:
            limits = (self._max_message_bytes, self._max_frame_bytes)
            protocol = self._protocol = ServerProtocol(state=State.OPEN, max_size=limits)
        protocol.receive_data(part)
        closed_by_peer = False
        large = False
        for event in protocol.events_received():
            assert isinstance(event, Frame), "the handshake is over"
            large = len(event.data) > _FORGET
            if event.opcode is Opcode.PONG:
                self.pongs_received += 1
            elif event.opcode is Opcode.CLOSE:
                closed_by_peer = True
            elif event.opcode is not Opcode.PING:
                payload = self._join(event)
                if payload is None:
                    continue
                if self._is_text and not _is_utf8(payload):
                    protocol.fail(CloseCode.INVALID_DATA, "text message is not valid UTF-8")
                else:
                    messages.append(payload)
        for frame in protocol.data_to_send():
            if not frame:  # the library's mark for "end the stream now", which is the caller's affair
                continue
            if frame[0] != _CLOSE:
                self._queue(frame)
                continue
            code = int.from_bytes(frame[2:4], "big") or CloseCode.NO_STATUS_RCVD.value
            self.ended = Ended(code, frame[4:].decode(), closed_by_peer)
            self._queue_close(frame)
        if large and self.ended is None:
            protocol.receive_data(_EMPTY_PONG)
            protocol.events_received()

    def _join(self, frame: Frame) -> bytes | None:
        """The payload of the message which this data frame completes, None if it is not the last."""
        if frame.opcode is not Opcode.CONT:
            self._is_text = frame.opcode is Opcode.TEXT
        if self._fragments is None:
            if frame.fin:
                return bytes(frame.data)
            self._fragments = bytearray()
        self._fragments += frame.data
        if not frame.fin:
            return None
        payload = bytes(self._fragments)
        self._fragments = None
        return payload

    def _queue(self, frame: bytes) -> None:
        if self._closing:
            return
        if len(self._control) < _CONTROL_LIMIT:
            self._control += frame
        else:
            self._latest_pong = frame

    def _queue_close(self, frame: bytes) -> None:
        if not self._closing:
            self._closing = True
            self._close_frame = frame


def _header(first: int, size: int) -> bytes:
    """What stands before a payload of the server, which is not masked. The shortest spelling is the only one."""
    if size < 126:
        return _SHORT_HEADERS[size] if first == _TEXT else bytes((first, size))
    return _pack_medium_header(first, 126, size) if size < 1 << 16 else _pack_long_header(first, 127, size)


def _frame_size(data: bytes, position: int) -> int:
    """Bytes of the frame at `position`, its header included; 0 while too little of the header is there.

    An unmasked frame is counted as if it were masked: the library refuses it at its second byte.
    """
    available = len(data) - position
    if available < 2:
        return 0
    size = data[position + 1] & 0x7F
    if size < 126:
        return 6 + size
    width = 2 if size == 126 else 8
    if available < 2 + width:
        return 0
    return 6 + width + int.from_bytes(data[position + 2 : position + 2 + width], "big")


def _is_utf8(payload: bytes) -> bool:
    """Whether `payload` is UTF-8. In pieces: as one string, 64 MiB may take four times as much."""
    if payload.isascii():
        return True
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(payload)
    try:
        for start in range(0, len(payload), 1 << 16):
            decoder.decode(view[start : start + (1 << 16)])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True
