"""The client over a connection that fails: against real servers behind a proxy that cuts, and against scripts."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import random
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import pytest
import trio
import trio.testing
import trio_websocket

import tsupervise._lifeline
import tsupervise._remote_process
from daemons import Daemon, command_of
from fault_proxy import Direction, FaultProxy, How, fault_proxy
from gates import gate_at
from scripted_server import Script, connections, expect_catch_up, resume, scripted_server, state
from tsupervise import (
    Client,
    Closed,
    ConnectFailed,
    ConnectionLost,
    Event,
    Exited,
    OutcomeUnknown,
    Output,
    ProcessFailed,
    RemoteProcess,
    ServerRefused,
    connect,
    open_client,
)
from tsupervise._channel import CloseCode, MemoryChannel, memory_channels
from tsupervise_protocol.messages import ReadParams

PATIENCE_S = 30.0

OUTAGE_S = 0.3


@asynccontextmanager
async def connected_through_proxy(
    daemon: Daemon, **options: Any
) -> AsyncGenerator[tuple[Client, FaultProxy]]:
    """A client whose connection a test can cut, with a bound on the block."""
    with trio.fail_after(PATIENCE_S):
        async with fault_proxy(daemon.address) as proxy, connect(proxy.url, **options) as client:
            yield client, proxy


async def collect(process: RemoteProcess) -> list[Event]:
    return [event async for event in process.events()]


def joined(events: list[Event]) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, Output))


def assert_complete(events: list[Event]) -> None:
    """Numbered from 1 without holes, one exit, closed last."""
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert sum(isinstance(event, Exited) for event in events) == 1
    assert isinstance(events[-1], Closed)


async def until_read(process: RemoteProcess, size: int) -> bytes:
    """The first `size` bytes of output."""
    data = b""
    async for event in process.events():
        if isinstance(event, Output):
            data += event.data
            if len(data) >= size:
                return data
    raise AssertionError(f"closed after {data!r}")


async def until_over(client: Client, process_id: str) -> None:
    """Wait until the server has no such process that runs."""
    while True:
        try:
            answer = await client.call("process/read", ReadParams(process_id=process_id, wait_ms=50))
        except ServerRefused as refusal:
            if "unknown process id" in refusal.message:
                return
        else:
            if answer.exited:
                return


# --- real servers behind a proxy that cuts ---------------------------------------------------------------


@pytest.mark.case(109)
@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_an_outage_is_no_event(daemon: Daemon, tmp_path: Path, how: How) -> None:
    """Output, exit and close that fall into an outage arrive complete, in order and once, at the same stream."""
    with gate_at(tmp_path) as gate:
        script = f"echo before; read x <{gate.path}; echo during; echo more >&2; exit 5"
        async with connected_through_proxy(daemon) as (client, proxy):
            session_id = client.session_id
            async with client.open_process(["sh", "-c", script]) as process:
                stream = process.events()
                events = [await anext(stream)]
                proxy.cut(OUTAGE_S, how)
                gate.open()
                events += [event async for event in stream]
                assert await process.wait() == 5
                assert_complete(events)
                assert joined(events).split()[0] == b"before"
                assert sorted(joined(events).split()) == [b"before", b"during", b"more"]
                assert await collect(process) == events
            assert client.session_id == session_id
            assert proxy.refused > 0, "there was an outage"
            assert proxy.carried == 2, "and one connection after it"


@pytest.mark.case(109)
async def test_many_processes_all_catch_up(daemon: Daemon, tmp_path: Path) -> None:
    """Each of several processes that go on through an outage is complete after it, a lossless one too."""
    script = "i=0; while [ $i -lt 40 ]; do echo $i; i=$((i+1)); sleep 0.01; done"
    async with connected_through_proxy(daemon) as (client, proxy):
        processes = [await client.start(["sh", "-c", script], lossless=number == 0) for number in range(8)]
        await until_read(processes[7], 1)
        proxy.cut(OUTAGE_S)
        for process in processes:
            events = await collect(process)
            assert_complete(events)
            assert joined(events).split() == [b"%d" % number for number in range(40)]


@pytest.mark.case(106)
async def test_a_start_whose_answer_is_lost_leaves_nothing_behind(daemon: Daemon, tmp_path: Path) -> None:
    """The caller hears of it at once, the start is not repeated, and what it started is terminated."""
    pids = tmp_path / "pids"
    async with connected_through_proxy(daemon) as (client, proxy):
        proxy.cut_behind_next(0.0)
        with pytest.raises(OutcomeUnknown, match="process/start"):
            await client.start(["sh", "-c", f"echo $$ >>{pids}; exec sleep 60"], process_id="p")
        await until_over(client, "p")
        started = pids.read_text().split() if pids.exists() else []
        assert len(started) <= 1
        assert not any(map(is_alive, started))


def is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.case(108)
@pytest.mark.parametrize("seen", [True, False], ids=["seen", "unseen"])
async def test_a_write_in_flight_arrives_once(daemon: Daemon, seen: bool) -> None:
    """Whether the server saw it before the cut or not, the process reads the bytes once, and in order."""
    async with (
        connected_through_proxy(daemon) as (client, proxy),
        client.open_process(["cat"], pipe_stdin=True) as process,
    ):
        await process.write(b"first ")
        if seen:
            proxy.cut_behind_next(0.1)
        else:
            proxy.cut_after("forth", 0, for_s=0.1)
        await process.write(b"second ")
        await process.write(b"third")
        assert await until_read(process, 18) == b"first second third"
        assert proxy.carried == 2


@pytest.mark.case(108)
@pytest.mark.ours_only("the reference cannot close the stdin of a process")
@pytest.mark.parametrize("seen", [True, False], ids=["seen", "unseen"])
async def test_the_end_of_input_in_flight_arrives(daemon: Daemon, seen: bool) -> None:
    """A close of stdin that was under way at a cut has happened afterwards, and is no error."""
    async with (
        connected_through_proxy(daemon) as (client, proxy),
        client.open_process(["cat"], pipe_stdin=True) as process,
    ):
        await process.write(b"all")
        if seen:
            proxy.cut_behind_next(0.1)
        else:
            proxy.cut_after("forth", 0, for_s=0.1)
        await process.close_stdin()
        assert joined(await collect(process)) == b"all"


@pytest.mark.case(108)
async def test_a_read_in_flight_is_repeated(daemon: Daemon, tmp_path: Path) -> None:
    """A read that waits for news at the server gets them over a cut."""
    with gate_at(tmp_path) as gate:
        script = f"read x <{gate.path}; echo news; exec sleep 60"
        async with (
            connected_through_proxy(daemon) as (client, proxy),
            client.open_process(["sh", "-c", script]) as process,
        ):
            proxy.cut_behind_next(0.1)
            proxy.when_carrying = gate.open
            answer = await process.read(wait_ms=10_000)
            assert [chunk.chunk for chunk in answer.chunks] == ["bmV3cwo="]
            assert proxy.carried == 2


@pytest.mark.case(111)
async def test_a_process_whose_output_is_retained_no_more_fails_alone(daemon: Daemon, tmp_path: Path) -> None:
    """It is terminated and its streams say why; the other one, and the connection, are untouched."""
    with gate_at(tmp_path) as gate, gate_at_in(tmp_path / "done") as done:
        flood = f"echo x; read x <{gate.path}; head -c 3000000 /dev/zero; echo >{done.path}; exec sleep 60"
        async with (
            connected_through_proxy(daemon) as (client, proxy),
            client.open_process(["cat"], pipe_stdin=True) as fine,
        ):
            lost = await client.start(["sh", "-c", flood], process_id="lost")
            await until_read(lost, 2)
            proxy.cut(60.0)
            gate.open()
            await done.until_opened()
            proxy.cut(0.0)
            with pytest.raises(ProcessFailed, match="no longer retained while recovering through sequence"):
                await collect(lost)
            await fine.write(b"hello")
            assert await until_read(fine, 5) == b"hello"
            await until_over(client, "lost")
            assert (await client.call("process/read", ReadParams(process_id="lost"))).exit_code == 137


def gate_at_in(directory: Path) -> Any:
    directory.mkdir()
    return gate_at(directory)


@pytest.mark.case(112, 115)
async def test_an_outage_beyond_the_budget_fails_everything_alike(daemon: Daemon) -> None:
    """Calls and streams that wait, and whatever is tried later, get one ConnectionLost that says why."""
    texts: list[str] = []

    async def note(call: Callable[[], Awaitable[Any]]) -> None:
        with pytest.raises(ConnectionLost) as caught:
            await call()
        texts.append(str(caught.value))

    async with connected_through_proxy(daemon, recovery_s=0.3) as (client, proxy):
        process = await client.start(["cat"], pipe_stdin=True)
        proxy.cut(60.0)
        await trio.testing.wait_all_tasks_blocked(0.02)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(note, lambda: collect(process))
            nursery.start_soon(note, process.wait)
            nursery.start_soon(note, lambda: process.write(b"x"))
            nursery.start_soon(note, lambda: client.start(["true"]))
        await note(process.terminate)
        await note(lambda: client.start(["true"]))
        assert proxy.refused > 1, "it tried more than once"
        assert client.is_lost
    assert len(texts) == 6
    assert len(set(texts)) == 1
    assert texts[0].startswith("the connection is lost: ")
    assert "could not be resumed: gave up after 0.3 s: " in texts[0]


@pytest.mark.case(113)
async def test_a_busy_gateway_is_tried_again(daemon: Daemon) -> None:
    """HTTP 503 from whatever stands in between is an outage like any other."""
    async with (
        connected_through_proxy(daemon) as (client, proxy),
        client.open_process(["cat"], pipe_stdin=True) as process,
    ):
        proxy.refusal = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        proxy.cut(OUTAGE_S)
        await process.write(b"hello")
        assert await until_read(process, 5) == b"hello"
        assert proxy.refused > 0


@pytest.mark.case(113)
async def test_a_server_that_has_forgotten_the_session_ends_it_at_once(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    """There is nothing to come back to, so the client says so and does not try again."""
    caplog.set_level(logging.INFO, "tsupervise")
    async with connected_through_proxy(daemon) as (client, proxy):
        client._lifeline.session_id = "forgotten"  # pyright: ignore[reportPrivateUsage]
        process = await client.start(["sleep", "60"])
        proxy.cut(0.0)
        with pytest.raises(ConnectionLost, match=r"could not be resumed: .*unknown session id"):
            await process.wait()
    attempts = [record for record in caplog.records if "attempt to come back failed" in record.message]
    assert len(attempts) == 1


@pytest.mark.case(114)
@pytest.mark.ours_only("the reference takes a vanished peer for alive until the kernel gives up")
async def test_a_server_that_has_not_noticed_the_cut_is_waited_for(daemon: Daemon) -> None:
    """The old connection ends at the server long after it ended here, and the new one is not disturbed."""
    async with (
        connected_through_proxy(daemon) as (client, proxy),
        client.open_process(["cat"], pipe_stdin=True) as process,
    ):
        await process.write(b"one ")
        proxy.cut(0.0, "half-open")
        await process.write(b"two ")
        proxy.close_held()
        await process.write(b"three")
        assert await until_read(process, 13) == b"one two three"


@pytest.mark.case(113, 114)
async def test_a_session_that_is_held_still_is_asked_for_again(daemon: Daemon) -> None:
    """While the server takes the old connection for alive it refuses; when that ends, the next try succeeds."""
    async with (
        connected_through_proxy(daemon) as (client, proxy),
        client.open_process(["cat"], pipe_stdin=True) as process,
    ):
        await process.write(b"one ")
        proxy.hold_s = 0.4
        proxy.cut(0.0, "half-open")
        await process.write(b"two")
        assert await until_read(process, 7) == b"one two"
        assert proxy.carried > 2, "an attempt came too early"


async def test_a_server_that_vanishes_without_a_word_is_noticed(daemon: Daemon) -> None:
    """Nothing ends the old connection but its silence, and the client comes back by a new one."""
    async with (
        connected_through_proxy(daemon, silence_s=0.3) as (client, proxy),
        client.open_process(["cat"], pipe_stdin=True) as process,
    ):
        await process.write(b"one ")
        proxy.cut(0.0, "silent")
        await process.write(b"two")
        assert await until_read(process, 7) == b"one two"
        assert proxy.carried == 2


@pytest.mark.case(115)
async def test_ten_users_share_one_connection_and_one_recovery(daemon: Daemon) -> None:
    """However many calls wait for the connection, there is one attempt at a time, and one new connection."""
    codes: list[int] = []

    async def use(client: Client) -> None:
        async with client.open_process(["true"]) as process:
            codes.append(await process.wait())

    async with connected_through_proxy(daemon) as (client, proxy):
        for outage in range(1, 3):
            proxy.cut(0.1)
            await trio.testing.wait_all_tasks_blocked(0.01)
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(use, client)
            assert proxy.carried == 1 + outage
    assert codes == [0] * 20


@pytest.mark.case(108)
async def test_what_was_never_sent_is_sent_after_the_cut(daemon: Daemon) -> None:
    """A signal that waited behind a message too large to leave cannot have happened, so it happens now."""

    async def start_in_vain(client: Client) -> None:
        with pytest.raises(OutcomeUnknown):
            await client.start(["true"], metadata={"label": "x" * 20_000_000})

    async with (
        connected_through_proxy(daemon) as (client, proxy),
        client.open_process(["sleep", "60"]) as process,
        trio.open_nursery() as nursery,
    ):
        proxy.stall()
        nursery.start_soon(start_in_vain, client)
        await trio.testing.wait_all_tasks_blocked(0.1)
        nursery.start_soon(process.interrupt)
        await trio.testing.wait_all_tasks_blocked(0.02)
        proxy.cut(0.0, "rst")
        proxy.flow()
        assert await process.wait() == 130


async def test_a_connection_that_is_closed_at_once_says_so(daemon: Daemon) -> None:
    """An end before the answer to the upgrade is noticed when it comes."""
    async with fault_proxy(daemon.address) as proxy:
        proxy.cut(60.0)
        with trio.fail_after(5), pytest.raises(ConnectFailed, match="closed before it was answered"):
            async with connect(proxy.url):
                pass


async def test_a_stalled_connection_goes_on_where_it_was(daemon: Daemon) -> None:
    """Silence without an end is waited out, and when it ends in a reset it is recovered from."""
    async with (
        connected_through_proxy(daemon) as (client, proxy),
        client.open_process(["cat"], pipe_stdin=True) as process,
        trio.open_nursery() as nursery,
    ):
        for how in ("flows again", "is reset"):
            proxy.stall()
            nursery.start_soon(process.write, b"hello")
            await trio.testing.wait_all_tasks_blocked(0.05)
            if how == "is reset":
                proxy.cut(0.0, "rst")
            proxy.flow()
        assert await until_read(process, 10) == b"hellohello"


async def test_the_end_of_its_block_ends_a_process_over_an_outage(daemon: Daemon) -> None:
    """A terminate that is lost at the end of a block is asked for again."""
    async with connected_through_proxy(daemon) as (client, proxy):
        async with client.open_process(["sleep", "60"]) as process:
            proxy.cut_behind_next(0.1)
        assert process.closed
        assert process.exit_code == 137


@pytest.mark.ours_only("the client's own patience is shortened here, whatever the server")
async def test_a_block_that_ends_in_an_outage_leaves_the_end_to_later(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long outage does not hold up the end of a block; the process ends when there is a connection again."""
    monkeypatch.setattr(tsupervise._remote_process, "END_S", 0.05)
    async with connected_through_proxy(daemon) as (client, proxy):
        async with client.open_process(["sleep", "60"], process_id="p"):
            proxy.cut(60.0)
            await trio.testing.wait_all_tasks_blocked(0.02)
        proxy.cut(0.0)
        await until_over(client, "p")


