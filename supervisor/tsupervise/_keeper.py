"""The small parent of a daemon: it outlives the daemon by a moment, and nothing of the daemon outlives it.

`tsupervise run` is this process; what it runs as its child is the daemon. It is a subreaper, so whatever the
daemon leaves behind when it dies, however it dies, becomes a child of this process, and is killed and reaped
here. To systemd, a container or a shell it is the daemon: it passes signals on and leaves with the daemon's code.

It imports next to nothing, for it stays in memory as long as the daemon does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

from ._cgroup import end_group, end_subtrees, step_aside, subtrees_of
from ._inherited import heeded, own_environment
from ._limit_groups import folders_of

KEPT_BY = "--kept-by="
"""The first argument of a daemon that has a keeper, with the keeper's number: who sees it is the daemon itself."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
"""From linux/prctl.h."""

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)

END_S = 5.0
"""How long what the daemon leaves behind may take to die, before it is left: only what hangs in the kernel does."""

_SI_KERNEL = 0x80
"""From asm-generic/siginfo.h: a signal that no process sent, such as a terminal's ^C."""


def keep(arguments: list[str]) -> int:
    """Run the daemon with these command line arguments; returns its exit code, 128 + n if signal n ended it."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # Whoever started us may ignore it, and then no child could be waited for: the kernel would reap them.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    awaited = {*heeded(_PASSED_ON), signal.SIGCHLD}
    # Blocked and not handled: a signal that comes between two looks is not lost, and needs no handler.
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    step_aside()
    # Of the program that became this one.
    spared = set(_children())
    daemon = os.posix_spawn(
        sys.executable,
        _daemon_command(arguments),
        own_environment(),
        setsigmask=(),
        setsigdef=[signal.SIGINT, signal.SIGPIPE],
    )
    subtrees, limit_groups = subtrees_of(daemon), folders_of(daemon)
    while True:
        received = signal.sigwaitinfo(awaited)
        if received.si_signo == signal.SIGCHLD:
            code = _reap(daemon)
            if code is not None:
                for _ in range(2):  # in the second round, what was in them is dead
                    end_subtrees(subtrees)
                    for group in limit_groups:
                        end_group(group)
                    _end_what_is_left(spared)
                return code
        elif received.si_code != _SI_KERNEL:
            # A terminal's signal goes to its whole foreground group, so the daemon has it already.
            os.kill(daemon, received.si_signo)


def die_with_keeper(keeper: int) -> None:
    """Called by the daemon: a keeper that is killed takes it along, with all that a SIGTERM does.

    Args:
        keeper: its number, as it said itself: one that is killed at once is our parent no more.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != keeper:
        os.kill(os.getpid(), signal.SIGTERM)


def _daemon_command(arguments: list[str]) -> list[str]:
    """This process's own command line, options of the interpreter included, with the mark before `run`."""
    own = sys.orig_argv[: len(sys.orig_argv) - len(arguments)]
    return [sys.executable, *own[1:], f"{KEPT_BY}{os.getpid()}", *arguments]


def _reap(daemon: int) -> int | None:
    """Take away every dead child; the code of the daemon if it is among them."""
    code: int | None = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == daemon:
            code = os.waitstatus_to_exitcode(status)
            if code < 0:
                code = 128 - code


def _end_what_is_left(spared: set[int]) -> None:
    """Kill and reap children until there are none: the children of a killed one become ours in turn.

    A child is not reaped by anybody else, so none of these numbers can have become a stranger's.
    """
    until = time.monotonic() + END_S
    while time.monotonic() < until:
        _reap(-1)
        killed = 0
        # The youngest first: if they fork and go, it is the last that lives.
        for pid in reversed(_children()):
            if pid not in spared:
                try:
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
                except PermissionError:
                    pass  # it has become another user's
        if not killed:
            return
        # Not for a certain one: the end of a child that is traced is told to its tracer first.
        signal.sigtimedwait([signal.SIGCHLD], 0.01)


def _children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(pid) for pid in file.read().split()]


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
