"""The walk below a folder, without a connection: deep trees, what changes meanwhile, and random trees."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsupervise._walk import PATH_BYTES, RESULT_BYTES, walk
from tsupervise_protocol.file_messages import WalkOptions, WalkResult
from tsupervise_protocol.path_uri import file_uri, parse_file_uri


def walked(root: Path, *, follow: bool = False, depth: int = 64, entries: int = 50_000) -> WalkResult:
    path = os.fsencode(root)
    return walk(path, file_uri(path), WalkOptions(depth, 10_000, entries, follow))


@contextmanager
def deep_tree(root: Path, depth: int, name: str) -> Generator[None]:
    """Folders below folders, made and removed from where one is: their path is too long to be told."""
    here = os.getcwd()
    os.chdir(root)
    try:
        for _ in range(depth):
            os.mkdir(name)
            os.chdir(name)
        os.close(os.open("leaf", os.O_CREAT))
        yield
    finally:
        os.chdir(here)
        shutil.rmtree(root / name)


@pytest.mark.case(319)
@pytest.mark.parametrize("follow", [False, True])
def test_a_tree_deeper_than_the_longest_path_is_walked_to_its_end(tmp_path: Path, follow: bool) -> None:
    """60 names of 200 bytes are three times what the system takes as one path."""
    with deep_tree(tmp_path, 60, "n" * 200):
        result = walked(tmp_path, follow=follow)
    assert result.errors == []
    assert not result.truncated
    assert len(result.entries) == 61
    leaf = parse_file_uri(result.entries[-1].path)
    assert leaf.endswith(b"/leaf")
    assert len(leaf) > 2 * PATH_BYTES


@pytest.mark.case(319)
def test_a_folder_that_disappears_meanwhile_is_an_error_in_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listed by then, it cannot be opened any more; what is left is walked on."""
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").touch()
    seen = 0

    def remove_one() -> None:
        nonlocal seen
        seen += 1
        if seen == 2:  # after the root
            shutil.rmtree(tmp_path / "b")
            shutil.rmtree(tmp_path / "c")
            (tmp_path / "c").touch()

    path = os.fsencode(tmp_path)
    result = walk(path, file_uri(path), WalkOptions(64, 10_000, 50_000, False), remove_one)
    names = [entry.path.removeprefix(tmp_path.as_uri()) for entry in result.entries]
    assert names == ["/a", "/b", "/c", "/a/f"]
    errors = [(error.path.removeprefix(tmp_path.as_uri()), error.message) for error in result.errors]
    assert errors == [
        ("/b", "No such file or directory (os error 2)"),
        ("/c", "Not a directory (os error 20)"),
    ]


@pytest.mark.case(319)
def test_a_folder_that_becomes_a_link_meanwhile_is_not_followed(tmp_path: Path) -> None:
    """Unless links are."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").touch()
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    seen = 0

    def swap() -> None:
        nonlocal seen
        seen += 1
        if seen == 2:
            (root / "a").rmdir()
            (root / "a").symlink_to(outside)

    result = walk(os.fsencode(root), root.as_uri(), WalkOptions(64, 10_000, 50_000, False), swap)
    assert [entry.path for entry in result.entries] == [(root / "a").as_uri()]
    assert [error.path for error in result.errors] == [(root / "a").as_uri()]


@pytest.mark.case(319)
def test_a_folder_above_that_becomes_a_link_meanwhile_is_not_followed_either(tmp_path: Path) -> None:
    """What lies behind it would be listed under a name that it does not have."""
    outside = tmp_path / "outside"
    (outside / "b").mkdir(parents=True)
    (outside / "b" / "f").touch()
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    seen = 0

    def swap() -> None:
        nonlocal seen
        seen += 1
        if seen == 3:
            (root / "a").rename(tmp_path / "away")
            (root / "a").symlink_to(outside)

    result = walk(os.fsencode(root), root.as_uri(), WalkOptions(64, 10_000, 50_000, False), swap)
    assert [entry.path for entry in result.entries] == [(root / "a").as_uri(), (root / "a/b").as_uri()]
    assert [error.path for error in result.errors] == [(root / "a/b").as_uri()]


@pytest.mark.case(255)
def test_errors_count_for_the_bound_in_bytes(tmp_path: Path) -> None:
    """Folders that cannot be opened, one after the other, fill a result as entries do."""
    folder = tmp_path.joinpath(*["é" * 120] * 5)
    for number in range(1_000):
        (folder / f"{number:04}").mkdir(parents=True)
    seen = 0

    def remove_all() -> None:
        nonlocal seen
        seen += 1
        if seen == 2:
            for number in range(1_000):
                (folder / f"{number:04}").rmdir()

    path = os.fsencode(folder)
    result = walk(path, file_uri(path), WalkOptions(64, 10_000, 50_000, False), remove_all)
    size = sum(len(entry.path) + 64 for entry in result.entries)
    size += sum(len(error.path) + len(error.message) + 64 for error in result.errors)
    assert len(result.entries) == 1_000
    assert 0 < len(result.errors) < 1_000
    assert result.truncated
    assert RESULT_BYTES - 5_000 < size <= RESULT_BYTES


def test_a_walk_leaves_no_descriptor_open(tmp_path: Path) -> None:
    """Not after its end, nor after an error of the caller's in the middle."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    before = os.listdir("/proc/self/fd")
    walked(tmp_path)

    def fail() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        walk(os.fsencode(tmp_path), tmp_path.as_uri(), WalkOptions(64, 10, 10, False), fail)
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.case(317)
def test_what_looks_like_a_drive_below_the_root_has_its_opaque_form() -> None:
    """`/C:` has no plain spelling, nor has what is inside of it; all else below the root has."""
    drive = unused_drive()
    try:
        (drive / "in").mkdir()
        result = walk(b"/", "file:///", WalkOptions(0, 10_000, 50_000, False))
        inside = walk(bytes(drive), file_uri(bytes(drive)), WalkOptions(0, 10_000, 50_000, False))
    finally:
        (drive / "in").rmdir()
        drive.rmdir()
    assert {file_uri(bytes(drive)), "file:///tmp"} <= {entry.path for entry in result.entries}
    assert [parse_file_uri(entry.path) for entry in inside.entries] == [bytes(drive / "in")]


