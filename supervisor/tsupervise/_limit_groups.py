"""Control groups that bound: memory, tasks and CPU time of a process with all that comes of it.

Each controller is asked for where it is: in version 2, if somebody has delegated it to us, or in a hierarchy of
version 1 that we may change. Only processes with limits get such groups; each daemon has a folder for its own.
The keeper imports this, so it loads nothing heavy.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Literal, NamedTuple

from ._cgroup import Leaf, end_group, is_delegated, is_stale, name_of, place_of, read_groups, read_mounts

Controller = Literal["memory", "pids", "cpu"]

CONTROLLERS: tuple[Controller, ...] = ("memory", "pids", "cpu")

PERIOD_US = 100_000
"""How often a share of CPU time is dealt out: the kernel's own default."""

_SUFFIX = ".limits"


class Hierarchy(NamedTuple):
    """A folder where control groups of some controllers can be made."""

    base: str
    controllers: frozenset[Controller]
    version: Literal[1, 2]


class Group:
    """The control groups of one process: a folder in each hierarchy that its limits need. Made by `LimitGroups`."""

    __slots__ = ("_folders", "leaf")

    def __init__(self) -> None:
        self._folders: dict[str, Hierarchy] = {}
        self.leaf: Leaf | None = None
        """The one of version 2, if there is one: a process can be in no other besides."""

    def add(self, path: str, hierarchy: Hierarchy) -> None:
        """Make one of the folders.

        Raises:
            OSError: the system has no room, or does not let us.
        """
        os.mkdir(path)
        self._folders[path] = hierarchy
        if hierarchy.version == 2:
            self.leaf = Leaf(path)

    def join(self, pid: int) -> None:
        """Move a process in, with all of its threads. What it has used of memory so far counts elsewhere.

        Raises:
            OSError: it is dead, or we may not.
        """
        for path in self._folders:
            _write(f"{path}/cgroup.procs", str(pid))

    @property
    def oom_kills(self) -> int:
        """How many of its processes the kernel has killed for memory."""
        for path, hierarchy in self._folders.items():
            if "memory" in hierarchy.controllers:
                file = "memory.oom_control" if hierarchy.version == 1 else "memory.events"
                return _counters(f"{path}/{file}").get("oom_kill", 0)
        return 0

    def remove(self) -> bool:
        """Remove what is empty; return whether all is gone."""
        for path in list(self._folders):
            try:
                os.rmdir(path)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    continue
            del self._folders[path]
        return not self._folders


class LimitGroups:
    """All control groups with limits of one supervisor.

    Args:
        proc: where the kernel tells of this process.
    """

    def __init__(self, proc: str = "/proc/self") -> None:
        self._folder = f"{name_of(os.getpid())}{_SUFFIX}"
        self._hierarchies: dict[Controller, Hierarchy] = {}
        for hierarchy in _hierarchies(proc):
            usable = _enabled(hierarchy) if hierarchy.version == 2 else hierarchy.controllers
            found = Hierarchy(hierarchy.base, usable, hierarchy.version)
            for controller in usable:
                self._hierarchies.setdefault(controller, found)
        self._stale = [
            f"{hierarchy.base}/{name}"
            for hierarchy in set(self._hierarchies.values())
            for name in _listing(hierarchy.base)
            if name.endswith(_SUFFIX) and is_stale(name)
        ]
        self.remove_stale()

    @property
    def controllers(self) -> frozenset[Controller]:
        """What can be bounded here."""
        return frozenset(self._hierarchies)

    def make(self, name: str, bounds: Mapping[Controller, float]) -> Group:
        """Make the groups of a process that is about to start.

        Args:
            name: of the folders, used once.
            bounds: bytes of memory, number of tasks, CPU time per time. Each of `controllers`.

        Raises:
            OSError: the system does not take it; nothing is left of it then.
        """
        group = Group()
        try:
            for hierarchy in {self._hierarchies[controller] for controller in bounds}:
                folder = f"{hierarchy.base}/{self._folder}"
                with suppress(FileExistsError):
                    os.mkdir(folder)
                    if hierarchy.version == 2:
                        _enable(folder, hierarchy.controllers)
                path = f"{folder}/{name}"
                group.add(path, hierarchy)
                for controller, bound in bounds.items():
                    if self._hierarchies[controller] == hierarchy:
                        _bound(path, hierarchy.version, controller, bound)
        except OSError:
            group.remove()
            raise
        return group

    def remove_stale(self) -> None:
        """Remove what daemons that are gone have left, as far as it is empty."""
        self._stale = [path for path in self._stale if not end_group(path)]

    def close(self) -> None:
        """Remove the folders of this daemon, if they are empty."""
        for hierarchy in self._hierarchies.values():
            with suppress(OSError):
                os.rmdir(f"{hierarchy.base}/{self._folder}")


