"""The handler of `fs/walk`."""

from __future__ import annotations

import msgspec
import trio

from tsupervise_protocol.file_messages import WalkParams
from tsupervise_protocol.path_uri import PathUri

from ._disk import native_path, refuse_sandbox
from ._disk_answers import made_when_room
from ._rows import Outcome, Peer, Result, Row
from ._walk import check_walk_options, walk


def _walk(peer: Peer, params: WalkParams) -> Outcome:
    _ = peer.session  # another connection may hold it by now
    refuse_sandbox(params.sandbox)
    check_walk_options(params.options)
    root, uri = native_path("path", params.path), str(PathUri.parse(params.path))

    def make(head: bytes, tail: bytes) -> bytes:
        result = walk(root, uri, params.options, trio.from_thread.check_cancelled)
        return head + msgspec.json.encode(result) + tail

    async def run() -> Result:
        return made_when_room(peer, make)

    return run()


WALK_ROWS = {"fs/walk": Row(_walk, lane=lambda params: object(), holds_lane=False)}
