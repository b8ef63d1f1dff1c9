"""Inputs that are almost right: a small corpus, and a generator that damages its entries, every time alike."""

from __future__ import annotations

import ast
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "corpus"

MAX_BYTES = 4096
"""Longer inputs are cut: their length shows nothing more."""

_BYTES = (
    b"\x00",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\r\n",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b":",
    b".",
    b"%",
    b"{",
    b"}",
    b'"',
)
_TOKENS: dict[str, Sequence[bytes]] = {
    "http": (
        *(
            b"Host: ",
            b"Origin: x\r\n",
            b"Authorization: Bearer ",
            b"Content-Length: ",
            b"chunked",
            b"HTTP/1.0",
        ),
        *(b"http://", b"[::1]", b"localhost", b"websocket", b"Upgrade, ", b"A: b\r\n" * 20, b"GET ", b"\n "),
    ),
    "authorization": (b"Bearer ", b"eyJhbGciOiJIUzI1NiJ9", b"=", b"-", b"_", b"\xc3\xa9", b"e30", b"."),
    "claims": (
        b"null",
        b"-1",
        b"1.0",
        b"9223372036854775808",
        b'"exp":',
        b'"aud":["',
        b"{",
        b"\xff",
        b"[" * 500,
    ),
    "frames": (
        *(
            b"\x81\x80\0\0\0\0",
            b"\x80\x80\0\0\0\0",
            b"\x01\x81\0\0\0\0a",
            b"\x89\xfe\x00\x7e",
            b"\x88\x82\0\0\0\0",
        ),
        *(b"\xfe\xff\xff", b"\xff\x00\x00\x00\x00\x01\x00\x00\x01", b"\x03\xe8", b"\xed\xa0\x80"),
    ),
    "messages": (
        *(
            b"null",
            b"true",
            b"-1",
            b"1.0",
            b"1e999",
            b"18446744073709551616",
            b'"\\ud800"',
            b"[[[[[[[[",
            b"NaN",
        ),
        *(
            b'"id":',
            b'"method":',
            b'"params":',
            b'"processId":"p",',
            b"{}",
            b"\xed\xa0\x80",
            b"\\u0000",
            b'"",',
        ),
    ),
}
_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), 0.5, 1e300),
    *(
        "",
        "p",
        "q",
        "\0",
        "\ud83d\ude42",
        "x" * 300,
        "file:///",
        "file:///%",
        "file:///%2e%2e/%00",
        "aGk",
        "aGk=",
    ),
    *([], {}, [None], ["p"], {"a": 1}, {"type": "x"}, [[0]] * 20),
]


def corpus(name: str) -> list[bytes]:
    """The entries of `corpus/NAME.txt`, one Python literal on each line."""
    lines = (CORPUS / f"{name}.txt").read_text("ascii").splitlines()
    return [ast.literal_eval(line) for line in lines]


def mutations(name: str, seed: int) -> Iterator[bytes]:
    """The corpus as it is, and then for ever something made of it."""
    entries = corpus(name)
    yield from entries
    rng = random.Random(f"{name} {seed}")
    damage = [*_DAMAGE, _change_value] if name in ("messages", "claims") else list(_DAMAGE)
    while True:
        data = rng.choice(entries)
        for _ in range(rng.choice((1, 1, 2, 3, 8))):
            data = rng.choice(damage)(data, rng, entries, _TOKENS[name])
        yield data[:MAX_BYTES] or b"\x00"


Damage = Callable[[bytes, random.Random, Sequence[bytes], Sequence[bytes]], bytes]


def _flip(data: bytes, rng: random.Random, *_: object) -> bytes:
    if not data:
        return b"\x00"
    index = rng.randrange(len(data))
    return data[:index] + bytes((data[index] ^ 1 << rng.randrange(8),)) + data[index + 1 :]


def _cut(data: bytes, rng: random.Random, *_: object) -> bytes:
    return data[: rng.randint(0, len(data))]


def _drop(data: bytes, rng: random.Random, *_: object) -> bytes:
    start = rng.randint(0, len(data))
    return data[:start] + data[start + rng.choice((1, 1, 2, 10)) :]


def _repeat(data: bytes, rng: random.Random, *_: object) -> bytes:
    start = rng.randint(0, len(data))
    stop = start + rng.randint(0, 40)
    return data[:stop] + data[start:stop] * rng.choice((1, 1, 2, 30)) + data[stop:]


def _insert(data: bytes, rng: random.Random, _: object, tokens: Sequence[bytes]) -> bytes:
    start = rng.randint(0, len(data))
    return data[:start] + rng.choice((rng.choice(tokens), rng.choice(_BYTES))) + data[start:]


def _overwrite(data: bytes, rng: random.Random, _: object, tokens: Sequence[bytes]) -> bytes:
    start = rng.randint(0, len(data))
    token = rng.choice((rng.choice(tokens), rng.choice(_BYTES)))
    return data[:start] + token + data[start + len(token) :]


def _splice(data: bytes, rng: random.Random, entries: Sequence[bytes], _: object) -> bytes:
    other = rng.choice(entries)
    return data[: rng.randint(0, len(data))] + other[rng.randint(0, len(other)) :]


def _append(data: bytes, rng: random.Random, entries: Sequence[bytes], _: object) -> bytes:
    return data + rng.choice(entries)


_DAMAGE: Sequence[Damage] = (_flip, _cut, _drop, _repeat, _insert, _overwrite, _splice, _append)


def _change_value(data: bytes, rng: random.Random, *_: object) -> bytes:
    """Put another value somewhere into a message, or take a member away, so that it stays JSON."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        return data
    place = message
    while isinstance(place, (dict, list)) and place:
        keys: list[Any] = list(place) if isinstance(place, dict) else list(range(len(place)))  # pyright: ignore
        key = rng.choice(keys)
        inner: Any = place[key]  # pyright: ignore
        if isinstance(inner, (dict, list)) and inner and rng.random() < 0.8:
            place = inner  # pyright: ignore
            continue
        if rng.random() < 0.1:
            del place[key]  # pyright: ignore
        else:
            place[key] = rng.choice(_VALUES)  # pyright: ignore
        break
    try:
        return json.dumps(message).encode()
    except RecursionError:
        return data
