"""Control groups, version 2: a leaf for each process, which holds all that comes of it and ends it at once.

The kernel keeps the membership: no fork gets out, and `cgroup.kill` has no race with one. What it needs is a
subtree that we may change: delegated by systemd (`Delegate=yes`), a container's own, or root's.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

_NAME = "tsupervise-"


class Leaf:
    """The control group of one process."""

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        self._path = path

    def join(self, pid: int) -> None:
        """Move a process in. What it has forked before stays where it is.

        Raises:
            OSError: it is dead, or we may not.
        """
        _write(f"{self._path}/cgroup.procs", str(pid))

    def kill(self) -> None:
        """SIGKILL to all members and to whatever they are forking right now."""
        with suppress(FileNotFoundError):
            _write(f"{self._path}/cgroup.kill", "1")

    def members(self) -> list[int]:
        """The processes in it. The dead ones that nobody has reaped do not count."""
        try:
            with open(f"{self._path}/cgroup.procs", "rb") as file:
                return [int(pid) for pid in file.read().split()]
        except OSError:
            return []

    def remove(self) -> bool:
        """Remove it, if it is empty; return whether it is gone."""
        try:
            os.rmdir(self._path)
        except OSError as error:
            return error.errno == errno.ENOENT
        return True


class Subtree:
    """The control group of one daemon, the parent of all leaves. Made by `open_subtree`."""

    def __init__(self, path: str) -> None:
        self.path = path

    def leaf(self, name: str) -> Leaf:
        """Make a leaf.

        Raises:
            OSError: the system has no room for one, or the subtree is gone.
        """
        path = f"{self.path}/{name}"
        os.mkdir(path)
        return Leaf(path)

    def close(self) -> None:
        """Kill whatever is in it, and remove it as far as it is empty."""
        end_subtree(self.path)


def open_subtree() -> Subtree | None:
    """Make the control group of this process's children, and end those of daemons that are gone.

    Returns:
        None where there is no such thing: no version 2, no right to change it, or a kernel before 5.14.
    """
    path = subtree_of(os.getpid())
    base = os.path.dirname(path)
    if not path or not os.access(f"{base}/cgroup.procs", os.W_OK):
        return None
    try:
        for name in os.listdir(base):
            if not is_owned(name):
                end_subtree(f"{base}/{name}")
        with suppress(FileExistsError):
            os.mkdir(path)
        if not os.access(f"{path}/cgroup.kill", os.W_OK):
            os.rmdir(path)
            return None
    except OSError:
        return None
    return Subtree(path)


def subtree_of(daemon: int) -> str:
    """Where the control group of a daemon is that lives, or is dead and not yet reaped; "" for nowhere.

    It must be in the same control group as this process.
    """
    base = _own_group()
    return f"{base}/{name_of(daemon)}" if base is not None else ""


def name_of(pid: int) -> str:
    """What the control groups of a daemon are called, up to a dot."""
    # The number alone could become a stranger's.
    return f"{_NAME}{pid}-{_start_time(pid)}"


def end_subtree(path: str) -> None:
    """Kill everything below a control group of ours and remove it; what does not die at once is left."""
    if not path or not os.path.isdir(path):
        return
    with suppress(OSError):
        _write(f"{path}/cgroup.kill", "1")
    with suppress(OSError):
        for name in os.listdir(path):
            if os.path.isdir(f"{path}/{name}"):
                with suppress(OSError):
                    os.rmdir(f"{path}/{name}")
        os.rmdir(path)


def is_owned(name: str) -> bool:
    """Whether a control group is none of a daemon that is gone."""
    if not name.startswith(_NAME):
        return True
    owner = name.removeprefix(_NAME).partition("-")[0]
    return not owner.isdigit() or name.partition(".")[0] == name_of(int(owner))


def _start_time(pid: int) -> str:
    """When a process was started, in ticks since the boot: with its number it names the process for good."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return ""
    return text[text.rfind(b")") + 2 :].split()[19].decode()


def _own_group() -> str | None:
    """The directory of the version 2 control group that this process is in."""
    try:
        with open("/proc/self/cgroup") as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file]
        own = next((path for number, _, path in groups if number == "0"), None)
        with open("/proc/self/mountinfo") as file:
            mounts = [line.split(" - ") for line in file]
    except OSError:
        return None
    for left, right in mounts:
        if right.split()[0] == "cgroup2" and own is not None:
            root, mount_point = left.split()[3:5]
            below = os.path.relpath(own, root)
            # Above the root of the mount, as in a container that sees only its own part, lies nothing for us.
            if not below.startswith(".."):
                return os.path.normpath(f"{mount_point}/{below}")
    return None


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
