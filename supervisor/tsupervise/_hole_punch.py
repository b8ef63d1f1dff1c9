"""Give a part of a file back to its file system: fallocate(2), which Python does not offer with a mode."""

from __future__ import annotations

import ctypes
import errno
import os

_KEEP_SIZE = 1
_PUNCH_HOLE = 2
"""From linux/falloc.h."""


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Free the blocks that lie wholly inside a range of a file; all of the range reads as zeros from then on.

    Args:
        fd: open for writing.
        offset: where the range begins, in bytes.
        length: how long it is, in bytes; more than 0.

    Raises:
        OSError: EOPNOTSUPP where the file system cannot do this.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # With a 64-bit offset wherever the C library has both.
    fallocate = getattr(libc, "fallocate64", None) or libc.fallocate
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    while fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length) != 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
