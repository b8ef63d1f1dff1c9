"""The open files of a connection, without a peer: a model of handles, calls that hang, and what is left behind."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from in_process import open_house
from procfs import until
from tsupervise._disk import Disk
from tsupervise._open_files import MAX_OPEN_FILES, OpenFiles
from tsupervise._outbox import MAX_REPLY_BYTES
from tsupervise_protocol.errors import RpcError
from tsupervise_protocol.file_messages import MAX_BLOCK_BYTES, OpenMode

HANDLES = st.sampled_from(["a", "b", "ü", ""])
FILES = st.sampled_from(["x", "y", "z"])
OFFSETS = st.sampled_from([0, 1, 3, 10, 2**63, 2**64 - 1])
BLOCKS = st.binary(min_size=1, max_size=12)


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


class HandleMachine(RuleBasedStateMachine):
    """Any calls in any order against a model: names to files and modes, files to their bytes.

    A file is replaced by a rename now and then, so that a handle and a path part.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.before = descriptors()
        self.files = OpenFiles()
        self.handles: dict[str, tuple[OpenMode, bytearray]] = {}
        self.contents: dict[str, bytearray] = {}

    def path(self, name: str) -> Path:
        return Path(self.folder.name) / name

    def outcome(self, call: Callable[[], Any]) -> Any:
        """What a call returns, or the name of what it raises."""
        try:
            return call()
        except (OSError, RpcError) as error:
            return type(error).__name__

    @rule(handle=HANDLES, name=FILES, mode=st.sampled_from(["read", "replace", "update"]))
    def open(self, handle: str, name: str, mode: OpenMode) -> None:
        result = self.outcome(lambda: self.files.open(handle, bytes(self.path(name)), mode, 0o666))
        if handle in self.handles:
            assert result == "RpcError"
        elif mode == "read" and name not in self.contents:
            assert result == "FileNotFoundError"
        else:
            assert result is None
            content = self.contents.setdefault(name, bytearray())
            if mode == "replace":
                content.clear()
            self.handles[handle] = mode, content

    @rule(handle=HANDLES, offset=OFFSETS, size=st.integers(1, 20))
    def read(self, handle: str, offset: int, size: int) -> None:
        result = self.outcome(lambda: self.files.read(handle, offset, size))
        if handle not in self.handles:
            assert result == "RpcError"
            return
        mode, content = self.handles[handle]
        if mode == "read" and offset < 2**63:
            assert result == bytes(content[offset : offset + size])
        else:
            assert result == "OSError"
            del self.handles[handle]

    @rule(handle=HANDLES, offset=OFFSETS, data=BLOCKS)
    def write(self, handle: str, offset: int, data: bytes) -> None:
        result = self.outcome(lambda: self.files.write(handle, offset, data))
        if handle not in self.handles:
            assert result == "RpcError"
            return
        mode, content = self.handles[handle]
        if mode != "read" and offset < 2**63:
            assert result is None
            content.extend(b"\0" * (offset - len(content)))
            content[offset : offset + len(data)] = data
        else:
            assert result == "OSError"
            del self.handles[handle]

    @rule(handle=HANDLES)
    def close(self, handle: str) -> None:
        self.files.close(handle)
        self.handles.pop(handle, None)

    @rule(name=FILES)
    def replace_the_path(self, name: str) -> None:
        self.path("new").write_bytes(b"other")
        self.path("new").rename(self.path(name))
        self.contents[name] = bytearray(b"other")

    @invariant()
    def files_have_what_was_written(self) -> None:
        for name, content in self.contents.items():
            assert self.path(name).read_bytes() == content

    @invariant()
    def there_is_a_descriptor_for_each_handle_and_no_other(self) -> None:
        assert len(descriptors() - self.before) <= len(self.handles)

    def teardown(self) -> None:
        for file in self.files.end():
            file.give_up()
        assert descriptors() <= self.before
        self.folder.cleanup()


TestHandles = HandleMachine.TestCase
TestHandles.settings = settings(deadline=None, max_examples=60, stateful_step_count=25)
TestHandles.pytestmark = [pytest.mark.case(239, 246, 312, 315)]  # pyright: ignore[reportAttributeAccessIssue]


