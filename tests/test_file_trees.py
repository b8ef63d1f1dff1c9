"""Trees that are copied and removed while somebody else changes them, and files that are read so."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tsupervise import _files
from tsupervise._file_trees import MAX_REFILLS, OPEN_LEVELS, copy, remove
from tsupervise._files import PIECE_BYTES, make_directory, open_to_read, read_pieces, read_up_to, write_file
from tsupervise_protocol.errors import RpcError

DEPTH = 3_000
"""Ten bytes a level: far beyond the longest path and the most descriptors."""


def nothing() -> None:
    """Everything is wanted still."""


class Meanwhile:
    """Does something between two steps of a walk, as soon as a condition holds; once."""

    def __init__(self, condition: Callable[[], bool], act: Callable[[], object]) -> None:
        self.condition = condition
        self.act = act
        self.done = False

    def __call__(self) -> None:
        if not self.done and self.condition():
            self.done = True
            self.act()


def removed(path: Path, check: Callable[[], object] = nothing, *, follow: bool = True) -> None:
    remove(os.fsencode(path), recursive=True, force=False, follow=follow, check=check)


def copied(source: Path, target: Path, check: Callable[[], object] = nothing) -> None:
    copy(os.fsencode(source), os.fsencode(target), recursive=True, check=check)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def no_leak() -> Generator[None]:
    """Whatever happens, every descriptor is closed."""
    before = open_descriptors()
    yield
    assert open_descriptors() == before


def dig(folder: Path, depth: int) -> None:
    """Make folders, one in the other, with a file and a link in each."""
    folder.mkdir()
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.symlink("/", "link", dir_fd=fd)
        os.mkdir("ten-bytes.", dir_fd=fd)
        inner = os.open("ten-bytes.", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)


def depth_of(folder: Path) -> int:
    """How many levels have all that `dig` puts there."""
    fd, depth = os.open(folder, os.O_RDONLY), 0
    while sorted(os.listdir(fd)) == ["file", "link", "ten-bytes."]:
        inner = os.open("ten-bytes.", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd, depth = inner, depth + 1
    os.close(fd)
    return depth


@pytest.mark.case(305)
def test_a_tree_may_be_deeper_than_any_path_is_long(tmp_path: Path) -> None:
    """Copied and removed with few descriptors open at a time, and no recursion."""
    dig(tmp_path / "source", DEPTH)
    most, steps = 0, 0

    def count() -> None:
        nonlocal most, steps
        steps += 1
        if not steps % 100:
            most = max(most, open_descriptors())

    before = open_descriptors()
    copied(tmp_path / "source", tmp_path / "target", count)
    assert depth_of(tmp_path / "target") == DEPTH
    for name in ("source", "target"):
        removed(tmp_path / name, count)
    assert os.listdir(tmp_path) == []
    assert most <= before + 2 * OPEN_LEVELS + 8


@pytest.mark.case(305)
def test_a_wide_tree_of_odd_names_is_copied_and_removed(tmp_path: Path) -> None:
    """Line ends, bytes that are no UTF-8, blanks and dashes are names as others are."""
    names = [b"two\nlines", b"\xff\xfe", b" ", b"-rf", b"*", b"...", b"\xe2\x82", b"x" * 255]
    source = os.fsencode(tmp_path / "source")
    os.mkdir(source)
    for name in names:
        os.mkdir(source + b"/" + name)
        for inner in names:
            with open(source + b"/" + name + b"/" + inner, "wb") as file:
                file.write(inner)
    copied(tmp_path / "source", tmp_path / "target")
    target = os.fsencode(tmp_path / "target")
    assert sorted(os.listdir(target)) == sorted(names)
    for name in names:
        for inner in names:
            with open(target + b"/" + name + b"/" + inner, "rb") as file:
                assert file.read() == inner
    removed(tmp_path / "target")
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.case(306)
@pytest.mark.parametrize("follow", [True, False])
def test_a_link_that_takes_the_place_of_a_folder_leads_nowhere(tmp_path: Path, follow: bool) -> None:
    """Swapped after it was seen and before it is gone into: the link goes, what it leads to stays."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/precious").touch()
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "file").touch()

    def swap() -> None:
        (tree / "sub").rmdir()
        (tree / "sub").symlink_to(tmp_path / "kept")

    # The file is gone, so the folder has been looked through; what is in it comes next.
    meanwhile = Meanwhile(lambda: not (tree / "file").exists(), swap)
    removed(tree, meanwhile, follow=follow)
    assert meanwhile.done
    assert os.listdir(tmp_path) == ["kept"]
    assert os.listdir(tmp_path / "kept") == ["precious"]


