"""Trees of processes that do what they can to outlive their owner, and a look at what is left of them.

They are made by a small C program (`process_tree.c`), compiled once: a process of it costs a millisecond where
one of Python costs thirty. Each tree runs under a file name of its own, by which another process finds its
members among all of the machine: nothing that the supervisor does or looks at.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from daemons import command_of

SOURCE = Path(__file__).with_name("process_tree.c")

ORDINARY_USER = os.getuid() or 65534
"""Who runs the tests, or for root whoever has no rights: `nobody` on most systems."""


LOOKS = 3


class Member(NamedTuple):
    """One process of a tree: dead and unreaped if its state is Z."""

    pid: int
    state: str
    parent: int
    name: str


@dataclass
class Trees:
    """The trees of one test run. Made by `built_trees`."""

    binary: Path
    prefix: str
    names: list[str] = field(default_factory=list[str])
    """What they are called, in order of their making."""

    def grow(self, seed: int, size: int, options: str) -> list[str]:
        """The command of a new tree; see `process_tree.c` for what the options are."""
        return [self._new_name(), "grow", str(seed), str(size), f"-{options}"]

    def escape(self, kind: str) -> list[str]:
        """The command of a process with one child that escapes in a certain way."""
        return [self._new_name(), "escape", kind]

    def _new_name(self) -> str:
        path = self.binary.with_name(f"{self.prefix}{len(self.names):x}")
        self.names.append(path.name)
        os.link(self.binary, path)
        return str(path)

    def members(self) -> list[Member]:
        """All members of all trees, by a look at all processes of the machine."""
        listed = subprocess.run(
            [self.binary, "scan", self.prefix], capture_output=True, text=True, check=True
        )
        rows = (line.split(" ", 3) for line in listed.stdout.splitlines())
        return [Member(int(pid), state, int(parent), name) for pid, state, parent, name in rows]

    def survivors(self) -> list[Member]:
        """Those that are not dead. More than one look, for whoever forks and goes may slip through one."""
        seen = {member for _ in range(LOOKS) for member in self.members() if member.state not in "ZX"}
        return sorted(seen)

    async def until_gone(self, patience_s: float = 20.0) -> None:
        """Wait until nobody is left, dead or alive."""
        with trio.move_on_after(patience_s):
            while self.members():  # noqa: ASYNC110 - other people's processes set no event
                await trio.sleep(0.02)
        assert self.members() == []

    def end(self) -> None:
        """Kill whatever is left."""
        while survivors := self.survivors():
            for member in survivors:
                with suppress(ProcessLookupError):
                    os.kill(member.pid, signal.SIGKILL)


@contextmanager
def built_trees() -> Generator[Trees]:
    """Compile the program, for the time of a block; what is left of its trees at the end is killed."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("the trees are grown by a C program, and there is no C compiler")
    with tempfile.TemporaryDirectory(prefix="trees") as folder:
        os.chmod(folder, 0o755)  # other users execute it
        binary = Path(folder) / "tree"
        subprocess.run([compiler, "-O1", "-pthread", "-o", binary, SOURCE], check=True)
        # Names of processes are cut after 15 characters.
        trees = Trees(binary, f"t{os.urandom(4).hex()}")
        try:
            yield trees
        finally:
            trees.end()


@contextmanager
def delegated_group(uid: int) -> Generator[list[str]]:
    """The beginning of a command that runs as a user in a control group that belongs to that user.

    It is marked as one that systemd delegates. Skips the test where there is no such group to be had.
    """
    base = next((path for path in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified") if _is_usable(path)), None)
    if base is None or os.getuid() != 0:
        pytest.skip("only root can delegate a control group, and only where there is version 2")
    group = f"{base}/delegated-{os.getpid()}"
    os.mkdir(group)
    try:
        for name in ("", "/cgroup.procs", "/cgroup.subtree_control", "/cgroup.threads"):
            os.chown(group + name, uid, -1)
        os.setxattr(group, "user.delegate", b"1")
        yield ["sh", "-c", f'echo $$ >{group}/cgroup.procs; exec "$@"', "sh", *as_user(uid)]
    finally:
        for path in (f"{group}/keeper", group):
            with suppress(OSError):
                os.rmdir(path)


def _is_usable(path: str) -> bool:
    return os.path.exists(f"{path}/cgroup.procs") and os.access(path, os.W_OK)


def as_user(uid: int) -> list[str]:
    """The beginning of a command that runs as that user. Skips the test if that cannot be."""
    if uid == os.getuid():
        return []
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root, with setpriv, can be another user")
    command = ["setpriv", "--reuid", str(uid), "--clear-groups"]
    tried = subprocess.run([*command, *command_of("ours")[:1], "--version"], capture_output=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"user {uid} cannot run {command_of('ours')[0]}")
    return command
