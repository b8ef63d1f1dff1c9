"""fs/open, fs/readBlock, fs/writeBlock, fs/close: files that belong to a connection and are used by positions."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import trio

from daemons import Daemon
from procfs import listening_pid, open_descriptors, status_field, until
from small_disk import small_file_system
from wire import Answer, Peer, connect

MAX_OPEN = 128

BLOCK_BYTES = 1 << 20

MAX_U64 = 2**64 - 1

KERNEL_FILE = Path("/proc/version")


async def open_file(peer: Peer, handle_id: str, path: Path, **fields: Any) -> Answer:
    return await peer.request("fs/open", {"handleId": handle_id, "path": path.as_uri(), **fields})


async def read_block(peer: Peer, handle_id: str, offset: int, length: int) -> Answer:
    return await peer.request("fs/readBlock", {"handleId": handle_id, "offset": offset, "len": length})


async def write_block(peer: Peer, handle_id: str, offset: int, data: bytes) -> Answer:
    chunk = base64.b64encode(data).decode()
    return await peer.request("fs/writeBlock", {"handleId": handle_id, "offset": offset, "chunk": chunk})


async def close_file(peer: Peer, handle_id: str) -> Answer:
    return await peer.request("fs/close", {"handleId": handle_id})


def block(data: bytes, *, eof: bool) -> dict[str, Any]:
    return {"chunk": base64.b64encode(data).decode(), "eof": eof}


def file_of(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def file_mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def file_content(path: Path) -> bytes:
    return path.read_bytes()


# --- reading ---------------------------------------------------------------------------------------------


@pytest.mark.case(239)
async def test_blocks_are_read_by_position_and_a_short_one_is_the_end(daemon: Daemon, tmp_path: Path) -> None:
    """A block that ends where the file ends does not say so; the next one is empty and does, as all beyond."""
    path = file_of(tmp_path / "f", b"hello")
    async with connect(daemon.url) as peer:
        assert (await open_file(peer, "h", path)).ok() == {"handleId": "h"}
        assert (await read_block(peer, "h", 0, 5)).ok() == block(b"hello", eof=False)
        assert (await read_block(peer, "h", 5, 1)).ok() == block(b"", eof=True)
        assert (await read_block(peer, "h", 1, 3)).ok() == block(b"ell", eof=False)
        assert (await read_block(peer, "h", 3, 100)).ok() == block(b"lo", eof=True)
        assert (await read_block(peer, "h", 2**40, 1)).ok() == block(b"", eof=True)
        assert (await close_file(peer, "h")).ok() == {}


@pytest.mark.case(239)
async def test_the_largest_block_comes_whole(daemon: Daemon, tmp_path: Path) -> None:
    """1 MiB in one answer, byte for byte, from anywhere in the file."""
    content = os.urandom(BLOCK_BYTES + 7)
    path = file_of(tmp_path / "f", content)
    async with connect(daemon.url) as peer:
        (await open_file(peer, "h", path)).ok()
        assert (await read_block(peer, "h", 7, BLOCK_BYTES)).ok() == block(content[7:], eof=False)
        assert (await read_block(peer, "h", 8, BLOCK_BYTES)).ok() == block(content[8:], eof=True)


@pytest.mark.case(240)
async def test_a_block_of_a_wrong_length_is_refused_and_the_file_stays_open(
    daemon: Daemon, tmp_path: Path
) -> None:
    """0 and 1 MiB + 1 are -32600, for a file that is not open as well."""
    path = file_of(tmp_path / "f", b"hello")
    async with connect(daemon.url) as peer:
        (await open_file(peer, "h", path)).ok()
        for handle_id in ("h", "nobody"):
            for length in (0, BLOCK_BYTES + 1, MAX_U64):
                answer = await read_block(peer, handle_id, 0, length)
                assert answer.code == -32600
                assert str(BLOCK_BYTES) in answer.message
        assert (await read_block(peer, "h", 0, 9)).ok() == block(b"hello", eof=True)


@pytest.mark.case(241)
async def test_a_file_that_a_read_fails_on_is_closed(daemon: Daemon, tmp_path: Path) -> None:
    """Beyond what any file can hold is EINVAL; then the handle is unknown, and its name can be used anew."""
    path = file_of(tmp_path / "f", b"hello")
    async with connect(daemon.url) as peer:
        (await open_file(peer, "h", path)).ok()
        answer = await read_block(peer, "h", MAX_U64, 1)
        assert (answer.code, "os error 22" in answer.message) == (-32600, True)
        assert (await read_block(peer, "h", 0, 1)).code == -32004
        (await open_file(peer, "h", path)).ok()
        assert (await read_block(peer, "h", 0, 1)).ok() == block(b"h", eof=False)


@pytest.mark.case(242)
async def test_so_many_files_are_open_at_a_time(daemon: Daemon, tmp_path: Path) -> None:
    """128 of one connection, to be read and to be written together; closing one makes room for another."""
    path = file_of(tmp_path / "f", b"x")
    async with connect(daemon.url) as peer:
        for number in range(MAX_OPEN):
            mode = ("read", "replace")[number % 2]
            (await open_file(peer, str(number), tmp_path / ("f", "g")[number % 2], mode=mode)).ok()
        answer = await open_file(peer, "more", path)
        assert (answer.code, str(MAX_OPEN) in answer.message) == (-32600, True)
        (await close_file(peer, "0")).ok()
        (await open_file(peer, "more", path)).ok()
        assert (await open_file(peer, "yet more", path)).code == -32600
        async with connect(daemon.url) as other:
            (await open_file(other, "more", path)).ok()


@pytest.mark.case(243)
async def test_the_name_of_a_handle_has_32_bytes_at_most(daemon: Daemon, tmp_path: Path) -> None:
    """In UTF-8, for every method; the empty one is one, too; one that is in use is refused and stays what it is."""
    path = file_of(tmp_path / "f", b"x")
    async with connect(daemon.url) as peer:
        for handle_id in ("h" * 32, "ü" * 16, ""):
            (await open_file(peer, handle_id, path)).ok()
            assert (await read_block(peer, handle_id, 0, 2)).ok() == block(b"x", eof=True)
        for handle_id in ("h" * 33, "ü" * 16 + "h"):
            answers = [
                await open_file(peer, handle_id, path),
                await open_file(peer, handle_id, tmp_path / "missing"),
                await read_block(peer, handle_id, 0, 1),
                await write_block(peer, handle_id, 0, b"x"),
                await close_file(peer, handle_id),
            ]
            assert [answer.code for answer in answers] == [-32600] * 5
            assert all("32 bytes" in answer.message for answer in answers)
        answer = await open_file(peer, "", path)
        assert (answer.code, "already exists" in answer.message) == (-32600, True)
        (await read_block(peer, "", 0, 2)).ok()


@pytest.mark.case(244)
async def test_handles_belong_to_a_connection(daemon: Daemon, tmp_path: Path) -> None:
    """Another one does not know them, nor does one that resumes the session."""
    path = file_of(tmp_path / "f", b"x")
    async with connect(daemon.url) as peer:
        (await open_file(peer, "h", path)).ok()
        async with connect(daemon.url) as other:
            assert (await read_block(other, "h", 0, 1)).code == -32004
        (await read_block(peer, "h", 0, 1)).ok()
        session_id = peer.session_id
    async with connect(daemon.url, resume=session_id) as peer:
        assert (await read_block(peer, "h", 0, 1)).code == -32004


@pytest.mark.case(245)
async def test_an_open_file_stays_what_it_was_when_its_path_leads_elsewhere(
    daemon: Daemon, tmp_path: Path
) -> None:
    """Replaced by a rename, or removed: what was opened is read."""
    path = file_of(tmp_path / "f", b"old")
    async with connect(daemon.url) as peer:
        (await open_file(peer, "h", path)).ok()
        file_of(tmp_path / "g", b"new").rename(path)
        assert (await read_block(peer, "h", 0, 9)).ok() == block(b"old", eof=True)
        path.unlink()
        assert (await read_block(peer, "h", 0, 9)).ok() == block(b"old", eof=True)


@pytest.mark.case(245)
async def test_a_file_that_shrinks_or_grows_is_read_as_it_is(daemon: Daemon, tmp_path: Path) -> None:
    """Each block is what is there at its time; behind the new end there is nothing, and that is no error."""
    path = file_of(tmp_path / "f", b"0123456789")
    async with connect(daemon.url) as peer:
        (await open_file(peer, "h", path)).ok()
        assert (await read_block(peer, "h", 0, 4)).ok() == block(b"0123", eof=False)
        os.truncate(path, 6)
        assert (await read_block(peer, "h", 4, 4)).ok() == block(b"45", eof=True)
        assert (await read_block(peer, "h", 8, 4)).ok() == block(b"", eof=True)
        with path.open("ab") as file:
            file.write(b"abcdef")
        assert (await read_block(peer, "h", 8, 4)).ok() == block(b"cdef", eof=False)


@pytest.mark.case(310)
async def test_only_regular_files_are_opened_and_nothing_is_waited_for(
    daemon: Daemon, tmp_path: Path
) -> None:
    """A folder, a FIFO without another end and a device are refused at once; a link is followed."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "link").symlink_to(file_of(tmp_path / "f", b"x"))
    (tmp_path / "loop").symlink_to("loop")
    async with connect(daemon.url) as peer:
        for path in (tmp_path, fifo, Path("/dev/null")):
            answer = await open_file(peer, "h", path)
            assert (answer.code, "is not a file" in answer.message) == (-32600, True)
        assert (await open_file(peer, "h", tmp_path, mode="replace")).code == -32603
        assert (await open_file(peer, "h", fifo, mode="replace")).code == -32603
        assert (await open_file(peer, "h", Path("/dev/null"), mode="replace")).code == -32600
        assert (await open_file(peer, "h", tmp_path / "missing")).code == -32004
        assert (await open_file(peer, "h", tmp_path / "f" / "x")).code == -32603
        assert (await open_file(peer, "h", tmp_path / "loop")).code == -32603
        assert (await open_file(peer, "h", tmp_path / "f", mode="zz")).code == -32602
        (await open_file(peer, "h", tmp_path / "link")).ok()
        assert (await read_block(peer, "h", 0, 1)).ok() == block(b"x", eof=False)
        # What the kernel makes up has no size.
        (await open_file(peer, "p", KERNEL_FILE)).ok()
        assert (await read_block(peer, "p", 0, 4096)).ok() == block(file_content(KERNEL_FILE), eof=True)


