"""A supervisor inside this process, joined to a client by an in-memory channel: no socket, no daemon."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from ._background import open_background
from ._channel import memory_channels
from ._connection import Connection
from ._settings import Settings
from ._supervisor import open_supervisor_core
from .client import Client, open_client


@asynccontextmanager
async def open_supervisor(settings: Settings | None = None) -> AsyncGenerator[Client]:
    """Supervise processes here, for the time of the block; at its end every one of them is killed.

    Args:
        settings: times and bounds; the defaults of the daemon if None.

    Yields:
        A client, the same as `connect` gives for a daemon.

    Raises:
        CannotSpill: the settings name a directory for older output that cannot be used.
    """
    async with (
        open_supervisor_core(settings, outlast_cancel=True) as supervisor,
        open_background(outlast_cancel=True) as tasks,
    ):
        ours, theirs = memory_channels()
        tasks.start_soon(Connection(supervisor, theirs).run)
        async with open_client(ours) as client:
            yield client
