"""Starting a child: what it runs, with which pipes or terminal, and what we keep of it.

The spawn itself is a call that returns at once (`_posix_spawn`), so a start has no await and needs no
rollback half way: either there is a child or there is an error. Nothing else starts a child.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import resource
import signal
import struct
import termios
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial

import trio

from tsupervise_protocol.errors import ErrorCode, RpcError
from tsupervise_protocol.messages import Stream, Usage

from ._containment import Enclosure
from ._fd import Fd
from ._fork_spawn import LACKS, fork_spawn
from ._posix_spawn import AVAILABLE, SpawnPlan, posix_spawn
from ._usage import usage_of

log = logging.getLogger(__name__)

DEFAULT_ROWS, DEFAULT_COLS = 24, 80
"""The size of a terminal when its client names none, as the reference has it."""


@dataclass(frozen=True, slots=True)
class SpawnRequest:
    """What to start.

    Args:
        argv: program and arguments; at least one.
        cwd: working directory, an absolute path.
        env: the child's whole environment.
        arg0: the name that the program sees as its own, if not argv[0].
        tty: whether to give it a terminal; else pipes.
        pipe_stdin: without a terminal, whether stdin is a pipe; else it is /dev/null.
        size: rows and columns of the terminal.
    """

    argv: Sequence[str]
    cwd: bytes
    env: Mapping[str, str]
    arg0: str | None = None
    tty: bool = False
    pipe_stdin: bool = False
    size: tuple[int, int] = (DEFAULT_ROWS, DEFAULT_COLS)


class ProcessGroup:
    """The process group that a child leads. Its number is certain to be its own while the child is unreaped."""

    __slots__ = ("_leader_reaped", "pgid")

    def __init__(self, pgid: int) -> None:
        self.pgid = pgid
        self._leader_reaped = False

    def signal(self, number: int) -> None:
        """Send a signal to every member; nothing happens once the child has been reaped.

        Raises:
            PermissionError: there are members and none may be signalled.
        """
        if not self._leader_reaped:
            with suppress(ProcessLookupError):
                os.killpg(self.pgid, number)

    def kill(self) -> None:
        """SIGKILL to every member; what the system does not allow is logged and left."""
        try:
            self.signal(signal.SIGKILL)
        except PermissionError:
            log.warning("process group %d may not be killed: it runs as another user", self.pgid)

    def leader_was_reaped(self) -> None:
        """From here on the number may be a stranger's."""
        self._leader_reaped = True


@dataclass(slots=True)
class Child:
    """A started child and the descriptors that lead to it. Owned by its process, closed by `close`."""

    pid: int
    pidfd: int
    group: ProcessGroup
    enclosure: Enclosure
    outputs: list[tuple[Stream, Fd]]
    stdin: Fd | None
    master: Fd | None = None
    """The terminal, where there is one; the same as the fd in `outputs`."""
    held_slave: int = -1
    """Our own hold on the terminal's other side, so that a child that closes its own and opens /dev/tty later
    loses nothing. Released when the child is dead."""
    rss_floor: int = 0
    """What the kernel counts as the child's memory at least, in bytes, see `usage_of`."""
    _reaped: bool = field(default=False)
    _killed: bool = field(default=False)

    async def wait_exit(self) -> None:
        """Wait until the child is dead and can be asked how it ended. It stays unreaped, so that its number
        stays its own.

        Whoever traces it, such as a debugger, is told first. For a child that was killed here nobody waits
        longer than KILL_GRACE_S for that.
        """
        await trio.lowlevel.wait_readable(self.pidfd)
        give_up_at = trio.current_time() + KILL_GRACE_S
        while not self.has_exited():
            if self._killed:
                await self.enclosure.sweep()  # a tracer that is one of its own goes with it
                if trio.current_time() > give_up_at:
                    break
            await trio.sleep(TRACED_S)

    def has_exited(self) -> bool:
        """Whether the child is dead already, without waiting."""
        try:
            return os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
        except ChildProcessError:
            return True

    def exit_status(self) -> tuple[int, int | None]:
        """The exit code, or 128 + signal, and the signal if one ended it. Call after `wait_exit`.

        The code is -1 if somebody else has reaped the child, such as a host program that ignores SIGCHLD.
        One that was killed, and whose end its tracer does not let be known, has died of that.
        """
        try:
            info = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        except ChildProcessError:
            self._give_up_number()
            return -1, None
        if info is None:
            return 128 + signal.SIGKILL, signal.SIGKILL
        if info.si_code == os.CLD_EXITED:
            return info.si_status, None
        return 128 + info.si_status, info.si_status

    def usage(self) -> Usage | None:
        """What the child has used, None if that cannot be told. Call after `wait_exit`, before `reap`."""
        return usage_of(self.pidfd, self.rss_floor)

    @property
    def oom_kills(self) -> int:
        """How many the kernel has killed, of all that is enclosed, because the memory limit was reached."""
        restraint = self.enclosure.restraint
        return 0 if restraint is None else restraint.oom_kills

    def reap(self) -> None:
        """Take the dead child away. Call after `wait_exit`; safe to call twice."""
        if not self._reaped:
            self._reaped = True
            with suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
            self._give_up_number()

    def _give_up_number(self) -> None:
        # Output may still come for long, and meanwhile the number may become a stranger's, or a strangers' group's.
        self.group.leader_was_reaped()
        self.enclosure.leader_was_reaped()

    def kill(self) -> None:
        """SIGKILL to all that is enclosed, as far as it is found at once, and to the process group."""
        self._killed = True
        self.enclosure.kill()
        self.group.kill()
        self.enclosure.kills["group"] += 1

    def foreground_group(self) -> int:
        """The group that a key such as ^C would reach: a terminal's foreground group, else the child's own."""
        if self.master is None or self.master.closed:
            return self.group.pgid
        try:
            foreground = os.tcgetpgrp(self.master.fileno())
        except OSError:
            return self.group.pgid
        if foreground <= 0:
            return self.group.pgid
        # The terminal remembers a number. If a process has it that is not of our session, then the group is
        # dead and the number is somebody else's; if none has it, the leader is gone and members may live.
        try:
            is_ours = os.getsid(foreground) == self.pid
        except ProcessLookupError:
            is_ours = True
        return foreground if is_ours else self.group.pgid

    def resize(self, rows: int, cols: int) -> None:
        """Set the size of the terminal; its foreground group gets SIGWINCH."""
        assert self.master is not None, "only a terminal has a size"
        _set_size(self.master.fileno(), rows, cols)

    def release_slave(self) -> None:
        """Let go of the terminal's other side, so that its end can be seen."""
        if self.held_slave != -1:
            fd, self.held_slave = self.held_slave, -1
            os.close(fd)

    def close(self) -> None:
        """Close every descriptor, and give up the enclosure. Safe to call twice."""
        self.enclosure.dispose()
        self.release_slave()
        for _, output in self.outputs:
            output.close()
        if self.stdin is not None:
            self.stdin.close()
        if self.pidfd != -1:
            fd, self.pidfd = self.pidfd, -1
            trio.lowlevel.notify_closing(fd)
            os.close(fd)

    async def destroy(self) -> None:
        """Kill all that is enclosed, reap the child, close everything.

        It takes KILL_GRACE_S and SWEEP_S at most, cancelled or not.
        """
        self.kill()
        await self.enclosure.sweep()
        with trio.move_on_after(KILL_GRACE_S, shield=True) as grace:
            await self.wait_exit()
        if grace.cancelled_caught:
            log.error("process %d does not die of SIGKILL", self.pid)
        if not grace.cancelled_caught:
            self.reap()
        self.close()


