"""The door for code that is not async: from plain threads, and from scripts that are interrupted or just end."""

from __future__ import annotations

import hashlib
import inspect
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from time import monotonic, sleep

import pytest
import trio

import tsupervise
from doors import Door
from procfs import marked, new_marker
from tsupervise import Closed, CommandFailed, ConnectFailed, ConnectionLost, Exited, Output, StdinClosed
from tsupervise._loop_thread import LoopThread
from tsupervise.sync import Client

PATIENCE_S = 20.0
NO_CLOSE_STDIN = "the reference cannot end the input of a process without a terminal"


@pytest.fixture
def client(door: Door) -> Generator[Client]:
    with door.open_sync() as client:
        yield client


def until(condition: Callable[[], bool]) -> None:
    """Ask again and again: for facts that nobody announces."""
    deadline = monotonic() + PATIENCE_S
    while not condition():
        assert monotonic() < deadline, "it did not come about in time"
        sleep(0.01)


def async_functions(of: type) -> dict[str, list[str]]:
    return {
        name: [parameter for parameter in inspect.signature(function).parameters if parameter != "timeout"]
        for name, function in vars(of).items()
        if inspect.isfunction(function) and not name.startswith("_")
    }


# --- calls from one thread -------------------------------------------------------------------------------


@pytest.mark.ours_only(NO_CLOSE_STDIN)
def test_a_conversation_without_async(client: Client) -> None:
    """The same calls and streams, each waiting for its outcome; the events are there as well."""
    with client.open_process(["cat"], pipe_stdin=True) as process:
        with process.stdin:
            process.stdin.send_all(b"one\n")
            assert process.stdout.receive_some(2) == b"on"
            assert process.stdout.receive_some() == b"e\n"
            process.write(b"two\n")
        assert b"".join(process.stdout) == b"two\n"
        assert list(process.stderr) == []
        assert process.wait(timeout=PATIENCE_S) == process.exit_code == 0
        process.wait_closed()
        assert process.closed
        *outputs, exited, closed = process.events(timeout=PATIENCE_S)
        assert b"".join(event.data for event in outputs if isinstance(event, Output)) == b"one\ntwo\n"
        assert isinstance(exited, Exited)
        assert isinstance(closed, Closed)
        with pytest.raises(StdinClosed):
            process.close_stdin()


def test_a_command_is_run_and_its_failure_is_an_error(client: Client) -> None:
    """Results and errors are those of the async client."""
    assert client.run(["echo", "hello"]).stdout == b"hello\n"
    with pytest.raises(CommandFailed, match="exit code 3; stderr: no"):
        client.run(["sh", "-c", "echo no >&2; exit 3"])


def test_a_process_is_told_what_to_do(client: Client, door: Door) -> None:
    """Signals, a size and an end arrive; who it is, is known."""
    marker = new_marker()
    # The reference gives every death by a signal on a terminal the exit code 1.
    with client.open_process(["sleep", marker], tty=door.is_ours) as process:
        assert process.process_id in repr(process)
        assert (process.uid is not None) == door.is_ours
        if door.is_ours:
            process.resize(10, 20)
            process.signal("terminate")
            assert process.wait() == 128 + signal.SIGTERM
        else:
            process.interrupt()
            assert process.wait() == 128 + signal.SIGINT
    process = client.start(["sleep", marker])
    assert process.terminate()
    assert process.wait() == 128 + signal.SIGKILL


def test_an_error_of_the_body_ends_the_process_and_comes_through(client: Client) -> None:
    """However a block is left, its process is gone; a detached one is not."""
    marker = new_marker()
    with pytest.raises(KeyError, match="mine"), client.open_process(["sleep", marker]):
        raise KeyError("mine")
    assert not marked(marker)
    with client.open_process(["sleep", marker]) as process:
        process.detach()
    assert process.terminate()
    assert process.wait() == 137


