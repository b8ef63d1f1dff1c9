"""What escapes from servers of the process protocol, side by side: `python bench/containment.py --help`.

For each way of escaping a process is started whose child takes it, then the process is terminated, or its server is
ended, and a second later all processes of the machine are looked through for survivors.
It needs a C compiler, and imports nothing of the package, so any server can be looked at.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lean_client import Connection, WireError
from servers import Server, ServerError

SOURCE = Path(__file__).parents[1] / "tests" / "process_tree.c"

SETTLE_S = 1.0
"""How long after the end somebody may still live. It is what the project promises."""

GROW_S = 0.3
"""How long an escape takes at most: the child is in its new session, stopped, or has a new environment."""


@dataclass(frozen=True)
class Escape:
    """One row: what the child does, and how it is tried to end it."""

    text: str
    kind: str
    ending: str = "terminate"


ESCAPES = (
    Escape("child with its own process group", "setpgid"),
    Escape("child in its own session (`setsid`)", "setsid"),
    Escape("daemon (double fork)", "daemon"),
    Escape("deaf to every signal, own session", "deaf"),
    Escape("stopped, own session", "stopped"),
    Escape("ptrace-stopped, own session", "traced"),
    Escape("closed stdio, same group", "quiet"),
    Escape("empty environment, own session", "environment"),
    Escape("first thread ended, own session", "thread"),
    Escape("all resource limits reset, double fork", "limits"),
    Escape("forks and leaves, again and again", "chain"),
    Escape("closed stdio; terminated after the exit", "quiet", "exit"),
    Escape("daemon; SIGTERM to the server", "daemon", "SIGTERM"),
    Escape("daemon; SIGKILL to the server", "daemon", "SIGKILL"),
    Escape("deaf, own session; SIGKILL to the server", "deaf", "SIGKILL"),
)


class Look:
    """The program that escapes, and the look at all processes."""

    def __init__(self, folder: str) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise SystemExit("there is no C compiler")
        self._binary = Path(folder) / "tree"
        subprocess.run([compiler, "-O1", "-pthread", "-o", self._binary, SOURCE], check=True)
        self._count = 0

    def new_program(self) -> Path:
        """The program under a name of its own; at most 15 characters of it are kept."""
        self._count += 1
        path = self._binary.with_name(f"e{os.getpid()}x{self._count}")
        os.link(self._binary, path)
        return path

    def survivors(self, program: Path) -> list[int]:
        """Those of a program that live."""
        listed = subprocess.run(
            [self._binary, "scan", program.name], capture_output=True, text=True, check=True
        )
        rows = [line.split(" ", 3) for line in listed.stdout.splitlines()]
        return [int(pid) for pid, state, _, name in rows if state not in "ZX" and name == program.name]

    def left(self, program: Path) -> int:
        """How many live when the time is over."""
        time.sleep(SETTLE_S)
        # More than one look: whoever forks and goes may slip through one.
        return max(len(self.survivors(program)) for _ in range(5))

    def end(self, program: Path) -> None:
        """Kill the survivors."""
        while survivors := self.survivors(program):
            for pid in survivors:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def survivors_of(escape: Escape, server: Server, look: Look) -> int:
    """Start the escape on a fresh server, end it, and count who lives on."""
    program = look.new_program()
    server.restart()
    try:
        with Connection(server.url, quickack=True) as connection:
            connection.set_patience(10)
            argv = [str(program), "escape", escape.kind]
            if escape.ending == "exit":
                argv = ["/bin/sh", "-c", '"$@" & sleep 0.3', "sh", *argv]
            start = connection.prepare_start(*argv)
            connection.send(start)
            time.sleep(GROW_S * (3 if escape.ending == "exit" else 1))
            if not look.survivors(program):
                raise WireError(f"{escape.kind}: nobody is there to be ended")
            end(escape, server, connection, start.process_id)
            return look.left(program)
    finally:
        look.end(program)


def end(escape: Escape, server: Server, connection: Connection, process_id: str) -> None:
    """Do what ends the process."""
    if escape.ending in ("terminate", "exit"):
        connection.send(connection.prepare_terminate(process_id))
    else:
        assert server.pid is not None, "a server started here is found by its socket"
        os.kill(server.pid, signal.Signals[escape.ending])


def named(text: str) -> Server:
    """A server, from NAME=COMMAND."""
    name, _, command = text.partition("=")
    return Server(name, command=command)


def parse(arguments: list[str] | None) -> list[Server]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--spawn",
        metavar="NAME=COMMAND",
        type=named,
        action="append",
        required=True,
        help="a server to start anew for each row; it prints its ws:// URL as its first line",
    )
    return parser.parse_args(arguments).spawn


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status is 1 if a row could not be tried."""
    servers = parse(arguments)
    failed = False
    print("| " + " | ".join(["what the child does", *(server.name for server in servers)]) + " |")
    print("|---|" + "---|" * len(servers), flush=True)
    with tempfile.TemporaryDirectory(prefix="escapes") as folder:
        look = Look(folder)
        for escape in ESCAPES:
            cells: list[str] = []
            for server in servers:
                try:
                    count = survivors_of(escape, server, look)
                    cells.append("survives" if count else "gone")
                except (OSError, ServerError, WireError) as error:
                    failed = True
                    cells.append(f"failed: {error}")
                finally:
                    server.stop()
            print("| " + " | ".join([escape.text, *cells]) + " |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
