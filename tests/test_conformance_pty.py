"""Processes on a terminal: its defaults, its keys, its end, its size, and input that nobody reads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio

from complete_events import output_of, until_complete
from daemons import Daemon
from gates import gate_at
from procfs import cpu_seconds, listening_pid
from wire import Peer, connect

SIZE_AFTER_WINCH = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})
size = os.get_terminal_size()
print("size", size.lines, size.columns, flush=True)
while True:
    signal.sigwait({signal.SIGWINCH})
    size = os.get_terminal_size()
    print("size", size.lines, size.columns, flush=True)
"""
"""A program that tells the size of its terminal, and again at each SIGWINCH."""


async def type_in(peer: Peer, process_id: str, keys: bytes) -> None:
    """Write to a terminal; the keys are the write id, so that no test types the same twice."""
    assert (await peer.write(process_id, keys, keys.hex())).ok() == {"status": "accepted"}


@pytest.mark.case(96)
async def test_a_terminal_starts_with_the_kernel_defaults(daemon: Daemon) -> None:
    """24 rows and 80 columns, canonical mode with echo and signals, CR and NL mapped, no UTF-8 erase."""
    async with connect(daemon.url) as peer:
        code, output = await peer.run("p", "stty", "-a", tty=True)
        assert code == 0
        words = output.decode().replace(";", " ;").split()
        for flag in ("isig", "icanon", "echo", "icrnl", "opost", "onlcr", "ixon", "-iutf8"):
            assert flag in words
        text = " ".join(words)
        for setting in ("speed 38400 baud", "rows 24", "columns 80", "intr = ^C", "erase = ^?", "eof = ^D"):
            assert setting in text
        assert await peer.run("q", "stty", "size", tty=True) == (0, b"24 80\r\n")


@pytest.mark.case(96)
async def test_typed_text_is_echoed_before_it_is_answered(daemon: Daemon) -> None:
    """The echo is output of the stream `pty`, and so is what the program says."""
    async with connect(daemon.url) as peer:
        (await peer.start("p", "cat", tty=True)).ok()
        await type_in(peer, "p", b"half")
        await peer.until_output("p", b"half")
        assert peer.output("p") == b"half"
        await type_in(peer, "p", b" line\n")
        await peer.until(lambda: peer.output("p").count(b"\r\n") == 2)
        assert peer.output("p") == b"half line\r\nhalf line\r\n"
        assert {event.params["stream"] for event in peer.events("p")} == {"pty"}
        await peer.terminate("p")


@pytest.mark.case(96)
async def test_the_keys_of_the_terminal_work(daemon: Daemon) -> None:
    """^C and ^\\ are signals to the foreground, ^D at the start of a line is the end of input."""
    keys = {"interrupt": b"\x03", "quit": b"\x1c", "end": b"\x04"}
    # The signals meet `exec cat`: a shell that is about to fork may swallow one that comes just then.
    body = "ulimit -c 0; echo ready; {}cat; echo cat ended with $?"
    async with connect(daemon.url) as peer:
        for name, key in keys.items():
            command = body.format("" if name == "end" else "exec ")
            (await peer.start(name, "sh", "-c", command, tty=True)).ok()
            await peer.until_output(name, b"ready\r\n")
            await type_in(peer, name, key)
            await peer.until_closed(name)
        assert peer.output("end") == b"ready\r\ncat ended with 0\r\n"
        for name, echo in (("interrupt", b"^C"), ("quit", b"^\\")):
            assert peer.output(name).startswith(b"ready\r\n" + echo)
            assert (await peer.until_exited(name))["exitCode"] != 0


@pytest.mark.case(96)
async def test_a_trapped_interrupt_key_is_the_programs_own(daemon: Daemon) -> None:
    """A program on the terminal that handles SIGINT goes on and ends as it likes."""
    async with connect(daemon.url) as peer:
        body = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done"
        (await peer.start("p", "sh", "-c", body, tty=True)).ok()
        await peer.until_output("p", b"ready\r\n")
        await type_in(peer, "p", b"\x03")
        await peer.until_closed("p")
        assert peer.output("p").replace(b"^C", b"") == b"ready\r\ncaught\r\n"
        assert (await peer.until_exited("p"))["exitCode"] == 9


