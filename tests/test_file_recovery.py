"""Open files over a connection that fails, and servers that answer nonsense: real ones behind a proxy; scripts."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from daemons import Daemon
from fault_proxy import FaultProxy, How, fault_proxy
from scripted_server import ENVIRONMENT, Script, connections, resume, scripted_client, scripted_server
from tsupervise import (
    BadAnswer,
    Client,
    ConnectionLost,
    FileChanged,
    FileError,
    FileInterrupted,
    OutcomeUnknown,
    RemoteFile,
    connect,
)
from tsupervise._remote_file import IN_FLIGHT, MAX_UNANSWERED_WRITES
from tsupervise_protocol.file_messages import MAX_BLOCK_BYTES

PATIENCE_S = 30.0

MIB = 1 << 20

WRITER = {**ENVIRONMENT, "capabilities": {"fileWriteStreaming": True, "tsuperviseFileUpdate": True}}
"""The environment of a server that a file can be written at, and gone on with."""

METADATA = {
    "isDirectory": False,
    "isFile": True,
    "isSymlink": False,
    "size": 3,
    "createdAtMs": 0,
    "modifiedAtMs": 7,
}


@asynccontextmanager
async def through_proxy(daemon: Daemon) -> AsyncGenerator[tuple[Client, FaultProxy]]:
    with trio.fail_after(PATIENCE_S):
        async with fault_proxy(daemon.address) as proxy, connect(proxy.url) as client:
            yield client, proxy


async def until_lost(client: Client, file: RemoteFile) -> None:
    """Write behind a cut that the client may not have noticed yet."""
    await client.wait_connected(False)
    await file.write(b"more")
    await file.flush()


# --- real servers behind a proxy that cuts ---------------------------------------------------------------


@pytest.mark.case(347)
@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a_reader_goes_on_where_it_was(daemon: Daemon, tmp_path: Path, how: How) -> None:
    """Cut again and again in the middle of blocks, a file is read whole, in order and once."""
    data = os.urandom(12 * MIB + 5)
    (tmp_path / "file").write_bytes(data)
    async with through_proxy(daemon) as (client, proxy):
        read = bytearray()
        async with client.open_file(tmp_path / "file") as file:
            async for block in file:
                read += block
                if not proxy.is_armed and proxy.cuts < 4:
                    proxy.cut_after("back", MIB + 12345, how=how)
            assert await file.read_at(7, 2 * MIB) == data[7 : 2 * MIB + 7]
        assert read == data
        assert proxy.cuts >= 3


@pytest.mark.case(347)
@pytest.mark.parametrize("change", ["replaced", "removed"])
async def test_a_reader_does_not_go_on_in_another_file(daemon: Daemon, tmp_path: Path, change: str) -> None:
    """What stands at the path after an outage is not taken for what stood there before."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(6 * MIB))
    async with through_proxy(daemon) as (client, proxy), client.open_file(path) as file:
        await file.read_some()
        path.unlink()
        if change == "replaced":
            path.write_bytes(os.urandom(6 * MIB + 1))
        proxy.cut(0.0)
        error = FileChanged if change == "replaced" else FileNotFoundError
        with pytest.raises(error):  # at once: what was read ahead went with the connection
            async for _ in file:
                pass
        with pytest.raises(error):
            await file.read_at(0, 1)


@pytest.mark.case(348)
@pytest.mark.ours_only("the reference can only write a file anew")
@pytest.mark.parametrize("mode", ["replace", "update"])
async def test_a_writer_goes_on_where_it_was(daemon: Daemon, tmp_path: Path, mode: Any) -> None:
    """Cut again and again in the middle of blocks, everything is written, and nothing is emptied twice."""
    data = os.urandom(12 * MIB + 5)
    path = tmp_path / "file"
    path.write_bytes(b"old" * 10 * MIB)
    inode = path.stat().st_ino
    async with through_proxy(daemon) as (client, proxy):
        async with client.open_file(path, mode) as file:
            for start in range(0, len(data), 100_000):
                await file.write(data[start : start + 100_000])
                if not proxy.is_armed and proxy.cuts < 4:
                    proxy.cut_after("forth", MIB + 12345)
        assert proxy.cuts >= 3
    old = b"" if mode == "replace" else (b"old" * 10 * MIB)[len(data) :]
    assert path.read_bytes() == data + old
    assert path.stat().st_ino == inode