async def test_one_may_wait_for_the_connection_and_give_up(daemon: Daemon) -> None:
    """An outage and its end can be waited for; whoever gives up fails the client at once, and for good."""
    with trio.fail_after(PATIENCE_S):
        async with fault_proxy(daemon.address) as proxy, connect(proxy.url) as client:
            await client.wait_connected()
            proxy.cut(math.inf)
            await client.wait_connected(False)
            proxy.cut(0.0)
            await client.wait_connected()
            proxy.cut(math.inf)
            await client.wait_connected(False)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.wait_connected)
                await trio.testing.wait_all_tasks_blocked()
                client.give_up("nobody waits")
            assert client.is_lost
            with pytest.raises(ConnectionLost, match="nobody waits"):
                await client.call("environment/status")


async def test_a_command_under_exec_does_not_notice_a_cut(daemon: Daemon) -> None:
    """What is typed during an outage arrives, what is printed too, and the exit code is the command's."""
    script = "read a; echo got $a; read b; echo and $b; exit 3"
    tsupervise = command_of("ours")[0]
    with trio.fail_after(PATIENCE_S):
        async with fault_proxy(daemon.address) as proxy, trio.open_nursery() as nursery:
            command = [tsupervise, "exec", "--url", proxy.url, "--", "sh", "-c", script]
            start = partial(trio.run_process, command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, check=False)
            process: trio.Process = await nursery.start(start)
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdin.send_all(b"one\n")
            assert await process.stdout.receive_some() == b"got one\n"
            proxy.cut(OUTAGE_S)
            await process.stdin.send_all(b"two\n")
            assert await process.stdout.receive_some() == b"and two\n"
            assert await process.wait() == 3
            assert proxy.carried == 2


