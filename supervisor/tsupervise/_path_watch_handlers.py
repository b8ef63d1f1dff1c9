"""The handler of `fs/watchMissing`, and the notification that it promises."""

from __future__ import annotations

from tsupervise_protocol.codec import encode_notification
from tsupervise_protocol.errors import ErrorCode, RpcError
from tsupervise_protocol.file_messages import (
    MissingChangedNotification,
    WatchMissingParams,
    WatchMissingResult,
)
from tsupervise_protocol.path_uri import ForeignPathError, PathUriError, parse_file_uri

from ._path_watch import MAX_PATHS
from ._rows import Continued, Outcome, Peer, Row


def _watch_missing(peer: Peer, params: WatchMissingParams) -> Outcome:
    _ = peer.session  # another connection may hold it by now
    uris = params.missing if params.present is None else [*params.missing, params.present]
    # Far too many are not even read: that would be seconds in which the loop does nothing else.
    paths = _native_paths(uris) if len(params.missing) <= MAX_PATHS else None
    watch = peer.watches.renew(params.watch_id)
    if watch is None or paths is None:
        return WatchMissingResult(watching=False)
    present = None if params.present is None else paths.pop()
    disk = peer.supervisor.disk

    async def begin() -> WatchMissingResult | Continued:
        watching = await watch.begin(disk, paths, present)
        answer = WatchMissingResult(watching=watching)
        return Continued(answer, tell) if watching else answer

    async def tell() -> None:
        if await watch.wait(disk):
            notification = MissingChangedNotification(watch_id=params.watch_id)
            peer.outbox.reply(encode_notification("fs/missingChanged", notification))

    return begin()


def _native_paths(uris: list[str]) -> list[bytes] | None:
    """The paths that a request names; None if one of them is of another system, where nothing can be watched."""
    try:
        return [parse_file_uri(uri) for uri in uris]
    except ForeignPathError:
        return None
    except PathUriError as error:
        raise RpcError(ErrorCode.INVALID_PARAMS, str(error)) from None


PATH_WATCH_ROWS = {"fs/watchMissing": Row(_watch_missing, lane=lambda params: object(), holds_lane=False)}
