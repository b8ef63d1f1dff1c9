"""When a file was made: statx(2), which Python does not offer."""

from __future__ import annotations

import ctypes
import os
import struct

_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
"""From linux/fcntl.h."""

_STATX_BTIME = 0x800
_STATX_BYTES = 256
_MASK = struct.Struct("=I")
_BIRTH = struct.Struct("=qI")
_BIRTH_OFFSET = 80
"""The layout of `struct statx` in linux/stat.h: the mask of what is filled in comes first."""


def birth_time_ms(path: bytes, dir_fd: int | None, *, follow: bool) -> int:
    """When the file that a path leads to was made.

    Args:
        path: relative to `dir_fd`, if that is not None.
        follow: whether the last name may be a symbolic link to it.

    Returns:
        Milliseconds since 1970; 0 where the system does not tell.
    """
    statx = getattr(ctypes.CDLL(None), "statx", None)
    if statx is None:
        return 0
    answer = ctypes.create_string_buffer(_STATX_BYTES)
    flags = 0 if follow else _AT_SYMLINK_NOFOLLOW
    failed = statx(
        _AT_FDCWD if dir_fd is None else dir_fd,
        ctypes.c_char_p(os.fsencode(path)),
        flags,
        ctypes.c_uint(_STATX_BTIME),
        answer,
    )
    if failed or not _MASK.unpack_from(answer)[0] & _STATX_BTIME:
        return 0
    seconds, nanoseconds = _BIRTH.unpack_from(answer, _BIRTH_OFFSET)
    return max(0, seconds * 1000 + nanoseconds // 1_000_000)
