"""What /proc says about processes that are not ours to ask: the server under test and its children.

Children are found by a marker, an argument that no other process on the machine has. A process whose
parent has not reaped it yet has no arguments any more, so a zombie does not count as marked.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import trio

from wire import PATIENCE_S

LISTENING = "0A"
"""TCP_LISTEN as the `st` column of /proc/net/tcp prints it (include/net/tcp_states.h)."""


def new_marker() -> str:
    """An argument for one test's children; `sleep` takes it for ten minutes and a fraction."""
    return f"600.{uuid.uuid4().int}"


def marked(marker: str) -> set[int]:
    """The pids of all live processes that have `marker` among their arguments."""
    return {pid for pid in _pids() if marker.encode() in _read(Path(f"/proc/{pid}/cmdline")).split(b"\0")}


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


def listener_pid(port: int) -> int:
    """The process that holds the listening IPv4 socket of `port`: the server itself, not a parent of it."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {row[9] for row in rows if row[3] == LISTENING and int(row[1].split(":")[1], 16) == port}
    sockets = {f"socket:[{inode}]" for inode in inodes}
    for pid in _pids():
        try:
            if any(fd.readlink().name in sockets for fd in Path(f"/proc/{pid}/fd").iterdir()):
                return pid
        except OSError:  # it ended, or closed the descriptor, while we looked
            continue
    raise LookupError(f"no process listens on port {port}")


async def until(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Ask again and again until `condition()` is true: for facts that nobody announces."""
    with trio.fail_after(patience_s):
        while not condition():  # noqa: ASYNC110 - /proc and other people's files set no event
            await trio.sleep(0.01)


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process ended between the listing and the look
        return b""
