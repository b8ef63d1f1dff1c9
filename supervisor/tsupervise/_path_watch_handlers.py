"""The handler of `fs/watchMissing`, and the notification that it promises."""

from __future__ import annotations

from tsupervise_protocol.codec import encode_notification
from tsupervise_protocol.file_messages import (
    MissingChangedNotification,
    WatchMissingParams,
    WatchMissingResult,
)

from ._disk import native_path
from ._rows import Continued, Outcome, Peer, Row


def _watch_missing(peer: Peer, params: WatchMissingParams) -> Outcome:
    _ = peer.session  # another connection may hold it by now
    missing = [native_path("missing", uri) for uri in params.missing]
    present = None if params.present is None else native_path("present", params.present)
    watch = peer.watches.renew(params.watch_id)
    if watch is None:
        return WatchMissingResult(watching=False)
    disk = peer.supervisor.disk

    async def begin() -> WatchMissingResult | Continued:
        watching = await watch.begin(disk, missing, present)
        answer = WatchMissingResult(watching=watching)
        return Continued(answer, tell) if watching else answer

    async def tell() -> None:
        if await watch.wait(disk):
            notification = MissingChangedNotification(watch_id=params.watch_id)
            peer.outbox.reply(encode_notification("fs/missingChanged", notification))

    return begin()


PATH_WATCH_ROWS = {"fs/watchMissing": Row(_watch_missing, lane=lambda params: object(), holds_lane=False)}