FAULTS: tuple[tuple[How, float], ...] = (
    *(("fin", 0.0), ("rst", 0.0), ("fin", 0.0), ("rst", 0.0)),
    *(("rst", 0.05), ("half-open", 0.0), ("silent", 0.0)),
)
"""How a conversation is cut, and after how many seconds of a stall."""


async def converse(daemon: Daemon, *, cuts: int, seed: int) -> None:
    """Talk to `cat` over a connection that is cut at random bytes, in both directions, until `cuts` are over."""
    chance = random.Random(seed)
    sent, heard = hashlib.sha256(), hashlib.sha256()
    total = 0
    directions: tuple[Direction, ...] = ("forth", "back")
    made: Counter[str] = Counter()
    with trio.fail_after(PATIENCE_S + cuts):
        async with (
            fault_proxy(daemon.address) as proxy,
            connect(proxy.url, silence_s=0.3) as client,
            client.open_process(["cat"], pipe_stdin=True) as process,
        ):
            # What the server hears nothing of lasts so long that its session is refused at first.
            proxy.hold_s = 0.15
            stream = process.events()
            last = got = 0
            while proxy.cuts < cuts:
                if not proxy.is_armed:
                    how, stall_s = chance.choice(FAULTS)
                    made[f"stall, {how}" if stall_s else how] += 1
                    proxy.cut_after(
                        chance.choice(directions), chance.randrange(1500), how=how, stall_s=stall_s
                    )
                for _ in range(chance.randrange(1, 4)):
                    data = os.urandom(chance.randrange(1, 400))
                    await process.write(data)
                    sent.update(data)
                    total += len(data)
                while got < total:
                    event = await anext(stream)
                    assert isinstance(event, Output)
                    assert event.seq == last + 1
                    last = event.seq
                    got += len(event.data)
                    heard.update(event.data)
            assert proxy.carried > cuts // 2, "cuts fell on connections"
            print(
                f"{daemon.target}: {proxy.cuts} cuts ({dict(made)}), {proxy.carried} connections, "
                f"{total} bytes there and back, sha256 {sent.hexdigest()[:16]} = {heard.hexdigest()[:16]}"
            )
    assert got == total
    assert heard.digest() == sent.digest()


