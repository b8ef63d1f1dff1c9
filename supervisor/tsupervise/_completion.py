"""What a shell may complete: names and uids of the daemon's processes, quickly or not at all."""

from __future__ import annotations

from collections import Counter

import trio

from tsupervise_protocol.messages import OperatorEntry

from ._discovery import DiscoveryFailed, find_url
from ._way_in import WayIn
from .client import connect
from .errors import TsuperviseError

PATIENCE_S = 1.0
"""Somebody has pressed Tab and waits."""


def known_processes(url: str | None, way_in: WayIn, beginning: str) -> list[tuple[str, str]]:
    """Names that begin like that, with what runs under each; uids of processes whose name others have, too.

    Without a daemon, or one that answers, there are none: nothing is said, for it would be said in the middle of
    a command line.
    """
    try:
        entries = trio.run(_list, url, way_in)
    except (TsuperviseError, DiscoveryFailed, ValueError):
        return []
    names = Counter(entry.process_id for entry in entries)
    found: list[tuple[str, str]] = []
    for entry in entries:
        for name in (entry.process_id, entry.uid):
            if name.startswith(beginning) and names.get(name, 1) == 1:
                found.append((name, " ".join(entry.argv)))
                break
    return found


async def _list(url: str | None, way_in: WayIn) -> list[OperatorEntry]:
    with trio.move_on_after(PATIENCE_S):
        async with connect(
            url or find_url(), client_name="tsupervise completion", recovery_s=0, **way_in
        ) as client:
            return await client.processes()
    return []
