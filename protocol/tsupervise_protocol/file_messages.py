"""The messages of `fs/*`, each a frozen type. A path is a file URI, see `path_uri`."""

from typing import Annotated, Literal

from msgspec import Meta, field

from .messages import U64, Message, SandboxRequest

MAX_BLOCK_BYTES = 1 << 20
"""The most that one block of an open file carries, in bytes before base64; the reference takes as much."""

MAX_HANDLE_ID_BYTES = 32
"""How long the name of an open file may be, in bytes of UTF-8."""


UnixMode = Annotated[int, Meta(ge=0, le=0o777)]
"""Who may read, write and execute a file, as of chmod."""


class FileParams(Message, frozen=True):
    """What every request that names a file has: the confinement that it is to run under."""

    sandbox: SandboxRequest | None = None


class ReadFileParams(FileParams, frozen=True, kw_only=True):
    path: str
    follow_symlinks: bool | None = None


class ReadFileResult(Message, frozen=True):
    data_base64: str


class WriteFileParams(FileParams, frozen=True, kw_only=True):
    path: str
    data_base64: str
    follow_symlinks: bool | None = None
    unix_mode: UnixMode | None = None
    """Our own: of a file that is made, less the umask; null is 0o666."""


class CreateDirectoryParams(FileParams, frozen=True, kw_only=True):
    path: str
    recursive: bool | None = None
    """Null is true: with all folders above that are missing."""
    follow_symlinks: bool | None = None


class GetMetadataParams(FileParams, frozen=True, kw_only=True):
    path: str
    follow_symlinks: bool | None = None


class GetMetadataResult(Message, frozen=True):
    """What a path leads to; `is_symlink` alone is about the path itself."""

    is_directory: bool
    is_file: bool
    is_symlink: bool
    size: int
    """bytes"""
    created_at_ms: int
    """Since 1970; 0 if it cannot be told."""
    modified_at_ms: int
    unix_mode: UnixMode | None = None
    """Our own: of what the path leads to; None if that is not told."""


class CanonicalizeParams(FileParams, frozen=True, kw_only=True):
    path: str


class CanonicalizeResult(Message, frozen=True):
    path: str


class ReadDirectoryParams(FileParams, frozen=True, kw_only=True):
    path: str


class DirectoryEntry(Message, frozen=True):
    file_name: str
    """What is no UTF-8 in it stands as U+FFFD."""
    is_directory: bool
    is_file: bool


class ReadDirectoryResult(Message, frozen=True):
    entries: list[DirectoryEntry]


class RemoveParams(FileParams, frozen=True, kw_only=True):
    path: str
    recursive: bool | None = None
    """Null is true."""
    force: bool | None = None
    """Whether a path that does not exist is a success; null is true."""
    follow_symlinks: bool | None = None


class CopyParams(FileParams, frozen=True, kw_only=True):
    source_path: str
    destination_path: str
    recursive: bool


# --- open files --------------------------------------------------------------------------------------

OpenMode = Literal["read", "replace", "update"]
"""`update` is our own: as `replace`, and what is in the file stays."""


class OpenParams(FileParams, frozen=True, kw_only=True):
    handle_id: str
    path: str
    mode: OpenMode = "read"
    unix_mode: UnixMode | None = None
    """Our own: as of `WriteFileParams`."""


class OpenResult(Message, frozen=True):
    handle_id: str


class ReadBlockParams(Message, frozen=True):
    handle_id: str
    offset: U64
    len: U64


class ReadBlockResult(Message, frozen=True):
    chunk: str
    """base64"""
    eof: bool
    """Whether fewer bytes came than were asked for."""


class WriteBlockParams(Message, frozen=True):
    handle_id: str
    offset: U64
    chunk: str
    """base64"""


class CloseFileParams(Message, frozen=True):
    handle_id: str


# --- many files --------------------------------------------------------------------------------------


class WalkOptions(Message, frozen=True):
    max_depth: U64
    max_directories: U64
    max_entries: U64
    follow_directory_symlinks: bool
    prune_hidden_directories: bool = False


class WalkParams(FileParams, frozen=True, kw_only=True):
    path: str
    options: WalkOptions


class WalkEntry(Message, frozen=True):
    path: str
    kind: Literal["directory", "file"]


class WalkError(Message, frozen=True):
    path: str
    message: str


class WalkResult(Message, frozen=True):
    entries: list[WalkEntry] = field(default_factory=list[WalkEntry])
    errors: list[WalkError] = field(default_factory=list[WalkError])
    truncated: bool = False


class WatchMissingParams(Message, frozen=True):
    watch_id: U64
    """Greater than any before on the connection."""
    missing: list[str]
    present: str | None = None


class WatchMissingResult(Message, frozen=True):
    watching: bool


class MissingChangedNotification(Message, frozen=True):
    watch_id: int
