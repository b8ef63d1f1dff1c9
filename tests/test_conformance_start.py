"""process/start: what it answers, what it refuses, how long it keeps an id, and what the child finds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from daemons import Daemon, start_daemon
from procfs import listening_pid, status_field, until
from wire import PATIENCE_S, Peer, connect

OS_ERRORS = {
    "missing": "No such file or directory (os error 2)",
    "denied": "Permission denied (os error 13)",
    "format": "Exec format error (os error 8)",
    "not-a-directory": "Not a directory (os error 20)",
}

IN_USE = -32600
REFERENCE_RETENTION_S = 80

pipe_and_tty = pytest.mark.parametrize("tty", [False, True], ids=["pipe", "tty"])


@pytest.fixture
def forgetful(target: str, long_profile: bool) -> Iterator[Daemon]:
    """A server that forgets a closed process after one second, or the reference after its fixed time."""
    if target == "reference" and not long_profile:
        pytest.skip("the reference keeps a closed process for 80 s")
    server = start_daemon(target, *(("--retention", "1") if target == "ours" else ()))
    yield server
    assert server.stop() == 0


async def until_forgotten(server: Daemon, peer: Peer, process_id: str) -> None:
    """Wait until a closed process of a `forgetful` server is unknown."""
    with trio.fail_after(PATIENCE_S + (0 if server.is_ours else REFERENCE_RETENTION_S)):
        while True:
            answer = await peer.process_read(process_id)
            if answer.error is not None:
                assert answer.code == -32600
                return
            await trio.sleep(0.05)


@pytest.fixture
def bad_programs(tmp_path: Path) -> dict[str, tuple[list[str], int, str]]:
    """By name: an argv that cannot start, the error code, and how the error text begins."""
    for name, content, mode in (
        ("plain", "true\n", 0o644),
        ("shapeless", "true\n", 0o755),
        ("orphaned", "#!/no/such/interpreter\n", 0o755),
    ):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(mode)
    return {
        "nothing": ([], -32602, ""),
        "empty name": ([""], -32603, ""),
        "missing path": (["/no/such/program"], -32603, OS_ERRORS["missing"]),
        "missing name": (["no-such-program-anywhere"], -32603, OS_ERRORS["missing"]),
        "not executable": ([str(tmp_path / "plain")], -32603, OS_ERRORS["denied"]),
        "directory": ([str(tmp_path)], -32603, OS_ERRORS["denied"]),
        "no shebang": ([str(tmp_path / "shapeless")], -32603, OS_ERRORS["format"]),
        "no interpreter": ([str(tmp_path / "orphaned")], -32603, OS_ERRORS["missing"]),
    }


async def refuse_all(url: str, bad: dict[str, tuple[list[str], int, str]], **fields: Any) -> None:
    """Each of `bad` is refused as it says, and its id can be used right after."""
    async with connect(url) as peer:
        for name, (argv, code, text) in bad.items():
            answer = await peer.start(name, *argv, **fields)
            assert (name, answer.code) == (name, code)
            assert answer.message.startswith(text), (name, answer.message)
            (await peer.start(name, "true", **{**fields, "cwd": "file:///tmp"})).ok()
            events = await peer.until_closed(name)
            assert [(event.kind, event.seq) for event in events] == [("exited", 1), ("closed", 2)]


@pytest.mark.case(52)
@pipe_and_tty
async def test_silent_process_is_answered_then_exits_then_closes(daemon: Daemon, tty: bool) -> None:
    """The shortest life is an answer and two events, numbered 1 and 2."""
    async with connect(daemon.url) as peer:
        result = (await peer.start("p", "true", tty=tty)).ok()
        assert (result["processId"], result["sandboxType"]) == ("p", "none")
        exited, closed = await peer.until_closed("p")
        assert (exited.kind, exited.seq) == ("exited", 1)
        assert (exited.params["exitCode"], exited.params["sandboxDenied"]) == (0, False)
        assert (closed.kind, closed.seq) == ("closed", 2)


@pytest.mark.case(53)
async def test_program_that_cannot_start_is_refused_and_leaves_no_trace(
    daemon: Daemon, bad_programs: dict[str, tuple[list[str], int, str]]
) -> None:
    """A start that fails says why, in the system's words where it was the system, and frees its id."""
    await refuse_all(daemon.url, bad_programs)


@pytest.mark.case(54)
@pytest.mark.ours_only("the reference words failures of a terminal start in other ways")
async def test_program_that_cannot_start_is_refused_the_same_way_with_a_terminal(
    daemon: Daemon, bad_programs: dict[str, tuple[list[str], int, str]]
) -> None:
    """Whether a start asks for a terminal changes nothing about how it fails."""
    await refuse_all(daemon.url, bad_programs, tty=True)


@pytest.mark.case(53)
async def test_bad_working_directory_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    """A working directory that is missing or is no directory fails the start with the system's words."""
    (tmp_path / "file").touch()
    await refuse_all(
        daemon.url, {"missing": (["true"], -32603, OS_ERRORS["missing"])}, cwd="file:///no/such/place"
    )
    await refuse_all(
        daemon.url,
        {"file": (["true"], -32603, OS_ERRORS["not-a-directory"])},
        cwd=(tmp_path / "file").as_uri(),
    )


