"""The ways to a client, so that one set of tests runs over all of them: a daemon, the reference, no daemon."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio

import tsupervise

PATIENCE_S = 20.0
"""A bound on a hang, far above what any test takes."""


@dataclass(frozen=True)
class Door:
    """Where a client comes from; `url` is None for a supervisor in this process."""

    target: str
    url: str | None

    @property
    def is_ours(self) -> bool:
        return self.target != "reference"

    @asynccontextmanager
    async def open(self, **options: Any) -> AsyncGenerator[tsupervise.Client]:
        """An async client, with a bound on the block: one that waits for ever must fail."""
        opening = tsupervise.connect(self.url, **options) if self.url else tsupervise.open_supervisor()
        with trio.fail_after(PATIENCE_S):
            async with opening as client:
                yield client

    def open_sync(self) -> tsupervise.sync.Client:
        return tsupervise.sync.connect(self.url) if self.url else tsupervise.sync.open_supervisor()