@pytest.mark.ours_only("it has no operators and does not keep sessions")
def test_processes_are_listed_and_attached_to(client: Client) -> None:
    """A handle by name reads and feeds as the first one does."""
    marker = new_marker()
    with client.open_process(["sh", "-c", f"echo {marker}; cat"], pipe_stdin=True) as process:
        assert process.stdout.receive_some() == marker.encode() + b"\n"
        assert process.uid in [entry.uid for entry in client.processes()]
        assert client.status().sessions >= 1
        again = client.attach(process.process_id)
        again.stdin.send_all(b"more\n")
        assert process.stdout.receive_some() == b"more\n"
        client.keep_session()
        client.keep_session(False)
        client.end_session()
        process.wait_closed()


def test_a_flood_arrives_whole(client: Client) -> None:
    """Far more than is kept anywhere, read piece by piece and collected at once."""
    size = 30_000_000
    digest = hashlib.sha256(bytes(size)).hexdigest()
    with client.open_process(["head", "-c", str(size), "/dev/zero"], lossless=True) as process:
        read = hashlib.sha256()
        for data in process.stdout:
            read.update(data)
    assert read.hexdigest() == digest
    assert hashlib.sha256(client.run(["head", "-c", str(size), "/dev/zero"]).stdout).hexdigest() == digest


# --- many threads ----------------------------------------------------------------------------------------


@pytest.mark.ours_only(NO_CLOSE_STDIN)
def test_eight_threads_share_a_client(client: Client) -> None:
    """Each thread gets its own answers, whatever the others wait for."""
    together = threading.Barrier(8)

    def work(number: int) -> None:
        together.wait(PATIENCE_S)
        for turn in range(5):
            text = f"{number}-{turn}\n".encode()
            with client.open_process(["cat"], pipe_stdin=True) as process:
                process.stdin.send_all(text * 1000)
                process.stdin.close()
                assert b"".join(process.stdout) == text * 1000
                assert process.wait(timeout=PATIENCE_S) == 0
            assert client.run(["cat"], input=text).stdout == text

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))


def test_one_thread_waits_while_another_acts(client: Client) -> None:
    """A wait is ended by what another thread does to the process; a stream is for one reader at a time."""
    with ThreadPoolExecutor(3) as threads, client.open_process(["sleep", "600"]) as process:
        waiting = threads.submit(process.wait)
        reading = [threads.submit(process.stdout.receive_some) for _ in range(2)]
        (refused,), (other,) = wait(reading, PATIENCE_S, return_when=FIRST_COMPLETED)
        with pytest.raises(trio.BusyResourceError):
            refused.result()
        process.interrupt()
        assert waiting.result(PATIENCE_S) == 130
        assert other.result(PATIENCE_S) == b""


def test_closing_a_client_ends_what_other_threads_wait_for(door: Door) -> None:
    """A call that waits raises ConnectionLost, the process of an open block is gone, and so is all use."""
    marker = new_marker()
    with ThreadPoolExecutor(2) as threads, door.open_sync() as client:
        block = client.open_process(["sleep", marker])
        process = block.__enter__()
        waiting = threads.submit(process.wait)
        running = threads.submit(lambda: client.run(["sleep", marker]))
        until(lambda: len(marked(marker)) == 2)
        client.close()
        for future in (waiting, running):
            with pytest.raises(ConnectionLost, match="closed"):
                future.result(PATIENCE_S)
        until(lambda: not marked(marker))
        client.close()
        block.__exit__(None, None, None)
        with pytest.raises(ConnectionLost, match="connect again"):
            client.run(["true"])


# --- time ------------------------------------------------------------------------------------------------