@pytest.mark.case(348)
async def test_a_writer_that_cannot_go_on_says_so(daemon: Daemon, tmp_path: Path) -> None:
    """At a server that can only write a file anew, what is there is told to be incomplete, and kept."""
    if daemon.is_ours:
        return
    path = tmp_path / "file"
    async with through_proxy(daemon) as (client, proxy), client.open_file(path, "replace") as file:
        await file.write(b"part")
        await file.flush()
        proxy.cut(0.0)
        with pytest.raises(FileInterrupted, match="incomplete"):
            await until_lost(client, file)
    assert path.read_bytes() == b"part"


@pytest.mark.case(348)
@pytest.mark.ours_only("the reference can only write a file anew")
@pytest.mark.parametrize(
    ("other", "reason"),
    [(b"", "4 bytes were written, and it has 0"), (b"another", "4 bytes were sent, and it has 7")],
)
async def test_a_writer_does_not_go_on_in_a_file_of_another_size(
    daemon: Daemon, tmp_path: Path, other: bytes, reason: str
) -> None:
    """If what was written is not there after an outage, or more than that, somebody else has been at it."""
    path = tmp_path / "file"
    async with through_proxy(daemon) as (client, proxy), client.open_file(path, "replace") as file:
        await file.write(b"part")
        await file.flush()
        path.write_bytes(other)
        proxy.cut(0.0)
        with pytest.raises(FileChanged, match=reason):
            await until_lost(client, file)
    assert path.read_bytes() == other


# --- scripts ---------------------------------------------------------------------------------------------


async def accept_open(script: Script, mode: str = "read") -> str:
    """Let a file be opened, for the first time; returns its handle."""
    if mode == "read":
        await script.answer(await script.expect("fs/getMetadata"), METADATA)
    request = await script.expect("fs/open")
    assert request["params"]["mode"] == mode
    handle_id = request["params"]["handleId"]
    assert len(handle_id) <= 32
    await script.answer(request, {"handleId": handle_id})
    return handle_id


async def answer_block(script: Script, data: bytes, eof: bool) -> None:
    chunk = base64.b64encode(data).decode()
    await script.answer(await script.expect("fs/readBlock"), {"chunk": chunk, "eof": eof})


@pytest.mark.case(349)
@pytest.mark.parametrize(
    ("size", "eof"), [(MAX_BLOCK_BYTES + 1, False), (MAX_BLOCK_BYTES, True), (10, False), (0, False)]
)
async def test_a_block_that_makes_no_sense_fails_its_file(size: int, eof: bool) -> None:
    """More than was asked for, or an end that is none: the file is closed, and the connection goes on."""

    async def play(script: Script) -> None:
        await script.handshake()
        handle_id = await accept_open(script)
        await answer_block(script, b"x" * size, eof)
        while (request := await script.receive())["method"] == "fs/readBlock":
            pass  # what was asked ahead
        assert (request["method"], request["params"]) == ("fs/close", {"handleId": handle_id})
        await script.answer(request)
        await script.answer(await script.expect("environment/status"), {"status": "ready"})
        await script.until_gone()

    async with scripted_server(play) as url, connect(url) as client:
        async with client.open_file("/file") as file:
            with pytest.raises(BadAnswer, match="'/file'"):
                await file.read_some()
            with pytest.raises(BadAnswer):
                await file.read_some()
        await client.call("environment/status")


@pytest.mark.case(349)
async def test_what_is_no_base64_or_no_path_is_told() -> None:
    """In a block, in a whole file, and in a path that the server names."""

    async def play(script: Script) -> None:
        await script.handshake()
        await accept_open(script)
        await script.answer(await script.expect("fs/readBlock"), {"chunk": "!", "eof": False})
        while (request := await script.receive())["method"] in ("fs/readBlock", "fs/close"):
            pass  # what was asked ahead
        await script.answer(request, METADATA)
        await script.answer(await script.expect("fs/readFile"), {"dataBase64": "!"})
        await script.answer(await script.expect("fs/canonicalize"), {"path": "http://x"})
        await script.until_gone()

    async with scripted_server(play) as url, connect(url) as client:
        async with client.open_file("/file") as file:
            with pytest.raises(BadAnswer, match="base64"):
                await file.read_some()
        with pytest.raises(BadAnswer, match="base64"):
            await client.files.read_file("/file")
        with pytest.raises(BadAnswer, match="no path"):
            await client.files.canonicalize("/file")


@pytest.mark.case(349)
async def test_a_write_that_is_refused_is_told_by_the_next_call() -> None:
    """And by every one after it, with the server's words; nothing more is sent."""

    async def play(script: Script) -> None:
        await script.handshake(environmentInfo=WRITER)
        await accept_open(script, "replace")
        request = await script.expect("fs/writeBlock")
        await script.refuse(request, -32603, "No space left on device (os error 28)")
        await script.expect("fs/close")
        await script.answer(await script.expect("environment/status"), {"status": "ready"})
        await script.until_gone()

    async with scripted_server(play) as url, connect(url) as client:
        async with client.open_file("/file", "replace") as file:
            await file.write(b"data")
            for _ in range(2):
                with pytest.raises(FileError, match="No space left"):
                    await file.flush()
        await client.call("environment/status")


