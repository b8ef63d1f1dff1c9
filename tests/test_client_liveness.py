"""A client whose server falls silent, takes nothing, or leaves questions open: in virtual time, over no socket."""

from __future__ import annotations

import math

import pytest
import trio
import trio.testing

from scripted_server import Script, connections, expect_catch_up, resume, scripted_client, state
from tsupervise import Client, Closed, ConnectionLost, Event, Exited, Output, connect
from tsupervise._calls import IN_ORDER_CALLS
from tsupervise._event_order import MAX_EVENTS
from tsupervise._lifeline import CATCH_UP_S
from tsupervise._websocket_client import PING_TICK, SILENCE_S, SILENT_TICKS
from tsupervise_protocol.messages import ReadParams

GONE = f"silent for {SILENCE_S:g} s and answers no ping"

TICK_S = SILENCE_S / SILENT_TICKS

HOUR_S = 3600.0

PING = 0x89
"""The first byte of a ping frame (RFC 6455, 5.2)."""


async def test_a_server_that_falls_silent_is_pinged_and_then_given_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """After a third of its time it gets a ping, after all of it every call fails with one clear reason."""
    pinged_at: list[float] = []

    async def play(script: Script) -> None:
        await script.handshake()
        await script.expect("environment/status")
        script.ear.is_deaf = True
        silent.set()
        try:
            await trio.sleep_forever()
        finally:
            pinged_at.extend(at for at, data in script.ear.unheard if data[0] == PING)

    silent = trio.Event()
    async with scripted_client(play) as client:
        with pytest.raises(ConnectionLost, match=GONE):
            await client.call("environment/status")
        now = trio.current_time()
        assert SILENCE_S <= now <= SILENCE_S + TICK_S
        with pytest.raises(ConnectionLost, match=GONE):
            await client.start(["true"])
    assert pinged_at == [(1 + PING_TICK) * TICK_S], "the handshake was heard in the first tick"


async def test_a_server_that_answers_pings_may_think_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    """A call that takes an hour is waited for, if something is heard meanwhile."""

    async def play(script: Script) -> None:
        await script.handshake()
        request = await script.expect("environment/status")
        await trio.sleep(HOUR_S)
        await script.answer(request, {"status": "at last"})
        await script.until_gone()

    async with scripted_client(play) as client:
        assert (await client.call("environment/status")).status == "at last"


@pytest.mark.parametrize("pinging", [False, True], ids=["mute", "pinging"])
async def test_a_server_that_takes_nothing_is_given_up(
    autojump_clock: trio.testing.MockClock, pinging: bool
) -> None:
    """A call that cannot even be sent ends like any other, and a ping that cannot be answered changes nothing."""

    async def play(script: Script) -> None:
        await script.handshake()
        await script.start()
        script.ear.is_deaf = script.ear.is_stuck = True
        if pinging:
            await trio.sleep(SILENCE_S / 2)
            with trio.move_on_after(1):
                await script.ws.ping()
        await trio.sleep_forever()

    async with scripted_client(play) as client:
        process = await client.start(["cat"], pipe_stdin=True)
        with pytest.raises(ConnectionLost, match=GONE):
            await process.write(bytes(1_000_000))


