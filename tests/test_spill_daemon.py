"""Output beyond what fits in memory, over real sockets and on real disks: late readers get all of it, or are told.

A child writes numbered blocks that it and the test can make out of nothing, so that any part of its output can
be checked wherever it begins.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

import tsupervise
from daemons import command_of, running, start_daemon
from fault_proxy import fault_proxy
from gates import gate_at
from procfs import listening_pid, resident_kib, status_field, until, until_dead
from small_disk import small_file_system
from tsupervise import Closed, Exited, Lost, Output
from wire import Peer, connect

MIB = 1 << 20

PAGE_BYTES = MIB
"""What the readers here ask for at a time."""

BLOCK_BYTES = 64 << 10

WRITER = """
import hashlib, os, sys
first, count = int(sys.argv[1]), int(sys.argv[2])
for number in range(first, first + count):
    rest = memoryview(hashlib.sha256(b"%d" % number).digest() * 2048)
    while rest:
        rest = rest[os.write(1, rest):]
"""
"""Writes blocks of 64 KiB, each the 2,048-fold digest of its number."""


def writer(count: int, first: int = 0) -> list[str]:
    return [sys.executable, "-c", WRITER, str(first), str(count)]


def block(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest() * 2048


def digest_of_blocks(count: int) -> bytes:
    digest = hashlib.sha256()
    for number in range(count):
        digest.update(block(number))
    return digest.digest()


def assert_is_the_end(data: bytes, count: int) -> None:
    """`data` is the last part of what a writer of so many blocks writes."""
    blocks = -(-len(data) // BLOCK_BYTES)
    expected = b"".join(map(block, range(count - blocks, count)))
    assert data == expected[len(expected) - len(data) :]


async def read_page(peer: Peer, process_id: str, after: int, max_bytes: int | None = PAGE_BYTES) -> Any:
    page = (await peer.process_read(process_id, afterSeq=after, maxBytes=max_bytes, waitMs=10_000)).ok()
    peer.answers.clear()
    peer.arrivals.clear()
    return page


def data_of(page: Any) -> bytes:
    return b"".join(base64.b64decode(chunk["chunk"]) for chunk in page["chunks"])


async def until_closed(peer: Peer, process_id: str) -> dict[str, Any]:
    """Wait for the close of a process that was left alone; returns an answer to a read behind it."""
    after = 0
    while not (page := await read_page(peer, process_id, after, 0))["closed"]:
        after = page["lastSeq"]
    return page


def amount(long_profile: bool, directory: Path) -> int:
    """How many blocks a big writer writes: 64 MiB, or 2 GB, but no more than a quarter of the free disk."""
    if not long_profile:
        return 64 * MIB // BLOCK_BYTES
    return min(2 * 10**9, shutil.disk_usage(directory).free // 4) // BLOCK_BYTES


# --- all of it -------------------------------------------------------------------------------------------


@pytest.mark.case(124)
async def test_a_reader_who_comes_late_reads_everything_by_pages(tmp_path: Path, long_profile: bool) -> None:
    """Far more than memory holds, written while nobody listens, is read byte for byte, in little memory."""
    count = amount(long_profile, tmp_path)
    size = count * BLOCK_BYTES
    spill = ("--spill-dir", str(tmp_path), "--spill-bytes", str(2 * size))
    with running(start_daemon("ours", *spill, "--detached-ttl", "600", "--retention", "600")) as daemon:
        async with connect(daemon.url) as peer:
            (await peer.start("before", "true")).ok()
            await peer.until_closed("before")
            server = listening_pid(daemon)
            resident = resident_kib(server)
            (
                await peer.start("p", "sh", "-c", 'read x; exec "$@"', "sh", *writer(count), pipeStdin=True)
            ).ok()
            session_id = peer.session_id
            await peer.write("p", b"\n", "go")
        began = time.perf_counter()
        with trio.fail_after(600):
            async with connect(daemon.url, resume=session_id) as peer:
                closed = await until_closed(peer, "p")
            wrote = time.perf_counter()
            async with connect(daemon.url, resume=session_id) as peer:
                digest, after, length = hashlib.sha256(), 0, 0
                while (page := await read_page(peer, "p", after))["chunks"]:
                    data = data_of(page)
                    assert len(data) <= PAGE_BYTES
                    digest.update(data)
                    length += len(data)
                    after = page["nextSeq"] - 1
                    assert (page["firstSeq"], page["truncated"]) == (1, False)
                    assert page.get("more", False) == (length < size)
                    exit_and_close = {key: page[key] for key in ("exitSeq", "closedSeq", "lastSeq")}
                    assert exit_and_close == {
                        "exitSeq": after + 1 if length == size else closed["exitSeq"],
                        "closedSeq": closed["lastSeq"],
                        "lastSeq": closed["lastSeq"],
                    }
            read = time.perf_counter()
            assert (length, digest.digest()) == (size, digest_of_blocks(count))
        peak = int(status_field(server, "VmHWM").removesuffix("kB"))
        print(
            f"{size / 1e6:.0f} MB written at {size / 1e6 / (wrote - began):.0f} MB/s, read late at "
            f"{size / 1e6 / (read - wrote):.0f} MB/s; the daemon grew by {peak - resident} KiB at most"
        )
        assert peak - resident < 40 * 1024


@pytest.mark.case(125)
async def test_one_answer_takes_as_much_as_one_frame_and_says_that_there_is_more(tmp_path: Path) -> None:
    """Without `maxBytes` a page is 8 MiB at most; the next ones follow without a gap, the last says it is all."""
    count = 20 * MIB // BLOCK_BYTES
    with running(start_daemon("ours", "--spill-dir", str(tmp_path))) as daemon:
        async with connect(daemon.url) as peer:
            code, _ = await peer.run("p", *writer(count))
            assert code == 0
            digest, after, sizes = hashlib.sha256(), 0, list[int]()
            while True:
                page = await read_page(peer, "p", after, None)
                data = data_of(page)
                digest.update(data)
                sizes.append(len(data))
                after = page["nextSeq"] - 1
                if "more" not in page:
                    break
            assert digest.digest() == digest_of_blocks(count)
            assert after == page["closedSeq"] == page["lastSeq"]
            assert len(sizes) == 3
            assert max(sizes) <= 8 * MIB
            [entry] = (await peer.request("process/list")).ok()["processes"]
            assert entry["retainedBytes"] == 20 * MIB
            assert 0 <= 20 * MIB - entry["spilledBytes"] <= MIB


@pytest.mark.case(124)
@pytest.mark.parametrize("lossless", [False, True], ids=["kept by the server", "lossless"])
async def test_the_python_client_loses_nothing_over_a_long_outage(
    tmp_path: Path, long_profile: bool, lossless: bool
) -> None:
    """More is written during an outage than any answer holds; a stream that began before it gets every byte."""
    count = amount(long_profile, tmp_path)
    size = count * BLOCK_BYTES
    spill = ("--spill-dir", str(tmp_path), "--spill-bytes", str(2 * size))
    with running(start_daemon("ours", *spill, "--detached-ttl", "600", "--retention", "600")) as daemon:
        with trio.fail_after(600):
            async with (
                fault_proxy(daemon.address) as proxy,
                tsupervise.connect(proxy.url, recovery_s=600) as client,
            ):
                process = await client.start(writer(count), lossless=lossless)
                digest, length, last = hashlib.sha256(), 0, 0
                async for event in process.events():
                    assert event.seq == last + 1
                    last = event.seq
                    match event:
                        case Output(data=data):
                            digest.update(data)
                            length += len(data)
                            if proxy.cuts == 0 and length > size // 8:
                                proxy.cut(1.0)
                            elif proxy.cuts == 1 and length > size // 2:
                                proxy.cut(0.1, "rst")
                        case Exited(exit_code=code):
                            assert code == 0
                        case Lost():
                            pytest.fail(f"lost {event}")
                        case Closed():
                            pass
                assert proxy.cuts == 2
                assert (length, digest.digest()) == (size, digest_of_blocks(count))
                assert await process.wait() == 0


@pytest.mark.case(125)
async def test_a_reader_follows_while_everything_moves_to_the_file(tmp_path: Path) -> None:
    """Pages that are read while the process writes on and its session is detached: every byte once."""
    count = 32 * MIB // BLOCK_BYTES
    with running(start_daemon("ours", "--spill-dir", str(tmp_path), "--retained-bytes", "100000")) as daemon:
        async with connect(daemon.url) as peer:
            (await peer.start("p", *writer(count))).ok()
            digest, after, pages = hashlib.sha256(), 0, 0
            while (page := await read_page(peer, "p", after, 300_000))["chunks"] or not page["closed"]:
                digest.update(data_of(page))
                after = page["nextSeq"] - 1
                pages += 1
                assert not page["truncated"]
            assert digest.digest() == digest_of_blocks(count)
            print(f"{pages} pages")


# --- not all of it ---------------------------------------------------------------------------------------


@pytest.mark.case(126)
async def test_a_process_keeps_to_its_budget(tmp_path: Path) -> None:
    """With the budget used up the oldest goes and the gap is told; the newest is all there."""
    count = 24 * MIB // BLOCK_BYTES
    log = tmp_path / "log"
    spill = tmp_path / "spill"
    spill.mkdir()
    options = ("--spill-dir", str(spill), "--spill-bytes", str(8 * MIB))
    with running(start_daemon("ours", *options, stderr=log)) as daemon:
        async with connect(daemon.url) as peer:
            code, _ = await peer.run("p", *writer(count))
            assert code == 0
            await assert_newest_is_readable(peer, "p", count, 8 * MIB)
            await until(lambda: spilled_blocks_bytes(listening_pid(daemon)) <= 9 * MIB)
            status = (await peer.request("operator/status")).ok()
            assert 4 * MIB < status["spilledBytes"] <= 8 * MIB < status["spillTotalBytes"]
    assert log.read_text().count("the oldest is dropped") == 1


def spilled_blocks_bytes(pid: int) -> int:
    """What the spill files of a daemon take on the disk."""
    total = 0
    for fd in os.listdir(f"/proc/{pid}/fd"):
        link = f"/proc/{pid}/fd/{fd}"
        with suppress(FileNotFoundError):  # closed meanwhile
            if ".spill" in os.readlink(link):
                total += os.stat(link).st_blocks * 512
    return total


async def assert_newest_is_readable(peer: Peer, process_id: str, count: int, at_least: int) -> None:
    """A gap is told, and behind it the output of a writer is whole to its end."""
    first = (await read_page(peer, process_id, 0))["chunks"][0]["seq"]
    assert first > 1
    data, after = b"", 0
    while (page := await read_page(peer, process_id, after))["chunks"]:
        assert page["truncated"] == (after == 0)
        data += data_of(page)
        after = page["nextSeq"] - 1
    assert at_least <= len(data) < count * BLOCK_BYTES
    assert_is_the_end(data, count)


@pytest.mark.case(126)
async def test_all_processes_keep_to_the_budget_of_the_daemon(tmp_path: Path) -> None:
    """A new process takes the place of one that has closed, which says so; memory is untouched."""
    count = 8 * MIB // BLOCK_BYTES
    options = ("--spill-dir", str(tmp_path), "--spill-total-bytes", str(10 * MIB))
    with running(start_daemon("ours", *options)) as daemon:
        async with connect(daemon.url) as peer:
            assert (await peer.run("old", *writer(count)))[0] == 0
            assert not (await read_page(peer, "old", 0, 0))["truncated"]
            assert (await peer.run("new", *writer(count)))[0] == 0
            pages = [await read_page(peer, name, 0, 0) for name in ("old", "new")]
            assert any(page["truncated"] for page in pages)
            entries = (await peer.request("process/list")).ok()["processes"]
            assert sum(entry["spilledBytes"] for entry in entries) <= 10 * MIB
            assert all(entry["retainedBytes"] >= MIB - BLOCK_BYTES for entry in entries)


@pytest.mark.case(126)
async def test_a_full_disk_costs_the_oldest_output_and_nothing_else(tmp_path: Path) -> None:
    """At half way the disk is full: the gap is told, the process ends with its own code, later output is there."""
    half = 12 * MIB // BLOCK_BYTES
    log = tmp_path / "log"
    with (
        gate_at(tmp_path) as gate,
        small_file_system(20 * MIB, tmp_path / "disk") as disk,
        running(start_daemon("ours", "--spill-dir", str(disk), stderr=log)) as daemon,
    ):
        async with connect(daemon.url) as peer:
            script = f'{shlex.join(writer(half))} && read x <{gate.path} && "$@" && exit 7'
            (await peer.start("p", "sh", "-c", script, "sh", *writer(half, first=half))).ok()
            await peer.until(lambda: len(peer.output("p")) == half * BLOCK_BYTES)
            await until(lambda: spilled_blocks_bytes(listening_pid(daemon)) >= 10 * MIB)
            fill(disk / "of somebody else")
            gate.open()
            assert (await peer.until_exited("p"))["exitCode"] == 7
            events = await peer.until_closed("p")
            assert len(peer.output("p")) == 2 * half * BLOCK_BYTES
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
            await assert_newest_is_readable(peer, "p", 2 * half, 9 * MIB)
            # Somebody makes room: the next process has all of it again.
            (disk / "of somebody else").unlink()
            (await peer.start("q", *writer(half // 2))).ok()
            await peer.until_closed("q")
            assert not (await read_page(peer, "q", 0, 0))["truncated"]
    assert log.read_text().count("is full") == 1


def fill(path: Path) -> None:
    """Write a file until the disk is full."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(BLOCK_BYTES))