# --- writing ---------------------------------------------------------------------------------------------


@pytest.mark.case(246)
async def test_replace_empties_a_file_and_blocks_are_written_by_position(
    daemon: Daemon, tmp_path: Path
) -> None:
    """A gap is filled with zeros; the inode, the mode and other names of the file stay."""
    path = file_of(tmp_path / "f", b"old and long enough to be seen")
    path.chmod(0o741)
    os.link(path, tmp_path / "other")
    before = path.stat()
    async with connect(daemon.url) as peer:
        (await open_file(peer, "h", path, mode="replace")).ok()
        assert path.read_bytes() == b"", "at the open"
        assert (await write_block(peer, "h", 0, b"abc")).ok() == {}
        assert (await write_block(peer, "h", 5, b"xyz")).ok() == {}
        assert (await close_file(peer, "h")).ok() == {}
    assert (tmp_path / "other").read_bytes() == b"abc\0\0xyz"
    after = path.stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)


@pytest.mark.case(246)
async def test_replace_makes_a_file_that_is_missing(daemon: Daemon, tmp_path: Path) -> None:
    """Also where a link leads to nothing; not the folder that it would be in."""
    (tmp_path / "link").symlink_to("target")
    async with connect(daemon.url) as peer:
        for name in ("new", "link"):
            (await open_file(peer, name, tmp_path / name, mode="replace")).ok()
            (await write_block(peer, name, 0, b"abc")).ok()
        assert (await open_file(peer, "h", tmp_path / "folder" / "f", mode="replace")).code == -32004
    assert (tmp_path / "new").read_bytes() == b"abc"
    assert (tmp_path / "target").read_bytes() == b"abc"


