"""Control groups, version 2: a leaf for each process, which holds all that comes of it and ends it at once.

The kernel keeps the membership: no fork gets out, and `cgroup.kill` has no race with one. What it needs is a
subtree that we may change: delegated by systemd (`Delegate=yes`), a container's own, or root's.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from typing import NamedTuple

_NAME = "tsupervise_"

_ASIDE = "keeper"
"""Below a group that was given to this process: where it goes, see `step_aside`."""

_STALE_S = 0.3
"""How long a start may wait for what a dead daemon has left, once it is killed."""


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
        """SIGKILL to all members and to whatever they are forking right now, groups below this one included."""
        with suppress(OSError):  # gone, or of a kind that knows no kill: a sweep finds the members
            _write(f"{self._path}/cgroup.kill", "1")

    def members(self) -> list[int]:
        """The processes in it. The dead ones that nobody has reaped do not count.

        Raises:
            OSError: there is no room for a descriptor.
        """
        try:
            with open(f"{self._path}/cgroup.procs", "rb", buffering=0) as file:
                return [int(pid) for pid in file.readall().split()]
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            return []

    def holds(self, pid: int) -> bool:
        """Whether a process is in it, or in a group that somebody has made below it."""
        own = os.fsencode("/".join(["", *self._path.split("/")[-2:], ""]))
        try:
            # As bytes: a member may make groups of any name.
            with open(f"/proc/{pid}/cgroup", "rb", buffering=0) as file:
                return any(own in line + b"/" for line in file.readall().splitlines())
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return False

    def remove(self) -> bool:
        """Remove it, if it is empty; return whether it is gone."""
        try:
            os.rmdir(self._path)
        except OSError as error:
            return error.errno == errno.ENOENT
        return True

    def end(self) -> bool:
        """Kill whatever is in it, and remove it with all groups below it; return whether it is gone."""
        return end_group(self._path)


class Subtree:
    """The control group of one supervisor, the parent of all its leaves. Made by `open_subtree`."""

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
        end_group(self.path)


def step_aside() -> None:
    """Leave a control group that systemd has given away, if it is this process's alone, for a new one below it.

    Groups that bound can be made only where no process is: one that switches controllers on for groups below its
    own makes these unusable. Children go along; so this comes before there are any.
    """
    base = _own_group()
    if base is None or not is_delegated(base):
        return
    with suppress(OSError):  # it is another user's
        if Leaf(base).members() == [os.getpid()]:
            aside = f"{base}/{_ASIDE}"
            with suppress(FileExistsError):
                os.mkdir(aside)
            Leaf(aside).join(os.getpid())


def is_delegated(path: str) -> bool:
    """Whether systemd has given a control group away for good: it says so in an attribute (of 251 and later)."""
    for name in ("user.delegate", "trusted.delegate"):
        with suppress(OSError):
            if os.getxattr(path, name) == b"1":
                return True
    return False


def open_subtree() -> Subtree | None:
    """Make a control group for children of this process, and end those of supervisors that are gone.

    Returns:
        None where there is no such thing: no version 2, no right to change it, or a kernel before 5.14.
    """
    base = _own_group()
    if base is None or not os.access(f"{base}/cgroup.procs", os.W_OK):
        return None
    try:
        _end_stale(base)
        # A program may have several supervisors.
        taken = [name.rpartition(".")[2] for name in os.listdir(base) if is_of(name, os.getpid())]
        last = max((int(number) for number in taken if number.isdigit()), default=0)
        path = f"{base}/{name_of(os.getpid())}.{last + 1}"
        os.mkdir(path)
        if not os.access(f"{path}/cgroup.kill", os.W_OK):
            os.rmdir(path)
            return None
    except OSError:
        return None
    return Subtree(path)


def subtrees_of(pid: int) -> str:
    """How the paths of a process's subtrees begin; "" for nowhere. It may be dead, but not yet reaped.

    It must be in the same control group as this process.
    """
    base = _own_group()
    return f"{base}/{name_of(pid)}" if base is not None else ""


def end_subtrees(prefix: str) -> None:
    """Kill everything in the subtrees whose paths begin so, and remove them as far as they are empty."""
    base, name = os.path.split(prefix)
    with suppress(OSError):
        for entry in os.listdir(base) if prefix else []:
            if entry.partition(".")[0] == name:
                end_group(f"{base}/{entry}")


def name_of(pid: int) -> str:
    """What the control groups of a process are called, up to a dot: by its PID namespace, number and start."""
    # The number alone could become a stranger's, and in another namespace it is one.
    return f"{_NAME}{os.stat('/proc/self/ns/pid').st_ino}-{pid}-{_start_time(pid)}"


def is_of(name: str, pid: int) -> bool:
    """Whether a control group of that name was made by a process."""
    return name.partition(".")[0] == name_of(pid)


def is_stale(name: str) -> bool:
    """Whether a control group of that name was made by a supervisor that is gone."""
    space, _, owner = name.removeprefix(_NAME).partition("-")
    pid = owner.partition("-")[0]
    # Who lives in another PID namespace cannot be seen from here.
    is_judged = name.startswith(_NAME) and space == str(os.stat("/proc/self/ns/pid").st_ino)
    return is_judged and pid.isdigit() and not is_of(name, int(pid)) and not _is_hidden(int(pid))


def _is_hidden(pid: int) -> bool:
    """Whether a process is there of which /proc does not tell us when it was started (`hidepid=`)."""
    if _start_time(pid):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return True


def _end_stale(base: str) -> None:
    stale = [f"{base}/{name}" for name in os.listdir(base) if is_stale(name)]
    until = time.monotonic() + _STALE_S
    while stale := [path for path in stale if not end_group(path)]:
        if time.monotonic() > until:
            break  # the next start will find it
        time.sleep(0.01)


def end_group(path: str) -> bool:
    """Kill everything below a control group, and remove it; False if it is not empty yet."""
    with suppress(OSError):
        _write(f"{path}/cgroup.kill", "1")
    # There may be groups below it: leaves, or what a supervisor that was a member has made.
    for folder, _, _ in os.walk(path, topdown=False):
        with suppress(OSError):
            os.rmdir(folder)
    return not os.path.exists(path)


def _start_time(pid: int) -> str:
    """When a process was started, in ticks since the boot: with its number it names the process for good.

    "" if it is gone, or if that cannot be seen.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return ""
    return text[text.rfind(b")") + 2 :].split()[19].decode()


