"""Limits and accounting of processes, shown by the installed daemon on processes that try to break them.

What a machine cannot enforce is not shown on it: memory, pids and CPU need control groups that the daemon may
change. The other side, that it is refused then, is shown by a daemon of an ordinary user.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

import tsupervise
from daemons import Daemon, command_of, running, start_daemon
from procfs import cpu_seconds, family, listening_pid, marked, new_marker, status_field, until
from scripted_server import Script, scripted_server
from tsupervise._limit_groups import PERIOD_US, folders_of
from tsupervise_protocol.messages import LIMIT_CAPABILITIES, Limits, Usage
from wire import PATIENCE_S, Peer, connect

pytestmark = pytest.mark.ours_only("the reference has no limits")

INVALID_PARAMS = -32602
MIB = 1 << 20
NOBODY = 65534

AS_NOBODY = [
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    # The one capability that stays lets it read this Python, wherever it lies.
    *("--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"),
]

needs_another_user = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="needs root and setpriv, to start a daemon as another user",
)


async def need(peer: Peer, *names: str) -> None:
    """Skip the test where the daemon says that it cannot enforce a limit."""
    capabilities = (await peer.request("environment/info")).ok()["capabilities"]
    for name in names:
        if not capabilities.get(LIMIT_CAPABILITIES[name], False):
            pytest.skip(f"{name} cannot be enforced here")


async def start_python(peer: Peer, process_id: str, code: str, *arguments: str, **fields: Any) -> int:
    """Start a Python program; returns its pid."""
    (await peer.start(process_id, sys.executable, "-c", code, *arguments, **fields)).ok()
    rows = (await peer.request("process/list")).ok()["processes"]
    return next(row["pid"] for row in rows if row["processId"] == process_id)


async def assert_unharmed(peer: Peer) -> None:
    assert await peer.run("unharmed", "echo", "hello") == (0, b"hello\n")


# --- memory, pids, CPU -----------------------------------------------------------------------------------


@pytest.mark.case(135, 142)
async def test_a_process_that_takes_too_much_memory_is_killed_for_it(daemon: Daemon) -> None:
    """It dies of SIGKILL, the reason says why, and neither the daemon nor another process of it is touched."""
    hog = f"memory = [b'x' * {MIB} for _ in range(512)]"
    async with connect(daemon.url) as peer:
        await need(peer, "memoryBytes")
        (await peer.start("other", "sleep", "600")).ok()
        await start_python(peer, "hog", hog, limits={"memoryBytes": 64 * MIB})
        exited = await peer.until_exited("hog")
        assert (exited["exitCode"], exited["termSignal"], exited["reason"]) == (137, 9, "oom")
        await assert_unharmed(peer)
        assert peer.exit("other") is None


@pytest.mark.case(135, 142)
async def test_memory_is_counted_for_all_that_comes_of_a_process_together(daemon: Daemon) -> None:
    """Four descendants that are small each are too much together; who runs them sees one die."""
    parent = f"""
import os, sys
small = [sys.executable, "-c", "x = b'x' * (32 * {MIB}); input()"]
end, _ = os.pipe()
for _ in range(4):
    os.posix_spawn(small[0], small, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, end, 0)])
_, status = os.wait()
sys.exit(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 100)
"""
    async with connect(daemon.url) as peer:
        await need(peer, "memoryBytes")
        await start_python(peer, "p", parent, limits={"memoryBytes": 96 * MIB})
        exited = await peer.until_exited("p")
        assert (exited["exitCode"], exited["reason"]) == (9, "oom")
        assert "termSignal" not in exited
        (await peer.terminate("p")).ok()
        await peer.until_closed("p")


@pytest.mark.case(136)
async def test_a_fork_loop_gets_no_further_than_its_pids(daemon: Daemon) -> None:
    """The program itself and seven more are eight; the ninth is refused by the system, and nobody else is."""
    marker = new_marker()
    loop = """
import os, time
count = 0
try:
    while count < 100:
        if os.fork() == 0:
            time.sleep(600)
        count += 1
except OSError as error:
    print(count, error.errno, flush=True)
