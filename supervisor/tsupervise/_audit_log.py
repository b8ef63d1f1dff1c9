"""The audit log: one JSON object a line about who ran what, and how it ended, in a file of the operator's.

The daemon never waits for it and never fails by it. Lines go through a bounded queue to a thread that
writes; what the disk does not take is dropped, counted, and told of by the next line that it takes.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial

import msgspec
import trio

from ._background import open_background
from ._metrics import Metrics

log = logging.getLogger(__name__)

MAX_WAITING_LINES = 4_096
"""Lines that wait for the disk; a line is a few hundred bytes. Later ones are dropped."""

GATHER_S = 0.01
"""How long lines are gathered, in seconds. One write for each would double what they cost: 0.25 ms of CPU for the
two of a process, instead of 0.12, beside 0.56 for the process itself (measured)."""

LAST_WRITE_S = 2.0
"""How long a disk may take for what waits when the daemon ends, in seconds."""


class CannotAudit(Exception):
    """The audit log cannot be opened, so the daemon does not start: nothing is to run unseen."""


class AuditLog:
    """See the module. Made by `open_audit_log`.

    Args:
        path: the file, appended to; made with mode 0600 if it is not there.
        metrics: where dropped lines are counted.

    Raises:
        CannotAudit: it cannot be opened.
    """

    def __init__(self, path: str, metrics: Metrics) -> None:
        self._path = path
        self._metrics = metrics
        try:
            self._fd = _open(path)
        except OSError as error:
            text = f"cannot open the audit log {path}: {error.strerror} (os error {error.errno})"
            raise CannotAudit(text) from None
        self._waiting: deque[bytes] = deque()
        self._filled = trio.lowlevel.ParkingLot()
        self._reopen = False
        self._is_torn = False
        """Whether the file ends in the middle of a line, for the disk has taken only a part of it."""
        self._dropped = 0
        """Lines that have been lost and not been told of in the file."""
        self._is_failing = False
        self._ending = False
        self._over = trio.Event()

    def write(self, event: str, ids: Mapping[str, object]) -> None:
        """Queue one line: the time, the event and its members. Never waits."""
        if len(self._waiting) >= MAX_WAITING_LINES:
            self._drop(1, "the disk does not keep up")
            return
        self._waiting.append(_line(event, ids))
        self._filled.unpark_all()

    def reopen(self) -> None:
        """Open the file anew before the next line. That it was moved away or replaced is noticed without."""
        self._reopen = True

    async def run(self) -> None:
        """Write what comes, until `aclose`."""
        while self._waiting or not self._ending:
            if not self._waiting:
                await self._filled.park()
                await trio.sleep(GATHER_S)
                continue
            lines = list(self._waiting)
            self._waiting.clear()
            told = self._dropped
            if told:
                lines.insert(0, _line("audit.dropped", {"lines": told}))
            reopen, self._reopen = self._reopen, False
            work = partial(self._write_lines, lines, reopen)
            written, error = await trio.to_thread.run_sync(work, abandon_on_cancel=True)
            if told and written:
                self._dropped -= told
            if error is not None:
                lost = len(lines) - written
                self._drop(lost - (told > 0 and not written), error.strerror or str(error))
            elif told and self._is_failing:
                self._is_failing = False
                log.warning("the audit log %s is written again; %d lines are missing", self._path, told)
        self._over.set()

    async def aclose(self) -> None:
        """Let what waits be written, within LAST_WRITE_S."""
        self._ending = True
        self._filled.unpark_all()
        with trio.move_on_after(LAST_WRITE_S, shield=True):
            await self._over.wait()
            os.close(self._fd)

    def _drop(self, count: int, why: str) -> None:
        self._dropped += count
        self._metrics.audit_lines_dropped += count
        if not self._is_failing:
            self._is_failing = True
            log.warning(
                "the audit log %s cannot be written (%s): its lines are dropped and counted until it can",
                self._path,
                why,
            )

    def _write_lines(self, lines: list[bytes], reopen: bool) -> tuple[int, OSError | None]:
        """In a thread, one at a time: write lines; return how many are written, and what stopped it."""
        written = 0
        try:
            if reopen or self._was_replaced():
                old, self._fd = self._fd, _open(self._path)
                os.close(old)
                self._is_torn = False
            for line in lines:
                self._write_line(line)
                written += 1
        except OSError as error:
            return written, error
        return written, None

    def _write_line(self, line: bytes) -> None:
        rest = b"\n" + line if self._is_torn else line
        while rest:
            rest = rest[os.write(self._fd, rest) :]
            self._is_torn = bool(rest)

    def _was_replaced(self) -> bool:
        try:
            return not os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except FileNotFoundError:
            return True


def _open(path: str) -> int:
    # O_NONBLOCK is for pipes: without a reader the open would wait for ever.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    return os.open(path, flags, 0o600)


def _line(event: str, ids: Mapping[str, object]) -> bytes:
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    return msgspec.json.encode({"time": time, "event": event, **ids}) + b"\n"


@asynccontextmanager
async def open_audit_log(path: str | None, metrics: Metrics) -> AsyncGenerator[AuditLog | None]:
    """The audit log for the time of the block; what waits at its end is written.

    Args:
        path: None for none.
        metrics: where dropped lines are counted.

    Raises:
        CannotAudit: it cannot be opened.
    """
    if path is None:
        yield None
        return
    audit = await trio.to_thread.run_sync(AuditLog, path, metrics)
    # Its one child writes, also while the block is cancelled: how things end then is worth most.
    async with open_background(outlast_cancel=True) as nursery:
        nursery.start_soon(audit.run)
        try:
            yield audit
        finally:
            await audit.aclose()
