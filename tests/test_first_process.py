"""The command as process 1 of a PID namespace, as in a container: it reaps, passes signals on, and ends.

Real namespaces, made by unshare(1); who is not root is not given any.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator

import pytest
import trio

from daemons import Daemon, command_of, start_daemon
from procfs import children_of, marked, new_marker, status_field, until
from wire import connect

pytestmark = [
    pytest.mark.ours_only("the reference reaps nothing"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a PID namespace needs root"),
    pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed"),
    pytest.mark.case(159),
]

DOUBLE_FORK = """
    (setsid sh -c 'sleep {marker} & sleep {short} & :' >/dev/null 2>&1 </dev/null &)
    echo started
"""
"""Two orphans in a session of their own: nobody that they know is left when it is through."""


@pytest.fixture
def namespace() -> Iterator[Daemon]:
    """`Daemon.process` is unshare, and its one child is process 1."""
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    daemon = start_daemon(command=[*unshare, *command_of("ours")])
    yield daemon
    if daemon.process.poll() is None:
        daemon.process.kill()
    daemon.stop()


def first_of(daemon: Daemon) -> int:
    """Process 1, by its number outside."""
    (pid,) = children_of(daemon.pid)
    assert status_field(pid, "NSpid").split()[-1] == "1"
    return pid


def zombies_below(pid: int) -> list[int]:
    return [
        child
        for parent in (pid, *children_of(pid))
        for child in children_of(parent)
        if status_field(child, "State").startswith("Z")
    ]


async def test_orphans_are_reaped(namespace: Daemon) -> None:
    """One that has ended is no zombie, neither below the daemon nor below process 1."""
    marker, short = new_marker(), "0.05"
    async with connect(namespace.url) as peer:
        body = DOUBLE_FORK.format(marker=marker, short=short)
        assert await peer.run("p", "sh", "-c", body) == (0, b"started\n")
        await until(lambda: bool(marked(marker)))
        first = first_of(namespace)
        # A stray of another origin, as `podman exec` leaves them: process 1 is its parent at once.
        inside = ["nsenter", f"--target={first}", "--pid", "--mount"]
        stray = f"(setsid sleep {short} >/dev/null 2>&1 </dev/null &)"
        await trio.run_process([*inside, "sh", "-c", stray])
        (orphan,) = marked(marker)
        os.kill(orphan, signal.SIGKILL)

        def all_gone() -> bool:
            return not zombies_below(first) and not marked(marker) and len(children_of(first)) == 1

        await until(all_gone)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_all_of_it_with_0(namespace: Daemon, number: signal.Signals) -> None:
    """The kernel spares process 1 what it does not ask for; it does ask, and everything goes with it."""
    marker = new_marker()
    async with connect(namespace.url) as peer:
        body = DOUBLE_FORK.format(marker=marker, short=marker) + f"trap '' TERM; exec sleep {marker}"
        (await peer.start("p", "sh", "-c", body)).ok()
        await until(lambda: len(marked(marker)) == 3)
        os.kill(first_of(namespace), number)
        await peer.until_ended()
    assert namespace.process.wait(10) == 0
    assert not marked(marker)


async def test_a_killed_daemon_ends_process_1_with_its_code(namespace: Daemon) -> None:
    """A container is restarted by its code; nothing is left in it meanwhile."""
    marker = new_marker()
    async with connect(namespace.url) as peer:
        (await peer.start("p", "sh", "-c", DOUBLE_FORK.format(marker=marker, short=marker))).ok()
        await until(lambda: len(marked(marker)) == 2)
        daemon = min(children_of(first_of(namespace)))
        os.kill(daemon, signal.SIGKILL)
        await peer.until_ended()
    assert namespace.process.wait(10) == 128 + signal.SIGKILL
    assert not marked(marker)
