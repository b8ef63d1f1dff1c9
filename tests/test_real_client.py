"""The real client against a server, end to end: `codex exec`, told what to do by a scripted model.

The client is the reference binary, so these tests need one: TSUPERVISE_REFERENCE names the newest and
TSUPERVISE_REFERENCE_OLD an older one, which runs in the long profile. One run of the client costs
seconds, and so one run holds all flows. What the tools answered is compared with one literal for both
servers; their ids, times and token counts, and where one answer ends and the next begins, are not part
of it.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import pytest
import trio

from daemons import REFERENCE, Daemon
from fault_proxy import fault_proxy
from scripted_model import Call, ScriptedModel, Turn, scripted_model

OLD_CLIENT = os.environ.get("TSUPERVISE_REFERENCE_OLD")

needs_client = pytest.mark.skipif(not REFERENCE, reason="TSUPERVISE_REFERENCE names no codex binary")
needs_old_client = pytest.mark.skipif(
    not OLD_CLIENT, reason="TSUPERVISE_REFERENCE_OLD names no older codex binary"
)

RUN_S = 60.0
"""A bound on a hang of the client, well above the five seconds that a run takes."""

CUT_S = 2.0
TICKS = 60
"""Three seconds of ticks, so that the process prints before, all through and after the cut."""

CTRL_C = "\x03"
CTRL_D = "\x04"

TRAP = "trap 'echo caught; exit 7' INT; echo ready; while :; do sleep 0.05; done"
TICKER = f"i=0; while [ $i -lt {TICKS} ]; do echo tick $i; i=$((i+1)); sleep 0.05; done; exit 9"


@dataclass(frozen=True)
class Outcome:
    """What the tools told the model about one command, over all calls about it."""

    exit_code: int | None
    output: str


EXPECTED = {
    "success": Outcome(0, "fine\n"),
    "failure on both streams": Outcome(3, "out\nerr\n"),
    "terminal": Outcome(5, "name? Ada\r\nhello Ada\r\n"),
    "trapped interrupt": Outcome(7, "ready\ncaught\n"),
    "fatal interrupt": Outcome(130, ""),
    "printing through a cut": Outcome(9, "".join(f"tick {i}\n" for i in range(TICKS))),
    "ending in a cut": Outcome(11, "before\nafter\n"),
}


def execute(command: str, *, tty: bool = False, yield_time_ms: int = 10_000) -> Call:
    """A command by the shell that the server names, without the start-up files of a login shell."""
    arguments = {"cmd": command, "login": False, "tty": tty, "yield_time_ms": yield_time_ms}
    return Call("exec_command", arguments)


def write(session: int | None, chars: str, *, yield_time_ms: int = 10_000) -> Call:
    """Input for a session; the answer comes when its process has ended, or after the given time."""
    return Call("write_stdin", {"session_id": session, "chars": chars, "yield_time_ms": yield_time_ms})


def session_in(answer: str) -> int | None:
    """The session id that an answer names; None when the process has ended."""
    found = re.search(r"session ID (\d+)", answer)
    return int(found[1]) if found else None


def outcome_of(*answers: str) -> Outcome:
    """What several answers about one command say together."""
    code = re.search(r"exited with code (-?\d+)", answers[-1])
    output = "".join(answer.partition("Output:\n")[2] for answer in answers)
    return Outcome(int(code[1]) if code else None, output)


CONFIG = """\
model = "scripted"
model_provider = "mock"
approval_policy = "never"
sandbox_mode = "danger-full-access"
check_for_update_on_startup = false

[model_providers.mock]
name = "mock"
base_url = "http://127.0.0.1:{port}/v1"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0

[features]
unified_exec = true

