"""Files and HTTP for code that is not async: the same calls and blocks, each waiting for its outcome."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self, final

import trio

from tsupervise_protocol.environment_messages import DiscoveredRoot, EnvironmentConfigReadResult
from tsupervise_protocol.file_messages import GetMetadataResult

from . import client as async_client
from ._http_call import MAX_BODY_BYTES
from ._http_call import HttpResponse as AsyncHttpResponse
from ._loop_thread import Held, LoopThread
from ._missing_watch import MissingWatch as AsyncMissingWatch
from ._remote_file import RemoteFile as AsyncRemoteFile
from ._remote_files import (
    MAX_READ_BYTES,
    WALK_DEPTH,
    WALK_DIRECTORIES,
    WALK_ENTRIES,
    Path,
    RemoteEntry,
    Walk,
)
from .errors import ConnectionLost


@final
class RemoteFiles:
    """Files and directories at the server; every method is explained at `tsupervise.RemoteFiles`."""

    def __init__(self, loop: LoopThread[async_client.Client]) -> None:
        self._loop = loop
        self._files = loop.value.files

    def read_file(
        self,
        path: Path,
        *,
        max_bytes: int = MAX_READ_BYTES,
        follow_symlinks: bool = True,
        timeout: float | None = None,
    ) -> bytes:
        """Return what is in a regular file."""
        return self._loop.call(
            lambda: self._files.read_file(path, max_bytes=max_bytes, follow_symlinks=follow_symlinks), timeout
        )

    def write_file(
        self,
        path: Path,
        data: bytes | bytearray | memoryview,
        *,
        follow_symlinks: bool = True,
        unix_mode: int | None = None,
        timeout: float | None = None,
    ) -> None:
        """Make `data` what is in a file."""
        self._loop.call(
            lambda: self._files.write_file(path, data, follow_symlinks=follow_symlinks, unix_mode=unix_mode),
            timeout,
        )

    def stat(
        self, path: Path, *, follow_symlinks: bool = True, timeout: float | None = None
    ) -> GetMetadataResult:
        """What a path leads to: its kind, size and times."""
        return self._loop.call(lambda: self._files.stat(path, follow_symlinks=follow_symlinks), timeout)

    def exists(self, path: Path, *, timeout: float | None = None) -> bool:
        """Whether a path leads to anything."""
        return self._loop.call(lambda: self._files.exists(path), timeout)

    def canonicalize(self, path: Path, *, timeout: float | None = None) -> str:
        """The path without symbolic links, `.` and `..`."""
        return self._loop.call(lambda: self._files.canonicalize(path), timeout)

    def copy(
        self, source: Path, destination: Path, *, recursive: bool = False, timeout: float | None = None
    ) -> None:
        """Copy at the server."""
        self._loop.call(lambda: self._files.copy(source, destination, recursive=recursive), timeout)

    def remove(
        self,
        path: Path,
        *,
        recursive: bool = False,
        missing_ok: bool = False,
        follow_symlinks: bool = True,
        timeout: float | None = None,
    ) -> None:
        """Remove a file, a directory, or a symbolic link."""
        self._loop.call(
            lambda: self._files.remove(
                path, recursive=recursive, missing_ok=missing_ok, follow_symlinks=follow_symlinks
            ),
            timeout,
        )

    def make_directory(
        self,
        path: Path,
        *,
        parents: bool = False,
        follow_symlinks: bool = True,
        timeout: float | None = None,
    ) -> None:
        """Make a directory."""
        self._loop.call(
            lambda: self._files.make_directory(path, parents=parents, follow_symlinks=follow_symlinks),
            timeout,
        )

    def list_directory(self, path: Path, *, timeout: float | None = None) -> list[RemoteEntry]:
        """What is in a directory."""
        return self._loop.call(lambda: self._files.list_directory(path), timeout)

    def walk(
        self,
        path: Path,
        *,
        max_depth: int = WALK_DEPTH,
        max_directories: int = WALK_DIRECTORIES,
        max_entries: int = WALK_ENTRIES,
        follow_symlinks: bool = False,
        prune_hidden: bool = False,
        timeout: float | None = None,
    ) -> Walk:
        """List a directory and those below it."""
        return self._loop.call(
            lambda: self._files.walk(
                path,
                max_depth=max_depth,
                max_directories=max_directories,
                max_entries=max_entries,
                follow_symlinks=follow_symlinks,
                prune_hidden=prune_hidden,
            ),
            timeout,
        )

    def watch_missing(
        self, missing: Sequence[Path], *, present: Path | None = None, timeout: float | None = None
    ) -> MissingWatch:
        """Watch for paths that do not exist to come into being."""
        watch = self._loop.call(lambda: self._files.watch_missing(missing, present=present), timeout)
        return MissingWatch(self._loop, watch)

    def read_config(
        self,
        cwd: Path,
        config_paths: Sequence[Sequence[str]],
        requirements_paths: Sequence[Sequence[str]] = (),
        *,
        timeout: float | None = None,
    ) -> EnvironmentConfigReadResult:
        """Read parts of the agent's configuration there."""
        return self._loop.call(
            lambda: self._files.read_config(cwd, config_paths, requirements_paths), timeout
        )

    def discover_roots(self, roots: Sequence[Path], *, timeout: float | None = None) -> list[DiscoveredRoot]:
        """Look for plugins and skills below directories."""
        return self._loop.call(lambda: self._files.discover_roots(roots), timeout)


