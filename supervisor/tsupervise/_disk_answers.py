"""Answers that may be large, made in threads of the disk, and only when there is room for them to be sent."""

from __future__ import annotations

from collections.abc import Callable

from ._rows import LargeResult, Peer


def made_when_room(peer: Peer, make: Callable[[bytes, bytes], bytes]) -> LargeResult:
    """A result that waits for its turn: of what a peer asks for and does not read, little is made.

    Args:
        make: makes the whole response in a thread, given the beginning and the end of its envelope.
    """
    outbox = peer.outbox

    async def encode(head: bytes, tail: bytes) -> bytes:
        while True:
            await outbox.wait_for_reply_room()
            # Asked anew in the thread: thousands may have waited for the same room.
            answer = await peer.supervisor.disk.run(
                lambda: make(head, tail) if outbox.has_reply_room else None
            )
            if answer is not None:
                return answer

    return LargeResult(encode)
