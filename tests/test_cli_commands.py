"""`tsupervise ps`, `logs`, `attach` and the like, as a person uses them, at a daemon that they find themselves."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pexpect
import pytest
import trio

from daemons import Daemon, running, start_daemon
from fault_proxy import fault_proxy
from procfs import children_of
from terminals import PATIENCE_S, TSUPERVISE, Terminal, exit_code, spawn
from tsupervise import Output, connect
from tsupervise._observed_process import ObservedProcess
from tsupervise_protocol.messages import OperatorEntry, OperatorStatusResult

# The test process has threads by now; pexpect's child does nothing but exec.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

DETACH = "\x10\x11"
"""ctrl-p ctrl-q."""


@dataclass
class Person:
    """Somebody with a shell, and a daemon of their own running."""

    daemon: Daemon
    env: Mapping[str, str]

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run `tsupervise` with pipes, to its end."""
        return subprocess.run(
            [TSUPERVISE, *arguments],
            env=self.env,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    def say(self, *arguments: str) -> str:
        """Run `tsupervise`, which succeeds silently but for what it prints; returns that."""
        ended = self.run(*arguments)
        assert (ended.returncode, ended.stderr) == (0, "")
        return ended.stdout

    def at_terminal(self, *arguments: str, size: tuple[int, int] = (24, 80)) -> Terminal:
        """Run `tsupervise` on a terminal of its own."""
        return spawn([TSUPERVISE, *arguments], size, self.env)

    def detach(self, *arguments: str) -> str:
        """Start a process by `exec --detach`; returns its uid. It may be left to the daemon's end."""
        uid = self.say("exec", "--detach", *arguments).strip()
        assert re.fullmatch(r"[0-9a-f]{6}-\d+", uid)
        return uid

    # What a test only needs and does not show goes the short way: a command takes a fifth of a second.

    def start(self, *argv: str, name: str | None = None, tty: bool = False, stdin: bool = True) -> str:
        """Start what `exec --detach` does, with `--tty` or else with `--interactive`; returns its uid."""

        async def start() -> str:
            async with connect(self.daemon.url) as client:
                process = await client.start(argv, process_id=name, tty=tty, pipe_stdin=stdin)
                await client.keep_session()
                assert process.uid is not None
                return process.uid

        return trio.run(start)

    def entry(self, name: str, *, ended: bool = False) -> OperatorEntry:
        """What the daemon tells of a process, now or once it has ended."""

        async def find() -> OperatorEntry:
            with trio.fail_after(PATIENCE_S):
                async with connect(self.daemon.url) as client:
                    process = await client.attach(name)
                    assert isinstance(process, ObservedProcess)
                    if ended:
                        await process.wait_closed()
                    return process.entry

        return trio.run(find)

    def wait_for_output(self, uid: str, text: str) -> None:
        """Wait until its output has a text in it."""

        async def follow() -> None:
            seen = b""
            with trio.fail_after(PATIENCE_S):
                async with connect(self.daemon.url) as client:
                    async for event in (await client.attach(uid)).events():
                        seen += event.data if isinstance(event, Output) else b""
                        if text.encode() in seen:
                            return
            raise AssertionError(f"{text!r} never came")

        trio.run(follow)


@contextmanager
def person_with_daemon(runtime: Path) -> Generator[Person]:
    env = {name: value for name, value in os.environ.items() if name != "TSUPERVISE_URL"}
    env.update(XDG_RUNTIME_DIR=str(runtime), TERM="xterm", PS1="ready> ")
    with running(start_daemon(env=env)) as daemon:
        yield Person(daemon, env)


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    """Their daemon serves all tests of this module, and ends what they leave."""
    with person_with_daemon(tmp_path_factory.mktemp("person")) as person:
        yield person
        assert person.daemon.stop() == 0


# --- one question, one answer ----------------------------------------------------------------------------


def test_a_detached_process_runs_on_in_a_kept_session(person: Person) -> None:
    """It runs where the person stood, has the name that they gave, and `ps` marks it as kept."""
    uid = person.detach("--name", "job", "--env", "A=b c", "--", "sh", "-c", 'echo "$A" in $PWD; sleep 60')
    person.wait_for_output(uid, f"b c in {os.getcwd()}")
    entry = person.entry("job")
    assert (entry.uid, entry.state, entry.session_kept) == (uid, "running", True)
    heading, *rows = person.say("ps").splitlines()
    assert heading.split() == ["ID", "NAME", "PID", "STATE", "AGE", "OUTPUT", "EXIT", "SESSION", "COMMAND"]
    [row] = [row for row in rows if uid in row]
    pattern = rf"{uid} +job +{entry.pid} +running +\d+s +\d+ B +- +kept +sh -c 'echo .*sleep 60'"
    assert re.fullmatch(pattern, row)
    assert "\x1b" not in row


def test_what_cannot_be_started_leaves_nothing_behind(person: Person) -> None:
    """The exit code is the one of `exec`, and there is no session that is kept for nothing."""
    before = msgspec.json.decode(person.say("status", "--json"), type=OperatorStatusResult)
    ended = person.run("exec", "--detach", "/nowhere/program")
    assert (ended.returncode, ended.stdout) == (127, "")
    assert "No such file" in ended.stderr
    after = msgspec.json.decode(person.say("status", "--json"), type=OperatorStatusResult)
    assert (after.sessions_kept, after.processes) == (before.sessions_kept, before.processes)


def test_a_name_is_taken_while_its_process_lives(person: Person) -> None:
    """Whatever session it is in; afterwards it may be used again, and means the newer one."""
    first = person.start("sleep", "60", name="twice")
    ended = person.run("exec", "--detach", "--name", "twice", "sleep", "60")
    assert (ended.returncode, ended.stdout) == (125, "")
    assert (
        ended.stderr == f"tsupervise: the name 'twice' is taken by process {first}, which is still running\n"
    )
    person.say("kill", "twice")
    assert person.entry(first, ended=True).exit_code == 143
    second = person.detach("--name", "twice", "--", "sh", "-c", "exit 9")
    assert second != first
    assert person.entry("twice", ended=True).exit_code == 9


def test_ps_leaves_out_what_is_closed_unless_asked(person: Person) -> None:
    """As people know it from elsewhere; and it says how a process ended."""
    uid = person.start("sh", "-c", "kill -KILL $$")
    assert person.entry(uid, ended=True).exit_code == 137
    assert uid not in person.say("ps")
    [row] = [row for row in person.say("ps", "--all").splitlines() if uid in row]
    assert "137 (KILL)" in row
    assert uid not in person.say("ps", "--json")


def test_ps_on_a_terminal_is_a_table_that_fits(person: Person) -> None:
    """A long command is cut there, an id never; nothing that a program is called moves the cursor."""
    uid = person.start("sh", "-c", "sleep 60; : \x1b[2J" + "x" * 300, name="long")
    [row] = [row for row in person.say("ps").splitlines() if uid in row]
    assert row.endswith(r"\x1b[2J" + "x" * 300 + "'")
    child = person.at_terminal("ps", size=(24, 100))
    child.expect(pexpect.EOF)
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in child.before.decode().splitlines()]
    [row] = [line for line in lines if uid in line]
    assert len(row) <= 100
    assert row.rstrip().endswith("…")
    assert "\x1b[2J" not in child.before.decode()
    assert "\x1b[32mrunning" in child.before.decode()
    assert exit_code(child) == 0


