"""WebSocket frames as a client puts them on the wire, right and wrong, written with no library's help."""

from __future__ import annotations

import struct

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

MASK = bytes.fromhex("37fa213d")
"""The masking key of the examples in RFC 6455, 5.7."""

NO_MASK = bytes(4)
"""A masking key that changes nothing, so that a test can make many megabytes at once."""


def frame_header(
    opcode: int, size: int, *, fin: bool = True, rsv: int = 0, mask: bytes | None = MASK
) -> bytes:
    """The header of a frame with `size` bytes of payload; `mask=None` leaves the frame unmasked."""
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    masked = 0 if mask is None else 0x80
    if size < 126:
        lengths = struct.pack("!BB", first, masked | size)
    elif size < 1 << 16:
        lengths = struct.pack("!BBH", first, masked | 126, size)
    else:
        lengths = struct.pack("!BBQ", first, masked | 127, size)
    return lengths + (mask or b"")


def client_frame(
    opcode: int, payload: bytes, *, fin: bool = True, rsv: int = 0, mask: bytes | None = MASK
) -> bytes:
    """One whole frame."""
    header = frame_header(opcode, len(payload), fin=fin, rsv=rsv, mask=mask)
    if mask is None or mask == NO_MASK:
        return header + payload
    return header + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


def close_payload(code: int, reason: bytes = b"") -> bytes:
    return struct.pack("!H", code) + reason
