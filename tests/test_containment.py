"""_containment, _cgroup and _process_tag: how descendants are known, and that nobody else is ever touched.

What a daemon does as a subreaper is shown in a process of its own (`as_subreaper`), for among the children of
the test's own process are other people's.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio

from daemons import command_of, running, start_daemon
from process_trees import ORDINARY_USER, Trees, as_user, built_trees, delegated_group
from procfs import listening_pid, marked, new_marker, status_field, until, until_dead
from tsupervise import _cgroup, _containment
from tsupervise._cgroup import Subtree, end_subtrees, is_of, is_stale, name_of, open_subtree, subtrees_of
from tsupervise._containment import Containment, Enclosure
from tsupervise._process_tag import GONE, TagSpace, descendants_of, inherited_tag, tag_of
from tsupervise._spawn import Child, SpawnRequest, spawn
from wire import PATIENCE_S, connect


@pytest.fixture(scope="module")
def trees() -> Iterator[Trees]:
    with built_trees() as built:
        yield built


@pytest.fixture
def containment() -> Iterator[Containment]:
    """One as in a program that is not ours, without control groups."""
    made = Containment(owns_process=False)
    yield made
    made.close()


def start(containment: Containment, *argv: str) -> tuple[Enclosure, Child]:
    enclosure = containment.enclose(containment.next_session())
    request = SpawnRequest(argv=argv, cwd=b"/", env={"PATH": os.environ["PATH"]})
    return enclosure, spawn(request, enclosure)


async def end(child: Child) -> None:
    await child.destroy()


# --- tags ------------------------------------------------------------------------------------------------


def test_a_tag_is_inherited_and_does_not_stay() -> None:
    """Whoever is started meanwhile has it and hands it on; this process is left as it was."""
    tags = TagSpace()
    tag = tags.next_process(tags.next_session())
    before = resource.getrlimit(10)
    with inherited_tag(tag):
        shell = subprocess.Popen(
            ["sh", "-c", "setsid sh -c 'echo; exec sleep 60' & wait"], stdout=subprocess.PIPE
        )
    with shell:
        assert shell.stdout is not None
        shell.stdout.readline()
        family = [shell.pid, *descendants_of(shell.pid)]
        assert len(family) >= 2
        assert {tag_of(pid) for pid in family} == {tag}
        assert tag_of(os.getpid()) == 0
        assert resource.getrlimit(10) == before
        for pid in reversed(family):
            os.kill(pid, signal.SIGKILL)
    assert tag_of(shell.pid) == GONE


def test_processes_and_sessions_share_no_tag() -> None:
    """Numbers rise from a start that differs, and come round without ever being those of a session."""
    tags, others = TagSpace(), TagSpace()
    session = tags.next_session()
    processes = {tags.next_process(session) for _ in range(1000)}
    assert len(processes) == 1000
    assert session not in processes
    assert others.next_process(others.next_session()) not in processes


@pytest.mark.case(133)
async def test_a_child_that_another_thread_starts_meanwhile_is_left_alone(containment: Containment) -> None:
    """In a program of somebody else's a child of its own may be started while the limit is set."""
    enclosure = containment.enclose(containment.next_session())
    strangers: list[subprocess.Popen[bytes]] = []

    def from_another_thread() -> None:
        strangers.append(subprocess.Popen(["sleep", "60"]))

    with enclosure.around_spawn():
        thread = threading.Thread(target=from_another_thread)
        thread.start()
        thread.join()
        own = subprocess.Popen(["sleep", "60"], start_new_session=True)  # noqa: ASYNC220 - but a moment
    (stranger,) = strangers
    with own, stranger:
        assert tag_of(stranger.pid) == enclosure.tag, "else this shows nothing"
        enclosure.started(own.pid)
        assert (tag_of(own.pid), tag_of(stranger.pid)) == (enclosure.tag, 0)
        await enclosure.sweep()
        assert own.wait() == -signal.SIGKILL
        assert stranger.poll() is None
        stranger.kill()
    enclosure.dispose()


# --- looks -----------------------------------------------------------------------------------------------