def folders_of(daemon: int) -> list[str]:
    """Where a daemon has its groups, if it has any; it lives, or is dead and not yet reaped.

    It must be in the same control groups as this process.
    """
    return [f"{hierarchy.base}/{name_of(daemon)}{_SUFFIX}" for hierarchy in _hierarchies("/proc/self")]


# --- where controllers are -------------------------------------------------------------------------------


def _hierarchies(proc: str) -> Iterator[Hierarchy]:
    """Every folder that may hold our groups, the best first, with the controllers that it may have."""
    try:
        groups, mounts = read_groups(proc), read_mounts(proc)
    except OSError:
        return
    own = {name: path for names, path in groups.items() for name in names.split(",")}
    found: list[Hierarchy] = []
    for mount in mounts:
        names = {""} if mount.kind == "cgroup2" else {*mount.options.split(",")} & {*CONTROLLERS}
        if mount.kind not in ("cgroup", "cgroup2") or not (names := names & own.keys()):
            continue
        base = place_of(own[min(names)], mount)
        if base is None:
            continue
        if mount.kind == "cgroup2":
            # Processes and controllers for groups below exclude each other, but in the root of all. What is
            # delegated to us has room for them if we are below it (`step_aside`, systemd's DelegateSubgroup=).
            above = os.path.dirname(base)
            if _is_root(base):
                found.append(Hierarchy(base, _names_in(f"{base}/cgroup.controllers"), 2))
            elif is_delegated(above) and not Leaf(above).members():
                found.append(Hierarchy(above, _names_in(f"{above}/cgroup.controllers"), 2))
        else:
            found.append(Hierarchy(base, frozenset(name for name in CONTROLLERS if name in names), 1))
    found.sort(key=lambda hierarchy: -hierarchy.version)
    for hierarchy in found:
        if os.access(hierarchy.base, os.W_OK) and os.access(f"{hierarchy.base}/cgroup.procs", os.W_OK):
            yield hierarchy


def _is_root(path: str) -> bool:
    """Whether a control group of version 2 is the machine's root: the only one that has no type."""
    return not os.path.exists(f"{path}/cgroup.type")


def _enabled(hierarchy: Hierarchy) -> frozenset[Controller]:
    """The controllers that groups below a folder of version 2 have; those that can be switched on are."""
    _enable(hierarchy.base, hierarchy.controllers)
    return _names_in(f"{hierarchy.base}/cgroup.subtree_control")


def _enable(folder: str, controllers: frozenset[Controller]) -> None:
    for controller in controllers - _names_in(f"{folder}/cgroup.subtree_control"):
        with suppress(OSError):  # there are processes in it, or it is not ours
            _write(f"{folder}/cgroup.subtree_control", f"+{controller}")


def _names_in(path: str) -> frozenset[Controller]:
    try:
        with open(path) as file:
            words = file.read().split()
    except OSError:
        return frozenset()
    return frozenset(name for name in CONTROLLERS if name in words)


def _listing(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


# --- their files -----------------------------------------------------------------------------------------


def _bound(path: str, version: int, controller: Controller, bound: float) -> None:
    match controller, version:
        case "memory", 1:
            _write(f"{path}/memory.limit_in_bytes", str(int(bound)))
            with suppress(FileNotFoundError):  # the system does not account for swap
                _write(f"{path}/memory.memsw.limit_in_bytes", str(int(bound)))
        case "memory", _:
            _write(f"{path}/memory.max", str(int(bound)))
            with suppress(FileNotFoundError):
                _write(f"{path}/memory.swap.max", "0")
        case "pids", _:
            _write(f"{path}/pids.max", str(int(bound)))
        case "cpu", 1:
            _write(f"{path}/cpu.cfs_period_us", str(PERIOD_US))
            _write(f"{path}/cpu.cfs_quota_us", str(round(bound * PERIOD_US)))
        case "cpu", _:
            _write(f"{path}/cpu.max", f"{round(bound * PERIOD_US)} {PERIOD_US}")


def _counters(path: str) -> dict[str, int]:
    """A file of lines of a name and a number; {} if it cannot be read."""
    try:
        with open(path) as file:
            return {name: int(value) for name, value in (line.split() for line in file)}
    except OSError:
        return {}


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
