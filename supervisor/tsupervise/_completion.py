"""What a shell may complete: names and uids of the daemon's processes, and paths there, quickly or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from ._discovery import DiscoveryFailed, find_url
from ._way_in import WayIn
from .client import Client, connect
from .errors import TsuperviseError

T = TypeVar("T")

PATIENCE_S = 1.0
"""Somebody has pressed Tab and waits."""


def known_processes(url: str | None, way_in: WayIn, beginning: str) -> list[tuple[str, str]]:
    """Names that begin like that, with what runs under each; uids of processes whose name others have, too.

    Without a daemon, or one that answers, there are none: nothing is said, for it would be said in the middle of
    a command line.
    """
    entries = _ask(url, way_in, lambda client: client.processes())
    names = Counter(entry.process_id for entry in entries)
    found: list[tuple[str, str]] = []
    for entry in entries:
        for name in (entry.process_id, entry.uid):
            if name.startswith(beginning) and names.get(name, 1) == 1:
                found.append((name, " ".join(entry.argv)))
                break
    return found


def known_paths(url: str | None, way_in: WayIn, beginning: str) -> list[str]:
    """Paths at the daemon's machine that begin like that; a directory has a slash at its end."""
    directory, slash, _ = beginning.rpartition("/")
    if not slash:
        return ["/"]
    entries = _ask(url, way_in, lambda client: client.files.list_directory(directory or "/"))
    paths = [f"{directory}/{entry.name}{'/' if entry.is_directory else ''}" for entry in entries]
    return [path for path in paths if path.startswith(beginning)]


def _ask(url: str | None, way_in: WayIn, question: Callable[[Client], Awaitable[list[T]]]) -> list[T]:
    try:
        return trio.run(_ask_in_time, url, way_in, question)
    except (TsuperviseError, DiscoveryFailed, ValueError):
        return []


async def _ask_in_time(
    url: str | None, way_in: WayIn, question: Callable[[Client], Awaitable[list[T]]]
) -> list[T]:
    with trio.move_on_after(PATIENCE_S):
        async with connect(
            url or find_url(), client_name="tsupervise completion", recovery_s=0, **way_in
        ) as client:
            return await question(client)
    return []