@pytest.mark.case(306)
def test_a_tree_that_is_moved_while_it_is_removed_takes_nothing_with_it(tmp_path: Path) -> None:
    """Where the way back up leads to another folder, the removal ends with an error and touches nothing there."""
    dig(tmp_path / "tree", 3 * OPEN_LEVELS)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/precious").mkdir()
    low = Path(tmp_path / "tree", *["ten-bytes."] * OPEN_LEVELS)
    bottom = Path(low, *["ten-bytes."] * (2 * OPEN_LEVELS))

    meanwhile = Meanwhile(lambda: not bottom.exists(), lambda: low.rename(tmp_path / "other/moved"))
    with pytest.raises(OSError, match="Stale file handle") as caught:
        removed(tmp_path / "tree", meanwhile)
    assert caught.value.errno == errno.ESTALE
    assert (tmp_path / "other/precious").is_dir()


@pytest.mark.case(306)
def test_files_put_into_a_folder_that_is_being_removed_are_removed_too(tmp_path: Path) -> None:
    """As long as it does not go on for ever: then it is said that the folder is not empty."""
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/file").touch()
    late = Meanwhile(lambda: not (tree / "sub/file").exists(), (tree / "sub/late").touch)
    removed(tree, late)
    assert late.done
    assert not tree.exists()

    (tree / "sub").mkdir(parents=True)
    number = 0

    def one_more() -> None:
        nonlocal number
        number += 1
        (tree / f"sub/{number}").touch()

    with pytest.raises(OSError, match="Directory not empty"):
        removed(tree, one_more)
    assert number > MAX_REFILLS


@pytest.mark.case(306)
def test_what_vanishes_meanwhile_is_removed_and_cannot_be_copied(tmp_path: Path) -> None:
    """A folder that is gone before it is gone into: fine for the one, an error with its path for the other."""

    def tree() -> Path:
        (tmp_path / "tree/sub").mkdir(parents=True)
        (tmp_path / "tree/file").touch()
        return tmp_path / "tree"

    source = tree()
    vanish = Meanwhile((tmp_path / "target/file").exists, (source / "sub").rmdir)
    with pytest.raises(FileNotFoundError) as caught:
        copied(source, tmp_path / "target", vanish)
    assert caught.value.filename == os.fsencode(source / "sub")
    (source / "sub").mkdir()
    vanish = Meanwhile(lambda: not (source / "file").exists(), (source / "sub").rmdir)
    removed(source, vanish)
    assert vanish.done
    assert not source.exists()


@pytest.mark.case(306)
@pytest.mark.parametrize("work", ["copy", "remove"])
def test_work_that_nobody_wants_any_more_ends_at_its_next_step(tmp_path: Path, work: str) -> None:
    """What it has done is done; nothing stays open."""
    dig(tmp_path / "tree", 50)
    steps = 0

    def give_up() -> None:
        nonlocal steps
        steps += 1
        if steps == 100:
            raise InterruptedError

    tree, target = tmp_path / "tree", tmp_path / "target"
    with pytest.raises(InterruptedError):
        copied(tree, target, give_up) if work == "copy" else removed(tree, give_up)
    assert steps == 100
    assert (tmp_path / "tree").is_dir()


@pytest.mark.case(306)
def test_a_file_that_was_emptied_is_written_whole(tmp_path: Path) -> None:
    """Whoever sent its content may have gone by then: it is all here. Before, the file stays as it is."""
    file = tmp_path / "file"
    file.write_bytes(b"before")
    data = bytes(2 * PIECE_BYTES)

    def gone() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        write_file(os.fsencode(file), data, unix_mode=0o666, follow=True, check=gone)
    assert file.read_bytes() == b"before"
    gone_by_then = Meanwhile(lambda: file.stat().st_size == 0, gone)
    write_file(os.fsencode(file), data, unix_mode=0o666, follow=True, check=gone_by_then)
    assert file.read_bytes() == data


