"""The handler of `fs/walk`."""

from __future__ import annotations

import trio

from tsupervise_protocol.file_messages import WalkParams, WalkResult
from tsupervise_protocol.path_uri import file_uri

from ._disk import native_path, refuse_sandbox
from ._rows import Outcome, Peer, Row
from ._walk import check_walk_options, walk


def _walk(peer: Peer, params: WalkParams) -> Outcome:
    refuse_sandbox(params.sandbox)
    check_walk_options(params.options)
    root = native_path("path", params.path)

    async def run() -> WalkResult:
        # Listings are made only when there is room for them, and few at a time.
        async with peer.outbox.file_replies:
            await peer.outbox.wait_for_reply_room()
            return await peer.supervisor.disk.run(
                lambda: walk(root, file_uri(root), params.options, trio.from_thread.check_cancelled)
            )

    return run()


WALK_ROWS = {"fs/walk": Row(_walk, lane=lambda params: object(), holds_lane=False)}