@pytest.mark.case(54)
@pytest.mark.ours_only("the reference starts a terminal process elsewhere when its directory is missing")
async def test_bad_working_directory_is_refused_the_same_way_with_a_terminal(
    daemon: Daemon, tmp_path: Path
) -> None:
    """A terminal process never runs in another directory than the one asked for."""
    (tmp_path / "file").touch()
    await refuse_all(
        daemon.url,
        {"missing": (["true"], -32603, OS_ERRORS["missing"])},
        cwd="file:///no/such/place",
        tty=True,
    )
    await refuse_all(
        daemon.url,
        {"file": (["true"], -32603, OS_ERRORS["not-a-directory"])},
        cwd=(tmp_path / "file").as_uri(),
        tty=True,
    )


@pytest.mark.case(55)
@pipe_and_tty
async def test_id_is_taken_while_its_process_runs_and_after(
    daemon: Daemon, tmp_path: Path, tty: bool
) -> None:
    """A second start of an id is refused while the first one runs, has exited, or has closed."""
    leave, finish = tmp_path / "leave", tmp_path / "finish"
    # HUP is ignored because the end of a terminal's leader hangs up those who stay behind.
    script = f"""
        trap '' HUP
        (until test -e {finish}; do sleep 0.01; done) &
        until test -e {leave}; do sleep 0.01; done
    """
    async with connect(daemon.url) as peer:
        try:
            (await peer.start("p", "sh", "-c", script, tty=tty)).ok()
            assert (await peer.start("p", "true")).code == IN_USE
            leave.touch()
            await peer.until_exited("p")
            assert (await peer.start("p", "true")).code == IN_USE
            assert [event.kind for event in peer.events("p")] == ["exited"]
        finally:
            finish.touch()
        await peer.until_closed("p")
        assert (await peer.start("p", "true")).code == IN_USE
        assert [event.kind for event in peer.events("p")] == ["exited", "closed"]


@pytest.mark.case(55, 67)
async def test_id_is_free_again_after_retention(forgetful: Daemon) -> None:
    """A closed process keeps its id and stays readable for its time; then the id starts from 1 again."""
    async with connect(forgetful.url) as peer:
        assert await peer.run("p", "echo", "first") == (0, b"first\n")
        assert (await peer.start("p", "true")).code == IN_USE
        assert (await peer.process_read("p")).ok()["closed"]
        peer.by_process.clear()
        await until_forgotten(forgetful, peer, "p")
        assert await peer.run("p", "echo", "second") == (0, b"second\n")
        assert peer.events("p")[0].seq == 1


SELF_PORTRAIT = """
    while read -r name value; do
        case $name in Pid:|NSsid:|NSpgid:|SigBlk:|SigIgn:|Umask:) echo "$name $value" ;; esac
    done </proc/$$/status
    find /proc/$$/fd -type l -printf 'fd%f: %l\\n'
    read -r _ _ _ _ _ _ terminal foreground _ </proc/$$/stat
    echo "terminal: $terminal"
    echo "foreground: $foreground"
    (exec 3<>/dev/tty) 2>/dev/null && echo "ctty: yes" || echo "ctty: no"
"""
"""What a shell can say about itself, a line `name: value` for each fact. Its signals it must read by itself: while
it starts another program it may have them blocked."""


async def self_portrait(url: str, *, tty: bool) -> dict[str, str]:
    async with connect(url) as peer:
        code, output = await peer.run("p", "sh", "-c", SELF_PORTRAIT, tty=tty)
    assert code == 0, output
    return dict(" ".join(line.split()).split(": ") for line in output.decode().splitlines())


@pytest.mark.case(63)
@pipe_and_tty
async def test_child_starts_with_a_clean_slate(daemon: Daemon, tty: bool) -> None:
    """A child leads its session and group; no signal is blocked or ignored; the umask is the server's."""
    child = await self_portrait(daemon.url, tty=tty)
    assert child["NSsid"] == child["NSpgid"] == child["Pid"]
    assert int(child["SigBlk"], 16) == 0
    assert int(child["SigIgn"], 16) == 0
    assert child["Umask"] == status_field(listening_pid(daemon), "Umask")


@pytest.mark.case(63)
async def test_pipe_child_has_three_descriptors_and_no_terminal(daemon: Daemon) -> None:
    """Without a terminal the child has /dev/null, two pipes of its own, and nothing else open."""
    child = await self_portrait(daemon.url, tty=False)
    open_files = {name: value for name, value in child.items() if name.startswith("fd")}
    assert set(open_files) == {"fd0", "fd1", "fd2"}
    assert child["fd0"] == "/dev/null"
    assert child["fd1"].startswith("pipe:")
    assert child["fd2"].startswith("pipe:")
    assert child["fd1"] != child["fd2"]
    assert (child["ctty"], child["terminal"], child["foreground"]) == ("no", "0", "-1")