@pytest.mark.case(306)
def test_what_is_no_folder_any_more_and_then_gone_does_not_end_a_removal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be told as a success: what does not exist is removed."""
    (tmp_path / "tree/a").mkdir(parents=True)
    (tmp_path / "tree/b").mkdir()
    real_open = os.open

    def replaced(name: bytes, flags: int, *, dir_fd: int | None = None) -> int:
        if name == b"a":
            os.rmdir(name, dir_fd=dir_fd)
            raise NotADirectoryError(errno.ENOTDIR, "a file by now, and gone in a moment")
        return real_open(name, flags, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", replaced)
    remove(os.fsencode(tmp_path / "tree"), recursive=True, force=True, follow=True, check=nothing)
    assert not (tmp_path / "tree").exists()


@pytest.mark.case(300)
@pytest.mark.parametrize("follow", [True, False])
def test_why_a_folder_cannot_be_made_is_told(follow: bool) -> None:
    """Not that it is missing, which is no news."""
    with pytest.raises(OSError, match="tsupervise") as caught:
        make_directory(b"/sys/tsupervise/below", recursive=True, follow=follow)
    assert caught.value.errno in (errno.EPERM, errno.EACCES, errno.EROFS)


@pytest.mark.parametrize("path", ["/", "/tmp/..", "/usr/."])
@pytest.mark.parametrize("follow", [True, False])
def test_the_root_is_not_emptied(path: str, follow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could not be removed in the end; neither is a folder by a name that is none of its own."""

    def never(*arguments: object, **named: object) -> None:
        raise AssertionError("nothing is removed")

    for name in ("unlink", "rmdir", "scandir"):
        monkeypatch.setattr(os, name, never)
    with pytest.raises(OSError, match="busy"):
        remove(path.encode(), recursive=True, force=True, follow=follow, check=nothing)


@pytest.mark.case(307)
def test_a_copy_never_meets_itself(tmp_path: Path) -> None:
    """Also where a link in the target leads into the source: refused, and it ends."""
    (tmp_path / "source/sub/inner").mkdir(parents=True)
    (tmp_path / "target").mkdir()
    (tmp_path / "target/sub").symlink_to(tmp_path / "source/sub/inner")
    with pytest.raises(RpcError, match="into itself"):
        copied(tmp_path / "source", tmp_path / "target")
    assert len(list((tmp_path / "source").rglob("*"))) == 3


@pytest.mark.case(307)
def test_a_link_in_the_target_is_gone_through(tmp_path: Path) -> None:
    """To a folder as to a file, as the reference does; however deep the way behind it is."""
    dig(tmp_path / "source", 3 * OPEN_LEVELS)
    (tmp_path / "source/sub").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "target/ten-bytes.").mkdir(parents=True)
    (tmp_path / "target/ten-bytes./ten-bytes.").symlink_to(tmp_path / "elsewhere")
    copied(tmp_path / "source", tmp_path / "target")
    assert depth_of(tmp_path / "elsewhere") == 3 * OPEN_LEVELS - 2
    assert (tmp_path / "target/sub").is_dir()


@pytest.mark.case(308)
def test_a_file_that_grows_or_shrinks_is_read_to_where_it_ends_then(tmp_path: Path) -> None:
    """Pieces come until there is no more; nothing is made up for what is gone."""
    path = tmp_path / "file"
    path.write_bytes(b"a" * (2 * PIECE_BYTES))
    with open_to_read(os.fsencode(path), follow=True) as fd:
        pieces = read_pieces(fd)
        assert len(next(pieces)) == PIECE_BYTES
        with path.open("ab") as file:
            file.write(b"b" * 10)
        assert [len(piece) for piece in pieces] == [PIECE_BYTES, 10]
    with open_to_read(os.fsencode(path), follow=True) as fd:
        pieces = read_pieces(fd)
        next(pieces)
        os.truncate(path, PIECE_BYTES + 5)
        assert [len(piece) for piece in pieces] == [5]


@pytest.mark.case(308)
def test_a_file_that_grows_beyond_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was too large from the beginning; so nobody can fill the memory by writing while we read."""
    monkeypatch.setattr(_files, "MAX_READ_BYTES", 2 * PIECE_BYTES)
    path = tmp_path / "file"
    path.write_bytes(bytes(2 * PIECE_BYTES))
    with open_to_read(os.fsencode(path), follow=True) as fd:
        pieces = read_pieces(fd)
        next(pieces)
        with path.open("ab") as file:
            file.write(b"b")
        with pytest.raises(RpcError, match="too large"):
            list(pieces)
    with pytest.raises(RpcError, match="too large"), open_to_read(os.fsencode(path), follow=True):
        pass
    with path.open("rb") as file:
        assert read_up_to(file.fileno(), 2 * PIECE_BYTES) is None
