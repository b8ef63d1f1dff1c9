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
import select
import signal
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar, get_args

import trio

from ._cgroup import Leaf, Subtree
from ._limits import Restraint
from ._process_tag import (
    DAEMON_MASK,
    GONE,
    SESSION_MASK,
    TagSpace,
    children_of,
    descendants_of,
    every_pid,
    inherited_tag,
    parent_of,
    tag_of,
    take_tag,
)

log = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER = 36
"""From linux/prctl.h."""

SWEEP_S = 5.0
"""How long what was killed may take to be gone before it is left: only what hangs in the kernel takes longer."""

DEATH_S = 0.25
"""How long one look waits for those that it has killed, before the next one looks again."""

QUIET_LOOKS = 3
"""Looks at all processes of the machine that must find nothing: a list of them is made while they change."""

LOOKS_IN_VAIN = 30
"""Looks that must find nothing in a row, while somebody comes and goes between one and the next."""

MAX_AWAITED = 64
"""Of how many that it has killed one look awaits the death: descriptors are needed by others, too."""

RETRY_S = 0.01
"""When to look again if there was something and nothing could be done."""

LEAVES_AT_A_TIME = 2
"""Control groups of processes that are over, in which somebody was left, that a start looks at again."""

_NO_ROOM = (errno.EMFILE, errno.ENFILE)

_NO_PROCESS = (errno.ESRCH, errno.EINVAL, errno.ENOENT)
"""What pidfd_open says of a number that is nobody's, or a mere thread's: the last of Linux 6.15 and later."""

_T = TypeVar("_T")

KillMeans = Literal["cgroup", "group", "family", "sweep"]
"""How members are killed: a control group or a process group at once; a process with its descendants, or what a
look for members has found, one by one."""

SPARE_DESCRIPTORS = 4
"""Kept for looks, which must not fail because all others are in use."""


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
        self.kills = containment.kills
        self._joined = False
        self._is_tagged = True

    @contextmanager
    def around_spawn(self) -> Generator[None]:
        """A process that is started within is enclosed; call `started` next, with no await between."""
        with inherited_tag(self.tag) as self._is_tagged:
            yield

    def started(self, pid: int) -> None:
        """The process is there, and will be reaped by its owner. `join` should follow soon."""
        self.leader = pid
        self._containment.started(self)

    def join(self) -> None:
        """Move the process into its control group, if it has one: that can take a millisecond."""
        if self.leaf is not None and self.leader and self._containment.has_leaf(self):
            self._joined = self._containment.join(self.leader, self.leaf)

    def leader_was_reaped(self) -> None:
        """From here on its number may be a stranger's."""
        self._containment.leaders.pop(self.leader, None)
        self.leader = 0

    def kill(self) -> None:
        """SIGKILL to what can be reached at once; a sweep finds the rest."""
        if self.leaf is not None:
            self._kill_leaf(self.leaf)
        if self.leader and not self._joined:
            self._containment.kill_family(self)

    async def sweep(self) -> None:
        """Kill all that is in here; return when nothing is left, see `Containment.sweep`."""
        if self.leaf is not None:
            self._kill_leaf(self.leaf)
        await self._containment.sweep(self.tag)

    def _kill_leaf(self, leaf: Leaf) -> None:
        leaf.kill()
        self.kills["cgroup"] += 1

    def forget(self) -> None:
        """Nobody will sweep it any more, but with its session."""
        self._containment.forgotten(self)

    def dispose(self) -> None:
        """The process is over. What it may have left behind stays known by its tag."""
        self.leader_was_reaped()
        self._containment.disposed(self)
        if self.restraint is not None:
            self.restraint.release()

    @property
    def has_members(self) -> bool:
        """Whether anything in here lives, or may live. It looks at all processes: not for every day."""
        try:
            return self._containment.has_members(self.tag)
        except OSError:  # no room to look
            return True

    def is_leader(self, pid: int) -> bool:
        """Whether a child that has just been started is the process of this enclosure.

        To a daemon orphans come in the same moment. Where there are no tags one of these may pass for it.
        """
        return not (self._containment.is_subreaper and self._is_tagged) or tag_of(pid) == self.tag


@dataclass(slots=True, eq=False)
class _Sweep:
    key: int
    is_clean: bool = False
    looks_in_vain: int = 0
    """How often nothing was found in a row, though somebody may have slipped by."""


