"""The methods that tell of the executor's configuration and of what is in its capability roots."""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial
from typing import Any

import msgspec
import trio

from tsupervise_protocol.environment_messages import (
    DiscoveredRoot,
    DiscoverParams,
    DiscoverResult,
    EnvironmentConfigReadParams,
)
from tsupervise_protocol.errors import ErrorCode, RpcError
from tsupervise_protocol.messages import Message
from tsupervise_protocol.path_uri import PathUri, PathUriError

from ._capability_roots import MAX_ROOTS, discover
from ._disk import Disk, native_path, refuse_sandbox
from ._environment_config import read_environment_config
from ._rows import LargeResult, Outcome, Peer, Row

ROOTS_AT_ONCE = 8
"""How many roots of a request are searched at a time: one that hangs does not keep the others from it."""

RESULT_BYTES = 64 << 20
"""Once an answer has so many bytes of files no further root is searched for it."""


def _read_environment_config(peer: Peer, params: EnvironmentConfigReadParams) -> Outcome:
    _ = peer.session  # another connection may hold it by now
    native_path("cwd", params.cwd, foreign=ErrorCode.INVALID_PARAMS)
    supervisor = peer.supervisor

    async def read() -> Message:
        await peer.outbox.wait_for_reply_room()
        return await supervisor.disk.run(partial(read_environment_config, params, supervisor.inherited))

    return read()


def _discover(peer: Peer, params: DiscoverParams) -> Outcome:
    _ = peer.session
    if len(params.roots) > MAX_ROOTS:
        text = f"capability root discovery takes at most {MAX_ROOTS} roots, got {len(params.roots)}"
        raise RpcError(ErrorCode.INVALID_REQUEST, text)
    roots: list[tuple[str, PathUri]] = []
    for index, root in enumerate(params.roots):
        refuse_sandbox(root.sandbox)
        try:
            roots.append((root.id, PathUri.parse(root.path)))
        except PathUriError as error:
            raise RpcError(ErrorCode.INVALID_PARAMS, f"roots[{index}].path: {error}") from None
    disk, outbox = peer.supervisor.disk, peer.outbox

    async def search() -> LargeResult:
        await outbox.wait_for_reply_room()
        # Not in its turn among the large answers: a root that hangs would hold them up.
        result = DiscoverResult(roots=await discover_all(disk, roots))

        async def encode(head: bytes, tail: bytes) -> bytes:
            async with outbox.huge_reply:
                await outbox.wait_for_huge_turn()
                return await disk.run(lambda: head + msgspec.json.encode(result) + tail)

        return LargeResult(encode)

    return search()


async def discover_all(disk: Disk, roots: list[tuple[str, PathUri]]) -> list[DiscoveredRoot]:
    found: dict[int, DiscoveredRoot] = {}
    waiting = list(reversed(list(enumerate(roots))))
    total = 0

    async def search() -> None:
        nonlocal total
        while waiting:
            index, (root_id, root) = waiting.pop()
            if total >= RESULT_BYTES:
                text = f"the answer has {RESULT_BYTES} bytes of files already: ask for {root} by itself"
                found[index] = DiscoveredRoot(id=root_id, path=str(root), error=text)
                continue
            found[index] = await disk.run(partial(discover, root_id, root, trio.from_thread.check_cancelled))
            total += _size(found[index])

    # Children of this nursery: as many searchers as may be at a time.
    async with trio.open_nursery() as nursery:
        for _ in range(min(ROOTS_AT_ONCE, len(roots))):
            nursery.start_soon(search)
    return [root for _, root in sorted(found.items())]


def _size(root: DiscoveredRoot) -> int:
    """How many bytes of files an answer has of a root, about."""
    plugin = root.plugin
    files = [
        *root.namespace_manifests,
        *(file for skill in root.skills for file in (skill.instructions, skill.metadata)),
        *((plugin.mcp_config, plugin.apps_config) if plugin else ()),
    ]
    return sum(len(file.contents) for file in files if file)


def _in_no_order(params: Any) -> Hashable:
    return object()


ENVIRONMENT_ROWS: dict[str, Row] = {
    "environmentConfig/read": Row(_read_environment_config, lane=_in_no_order, holds_lane=False),
    # One at a time: what is found waits in memory for its turn to be sent.
    "capabilityRoots/discoverV1": Row(_discover, lane=lambda params: "discovery"),
}
