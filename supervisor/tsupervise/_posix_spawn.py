"""The C library's posix_spawn with everything that os.posix_spawn leaves out. It knows nothing of processes.

os.posix_spawn has no working directory, no controlling terminal and cannot close stray descriptors; `fork`
of a Python process costs milliseconds and runs our code in the child. posix_spawn shares memory until the
exec and returns in well under a millisecond, with the errno of a failed exec.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass

# From spawn.h and its implementations: glibc 2.26 and musl 1.1.24 on.
_SETSIGDEF = 0x04
_SETSIGMASK = 0x08
_SETSID = 0x80

# On 64-bit glibc and musl posix_spawnattr_t is 336 bytes, posix_spawn_file_actions_t 80, sigset_t 128.
_ATTRIBUTES_BYTES = 512
_FILE_ACTIONS_BYTES = 256
_SIGSET_BYTES = 128

# By hand, because sigfillset leaves out two signals that the C library keeps for itself, and posix_spawn would
# then start the child with those ignored.
_EVERY_SIGNAL = b"\xff" * _SIGSET_BYTES
_NO_SIGNAL = bytes(_SIGSET_BYTES)

_O_RDWR = os.O_RDWR


def _load() -> ctypes.PyDLL | None:
    # PyDLL keeps the interpreter's lock: what other threads start meanwhile would inherit what this child is to.
    library = ctypes.PyDLL(None)
    actions = ("addchdir_np", "addclosefrom_np")
    complete = all(hasattr(library, f"posix_spawn_file_actions_{action}") for action in actions)
    return library if complete else None


_libc = _load()

AVAILABLE = _libc is not None
"""Whether the C library has all that is needed: glibc 2.34 or newer."""


@dataclass(frozen=True, slots=True)
class SpawnPlan:
    """What the child is to be. It always leads a new session and group, with default signals, none blocked.

    Args:
        path: the program; a relative path is meant from `cwd`.
        argv: what the program sees as its arguments, its own name included.
        env: NAME=VALUE entries.
        cwd: working directory.
        stdio: descriptors to become 0, 1 and 2, each above 2; None with a terminal.
        terminal: path of a terminal to become 0, 1, 2 and the controlling terminal; None with `stdio`.
    """

    path: bytes
    argv: Sequence[bytes]
    env: Sequence[bytes]
    cwd: bytes
    stdio: tuple[int, int, int] | None = None
    terminal: bytes | None = None


def posix_spawn(plan: SpawnPlan) -> int:
    """Start the child and return its pid.

    Raises:
        OSError: the errno of whichever step failed: spawning, opening the terminal, cwd, or the exec.
    """
    assert _libc is not None, "see AVAILABLE"
    attributes = ctypes.create_string_buffer(_ATTRIBUTES_BYTES)
    actions = ctypes.create_string_buffer(_FILE_ACTIONS_BYTES)
    _check(_libc.posix_spawnattr_init(attributes))
    try:
        _check(_libc.posix_spawn_file_actions_init(actions))
        try:
            _check(_libc.posix_spawnattr_setflags(attributes, _SETSIGDEF | _SETSIGMASK | _SETSID))
            _check(_libc.posix_spawnattr_setsigdefault(attributes, _EVERY_SIGNAL))
            _check(_libc.posix_spawnattr_setsigmask(attributes, _NO_SIGNAL))
            _check(_libc.posix_spawn_file_actions_addchdir_np(actions, plan.cwd))
            if plan.terminal is not None:
                # A session leader's first terminal becomes its controlling terminal: the session is new here.
                _check(_libc.posix_spawn_file_actions_addopen(actions, 0, plan.terminal, _O_RDWR, 0))
                _check(_libc.posix_spawn_file_actions_adddup2(actions, 0, 1))
                _check(_libc.posix_spawn_file_actions_adddup2(actions, 0, 2))
            else:
                assert plan.stdio is not None, "a child has a terminal or three descriptors"
                for target, fd in enumerate(plan.stdio):
                    assert fd > 2, "a descriptor below 3 could be overwritten before it is used"
                    _check(_libc.posix_spawn_file_actions_adddup2(actions, fd, target))
            _check(_libc.posix_spawn_file_actions_addclosefrom_np(actions, 3))
            pid = ctypes.c_int()
            _check(
                _libc.posix_spawn(
                    ctypes.byref(pid), plan.path, actions, attributes, _strings(plan.argv), _strings(plan.env)
                )
            )
            return pid.value
        finally:
            _libc.posix_spawn_file_actions_destroy(actions)
    finally:
        _libc.posix_spawnattr_destroy(attributes)


def _strings(values: Sequence[bytes]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * (len(values) + 1))(*values, None)


def _check(error: int) -> None:
    if error:
        raise OSError(error, os.strerror(error))