@pytest.mark.case(247)
async def test_a_file_that_is_used_in_the_wrong_direction_is_closed(daemon: Daemon, tmp_path: Path) -> None:
    """Reading what was opened for writing, and the other way round, is EBADF; the reference keeps the reader."""
    path = file_of(tmp_path / "f", b"x")
    async with connect(daemon.url) as peer:
        (await open_file(peer, "r", path)).ok()
        (await open_file(peer, "w", tmp_path / "g", mode="replace")).ok()
        wrong = [await read_block(peer, "w", 0, 1), await write_block(peer, "r", 0, b"x")]
        assert [(answer.code, "os error 9" in answer.message) for answer in wrong] == [(-32603, True)] * 2
        assert (await write_block(peer, "w", 0, b"x")).code == -32004
        if daemon.is_ours:
            assert (await read_block(peer, "r", 0, 1)).code == -32004


@pytest.mark.case(227, 248)
async def test_a_block_that_cannot_be_written_as_it_comes_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    """What is no base64 is -32602; nothing, and more than 1 MiB, -32600; the handle stays open."""
    path = tmp_path / "f"
    async with connect(daemon.url) as peer:
        (await open_file(peer, "h", path, mode="replace")).ok()
        for handle_id in ("h", "nobody"):
            for chunk in ("!!", "aGk", "aGk=\n", "aGl="):
                params = {"handleId": handle_id, "offset": 0, "chunk": chunk}
                assert (await peer.request("fs/writeBlock", params)).code == -32602
            for size in (0, BLOCK_BYTES + 1):
                answer = await write_block(peer, handle_id, 0, b"x" * size)
                assert (answer.code, str(BLOCK_BYTES) in answer.message) == (-32600, True)
        content = os.urandom(BLOCK_BYTES)
        (await write_block(peer, "h", 0, content)).ok()
        assert path.read_bytes() == content