time.sleep(600)
"""
    async with connect(daemon.url) as peer:
        await need(peer, "pids")
        await start_python(peer, "loop", loop, marker, limits={"pids": 8})
        assert await peer.until_output("loop", b"\n") == b"7 11\n"
        assert len(marked(marker)) == 8
        await assert_unharmed(peer)
        (await peer.terminate("loop")).ok()
        await peer.until_closed("loop")
    assert not marked(marker)


def counters(pid: int, file: str) -> dict[str, int]:
    """A file of counters of the control group of a process, from whatever hierarchy has it."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        for mount in (names, "unified", ""):
            found = Path(f"/sys/fs/cgroup/{mount}{path}/{file}")
            if "limits" in path and found.exists():
                return {name: int(value) for name, value in map(str.split, found.read_text().splitlines())}
    raise LookupError(f"no {file} of {pid}")


@pytest.mark.case(137)
async def test_busy_loops_use_no_more_cpu_time_than_their_quota(daemon: Daemon) -> None:
    """Two processes at full speed have together used no more than a fifth of the periods that went by."""
    quota = 0.2
    loops = "import os\nos.fork()\nwhile True: pass"
    async with connect(daemon.url) as peer:
        await need(peer, "cpuQuota")
        pid = await start_python(peer, "p", loops, limits={"cpuQuota": quota})
        await until(lambda: counters(pid, "cpu.stat")["nr_throttled"] >= 5)
        used_s = sum(map(cpu_seconds, family(pid)))
        allowed_s = (counters(pid, "cpu.stat")["nr_periods"] + 1) * quota * PERIOD_US / 1e6
        print(f"{used_s:.2f} s of CPU time used, {allowed_s:.2f} s allowed")
        # The kernel counts each process in ticks of 10 ms, and what came before the limit held is used as well.
        assert 0 < used_s <= allowed_s + 0.1
        await assert_unharmed(peer)
        (await peer.terminate("p")).ok()
        await peer.until_closed("p")


@pytest.mark.case(135)
async def test_a_memory_limit_bounds_swap_as_well(daemon: Daemon) -> None:
    """Where the system accounts for it, memory and swap together are no more than the limit: what does not fit in
    memory does not go on in swap."""
    async with connect(daemon.url) as peer:
        await need(peer, "memoryBytes")
        (await peer.start("p", "sleep", "600", limits={"memoryBytes": 64 * MIB})).ok()
        row = (await peer.request("process/list")).ok()["processes"][-1]
        texts = dict(bounds_of(row["pid"]))
    if not texts:
        pytest.skip("the system does not account for swap")
    assert texts in ({"memory.memsw.limit_in_bytes": str(64 * MIB)}, {"memory.swap.max": "0"})


def bounds_of(pid: int) -> Iterator[tuple[str, str]]:
    """What bounds the swap of a process, by the name of the file that says so."""
    for row in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, group = row.split(":", 2)
        name = {"memory": "memory.memsw.limit_in_bytes", "": "memory.swap.max"}.get(controllers)
        path = Path(f"/sys/fs/cgroup/{controllers}{group}/{name}")
        if name is not None and path.exists():
            yield name, path.read_text().strip()


# --- time ------------------------------------------------------------------------------------------------


@pytest.mark.case(138, 142)
@pytest.mark.parametrize("tty", [False, True], ids=["pipes", "terminal"])
async def test_everything_of_a_process_is_killed_when_its_time_is_over(daemon: Daemon, tty: bool) -> None:
    """Deaf to TERM, stopped, in sessions of their own: all are gone when it is closed, and the reason is told."""
    marker = new_marker()
    body = f"""
        trap "" TERM HUP INT
        (setsid sleep {marker} >/dev/null 2>&1 &)
        setsid sh -c 'kill -STOP $$; exec sleep {marker}' {marker} &
        echo up; while :; do sleep {marker}; done
    """
    async with connect(daemon.url) as peer:
        (await peer.start("p", "sh", "-c", body, tty=tty, timeoutMs=1000)).ok()
        exited = await peer.until_exited("p")
        assert (exited["exitCode"], exited["termSignal"], exited["reason"]) == (137, 9, "timeout")
        assert b"up" in peer.output("p")
        await peer.until_closed("p")
        assert not marked(marker)
        await assert_unharmed(peer)


