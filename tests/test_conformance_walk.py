"""fs/walk: what lies below a folder, level by level and within bounds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from daemons import Daemon
from wire import Answer, Peer, connect

MAX_DEPTH = 64
MAX_DIRECTORIES = 10_000
MAX_ENTRIES = 50_000

RESULT_BYTES = 4 << 20
ITEM_BYTES = 64


async def ask_to_walk(peer: Peer, uri: str, **options: Any) -> Answer:
    defaults = {
        "maxDepth": MAX_DEPTH,
        "maxDirectories": MAX_DIRECTORIES,
        "maxEntries": MAX_ENTRIES,
        "followDirectorySymlinks": False,
    }
    return await peer.request("fs/walk", {"path": uri, "options": defaults | options})


async def walk(peer: Peer, root: Path, **options: Any) -> tuple[list[str], bool]:
    """Entries as `path below the root` with a slash behind folders, and whether there is more; no errors."""
    result = (await ask_to_walk(peer, root.as_uri(), **options)).ok()
    assert result["errors"] == []
    return listed(result, root.as_uri()), result["truncated"]


def listed(result: dict[str, Any], uri: str) -> list[str]:
    assert all(entry["path"].startswith(uri + "/") for entry in result["entries"])
    slashes = {"directory": "/", "file": ""}
    return [entry["path"].removeprefix(uri + "/") + slashes[entry["kind"]] for entry in result["entries"]]


def grow(root: Path, *names: str) -> Path:
    """Make files, and folders where a name ends in a slash, with all above them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.touch()
    return root


@pytest.mark.case(250)
async def test_a_tree_is_listed_level_by_level_in_byte_order(daemon: Daemon, tmp_path: Path) -> None:
    """Of other things than folders and regular files nothing is listed; no link, if none is followed."""
    root = grow(tmp_path, "b/x", "b/c/y", "a", "B/", "b-/", "é/", ".h/in")
    (root / "link").symlink_to("b")
    (root / "file-link").symlink_to("a")
    (root / "nowhere").symlink_to("nowhere")
    os.mkfifo(root / "fifo")
    async with connect(daemon.url) as peer:
        entries, truncated = await walk(peer, root)
    assert entries == [".h/", "B/", "a", "b/", "b-/", "%C3%A9/", ".h/in", "b/c/", "b/x", "b/c/y"]
    assert not truncated


@pytest.mark.case(250)
async def test_a_cycle_of_links_is_listed_once_and_left_alone(daemon: Daemon, tmp_path: Path) -> None:
    """Followed, a link to a folder is listed; a folder is entered once only, by the name that comes first."""
    root = grow(tmp_path, "d/x", "z/")
    (root / "self").symlink_to(".")
    (root / "a").symlink_to("d")
    (root / "z" / "up").symlink_to("..")
    (root / "file-link").symlink_to("d/x")
    (root / "nowhere").symlink_to("x")
    async with connect(daemon.url) as peer:
        entries, truncated = await walk(peer, root, followDirectorySymlinks=True)
    assert entries == ["a/", "d/", "self/", "z/", "a/x", "z/up/"]
    assert not truncated


@pytest.mark.case(251)
async def test_a_hidden_folder_is_listed_and_can_be_left_alone(daemon: Daemon, tmp_path: Path) -> None:
    """With `pruneHiddenDirectories` what is inside is not listed; a hidden file is."""
    root = grow(tmp_path, ".hid/in", ".file", "d/.e/f")
    async with connect(daemon.url) as peer:
        entries, _ = await walk(peer, root, pruneHiddenDirectories=True)
        assert entries == [".file", ".hid/", "d/", "d/.e/"]
        entries, _ = await walk(peer, root)
        assert entries == [".file", ".hid/", "d/", ".hid/in", "d/.e/", "d/.e/f"]


@pytest.mark.case(252)
async def test_bounds_of_depth_directories_and_entries_hold(daemon: Daemon, tmp_path: Path) -> None:
    """When folders run out their level is still listed; when entries do, that is the end; depth is no cut."""
    root = grow(tmp_path, "a/x", "b/x", "c/d/e")
    async with connect(daemon.url) as peer:
        assert await walk(peer, root, maxDirectories=1) == (["a/", "b/", "c/"], True)
        assert await walk(peer, root, maxDirectories=2) == (["a/", "b/", "c/", "a/x"], True)
        assert await walk(peer, root, maxDepth=0) == (["a/", "b/", "c/"], False)
        assert await walk(peer, root, maxDepth=1) == (["a/", "b/", "c/", "a/x", "b/x", "c/d/"], False)
        assert await walk(peer, root, maxEntries=4) == (["a/", "b/", "c/", "a/x"], True)
        assert await walk(peer, root, maxEntries=7) == (
            ["a/", "b/", "c/", "a/x", "b/x", "c/d/", "c/d/e"],
            False,
        )


