"""The gate before a program: what is done to a child there is done before the program begins, or it never does."""

from __future__ import annotations

import os
import resource
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from procfs import status_field
from tsupervise._fork_spawn import fork_spawn
from tsupervise._posix_spawn import AVAILABLE, SpawnPlan, posix_spawn
from tsupervise._spawn_gate import NoGate, start_through_gate

waits = pytest.mark.skipif(not AVAILABLE, reason="the C library's posix_spawn has no such thing")


@pytest.fixture
def null() -> Iterator[int]:
    """A descriptor above 2 that leads nowhere."""
    fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    assert fd > 2
    yield fd
    os.close(fd)


def starter(*argv: str, null: int) -> Callable[[bytes], int]:
    def start(gate: bytes) -> int:
        arguments = [argument.encode() for argument in argv]
        return posix_spawn(SpawnPlan(arguments[0], arguments, [], b"/", (null, null, null), gate=gate))

    return start


def wait_at_gate(pid: int) -> None:
    """Return when a child sleeps in the kernel; it must be a copy of this program still, and not its own."""
    while (state := status_field(pid, "State")[0]) not in "SD":
        assert state == "R"
    assert os.readlink(f"/proc/{pid}/exe") == os.readlink("/proc/self/exe")


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def is_reaped(pid: int) -> bool:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


@waits
def test_the_program_begins_when_its_child_has_been_treated(tmp_path: Path, null: int) -> None:
    """However long that takes, nothing of the program has run, and the child leads a session already."""
    ran = tmp_path / "ran"
    seen: list[tuple[int, bool]] = []

    def treat(pid: int) -> None:
        assert os.getsid(pid) == pid
        wait_at_gate(pid)
        seen.append((pid, ran.exists()))

    pid = start_through_gate(starter("/bin/touch", str(ran), null=null), lambda pid: True, treat)
    assert seen == [(pid, False)]
    assert exit_code(pid) == 0
    assert ran.exists()


@waits
def test_a_child_that_cannot_be_treated_never_begins(tmp_path: Path, null: int) -> None:
    """It is killed at the gate and reaped, and the reason is raised."""
    ran = tmp_path / "ran"
    children: list[int] = []

    def treat(pid: int) -> None:
        children.append(pid)
        wait_at_gate(pid)
        raise PermissionError(1, "no")

    touch = starter("/bin/touch", str(ran), null=null)

    def start(gate: bytes) -> int:
        pid = touch(gate)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # if it did begin, it has done its work
        return pid

    with pytest.raises(PermissionError, match="no"):
        start_through_gate(start, lambda pid: True, treat)
    assert not ran.exists()
    assert [is_reaped(pid) for pid in children] == [True]


@waits
def test_other_children_are_let_alone(null: int) -> None:
    """A child that was there before, or that is not the one, is not treated."""
    stranger = os.posix_spawn("/bin/sleep", ["sleep", "600"], {}, setsid=True)
    treated: list[int] = []
    late: list[int] = []
    all_known = threading.Event()
    start = starter("/bin/true", null=null)

    def start_two(gate: bytes) -> int:
        late.append(os.posix_spawn("/bin/sleep", ["sleep", "600"], {}, setsid=True))
        all_known.set()
        return start(gate)

    try:
        pid = start_through_gate(
            start_two, lambda pid: all_known.is_set() and pid not in late, treated.append
        )
        assert treated == [pid]
        assert exit_code(pid) == 0
    finally:
        for pid in (stranger, *late):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@waits
def test_a_program_that_cannot_be_run_is_an_error_as_ever(null: int) -> None:
    """The errno of the exec comes through the gate, and nothing is left of the child."""
    with pytest.raises(FileNotFoundError):
        start_through_gate(starter("/no/such/program", null=null), lambda pid: True, lambda pid: None)


def test_a_start_that_makes_no_child_does_not_wait_for_one() -> None:
    """The system's refusal is raised at once."""

    def refuse(gate: bytes) -> int:
        raise BlockingIOError(11, "no more processes")

    with pytest.raises(BlockingIOError):
        start_through_gate(refuse, lambda pid: True, lambda pid: None)


def test_without_a_gate_the_child_is_treated_all_the_same(null: int) -> None:
    """A way of starting that knows no gate gives a child that is treated while it runs."""
    treated: list[int] = []

    def start(gate: bytes) -> int:
        return fork_spawn(SpawnPlan(b"/bin/sleep", [b"sleep", b"600"], [], b"/", (null, null, null)))

    pid = start_through_gate(start, lambda pid: True, treated.append)
    assert treated == [pid]
    os.kill(pid, signal.SIGKILL)
    assert exit_code(pid) == -signal.SIGKILL


def test_where_there_can_be_no_gate_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, null: int
) -> None:
    """Without a folder for it, the reason is raised."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    start = starter("/bin/touch", str(tmp_path / "ran"), null=null)
    with pytest.raises(NoGate, match="TMPDIR"):
        start_through_gate(start, lambda pid: True, lambda pid: None)
    assert not (tmp_path / "ran").exists()


@waits
def test_without_a_free_descriptor_nobody_waits_for_ever(null: int) -> None:
    """The gate opens even then; what the treatment needs is its own affair."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    start = starter("/bin/true", null=null)
    taken: list[int] = []

    def start_without_room(gate: bytes) -> int:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        with suppress(OSError):
            while True:
                taken.append(os.dup(null))
        return start(gate)

    def treat(pid: int) -> None:
        with pytest.raises(OSError, match="Too many open files"):
            os.dup(null)

    try:
        pid = start_through_gate(start_without_room, lambda pid: True, treat)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)
    assert exit_code(pid) == 0
