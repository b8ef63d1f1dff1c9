"""`tsupervise exec` as a person uses it: in pipelines, and on a terminal driven by pexpect.

Each promise holds for supervision in the command's own process and at a daemon alike.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from daemons import Daemon, start_daemon
from terminals import PATIENCE_S, TSUPERVISE, Terminal, exit_code, spawn

# The test process has threads by now; pexpect's child does nothing but exec.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


@pytest.fixture(params=["embedded", "daemon"])
def where(request: pytest.FixtureRequest, daemon: Daemon) -> list[str]:
    """The options that say where the command is supervised."""
    return ["--url", daemon.url] if request.param == "daemon" else []


def run(where: Sequence[str], *command: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run `tsupervise exec` with a pipe for stdin."""
    arguments = [TSUPERVISE, "exec", *where, *command]
    return subprocess.run(arguments, input=stdin, capture_output=True, timeout=PATIENCE_S)


@contextmanager
def started(*arguments: str) -> Generator[subprocess.Popen[bytes]]:
    """Start `tsupervise exec` without input; it does not outlive the block."""
    command = [TSUPERVISE, "exec", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe) as process:
        try:
            yield process
        finally:
            process.kill()


def on_terminal(where: Sequence[str], *command: str, size: tuple[int, int] = (24, 80)) -> Terminal:
    """Run `tsupervise exec` on a terminal of its own."""
    return spawn([TSUPERVISE, "exec", *where, *command], size)


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has reaped yet counts."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


ours = pytest.mark.ours_only("the command's own supervisor, or a server that can close stdin")


@ours
def test_output_comes_apart_and_the_exit_code_is_the_commands(where: list[str]) -> None:
    """stdout, stderr and exit code are those of the command."""
    ended = run(where, "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (ended.stdout, ended.stderr, ended.returncode) == (b"out\n", b"err\n", 7)


@ours
@pytest.mark.parametrize(
    ("command", "code", "text"),
    [
        (["/nowhere/program"], 127, "No such file"),
        (["/etc/passwd"], 126, "Permission denied"),
        (["sh", "-c", "kill -TERM $$"], 143, ""),
    ],
    ids=["not found", "not executable", "killed"],
)
def test_exit_codes_are_what_a_shell_would_say(
    where: list[str], command: list[str], code: int, text: str
) -> None:
    """127 for what is not there, 126 for what cannot be executed, 128 + n after signal n."""
    ended = run(where, "--", *command)
    assert ended.returncode == code
    assert text in ended.stderr.decode()
    assert bool(ended.stderr) == bool(text)


@ours
def test_stdin_is_passed_on_and_so_is_its_end(where: list[str]) -> None:
    """More input than any buffer holds comes back whole through `cat`, which then sees the end."""
    data = os.urandom(3_000_000)
    ended = run(where, "cat", stdin=data)
    assert ended.stdout == data
    assert ended.returncode == 0


@ours
def test_a_file_as_stdin_is_read(where: list[str], tmp_path: Path) -> None:
    """A regular file, which no event loop can wait for, is input like any other."""
    path = tmp_path / "input"
    path.write_bytes(b"from a file\n")
    with path.open("rb") as file:
        arguments = [TSUPERVISE, "exec", *where, "cat"]
        ended = subprocess.run(arguments, stdin=file, capture_output=True, timeout=PATIENCE_S)
    assert ended.stdout == b"from a file\n"


@ours
@pytest.mark.parametrize(
    ("redirections", "code", "output", "complaint"),
    [
        ("<&-", 3, "/dev/null\n", ""),
        (">&-", 125, "", "tsupervise: cannot write the output: Bad file descriptor\n"),
        ("<&- >&-", 125, "", "tsupervise: cannot write the output: Bad file descriptor\n"),
        ("<&- 2>&-", 3, "/dev/null\n", ""),
        ("<&- >&- 2>&-", 125, "", ""),
    ],
)
def test_closed_descriptors_are_what_they_are_without_it(
    where: list[str], redirections: str, code: int, output: str, complaint: str
) -> None:
    """A closed stdin is empty, and output that has nowhere to go is an error, never lost without a word."""
    script = f'"$@" {redirections}'
    command = ["--", "sh", "-c", "readlink /proc/self/fd/0; cat; exit 3"]
    done = subprocess.run(
        ["sh", "-c", script, "sh", TSUPERVISE, "exec", *where, *command],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, output, complaint)


def test_a_command_that_ends_is_not_held_up_by_input_that_does_not(where: list[str]) -> None:
    """The command ends though its stdin stays open and silent."""
    reader, writer = os.pipe()
    try:
        arguments = [TSUPERVISE, "exec", *where, "--", "sh", "-c", "exit 4"]
        ended = subprocess.run(arguments, stdin=reader, capture_output=True, timeout=PATIENCE_S)
    finally:
        os.close(reader)
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (4, b"")


@ours
def test_a_slow_reader_loses_no_output(where: list[str]) -> None:
    """More output than anybody retains waits for whoever reads it."""
    script = f"{TSUPERVISE} exec {' '.join(where)} -- head -c 5000000 /dev/zero | (sleep 0.3; wc -c)"
    ended = subprocess.run(["sh", "-c", script], capture_output=True, timeout=PATIENCE_S, check=True)
    assert ended.stdout.strip() == b"5000000"


@ours
def test_a_reader_that_goes_away_ends_the_command(where: list[str]) -> None:
    """As in any pipeline: `yes | head -1` ends, with the code of a broken pipe."""
    script = f"{TSUPERVISE} exec {' '.join(where)} -- yes | head -1; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", script], capture_output=True, timeout=PATIENCE_S, check=True)
    assert ended.stdout == b"y\n141\n"
    assert ended.stderr == b""


