"""Streams, `run` and `detach`: what a program does with a client, over every door that leads to one."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import trio
import trio.testing

import tsupervise
from daemons import Daemon
from doors import Door
from procfs import marked, new_marker, until
from scripted_server import Script, scripted_server
from tsupervise import (
    Client,
    CommandCrashed,
    CommandFailed,
    Completed,
    ConnectionLost,
    Lost,
    NotSupported,
    ObservedProcess,
    OutcomeUnknown,
    OutputLost,
    ServerRefused,
    StdinClosed,
    TooMuchOutput,
    connect,
)
from tsupervise_protocol.messages import ReadParams

NO_CLOSE_STDIN = "the reference cannot end the input of a process without a terminal"


@pytest.fixture
async def client(door: Door) -> AsyncGenerator[Client]:
    async with door.open() as client:
        yield client


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([data async for data in stream])


async def read_until(stream: trio.abc.ReceiveStream, needle: bytes) -> bytes:
    seen = b""
    while needle not in seen:
        data = await stream.receive_some()
        assert data, f"ended without {needle!r}: {seen!r}"
        seen += data
    return seen


# --- streams -------------------------------------------------------------------------------------------


@pytest.mark.ours_only(NO_CLOSE_STDIN)
async def test_a_conversation_over_the_streams(client: Client) -> None:
    """What is sent comes back, in pieces as small as is asked for, and the end of the input brings the end."""
    async with client.open_process(["cat"], pipe_stdin=True) as process:
        await process.stdin.send_all(b"one\n")
        assert await process.stdout.receive_some(2) == b"on"
        assert await process.stdout.receive_some(2) == b"e\n"
        await process.stdin.wait_send_all_might_not_block()
        await process.stdin.send_all(memoryview(b"two\n"))
        await process.stdin.aclose()
        await process.stdin.aclose()
        assert await read_all(process.stdout) == b"two\n"
        assert await process.stdout.receive_some() == b""
        assert await process.wait() == 0
        with pytest.raises(trio.ClosedResourceError):
            await process.stdin.send_all(b"late")


async def test_stdout_and_stderr_come_apart_whichever_is_read_first(client: Client) -> None:
    """Each has a position of its own, so that the one that is read last has everything too."""
    async with client.open_process(["sh", "-c", "echo out; echo err >&2; echo out2"]) as process:
        assert await read_all(process.stdout) == b"out\nout2\n"
        assert await read_all(process.stderr) == b"err\n"


async def test_a_stream_that_nobody_reads_holds_up_nothing(client: Client) -> None:
    """A lossless process that floods its stderr gets on with its stdout: far more than a pipe takes."""
    script = "head -c 6000000 /dev/zero >&2; echo done"
    async with client.open_process(["sh", "-c", script], lossless=True) as process:
        assert await read_all(process.stdout) == b"done\n"


async def test_two_streams_at_different_speeds_are_whole(client: Client) -> None:
    """A lossless process waits for the slower of two tasks: both streams have every byte that was written."""
    got: dict[str, bytearray] = {}

    async def read(name: str, stream: trio.abc.ReceiveStream, is_slow: bool) -> None:
        data = bytearray()
        async for piece in stream:
            data += piece
            if is_slow:
                await trio.sleep(0.002)
        got[name] = data

    # More than the client and the daemon keep together.
    script = "head -c 6000000 /dev/urandom | tee /dev/stderr"
    async with (
        client.open_process(["sh", "-c", script], lossless=True) as process,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(read, "stdout", process.stdout, False)
        nursery.start_soon(read, "stderr", process.stderr, True)
    assert len(got["stdout"]) == 6_000_000
    assert got["stdout"] == got["stderr"]


async def test_a_lossless_process_waits_for_no_stream_that_was_closed(client: Client) -> None:
    """Reading one stream to its end works after the other one was read a little and closed."""
    script = "echo first >&2; read line; head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2; echo end"
    async with client.open_process(["sh", "-c", script], pipe_stdin=True, lossless=True) as process:
        async with process.stderr as stderr:
            await read_until(stderr, b"first")
        await process.stdin.send_all(b"go\n")
        assert len(await read_all(process.stdout)) == 3_000_004
        with pytest.raises(trio.ClosedResourceError):
            await process.stderr.receive_some()


async def test_output_that_is_gone_is_told_in_its_place(client: Client) -> None:
    """A stream that was overrun says which events are missing and what to do, and goes on behind them."""
    lines = b"".join(b"%d\n" % number for number in range(400_000))
    async with client.open_process(["seq", "0", "399999"]) as process:
        await process.wait_closed()
        with pytest.raises(OutputLost, match="lossless=True") as caught:
            await read_all(process.stdout)
        assert caught.value.first_seq == 1
        rest = await process.stdout.receive_some()
        rest += await read_all(process.stdout)
        assert rest
        assert lines.endswith(rest)
        (lost,) = [event async for event in process.events() if isinstance(event, Lost)]
        assert (lost.first_seq, lost.seq) == (1, caught.value.seq)


async def test_one_direction_is_for_one_task(client: Client) -> None:
    """A second task on the same stream is told so at once, and closing the stream wakes the first."""
    outcomes: list[type[Exception]] = []

    async def wait_in_vain() -> None:
        with pytest.raises(trio.ClosedResourceError) as caught:
            await process.stdout.receive_some()
        outcomes.append(caught.type)

    async with client.open_process(["sleep", "600"], pipe_stdin=True) as process:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_in_vain)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await process.stdout.receive_some()
            await process.stdout.aclose()
        assert outcomes == [trio.ClosedResourceError]
        with pytest.raises(trio.ClosedResourceError):
            await process.stdout.receive_some()


@pytest.mark.ours_only(NO_CLOSE_STDIN)
async def test_two_tasks_cannot_send_at_once(client: Client) -> None:
    """A second sender is told so at once; closing the stdin ends the first one's wait for room."""
    was_woken = trio.Event()

    async def send_too_much() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await process.stdin.send_all(bytes(40 << 20))
        was_woken.set()

    async with (
        client.open_process(["sleep", "600"], pipe_stdin=True) as process,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(send_too_much)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await process.stdin.send_all(b"me too")
        nursery.start_soon(process.stdin.aclose)
        await was_woken.wait()
        await process.terminate()


async def test_a_cancelled_receive_loses_nothing(client: Client) -> None:
    """What comes after a wait that was given up is there for the next one."""
    async with client.open_process(["cat"], pipe_stdin=True) as process:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.stdout.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await process.stdin.send_all(b"here\n")
        assert await read_until(process.stdout, b"\n") == b"here\n"


async def test_no_bytes_can_be_asked_for(client: Client) -> None:
    """To ask for none would look like the end."""
    async with client.open_process(["true"]) as process:
        with pytest.raises(ValueError, match="at least 1"):
            await process.stdout.receive_some(0)


async def test_a_process_that_takes_no_input_says_so(client: Client) -> None:
    """Sending is an error that says what to start it with; closing what is closed is none."""
    async with client.open_process(["true"]) as process:
        await process.wait_closed()
        with pytest.raises(StdinClosed, match="pipe_stdin"):
            await process.stdin.send_all(b"hello")
        if client.environment and client.environment.capabilities.get("tsuperviseCloseStdin"):
            await process.stdin.aclose()


@pytest.mark.ours_only(NO_CLOSE_STDIN)
async def test_a_cancelled_close_still_ends_the_input(client: Client) -> None:
    """Whoever leaves the block of a stdin by cancellation leaves no process that waits for more."""
    async with client.open_process(["wc", "-c"], pipe_stdin=True) as process:
        with trio.CancelScope() as scope:
            async with process.stdin:
                await process.stdin.send_all(b"12345")
                scope.cancel()
        assert scope.cancelled_caught
        assert await read_all(process.stdout) == b"5\n"


@pytest.mark.parametrize("typed", [b"a line\n", b"half a line"])
async def test_a_terminal_has_one_stream_and_its_input_can_end(client: Client, typed: bytes) -> None:
    """Its output is stdout; closing its stdin types Ctrl-D as often as it takes, and the program sees the end."""
    async with client.open_process(
        ["sh", "-c", "stty -echo; echo ready; cat; echo end >&2"], tty=True
    ) as process:
        await read_until(process.stdout, b"ready")
        await process.stdin.send_all(typed)
        await process.stdin.aclose()
        printed = await read_until(process.stdout, b"end")
        assert typed.rstrip() in printed
        assert await read_all(process.stderr) == b""
        assert await process.wait() == 0


@pytest.mark.ours_only("it has no operators")
async def test_the_streams_of_an_observed_process(daemon: Daemon) -> None:
    """A process of another session is read and fed by the same streams."""
    async with (
        Door("ours", daemon.url).open() as owner,
        connect(daemon.url) as other,
        owner.open_process(["cat"], pipe_stdin=True) as process,
    ):
        await process.stdin.send_all(b"from its owner\n")
        await read_until(process.stdout, b"\n")
        assert process.uid is not None
        observed = await other.attach(process.uid)
        assert isinstance(observed, ObservedProcess)
        await read_until(observed.stdout, b"owner\n")
        await observed.stdin.send_all(b"from another\n")
        await observed.stdin.aclose()
        assert await read_all(observed.stdout) == b"from another\n"
        assert await read_all(observed.stderr) == b""
        assert await read_all(process.stdout) == b"from another\n"


async def test_a_lossless_reader_that_starts_late_cannot_stop_its_own_answer() -> None:
    """What one stream asks the server for arrives, though the other one is too slow for anything to be received."""

    async def play(script: Script) -> None:
        await script.handshake()
        p = await script.start()
        for seq in range(1, 301):
            await script.output(p, seq, b"x")
        read = await script.expect("process/read")
        for seq in range(301, 601):
            await script.output(p, seq, b"x")
        chunks = [{"seq": seq, "stream": "stdout", "chunk": "eA=="} for seq in range(1, 601)]
        chunks[9]["stream"] = "stderr"
        await script.answer(
            read, {"chunks": chunks, "nextSeq": 601, "exited": False, "exitCode": None, "closed": False}
        )
        await script.until_gone()

    async with scripted_server(play) as url, connect(url, recovery_s=0) as client:
        process = await client.start(["yes"], lossless=True)
        for _ in range(300):
            await process.stdout.receive_some()
        with trio.fail_after(10):
            assert await process.stderr.receive_some() == b"x"


async def test_a_process_that_is_lost_ends_its_streams_with_the_reason() -> None:
    """Both directions raise ConnectionLost once the connection is gone for good."""

    async def play(script: Script) -> None:
        await script.handshake()
        p = await script.start()
        await script.output(p, 1)

    async with scripted_server(play) as url, connect(url, recovery_s=0) as client:
        process = await client.start(["cat"], pipe_stdin=True)
        assert await process.stdout.receive_some() == b"1\n"
        for _ in range(2):
            with pytest.raises(ConnectionLost):
                await process.stdout.receive_some()
        with pytest.raises(ConnectionLost):
            await process.stdin.send_all(b"x")


# --- run -----------------------------------------------------------------------------------------------


async def test_run_returns_what_a_command_wrote_and_how_it_ended(client: Client, tmp_path: Path) -> None:
    """Streams apart, the command itself, and no error without `check`; start options are heeded."""
    argv = ["sh", "-c", "pwd; echo $GREETING >&2; exit 3"]
    completed = await client.run(argv, check=False, cwd=tmp_path, env={**os.environ, "GREETING": "hi"})
    assert completed == Completed(tuple(argv), 3, None, os.fsencode(tmp_path) + b"\n", b"hi\n")


async def test_a_command_without_input_reads_nothing(client: Client) -> None:
    """Without `input` stdin is at its end from the start."""
    assert (await client.run(["cat"])).stdout == b""


async def test_a_failure_shows_the_command_its_code_and_the_end_of_stderr(client: Client) -> None:
    """The text is enough to see what went wrong, and `completed` has the rest."""
    argv = ["sh", "-c", "seq 10000 >&2; echo no luck >&2; exit 7"]
    with pytest.raises(
        CommandFailed, match=r"(?s)^sh -c '.*' ended with exit code 7; stderr: \.\.\..*no luck$"
    ) as caught:
        await client.run(argv)
    assert not isinstance(caught.value, CommandCrashed)
    assert len(str(caught.value)) < 3000
    assert caught.value.completed.exit_code == 7
    assert caught.value.completed.stderr.endswith(b"9999\n10000\nno luck\n")


async def test_a_crash_is_told_from_a_failure(client: Client, door: Door) -> None:
    """A signal is named, where the server tells of it; elsewhere 128 + n is all there is."""
    with pytest.raises(CommandFailed) as caught:
        await client.run(["sh", "-c", "kill -SEGV $$"])
    assert caught.value.completed.exit_code == 128 + signal.SIGSEGV
    if door.is_ours:
        assert isinstance(caught.value, CommandCrashed)
        assert caught.value.completed.term_signal == signal.SIGSEGV
        assert str(caught.value) == "sh -c 'kill -SEGV $$' was ended by SIGSEGV"


async def test_a_command_that_cannot_be_started_is_no_failure_of_it(client: Client) -> None:
    """What the server refuses stays the server's word."""
    with pytest.raises(ServerRefused, match="No such file"):
        await client.run(["/nowhere/to/be/found"])


@pytest.mark.ours_only(NO_CLOSE_STDIN)
async def test_input_is_fed_while_output_is_collected(client: Client) -> None:
    """More than any queue on the way takes goes round, whole and in order."""
    data = os.urandom(20_000_000)
    assert (await client.run(["cat"], input=data)).stdout == data


@pytest.mark.ours_only(NO_CLOSE_STDIN)
async def test_empty_input_is_an_input_that_ends(client: Client) -> None:
    """A pipe, unlike None, but one with nothing in it."""
    completed = await client.run(["sh", "-c", "test -p /dev/stdin && cat"], input=b"")
    assert completed.stdout == b""


@pytest.mark.ours_only(NO_CLOSE_STDIN)
async def test_a_command_need_not_read_its_input(client: Client) -> None:
    """One that ends early, or closes its stdin and goes on, is no error."""
    data = bytes(40_000_000)
    assert (await client.run(["head", "-c", "1"], input=data)).stdout == b"\0"
    assert (await client.run(["sh", "-c", "exec <&-; echo deaf"], input=data)).stdout == b"deaf\n"


async def test_input_that_cannot_be_ended_is_refused_before_anything_is_started(
    door: Door, tmp_path: Path
) -> None:
    """At a server without an end of input, such as the reference, `input` is an error and no wait for ever."""
    touched = tmp_path / "touched"
    async with door.open() as client:
        if door.is_ours:
            assert client.environment is not None
            client.environment.capabilities["tsuperviseCloseStdin"] = False
        with pytest.raises(NotSupported, match="tsuperviseCloseStdin"):
            await client.run(["touch", str(touched)], input=b"x")
    assert not touched.exists()


async def test_on_a_terminal_all_output_is_stdout(client: Client) -> None:
    """Input is typed and ended by Ctrl-D, which needs no help of the server."""
    script = "stty -echo; echo ready; cat; tty >&2"
    completed = await client.run(["sh", "-c", script], tty=True, input=b"typed\n")
    assert b"typed\r\n" in completed.stdout.replace(b"^D\b\b", b"")
    assert b"/dev/pts/" in completed.stdout
    assert completed.stderr == b""


async def test_too_much_output_ends_the_command(client: Client) -> None:
    """A flood is stopped at the bound, with an error that says what to do, and the client goes on."""
    marker = new_marker()
    with pytest.raises(TooMuchOutput, match=r"more than 100000 bytes .* raise max_output_bytes"):
        await client.run(["sh", "-c", f"sleep {marker} & yes"], max_output_bytes=100_000)
    await until(lambda: not marked(marker))
    assert (await client.run(["echo", "on"], max_output_bytes=3)).stdout == b"on\n"


async def test_a_cancelled_run_leaves_no_process(client: Client) -> None:
    """The command is terminated, at the latest when the server has answered its start."""
    marker = new_marker()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run, ["sleep", marker])
        await until(lambda: bool(marked(marker)))
        nursery.cancel_scope.cancel()
    await until(lambda: not marked(marker))


