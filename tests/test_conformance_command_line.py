"""The server as a command: what it accepts, what it prints, how it ends, and its stdio transport."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import cast

import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection

from daemons import START_S, Daemon, command_of, read_line, running, start_daemon
from procfs import until_dead
from wire import PATIENCE_S, Answer, Peer, connect

STATUS = "environment/status"
READY = {"status": "ready"}
MALFORMED = -32600

STUBBORN = 'trap "" TERM INT HUP; sleep 300 & echo $$ $! up; wait'
"""A shell and a child of its group, both deaf to polite signals; it prints their pids and `up`."""


async def exit_code(daemon: Daemon) -> int:
    """The exit code of a server that is about to end by itself."""
    await until_dead(daemon.pid)
    return daemon.process.wait()


async def start_stubborn(peer: Peer, process_id: str, *, tty: bool) -> list[int]:
    """Start STUBBORN and return the pids of its shell and its child."""
    (await peer.start(process_id, "sh", "-c", STUBBORN, tty=tty)).ok()
    return [int(word) for word in (await peer.until_output(process_id, b"up")).split()[:2]]


def start_with_stdin(target: str, *options: str) -> Daemon:
    """A server whose stdin is a pipe that the test holds."""
    arguments = [*command_of(target), *options]
    process = subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    return Daemon(target, process, read_line(process), arguments)


def run_to_its_end(target: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a server that must give up by itself."""
    return subprocess.run(
        [*command_of(target), *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )


class Lines:
    """What `wire.Peer` needs of a WebSocket, over the pipes of a server on stdio: one message is one line."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.stdin = process.stdin
        self.stdout = process.stdout
        self._unread = b""

    async def get_message(self) -> str:
        while b"\n" not in self._unread:
            try:
                data = await self.stdout.receive_some()  # type: ignore[attr-defined]
            except trio.ClosedResourceError:
                data = b""
            if not data:
                assert not self._unread, "the server ended in the middle of a line"
                raise ConnectionClosed(None)
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    async def send_message(self, message: str) -> None:
        await self.stdin.send_all(message.encode() + b"\n")


class StdioPeer(Peer):
    """A peer on the stdin and stdout of a server of its own."""

    def __init__(self, process: trio.Process) -> None:
        lines = Lines(process)
        super().__init__(cast("WebSocketConnection", lines))
        self.process = process
        self.stdin = lines.stdin
        self.stdout = lines.stdout

    async def send_bytes(self, data: bytes) -> None:
        await self.stdin.send_all(data)

    async def exit_code(self) -> int:
        """The exit code of the server, which is about to end by itself."""
        with trio.fail_after(PATIENCE_S):
            return await self.process.wait()


@asynccontextmanager
async def stdio_server(
    target: str, *, listen: str = "stdio", handshake: bool = True
) -> AsyncGenerator[StdioPeer]:
    """A server on stdio and its only peer; at the end of the block its stdin is closed."""
    process = await trio.lowlevel.open_process(
        [*command_of(target), "--listen", listen],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    peer = StdioPeer(process)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.read)
            if handshake:
                await peer.handshake()
            yield peer
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await peer.stdin.aclose()
            await peer.stdout.aclose()
            with trio.move_on_after(5):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()


@pytest.mark.case(1)
@pytest.mark.parametrize("options", [(), ("--listen", "ws://127.0.0.1:0")], ids=["by default", "by name"])
async def test_a_server_prints_where_it_listens_and_nothing_else(
    target: str, options: tuple[str, ...]
) -> None:
    """One line with the real port, true at once, is all that ever appears on stdout."""
    with running(start_with_stdin(target, *options)) as daemon:
        assert daemon.url.startswith("ws://127.0.0.1:")
        assert daemon.address[1] > 0
        async with connect(daemon.url) as peer:
            assert await peer.run("p", "echo", "hello") == (0, b"hello\n")
        daemon.process.terminate()
        await exit_code(daemon)
        assert daemon.process.stdout is not None
        assert daemon.process.stdout.read() == b""


INVALID = "Error: invalid websocket --listen URL"
UNSUPPORTED = "Error: unsupported --listen URL"


@pytest.mark.case(2)
@pytest.mark.parametrize(
    ("url", "beginning"),
    [
        ("ws://localhost:0", INVALID),
        ("ws://127.0.0.1", INVALID),
        ("ws://127.0.0.1:", INVALID),
        ("ws://127.0.0.1:99999", INVALID),
        ("ws://127.0.0.1:-1", INVALID),
        ("ws://127.0.0.1:0/", INVALID),
        ("ws://127.0.0.1:0/path", INVALID),
        ("ws://::1:0", INVALID),
        ("ws://", INVALID),
        ("http://127.0.0.1:0", UNSUPPORTED),
        ("wss://127.0.0.1:0", UNSUPPORTED),
        ("127.0.0.1:0", UNSUPPORTED),
        ("WS://127.0.0.1:0", UNSUPPORTED),
        (" ws://127.0.0.1:0", UNSUPPORTED),
        ("", UNSUPPORTED),
        ("stdio:", UNSUPPORTED),
    ],
)
def test_an_address_that_cannot_be_listened_on_is_refused(target: str, url: str, beginning: str) -> None:
    """An address is an IP and a port in one exact spelling; anything else ends the start with a reason."""
    ended = run_to_its_end(target, "--listen", url)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith(beginning)


@pytest.mark.case(2)
def test_an_unknown_option_is_a_usage_error(target: str) -> None:
    """A command line that makes no sense ends with exit code 2 and leaves stdout empty."""
    ended = run_to_its_end(target, "--listen", "ws://127.0.0.1:0", "--no-such-option")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "--no-such-option" in ended.stderr


@pytest.mark.ours_only("options of this daemon alone")
@pytest.mark.case(2)
@pytest.mark.parametrize(
    "option",
    [
        ("--detached-ttl", "soon"),
        ("--detached-ttl", "-1"),
        ("--detached-ttl", "nan"),
        ("--retention", "-1"),
        ("--retention", "nan"),
        ("--retained-bytes", "lots"),
        ("--log-level", "loud"),
        ("--log-format", "xml"),
    ],
    ids=" ".join,
)
def test_a_bad_value_of_an_option_is_a_usage_error(target: str, option: tuple[str, str]) -> None:
    """A value that an option does not take is a usage error that names the option."""
    ended = run_to_its_end(target, "--listen", "ws://127.0.0.1:0", *option)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert option[0] in ended.stderr


@pytest.mark.ours_only("the reference listens anywhere without a word")
@pytest.mark.case(2)
@pytest.mark.parametrize("url", ["ws://0.0.0.0:0", "ws://[::]:0"])
def test_a_listener_beyond_loopback_is_refused(target: str, url: str) -> None:
    """Nobody opens a process server to a network by accident: the refusal says which option means it."""
    ended = run_to_its_end(target, "--listen", url)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "--insecure" in ended.stderr


@pytest.mark.case(3)
def test_a_taken_port_is_an_error(target: str) -> None:
    """A port that somebody else holds ends the start with the system's reason."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        ended = run_to_its_end(target, "--listen", f"ws://127.0.0.1:{holder.getsockname()[1]}")
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith("Error: ")
    assert "in use (os error 98)" in ended.stderr


@pytest.mark.case(3)
async def test_a_server_listens_on_ipv6(target: str) -> None:
    """An IPv6 address is written in brackets, in the option and in the printed line."""
    with running(start_daemon(target, listen="ws://[::1]:0")) as daemon:
        assert daemon.url.startswith("ws://[::1]:")
        async with connect(daemon.url) as peer:
            assert await peer.run("p", "echo", "hello") == (0, b"hello\n")


@pytest.mark.ours_only("the reference takes --exit-on-stdin-close for another mode only")
@pytest.mark.case(4)
async def test_the_end_of_stdin_ends_a_server_that_was_told_so(target: str) -> None:
    """Bytes on stdin mean nothing; its end means what SIGTERM means."""
    with running(start_with_stdin(target, "--exit-on-stdin-close")) as daemon:
        stdin = daemon.process.stdin
        assert stdin is not None
        async with connect(daemon.url) as peer:
            pids = await start_stubborn(peer, "p", tty=False)
            stdin.write(b"these bytes\nare thrown away\n" * 100)
            stdin.flush()
            assert (await peer.request(STATUS)).ok() == READY
            stdin.close()
            await peer.until_ended()
        assert await exit_code(daemon) == 0
        for pid in pids:
            await until_dead(pid)


@pytest.mark.ours_only("the reference takes --exit-on-stdin-close for another mode only")
@pytest.mark.case(4)
def test_an_empty_stdin_counts_as_closed(target: str) -> None:
    """With /dev/null for stdin, a server that is to end with its stdin ends at once."""
    options = ("--listen", "ws://127.0.0.1:0", "--exit-on-stdin-close")
    assert run_to_its_end(target, *options).returncode == 0


@pytest.mark.case(4)
async def test_the_end_of_stdin_means_nothing_otherwise(target: str) -> None:
    """A server that was not told to watch its stdin outlives it."""
    with running(start_with_stdin(target)) as daemon:
        assert daemon.process.stdin is not None
        daemon.process.stdin.close()
        async with connect(daemon.url) as peer:
            assert await peer.run("p", "echo", "hello") == (0, b"hello\n")


@pytest.mark.case(18)
@pytest.mark.parametrize("listen", ["stdio", "stdio://"])
async def test_stdio_carries_one_message_a_line(target: str, listen: str) -> None:
    """A command runs over stdin and stdout as over a WebSocket, and stdout has nothing but messages."""
    async with stdio_server(target, listen=listen) as peer:
        assert await peer.run("p", "sh", "-c", "echo hello; exit 3") == (3, b"hello\n")


@pytest.mark.case(18)
async def test_stdio_takes_either_line_end_and_skips_blank_lines(target: str) -> None:
    """CRLF ends a line as LF does, a line of white space is none, and lines may arrive in any pieces."""
    async with stdio_server(target) as peer:
        before = len(peer.arrivals)
        one, two, three, four = (b'{"id":%d,"method":"environment/status"}' % n for n in (101, 102, 103, 104))
        await peer.send_bytes(one + b"\r\n" + two + b"\n\n  \n\t\r\n\r\n" + three[:10])
        assert (await peer.answer_to(102)).ok() == READY
        await peer.send_bytes(three[10:] + b"\r")
        await peer.send_bytes(b"\n" + four + b"\n")
        assert (await peer.answer_to(104)).ok() == READY
        answers = [arrival for arrival in peer.arrivals[before:] if isinstance(arrival, Answer)]
        assert [(answer.id, answer.ok()) for answer in answers] == [(n, READY) for n in (101, 102, 103, 104)]


@pytest.mark.case(18)
@pytest.mark.parametrize("line", ["not json", "{}", "[]", '{"id":null,"method":"environment/status"}'])
async def test_stdio_answers_a_malformed_line_and_goes_on(target: str, line: str) -> None:
    """A line that is no message gets an error with id -1, before the handshake and after it."""
    async with stdio_server(target, handshake=False) as peer:
        for _ in range(2):
            await peer.send_raw(line)
            answer = await peer.answer_to(-1)
            assert answer.code == MALFORMED
            assert answer.message.startswith("failed to parse JSON-RPC message from exec-server stdio: ")
            del peer.answers[-1]
            if peer.session_id is None:
                await peer.handshake()
        assert (await peer.request(STATUS)).ok() == READY


@pytest.mark.case(18)
async def test_stdio_ends_at_bytes_that_are_no_text(target: str) -> None:
    """A line that is not UTF-8 ends the server, and its processes with it."""
    async with stdio_server(target) as peer:
        pids = await start_stubborn(peer, "p", tty=False)
        await peer.send_bytes(b'{"id":1,"method":"\xff\xfe"}\n')
        assert await peer.exit_code() == 0
        for pid in pids:
            await until_dead(pid)


@pytest.mark.case(18)
async def test_stdio_ends_at_a_line_that_is_too_long(target: str, long_profile: bool) -> None:
    """A line may be 64 MiB long; one byte more ends the server."""
    if not long_profile:
        pytest.skip("sends 128 MiB; runs with --profile=long")
    limit = 64 << 20
    head, tail = b'{"id":500,"method":"environment/status","x":"', b'"}'
    async with stdio_server(target) as peer:
        await peer.send_bytes(head + b"x" * (limit - len(head) - len(tail)) + tail + b"\n")
        assert (await peer.answer_to(500)).ok() == READY
        with suppress(trio.BrokenResourceError):  # it need not wait for the rest
            await peer.send_bytes(b"x" * (limit + 1) + b"\n")
        assert await peer.exit_code() == 0


@pytest.mark.case(19)
@pytest.mark.parametrize("tty", [False, True], ids=["pipes", "terminal"])
async def test_the_end_of_stdin_ends_a_stdio_server(target: str, tty: bool) -> None:
    """At the end of its stdin the server kills every process and ends with exit code 0."""
    async with stdio_server(target) as peer:
        pids = await start_stubborn(peer, "p", tty=tty)
        await peer.stdin.aclose()
        await peer.until_ended()
        assert await peer.exit_code() == 0
        for pid in pids:
            await until_dead(pid)


@pytest.mark.ours_only("the reference may end before it has answered")
@pytest.mark.case(19)
async def test_the_last_line_on_stdin_needs_no_end(target: str) -> None:
    """A last request without a line end is answered like any other before the server ends."""
    async with stdio_server(target) as peer:
        pids = await start_stubborn(peer, "p", tty=False)
        await peer.send_bytes(b'{"id":"last","method":"environment/status"}')
        await peer.stdin.aclose()
        await peer.until_ended()
        assert peer.answers["last"].ok() == READY
        assert await peer.exit_code() == 0
        for pid in pids:
            await until_dead(pid)


@pytest.mark.ours_only("the reference lingers until its stdin ends")
@pytest.mark.case(20)
@pytest.mark.parametrize("line", ['{"method":"no/such/notification"}', '{"id":1,"result":{}}'])
async def test_a_violation_ends_a_stdio_server(target: str, line: str) -> None:
    """What costs a WebSocket client its connection ends a stdio server, with exit code 1 and at once."""
    async with stdio_server(target) as peer:
        pids = await start_stubborn(peer, "p", tty=False)
        await peer.send_raw(line)
        assert await peer.exit_code() == 1
        for pid in pids:
            await until_dead(pid)


@pytest.mark.ours_only("the reference lingers until its stdin yields something")
@pytest.mark.case(20)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_ends_a_stdio_server_while_stdin_stays_open(
    target: str, number: signal.Signals
) -> None:
    """A stdio server that is told to end does not wait for its client to hang up."""
    async with stdio_server(target) as peer:
        pids = await start_stubborn(peer, "p", tty=False)
        peer.process.send_signal(number)
        assert await peer.exit_code() == 0
        for pid in pids:
            await until_dead(pid)


@pytest.mark.ours_only("the reference does not notice")
@pytest.mark.case(20)
async def test_a_stdio_server_whose_output_nobody_reads_ends(target: str) -> None:
    """Once its stdout is closed at the other end, a server has nobody to answer to: exit code 0."""
    async with stdio_server(target) as peer:
        pids = await start_stubborn(peer, "p", tty=False)
        await peer.stdout.aclose()
        await peer.send(STATUS)
        assert await peer.exit_code() == 0
        for pid in pids:
            await until_dead(pid)


async def assert_ended_by(target: str, number: signal.Signals) -> None:
    """The signal ends the server well and leaves nothing of its processes, on pipes or in a terminal."""
    with running(start_daemon(target)) as daemon:
        async with connect(daemon.url) as peer:
            pids = [
                *await start_stubborn(peer, "pipes", tty=False),
                *await start_stubborn(peer, "terminal", tty=True),
            ]
            assert len(set(pids)) == 4
            daemon.process.send_signal(number)
            await peer.until_ended()
        assert await exit_code(daemon) == 0
        for pid in pids:
            await until_dead(pid)


@pytest.mark.case(21)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_polite_signal_ends_server_and_processes(target: str, number: signal.Signals) -> None:
    """SIGTERM and SIGINT end the server with exit code 0, and its processes even if those ignore both."""
    await assert_ended_by(target, number)


@pytest.mark.ours_only("the reference dies of it and leaves background children behind")
@pytest.mark.case(21)
async def test_a_hangup_ends_server_and_processes(target: str) -> None:
    """SIGHUP means what SIGTERM means."""
    await assert_ended_by(target, signal.SIGHUP)


@pytest.mark.case(21)
async def test_a_signal_ends_processes_of_detached_sessions(target: str) -> None:
    """A session that nobody holds at the moment is ended with the server like any other."""
    with running(start_daemon(target)) as daemon:
        async with connect(daemon.url) as peer:
            pids = await start_stubborn(peer, "p", tty=False)
        daemon.process.terminate()
        assert await exit_code(daemon) == 0
        for pid in pids:
            await until_dead(pid)