@pytest.mark.case(138, 142)
async def test_the_time_runs_for_what_a_process_has_left_behind_too(daemon: Daemon) -> None:
    """The process has ended well before and says so; its daemonised child is killed when the time is over."""
    marker = new_marker()
    body = f"setsid sleep {marker} >/dev/null 2>&1 & echo up"
    async with connect(daemon.url) as peer:
        (await peer.start("p", "sh", "-c", body, timeoutMs=1000)).ok()
        exited = await peer.until_exited("p")
        assert (exited["exitCode"], exited["reason"]) == (0, "exit")
        await peer.until_closed("p")
        await until(lambda: not marked(marker))
        assert not peer.ended


# --- what each process has of its own ----------------------------------------------------------------------

TELL = """
import json, os, resource, sys
umask = os.umask(0)
own = [resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CORE)]
print(json.dumps([*own, os.getpriority(os.PRIO_PROCESS, 0), umask]), flush=True)
os.umask(umask)
if len(sys.argv) == 1:
    os.execv(sys.executable, [sys.executable, "-c", TELL, "again"])
"""


def own_limits(pid: int) -> tuple[str, str, int]:
    limits = Path(f"/proc/{pid}/limits").read_text()
    return limits, status_field(pid, "Umask"), os.getpriority(os.PRIO_PROCESS, pid)


@pytest.mark.case(139)
async def test_resource_limits_nice_and_umask_hold_and_are_inherited(daemon: Daemon) -> None:
    """For it and for what it starts; the daemon and its other children keep their own."""
    tell = f"TELL = {TELL!r}\nexec(TELL)"
    told = b"[[40, 40], [4096, 4096], 7, 63]\n"
    server = listening_pid(daemon)
    before = own_limits(server)
    limits = {"nofile": 40, "coreBytes": 4096, "nice": 7, "umask": 0o077}
    async with connect(daemon.url) as peer:
        await start_python(peer, "p", tell, limits=limits)
        await peer.until_closed("p")
        assert peer.output("p") == told * 2
        assert own_limits(server) == before
        await start_python(peer, "q", tell)
        await peer.until_closed("q")
        assert json.loads(peer.output("q").splitlines()[0])[2:] == [before[2], int(before[1], 8)]


@pytest.mark.case(139)
@pytest.mark.parametrize("tty", [False, True], ids=["pipes", "terminal"])
async def test_limits_hold_from_the_first_instruction_on(daemon: Daemon, tty: bool) -> None:
    """A program that is over at once was bounded nonetheless, every time, on a machine that is busy."""
    limits = {"nofile": 40, "nice": 7, "umask": 0o077}
    async with connect(daemon.url) as peer:
        capabilities = (await peer.request("environment/info")).ok()["capabilities"]
        grouped = capabilities.get(LIMIT_CAPABILITIES["pids"], False)
        if grouped:
            limits |= ALL_GROUPS
        (await peer.start("busy", "sh", "-c", "while :; do :; done & while :; do :; done")).ok()
        for number in range(20):
            body = "ulimit -n; nice; umask; grep -c '.limits/' /proc/self/cgroup"
            fields = {"tty": tty, "limits": limits}
            _, told = await peer.run(f"p{number}", "sh", "-c", body, **fields)
            own, nice, umask, groups = told.split()
            assert (own, nice, umask) == (b"40", b"7", b"0077")
            assert (groups != b"0") == grouped
        (await peer.terminate("busy")).ok()