@pytest.mark.case(108, 109)
@pytest.mark.parametrize("seed", range(3))
async def test_a_conversation_over_random_cuts_is_exact(daemon: Daemon, seed: int) -> None:
    """Every byte written is read by the process once and in order, and every byte of it comes back so."""
    await converse(daemon, cuts=10, seed=seed)


@pytest.mark.case(108, 109)
async def test_a_conversation_over_500_cuts_is_exact(daemon: Daemon, long_profile: bool) -> None:
    """The same, for long enough to meet the rare places."""
    if not long_profile:
        pytest.skip("500 cuts take their time: --profile=long")
    await converse(daemon, cuts=500, seed=500)


# --- scripted servers ------------------------------------------------------------------------------------


@pytest.mark.case(106, 107)
async def test_an_ambiguous_start_is_terminated_until_that_is_answered() -> None:
    """Over further disconnects; its id is taken until then, and a new process of that id is left alone after."""

    async def first(script: Script) -> None:
        await script.handshake()
        await script.expect("process/start")

    async def second(script: Script) -> None:
        await resume(script)
        assert (await script.expect("process/terminate"))["params"] == {"processId": "p"}
        asked.set()

    async def third(script: Script) -> None:
        await resume(script)
        terminate = await script.expect("process/terminate")
        await script.answer(terminate, {"running": True})
        assert await script.start() == "p"
        await script.output("p", 1)
        await script.exited("p", 2)
        await script.closed("p", 3)
        await script.until_gone()

    asked = trio.Event()
    async with (
        scripted_server(connections(first, second, third)) as url,
        connect(url) as client,
    ):
        with pytest.raises(OutcomeUnknown):
            await client.start(["sleep", "60"], process_id="p")
        await asked.wait()
        with pytest.raises(ValueError, match="another id"):
            await client.start(["true"], process_id="p")
        while True:
            try:
                process = await client.start(["true"], process_id="p")
            except ValueError:
                await trio.sleep(0.001)
            else:
                break
        assert [event.seq for event in await collect(process)] == [1, 2, 3]