def test_every_wait_can_be_bounded(client: Client) -> None:
    """TimeoutError when the time is over: a command is gone then, and output that comes later is not lost."""
    marker = new_marker()
    with pytest.raises(TimeoutError, match=r"0\.1 s"):
        client.run(["sleep", marker], timeout=0.1)
    until(lambda: not marked(marker))
    with client.open_process(
        ["sh", "-c", "read line; echo $line; exec sleep 600"], pipe_stdin=True
    ) as process:
        for call in (process.wait, process.wait_closed, process.stdout.receive_some):
            with pytest.raises(TimeoutError):
                call(timeout=0.01)
        with pytest.raises(TimeoutError):
            next(process.events(timeout=0.01))
        process.write(b"late\n")
        assert process.stdout.receive_some(timeout=PATIENCE_S) == b"late\n"


def test_connecting_can_be_bounded() -> None:
    """A server that accepts and says nothing costs no more than was granted; a refusal is told as it is."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"ws://127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(TimeoutError):
            tsupervise.sync.connect(url, timeout=0.1)
    with pytest.raises(ConnectFailed, match="refused"):
        tsupervise.sync.connect(url)


# --- a loop that ends by itself --------------------------------------------------------------------------


def test_no_thread_waits_for_what_has_failed(caplog: pytest.LogCaptureFixture) -> None:
    """If what the loop holds breaks, calls that wait and calls that come later raise ConnectionLost."""
    break_it = trio.Event()

    async def fail() -> None:
        await break_it.wait()
        raise ZeroDivisionError

    @asynccontextmanager
    async def fragile() -> AsyncGenerator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            yield

    async def break_and_wait() -> None:
        break_it.set()
        await trio.sleep_forever()

    loop = LoopThread(fragile, None)
    with pytest.raises(ConnectionLost):
        loop.call(break_and_wait)
    with pytest.raises(ConnectionLost):
        loop.call(break_and_wait)
    loop.close()
    assert "ZeroDivisionError" in caplog.text


def test_no_thread_waits_for_a_loop_that_has_crashed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even a call that the loop has never taken up stays without an outcome."""

    def crash(call: object) -> None:
        raise ZeroDivisionError

    @asynccontextmanager
    async def nothing() -> AsyncGenerator[None]:
        yield

    loop = LoopThread(nothing, None)
    monkeypatch.setattr(loop, "_begin", crash)
    with pytest.raises(ConnectionLost):
        loop.call(trio.sleep_forever)
    loop.close()
    assert "TrioInternalError" in caplog.text


def test_an_interrupt_before_a_call_was_posted_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at the worst moment: the loop has never heard of the call that is cancelled there."""
    interrupts = iter([KeyboardInterrupt])

    @asynccontextmanager
    async def nothing() -> AsyncGenerator[None]:
        yield

    loop = LoopThread(nothing, None)
    post = loop._post  # pyright: ignore[reportPrivateUsage]

    def interrupted_post(function: Callable[..., object], *args: object) -> None:
        for interrupt in interrupts:
            raise interrupt
        post(function, *args)

    monkeypatch.setattr(loop, "_post", interrupted_post)
    with pytest.raises(KeyboardInterrupt):
        loop.call(trio.sleep_forever)
    loop.close()


# --- scripts ---------------------------------------------------------------------------------------------

OPEN = {
    "embedded": "client = tsupervise.sync.open_supervisor()",
    "ours": "client = tsupervise.sync.connect(sys.argv[1])",
}


@contextmanager
def script(door: Door, text: str, *arguments: str) -> Generator[subprocess.Popen[str]]:
    """Run a program that has a `client`, as strict as Python can be; it does not outlive the block."""
    program = f"import os, signal, sys, threading, time, tsupervise\n{OPEN[door.target]}\n{text}"
    command = [sys.executable, "-u", "-X", "dev", "-W", "error", "-c", program, door.url or "", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def output_of(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=PATIENCE_S)[0]


@pytest.mark.ours_only("what is shown is this side")
def test_control_c_cancels_the_call_and_not_the_client(door: Door) -> None:
    """Ctrl-C while a command runs: KeyboardInterrupt, the command is gone, and the client is of use."""
    marker = new_marker()
    text = """
