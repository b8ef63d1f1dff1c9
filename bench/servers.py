"""The servers under measurement: where they listen, what they cost, and those that this program starts.

Costs are those of the process that holds the listening socket, read from /proc: a server may run below a
launcher or a guardian of its own, and its children are the workload. Works for servers on this machine
that this user may look into; for others the costs are unknown (None).
"""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

START_S = 20.0
STOP_S = 10.0

PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


class ServerError(Exception):
    """A server did not start, or said nothing that looks like its URL."""


class Server:
    """A server that runs already, or (with a `command`) one that is started and ended here."""

    def __init__(self, name: str, *, url: str = "", command: str = "") -> None:
        self.name = name
        self.url = url
        self.command = command
        self.pid: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def start(self) -> None:
        """Start it, if it has a command, and find the process whose costs count, if `pid` does not say so.

        Raises:
            ServerError: the command cannot be run, or does not print the URL of a server.
        """
        if self.command:
            self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
            try:
                # Its own session: an interrupt from the keyboard is ours, and we end the servers in order.
                self._process = subprocess.Popen(
                    shlex.split(self.command),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=self._log,
                    start_new_session=True,
                )
            except OSError as error:
                raise ServerError(f"{self.name!r} cannot be started: {error}") from None
            self.url = self._read_url(self._process)
            self.pid = None
        if self.pid is None:
            self.pid = listener_pid(urlsplit(self.url).port or 0)

    def stop(self) -> None:
        """End it, if it was started here: SIGTERM, and SIGKILL if that is not enough."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            # What a launcher has left behind: its process group is the one of its session.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            if self._process.stdout is not None:
                self._process.stdout.close()
        if self._log is not None:
            self._log.close()
        self._process = self._log = None

    def restart(self) -> None:
        """Begin anew; a server given by URL stays as it is."""
        self.stop()
        self.start()

    def rss_kib(self) -> float | None:
        """Resident memory in KiB."""
        if self.pid is None:
            return None
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE_KIB

    def open_fds(self) -> int | None:
        return None if self.pid is None else len(os.listdir(f"/proc/{self.pid}/fd"))

    def _read_url(self, process: subprocess.Popen[bytes]) -> str:
        assert process.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([process.stdout], [], [], START_S)
            data = os.read(process.stdout.fileno(), 4096) if ready else b""
            if not data:
                why = "ended" if ready else f"printed no line within {START_S:g} s"
                raise ServerError(f"{self.name!r} {why}: {self.command}\n{self._last_log()}")
            line += data
        url = line.decode(errors="replace").strip()
        if not url.startswith("ws://"):
            raise ServerError(f"{self.name!r} printed {url!r} instead of its ws:// URL: {self.command}")
        return url

    def _last_log(self) -> str:
        assert self._log is not None
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-2000:]


def listener_pid(port: int) -> int | None:
    """The process that listens on a TCP port of this machine; None if none can be seen.

    If several share the socket, the one that started last: a guardian that binds comes before its daemon.
    """
    links = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    holders = [
        int(directory.name)
        for directory in Path("/proc").glob("[0-9]*")
        if not links.isdisjoint(_fds(directory))
    ]
    return max(holders, key=_start_time, default=None)


def process_is_gone(pid: int) -> bool:
    """Whether a process of this machine has ended; a zombie has."""
    try:
        return _stat_fields(pid)[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _listening_inodes(port: int) -> set[str]:
    inodes: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if os.path.exists(table):
            for row in Path(table).read_text().splitlines()[1:]:
                fields = row.split()
                # Fields of proc(5): 1 is ADDRESS:PORT in hex, 3 the state (0A = LISTEN), 9 the inode.
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(fields[9])
    return inodes


def _fds(directory: Path) -> set[str]:
    targets: set[str] = set()
    try:
        for fd in os.listdir(directory / "fd"):
            targets.add(os.readlink(directory / "fd" / fd))
    except OSError:
        pass
    return targets


def _start_time(pid: int) -> int:
    return int(_stat_fields(pid)[19])


def _stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the command name (it may hold blanks): the first is the state."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
