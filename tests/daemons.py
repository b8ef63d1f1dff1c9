"""Real servers for the tests, each in its own process: the installed `tsupervise run`, and the reference."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sysconfig
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

REFERENCE = os.environ.get("TSUPERVISE_REFERENCE")
"""The path of a `codex` binary; without it the tests run against this daemon only."""

START_S = 20.0


def command_of(target: str) -> list[str]:
    """The command line, without options, of a server: `ours` or `reference`."""
    if target == "reference":
        assert REFERENCE, "TSUPERVISE_REFERENCE is not set"
        return [REFERENCE, "exec-server"]
    return [str(Path(sysconfig.get_path("scripts")) / "tsupervise"), "run"]


@dataclass
class Daemon:
    """One running server. `url` is what it printed; stderr goes to a file for a look after a failure."""

    target: str
    process: subprocess.Popen[bytes]
    url: str
    arguments: Sequence[str] = field(default_factory=tuple[str, ...])

    @property
    def is_ours(self) -> bool:
        return self.target == "ours"

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("ws://").rpartition(":")
        return host.strip("[]"), int(port)

    def stop(self) -> int:
        """SIGTERM, then SIGKILL if that is not enough; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return self.process.wait()


def read_line(process: subprocess.Popen[bytes], timeout_s: float = START_S) -> str:
    """The first stdout line of a server, without its end; an AssertionError if none comes in time."""
    assert process.stdout is not None
    fd = process.stdout.fileno()
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([fd], [], [], timeout_s)
        assert ready, "the server printed no line in time"
        byte = os.read(fd, 1)
        assert byte, f"the server ended with {process.wait()} before it printed its line"
        line += byte
    return line.decode().rstrip("\n")


def start_daemon(
    target: str = "ours",
    *options: str,
    listen: str = "ws://127.0.0.1:0",
    command: Sequence[str] | None = None,
    env: Mapping[str, str] | None = None,
    stderr: Path | None = None,
) -> Daemon:
    """Start a server and wait until it says where it listens. The caller stops it.

    `command` stands in for the usual one, its options excepted.
    """
    arguments = [*(command or command_of(target)), "--listen", listen, *options]
    with open(stderr or os.devnull, "ab") as log:
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=env
        )
    try:
        return Daemon(target, process, read_line(process), arguments)
    except BaseException:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        raise


@contextmanager
def running(daemon: Daemon) -> Generator[Daemon]:
    """Stop the server at the end of the block, if it still runs."""
    try:
        yield daemon
    finally:
        if daemon.process.stdin is not None:
            daemon.process.stdin.close()
        daemon.stop()