def test_without_rich_ps_is_plain_on_a_terminal_too(person: Person, tmp_path: Path) -> None:
    """It is an extra."""
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text("raise ImportError")
    child = spawn([TSUPERVISE, "ps"], env={**person.env, "PYTHONPATH": str(tmp_path)})
    child.expect(pexpect.EOF)
    assert child.before.decode().split()[:2] == ["ID", "NAME"]
    assert "\x1b" not in child.before.decode()


def test_wait_exits_as_the_process_does(person: Person) -> None:
    """It waits for one that runs, and knows how one ended before."""
    uid = person.start("sh", "-c", "echo up; read line; exit $line")
    waiting = subprocess.Popen([TSUPERVISE, "wait", "--json", uid], env=person.env, stdout=subprocess.PIPE)
    with waiting:
        assert person.run("attach", uid, stdin="5\n").returncode == 5
        assert waiting.stdout is not None
        entry = msgspec.json.decode(waiting.stdout.read(), type=OperatorEntry)
        assert (entry.uid, entry.exit_code) == (uid, 5)
        assert waiting.wait(PATIENCE_S) == 5


@pytest.mark.parametrize(("name", "code"), [("sigint", 130), ("KILL", 137), ("10", 138)])
def test_kill_sends_the_signal_that_is_named(person: Person, name: str, code: int) -> None:
    """With SIG or without, in either case, or by number."""
    uid = person.start("sleep", "60")
    assert person.say("kill", "-s", name, uid) == ""
    assert person.entry(uid, ended=True).exit_code == code
    ended = person.run("kill", "-s", "HUP", uid)
    assert (ended.returncode, ended.stderr) == (125, f"tsupervise: process {uid!r} has ended already\n")


