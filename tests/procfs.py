"""What the kernel says about processes that are not ours to ask: the server under test and its children.

Children are found by a marker, an argument that no other process on the machine has. A process whose
parent has not reaped it yet has no arguments any more, so a zombie does not count as marked; it does count
among the `children_of` a server.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import trio

from daemons import Daemon
from wire import PATIENCE_S

LISTENING = "0A"
"""TCP_LISTEN as the `st` column of /proc/net/tcp prints it (include/net/tcp_states.h)."""


def new_marker() -> str:
    """An argument for one test's children; `sleep` takes it for ten minutes and a fraction."""
    return f"600.{uuid.uuid4().int}"


def marked(marker: str) -> set[int]:
    """The pids of all live processes that have `marker` among their arguments."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return {pid for pid in pids if marker.encode() in _read(Path(f"/proc/{pid}/cmdline")).split(b"\0")}


def children_of(pid: int) -> set[int]:
    """The children of a process, those that have ended and wait to be reaped included."""
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for file in files for child in _read(file).split()}


def family(pid: int) -> Iterator[int]:
    """A process and its descendants."""
    yield pid
    for child in children_of(pid):
        yield from family(child)


def listening_pid(daemon: Daemon) -> int:
    """The process of a server that holds its listening IPv4 socket; the one started may be a mere parent."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    port = f":{daemon.address[1]:04X}"
    (inode,) = (row[9] for row in rows if row[1].endswith(port) and row[3] == LISTENING)
    for pid in family(daemon.pid):
        # A descriptor, or its whole process, may be gone between listing and look; the listening one is not.
        with suppress(FileNotFoundError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{fd}") == f"socket:[{inode}]":
                        return pid
    raise LookupError(f"nobody below {daemon.pid} listens on {daemon.url}")


def open_descriptors(pid: int) -> int:
    """How many file descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def descriptor_flags(pid: int, fd: int) -> int:
    """The O_ flags of one descriptor of a process."""
    lines = Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines()
    return int(dict(line.split(":\t") for line in lines)["flags"], 8)


def threads(pid: int) -> int:
    """How many threads a process has."""
    return len(os.listdir(f"/proc/{pid}/task"))


def status_field(pid: int, name: str) -> str:
    """The value of one line of /proc/PID/status, blanks around it removed."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    raise LookupError(name)


def resident_kib(pid: int) -> int:
    """The resident memory of a process in KiB."""
    return int(status_field(pid, "VmRSS").removesuffix("kB"))


def bytes_written(pid: int) -> int:
    """How many bytes a process has handed to write calls so far (`wchar`)."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["wchar"])


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    # What follows the name, which may hold blanks and parentheses: utime is field 14 of the whole (proc(5)).
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def until(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Ask again and again until `condition()` is true: for facts that nobody announces."""
    with trio.fail_after(patience_s):
        while not condition():  # noqa: ASYNC110 - /proc and other people's files set no event
            await trio.sleep(0.01)


async def until_stopped(pid: int) -> None:
    """Wait until a process is in the stopped state, of which the kernel tells only its parent."""
    await until(lambda: status_field(pid, "State").startswith("T"))


async def until_blocked(pid: int) -> None:
    """Wait until a process that does nothing but write has got nothing written for half a second."""
    with trio.fail_after(PATIENCE_S):
        last, calm = -1, 0
        while calm < 10:
            await trio.sleep(0.05)
            now = bytes_written(pid)
            last, calm = now, calm + 1 if now == last else 0


async def until_dead(pid: int) -> None:
    """Wait until a process has ended, reaped or not, whoever its parent is."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with trio.fail_after(PATIENCE_S):
            await trio.lowlevel.wait_readable(fd)
    finally:
        os.close(fd)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process ended between the listing and the look
        return b""
