"""The messages of the handshake, of processes and of sessions, each a frozen type.

Members are camelCase on the wire and snake_case here. Unknown members are ignored by both sides, so a
new member is always added with a default. `UNSET` means that the member is left out; `None` is null.
"""

import math
from typing import Annotated, Any, Literal

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
    provider_id: str | None = None
    """What a client may remember things of a server under: the same for all servers of which they hold."""
    prepend_path_dirs: list[str] | UnsetType = UNSET
    """file URIs of what a client is to put in front of PATH"""
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


LIMIT_RANGES: dict[str, tuple[float, float]] = {
    "memoryBytes": (1 << 20, (1 << 63) - 1),
    "pids": (1, 1 << 22),
    "cpuQuota": (0.01, 8192),
    "nofile": (3, 1 << 30),
    "coreBytes": (0, (1 << 63) - 1),
    "nice": (-20, 19),
    "umask": (0, 0o777),
}
"""Each member of `Limits`, with its lowest and its highest value: those that Linux takes. Below 1 MiB of memory no
program starts, 1 ms in each 100 ms is the least share of a CPU that can be enforced, three files are open."""


class Limits(Message, frozen=True):
    """Our own: bounds on a process; None is no bound but the daemon's own.

    Raises:
        ValueError: a value is out of its range, see `LIMIT_RANGES`.
    """

    memory_bytes: int | None = None
    """Of the process and all that comes of it, together; swap included."""
    pids: int | None = None
    """Processes and threads at a time, all that comes of the process included."""
    cpu_quota: float | None = None
    """CPU time per time, of all together: 0.5 is half of one CPU, 2 is two of them."""
    nofile: int | None = None
    """Open files of one process."""
    core_bytes: int | None = None
    """Size of a core file."""
    nice: int | None = None
    umask: int | None = None

    def __post_init__(self) -> None:
        values = (
            *(self.memory_bytes, self.pids, self.cpu_quota),
            *(self.nofile, self.core_bytes, self.nice, self.umask),
        )
        for (name, (low, high)), value in zip(LIMIT_RANGES.items(), values, strict=True):
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"{name} must be from {low} to {high}, got {value}")


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
    timeout_ms: U64 | None = None
    """Our own: how long after its start the process, and all that comes of it, is killed; at least 1."""
    limits: Limits | None = None

    def __post_init__(self) -> None:
        if self.timeout_ms is not None and not 1 <= self.timeout_ms < 1 << 64:
            raise ValueError(f"timeoutMs must be at least 1 and below 2^64, got {self.timeout_ms}")


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


ExitReason = Literal["exit", "signal", "timeout", "oom", "terminated"]
"""Our own: why a process ended. `exit`: of itself; `signal`: a signal that is none of the following; `timeout`: its
`timeoutMs` was over; `terminated`: by a terminate, or the end of its session; `oom`: it did not succeed, and the
system had killed it, or something that came of it, because its `memoryBytes` were used up."""


class Usage(Message, frozen=True):
    """Our own: what a process has used, with those of its descendants that were waited for, as of its exit."""

    user_ms: int
    system_ms: int
    max_rss_bytes: int | None = None
    """The most memory that one of them had resident. Null if that was less than what the daemon has had itself:
    the system starts to count there."""


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
    more: bool | UnsetType = UNSET
    """Our own: true if retained chunks follow those of this answer, else left out."""
    last_seq: int | UnsetType = UNSET
    """Our own: the highest sequence number in use."""
    exit_seq: int | UnsetType = UNSET
    """Our own: the number of the exit, left out before it."""
    closed_seq: int | UnsetType = UNSET
    """Our own: the number of the close, left out before it."""
    usage: Usage | UnsetType = UNSET
    """Our own: left out while the process runs, or if it cannot be told."""
    reason: ExitReason | UnsetType = UNSET
    """Our own: as `usage`."""


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
    spilled_bytes: int = 0
    """How much of what is retained lies in a file."""
    output_bytes: int = 0
    metadata: dict[str, Any] | None = None
    usage: Usage | None = None
    reason: ExitReason | None = None


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
    spilled_bytes: int = 0
    """What all spill files take."""
    spill_total_bytes: int = 0
    """The bound on it; 0 where nothing is spilled."""


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
    usage: Usage | UnsetType = UNSET
    """Our own: left out if it cannot be told."""
    reason: ExitReason | UnsetType = UNSET
    """Our own: as `usage`."""


class ClosedNotification(Message, frozen=True):
    process_id: str
    seq: int


# --- what a server announces, and errors ---------------------------------------------------------------

OWN_CAPABILITIES = (
    "tsuperviseResize",
    "tsuperviseCloseStdin",
    "tsuperviseList",
    "tsuperviseSignals",
    "tsuperviseSessions",
    "tsuperviseOperator",
    "tsuperviseLimits",
    "tsuperviseFileUpdate",
    "tsuperviseFileModes",
)
"""The names under which a server announces the methods and members that are our own."""

LIMIT_CAPABILITIES = {name: f"tsuperviseLimit{name[0].upper()}{name[1:]}" for name in LIMIT_RANGES}
"""The name under which a server announces that it can enforce a member of `Limits`."""


class ErrorBody(Struct, frozen=True, gc=False):
    code: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
    message: str
    data: Raw | UnsetType = UNSET