def test_kill_without_a_name_is_term_and_goes_on_after_an_error(person: Person) -> None:
    """What can be done is done, and the exit code says that something could not."""
    one, other = person.start("sleep", "60"), person.start("sleep", "60")
    ended = person.run("kill", "--json", one, "nobody", other)
    assert ended.returncode == 125
    assert ended.stderr.startswith("tsupervise: no process 'nobody': ")
    assert [ref["uid"] for ref in json.loads(ended.stdout)["processes"]] == [one, other]
    assert {person.entry(uid, ended=True).exit_code for uid in (one, other)} == {143}


def test_an_unknown_signal_gets_the_list(person: Person) -> None:
    """A usage error, like every mistake in a command line."""
    ended = person.run("kill", "-s", "WHAT", "x")
    assert ended.returncode == 2
    assert "HUP, INT, QUIT, KILL, USR1, USR2, TERM, CONT, STOP, WINCH" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_end_takes_the_whole_session(person: Person) -> None:
    """By an ID of one of its processes, or by its own id: the process is killed and forgotten."""
    by_name = person.start("sleep", "60", name="ends")
    by_session = person.start("sleep", "60")
    session = person.entry(by_session).session_id
    done = json.loads(person.say("end", "--json", "ends", session))
    assert [ref["uid"] for ref in done["processes"]] == [by_name, by_session]
    listed = person.say("ps", "--all")
    assert by_name not in listed
    assert by_session not in listed
    ended = person.run("end", "ends")
    assert (ended.returncode, ended.stdout) == (125, "")


def test_status_tells_what_the_daemon_is_and_holds(person: Person) -> None:
    """For people and, with the names of the protocol, for programs. A command leaves no session behind."""
    person.start("sleep", "60")
    first = msgspec.json.decode(person.say("status", "--json"), type=OperatorStatusResult)
    assert first.listen == person.daemon.url
    assert {first.pid} == children_of(person.daemon.pid)
    assert first.processes["running"] >= 1
    text = person.say("status")
    assert re.search(rf"listens at +{re.escape(person.daemon.url)}\n", text)
    assert re.search(r"sessions +\d+ \(1 attached, \d+ kept\)\n", text)
    assert (
        msgspec.json.decode(person.say("status", "--json"), type=OperatorStatusResult).sessions
        == first.sessions
    )


@pytest.mark.parametrize("command", ["ps", "attach x", "exec --detach true"])
def test_without_a_daemon_every_command_says_how_to_start_one(tmp_path: Path, command: str) -> None:
    """In one line, with 125."""
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    ended = subprocess.run(
        [TSUPERVISE, *command.split()], env=env, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (ended.returncode, ended.stdout) == (125, "")
    assert re.fullmatch(
        r"tsupervise: no daemon is running; start one with `tsupervise run`.*\n", ended.stderr
    )


def test_with_two_daemons_one_is_chosen_by_its_url(person: Person) -> None:
    """By option or by variable."""
    with running(start_daemon(env=person.env)) as other:
        ended = person.run("status")
        assert ended.returncode == 125
        assert person.daemon.url in ended.stderr
        assert other.url in ended.stderr
        assert other.url in person.say("status", "--url", other.url)
        env = {**person.env, "TSUPERVISE_URL": other.url}
        chosen = subprocess.run([TSUPERVISE, "status"], env=env, capture_output=True, text=True)
        assert other.url in chosen.stdout


# --- logs ------------------------------------------------------------------------------------------------


def test_logs_come_apart_and_whole(person: Person) -> None:
    """stdout on stdout, stderr on stderr, and an end with what there is, though the process runs on."""
    uid = person.start("sh", "-c", "echo err >&2; echo out; printf more; sleep 60")
    person.wait_for_output(uid, "more")
    ended = person.run("logs", uid)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "out\nmore", "err\n")


