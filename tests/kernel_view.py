"""What the kernel tells about processes that are not our children: the daemon's, and the daemon itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import trio

from daemons import Daemon
from wire import PATIENCE_S


def family(pid: int) -> Iterator[int]:
    """A process and its descendants."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from family(int(child))


def listening_pid(daemon: Daemon) -> int:
    """The process of a daemon that holds the listening socket; the one started may be a mere parent."""
    port = f":{daemon.address[1]:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    (inode,) = (row[9] for row in rows if row[1].endswith(port) and row[3] == "0A")
    for pid in family(daemon.pid):
        fds = (f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd"))
        # A descriptor may be gone between the listing and the look; the listening one is not.
        if any(os.path.islink(fd) and os.readlink(fd) == f"socket:[{inode}]" for fd in fds):
            return pid
    raise AssertionError(f"nobody below {daemon.pid} listens on {daemon.url}")


def stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, so that [0] is the state."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = stat_fields(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def until_stopped(pid: int) -> None:
    """Wait until a process is in the stopped state, of which the kernel tells only its parent."""
    with trio.fail_after(PATIENCE_S):
        while stat_fields(pid)[0] != "T":  # noqa: ASYNC110
            await trio.sleep(0.005)


async def until_dead(pid: int) -> None:
    """Wait until a process has ended, reaped or not."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with trio.fail_after(PATIENCE_S):
            await trio.lowlevel.wait_readable(fd)
    finally:
        os.close(fd)