@pytest.mark.case(107)
async def test_a_start_that_lost_its_caller_and_its_answer_is_terminated() -> None:
    """Nobody waits for it any more, and still nothing of it stays behind."""

    async def first(script: Script) -> None:
        await script.handshake()
        await script.expect("process/start")
        seen.set()
        await cancelled.wait()

    async def second(script: Script) -> None:
        await resume(script)
        terminate = await script.expect("process/terminate")
        await script.answer(terminate, {"running": False})
        done.set()
        await script.until_gone()

    seen, cancelled, done = trio.Event(), trio.Event(), trio.Event()
    async with scripted_server(connections(first, second)) as url, connect(url) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: client.start(["sleep", "60"], process_id="p"))
            await seen.wait()
            nursery.cancel_scope.cancel()
        cancelled.set()
        await done.wait()


@pytest.mark.case(108)
async def test_only_writes_and_reads_are_asked_again() -> None:
    """The write with the id that it had; a signal, a terminate and a resize fail, for they may have happened."""
    unanswered: list[Any] = []

    async def first(script: Script) -> None:
        await script.handshake(environmentInfo={"shell": {"name": "sh", "path": "/bin/sh"}})
        await script.start()
        unanswered.extend([await script.receive() for _ in range(4)])

    async def second(script: Script) -> None:
        await resume(script)
        await script.answer(await expect_catch_up(script, "p", 0), state(1))
        again = [await script.receive() for _ in range(2)]
        asked = {message["method"]: message["params"] for message in unanswered}
        assert {message["method"]: message["params"] for message in again} == {
            method: asked[method] for method in ("process/write", "process/read")
        }
        for message in again:
            is_write = message["method"] == "process/write"
            await script.answer(message, {"status": "accepted"} if is_write else state(1))
        await script.until_gone()

    async def fails(call: Awaitable[Any]) -> None:
        with pytest.raises(OutcomeUnknown):
            await call

    async with scripted_server(connections(first, second)) as url, connect(url) as client:
        process = await client.start(["cat"], process_id="p", pipe_stdin=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.write, b"hello")
            nursery.start_soon(process.read)
            nursery.start_soon(fails, process.interrupt())
            nursery.start_soon(fails, process.terminate())
    assert len(unanswered) == 4