def test_logs_may_begin_with_the_last_lines(person: Person) -> None:
    """Whether they go on or not; a last line without an end counts."""
    uid = person.start("sh", "-c", "echo 1; echo 2; echo 3; printf tail")
    assert person.say("logs", "-f", uid) == "1\n2\n3\ntail"
    assert person.say("logs", "-n", "2", uid) == "3\ntail"
    assert person.say("logs", "-f", "-n", "1", uid) == "tail"


def test_following_logs_ends_with_the_process(person: Person) -> None:
    """What comes is printed as it comes; the exit code is no business of theirs."""
    uid = person.start("sh", "-c", "echo first; read line; echo $line; exit 3")
    command = [TSUPERVISE, "logs", "--follow", uid]
    with subprocess.Popen(command, env=person.env, stdout=subprocess.PIPE, text=True) as logs:
        assert logs.stdout is not None
        assert logs.stdout.readline() == "first\n"
        person.run("attach", uid, stdin="second\n")
        assert logs.stdout.read() == "second\n"
        assert logs.wait(PATIENCE_S) == 0


def test_logs_as_json_have_every_event(person: Person) -> None:
    """One object in each line, numbered as on the wire, bytes in base64."""
    uid = person.start("sh", "-c", "printf '\\377'; exit 4")
    events = [json.loads(line) for line in person.say("logs", "-f", "--json", uid).splitlines()]
    assert events == [
        {"event": "output", "seq": 1, "stream": "stdout", "chunk": base64.b64encode(b"\xff").decode()},
        {"event": "exited", "seq": 2, "exitCode": 4, "termSignal": None},
        {"event": "closed", "seq": 3},
    ]


def test_a_gap_in_the_logs_is_told(tmp_path: Path) -> None:
    """Output that is retained no more is missing with a word on stderr; that of which enough is left, without."""
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    with running(start_daemon("ours", "--retained-bytes", "1000", env=env)) as daemon:
        person = Person(daemon, env)
        uid = person.start("sh", "-c", "head -c 300000 /dev/zero; echo; echo end")
        assert person.entry(uid, ended=True).exit_code == 0
        ended = person.run("logs", "-f", uid)
        assert re.fullmatch(r"tsupervise: output is lost: events 1 to \d+\n", ended.stderr)
        assert ended.stdout.endswith("end\n")
        assert len(ended.stdout) < 300_000
        assert person.say("logs", "-n", "1", uid) == "end\n"
        [lost, *_] = [json.loads(line) for line in person.say("logs", "--json", uid).splitlines()]
        assert (lost["event"], lost["firstSeq"]) == ("lost", 1)


def test_a_reader_that_goes_away_ends_the_logs(person: Person) -> None:
    """Without a word, as in any pipeline."""
    uid = person.start("sh", "-c", "yes | head -100000; exec sleep 60")
    script = f"{TSUPERVISE} logs -f {uid} | head -1; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", script], env=person.env, capture_output=True, timeout=PATIENCE_S)
    assert (ended.stdout, ended.stderr) == (b"y\n141\n", b"")


def test_control_c_ends_the_logs_and_not_the_process(person: Person) -> None:
    """As a signal ends a program, with no traceback."""
    uid = person.start("sh", "-c", "echo up; exec sleep 60")
    child = person.at_terminal("logs", "-f", uid)
    child.expect("up\r\n")
    child.sendintr()
    assert exit_code(child) == -signal.SIGINT
    assert child.before == b"^C"
    assert person.entry(uid).state == "running"


# --- attach ----------------------------------------------------------------------------------------------

COUNTER = 'n=0; echo ready; while read line; do n=$((n+1)); echo "<$line:$n>"; done; echo end; exit 6'
"""A program with a state: how many lines it has read."""