@pytest.mark.case(139)
@pytest.mark.skipif(shutil.which("prlimit") is None, reason="needs prlimit, to start a daemon with a limit")
async def test_a_daemon_that_cannot_mark_its_children_bounds_them_nonetheless() -> None:
    """Where the limit that carries the mark is capped, as by LimitLOCKS=, a bounded start comes about, and the
    daemon serves on; what the process leaves behind goes with it."""
    marker = new_marker()
    with running(start_daemon(command=["prlimit", "--locks=100:100", *command_of("ours")])) as daemon:
        with trio.fail_after(PATIENCE_S):
            async with connect(daemon.url) as peer:
                script = f"setsid sleep {marker} >&- 2>&- & echo up; ulimit -n; exec sleep 60"
                (await peer.start("p", "sh", "-c", script, limits={"nofile": 50})).ok()
                await peer.until_output("p", b"up\n50\n")
                await peer.terminate("p")
                await peer.until_closed("p")
                assert marked(marker) == set()


# --- refusals --------------------------------------------------------------------------------------------

WRONG: dict[str, Mapping[str, Any]] = {
    "memoryBytes must be from 1048576": {"limits": {"memoryBytes": 4096}},
    "$.limits.memoryBytes": {"limits": {"memoryBytes": "1G"}},
    "pids must be from 1 to": {"limits": {"pids": 0}},
    "$.limits.pids": {"limits": {"pids": True}},
    "cpuQuota must be from 0.01": {"limits": {"cpuQuota": 0}},
    "nofile must be from 3 to": {"limits": {"nofile": -1}},
    "coreBytes must be from 0 to": {"limits": {"coreBytes": 1 << 63}},
    "nice must be from -20 to 19": {"limits": {"nice": 20}},
    "umask must be from 0 to 511": {"limits": {"umask": 0o1000}},
    "$.limits": {"limits": []},
    "timeoutMs must be at least 1": {"timeoutMs": 0},
    "$.timeoutMs": {"timeoutMs": 1.5},
    "below 2^64": {"timeoutMs": 1 << 64},
    "nofile cannot be enforced here": {"limits": {"nofile": 1 << 30}},
}


@pytest.mark.case(140)
@pytest.mark.parametrize("text", WRONG)
async def test_a_limit_that_cannot_be_is_refused(daemon: Daemon, tmp_path: Path, text: str) -> None:
    """A wrong type, a value out of range or beyond the system's: -32602 names it, and nothing is run."""
    async with connect(daemon.url) as peer:
        answer = await peer.start("p", "touch", str(tmp_path / "ran"), **WRONG[text])
        assert answer.code == INVALID_PARAMS
        assert text in answer.message
        assert await peer.run("p", "echo", "hello") == (0, b"hello\n")
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def ordinary_daemon() -> Iterator[Daemon]:
    """A daemon of a user who may change no control group, with at most 1,000 open files, and no nicer nor less nice
    than others, whatever runs the tests."""
    as_usual = ["nice", "-n", str(-os.getpriority(os.PRIO_PROCESS, 0))]
    command = [*as_usual, "prlimit", "--nofile=1000", *AS_NOBODY, *command_of("ours")]
    with running(start_daemon(command=command)) as daemon:
        yield daemon


@needs_another_user
@pytest.mark.case(140)
@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"memoryBytes": 64 * MIB}, "a control group with the memory controller"),
        ({"pids": 8}, "a control group with the pids controller"),
        ({"cpuQuota": 0.5}, "a control group with the cpu controller"),
        ({"nofile": 1001}, "beyond its own hard limit, 1000"),
        ({"nice": -1}, "below its own, 0"),
    ],
)
async def test_what_an_ordinary_user_cannot_enforce_is_refused(
    ordinary_daemon: Daemon, limits: dict[str, Any], reason: str
) -> None:
    """Without the rights it takes, a limit is refused with the reason, also beside others that could be kept."""
    async with connect(ordinary_daemon.url) as peer:
        answer = await peer.start("p", "true", limits={"umask": 0, **limits})
        assert answer.code == INVALID_PARAMS
        (name,) = limits
        assert f"{name} cannot be enforced here" in answer.message
        assert reason in answer.message