@pytest.mark.case(110)
async def test_the_exit_is_placed_among_late_chunks() -> None:
    """It takes the hole in the answer's numbers; events pushed before the answer are merged, none twice."""

    async def first(script: Script) -> None:
        await script.handshake()
        p = await script.start()
        await script.output(p, 1)

    async def second(script: Script) -> None:
        request = await script.expect("initialize")
        await script.output("p", 5)  # before the answer to the handshake
        await script.answer(request, {"sessionId": "s"})
        await script.expect("initialized")
        read = await expect_catch_up(script, "p", 1)
        await script.output("p", 6)
        await script.answer(read, state(7, 2, 4, 5, 6, exit_code=9))
        await script.output("p", 6)
        await script.closed("p", 7)
        await script.until_gone()

    async with scripted_server(connections(first, second)) as url, connect(url) as client:
        process = await client.start(["true"], process_id="p")
        events = await collect(process)
        assert_complete(events)
        assert events[2] == Exited(3, 9, None, False)


async def test_more_early_events_than_there_is_room_for_are_asked_for_again() -> None:
    """What a busy process pushes before it has caught up is no reason to fail it."""

    async def first(script: Script) -> None:
        await script.handshake()
        await script.output(await script.start(), 1)

    async def second(script: Script) -> None:
        request = await script.expect("initialize")
        for seq in range(3, 400):
            await script.output("p", seq)
        await script.answer(request, {"sessionId": "s"})
        await script.expect("initialized")
        read = await expect_catch_up(script, "p", 1)
        for seq in range(400, 420):
            await script.output("p", seq)
        await script.answer(read, state(3, 2))
        await script.answer(await expect_catch_up(script, "p", 258), state(420, *range(259, 420)))
        await script.exited("p", 420)
        await script.closed("p", 421)
        await script.until_gone()

    async with scripted_server(connections(first, second)) as url, connect(url) as client:
        process = await client.start(["true"], process_id="p", lossless=True)
        assert_complete(await collect(process))


@pytest.mark.case(109)
async def test_an_attempt_that_fails_half_way_leaves_all_of_it_to_the_next() -> None:
    """A process that had caught up when the attempt failed has gone on since, and is asked for again."""

    async def first(script: Script) -> None:
        await script.handshake()
        await script.start()
        await script.start()

    async def second(script: Script) -> None:
        await resume(script)
        await script.answer(await expect_catch_up(script, "p", 0), state(2, 1))
        await expect_catch_up(script, "q", 0)

    async def third(script: Script) -> None:
        await resume(script)
        await script.answer(await expect_catch_up(script, "p", 1), state(4, 2, exit_code=0, closed=False))
        await script.answer(await expect_catch_up(script, "q", 0), state(3, exit_code=0, closed=True))
        await script.closed("p", 4)
        await script.until_gone()

    plays = connections(first, second, third)
    async with scripted_server(plays) as url, connect(url) as client:
        process = await client.start(["true"], process_id="p")
        other = await client.start(["true"], process_id="q")
        with trio.fail_after(5):
            assert [event.seq for event in await collect(process)] == [1, 2, 3, 4]
            await other.wait_closed()


