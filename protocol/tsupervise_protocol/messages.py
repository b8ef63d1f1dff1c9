"""Every message of the protocol as a frozen type, and the two tables that name them.

Members are camelCase on the wire and snake_case here. Unknown members are ignored by both sides, so a
new member is always added with a default. `UNSET` means that the member is left out; `None` is null.
"""

from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

U64 = Annotated[int, Meta(ge=0)]
"""An unsigned integer of 64 bits. msgspec bounds end at 2^63-1: users check the upper one themselves."""

PtyDimension = Annotated[int, Meta(ge=1, le=65535)]
"""Rows or columns of a terminal; the kernel keeps 16 bits."""


class Message(Struct, frozen=True, rename="camel", kw_only=True, gc=False):
    """Base of everything that stands in `params` or `result`."""


# --- the handshake and the environment ---------------------------------------------------------------


class InitializeParams(Message, frozen=True):
    client_name: str
    resume_session_id: str | None = None


class ShellInfo(Message, frozen=True):
    name: str
    """What kind of shell: `bash`, `zsh`, `sh`, `powershell`."""
    path: str


class EnvironmentInfo(Message, frozen=True):
    """Where the processes run. Paths that are URIs say so in their name or comment."""

    shell: ShellInfo
    cwd: str | None = None
    """file URI"""
    user_home_dir: str | None = None
    """file URI"""
    platform_os: str | None = None
    executor_version: str | None = None
    prepend_path_dirs: list[str] = msgspec.field(default_factory=list[str])
    """file URIs"""
    temporary_directories: list[str] = msgspec.field(default_factory=list[str])
    """file URIs"""
    temp_dir: str | None = None
    """file URI"""
    capabilities: dict[str, bool] = msgspec.field(default_factory=dict[str, bool])
    """What the server can do; a missing name means false."""
    containment: str | None = None
    """How the descendants of a process are found when it ends: `cgroup`, `subreaper` or `tag`."""


class InitializeResult(Message, frozen=True):
    session_id: str
    environment_info: EnvironmentInfo | None = None


class NoParams(Message, frozen=True, forbid_unknown_fields=True):
    """The params of a method that takes none: null, left out, or an empty object."""


class EnvironmentStatusResult(Message, frozen=True):
    status: str


# --- starting a process ------------------------------------------------------------------------------


class EnvPolicy(Message, frozen=True):
    """How the environment of a child is made from the server's. All five members are required."""

    inherit: Literal["all", "core", "none"]
    ignore_default_excludes: bool
    exclude: list[str]
    set: dict[str, str]
    include_only: list[str]


class PtySize(Message, frozen=True):
    rows: PtyDimension
    cols: PtyDimension


class SandboxPermissions(Message, frozen=True):
    type: str


class SandboxRequest(Message, frozen=True):
    """A request for confinement. Only its kind is read: see `asks_for_nothing`."""

    type: str | UnsetType = UNSET
    permissions: SandboxPermissions | UnsetType = UNSET

    @property
    def asks_for_nothing(self) -> bool:
        """Whether running without any sandbox is exactly what was asked for."""
        kinds = {
            self.type,
            self.permissions.type if isinstance(self.permissions, SandboxPermissions) else UNSET,
        }
        return kinds - {UNSET} == {"disabled"}


class StartParams(Message, frozen=True):
    process_id: str
    argv: list[str]
    cwd: str
    """file URI"""
    env: dict[str, str]
    tty: bool
    env_policy: EnvPolicy | None = None
    pipe_stdin: bool = False
    arg0: str | None = None
    metadata: dict[str, Any] | None = None
    """Labels of the caller's own, kept and listed. Two of them, `threadId` (a UUID) and `toolCallId`, are told to
    the child in its environment, as CODEX_THREAD_ID and CODEX_TOOL_CALL_ID."""
    sandbox: SandboxRequest | None = None
    enforce_managed_network: bool = False
    managed_network: dict[str, Any] | None = None
    network_proxy: dict[str, Any] | None = None
    shell_snapshot: dict[str, Any] | None = None
    size: PtySize | None = None
    """Our own: the size of the terminal, 24 rows x 80 columns if null."""