@needs_another_user
@pytest.mark.case(138, 139, 140)
async def test_an_ordinary_user_has_the_limits_that_need_no_rights(ordinary_daemon: Daemon) -> None:
    """The capabilities say which; these hold as for root, the time included."""
    held = {"nofile", "coreBytes", "nice", "umask"}
    async with connect(ordinary_daemon.url) as peer:
        capabilities = (await peer.request("environment/info")).ok()["capabilities"]
        assert capabilities["tsuperviseLimits"]
        assert {name for name, key in LIMIT_CAPABILITIES.items() if capabilities.get(key)} == held
        limits = {"nofile": 40, "coreBytes": 0, "nice": 7, "umask": 0o077}
        code = f"{TELL}\nimport time\ntime.sleep(600)"
        await start_python(peer, "p", code, "once", limits=limits, timeoutMs=1000)
        assert await peer.until_output("p", b"\n") == b"[[40, 40], [0, 0], 7, 63]\n"
        assert (await peer.until_exited("p"))["reason"] == "timeout"


# --- accounting ------------------------------------------------------------------------------------------

BURN = f"""
import os, resource, sys, time
def burn():
    memory = b"x" * (200 * {MIB})
    while time.process_time() < 0.3: pass
child = os.fork()
burn()
if not child:
    os._exit(0)
os.waitpid(child, 0)
both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
cpu = sum(usage.ru_utime + usage.ru_stime for usage in both)
print(int(cpu * 1000), max(usage.ru_maxrss for usage in both) * 1024)
"""


@pytest.mark.case(141)
async def test_the_usage_of_a_process_is_what_it_says_itself() -> None:
    """CPU time of it and of the child that it has waited for, the larger one's memory; told alike everywhere.

    At a daemon of its own: another may have had more memory itself.
    """
    with running(start_daemon()) as daemon:
        async with connect(daemon.url) as peer:
            (await peer.start("p", sys.executable, "-c", BURN)).ok()
            await peer.until_closed("p")
            usage = (await peer.until_exited("p"))["usage"]
            cpu_ms, rss = map(int, peer.output("p").split())
            print(f"{usage} against {cpu_ms} ms, {rss} bytes of its own account")
            assert 600 <= cpu_ms <= usage["userMs"] + usage["systemMs"] + 2 <= cpu_ms + 300
            assert 200 * MIB < rss <= usage["maxRssBytes"] <= rss + 16 * MIB
            read = (await peer.process_read("p")).ok()
            (row,) = (await peer.request("process/list")).ok()["processes"]
            observed = (await peer.request("operator/read", {"uid": row["uid"]})).ok()
            waited = (await peer.request("operator/wait", {"uid": row["uid"]})).ok()
            assert [answer["usage"] for answer in (read, row, observed, waited)] == [usage] * 4
            assert [answer["reason"] for answer in (read, row, observed, waited)] == ["exit"] * 4


@pytest.mark.case(141)
async def test_memory_below_what_the_daemon_had_itself_is_not_told(daemon: Daemon) -> None:
    """The system counts a child's memory from the daemon's on: a small one has null, never a wrong number."""
    async with connect(daemon.url) as peer:
        assert await peer.run("p", "true") == (0, b"")
        usage = (await peer.until_exited("p"))["usage"]
        assert usage["maxRssBytes"] is None
        assert 0 <= usage["userMs"] + usage["systemMs"] < 1000


@pytest.mark.case(142)
async def test_the_reason_says_why_a_process_ended(daemon: Daemon) -> None:
    """Of itself, by a signal, by a terminate; a terminate after the exit changes nothing."""
    async with connect(daemon.url) as peer:
        await peer.run("exit", "sh", "-c", "exit 3")
        await peer.run("signal", "sh", "-c", "kill -KILL $$")
        for process_id in ("terminated", "late"):
            body = "echo up; exec sleep 600" if process_id == "terminated" else "sleep 600 & echo up"
            (await peer.start(process_id, "sh", "-c", body)).ok()
            await peer.until_output(process_id, b"up")
        await peer.until_exited("late")
        for process_id in ("terminated", "late"):
            (await peer.terminate(process_id)).ok()
            await peer.until_closed(process_id)
        rows = (await peer.request("process/list")).ok()["processes"]
        assert {row["processId"]: row["reason"] for row in rows} == {
            "exit": "exit",
            "signal": "signal",
            "terminated": "terminated",
            "late": "exit",
        }
        (await peer.start("running", "sleep", "600")).ok()
        read = (await peer.process_read("running")).ok()
        assert "reason" not in read
        assert "usage" not in read