@pytest.mark.case(349)
async def test_few_blocks_are_on_their_way(autojump_clock: trio.testing.MockClock) -> None:
    """Of one file and of all files: a server that takes its time is not flooded, and memory is bounded."""
    unanswered: dict[str, int] = {}
    files = MAX_UNANSWERED_WRITES // IN_FLIGHT + 2

    async def play(script: Script) -> None:
        await script.handshake(environmentInfo=WRITER)
        while True:
            request = await script.receive()
            handle_id = request["params"]["handleId"]
            if request["method"] == "fs/open":
                await script.answer(request, {"handleId": handle_id})
            else:
                unanswered[handle_id] = unanswered.get(handle_id, 0) + 1

    async def write(client: Client, name: str) -> None:
        with trio.move_on_after(60):
            async with client.open_file(name, "replace") as file:
                for _ in range(3 * IN_FLIGHT):
                    await file.write(b"x")

    async with scripted_client(play) as client, trio.open_nursery() as nursery:
        nursery.start_soon(write, client, "/first")
        await trio.sleep(1)
        assert list(unanswered.values()) == [IN_FLIGHT]
        for number in range(files):
            nursery.start_soon(write, client, f"/file-{number}")
        await trio.sleep(1)
        assert sum(unanswered.values()) == MAX_UNANSWERED_WRITES
        assert max(unanswered.values()) == IN_FLIGHT


