"""What can be done with one file or folder, by the bytes of its absolute path. Blocks: for threads.

Without `follow` no name of a path may be a symbolic link: the way is gone folder by folder, each opened in the one
before, so that a link that is put there meanwhile is no way in either. A link as the last name is then ELOOP, and
ENOTDIR before it.

Nothing here waits for a peer at a pipe or a device: these are opened without waiting.
"""

from __future__ import annotations

import errno
import os
import select
import stat
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress

from tsupervise_protocol.errors import ErrorCode, RpcError
from tsupervise_protocol.file_messages import DirectoryEntry, GetMetadataResult

from ._birth_time import birth_time_ms

MAX_READ_BYTES = 512 << 20
"""The largest file that is read in one go; as the reference."""

MAX_LISTED_ENTRIES = 50_000
"""The largest folder that is listed in one go; as the reference."""

PIECE_BYTES = 768 << 10
"""How much is read or written at a time. Divisible by three, so that the base64 of pieces can be joined."""

COPY_BYTES = 16 << 20
"""How much the kernel is asked to copy at a time: a moment's work even on a slow disk."""

CHECKED_ENTRIES = 100
"""How many entries of a folder are looked at between two questions whether anybody wants them still."""

PEER_PATIENCE_S = 5.0
"""How long the reader of a pipe or device may take no byte, in seconds; then it is EAGAIN."""

Check = Callable[[], object]
"""Called between steps; raises when nobody wants the rest any more."""

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
NEW_FILE_MODE = 0o666
"""Of a file that is made, unless another one is asked for; the umask is taken off."""

_WRITE = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | os.O_CREAT
_WAY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

_NOT_BY_THE_KERNEL = frozenset(
    (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)
)
"""copy_file_range(2) cannot copy between these two; reading and writing may."""


@contextmanager
def way_to(path: bytes, *, follow: bool) -> Generator[tuple[int | None, bytes]]:
    """The folder that a path is in, and the name there, for calls that take a `dir_fd`.

    Raises:
        OSError: also for what the block raises, with the whole path as its file name.
    """
    if follow:
        yield None, path
        return
    *folders, name = [part for part in path.split(b"/") if part] or [b"."]
    try:
        fd = os.open(b"/", _WAY)
        try:
            for folder in folders:
                inner = os.open(folder, _WAY | os.O_NOFOLLOW, dir_fd=fd)
                os.close(fd)
                fd = inner
            yield fd, name
        finally:
            os.close(fd)
    except OSError as error:
        error.filename = path
        raise


def refuse(text: str) -> RpcError:
    """A request that is wrong for what there is."""
    return RpcError(ErrorCode.INVALID_REQUEST, text)


# --- contents ----------------------------------------------------------------------------------------


