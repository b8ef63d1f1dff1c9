"""Waking a client when paths that it knows to be missing may be missing no more: `fs/watchMissing`.

A connection has one watch at a time, and each tells of one change, once. What is watched are the folders above the
paths: they are registered first and the paths looked at then, so that what comes between is not missed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import defaultdict
from collections.abc import Iterable
from functools import partial

import trio

from tsupervise_protocol.errors import RpcError

from . import _inotify as inotify
from ._disk import Disk, SharedFd

MAX_PATHS = 64
"""Missing paths of one watch, those that are named twice counted twice; the reference takes as many."""

MAX_FOLDERS = 64
"""Above the paths of one watch, the root and those that do not exist counted; the reference takes as many."""

_ITSELF = inotify.ATTRIB | inotify.DELETE_SELF | inotify.MOVE_SELF
_IN_FOLDER = inotify.CREATE | inotify.DELETE | inotify.MOVED_FROM | inotify.MOVED_TO | inotify.ONLYDIR
_FOLDER = _ITSELF | _IN_FOLDER | inotify.DONT_FOLLOW
_FILE = _ITSELF | inotify.MODIFY | inotify.DONT_FOLLOW

_Names = dict[bytes, set[bytes]]
"""Folder → the names in it that matter."""


class PathWatches:
    """The watches of one connection, of which the last is the current one."""

    def __init__(self) -> None:
        self._last_id = 0
        self._current: PathWatch | None = None

    def renew(self, watch_id: int) -> PathWatch | None:
        """End the current watch in favour of a new one; None, and nothing done, if the id is not a new one."""
        if watch_id <= self._last_id:
            return None
        self._last_id = watch_id
        if self._current is not None:
            self._current.end()
        self._current = PathWatch()
        return self._current


class PathWatch:
    """One watch: `begin`, and if that says so, `wait`."""

    def __init__(self) -> None:
        self._scope = trio.CancelScope()
        self._is_over = False
        self._queue: SharedFd | None = None
        self._names: dict[int, set[bytes]] = {}

    def end(self) -> None:
        """Make an end, whatever it is about."""
        self._is_over = True
        self._scope.cancel()

    async def begin(self, disk: Disk, missing: list[bytes], present: bytes | None) -> bool:
        """Register; returns whether there is something to wait for.

        Args:
            missing: paths that must not exist, not even as links that lead nowhere.
            present: one that must, and must be no link.
        """
        if self._is_over or not missing or len(missing) > MAX_PATHS:
            return False
        folders = _folders_above([*missing, present] if present else missing)
        if len(folders) > MAX_FOLDERS:
            return False
        try:
            queue = SharedFd(inotify.open_queue())
        except OSError:  # the user has as many queues as may be
            return False
        try:
            with trio.CancelScope() as self._scope:
                self._names = await disk.run(partial(_register, queue, folders, missing, present))
                self._queue = queue
        except RpcError:  # not as it should be, or nothing that can be watched
            pass
        finally:
            if self._queue is None:
                disk.run_alone(queue.give_up)
        return self._queue is not None

    async def wait(self, disk: Disk) -> bool:
        """Wait until something has changed; False if the watch was ended first."""
        queue = self._queue
        assert queue is not None, "it was begun"
        try:
            with trio.CancelScope() as self._scope, queue.use() as fd:
                if self._is_over:
                    return False
                while not self._has_changed(fd):
                    await trio.lowlevel.wait_readable(fd)
                return not self._is_over  # the change and the end may have come in one turn of the loop
            return False
        finally:
            # Not here: the kernel takes its time to forget the watches.
            disk.run_alone(queue.give_up)

    def _has_changed(self, fd: int) -> bool:
        try:
            changes = inotify.read_changes(fd)
        except BlockingIOError:
            return False
        # What has no name happened to a folder or to the present path itself, or is what was lost.
        return any(not name or name in self._names.get(watch, ()) for watch, name in changes)


def _folders_above(paths: Iterable[bytes]) -> _Names:
    """All folders above some paths, those above before those below, by the text alone."""
    folders: defaultdict[bytes, set[bytes]] = defaultdict(set)
    for path in paths:
        folder = b"/"
        for name in path.split(b"/"):
            if name:
                folders[folder].add(name)
                folder = os.path.join(folder, name)
    return folders


def _register(
    queue: SharedFd, folders: _Names, missing: list[bytes], present: bytes | None
) -> dict[int, set[bytes]]:
    """Register what tells of a change, and see that there has been none. Blocks.

    Returns:
        Watch of a folder → the names in it that matter.

    Raises:
        OSError: the paths are not as they should be, or cannot be watched.
    """
    names: defaultdict[int, set[bytes]] = defaultdict(set)
    with queue.use() as fd:
        for folder, inside in folders.items():
            try:
                watch = inotify.add(fd, folder, _FOLDER)
            except FileNotFoundError:
                continue  # should it come to be, the folder above tells
            if not inotify.tells_changes(folder):
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            names[watch] |= inside
        if present is not None:
            status = os.lstat(present)
            if stat.S_ISLNK(status.st_mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            inotify.add(fd, present, _FOLDER if stat.S_ISDIR(status.st_mode) else _FILE)
    for path in missing:
        try:
            os.lstat(path)
        except FileNotFoundError:
            continue
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    return names