class StartResult(Message, frozen=True):
    process_id: str
    sandbox_type: str | UnsetType = UNSET
    uid: str | UnsetType = UNSET
    """Our own: the daemon-unique name of this process."""


# --- a process that runs -----------------------------------------------------------------------------

Stream = Literal["stdout", "stderr", "pty"]


class ReadRange(Message, frozen=True):
    """Which part of a process's output is asked for."""

    after_seq: U64 | None = None
    max_bytes: U64 | None = None
    wait_ms: U64 | None = None

    def __post_init__(self) -> None:
        for name, value in (
            ("afterSeq", self.after_seq),
            ("maxBytes", self.max_bytes),
            ("waitMs", self.wait_ms),
        ):
            if value is not None and value >= 1 << 64:
                raise ValueError(f"{name} must be below 2^64, got {value}")


class ReadParams(ReadRange, frozen=True, kw_only=True):
    process_id: str


class OutputChunk(Message, frozen=True):
    seq: int
    stream: Stream
    chunk: str
    """base64"""


class ReadResult(Message, frozen=True):
    chunks: list[OutputChunk]
    next_seq: int
    exited: bool
    exit_code: int | None
    closed: bool
    failure: str | None = None
    sandbox_denied: bool = False
    first_seq: int | UnsetType = UNSET
    """Our own: the lowest sequence number that is still retained (the next one if nothing is)."""
    truncated: bool | UnsetType = UNSET
    """Our own: whether output after `afterSeq` has been dropped and is not in this answer."""
    term_signal: int | UnsetType = UNSET
    """Our own: the signal that ended the process, left out if none did."""
    exit_seq: int | UnsetType = UNSET
    """Our own: the number of the exit, left out while the process runs."""
    closed_seq: int | UnsetType = UNSET
    """Our own: the number of the close, left out until then."""


class WriteParams(Message, frozen=True):
    process_id: str
    chunk: str
    """base64"""
    write_id: str


WriteStatus = Literal["accepted", "unknownProcess", "stdinClosed", "starting"]


class WriteResult(Message, frozen=True):
    status: WriteStatus


SignalName = Literal[
    "interrupt",
    # The rest are our own.
    "terminate",
    "kill",
    "hangup",
    "quit",
    "usr1",
    "usr2",
    "stop",
    "continue",
    "winch",
]


class SignalParams(Message, frozen=True):
    process_id: str
    signal: SignalName


class EmptyResult(Message, frozen=True):
    pass


class TerminateParams(Message, frozen=True):
    process_id: str


class TerminateResult(Message, frozen=True):
    running: bool


class ResizeParams(Message, frozen=True):
    """Our own method `process/resize`."""

    process_id: str
    rows: PtyDimension
    cols: PtyDimension


class CloseStdinParams(Message, frozen=True):
    """Our own method `process/closeStdin`."""

    process_id: str


ProcessState = Literal["starting", "running", "exited", "closed"]


class ProcessEntry(Message, frozen=True):
    """One process of `process/list`."""

    process_id: str
    uid: str
    state: ProcessState
    argv: list[str]
    cwd: str
    """file URI"""
    tty: bool
    started_at_ms: int
    """Milliseconds since the Unix epoch."""
    pid: int | None = None
    exit_code: int | None = None
    term_signal: int | None = None
    last_seq: int = 0
    retained_bytes: int = 0
    output_bytes: int = 0
    metadata: dict[str, Any] | None = None


class ListResult(Message, frozen=True):
    processes: list[ProcessEntry]


# --- our own: sessions ---------------------------------------------------------------------------------


class SessionKeepParams(Message, frozen=True):
    """`session/keep`: whether the own session outlives its connection until it is ended."""

    kept: bool


class SessionEndParams(Message, frozen=True):
    """`session/end`: the own session, or (for the daemon's own user) another one."""

    session_id: str | None = None


