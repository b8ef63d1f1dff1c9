"""File systems that a test mounts for itself, as root: one that never answers, and one that is soon full."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

_MNT_DETACH = 2

_OUT_HEADER = struct.Struct("=IiQ")
_INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
"""From linux/fuse.h, protocol 7.31."""


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _mount(kind: bytes, folder: Path, data: bytes) -> None:
    if os.geteuid() != 0 or _libc().mount(kind, os.fsencode(folder), kind, 0, data) != 0:
        pytest.skip(f"nothing can be mounted here: {os.strerror(ctypes.get_errno())}")


def _unmount(folder: Path) -> None:
    _libc().umount2(os.fsencode(folder), _MNT_DETACH)


@contextmanager
def dead_mount(folder: Path) -> Generator[None]:
    """A file system whose server is there and answers nothing: every call hangs, until the end of the block."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("there is no /dev/fuse")
    server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        _mount(b"fuse", folder, b"fd=%d,rootmode=40000,user_id=0,group_id=0" % server)
        try:
            # The one request that is answered: without, even an unmount would wait.
            unique = struct.unpack_from("=Q", os.read(server, 1 << 17), 8)[0]
            answer = _INIT_OUT.pack(7, 31, 0, 0, 12, 9, 4096, 1, 0, 0, 0)
            os.write(server, _OUT_HEADER.pack(_OUT_HEADER.size + len(answer), 0, unique) + answer)
            yield
        finally:
            _unmount(folder)
    finally:
        os.close(server)  # whoever still waits gets an error now


@contextmanager
def small_mount(folder: Path, size: int) -> Generator[None]:
    """A file system with room for so many bytes."""
    _mount(b"tmpfs", folder, b"size=%d" % size)
    try:
        yield
    finally:
        _unmount(folder)
