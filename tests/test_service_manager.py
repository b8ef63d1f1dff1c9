"""Under a service manager: what the daemon tells it, and the socket that it passes.

The manager is the test: a real datagram socket, and a process that passes a listening socket as systemd does, by
number to whom it then becomes.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from daemons import Daemon, command_of, running, start_daemon
from procfs import children_of, descriptor_flags, listening_pid, until_stopped
from tsupervise._metrics import Metrics
from tsupervise._service_manager import Handover, ServiceManager, take_handover
from tsupervise._shutdown import watch_loop
from wire import PATIENCE_S, connect

pytestmark = pytest.mark.ours_only("the reference knows no service manager")

DEPLOY = Path(__file__).parents[1] / "deploy"

PASS_A_SOCKET = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS=sys.argv[2], LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="tsupervise")
os.execv(sys.argv[3], sys.argv[3:])
"""


@dataclass
class Manager:
    """The socket at which somebody hears how the daemon is."""

    socket: socket.socket
    address: str

    def hear(self, timeout_s: float = PATIENCE_S) -> dict[str, str]:
        """The next message, by its fields."""
        self.socket.settimeout(timeout_s)
        lines = self.socket.recv(4096).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def hear_until(self, field: str) -> dict[str, str]:
        """The next message that has this field."""
        while field not in (message := self.hear()):
            pass
        return message

    def hear_the_last(self, timeout_s: float) -> None:
        """What was sent before may still come, but it must come to an end: then this times out."""
        for _ in range(20):
            self.hear(timeout_s)


@pytest.fixture
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    """A manager that listens at a path, or by indirect parametrization at an abstract name."""
    address: str = getattr(request, "param", None) or str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + address[1:] if address.startswith("@") else address)
        yield Manager(sock, address)


def notified(manager: Manager, *options: str, **variables: str) -> Daemon:
    return start_daemon("ours", *options, env={**os.environ, "NOTIFY_SOCKET": manager.address, **variables})


@pytest.mark.case(157)
@pytest.mark.parametrize(
    "manager", [None, f"@tsupervise-{os.getpid()}"], indirect=True, ids=["path", "abstract"]
)
async def test_the_manager_is_told_when_the_daemon_is_ready_and_when_it_stops(manager: Manager) -> None:
    """READY once it can be connected to, with its URL for people; STOPPING at the signal, with its time."""
    with running(notified(manager, "--drain", "30")) as daemon:
        ready = manager.hear()
        assert ready["READY"] == "1"
        assert daemon.url in ready["STATUS"]
        daemon.process.send_signal(signal.SIGTERM)
        stopping = manager.hear()
        assert stopping["STOPPING"] == "1"
        assert int(stopping["EXTEND_TIMEOUT_USEC"]) > 30_000_000
        assert daemon.process.wait(10) == 0


@pytest.mark.case(157)
async def test_a_daemon_that_does_not_turn_gives_no_sign_of_life(manager: Manager) -> None:
    """It pings several times in the watchdog's time while its loop turns, and not while it does not."""
    # The number is the keeper's, which is the one that a manager starts.
    with running(notified(manager, WATCHDOG_USEC="300000")) as daemon:
        for _ in range(3):
            manager.hear_until("WATCHDOG")
        pid = listening_pid(daemon)
        os.kill(pid, signal.SIGSTOP)
        try:
            await until_stopped(pid)
            with pytest.raises(TimeoutError):
                manager.hear_the_last(0.4)
        finally:
            os.kill(pid, signal.SIGCONT)
        manager.hear_until("WATCHDOG")


@pytest.mark.case(157)
async def test_what_the_manager_passes_is_not_for_children(manager: Manager) -> None:
    """A program under the daemon is no service of its own: it sees none of the manager's variables."""
    with running(notified(manager, WATCHDOG_USEC="60000000")) as daemon:
        async with connect(daemon.url) as peer:
            everything: dict[str, Any] = {"exclude": [], "set": {}, "includeOnly": []}
            policy = {"inherit": "all", "ignoreDefaultExcludes": True, **everything}
            _, output = await peer.run("p", "env", env={}, envPolicy=policy)
    names = {line.partition("=")[0] for line in output.decode().splitlines()}
    assert "PATH" in names
    assert not names & {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID"}


@pytest.mark.case(157)
async def test_a_daemon_whose_manager_is_gone_serves_on(tmp_path: Path) -> None:
    """Nobody at the socket: one warning, and everything else as ever."""
    log = tmp_path / "log"
    env = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "30000"}
    with running(start_daemon("ours", env=env, stderr=log)) as daemon:
        async with connect(daemon.url) as peer:
            assert await peer.run("p", "echo", "hi") == (0, b"hi\n")
        assert daemon.stop() == 0
    assert log.read_text().count("service manager") == 1


