"""The body of one HTTP response on its way to one connection: numbered parts, and an end that says if it is all."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from tsupervise_protocol.codec import DeltaTemplate
from tsupervise_protocol.http_messages import MAX_DELTA_BYTES

from ._outbox import MAX_FEED_BYTES, Outbox, Source

DELTA_BYTES = 200
"""What a part takes while it waits, beside its bytes: many small ones are bounded as well."""


@dataclass(frozen=True, slots=True)
class _End:
    error: str | None


class BodyFeed(Source[bytes | _End]):
    """One streamed body.

    Args:
        outbox: of the connection.
        request_id: names the body.
        names: the names of the bodies on their way; its own is taken out when the end is, and not a moment later:
            who is told of the end may use it again.
    """

    __slots__ = ("_ended", "_names", "_request_id", "_seq", "_template")

    def __init__(self, outbox: Outbox, request_id: str, names: set[str]) -> None:
        super().__init__(outbox, outbox.bodies, MAX_FEED_BYTES)
        self._template = DeltaTemplate(request_id)
        self._request_id = request_id
        self._names = names
        self._seq = 0
        self._ended = trio.Event()

    async def send(self, data: bytes) -> None:
        """Queue bytes, wait until there is room for more; a checkpoint at any rate: the fast share the loop."""
        for start in range(0, len(data), MAX_DELTA_BYTES):
            self.put(data[start : start + MAX_DELTA_BYTES])
        await trio.lowlevel.checkpoint()
        while not self.has_room:
            await self.wait_for_room()

    async def end(self, error: str | None) -> None:
        """Queue the last message and wait until it has been taken.

        Args:
            error: why the body is not whole; None if it is.
        """
        self.put(_End(error))
        await self._ended.wait()

    def _cost(self, item: bytes | _End) -> int:
        return len(item) + DELTA_BYTES if isinstance(item, bytes) else 0

    def _length(self, item: bytes | _End) -> int:
        return len(item) * 4 // 3 if isinstance(item, bytes) else 0

    def _encode(self, item: bytes | _End) -> bytes:
        self._seq += 1
        if isinstance(item, bytes):
            return self._template.encode(self._seq, item)
        self._names.discard(self._request_id)
        self._ended.set()
        return self._template.encode_end(self._seq, item.error)