@ours
def test_environment_and_directory_are_passed_on(where: list[str], tmp_path: Path) -> None:
    """--env adds to the environment, --cwd is where the command runs."""
    script = 'echo "$A $B"; pwd; test -n "$PATH"'
    ended = run(where, "--cwd", str(tmp_path), "--env", "A=1", "-e", "B=x=y", "--", "sh", "-c", script)
    assert ended.stdout.decode() == f"1 x=y\n{tmp_path}\n"
    assert ended.returncode == 0


@ours
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_is_passed_on(where: list[str], number: signal.Signals) -> None:
    """The command gets the signal and decides what to do; its exit code counts."""
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo got {name}; exit 5' {name}; echo ready; while :; do sleep 0.05; done"
    with started(*where, "--", "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.stdout.read() == f"got {name}\n".encode()
        assert process.wait(PATIENCE_S) == 5


@ours
def test_after_the_exit_a_signal_ends_the_wait_for_what_is_left(where: list[str]) -> None:
    """Output that a background child holds open is waited for, until a signal says not to; then it dies."""
    script = "(trap '' TERM; exec sleep 60) & echo $!; exit 0"
    with started(*where, "--", "sh", "-c", script) as process:
        assert process.stdout is not None
        survivor = int(process.stdout.readline())
        # The first signal may still come before the exit, and then it is passed on.
        for _ in range(20):
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
                break
        # A late one may meet this command in its last moment: for a shell that is 143, too.
        assert process.returncode in (143, -signal.SIGTERM)
    assert is_gone(survivor)


def test_without_an_end_of_input_there_is_a_word_of_it(daemon: Daemon) -> None:
    """A server that cannot close stdin is named as the reason; one that can is not talked about."""
    ended = run(["--url", daemon.url], "--", "head", "-c", "5", stdin=b"hello")
    assert (ended.stdout, ended.returncode) == (b"hello", 0)
    if daemon.is_ours:
        assert ended.stderr == b""


def test_a_daemon_that_is_not_there_is_125() -> None:
    """Nobody listens: 125, with the address and the reason."""
    ended = run(["--url", "ws://127.0.0.1:1"], "true")
    assert ended.returncode == 125
    assert b"ws://127.0.0.1:1" in ended.stderr
    assert b"Connection refused" in ended.stderr


def test_a_daemon_that_dies_is_125() -> None:
    """The daemon goes away in the middle: 125, and the reason on stderr."""
    daemon = start_daemon()
    try:
        command = ["sh", "-c", "echo ready; exec sleep 60"]
        with started("--url", daemon.url, "--recovery", "0.3", "--", *command) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == b"ready\n"
            daemon.process.kill()
            assert process.wait(PATIENCE_S) == 125
            said = process.stderr.read()
            assert b"the connection is lost" in said
            assert b"gave up after 0.3 s" in said
            assert b"Connection refused" in said
    finally:
        daemon.stop()


def test_the_url_may_come_from_the_environment() -> None:
    """TSUPERVISE_URL stands for --url."""
    ended = subprocess.run(
        [TSUPERVISE, "exec", "true"],
        env={**os.environ, "TSUPERVISE_URL": "ws://127.0.0.1:1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    assert ended.returncode == 125


@pytest.mark.parametrize(
    "arguments", [[], ["--env", "novalue", "true"], ["--no-such-option", "true"]], ids=str
)
def test_a_command_line_that_makes_no_sense_is_a_usage_error(arguments: list[str]) -> None:
    """Exit code 2, one line on stderr, nothing on stdout."""
    ended = run([], *arguments)
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert ended.stderr.startswith(b"tsupervise: ")
    assert ended.stderr.endswith(b"(see `tsupervise exec --help`)\n")


# --- on a terminal ---------------------------------------------------------------------------------------


@ours
def test_control_c_interrupts_a_command_without_a_terminal_of_its_own(where: list[str]) -> None:
    """Ctrl-C in the user's terminal reaches the command, and the exit code says so."""
    child = on_terminal(where, "--", "sh", "-c", "echo ready; exec sleep 60")
    child.expect("ready")
    child.sendintr()
    assert exit_code(child) == 130


@ours
def test_a_command_on_a_terminal_has_one_of_the_users_size(where: list[str]) -> None:
    """Under --tty the command sees a terminal, its size, its changes of size, and TERM."""
    script = "trap 'stty size' WINCH; test -t 0 && test -t 1 && test -t 2 && stty size; echo TERM=$TERM; "
    script += "while :; do sleep 0.05; done"
    child = on_terminal(where, "--tty", "--", "sh", "-c", script, size=(17, 71))
    child.expect("17 71\r\n")
    child.expect(f"TERM={os.environ.get('TERM', '')}\r\n")
    child.setwinsize(31, 99)
    child.expect("31 99\r\n")
    child.sendintr()
    assert exit_code(child) == 130


@ours
def test_keys_go_to_the_command_as_they_are(where: list[str]) -> None:
    """Typed lines are echoed once, by the command's terminal; Ctrl-C is its business; Ctrl-D ends its input."""
    script = (
        "trap 'echo caught' INT; echo ready; while read line; do echo \"<$line>\"; done; echo end; exit 6"
    )
    child = on_terminal(where, "--tty", "--", "bash", "-c", script)
    child.expect("ready\r\n")
    child.sendline("hello")
    child.expect("hello\r\n<hello>\r\n")
    child.sendintr()
    child.expect("caught")
    child.sendeof()
    child.expect("end\r\n")
    assert exit_code(child) == 6


@ours
def test_an_interactive_shell_works(where: list[str]) -> None:
    """Job control and all: a shell in the command's terminal runs a job in the foreground and stops it."""
    child = on_terminal(where, "--tty", "--env", "PS1=ready> ", "--", "bash", "--norc", "-i")
    child.expect("ready> ")
    child.sendline("sh -c 'echo in the fore''ground; exec sleep 60'")
    child.expect("in the foreground")
    child.send("\x1a")
    child.expect("Stopped")
    child.expect("ready> ")
    child.sendline("kill -KILL %1; disown %1; exit 3")
    assert exit_code(child) == 3


@ours
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("sh -c 'exit 3'", 3),
        ("/nowhere/program", 127),
        ("sh -c 'kill -TERM $(cat /proc/$EXEC/task/$EXEC/children); sleep 60'", 143),
    ],
    ids=["ends", "does not start", "is ended by a signal to this command"],
)
def test_the_terminal_is_left_as_it_was(where: list[str], command: str, code: int) -> None:
    """Whatever happens in between, the user's terminal has its settings back."""
    child = spawn(
        ["bash", "-c", between_settings(f"exec {' '.join(where)} --tty --env EXEC=$$ -- {command}")]
    )
    assert_settings_are_kept(child, code)


def test_the_terminal_is_left_as_it_was_when_the_daemon_dies() -> None:
    """Even then, and the exit code is 125."""
    daemon = start_daemon()
    try:
        command = f"exec --url {daemon.url} --recovery 0 --tty -- sh -c 'echo ready; exec sleep 60'"
        child = spawn(["bash", "-c", between_settings(command)])
        child.expect("ready")
        daemon.process.kill()
        assert_settings_are_kept(child, 125)
    finally:
        daemon.stop()


def between_settings(command: str) -> str:
    return f"before=$(stty -g); {TSUPERVISE} {command}; echo code $? $([ $before = $(stty -g) ] && echo kept)"


def assert_settings_are_kept(child: Terminal, code: int) -> None:
    child.expect(f"code {code} kept")
    assert exit_code(child) == 0


@ours
def test_input_that_is_no_terminal_ends_a_command_on_one(where: list[str]) -> None:
    """Under --tty a pipe for stdin is typed in, and its end is the key for the end of input."""
    ended = run(where, "--tty", "--", "sh", "-c", "stty -echo; echo ready; wc -c", stdin=b"half a line")
    assert ended.stdout.split()[-1] == b"11"
    assert ended.returncode == 0
