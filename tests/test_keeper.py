"""The keeper: what a daemon leaves behind is gone, however the daemon ended.

All with the installed command, whose first process is the keeper and whose child is the daemon.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from daemons import Daemon, start_daemon
from procfs import listening_pid, marked, new_marker, until
from tsupervise._keeper import KEPT_BY
from wire import connect

pytestmark = pytest.mark.ours_only("the reference has no keeper")

ESCAPES = """
    (setsid sleep {marker} >/dev/null 2>&1 &)
    (trap "" HUP TERM INT; exec sleep {marker}) &
    echo up; sleep {marker}
"""
"""A process, a deaf child in its group, and an orphan in a session of its own."""


@pytest.fixture
def own_daemon() -> Iterator[Daemon]:
    daemon = start_daemon()
    yield daemon
    daemon.stop()


async def start_escapes(url: str, marker: str) -> None:
    async with connect(url) as peer:
        for name, tty in (("pipe", False), ("pty", True)):
            body = ESCAPES.format(marker=marker)
            (await peer.start(name, "sh", "-c", body, tty=tty)).ok()
            await peer.until_output(name, b"up")
    await until(lambda: len(marked(marker)) == 6)


@pytest.mark.case(22)
async def test_a_killed_daemon_leaves_nothing_behind(own_daemon: Daemon) -> None:
    """SIGKILL to the daemon: children, deaf ones and orphans in other sessions are gone, and so is the keeper."""
    marker = new_marker()
    await start_escapes(own_daemon.url, marker)
    os.kill(listening_pid(own_daemon), signal.SIGKILL)
    await until(lambda: not marked(marker))
    assert own_daemon.process.wait(10) == 128 + signal.SIGKILL


async def test_a_killed_keeper_takes_the_daemon_along(own_daemon: Daemon) -> None:
    """SIGKILL to the keeper: the daemon ends, and with it its processes."""
    marker = new_marker()
    daemon = listening_pid(own_daemon)
    assert daemon != own_daemon.pid
    async with connect(own_daemon.url) as peer:
        (await peer.start("p", "sh", "-c", f"echo up; exec sleep {marker}")).ok()
        await peer.until_output("p", b"up")
        own_daemon.process.kill()
        await peer.until_ended()
    await until(lambda: not marked(marker) and not os.path.exists(f"/proc/{daemon}"))


@pytest.mark.case(21)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_an_orderly_end_leaves_nothing_behind_either(
    own_daemon: Daemon, number: signal.Signals
) -> None:
    """The keeper passes the signal on; the daemon leaves with 0, and what has escaped it does not stay."""
    marker = new_marker()
    await start_escapes(own_daemon.url, marker)
    own_daemon.process.send_signal(number)
    assert own_daemon.process.wait(10) == 0
    assert not marked(marker)


def test_the_interrupt_key_reaches_the_daemon_once() -> None:
    """^C at a terminal goes to keeper and daemon alike; the daemon must not take it for a second signal."""
    command = Path(sysconfig.get_path("scripts")) / "tsupervise"
    terminal: pexpect.spawn[bytes] = pexpect.spawn(str(command), ["run", "--log-level", "info"], timeout=20)
    terminal.delaybeforesend = None
    try:
        terminal.expect("ws://127.0.0.1:")
        terminal.sendintr()
        terminal.expect(pexpect.EOF)
        shown = str(terminal.before)
        assert "stopping" in shown
        assert "again" not in shown
        assert "Traceback" not in shown
    finally:
        terminal.close()
    assert terminal.exitstatus == 0


def test_interpreter_options_reach_the_daemon() -> None:
    """`python -X dev -m tsupervise run` runs the daemon in development mode, too; a usage error keeps its code."""
    command = [sys.executable, "-X", "dev", "-m", "tsupervise", "run", "--retention", "soon"]
    ended = subprocess.run(command, capture_output=True, timeout=20, check=False)
    assert ended.returncode == 2
    assert b"--retention" in ended.stderr


@pytest.mark.parametrize("kept", [True, False], ids=["with-keeper", "daemon-alone"])
async def test_an_ignored_sigchld_is_not_inherited(kept: bool) -> None:
    """Started by a program that ignores SIGCHLD, the daemon still learns how its processes end, and ends itself."""
    mark = [] if kept else [f"{KEPT_BY}{os.getpid()}"]
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN);"
        "os.execv(sys.executable, [sys.executable, '-m', 'tsupervise', *sys.argv[1:]])"
    )
    daemon = start_daemon(command=[sys.executable, "-c", ignoring, *mark, "run"])
    try:
        async with connect(daemon.url) as peer:
            assert await peer.run("p", "sh", "-c", "echo hi; exit 3") == (3, b"hi\n")
        daemon.process.terminate()
        assert daemon.process.wait(10) == 0
    finally:
        daemon.stop()


async def test_two_stop_signals_at_once_leave_nothing_even_without_a_keeper() -> None:
    """A second signal makes the daemon leave at once, but never before its processes are killed."""
    marker = new_marker()
    daemon = start_daemon(command=[sys.executable, "-m", "tsupervise", f"{KEPT_BY}{os.getpid()}", "run"])
    try:
        async with connect(daemon.url) as peer:
            for number in range(20):
                (await peer.start(f"p{number}", "sleep", marker)).ok()
            await until(lambda: len(marked(marker)) == 20)
            for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
                daemon.process.send_signal(number)
            assert daemon.process.wait(10) == 0
        await until(lambda: not marked(marker))
    finally:
        daemon.stop()


def test_a_daemon_whose_keeper_died_before_it_could_look_ends_at_once() -> None:
    """A keeper that is killed in the first moment takes its daemon along like any other."""
    command = [sys.executable, "-m", "tsupervise", f"{KEPT_BY}0", "run", "--listen", "ws://127.0.0.1:0"]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGTERM, b"", b"")


async def test_a_daemon_under_nohup_outlives_the_hangup() -> None:
    """Started with SIGHUP ignored, keeper and daemon go on when it comes; SIGTERM still ends them."""
    daemon = start_daemon(command=["nohup", sys.executable, "-m", "tsupervise", "run"])
    try:
        daemon.process.send_signal(signal.SIGHUP)
        os.kill(listening_pid(daemon), signal.SIGHUP)
        async with connect(daemon.url) as peer:
            assert await peer.run("p", "echo", "hi") == (0, b"hi\n")
        daemon.process.terminate()
        assert daemon.process.wait(10) == 0
    finally:
        daemon.stop()