async def test_an_end_that_nobody_knows_is_an_unknown_outcome() -> None:
    """Exit code -1 is neither success nor failure, whatever `check` says."""

    async def play(script: Script) -> None:
        await script.handshake()
        for _ in range(2):
            p = await script.start()
            await script.exited(p, 1, exitCode=-1)
            await script.closed(p, 2)
            await script.answer(await script.expect("process/terminate"), {"running": False})
        await script.until_gone()

    async with scripted_server(play) as url, connect(url, recovery_s=0) as client:
        for check in (True, False):
            with pytest.raises(OutcomeUnknown, match="'true' has ended, but the server does not know how"):
                await client.run(["true"], check=check)


async def test_a_connection_that_is_lost_is_no_failure_of_the_command() -> None:
    """Nothing is said of how the command ended, for it may run still."""

    async def play(script: Script) -> None:
        await script.handshake()
        await script.start()

    async with scripted_server(play) as url, connect(url, recovery_s=0) as client:
        with pytest.raises(ConnectionLost):
            await client.run(["true"])


async def test_input_that_the_server_refuses_ends_the_command() -> None:
    """A command that lacks a part of its input is not waited for; it is terminated and the refusal raised."""

    async def play(script: Script) -> None:
        await script.handshake(
            environmentInfo={
                "shell": {"name": "sh", "path": "/bin/sh"},
                "cwd": "file:///tmp",
                "capabilities": {"tsuperviseCloseStdin": True},
            }
        )
        p = await script.start()
        await script.refuse(await script.expect("process/write"), -32603, "no more")
        await script.answer(await script.expect("process/terminate"), {"running": True})
        await script.exited(p, 1, exitCode=137)
        await script.closed(p, 2)
        await script.until_gone()

    async with scripted_server(play) as url, connect(url, recovery_s=0) as client:
        with pytest.raises(ServerRefused, match="no more"):
            await client.run(["cat"], input=b"x")


# --- detach --------------------------------------------------------------------------------------------


async def test_a_detached_process_outlives_its_block(client: Client) -> None:
    """It belongs to the session from then on, and is read and terminated as any other."""
    async with client.open_process(["sh", "-c", "echo here; exec sleep 600"], process_id="kept") as process:
        process.detach()
    assert await read_until(process.stdout, b"\n") == b"here\n"
    answer = await client.call("process/read", ReadParams(process_id="kept", wait_ms=0))
    assert not answer.exited
    assert await process.terminate()
    assert await process.wait() == 137


@pytest.mark.parametrize("number", [signal.SIGRTMIN + 3, 200])
def test_a_signal_without_a_name_is_told_by_its_number(number: int) -> None:
    """Not every number that a server may send has a name here."""
    error = CommandCrashed(Completed(("x",), 128 + number, number, b"", b""))
    assert str(error) == f"x was ended by signal {number}"


def test_a_long_command_is_shown_in_part() -> None:
    """An error's text stays readable."""
    error = tsupervise.CommandFailed(Completed(("x" * 1000,), 1, None, b"", b"\xff"))
    assert str(error) == f"{'x' * 200}... ended with exit code 1; stderr: \\xff"
