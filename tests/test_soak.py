"""Mixed work at full load for a long time, in rounds: after each, the daemon holds what it held before.

In a round everything happens at once: one-shots, terminals, floods that are read and floods that nobody reads,
connections that are cut and sessions that are resumed or left, trees of processes that do not want to end, and
nonsense. Then it must forget all of it. What is asserted is how much it holds, never a time.
"""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from daemons import Daemon, running, start_daemon
from http_pages import counts, value
from procfs import (
    children_of,
    listening_pid,
    marked,
    new_marker,
    open_descriptors,
    resident_kib,
    threads,
    until,
)
from raw_sockets import bare
from wire import Peer, connect

LONG_S = 20 * 60.0
"""How long the work lasts in the long profile, the pauses between rounds not counted."""

LONG_ROUND_S = 60.0

SHORT_ROUNDS, SHORT_ROUND_S = 3, 0.6

CROWD = 2
"""How many do each kind of work at a time: enough to keep the daemon's CPU busy all the time."""

GROWTH_KIB = 24 << 10
"""By how much the memory after the last round may be above the most of the first quarter of rounds: what a leak of
half a KiB for each of the long profile's processes would be."""

SMALL_FLOOD, LARGE_FLOOD = 256 << 10, 4 << 20

Work = Callable[[Daemon, str, str], Awaitable[None]]
"""A piece of work: at a daemon, with a name that nobody else uses, and with the mark that all its children bear."""


async def one_shots(daemon: Daemon, name: str, marker: str) -> None:
    async with connect(daemon.url) as peer:
        for number in range(20):
            code, output = await peer.run(
                f"{name}{number}", "sh", "-c", "echo out; echo err >&2; exit 3", marker
            )
            assert (code, sorted(output.split())) == (3, [b"err", b"out"])


async def terminal(daemon: Daemon, name: str, marker: str) -> None:
    async with connect(daemon.url) as peer:
        (await peer.start(name, "sh", "-c", "stty raw -echo; echo ready; cat", marker, tty=True)).ok()
        await peer.until_output(name, b"ready")
        for number in range(10):
            (await peer.write(name, b"line %d;" % number, f"w{number}")).ok()
            (await peer.request("process/resize", {"processId": name, "rows": 24 + number, "cols": 80})).ok()
            await peer.until_output(name, b"line %d;" % number)
        await peer.terminate(name)
        await peer.until_closed(name)


async def flood(daemon: Daemon, name: str, marker: str) -> None:
    async with connect(daemon.url) as peer:
        command = f"head -c {LARGE_FLOOD} /dev/zero"
        code, output = await peer.run(name, "sh", "-c", command, marker)
        assert (code, len(output)) == (0, LARGE_FLOOD)


async def unread_flood(daemon: Daemon, name: str, marker: str) -> None:
    """Never read, not even its end; whether its session is left or ended by the next is all the same."""
    async with bare(daemon) as deaf:
        await deaf.handshake()
        await deaf.start(name, "yes", marker)
        await trio.sleep(0.05)
        await deaf.reset()


async def cut_and_resume(daemon: Daemon, name: str, marker: str) -> None:
    session_id = None
    for number in range(3):
        async with bare(daemon) as client:
            await client.handshake(session_id)
            session_id = client.session_id
            await client.start(f"{name}-{number}", "sh", "-c", "head -c 1000 /dev/zero; sleep 1000", marker)
            await client.reset()
        # The daemon may not have seen the cut yet: then it asks the old peer, and lets us in.
    async with connect(daemon.url, handshake=False) as peer:
        await resume(peer, session_id)
        for number in range(3):
            process = f"{name}-{number}"
            page = (await peer.process_read(process, waitMs=10_000)).ok()
            assert page["nextSeq"] > 1
            await peer.terminate(process)
            await peer.until_closed(process)


async def resume(peer: Peer, session_id: str | None) -> None:
    params = {"clientName": "tests", "resumeSessionId": session_id}
    while (await peer.request("initialize", params)).error is not None:  # noqa: ASYNC110 - the old peer is asked
        await trio.sleep(0.01)
    await peer.notify("initialized")


async def left_alone(daemon: Daemon, name: str, marker: str) -> None:
    async with bare(daemon) as client:
        await client.handshake()
        await client.start(name, "sh", "-c", 'setsid sleep 1000 "$0" & sleep 1000', marker)
        await client.reset()


