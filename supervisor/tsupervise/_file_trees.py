"""Folders with all that is in them: copied, and removed. Blocks: for threads.

A tree is gone through by descriptors, each folder opened in the one above, so that it may be deeper than any path
is long, and that a symbolic link put into the place of a folder meanwhile leads nowhere. However deep, only a few
stay open: the way back up is `..`, and where that has become another folder the work ends.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeVar

from ._files import (
    Check,
    canonical,
    copy_content,
    make_directory,
    open_to_write,
    refuse,
    refuse_link,
    way_to,
)

_T = TypeVar("_T")

OPEN_LEVELS = 16
"""How many folders of one way down stay open."""

MAX_FOLDERS_LISTED = 10_000
"""How many folders of one folder are noted at a time; those behind them in a second look."""

MAX_REFILLS = 8
"""How often a folder that should be empty and is not is emptied again: somebody puts files there."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WAY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_NO_FOLDER = (errno.ENOTDIR, errno.ELOOP)

Identity = tuple[int, int]


@dataclass(slots=True)
class _Level:
    """One folder on the way down."""

    name: bytes
    fd: int | None
    """None while it is closed."""
    identity: Identity
    is_pinned: bool = False
    """Whether it stays open: `..` does not lead back here."""
    folders: list[bytes] = field(default_factory=list[bytes])
    """Those in it that have not been gone into yet."""
    has_more: bool = False
    """Whether there may be others."""
    refills: int = 0


class Descent:
    """A way down from a folder, and back up.

    Args:
        path: of the folder that it begins in, for error texts.
        fd: of that folder; owned from now on.
        flags: to open folders with; without O_NOFOLLOW.
    """

    def __init__(self, path: bytes, fd: int, flags: int) -> None:
        self._flags = flags
        self.levels = [_Level(path, fd, _identity(fd), is_pinned=True)]

    def __enter__(self) -> Descent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for level in self.levels:
            if level.fd is not None:
                os.close(level.fd)

    @property
    def level(self) -> _Level:
        """The deepest."""
        return self.levels[-1]

    @property
    def fd(self) -> int:
        """The descriptor of the deepest."""
        fd = self.levels[-1].fd
        assert fd is not None, "the deepest folder is open"
        return fd

    def path_of(self, name: bytes) -> bytes:
        """The path of a name in the deepest, however long."""
        return b"/".join([*(level.name for level in self.levels), name])

    def at(self, name: bytes, call: Callable[[], _T]) -> _T:
        """Make a call about a name in the deepest; its error is told with the whole path."""
        try:
            return call()
        except OSError as error:
            error.filename, error.filename2 = self.path_of(name), None
            raise

    def down(self, name: bytes, *, follow: bool = False) -> None:
        """Go into a folder.

        Args:
            follow: whether it may be a symbolic link to one.
        """
        flags = self._flags if follow else self._flags | os.O_NOFOLLOW
        fd = self.at(name, lambda: os.open(name, flags, dir_fd=self.fd))
        try:
            level = _Level(name, fd, _identity(fd))
        except BaseException:
            os.close(fd)
            raise
        self.levels[-1].is_pinned |= follow
        self.levels.append(level)
        if len(self.levels) > OPEN_LEVELS:
            passed = self.levels[-OPEN_LEVELS - 1]
            if not passed.is_pinned and passed.fd is not None:
                os.close(passed.fd)
                passed.fd = None

    def up(self) -> bytes:
        """Go back; return the name of the folder that is left.

        Raises:
            OSError: ESTALE, it has been moved meanwhile.
        """
        left = self.levels.pop()
        assert left.fd is not None, "the deepest folder is open"
        try:
            level = self.level
            if level.fd is None:
                fd = self.at(left.name, lambda: os.open(b"..", self._flags, dir_fd=left.fd))
                if _identity(fd) != level.identity:
                    os.close(fd)
                    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), self.path_of(left.name))
                level.fd = fd
        finally:
            os.close(left.fd)
        return left.name

    def is_in(self, identity: Identity) -> bool:
        """Whether a folder is on the way."""
        return any(level.identity == identity for level in self.levels)


def _identity(fd: int) -> Identity:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


# --- remove ------------------------------------------------------------------------------------------


def remove(path: bytes, *, recursive: bool, force: bool, follow: bool, check: Check) -> None:
    """Remove a file, a link (never what it leads to), or a folder, with `recursive` also one that is not empty.

    Args:
        force: whether it is fine if there is nothing.
        follow: whether folders above it may be symbolic links; without, it must be none itself.
    """
    try:
        with way_to(path, follow=follow) as (dir_fd, name):
            found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            if stat.S_ISLNK(found.st_mode) and not follow:
                raise refuse_link()
            if not stat.S_ISDIR(found.st_mode):
                os.unlink(name, dir_fd=dir_fd)
            elif not recursive:
                os.rmdir(name, dir_fd=dir_fd)
            else:
                _remove_tree(path, dir_fd, name, check)
    except FileNotFoundError:
        if not force:
            raise


def _remove_tree(path: bytes, dir_fd: int | None, name: bytes, check: Check) -> None:
    if os.path.basename(name) in (b"", b".", b".."):
        # The root, or a folder by a name that it does not have in the one above: leave what is in it.
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
    folder = os.open(os.path.dirname(name) or b".", _WAY, dir_fd=dir_fd)
    with Descent(os.path.dirname(path), folder, _FOLDER & ~os.O_NOFOLLOW) as way:
        way.level.folders.append(os.path.basename(name))
        while True:
            check()
            level = way.level
            if level.folders:
                _enter_or_unlink(way, level.folders.pop(), check)
            elif len(way.levels) == 1:
                return
            elif level.has_more:
                _empty(way, check)
            else:
                _leave_removed(way)