# --- our own: every session's processes, for the user that the daemon runs as ----------------------------


class OperatorEntry(ProcessEntry, frozen=True, kw_only=True):
    """One process of any session."""

    session_id: str
    session_kept: bool = False
    """Whether its session lives until it is ended, connection or not."""
    session_attached: bool = False
    """Whether a connection holds its session."""
    client_name: str = ""
    """What the client that opened the session, or resumed it last, calls itself."""


class OperatorListResult(Message, frozen=True):
    processes: list[OperatorEntry]


class OperatorStatusResult(Message, frozen=True):
    """The daemon as a whole."""

    version: str
    pid: int
    started_at_ms: int
    """Milliseconds since the Unix epoch."""
    listen: str | None
    """The URL that it listens at; null without a listener."""
    sessions: int
    sessions_attached: int
    sessions_kept: int
    processes: dict[ProcessState, int]
    """How many are in which state."""
    retained_bytes: int
    """Output retained for all processes, with what its bookkeeping takes."""
    retained_total_bytes: int
    """The bound on it."""
    containment: str
    """As in `EnvironmentInfo`."""


class OperatorReadParams(ReadRange, frozen=True, kw_only=True):
    uid: str


class OperatorWaitParams(Message, frozen=True):
    """`operator/wait`: answers when the process has got that far, or when the time is over."""

    uid: str
    until: Literal["exited", "closed"] = "exited"
    wait_ms: U64 = 0

    def __post_init__(self) -> None:
        if self.wait_ms >= 1 << 64:
            raise ValueError(f"waitMs must be below 2^64, got {self.wait_ms}")


class OperatorWriteParams(Message, frozen=True):
    uid: str
    chunk: str
    """base64"""
    write_id: str
    """Shared by all who write to the process: make it so that nobody else comes by the same."""


class OperatorSignalParams(Message, frozen=True):
    uid: str
    signal: SignalName


class OperatorTerminateParams(Message, frozen=True):
    uid: str


class OperatorResizeParams(Message, frozen=True):
    uid: str
    rows: PtyDimension
    cols: PtyDimension


class OperatorCloseStdinParams(Message, frozen=True):
    uid: str


# --- notifications -----------------------------------------------------------------------------------


class OutputNotification(Message, frozen=True):
    process_id: str
    seq: int
    stream: Stream
    chunk: str
    """base64"""


class ExitedNotification(Message, frozen=True):
    process_id: str
    seq: int
    exit_code: int
    sandbox_denied: bool | UnsetType = UNSET
    term_signal: int | UnsetType = UNSET
    """Our own: the signal that ended the process, left out if none did."""


class ClosedNotification(Message, frozen=True):
    process_id: str
    seq: int


# --- the tables --------------------------------------------------------------------------------------


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
    "process/start": Method(StartParams, StartResult, "exec"),
    "process/read": Method(ReadParams, ReadResult, "exec"),
    "process/write": Method(WriteParams, WriteResult, "exec", scalar_members=6),
    "process/signal": Method(SignalParams, EmptyResult, "exec", scalar_members=5),
    "process/terminate": Method(TerminateParams, TerminateResult, "exec", scalar_members=4),
    "process/resize": Method(ResizeParams, EmptyResult, "exec", scalar_members=6),
    "process/closeStdin": Method(CloseStdinParams, WriteResult, "exec", scalar_members=4),
    "process/list": Method(NoParams, ListResult, "exec"),
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
}

NOTIFICATIONS: dict[str, type[Message]] = {
    "process/output": OutputNotification,
    "process/exited": ExitedNotification,
    "process/closed": ClosedNotification,
}

OWN_CAPABILITIES = (
    "tsuperviseResize",
    "tsuperviseCloseStdin",
    "tsuperviseList",
    "tsuperviseSignals",
    "tsuperviseSessions",
    "tsuperviseOperator",
)
"""The names under which a server announces the methods that are our own."""


class ErrorBody(Struct, frozen=True, gc=False):
    code: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
    message: str
    data: Raw | UnsetType = UNSET
