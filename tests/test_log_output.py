"""The daemon's log lines: what they look like, and that nobody has to read them."""

from __future__ import annotations

import json
import logging
import os
import select
from pathlib import Path

import pytest

from daemons import running, start_daemon
from tsupervise._log_output import JsonFormatter, UnhinderedHandler
from wire import connect


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("tsupervise.server", logging.INFO, __file__, 1, "%s", (text,), None)


def test_lines_that_nobody_reads_are_dropped_and_counted() -> None:
    """A full pipe takes no line and stops nothing; the next line that fits says how many are missing."""
    reader, writer = os.pipe()
    handler = UnhinderedHandler(writer)
    try:
        for _ in range(2_000):
            handler.emit(record("x" * 100))
        assert select.select([reader], [], [], 0)[0]
        taken = os.read(reader, 1 << 20).count(b"\n")
        handler.emit(record("at last"))
        dropped, last = os.read(reader, 1 << 20).decode().splitlines()
        assert dropped == f"{2_000 - taken} lines were dropped here: nobody read the log"
        assert last == "at last"
    finally:
        os.close(reader)
        os.close(writer)


def test_a_json_line_is_one_object() -> None:
    """Time, level, logger and message, whatever characters the message has."""
    line = JsonFormatter().format(record("two\nlines, and \udcff"))
    entry = json.loads(line)
    assert (entry["level"], entry["logger"]) == ("info", "tsupervise.server")
    assert entry["message"] == "two\nlines, and \\udcff"
    assert entry["time"].endswith(("Z", "+00:00"))


@pytest.mark.parametrize("form", ["text", "json"])
async def test_a_daemon_whose_stderr_is_full_serves_on(form: str) -> None:
    """Sessions are opened and processes run while its log goes into a pipe that nobody reads."""
    reader, writer = os.pipe()
    # The pipe is full from the start.
    os.set_blocking(writer, False)
    while select.select([], [writer], [], 0)[1]:
        os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    options = ("--log-level", "debug", "--log-format", form)
    try:
        with running(start_daemon("ours", *options, stderr=Path(f"/dev/fd/{writer}"))) as daemon:
            for number in range(5):
                async with connect(daemon.url) as peer:
                    assert await peer.run(f"p{number}", "echo", "hi") == (0, b"hi\n")
    finally:
        os.close(reader)
        os.close(writer)
