"""What is left of a command that has run to its end: a plain value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that has ended, and all that it wrote. What `Client.run` returns."""

    argv: tuple[str, ...]
    exit_code: int
    """128 + n after signal n."""
    term_signal: int | None
    """The signal that ended it, if one did and the server says so."""
    stdout: bytes
    """On a terminal all of the output."""
    stderr: bytes
