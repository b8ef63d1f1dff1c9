"""How commands find the daemons of their own user: a private directory with one file for each that listens.

The directory is only as good as it is private: whoever can write to it could send commands, and what is
typed into them, to a daemon of his own. So it is looked at before it is used, and refused if others may
write to it. A file is named after its daemon's process and the time that one started, so that the name
alone tells whether its daemon still runs, and removing a stale one cannot meet a fresh one.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Generator
from contextlib import contextmanager, suppress

import msgspec

from ._version import __version__

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 65536
"""Far above what is ever written."""

_FALLBACK = "/tmp"
"""Where there is no runtime directory of the user's. Not $TMPDIR: a daemon and a command need not share it."""

_NAME = re.compile(r"\.?(\d+)-(\d+)\.json", re.ASCII)
"""The number of a process and its start; with a dot in front while it is being written."""


class DiscoveryFailed(Exception):
    """There is no daemon to be found, or more than one, or no place to look for it."""


class DaemonFile(msgspec.Struct, frozen=True, rename="camel"):
    """What a daemon writes about itself."""

    url: str
    pid: int
    start_time: int
    """When the process started, in clock ticks since boot: a recycled pid has another one."""
    version: str


def directory() -> str:
    """`tsupervise` in the user's own $XDG_RUNTIME_DIR, else `/tmp/tsupervise-UID`."""
    uid = os.geteuid()
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    # Under `sudo -E` it is somebody else's, and root must leave nothing there.
    with suppress(OSError):
        if os.path.isabs(runtime) and os.stat(runtime).st_uid == uid:
            return os.path.join(runtime, "tsupervise")
    return f"{_FALLBACK}/tsupervise-{uid}"


def find_url() -> str:
    """The URL of the one daemon of this user.

    Raises:
        DiscoveryFailed: there is none, or more than one.
    """
    match running_daemons():
        case [daemon]:
            return daemon.url
        case []:
            raise DiscoveryFailed(
                "no daemon is running; start one with `tsupervise run`, or name another user's or machine's "
                "with --url or TSUPERVISE_URL"
            )
        case several:
            found = ", ".join(f"{daemon.url} (pid {daemon.pid})" for daemon in several)
            raise DiscoveryFailed(f"several daemons are running: {found}; choose one with --url")


def running_daemons() -> list[DaemonFile]:
    """The daemons of this user that listen, oldest first. Files of those that are gone are removed.

    Raises:
        DiscoveryFailed: the directory cannot be trusted or read.
    """
    try:
        with _open_directory() as folder:
            _remove_stale(folder)
            daemons = [_read(folder, name) for name in os.listdir(folder) if not name.startswith(".")]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DiscoveryFailed(f"cannot look for daemons in {directory()}: {error.strerror}") from None
    return sorted((daemon for daemon in daemons if daemon is not None), key=lambda daemon: daemon.start_time)


@contextmanager
def announced(url: str) -> Generator[None]:
    """Let commands find this process at `url` for the time of the block. Where that cannot be, say so and go on."""
    name = None
    try:
        name = _announce(url)
    except (DiscoveryFailed, OSError) as error:
        reason = str(error) if isinstance(error, DiscoveryFailed) else f"{directory()}: {error.strerror}"
        log.warning("commands will not find this daemon without --url: %s", reason)
    try:
        yield
    finally:
        if name is not None:
            with suppress(DiscoveryFailed, OSError), _open_directory() as folder:
                os.unlink(name, dir_fd=folder)


def _announce(url: str) -> str:
    with suppress(FileExistsError):
        os.mkdir(directory(), 0o700)
    pid = os.getpid()
    started = _start_of(pid)
    if started is None:
        raise DiscoveryFailed("/proc does not tell when this process started")
    name = f"{pid}-{started}.json"
    with _open_directory() as folder:
        _remove_stale(folder)
        # Written under another name and moved: nobody reads half of it.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(f".{name}", flags, 0o600, dir_fd=folder)
        try:
            os.write(file, msgspec.json.encode(DaemonFile(url, pid, started, __version__)))
        finally:
            os.close(file)
        os.rename(f".{name}", name, src_dir_fd=folder, dst_dir_fd=folder)
    return name


@contextmanager
def _open_directory() -> Generator[int]:
    """Its descriptor: what is looked at is what is used, whatever happens to the path meanwhile."""
    path = directory()
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(folder)
        if status.st_uid != os.geteuid():
            raise DiscoveryFailed(
                f"{path} belongs to user {status.st_uid} and not to you, so it cannot be trusted; "
                "have it removed, or set XDG_RUNTIME_DIR to a directory of your own"
            )
        if status.st_mode & 0o022:
            raise DiscoveryFailed(
                f"{path} can be written by others (mode {status.st_mode & 0o7777:04o}), so it cannot be "
                "trusted; remove it, or see what is in it and `chmod 700` it"
            )
        yield folder
    finally:
        os.close(folder)


def _remove_stale(folder: int) -> None:
    for name in os.listdir(folder):
        match = _NAME.fullmatch(name)
        if match is not None and _start_of(int(match[1])) != int(match[2]):
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)


def _read(folder: int, name: str) -> DaemonFile | None:
    """None for what has gone meanwhile, or is not for us: a later version may write what this one cannot read."""
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            return msgspec.json.decode(os.read(file, MAX_FILE_BYTES), type=DaemonFile)
        finally:
            os.close(file)
    except (OSError, msgspec.MsgspecError):
        return None


def _start_of(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if there is none, or only its remains."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The second field is the name, in parentheses, and may have any byte in it.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