@pytest.mark.case(63)
async def test_terminal_child_controls_the_terminal_it_is_given(daemon: Daemon) -> None:
    """With a terminal all three descriptors are it, it is the controlling one, and the child is in front."""
    child = await self_portrait(daemon.url, tty=True)
    open_files = {name: value for name, value in child.items() if name.startswith("fd")}
    assert set(open_files) == {"fd0", "fd1", "fd2"}
    assert len(set(open_files.values())) == 1
    assert child["fd0"].startswith("/dev/pts/")
    assert (child["ctty"], child["foreground"]) == ("yes", child["Pid"])


@pytest.mark.case(63)
async def test_child_inherits_nothing_from_its_siblings(daemon: Daemon) -> None:
    """With many processes and their pipes open in the server, a new child still has only its own three."""
    async with connect(daemon.url) as peer:
        for number in range(8):
            (await peer.start(f"cat{number}", "cat", pipeStdin=True, tty=number % 2 == 1)).ok()
        child = await self_portrait(daemon.url, tty=False)
        assert {name for name in child if name.startswith("fd")} == {"fd0", "fd1", "fd2"}
        for number in range(8):
            (await peer.terminate(f"cat{number}")).ok()
            await peer.until_closed(f"cat{number}")


@pytest.mark.case(64)
async def test_stdin_that_was_not_asked_for_is_at_its_end(daemon: Daemon) -> None:
    """A plain process that reads its stdin gets the end of file and nothing else."""
    async with connect(daemon.url) as peer:
        assert await peer.run("p", "cat") == (0, b"")
        assert (await peer.write("p", b"x", "1")).ok() == {"status": "stdinClosed"}


@pytest.mark.case(65)
async def test_child_that_closes_its_streams_early_is_still_running(daemon: Daemon, tmp_path: Path) -> None:
    """The end of both streams is no exit: that comes when the process ends, and the close after it."""
    silent, leave = tmp_path / "silent", tmp_path / "leave"
    script = f"exec >&- 2>&-; : >{silent}; until test -e {leave}; do sleep 0.01; done; exit 3"
    async with connect(daemon.url) as peer:
        try:
            (await peer.start("p", "sh", "-c", script)).ok()
            await until(silent.exists)
            state = (await peer.process_read("p", waitMs=200)).ok()
            assert (state["exited"], state["closed"], peer.events("p")) == (False, False, [])
        finally:
            leave.touch()
        exited, closed = await peer.until_closed("p")
        assert (exited.kind, exited.seq, exited.params["exitCode"]) == ("exited", 1, 3)
        assert (closed.kind, closed.seq) == ("closed", 2)


SURVIVORS = {
    "pipe": ("(BODY) &", False),
    "setsid": ("setsid sh -c 'BODY' &", False),
    "tty": ("trap '' HUP; (BODY) &", True),
}
"""Ways in which a child outlives its leader with the output still in hand; BODY is what it does."""


def orphaning(kind: str, finish: Path) -> tuple[str, bool]:
    """A script that leaves a child behind which speaks once `finish` exists; whether it wants a terminal."""
    shape, tty = SURVIVORS[kind]
    body = f"until test -e {finish}; do sleep 0.01; done; echo late"
    return f"{shape.replace('BODY', body)} echo early; exit 4", tty


@pytest.mark.case(66)
@pytest.mark.parametrize("kind", SURVIVORS)
async def test_output_of_a_survivor_comes_after_the_exit(daemon: Daemon, tmp_path: Path, kind: str) -> None:
    """A leader's exit is told at once; who still holds its output is heard, and the close waits for it."""
    finish = tmp_path / "finish"
    script, tty = orphaning(kind, finish)
    async with connect(daemon.url) as peer:
        try:
            (await peer.start("p", "sh", "-c", script, tty=tty)).ok()
            assert (await peer.until_exited("p"))["exitCode"] == 4
            await peer.until_output("p", b"early")
            state = (await peer.process_read("p")).ok()
            assert (state["exited"], state["exitCode"], state["closed"]) == (True, 4, False)
        finally:
            finish.touch()
        events = await peer.until_closed("p")
        assert [event.kind for event in events] in (
            ["output", "exited", "output", "closed"],
            # The reference may number the first output after the exit.
            ["exited", "output", "output", "closed"],
        )
        assert [event.seq for event in events] == [1, 2, 3, 4]
        assert peer.output("p").split() == [b"early", b"late"]


@pytest.mark.case(66)
async def test_retention_is_counted_from_the_close(forgetful: Daemon, tmp_path: Path) -> None:
    """A process held open by a survivor for longer than the retention time is still there to be read."""
    finish = tmp_path / "finish"
    script, _ = orphaning("pipe", finish)
    async with connect(forgetful.url) as peer:
        try:
            (await peer.start("late", "sh", "-c", script)).ok()
            await peer.until_exited("late")
            # A process that closes after the other one exited; once it is forgotten, the other one's
            # retention, had it begun with the exit, would be over as well.
            await peer.run("clock", "true")
            await until_forgotten(forgetful, peer, "clock")
            assert not (await peer.process_read("late")).ok()["closed"]
        finally:
            finish.touch()
        await peer.until_closed("late")
        assert (await peer.process_read("late")).ok()["closed"]
        assert peer.output("late") == b"early\nlate\n"
