"""Nothing outlives its owner: what comes of a process is known, found and killed, wherever it has gone.

Each process has an `Enclosure`: a tag that all of its descendants inherit and, where the system gives us
one, a control group. `Containment.sweep` kills by both, and by ancestry and session for those that have shed
their tag, until a look at all processes finds nothing more. Signals go to pidfds that were checked after
they were opened, so never to a stranger who has come by a number.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import signal
from collections.abc import Generator, Iterable
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field

import trio

from ._cgroup import Leaf, Subtree
from ._limits import Restraint
from ._process_tag import (
    DAEMON_MASK,
    SESSION_MASK,
    TagSpace,
    children_of,
    every_pid,
    inherited_tag,
    state_and_parent,
    tag_of,
    tag_process,
    tags_work,
)

log = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER = 36
"""From linux/prctl.h."""

SWEEP_S = 5.0
"""How long what was killed may take to be gone before it is left: only what hangs in the kernel takes longer."""

DEATH_S = 0.25
"""How long one look waits for those that it has killed, before the next one looks again."""


class Enclosure:
    """Around one process: made before its start, it holds all that comes of it. Made by `Containment`."""

    def __init__(
        self, containment: Containment, tag: int, leaf: Leaf | None, restraint: Restraint | None
    ) -> None:
        self.tag = tag
        self.leaf = leaf
        self.restraint = restraint
        """The limits that hold for all that is in here."""
        self.leader = 0
        """The number of the process itself, while it is unreaped and the number so its own."""
        self._containment = containment

    @contextmanager
    def around_spawn(self) -> Generator[None]:
        """A process that is started within is enclosed; call `started` next, with no await between."""
        with inherited_tag(self.tag) if self._containment.owns_process else nullcontext():
            yield

    def started(self, pid: int) -> None:
        """The process is there, and will be reaped by its owner."""
        self.leader = pid
        self._containment.leaders.add(pid)
        if not self._containment.owns_process:
            tag_process(pid, self.tag)
        if self.leaf is not None:
            try:
                self.leaf.join(pid)
                for descendant in _below(pid):  # those that it has forked before
                    self.leaf.join(descendant)
            except ProcessLookupError:
                pass  # it is dead already
            except OSError as error:
                self._containment.lose_cgroups(error)

    def leader_was_reaped(self) -> None:
        """From here on its number may be a stranger's."""
        self._containment.leaders.discard(self.leader)
        self.leader = 0

    def kill(self) -> None:
        """SIGKILL to what can be reached at once, beyond its process group; a sweep finds the rest."""
        if self.leaf is not None:
            self.leaf.kill()

    async def sweep(self) -> None:
        """Kill all that is in here; return when nothing is left, see `Containment.sweep`."""
        self.kill()
        await self._containment.sweep(self.tag)

    def dispose(self) -> None:
        """The process is over. What it may have left behind stays known by its tag."""
        self.leader_was_reaped()
        self._containment.disposed(self)
        if self.restraint is not None:
            self.restraint.release()

    @property
    def has_members(self) -> bool:
        """Whether anything in here lives. It looks at all processes: not for every day."""
        return self._containment.has_members(self.tag)

    def is_leader(self, pid: int) -> bool:
        """Whether a child that has just been started is the process of this enclosure."""
        return not self._containment.owns_process or tag_of(pid) == self.tag


@dataclass(slots=True, eq=False)
class _Sweep:
    key: int
    is_clean: bool = False


@dataclass(slots=True)
class _Found:
    """What one look has found for the keys that it was for."""

    keys: set[int] = field(default_factory=set[int])
    """The keys for which there was something."""
    pidfds: list[int] = field(default_factory=list[int])
    """What has been killed; whoever gets this closes them."""