# --- what is left ----------------------------------------------------------------------------------------

ALL_GROUPS = {"memoryBytes": 64 * MIB, "pids": 8, "cpuQuota": 0.5}


def groups_of(folders: list[str]) -> list[str]:
    """The control groups of processes with limits that are there."""
    return [
        f"{folder}/{name.name}" for folder in folders if os.path.isdir(folder) for name in groups_in(folder)
    ]


def gone(paths: list[str]) -> bool:
    return not any(map(os.path.exists, paths))


def members_of(group: str) -> set[int]:
    return {int(pid) for pid in Path(group, "cgroup.procs").read_text().split()}


def groups_in(folder: str) -> list[Path]:
    return [path for path in Path(folder).iterdir() if path.is_dir()]


@pytest.mark.case(143)
async def test_the_groups_of_limits_go_with_the_last_that_lives_in_them(daemon: Daemon) -> None:
    """With the process if nothing else is left, else with what it has left, which the end of the session kills."""
    marker = new_marker()
    folders = folders_of(listening_pid(daemon))
    async with connect(daemon.url) as peer:
        await need(peer, *ALL_GROUPS)
        before = groups_of(folders)
        assert await peer.run("short", "true", limits=ALL_GROUPS) == (0, b"")
        answer = await peer.start("bad", "/no/such/program", limits=ALL_GROUPS)
        assert answer.error is not None
        await until(lambda: groups_of(folders) == before)
        body = f"setsid sleep {marker} >/dev/null 2>&1 & echo up"
        assert await peer.run("long", "sh", "-c", body, limits=ALL_GROUPS) == (0, b"up\n")
        left = {*groups_of(folders)} - {*before}
        assert left
        assert [members_of(group) for group in left] == [marked(marker)] * len(left)
        (await peer.request("session/end", {})).ok()
        assert not marked(marker)
        await until(lambda: groups_of(folders) == before)


@pytest.mark.case(143)
async def test_a_killed_daemon_leaves_no_groups_of_limits() -> None:
    """SIGKILL to the daemon: its keeper removes them. SIGKILL to both: the next daemon does."""
    marker = new_marker()
    for also_keeper in (False, True):
        daemon = start_daemon()
        try:
            server = listening_pid(daemon)
            folders = folders_of(server)
            async with connect(daemon.url) as peer:
                await need(peer, *ALL_GROUPS)
                (await peer.start("p", "sleep", marker, limits=ALL_GROUPS)).ok()
                assert groups_of(folders)
                if also_keeper:
                    for number in (signal.SIGSTOP, signal.SIGKILL):
                        daemon.process.send_signal(number)
                os.kill(server, signal.SIGKILL)
            daemon.process.wait(10)
            await until(partial(gone, [f"/proc/{server}"]))
            if also_keeper:
                for pid in marked(marker):
                    os.kill(pid, signal.SIGKILL)
                await until(lambda: not marked(marker))
                with running(start_daemon()):
                    pass
            assert gone(folders)
        finally:
            daemon.stop()


# --- the client and the command line -----------------------------------------------------------------------


@pytest.mark.case(144)
async def test_the_client_limits_a_process_and_tells_how_it_ended(daemon: Daemon) -> None:
    """`timeout_s` and `limits` reach the server; the exit carries the usage and the reason."""
    async with tsupervise.connect(daemon.url) as client:
        start = client.open_process(
            ["sh", "-c", "umask; sleep 600"], timeout_s=0.5, limits=Limits(umask=0o027)
        )
        async with start as process:
            events = [event async for event in process.events()]
        assert [event.data for event in events if isinstance(event, tsupervise.Output)] == [b"0027\n"]
        (exited,) = [event for event in events if isinstance(event, tsupervise.Exited)]
        assert (exited.exit_code, exited.reason) == (137, "timeout")
        assert isinstance(exited.usage, Usage)
        async with tsupervise.connect(daemon.url) as other:
            for follower in (client, other):
                handle = await follower.attach(process.uid or "")
                followed = [event async for event in handle.events()]
                assert [event for event in followed if isinstance(event, tsupervise.Exited)] == [exited]
        with pytest.raises(tsupervise.ServerRefused, match="nofile cannot be enforced"):
            await client.start(["true"], limits=Limits(nofile=1 << 30))
        with pytest.raises(ValueError, match="above 0"):
            await client.start(["true"], timeout_s=0)


