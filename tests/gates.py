"""A door between a test and a child: one waits at it until the other opens it.

A named pipe, because it works beside stdin and output and while a connection is busy with a parked read,
and because one line of shell waits (`read x <"$GATE"`) or opens (`echo >"$GATE"`).
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from wire import PATIENCE_S


@dataclass(frozen=True)
class Gate:
    """One named pipe; both ends are open here, so that no child ever blocks in open or sees its end."""

    path: str
    fd: int

    def open(self) -> None:
        """Let one waiting child through, now or when it comes."""
        os.write(self.fd, b"\n")

    async def until_opened(self) -> None:
        """Wait until a child has opened the gate, which this closes again."""
        with trio.fail_after(PATIENCE_S):
            await trio.lowlevel.wait_readable(self.fd)
        os.read(self.fd, 1)


@contextmanager
def gate_at(directory: Path) -> Generator[Gate]:
    """A closed gate in `directory`."""
    path = directory / "gate"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield Gate(str(path), fd)
    finally:
        os.close(fd)
