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

from tsupervise_protocol.file_messages import MAX_BLOCK_BYTES

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
                except FAILURES as error:
                    await self.fail(str(error))
                except OSError as error:
                    await self.fail(local_text(error))
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

    async def fail(self, reason: str) -> None:
        """Tell of something that is not copied, or not whole, and go on."""
        self.code = FAILED
        await self.progress.complain(f"{reason}{self._left()}")
        self.progress.end()

    async def attempt(self, step: Callable[[], Awaitable[None]]) -> None:
        """Do one file or directory, and tell what goes wrong."""
        try:
            await step()
        except ConnectionLost:
            raise
        except FAILURES as error:
            await self.fail(str(error))
        except OSError as error:
            await self.fail(local_text(error))
        self.progress.end()

    async def refuse_itself(self, local: bytes, source: bytes, target: bytes) -> None:
        """Refuse to copy something onto or into itself, as far as one can tell from this side.

        Args:
            local: the one of the two that is here.
            source: without symbolic links.
            target: the same.

        Raises:
            CopyRefused: the daemon sees the same paths as we do.
        """
        if target != source and not target.startswith(source.rstrip(b"/") + b"/"):
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
        is_directory = await trio.to_thread.run_sync(os.path.isdir, source)
        if is_directory and not recursive:
            raise CopyRefused(f"{os.fsdecode(source)!r} is a directory; copy it with -r")
        if await self._is_directory(target):
            target = os.path.join(target, name_of(source))
        elif target.endswith(b"/") and not is_directory:
            raise CopyRefused(f"there is no directory {remote_text(target)!r}")
        here = await trio.to_thread.run_sync(os.path.realpath, source)
        await self.refuse_itself(here, here, await self.real_remote(target))
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
            await self.fail(local_text(error))
            return
        for entry in entries:
            there = os.path.join(target, entry.name)

            async def step(entry: os.DirEntry[bytes] = entry, there: bytes = there) -> None:
                if entry.is_dir(follow_symlinks=False):
                    await self._make_directory(there)
                    directories.append((entry.path, there))
                elif entry.is_file():
                    await self._file(entry.path, there)
                else:
                    await self.fail(f"left out {os.fsdecode(entry.path)!r}: {_kind(entry)}")

            await self.attempt(step)

    async def _is_directory(self, path: bytes) -> bool:
        try:
            return (await self.files.stat(path)).is_directory
        except FileNotFoundError:
            return False

    async def _make_directory(self, path: bytes) -> None:
        try:
            await _repeated(lambda: self.files.make_directory(path))
        except FileExistsError:
            if not await self._is_directory(path):
                raise

    async def _file(self, source: bytes, target: bytes) -> None:
        async with opened(source, os.O_RDONLY) as fd:
            size = os.fstat(fd).st_size
            if size <= SMALL_BYTES:
                data = await trio.to_thread.run_sync(os.pread, fd, SMALL_BYTES + 1, 0)
                # Else it has grown meanwhile.
                if len(data) <= SMALL_BYTES:
                    await self._small(target, data)
                    return
            for _ in range(RESTARTS):
                try:
                    await self._blocks(fd, target, size)
                    return
                except FileInterrupted:
                    await self.progress.complain(
                        f"the connection was lost, and this server cannot go on with {remote_text(target)!r}: "
                        "beginning again"
                    )
            raise FileInterrupted(os.fsdecode(target))

    async def _small(self, target: bytes, data: bytes) -> None:
        self.progress.begin(remote_text(target), len(data))
        try:
            await _repeated(lambda: self.files.write_file(target, data))
        except FileError as error:
            if error.errno not in _DURING_WRITE:
                self.progress.end()  # it was not even opened
            raise

    async def _blocks(self, fd: int, target: bytes, size: int) -> None:
        async with self.client.open_file(target, "replace") as file:
            self.progress.begin(remote_text(target), size)
            while block := await trio.to_thread.run_sync(os.pread, fd, MAX_BLOCK_BYTES, file.position):
                await file.write(block)
                await self.progress.advance(len(block))


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
        await self.refuse_itself(there, there, await trio.to_thread.run_sync(os.path.realpath, target))
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
            await self.fail(str(error))
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
                    await self.fail(f"left out {remote_text(there)!r}: {kind}")

            await self.attempt(step)

    async def _file(self, source: bytes, target: bytes) -> None:
        async with (
            self.client.open_file(source) as file,
            opened(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd,
        ):
            self.progress.begin(os.fsdecode(target), file.size)
            async for block in file:
                await trio.to_thread.run_sync(_write_all, fd, block)
                await self.progress.advance(len(block))


async def _repeated(step: Callable[[], Awaitable[None]]) -> None:
    """Do what may be done twice, again after each connection that was lost before the answer."""
    while True:
        try:
            return await step()
        except OutcomeUnknown:
            pass


@asynccontextmanager
async def opened(path: bytes, flags: int) -> AsyncGenerator[int]:
    """A regular file here, open for the time of a block; anything else might wait for ever.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no regular file.
    """
    fd = await trio.to_thread.run_sync(os.open, path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError(f"{os.fsdecode(path)!r} is not a regular file")
        yield fd
    finally:
        os.close(fd)


def name_of(path: bytes) -> bytes:
    """What a copy of it is called; nothing for `.`, `..` and the root, whose entries go to the target itself."""
    name = os.path.basename(path.rstrip(b"/"))
    return b"" if name in (b".", b"..") else name


def remote_text(path: bytes) -> str:
    """A path there, as a person spells it."""
    return f":{os.fsdecode(path)}"


def local_text(error: OSError) -> str:
    """What is wrong with a file here."""
    name: object = error.filename
    where = f"{os.fsdecode(name)!r}: " if isinstance(name, str | bytes) else ""
    return f"{where}{error.strerror}"


def _scan(path: bytes) -> list[os.DirEntry[bytes]]:
    with os.scandir(path) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _kind(entry: os.DirEntry[bytes]) -> str:
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