@contextmanager
def open_to_read(path: bytes, *, follow: bool) -> Generator[int]:
    """A regular file, open for the time of the block.

    Raises:
        RpcError: it is something else, or too large to be read.
    """
    with way_to(path, follow=follow) as (dir_fd, name):
        # A look first: to open a device may do something to it.
        found = os.stat(name, dir_fd=dir_fd, follow_symlinks=follow)
        if stat.S_ISLNK(found.st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        _require_regular(found)
        fd = os.open(name, _READ | (0 if follow else os.O_NOFOLLOW), dir_fd=dir_fd)
    try:
        found = os.fstat(fd)
        _require_regular(found)
        if found.st_size > MAX_READ_BYTES:
            raise _too_large()
        yield fd
    finally:
        os.close(fd)


def read_pieces(fd: int) -> Iterator[bytes]:
    """What is left of a file up to its end, wherever that is by then; all pieces but the last have PIECE_BYTES.

    Raises:
        RpcError: it has grown too large to be read.
    """
    size = 0
    while piece := _read_full(fd, PIECE_BYTES):
        size += len(piece)
        if size > MAX_READ_BYTES:
            raise _too_large()
        yield piece


def read_up_to(fd: int, max_bytes: int) -> bytes | None:
    """What is left of a file, or None if that is more."""
    data = _read_full(fd, max_bytes + 1)
    return data if len(data) <= max_bytes else None


def _read_full(fd: int, size: int) -> bytes:
    """So many bytes, or up to the end: files of the kernel's come in small portions."""
    data = os.read(fd, size)
    if not data or len(data) == size:
        return data
    parts = bytearray(data)
    while data := os.read(fd, size - len(parts)):
        parts += data
    return bytes(parts)


def write_file(path: bytes, data: bytes, *, follow: bool, unix_mode: int, check: Check) -> None:
    """Replace the content of a file, and make it if there is none. Its inode, mode and hard links stay.

    `unix_mode` is for one that is made.

    Not atomic: what has been written when the disk is full, say, is in the file. But once it is emptied nobody is
    asked any more whether the rest is wanted.
    """
    check()
    with (
        way_to(path, follow=follow) as (dir_fd, name),
        open_to_write(name, dir_fd, follow=follow, mode=unix_mode) as fd,
    ):
        if stat.S_ISREG(os.fstat(fd).st_mode):
            os.ftruncate(fd, 0)
            write_all(fd, data, _at_any_rate)
        elif follow:
            write_all(fd, data, check)
        else:
            raise refuse("the path is not a regular file")


@contextmanager
def open_to_write(
    name: bytes, dir_fd: int | None, *, follow: bool = True, mode: int = NEW_FILE_MODE
) -> Generator[int]:
    """A file, with what is in it, open for the time of the block; that it cannot be closed well is an error, too.

    Args:
        name: relative to `dir_fd`, if that is not None.
        mode: of a new one; the umask is taken off.
    """
    fd = os.open(name, _WRITE | (0 if follow else os.O_NOFOLLOW), mode, dir_fd=dir_fd)
    try:
        yield fd
    except BaseException:
        with suppress(OSError):
            os.close(fd)
        raise
    os.close(fd)  # some file systems tell only now that there was no room


def write_all(fd: int, data: bytes, check: Check) -> None:
    """Write everything."""
    rest = memoryview(data)
    while rest:
        check()
        try:
            rest = rest[os.write(fd, rest[:PIECE_BYTES]) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            if not poll.poll(PEER_PATIENCE_S * 1000):
                raise


def _at_any_rate() -> None:
    """The rest is wanted."""


def copy_content(source: int, target: int, check: Check) -> None:
    """Append what is left of one file to another."""
    try:
        while os.copy_file_range(source, target, COPY_BYTES):
            check()
    except OSError as error:
        if error.errno not in _NOT_BY_THE_KERNEL:
            raise
    # The rest; and files of the kernel's, which look empty to it.
    while data := os.read(source, PIECE_BYTES):
        write_all(target, data, check)


def _require_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise refuse("the path is not a file: only regular files can be read")


def _too_large() -> RpcError:
    return refuse(
        f"the file is too large to be read in one go: the limit is {MAX_READ_BYTES} bytes; use fs/open"
    )


# --- folders and names -------------------------------------------------------------------------------


def make_directory(path: bytes, *, recursive: bool, follow: bool) -> None:
    """Make a folder; with `recursive` also those above it that are missing, and none if it is there."""
    if not follow:
        _make_directory_no_follow(path, recursive=recursive)
    elif recursive:
        _make_directories(path)
    else:
        os.mkdir(path)


def _make_directories(path: bytes) -> None:
    missing: list[bytes] = []
    while not _make_or_find(path):
        missing.append(path)
        path = os.path.dirname(path)
    for path in reversed(missing):
        if not _make_or_find(path):  # one above is gone again
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def _make_or_find(path: bytes) -> bool:
    """Whether there is this folder now; False if one above is missing."""
    try:
        os.mkdir(path)
    except FileNotFoundError:
        return False
    except OSError:
        if not os.path.isdir(path):
            raise
    return True


def _make_directory_no_follow(path: bytes, *, recursive: bool) -> None:
    names = [part for part in path.split(b"/") if part]
    try:
        fd = os.open(b"/", _WAY)
        try:
            for step, name in enumerate(names, 1):
                refusal = None
                if recursive or step == len(names):
                    try:
                        os.mkdir(name, dir_fd=fd)
                    except OSError as error:
                        # Whatever kept it from being made: if it is there and a folder, that is fine.
                        if not recursive:
                            raise
                        refusal = error
                try:
                    inner = os.open(name, _WAY | os.O_NOFOLLOW, dir_fd=fd)
                except FileNotFoundError:
                    raise refusal or FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None
                os.close(fd)
                fd = inner
            if not names and not recursive:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        finally:
            os.close(fd)
    except OSError as error:
        error.filename = path
        raise


def metadata(path: bytes, *, follow: bool) -> GetMetadataResult:
    """What a path leads to.

    Raises:
        RpcError: it is a symbolic link, and these are not followed.
    """
    with way_to(path, follow=follow) as (dir_fd, name):
        found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        is_symlink = stat.S_ISLNK(found.st_mode)
        if is_symlink:
            if not follow:
                raise refuse_link()
            found = os.stat(name)
        created_at_ms = birth_time_ms(name, dir_fd, follow=follow)
    return GetMetadataResult(
        is_directory=stat.S_ISDIR(found.st_mode),
        is_file=stat.S_ISREG(found.st_mode),
        is_symlink=is_symlink,
        size=found.st_size,
        created_at_ms=created_at_ms,
        modified_at_ms=max(0, found.st_mtime_ns // 1_000_000),
        unix_mode=stat.S_IMODE(found.st_mode) & 0o777,
    )


def refuse_link() -> RpcError:
    return refuse("the path contains a symbolic link, and followSymlinks is false")


def canonical(path: bytes, *, strict: bool = True) -> bytes:
    """The path without symbolic links.

    Args:
        strict: whether all of it has to exist.
    """
    if strict:
        os.stat(path)  # the kernel's own bound for links to links
    try:
        return os.path.realpath(path, strict=strict)
    except RecursionError:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from None


def list_directory(path: bytes, max_entries: int, check: Check) -> list[DirectoryEntry] | None:
    """The entries of a folder, in its own order; None if there are more than that.

    What cannot be looked at is left out: links that lead nowhere, and what has just gone.
    """
    listed: list[DirectoryEntry] = []
    with os.scandir(path) as entries:
        for seen, entry in enumerate(entries):
            if not seen % CHECKED_ENTRIES:
                check()
            try:
                # A look at where a link leads; what is none is known without.
                if entry.is_symlink():
                    entry.stat()
                is_directory = entry.is_dir()
                is_file = not is_directory and entry.is_file()
            except OSError:
                continue
            if len(listed) == max_entries:
                return None
            name = entry.name.decode("utf-8", "replace")
            listed.append(DirectoryEntry(file_name=name, is_directory=is_directory, is_file=is_file))
    return listed