@pytest.mark.case(349)
async def test_writers_that_are_cancelled_leave_room_for_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What they had sent counts until the server has answered it, and no longer; what was not sent is not."""
    scripts: list[Script] = []
    held: list[dict[str, Any]] = []
    written: list[str] = []
    answering = False

    async def play(script: Script) -> None:
        scripts.append(script)
        await script.handshake(environmentInfo=WRITER)
        while True:
            request = await script.receive()
            if request["method"] == "fs/writeBlock":
                written.append(request["params"]["chunk"])
                if not answering:
                    held.append(request)
                    continue
            await script.answer(request, {"handleId": request["params"]["handleId"]})

    async def write(client: Client, data: bytes) -> None:
        async with client.open_file("/file", "replace") as file:
            for _ in range(IN_FLIGHT):
                await file.write(data)

    async with scripted_client(play) as client:
        with trio.move_on_after(10):
            async with trio.open_nursery() as nursery:
                for _ in range(MAX_UNANSWERED_WRITES):
                    nursery.start_soon(write, client, b"a")
        with trio.move_on_after(10) as too_early:
            await write(client, b"b")
        assert too_early.cancelled_caught
        assert written == ["YQ=="] * MAX_UNANSWERED_WRITES
        answering = True
        for request in held:
            await scripts[0].answer(request)
        with trio.fail_after(10):
            await write(client, b"c")
        assert written[MAX_UNANSWERED_WRITES:] == ["Yw=="] * IN_FLIGHT


@pytest.mark.case(348)
async def test_what_was_not_acknowledged_is_written_again_at_its_place() -> None:
    """A file that was emptied once is opened without being emptied, and blocks keep their places."""

    async def first(script: Script) -> None:
        await script.handshake(environmentInfo=WRITER)
        await accept_open(script, "replace")
        await script.answer(await script.expect("fs/writeBlock"))
        await script.expect("fs/writeBlock")

    async def second(script: Script) -> None:
        await resume(script)
        request = await script.expect("fs/open")
        assert request["params"]["mode"] == "update"
        handle_id = request["params"]["handleId"]
        await script.answer(request, {"handleId": handle_id})
        await script.answer(await script.expect("fs/getMetadata"), METADATA)
        request = await script.expect("fs/writeBlock")
        assert request["params"] == {"handleId": handle_id, "offset": 3, "chunk": "Yg=="}
        await script.answer(request)
        assert (await script.expect("fs/close"))["params"] == {"handleId": handle_id}
        await script.answer(await script.expect("environment/status"), {"status": "ready"})
        await script.until_gone()

    async with scripted_server(connections(first, second)) as url, connect(url) as client:
        async with client.open_file("/file", "replace") as file:
            await file.write(b"aaa")
            await file.flush()
            await file.write(b"b")
        await client.call("environment/status")


@pytest.mark.case(347)
async def test_what_only_reads_is_asked_again_and_what_changes_something_is_not() -> None:
    """After a lost connection; so is a watch over, for whoever waits must look again."""
    answered = trio.Event()

    async def first(script: Script) -> None:
        await script.handshake(environmentInfo={**ENVIRONMENT, "capabilities": {"fsWatchMissing": True}})
        await script.answer(await script.expect("fs/watchMissing"), {"watching": True})
        await script.expect("fs/getMetadata")

    async def second(script: Script) -> None:
        await resume(script)
        await script.answer(await script.expect("fs/getMetadata"), METADATA)
        await script.expect("fs/writeFile")
        answered.set()

    async def third(script: Script) -> None:
        await resume(script)
        await script.until_gone()

    async with scripted_server(connections(first, second, third)) as url, connect(url) as client:
        watch = await client.files.watch_missing(["/missing"])
        assert (await client.files.stat("/file")).size == 3
        await watch.wait()
        with pytest.raises(OutcomeUnknown, match="fs/writeFile"):
            await client.files.write_file("/file", b"")


@pytest.mark.case(347)
async def test_a_file_does_not_outlive_its_connection() -> None:
    """Once that is gone for good, whoever reads or writes is told so."""

    async def play(script: Script) -> None:
        await script.handshake(environmentInfo=WRITER)
        await accept_open(script)
        await accept_open(script, "replace")

    async with (
        scripted_server(play) as url,
        connect(url, recovery_s=0) as client,
        client.open_file("/file") as reader,
    ):
        with pytest.raises(ConnectionLost):
            async with client.open_file("/file", "replace") as writer:
                await writer.write(b"x")
        with pytest.raises(ConnectionLost):
            await reader.read_some()


@pytest.mark.case(343)
async def test_a_read_that_is_cancelled_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """Whoever reads next gets the block that the cancelled one was waiting for."""

    async def play(script: Script) -> None:
        await script.handshake()
        await accept_open(script)
        asked = [await script.expect("fs/readBlock") for _ in range(IN_FLIGHT)]
        await trio.sleep(10)
        for request, data in zip(asked, (b"first", b"second"), strict=False):
            block = data.ljust(MAX_BLOCK_BYTES)
            await script.answer(request, {"chunk": base64.b64encode(block).decode(), "eof": False})
        await script.until_gone()

    async with scripted_client(play) as client, client.open_file("/file") as file:
        with trio.move_on_after(5) as scope:
            await file.read_some()
        assert scope.cancelled_caught
        assert (await file.read_some()).rstrip() == b"first"
        assert (await file.read_some()).rstrip() == b"second"


@pytest.mark.case(343)
@pytest.mark.parametrize("mode", ["read", "replace"])
async def test_a_file_that_is_closed_under_a_call_is_not_opened_again(
    autojump_clock: trio.testing.MockClock, mode: str
) -> None:
    """A reader or writer whose file somebody closes is told so, and neither waits for ever nor writes on."""
    opened: list[str] = []

    async def play(script: Script) -> None:
        await script.handshake(environmentInfo=WRITER)
        opened.append(await accept_open(script, mode))
        while True:
            request = await script.receive()
            if request["method"] == "fs/open":
                opened.append(request["params"]["handleId"])
            elif request["method"] == "fs/writeBlock":
                await trio.sleep(10)
                await script.answer(request)

    async def use(file: RemoteFile) -> None:
        if mode == "replace":
            for _ in range(IN_FLIGHT):
                await file.write(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await (file.read_some() if mode == "read" else file.write(b"x"))

    with trio.fail_after(3600):
        async with scripted_client(play) as client:
            block = client.open_file("/file", "read" if mode == "read" else "replace")
            async with trio.open_nursery() as nursery, block as file:
                nursery.start_soon(use, file)
                await trio.sleep(5)
                file.abandon()
            assert len(opened) == 1


@pytest.mark.case(349)
async def test_an_open_that_is_cancelled_is_closed_there() -> None:
    """It may have been carried out, and handles are few."""
    asked, cancelled = trio.Event(), trio.Event()

    async def play(script: Script) -> None:
        await script.handshake()
        await script.answer(await script.expect("fs/getMetadata"), METADATA)
        request = await script.expect("fs/open")
        asked.set()
        close = await script.expect("fs/close")
        assert close["params"]["handleId"] == request["params"]["handleId"]
        cancelled.set()
        await script.until_gone()

    async with scripted_server(play) as url, connect(url) as client:
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                async with client.open_file("/file"):
                    raise AssertionError("it was never opened")

            nursery.start_soon(read)
            await asked.wait()
            nursery.cancel_scope.cancel()
        await cancelled.wait()
