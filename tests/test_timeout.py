"""The time of a process and the reason of its end, with children that do as told and a clock that jumps."""

from __future__ import annotations

import signal

import trio
import trio.testing

from in_process import MemoryPeer, open_house

HOUR_MS = 3_600_000


def exit_of(peer: MemoryPeer) -> dict[str, object]:
    return next(event.params for event in peer.events if event.kind == "exited")


async def test_the_time_begins_with_the_start(autojump_clock: trio.testing.MockClock) -> None:
    """An hour after it, and not before, the process is killed and says why; its sibling goes on."""
    async with open_house() as house:
        peer = await house.connect()
        began = trio.current_time()
        (await peer.start("p", timeoutMs=HOUR_MS)).ok()
        (await peer.start("q")).ok()
        await peer.until_closed("p")
        assert trio.current_time() - began == HOUR_MS / 1000
        exited = exit_of(peer)
        assert (exited["processId"], exited["exitCode"], exited["reason"]) == ("p", 137, "timeout")
        assert not house.children[1].dead


async def test_nothing_waits_for_the_time_of_what_is_gone(autojump_clock: trio.testing.MockClock) -> None:
    """A process that ends before its time leaves no task behind."""
    async with open_house() as house:
        peer = await house.connect()
        await trio.testing.wait_all_tasks_blocked()
        before = trio.lowlevel.current_statistics().tasks_living
        (await peer.start("p", timeoutMs=HOUR_MS)).ok()
        house.children[0].end(3)
        await peer.until_closed("p")
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == before
        assert exit_of(peer)["reason"] == "exit"


async def test_the_output_that_is_held_open_ends_with_the_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The process has ended and said how; what holds its output is killed with it when the time is over."""
    async with open_house() as house:
        peer = await house.connect()
        (await peer.start("p", timeoutMs=HOUR_MS)).ok()
        house.children[0].die(0)
        await peer.until_closed("p")
        assert trio.current_time() >= HOUR_MS / 1000
        assert exit_of(peer)["reason"] == "exit"


async def test_an_end_of_its_own_is_no_termination(autojump_clock: trio.testing.MockClock) -> None:
    """It ended in the very moment when it was to be killed: how it ended counts, not what was meant to end it."""
    async with open_house() as house:
        peer = await house.connect()
        for process_id, status, reason in (
            ("code", (0, None), "exit"),
            ("signal", (128 + signal.SIGTERM, signal.SIGTERM), "signal"),
            ("killed", (128 + signal.SIGKILL, signal.SIGKILL), "terminated"),
        ):
            (await peer.start(process_id)).ok()
            child = house.children[-1]
            child.dead = True  # and deaf to the kill, though nobody has noticed yet
            assert (await peer.terminate(process_id)).ok() == {"running": True}
            child.die(*status)
            await peer.until_closed(process_id)
            (row,) = [
                row
                for row in (await peer.request("process/list")).ok()["processes"]
                if row["processId"] == process_id
            ]
            assert row["reason"] == reason


async def test_what_cannot_be_told_is_left_out(autojump_clock: trio.testing.MockClock) -> None:
    """A child that somebody else has reaped has neither a usage nor a reason."""
    async with open_house() as house:
        peer = await house.connect()
        (await peer.start("p")).ok()
        house.children[0].end(-1)
        await peer.until_closed("p")
        exited = exit_of(peer)
        assert exited["exitCode"] == -1
        assert not {"usage", "reason"} & {*exited, *(await peer.read("p")).ok()}
