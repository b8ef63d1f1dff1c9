"""Many processes, many connections, floods and refusals: what the daemon holds afterwards, and what it never holds.

Each test has a daemon of its own, in its own process, and looks at it from outside: descriptors, threads,
memory and children as the kernel counts them. Each prints what it measured (`pytest -rP` shows it); what is
asserted is order and outcome, and bounds on memory, never a time.
"""

from __future__ import annotations

import base64
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Generator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import trio

from daemons import command_of, running, start_daemon
from procfs import (
    children_of,
    listening_pid,
    marked,
    new_marker,
    open_descriptors,
    resident_kib,
    threads,
    until,
    until_blocked,
    until_dead,
)
from raw_sockets import UPGRADE, bare, dial, frame, vanish
from wire import PATIENCE_S, Peer, connect, start_params

INTERNAL_ERROR = -32603
INVALID_REQUEST = -32600
TOO_MANY_REQUESTS = -32011

MIB = 1024
"""A mebibyte in KiB, the unit in which the kernel tells memory."""

PROCESS_KIB = 8
"""A bound on what a closed process costs beside its output."""

LONG_PATIENCE_S = 600.0
"""A bound on a hang where thousands of processes are run."""

WINDOW = 50
"""Processes that a test of thousands starts at a time."""

READ_BYTES = 64 << 10
"""The most that the daemon takes of a pipe at once, and so the unit in which it gives up output."""

LONELY_USER = 1_000_000 + os.getpid()
"""A user number that nobody else has, another run of these tests neither: the kernel counts processes by user."""

PIPES_AND_TTY: tuple[dict[str, Any], ...] = ({}, {"pipeStdin": True}, {"tty": True})
"""Members of process/start that lead to different descriptors."""


@dataclass(frozen=True)
class Level:
    """What a daemon holds at one moment. `children` counts those that wait to be reaped as well."""

    descriptors: int
    threads: int
    children: int
    resident_kib: int

    @property
    def without_memory(self) -> tuple[int, int, int]:
        return self.descriptors, self.threads, self.children


def level_of(pid: int) -> Level:
    return Level(open_descriptors(pid), threads(pid), len(children_of(pid)), resident_kib(pid))


async def settled(pid: int) -> Level:
    """What a daemon holds at rest: the last descriptors of a process go a moment after its `closed` was sent."""
    levels = [level_of(pid)]
    with trio.fail_after(PATIENCE_S):
        while len(levels) < 5 or len({level.without_memory for level in levels[-5:]}) > 1:
            await trio.sleep(0.01)
            levels.append(level_of(pid))
    return levels[-1]


async def listed(peer: Peer) -> list[dict[str, Any]]:
    """The entries of all processes of the session, in order of their start."""
    return (await peer.request("process/list", {})).ok()["processes"]


async def until_forgotten(peer: Peer) -> None:
    """Wait until the session knows no process any more."""
    with trio.fail_after(PATIENCE_S):
        while await listed(peer):  # noqa: ASYNC110 - forgetting is not announced
            await trio.sleep(0.05)


async def one_shots(peer: Peer, numbers: range, *argv: str, window: int = WINDOW) -> None:
    """Run `argv` to its close once for each number, `window` at a time, and let the peer forget it."""
    for first in numbers[::window]:
        names = [f"p{number}" for number in range(first, min(first + window, numbers.stop))]
        for name in names:
            await peer.send("process/start", start_params(name, *argv))
        for name in names:
            assert (await peer.until_closed(name))[-1].kind == "closed"
            assert (await peer.until_exited(name))["exitCode"] == 0
        for name in names:
            del peer.by_process[name]
        peer.arrivals.clear()
        peer.answers.clear()


@contextmanager
def soft_limit(pid: int, what: int, limit: int) -> Generator[None]:
    """A lower soft limit for a running process, for the length of the block."""
    soft, hard = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (limit, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, what, (soft, hard))


def limit_with_room_for(pid: int, descriptors: int) -> int:
    """The RLIMIT_NOFILE under which a process can open so many more: the limit is on numbers, not on a count."""
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    number = 0
    while descriptors or number in taken:
        descriptors -= number not in taken
        number += 1
    return number