@pytest.mark.case(133)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_whoever_has_come_by_a_number_gets_no_signal(
    containment: Containment, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A number that was a member's when it was listed, and a stranger's when it was opened, is passed over."""
    _, child = start(containment, "sleep", "60")
    with subprocess.Popen(["sleep", "60"]) as stranger:  # noqa: ASYNC220 - but a moment
        # The kernel gives numbers away as it likes: that this one is given to the stranger is told by a lie.
        if when == "before":
            real = _containment.children_of

            def children(pid: int) -> list[int]:
                return [stranger.pid] if pid == child.pid else real(pid)

            monkeypatch.setattr(_containment, "children_of", children)
        else:
            real_tag = _containment.tag_of
            asked: list[int] = []

            def tag(pid: int) -> int:
                if pid == stranger.pid and not asked:
                    asked.append(pid)
                    return child.enclosure.tag
                return real_tag(pid)

            monkeypatch.setattr(_containment, "tag_of", tag)
        await child.destroy()
        assert stranger.poll() is None
        assert not status_field(stranger.pid, "State").startswith("T")
        stranger.kill()


@pytest.mark.case(133)
async def test_a_number_that_has_become_a_threads_is_passed_over(
    containment: Containment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No process has it any more, and the look goes on."""
    _, child = start(containment, "sleep", "60")
    real, over = _containment.children_of, threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    assert thread.native_id is not None
    threads = {child.pid: [thread.native_id]}

    def children(pid: int) -> list[int]:
        return [*real(pid), *threads.get(pid, [])]

    monkeypatch.setattr(_containment, "children_of", children)
    with caplog.at_level("WARNING"):
        await child.destroy()
    over.set()
    thread.join()
    assert caplog.text == ""


async def test_one_look_serves_all_who_wait(
    containment: Containment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred sweeps at a time do not look at all processes a hundred times."""
    looks = 0
    real = Containment._look  # pyright: ignore[reportPrivateUsage]

    def counted(self: Containment, keys: set[int]) -> Any:
        nonlocal looks
        looks += 1
        return real(self, keys)

    monkeypatch.setattr(Containment, "_look", counted)
    # While processes come and go elsewhere on the machine a look may be in vain.
    monkeypatch.setattr(_containment, "LOOKS_IN_VAIN", 1)
    children = [start(containment, "sleep", "60")[1] for _ in range(20)]
    async with trio.open_nursery() as nursery:
        for child in children:
            nursery.start_soon(child.destroy)
    assert looks <= 10


def fill_descriptors(stack: ExitStack) -> None:
    while True:
        stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))


@pytest.mark.case(133)
async def test_a_sweep_needs_no_free_descriptor(containment: Containment, trees: Trees) -> None:
    """With every descriptor of the process in use, a tree is still found and killed."""
    enclosure, child = start(containment, *trees.grow(7, 25, "s"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with trio.fail_after(20):
        while len(trees.survivors()) < 5:  # noqa: ASYNC110 - other people's processes set no event
            await trio.sleep(0.01)
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
        with pytest.raises(OSError, match="Too many open files"):
            fill_descriptors(stack)
        await enclosure.sweep()
    assert trees.survivors() == []
    await end(child)


@pytest.mark.skipif(
    os.getuid() != 0, reason="only root can start what it may not kill, and then give that up"
)
@pytest.mark.case(133)
def test_who_may_not_be_killed_is_named_once_and_not_waited_for() -> None:
    """A member that has become another user's stays; the sweep says so once, and ends."""
    told = in_own_process(
        """
        os.setresgid(65534, 65534, 65534); os.setgroups([])
        containment = Containment(owns_process=True)
        enclosure, child = start(containment, "sleep", "60")
        other = start(containment, "sleep", "60")[1]
        real = signal.pidfd_send_signal
        def refuse(pidfd, number, *more):
            info = open(f"/proc/self/fdinfo/{pidfd}").read()
            if f"Pid:\\t{other.pid}\\n" in info:
                raise PermissionError(1, "Operation not permitted")
            real(pidfd, number, *more)
        signal.pidfd_send_signal = refuse
        await containment.sweep(other.enclosure.tag)
        await containment.sweep(other.enclosure.tag)
        signal.pidfd_send_signal = real
        print(other.has_exited())
        await other.destroy(); await child.destroy()
        """
    )
    assert told.stdout == "False\n"
    assert told.stderr.count("may not be killed") == 1
    assert "does not die" not in told.stderr, "it was waited for"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter; into those of pytest nobody may."""
    with tempfile.TemporaryDirectory(prefix="containment") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount, and make a program of root's")
@pytest.mark.case(133)
@pytest.mark.parametrize("option", ["hidepid=1", "hidepid=2"])
async def test_a_process_that_must_not_be_looked_at_hides_nobody_else(
    tmp_path: Path, open_folder: Path, option: str
) -> None:
    """On a machine that shows users nothing of the processes of others, one that has become root's is passed over:
    it may not be killed, but all others are, and nobody waits for it."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("needs setpriv")
    as_root = shutil.copy(setpriv, open_folder / "as-root")
    os.chmod(as_root, 0o4755)
    log, marker = tmp_path / "log", new_marker()
    mount = ["unshare", "-m", "sh", "-c", f'mount -t proc -o {option},gid=65533 proc /proc; exec "$@"', "sh"]
    command = [*mount, *as_user(ORDINARY_USER), *command_of("ours")]
    daemon = start_daemon("ours", "--no-cgroup", "--allow-other-users", command=command, stderr=log)
    try:
        with running(daemon), trio.fail_after(PATIENCE_S):
            async with connect(daemon.url) as peer:
                others = f"{as_root} --reuid 0 sleep {marker} & setsid sleep {marker} >&- 2>&- &"
                script = f"{others} echo up; exec sleep {marker}"
                (await peer.start("p", "sh", "-c", script)).ok()
                await peer.until_output("p", b"up")
                await until(lambda: len(sleepers(marker)) == 3)
                await peer.terminate("p")
                await peer.until_closed("p")
            assert sleepers(marker) == ["0"]
        assert "cannot be looked at" not in log.read_text()
        assert "does not die" not in log.read_text()
    finally:
        for pid in marked(marker):
            os.kill(pid, signal.SIGKILL)


def sleepers(marker: str) -> list[str]:
    """Whose the marked processes are that are programs by now."""
    return [
        status_field(pid, "Uid").split()[0] for pid in marked(marker) if status_field(pid, "Name") == "sleep"
    ]


@pytest.mark.case(133)
def test_a_number_that_others_have_given_away_is_not_signalled() -> None:
    """In a program that ignores SIGCHLD the kernel reaps a child at once: from its exit on its number is nobody's,
    and what it has left behind is found without."""
    told = in_own_process(
        """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        containment = Containment(owns_process=False)
        enclosure, child = start(containment, "sh", "-c", "setsid sleep 600 & exec sleep 0.1")
        await child.wait_exit()
        print(child.exit_status(), containment.leaders)
        left = lambda: [pid for pid in every_pid() if tag_of(pid) == enclosure.tag]
        print(len(left()))
        signalled = []
        os.killpg = lambda *call: signalled.append(call)
        child.kill()
        await enclosure.sweep()
        print(signalled)
        while left():  # until somebody has reaped it
            await trio.sleep(0.01)
        child.reap(); child.close()
        """
    )
    assert told.stdout.splitlines() == ["(-1, None) {}", "1", "[]"], told.stderr


@pytest.mark.case(130)
@pytest.mark.parametrize("inner", ["exec", "run"])
async def test_a_supervisor_that_is_supervised_hides_nothing(inner: str) -> None:
    """What a daemon, or a program with a supervisor in itself, runs below another daemon is known to both: it goes
    with the inner one's process, and nothing of it survives the outer one's; other processes do."""
    marker, others = new_marker(), new_marker()
    script = f"(setsid sleep {marker} >/dev/null 2>&1 &); echo up; exec sleep {marker}"
    with running(start_daemon("ours", "--no-cgroup")) as daemon:
        async with AsyncExitStack() as stack:
            peer = await stack.enter_async_context(connect(daemon.url))
            (await peer.start("other", "sleep", others)).ok()
            if inner == "exec":
                command = [command_of("ours")[0], "exec", "--", "sh", "-c", script]
                (await peer.start("inner", *command)).ok()
                await peer.until_output("inner", b"up")
            else:
                command = [*command_of("ours"), "--no-cgroup", "--log-level", "warning"]
                (await peer.start("inner", *command)).ok()
                await peer.until_output("inner", b"\n")
                below = await stack.enter_async_context(connect(peer.output("inner").decode().strip()))
                for name in ("p", "q"):
                    (await below.start(name, "sh", "-c", script)).ok()
                    await below.until_output(name, b"up")
                await until(lambda: len(marked(marker)) == 4)
                await below.terminate("p")
                await below.until_closed("p")
            await until(lambda: len(marked(marker)) == 2)
            await peer.terminate("inner")
            await peer.until_closed("inner")
            assert marked(marker) == set()
            assert len(marked(others)) == 1


@pytest.mark.case(130)
def test_a_stray_goes_with_the_last_that_it_may_come_from() -> None:
    """Who has shed every mark and is nobody's descendant lives until nobody is left whose it could be."""
    with built_trees() as trees:
        commands = [trees.escape("limits"), trees.escape("setsid")]
        told = in_own_process(
            f"""
            containment = Containment(owns_process=True)
            session = containment.next_session()
            def begin(argv):
                enclosure = containment.enclose(session)
                return spawn(SpawnRequest(argv=argv, cwd=b"/", env={{}}), enclosure)
            children = [begin(argv) for argv in {commands!r}]
            for child in children:
                await trio.lowlevel.wait_readable(child.outputs[0][1].fileno())
            orphans = lambda: [pid for pid in children_of(os.getpid()) if pid not in containment.leaders]
            while not orphans():
                await trio.sleep(0.01)
            (stray,) = orphans()
            print(tag_of(stray))
            await children[0].destroy()
            containment.reap_orphans()
            print(orphans() == [stray])
            await children[1].destroy()
            containment.reap_orphans()
            print(orphans())
            """
        )
    assert told.stdout.split("\n")[:3] == ["0", "True", "[]"], told.stderr


PREAMBLE = """
import logging, os, signal, sys, trio
from tsupervise._containment import Containment
from tsupervise._process_tag import children_of, every_pid, tag_of
from tsupervise._spawn import SpawnRequest, spawn
logging.basicConfig(stream=sys.stderr)
def start(containment, *argv):
    enclosure = containment.enclose(containment.next_session())
    return enclosure, spawn(SpawnRequest(argv=argv, cwd=b"/", env={"PATH": os.environ["PATH"]}), enclosure)
async def main():
"""


def in_own_process(body: str) -> subprocess.CompletedProcess[str]:
    """Run the body of an async function in a process of its own."""
    lines = body.strip("\n").splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    program = PREAMBLE + "\n".join("    " + line[indent:] for line in lines) + "\ntrio.run(main)\n"
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True, cwd="/"
    )


# --- traced processes ------------------------------------------------------------------------------------


@pytest.mark.case(130)
async def test_a_dead_process_whose_tracer_looks_away_does_not_stop_the_daemon(trees: Trees) -> None:
    """Its end is told to the tracer first, and then to us: others are served meanwhile, terminate ends the tracer,
    and the exit code is its own."""
    script = (
        "import ctypes, os, signal, sys, time\n"
        "leader = os.getpid()\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    assert ctypes.CDLL(None).ptrace(0x4206, leader, 0, 0) == 0\n"  # PTRACE_SEIZE
        "    print('up', flush=True)\n"
        "    time.sleep(600)\n"
        "sys.stdin.readline()\n"
        "os._exit(5)\n"
    )
    with running(start_daemon("ours", "--no-cgroup")) as daemon:
        async with connect(daemon.url) as peer:
            (await peer.start("p", sys.executable, "-c", script, pipeStdin=True)).ok()
            await peer.until_output("p", b"up")
            row = (await peer.request("process/list")).ok()["processes"][0]
            (await peer.write("p", b"go\n", "1")).ok()
            await until(lambda: status_field(row["pid"], "State").startswith("Z"))
            assert await peer.run("q", "echo", "hi") == (0, b"hi\n")
            (await peer.terminate("p")).ok()
            await peer.until_closed("p")
            assert (await peer.until_exited("p"))["exitCode"] == 5


# --- control groups --------------------------------------------------------------------------------------


@pytest.fixture
def subtree() -> Iterator[Subtree]:
    made = open_subtree()
    if made is None:
        pytest.skip("there are no control groups that may be changed here")
    yield made
    made.close()
    assert not os.path.exists(made.path)


def test_two_supervisors_of_a_program_have_control_groups_of_their_own(subtree: Subtree) -> None:
    """The end of one does not end what the other runs."""
    other = open_subtree()
    assert other is not None
    assert other.path != subtree.path
    leaf = subtree.leaf("leaf")
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        leaf.join(sleeper.pid)
        assert leaf.members() == [sleeper.pid]
        other.close()
        assert sleeper.poll() is None
        assert not leaf.remove()
        subtree.close()
        assert sleeper.wait() == -signal.SIGKILL


def test_a_leaf_holds_its_members_and_those_of_groups_below_it(subtree: Subtree) -> None:
    """A member may make groups of its own, of any name: it does not get out that way, and they do not keep the
    leaf."""
    leaf = subtree.leaf("leaf")
    below = os.fsencode(f"{subtree.path}/leaf/") + b"below \xff"
    os.mkdir(below)
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        Path(os.fsdecode(below), "cgroup.procs").write_text(str(sleeper.pid))
        assert leaf.members() == []
        assert leaf.holds(sleeper.pid)
        assert not leaf.holds(os.getpid())
        leaf.kill()
        assert sleeper.wait() == -signal.SIGKILL
    assert leaf.end()


@pytest.mark.case(134)
async def test_a_keeper_leaves_the_group_that_was_given_to_it_to_groups_that_bound() -> None:
    """Keeper and daemon are in a group below the delegated one: with processes in it, it could have no controllers
    for groups below without making these unusable. What runs is in a group as well."""
    with ExitStack() as stack:
        command = [*stack.enter_context(delegated_group(ORDINARY_USER)), *command_of("ours")]
        daemon = stack.enter_context(running(start_daemon("ours", "--allow-other-users", command=command)))
        (group,) = groups_of(daemon.pid)
        assert group.rpartition("/")[2] == "keeper"
        assert groups_of(listening_pid(daemon)) == [group]
        async with connect(daemon.url) as peer:
            info = (await peer.request("environment/info")).ok()
            assert info["containment"] == "cgroup"
            script = "until grep tsupervise_ /proc/self/cgroup; do :; done"
            code, output = await peer.run("p", "sh", "-c", script)
        assert code == 0
        assert f"0::{group}/tsupervise_" in output.decode()


def groups_of(pid: int) -> list[str]:
    """The control group of version 2 that a process is in."""
    rows = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return [row.removeprefix("0::") for row in rows if row.startswith("0::")]


@pytest.mark.case(134)
def test_what_dead_supervisors_have_left_is_ended_and_nothing_else(
    subtree: Subtree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By PID namespace, number and start: not that of the living, nor of those that cannot be seen from here."""
    own = name_of(os.getpid())
    space, number, started = own.removeprefix("tsupervise_").split("-")
    assert is_of(f"{own}.1", os.getpid())
    assert not is_stale(f"{own}.7")
    assert is_stale(f"tsupervise_{space}-{number}-{int(started) - 1}.1")
    assert not is_stale(f"tsupervise_{int(space) + 1}-{number}-{int(started) - 1}.1")
    assert not is_stale("somebody-else")
    base = f"{subtree.path}/base"  # where no other supervisor of this machine looks
    monkeypatch.setattr(_cgroup, "_own_group", lambda: base)
    stale = f"{base}/tsupervise_{space}-{number}-{int(started) - 1}.1"
    os.makedirs(f"{stale}/leaf")
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        Path(f"{stale}/leaf/cgroup.procs").write_text(str(sleeper.pid))
        reaper = threading.Thread(target=sleeper.wait)
        reaper.start()
        next_one = open_subtree()
        reaper.join()
        assert sleeper.returncode == -signal.SIGKILL
    assert next_one is not None
    next_one.close()
    assert not os.path.exists(stale)
    assert os.path.exists(base)


@pytest.mark.case(134)
def test_a_supervisor_that_cannot_be_looked_at_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs in its control group is let be, if /proc shows nothing of its owner or cannot be read."""
    with subprocess.Popen(["sleep", "60"]) as other:
        name = f"{name_of(other.pid)}.1"
        monkeypatch.setattr(_cgroup, "_start_time", nothing)
        judged = is_stale(name)
        other.kill()
    assert not judged
    assert is_stale(name)


def nothing(pid: int) -> str:
    return ""


def test_a_keeper_finds_the_control_groups_of_its_daemon(subtree: Subtree) -> None:
    """All of them, by the number of the process, and none of another."""
    assert subtree.path.startswith(subtrees_of(os.getpid()))
    end_subtrees(subtrees_of(os.getppid()))
    assert os.path.exists(subtree.path)
    end_subtrees(subtrees_of(os.getpid()))
    assert not os.path.exists(subtree.path)
    end_subtrees("")


async def test_no_leaf_stays_behind(subtree: Subtree) -> None:
    """Ended by itself or swept, a process leaves no control group."""
    containment = Containment(owns_process=False, subtree=subtree)
    for argv in (["true"], ["sleep", "60"]):
        enclosure, child = start(containment, *argv)
        enclosure.join()
        assert len([entry for entry in os.scandir(subtree.path) if entry.is_dir()]) == 1
        if argv == ["true"]:
            await child.wait_exit()
            child.reap()
            child.close()
        else:
            await child.destroy()
        assert not [entry for entry in os.scandir(subtree.path) if entry.is_dir()]
    containment.close()


@pytest.mark.case(134)
async def test_the_leaf_of_who_was_left_behind_goes_when_that_has_ended(subtree: Subtree) -> None:
    """A session may start a million processes that each leave somebody behind for a moment: later starts remove the
    groups, but not of those that live."""
    containment = Containment(owns_process=False, subtree=subtree)
    left: list[tuple[Enclosure, int]] = []
    for _ in range(6):
        enclosure, child = start(containment, "sh", "-c", "sleep 60 >/dev/null 2>&1 & exec sleep 60")
        while not (others := list(descendants_of(child.pid))):  # noqa: ASYNC110 - it sets no event
            await trio.sleep(0.01)
        enclosure.join()
        left.append((enclosure, others[0]))
        os.kill(child.pid, signal.SIGKILL)
        await child.wait_exit()
        child.reap()
        child.close()
    assert len(leaves(subtree)) == 6
    for _, pid in left[1:]:
        os.kill(pid, signal.SIGKILL)
        await until_dead(pid)
    for _ in range(6):
        _, child = start(containment, "true")
        await child.destroy()
    assert len(leaves(subtree)) == 1
    await left[0][0].sweep()
    assert leaves(subtree) == []
    containment.close()


def leaves(subtree: Subtree) -> list[str]:
    return [entry.name for entry in os.scandir(subtree.path) if entry.is_dir()]


@pytest.mark.case(134)
async def test_a_want_of_descriptors_costs_no_control_groups(
    subtree: Subtree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are kept for looks serve to move a process into its group, too; if they do not suffice, the next
    process has a group again."""
    containment = Containment(owns_process=False, subtree=subtree)
    enclosure, child = start(containment, "sleep", "60")
    _, other = start(containment, "sleep", "60")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
        with pytest.raises(OSError, match="Too many open files"):
            fill_descriptors(stack)
        enclosure.join()
        monkeypatch.setattr(containment, "_spares", [])
        other.enclosure.join()
    assert child.enclosure.leaf is not None
    assert child.enclosure.leaf.members() == [child.pid]
    assert containment.kind == "cgroup"
    await child.destroy()
    await other.destroy()
    assert leaves(subtree) == []
    containment.close()


async def test_lost_control_groups_are_said_once_and_done_without(
    subtree: Subtree, caplog: pytest.LogCaptureFixture
) -> None:
    """A subtree that somebody has removed costs no process: they are found by their tags from then on."""
    containment = Containment(owns_process=False, subtree=subtree)
    assert containment.kind == "cgroup"
    os.rmdir(subtree.path)
    for _ in range(2):
        _, child = start(containment, "sleep", "60")
        await child.destroy()
    assert containment.kind == "tag"
    assert caplog.text.count("control groups cannot be used") == 1
    containment.close()


# --- what is told of it ----------------------------------------------------------------------------------


@pytest.mark.case(132)
@pytest.mark.ours_only("the reference has no such member")
async def test_the_kind_of_containment_is_told() -> None:
    """In the handshake and in the status: a control group where there is one, unless told not to use it."""
    made = open_subtree()
    if made is not None:
        made.close()
    for options, kind in (((), "subreaper" if made is None else "cgroup"), (("--no-cgroup",), "subreaper")):
        with running(start_daemon("ours", *options)) as daemon:
            async with connect(daemon.url) as peer:
                assert (await peer.request("environment/info")).ok()["containment"] == kind
                assert (await peer.request("operator/status")).ok()["containment"] == kind


async def test_a_killed_daemon_leaves_what_it_did_not_start(tmp_path: Path) -> None:
    """A shell that becomes the daemon by exec may have children: the keeper is not their owner."""
    marker = new_marker()
    command = ["sh", "-c", f'sleep {marker} & exec "$@"', "sh", sys.executable, "-m", "tsupervise", "run"]
    daemon = start_daemon(command=command)
    with running(daemon):
        os.kill(listening_pid(daemon), signal.SIGKILL)
        assert await trio.to_thread.run_sync(daemon.process.wait, 10) == 128 + signal.SIGKILL
        (sleeper,) = marked(marker)
        os.kill(sleeper, signal.SIGKILL)
    await until(lambda: not marked(marker))