def unused_drive() -> Path:
    """A new folder below the root, of a name that nobody has taken."""
    for letter in "ZYXWVUTS":
        try:
            (path := Path(f"/{letter}:")).mkdir()
        except FileExistsError:
            continue
        except OSError:
            break
        return path
    pytest.skip("to make a folder below the root takes root")


# --- random trees ----------------------------------------------------------------------------------------

NAMES = st.sampled_from([b"a", b"b", b".h", b"\xff", b"new\nline", b"%41", b"A"])

ITEMS = st.lists(
    st.tuples(
        st.lists(NAMES, min_size=1, max_size=4), st.sampled_from(["folder", "file", "link", "fifo"]), NAMES
    ),
    max_size=12,
)


def plant(root: bytes, items: list[tuple[list[bytes], str, bytes]]) -> None:
    """Make what can be made of some wishes: a later one may contradict an earlier one."""
    for names, kind, target in items:
        path = os.path.join(root, *names)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if kind == "folder":
                os.mkdir(path)
            elif kind == "file":
                os.close(os.open(path, os.O_CREAT | os.O_EXCL))
            elif kind == "link":
                os.symlink(os.path.join(root, target), path)
            else:
                os.mkfifo(path)
        except OSError:
            pass


def expected(root: bytes, *, follow: bool) -> list[tuple[bytes, str]]:
    """What is to be listed, by other means than the walk's."""
    queue = [root]
    entered = {os.path.realpath(root)}
    found: list[tuple[bytes, str]] = []
    for folder in queue:
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            if os.path.islink(path) and not (follow and os.path.isdir(path)):
                continue
            if os.path.isdir(path):
                found.append((path, "directory"))
                real = os.path.realpath(path)
                if real not in entered or not follow:
                    entered.add(real)
                    queue.append(path)
            elif os.path.isfile(path):
                found.append((path, "file"))
    return found


@pytest.mark.case(250, 317)
@given(items=ITEMS, follow=st.booleans(), entries=st.integers(1, 20))
@settings(deadline=None, max_examples=60)
def test_of_any_tree_everything_is_listed_once_and_in_order(
    items: list[tuple[list[bytes], str, bytes]], follow: bool, entries: int
) -> None:
    """As another way through the same tree finds it; with a bound, the beginning of that."""
    with tempfile.TemporaryDirectory() as folder:
        root = os.fsencode(folder)
        plant(root, items)
        whole = walked(Path(folder), follow=follow)
        wanted = expected(root, follow=follow)
        assert [(parse_file_uri(entry.path), entry.kind) for entry in whole.entries] == wanted
        assert (whole.errors, whole.truncated) == ([], False)
        part = walked(Path(folder), follow=follow, entries=entries)
        assert part.entries == whole.entries[: len(part.entries)]
        assert part.truncated or part == whole
