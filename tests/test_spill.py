"""Older output in files, from the inside: what is retained is always the newest, in one piece, wherever it lies.

The disk is real, and small or broken where a test makes it so, at the calls to the system. Threads keep real time.
"""

from __future__ import annotations

import base64
import errno
import os
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from traceback import format_exc
from typing import Any, Literal

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tsupervise._spill
import tsupervise._spill_file
import tsupervise._spill_index
from in_process import House, PipeChild, open_house
from procfs import until
from tsupervise._background import open_background
from tsupervise._event_log import PAGE_BYTES, RETAINED_CHUNKS, Chunk, EventLog, Page
from tsupervise._retained_total import RetainedTotal
from tsupervise._settings import Settings
from tsupervise._spill import Spill, SpillSpace
from tsupervise._spill_file import SpillFile, SpillFileClosed, check_directory, record_bytes
from tsupervise._spill_index import STRIDE, SpillIndex
from tsupervise.errors import CannotSpill

PATIENCE_S = 20.0
"""How long a test waits for something that must happen, in real seconds."""


# --- the index -------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, 3 * STRIDE), max_size=40),
    drops=st.lists(st.integers(0, 8 * STRIDE), max_size=6),
)
def test_the_index_finds_every_chunk_near_its_place(sizes: list[int], drops: list[int]) -> None:
    """What is above a number begins where the index says or little behind it, however much was dropped before."""
    index = SpillIndex()
    offsets: dict[int, int] = {}
    for number, size in enumerate(sizes):
        offsets[2 * number + 1] = index.end  # a number in between may be that of the exit
        index.add(2 * number + 1, size, size - 1)
    dropped = 0
    for drop in drops:
        freed = index.drop(drop)
        dropped += freed
        assert freed >= drop or not index
    kept = {seq: offset for seq, offset in offsets.items() if offset >= dropped}
    assert index.start == dropped == min(kept.values(), default=index.end)
    assert (index.file_bytes, bool(index)) == (index.end - dropped, bool(kept))
    assert index.output_bytes == index.file_bytes - len(kept)
    if kept:
        assert index.first_seq == min(kept)
    for seq in range(index.last_seq):
        following = [offset for number, offset in kept.items() if number > seq]
        if following:
            assert index.start <= index.offset_for(seq) <= following[0]
            assert following[0] - index.offset_for(seq) < STRIDE + 3 * STRIDE


