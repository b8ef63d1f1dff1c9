"""`tsupervise exec`: one command at a server, or supervised in this process, as if it ran right here.

The tasks here feed stdin, pass on signals and follow the size of the terminal; the body prints events, and
its end is the end of all. The tasks stay silent about errors of their own: whatever ends a connection or
a process ends the stream of events as well, and the body reports it.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass

import trio

from tsupervise_protocol.messages import SignalName

from ._background import open_background
from ._inherited import heeded
from ._remote_process import RemoteProcess
from ._terminal import (
    STDERR,
    STDOUT,
    RawTerminal,
    hold_closed_descriptors,
    read_stdin,
    stdin_is_null,
    terminal_size,
    write_out,
)
from ._way_in import WayIn
from .client import INHERIT_ALL, Client, connect
from .errors import NotSupported, ServerRefused, TsuperviseError
from .events import Exited, Lost, Output

DAEMON_FAILED = 125
CANNOT_EXECUTE = 126
NOT_FOUND = 127

_FORWARDED: dict[signal.Signals, SignalName] = {
    signal.SIGINT: "interrupt",
    signal.SIGTERM: "terminate",
    signal.SIGHUP: "hangup",
    signal.SIGQUIT: "quit",
}

MAX_UNANSWERED = 2
"""Signals that may wait for the server's answer; one more ends this command, for the server is stuck."""

TERMINAL_DRAIN_S = 0.25
"""On a terminal: how long output may follow the exit. Background jobs may hold the terminal for ever, and
the user's own is of no use until this command ends."""

_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_EOF = b"\x04"


@dataclass(frozen=True, slots=True)
class ExecOptions:
    """What was asked for; `url` is None for supervision in this process, `env` is added, `recovery_s` is how long
    a lost connection may take to come back, and `way_in` is for the door at that URL."""

    argv: Sequence[str]
    url: str | None
    tty: bool
    cwd: str | None
    env: Mapping[str, str]
    recovery_s: float
    way_in: WayIn


def run_exec(options: ExecOptions) -> int:
    """Run the command and return the exit code for this process."""
    hold_closed_descriptors()
    return trio.run(_Exec(options).run)


class _Exec:
    def __init__(self, options: ExecOptions) -> None:
        self._options = options
        self._process: RemoteProcess | None = None
        self._scope = trio.CancelScope()
        self._unanswered = 0
        self._stopped_by = 0

    async def run(self) -> int:
        code = DAEMON_FAILED
        with self._scope, trio.open_signal_receiver(*heeded(_FORWARDED)) as signals:
            async with open_background(outlast_cancel=True) as nursery:
                nursery.start_soon(self._forward_signals, signals, nursery)
                try:
                    async with self._open_client() as client:
                        code = await self._run_at(client)
                except UnicodeEncodeError as error:
                    await _complain(f"{error.object!r} is not UTF-8 and cannot be sent")
                except (TsuperviseError, ValueError) as error:
                    await _complain(str(error))
                    code = _exit_code_of(error)
        return 128 + self._stopped_by if self._scope.cancelled_caught else code

    def _open_client(self) -> AbstractAsyncContextManager[Client]:
        if self._options.url is not None:
            return connect(
                self._options.url,
                client_name="tsupervise exec",
                recovery_s=self._options.recovery_s,
                **self._options.way_in,
            )
        from .embedded import open_supervisor

        return open_supervisor()

    async def _run_at(self, client: Client) -> int:
        options = self._options
        env = dict(options.env)
        if options.tty and "TERM" in os.environ:
            env.setdefault("TERM", os.environ["TERM"])
        # Not for what is at its end from the start: not every server can pass that on.
        has_input = not options.tty and not stdin_is_null()
        start = client.open_process(
            options.argv,
            cwd=options.cwd,
            env=env,
            env_policy=INHERIT_ALL,
            tty=options.tty,
            pipe_stdin=has_input,
            size=terminal_size() if options.tty else None,
            lossless=True,
        )
        async with start as process, open_background(outlast_cancel=True) as nursery:
            self._process = process
            if has_input:
                nursery.start_soon(self._feed_pipe, process)
            if not options.tty:
                return await self._print(process)
            with RawTerminal() as terminal:
                nursery.start_soon(self._feed_terminal, process)
                nursery.start_soon(self._follow_terminal, process, terminal)
                return await self._print(process)

    async def _print(self, process: RemoteProcess) -> int:
        code = DAEMON_FAILED
        with trio.CancelScope() as drain:
            try:
                async for event in process.events():
                    match event:
                        case Output(stream=stream, data=data):
                            await write_out(STDERR if stream == "stderr" else STDOUT, data)
                        case Exited(exit_code=code):
                            if self._options.tty:
                                drain.deadline = trio.current_time() + TERMINAL_DRAIN_S
                        case Lost(first_seq=first, seq=last):
                            await _complain(f"output is lost: events {first} to {last}")
                        case _:
                            pass
            except BrokenPipeError:
                # What the shell says of a program whose reader went away.
                return 128 + signal.SIGPIPE
            except OSError as error:
                await _complain(f"cannot write the output: {error.strerror}")
                return DAEMON_FAILED
        if code < 0:
            await _complain("the daemon does not know how the command ended")
            return DAEMON_FAILED
        return code

    async def _forward_signals(self, signals: AsyncIterator[int], nursery: trio.Nursery) -> None:
        async for number in signals:
            process = self._process
            # With no process yet, or only what it has left behind, there is nothing else to stop than us.
            if process is None or process.exit_code is not None or self._unanswered >= MAX_UNANSWERED:
                self._stopped_by = number
                self._scope.cancel()
            else:
                nursery.start_soon(self._forward_signal, process, _FORWARDED[signal.Signals(number)])

    async def _forward_signal(self, process: RemoteProcess, name: SignalName) -> None:
        self._unanswered += 1
        with suppress(TsuperviseError):
            try:
                await process.signal(name)
            except NotSupported:
                await process.terminate()
        self._unanswered -= 1

    async def _feed_pipe(self, process: RemoteProcess) -> None:
        with suppress(TsuperviseError):
            while data := await read_stdin():
                await process.write(data)
            try:
                await process.close_stdin()
            except NotSupported as error:
                await _complain(f"the command does not see the end of its input: {error}")

    async def _feed_terminal(self, process: RemoteProcess) -> None:
        at_line_start = True
        with suppress(TsuperviseError):
            while data := await read_stdin():
                at_line_start = data.endswith(b"\n")
                await process.write(data)
            # In the middle of a line the first one only hands over what there is of it.
            await process.write(_EOF if at_line_start else _EOF + _EOF)

    async def _follow_terminal(self, process: RemoteProcess, terminal: RawTerminal) -> None:
        with trio.open_signal_receiver(signal.SIGWINCH, signal.SIGCONT) as signals:
            async for number in signals:
                if number == signal.SIGCONT:
                    terminal.enter()
                if (size := terminal_size()) is not None:
                    with suppress(TsuperviseError):
                        await process.resize(*size)


async def _complain(text: str) -> None:
    with suppress(OSError):
        await write_out(STDERR, f"tsupervise: {text}\n".encode(errors="backslashreplace"))


def _exit_code_of(error: Exception) -> int:
    """What a shell would say: the command was not found, or could not be executed, or it is our own fault."""
    match = _OS_ERROR.search(error.message) if isinstance(error, ServerRefused) else None
    if match is None or not isinstance(error, ServerRefused) or error.method != "process/start":
        return DAEMON_FAILED
    return NOT_FOUND if int(match[1]) == 2 else CANNOT_EXECUTE