def test_one_leaves_a_shell_and_finds_it_again(person: Person) -> None:
    """Detached by keys, the shell and its state stay; what was on the screen is shown when one comes back."""
    uid = person.start("bash", "--norc", "-i", name="shell", tty=True)
    child = person.at_terminal("attach", "shell")
    child.expect(rf"tsupervise: attached to 'shell' \({uid}\); ctrl-p ctrl-q leaves it running\r\n")
    child.expect("ready> ")
    child.sendline("state=kept; echo se''en")
    child.expect("seen\r\n")
    child.expect("ready> ")
    child.send(DETACH)
    child.expect(rf"tsupervise: left 'shell' running; `tsupervise attach {uid}` comes back to it\r\n")
    assert exit_code(child) == 0

    child = person.at_terminal("attach", uid)
    child.expect("seen\r\n")
    child.expect("ready> ")
    child.sendline("echo $state-it; exit 5")
    child.expect("kept-it")
    assert exit_code(child) == 5


def test_the_terminal_follows_whoever_is_attached(person: Person) -> None:
    """It has the size of theirs from the beginning, and after every change."""
    script = "trap 'stty size' WINCH; echo up; while :; do sleep 0.05; done"
    uid = person.start("sh", "-c", script, tty=True)
    person.wait_for_output(uid, "up")
    child = person.at_terminal("attach", uid, size=(17, 71))
    child.expect("17 71\r\n")
    child.setwinsize(31, 99)
    child.expect("31 99\r\n")
    child.send(DETACH)
    assert exit_code(child) == 0
    # The same size again: whatever draws the screen is told all the same.
    child = person.at_terminal("attach", uid, size=(31, 99))
    child.expect("leaves it running")
    child.expect("31 99\r\n")
    child.expect("31 99\r\n")
    child.sendintr()
    assert exit_code(child) == 130


def test_keys_go_to_a_terminal_as_they_are(person: Person) -> None:
    """Echoed once, by the process's terminal; Ctrl-C and Ctrl-D are its business."""
    script = f"trap 'echo caught' INT; {COUNTER}"
    uid = person.start("bash", "-c", script, tty=True)
    child = person.at_terminal("attach", uid)
    child.expect("ready\r\n")
    child.sendline("hello")
    child.expect("hello\r\n<hello:1>\r\n")
    child.sendintr()
    child.expect("caught")
    child.sendeof()
    child.expect("end\r\n")
    assert exit_code(child) == 6


def test_a_process_without_a_terminal_is_fed_by_lines(person: Person) -> None:
    """Our terminal edits and echoes them, the keys leave without Enter, and Ctrl-D ends the input."""
    uid = person.start("sh", "-c", COUNTER, name="lines")
    child = person.at_terminal("attach", uid)
    child.expect("ready\r\n")
    child.send("wronk\x7fg\r")
    child.expect("<wrong:1>\r\n")
    child.send(DETACH)
    child.expect("left 'lines' running")
    assert exit_code(child) == 0

    child = person.at_terminal("attach", uid)
    child.expect("<wrong:1>\r\n")
    # Flow control is off: with its other key gone, nothing would make up for a Ctrl-S.
    child.sendline("\x13again")
    child.expect("again:2>\r\n")
    child.sendeof()
    child.expect("end\r\n")
    assert exit_code(child) == 6


def test_control_c_interrupts_a_process_without_a_terminal(person: Person) -> None:
    """It is passed on, and what it does to the process decides how `attach` ends."""
    script = "trap 'echo caught' INT; echo up; while :; do sleep 0.05; done"
    uid = person.start("sh", "-c", script, stdin=False)
    child = person.at_terminal("attach", uid)
    child.expect("up\r\n")
    child.sendintr()
    child.expect("caught\r\n")
    child.sendline("hello?")
    child.expect("tsupervise: .* takes no input, or none any more\r\n")
    child.send(DETACH)
    assert exit_code(child) == 0
    assert person.entry(uid).state == "running"


def test_after_the_exit_control_c_ends_the_wait_for_what_is_left(person: Person) -> None:
    """A background child may hold the output open; there is nobody left to interrupt but us."""
    uid = person.start("sh", "-c", "echo up; read line; sleep 60 & exit 3")
    child = person.at_terminal("attach", uid)
    child.expect("up\r\n")
    child.sendline("")
    assert person.run("wait", uid).returncode == 3
    # The first one may still come before the exit is heard of here, and then it is passed on.
    while child.isalive():
        child.sendintr()
        with suppress(pexpect.TIMEOUT):
            child.expect(pexpect.EOF, timeout=0.5)
            break
    assert exit_code(child) == 130


