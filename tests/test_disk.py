"""Threads for calls to file systems: what hangs there holds up nobody else, and nobody who wants to go."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from daemons import running, start_daemon
from mounts import dead_mount, small_mount
from tsupervise._disk import MAX_THREADS, THREADS, Disk, SharedFd, os_failure
from tsupervise_protocol.errors import ErrorCode, RpcError
from wire import connect

PATIENCE_S = 20.0


class Pipe:
    """A pipe in the file system: to open it for reading hangs, in the kernel, until it is let go."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "fifo"
        os.mkfifo(self.path)
        self.arrived = threading.Semaphore(0)

    def hang(self) -> int:
        """For a thread; returns a descriptor in the end."""
        self.arrived.release()
        return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def hang_and_close(self) -> None:
        os.close(self.hang())

    async def until_arrived(self, count: int) -> None:
        """Wait until so many more calls have begun."""
        for _ in range(count):
            acquire = partial(self.arrived.acquire, timeout=PATIENCE_S)
            assert await trio.to_thread.run_sync(acquire)

    def let_go(self) -> None:
        """Everybody who hangs now goes on."""
        os.close(os.open(self.path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))


@pytest.fixture
def pipe(tmp_path: Path) -> Pipe:
    return Pipe(tmp_path)


@pytest.mark.case(303)
async def test_calls_that_hang_hold_up_no_other(pipe: Pipe) -> None:
    """Forty of them, far more than run at a time: each is counted out once it is slow, and the next one runs."""
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as background, trio.open_nursery() as nursery:
            disk = Disk(background, slow_s=0.02)
            for _ in range(40):
                nursery.start_soon(disk.run, pipe.hang_and_close)
            assert await disk.run(lambda: "done") == "done"
            await pipe.until_arrived(40)
            pipe.let_go()


@pytest.mark.case(303)
async def test_fast_calls_run_few_at_a_time(nursery: trio.Nursery) -> None:
    """However many there are: with more the loop would not have its turns."""
    disk = Disk(nursery)
    running_now, most = 0, 0
    lock = threading.Lock()

    def call() -> None:
        nonlocal running_now, most
        with lock:
            running_now += 1
            most = max(most, running_now)
        for _ in range(100):
            os.stat("/")
        with lock:
            running_now -= 1

    async with trio.open_nursery() as callers:
        for _ in range(50):
            callers.start_soon(disk.run, call)
    assert most <= THREADS <= 4


@pytest.mark.case(303)
async def test_there_is_an_end_to_how_many_hang(pipe: Pipe) -> None:
    """Beyond it calls wait, for threads are bounded as everything is; cancelled, the waiting ones go."""
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as background:
            disk = Disk(background, slow_s=0.001)
            async with trio.open_nursery() as nursery:
                for _ in range(MAX_THREADS + 10):
                    nursery.start_soon(disk.run, pipe.hang_and_close)
                await pipe.until_arrived(MAX_THREADS)
                nursery.cancel_scope.cancel()
            assert not pipe.arrived.acquire(blocking=False)
            pipe.let_go()
            # What was left behind ends, and its places are free again.
            assert await disk.run(lambda: "done") == "done"
            background.cancel_scope.cancel()


@pytest.mark.case(304)
async def test_a_caller_that_is_cancelled_leaves_its_call_behind(nursery: trio.Nursery, pipe: Pipe) -> None:
    """It goes on at once; what the call then brings is given to `undo`, once, in a thread."""
    disk = Disk(nursery)
    undone: list[int] = []
    over = threading.Event()

    def undo(fd: int) -> None:
        os.close(fd)
        undone.append(fd)
        over.set()

    async with trio.open_nursery() as callers:
        callers.start_soon(partial(disk.run, pipe.hang, undo=undo))
        await pipe.until_arrived(1)
        callers.cancel_scope.cancel()
    assert not undone
    pipe.let_go()
    assert await trio.to_thread.run_sync(partial(over.wait, PATIENCE_S))
    assert len(undone) == 1


@pytest.mark.case(304)
async def test_what_a_call_brings_in_time_is_not_undone(nursery: trio.Nursery) -> None:
    """Also if the caller is cancelled right behind it: then it is the caller's."""
    disk = Disk(nursery)
    undone: list[str] = []
    with trio.CancelScope() as scope:
        assert await disk.run(lambda: "result", undo=undone.append) == "result"
        scope.cancel()
    assert undone == []