async def test_300_processes_are_ended_by_300_pipelined_requests(long_profile: bool) -> None:
    """Plain ones, shells with children of their own, and terminals: each closes, and nothing is left."""
    count = 1000 if long_profile else 300
    marker = new_marker()
    kinds: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
        (("sleep", marker), {}),
        (("sh", "-c", 'sleep "$0" & wait', marker), {"pipeStdin": True}),
        (("sleep", marker), {"tty": True}),
    )
    live = count + len(range(1, count, 3))
    with running(start_daemon()) as daemon:
        server = listening_pid(daemon)
        async with connect(daemon.url) as peer:
            await one_shots(peer, range(len(kinds)), "true")
            before = await settled(server)
            began = time.perf_counter()
            for number in range(count):
                argv, fields = kinds[number % len(kinds)]
                await peer.send("process/start", start_params(f"s{number}", *argv, **fields))
            await until(lambda: len(marked(marker)) == live, LONG_PATIENCE_S)
            started = time.perf_counter()
            during = level_of(server)
            asked = [
                await peer.send("process/terminate", {"processId": f"s{number}"}) for number in range(count)
            ]
            for number, request_id in enumerate(asked):
                assert (await peer.answer_to(request_id)).ok() == {"running": True}
                events = await peer.until_closed(f"s{number}")
                assert [event.kind for event in events[-2:]] == ["exited", "closed"]
            ended = time.perf_counter()
            await until(lambda: not marked(marker))
            await until(lambda: level_of(server).without_memory == before.without_memory)
            print(f"{live} processes of {count} starts; live: {during}; after: {level_of(server)}")
            print(f"all up after {started - began:.2f} s, all closed {ended - started:.2f} s later")


async def test_one_shots_leave_nothing_once_they_are_forgotten(long_profile: bool) -> None:
    """On one connection, the thousands after the first hundred cost nothing that stays."""
    # What 300 would leave is less than what waits for Python's next collection of garbage, hence the bound;
    # the white-box test of the same looks at the objects.
    block, blocks, retention_s = (1000, 10, "1") if long_profile else (300, 2, "0.1")
    levels: list[Level] = []
    with running(start_daemon("ours", "--retention", retention_s)) as daemon:
        server = listening_pid(daemon)
        async with connect(daemon.url) as peer:
            # In blocks, so that the most that are retained at a time is the same in the first and the last.
            starts = [0, 100, *(block * number for number in range(1, blocks + 1))]
            for first, end in pairwise(starts):
                await one_shots(peer, range(first, end), "echo", "hello")
                await until_forgotten(peer)
                levels.append(level_of(server))
                print(f"after {end} one-shots, forgotten: {levels[-1]}")
    assert {level.without_memory for level in levels} == {levels[0].without_memory}
    assert levels[-1].children == 0
    _, after_first_block, *_, last = levels
    assert last.resident_kib < after_first_block.resident_kib + 4 * MIB


async def test_what_a_closed_process_costs_while_it_can_be_read(long_profile: bool) -> None:
    """At the default retention, thousands of closed processes stay within the daemon's memory."""
    count = 10_000 if long_profile else 300
    with running(start_daemon()) as daemon:
        server = listening_pid(daemon)
        async with connect(daemon.url) as peer:
            await one_shots(peer, range(100), "echo", "hello")
            before = await settled(server)
            with trio.fail_after(LONG_PATIENCE_S):
                await one_shots(peer, range(100, 100 + count), "echo", "hello")
            after = level_of(server)
            retained = len(await listed(peer)) - 100
    assert after.without_memory == before.without_memory
    grown = after.resident_kib - before.resident_kib
    print(f"{retained} of {count} processes are retained at {grown / retained:.2f} KiB each; {after}")
    assert grown < retained * PROCESS_KIB + 4 * MIB


