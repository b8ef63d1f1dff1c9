"""The keys that leave an attached process running: how they are written, and where they are among what is typed.

Pure: bytes in, bytes out.
"""

from __future__ import annotations

DEFAULT_KEYS = "ctrl-p,ctrl-q"
"""As in other tools that attach."""


class BadKeys(ValueError):
    """A text that names no keys."""


def parse_keys(text: str) -> bytes:
    """The bytes that a terminal sends for keys such as `ctrl-p,ctrl-q`, `ctrl-]` or `~,.`.

    Raises:
        BadKeys: with what is wrong.
    """
    return b"".join(_parse_key(key) for key in text.split(","))


def _parse_key(key: str) -> bytes:
    prefix, _, last = key.rpartition("-")
    if prefix.lower() == "ctrl" and len(last) == 1:
        code = ord(last.upper())
        if ord("@") <= code <= ord("_"):
            return bytes([code - ord("@")])
    elif len(key) == 1 and key.isascii() and key.isprintable():
        return key.encode()
    raise BadKeys(
        f"{key!r} is no key: write one character, or ctrl- and one of a to z @ [ \\ ] ^ _, "
        f"with a comma between two keys, as in {DEFAULT_KEYS}"
    )


def keys_text(keys: bytes) -> str:
    """The keys as a person reads them: `ctrl-p ctrl-q`."""
    return " ".join(chr(key) if key >= 0x20 else f"ctrl-{chr(key + 0x40).lower()}" for key in keys)


class DetachKeys:
    """Looks for a sequence of keys in all that is typed.

    Args:
        sequence: the bytes of the keys, at least one.
    """

    def __init__(self, sequence: bytes) -> None:
        assert sequence, "no keys are no way out"
        self._sequence = sequence
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """Take what was typed.

        Returns:
            What is for the process, and whether the keys were among it; then what came after them is
            dropped. What may be the beginning of the sequence is held back until it is clear what it is.
        """
        data = self._held + data
        before, found, _ = data.partition(self._sequence)
        if found:
            self._held = b""
            return before, True
        length = next(
            length
            for length in range(min(len(self._sequence) - 1, len(data)), -1, -1)
            if data.endswith(self._sequence[:length])
        )
        self._held = data[len(data) - length :]
        return data[: len(data) - length], False