# --- the files -------------------------------------------------------------------------------------------


@pytest.mark.case(128)
async def test_nothing_is_left_of_a_daemon_that_was_killed(tmp_path: Path) -> None:
    """While it lives its files have no name and are its user's alone; after SIGKILL the disk has them back."""
    options = ("--spill-dir", str(tmp_path))
    (tmp_path / "tsupervise-1-00.spill").write_bytes(b"left by a crash")
    with running(start_daemon("ours", *options)) as daemon:
        assert os.listdir(tmp_path) == [], "what a crash has left goes at the start"
        server = listening_pid(daemon)
        async with connect(daemon.url) as peer:
            (await peer.start("p", *writer(100))).ok()
            await until(lambda: spilled_blocks_bytes(server) > MIB)
            links = [Path(f"/proc/{server}/fd/{fd}") for fd in os.listdir(f"/proc/{server}/fd")]
            modes = [link.stat().st_mode & 0o777 for link in links if ".spill" in os.readlink(link)]
            assert modes == [0o600]
            assert os.listdir(tmp_path) == []
            os.kill(server, signal.SIGKILL)
            await until_dead(server)
            await peer.until_ended()
    assert os.listdir(tmp_path) == []


async def test_a_forgotten_process_gives_its_place_back(tmp_path: Path) -> None:
    """When its retention is over, its file is closed."""
    with running(start_daemon("ours", "--spill-dir", str(tmp_path), "--retention", "0.1")) as daemon:
        async with connect(daemon.url) as peer:
            assert (await peer.run("p", *writer(100)))[0] == 0
            server = listening_pid(daemon)
            await until(lambda: spilled_blocks_bytes(server) == 0)
            assert (await peer.run("p", "echo", "fine"))[0] == 0


