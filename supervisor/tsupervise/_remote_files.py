"""Files and folders at a server: one call for each thing that can be done with a path.

A path is one of the machine where the daemon runs, absolute, as text, bytes or `os.PathLike`; a `file:` URI is one
as well. Paths that come back are text as `os.fsdecode` makes it, so that names that are not UTF-8 survive.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Literal, TypeVar

from tsupervise_protocol.base64_text import decode_base64, encode_base64_str
from tsupervise_protocol.environment_messages import (
    CapabilityRoot,
    DiscoveredRoot,
    DiscoverParams,
    DiscoverResult,
    EnvironmentConfigReadParams,
    EnvironmentConfigReadResult,
)
from tsupervise_protocol.errors import ErrorCode
from tsupervise_protocol.file_messages import (
    CanonicalizeParams,
    CanonicalizeResult,
    CopyParams,
    CreateDirectoryParams,
    GetMetadataParams,
    GetMetadataResult,
    ReadDirectoryParams,
    ReadDirectoryResult,
    ReadFileParams,
    ReadFileResult,
    RemoveParams,
    WalkOptions,
    WalkParams,
    WalkResult,
    WatchMissingParams,
    WatchMissingResult,
    WriteFileParams,
)
from tsupervise_protocol.messages import EmptyResult, Message
from tsupervise_protocol.path_uri import PathUriError, file_uri, parse_file_uri

from ._missing_watch import MissingWatch
from ._recovery import Disconnected
from ._remote_file import require_modes
from .errors import BadAnswer, FileError, ServerRefused, file_error

if TYPE_CHECKING:
    from .client import Client

WHOLE_BYTES = 8 << 20
"""A file above this is read and written in blocks. In base64 it fits the 16 MiB that servers take in a frame."""

MAX_READ_BYTES = 512 << 20
"""What `read_file` keeps in memory at most, unless it is told otherwise."""

WALK_DEPTH, WALK_DIRECTORIES, WALK_ENTRIES = 64, 10_000, 50_000
"""What a walk may ask for at most."""

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]

R = TypeVar("R", bound=Message)


@dataclass(frozen=True, slots=True)
class RemoteEntry:
    """What is in a directory.

    Args:
        name: without the directory.
        is_directory: whether it is one, or a symbolic link to one.
        is_file: whether it is a regular file, or a symbolic link to one.
    """

    name: str
    is_directory: bool
    is_file: bool


@dataclass(frozen=True, slots=True)
class WalkedEntry:
    """What a walk has met; `path` is as it was reached, with symbolic links as they stand."""

    path: str
    kind: Literal["directory", "file"]


@dataclass(frozen=True, slots=True)
class Walk:
    """What a walk has found.

    Args:
        entries: level after level.
        errors: the paths that could not be looked at, and why.
        truncated: whether a bound was reached, so that there is more.
    """

    entries: list[WalkedEntry]
    errors: list[tuple[str, str]]
    truncated: bool


class RemoteFiles:
    """What `Client.files` is. Every method raises FileError if the server cannot do what is asked; where the
    cause has a builtin error, such as FileNotFoundError, it is one of these as well.

    What only reads is asked again after a lost connection; what changes something is not, and raises OutcomeUnknown
    if its answer was lost. All raise ConnectionLost once the connection is gone for good, and ValueError for a path
    that is not absolute.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._watch_ids = count(1)

    # --- files ---------------------------------------------------------------------------------------

    async def read_file(
        self, path: Path, *, max_bytes: int = MAX_READ_BYTES, follow_symlinks: bool = True
    ) -> bytes:
        """Return what is in a regular file.

        Args:
            path: of the file.
            max_bytes: a larger one is not read: FileError with EFBIG.
            follow_symlinks: if not, no part of the path may be a symbolic link, and a file above 8 MiB is not
                read: in blocks, links are followed.
        """
        found = await self.stat(path, follow_symlinks=follow_symlinks)
        if found.size > max_bytes or (found.size > WHOLE_BYTES and not follow_symlinks):
            raise _too_large(path)
        if found.size <= WHOLE_BYTES:
            params = ReadFileParams(path=uri_of(path), follow_symlinks=_unless_default(follow_symlinks))
            data = _decoded((await self._ask("fs/readFile", params, path, ReadFileResult)).data_base64, path)
            if len(data) > max_bytes:
                raise _too_large(path)
            return data
        read = bytearray()
        async with self._client.open_file(path) as file:
            async for block in file:
                read += block
                if len(read) > max_bytes:
                    raise _too_large(path)
        return bytes(read)

    async def write_file(
        self,
        path: Path,
        data: bytes | bytearray | memoryview,
        *,
        follow_symlinks: bool = True,
        unix_mode: int | None = None,
    ) -> None:
        """Make `data` what is in a file; it is made if there is none, else it keeps its mode and its links.

        While it is written, and if that fails, the file has a part of it.

        Args:
            path: of the file.
            data: above 8 MiB it is written in blocks.
            follow_symlinks: as for `read_file`.
            unix_mode: of a file that is made, 0 to 0o777; the daemon's umask is taken off. None for the usual one.

        Raises:
            NotSupported: there is a `unix_mode`, and the server has no `tsuperviseFileModes`.
        """
        require_modes(self._client, unix_mode)
        view = memoryview(data).cast("B")
        if len(view) <= WHOLE_BYTES:
            params = WriteFileParams(
                path=uri_of(path),
                data_base64=encode_base64_str(bytes(view)),
                follow_symlinks=_unless_default(follow_symlinks),
                unix_mode=unix_mode,
            )
            await self._ask("fs/writeFile", params, path, EmptyResult)
        elif not follow_symlinks:
            raise _too_large(path)
        else:
            async with self._client.open_file(path, "replace", unix_mode=unix_mode) as file:
                await file.write(view)

    async def stat(self, path: Path, *, follow_symlinks: bool = True) -> GetMetadataResult:
        """What a path leads to: its kind, size and times. `is_symlink` alone is about the path itself.

        Args:
            path: of whatever it is.
            follow_symlinks: if not, no part of the path may be a symbolic link.
        """
        params = GetMetadataParams(path=uri_of(path), follow_symlinks=_unless_default(follow_symlinks))
        return await self._ask("fs/getMetadata", params, path, GetMetadataResult)

    async def exists(self, path: Path) -> bool:
        """Whether a path leads to anything."""
        try:
            await self.stat(path)
        except FileNotFoundError:
            return False
        return True

    async def canonicalize(self, path: Path) -> str:
        """The path without symbolic links, `.` and `..`; all of it must exist."""
        result = await self._ask(
            "fs/canonicalize", CanonicalizeParams(path=uri_of(path)), path, CanonicalizeResult
        )
        return path_of(result.path)

    async def copy(self, source: Path, destination: Path, *, recursive: bool = False) -> None:
        """Copy at the server: a file or symbolic link, with `recursive` also a directory, modes included.

        Args:
            source: what to copy.
            destination: its new path. A file that is there is overwritten, a directory is merged into.
            recursive: whether it may be a directory.
        """
        params = CopyParams(
            source_path=uri_of(source), destination_path=uri_of(destination), recursive=recursive
        )
        await self._ask("fs/copy", params, source, EmptyResult, destination)

    async def remove(
        self, path: Path, *, recursive: bool = False, missing_ok: bool = False, follow_symlinks: bool = True
    ) -> None:
        """Remove a file, an empty directory, or a symbolic link, which is never followed.

        Args:
            path: what to remove.
            recursive: a directory with all that is in it.
            missing_ok: whether there may be none.
            follow_symlinks: if not, no part of the path may be a symbolic link.
        """
        params = RemoveParams(
            path=uri_of(path),
            recursive=recursive,
            force=missing_ok,
            follow_symlinks=_unless_default(follow_symlinks),
        )
        await self._ask("fs/remove", params, path, EmptyResult)

    # --- directories ---------------------------------------------------------------------------------

    async def make_directory(
        self, path: Path, *, parents: bool = False, follow_symlinks: bool = True
    ) -> None:
        """Make a directory.

        Args:
            path: of the directory.
            parents: with all above it that are missing; then it may also exist already.
            follow_symlinks: if not, no part of the path may be a symbolic link.
        """
        params = CreateDirectoryParams(
            path=uri_of(path), recursive=parents, follow_symlinks=_unless_default(follow_symlinks)
        )
        await self._ask("fs/createDirectory", params, path, EmptyResult)

    async def list_directory(self, path: Path) -> list[RemoteEntry]:
        """What is in a directory, in the order of the names' bytes; 50,000 entries at most.

        What leads nowhere, such as a dangling symbolic link, is left out. A name that is not UTF-8 comes as it
        is from a server that can tell it, and else with U+FFFD in it.
        """
        result = await self._ask(
            "fs/readDirectory", ReadDirectoryParams(path=uri_of(path)), path, ReadDirectoryResult
        )
        entries = [
            RemoteEntry(entry.file_name, entry.is_directory, entry.is_file) for entry in result.entries
        ]
        if any("\ufffd" in entry.name for entry in entries):
            entries = _with_exact_names(entries, await self.walk(path, max_depth=0, follow_symlinks=True))
        return sorted(entries, key=lambda entry: os.fsencode(entry.name))

    async def walk(
        self,
        path: Path,
        *,
        max_depth: int = WALK_DEPTH,
        max_directories: int = WALK_DIRECTORIES,
        max_entries: int = WALK_ENTRIES,
        follow_symlinks: bool = False,
        prune_hidden: bool = False,
    ) -> Walk:
        """List a directory and those below it, in one call and within bounds. No symbolic link to a file is listed.

        Args:
            path: of the directory; anything else has nothing below it.
            max_depth: of directories below it, 0 to 64; 0 for what is in it and no further.
            max_directories: that are looked into, 1 to 10,000.
            max_entries: that are looked at, 1 to 50,000.
            follow_symlinks: whether symbolic links to directories count as directories; each is visited once.
            prune_hidden: do not look into directories whose name begins with a dot.
        """
        options = WalkOptions(
            max_depth=max_depth,
            max_directories=max_directories,
            max_entries=max_entries,
            follow_directory_symlinks=follow_symlinks,
            prune_hidden_directories=prune_hidden,
        )
        result = await self._ask("fs/walk", WalkParams(path=uri_of(path), options=options), path, WalkResult)
        return Walk(
            [WalkedEntry(path_of(entry.path), entry.kind) for entry in result.entries],
            [(path_of(error.path), error.message) for error in result.errors],
            result.truncated,
        )

    async def watch_missing(self, missing: Sequence[Path], *, present: Path | None = None) -> MissingWatch:
        """Watch for paths that do not exist to come into being. A client has one watch: a later one ends it.

        Args:
            missing: up to 64 paths.
            present: a path that exists, watched for a change of it.

        Returns:
            A watch whose `wait` ends when something may have changed. With `is_watching` false from the
            beginning the server could not: one of the paths exists, or lies behind a symbolic link.

        Raises:
            NotSupported: the server has no `fs/watchMissing`.
        """
        self._client.require("fsWatchMissing", "watch for files")
        uris = [uri_of(path) for path in missing]
        present_uri = None if present is None else uri_of(present)
        while True:
            link = await self._client.ready()
            watch_id = next(self._watch_ids)
            watch = link.watches.add(watch_id)
            params = WatchMissingParams(watch_id=watch_id, missing=uris, present=present_uri)
            try:
                result = await self._client.call_on(link, "fs/watchMissing", params)
            except Disconnected:
                continue
            assert isinstance(result, WatchMissingResult), "the codec has seen to it"
            if not result.watching:
                link.watches.fire(watch_id)
            return watch

    # --- what an agent looks for ---------------------------------------------------------------------

    async def read_config(
        self,
        cwd: Path,
        config_paths: Sequence[Sequence[str]],
        requirements_paths: Sequence[Sequence[str]] = (),
    ) -> EnvironmentConfigReadResult:
        """Read parts of the agent's configuration there, as TOML, file by file.

        Args:
            cwd: of whoever asks; it need not exist.
            config_paths: the names of TOML keys, each inside the one before, for each part that is wanted.
            requirements_paths: the same of what administrators require.

        Raises:
            NotSupported: the server has no `environmentConfig/read`.
            ServerRefused: nothing is asked for, or a file is no TOML.
        """
        self._client.require("environmentConfigRead", "read its configuration")
        params = EnvironmentConfigReadParams(
            cwd=uri_of(cwd),
            config_paths=[list(path) for path in config_paths],
            requirements_paths=[list(path) for path in requirements_paths],
        )
        result = await self._client.call("environmentConfig/read", params)
        assert isinstance(result, EnvironmentConfigReadResult), "the codec has seen to it"
        return result

    async def discover_roots(self, roots: Sequence[Path]) -> list[DiscoveredRoot]:
        """Look for plugins and skills below directories; what is wrong with one is told in its place.

        Args:
            roots: 128 at most. They come back in this order, with `id` their place in it.

        Raises:
            ServerRefused: there are more.
        """
        params = DiscoverParams(
            roots=[CapabilityRoot(id=str(place), path=uri_of(root)) for place, root in enumerate(roots)]
        )
        result = await self._client.call("capabilityRoots/discoverV1", params)
        assert isinstance(result, DiscoverResult), "the codec has seen to it"
        return result.roots

    async def _ask(
        self, method: str, params: Message, path: Path, kind: type[R], path2: Path | None = None
    ) -> R:
        try:
            result = await self._client.call(method, params)
        except ServerRefused as refusal:
            if refusal.code == ErrorCode.METHOD_NOT_FOUND:
                raise
            raise file_error(refusal, text_of(path), None if path2 is None else text_of(path2)) from None
        assert isinstance(result, kind), "the codec has seen to it"
        return result


