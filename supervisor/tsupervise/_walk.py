"""What lies below a folder, as `fs/walk` and the discovery of capability roots list it.

Everything here blocks and is meant for a thread. Names are bytes, and folders are opened by descriptors from the
root on: so every name has its exact URI, and a tree may be deeper than the longest path of the system.
"""

from __future__ import annotations

import heapq
import os
import stat
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tsupervise_protocol.errors import ErrorCode, RpcError
from tsupervise_protocol.file_messages import WalkEntry, WalkError, WalkOptions, WalkResult
from tsupervise_protocol.path_uri import OPAQUE_PREFIX, file_uri, spelled_name

from ._disk import os_text

MAX_DEPTH = 64
MAX_DIRECTORIES = 10_000
MAX_ENTRIES = 50_000
"""The most that a client may ask for; the reference allows as much."""

RESULT_BYTES = 4 << 20
"""How large a listing grows: its URIs, its error texts, and ITEM_BYTES for each. The reference's bound."""

ITEM_BYTES = 64

PATH_BYTES = 4096
"""The longest path that Linux takes at once, in bytes, the zero at its end included (PATH_MAX)."""

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

_Identity = tuple[int, int]
_Kind = Literal["directory", "file"]


def check_walk_options(options: WalkOptions) -> None:
    """See that a walk is bounded.

    Raises:
        RpcError: INVALID_REQUEST, it would list nothing, or more than is allowed.
    """
    if not options.max_directories or not options.max_entries:
        raise RpcError(ErrorCode.INVALID_REQUEST, "filesystem walk limits must be greater than zero")
    if (
        options.max_depth > MAX_DEPTH
        or options.max_directories > MAX_DIRECTORIES
        or options.max_entries > MAX_ENTRIES
    ):
        raise RpcError(
            ErrorCode.INVALID_REQUEST,
            f"filesystem walk limits exceed maximums: depth={MAX_DEPTH}, directories={MAX_DIRECTORIES}, "
            f"entries={MAX_ENTRIES}",
        )


def walk(
    root: bytes, uri: str, options: WalkOptions, between: Callable[[], object] = lambda: None
) -> WalkResult:
    """List what lies below a folder, level by level, each folder by name in byte order. Blocks.

    Only folders and regular files are listed; of links, those to folders, and only if they are followed. A folder
    is entered once, by whichever of its names comes first. Every name that is looked at counts as an entry.
    What cannot be looked at is an error in the result, and the walk goes on.

    Args:
        root: absolute.
        uri: how the client spells the root; all URIs of the result begin with it.
        options: see `check_walk_options`.
        between: called before each folder; what it raises ends the walk.

    Returns:
        An empty result if the root is no folder, or a link and links are not followed.

    Raises:
        OSError: the root cannot be looked at or opened.
    """
    if not stat.S_ISDIR(os.stat(root).st_mode):
        return WalkResult()
    if not options.follow_directory_symlinks and stat.S_ISLNK(os.lstat(root).st_mode):
        return WalkResult()
    fd = os.open(root, _OPEN_DIRECTORY | (0 if options.follow_directory_symlinks else os.O_NOFOLLOW))
    try:
        return _Walk(root, fd, uri, options).run(between)
    finally:
        os.close(fd)


class _Folder(NamedTuple):
    below: bytes
    """Its path from the root's descriptor on."""
    uri: str
    depth: int


class _Full(Exception):
    """The result has no room for another item."""


@dataclass(slots=True)
class _Listing:
    """What has been found so far."""

    entries: list[WalkEntry] = field(default_factory=list[WalkEntry])
    errors: list[WalkError] = field(default_factory=list[WalkError])
    room: int = RESULT_BYTES

    def add(self, uri: str, kind: _Kind) -> None:
        self._take(len(uri))
        self.entries.append(WalkEntry(path=uri, kind=kind))

    def add_error(self, uri: str, error: OSError) -> None:
        message = os_text(error)
        self._take(len(uri) + len(message.encode()))
        self.errors.append(WalkError(path=uri, message=message))

    def _take(self, size: int) -> None:
        if size + ITEM_BYTES > self.room:
            raise _Full
        self.room -= size + ITEM_BYTES


