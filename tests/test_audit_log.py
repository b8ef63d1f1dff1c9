"""The audit log: who ran what and how it ended, whatever happens to the file; and nothing of what is secret."""

from __future__ import annotations

import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import trio

from daemons import Daemon, running, start_daemon
from http_pages import counts, value
from procfs import until
from tsupervise import _audit_log
from tsupervise._audit_log import CannotAudit, open_audit_log
from tsupervise._metrics import Metrics
from wire import connect

pytestmark = [pytest.mark.ours_only("the reference keeps no such log"), pytest.mark.case(164)]

SECRET = "hunter2"


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def of(path: Path, event: str) -> list[dict[str, Any]]:
    return [entry for entry in entries(path) if entry["event"] == event]


def audited(path: Path, *options: str) -> Daemon:
    return start_daemon("ours", "--audit-log", str(path), *options)


async def test_each_process_has_its_beginning_and_its_end(tmp_path: Path) -> None:
    """Who, from where, what program and where; when, how it ended and how much went through it."""
    path = tmp_path / "audit.log"
    with running(audited(path)) as daemon:
        async with connect(daemon.url) as peer:
            (await peer.start("p", "sh", "-c", "cat; exit 3", pipeStdin=True)).ok()
            (await peer.write("p", b"12345", "w1")).ok()
            await peer.until_output("p", b"12345")
            (await peer.request("process/closeStdin", {"processId": "p"})).ok()
            await peer.until_closed("p")
            (await peer.start("q", "sleep", "600")).ok()
            (await peer.request("process/signal", {"processId": "q", "signal": "kill"})).ok()
            await peer.until_closed("q")
            assert (await peer.start("r", "/no/such/program")).error
            (await peer.start("s", "sleep", "600")).ok()
            session = peer.session_name
        assert daemon.stop() == 0
    assert path.stat().st_mode & 0o777 == 0o600
    who = {"session": session, "client": "tests", "peer_uid": os.geteuid()}
    started = {entry["process_id"]: entry for entry in of(path, "process.started")}
    ended = {entry["process_id"]: entry for entry in of(path, "process.ended")}
    assert started.keys() == ended.keys() == {"p", "q", "s"}
    for entry in (*of(path, "session.opened"), *started.values(), *ended.values()):
        assert entry.items() >= who.items()
        assert entry["peer"].startswith("127.0.0.1:")
        assert entry["time"].endswith("+00:00")
    for process_id, entry in ended.items():
        assert {name: entry[name] for name in ("uid", "pid")} == {
            name: started[process_id][name] for name in ("uid", "pid")
        }
        assert entry["cwd"] == "file:///tmp"
        assert entry["started"] <= entry["time"]
    p = ended["p"]
    assert (p["program"], p["result"], p["exit_code"]) == ("sh", "failure", 3)
    assert (p["input_bytes"], p["output_bytes"], p["reason"]) == (5, 5, "exit")
    assert {"user_ms", "system_ms"} <= p.keys()
    q = ended["q"]
    assert (q["result"], q["term_signal"], q["reason"]) == ("signal", signal.SIGKILL, "signal")
    # It lived until the daemon's end, and that is what the log is for.
    assert ended["s"]["result"] == "killed"
    (failed,) = of(path, "process.start_failed")
    assert failed["program"] == "/no/such/program"
    assert [entry["session"] for entry in of(path, "session.ended")] == [session]


async def test_no_secret_gets_into_it(tmp_path: Path) -> None:
    """Arguments, environment, input and output are not there, nor a line that a name of a client forges."""
    path = tmp_path / "audit.log"
    log = tmp_path / "log"
    with running(
        start_daemon("ours", "--audit-log", str(path), "--log-level", "debug", stderr=log)
    ) as daemon:
        async with connect(daemon.url, handshake=False) as peer:
            forged = 'x\n{"event":"forged"}\n2026-01-01 INFO forged'
            await peer.request("initialize", {"clientName": forged})
            await peer.notify("initialized")
            env = {"PATH": os.environ["PATH"], "TOKEN": SECRET}
            fields: dict[str, Any] = {
                "env": env,
                "pipeStdin": True,
                "arg0": SECRET,
                "metadata": {"k": SECRET},
            }
            (await peer.start("p", "cat", "-", SECRET, **fields)).ok()
            (await peer.write("p", SECRET.encode(), "w1")).ok()
            await peer.until_output("p", SECRET.encode())
            await peer.terminate("p")
            await peer.until_closed("p")
            await peer.start("q", "cat", SECRET, cwd="relative")
            await peer.send_raw(f'{{"id":1,"method":"process/start","params":"{SECRET}"}}')
            await peer.send_raw(f"{SECRET} is no JSON")
            await peer.answer_to(-1)
        assert daemon.stop() == 0
    for text in (path.read_text("utf-8"), log.read_text("utf-8")):
        assert "cat" in text
        assert SECRET not in text
        assert not any(line.startswith(('{"event":"forged', "2026-01-01 INFO")) for line in text.splitlines())
    assert not of(path, "forged")