try:
    print("running")
    client.run(["sleep", sys.argv[2]])
except KeyboardInterrupt:
    print("interrupted")
with client.open_process(["cat"], pipe_stdin=True) as process:
    try:
        print("waiting")
        process.stdout.receive_some()
    except KeyboardInterrupt:
        process.write(b"still of use")
        print(process.stdout.receive_some())
with client, client.open_process(["sleep", sys.argv[2]]) as process:
    print("waiting again")
    process.wait()
"""
    with script(door, text, marker) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        until(lambda: bool(marked(marker) - {process.pid}))
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        # Cancelled before the server has answered its start, it is terminated when that has come.
        until(lambda: not marked(marker) - {process.pid})
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "b'still of use'\n"
        assert process.stdout.readline() == "waiting again\n"
        process.send_signal(signal.SIGINT)
        assert output_of(process).endswith("KeyboardInterrupt\n")
        assert process.returncode == -signal.SIGINT
    assert not marked(marker)


@pytest.mark.ours_only("what is shown is this side")
def test_a_signal_that_wakes_another_thread_interrupts_a_call(door: Door) -> None:
    """The kernel may give Ctrl-C to any thread, and to the main one just before it begins to wait."""
    text = """
def interrupt():
    print("running")
    # Not the main thread: it goes on waiting for its lock.
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)
with client:
    process = client.start(["cat"], pipe_stdin=True)
    thread = threading.Timer(0.2, interrupt)
    thread.start()
    try:
        process.wait()
    except KeyboardInterrupt:
        print("interrupted")
    thread.join()
"""
    with script(door, text) as process:
        assert output_of(process) == "running\ninterrupted\n"
        assert process.returncode == 0


@pytest.mark.ours_only("what is shown is this side")
def test_a_script_may_end_without_closing(door: Door) -> None:
    """The interpreter ends, and with it the process of a block that was never left."""
    marker = new_marker()
    text = """
block = client.open_process(["sleep", sys.argv[2]])
block.__enter__()
"""
    with script(door, text, marker) as process:
        assert output_of(process) == ""
        assert process.returncode == 0
    assert not marked(marker)


@pytest.mark.ours_only("what is shown is this side")
def test_a_client_that_is_stuck_does_not_keep_the_interpreter(door: Door) -> None:
    """The exit waits for it, but not for ever."""
    text = """
from tsupervise import _loop_thread
_loop_thread.EXIT_S = 0.1
is_stuck = threading.Event()
stick = lambda: client._loop.call(lambda: (is_stuck.set(), time.sleep(3600)))
threading.Thread(target=stick, daemon=True).start()
is_stuck.wait()
"""
    with script(door, text) as process:
        assert output_of(process) == ""
        assert process.returncode == 0


@pytest.mark.ours_only("what is shown is this side")
def test_a_forked_child_is_told_to_connect_again(door: Door) -> None:
    """In the child every call fails at once and leaving the blocks does nothing; the parent goes on."""
    text = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, from Python 3.12 on
with client, client.open_process(["cat"], pipe_stdin=True) as process:
    pid = os.fork()
    if pid == 0:
        try:
            process.write(b"x")
        except tsupervise.ConnectionLost as error:
            print(error)
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    process.write(b"from the parent")
    print(process.stdout.receive_some())
"""
    with script(door, text) as process:
        first, second = output_of(process).splitlines()
        assert "before a fork" in first
        assert second == "b'from the parent'"
        assert process.returncode == 0


def test_the_door_is_there_without_an_import_of_its_own() -> None:
    """`tsupervise.sync` needs no `import tsupervise.sync`, and costs nothing until it is used."""
    text = "import sys, tsupervise; print('trio' in sys.modules); print(tsupervise.sync.connect.__module__)"
    ended = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False", "tsupervise.sync"]


