"""A nursery for tasks that serve the body of a block, and that nobody outside the block hears of."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_background(*, outlast_cancel: bool) -> AsyncGenerator[trio.Nursery]:
    """Open a nursery whose tasks end with the block, and let the body's own error leave it bare.

    A plain nursery wraps the error of its body into a group, so that `except KeyError` around the block
    would not see a KeyError. The tasks must not raise: they record what went wrong where the body looks.

    Args:
        outlast_cancel: whether the tasks go on until the block ends even if it is cancelled from outside,
            for a body that cleans up by calls that need them; else they are cancelled along with it.
    """
    failure: BaseException | None = None
    try:
        # Its only child holds the nursery of the tasks, which is so no part of the body's scope.
        async with trio.open_nursery() as holder:
            tasks: trio.Nursery = await holder.start(_hold_tasks, outlast_cancel)
            try:
                yield tasks
            except (Exception, KeyboardInterrupt, SystemExit) as error:
                failure = error
            finally:
                tasks.cancel_scope.cancel()
    finally:
        # Also in place of the Cancelled that the nursery's end may have met: cancellation comes back at
        # the caller's next checkpoint, the error would not.
        if failure is not None:
            raise failure


async def _hold_tasks(shield: bool, task_status: trio.TaskStatus[trio.Nursery]) -> None:
    async with trio.open_nursery() as tasks:
        task_status.started(tasks)
        # Cancelled while it was opened, this task has not been handed over: shielded, it would never end.
        await trio.lowlevel.checkpoint_if_cancelled()
        tasks.cancel_scope.shield = shield
        await trio.sleep_forever()