def test_other_keys_to_leave_can_be_chosen(person: Person) -> None:
    """Then the usual ones are keys like any other."""
    uid = person.start("sh", "-c", "stty raw -echo; echo ready; exec od -An -tx1 -w2", tty=True)
    child = person.at_terminal("attach", "--detach-keys", "ctrl-],x", uid)
    child.expect("ctrl-\\] x leaves it running")
    child.expect("ready")
    child.send(DETACH + "\x1dy")
    child.expect("10 11")
    child.expect("1d 79")
    child.send("\x1d")
    child.send("x")
    assert exit_code(child) == 0


def test_keys_that_are_none_are_refused(person: Person) -> None:
    """With what they may be."""
    ended = person.run("attach", "--detach-keys", "ctrl-1", "x")
    assert ended.returncode == 2
    assert "'ctrl-1' is no key" in ended.stderr


@pytest.mark.parametrize("tty", [True, False], ids=["terminal", "lines"])
@pytest.mark.parametrize("hangup", ["", "trap '' HUP; "], ids=["hung up", "nohup"])
def test_a_closed_window_leaves_the_process_running(person: Person, tty: bool, hangup: str) -> None:
    """The hangup is for `attach` alone: the process sees neither a signal nor the end of its input."""
    uid = person.start("sh", "-c", COUNTER, tty=tty)
    first = spawn(["sh", "-c", f"{hangup}exec {TSUPERVISE} attach {uid}"], env=person.env)
    first.expect("ready\r\n")
    # Its number stays taken: pexpect closes it once more.
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, first.child_fd)
    os.close(nothing)

    second = person.at_terminal("attach", uid)
    second.expect("ready\r\n")
    second.sendline("still there?")
    second.expect("<still there\\?:1>")
    first.wait()
    # One that heeds no hangup ends when it has something to say.
    assert first.exitstatus == (125 if hangup else 129)
    second.sendeof()
    assert exit_code(second) == 6


@pytest.mark.parametrize("tty", [True, False], ids=["terminal", "lines"])
def test_attach_leaves_the_users_terminal_as_it_was(person: Person, tty: bool) -> None:
    """However it ends, here by the keys and by the end of the process."""
    uid = person.start("sh", "-c", COUNTER, tty=tty)
    kept = "$([ $before = $(stty -g) ] && echo kept)"
    attach = f"{TSUPERVISE} attach {uid}; echo code $? {kept}"
    child = spawn(["bash", "-c", f"before=$(stty -g); {attach}; {attach}"], env=person.env)
    child.expect("ready\r\n")
    child.send(DETACH)
    child.expect("code 0 kept")
    child.expect("ready\r\n")
    child.sendeof()
    child.expect("code 6 kept")
    assert exit_code(child) == 0


def test_attach_to_what_has_ended_shows_how(person: Person) -> None:
    """The last of its output, and its exit code."""
    uid = person.start("sh", "-c", "echo 'last words'; exit 8", tty=True)
    assert person.entry(uid, ended=True).exit_code == 8
    ended = person.run("attach", uid)
    assert (ended.returncode, ended.stdout, ended.stderr) == (8, "last words\n", "")


def test_a_signal_to_attach_is_not_passed_on(person: Person) -> None:
    """TERM ends it with 143; the process runs on."""
    uid = person.start("sh", "-c", "echo up; exec sleep 60", tty=True)
    child = person.at_terminal("attach", uid)
    child.expect("up\r\n")
    child.kill(signal.SIGTERM)
    assert exit_code(child) == 143
    assert person.entry(uid).state == "running"


