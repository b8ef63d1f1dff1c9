"""The daemon's log lines: what they look like, and that nobody has to read them."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import sys
from pathlib import Path

import pytest
import trio

from daemons import Daemon, running, start_daemon
from http_pages import get
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


STEPS = {
    "daemon.listening": {"url"},
    "connection.opened": {"peer"},
    "session.opened": {"session", "client", "peer", "peer_uid"},
    "process.started": {"session", "uid", "process_id", "pid", "program", "cwd", "tty"},
    "process.ended": {"session", "uid", "process_id", "pid", "result", "exit_code", "output_bytes"},
    "process.closed": {"session", "uid"},
    "process.start_failed": {"session", "uid", "process_id", "program"},
    "session.detached": {"session"},
    "connection.closed": {"peer", "code"},
    "session.resumed": {"session", "client", "peer"},
    "daemon.draining": {"signal", "within_s"},
    "daemon.drained": {"in_time"},
    "session.ended": {"session"},
}
"""The steps of the life below, in the order in which they come first, and what each must name."""


async def lead_a_life(daemon: Daemon) -> str:
    """A session with a process that fails and one that cannot be started, left and resumed; then the end."""
    async with connect(daemon.url) as peer:
        assert await peer.run("p", "sh", "-c", "echo hi; exit 3") == (3, b"hi\n")
        assert (await peer.start("q", "/no/such/program")).error
    async with connect(daemon.url, resume=peer.session_id):
        daemon.process.send_signal(signal.SIGTERM)
        assert await trio.to_thread.run_sync(daemon.process.wait, 20) == 0
    return peer.session_name


@pytest.mark.case(163)
async def test_each_step_of_a_life_is_one_object(tmp_path: Path) -> None:
    """Every step has one line with its event and the ids of what it happened to, in order."""
    log = tmp_path / "log"
    options = ("--log-level", "debug", "--log-format", "json", "--drain", "60")
    with running(start_daemon("ours", *options, stderr=log)) as daemon:
        session = await lead_a_life(daemon)
    entries = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    events = [entry["event"] for entry in entries]
    assert list(dict.fromkeys(events)) == list(STEPS)
    for entry in entries:
        assert entry.keys() >= {"time", "level", "logger", "message", *STEPS[entry["event"]]}
        assert entry.get("session", session) == session
    for event in STEPS:
        twice = event.startswith("connection.") or event == "session.detached"
        assert events.count(event) == 1 + twice, event
    (ended,) = (entry for entry in entries if entry["event"] == "process.ended")
    assert (ended["exit_code"], ended["result"], ended["program"]) == (3, "failure", "sh")
    levels = {entry["event"]: entry["level"] for entry in entries}
    assert levels["session.opened"] == levels["daemon.listening"] == "info"
    assert levels["process.started"] == "debug"


@pytest.mark.case(163)
async def test_each_step_of_a_life_is_one_line(tmp_path: Path) -> None:
    """The same as text: the event, then names and values; at the default level no line for each process."""
    log = tmp_path / "log"
    with running(start_daemon("ours", "--drain", "60", stderr=log)) as daemon:
        session = await lead_a_life(daemon)
    lines = [line.partition(" tsupervise: ")[2] for line in log.read_text("utf-8").splitlines()]
    shown = [event for event in STEPS if not event.startswith(("process.", "connection."))]
    assert [line.partition(":")[0].replace(" ", ".", 1) for line in lines if "detached" not in line] == [
        event for event in shown if event != "session.detached"
    ]
    assert f"session opened: session={session} client=tests peer=127.0.0.1:" in lines[1]


async def test_a_daemon_with_everything_on_has_nothing_to_complain_of(tmp_path: Path) -> None:
    """In development mode, with warnings as errors, and with every option of an operator's: not one line."""
    log = tmp_path / "log"
    command = [sys.executable, "-X", "dev", "-W", "error", "-m", "tsupervise", "run"]
    options = ["--drain", "60", "--audit-log", str(tmp_path / "audit.log"), "--log-level", "warning"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        env = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000"}
        with running(start_daemon("ours", *options, command=command, env=env, stderr=log)) as daemon:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_for_ever, manager)
                await get(daemon, "/metrics")
                await lead_a_life(daemon)
                nursery.cancel_scope.cancel()
    assert log.read_text("utf-8") == ""


async def read_for_ever(sock: socket.socket) -> None:
    """Keep a socket from filling up."""
    sock.setblocking(False)
    while True:
        await trio.lowlevel.wait_readable(sock)
        sock.recv(4096)


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