async def test_a_slow_reader_of_one_process_holds_up_no_recovery() -> None:
    """Another process catches up and ends, whatever of the lossless one lies unread; and that is lossless still."""

    async def first(script: Script) -> None:
        await script.handshake()
        await script.start()
        await script.start()

    async def second(script: Script) -> None:
        await resume(script)
        slow, fast = await expect_catch_up(script, "slow", 0), await expect_catch_up(script, "fast", 0)
        await script.answer(slow, state(500, *range(1, 500)))
        await script.output("slow", 500)
        await script.answer(fast, state(3, exit_code=0, closed=True))
        await script.exited("slow", 501)
        await script.closed("slow", 502)
        await script.until_gone()

    with trio.fail_after(PATIENCE_S):
        async with scripted_server(connections(first, second)) as url, connect(url) as client:
            slow = await client.start(["true"], process_id="slow", lossless=True)
            fast = await client.start(["true"], process_id="fast")
            await fast.wait_closed()
            assert_complete(await collect(slow))


@pytest.mark.parametrize("lossless", [False, True], ids=["", "lossless"])
async def test_more_than_one_answer_holds_is_read_by_pages(lossless: bool) -> None:
    """The client is back at once, and each reader asks on from where it is until it has met what is pushed."""

    async def first(script: Script) -> None:
        await script.handshake()
        await script.output(await script.start(), 1)

    async def second(script: Script) -> None:
        await resume(script)
        read = await expect_catch_up(script, "p", 1)
        await script.answer(read, {**state(101, *range(2, 101)), "more": True, "lastSeq": 1000})
        pushed = 1000
        for last in (1, 334, 667):
            for _ in range(99):  # nobody waits for who reads these
                pushed += 1
                await script.output("p", pushed)
            read = await expect_catch_up(script, "p", last)
            page = state(last + 334, *range(last + 1, last + 334))
            await script.answer(read, {**page, "more": True, "lastSeq": pushed})
        read = await expect_catch_up(script, "p", 1000)
        await script.exited("p", pushed + 1)
        await script.closed("p", pushed + 2)
        chunks = range(1001, pushed + 1)
        await script.answer(read, state(pushed + 3, *chunks, exit_code=0, closed=True))
        await script.until_gone()

    with trio.fail_after(PATIENCE_S):
        async with scripted_server(connections(first, second)) as url, connect(url) as client:
            process = await client.start(["true"], process_id="p", lossless=lossless)
            assert_complete(await collect(process))


async def test_a_page_that_is_overtaken_by_what_is_pushed_has_no_effect() -> None:
    """A large answer takes its time, and what it tells of may have arrived by itself meanwhile."""

    async def first(script: Script) -> None:
        await script.handshake()
        await script.output(await script.start(), 1)

    async def second(script: Script) -> None:
        await resume(script)
        read = await expect_catch_up(script, "p", 1)
        for pushed in range(2, 21):
            await script.output("p", pushed)
        await script.answer(read, {**state(10, *range(2, 10)), "more": True, "lastSeq": 20})
        await script.answer(await script.expect("process/terminate"), {"running": True})
        await script.exited("p", 21)
        await script.closed("p", 22)
        await script.until_gone()

    with trio.fail_after(PATIENCE_S):
        async with scripted_server(connections(first, second)) as url, connect(url) as client:
            process = await client.start(["true"], process_id="p")
            await client.wait_connected(False)
            assert await process.terminate()
            assert_complete(await collect(process))


async def test_of_two_tasks_that_attach_to_one_process_none_waits_for_the_other_for_ever() -> None:
    """They share its handle; when the one that asked for it is cancelled, the other is told."""

    async def play(script: Script) -> None:
        await script.handshake()
        await script.expect("process/read")
        asked.set()
        await script.until_gone()

    asked = trio.Event()
    with trio.fail_after(PATIENCE_S):
        async with scripted_server(play) as url, connect(url) as client, trio.open_nursery() as nursery:
            nursery.start_soon(client.attach, "p")
            await asked.wait()
            process = await client.attach("p")
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True), pytest.raises(ProcessFailed, match="attach again"):
                await process.wait()