async def test_a_blocked_loop_sends_no_ping_and_is_seen_to_lag(manager: Manager) -> None:
    """The pings come from the loop itself, so that a task that holds it up is noticed."""
    metrics = Metrics()
    service = ServiceManager(Handover(manager.address, watchdog_s=0.03))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_loop, metrics, service)
        await trio.to_thread.run_sync(manager.hear_until, "WATCHDOG")
        manager.socket.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                manager.socket.recv(4096)
        deadline = trio.current_time() + 0.3
        while trio.current_time() < deadline:
            pass
        with pytest.raises(BlockingIOError):
            manager.socket.recv(4096)
        await trio.to_thread.run_sync(manager.hear_until, "WATCHDOG")
        nursery.cancel_scope.cancel()
    service.close()
    lines = list(metrics.loop_lag.samples("lag"))
    (under_100_ms,) = (line for line in lines if 'le="0.1"' in line)
    assert int(under_100_ms.split()[-1]) < int(lines[-1].split()[-1])


def test_what_is_meant_for_another_process_is_not_taken() -> None:
    """Variables that were inherited by chance count for nothing, and are not handed on either."""
    # The test's own parent counts as its keeper, and may well be process 1.
    other = next(str(pid) for pid in (1, 2, 3) if pid not in (os.getpid(), os.getppid()))
    environ = {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": other, "LISTEN_FDS": "2", "LISTEN_PID": other}
    environ |= {"LISTEN_FDNAMES": "a:b", "NOTIFY_SOCKET": "", "OTHER": "stays"}
    assert take_handover(environ) == Handover(None, None, range(3, 3))
    assert environ == {"OTHER": "stays"}


@pytest.mark.parametrize("count", ["", "two", "-1", "²"])
def test_numbers_that_are_none_count_as_not_given(count: str) -> None:
    """Whoever passes such a thing passes nothing."""
    environ = {"LISTEN_FDS": count, "LISTEN_PID": str(os.getpid()), "WATCHDOG_USEC": count}
    assert take_handover(environ) == Handover(None, None, range(3, 3))


def passing(sock: socket.socket, count: int = 1, *, command: str | None = None) -> list[str]:
    """The command line of a process that passes a socket to the daemon that it becomes."""
    sock.set_inheritable(True)
    executable, *rest = command_of("ours")
    return [sys.executable, "-c", PASS_A_SOCKET, str(sock.fileno()), str(count), executable, *rest]


def start_passed(sock: socket.socket, *options: str, count: int = 1) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*passing(sock, count), "--listen", "systemd", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[sock.fileno()],
    )


