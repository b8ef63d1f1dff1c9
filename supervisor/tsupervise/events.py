"""What a client is told of one process: plain values, numbered without holes from 1."""

from __future__ import annotations

from dataclasses import dataclass

from tsupervise_protocol.messages import ExitReason, Stream, Usage


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes that the process wrote, as one read returned them: a character may be cut in two."""

    seq: int
    stream: Stream
    data: bytes


@dataclass(frozen=True, slots=True)
class Exited:
    """The process has ended. Output of its descendants, or a race, may still follow."""

    seq: int
    exit_code: int
    """128 + n after signal n."""
    term_signal: int | None = None
    """The signal that ended it, if one did and the server says so."""
    sandbox_denied: bool | None = None
    """Whether a sandbox seems to have stopped it; None only where the server could not be asked."""
    usage: Usage | None = None
    """What it has used, if the server says so."""
    reason: ExitReason | None = None
    """Why it ended, if the server says so."""


@dataclass(frozen=True, slots=True)
class Closed:
    """Nothing comes after this: the process has ended and so has all of its output."""

    seq: int


@dataclass(frozen=True, slots=True)
class Lost:
    """Output that this stream was too slow for, and that the server does not retain any more."""

    first_seq: int
    seq: int
    """The last number that is lost."""


Event = Output | Exited | Closed | Lost
