"""The kernel's word for changes to files: one queue of inotify, by ctypes, for what Python has no name.

Numbers are from linux/inotify.h and linux/magic.h. `add` and `tells_changes` may block; the rest does not.
"""

from __future__ import annotations

import ctypes
import errno
import os
from struct import Struct
from typing import NamedTuple

MODIFY = 0x2
ATTRIB = 0x4
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
DELETE_SELF = 0x400
MOVE_SELF = 0x800
ONLYDIR = 0x0100_0000
DONT_FOLLOW = 0x0200_0000

_HEAD = Struct("iIII")
"""watch, mask, cookie, length of the name that follows"""

_READ_BYTES = 16 << 10

_SILENT_FILE_SYSTEMS = {
    *(0x9FA0, 0x6265_6572),  # proc, sysfs
    *(0x6969, 0x517B, 0xFF53_4D42, 0xFE53_4D42, 0x00C3_6400, 0x5346_414F),  # NFS, SMB thrice, Ceph, AFS
    *(0x0102_1997, 0x6573_5546),  # 9P, FUSE
}
"""What the kernel has no hand in, or others than this machine may change."""

_libc = ctypes.CDLL(None, use_errno=True)


class Change(NamedTuple):
    watch: int
    """As `add` returned it; -1 when changes have been lost."""
    name: bytes
    """What has changed in a watched folder; empty if it is what is watched itself."""


def open_queue() -> int:
    """A descriptor that is readable when something has changed.

    Raises:
        OSError: EMFILE, the user has as many as may be; ENOSYS, this system has none.
    """
    if not hasattr(_libc, "inotify_init1"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    return _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))


def add(queue: int, path: bytes, mask: int) -> int:
    """Watch a path; returns the watch, the same for each path to one thing.

    Raises:
        OSError: ENOENT; ENOTDIR; EACCES, it may not be read; ENOSPC, the user has as many as may be.
    """
    return _checked(_libc.inotify_add_watch(queue, path, mask))


def tells_changes(path: bytes) -> bool:
    """Whether the kernel hears of every change there, whoever makes it.

    Raises:
        OSError: see `os.stat`.
    """
    status = ctypes.create_string_buffer(256)  # twice what any system has
    _checked(_libc.statfs(path, status))
    return ctypes.c_long.from_buffer(status).value & 0xFFFF_FFFF not in _SILENT_FILE_SYSTEMS


def read_changes(queue: int) -> list[Change]:
    """Take what is in the queue, a part of it if that is much.

    Raises:
        BlockingIOError: nothing is.
    """
    data = os.read(queue, _READ_BYTES)
    changes: list[Change] = []
    start = 0
    while start < len(data):
        watch, _, _, length = _HEAD.unpack_from(data, start)
        start += _HEAD.size + length
        changes.append(Change(watch, data[start - length : start].rstrip(b"\0")))
    return changes


def _checked(result: int) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
