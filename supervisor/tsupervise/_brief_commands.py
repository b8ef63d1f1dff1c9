"""The commands that ask the daemon, print the answer and are done: `ps`, `status`, `wait`, `kill`, `end`, and
`exec --detach`."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from signal import Signals

import msgspec

from tsupervise_protocol.messages import (
    OperatorEntry,
    OperatorListResult,
    OperatorStatusResult,
    SignalName,
)

from ._at_daemon import FAILED, FAILURES, find_process, report
from ._exec_command import ExecOptions, environment_of
from ._observed_process import entry_named
from ._relay import TIMED_OUT, complain, say
from ._table import Column, table_text
from ._terminal import stdout_is_terminal, terminal_size
from .client import INHERIT_ALL, Client
from .errors import TsuperviseError

_COLUMNS = (
    Column("ID"),
    Column("NAME"),
    Column("PID", is_number=True),
    Column("STATE", styles={"running": "green", "starting": "green", "exited": "yellow", "closed": "dim"}),
    Column("AGE", is_number=True),
    Column("OUTPUT", is_number=True),
    Column("EXIT"),
    Column("SESSION", styles={"kept": "cyan", "detached": "yellow"}),
    Column("COMMAND", may_be_cut=True),
)


class ProcessRef(msgspec.Struct, frozen=True, rename="camel"):
    """Which process was meant."""

    process_id: str
    uid: str
    session_id: str


class ProcessesDone(msgspec.Struct, frozen=True):
    """What something was done to."""

    processes: list[ProcessRef]


async def list_processes(client: Client, *, closed_too: bool, as_json: bool) -> int:
    """Print the processes of all sessions; those that are closed only if they are wanted."""
    entries = [entry for entry in await client.processes() if closed_too or entry.state != "closed"]
    if as_json:
        await _say_json(OperatorListResult(processes=entries))
    else:
        now_ms = time.time_ns() // 1_000_000
        rows = [_row(entry, now_ms) for entry in entries]
        await say(table_text(_COLUMNS, rows, on_terminal=stdout_is_terminal()).encode())
    return 0


def _row(entry: OperatorEntry, now_ms: int) -> tuple[str, ...]:
    return (
        entry.uid,
        entry.process_id,
        "-" if entry.pid is None else str(entry.pid),
        entry.state,
        age_text((now_ms - entry.started_at_ms) / 1000),
        size_text(entry.output_bytes),
        _exit_text(entry),
        "kept" if entry.session_kept else "attached" if entry.session_attached else "detached",
        shlex.join(entry.argv),
    )


def _exit_text(entry: OperatorEntry) -> str:
    if entry.exit_code is None:
        return "-"
    if entry.term_signal is None:
        return str(entry.exit_code)
    try:
        name = Signals(entry.term_signal).name.removeprefix("SIG")
    except ValueError:
        name = str(entry.term_signal)
    return f"{entry.exit_code} ({name})"


def age_text(seconds: float) -> str:
    """A time in the largest unit of which there are two, or the smallest; 0 if the clock was set back."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds / length)}{unit}"
    return f"{max(int(seconds), 0)}s"