@pytest.mark.case(96)
async def test_a_terminal_loses_nothing_of_a_long_output(daemon: Daemon, tmp_path: Path) -> None:
    """Five megabytes come complete, each newline as CR NL, and only then the close."""
    data = b"".join(b"%09d\n" % i for i in range(500_000))
    (tmp_path / "data").write_bytes(data)
    async with connect(daemon.url) as peer:
        (await peer.start("p", "cat", str(tmp_path / "data"), tty=True)).ok()
        events = await until_complete(peer, "p")
        assert output_of(events) == data.replace(b"\n", b"\r\n")
        assert events[-1].kind == "closed"
        assert [event.seq for event in events] == list(range(1, len(events) + 1))


@pytest.mark.case(97)
@pytest.mark.ours_only("the reference stops reading when the last open descriptor of the terminal closes")
async def test_a_terminal_that_nobody_holds_open_can_be_opened_again(daemon: Daemon, tmp_path: Path) -> None:
    """A line written to /dev/tty after all descriptors were closed arrives; the wait for it costs nothing."""
    body = 'echo early; exec <&- >&- 2>&-; echo >"$0"; read x <"$1"; echo late >/dev/tty; exit 6'
    (tmp_path / "back").mkdir()
    with gate_at(tmp_path) as closed, gate_at(tmp_path / "back") as go_on:
        async with connect(daemon.url) as peer:
            (await peer.start("p", "sh", "-c", body, closed.path, go_on.path, tty=True)).ok()
            await closed.until_opened()
            listener = listening_pid(daemon)
            before = cpu_seconds(listener)
            # An end of file that is never left alone would burn this half second whole.
            await trio.sleep(0.5)
            assert cpu_seconds(listener) - before < 0.25
            go_on.open()
            await peer.until_closed("p")
            assert peer.output("p") == b"early\r\nlate\r\n"
            assert (await peer.until_exited("p"))["exitCode"] == 6


@pytest.mark.case(98)
async def test_input_that_a_terminal_does_not_take_disturbs_nobody(daemon: Daemon) -> None:
    """200 KB for a raw terminal that never reads are accepted, and everything else goes on as before."""
    async with connect(daemon.url) as peer, connect(daemon.url) as other:
        (await peer.start("p", "sh", "-c", "stty raw -echo; echo ready; exec sleep 30", tty=True)).ok()
        await peer.until_output("p", b"ready")
        assert (await peer.write("p", b"x" * 200_000, "w")).ok() == {"status": "accepted"}
        for connection in (peer, other):
            assert await connection.run("q", "echo", "alive") == (0, b"alive\n")
            assert await connection.run("r", "echo", "alive", tty=True) == (0, b"alive\r\n")
        assert (await peer.terminate("p")).ok() == {"running": True}
        await peer.until_closed("p")


@pytest.mark.case(99)
@pytest.mark.ours_only("the reference has no resize")
async def test_a_running_terminal_can_be_resized(daemon: Daemon) -> None:
    """The program on it gets SIGWINCH and sees the new size."""
    async with connect(daemon.url) as peer:
        (await peer.start("p", sys.executable, "-ISc", SIZE_AFTER_WINCH, tty=True)).ok()
        await peer.until_output("p", b"size 24 80\r\n")
        for rows, cols in ((50, 132), (1, 1), (65535, 65535)):
            answer = await peer.request("process/resize", {"processId": "p", "rows": rows, "cols": cols})
            assert answer.ok() == {}
            await peer.until_output("p", f"size {rows} {cols}\r\n".encode())
        await peer.terminate("p")


@pytest.mark.case(99)
@pytest.mark.ours_only("the reference has no resize")
async def test_only_a_terminal_can_be_resized(daemon: Daemon) -> None:
    """An unknown process is -32600; a process on pipes or an impossible size is -32602."""
    async with connect(daemon.url) as peer:
        (await peer.start("pipe", "sleep", "30")).ok()
        (await peer.start("pty", "sleep", "30", tty=True)).ok()

        async def code_of(process_id: str, **size: object) -> int:
            return (await peer.request("process/resize", {"processId": process_id, **size})).code

        assert await code_of("nobody", rows=10, cols=10) == -32600
        assert await code_of("pipe", rows=10, cols=10) == -32602
        for bad in (0, -1, 65536, 1.5, "10", None):
            assert await code_of("pty", rows=bad, cols=10) == -32602
            assert await code_of("pty", rows=10, cols=bad) == -32602
        assert await code_of("pty", rows=10) == -32602
        for process_id in ("pipe", "pty"):
            await peer.terminate(process_id)