@pytest.mark.parametrize("total_mib", [8, 256])
async def test_retained_output_has_a_total(total_mib: int, long_profile: bool) -> None:
    """When all processes together retain too much, what was closed first gives up its output, and says so."""
    if total_mib > 8 and not long_profile:
        pytest.skip("a quarter of a gigabyte is for --profile=long")
    size = 100_000
    total = total_mib << 20
    fitting = total // size
    count = fitting * 5 // 4
    with running(start_daemon("ours", "--retained-total-bytes", str(total))) as daemon:
        server = listening_pid(daemon)
        async with connect(daemon.url) as peer:
            await one_shots(peer, range(100), "true")
            before = resident_kib(server)
            argv = ("head", "-c", str(size), "/dev/zero")
            with trio.fail_after(LONG_PATIENCE_S):
                # One at a time, so that the order of their closing is known.
                await one_shots(peer, range(100, 100 + count), *argv, window=1)
            grown = resident_kib(server) - before
            entries = (await listed(peer))[-count:]
            held = [entry["retainedBytes"] for entry in entries]
            print(f"{count} x {size} bytes: {sum(held)} of {total} retained, daemon grew by {grown} KiB")
            # What the chunks take beside their bytes counts as well: less than a kibibyte for each process.
            assert total - READ_BYTES - count * 1024 < sum(held) <= total
            assert [entry["outputBytes"] for entry in entries] == [size] * count
            # Nothing of the oldest, perhaps a part of one, all of the rest.
            assert held == sorted(held)
            assert len([retained for retained in held if 0 < retained < size]) <= 1
            assert held[0] == 0
            for entry, retained in list(zip(entries, held, strict=True))[:: max(1, count // 100)]:
                page = (await peer.process_read(entry["processId"], maxBytes=1)).ok()
                assert page["closed"]
                assert page["truncated"] is (retained < size)
    assert grown < (total_mib + 16) * MIB + count * PROCESS_KIB


@pytest.mark.parametrize("tty", [False, True], ids=["pipe", "tty"])
async def test_a_flood_that_nobody_reads_costs_little_and_hinders_nobody(
    tty: bool, long_profile: bool
) -> None:
    """The daemon keeps little of it, terminate on the same connection acts, and others are served meanwhile."""
    rounds = 500 if long_profile else 50
    marker = new_marker()

    async def one_shot_ms(peer: Peer, prefix: str) -> float:
        took: list[float] = []
        for number in range(rounds):
            began = time.perf_counter()
            assert await peer.run(f"{prefix}{number}", "echo", "fine") == (0, b"fine\n")
            took.append((time.perf_counter() - began) * 1000)
        return median(took)

    with running(start_daemon()) as daemon:
        server = listening_pid(daemon)
        async with connect(daemon.url) as bystander, bare(daemon) as deaf:
            await deaf.handshake()
            await one_shots(bystander, range(50), "true")
            idle_ms = await one_shot_ms(bystander, "idle")
            before = resident_kib(server)
            flood = start_params("flood", "yes", marker, tty=tty)
            await deaf.send({"id": 2, "method": "process/start", "params": flood})
            await until(lambda: len(marked(marker)) == 1)
            (child,) = marked(marker)
            await until_blocked(child)
            grown = resident_kib(server) - before
            with trio.fail_after(LONG_PATIENCE_S):
                flooded_ms = await one_shot_ms(bystander, "flooded")
            began = time.perf_counter()
            await deaf.send({"id": 3, "method": "process/terminate", "params": {"processId": "flood"}})
            await until_dead(child)
            killed_ms = (time.perf_counter() - began) * 1000
            print(f"daemon grew by {grown} KiB; child gone {killed_ms:.1f} ms after terminate")
            ratio = flooded_ms / idle_ms
            print(f"one-shot p50 {idle_ms:.2f} ms idle, {flooded_ms:.2f} ms in the flood, ratio {ratio:.2f}")
            assert grown <= 4 * MIB
            await until(lambda: not children_of(server))


async def test_refused_starts_leave_nothing(long_profile: bool, tmp_path: Path) -> None:
    """Too large an argv, a missing cwd, a missing program, one of no format: a reason, and a free id."""
    rounds = 500 if long_profile else 20
    no_program = tmp_path / "no-program"
    no_program.write_bytes(b"\x7fELF and no more")
    no_program.chmod(0o755)
    refusals: list[tuple[tuple[str, ...], dict[str, Any], int]] = [
        (("echo", "x" * (200 << 10)), {}, 7),  # E2BIG: one argument has at most 128 KiB
        (("true",), {"cwd": "file:///no/such/folder"}, 2),
        (("no-such-program",), {}, 2),
        (("/tmp",), {}, 13),
        ((str(no_program),), {}, 8),
    ]
    with running(start_daemon()) as daemon:
        server = listening_pid(daemon)
        async with connect(daemon.url) as peer:
            await one_shots(peer, range(10), "true")
            before = await settled(server)
            for number in range(rounds):
                for fields in PIPES_AND_TTY:
                    for argv, more, os_error in refusals:
                        answer = await peer.start("p", *argv, **fields, **more)
                        assert answer.code == INTERNAL_ERROR, number
                        assert f"(os error {os_error})" in answer.message
            after = level_of(server)
            print(f"{rounds * len(refusals) * len(PIPES_AND_TTY)} refusals: {before} before, {after} after")
            assert after.without_memory == before.without_memory
            assert after.resident_kib < before.resident_kib + 4 * MIB
            assert await peer.run("p", "echo", "hello") == (0, b"hello\n")


async def test_a_start_without_descriptors_left_leaves_nothing() -> None:
    """However many descriptors are left, a start either succeeds or is refused, keeps none and frees its id."""
    with running(start_daemon()) as daemon:
        server = listening_pid(daemon)
        async with connect(daemon.url) as peer:
            await one_shots(peer, range(10), "true")
            before = await settled(server)
            for fields in PIPES_AND_TTY:
                refused: list[int] = []
                for room in range(12):
                    name = f"{fields}{room}"
                    with soft_limit(server, resource.RLIMIT_NOFILE, limit_with_room_for(server, room)):
                        answer = await peer.start(name, "echo", "hello", **fields)
                        if answer.error is None:
                            await peer.until_closed(name)
                        else:
                            refused.append(room)
                            assert answer.code == INTERNAL_ERROR
                            assert "(os error 24)" in answer.message
                        await until(lambda: level_of(server).without_memory == before.without_memory)
                    if answer.error is not None:
                        assert (await peer.run(name, "echo", "hello", **fields))[0] == 0
                print(f"refused with room for {refused} descriptors, {fields or 'plain'}")
                assert refused == list(range(len(refused)))
                assert 0 < len(refused) < 12


async def test_connections_beyond_the_descriptors_wait_and_harm_nobody(tmp_path: Path) -> None:
    """Out of descriptors, those who are in are served, starts are refused with the reason, and it passes."""
    log = tmp_path / "stderr"
    with running(start_daemon(stderr=log)) as daemon:
        server = listening_pid(daemon)
        async with connect(daemon.url) as witness:
            await one_shots(witness, range(10), "true")
            before = await settled(server)
            with soft_limit(server, resource.RLIMIT_NOFILE, limit_with_room_for(server, 20)):
                crowd = [await dial(daemon) for _ in range(60)]
                await until(lambda: open_descriptors(server) == before.descriptors + 20)
                for fields in PIPES_AND_TTY:
                    answer = await witness.start("p", "true", **fields)
                    assert answer.code == INTERNAL_ERROR
                    assert "(os error 24)" in answer.message
                assert (await witness.request("environment/status")).ok()["status"] == "ready"
                for number, stream in enumerate(crowd):
                    await vanish(stream, reset=number % 2 == 1)
                # Still under the limit: what came back is enough.
                await until(lambda: level_of(server).without_memory == before.without_memory)
                assert await witness.run("p", "echo", "hello") == (0, b"hello\n")
                async with connect(daemon.url) as newcomer:
                    assert await newcomer.run("p", "echo", "hello") == (0, b"hello\n")
    assert "ERROR tsupervise" not in log.read_text()


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="needs root and setpriv, to start a daemon as a user who has nothing else running",
)
async def test_starts_beyond_the_users_processes_are_refused(tmp_path: Path) -> None:
    """When the user may have no more processes, starts are refused until one has ended, and keep nothing."""
    marker = new_marker()
    # The limit does not bind root. The one capability that stays lets it read this Python, wherever it lies.
    user = [f"--reuid={LONELY_USER}", f"--regid={LONELY_USER}", "--clear-groups"]
    may_read = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"]
    command = ["prlimit", "--nproc=8", "setpriv", *user, *may_read, *command_of("ours")]
    os.chown(tmp_path, LONELY_USER, LONELY_USER)
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    with running(start_daemon(command=command, env=env)) as daemon:
        server = listening_pid(daemon)
        async with connect(daemon.url) as peer:
            await one_shots(peer, range(10), "true", window=1)
            live: list[str] = []
            while (await peer.start(f"live{len(live)}", "sleep", marker)).error is None:
                live.append(f"live{len(live)}")
            assert 1 < len(live) < 8
            before = await settled(server)
            for fields in PIPES_AND_TTY * 10:
                answer = await peer.start("p", "true", **fields)
                assert answer.code == INTERNAL_ERROR
                assert "(os error 11)" in answer.message
            assert level_of(server).without_memory == before.without_memory
            print(f"{before} before the refusals, {level_of(server)} after them")
            for process_id in live:
                await peer.terminate(process_id)
                await peer.until_closed(process_id)
                assert await peer.run(f"after {process_id}", "echo", "hello") == (0, b"hello\n")
            assert await peer.run("p", "echo", "hello") == (0, b"hello\n")
            assert not marked(marker)
            assert not children_of(server)


async def test_a_storm_of_disconnects_leaves_no_session(long_profile: bool, tmp_path: Path) -> None:
    """200 connections start a process each and are reset, half before the answer: all is swept in time."""
    count, storms = 200, 10 if long_profile else 2
    marker = new_marker()
    log = tmp_path / "stderr"
    options = ("--detached-ttl", "0.5", "--log-level", "info")
    with running(start_daemon("ours", *options, stderr=log)) as daemon:
        server = listening_pid(daemon)
        async with connect(daemon.url) as witness:
            await one_shots(witness, range(10), "true")
            before = await settled(server)
            session_ids: list[str] = []

            async def come_and_go(number: int) -> None:
                async with bare(daemon) as client:
                    await client.handshake()
                    session_ids.append(client.session_id)
                    params = start_params("p", "sleep", marker, tty=number % 4 == 0)
                    await client.send({"id": 2, "method": "process/start", "params": params})
                    if number % 2:
                        await client.until(rb'"id":\s*2\b')
                    await client.reset()

            for storm in range(1, storms + 1):
                with trio.fail_after(PATIENCE_S):
                    async with trio.open_nursery() as nursery:
                        for number in range(count):
                            nursery.start_soon(come_and_go, number)
                await until(lambda: log.read_text().count(" ended") == len(session_ids))
                await until(lambda: not marked(marker))
                await until(lambda: level_of(server).without_memory == before.without_memory)
                print(f"{before} before, {level_of(server)} after storm {storm}")
            assert len(session_ids) == count * storms
            async with connect(daemon.url, handshake=False) as late:
                for session_id in session_ids:
                    params = {"clientName": "tests", "resumeSessionId": session_id}
                    assert (await late.request("initialize", params)).code == INVALID_REQUEST
            assert await witness.run("after", "echo", "hello") == (0, b"hello\n")
    assert "ERROR tsupervise" not in log.read_text()


async def test_the_time_without_a_connection_begins_when_the_first_one_ends() -> None:
    """Even with no such time at all, a session lives while it is held, and is swept when it is let go."""
    marker = new_marker()
    with running(start_daemon("ours", "--detached-ttl", "0")) as daemon:
        server = listening_pid(daemon)
        async with connect(daemon.url) as peer:
            answer = await peer.start("p", "sleep", marker)
            children = children_of(server)
            if answer.error is not None:  # whom nobody owns, nobody ends: not even the end of the daemon
                for child in children:
                    os.kill(child, signal.SIGKILL)
            assert answer.ok()["processId"] == "p"
        await until(lambda: not children_of(server))
        assert not marked(marker)


async def test_python_itself_has_nothing_to_complain_of(tmp_path: Path) -> None:
    """In Python's development mode, with warnings as errors, a mixed day of work ends without a line."""
    marker = new_marker()
    log = tmp_path / "stderr"
    command = [sys.executable, "-X", "dev", "-W", "error", "-m", "tsupervise", "run"]
    options = ("--detached-ttl", "0.2", "--retention", "0.2", "--log-level", "warning")
    with running(start_daemon("ours", *options, command=command, stderr=log)) as daemon:
        async with AsyncExitStack() as held:
            for leave in (leave_politely, leave_rudely):
                async with connect(daemon.url) as peer:
                    await work(peer, marker)
                    await leave(peer)
            ready = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"
            for said in ((), (ready,), (b"junk\r\n\r\n",), (UPGRADE, b"\xff" * 9)):
                await vanish(await dial(daemon, *said), reset=bool(said))
            async with bare(daemon) as deaf:
                await deaf.handshake()
                flood = start_params("flood", "yes", marker)
                await deaf.send({"id": 2, "method": "process/start", "params": flood})
                await until(lambda: bool(marked(marker)))
                await deaf.reset()
            await until(lambda: not marked(marker))
            peers = [await held.enter_async_context(connect(daemon.url)) for _ in range(3)]
            for peer in peers:
                await work(peer, marker)
            os.kill(daemon.pid, signal.SIGTERM)
            for peer in peers:
                await peer.until_ended()
            await until_dead(daemon.pid)
        assert daemon.stop() == 0
    assert not marked(marker)
    assert log.read_text() == ""


async def work(peer: Peer, marker: str) -> None:
    """A bit of everything, with processes and requests still there at the end."""
    assert await peer.run("pipes", "sh", "-c", "echo out; echo err >&2; exit 3") == (3, peer.output("pipes"))
    assert (await peer.start("missing", "no-such-program")).code == INTERNAL_ERROR
    (await peer.start("cat", "cat", pipeStdin=True)).ok()
    (await peer.write("cat", b"hello", "1")).ok()
    await peer.until_output("cat", b"hello")
    (await peer.request("process/closeStdin", {"processId": "cat"})).ok()
    await peer.until_closed("cat")
    (await peer.start("shell", "sh", tty=True)).ok()
    (await peer.request("process/resize", {"processId": "shell", "rows": 40, "cols": 100})).ok()
    (await peer.write("shell", b"stty size; exit\n", "1")).ok()
    await peer.until_output("shell", b"40 100")
    await peer.until_closed("shell")
    for number in range(4):
        (await peer.start(f"long{number}", "sleep", marker, tty=number % 2 == 1)).ok()
    (await peer.terminate("long0")).ok()
    await peer.until_closed("long0")
    (await peer.request("process/signal", {"processId": "long1", "signal": "interrupt"})).ok()
    await peer.until_closed("long1")
    await peer.send("process/read", {"processId": "long2", "waitMs": 600_000})
    await peer.send_raw("{")
    (await peer.request("environment/status")).ok()
    (await peer.request("environment/info")).ok()


async def leave_politely(peer: Peer) -> None:
    await peer.ws.aclose()


async def leave_rudely(peer: Peer) -> None:
    await peer.notify("no/such/notification")
    await peer.until_ended()


async def test_writes_that_wait_are_bounded_in_bytes() -> None:
    """A process that reads nothing, and a client that writes on: what is too much is refused, and told so."""
    chunk = base64.b64encode(bytes(1 << 20)).decode()
    with running(start_daemon()) as daemon:
        server = listening_pid(daemon)
        async with connect(daemon.url) as peer:
            (await peer.start("p", "sleep", "60", pipeStdin=True)).ok()
            before = resident_kib(server)
            writes = [
                await peer.send("process/write", {"processId": "p", "chunk": chunk, "writeId": str(number)})
                for number in range(200)
            ]
            (await peer.request("environment/status")).ok()
            grown = resident_kib(server) - before
            print(f"200 MiB of writes to a process that reads nothing: the daemon grew by {grown} KiB")
            refused = [answer for answer in map(peer.answers.get, writes) if answer and answer.error]
            assert refused
            assert {answer.code for answer in refused} == {TOO_MANY_REQUESTS}
            assert grown < 160 * MIB  # 16 MiB taken, 64 MiB waiting, and Python's room for one more
            (await peer.terminate("p")).ok()
            statuses = [(await peer.answer_to(number)) for number in writes]
            assert all(answer.error or answer.result["status"] for answer in statuses)


async def test_small_requests_for_large_answers_are_bounded() -> None:
    """A segment full of requests whose answers are large costs one answer at a time beyond the bound."""
    with running(start_daemon()) as daemon:
        server = listening_pid(daemon)
        async with connect(daemon.url) as other, bare(daemon) as client:
            await client.handshake()
            metadata = {"label": "y" * 100_000}
            for number in range(20):
                params = {**start_params(f"p{number}", "sleep", "60"), "metadata": metadata}
                await client.send({"id": 2, "method": "process/start", "params": params})
                await client.until(rb'"id":\s*2\b')
            before = resident_kib(server)
            lists = [b'{"id":%d,"method":"process/list"}' % number for number in range(1000, 1300)]
            await client.stream.send_all(b"".join(map(frame, lists)))
            for _ in range(10):
                assert await other.run(f"q{_}", "true") == (0, b"")
            grown = resident_kib(server) - before
            print(f"300 lists of 2 MB each, asked for in one segment: the daemon grew by {grown} KiB")
            assert grown < 32 * MIB