KILL_GRACE_S = 5.0
"""How long a killed child may take to die before we stop waiting for it. Only a child in uninterruptible
sleep takes longer than milliseconds."""

TRACED_S = 0.05
"""Seconds between looks at a dead child whose tracer, such as a debugger, has not taken note of its end."""

Spawner = Callable[[SpawnRequest, Enclosure], "Child | Awaitable[Child]"]
"""Starts a child in an enclosure, at once or after a wait. An awaited one that is cancelled leaves nothing
behind."""


def open_low_descriptors() -> None:
    """Make sure that 0, 1 and 2 are open, once in a daemon's life: a pipe of ours that got such a number
    would be overwritten in the child before it is used."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def what_is_lacking() -> str | None:
    """What this system's way of starting children cannot do, None if nothing.

    Raises:
        OSError: the system is too old, or another one: no child can be watched.
    """
    if not hasattr(os, "pidfd_open"):
        raise OSError("tsupervise needs Linux 5.4 or newer")
    return None if AVAILABLE else LACKS


def spawn(
    request: SpawnRequest,
    enclosure: Enclosure,
    start: Callable[[SpawnPlan], int] = posix_spawn if AVAILABLE else fork_spawn,
) -> Child:
    """Start a child, with pipes or a terminal.

    Args:
        request: what to start.
        enclosure: what holds it and all that comes of it; the child's from now on, if there is one.
        start: the system's way of starting a child; it returns the pid or raises OSError.

    Raises:
        RpcError: INTERNAL_ERROR, with the text of the operating system, `(os error N)` and what to do;
            INVALID_PARAMS, the limits of the enclosure cannot be enforced.
    """
    if enclosure.restraint is not None:
        start = partial(enclosure.restraint.start, start, enclosure.is_leader)
    try:
        argv = [_encode(request.argv[0] if request.arg0 is None else request.arg0)]
        argv += [_encode(argument) for argument in request.argv[1:]]
        env = [_encode(name) + b"=" + _encode(value) for name, value in request.env.items()]
        program = _encode(request.argv[0])
        if b"\0" in request.cwd:
            raise ValueError
    except ValueError:
        raise RpcError(
            ErrorCode.INTERNAL_ERROR,
            "nul byte found in provided data: argv, env and cwd cannot hold one",
        ) from None
    if not program:
        raise RpcError(ErrorCode.INTERNAL_ERROR, "missing program: argv[0] is empty")
    _check_cwd(request.cwd)
    with ExitStack() as children_ends, ExitStack() as on_failure:
        if request.tty:
            child, plan = _with_terminal(request, enclosure, argv, env, on_failure)
        else:
            child, plan = _with_pipes(request, enclosure, argv, env, children_ends, on_failure)
        # Room for the child's own pidfd is made sure of before it runs: nothing may fail afterwards.
        with _opening("a process"):
            spare = os.pidfd_open(os.getpid())
        try:
            with enclosure.around_spawn():
                child.pid = _spawn_first_found(start, program, request, plan)
        except OSError as error:
            raise _spawn_error(error, f"cannot start {request.argv[0]!r}: {_advice(error)}") from None
        finally:
            os.close(spare)
        child.pidfd = os.pidfd_open(child.pid)
        child.group.pgid = child.pid
        child.rss_floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        enclosure.started(child.pid)
        on_failure.pop_all()
        return child


def _encode(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise ValueError("nul byte")
    return data


def _check_cwd(cwd: bytes) -> None:
    # posix_spawn does not say which step failed: a bad directory is told apart here.
    try:
        if not os.path.isdir(cwd):
            os.stat(cwd)
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(cwd, os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        path = os.fsdecode(cwd)
        raise _spawn_error(
            error, f"cannot use {path!r} as cwd; create it or pass another directory"
        ) from None


def _spawn_error(error: OSError, more: str) -> RpcError:
    number = error.errno or 0
    text = f"{os.strerror(number)} (os error {number}): {more}"
    return RpcError(ErrorCode.INTERNAL_ERROR, text)


def _advice(error: OSError) -> str:
    match error.errno:
        case errno.ENOENT:
            return "no such program on the PATH of its env, or its interpreter is missing"
        case errno.EACCES:
            return "it is not an executable file"
        case errno.ENOEXEC:
            return "it is in no format that the system can run; does a script lack its first line, #!...?"
        case errno.E2BIG:
            return "argv and env together are too large for the system"
        case errno.EAGAIN | errno.ENOMEM:
            return "the system has no room for another process now; end some or raise its limits"
        case _:
            return "the operating system refused"


def _with_terminal(
    request: SpawnRequest, enclosure: Enclosure, argv: list[bytes], env: list[bytes], on_failure: ExitStack
) -> tuple[Child, SpawnPlan]:
    with _opening("a terminal"):
        master, slave = os.openpty()
    on_failure.callback(os.close, slave)
    output = Fd(master)
    on_failure.callback(output.close)
    _set_size(master, *request.size)
    # A second descriptor for the input, so that output and input are owned and closed apart.
    with _opening("a terminal"):
        stdin = Fd(os.dup(master))
    on_failure.callback(stdin.close)
    child = Child(-1, -1, ProcessGroup(-1), enclosure, [("pty", output)], stdin, output, slave)
    return child, SpawnPlan(b"", argv, env, request.cwd, terminal=os.ttyname(slave).encode())


def _with_pipes(
    request: SpawnRequest,
    enclosure: Enclosure,
    argv: list[bytes],
    env: list[bytes],
    children_ends: ExitStack,
    on_failure: ExitStack,
) -> tuple[Child, SpawnPlan]:
    stdin: Fd | None = None
    if request.pipe_stdin:
        with _opening("a pipe"):
            child_stdin, ours = os.pipe2(os.O_CLOEXEC)
        stdin = Fd(ours)
        on_failure.callback(stdin.close)
    else:
        with _opening(os.devnull):
            child_stdin = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    children_ends.callback(os.close, child_stdin)
    outputs: list[tuple[Stream, Fd]] = []
    child_ends: list[int] = []
    streams: tuple[Stream, Stream] = ("stdout", "stderr")
    for stream in streams:
        with _opening("a pipe"):
            ours, theirs = os.pipe2(os.O_CLOEXEC)
        output = Fd(ours)
        on_failure.callback(output.close)
        children_ends.callback(os.close, theirs)
        outputs.append((stream, output))
        child_ends.append(theirs)
    child = Child(-1, -1, ProcessGroup(-1), enclosure, outputs, stdin)
    return child, SpawnPlan(b"", argv, env, request.cwd, stdio=(child_stdin, child_ends[0], child_ends[1]))


@contextmanager
def _opening(what: str) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise _spawn_error(error, f"cannot open {what}; too many open files?") from None


def _set_size(fd: int, rows: int, cols: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))


def _spawn_first_found(
    start: Callable[[SpawnPlan], int], program: bytes, request: SpawnRequest, plan: SpawnPlan
) -> int:
    """Look a bare name up on the PATH of the child's own environment, as exec would, and start it.

    A candidate that cannot be executed, or whose interpreter is missing, is remembered and passed over; a
    script without an interpreter line is an error and never handed to a shell.
    """
    if b"/" in program:
        return start(_at(plan, program))
    refused: OSError | None = None
    for folder in _encode(request.env.get("PATH", os.defpath)).split(b":"):
        candidate = os.path.join(request.cwd, folder, program)
        if not os.path.exists(candidate):
            continue
        try:
            return start(_at(plan, candidate))
        except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
            refused = refused or error
    raise refused or FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def _at(plan: SpawnPlan, path: bytes) -> SpawnPlan:
    return replace(plan, path=path)
