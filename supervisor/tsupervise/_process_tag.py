"""The mark by which every descendant of a supervised process is known, whatever else it does to hide.

It is a resource limit. Limits are inherited over every fork and exec, setsid and double forks included, and
they are not in the environment, which belongs to the client and is often replaced. RLIMIT_LOCKS has limited
nothing since Linux 2.4; a program that sets all of its limits loses the tag, and ancestry, sessions and
cgroups are for the few that do. A supervisor that is itself supervised takes another limit, so that what it runs
is still known to the outer one as well.
"""

from __future__ import annotations

import os
import resource
import secrets
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress

_RLIMIT_LOCKS = 10
"""From asm-generic/resource.h; the module `resource` has no name for it."""

# 62 bits that fit a limit: the top one says "ours", then who, then which session and process.
_OURS = 1 << 62
_DAEMON_BITS, _SESSION_BITS, _PROCESS_BITS = 18, 20, 24


def _is_ours(value: int) -> bool:
    return value > 0 and value & _OURS != 0


# RLIMIT_RSS has no effect either. Whoever is supervised three levels deep hides the tag of the second.
_LIMIT, _ROW = (
    (resource.RLIMIT_RSS, b"Max resident set")
    if _is_ours(resource.getrlimit(_RLIMIT_LOCKS)[0])
    else (_RLIMIT_LOCKS, b"Max file locks")
)
"""The limit that carries tags of this process, and how /proc/PID/limits calls it."""

GONE = -1
"""What is given for the tag of nobody."""

_UNSEEN = (FileNotFoundError, ProcessLookupError, PermissionError)
"""How /proc says that a process is gone, or another user's of which it tells us nothing (`hidepid=`)."""

SESSION_MASK = ~((1 << _PROCESS_BITS) - 1)
"""A tag with this is that of its session."""
DAEMON_MASK = ~((1 << _PROCESS_BITS + _SESSION_BITS) - 1)
"""A tag with this is that of its daemon."""


class TagSpace:
    """The tags of one supervisor: numbers that no other supervisor on the machine is likely to use."""

    def __init__(self) -> None:
        self.daemon = _OURS | secrets.randbelow(1 << _DAEMON_BITS) << (_PROCESS_BITS + _SESSION_BITS)
        # Not from zero: of thousands of supervisors two may have the same number, and must share no tag.
        self._sessions = secrets.randbelow((1 << _SESSION_BITS) - 1)
        self._processes = secrets.randbelow((1 << _PROCESS_BITS) - 1)

    def next_session(self) -> int:
        """The tag of a new session. Numbers come round again after a million of them."""
        self._sessions = self._sessions % ((1 << _SESSION_BITS) - 1) + 1
        return self.daemon | self._sessions << _PROCESS_BITS

    def next_process(self, session: int) -> int:
        """The tag of a new process of a session. Numbers come round again after sixteen million of them."""
        self._processes = self._processes % ((1 << _PROCESS_BITS) - 1) + 1
        return session | self._processes


@contextmanager
def inherited_tag(tag: int) -> Generator[bool]:
    """Let every child that this process starts meanwhile inherit a tag, from its first instruction on.

    Yields:
        False where nobody is tagged, because this process's own limit is capped.
    """
    before = resource.getrlimit(_LIMIT)
    try:
        resource.setrlimit(_LIMIT, (tag, before[1]))
        is_set = True
    except (OSError, ValueError):
        is_set = False
    try:
        yield is_set
    finally:
        resource.setrlimit(_LIMIT, before)


def take_tag(pid: int) -> None:
    """Give a process the limit that this one has."""
    with suppress(OSError):  # it is dead, or has become another user's
        resource.prlimit(pid, _LIMIT, resource.getrlimit(_LIMIT))


def tag_of(pid: int) -> int:
    """The tag of a process, be it alive or a zombie; 0 if it has none that can be read, GONE if nobody is there."""
    try:
        value = resource.prlimit(pid, _LIMIT)[0]
    except ProcessLookupError:
        return GONE
    except PermissionError:
        # Another user's. Only root could do anything to it, and root may lack the capability that prlimit asks for.
        value = _limit_in_proc(pid) if os.geteuid() == 0 else 0
    return value if _is_ours(value) else 0


def _limit_in_proc(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/limits", "rb", buffering=0) as file:
            row = next(line for line in file.readall().splitlines() if line.startswith(_ROW))
    except (*_UNSEEN, StopIteration):
        return 0
    soft = row.split()[3]
    return int(soft) if soft.isdigit() else 0


def every_pid() -> list[int]:
    """All processes that /proc shows, by number."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def children_of(pid: int) -> list[int]:
    """The children of a process, in order of their start, whichever of its threads has forked them.

    Returns:
        [] if it is gone, or nothing of it may be seen.

    Raises:
        OSError: there is no room for a descriptor.
    """
    children: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb", buffering=0) as file:
                children += map(int, file.readall().split())
    except _UNSEEN:
        pass
    return children


def descendants_of(pid: int) -> Iterator[int]:
    """All descendants of a process, parents before their children. However deep they are nested."""
    waiting = [pid]
    while waiting:
        for child in children_of(waiting.pop()):
            yield child
            waiting.append(child)


def parent_of(pid: int) -> int:
    """The number of the parent of a process; 0 if it is gone, or nothing of it may be seen."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            text = file.readall()
    except _UNSEEN:
        return 0
    # The name stands in brackets and may hold any character, brackets included. The state comes first.
    return int(text[text.rfind(b")") + 2 :].split(None, 2)[1])