@pytest.mark.case(249)
async def test_closing_what_is_not_open_is_a_success(daemon: Daemon, tmp_path: Path) -> None:
    """So that a close can be repeated; other methods tell that there is no such handle."""
    async with connect(daemon.url) as peer:
        (await open_file(peer, "h", file_of(tmp_path / "f", b"x"))).ok()
        for handle_id in ("nobody", "h", "h"):
            assert (await close_file(peer, handle_id)).ok() == {}
        for answer in (await read_block(peer, "h", 0, 1), await write_block(peer, "h", 0, b"x")):
            assert (answer.code, "unknown file handle" in answer.message) == (-32004, True)


@pytest.mark.case(311)
async def test_what_is_done_to_one_file_is_done_in_order(daemon: Daemon, tmp_path: Path) -> None:
    """Sent in one go without a wait: open, writes over one another, close, open again, reads, close."""
    path = tmp_path / "f"
    blocks = [bytes([number]) * (40 - number) for number in range(40)]
    async with connect(daemon.url) as peer:
        name = {"handleId": "h"}
        sent = [await peer.send("fs/open", {**name, "path": path.as_uri(), "mode": "replace"})]
        sent += [
            await peer.send("fs/writeBlock", {**name, "offset": 0, "chunk": base64.b64encode(data).decode()})
            for data in blocks
        ]
        sent.append(await peer.send("fs/close", name))
        sent.append(await peer.send("fs/open", {**name, "path": path.as_uri()}))
        reads = [await peer.send("fs/readBlock", {**name, "offset": at, "len": 1}) for at in range(40)]
        sent.append(await peer.send("fs/close", name))
        for request_id in sent:
            (await peer.answer_to(request_id)).ok()
        content = [(await peer.answer_to(request_id)).ok() for request_id in reads]
    # The last of all writes is the shortest: of each there is one byte left.
    assert content == [block(bytes([39 - at]), eof=False) for at in range(40)]


@pytest.mark.ours_only("the reference does not have the mode")
@pytest.mark.case(312)
async def test_update_writes_into_what_is_there(daemon: Daemon, tmp_path: Path) -> None:
    """The rest of the file stays; one that is missing is made; and there is a capability that tells of it."""
    path = file_of(tmp_path / "f", b"0123456789")
    async with connect(daemon.url) as peer:
        info = (await peer.request("environment/info", {})).ok()
        assert info["capabilities"]["tsuperviseFileUpdate"] is True
        (await open_file(peer, "h", path, mode="update")).ok()
        (await write_block(peer, "h", 4, b"ab")).ok()
        (await open_file(peer, "n", tmp_path / "new", mode="update")).ok()
        (await write_block(peer, "n", 0, b"x")).ok()
        assert (await read_block(peer, "h", 0, 1)).code == -32603
    assert path.read_bytes() == b"0123ab6789"
    assert (tmp_path / "new").read_bytes() == b"x"


@pytest.mark.ours_only("the reference does not have the member")
@pytest.mark.case(355)
async def test_a_file_that_is_made_gets_the_mode_that_was_asked_for(daemon: Daemon, tmp_path: Path) -> None:
    """By `fs/open` and `fs/writeFile`, less the daemon's umask, and it is told; one that is there keeps its own."""
    there = file_of(tmp_path / "there", b"")
    there.chmod(0o604)
    allowed = 0o777 & ~int(status_field(listening_pid(daemon), "Umask"), 8)
    async with connect(daemon.url) as peer:
        info = (await peer.request("environment/info", {})).ok()
        assert info["capabilities"]["tsuperviseFileModes"] is True

        async def write(path: Path, **fields: Any) -> Answer:
            return await peer.request("fs/writeFile", {"path": path.as_uri(), "dataBase64": "", **fields})

        async def mode_of(path: Path) -> int:
            found = (await peer.request("fs/getMetadata", {"path": path.as_uri()})).ok()["unixMode"]
            assert found == file_mode(path)
            return found

        for number, mode in enumerate((0o777, 0o750, 0o600, None)):
            wanted = allowed & (0o666 if mode is None else mode)
            for open_mode in ("replace", "update"):
                path = tmp_path / f"{open_mode}-{number}"
                (await open_file(peer, str(path)[-20:], path, mode=open_mode, unixMode=mode)).ok()
                assert await mode_of(path) == wanted
            (await write(tmp_path / f"written-{number}", unixMode=mode)).ok()
            assert await mode_of(tmp_path / f"written-{number}") == wanted
        (await write(there, unixMode=0o777)).ok()
        (await open_file(peer, "there", there, mode="replace", unixMode=0o777)).ok()
        assert await mode_of(there) == 0o604
        for mode in (-1, 0o1000, "755"):
            assert (await write(tmp_path / "none", unixMode=mode)).code == -32602
            assert (
                await open_file(peer, "n", tmp_path / "none", mode="replace", unixMode=mode)
            ).code == -32602
    assert not (tmp_path / "none").exists()