@pytest.mark.case(111)
async def test_a_process_that_the_server_has_forgotten_fails_alone() -> None:
    """`unknown process id` while catching up concerns one process; it is terminated, which frees its id."""

    async def first(script: Script) -> None:
        await script.handshake()
        await script.start()
        await script.start()

    async def second(script: Script) -> None:
        await resume(script)
        lost, fine = await expect_catch_up(script, "lost", 0), await expect_catch_up(script, "fine", 0)
        await script.refuse(lost, -32600, "unknown process id lost")
        await script.answer(fine, state(3, exit_code=0, closed=True))
        terminate = await script.expect("process/terminate")
        assert terminate["params"] == {"processId": "lost"}
        await script.answer(terminate, {"running": False})
        terminated.set()
        await script.until_gone()

    terminated = trio.Event()
    async with scripted_server(connections(first, second)) as url, connect(url) as client:
        lost = await client.start(["true"], process_id="lost")
        fine = await client.start(["true"], process_id="fine")
        with pytest.raises(ProcessFailed, match="unknown process id lost"):
            await collect(lost)
        assert await collect(fine) == [Exited(1, 0, None, False), Closed(2)]
        await terminated.wait()


@pytest.mark.case(113)
async def test_what_passes_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """-32010 five times, a handshake without an answer, and a connection that ends at once, and then it works."""
    monkeypatch.setattr(tsupervise._lifeline, "INITIALIZE_S", 0.1)

    async def first(script: Script) -> None:
        await script.handshake()

    async def attached(script: Script) -> None:
        await script.refuse(await script.expect("initialize"), -32010, "session s is already attached")

    async def silent(script: Script) -> None:
        await script.expect("initialize")
        with pytest.raises(trio_websocket.ConnectionClosed):
            await script.receive()

    async def gone(script: Script) -> None:
        await script.ws.aclose(1001)

    async def last(script: Script) -> None:
        await resume(script)
        await script.answer(await script.expect("process/list"), {"processes": []})
        await script.until_gone()

    plays = connections(first, *[attached] * 5, silent, gone, last)
    async with scripted_server(plays) as url, connect(url) as client:
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert (await client.call("process/list")).processes == []


@pytest.mark.case(113)
@pytest.mark.parametrize("case", ["unknown", "changed", "nonsense", "refused"])
async def test_what_does_not_pass_is_not_tried_again(case: str) -> None:
    """A session that is unknown or another one, and a server that errs or talks nonsense, end it at once."""

    async def first(script: Script) -> None:
        await script.handshake()
        await script.start()

    async def second(script: Script) -> None:
        request = await script.expect("initialize")
        match case:
            case "unknown":
                await script.refuse(request, -32600, "unknown session id s")
            case "changed":
                await script.answer(request, {"sessionId": "another"})
            case "nonsense":
                await script.ws.send_message("no json")
            case _:
                await script.answer(request, {"sessionId": "s"})
                await script.expect("initialized")
                await script.refuse(await script.expect("process/read"), -32603, "an internal error")
        await script.until_gone()

    text = {
        "unknown": "unknown session id s",
        "changed": "asked for session 's', got 'another'",
        "nonsense": "broke the protocol",
        "refused": "an internal error",
    }[case]
    async with scripted_server(connections(first, second)) as url, connect(url) as client:
        process = await client.start(["true"])
        with pytest.raises(ConnectionLost, match=f"could not be resumed: .*{text}"):
            await process.wait()


async def test_a_client_that_fails_during_an_attempt_stays_failed() -> None:
    """An attempt that succeeds too late is given up, and its connection closed."""

    async def first(script: Script) -> None:
        await script.handshake()

    async def second(script: Script) -> None:
        request = await script.expect("initialize")
        client._lifeline.fail("enough")  # pyright: ignore[reportPrivateUsage]
        await script.answer(request, {"sessionId": "s"})
        await script.until_gone()
        closed.set()

    closed = trio.Event()
    async with scripted_server(connections(first, second)) as url, connect(url) as client:
        await closed.wait()
        with pytest.raises(ConnectionLost, match="enough"):
            await client.call("environment/status")


async def test_a_channel_that_cannot_be_opened_again_fails_at_once() -> None:
    """A client that was given one channel has nothing to come back by."""

    async def serve(channel: MemoryChannel) -> None:
        [request] = await channel.receive()
        assert b"initialize" in request
        await channel.send(
            [b'{"id":1,"result":{"sessionId":"s","environmentInfo":{"shell":{"name":"sh","path":""}}}}']
        )
        await channel.receive()
        await channel.aclose(CloseCode.NORMAL, "")

    ours, theirs = memory_channels()
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, theirs)
            async with open_client(ours) as client:
                await trio.testing.wait_all_tasks_blocked()
                assert client.is_lost
                with pytest.raises(
                    ConnectionLost, match="the other end of the channel has closed; connect again"
                ):
                    await client.call("environment/status")
