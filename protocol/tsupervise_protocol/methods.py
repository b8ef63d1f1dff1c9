"""The two tables of the protocol: every request with its params and result, every notification with its params."""

from typing import NamedTuple

from .environment_messages import (
    DiscoverParams,
    DiscoverResult,
    EnvironmentConfigReadParams,
    EnvironmentConfigReadResult,
)
from .file_messages import (
    CanonicalizeParams,
    CanonicalizeResult,
    CloseFileParams,
    CopyParams,
    CreateDirectoryParams,
    GetMetadataParams,
    GetMetadataResult,
    MissingChangedNotification,
    OpenParams,
    OpenResult,
    ReadBlockParams,
    ReadBlockResult,
    ReadDirectoryParams,
    ReadDirectoryResult,
    ReadFileParams,
    ReadFileResult,
    RemoveParams,
    WalkParams,
    WalkResult,
    WatchMissingParams,
    WatchMissingResult,
    WriteBlockParams,
    WriteFileParams,
)
from .http_messages import BodyDeltaNotification, HttpRequestParams, HttpResponse
from .messages import (
    ClosedNotification,
    CloseStdinParams,
    EmptyResult,
    EnvironmentInfo,
    EnvironmentStatusResult,
    ExitedNotification,
    InitializeParams,
    InitializeResult,
    ListResult,
    Message,
    NoParams,
    OperatorCloseStdinParams,
    OperatorEntry,
    OperatorListResult,
    OperatorReadParams,
    OperatorResizeParams,
    OperatorSignalParams,
    OperatorStatusResult,
    OperatorTerminateParams,
    OperatorWaitParams,
    OperatorWriteParams,
    OutputNotification,
    ReadParams,
    ReadResult,
    ResizeParams,
    SessionEndParams,
    SessionKeepParams,
    SignalParams,
    StartParams,
    StartResult,
    TerminateParams,
    TerminateResult,
    WriteParams,
    WriteResult,
)


class Method(NamedTuple):
    """A row of `METHODS`.

    family: the words by which handshake errors name the method's kind.
    scalar_members: for a method whose params are all required and all scalar, how many members an
        ordinary request has, envelope included. It makes a proof possible, see `codec`.
    """

    params: type[Message]
    result: type[Message]
    family: str
    scalar_members: int | None = None


METHODS: dict[str, Method] = {
    "initialize": Method(InitializeParams, InitializeResult, "exec"),
    "environment/info": Method(NoParams, EnvironmentInfo, "environment info"),
    "environment/status": Method(NoParams, EnvironmentStatusResult, "environment status"),
    "environmentConfig/read": Method(
        EnvironmentConfigReadParams, EnvironmentConfigReadResult, "environment config"
    ),
    "capabilityRoots/discoverV1": Method(DiscoverParams, DiscoverResult, "capability discovery"),
    "process/start": Method(StartParams, StartResult, "exec"),
    "process/read": Method(ReadParams, ReadResult, "exec"),
    "process/write": Method(WriteParams, WriteResult, "exec", scalar_members=6),
    "process/signal": Method(SignalParams, EmptyResult, "exec", scalar_members=5),
    "process/terminate": Method(TerminateParams, TerminateResult, "exec", scalar_members=4),
    "process/resize": Method(ResizeParams, EmptyResult, "exec", scalar_members=6),
    "process/closeStdin": Method(CloseStdinParams, WriteResult, "exec", scalar_members=4),
    "process/list": Method(NoParams, ListResult, "exec"),
    "fs/open": Method(OpenParams, OpenResult, "filesystem"),
    "fs/readBlock": Method(ReadBlockParams, ReadBlockResult, "filesystem", scalar_members=6),
    "fs/writeBlock": Method(WriteBlockParams, EmptyResult, "filesystem", scalar_members=6),
    "fs/close": Method(CloseFileParams, EmptyResult, "filesystem", scalar_members=4),
    "fs/walk": Method(WalkParams, WalkResult, "filesystem"),
    "fs/watchMissing": Method(WatchMissingParams, WatchMissingResult, "filesystem"),
    "http/request": Method(HttpRequestParams, HttpResponse, "http"),
    "session/keep": Method(SessionKeepParams, EmptyResult, "session"),
    "session/end": Method(SessionEndParams, EmptyResult, "session"),
    "operator/status": Method(NoParams, OperatorStatusResult, "operator"),
    "operator/list": Method(NoParams, OperatorListResult, "operator"),
    "operator/wait": Method(OperatorWaitParams, OperatorEntry, "operator"),
    "operator/read": Method(OperatorReadParams, ReadResult, "operator"),
    "operator/write": Method(OperatorWriteParams, WriteResult, "operator"),
    "operator/signal": Method(OperatorSignalParams, EmptyResult, "operator"),
    "operator/terminate": Method(OperatorTerminateParams, TerminateResult, "operator"),
    "operator/resize": Method(OperatorResizeParams, EmptyResult, "operator"),
    "operator/closeStdin": Method(OperatorCloseStdinParams, WriteResult, "operator"),
    "fs/readFile": Method(ReadFileParams, ReadFileResult, "filesystem"),
    "fs/writeFile": Method(WriteFileParams, EmptyResult, "filesystem"),
    "fs/createDirectory": Method(CreateDirectoryParams, EmptyResult, "filesystem"),
    "fs/getMetadata": Method(GetMetadataParams, GetMetadataResult, "filesystem"),
    "fs/canonicalize": Method(CanonicalizeParams, CanonicalizeResult, "filesystem"),
    "fs/readDirectory": Method(ReadDirectoryParams, ReadDirectoryResult, "filesystem"),
    "fs/remove": Method(RemoveParams, EmptyResult, "filesystem"),
    "fs/copy": Method(CopyParams, EmptyResult, "filesystem"),
}

NOTIFICATIONS: dict[str, type[Message]] = {
    "process/output": OutputNotification,
    "process/exited": ExitedNotification,
    "process/closed": ClosedNotification,
    "fs/missingChanged": MissingChangedNotification,
    "http/request/bodyDelta": BodyDeltaNotification,
}
