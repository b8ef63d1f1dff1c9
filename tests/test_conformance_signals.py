"""process/signal and process/terminate: who is reached, what is answered, and that nobody is left."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from complete_events import output_of, until_complete
from daemons import Daemon
from gates import gate_at
from procfs import listening_pid, until_dead, until_stopped
from wire import Answer, Peer, connect

SIGWAIT = """
import signal, sys
number = signal.Signals[sys.argv[1]]
signal.pthread_sigmask(signal.SIG_BLOCK, {number})
print("ready", flush=True)
print("got", signal.sigwait({number}).name, flush=True)
"""
"""A program that waits for the signal it is named, and tells."""


async def send_signal(peer: Peer, process_id: str, name: str) -> Answer:
    return await peer.request("process/signal", {"processId": process_id, "signal": name})


async def start_ready(peer: Peer, process_id: str, body: str, *arguments: str) -> None:
    """Start a shell and wait until it has printed its first line."""
    (await peer.start(process_id, "sh", "-c", body, *arguments)).ok()
    await peer.until_output(process_id, b"\n")


async def pid_from(peer: Peer, process_id: str) -> int:
    """The pid that the process printed as its first line."""
    return int((await peer.until_output(process_id, b"\n")).split(b"\n")[0])


@pytest.mark.case(89)
async def test_interrupt_ends_a_process_that_does_not_mind_it(daemon: Daemon) -> None:
    """SIGINT reaches the process, which dies of it as from the keyboard."""
    async with connect(daemon.url) as peer:
        (await peer.start("p", "sleep", "30")).ok()
        assert (await send_signal(peer, "p", "interrupt")).ok() == {}
        await peer.until_closed("p")
        assert (await peer.until_exited("p"))["exitCode"] == 130


@pytest.mark.case(89)
async def test_interrupt_can_be_trapped(daemon: Daemon) -> None:
    """A handler runs, its output arrives and the exit code is its own."""
    async with connect(daemon.url) as peer:
        await start_ready(
            peer, "p", "trap 'echo caught; exit 7' INT; echo ready; while :; do sleep 0.05; done"
        )
        assert (await send_signal(peer, "p", "interrupt")).ok() == {}
        await peer.until_closed("p")
        assert peer.output("p") == b"ready\ncaught\n"
        assert (await peer.until_exited("p"))["exitCode"] == 7


@pytest.mark.case(89)
async def test_interrupt_reaches_the_whole_group(daemon: Daemon) -> None:
    """A child that the process waits for gets the signal as well."""
    async with connect(daemon.url) as peer:
        await start_ready(peer, "p", "sh -c 'echo $$; exec sleep 30'; echo code $?; exit 3")
        child = await pid_from(peer, "p")
        assert (await send_signal(peer, "p", "interrupt")).ok() == {}
        await until_dead(child)
        await peer.until_closed("p")


@pytest.mark.case(89)
async def test_interrupting_nothing_is_no_error(daemon: Daemon) -> None:
    """An unknown, an exited and a closed process take a signal without effect."""
    async with connect(daemon.url) as peer:
        await start_ready(peer, "exited", "sleep 0.3 & echo ready")
        await peer.until_exited("exited")
        await peer.run("closed", "true")
        for process_id in ("nobody", "exited", "closed"):
            assert (await send_signal(peer, process_id, "interrupt")).ok() == {}


@pytest.mark.case(89)
async def test_an_unknown_signal_name_is_refused(daemon: Daemon) -> None:
    """Names are a closed list, in lower case; a number is no name; the process is not disturbed."""
    async with connect(daemon.url) as peer:
        (await peer.start("p", "sleep", "30")).ok()
        for name in ("bogus", "SIGINT", "INT", "Interrupt", "", 2, None):
            params = {"processId": "p", "signal": name}
            assert (await peer.request("process/signal", params)).code == -32602, name
        assert (await peer.request("process/signal", {"processId": "p"})).code == -32602
        assert (await peer.terminate("p")).ok() == {"running": True}


@pytest.mark.case(89)
@pytest.mark.ours_only("the reference knows interrupt alone")
@pytest.mark.parametrize("tty", [False, True], ids=["pipe", "pty"])
async def test_more_signals_have_names(daemon: Daemon, tty: bool) -> None:
    """Each further name delivers the signal that it says, on pipes and terminals."""
    names = {
        "interrupt": "SIGINT",
        "terminate": "SIGTERM",
        "hangup": "SIGHUP",
        "quit": "SIGQUIT",
        "usr1": "SIGUSR1",
        "usr2": "SIGUSR2",
        "winch": "SIGWINCH",
    }
    async with connect(daemon.url) as peer:
        for name, shown in names.items():
            (await peer.start(name, sys.executable, "-ISc", SIGWAIT, shown, tty=tty)).ok()
        for name, shown in names.items():
            await peer.until_output(name, b"ready")
            assert (await send_signal(peer, name, name)).ok() == {}
            await peer.until_closed(name)
            assert peer.output(name).split() == [b"ready", b"got", shown.encode()]


@pytest.mark.case(89)
@pytest.mark.ours_only("the reference knows interrupt alone")
async def test_kill_by_name_cannot_be_trapped(daemon: Daemon) -> None:
    """`kill` is SIGKILL to the group, and unlike terminate an ordinary signal."""
    async with connect(daemon.url) as peer:
        await start_ready(peer, "p", "trap 'echo caught' INT TERM HUP; echo ready; sleep 30")
        assert (await send_signal(peer, "p", "kill")).ok() == {}
        await peer.until_closed("p")
        assert peer.output("p") == b"ready\n"
        assert (await peer.until_exited("p"))["exitCode"] == 137


@pytest.mark.case(89)
@pytest.mark.ours_only("the reference knows interrupt alone")
async def test_a_process_can_be_stopped_and_continued(daemon: Daemon) -> None:
    """Stopped it does not run, and says nothing of an exit; continued it goes on."""
    async with connect(daemon.url) as peer:
        await start_ready(peer, "p", "trap 'echo caught; exit 0' USR1; echo $$; sleep 30 & wait")
        pid = await pid_from(peer, "p")
        assert (await send_signal(peer, "p", "stop")).ok() == {}
        await until_stopped(pid)
        assert (await send_signal(peer, "p", "usr1")).ok() == {}
        page = (await peer.process_read("p", afterSeq=1)).ok()
        assert (page["chunks"], page["exited"]) == ([], False)
        assert (await send_signal(peer, "p", "continue")).ok() == {}
        await peer.until_output("p", b"caught")
        assert (await peer.until_exited("p"))["exitCode"] == 0


@pytest.mark.case(90)
@pytest.mark.ours_only("the reference interrupts the shell and not its job")
async def test_interrupt_on_a_terminal_reaches_the_foreground_job(daemon: Daemon) -> None:
    """In a shell with job control the job in the foreground ends and the shell lives, as by ^C."""
    async with connect(daemon.url) as peer:
        (await peer.start("p", "sh", "-i", tty=True)).ok()
        # The quotes keep the echo of the typed line from looking like its result.
        (await peer.write("p", b"sh -c 'echo in''side; exec sleep 30'\n", "job")).ok()
        await peer.until_output("p", b"inside")
        assert (await send_signal(peer, "p", "interrupt")).ok() == {}
        (await peer.write("p", b"echo code=$?\n", "code")).ok()
        await peer.until_output("p", b"code=130")
        assert peer.exit("p") is None
        (await peer.write("p", b"exit 5\n", "exit")).ok()
        assert (await peer.until_exited("p"))["exitCode"] == 5


@pytest.mark.case(91)
async def test_terminate_kills_what_runs_and_says_whether_it_did(daemon: Daemon) -> None:
    """Running, trapping or stopped: `true` and exit 137 without a last word; unknown or ended: `false`."""
    async with connect(daemon.url) as peer:
        assert (await peer.terminate("nobody")).ok() == {"running": False}
        await start_ready(peer, "plain", "echo ready; exec sleep 30")
        await start_ready(peer, "trapping", "trap 'echo caught; exit 0' TERM INT HUP; echo ready; sleep 30")
        await start_ready(peer, "stopped", "echo $$; kill -STOP $$; echo woken")
        await until_stopped(await pid_from(peer, "stopped"))
        for process_id in ("plain", "trapping", "stopped"):
            said = peer.output(process_id)
            assert (await peer.terminate(process_id)).ok() == {"running": True}
            await peer.until_closed(process_id)
            assert (await peer.until_exited(process_id))["exitCode"] == 137
            assert peer.output(process_id) == said
            assert (await peer.terminate(process_id)).ok() == {"running": False}


@pytest.mark.case(91)
async def test_terminate_of_an_ended_process_is_false(daemon: Daemon) -> None:
    """Exited or closed, a process that ended by itself keeps its exit code."""
    async with connect(daemon.url) as peer:
        await start_ready(peer, "exited", "sleep 0.3 & echo ready; exit 4")
        assert (await peer.until_exited("exited"))["exitCode"] == 4
        assert (await peer.run("closed", "sh", "-c", "exit 4"))[0] == 4
        for process_id in ("exited", "closed"):
            assert (await peer.terminate(process_id)).ok() == {"running": False}
            assert (await peer.process_read(process_id)).ok()["exitCode"] == 4


@pytest.mark.case(91)
@pytest.mark.parametrize("tty", [False, True], ids=["pipe", "pty"])
async def test_terminating_twice_in_one_breath_is_no_error(daemon: Daemon, tty: bool) -> None:
    """The second answer may be either; there is one exit and one close."""
    async with connect(daemon.url) as peer:
        (await peer.start("p", "sleep", "30", tty=tty)).ok()
        first = await peer.send("process/terminate", {"processId": "p"})
        second = await peer.send("process/terminate", {"processId": "p"})
        assert (await peer.answer_to(first)).ok() == {"running": True}
        assert (await peer.answer_to(second)).ok()["running"] in (True, False)
        events = await until_complete(peer, "p")
        assert [event.kind for event in events] == ["exited", "closed"]


@pytest.mark.case(92)
@pytest.mark.parametrize("tty", [False, True], ids=["pipe", "pty"])
async def test_terminate_takes_the_children_in_the_group_along(daemon: Daemon, tty: bool) -> None:
    """A background child of the process, deaf to what can be ignored, is gone after terminate."""
    body = "sh -c 'trap \"\" INT TERM HUP; echo $$; while :; do sleep 30; done' & wait"
    async with connect(daemon.url) as peer:
        (await peer.start("p", "sh", "-c", body, tty=tty)).ok()
        child = await pid_from(peer, "p")
        assert (await peer.terminate("p")).ok() == {"running": True}
        await until_dead(child)
        await peer.until_closed("p")


@pytest.mark.case(93)
@pytest.mark.ours_only("the reference leaves the children of an exited process alone")
async def test_terminate_after_the_exit_ends_the_children_that_are_left(daemon: Daemon) -> None:
    """The leader's end is its own, so the answer is `false`; what it left in its group dies and closes."""
    body = "sh -c 'trap \"\" INT TERM HUP; echo $$; exec sleep 300' & exit 4"
    async with connect(daemon.url) as peer:
        (await peer.start("p", "sh", "-c", body)).ok()
        child = await pid_from(peer, "p")
        assert (await peer.until_exited("p"))["exitCode"] == 4
        assert not (await peer.process_read("p")).ok()["closed"]
        assert (await peer.terminate("p")).ok() == {"running": False}
        await until_dead(child)
        await peer.until_closed("p")
        assert (await peer.process_read("p")).ok()["exitCode"] == 4