async def stubborn(daemon: Daemon, name: str, marker: str) -> None:
    """Deaf to SIGTERM, with a daemon of its own that has left its session, and half of it stopped."""
    stopped = "sh -c 'kill -STOP $$' \"$0\" & sleep 1000"
    command = 'trap "" TERM HUP INT; setsid sh -c "$1" "$0" & echo up; sleep 1000'
    async with connect(daemon.url) as peer:
        for number in range(3):
            process = f"{name}-{number}"
            (await peer.start(process, "sh", "-c", command, marker, stopped)).ok()
            await peer.until_output(process, b"up")
            await peer.terminate(process)
            await peer.until_closed(process)


async def nonsense(daemon: Daemon, name: str, marker: str) -> None:
    async with connect(daemon.url) as peer:
        for text in (
            "{",
            "[]",
            '{"id":7,"method":"process/flY","params":{}}',
            '"',
            '{"id":8,"method":"process/read"}',
        ):
            await peer.send_raw(text)
        assert (await peer.start(name, "no-such-program-anywhere", marker)).error is not None
        assert (await peer.request("environment/status")).ok()["status"] == "ready"


WORKS: tuple[Work, ...] = (
    *(one_shots, terminal, flood, unread_flood),
    *(cut_and_resume, left_alone, stubborn, nonsense),
)


async def test_what_is_held_stays_the_same(long_profile: bool, tmp_path: Path) -> None:
    """Round after round: descriptors, threads, children, tasks are as before, and memory does not grow."""
    rounds, round_s = (
        (int(LONG_S / LONG_ROUND_S), LONG_ROUND_S) if long_profile else (SHORT_ROUNDS, SHORT_ROUND_S)
    )
    marker = new_marker()
    names = itertools.count()
    log = tmp_path / "stderr"
    options = ("--detached-ttl", "1", "--retention", "1", "--max-connections", "1000")
    levels: list[tuple[int, ...]] = []
    memory: list[int] = []
    done = Counter[str]()
    with running(start_daemon("ours", *options, stderr=log)) as daemon:
        server = listening_pid(daemon)

        async def work_until(deadline: float, work: Work) -> None:
            while time.perf_counter() < deadline:
                await work(daemon, f"p{next(names)}", marker)
                done[work.__name__] += 1
                await trio.sleep(random.random() * 0.02)

        for number in range(rounds):
            peak_kib = 0
            deadline = time.perf_counter() + round_s
            with trio.fail_after(round_s + 60):
                async with trio.open_nursery() as nursery:
                    for work in WORKS * CROWD:
                        nursery.start_soon(work_until, deadline, work)
                    while time.perf_counter() < deadline:
                        await trio.sleep(round_s / 20)
                        peak_kib = max(peak_kib, resident_kib(server))
            now = await until_all_is_forgotten(daemon)
            await until(lambda: not marked(marker))
            await until(lambda: not children_of(server))
            if levels:  # the connection that was asked for the counts may close a moment later
                await until(lambda: open_descriptors(server) <= levels[0][0])
            levels.append((open_descriptors(server), threads(server), int(value(now, "tasks"))))
            memory.append(resident_kib(server))
            print(
                f"round {number + 1}: {levels[-1][0]} descriptors, {levels[-1][1]} threads, {levels[-1][2]} tasks, "
                f"0 children, {memory[-1]} KiB at rest, at most {peak_kib} KiB under load"
            )
        now = await counts(daemon)
        print(
            f"{dict(done)}; {int(value(now, 'processes_started_total'))} processes, "
            f"{int(value(now, 'connections_opened_total'))} connections, "
            f"{int(value(now, 'sessions_resumed_total'))} resumed sessions, "
            f"{int(value(now, 'sent_bytes_total')) >> 20} MiB sent"
        )
    assert set(done) == {work.__name__ for work in WORKS}
    # Threads come and go with what trio keeps for a while.
    assert len({tasks for _, _, tasks in levels}) == 1, levels
    assert memory[-1] < max(memory[: -(-rounds // 4)]) + GROWTH_KIB
    assert "ERROR tsupervise" not in log.read_text()


async def until_all_is_forgotten(daemon: Daemon) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Wait until no process, no session and no connection is known; return the counts of that moment."""
    with trio.fail_after(60):
        while True:
            now = await counts(daemon)
            alive = [
                number
                for (name, _), number in now.items()
                if name in ("processes", "sessions", "connections")
            ]
            if alive and not any(alive):
                return now
            await trio.sleep(0.1)
