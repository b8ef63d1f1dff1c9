"""`tsupervise cp`: files and directories from here to the daemon's machine, or from there to here.

One file after the other. A lost connection is waited for, and a file gone on with where it was; a server that
cannot do that gets it from the beginning. What fails is told, and is no reason to stop.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import trio

from tsupervise_protocol.file_messages import MAX_BLOCK_BYTES, GetMetadataResult

from ._at_daemon import FAILURES
from ._background import open_background
from ._inherited import heeded
from ._progress import Progress
from ._relay import FAILED, Outage
from .client import Client
from .errors import ConnectionLost, FileError, FileInterrupted, OutcomeUnknown

SMALL_BYTES = 256 << 10
"""A file up to this goes up in one call, a larger one in blocks."""

RESTARTS = 10
"""How often a file is begun again, at a server that cannot go on with one."""

_DURING_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What goes wrong once a file is open, and then has a part of what it should have."""

_HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class CutShort(ValueError):
    """A file has become shorter while it was copied."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name!r} has become shorter while it was copied")


class CopyRefused(ValueError):
    """What was asked for makes no sense, so nothing was done."""


async def copy(client: Client, source: str, target: str, *, upload: bool, recursive: bool) -> int:
    """Copy a file, or with `recursive` a directory, and return the exit code for this program.

    Args:
        client: at the daemon.
        source: a path here or, to download, there.
        target: a path on the other side. In a directory that exists, the copy gets the name of the source.
        upload: from here to there.
        recursive: whether the source may be a directory.
    """
    transfer = (_Upload if upload else _Download)(client)
    return await transfer.run(os.fsencode(source), os.fsencode(target), recursive=recursive)


class _Transfer(ABC):
    """What is the same in both directions."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.files = client.files
        self.progress = Progress()
        self.code = 0
        self._scope = trio.CancelScope()
        self._stopped_by = 0

    async def run(self, source: bytes, target: bytes, *, recursive: bool) -> int:
        outage = Outage(self.client, "press Ctrl-C to give up")
        with self._scope, trio.open_signal_receiver(*heeded(_HEEDED)) as signals:
            async with open_background(outlast_cancel=False) as nursery:
                nursery.start_soon(self._heed, signals)
                nursery.start_soon(outage.watch)
                try:
                    await self.copy(source, target, recursive)
                except (*FAILURES, OSError) as error:
                    await self.fail(error)
        await self.progress.clear()
        if self._stopped_by:
            await self.progress.complain(f"interrupted{self._left()}")
            return 128 + self._stopped_by
        return self.code

    @abstractmethod
    async def copy(self, source: bytes, target: bytes, recursive: bool) -> None:
        """Copy a file or a directory, and raise what keeps all of it from being copied."""

    async def _heed(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            self._stopped_by = number
            self._scope.cancel()

    def _left(self) -> str:
        """What there is of the file that is under way, for the end of a sentence."""
        if self.progress.name is None:
            return ""
        return f"; {self.progress.name!r} is incomplete: about {self.progress.so_far()}"

    async def fail(self, error: Exception) -> None:
        """Tell of something that is not copied, or not whole, and go on."""
        self.code = FAILED
        await self.progress.complain(f"{text_of_failure(error)}{self._left()}")
        self.progress.end()

    async def attempt(self, step: Callable[[], Awaitable[None]]) -> None:
        """Do one file or directory, and tell what goes wrong."""
        try:
            await step()
        except ConnectionLost:
            raise
        except (*FAILURES, OSError) as error:
            await self.fail(error)
        self.progress.end()

    async def look(self, path: bytes) -> GetMetadataResult | None:
        """What is there; None for nothing."""
        try:
            return await self.files.stat(path)
        except FileNotFoundError:
            return None

    async def refuse_itself(self, local: bytes, source: bytes, target: bytes, is_directory: bool) -> None:
        """Refuse to copy something onto or into itself, as far as one can tell from this side.

        Args:
            local: the one of the two that is here.
            source: without symbolic links.
            target: the same.
            is_directory: whether there may be something below the source.

        Raises:
            CopyRefused: the daemon sees the same paths as we do.
        """
        is_below = is_directory and target.startswith(source.rstrip(b"/") + b"/")
        if target != source and not is_below:
            return
        try:
            here = await trio.to_thread.run_sync(os.stat, local)
            there = await self.files.stat(local)
        except OSError:
            return
        if (here.st_size, here.st_mtime_ns // 1_000_000) == (there.size, there.modified_at_ms):
            raise CopyRefused(f"cannot copy {os.fsdecode(source)!r} onto or into itself")

    async def real_remote(self, path: bytes) -> bytes:
        """The path there without symbolic links, of something that need not exist yet."""
        try:
            return os.fsencode(await self.files.canonicalize(path))
        except FileError:
            with suppress(FileError):
                return os.path.join(
                    os.fsencode(await self.files.canonicalize(os.path.dirname(path.rstrip(b"/")) or b"/")),
                    os.path.basename(path.rstrip(b"/")),
                )
        return path


class _Upload(_Transfer):
    async def copy(self, source: bytes, target: bytes, recursive: bool) -> None:
        is_directory = stat.S_ISDIR((await trio.to_thread.run_sync(os.stat, source)).st_mode)
        if is_directory and not recursive:
            raise CopyRefused(f"{os.fsdecode(source)!r} is a directory; copy it with -r")
        found = await self.look(target)
        if found is not None and found.is_directory:
            target = os.path.join(target, name_of(source))
        elif target.endswith(b"/") and not is_directory:
            raise CopyRefused(f"there is no directory {remote_text(target)!r}")
        elif found is not None and not (found.is_file or is_directory):
            # Some servers would wait at a FIFO for ever.
            raise CopyRefused(f"{remote_text(target)!r} is not a regular file")
        here = await trio.to_thread.run_sync(os.path.realpath, source)
        await self.refuse_itself(here, here, await self.real_remote(target), is_directory)
        if not is_directory:
            await self.attempt(lambda: self._file(source, target))
            return
        await self._make_directory(target)
        directories = deque([(source, target)])
        while directories:
            await self._directory(*directories.popleft(), directories)

    async def _directory(self, source: bytes, target: bytes, directories: deque[tuple[bytes, bytes]]) -> None:
        try:
            entries = await trio.to_thread.run_sync(_scan, source)
        except OSError as error:
            await self.fail(error)
            return
        for entry in entries:
            there = os.path.join(target, entry.name)

            async def step(entry: os.DirEntry[bytes] = entry, there: bytes = there) -> None:
                kind = await trio.to_thread.run_sync(_kind, entry)
                if kind == "directory":
                    await self._make_directory(there)
                    directories.append((entry.path, there))
                elif kind == "file":
                    await self._file(entry.path, there)
                else:
                    raise CopyRefused(f"left out {os.fsdecode(entry.path)!r}: {kind}")

            await self.attempt(step)

    async def _make_directory(self, path: bytes) -> None:
        try:
            await _repeated(lambda: self.files.make_directory(path))
        except FileExistsError:
            found = await self.look(path)
            if found is None or not found.is_directory:
                raise

    async def _file(self, source: bytes, target: bytes) -> None:
        async with opened(source, os.O_RDONLY) as (fd, found):
            size = found.st_size
            mode = _new_mode(found.st_mode) if self.client.has("tsuperviseFileModes") else None
            if size <= SMALL_BYTES:
                data = await trio.to_thread.run_sync(os.pread, fd, SMALL_BYTES + 1, 0)
                # Else it has grown meanwhile.
                if len(data) <= SMALL_BYTES:
                    await self._small(target, data, mode)
                    return
            for _ in range(RESTARTS):
                try:
                    await self._blocks(source, fd, target, size, mode)
                    return
                except FileInterrupted:
                    await self.progress.complain(
                        f"the connection was lost, and this server cannot go on with {remote_text(target)!r}: "
                        "beginning again"
                    )
            raise FileInterrupted(os.fsdecode(target))

    async def _small(self, target: bytes, data: bytes, mode: int | None) -> None:
        self.progress.begin(remote_text(target), len(data))
        try:
            await _repeated(lambda: self.files.write_file(target, data, unix_mode=mode))
            await self.progress.reach(len(data))
        except FileError as error:
            if error.errno not in _DURING_WRITE:
                self.progress.end()  # it was not even opened
            raise

    async def _blocks(self, source: bytes, fd: int, target: bytes, size: int, mode: int | None) -> None:
        async with self.client.open_file(target, "replace", unix_mode=mode) as file:
            self.progress.begin(remote_text(target), size)
            while block := await trio.to_thread.run_sync(os.pread, fd, MAX_BLOCK_BYTES, file.position):
                await file.write(block)
                await self.progress.reach(file.acknowledged)
            # Files of the kernel's claim a size that they do not have.
            if file.position < size and (await trio.to_thread.run_sync(os.fstat, fd)).st_size < size:
                await file.flush()  # what there was is there, too
                await self.progress.reach(file.acknowledged)
                raise CutShort(os.fsdecode(source))


class _Download(_Transfer):
    async def copy(self, source: bytes, target: bytes, recursive: bool) -> None:
        found = await self.files.stat(source)
        if found.is_directory and not recursive:
            raise CopyRefused(f"{remote_text(source)!r} is a directory; copy it with -r")
        if await trio.to_thread.run_sync(os.path.isdir, target):
            target = os.path.join(target, name_of(source))
        elif target.endswith(b"/") and not found.is_directory:
            raise CopyRefused(f"there is no directory {os.fsdecode(target)!r}")
        there = os.fsencode(await self.files.canonicalize(source))
        here = await trio.to_thread.run_sync(os.path.realpath, target)
        await self.refuse_itself(there, there, here, found.is_directory)
        if not found.is_directory:
            await self.attempt(lambda: self._file(source, target))
            return
        await trio.to_thread.run_sync(_make_directory, target)
        directories = deque([(source, target)])
        while directories:
            await self._directory(*directories.popleft(), directories)

    async def _directory(self, source: bytes, target: bytes, directories: deque[tuple[bytes, bytes]]) -> None:
        try:
            entries = await self.files.list_directory(source)
        except FileError as error:
            await self.fail(error)
            return
        for entry in entries:
            name = os.fsencode(entry.name)
            there, here = os.path.join(source, name), os.path.join(target, name)

            async def step(
                is_directory: bool = entry.is_directory,
                is_file: bool = entry.is_file,
                there: bytes = there,
                here: bytes = here,
            ) -> None:
                if is_directory and not (await self.files.stat(there)).is_symlink:
                    await trio.to_thread.run_sync(_make_directory, here)
                    directories.append((there, here))
                elif is_file:
                    await self._file(there, here)
                else:
                    kind = "a symbolic link to a directory" if is_directory else "not a regular file"
                    raise CopyRefused(f"left out {remote_text(there)!r}: {kind}")

            await self.attempt(step)

    async def _file(self, source: bytes, target: bytes) -> None:
        async with (
            self.client.open_file(source) as file,
            opened(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _new_mode(file.unix_mode)) as (fd, _),
        ):
            self.progress.begin(os.fsdecode(target), file.size)
            async for block in file:
                await trio.to_thread.run_sync(_write_all, fd, block)
                await self.progress.reach(file.position)
            if file.position < (file.size or 0):
                now = await self.look(source)
                if now is None or now.size < (file.size or 0):
                    raise CutShort(remote_text(source))


async def _repeated(step: Callable[[], Awaitable[None]]) -> None:
    """Do what may be done twice, again after each connection that was lost before the answer."""
    while True:
        try:
            return await step()
        except OutcomeUnknown:
            pass


@asynccontextmanager
async def opened(path: bytes, flags: int, mode: int = 0o666) -> AsyncGenerator[tuple[int, os.stat_result]]:
    """A regular file here, and what it is, open for the time of a block; `mode` is for one that is made.

    Raises:
        OSError: it cannot be opened, or closed well.
        ValueError: it is no regular file.
    """
    fd, found = await trio.to_thread.run_sync(_open_regular, path, flags, mode)
    try:
        yield fd, found
    finally:
        # Some file systems write only now, and tell only now that there was no room.
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(os.close, fd)


def _new_mode(source_mode: int | None) -> int:
    """Of a copy that is made: that of its source, if it is known. Its owner may write it, to go on after a cut."""
    return 0o666 if source_mode is None else source_mode & 0o777 | 0o200


def _open_regular(path: bytes, flags: int, mode: int) -> tuple[int, os.stat_result]:
    # Anything else might wait for ever.
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, mode)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise ValueError(f"{os.fsdecode(path)!r} is not a regular file")
    return fd, found


def name_of(path: bytes) -> bytes:
    """What a copy of it is called; nothing for `.`, `..` and the root, whose entries go to the target itself."""
    name = os.path.basename(path.rstrip(b"/"))
    return b"" if name in (b".", b"..") else name


def remote_text(path: bytes) -> str:
    """A path there, as a person spells it."""
    return f":{os.fsdecode(path)}"


def text_of_failure(error: Exception) -> str:
    """What is wrong, and on which side."""
    match error:
        case FileError(filename=name):
            return f"{remote_text(os.fsencode(name))!r}: {error.strerror}"
        case OSError(filename=str() | bytes() as name):
            return f"{os.fsdecode(name)!r}: {error.strerror}"
        case OSError(strerror=str() as text):
            return text
        case _:
            return str(error)


def _scan(path: bytes) -> list[os.DirEntry[bytes]]:
    with os.scandir(path) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _kind(entry: os.DirEntry[bytes]) -> str:
    """`directory` or `file`, where links to files are these; else in words what it is. May look at the disk."""
    if entry.is_dir(follow_symlinks=False):
        return "directory"
    if entry.is_file():
        return "file"
    if not entry.is_symlink():
        return "not a regular file"
    return "a symbolic link to a directory" if entry.is_dir() else "a symbolic link that leads to no file"


def _make_directory(path: bytes) -> None:
    try:
        os.mkdir(path)
    except FileExistsError:
        if not os.path.isdir(path):
            raise


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