@pytest.mark.case(94)
@pytest.mark.ours_only("the reference drops output that it has not read when it kills")
@pytest.mark.parametrize("tty", [False, True], ids=["pipe", "pty"])
async def test_output_written_before_terminate_is_delivered(
    daemon: Daemon, tmp_path: Path, tty: bool
) -> None:
    """What the process had written when it was killed comes, and comes before exited and closed."""
    # Less than a terminal or a pipe holds, so that the writing ends without a reader.
    size = 3000 if tty else 60_000
    body = 'echo ready; read x <"$0"; head -c "$2" /dev/zero; echo >"$1"; sleep 30'
    server = listening_pid(daemon)
    (tmp_path / "back").mkdir()
    with gate_at(tmp_path) as write, gate_at(tmp_path / "back") as written:
        async with connect(daemon.url) as peer:
            for process_id in ("a", "b", "c"):
                argv = ("sh", "-c", body, write.path, written.path, str(size))
                (await peer.start(process_id, *argv, tty=tty)).ok()
                ready = await peer.until_output(process_id, b"\n")
                # While the server stands still it can read nothing, so that it finds the output and
                # the request side by side when it goes on.
                os.kill(server, signal.SIGSTOP)
                try:
                    await until_stopped(server)
                    write.open()
                    await written.until_opened()
                    request = await peer.send("process/terminate", {"processId": process_id})
                finally:
                    os.kill(server, signal.SIGCONT)
                assert (await peer.answer_to(request)).ok() == {"running": True}
                events = await until_complete(peer, process_id)
                assert [event.kind for event in events[-2:]] == ["exited", "closed"]
                assert output_of(events) == ready + bytes(size)
                assert (await peer.until_exited(process_id))["exitCode"] == 137