@final
class MissingWatch:
    """Tells once when paths may have come into being, see `tsupervise.MissingWatch`."""

    def __init__(self, loop: LoopThread[async_client.Client], watch: AsyncMissingWatch) -> None:
        self._loop = loop
        self._watch = watch

    @property
    def is_watching(self) -> bool:
        """Whether the server still watches."""
        return self._watch.is_watching

    def wait(self, *, timeout: float | None = None) -> None:
        """Wait until something may have changed."""
        self._loop.call(self._watch.wait, timeout)


@final
class RemoteFile:
    """An open file at the server; iterate over it for block after block. See `tsupervise.RemoteFile`."""

    def __init__(self, loop: LoopThread[async_client.Client], file: AsyncRemoteFile) -> None:
        self._loop = loop
        self._file = file

    def __repr__(self) -> str:
        return repr(self._file)

    @property
    def path(self) -> str:
        """Of the file at the server."""
        return self._file.path

    @property
    def position(self) -> int:
        """Where the next `read_some` or `write` is, in bytes from the beginning."""
        return self._file.position

    @property
    def size(self) -> int | None:
        """As it was opened for reading, in bytes; None for writing."""
        return self._file.size

    @property
    def unix_mode(self) -> int | None:
        """Who may read, write and execute it, as it was opened for reading; None if that is not told."""
        return self._file.unix_mode

    @property
    def acknowledged(self) -> int:
        """The end of what the server has acknowledged to be written, in bytes from the beginning."""
        return self._file.acknowledged

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        if block := self.read_some():
            return block
        raise StopIteration

    def read_some(self, *, timeout: float | None = None) -> bytes:
        """Return the next block; b"" at the end of the file."""
        return self._loop.call(self._file.read_some, timeout)

    def read_at(self, offset: int, max_bytes: int, *, timeout: float | None = None) -> bytes:
        """Return what is at a place."""
        return self._loop.call(lambda: self._file.read_at(offset, max_bytes), timeout)

    def write(self, data: bytes | bytearray | memoryview, *, timeout: float | None = None) -> None:
        """Write at the position."""
        self._loop.call(lambda: self._file.write(data), timeout)

    def write_at(
        self, offset: int, data: bytes | bytearray | memoryview, *, timeout: float | None = None
    ) -> None:
        """Write at a place."""
        self._loop.call(lambda: self._file.write_at(offset, data), timeout)

    def flush(self, *, timeout: float | None = None) -> None:
        """Wait until the server has written everything."""
        self._loop.call(self._file.flush, timeout)

    def close(self, *, timeout: float | None = None) -> None:
        """Write what is to be written, and close."""
        self._loop.call(self._file.aclose, timeout)


@final
class FileBlock:
    """What `Client.open_file` returns, for one `with`."""

    def __init__(self, loop: LoopThread[async_client.Client], held: Held[AsyncRemoteFile]) -> None:
        self._loop = loop
        self._held = held
        self._file: AsyncRemoteFile | None = None

    def __enter__(self) -> RemoteFile:
        self._file = self._held.__enter__()
        return RemoteFile(self._loop, self._file)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and self._file is not None:
            # As in an async block: what is left by an error is not waited for.
            with suppress(ConnectionLost):
                self._loop.call(self._abandon)
        self._held.__exit__(kind, error, traceback)

    async def _abandon(self) -> None:
        assert self._file is not None, "it is open"
        self._file.abandon()
        await trio.lowlevel.checkpoint()


@final
class HttpResponse:
    """A response; iterate over it for its body. See `tsupervise.HttpResponse`."""

    def __init__(self, loop: LoopThread[async_client.Client], response: AsyncHttpResponse) -> None:
        self._loop = loop
        self._response = response

    def __repr__(self) -> str:
        return repr(self._response)

    @property
    def status(self) -> int:
        """Of any kind: 404 is a response, too."""
        return self._response.status

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Names in lower case, in the order in which they came."""
        return self._response.headers

    def header(self, name: str) -> str | None:
        """The first value of a header."""
        return self._response.header(name)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        if piece := self.receive_some():
            return piece
        raise StopIteration

    def receive_some(self, *, timeout: float | None = None) -> bytes:
        """Wait for the next piece of the body; b"" at its end."""
        return self._loop.call(self._response.receive_some, timeout)

    def read(self, max_bytes: int = MAX_BODY_BYTES, *, timeout: float | None = None) -> bytes:
        """Return the whole body, or what is left of it."""
        return self._loop.call(lambda: self._response.read(max_bytes), timeout)


@final
class HttpBlock:
    """What `Client.http_request` returns, for one `with`."""

    def __init__(self, loop: LoopThread[async_client.Client], held: Held[AsyncHttpResponse]) -> None:
        self._loop = loop
        self._held = held

    def __enter__(self) -> HttpResponse:
        return HttpResponse(self._loop, self._held.__enter__())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._held.__exit__(kind, error, traceback)
