"""Limits of a process: which of them this machine can enforce, and how one process gets its own.

What bounds a process with all that comes of it (memory, pids, CPU) needs a control group: a resource limit would
count something else. RLIMIT_AS counts addresses and each process by itself; RLIMIT_NPROC counts all that a user
runs, and root not at all. The rest is inherited by every descendant: resource limits, nice, umask. A program with
the rights of root may raise its own again; nobody gets out of a control group that he may not write to.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count

from tsupervise_protocol.errors import ErrorCode, RpcError
from tsupervise_protocol.messages import LIMIT_CAPABILITIES, Limits

from ._cgroup import Leaf
from ._limit_groups import Controller, Group, LimitGroups
from ._posix_spawn import SpawnPlan
from ._spawn_gate import NoGate, start_through_gate

_CONTROLLER_OF: dict[str, Controller] = {"memoryBytes": "memory", "pids": "pids", "cpuQuota": "cpu"}

LEAVE_S = 0.2
"""How long the groups of processes that have just been reaped may be in use still: the kernel leaves them late."""

_numbers = count(1)
"""Names of groups. Of this whole process: a program may have several supervisors."""


class Restraint:
    """The limits of one process, made before its start by `Limiter.restrain`.

    Its program is bounded from the first instruction on.
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

    def start(
        self, start: Callable[[SpawnPlan], int], is_ours: Callable[[int], bool], plan: SpawnPlan
    ) -> int:
        """Start the process, bounded; returns its pid.

        Args:
            start: the system's way of starting a child.
            is_ours: whether a new child is this one, called in another thread.
            plan: what the child is to be.

        Raises:
            OSError: from `start`.
            RpcError: INVALID_PARAMS, the system does not let us bound it, so it was not started.
        """
        mask = _Umask(self._umask)
        refusals: list[OSError] = []

        def treat(pid: int) -> None:
            # The child has its own by now. Ours is that of all threads here: not a moment longer than it takes.
            mask.restore()
            try:
                self._impose_on(pid)
            except OSError as error:
                refusals.append(error)
                raise

        def start_waiting(gate: bytes) -> int:
            mask.set()
            return start(replace(plan, gate=gate))

        try:
            return start_through_gate(start_waiting, is_ours, treat)
        except NoGate as error:
            raise _refusal("they", str(error)) from None
        except OSError as error:
            if error in refusals:
                raise _refusal("they", f"the system says {error.strerror} (os error {error.errno})") from None
            raise
        finally:
            mask.restore()

    def _impose_on(self, pid: int) -> None:
        if self._group is not None:
            self._group.join(pid)
        for which, value in self._resources:
            resource.prlimit(pid, which, (value, value))
        if self._nice is not None:
            os.setpriority(os.PRIO_PROCESS, pid, self._nice)

    @property
    def oom_kills(self) -> int:
        """How many of its processes the kernel has killed because its memory was used up."""
        return self._group.oom_kills if self._group is not None else 0

    def release(self) -> bool:
        """The process is over: remove its control groups, and return whether they are gone.

        They stay as long as anything lives in them, and for the moment that the kernel needs to leave them.
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
        """Remove all control groups in which nothing lives. It takes LEAVE_S at most."""
        for restraint in self._restraints:
            restraint.is_over = True
        gives_up_at = time.monotonic() + LEAVE_S
        self.remove_empty()
        while self._restraints and time.monotonic() < gives_up_at:
            time.sleep(LEAVE_S / 50)
            self.remove_empty()
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


class _Umask:
    """The umask of this whole program, changed for a moment."""

    def __init__(self, value: int | None) -> None:
        self._value = value
        self._before: int | None = None

    def set(self) -> None:
        if self._value is not None:
            self._before = os.umask(self._value)

    def restore(self) -> None:
        if self._before is not None:
            os.umask(self._before)
            self._before = None