async def test_a_shared_descriptor_is_closed_by_the_last_who_uses_it(tmp_path: Path) -> None:
    """Given up meanwhile, it stays what it is until then, so that no other file comes by its number."""
    fd = os.open(tmp_path, os.O_RDONLY)
    shared = SharedFd(fd)
    with shared.use() as first, shared.use() as second:
        assert first == second == fd
        shared.give_up()
        os.fstat(fd)
        with pytest.raises(OSError, match="Bad file descriptor"), shared.use():
            pass
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOENT, ErrorCode.NOT_FOUND),
        (errno.EACCES, ErrorCode.INVALID_REQUEST),
        (errno.EPERM, ErrorCode.INVALID_REQUEST),
        (errno.EINVAL, ErrorCode.INVALID_REQUEST),
        (errno.ENOSPC, ErrorCode.INTERNAL_ERROR),
        (errno.EIO, ErrorCode.INTERNAL_ERROR),
    ],
)
async def test_errors_of_the_system_have_the_code_of_their_class(
    nursery: trio.Nursery, number: int, code: int
) -> None:
    """And its words, its number, and the path, of which a long one is cut and nothing is lost in encoding."""

    def fail() -> None:
        raise OSError(number, "not this", b"/a\xff" + b"x" * 300)

    with pytest.raises(RpcError) as caught:
        await Disk(nursery).run(fail)
    assert caught.value.code == code
    assert caught.value.message.startswith(f"{os.strerror(number)} (os error {number}): ...xxx")
    assert len(caught.value.message) < 300
    assert "\ufffd" in os_failure(OSError(number, "", b"/a\xff")).message


# --- a daemon and a mount that is dead -----------------------------------------------------------------


@pytest.mark.case(303, 304)
async def test_a_daemon_lives_with_a_dead_mount(tmp_path: Path) -> None:
    """Forty reads hang there. Processes run, other files are read, the connection ends and its session is
    resumed at once, and the daemon stops when it is told to."""
    mount = tmp_path / "mount"
    mount.mkdir()
    (tmp_path / "a").write_bytes(b"hello")
    with dead_mount(mount), running(start_daemon()) as daemon:
        async with connect(daemon.url) as peer:
            for number in range(40):
                method = ("readFile", "getMetadata", "readDirectory", "canonicalize")[number % 4]
                await peer.send(f"fs/{method}", {"path": (mount / "x").as_uri()})
            assert await peer.run("p", "echo", "hello") == (0, b"hello\n")
            answer = await peer.request("fs/readFile", {"path": (tmp_path / "a").as_uri()})
            assert answer.ok() == {"dataBase64": "aGVsbG8="}
            session_id = peer.session_id
        async with connect(daemon.url, resume=session_id) as peer:
            assert (await peer.process_read("p")).ok()["closed"]
        stop: Callable[[], int] = daemon.stop
        assert await trio.to_thread.run_sync(stop) == 0


@pytest.mark.case(302)
async def test_a_disk_that_is_full_half_way_is_told(tmp_path: Path) -> None:
    """By a write and by copies; what was written until then is there, and the daemon goes on."""
    mount = tmp_path / "mount"
    mount.mkdir()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/large").write_bytes(bytes(3 << 20))
    with small_mount(mount, 1 << 20), running(start_daemon()) as daemon:
        async with connect(daemon.url) as peer:
            params = {"path": (mount / "a").as_uri(), "dataBase64": "AAAA" * (1 << 19)}
            written = await peer.request("fs/writeFile", params)
            assert (written.code, "(os error 28)" in written.message) == (-32603, True)
            assert 0 < (mount / "a").stat().st_size < 3 << 19
            for name in ("tree", "tree/large"):
                source, target = (tmp_path / name).as_uri(), (mount / name[:4]).as_uri()
                await peer.request("fs/remove", {"path": (mount / "a").as_uri()})
                await peer.request("fs/remove", {"path": target})
                params = {"sourcePath": source, "destinationPath": target, "recursive": True}
                copied = await peer.request("fs/copy", params)
                assert (copied.code, "(os error 28)" in copied.message) == (-32603, True)


@pytest.mark.case(302)
async def test_an_error_of_input_and_output_is_told() -> None:
    """By a write and by a read; the memory of a process at the address 0 has it for certain."""
    with running(start_daemon()) as daemon:
        async with connect(daemon.url) as peer:
            params = {"path": "file:///proc/self/mem"}
            for method, members in (("readFile", {}), ("writeFile", {"dataBase64": "aGk="})):
                answer = await peer.request(f"fs/{method}", {**params, **members})
                assert (answer.code, "(os error 5)" in answer.message) == (-32603, True)