def test_small_chunks_need_a_small_index() -> None:
    """A gigabyte in chunks of a terminal's size is found by less than a mebibyte of memory."""
    index = SpillIndex()
    for seq in range(1, (1 << 30) // 4096):
        index.add(seq, 4096, 4083)
    columns = (index._seqs, index._offsets, index._output_before)  # pyright: ignore[reportPrivateUsage]
    assert sum(len(column) * column.itemsize for column in columns) < 1 << 20


# --- one file --------------------------------------------------------------------------------------------


def chunks_of(*sizes: int) -> list[Chunk]:
    return [Chunk(seq, "pty", bytes([seq % 251]) * size) for seq, size in enumerate(sizes, 1)]


@pytest.mark.case(128)
def test_a_file_has_no_name_and_belongs_to_its_owner_alone(tmp_path: Path) -> None:
    """Nothing shows in the directory, and nobody else may open it by way of /proc either."""
    file = SpillFile(str(tmp_path))
    file.write(0, chunks_of(10))
    [fd] = [fd for fd in os.listdir("/proc/self/fd") if is_spill(f"/proc/self/fd/{fd}")]
    assert os.stat(f"/proc/self/fd/{fd}").st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == []
    assert not os.get_inheritable(int(fd))
    file.close()
    assert not is_spill(f"/proc/self/fd/{fd}")


def is_spill(link: str) -> bool:
    try:
        target = os.readlink(link)
    except OSError:  # closed between the listing and the look
        return False
    return target.endswith(".spill (deleted)")


@pytest.mark.parametrize(
    "sizes", [(1,), (1, 2, 3), (70_000,) * 40, (3 << 20, 1, 3 << 20), (7,) * 10_000], ids=str
)
def test_a_file_gives_back_what_it_was_given(tmp_path: Path, sizes: Sequence[int]) -> None:
    """Chunks of any size come back as they were, a page of them or all, from any place that an index names."""
    file, index, chunks = SpillFile(str(tmp_path)), SpillIndex(), chunks_of(*sizes)
    file.write(0, chunks)
    for chunk in chunks:
        index.add(chunk.seq, record_bytes(chunk), len(chunk.data))
    for after in {0, 1, len(chunks) // 2, len(chunks) - 1}:
        for max_bytes in (None, 0, 100_000):
            page, expected = Page(after, max_bytes), Page(after, max_bytes)
            file.read(index.offset_for(after), index.end, page)
            expected.take_all(chunk for chunk in chunks if chunk.seq > after)
            assert (page.chunks, page.is_full) == (expected.chunks, expected.is_full)
    file.close()


def test_a_file_in_use_is_closed_by_its_last_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that nobody waits for any more never finds its descriptor closed, or given to somebody else."""
    file = SpillFile(str(tmp_path))
    file.write(0, chunks_of(10))
    written: list[int] = []
    began, go_on = threading.Event(), threading.Event()

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        began.set()
        assert go_on.wait(PATIENCE_S)
        written.append(fd)
        os.fstat(fd)
        return len(data)

    monkeypatch.setattr(os, "pwrite", pwrite)
    thread = threading.Thread(target=file.write, args=(100, chunks_of(10)))
    thread.start()
    assert began.wait(PATIENCE_S)
    file.close()
    with pytest.raises(SpillFileClosed):
        file.give_back(0, 4096)
    assert len(spill_descriptors()) == 1
    go_on.set()
    thread.join(PATIENCE_S)
    assert len(written) == 1
    assert spill_descriptors() == []


def spill_descriptors() -> list[str]:
    return [fd for fd in os.listdir("/proc/self/fd") if is_spill(f"/proc/self/fd/{fd}")]


@pytest.mark.case(128)
def test_names_that_a_crash_has_left_are_removed(tmp_path: Path) -> None:
    """They go at the next start; whatever else lies there stays."""
    for name in ("tsupervise-123-00ff.spill", "tsupervise-notes.txt", "other.spill"):
        (tmp_path / name).write_bytes(b"secret")
    assert check_directory(str(tmp_path)) == str(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"tsupervise-notes.txt", "other.spill"}


@pytest.mark.case(129)
def test_a_file_system_without_holes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest could never make room there, so it is said before anything is started."""

    def punch_hole(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(tsupervise._spill_file, "punch_hole", punch_hole)
    with pytest.raises(CannotSpill, match=r"its file system cannot free a part of a file .*os error 95"):
        check_directory(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert spill_descriptors() == []


# --- a log and its file against a naive account ----------------------------------------------------------

SCALE = {"START_BYTES": 2_000, "WAIT_BYTES": 4_000, "START_CHUNKS": 6, "BATCH_BYTES": 6_000}
"""Small numbers, so that little output comes by every case."""

Fault = Literal["none", "full", "half", "broken", "unreadable", "no holes"]


@dataclass
class Disk:
    """The calls to the system that a spill file makes, and what is wrong with them."""

    fault: Fault = "none"
    failures: int = 0
    bugs: list[str] = field(default_factory=list[str])
    """What the daemon's log would call a failure of its own."""

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        match self.fault:
            case "full" | "broken":
                self._fail(errno.ENOSPC if self.fault == "full" else errno.EIO)
            case "half" if len(data) > 1:
                self.failures += 1
                self.fault = "full"
                data = data[: len(data) // 2]
            case _:
                pass
        return REAL_PWRITE(fd, data, offset)

    def note_bug(self, *_: object) -> None:
        self.bugs.append(format_exc())

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        if self.fault == "unreadable":
            self._fail(errno.EIO)
        return REAL_PREAD(fd, size, offset)

    def punch_hole(self, fd: int, offset: int, length: int) -> None:
        if self.fault == "no holes":
            self._fail(errno.EOPNOTSUPP)
        REAL_PUNCH_HOLE(fd, offset, length)

    def _fail(self, number: int) -> None:
        self.failures += 1
        raise OSError(number, os.strerror(number))


REAL_PWRITE, REAL_PREAD, REAL_PUNCH_HOLE = os.pwrite, os.pread, tsupervise._spill_file.punch_hole


@contextmanager
def small_scale(disk: Disk) -> Generator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SCALE.items():
            patch.setattr(tsupervise._spill, name, value)
        patch.setattr(tsupervise._spill_index, "STRIDE", 1_000)
        patch.setattr(os, "pwrite", disk.pwrite)
        patch.setattr(os, "pread", disk.pread)
        patch.setattr(tsupervise._spill_file, "punch_hole", disk.punch_hole)
        patch.setattr(tsupervise._spill.log, "exception", disk.note_bug)
        yield


@dataclass
class Told:
    """A process as far as a log has to do with it, and all that it ever wrote."""

    log: EventLog
    spill: Spill
    retained: RetainedTotal
    chunks: list[Chunk] = field(default_factory=list[Chunk])
    forgotten: bool = False

    async def append(self, size: int) -> None:
        """As a pump does it."""
        while not self.spill.has_room:
            await self.spill.wait_for_room()
        data = (b"%08d" % len(self.chunks) * (size // 8 + 1))[:size]
        before = self.log.footprint
        self.chunks.append(self.log.append("stdout", data))
        self.retained.changed(self.log, self.log.footprint - before)
        self.spill.appended()

    async def settle(self) -> None:
        """Wait until nothing is under way."""
        while self.spill._moving is not None:  # pyright: ignore[reportPrivateUsage]
            await self.spill.wait_for_room()

    def close(self) -> None:
        self.log.record_exit(0, None)
        self.log.record_close()
        self.retained.closed(self.log)
        self.spill.settle()

    def forget(self) -> None:
        self.spill.forget()
        self.retained.forgotten(self.log)
        self.forgotten = True

    @property
    def kept(self) -> list[Chunk]:
        """All that has not been dropped, if what is retained is in one piece."""
        return [chunk for chunk in self.chunks if chunk.seq >= self.log.first_retained_seq]

    async def read(self, after: int, max_bytes: int | None) -> None:
        """Read a page while whatever else goes on, and see that it is right."""
        newest = self.log.last_retained_seq
        page = await self.spill.page(after, max_bytes)
        if self.forgotten:
            return
        written = {chunk.seq: chunk for chunk in self.chunks}
        numbers = [chunk.seq for chunk in page.chunks]
        assert page.chunks == [written[seq] for seq in numbers], "as they were written"
        assert numbers == sorted(set(numbers)), "in order and once"
        # What is missing among them has been dropped, now or while the page was read.
        still = {chunk.seq for chunk in self.kept if after < chunk.seq <= page.after}
        assert still <= set(numbers), "nothing that is retained is left out"
        assert page.is_full or page.after >= max(newest, after) or self.log.lost_after(page.after)
        if max_bytes is not None and len(numbers) > 1:
            assert sum(len(chunk.data) for chunk in page.chunks) <= max_bytes
        assert self.log.has_more(page) == any(chunk.seq > page.after for chunk in self.kept)


def check(space: SpillSpace, retained: RetainedTotal, processes: Sequence[Told]) -> None:
    """What holds between any two steps, whatever is under way."""
    assert retained.bytes == sum(process.log.footprint for process in processes)
    for process in processes:
        log = process.log
        if process.forgotten:
            continue
        assert log.retained_bytes == sum(len(chunk.data) for chunk in process.kept)
        for after in {0, log.first_retained_seq - 2, log.first_retained_seq - 1, log.last_seq}:
            dropped = [chunk for chunk in process.chunks if after < chunk.seq < log.first_retained_seq]
            assert log.lost_after(max(0, after)) == bool(dropped) or after < 0
        if log.spilled is not None:
            assert log.spilled.file_bytes <= space.process_bytes
    assert space.bytes <= space.total_bytes


NUMBERS = st.integers(0, 2)

PAGES = (None, 0, 50, 7_000, 40_000)
"""What readers ask for at most."""

READS = st.lists(st.tuples(st.floats(0, 1), st.sampled_from(PAGES)), min_size=1, max_size=5)
"""From which part of all that was written, and how much."""

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), NUMBERS, st.lists(st.integers(1, 5_000), min_size=1, max_size=12)),
        st.tuples(st.just("flood"), NUMBERS, st.tuples(st.integers(1, 100), st.integers(1, 3_000))),
        st.tuples(st.just("read"), NUMBERS, READS),
        st.tuples(st.just("read"), NUMBERS, READS),
        st.tuples(st.sampled_from(["settle", "close", "forget"]), NUMBERS, st.none()),
        st.tuples(st.just("fault"), st.sampled_from(Fault.__args__), st.none()),
    ),
    min_size=15,
    max_size=60,
)


@pytest.mark.case(125)
@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=STEPS,
    process_bytes=st.sampled_from([3_000, 30_000, 10**6]),
    total_bytes=st.sampled_from([5_000, 50_000, 10**6]),
    total_memory=st.sampled_from([8_000, 40_000, 10**6]),
)
def test_what_is_retained_is_the_newest_in_one_piece(
    tmp_path: Path,
    steps: list[tuple[str, int | Fault, Any]],
    process_bytes: int,
    total_bytes: int,
    total_memory: int,
) -> None:
    """Whatever is written, read, closed and forgotten, on whatever disk: pages, losses and accounts are right."""
    disk = Disk()

    async def play() -> None:
        async with open_background(outlast_cancel=True) as nursery, trio.open_nursery() as readers:
            space = SpillSpace(str(tmp_path), process_bytes, total_bytes, nursery)
            retained = RetainedTotal(total_memory)

            def new() -> Told:
                event_log = EventLog(max_bytes=8_000, max_chunks=20)
                return Told(event_log, space.open(event_log, retained, "p"), retained)

            processes = [new() for _ in range(3)]
            ever = list(processes)
            for step, which, detail in steps:
                if isinstance(which, str):
                    disk.fault = which
                    continue
                process = processes[which]
                match step:
                    case "append" if process.log.closed is None:
                        for size in detail:
                            await process.append(size)
                    case "flood" if process.log.closed is None:
                        for _ in range(detail[0]):
                            await process.append(detail[1])
                    case "read":
                        for part, max_bytes in detail:
                            after = round(part * process.log.last_seq)
                            readers.start_soon(process.read, after, max_bytes)
                    case "settle":
                        await process.settle()
                    case "close" if process.log.closed is None:
                        process.close()
                    case "forget":
                        process.forget()
                        processes[which] = new()
                        ever.append(processes[which])
                    case _:
                        pass
                check(space, retained, ever)
            for process in ever:
                await process.settle()
            check(space, retained, ever)
            with trio.fail_after(PATIENCE_S):
                # The last to settle may have asked an older one to make room.
                while retained.is_exceeded:
                    await trio.sleep(0.001)
                    for process in processes:
                        # One that has lost its file gives up its share when it writes next.
                        retained.changed(process.log, 0)
            for process in processes:
                assert process.log.memory_bytes <= 8_000 + 4_000
                if not disk.failures and process_bytes == total_bytes == 10**6:
                    assert process.log.first_retained_seq == 1 or not process.chunks
                process.forget()
            assert (space.bytes, space.closed) == (0, {})
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(PATIENCE_S):
                while space.files:  # noqa: ASYNC110 - closed by threads
                    await trio.sleep(0.001)

    with small_scale(disk):
        trio.run(play)
    assert disk.bugs == []
    assert spill_descriptors() == []


async def test_what_is_dropped_in_the_middle_of_a_read_is_not_in_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read that meets a hole half way through a chunk gives out nothing of it, and goes on behind the hole."""
    async with open_background(outlast_cancel=True) as nursery:
        space = SpillSpace(str(tmp_path), 1 << 30, 1 << 30, nursery)
        event_log = EventLog(max_bytes=0)
        process = Told(event_log, space.open(event_log, RetainedTotal(), "p"), RetainedTotal())
        for _ in range(8):
            await process.append(3 * STRIDE // 2)
        process.spill.relieve()
        await process.settle()

        def pread(fd: int, size: int, offset: int) -> bytes:
            data = REAL_PREAD(fd, size, offset)
            if offset:
                return data
            trio.from_thread.run(process.spill._free, STRIDE)  # pyright: ignore[reportPrivateUsage]
            return data[:1000] + bytes(STRIDE - 1000) + data[STRIDE:]

        monkeypatch.setattr(os, "pread", pread)
        await process.read(0, None)
        assert event_log.first_retained_seq == 2
        process.forget()
        await until(lambda: not space.files)


# --- a supervisor whose disk hangs ----------------------------------------------------------------------


@dataclass
class HangingDisk:
    """Writes hang from `hang` on until `go_on`; all of them are counted."""

    _flowing: threading.Event = field(default_factory=threading.Event)
    hung: int = 0

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        if not self._flowing.is_set():
            self.hung += 1
            assert self._flowing.wait(PATIENCE_S)
        return REAL_PWRITE(fd, data, offset)

    def go_on(self) -> None:
        self._flowing.set()


@asynccontextmanager
async def house_on(
    directory: Path, disk: HangingDisk, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[House]:
    """A supervisor that spills, and whose writes to files hang until the block ends or the test lets them go on."""
    options = Settings(spill_dir=str(directory), retained_bytes=64 << 10)
    with trio.fail_after(PATIENCE_S):
        async with open_house(options) as house:
            monkeypatch.setattr(os, "pwrite", disk.pwrite)
            try:
                yield house
            finally:
                disk.go_on()
    await until(lambda: not spill_descriptors())


async def flood_until(child: PipeChild, condition: Callable[[], bool]) -> None:
    """Write to a child's pipe what it takes until something is so."""
    while not condition():
        child.say(bytes(4096))
        await trio.lowlevel.checkpoint()


async def flood_until_blocked(house: House, child: PipeChild, disk: HangingDisk) -> None:
    """Write until the disk hangs and nobody reads the pipe any more."""
    await flood_until(child, lambda: bool(disk.hung))
    calm = 0
    while calm < 200:
        calm = 0 if child.say(bytes(4096)) else calm + 1
        await trio.sleep(0.001)


@pytest.mark.case(127)
async def test_a_hanging_disk_stops_its_process_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pipe fills, another process of the same client runs and ends; when the disk goes on, nothing is lost."""
    disk = HangingDisk()
    async with house_on(tmp_path, disk, monkeypatch) as house:
        peer = await house.connect()
        (await peer.start("flood")).ok()
        (await peer.start("other")).ok()
        flood, other = house.children
        await flood_until_blocked(house, flood, disk)
        other.say(b"fine")
        other.end(3)
        assert [event.kind for event in await peer.until_closed("other")] == ["output", "exited", "closed"]
        disk.go_on()
        flood.let_go()
        flood.die()
        written = sum(len(event.data) for event in await peer.until_closed("flood") if event.kind == "output")
        answer = (await peer.read("flood")).ok()
        assert (answer["firstSeq"], answer["truncated"]) == (1, False)
        entry = (await peer.request("process/list")).ok()["processes"][0]
        assert entry["retainedBytes"] == entry["outputBytes"] == written


@pytest.mark.case(127)
@pytest.mark.parametrize("way", ["terminate", "exit", "descendant"])
async def test_a_process_closes_though_the_disk_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Terminate answers, the exit and the close are told, and the newest output can be read."""
    disk = HangingDisk()
    # For ever where nobody should wait at all.
    monkeypatch.setattr("tsupervise._process.DISK_PATIENCE_S", 0.05 if way == "descendant" else 1e6)
    async with house_on(tmp_path, disk, monkeypatch) as house:
        peer = await house.connect()
        (await peer.start("p")).ok()
        [child] = house.children
        await flood_until_blocked(house, child, disk)
        match way:
            case "terminate":
                assert (await peer.terminate("p")).ok() == {"running": True}
            case "exit":
                child.end(7)
            case _:
                # A descendant holds the output and writes on; it waits for the disk, but not for long.
                child.die(7)
                written = 0
                while written < 1 << 20:
                    written += child.say(bytes(4096))
                    await trio.lowlevel.checkpoint()
                child.let_go()
        *_, exited, closed = await peer.until_closed("p")
        assert (exited.kind, closed.kind) in (("exited", "closed"), ("output", "closed"))
        answer = (await peer.read("p", afterSeq=closed.seq)).ok()
        assert answer["exitCode"] == (137 if way == "terminate" else 7)
        assert (answer["closedSeq"], answer["lastSeq"]) == (closed.seq, closed.seq)
        assert disk.hung == 1, "and still the disk hangs"


@pytest.mark.case(127)
async def test_a_supervisor_ends_though_the_disk_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves the thread behind, and with it the file, which is closed once the disk answers."""
    disk = HangingDisk()
    with trio.fail_after(PATIENCE_S):
        async with open_house(Settings(spill_dir=str(tmp_path), retained_bytes=64 << 10)) as house:
            monkeypatch.setattr(os, "pwrite", disk.pwrite)
            peer = await house.connect()
            (await peer.start("p")).ok()
            await flood_until_blocked(house, house.children[0], disk)
    assert (disk.hung, len(spill_descriptors())) == (1, 1)
    disk.go_on()
    await until(lambda: not spill_descriptors())


# --- memory ----------------------------------------------------------------------------------------------


async def test_scarce_memory_is_relieved_by_files(tmp_path: Path) -> None:
    """What closes while memory is half full moves out whole; what has closed before does when it is full."""
    options = Settings(spill_dir=str(tmp_path), retained_total_bytes=256 << 10)
    size = 100_000
    async with open_house(options) as house:
        peer = await house.connect()

        async def run(number: int) -> PipeChild:
            (await peer.start(f"p{number}")).ok()
            child = house.children[number]
            left = size
            while left:
                left -= child.say(bytes(min(left, 4096)))
                await trio.lowlevel.checkpoint()
            return child

        async def until_spilled(*expected: int) -> None:
            with trio.fail_after(PATIENCE_S):
                while True:
                    entries = (await peer.request("process/list")).ok()["processes"]
                    spilled = [entry["spilledBytes"] for entry in entries[: len(expected)]]
                    # The newest may be read still.
                    arrived = all(entry["retainedBytes"] == size for entry in entries)
                    if arrived and spilled == list(expected):
                        break

        for number in range(5):
            (await run(number)).end()
            await peer.until_closed(f"p{number}")
            await until_spilled(0, *[size] * number)
        await run(5)
        await until_spilled(0, size, size, size, size, 0)
        await run(6)
        await until_spilled(
            size, size, size, size, size, 0
        )  # the last one too may have moved some of its own
        for number in range(7):
            answer = (await peer.read(f"p{number}")).ok()
            assert (answer["firstSeq"], answer["truncated"], answer.get("more")) == (1, False, None)
            assert sum(map(len, map(data_of, answer["chunks"]))) == size
    assert house.supervisor.spilled_bytes == 0


def data_of(chunk: dict[str, str]) -> bytes:
    return base64.b64decode(chunk["chunk"])


def test_a_page_of_everything_fits_one_frame() -> None:
    """As base64 and with all its chunks a page stays below what other clients take as one frame."""
    around_a_chunk = len('{"seq":1000000000,"stream":"stdout","chunk":""},')
    assert PAGE_BYTES * 4 // 3 + RETAINED_CHUNKS * (around_a_chunk + 2) < 16 << 20
