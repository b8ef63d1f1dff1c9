"""What a process has used, told by the kernel before the process is reaped. It knows nothing of processes.

`waitid` tells it to nobody in Python: os.waitid leaves out the fifth argument of the system call, os.wait4 cannot
leave the dead child where it is.
"""

from __future__ import annotations

import ctypes
import os
import platform

from tsupervise_protocol.messages import Usage

_WAITID = {"x86_64": 247, "aarch64": 95, "riscv64": 95, "loongarch64": 95, "ppc64le": 272, "s390x": 281}
"""The number of the system call, from each machine's unistd.h."""

_SIGINFO_BYTES = 128
_RSS_SLACK_BYTES = 1 << 20
"""The kernel counts pages for each CPU apart and adds them up late: two looks may differ by that much."""


class _TimeVal(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("micros", ctypes.c_long))


class _Rusage(ctypes.Structure):
    """struct rusage of getrusage(2), on 64 bits."""

    _fields_ = (
        ("user", _TimeVal),
        ("system", _TimeVal),
        ("max_rss_kib", ctypes.c_long),
        ("others", ctypes.c_long * 13),
    )


_syscall = ctypes.CDLL(None).syscall
_number = _WAITID.get(platform.machine())


def usage_of(pidfd: int, rss_floor: int) -> Usage | None:
    """The usage of a child that is dead and not reaped, with that of the descendants that were waited for.

    Args:
        pidfd: the child.
        rss_floor: the most memory in bytes that this process had had when it started the child. The child shares
            our memory until its exec, and the kernel counts that as its own: less than this cannot be told.

    Returns:
        None if it cannot be told: it has been reaped by somebody else, or on a machine that we do not know.
    """
    if _number is None or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    usage = _Rusage()
    siginfo = ctypes.create_string_buffer(_SIGINFO_BYTES)
    options = os.WEXITED | os.WNOWAIT | os.WNOHANG
    if _syscall(ctypes.c_long(_number), os.P_PIDFD, pidfd, siginfo, options, ctypes.byref(usage)) != 0:
        return None
    max_rss = usage.max_rss_kib * 1024
    return Usage(
        user_ms=_millis(usage.user),
        system_ms=_millis(usage.system),
        max_rss_bytes=max_rss if max_rss > rss_floor + _RSS_SLACK_BYTES else None,
    )


def _millis(time: _TimeVal) -> int:
    return time.seconds * 1000 + time.micros // 1000