class _Walk:
    """One walk under way."""

    def __init__(self, root: bytes, root_fd: int, uri: str, options: WalkOptions) -> None:
        self._root = root
        self._root_fd = root_fd
        self._options = options
        self._follow = options.follow_directory_symlinks
        self._listing = _Listing()
        self._queue = deque([_Folder(b".", uri, 0)])
        self._directories = 1
        self._entries = 0
        # Without links no folder has two paths, and nothing is to be remembered.
        self._entered = {_identity(os.fstat(root_fd))}
        self._truncated = False

    def run(self, between: Callable[[], object]) -> WalkResult:
        try:
            while self._queue:
                between()
                self._list(self._queue.popleft())
        except _Full:
            self._truncated = True
        return WalkResult(
            entries=self._listing.entries, errors=self._listing.errors, truncated=self._truncated
        )

    def _list(self, folder: _Folder) -> None:
        try:
            with self._opened(folder) as fd, os.scandir(fd) as found:
                # Enough of the smallest to know whether there is one too many, however many there are.
                wanted = self._options.max_entries - self._entries + 1
                for name, entry in heapq.nsmallest(
                    wanted, ((os.fsencode(entry.name), entry) for entry in found), key=_name
                ):
                    self._look_at(folder, name, entry)
        except OSError as error:
            self._listing.add_error(folder.uri, error)

    def _look_at(self, folder: _Folder, name: bytes, entry: os.DirEntry[str]) -> None:
        if self._entries == self._options.max_entries:
            raise _Full
        self._entries += 1
        uri = self._uri(folder, name)
        try:
            kind, identity = self._kind(entry)
        except OSError as error:
            self._listing.add_error(uri, error)
            return
        if kind is None:
            return
        self._listing.add(uri, kind)
        if kind == "directory" and folder.depth < self._options.max_depth:
            if self._options.prune_hidden_directories and name.startswith(b"."):
                return
            self._enter(_Folder(folder.below + b"/" + name, uri, folder.depth + 1), identity)

    def _enter(self, folder: _Folder, identity: _Identity | None) -> None:
        if identity in self._entered:
            return
        if self._directories == self._options.max_directories:
            self._truncated = True
            return
        self._directories += 1
        if identity is not None:
            self._entered.add(identity)
        self._queue.append(folder)

    def _kind(self, entry: os.DirEntry[str]) -> tuple[_Kind | None, _Identity | None]:
        """What an entry is, if it is to be listed; for a folder that may have other paths, which one it is."""
        if entry.is_symlink():
            if not self._follow:
                return None, None
            try:
                status = entry.stat()
            except OSError:  # it leads nowhere
                return None, None
            return ("directory", _identity(status)) if stat.S_ISDIR(status.st_mode) else (None, None)
        if entry.is_dir(follow_symlinks=False):
            return "directory", _identity(entry.stat(follow_symlinks=False)) if self._follow else None
        return ("file" if entry.is_file(follow_symlinks=False) else None), None

    def _uri(self, folder: _Folder, name: bytes) -> str:
        if (self._root == b"/" and folder.depth == 0) or folder.uri.startswith(OPAQUE_PREFIX):
            # What looks like a drive has no plain spelling, and nothing can be joined to that which it has.
            return file_uri(os.path.join(self._root, folder.below, name))
        return f"{folder.uri.rstrip('/')}/{spelled_name(name)}"

    @contextmanager
    def _opened(self, folder: _Folder) -> Generator[int]:
        """Open a folder: in as many steps as its path is too long for one; if no link is to be followed, in one for
        each name, for a link may have come into the place of any."""
        flags = _OPEN_DIRECTORY if self._follow else _OPEN_DIRECTORY | os.O_NOFOLLOW
        below, fd = folder.below, self._root_fd
        try:
            while below:
                step = below
                if not self._follow:
                    step = below.partition(b"/")[0]
                elif len(below) >= PATH_BYTES:
                    step = below[: below.rindex(b"/", 0, PATH_BYTES)]
                below = below[len(step) + 1 :]
                above, fd = fd, os.open(step, flags, dir_fd=fd)
                if above != self._root_fd:
                    os.close(above)
            yield fd
        finally:
            if fd != self._root_fd:
                os.close(fd)


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino


def _name(item: tuple[bytes, os.DirEntry[str]]) -> bytes:
    return item[0]