class Hanging:
    """A call of the system that does not come back until it is let go, as on a mount whose server is gone."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call
        self._released = threading.Event()
        self.entered = threading.Event()

    def __call__(self, *arguments: Any) -> Any:
        self.entered.set()
        assert self._released.wait(20), "the test lets it go"
        return self._call(*arguments)

    def release(self) -> None:
        self._released.set()


@contextmanager
def hanging(monkeypatch: pytest.MonkeyPatch, name: str) -> Generator[Hanging]:
    call = Hanging(getattr(os, name))
    with monkeypatch.context() as patch:
        patch.setattr(f"tsupervise._open_files.os.{name}", call)
        try:
            yield call
        finally:
            call.release()


def links() -> list[str]:
    """What the descriptors of this process lead to."""
    found: list[str] = []
    for fd in descriptors():
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return found


def is_idle(disk: Disk) -> bool:
    return not disk._started  # pyright: ignore[reportPrivateUsage]


@pytest.mark.case(315)
@pytest.mark.parametrize(
    ("call", "method", "params"),
    [
        ("pread", "fs/readBlock", {"handleId": "h", "offset": 0, "len": 1}),
        ("pwrite", "fs/writeBlock", {"handleId": "w", "offset": 0, "chunk": "eA=="}),
    ],
)
async def test_a_connection_ends_while_a_call_hangs_and_the_call_keeps_its_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, method: str, params: dict[str, Any]
) -> None:
    """It ends at once; the other files are closed, this one when its call comes back, and no sooner."""
    names = {handle: str(tmp_path / handle) for handle in ("h", "w", "other")}
    for handle in names:
        (tmp_path / handle).touch()
    async with open_house() as house:
        peer = await house.connect()
        for handle, name in names.items():
            mode = "replace" if handle == "w" else "read"
            uri = f"file://{name}"
            (await peer.request("fs/open", {"handleId": handle, "path": uri, "mode": mode})).ok()
        with hanging(monkeypatch, call) as held:
            await peer.send(method, params)
            await until(held.entered.is_set)
            await peer.drop()
            stuck = names[params["handleId"]]
            await until(lambda: [link for link in links() if link in names.values()] == [stuck])
        await until(lambda: stuck not in links())


@pytest.mark.case(315)
async def test_a_file_that_is_opened_when_its_connection_has_gone_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The open hangs, the peer leaves, the open comes back: nobody owns what it has opened."""
    path = tmp_path / "f"
    path.touch()
    async with open_house() as house:
        peer = await house.connect()
        with hanging(monkeypatch, "open") as held:
            await peer.send("fs/open", {"handleId": "h", "path": path.as_uri()})
            await until(held.entered.is_set)
            await peer.drop()
            held.release()
            opened = peer.connection.files
            await until(lambda: str(path) not in links() and is_idle(house.supervisor.disk))
        assert opened.end() == []


@pytest.mark.case(316)
async def test_of_what_a_peer_asks_for_and_does_not_read_little_is_made(tmp_path: Path) -> None:
    """100 blocks asked for on 100 handles: two or three wait in memory, the others are not read from the disk."""
    path = tmp_path / "f"
    path.write_bytes(b"x" * MAX_BLOCK_BYTES)
    async with open_house() as house:
        peer = await house.connect()
        for number in range(100):
            (await peer.request("fs/open", {"handleId": str(number), "path": path.as_uri()})).ok()
        peer.receiving.cancel()

        async def ask() -> None:
            # The daemon soon takes no more requests of one who reads no answers.
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                for number in range(100):
                    block = {"handleId": str(number), "offset": 0, "len": MAX_BLOCK_BYTES}
                    await peer.send("fs/readBlock", block)

        house.nursery.start_soon(ask)
        outbox = peer.connection.outbox
        await until(lambda: not outbox.has_reply_room and is_idle(house.supervisor.disk))
        await trio.testing.wait_all_tasks_blocked()
        waiting = outbox._reply_bytes  # pyright: ignore[reportPrivateUsage]
        assert MAX_REPLY_BYTES <= waiting <= 4 * 4 * MAX_BLOCK_BYTES // 3
        await peer.drop()


@pytest.mark.case(242)
def test_opens_that_are_under_way_count() -> None:
    """Threads that open at the same time do not come to more than may be, and none of them loses its file."""
    files = OpenFiles()
    before = descriptors()
    refused: list[str] = []

    def open_many(thread: int) -> None:
        for number in range(MAX_OPEN_FILES // 2):
            try:
                files.open(f"{thread}-{number}", bytes(Path(__file__)), "read", 0o666)
            except RpcError as error:
                refused.append(error.message)

    threads = [threading.Thread(target=open_many, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = files.end()
    assert (len(left), len(refused)) == (MAX_OPEN_FILES, MAX_OPEN_FILES)
    for file in left:
        file.give_up()
    assert descriptors() <= before
