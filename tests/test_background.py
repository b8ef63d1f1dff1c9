"""A nursery that serves a body: how it begins and ends under cancellation."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tsupervise._background import open_background


@pytest.mark.parametrize("outlast", [False, True])
async def test_it_can_be_cancelled_while_it_opens(
    outlast: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """Whoever is cancelled already when the block begins gets out of it, and nothing is left running."""
    with trio.fail_after(1):
        with trio.CancelScope() as scope:
            scope.cancel()
            async with open_background(outlast_cancel=outlast):
                await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_tasks_that_outlast_a_cancel_serve_the_clean_up_of_the_body(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """They end with the block and not before."""
    asked, answered = trio.Event(), trio.Event()

    async def serve() -> None:
        await asked.wait()
        answered.set()
        await trio.sleep_forever()

    with trio.fail_after(1), trio.CancelScope() as scope:
        async with open_background(outlast_cancel=True) as tasks:
            tasks.start_soon(serve)
            try:
                scope.cancel()
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    asked.set()
                    await answered.wait()
    assert scope.cancelled_caught