class Containment:
    """All enclosures of one supervisor.

    Args:
        owns_process: whether this whole process is a daemon of ours. In a program of somebody else's
            there are other children, and orphans go to whoever gets them there.
        subtree: where control groups are made; None for none.
    """

    def __init__(self, *, owns_process: bool, subtree: Subtree | None = None) -> None:
        self.is_subreaper = owns_process
        self.leaders: dict[int, int] = {}
        """Children that are watched and reaped by their owners, and by nobody else, and their tags."""
        self._subtree = subtree
        self._usable = subtree is not None
        self._tags = TagSpace()
        self._leaves: dict[int, Leaf] = {}
        """Control groups by tag, until they are empty and removed."""
        self._left_behind: deque[int] = deque()
        """Of these, those whose process is over: somebody lived there still at the last look."""
        self._origins: set[int] = set()
        """Where a stray may come from: the tags of processes that were not swept; once they are forgotten, of
        their sessions."""
        self._strays: dict[int, frozenset[int]] = {}
        """Orphans without a tag, and where each may come from. They are children of ours: until they are reaped
        here, their numbers are their own."""
        self._sweeps: list[_Sweep] = []
        self._looking = trio.Lock()
        self._spares: list[int] = []
        self._known: set[int] = set()
        """Who was there at the last look at all processes."""
        self._somebody_fled = False
        self._refused: set[int] = set()
        """Processes that may not be killed, and of which this has been said."""
        self.kills = Counter[KillMeans](dict.fromkeys(get_args(KillMeans), 0))
        """So far."""
        self._keep_spares()
        if owns_process:
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    @property
    def kind(self) -> str:
        """The strongest means there is: `cgroup`, `subreaper`, or only `tag` inside another program."""
        if self._usable:
            return "cgroup"
        return "subreaper" if self.is_subreaper else "tag"

    def lose_cgroups(self, error: OSError) -> None:
        """Go on without control groups: they have failed."""
        if self._usable:
            log.warning("control groups cannot be used: %s; going on without", error.strerror)
            self._usable = False

    # --- what is enclosed ----------------------------------------------------------------------------

    def next_session(self) -> int:
        """The tag of a new session, under which all of its processes are found, whatever became of them."""
        return self._tags.next_session()

    def enclose(self, session: int, restraint: Restraint | None = None) -> Enclosure:
        """An enclosure for a process that a session is about to start, with its limits if it has any."""
        tag = self._tags.next_process(session)
        # More of them than can come, so they do not become many; but not all, for some may live for ever.
        for _ in range(min(LEAVES_AT_A_TIME, len(self._left_behind))):
            if not self._remove_leaf(oldest := self._left_behind.popleft()):
                self._left_behind.append(oldest)
        leaf = restraint.leaf if restraint is not None else None
        if leaf is not None:
            self._leaves[tag] = leaf
        elif self._usable and self._subtree is not None:
            try:
                leaf = self._leaves[tag] = self._subtree.leaf(f"{tag & ~DAEMON_MASK:x}")
            except OSError as error:
                self.lose_cgroups(error)
        return Enclosure(self, tag, leaf, restraint)

    def has_leaf(self, enclosure: Enclosure) -> bool:
        """Whether the control group of an enclosure is still there: it is removed by a sweep."""
        return enclosure.tag in self._leaves

    def started(self, enclosure: Enclosure) -> None:
        """There is a process in an enclosure."""
        self.leaders[enclosure.leader] = enclosure.tag
        self._origins.add(enclosure.tag)
        if not self.is_subreaper:
            # What another thread of the program has started in the same moment is none of ours.
            for pid in children_of(os.getpid()):
                if pid not in self.leaders and tag_of(pid) == enclosure.tag:
                    for stranger in (pid, *descendants_of(pid)):
                        take_tag(stranger)

    def join(self, leader: int, leaf: Leaf) -> bool:
        """Move a process into a control group, with what it has forked; returns whether that can be relied upon."""
        try:
            self._with_room(lambda: _join(leader, leaf))
        except ProcessLookupError:
            return False  # it is dead already
        except OSError as error:
            if error.errno not in _NO_ROOM:
                self.lose_cgroups(error)
            return False
        return True

    def disposed(self, enclosure: Enclosure) -> None:
        """A process is over, or was never started."""
        if enclosure.leaf is not None and not self._remove_leaf(enclosure.tag):
            self._left_behind.append(enclosure.tag)

    def _remove_leaf(self, tag: int) -> bool:
        """Remove a control group if it is empty; returns whether it is gone."""
        leaf = self._leaves.get(tag)
        if leaf is not None and not leaf.remove():
            return False
        self._leaves.pop(tag, None)
        return True

    def forgotten(self, enclosure: Enclosure) -> None:
        """Nobody will ask for a process any more: what it may have left behind is its session's."""
        if enclosure.tag in self._origins:
            # It was not swept. One number for all such processes of a session: there may be millions.
            self._origins.remove(enclosure.tag)
            self._origins.add(enclosure.tag & SESSION_MASK)

    def has_members(self, key: int) -> bool:
        """Whether anything lives that comes of a session, or of a process.

        Raises:
            OSError: there is no room for a descriptor to see it.
        """
        return self._with_room(lambda: any(_is_alive(pid) for pid, _, _ in self._suspects({key})))

    def kill_family(self, enclosure: Enclosure) -> None:
        """SIGKILL to the descendants of a process, if it has any, and to itself; orphans are left to a sweep.

        To be done before the process is dead: those that have shed the tag are known by their descent.
        """
        leader = enclosure.leader
        if tag_of(leader) == enclosure.tag and not self._with_room(lambda: children_of(leader)):
            return  # its group gets the signal, and what it forks before that has the tag
        hunt = self._hunt({enclosure.tag}, lambda: [(leader, enclosure.tag, _certainly)])
        self.kills["family"] += hunt.kills
        hunt.release()

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
        for tag in [tag for tag in self._leaves if _key_of(tag, (key,))]:
            if self._leaves[tag].end():
                del self._leaves[tag]

    async def _pass(self) -> None:
        sweeps = list(self._sweeps)
        hunt = self._look({sweep.key for sweep in sweeps})
        try:
            with trio.move_on_after(DEATH_S):
                for pidfd in hunt.awaited:
                    await trio.lowlevel.wait_readable(pidfd)
                if hunt.keys and not hunt.awaited:
                    await trio.sleep(RETRY_S)
        finally:
            hunt.release()
            self._keep_spares()
        for sweep in sweeps:
            sweep.looks_in_vain = 0 if sweep.key in hunt.keys else sweep.looks_in_vain + 1
            sweep.is_clean = sweep.looks_in_vain >= self._looks_needed(hunt)
        # Before the next look: what may come from nowhere else is its to find.
        clean = {sweep.key for sweep in sweeps if sweep.is_clean}
        self._origins = {tag for tag in self._origins if not _key_of(tag, clean)}
        await trio.lowlevel.checkpoint()

    def _looks_needed(self, hunt: _Hunt) -> int:
        """How many looks in a row must find nothing, by the last of them."""
        if self.is_subreaper:
            return 1  # nobody gets past it: the dead stay until they are reaped here
        return LOOKS_IN_VAIN if hunt.somebody_fled else QUIET_LOOKS

    def kill_everything(self) -> None:
        """SIGKILL to all that one look finds, without waiting: for leaving in a hurry."""
        for leaf in self._leaves.values():
            leaf.kill()
        self._look({self._tags.daemon}).release()

    def reap_orphans(self) -> None:
        """Take away dead children that nobody has started: orphans of supervised processes."""
        if self.is_subreaper:
            self._with_room(self._reap)

    def _reap(self, keys: Iterable[int] = ()) -> set[int]:
        """Reap orphans; note where those that live come from, and return the keys of the dead."""
        orphans = set(self._orphans())
        keys_of_dead: set[int] = set()
        for pid in orphans.copy():
            self._origins_of(pid)
            key = self._key_of_orphan(pid, keys)
            with suppress(ChildProcessError):
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is not None:
                    orphans.remove(pid)
                    keys_of_dead.add(key)
        self._strays = {pid: origins for pid, origins in self._strays.items() if pid in orphans}
        return keys_of_dead

    def close(self) -> None:
        """Remove what is left of control groups."""
        if self._subtree is not None:
            self._subtree.close()
        self._give_up_spares()

    # --- one look at all processes -------------------------------------------------------------------

    def _look(self, keys: set[int]) -> _Hunt:
        """Find and kill, without waiting, everything that belongs to one of the keys."""
        self._somebody_fled = False
        hunt = self._hunt(keys, lambda: self._suspects(keys))
        self.kills["sweep"] += hunt.kills
        hunt.somebody_fled = self._somebody_fled
        if self.is_subreaper:
            # Whoever has died meanwhile may have forked before.
            hunt.keys |= self._with_room(lambda: self._reap(keys))
        return hunt

    def _hunt(self, keys: set[int], suspects: Callable[[], Iterable[_Suspect]]) -> _Hunt:
        hunt = _Hunt(self._refused)
        try:
            self._with_room(lambda: hunt.take_all(suspects()))
        except OSError as error:
            log.warning("processes cannot be looked at: %s", error.strerror)
            hunt.keys |= keys
        return hunt

    def _suspects(self, keys: set[int]) -> Iterator[_Suspect]:
        """The processes that belong to one of the keys; below each of them there may be more."""
        for pid, tag in self.leaders.items():
            if key := _key_of(tag, keys):
                yield pid, key, _certainly
        for tag, leaf in list(self._leaves.items()):
            if not (key := _key_of(tag, keys)):
                continue
            if not self._remove_leaf(tag):
                for pid in leaf.members():
                    yield pid, key, leaf.holds
        if self.is_subreaper:
            # The youngest first: if they fork and go, it is the last that lives.
            for pid in reversed(self._orphans()):
                if key := self._key_of_orphan(pid, keys):
                    yield pid, key, _certainly
        else:
            known, pids = self._known, every_pid()
            self._known = set(pids)
            for pid in reversed(pids):
                tag = tag_of(pid)
                key = _key_of(tag, keys) or self._key_by_session(pid, keys)
                # One that was there at the last look was looked at then.
                self._somebody_fled |= pid not in known and (tag == GONE or key != 0)
                if key:
                    yield pid, key, partial(self._is_marked, key)

    def _orphans(self) -> list[int]:
        """Our children that we have not started."""
        return [pid for pid in children_of(os.getpid()) if pid not in self.leaders]

    def _key_by_session(self, pid: int, keys: set[int]) -> int:
        return _key_of(self.leaders.get(_session_of(pid), 0), keys)

    def _is_marked(self, key: int, pid: int) -> bool:
        return (_key_of(tag_of(pid), {key}) or self._key_by_session(pid, {key})) == key

    def _key_of_orphan(self, pid: int, keys: Iterable[int]) -> int:
        """The key under which all lies that an orphan may come from; 0 if it may be somebody else's."""
        if tag := self._own_tag_of(pid):
            return _key_of(tag, keys)
        key = next(iter(keys), 0)
        for origin in self._origins_of(pid):
            session = origin & SESSION_MASK
            # What has been swept is no origin any more, or this would not live.
            if origin in self._origins or session in self._origins:
                key = _key_of(origin if origin in self._origins else session, keys)
                if not key:
                    return 0
        return key

    def _origins_of(self, orphan: int) -> frozenset[int]:
        """Where an orphan may come from: the fewer, the sooner one looks."""
        if tag := self._own_tag_of(orphan):
            return frozenset((tag,))
        if orphan not in self._strays:
            # A tag is never gained: what a descendant has, its ancestors had.
            marks = (self._own_tag_of(pid) for pid in descendants_of(orphan))
            tag = self.leaders.get(_session_of(orphan), 0) or next((mark for mark in marks if mark), 0)
            self._strays[orphan] = frozenset((tag,) if tag else self._origins)
        return self._strays[orphan]

    def _own_tag_of(self, pid: int) -> int:
        """The tag of a process, if it is one of this supervisor's: another one may be among the supervised."""
        tag = max(tag_of(pid), 0)
        return tag if tag & DAEMON_MASK == self._tags.daemon else 0

    # --- descriptors for it --------------------------------------------------------------------------

    def _with_room(self, look: Callable[[], _T]) -> _T:
        """Do what needs descriptors; if there are none, once more with those that are kept for it.

        Raises:
            OSError: these are in use as well.
        """
        try:
            return look()
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
        self._give_up_spares()
        try:
            return look()
        finally:
            self._keep_spares()

    def _keep_spares(self) -> None:
        with suppress(OSError):  # none to be had now: later
            while len(self._spares) < SPARE_DESCRIPTORS:
                self._spares.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    def _give_up_spares(self) -> None:
        while self._spares:
            os.close(self._spares.pop())