def _enter_or_unlink(way: Descent, name: bytes, check: Check) -> None:
    """Go into what was a folder a moment ago, and remove what is in it but folders."""
    try:
        way.down(name)
    except FileNotFoundError:
        if len(way.levels) == 1:
            raise
    except OSError as error:
        if error.errno not in _NO_FOLDER:
            raise
        # That there is nothing is told of what was asked for alone: with `force` it would end well, half way.
        if len(way.levels) == 1:
            way.at(name, lambda: os.unlink(name, dir_fd=way.fd))
        else:
            _unlink(way, name)
    else:
        _empty(way, check)


def _empty(way: Descent, check: Check) -> None:
    level = way.level
    level.has_more = False
    with os.scandir(way.fd) as entries:
        for entry in entries:
            check()
            name = os.fsencode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                level.folders.append(name)
                if len(level.folders) == MAX_FOLDERS_LISTED:
                    level.has_more = True
                    return
            else:
                _unlink(way, name)


def _unlink(way: Descent, name: bytes) -> None:
    try:
        way.at(name, lambda: os.unlink(name, dir_fd=way.fd))
    except FileNotFoundError:
        pass
    except IsADirectoryError:  # since a moment ago
        way.level.folders.append(name)


def _leave_removed(way: Descent) -> None:
    name = way.up()
    level = way.level
    try:
        way.at(name, lambda: os.rmdir(name, dir_fd=way.fd))
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.ENOTEMPTY or level.refills == MAX_REFILLS:
            raise
        level.refills += 1
        level.folders.append(name)
    else:
        level.refills = 0


# --- copy --------------------------------------------------------------------------------------------


def copy(source: bytes, target: bytes, *, recursive: bool, check: Check) -> None:
    """Copy a regular file with its mode, a symbolic link as it is, or with `recursive` a folder into another.

    Folders are made or merged, files overwritten, links made anew; what is neither is left out of a folder.

    Raises:
        RpcError: the source is something else, a folder without `recursive`, the target itself or above it.
    """
    found = os.lstat(source)
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(source), target)
    elif stat.S_ISREG(found.st_mode):
        if not _copy_file(os.open(source, _FILE), target, None, check):
            raise refuse(_NO_KIND)
    elif not stat.S_ISDIR(found.st_mode):
        raise refuse(_NO_KIND)
    elif not recursive:
        raise refuse("the source of fs/copy is a directory: copy it with recursive: true")
    else:
        whole = canonical(source).rstrip(b"/")
        place = canonical(target, strict=False)
        if place == whole or place.startswith(whole + b"/"):
            raise refuse(_INTO_ITSELF)
        _copy_tree(source, target, check)


_NO_KIND = "fs/copy takes regular files, directories and symbolic links only"
_INTO_ITSELF = "fs/copy cannot copy a directory into itself or a directory below it"


def _copy_tree(source: bytes, target: bytes, check: Check) -> None:
    make_directory(target, recursive=True, follow=True)
    from_fd = os.open(source, _FOLDER)
    with Descent(source, from_fd, _FOLDER & ~os.O_NOFOLLOW) as origin:
        to_fd = os.open(target, _WAY)
        with Descent(target, to_fd, _WAY) as copied:
            _copy_entries(origin, copied, check)
            while True:
                check()
                folders = origin.level.folders
                if folders:
                    name = folders.pop()
                    origin.down(name)
                    _make_and_enter(copied, name)
                    _copy_entries(origin, copied, check)
                elif len(origin.levels) == 1:
                    return
                else:
                    origin.up()
                    copied.up()


def _make_and_enter(way: Descent, name: bytes) -> None:
    try:
        way.at(name, lambda: os.mkdir(name, dir_fd=way.fd))
    except FileExistsError:
        try:
            way.down(name)
        except OSError as error:
            if error.errno not in _NO_FOLDER:
                raise
        else:
            return
        try:
            way.down(name, follow=True)
        except (NotADirectoryError, FileNotFoundError):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), way.path_of(name)) from None
    else:
        way.down(name)


def _copy_entries(origin: Descent, copied: Descent, check: Check) -> None:
    """Copy what is in a folder but its folders, which are noted."""
    if copied.is_in(origin.level.identity):
        # By a link in the target, say. It would never end: each copy would be copied again.
        raise refuse(_INTO_ITSELF)
    with os.scandir(origin.fd) as entries:
        for entry in entries:
            check()
            name = os.fsencode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                origin.level.folders.append(name)
            elif entry.is_symlink():
                text = origin.at(name, lambda name=name: os.readlink(name, dir_fd=origin.fd))
                copied.at(name, lambda name=name, text=text: os.symlink(text, name, dir_fd=copied.fd))
            elif entry.is_file(follow_symlinks=False):
                fd = origin.at(name, lambda name=name: os.open(name, _FILE, dir_fd=origin.fd))
                copied.at(name, lambda name=name, fd=fd: _copy_file(fd, name, copied.fd, check))


def _copy_file(source: int, target: bytes, target_dir: int | None, check: Check) -> bool:
    """Copy content and mode, and close the source; returns whether it was a regular file."""
    try:
        found = os.fstat(source)
        if not stat.S_ISREG(found.st_mode):
            return False
        mode = stat.S_IMODE(found.st_mode)
        with open_to_write(target, target_dir, mode=mode) as fd:
            there = os.fstat(fd)
            if os.path.samestat(found, there):
                raise refuse("the source and the target of fs/copy are the same file")
            # A device or a pipe is written to, and stays what it is.
            is_file = stat.S_ISREG(there.st_mode)
            if is_file:
                os.ftruncate(fd, 0)
            copy_content(source, fd, check)
            if is_file:
                os.fchmod(fd, mode)
    finally:
        os.close(source)
    return True
