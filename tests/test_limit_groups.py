"""Control groups with limits, on folders that look like the kernel's: what is found, written, read and removed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tsupervise._cgroup import Mount, name_of, read_mounts
from tsupervise._limit_groups import LimitGroups

FILES = {
    "memory": ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.oom_control"),
    "pids": ("pids.max",),
    "cpu": ("cpu.cfs_period_us", "cpu.cfs_quota_us"),
    "unified": ("memory.max", "memory.swap.max", "memory.events", "pids.max", "cpu.max"),
}


class Machine:
    """A /proc/self and mounted control groups, in a folder of the test's; `make` is the kernel's mkdir."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.proc = root / "proc"
        self.proc.mkdir()
        self.refused: set[str] = set()
        self.busy: set[str] = set()
        self._mounts: list[str] = []
        self._groups: list[str] = []

    def mount(self, name: str, kind: str, options: str, own: str, *, root: str = "/") -> Path:
        """Mount a hierarchy, with this process in the group `own`; returns that group's folder."""
        self._mounts.append(f"36 25 0:3 {root} {self.root}/{name} rw,relatime - {kind} {kind} rw,{options}")
        self._groups.append(f"{len(self._groups)}:{'' if kind == 'cgroup2' else options}:{own}")
        (self.proc / "mountinfo").write_text("\n".join(self._mounts) + "\n")
        (self.proc / "cgroup").write_text("\n".join(self._groups) + "\n")
        folder = self.root / name / os.path.relpath(own, root)
        if ".." not in folder.parts:
            folder.mkdir(parents=True)
            (folder / "cgroup.procs").touch()
        return folder

    def mkdir(self, path: str | Path, mode: int = 0o777) -> None:
        real_mkdir(path, mode)
        if not Path(path).is_relative_to(self.root):
            return
        hierarchy = Path(path).relative_to(self.root).parts[0]
        for name in ("cgroup.procs", "cgroup.kill", *FILES[hierarchy]):
            if name not in self.refused:
                (Path(path) / name).touch()
        if hierarchy == "unified":
            (Path(path) / "cgroup.subtree_control").touch()

    def rmdir(self, path: str | Path) -> None:
        """The kernel removes a group with its files, but not while anything lives in it or below."""
        if str(path) in self.busy:
            raise OSError(errno.EBUSY, "busy")
        for entry in Path(path).iterdir():
            if entry.is_file():
                entry.unlink()
        real_rmdir(path)

    def groups(self) -> LimitGroups:
        return LimitGroups(str(self.proc))


real_mkdir, real_rmdir = os.mkdir, os.rmdir


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path)
    monkeypatch.setattr(os, "mkdir", machine.mkdir)
    monkeypatch.setattr(os, "rmdir", machine.rmdir)
    return machine


def own_folder(base: Path) -> Path:
    return base / f"{name_of(os.getpid())}.limits"


def text_of(folder: Path, name: str) -> str:
    return (folder / name).read_text()


def test_version_1_has_a_folder_in_each_hierarchy_that_is_needed(machine: Machine) -> None:
    """Below the group that the daemon is in; one for what is mounted together, none for what is not needed."""
    memory = machine.mount("memory", "cgroup", "memory", "/service/daemon")
    cpu = machine.mount("cpu", "cgroup", "cpu,cpuacct", "/")
    pids = machine.mount("pids", "cgroup", "pids", "/")
    groups = machine.groups()
    assert groups.controllers == {"memory", "pids", "cpu"}
    group = groups.make("7", {"memory": 64 << 20, "cpu": 0.5})
    assert group.leaf is None
    assert text_of(own_folder(memory) / "7", "memory.limit_in_bytes") == "67108864"
    assert text_of(own_folder(memory) / "7", "memory.memsw.limit_in_bytes") == "67108864"
    assert text_of(own_folder(cpu) / "7", "cpu.cfs_period_us") == "100000"
    assert text_of(own_folder(cpu) / "7", "cpu.cfs_quota_us") == "50000"
    assert not own_folder(pids).exists()
    group.join(4711)
    assert text_of(own_folder(memory) / "7", "cgroup.procs") == "4711"
    assert text_of(own_folder(cpu) / "7", "cgroup.procs") == "4711"
    assert group.remove()
    groups.close()
    assert not own_folder(memory).exists()


