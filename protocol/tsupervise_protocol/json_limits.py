"""Limits on JSON text that ordinary decoders do not keep: values, nesting, duplicate members.

A decoder happily builds a million objects, or silently keeps the last of two members of one name. The
server checks before it builds anything. The text is known to be valid JSON in valid UTF-8 when it comes here.
"""

import json
import re
from typing import Any

from .errors import MalformedMessage

MAX_VALUES = 262_144
"""JSON values in one message: objects, arrays and scalars count 1 each, members' names do not."""

MAX_NESTING = 127
"""Containers inside one another, the message itself included."""

# A string (and whether a colon follows, which makes it a member's name), a bracket, or another scalar.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"(\s*+:)?|[\[{]|[\]}]|[^\s"\[\]{},:]++')


def check_limits(text: bytes) -> None:
    """Raise MalformedMessage if the JSON text is over a limit or names a member twice.

    Cost: for a small message a few microseconds. Brackets and commas inside strings can only make the
    two bounds too high, so a message that is under them is under the limits, and only others are counted.
    """
    opened = text.count(b"[") + text.count(b"{")
    if opened > MAX_NESTING or opened + text.count(b",") >= MAX_VALUES:
        _count_exactly(text)
    json.loads(text, object_pairs_hook=_unique, parse_int=_skip, parse_float=_skip)


def _count_exactly(text: bytes) -> None:
    # Stops at the first limit that is passed, so that a hostile message costs no more than a legal one.
    values = depth = 0
    for token in _TOKEN.finditer(text):
        first = token[0][:1]
        if first in b"]}":
            depth -= 1
            continue
        if token[1] is not None:
            continue
        values += 1
        if values > MAX_VALUES:
            raise MalformedMessage(f"the message exceeds the limit of {MAX_VALUES} JSON values")
        if first in b"[{":
            depth += 1
            if depth > MAX_NESTING:
                raise MalformedMessage(f"the message exceeds the limit of {MAX_NESTING} nested containers")


def _unique(members: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in members}) == len(members):
        return
    seen: set[str] = set()
    for name, _ in members:
        if name in seen:
            raise MalformedMessage(f"duplicate member {name[:100]!r}")
        seen.add(name)


def _skip(number: str) -> None:
    """Leave numbers unread: only names matter, and Python refuses integers of over 4,300 digits."""
