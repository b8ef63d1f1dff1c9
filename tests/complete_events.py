"""All events of a process in the order of their numbers, whatever order they came in.

That the wire keeps this order is a promise of its own with its own tests; tests about what the events say
use this, and so hold for a server that sends the two streams of a process and its end from several threads.
"""

from __future__ import annotations

from wire import Event, Peer


async def until_complete(peer: Peer, process_id: str) -> list[Event]:
    """Wait until the closed event, and every event with a smaller number, has come."""
    await peer.until_closed(process_id)
    await peer.until(lambda: len(peer.events(process_id)) == max(e.seq for e in peer.events(process_id)))
    return sorted(peer.events(process_id), key=lambda event: event.seq)


def output_of(events: list[Event], stream: str | None = None) -> bytes:
    """The output of these events, joined; of one stream if named."""
    return b"".join(
        event.data for event in events if event.kind == "output" and stream in (None, event.params["stream"])
    )