def test_connect_takes_what_the_async_one_takes() -> None:
    """Whatever can be said of a connection there can be said here, and how long to wait for it besides."""
    here, there = (
        inspect.signature(connect).parameters for connect in (tsupervise.sync.connect, tsupervise.connect)
    )
    assert dict(here) == {**there, "timeout": here["timeout"]}


# --- files and HTTP --------------------------------------------------------------------------------------


def test_files_have_all_that_the_async_ones_have() -> None:
    """Under the same names, with the same parameters, and how long to wait besides; `close` is `aclose`."""
    here, there = tsupervise.sync.RemoteFiles, tsupervise.RemoteFiles
    assert async_functions(here) == async_functions(there)
    file = async_functions(tsupervise.RemoteFile)
    assert async_functions(tsupervise.sync.RemoteFile) | {"abandon": ["self"], "open": ["self"]} == {
        {"aclose": "close"}.get(name, name): parameters for name, parameters in file.items()
    }
    assert async_functions(tsupervise.sync.HttpResponse) == async_functions(tsupervise.HttpResponse)


def test_files_without_async(client: Client, tmp_path: Path) -> None:
    """Whole ones and open ones, directories, and a watch."""
    data = os.urandom(3 << 20)
    client.files.make_directory(tmp_path / "folder")
    with client.open_file(tmp_path / "folder" / "file", "replace") as file:
        file.write(data[:10], timeout=PATIENCE_S)
        file.write_at(10, data[10:])
        file.flush()
        assert file.position == 10
    assert client.files.read_file(tmp_path / "folder" / "file") == data
    with client.open_file(tmp_path / "folder" / "file") as file:
        assert file.size == len(data)
        assert file.read_at(5, 3) == data[5:8]
        assert b"".join(file) == data
    assert [entry.name for entry in client.files.list_directory(tmp_path / "folder")] == ["file"]
    assert len(client.files.walk(tmp_path).entries) == 2
    watch = client.files.watch_missing([tmp_path / "missing"])
    with pytest.raises(TimeoutError):
        watch.wait(timeout=0.01)
    (tmp_path / "missing").touch()
    watch.wait(timeout=PATIENCE_S)
    client.files.copy(tmp_path / "missing", tmp_path / "copy")
    client.files.remove(tmp_path / "copy")
    assert not client.files.exists(tmp_path / "copy")
    client.files.write_file(tmp_path / "missing", b"12345")
    assert client.files.stat(tmp_path / "missing").size == 5
    assert client.files.canonicalize(tmp_path) == os.path.realpath(tmp_path)
    with pytest.raises(FileNotFoundError), client.open_file(tmp_path / "never"):
        pass


def test_a_file_that_is_left_by_an_error_is_not_waited_for(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in async code: what it has to write may be what does not work."""
    order: list[str] = []
    abandon = tsupervise.RemoteFile.abandon

    async def aclose(file: tsupervise.RemoteFile) -> None:
        order.append("aclose")

    def note(file: tsupervise.RemoteFile) -> None:
        order.append("abandon")
        abandon(file)

    monkeypatch.setattr(tsupervise.RemoteFile, "aclose", aclose)
    monkeypatch.setattr(tsupervise.RemoteFile, "abandon", note)
    with pytest.raises(KeyError), client.open_file(tmp_path / "file", "replace"):
        raise KeyError
    assert order[0] == "abandon"


def test_http_without_async(client: Client) -> None:
    """The response streams, and is there as a whole."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nX-A: 1\r\nContent-Length: 5\r\n\r\nhello")

        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        thread = threading.Thread(target=answer)
        thread.start()
        with client.http_request("GET", url, timeout=PATIENCE_S) as response:
            assert (response.status, response.header("x-a")) == (200, "1")
            assert response.read() == b"hello"
        with client.http_request("GET", url) as response:
            assert b"".join(response) == b"hello"
            assert ("x-a", "1") in response.headers
        thread.join(PATIENCE_S)