def uri_of(path: Path) -> str:
    """The URI of a path.

    Raises:
        ValueError: it is relative, or has a NUL.
    """
    native = os.fspath(path)
    if isinstance(native, str) and native.startswith("file:"):
        return native
    return file_uri(os.fsencode(native))


def path_of(uri: str) -> str:
    """The path that a server means.

    Raises:
        BadAnswer: it is none.
    """
    try:
        return os.fsdecode(parse_file_uri(uri))
    except PathUriError as error:
        raise BadAnswer(f"the server names something that is no path: {error}") from None


def text_of(path: Path) -> str:
    """The path as text, for people."""
    return os.fsdecode(path)


def _with_exact_names(entries: list[RemoteEntry], walked: Walk) -> list[RemoteEntry]:
    """Entries with the names that a walk of the same directory tells exactly, in place of lossy ones."""
    exact = [
        RemoteEntry(os.path.basename(entry.path), entry.kind == "directory", entry.kind == "file")
        for entry in walked.entries
    ]
    inexact = {_lossy(entry.name): entry for entry in exact if _lossy(entry.name) != entry.name}
    # Two names may look the same with their losses: then all of these come from the walk.
    kept = [entry for entry in entries if entry.name not in inexact]
    return kept + [entry for entry in exact if _lossy(entry.name) in inexact and entry not in kept]


def _lossy(name: str) -> str:
    return os.fsencode(name).decode(errors="replace")


def _unless_default(follow_symlinks: bool) -> bool | None:
    """Older servers do not know the member; they take no offence at null."""
    return None if follow_symlinks else False


def _decoded(text: str, path: Path) -> bytes:
    try:
        return decode_base64(text)
    except ValueError as error:
        raise BadAnswer(f"what is in {text_of(path)!r}: {error}") from None


def _too_large(path: Path) -> FileError:
    refusal = ServerRefused(
        "fs/readFile", ErrorCode.INVALID_REQUEST, f"{os.strerror(errno.EFBIG)} (os error 27)"
    )
    return file_error(refusal, text_of(path))