_Suspect = tuple[int, int, Callable[[int], bool]]
"""A process, the key that it belongs to, and what tells of a number whether it is (still) such a process."""


class _Hunt:
    """Members, stopped as they are found, so that none can flee or fork, and killed at the end.

    Args:
        refused: the processes that may not be killed, and of which that has been said.
    """

    def __init__(self, refused: set[int]) -> None:
        self.keys: set[int] = set()
        """The keys for which there was something."""
        self.somebody_fled = False
        """Whether a process may have been gone before it could be looked at: it may have forked."""
        self.awaited: list[int] = []
        """Descriptors of those that were killed, or of enough of them."""
        self.kills = 0
        """How many were killed."""
        self._refused = refused
        self._seen: set[int] = {os.getpid()}
        self._stopped: list[int] = []
        self._passed_over: list[int] = []

    def take_all(self, suspects: Iterable[_Suspect]) -> None:
        """Stop all that belong to a key, with their descendants, then kill them.

        Raises:
            OSError: there is no room for a descriptor; what was stopped is killed.
        """
        try:
            for suspect in suspects:
                self._take(*suspect)
        except OSError:
            self._make_room()
            raise
        finally:
            self._kill()

    def release(self) -> None:
        """Close all descriptors."""
        while self.awaited:
            os.close(self.awaited.pop())

    def _take(self, pid: int, key: int, belongs: Callable[[int], bool]) -> None:
        waiting = [(pid, belongs)]
        while waiting:
            pid, belongs = waiting.pop()
            if pid in self._seen:
                continue
            try:
                pidfd = self._open(pid, belongs)
                self._seen.add(pid)
                if pidfd == -1:
                    continue
                if self._stop(pid, pidfd):
                    self.keys.add(key)
                # Its children are listed while it is held: they are certain to be its own.
                waiting += [(child, partial(_is_child, pid, pidfd)) for child in children_of(pid)]
            except OSError as error:
                if error.errno not in _NO_ROOM or not (self._stopped or self._passed_over):
                    raise
                self._make_room()
                self._seen.discard(pid)
                waiting.append((pid, belongs))

    def _kill(self) -> None:
        for pidfd in self._stopped:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                self.kills += 1
        self.awaited += self._stopped
        self._stopped = []
        for pidfd in (*self.awaited[MAX_AWAITED:], *self._passed_over):
            os.close(pidfd)
        del self.awaited[MAX_AWAITED:], self._passed_over[:]

    def _make_room(self) -> None:
        self._kill()
        self.release()

    def _open(self, pid: int, belongs: Callable[[int], bool]) -> int:
        """The descriptor of a process, or -1 if it is dead, or does not belong here."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            if error.errno in _NO_PROCESS:
                return -1
            raise
        try:
            # Whoever has the number now, the descriptor is of nobody later than that.
            if _has_died(pidfd) or not belongs(pid):
                os.close(pidfd)
                return -1
        except OSError:
            os.close(pidfd)
            raise
        return pidfd

    def _stop(self, pid: int, pidfd: int) -> bool:
        """Stop a process; False if that is not allowed, or nobody is there any more. Takes the descriptor."""
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
        except OSError as error:
            if error.errno == errno.EPERM and pid not in self._refused:
                self._refused.add(pid)
                log.warning("process %d may not be killed: it has become another user's", pid)
            self._passed_over.append(pidfd)
            return False
        self._stopped.append(pidfd)
        return True


def _join(leader: int, leaf: Leaf) -> None:
    leaf.join(leader)
    for descendant in descendants_of(leader):  # those that it has forked before
        with suppress(ProcessLookupError):
            leaf.join(descendant)


def _certainly(pid: int) -> bool:
    """An unreaped child of our own: nobody else can have its number."""
    return True


def _is_child(parent: int, parent_pidfd: int, pid: int) -> bool:
    return parent_of(pid) == parent and not _has_died(parent_pidfd)


def _key_of(tag: int, keys: Iterable[int]) -> int:
    """The key that a tag falls under; 0 if it is none of these."""
    if tag <= 0:
        return 0
    return next((key for key in (tag, tag & SESSION_MASK, tag & DAEMON_MASK) if key in keys), 0)


def _session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1


def _is_alive(pid: int) -> bool:
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        return error.errno not in _NO_PROCESS
    try:
        return not _has_died(pidfd)
    finally:
        os.close(pidfd)


def _has_died(pidfd: int) -> bool:
    """Whether all of its threads have ended: of the first one alone /proc would say that it is a zombie."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
