"""A nursery for tasks that serve the body of a block, and that nobody outside the block hears of."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_background() -> AsyncGenerator[trio.Nursery]:
    """Open a nursery whose tasks end with the block, and let the body's own error leave it bare.

    A plain nursery wraps the error of its body into a group, so that `except KeyError` around a block
    would not see a KeyError. The tasks must not raise: they record what went wrong where the body looks.
    """
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except (Exception, KeyboardInterrupt, SystemExit) as error:
                failure = error
            finally:
                nursery.cancel_scope.cancel()
    finally:
        # Also in place of the Cancelled that the nursery's end may have met: cancellation comes back at
        # the caller's next checkpoint, the error would not.
        if failure is not None:
            raise failure
