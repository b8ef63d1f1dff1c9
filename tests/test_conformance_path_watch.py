"""fs/watchMissing: one wake-up when paths that are known to be missing may be missing no more.

That nothing is told is shown by what is told afterwards: a watch tells of the first change that matters, so one
that tells only after a second change has not told of the first.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from daemons import Daemon
from procfs import listening_pid, open_descriptors, until
from tsupervise._disk import Disk
from tsupervise._path_watch import PathWatches
from wire import Answer, Peer, connect

MAX_PATHS = 64
MAX_FOLDERS = 64


async def watch(peer: Peer, watch_id: int, *missing: Path | str, present: Path | None = None) -> bool:
    uris = [path if isinstance(path, str) else path.as_uri() for path in missing]
    params = {"watchId": watch_id, "missing": uris, "present": present.as_uri() if present else None}
    result = (await peer.request("fs/watchMissing", params)).ok()
    assert result.keys() == {"watching"}
    return result["watching"]


def told(peer: Peer) -> list[int]:
    """The watches that have told of a change, in order."""
    events = [arrival for arrival in peer.arrivals if not isinstance(arrival, Answer)]
    assert all(event.kind == "fs/missingChanged" for event in events)
    return [event.params["watchId"] for event in events]


async def until_told(peer: Peer, *watch_ids: int) -> None:
    await peer.until(lambda: len(told(peer)) >= len(watch_ids))
    # The daemon may have said more meanwhile, and would have said it before this answer.
    await peer.request("environment/status", {})
    assert told(peer) == list(watch_ids)


@pytest.mark.case(258)
async def test_a_path_that_comes_to_be_is_told_of_once(daemon: Daemon, tmp_path: Path) -> None:
    """Whatever else happens then; and not before, whatever happens beside it."""
    path = tmp_path / "x"
    async with connect(daemon.url) as peer:
        assert await watch(peer, 1, path)
        (tmp_path / "y").touch()
        assert told(peer) == []
        path.touch()
        await until_told(peer, 1)
        path.unlink()
        path.mkdir()
        assert await watch(peer, 2, tmp_path / "z")
        (tmp_path / "z").touch()
        await until_told(peer, 1, 2)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a file": lambda path: path.touch(),
    "a folder": lambda path: path.mkdir(),
    "a link that leads nowhere": lambda path: path.symlink_to("nowhere"),
    "renamed to it": lambda path: (path.parent / "other").rename(path),
    "linked to it": lambda path: os.link(path.parent / "other", path),
    "made and removed": lambda path: (path.touch(), path.unlink()),
}


@pytest.mark.case(258)
@pytest.mark.parametrize("change", CHANGES)
async def test_a_path_may_come_to_be_in_any_way(daemon: Daemon, tmp_path: Path, change: str) -> None:
    """Made, renamed or linked, as whatever, and for however short a time."""
    (tmp_path / "other").touch()
    async with connect(daemon.url) as peer:
        assert await watch(peer, 1, tmp_path / "x")
        CHANGES[change](tmp_path / "x")
        await until_told(peer, 1)


@pytest.mark.case(259)
async def test_the_first_missing_folder_above_is_told_of(daemon: Daemon, tmp_path: Path) -> None:
    """What a missing path lies below may come to be, or go, step by step."""
    path = tmp_path / "n1" / "n2" / "n3"
    async with connect(daemon.url) as peer:
        assert await watch(peer, 1, path)
        (tmp_path / "n1").mkdir()
        await until_told(peer, 1)
        assert await watch(peer, 2, path)
        (tmp_path / "n1" / "other").mkdir()
        (tmp_path / "n2").mkdir()
        assert told(peer) == [1]
        (tmp_path / "n1" / "n2").mkdir()
        await until_told(peer, 1, 2)
        assert await watch(peer, 3, path)
        (tmp_path / "n1" / "n2").rmdir()
        await until_told(peer, 1, 2, 3)
        assert await watch(peer, 4, path)
        (tmp_path / "n1").rename(tmp_path / "n4")
        await until_told(peer, 1, 2, 3, 4)


@pytest.mark.case(260)
async def test_an_id_that_is_not_a_new_one_changes_nothing(daemon: Daemon, tmp_path: Path) -> None:
    """It is answered with false, and the watch that there is goes on; 0 is never a new one."""
    async with connect(daemon.url) as peer:
        assert not await watch(peer, 0, tmp_path / "x")
        assert await watch(peer, 5, tmp_path / "five")
        assert not await watch(peer, 3, tmp_path / "three")
        assert not await watch(peer, 5, tmp_path / "three")
        (tmp_path / "three").touch()
        (tmp_path / "five").touch()
        await until_told(peer, 5)
        assert not await watch(peer, 5, tmp_path / "six")


@pytest.mark.case(261)
async def test_a_newer_watch_ends_the_one_before(daemon: Daemon, tmp_path: Path) -> None:
    """Even one that is itself answered with false: then nothing is watched."""
    (tmp_path / "there").touch()
    async with connect(daemon.url) as peer:
        assert await watch(peer, 5, tmp_path / "five")
        assert not await watch(peer, 6, tmp_path / "there")
        (tmp_path / "five").touch()
        assert await watch(peer, 7, tmp_path / "seven")
        assert await watch(peer, 8, tmp_path / "eight")
        (tmp_path / "seven").touch()
        (tmp_path / "eight").touch()
        await until_told(peer, 8)


class _WhenScheduled(trio.abc.Instrument):
    """Does something in the moment in which a task is woken, before it runs."""

    def __init__(self, task: trio.lowlevel.Task, act: Callable[[], object]) -> None:
        self.task = task
        self.act = act

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.act()


@pytest.mark.case(261)
@pytest.mark.ours_only("inside it")
async def test_a_watch_that_is_ended_tells_nothing_any_more(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Not even of a change that has woken it already."""
    disk, watches = Disk(nursery), PathWatches()
    watch = watches.renew(1)
    assert watch is not None
    assert await watch.begin(disk, [os.fsencode(tmp_path / "x")], None)
    outcomes: list[bool] = []

    async def wait() -> None:
        outcomes.append(await watch.wait(disk))

    async with trio.open_nursery() as waiting:
        waiting.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        (task,) = waiting.child_tasks
        instrument = _WhenScheduled(task, lambda: watches.renew(2))
        trio.lowlevel.add_instrument(instrument)
        (tmp_path / "x").touch()
    trio.lowlevel.remove_instrument(instrument)
    assert outcomes == [False]