def size_text(size: float) -> str:
    """A number of bytes, short."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"


async def show_status(client: Client, *, as_json: bool) -> int:
    """Print what the daemon is and holds."""
    status = await client.status()
    if as_json:
        await _say_json(status)
        return 0
    facts = _facts(status, time.time_ns() // 1_000_000)
    width = max(map(len, facts))
    await say("".join(f"{name.ljust(width)}  {value}\n" for name, value in facts.items()).encode())
    return 0


def _facts(status: OperatorStatusResult, now_ms: int) -> Mapping[str, str]:
    sessions = str(status.sessions)
    if status.sessions:
        sessions += f" ({status.sessions_attached} attached, {status.sessions_kept} kept)"
    processes = ", ".join(f"{count} {state}" for state, count in status.processes.items() if count)
    spilled = f"{size_text(status.spilled_bytes)} of {size_text(status.spill_total_bytes)}"
    return {
        "listens at": status.listen or "-",
        "version": status.version,
        "pid": str(status.pid),
        "age": age_text((now_ms - status.started_at_ms) / 1000),
        "sessions": sessions,
        "processes": processes or "none",
        "retained": f"{size_text(status.retained_bytes)} of {size_text(status.retained_total_bytes)}",
        **({"spilled": spilled} if status.spill_total_bytes else {}),
    }


async def wait_for(client: Client, name: str, *, as_json: bool) -> int:
    """Wait until a process has ended, and exit as it did."""
    process = await find_process(client, name)
    code = await process.wait()
    if as_json:
        await _say_json(process.entry)
    if code < 0:
        await complain("the daemon does not know how it ended")
        return FAILED
    return TIMED_OUT if process.entry.reason == "timeout" else code


async def send_signal(client: Client, names: Sequence[str], signal: SignalName, *, as_json: bool) -> int:
    """Send a signal to processes; `kill` takes what belongs to each along. One that fails is no reason to stop."""
    done: list[ProcessRef] = []
    code = 0
    for name in names:
        try:
            process = await find_process(client, name)
            if process.entry.state == "closed" or (process.exit_code is not None and signal != "kill"):
                await complain(f"process {name!r} has ended already")
                code = FAILED
                continue
            if signal == "kill":
                await process.terminate()
            else:
                await process.signal(signal)
            done.append(_ref(process.entry))
        except FAILURES as error:
            code = await report(error)
    if as_json:
        await _say_json(ProcessesDone(done))
    return code


async def end_sessions(client: Client, names: Sequence[str], *, as_json: bool) -> int:
    """End the sessions that processes belong to. Says which processes are gone with them."""
    entries = await client.processes()
    sessions: dict[str, None] = {}
    code = 0
    for name in names:
        try:
            is_session = any(entry.session_id == name for entry in entries)
            sessions[name if is_session else entry_named(entries, name).session_id] = None
        except FAILURES as error:
            code = await report(error)
    done: list[ProcessRef] = []
    for session_id in sessions:
        try:
            await client.end_session(session_id)
        except FAILURES as error:
            code = await report(error)
        else:
            done += [_ref(entry) for entry in entries if entry.session_id == session_id]
    if as_json:
        await _say_json(ProcessesDone(done))
    return code


async def start_detached(
    client: Client, options: ExecOptions, *, name: str | None, interactive: bool, as_json: bool
) -> int:
    """Start a process in a session of its own that is kept, print its uid, and leave it alone."""
    # Also without a name: who may not do this may not keep a session either, and should hear of it before.
    entries = await client.processes()
    alive = [
        entry for entry in entries if entry.process_id == name and entry.state in ("starting", "running")
    ]
    if alive:
        await complain(f"the name {name!r} is taken by process {alive[0].uid}, which is still running")
        return FAILED
    process = await client.start(
        options.argv,
        process_id=name,
        cwd=options.cwd,
        env=environment_of(options),
        env_policy=INHERIT_ALL,
        tty=options.tty,
        pipe_stdin=interactive,
        size=terminal_size() if options.tty else None,
        timeout_s=options.timeout_s,
        limits=options.limits,
    )
    try:
        # Not before it runs: a start that fails would leave a session behind that nobody ends.
        await client.keep_session()
    except TsuperviseError:
        await process.end()
        raise
    uid = process.uid or process.process_id
    if as_json:
        await _say_json(ProcessRef(process.process_id, uid, client.session_id))
    else:
        await say(f"{uid}\n".encode())
    return 0


def _ref(entry: OperatorEntry) -> ProcessRef:
    return ProcessRef(entry.process_id, entry.uid, entry.session_id)


async def _say_json(document: msgspec.Struct) -> None:
    await say(msgspec.json.encode(document) + b"\n")