@pytest.mark.case(313)
async def test_an_open_that_is_refused_does_not_touch_the_file(daemon: Daemon, tmp_path: Path) -> None:
    """Neither for a name that is in use nor for one handle too many is anything emptied, or looked for."""
    path = file_of(tmp_path / "f", b"precious")
    async with connect(daemon.url) as peer:
        for number in range(MAX_OPEN):
            (await open_file(peer, str(number), path)).ok()
        for handle_id in ("0", "more"):
            assert (await open_file(peer, handle_id, path, mode="replace")).code == -32600
            assert (await open_file(peer, handle_id, tmp_path / "missing")).code == -32600
        (await close_file(peer, "1")).ok()
        assert (await open_file(peer, "0", path, mode="replace")).code == -32600
    assert path.read_bytes() == b"precious"


@pytest.mark.case(314)
@pytest.mark.ours_only("the reference keeps a handle whose write has failed")
async def test_a_full_disk_is_told_and_ends_the_handle(daemon: Daemon, tmp_path: Path) -> None:
    """ENOSPC in the middle of a block: what fitted is in the file, and there is no handle for a next one."""
    with small_file_system(1 << 20, tmp_path / "disk") as disk:
        async with connect(daemon.url) as peer:
            (await open_file(peer, "h", disk / "f", mode="replace")).ok()
            (await write_block(peer, "h", 0, b"a" * (600 << 10))).ok()
            answer = await write_block(peer, "h", 600 << 10, b"b" * (600 << 10))
            assert (answer.code, "os error 28" in answer.message) == (-32603, True)
            assert (await write_block(peer, "h", 0, b"x")).code == -32004
            content = (disk / "f").read_bytes()
            assert content == b"a" * (600 << 10) + b"b" * (len(content) - (600 << 10))
            (disk / "f").unlink()
            (await open_file(peer, "h", disk / "f", mode="replace")).ok()
            (await write_block(peer, "h", 0, b"a" * (600 << 10))).ok()
            (await close_file(peer, "h")).ok()


@pytest.mark.case(315)
async def test_the_end_of_a_connection_closes_its_files(daemon: Daemon, tmp_path: Path) -> None:
    """Whether it says goodbye or not, and with reads under way: all descriptors of the daemon are closed."""
    path = file_of(tmp_path / "f", os.urandom(BLOCK_BYTES))
    pid = listening_pid(daemon)
    async with connect(daemon.url):
        before = open_descriptors(pid)
    for polite in (True, False):
        async with connect(daemon.url) as peer:
            for number in range(MAX_OPEN):
                (await open_file(peer, str(number), path)).ok()
            assert open_descriptors(pid) >= before + MAX_OPEN - 1
            for number in range(16):
                await peer.send("fs/readBlock", {"handleId": str(number), "offset": 0, "len": BLOCK_BYTES})
            if not polite:
                await peer.ws._stream.aclose()  # pyright: ignore[reportPrivateUsage]
        await until(lambda: open_descriptors(pid) < before)


@pytest.mark.case(316)
@pytest.mark.ours_only("the reference makes one request at a time")
async def test_who_asks_for_blocks_and_reads_none_takes_little_memory(daemon: Daemon, tmp_path: Path) -> None:
    """Hundreds of blocks asked for on many handles are made when there is room for them; all of them come."""
    content = os.urandom(BLOCK_BYTES)
    path = file_of(tmp_path / "f", content)
    async with connect(daemon.url) as peer:
        for number in range(MAX_OPEN):
            (await open_file(peer, str(number), path)).ok()
        sent = [
            await peer.send(
                "fs/readBlock", {"handleId": str(number), "offset": 0, "len": BLOCK_BYTES - number}
            )
            for number in range(MAX_OPEN)
        ]
        with trio.fail_after(60):
            for number, request_id in enumerate(sent):
                answer = (await peer.answer_to(request_id)).ok()
                assert answer == block(content[: BLOCK_BYTES - number], eof=False)
