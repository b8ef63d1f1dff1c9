"""Limits of a process: which of them this machine can enforce, and how one process gets its own.

What bounds a process with all that comes of it (memory, pids, CPU) needs a control group: a resource limit would
count something else. RLIMIT_AS counts addresses and each process by itself; RLIMIT_NPROC counts all that a user
runs, and root not at all. The rest is inherited by every descendant: resource limits, nice, umask. A program with
the rights of root may raise its own again; nobody gets out of a control group that he may not write to.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from itertools import count

from tsupervise_protocol.errors import ErrorCode, RpcError
from tsupervise_protocol.messages import LIMIT_CAPABILITIES, Limits

from ._cgroup import Leaf
from ._limit_groups import Controller, Group, LimitGroups
from ._process_tag import children_of, state_and_parent

_CONTROLLER_OF: dict[str, Controller] = {"memoryBytes": "memory", "pids": "pids", "cpuQuota": "cpu"}

_numbers = count(1)
"""Names of groups. Of this whole process: a program may have several supervisors."""


class Restraint:
    """The limits of one process, made before its start by `Limiter.restrain`.

    The process is stopped as soon as we know that it is there, and goes on when everything holds. That is, as a
    rule, before it has loaded its libraries; on a busy machine it may have run for some milliseconds. What it has
    forked meanwhile is bounded as well, the memory that it has taken meanwhile is not counted.
    """

    def __init__(self, limits: Limits, group: Group | None) -> None:
        self._umask = limits.umask
        self._nice = limits.nice
        self._resources = [
            (which, value)
            for which, value in (
                (resource.RLIMIT_NOFILE, limits.nofile),
                (resource.RLIMIT_CORE, limits.core_bytes),
            )
            if value is not None
        ]
        self._group = group
        self.is_over = False

    @property
    def leaf(self) -> Leaf | None:
        """The control group that holds the process in version 2, if its limits need one there."""
        return self._group.leaf if self._group is not None else None

    @contextmanager
    def around_spawn(self) -> Generator[None]:
        """A process that is started within has its umask. So has, meanwhile, every thread of this program."""
        if self._umask is None:
            yield
            return
        before = os.umask(self._umask)
        try:
            yield
        finally:
            os.umask(before)

    def hold(self, pid: int) -> None:
        """Stop the process that was just started; `impose` follows, with no await between."""
        if self._is_imposed_later:
            with suppress(OSError):  # it has become another user's: then it is bounded while it runs
                os.kill(pid, signal.SIGSTOP)

    def impose(self, pid: int) -> None:
        """Bound the process and what it has forked, and let it go on.

        Raises:
            OSError: the system does not let us. The process is still stopped, and must be killed.
        """
        if not self._is_imposed_later:
            return
        bounded: set[int] = set()
        # Once a process is bounded, so is all that it forks: this comes to an end.
        while found := [member for member in _family(pid) if member not in bounded]:
            for member in found:
                self._impose_on(member)
            bounded.update(found)
        with suppress(OSError):
            os.kill(pid, signal.SIGCONT)

    @property
    def _is_imposed_later(self) -> bool:
        return self._group is not None or self._nice is not None or bool(self._resources)

    def _impose_on(self, pid: int) -> None:
        try:
            if self._group is not None:
                self._group.join(pid)
            for which, value in self._resources:
                resource.prlimit(pid, which, (value, value))
            if self._nice is not None:
                os.setpriority(os.PRIO_PROCESS, pid, self._nice)
        except OSError:
            if state_and_parent(pid)[0] not in "ZX":
                raise

    @property
    def oom_kills(self) -> int:
        """How many of its processes the kernel has killed because its memory was used up."""
        return self._group.oom_kills if self._group is not None else 0

    def release(self) -> bool:
        """The process is over: remove its control groups, and return whether they are gone.

        They stay as long as anything lives in them.
        """
        self.is_over = True
        return self._group is None or self._group.remove()


class Limiter:
    """What one supervisor can enforce.

    Args:
        groups: the control groups that there are; None to look.
    """

    def __init__(self, groups: LimitGroups | None = None) -> None:
        self._groups = groups or LimitGroups()
        self._restraints: list[Restraint] = []
        """Those whose control groups are not removed yet."""

    @property
    def capabilities(self) -> list[str]:
        """The capabilities of the limits that can be enforced here."""
        controllers = self._groups.controllers
        return [
            capability
            for name, capability in LIMIT_CAPABILITIES.items()
            if name not in _CONTROLLER_OF or _CONTROLLER_OF[name] in controllers
        ]

    def restrain(self, limits: Limits) -> Restraint:
        """Prepare what will bound a process that is about to start.

        Raises:
            RpcError: INVALID_PARAMS, one of the limits cannot be enforced here.
        """
        self.remove_empty()
        bounds: dict[Controller, float] = {}
        for name, value in (
            ("memoryBytes", limits.memory_bytes),
            ("pids", limits.pids),
            ("cpuQuota", limits.cpu_quota),
        ):
            if value is not None:
                controller = _CONTROLLER_OF[name]
                if controller not in self._groups.controllers:
                    raise _refusal(
                        name,
                        f"it needs a control group with the {controller} controller that this daemon may change; "
                        "run it as root, or in a delegated subtree, or leave the limit out",
                    )
                bounds[controller] = value
        _check_resource("nofile", resource.RLIMIT_NOFILE, limits.nofile)
        _check_resource("coreBytes", resource.RLIMIT_CORE, limits.core_bytes)
        _check_nice(limits.nice)
        group: Group | None = None
        if bounds:
            try:
                group = self._groups.make(f"{next(_numbers):x}", bounds)
            except OSError as error:
                names = ", ".join(name for name, controller in _CONTROLLER_OF.items() if controller in bounds)
                raise _refusal(names, f"the system says {error.strerror} (os error {error.errno})") from None
        restraint = Restraint(limits, group)
        if group is not None:
            self._restraints.append(restraint)
        return restraint

    def remove_empty(self) -> None:
        """Remove the groups of processes that are over, and of daemons that are gone, if nothing lives there."""
        self._groups.remove_stale()
        self._restraints = [one for one in self._restraints if not (one.is_over and one.release())]

    def close(self) -> None:
        """Remove all control groups in which nothing lives."""
        for restraint in self._restraints:
            restraint.release()
        self._groups.close()


def _check_resource(name: str, which: int, value: int | None) -> None:
    """See whether a child can have a resource limit: the kernel is asked, for who may raise one is not simple."""
    soft, hard = resource.getrlimit(which)
    if value is None or hard == resource.RLIM_INFINITY or value <= hard:
        return
    try:
        resource.setrlimit(which, (soft, value))
    except (ValueError, OSError):
        raise _refusal(name, f"this daemon may not go beyond its own hard limit, {hard}") from None
    resource.setrlimit(which, (soft, hard))


def _check_nice(value: int | None) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    if value is None or value >= own:
        return
    try:
        os.setpriority(os.PRIO_PROCESS, 0, value)
    except OSError:
        raise _refusal("nice", f"this daemon may not go below its own, {own}") from None
    os.setpriority(os.PRIO_PROCESS, 0, own)


def _refusal(names: str, reason: str) -> RpcError:
    return RpcError(ErrorCode.INVALID_PARAMS, f"limits: {names} cannot be enforced here: {reason}")


def _family(pid: int) -> Iterator[int]:
    """A process and all of its descendants."""
    yield pid
    for child in children_of(pid):
        yield from _family(child)