async def test_the_silence_of_a_client_that_does_not_listen_does_not_count(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A lossless process may be read an hour late: what the server said meanwhile was not heard, but is there."""
    count = 3 * MAX_EVENTS

    async def play(script: Script) -> None:
        await script.handshake()
        p = await script.start()
        for seq in range(1, count + 1):
            await script.output(p, seq)
        await script.exited(p, count + 1)
        await script.closed(p, count + 2)
        await script.until_gone()

    async with scripted_client(play) as client:
        process = await client.start(["yes"], lossless=True)
        await trio.sleep(HOUR_S)
        assert [event.seq async for event in process.events()] == list(range(1, count + 3))


@pytest.mark.parametrize(("calls", "patience_s"), [(2, 0.0), (IN_ORDER_CALLS, 100.0)])
async def test_a_server_that_does_one_thing_at_a_time_may_be_busy(
    autojump_clock: trio.testing.MockClock, calls: int, patience_s: float
) -> None:
    """With a long queue behind a read that waits, the silence may last as long as that read; else it may not."""

    async def play(script: Script) -> None:
        await script.handshake()
        for _ in range(calls):
            await script.receive()
        script.ear.is_deaf = True
        await trio.sleep_forever()

    async def ask(client: Client) -> None:
        with pytest.raises(ConnectionLost, match=GONE):
            await client.call("environment/status")

    async with scripted_client(play) as client, trio.open_nursery() as nursery:
        for _ in range(calls - 1):
            nursery.start_soon(ask, client)
        with pytest.raises(ConnectionLost, match=GONE):
            await client.call("process/read", ReadParams(process_id="p", wait_ms=100_000))
        now = trio.current_time()
        assert patience_s + SILENCE_S <= now <= patience_s + SILENCE_S + TICK_S


async def test_time_that_the_client_slept_through_does_not_count(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A suspended machine, or a loop that was held up for an hour, finds its connection as it was."""

    async def play(script: Script) -> None:
        await script.handshake()
        for _ in range(SILENT_TICKS):
            autojump_clock.jump(HOUR_S)
            await trio.testing.wait_all_tasks_blocked()
        await script.answer(await script.expect("environment/status"), {"status": "ready"})
        await script.until_gone()

    async with scripted_client(play) as client:
        assert (await client.call("environment/status")).status == "ready"


async def test_a_server_that_falls_silent_is_come_back_to(autojump_clock: trio.testing.MockClock) -> None:
    """The silence ends the connection and not the client: the next one goes on where that was."""

    async def first(script: Script) -> None:
        await script.handshake()
        await script.output(await script.start(), 1)
        script.ear.is_deaf = True
        await trio.sleep_forever()

    async def second(script: Script) -> None:
        await resume(script)
        await script.answer(await expect_catch_up(script, "p", 1), state(3, 2))
        await script.exited("p", 3)
        await script.closed("p", 4)
        await script.until_gone()

    async with scripted_client(connections(first, second), recovery_s=45) as client:
        process = await client.start(["true"], process_id="p")
        events: list[Event] = [event async for event in process.events()]
    assert events == [
        *(Output(1, "stdout", b"1\n"), Output(2, "stdout", b"x"), Exited(3, 0, None, False), Closed(4))
    ]


async def test_a_server_may_be_silent_for_ever_if_that_is_wanted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """With an infinite patience nothing is pinged, and nobody is given up."""

    async def play(script: Script) -> None:
        await script.handshake()
        request = await script.expect("environment/status")
        script.ear.is_deaf = True
        await trio.sleep(HOUR_S)
        assert PING not in [data[0] for _, data in script.ear.unheard]
        await script.answer(request, {"status": "ready"})
        await trio.sleep_forever()

    async with scripted_client(play, silence_s=math.inf) as client:
        assert (await client.call("environment/status")).status == "ready"


@pytest.mark.parametrize("silence_s", [0, -1, math.nan])
async def test_a_patience_that_is_none_is_refused(silence_s: float) -> None:
    """The error says what would do, before anything is opened."""
    with pytest.raises(ValueError, match="must be above 0"):
        async with connect("ws://127.0.0.1:1", silence_s=silence_s):
            pass


@pytest.mark.case(104)
async def test_an_exit_does_not_wait_for_ever_for_a_word_on_the_sandbox(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A server that lives and does not answer the one question leaves that open, and the end of the process not."""

    async def play(script: Script) -> None:
        await script.handshake()
        p = await script.start()
        await script.exited(p, 1, sandboxDenied=None)
        await script.closed(p, 2)
        await trio.sleep_forever()

    async with scripted_client(play) as client:
        process = await client.start(["true"])
        assert [event async for event in process.events()] == [Exited(1, 0), Closed(2)]


async def test_a_server_that_leaves_the_catching_up_open_is_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """An attempt that gets no answer to what was missed fails in time for the next one, in the same outage."""

    async def first(script: Script) -> None:
        await script.handshake()
        await script.start()

    async def silent(script: Script) -> None:
        await resume(script)
        await expect_catch_up(script, "p", 0)
        await script.until_gone()

    async def last(script: Script) -> None:
        await resume(script)
        await script.answer(await expect_catch_up(script, "p", 0), state(3, exit_code=0, closed=True))
        await script.until_gone()

    async with scripted_client(connections(first, silent, silent, last), recovery_s=45) as client:
        process = await client.start(["true"], process_id="p")
        assert await process.wait() == 0
        assert 2 * CATCH_UP_S <= trio.current_time() < 45


async def test_a_server_that_never_tells_what_was_missed_fails_the_client(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """When the time to come back is over, everybody hears which answer was missing."""

    async def first(script: Script) -> None:
        await script.handshake()
        await script.start()

    async def silent(script: Script) -> None:
        await resume(script)
        await trio.sleep_forever()

    async with scripted_client(connections(first, *[silent] * 9), recovery_s=40) as client:
        process = await client.start(["true"], process_id="p")
        with pytest.raises(
            ConnectionLost, match="gave up after 40 s: the server does not tell what 'p' has done"
        ):
            await process.wait()