async def test_an_outage_is_told_and_can_be_left(person: Person) -> None:
    """After some seconds there is a word of it; what was typed arrives later, the keys to leave work at once."""
    async with fault_proxy(person.daemon.address) as proxy:

        async def expect(child: Terminal, pattern: str) -> None:
            await trio.to_thread.run_sync(child.expect, pattern)

        async def ended(child: Terminal) -> int:
            return await trio.to_thread.run_sync(exit_code, child)

        url = ["--url", proxy.url]
        uid = await trio.to_thread.run_sync(lambda: person.detach("--name", "far", "-t", "sh", "-c", COUNTER))
        attached = person.at_terminal("attach", *url, uid)
        executed = person.at_terminal("exec", *url, "--tty", "--", "sh", "-c", COUNTER)
        await expect(attached, "ready\r\n")
        await expect(executed, "ready\r\n")
        proxy.cut(math.inf)
        executed.sendline("typed meanwhile")
        lost = "\r\ntsupervise: the connection to the daemon is lost, trying to come back; press "
        await expect(attached, lost + "ctrl-p ctrl-q to leave\r\n")
        attached.send(DETACH)
        assert await ended(attached) == 0
        await expect(executed, lost + "Ctrl-C to give up\r\n")
        proxy.cut(0.0)
        await expect(executed, "tsupervise: the connection is back\r\n")
        await expect(executed, "<typed meanwhile:1>\r\n")
        proxy.cut(math.inf)
        await expect(executed, "press Ctrl-C to give up\r\n")
        executed.sendintr()
        assert await ended(executed) == 130
        assert b"is not closed" not in executed.before, "it has waited for what cannot come"
        entry = await trio.to_thread.run_sync(person.entry, uid)
        assert entry.state == "running"


# --- completion ------------------------------------------------------------------------------------------


def complete(person: Person, line: str) -> list[str]:
    """What bash offers after a line, by the script that `completion bash` prints."""
    script = f"""
        eval "$({TSUPERVISE} completion bash)"
        COMP_LINE='{line}' COMP_POINT={len(line)}
        read -ra COMP_WORDS <<<"$COMP_LINE"
        case $COMP_LINE in *' ') COMP_WORDS+=('') ;; esac
        COMP_CWORD=$(({"${#COMP_WORDS[@]}"} - 1))
        _tsupervise_completion {TSUPERVISE}
        printf '%s\n' "${{COMPREPLY[@]}}"
    """
    ended = subprocess.run(
        ["bash", "-c", script], env=person.env, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert ended.stderr == ""
    return ended.stdout.split()


def test_bash_completes_names_of_processes(person: Person) -> None:
    """By name, and by uid where that is what was begun or where a name means several."""
    uid = person.start("sleep", "60", name="complete-me")
    assert complete(person, "tsupervise logs -f comp") == ["complete-me"]
    assert complete(person, f"tsupervise kill {uid}") == [uid]
    other = person.start("sleep", "60", name="complete-me")
    assert complete(person, "tsupervise logs -f comp") == []
    assert complete(person, f"tsupervise wait --url {person.daemon.url} {other}") == [other]


def test_bash_completes_commands_options_and_signals(person: Person, tmp_path: Path) -> None:
    """These need no daemon; and where there is none, IDs complete to nothing and in silence."""
    alone = Person(person.daemon, {**person.env, "XDG_RUNTIME_DIR": str(tmp_path)})
    assert complete(alone, "tsupervise st") == ["status"]
    assert complete(alone, "tsupervise kill -s U") == ["USR1", "USR2"]
    assert complete(alone, "tsupervise logs ") == []


def test_completion_works_at_a_real_prompt(person: Person) -> None:
    """Tab in an interactive bash fills in the name."""
    person.start("sh", "-c", "echo spoken", name="unmistakable")
    path = f"{Path(TSUPERVISE).parent}:{os.environ['PATH']}"
    child = spawn(["bash", "--norc", "--noprofile", "-i"], env={**person.env, "PATH": path})
    child.expect("ready> ")
    child.sendline('eval "$(tsupervise completion bash)"; echo se""t')
    child.expect("set\r\n")
    child.send("tsupervise logs unmis\t")
    child.expect("unmistakable ")
    child.send("\r")
    child.expect("spoken\r\n")
    child.sendline("exit")
    assert exit_code(child) == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell_needs_no_event_loop(shell: str) -> None:
    """It is read at the start of every shell."""
    program = (
        "import sys; from tsupervise.cli import main\n"
        f"try: main(['completion', {shell!r}])\n"
        "except SystemExit: sys.exit(bool({'trio', 'msgspec'} & sys.modules.keys()))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0
    assert "_TSUPERVISE_COMPLETE" in ended.stdout
