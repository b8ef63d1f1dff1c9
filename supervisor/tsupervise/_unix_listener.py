"""A listening socket in the file system: never open to more users than it should be, never in a live one's place.

The socket listens under another name before it gets its own, by a link that replaces nothing. So its file has its
rights from the first moment on, whoever finds it can connect, and of two daemons that start at once one is told.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import stat
from collections.abc import Generator
from contextlib import contextmanager

PROBE_S = 1.0
"""Seconds that a listener whose queue is full may take to accept; it is alive in any case."""


@contextmanager
def unix_listener(path: str, mode: int, backlog: int) -> Generator[socket.socket]:
    """Listen at a path for the time of the block; at its end the file is removed, if it is still ours.

    A socket at that path to which nobody listens any more is replaced.

    Args:
        path: absolute.
        mode: the rights of the file.
        backlog: connections that the kernel accepts meanwhile.

    Raises:
        OSError: somebody listens there, something else is there, or the directory cannot be written to.
    """
    folder_path, name = os.path.split(path)
    folder = os.open(folder_path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Of two containers that share a directory, both may have a process of this number.
        temporary = f".tsupervise-{secrets.token_hex(8)}"
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with sock:
            # The rights of the socket itself are those that its file is made with.
            os.fchmod(sock.fileno(), mode & 0o700)
            # By way of /proc a path of any length will do, and it is the same directory all the time.
            sock.bind(f"/proc/self/fd/{folder}/{temporary}")
            try:
                os.chmod(temporary, mode, dir_fd=folder)
                sock.listen(backlog)
                _remove_stale(folder, name)
                os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
                own = _identity(folder, name)
            finally:
                os.unlink(temporary, dir_fd=folder)
            try:
                yield sock
            finally:
                if own is not None and _identity(folder, name) == own:
                    os.unlink(name, dir_fd=folder)
    finally:
        os.close(folder)


def _remove_stale(folder: int, name: str) -> None:
    """Remove the socket of a daemon that was killed.

    Raises:
        OSError: it is alive, or no socket.
    """
    found = _identity(folder, name)
    if found is None:
        return
    if not stat.S_ISSOCK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        raise OSError(
            errno.ENOTSOCK, "there is something that is no socket; remove it, or choose another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(f"/proc/self/fd/{folder}/{name}")
        except ConnectionRefusedError:
            pass
        except FileNotFoundError:
            return
        except (TimeoutError, BlockingIOError):
            raise OSError(errno.EADDRINUSE, "somebody listens there already") from None
        else:
            raise OSError(errno.EADDRINUSE, "somebody listens there already")
    # Not the fresh one of a daemon that starts in this very moment.
    if _identity(folder, name) == found:
        os.unlink(name, dir_fd=folder)


def _identity(folder: int, name: str) -> tuple[int, int] | None:
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