[analytics]
enabled = false
"""


async def run_client(
    binary: str, home: Path, server_url: str, turns: Sequence[Turn], *, more_config: str = ""
) -> ScriptedModel:
    """Let the client go through a script; returns the model, with what the tools answered, turn by turn."""
    settings = home / "settings"
    temporary = home / "tmp"  # the client refuses settings that lie in its temporary directory
    for folder in (settings, temporary):
        folder.mkdir()
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "CODEX_HOME": str(settings),
        "TMPDIR": str(temporary),
        "CODEX_EXEC_SERVER_URL": server_url,
        # Whatever else the client would like to reach is refused, on loopback.
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "127.0.0.1",
    }
    async with scripted_model(turns) as model:
        (settings / "config.toml").write_text(CONFIG.format(port=model.port) + more_config)
        with trio.fail_after(RUN_S):
            finished = await trio.run_process(
                [binary, "exec", "--skip-git-repo-check", "--cd", str(home), "follow the script"],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_stdout=True,
                stderr=subprocess.STDOUT,
                check=False,
            )
    assert model.finished, f"the client gave up early:\n{finished.stdout.decode(errors='replace')}"
    return model


async def run_all_flows(binary: str, home: Path, daemon: Daemon) -> dict[str, Outcome]:
    """Start five commands, talk to the three that stay, and cut the connection under two more."""
    async with fault_proxy(daemon.address) as proxy:
        start = [
            execute("echo fine"),
            execute("echo out; sleep 0.1; echo err >&2; exit 3"),
            execute("printf 'name? '; read name; echo hello $name; exit 5", tty=True, yield_time_ms=1000),
            execute(TRAP, yield_time_ms=1000),
            execute("sleep 30", yield_time_ms=1000),
        ]

        def talk(answers: Sequence[str]) -> list[Call]:
            terminal, trapped, fatal = map(session_in, answers[2:])
            return [
                write(terminal, "Ada\n"),
                write(trapped, CTRL_C),
                write(fatal, CTRL_C),
                execute(TICKER, yield_time_ms=250),
                execute("echo before; sleep 1; echo after; exit 11", yield_time_ms=250),
            ]

        def cut(answers: Sequence[str]) -> list[Call]:
            proxy.cut(CUT_S)
            return [write(session_in(answer), "") for answer in answers[3:]]

        model = await run_client(binary, home, proxy.url, [start, talk, cut])
        started, talked, polled = model.outputs
    assert proxy.refused > 0, "the client never noticed the cut"
    assert proxy.carried == 2, "one connection before the cut and one after it"
    return {
        "success": outcome_of(started[0]),
        "failure on both streams": outcome_of(started[1]),
        "terminal": outcome_of(started[2], talked[0]),
        "trapped interrupt": outcome_of(started[3], talked[1]),
        "fatal interrupt": outcome_of(started[4], talked[2]),
        "printing through a cut": outcome_of(talked[3], polled[0]),
        "ending in a cut": outcome_of(talked[4], polled[1]),
    }


@pytest.mark.case(117)
@needs_client
async def test_the_real_client_gets_every_exit_code_and_every_byte(daemon: Daemon, tmp_path: Path) -> None:
    """Exit codes, both streams, terminal input, Ctrl-C without a terminal and a cut all come out right."""
    assert REFERENCE is not None
    assert await run_all_flows(REFERENCE, tmp_path, daemon) == EXPECTED


@pytest.mark.case(117)
@needs_old_client
async def test_an_older_real_client_gets_the_same(daemon: Daemon, tmp_path: Path, long_profile: bool) -> None:
    """A client of an older version, which asks for the environment in another way, fares no worse."""
    if not long_profile:
        pytest.skip("an older client costs another run: --profile=long")
    assert OLD_CLIENT is not None
    assert await run_all_flows(OLD_CLIENT, tmp_path, daemon) == EXPECTED


@pytest.mark.case(117)
@needs_client
async def test_input_that_a_cut_overtakes_arrives_once(
    daemon: Daemon, tmp_path: Path, long_profile: bool
) -> None:
    """A line typed while the connection is down, or whose acknowledgement is lost, arrives exactly once."""
    if not long_profile:
        pytest.skip("eight cuts take their time: --profile=long")
    assert REFERENCE is not None
    lines = [f"line {i}" for i in range(8)]
    async with fault_proxy(daemon.address) as proxy:

        def type_line(line: str, cut: Callable[[float], None]) -> Turn:
            def turn(answers: Sequence[str]) -> list[Call]:
                cut(0.3)
                return [write(session_in(answers[0]), f"{line}\n", yield_time_ms=250)]

            return turn

        cuts = cycle((proxy.cut, proxy.cut_behind_next))
        echo = "while read -r line; do echo got $line; done; exit 4"
        turns: list[Turn] = [
            [execute(echo, tty=True, yield_time_ms=1000)],
            *(type_line(line, cut) for line, cut in zip(lines, cuts, strict=False)),
            lambda answers: [write(session_in(answers[0]), CTRL_D)],
        ]
        answers = (await run_client(REFERENCE, tmp_path, proxy.url, turns)).outputs
    assert proxy.carried == 1 + len(lines), "every cut cost one connection"
    told = outcome_of(*(answer for [answer] in answers))
    assert told == Outcome(4, "".join(f"{line}\r\ngot {line}\r\n" for line in lines))