@pytest.mark.parametrize("how", ["moved-away", "truncated-and-told"])
async def test_a_rotated_log_goes_on_in_the_new_file(tmp_path: Path, how: str) -> None:
    """Moved away, the file is begun anew by itself; a copy that is emptied goes on, and SIGUSR1 is no harm."""
    path, old = tmp_path / "audit.log", tmp_path / "audit.log.1"
    with running(audited(path)) as daemon:
        async with connect(daemon.url) as peer:
            await peer.run("before", "true")
            await until(lambda: len(of(path, "process.ended")) == 1)
            if how == "moved-away":
                path.rename(old)
            else:
                old.write_bytes(path.read_bytes())
                os.truncate(path, 0)
                daemon.process.send_signal(signal.SIGUSR1)
            await peer.run("after", "true")
            await until(lambda: path.exists() and len(of(path, "process.ended")) == 1)
        assert daemon.stop() == 0
    assert [entry["process_id"] for entry in of(old, "process.ended")] == ["before"]
    assert [entry["process_id"] for entry in of(path, "process.ended")] == ["after"]
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_full_disk_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    """The daemon serves on with one warning; when there is room again, the log tells how many are missing."""
    path, log = tmp_path / "audit.log", tmp_path / "log"
    path.symlink_to("/dev/full")
    with running(start_daemon("ours", "--audit-log", str(path), stderr=log)) as daemon:
        async with connect(daemon.url) as peer:
            for number in range(5):
                assert await peer.run(f"p{number}", "echo", "hi") == (0, b"hi\n")
            # One line of the session and two of each process.
            await until_dropped(daemon, 11)
            path.unlink()
            await peer.run("late", "true")
            await until(lambda: path.exists() and bool(of(path, "process.ended")))
        assert daemon.stop() == 0
    (dropped,) = of(path, "audit.dropped")
    assert dropped["lines"] == 11
    assert [entry["process_id"] for entry in of(path, "process.started")] == ["late"]
    warnings = [line for line in log.read_text().splitlines() if "WARNING" in line]
    assert len(warnings) == 2
    assert "No space left on device" in warnings[0]
    assert "11 lines are missing" in warnings[1]


async def until_dropped(daemon: Daemon, lines: int) -> None:
    while value(await counts(daemon), "audit_lines_dropped_total") < lines:
        pass


class Disk:
    """Stands in for os.write: it takes what it is told to, at first."""

    def __init__(self, takes: int) -> None:
        self.takes = takes
        self.written = b""

    def write(self, fd: int, data: bytes) -> int:
        if not self.takes:
            raise OSError(28, "No space left on device")
        taken = data[: self.takes]
        self.takes -= len(taken)
        self.written += taken
        return len(taken)


async def test_a_torn_line_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk was full in the middle of a line, the next one begins on a line of its own."""
    disk = Disk(takes=30)
    monkeypatch.setattr(_audit_log.os, "write", disk.write)
    metrics = Metrics()
    async with open_audit_log(str(tmp_path / "audit.log"), metrics) as audit:
        assert audit is not None
        audit.write("torn", {})
        await until(lambda: metrics.audit_lines_dropped == 1)
        disk.takes = 1 << 20
        audit.write("whole", {})
    torn, dropped, whole = disk.written.splitlines()
    assert len(torn) == 30
    assert json.loads(dropped).items() >= {"event": "audit.dropped", "lines": 1}.items()
    assert json.loads(whole)["event"] == "whole"


async def test_a_hanging_disk_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, autojump_clock: object
) -> None:
    """Lines wait up to a bound, then they are dropped and counted with one warning; the end waits a little."""
    reader, writer = os.pipe()

    def hang(fd: int, data: bytes) -> int:
        return len(os.read(reader, 1))

    monkeypatch.setattr(_audit_log.os, "write", hang)
    monkeypatch.setattr(_audit_log, "MAX_WAITING_LINES", 10)
    metrics = Metrics()
    with caplog.at_level(logging.WARNING):
        async with open_audit_log(str(tmp_path / "audit.log"), metrics) as audit:
            assert audit is not None
            for number in range(25):
                audit.write("step", {"number": number})
    os.close(writer)
    os.close(reader)
    assert metrics.audit_lines_dropped == 15
    assert sum("does not keep up" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("kind", ["directory", "pipe", "nowhere"])
async def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path, kind: str) -> None:
    """A daemon that is to be audited and cannot be does not start; a pipe without a reader does not hold it up."""
    path = tmp_path / "audit.log"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path = path / "audit.log"
    with trio.fail_after(10), pytest.raises(CannotAudit, match=rf"{path}: .+ \(os error \d+\)"):
        async with open_audit_log(str(path), Metrics()):
            pass
