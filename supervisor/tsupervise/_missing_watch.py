"""Watches of paths that do not exist: each fires once, for one connection. No I/O."""

from __future__ import annotations

import trio


class MissingWatch:
    """Tells once when paths may have come into being. Made by `RemoteFiles.watch_missing`."""

    def __init__(self) -> None:
        self._fired = trio.Event()

    @property
    def is_watching(self) -> bool:
        """Whether the server still watches."""
        return not self._fired.is_set()

    async def wait(self) -> None:
        """Wait until something may have changed: look again then, and watch again.

        That is so as well when nobody watches any more: the connection was lost, a later watch has taken the
        place of this one, or the server could not watch to begin with.
        """
        await self._fired.wait()

    def fire(self) -> None:
        """Let everybody look."""
        self._fired.set()


class MissingWatches:
    """The watches of one connection, of which the server keeps the last."""

    def __init__(self) -> None:
        self._by_id: dict[int, MissingWatch] = {}

    def add(self, watch_id: int) -> MissingWatch:
        """One more watch: those before it are over."""
        self.end()
        watch = self._by_id[watch_id] = MissingWatch()
        return watch

    def fire(self, watch_id: int) -> None:
        """The server tells of one; another than those that are known is ignored."""
        if (watch := self._by_id.pop(watch_id, None)) is not None:
            watch.fire()

    def end(self) -> None:
        """Nobody watches any more."""
        for watch in self._by_id.values():
            watch.fire()
        self._by_id.clear()
