"""The end of a daemon: what it answers, what it lets finish, what it kills, and the code it leaves with."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import trio
import trio.testing

from daemons import Daemon, command_of, running, start_daemon
from http_pages import get
from in_process import open_house
from procfs import marked, new_marker, until
from wire import connect

pytestmark = pytest.mark.ours_only("the reference knows no drain, and other exit codes")

SHUTTING_DOWN = -32014
LINE_READER = 'read line; echo "got $line"; exit 5'


async def until_draining(daemon: Daemon) -> None:
    """Wait until the daemon says that it takes no new work: it has heeded the first signal then."""
    status = 200
    while status != 503:
        status, *_ = await get(daemon, "/readyz")


@pytest.mark.case(156)
async def test_a_draining_daemon_lets_what_runs_end_and_takes_nothing_new() -> None:
    """Its clients go on to the last event, can even come back; new sessions and processes are refused."""
    with running(start_daemon("ours", "--drain", "600")) as daemon:
        async with connect(daemon.url) as peer:
            (await peer.start("p", "sh", "-c", LINE_READER, pipeStdin=True)).ok()
            daemon.process.send_signal(signal.SIGTERM)
            await until_draining(daemon)
            assert (await get(daemon, "/livez"))[0] == 200
            assert (await peer.start("q", "true")).code == SHUTTING_DOWN
            async with connect(daemon.url, handshake=False) as stranger:
                refused = await stranger.request("initialize", {"clientName": "late"})
                assert refused.code == SHUTTING_DOWN
                assert "shutting down" in refused.message
        # The connection was lost: its session is no new work.
        async with connect(daemon.url, resume=peer.session_id) as again:
            (await again.write("p", b"it\n", "w1")).ok()
            await again.until_closed("p")
            assert (again.output("p"), (await again.until_exited("p"))["exitCode"]) == (b"got it\n", 5)
            await again.until_ended()
        assert daemon.process.wait(10) == 0


@pytest.mark.case(156)
async def test_what_does_not_end_within_the_drain_time_is_killed() -> None:
    """The time is a bound: the daemon is gone after it, and what ran with it."""
    marker = new_marker()
    with running(start_daemon("ours", "--drain", "0.2")) as daemon:
        async with connect(daemon.url) as peer:
            (await peer.start("p", "sh", "-c", f"trap '' TERM; echo up; sleep {marker}")).ok()
            await peer.until_output("p", b"up")
            daemon.process.send_signal(signal.SIGTERM)
            await peer.until_ended()
        assert daemon.process.wait(10) == 0
        await until(lambda: not marked(marker))


@pytest.mark.case(156)
async def test_a_second_signal_ends_the_drain() -> None:
    """Nobody waits for ten minutes who presses ^C again."""
    marker = new_marker()
    with running(start_daemon("ours", "--drain", "600")) as daemon:
        async with connect(daemon.url) as peer:
            (await peer.start("p", "sh", "-c", f"echo up; exec sleep {marker}")).ok()
            await peer.until_output("p", b"up")
            daemon.process.send_signal(signal.SIGTERM)
            await until_draining(daemon)
            assert marked(marker)
            daemon.process.send_signal(signal.SIGINT)
            assert daemon.process.wait(10) == 0
        await until(lambda: not marked(marker))


@pytest.mark.case(156)
@pytest.mark.parametrize("reads", [True, False])
async def test_a_drain_waits_for_who_has_not_heard_of_the_end(reads: bool, autojump_clock: object) -> None:
    """All has ended, and still the last events are on their way: they must not be cut off."""
    async with open_house() as house:
        peer = await house.connect()
        (await peer.start("p")).ok()
        if not reads:
            peer.receiving.cancel()
        house.children[0].say(b"the last words")
        house.children[0].end()
        with trio.move_on_after(60) as limit:
            await house.supervisor.wait_until_idle()
        assert limit.cancelled_caught is not reads
        if reads:
            await (
                trio.testing.wait_all_tasks_blocked()
            )  # sent it is; the peer has a task of its own to take it
            assert [event.kind for event in peer.events] == ["output", "exited", "closed"]


@pytest.mark.case(156)
async def test_a_drain_may_have_no_end(tmp_path: Path) -> None:
    """`inf` is as long as it takes; a manager is told some decades."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        env = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        with running(start_daemon("ours", "--drain", "inf", env=env)) as daemon:
            async with connect(daemon.url) as peer:
                (await peer.start("p", "sh", "-c", LINE_READER, pipeStdin=True)).ok()
                daemon.process.send_signal(signal.SIGTERM)
                await until_draining(daemon)
                (await peer.write("p", b"it\n", "w1")).ok()
                await peer.until_closed("p")
            assert daemon.process.wait(10) == 0


@pytest.mark.case(155)
async def test_the_last_lines_hold_up_no_second_signal(tmp_path: Path) -> None:
    """A collector of traces that does not answer costs its time at the end, unless there is another signal."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        env = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
        log = tmp_path / "log"
        with running(start_daemon("ours", env=env, stderr=log)) as daemon:
            async with connect(daemon.url):
                pass
            daemon.process.send_signal(signal.SIGTERM)
            connection, _ = await trio.to_thread.run_sync(silent.accept)
            with connection:
                daemon.process.send_signal(signal.SIGTERM)
                assert await trio.to_thread.run_sync(daemon.process.wait, 10) == 0
        assert "leaving at once" in log.read_text()


@pytest.mark.case(156)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_an_idle_daemon_has_nothing_to_drain(number: signal.Signals) -> None:
    """With no process left it leaves at once, however long it may take, and though a client is there."""
    with running(start_daemon("ours", "--drain", "600")) as daemon:
        async with connect(daemon.url) as peer:
            assert await peer.run("p", "echo", "hi") == (0, b"hi\n")
            daemon.process.send_signal(number)
            await peer.until_ended()
        assert daemon.process.wait(10) == 0


@pytest.mark.case(155)
@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        (("--drain", "soon"), 2, "--drain"),
        (("--drain", "-1"), 2, "--drain"),
        (("--listen", "tcp://127.0.0.1:0"), 1, "--listen"),
        (("--listen", "systemd"), 1, "LISTEN_FDS"),
        (("--audit-log", "/nowhere/audit.log"), 1, "/nowhere/audit.log"),
    ],
)
def test_a_daemon_that_cannot_start_says_why(
    tmp_path: Path, options: tuple[str, ...], code: int, word: str
) -> None:
    """2 for options that make no sense, 1 for what cannot be done; nothing on stdout, one reason on stderr."""
    ended = subprocess.run([*command_of("ours"), *options], capture_output=True, timeout=20, check=False)
    assert (ended.returncode, ended.stdout) == (code, b"")
    assert word in ended.stderr.decode()
    assert "Traceback" not in ended.stderr.decode()