class Mount(NamedTuple):
    """One line of a mountinfo file."""

    root: str
    """What of the file system is mounted."""
    point: str
    kind: str
    options: str
    """Of the file system."""


def read_mounts(proc: str = "/proc/self") -> list[Mount]:
    """What a process has mounted, whatever that is called.

    Raises:
        OSError: it cannot be read.
    """
    mounts: list[Mount] = []
    # Users may mount things at paths that are no UTF-8, and what is mounted may have an empty name.
    with open(f"{proc}/mountinfo", errors="surrogateescape") as file:
        for line in file:
            left, _, right = line.rstrip("\n").partition(" - ")
            kind, _, options = right.split(" ", 2)
            root, point = left.split(" ")[3:5]
            mounts.append(Mount(root, point, kind, options))
    return mounts


def read_groups(proc: str = "/proc/self") -> dict[str, str]:
    """The control groups of a process, by the names of the controllers, commas between; "" is version 2.

    Raises:
        OSError: it cannot be read.
    """
    with open(f"{proc}/cgroup", errors="surrogateescape") as file:
        rows = (line.rstrip("\n").split(":", 2) for line in file)
        return {names: path for _, names, path in rows}


def place_of(group: str, mount: Mount) -> str | None:
    """The folder of a control group below a mount.

    Returns:
        None if it is none of what is mounted, as in a container that sees only its own part.
    """
    below = os.path.relpath(group, mount.root)
    return None if below.startswith("..") else os.path.normpath(f"{mount.point}/{below}")


def _own_group() -> str | None:
    """The directory of the version 2 control group that this process is in."""
    try:
        own, mounts = read_groups().get(""), read_mounts()
    except OSError:
        return None
    for mount in mounts:
        if mount.kind == "cgroup2" and own is not None and (path := place_of(own, mount)) is not None:
            return path
    return None


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