def test_version_2_is_used_where_it_has_the_controllers(machine: Machine) -> None:
    """They are switched on below the daemon's own group; the one folder of a process serves to end it as well."""
    base = machine.mount("unified", "cgroup2", "nsdelegate", "/")
    (base / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (base / "cgroup.subtree_control").write_text("cpu memory pids\n")
    groups = machine.groups()
    assert groups.controllers == {"memory", "pids", "cpu"}
    group = groups.make("7", {"memory": 64 << 20, "pids": 8, "cpu": 0.5})
    folder = own_folder(base) / "7"
    assert text_of(folder, "memory.max") == "67108864"
    assert text_of(folder, "memory.swap.max") == "0"
    assert text_of(folder, "pids.max") == "8"
    assert text_of(folder, "cpu.max") == "50000 100000"
    assert "+" in text_of(own_folder(base), "cgroup.subtree_control")
    assert group.leaf is not None
    group.leaf.join(4711)
    assert group.leaf.members() == [4711]


def test_version_2_above_the_own_group_takes_a_delegation(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder above is used only if systemd says that it was given away, and the own one has no controllers."""
    own = machine.mount("unified", "cgroup2", "nsdelegate", "/service/main")
    above = own.parent
    for folder, enabled in ((own, ""), (above, "memory pids")):
        (folder / "cgroup.type").write_text("domain\n")
        (folder / "cgroup.procs").touch()
        (folder / "cgroup.controllers").write_text("memory pids\n")
        (folder / "cgroup.subtree_control").write_text(enabled)

    def getxattr(path: str, name: str) -> bytes:
        if (path, name) == (str(above), "user.delegate"):
            return b"1"
        raise OSError

    assert machine.groups().controllers == frozenset()
    monkeypatch.setattr(os, "getxattr", getxattr)
    groups = machine.groups()
    assert groups.controllers == {"memory", "pids"}
    groups.make("7", {"pids": 8})
    assert text_of(own_folder(above) / "7", "pids.max") == "8"
    # With a controller switched on there, no process could join any group below the one that the daemon is in.
    assert text_of(own, "cgroup.subtree_control") == ""
    (above / "cgroup.procs").write_text("4711\n")
    assert machine.groups().controllers == frozenset()


def test_what_lies_outside_of_a_mount_is_not_reached_for(machine: Machine) -> None:
    """A container that sees only a part of the tree, and not its own group, has nothing there."""
    machine.mount("memory", "cgroup", "memory", "/elsewhere", root="/container")
    machine.mount("pids", "cgroup", "pids", "/container/inner", root="/container")
    assert machine.groups().controllers == {"pids"}


def test_odd_mounts_are_no_hindrance(machine: Machine) -> None:
    """Other users may mount things at places that are no UTF-8, and what is mounted may have no name."""
    machine.mount("pids", "cgroup", "pids", "/")
    with open(machine.proc / "mountinfo", "ab") as file:
        file.write(b"40 25 0:9 / /mnt/\xff rw - fuse.x  rw\n41 25 0:9 / /mnt/- rw shared:1 - tmpfs - rw\n")
    with open(machine.proc / "cgroup", "ab") as file:
        file.write(b"7:name=\xff:/\n")
    assert machine.groups().controllers == {"pids"}
    assert read_mounts(str(machine.proc))[1] == Mount("/", "/mnt/\udcff", "fuse.x", "rw")


def test_a_group_that_cannot_have_its_limit_is_not_left_behind(machine: Machine) -> None:
    """If the system refuses one bound, the folders of all are removed."""
    memory = machine.mount("memory", "cgroup", "memory", "/")
    pids = machine.mount("pids", "cgroup", "pids", "/")
    machine.refused = {"pids.max"}
    groups = machine.groups()
    with pytest.raises(FileNotFoundError):
        groups.make("7", {"memory": 64 << 20, "pids": 8})
    assert not (own_folder(memory) / "7").exists()
    assert not (own_folder(pids) / "7").exists()


@pytest.mark.parametrize(
    ("hierarchy", "file", "text"),
    [
        ("memory", "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
        ("unified", "memory.events", "low 0\nhigh 0\nmax 40\noom 3\noom_kill 3\noom_group_kill 0\n"),
    ],
)
def test_kills_for_memory_are_counted(machine: Machine, hierarchy: str, file: str, text: str) -> None:
    """Version 1 and version 2 tell them in different files; a group without a memory limit has none."""
    kind, options = ("cgroup2", "nsdelegate") if hierarchy == "unified" else ("cgroup", "memory")
    base = machine.mount(hierarchy, kind, options, "/")
    for name in ("cgroup.controllers", "cgroup.subtree_control"):
        (base / name).write_text("memory pids\n")
    groups = machine.groups()
    group = groups.make("7", {"memory": 64 << 20})
    assert group.oom_kills == 0
    (own_folder(base) / "7" / file).write_text(text)
    assert group.oom_kills == 3


def test_groups_of_daemons_that_are_gone_are_removed(machine: Machine) -> None:
    """Those of a number that nobody has, or somebody else by now; not those of one that lives, of one in another
    PID namespace, nor a stranger's."""
    base = machine.mount("pids", "cgroup", "pids", "/")
    own = f"{name_of(os.getpid())}.limits"
    space, number, _ = name_of(os.getpid()).split("-")
    elsewhere = f"tsupervise_1-{number}-1.limits"
    kept = [own, "tsupervise-tests.limits", "docker", f"{name_of(os.getpid())}.other", elsewhere]
    stale = [f"{space}-{number}-1.limits", f"{space}-999999999-5.limits"]
    for name in (*kept, *stale):
        (base / name / "1").mkdir(parents=True)
    machine.groups()
    assert sorted(path.name for path in base.iterdir() if path.is_dir()) == sorted(kept)


def test_a_group_in_which_something_lives_stays_until_it_does_not(machine: Machine) -> None:
    """Removing it is tried again, and then only what is left of it."""
    memory = machine.mount("memory", "cgroup", "memory", "/")
    machine.mount("pids", "cgroup", "pids", "/")
    group = machine.groups().make("7", {"memory": 64 << 20, "pids": 8})
    folder = own_folder(memory) / "7"
    machine.busy = {str(folder)}
    assert not group.remove()
    assert folder.is_dir()
    machine.busy = set()
    assert group.remove()
    assert not folder.is_dir()
