"""Nothing outlives its owner: random trees of processes, ended in every way that there is, leave nobody behind.

Who is left is found by another process among all of the machine (`process_trees`). The long profile grows two
thousand trees and prints how long their ends took.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Literal

import pytest
import trio

from daemons import Daemon, command_of, read_line, running, start_daemon
from process_trees import ORDINARY_USER, Trees, as_user, built_trees, delegated_group
from procfs import listening_pid
from wire import Peer, connect

SIZE = 25
"""How many processes a tree has at most, but for those that fork for ever."""

TREES = {False: 2, True: 50}
"""Trees of one test, by whether the profile is the long one; eight at a time."""

BATCH = 8

Mode = Literal["root-cgroup", "root-subreaper", "user-cgroup", "user-subreaper"]
MODES: tuple[Mode, ...] = ("root-cgroup", "root-subreaper", "user-cgroup", "user-subreaper")

OFF = """
import sys
from tsupervise import _containment, _keeper, __main__
async def sweep(self, key): pass
_containment.Containment.sweep = sweep
_containment.Enclosure.kill = lambda self: None
_keeper._end_what_is_left = lambda spared: None
__main__.main()
"""
"""The command without containment: what is left is the signal to the process group."""

seeds = count(1)


@pytest.fixture(scope="module")
def built() -> Iterator[Trees]:
    with built_trees() as trees:
        yield trees


@pytest.fixture
def trees(built: Trees) -> Iterator[Trees]:
    yield built
    built.end()


@contextmanager
def started(mode: Mode, *options: str) -> Generator[Daemon]:
    """A daemon that runs as the user and with the means of a mode."""
    with ExitStack() as stack:
        if mode == "user-cgroup":
            wrapper = stack.enter_context(delegated_group(ORDINARY_USER))
        elif mode == "user-subreaper":
            wrapper = as_user(ORDINARY_USER)
        else:
            wrapper = as_user(0)
        if mode.endswith("subreaper"):
            options = (*options, "--no-cgroup")
        command = [*wrapper, *command_of("ours")]
        yield stack.enter_context(running(start_daemon("ours", *options, command=command)))


@pytest.fixture(scope="module", params=MODES)
def lasting(request: pytest.FixtureRequest) -> Iterator[tuple[Mode, Daemon]]:
    """One daemon for each mode, for the endings that it outlives."""
    with started(request.param, "--detached-ttl", "0.1") as daemon:
        yield request.param, daemon


def batches(long_profile: bool) -> Iterator[int]:
    left = TREES[long_profile]
    while left > 0:
        yield min(left, BATCH)
        left -= BATCH


async def grow(peer: Peer, trees: Trees, number: int, options: str, names: Iterator[str]) -> list[str]:
    """Start as many trees, every third on a terminal, and wait until each has told that it is up."""
    started: list[str] = []
    for name, _ in zip(names, range(number), strict=False):
        tty = len(started) % 3 == 2
        (await peer.start(name, *trees.grow(next(seeds), SIZE, options), tty=tty)).ok()
        started.append(name)
    for name in started:
        await peer.until_output(name, b"up")
    return started


def new_names() -> Iterator[str]:
    return (f"p{number}" for number in count(1))


async def check_gone(trees: Trees) -> None:
    """At this very moment nobody lives, and soon nobody is left to be reaped either."""
    assert trees.survivors() == []
    await trees.until_gone()


@pytest.mark.case(92, 93, 130, 131)
@pytest.mark.ours_only("the reference signals direct children only")
@pytest.mark.parametrize("ending", ["running", "exited", "closed"])
async def test_terminate_leaves_nobody(
    lasting: tuple[Mode, Daemon], trees: Trees, ending: str, long_profile: bool
) -> None:
    """When `closed` follows a terminate nobody is left, be the process running, exited or closed by then."""
    options = {"running": "", "exited": "e", "closed": "eq"}[ending]
    slowest = 0.0
    for number in batches(long_profile):
        async with connect(lasting[1].url) as peer:
            names = await grow(peer, trees, number, options, new_names())
            for name in names:
                if ending != "running":
                    await peer.until_exited(name)
                if ending == "closed":
                    await peer.until_closed(name)
            began = trio.current_time()
            requests = [await peer.send("process/terminate", {"processId": name}) for name in names]
            for request in requests:
                (await peer.answer_to(request)).ok()
            if ending == "closed":
                # Its events are all told: only the processes can tell.
                await until_no_survivors(trees)
            for name in names:
                await peer.until_closed(name)
            slowest = max(slowest, trio.current_time() - began)
            await check_gone(trees)
    print(f"\n{lasting[0]} terminate {ending}: {TREES[long_profile]} trees, at most {slowest:.3f} s a batch")


async def until_no_survivors(trees: Trees) -> None:
    """Of that no event tells, and whoever forks and goes may be missed now and then."""
    with trio.fail_after(20):
        calm = 0
        while calm < 5:
            calm = 0 if trees.survivors() else calm + 1
            await trio.sleep(0.01)


@pytest.mark.case(130, 131)
@pytest.mark.ours_only("the reference signals direct children only")
@pytest.mark.parametrize("ending", ["ended", "expired"])
async def test_the_end_of_a_session_leaves_nobody(
    lasting: tuple[Mode, Daemon], trees: Trees, ending: str, long_profile: bool
) -> None:
    """Ended by a request or by its time, a session takes along what its processes have left, closed ones too."""
    slowest = 0.0
    for number in batches(long_profile):
        async with connect(lasting[1].url) as peer:
            names = new_names()
            closed = await grow(peer, trees, number // 2, "eq", names)
            await grow(peer, trees, number - number // 2, "", names)
            for name in closed:
                await peer.until_closed(name)
            began = trio.current_time()
            if ending == "ended":
                (await peer.request("session/end")).ok()
                slowest = max(slowest, trio.current_time() - began)
                await check_gone(trees)
        if ending == "expired":
            await until_no_survivors(trees)
            slowest = max(slowest, trio.current_time() - began)
            await trees.until_gone()
    print(f"\n{lasting[0]} session {ending}: {TREES[long_profile]} trees, at most {slowest:.3f} s a batch")


@pytest.mark.case(20, 21, 22, 130, 131)
@pytest.mark.ours_only("the reference signals direct children only")
@pytest.mark.parametrize("ending", ["terminated", "killed", "keeper-terminated"])
@pytest.mark.parametrize("mode", MODES)
async def test_the_end_of_a_daemon_leaves_nobody(
    mode: Mode, trees: Trees, ending: str, long_profile: bool
) -> None:
    """SIGTERM, SIGKILL, or SIGTERM to the keeper: when the keeper has gone, nobody is left."""
    if not long_profile and mode in ("root-subreaper", "user-cgroup"):
        pytest.skip("each daemon takes its time: in the long profile")
    slowest = 0.0
    for number in batches(long_profile):
        with started(mode) as daemon:
            async with connect(daemon.url) as peer:
                names = new_names()
                await grow(peer, trees, number // 2, "e", names)
                await grow(peer, trees, number - number // 2, "", names)
                target = daemon.pid if ending == "keeper-terminated" else listening_pid(daemon)
                began = trio.current_time()
                os.kill(target, signal.SIGKILL if ending == "killed" else signal.SIGTERM)
                await peer.until_ended()
                code = await trio.to_thread.run_sync(daemon.process.wait, 10)
                slowest = max(slowest, trio.current_time() - began)
            assert code == (128 + signal.SIGKILL if ending == "killed" else 0)
            await check_gone(trees)
    print(f"\n{mode} daemon {ending}: {TREES[long_profile]} trees, at most {slowest:.3f} s a batch")


@pytest.mark.case(130)
@pytest.mark.parametrize("ending", ["left", "cancelled", "rolled-back"])
@pytest.mark.parametrize("mode", ["root-cgroup", "root-tag", "user-tag"])
async def test_the_end_of_an_owner_leaves_nobody(
    mode: str, trees: Trees, ending: str, long_profile: bool
) -> None:
    """In a program that supervises by itself: a block that is left or cancelled, or a start that is given up."""
    if not long_profile and mode == "root-tag":
        pytest.skip("each program takes its time: in the long profile")
    kind = mode.partition("-")[2]
    wrapper = as_user(ORDINARY_USER if mode.startswith("user") else 0)
    # Orphans are not a mere program's: nobody there finds one that has shed all that it could be known by.
    options = "s"
    slowest = 0.0
    for number in batches(long_profile):
        commands = [trees.grow(next(seeds), SIZE, options) for _ in range(number)]
        script = Path(__file__).with_name("tree_owner.py")
        owner = subprocess.Popen(  # noqa: ASYNC220 - it is but a moment
            [*wrapper, sys.executable, script, ending, kind, json.dumps(commands)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/tmp",
        )
        with owner:
            assert owner.stdin is not None
            reported = await trio.to_thread.run_sync(read_line, owner)
            if reported != kind and kind == "cgroup":
                owner.stdin.close()
                pytest.skip("there are no control groups to be had")
            assert reported == kind
            with trio.fail_after(20):
                while len(trees.survivors()) < number:  # noqa: ASYNC110 - other people's processes set no event
                    await trio.sleep(0.01)
            began = trio.current_time()
            owner.stdin.write(b"go\n")
            owner.stdin.flush()
            assert await trio.to_thread.run_sync(read_line, owner) == "ended"
            slowest = max(slowest, trio.current_time() - began)
            assert trees.survivors() == []
            assert [member for member in trees.members() if member.parent == owner.pid] == []
            owner.stdin.close()
        assert owner.returncode == 0
    print(f"\n{mode} block {ending}: {TREES[long_profile]} trees, at most {slowest:.3f} s a batch")


@pytest.mark.parametrize("ending", ["terminate", "session", "killed"])
async def test_without_containment_the_same_look_finds_survivors(trees: Trees, ending: str) -> None:
    """What escapes does get away, and the look at the machine does see it, where nothing contains it."""
    daemon = start_daemon("ours", "--no-cgroup", command=[sys.executable, "-c", OFF, "run"])
    with running(daemon):
        async with connect(daemon.url) as peer:
            names = ["daemon", "setsid", "deaf", "stopped"]
            for name in names:
                (await peer.start(name, *trees.escape(name))).ok()
                await peer.until_output(name, b"up")
            if ending == "terminate":
                for name in names:
                    (await peer.terminate(name)).ok()
            elif ending == "session":
                (await peer.request("session/end")).ok()
            else:
                os.kill(listening_pid(daemon), signal.SIGKILL)
                assert await trio.to_thread.run_sync(daemon.process.wait, 10) == 128 + signal.SIGKILL
            assert {member.name for member in trees.survivors()} == set(trees.names[-4:])