@pytest.mark.case(158)
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_socket_that_is_passed_is_listened_at(host: str) -> None:
    """The daemon says its URL, serves, and takes even a client that came before it; children do not get it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        listener.listen()
        port = listener.getsockname()[1]
        early = socket.create_connection((host, port))
        process = start_passed(listener)
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            url = (await trio.to_thread.run_sync(process.stdout.readline)).decode().strip()
            assert url == (f"ws://[{host}]:{port}" if ":" in host else f"ws://{host}:{port}")
            async with connect(url) as peer:
                code, output = await peer.run("p", "sh", "-c", "ls /proc/self/fd | wc -l; env")
            assert code == 0
            assert output.startswith(b"4\n"), "stdin, stdout, stderr, and the folder that ls reads"
            assert b"LISTEN_" not in output
            (daemon,) = children_of(process.pid)
            assert descriptor_flags(daemon, 3) & os.O_CLOEXEC
            early.settimeout(PATIENCE_S)
            early.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await trio.to_thread.run_sync(early.recv, 100)).startswith(b"HTTP/1.1 200 ")
        finally:
            process.terminate()
            early.close()
            _, errors = await trio.to_thread.run_sync(process.communicate)
        assert (process.returncode, b"Traceback" in errors) == (0, False)


@pytest.mark.case(147, 158)
async def test_tls_is_spoken_at_a_socket_that_is_passed(tmp_path: Path) -> None:
    """With a certificate the URL says wss, and a client that trusts it is served."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca")
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "both")
    files = ("--tls-cert", str(tmp_path / "both"), "--tls-key", str(tmp_path / "both"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        process = start_passed(listener, *files)
        assert process.stdout is not None
        try:
            url = (await trio.to_thread.run_sync(process.stdout.readline)).decode().strip()
            assert url == f"wss://127.0.0.1:{listener.getsockname()[1]}"
            tls = ssl.create_default_context(cafile=str(tmp_path / "ca"))
            async with connect(url, tls=tls) as peer:
                assert await peer.run("p", "echo", "hello") == (0, b"hello\n")
        finally:
            process.terminate()
            _, errors = await trio.to_thread.run_sync(process.communicate)
        assert (process.returncode, errors.count(b"Traceback")) == (0, 0)


@pytest.mark.case(158)
async def test_a_socket_of_the_file_system_that_is_passed_is_listened_at(tmp_path: Path) -> None:
    """The daemon says its URL and serves; the file is the service manager's, and stays."""
    path = tmp_path / "door.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        process = start_passed(listener)
        assert process.stdout is not None
        try:
            url = (await trio.to_thread.run_sync(process.stdout.readline)).decode().strip()
            assert url == f"unix://{path}"
            async with connect(url) as peer:
                assert await peer.run("p", "echo", "hello") == (0, b"hello\n")
        finally:
            process.terminate()
            await trio.to_thread.run_sync(process.communicate)
        assert process.returncode == 0
    assert path.exists()


@pytest.mark.case(158)
@pytest.mark.parametrize(
    ("kind", "count", "word"),
    [
        ("stream", 2, "2 sockets"),
        ("datagram", 1, "SOCK_DGRAM"),
        ("deaf", 1, "does not listen"),
        ("far", 1, "0.0.0.0"),
        ("unix datagram", 1, "SOCK_DGRAM"),
        ("abstract", 1, "ListenStream= with a path"),
    ],
)
def test_a_socket_that_will_not_do_is_refused(kind: str, count: int, word: str, tmp_path: Path) -> None:
    """Exit code 1 and what is wrong with it; one beyond loopback needs what any such listener needs."""
    address: str | tuple[str, int] = ("0.0.0.0" if kind == "far" else "127.0.0.1", 0)
    if kind == "unix datagram":
        address = str(tmp_path / "s")
    elif kind == "abstract":
        address = f"\0tsupervise-tests-{os.getpid()}"
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    is_stream = "datagram" not in kind
    with socket.socket(family, socket.SOCK_STREAM if is_stream else socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        if is_stream and kind != "deaf":
            sock.listen()
        process = start_passed(sock, count=count)
        output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (1, b"")
    assert word in errors.decode()


@pytest.mark.case(157, 158)
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_units_are_good(tmp_path: Path) -> None:
    """systemd finds no fault in them, with the command put where this machine has it."""
    executable, *_ = command_of("ours")
    for name in ("tsupervise.socket", "tsupervise.service"):
        text = (DEPLOY / name).read_text("utf-8")
        (tmp_path / name).write_text(text.replace("/usr/local/bin/tsupervise", executable))
    units = [str(tmp_path / name) for name in ("tsupervise.socket", "tsupervise.service")]
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, timeout=60
    )
    faults = [line for line in checked.stderr.splitlines() if "tsupervise" in line]
    assert (checked.returncode, faults) == (0, [])


def test_the_unit_says_what_the_daemon_needs() -> None:
    """Readiness from the keeper's child, control groups of its own, and time enough for its drain."""
    lines = (DEPLOY / "tsupervise.service").read_text("utf-8").splitlines()
    fields = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    assert fields["Type"] == "notify"
    assert fields["NotifyAccess"] == "all"
    assert fields["Delegate"] == "yes"
    assert fields["KillMode"] == "mixed"
    assert "ProtectControlGroups" not in fields
    command = fields["ExecStart"].split()
    assert float(fields["TimeoutStopSec"]) > float(command[command.index("--drain") + 1])