@pytest.mark.case(261)
async def test_connections_have_watches_of_their_own(daemon: Daemon, tmp_path: Path) -> None:
    """The same id, the same path: each is told."""
    async with connect(daemon.url) as peer, connect(daemon.url) as other:
        assert await watch(peer, 1, tmp_path / "x")
        assert await watch(other, 1, tmp_path / "x")
        (tmp_path / "x").touch()
        await until_told(peer, 1)
        await until_told(other, 1)


@pytest.mark.case(262)
async def test_what_cannot_be_watched_is_answered_with_false(daemon: Daemon, tmp_path: Path) -> None:
    """Nothing, too much, what is there, what is behind a link or a file, and where the kernel tells of nothing."""
    (tmp_path / "f").touch()
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to("d")
    (tmp_path / "nowhere").symlink_to("missing")
    x = tmp_path / "x"
    depth = len(tmp_path.parts)
    folders = [tmp_path / str(number) / "x" for number in range(MAX_FOLDERS - depth + 1)]
    unwatchable: list[tuple[list[Path | str], Path | None]] = [
        ([], None),
        ([x] * (MAX_PATHS + 1), None),
        ([x] * 20_000, None),
        ([tmp_path / str(number) for number in range(MAX_PATHS + 1)], None),
        (list(folders), None),
        ([x, tmp_path / "f"], None),
        ([x, tmp_path / "nowhere"], None),
        ([tmp_path / "link" / "x"], None),
        ([tmp_path / "f" / "x"], None),
        ([Path("/")], None),
        ([Path("/proc/x")], None),
        ([Path("/sys/x")], None),
        ([x, "file:///C:/x"], None),
        ([x], tmp_path / "missing"),
        ([x], tmp_path / "link"),
        ([x], tmp_path / "link" / "f"),
    ]
    async with connect(daemon.url) as peer:
        for number, (missing, present) in enumerate(unwatchable, start=1):
            assert not await watch(peer, number, *missing, present=present), (missing, present)
        watchable = ([x] * MAX_PATHS, [tmp_path / str(number) for number in range(MAX_PATHS)], folders[:-1])
        for number, missing in enumerate(watchable, start=100):
            assert await watch(peer, number, *missing)
        misshapen: list[dict[str, object]] = [
            {"watchId": 200, "missing": ["/x"]},
            {"watchId": -1, "missing": []},
            {"watchId": 201},
        ]
        for params in misshapen:
            assert (await peer.request("fs/watchMissing", params)).code == -32602
        # What is refused for its shape has not ended the watch.
        (tmp_path / "0").mkdir()
        await until_told(peer, 102)


