"""`tsupervise logs`: what a process has written, and writes."""

from __future__ import annotations

import msgspec

from tsupervise_protocol.base64_text import encode_base64_str
from tsupervise_protocol.messages import Stream

from ._at_daemon import find_process
from ._background import open_background
from ._recent_output import RecentEvents, Tail
from ._relay import Outage, print_event, say
from .client import Client
from .events import Closed, Event, Exited, Output


class OutputLine(msgspec.Struct, frozen=True, rename="camel", tag_field="event", tag="output"):
    """One line of `--json`; the names are those of the wire."""

    seq: int
    stream: Stream
    chunk: str
    """base64"""


class ExitedLine(msgspec.Struct, frozen=True, rename="camel", tag_field="event", tag="exited"):
    seq: int
    exit_code: int
    term_signal: int | None


class ClosedLine(msgspec.Struct, frozen=True, rename="camel", tag_field="event", tag="closed"):
    seq: int


class LostLine(msgspec.Struct, frozen=True, rename="camel", tag_field="event", tag="lost"):
    """Numbers whose output nobody has any more."""

    first_seq: int
    seq: int


async def print_logs(client: Client, name: str, *, lines: int | None, follow: bool, as_json: bool) -> int:
    """Print the output of a process, to stdout and stderr as the process did.

    Args:
        client: at the daemon.
        name: of the process, or its uid.
        lines: how many of the last; all that is retained if None.
        follow: whether to go on until the process is closed.
        as_json: whether to print a JSON object for each event instead, to stdout.
    """
    process = await find_process(client, name)
    tail = None if lines is None else Tail(lines)
    events = RecentEvents(process, tail, follow=follow)
    async with open_background(outlast_cancel=False) as nursery:
        nursery.start_soon(Outage(client, "press Ctrl-C to give up").watch)
        async for event in events:
            if as_json:
                await say(msgspec.json.encode(_line(event)) + b"\n")
            else:
                await print_event(event)
    return 0


def _line(event: Event) -> msgspec.Struct:
    match event:
        case Output(seq, stream, data):
            return OutputLine(seq, stream, encode_base64_str(data))
        case Exited(seq, exit_code, term_signal):
            return ExitedLine(seq, exit_code, term_signal)
        case Closed(seq):
            return ClosedLine(seq)
        case _:
            return LostLine(event.first_seq, event.seq)