@pytest.mark.case(253)
async def test_a_root_that_is_no_folder_has_nothing_below(daemon: Daemon, tmp_path: Path) -> None:
    """Nor has a link, unless it is followed. One that does not exist is an error, as one below a file."""
    root = grow(tmp_path, "d/x", "f")
    (root / "link").symlink_to("d")
    async with connect(daemon.url) as peer:
        for name in ("f", "link"):
            assert await walk(peer, root / name) == ([], False)
        assert await walk(peer, root / "link", followDirectorySymlinks=True) == (["x"], False)
        assert (await ask_to_walk(peer, (root / "missing").as_uri())).code == -32004
        assert (await ask_to_walk(peer, (root / "f" / "x").as_uri())).code == -32603
        assert (await ask_to_walk(peer, "file:///C:/x")).code == -32600
        assert (await ask_to_walk(peer, "/tmp")).code == -32602


@pytest.mark.case(254)
async def test_a_walk_without_sensible_bounds_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    """Nothing to be listed, and more than may be: each has its text, and the first of them goes first."""
    async with connect(daemon.url) as peer:
        for options in ({"maxEntries": 0}, {"maxDirectories": 0}, {"maxEntries": 0, "maxDepth": 65}):
            answer = await ask_to_walk(peer, tmp_path.as_uri(), **options)
            assert answer.code == -32600
            assert "limits must be greater than zero" in answer.message
        for options in ({"maxDepth": 65}, {"maxDirectories": 10_001}, {"maxEntries": 50_001}):
            answer = await ask_to_walk(peer, tmp_path.as_uri(), **options)
            assert answer.code == -32600
            assert "depth=64, directories=10000, entries=50000" in answer.message


@pytest.mark.case(255)
async def test_a_listing_has_a_bound_in_bytes(daemon: Daemon, tmp_path: Path) -> None:
    """Of 1,600 names as long as names get as many come as fit, the first of them all, and that is said."""
    folder = tmp_path.joinpath(*["é" * 120] * 5)
    folder.mkdir(parents=True)
    names = [f"{number:05}" for number in range(1_600)]
    grow(folder, *names)
    uri = folder.as_uri()
    async with connect(daemon.url) as peer:
        result = (await ask_to_walk(peer, uri)).ok()
    sizes = [len(entry["path"]) + ITEM_BYTES for entry in result["entries"]]
    assert result["truncated"]
    assert sum(sizes) <= RESULT_BYTES < sum(sizes) + sizes[-1]
    assert listed(result, uri) == names[: len(sizes)]


@pytest.mark.case(255)
async def test_a_folder_with_more_than_all_entries_is_cut(
    daemon: Daemon, tmp_path: Path, long_profile: bool
) -> None:
    """What is looked at counts, listed or not: here links, which are not, and one file behind them."""
    count = MAX_ENTRIES if long_profile else 500
    for number in range(count - 1):
        os.symlink("x", tmp_path / f"{number:05}")
    grow(tmp_path, "a")
    async with connect(daemon.url) as peer:
        assert await walk(peer, tmp_path, maxEntries=count) == (["a"], False)
        if daemon.is_ours:  # the reference does not count links that lead nowhere
            grow(tmp_path, "b")
            assert await walk(peer, tmp_path, maxEntries=count) == (["a"], True)


@pytest.mark.case(250)
async def test_a_walk_spells_its_root_as_the_client_does(daemon: Daemon, tmp_path: Path) -> None:
    """Escapes that need not be stay in all URIs; dot segments and a slash at the end do not."""
    grow(tmp_path, "aa/b c")
    base = tmp_path.as_uri()
    async with connect(daemon.url) as peer:
        result = (await ask_to_walk(peer, f"{base}/x/../%61a/")).ok()
    assert listed(result, f"{base}/%61a") == ["b%20c"]


@pytest.mark.case(317)
@pytest.mark.ours_only("the reference looks for other names than there are, where they are not UTF-8")
async def test_every_name_has_its_exact_uri(daemon: Daemon, tmp_path: Path) -> None:
    """Raw bytes, line ends, percent signs: each URI leads to its file, folders of such names included."""
    names = [b"n\xff\xfe", b"new\nline", b"100%", b"sp ace#?", b"\xe9t\xe9", b"C:", b"\\"]
    folder = os.fsencode(tmp_path)
    for name in names:
        os.mkdir(os.path.join(folder, name))
        fd = os.open(os.path.join(folder, name, name), os.O_CREAT | os.O_WRONLY)
        os.write(fd, name)
        os.close(fd)
    async with connect(daemon.url) as peer:
        result = (await ask_to_walk(peer, tmp_path.as_uri())).ok()
        assert result["errors"] == []
        files = [entry["path"] for entry in result["entries"] if entry["kind"] == "file"]
        found: list[str] = []
        for uri in files:
            (await peer.request("fs/open", {"handleId": uri[-16:], "path": uri})).ok()
            block = await peer.request("fs/readBlock", {"handleId": uri[-16:], "offset": 0, "len": 99})
            found.append(block.ok()["chunk"])
    assert len(set(found)) == len(files) == len(names)