@pytest.mark.case(144)
async def test_a_server_that_knows_no_limits_is_not_asked() -> None:
    """Sent to it, they would be ignored: the client refuses, and an exit that says nothing has None."""

    async def play(script: Script) -> None:
        await script.handshake()
        process_id = await script.start()
        await script.exited(process_id, 1)
        await script.closed(process_id, 2)
        await script.until_gone()

    async with scripted_server(play) as url, tsupervise.connect(url) as client:
        for options in ({"timeout_s": 1.0}, {"limits": Limits(nice=1)}):
            with pytest.raises(tsupervise.NotSupported, match="tsuperviseLimits"):
                await client.start(["true"], **options)  # pyright: ignore[reportArgumentType]
        process = await client.start(["true"])
        events = [event async for event in process.events()]
        assert events[0] == tsupervise.Exited(1, 0, None, False, None, None)


def run_exec(daemon: Daemon | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sysconfig.get_path("scripts")) / "tsupervise"), "exec"]
    where = [] if daemon is None else ["--url", daemon.url]
    return subprocess.run(
        [*command, *where, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20
    )


@pytest.mark.case(144)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_wait_tells_a_timeout_by_its_code(daemon: Daemon, when: str) -> None:
    """`tsupervise wait` exits with 124 if the time of the process was over, be it before or while it waits, and as
    the process did if another signal killed it."""
    wait = [str(Path(sysconfig.get_path("scripts")) / "tsupervise"), "wait", "--url", daemon.url]
    async with tsupervise.connect(daemon.url) as client:
        timed = await client.start(["sleep", "600"], timeout_s=0.01 if when == "before" else 2.0)
        killed = await client.start(["sleep", "600"], timeout_s=600)
        if when == "before":
            await timed.wait()
        done = await trio.run_process([*wait, timed.uid or ""], check=False)
        assert done.returncode == 124
        await killed.signal("kill")
        done = await trio.run_process([*wait, killed.uid or ""], check=False)
        assert done.returncode == 137


@pytest.mark.case(144)
@pytest.mark.parametrize("embedded", [True, False], ids=["embedded", "daemon"])
def test_exec_passes_limits_on_and_tells_a_timeout_by_its_code(daemon: Daemon, embedded: bool) -> None:
    """Its options are those limits; 124 is a command whose time was over, 125 a limit that cannot be enforced."""
    where = None if embedded else daemon
    done = run_exec(where, "--umask", "027", "--nice", "3", "--", "sh", "-c", "umask; nice; exit 5")
    assert (done.returncode, done.stdout) == (5, "0027\n3\n")
    done = run_exec(where, "--timeout", "0.5", "--", "sh", "-c", "trap '' TERM; echo up; sleep 600")
    assert (done.returncode, done.stdout) == (124, "up\n")
    done = run_exec(where, "--nofile", str(1 << 30), "--", "true")
    assert done.returncode == 125
    assert "nofile cannot be enforced here" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--memory", "1X"], "got '1X'"),
        (["--memory", "1K"], "memoryBytes must be from 1048576"),
        (["--umask", "8"], "expected an octal number"),
        (["--umask", "1000"], "umask must be from 0 to 511"),
        (["--cpus", "nan"], "cpuQuota must be from 0.01"),
        (["--timeout", "0"], "--timeout"),
    ],
)
def test_exec_refuses_a_limit_that_is_none(arguments: list[str], text: str) -> None:
    """A usage error that names what is wrong; nothing is run."""
    done = run_exec(None, *arguments, "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (2, "")
    assert text in done.stderr