PRESENT_CHANGES: dict[str, Callable[[Path], object]] = {
    "written": lambda path: path.write_text("x"),
    "chmod": lambda path: path.chmod(0o600),
    "utime": lambda path: os.utime(path),
    "renamed": lambda path: path.rename(path.parent / "other"),
    "removed": lambda path: path.unlink(),
    "replaced": lambda path: (path.parent / "new").rename(path),
    "its folder renamed": lambda path: path.parent.rename(path.parent.parent / "other"),
}


@pytest.mark.case(318)
@pytest.mark.parametrize("change", PRESENT_CHANGES)
async def test_a_path_that_must_be_there_is_watched_as_well(
    daemon: Daemon, tmp_path: Path, change: str
) -> None:
    """Its content, its attributes and its being there; a read is no change."""
    path = tmp_path / "d" / "present"
    path.parent.mkdir()
    path.touch()
    (path.parent / "new").touch()
    async with connect(daemon.url) as peer:
        assert await watch(peer, 1, tmp_path / "x", present=path)
        path.read_bytes()
        (path.parent / "beside").touch()
        assert told(peer) == []
        PRESENT_CHANGES[change](path)
        await until_told(peer, 1)


@pytest.mark.case(318)
async def test_of_a_folder_that_must_be_there_only_itself_is_watched(daemon: Daemon, tmp_path: Path) -> None:
    """What happens inside of it is no change."""
    folder = tmp_path / "d"
    folder.mkdir()
    async with connect(daemon.url) as peer:
        assert await watch(peer, 1, tmp_path / "x", present=folder)
        (folder / "new").write_text("x")
        (folder / "new").chmod(0o600)
        assert await watch(peer, 2, tmp_path / "y", present=folder)
        assert told(peer) == []
        folder.chmod(0o700)
        await until_told(peer, 2)


@pytest.mark.case(315)
async def test_the_end_of_a_connection_ends_its_watch(daemon: Daemon, tmp_path: Path) -> None:
    """No descriptor is left, neither of watches that were replaced nor of those that were not begun."""
    pid = listening_pid(daemon)
    async with connect(daemon.url):
        before = open_descriptors(pid)
    async with connect(daemon.url) as peer:
        for number in range(1, 50, 2):
            assert await watch(peer, number, tmp_path / "x")
            assert not await watch(peer, number + 1, tmp_path)
        assert await watch(peer, 51, tmp_path / "x")
    await until(lambda: open_descriptors(pid) < before)


@pytest.mark.case(258)
async def test_a_path_that_comes_while_the_watch_begins_is_not_missed(daemon: Daemon, tmp_path: Path) -> None:
    """Requests and changes in a race: each is either answered with false, or told of."""
    async with connect(daemon.url) as peer:
        expected: list[int] = []
        for number in range(1, 60):
            path = tmp_path / str(number) / "x"
            request = await peer.send("fs/watchMissing", {"watchId": number, "missing": [path.as_uri()]})
            path.parent.mkdir()
            path.touch()
            if (await peer.answer_to(request)).ok()["watching"]:
                expected.append(number)
                await peer.until(lambda: len(told(peer)) == len(expected))
        await until_told(peer, *expected)