class Containment:
    """All enclosures of one supervisor.

    Args:
        owns_process: whether this whole process is a daemon of ours. In a program of somebody else's,
            children are tagged only after their start (a child of that program's own, started in between,
            would get the tag too), and their orphans go to whoever gets orphans there.
        subtree: where control groups are made; None for none.
    """

    def __init__(self, *, owns_process: bool, subtree: Subtree | None = None) -> None:
        self.is_subreaper = owns_process
        self.owns_process = owns_process and tags_work()
        self.leaders: set[int] = set()
        """Children that are watched and reaped by their owners, and by nobody else."""
        self._subtree = subtree
        self._tags = TagSpace()
        self._enclosures: dict[int, Enclosure] = {}
        """By tag, until their processes are over."""
        self._leaves: dict[int, Leaf] = {}
        """Control groups by tag, until they are empty and removed."""
        self._sweeps: list[_Sweep] = []
        self._looking = trio.Lock()
        if owns_process:
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    @property
    def kind(self) -> str:
        """The strongest means there is: `cgroup`, `subreaper`, or only `tag` inside another program."""
        if self._subtree is not None:
            return "cgroup"
        return "subreaper" if self.is_subreaper else "tag"

    def lose_cgroups(self, error: OSError) -> None:
        """Go on without control groups: they have failed."""
        if self._subtree is not None:
            log.warning("control groups cannot be used: %s; going on without", error.strerror)
            self._subtree = None

    # --- what is enclosed ----------------------------------------------------------------------------

    def next_session(self) -> int:
        """The tag of a new session, under which all of its processes are found, whatever became of them."""
        return self._tags.next_session()

    def enclose(self, session: int, restraint: Restraint | None = None) -> Enclosure:
        """An enclosure for a process that a session is about to start, with its limits if it has any."""
        tag = self._tags.next_process(session)
        leaf = restraint.leaf if restraint is not None else None
        if leaf is not None:
            self._leaves[tag] = leaf
        elif self._subtree is not None:
            try:
                leaf = self._leaves[tag] = self._subtree.leaf(f"{tag & ~DAEMON_MASK:x}")
            except OSError as error:
                self.lose_cgroups(error)
        enclosure = self._enclosures[tag] = Enclosure(self, tag, leaf, restraint)
        return enclosure

    def disposed(self, enclosure: Enclosure) -> None:
        """A process is over, or was never started."""
        self._enclosures.pop(enclosure.tag, None)
        if enclosure.leaf is not None and enclosure.leaf.remove():
            self._leaves.pop(enclosure.tag, None)

    def has_members(self, key: int) -> bool:
        """Whether anything lives that comes of a session, or of a process."""
        return any(not _is_dead(pid) for pid in self._members({key}))

    # --- the end of it -------------------------------------------------------------------------------

    async def sweep(self, key: int) -> None:
        """Kill all that carries a tag; return when a whole look has found nothing.

        It takes SWEEP_S at most, cancelled or not.

        Args:
            key: the tag of a process, or of a session for all of its processes.
        """
        sweep = _Sweep(key)
        self._sweeps.append(sweep)
        try:
            with trio.move_on_after(SWEEP_S, shield=True) as limit:
                while not sweep.is_clean:
                    # One look serves all who wait: hundreds of processes may end at the same time.
                    async with self._looking:
                        if not sweep.is_clean:
                            await self._pass()
            if limit.cancelled_caught:
                log.error("something of %x does not die of SIGKILL", key & ~DAEMON_MASK)
        finally:
            self._sweeps.remove(sweep)
        for tag in [tag for tag in self._leaves if key in (tag, tag & SESSION_MASK)]:
            if tag not in self._enclosures and self._leaves[tag].remove():
                del self._leaves[tag]

    async def _pass(self) -> None:
        sweeps = list(self._sweeps)
        found = self._look({sweep.key for sweep in sweeps})
        try:
            with trio.move_on_after(DEATH_S):
                for pidfd in found.pidfds:
                    await trio.lowlevel.wait_readable(pidfd)
        finally:
            for pidfd in found.pidfds:
                trio.lowlevel.notify_closing(pidfd)
                os.close(pidfd)
        for sweep in sweeps:
            sweep.is_clean = sweep.key not in found.keys
        if found.pidfds:
            self.reap_orphans()
        await trio.lowlevel.checkpoint()

    def kill_everything(self) -> None:
        """SIGKILL to all that one look finds, without waiting: for leaving in a hurry."""
        for leaf in self._leaves.values():
            leaf.kill()
        for pidfd in self._look({self._tags.daemon}).pidfds:
            os.close(pidfd)

    def reap_orphans(self) -> None:
        """Take away dead children that nobody has started: orphans of supervised processes."""
        if not self.is_subreaper:
            return
        for pid in children_of(os.getpid()):
            if pid not in self.leaders:
                with suppress(ChildProcessError):
                    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)

    def close(self) -> None:
        """Remove what is left of control groups."""
        if self._subtree is not None:
            self._subtree.close()

    # --- one look at all processes -------------------------------------------------------------------

    def _look(self, keys: set[int]) -> _Found:
        """Find and kill, without waiting, everything that belongs to one of the keys."""
        owners = self._members(keys)
        found = _Found()
        for pid, key in owners.items():
            if _is_dead(pid):
                continue
            try:
                pidfd = os.pidfd_open(pid)
            except OSError as error:
                if error.errno != errno.ESRCH:
                    found.keys.add(key)  # no room for a descriptor now: next time
                continue
            # Looked at again: whoever has the number now, the descriptor is of nobody later than that.
            if not self._still_belongs(pid, key, owners):
                os.close(pidfd)
                continue
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except PermissionError:
                log.warning("process %d may not be killed: it has become another user's", pid)
                os.close(pidfd)
                continue
            except ProcessLookupError:
                pass
            found.keys.add(key)
            found.pidfds.append(pidfd)
        return found

    def _members(self, keys: set[int]) -> dict[int, int]:
        """The processes that belong to one of the keys, and to which."""
        leaders = {
            enclosure.leader: key
            for enclosure in self._enclosures.values()
            if enclosure.leader and (key := _key_of(enclosure.tag, keys))
        }
        members = dict(leaders)
        for tag, leaf in self._leaves.items():
            if key := _key_of(tag, keys):
                members.update(dict.fromkeys(leaf.members(), key))
        for pid in self._strays():
            if key := _key_of(tag_of(pid), keys) or leaders.get(_session_of(pid), 0):
                members[pid] = key
        # Before anything is killed: the children of the dead are somebody else's.
        for pid in list(members):
            for descendant in _below(pid):
                members.setdefault(descendant, members[pid])
        return members

    def _strays(self) -> Iterable[int]:
        """Where members may be that no leader is an ancestor of.

        Orphans come to a subreaper, so for one it need not be all processes of the machine.
        """
        if not self.is_subreaper:
            return every_pid()
        orphans = [pid for pid in children_of(os.getpid()) if pid not in self.leaders]
        return orphans + [pid for orphan in orphans for pid in _below(orphan)]

    def _still_belongs(self, pid: int, key: int, owners: dict[int, int]) -> bool:
        if _key_of(tag_of(pid), {key}) or _session_of(pid) in self.leaders:
            return True
        if state_and_parent(pid)[1] in owners:
            return True
        return any(pid in leaf.members() for tag, leaf in self._leaves.items() if _key_of(tag, {key}) == key)


def _key_of(tag: int, keys: Iterable[int]) -> int:
    """The key that a tag falls under; 0 if it is none of these."""
    return next((key for key in (tag, tag & SESSION_MASK, tag & DAEMON_MASK) if key and key in keys), 0)


def _below(pid: int) -> Generator[int]:
    """All descendants of a process."""
    for child in children_of(pid):
        yield child
        yield from _below(child)


def _session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1


def _is_dead(pid: int) -> bool:
    return state_and_parent(pid)[0] in "ZX"