@pytest.mark.case(129)
@pytest.mark.parametrize(
    ("directory", "reason"),
    [
        ("", "No such file or directory (os error 2)"),
        ("/no/such/place", "No such file or directory (os error 2)"),
        ("/dev/null", "it is not a directory"),
        ("/proc/self", "(os error "),
    ],
)
def test_a_directory_that_cannot_be_used_is_refused(directory: str, reason: str) -> None:
    """Before anything is listened on, with the reason and exit code 1."""
    argv = [*command_of("ours"), "--listen", "ws://127.0.0.1:0", "--spill-dir", directory]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"Error: cannot spill into {directory}: " in ended.stderr
    assert reason in ended.stderr


@pytest.mark.parametrize("option", ["--spill-bytes", "--spill-total-bytes"])
def test_a_budget_without_a_directory_is_a_usage_error(option: str) -> None:
    """It would be no budget of anything."""
    argv = [*command_of("ours"), "--listen", "ws://127.0.0.1:0", option, str(1 << 30)]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "need a --spill-dir" in ended.stderr


# --- what it costs ---------------------------------------------------------------------------------------


async def test_reading_a_file_holds_up_nobody_else(tmp_path: Path) -> None:
    """One connection asks for everything a hundred times; another one runs its one-shots meanwhile."""
    count = 16 * MIB // BLOCK_BYTES
    with running(start_daemon("ours", "--spill-dir", str(tmp_path))) as daemon:
        async with connect(daemon.url) as reader, connect(daemon.url) as other:
            assert (await reader.run("p", *writer(count)))[0] == 0
            asked = [await reader.send("process/read", {"processId": "p", "afterSeq": 0}) for _ in range(100)]
            for number in range(20):
                assert await other.run(f"q{number}", "echo", "fine") == (0, b"fine\n")
            assert asked[-1] not in reader.answers, "they were answered while the reads went on"
            assert (await reader.terminate("p")).ok() == {"running": False}


async def test_the_throughput_of_a_flood_is_printed(tmp_path: Path, long_profile: bool) -> None:
    """The same flood with a file and without one, while nobody listens: both are taken to their end."""
    size = 1 << 30 if long_profile else 128 * MIB
    rates: dict[str, list[float]] = {"without": [], "with": []}
    (tmp_path / "end").mkdir()
    with (
        gate_at(tmp_path) as gate,
        gate_at(tmp_path / "end") as end,
        running(start_daemon("ours")) as plain,
        running(
            start_daemon("ours", "--spill-dir", str(tmp_path), "--spill-bytes", str(2 << 30))
        ) as spilling,
    ):
        argv = ("sh", "-c", f"read x <{gate.path}; head -c {size} /dev/zero; echo >{end.path}")
        for _ in range(3 if long_profile else 1):
            for name, daemon in (("without", plain), ("with", spilling)):
                async with connect(daemon.url) as peer:
                    (await peer.start("p", *argv)).ok()
                gate.open()
                began = time.perf_counter()
                await end.until_opened()
                rates[name].append(size / 1e6 / (time.perf_counter() - began))
    best = {name: round(max(values)) for name, values in rates.items()}
    print(f"MB/s: {best}, ratio {best['with'] / best['without']:.2f}")
