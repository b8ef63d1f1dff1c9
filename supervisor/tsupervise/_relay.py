"""What passes between a process at a server and this program's own input, output, signals and terminal.

For the commands that put a process before a person: `exec`, `attach`, `logs`. The tasks in here stay silent
about errors of their own calls: whatever ends a connection or a process ends the stream of events as well,
and whoever prints that reports it.
"""

from __future__ import annotations

import math
import signal
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import suppress

import trio

from tsupervise_protocol.messages import SignalName, Stream

from ._process_handle import ProcessHandle
from ._terminal import (
    STDERR,
    STDOUT,
    HeldTerminal,
    read_stdin,
    stderr_is_terminal,
    stderr_line_end,
    terminal_size,
    write_out,
)
from .client import Client
from .errors import NotSupported, StdinClosed, TsuperviseError
from .events import Event, Exited, Lost, Output

FAILED = 125
"""The exit code for a failure that is not the command's own."""

TIMED_OUT = 124
"""The exit code for a command whose time was over, as of timeout(1)."""

TERMINAL_DRAIN_S = 0.25
"""On a terminal: how long output may follow the exit. Background jobs may hold the terminal for ever, and
the user's own is of no use until this command ends."""

MAX_UNANSWERED = 2
"""Signals that may wait for the server's answer; one more ends this command, for the server is stuck."""

MAX_TYPED_BYTES = 1 << 20
"""What is typed or pasted ahead of a process that takes none of it, before nothing more is read."""

LEAVE_S = 1.0
"""How long what was typed may take to go out once the keys to leave are pressed."""

OUTAGE_S = 2.0
"""A connection that comes back sooner is not worth a word."""


class OutputFailed(Exception):
    """What a command has to say cannot be written.

    Args:
        error: why.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write the output: {error.strerror}")
        self.has_no_reader = isinstance(error, BrokenPipeError)
        """Whether nobody is there to read it, as behind `head`."""


async def say(data: bytes, stream: Stream = "stdout") -> None:
    """Write to our stdout, or to stderr for what is of that stream.

    Raises:
        OutputFailed: it cannot be written.
    """
    try:
        await write_out(STDERR if stream == "stderr" else STDOUT, data)
    except OSError as error:
        raise OutputFailed(error) from None


async def complain(text: str, *, mid_line: bool = False) -> None:
    """Tell the person something, on stderr, in one line; say nothing if that cannot be.

    Args:
        text: what to say.
        mid_line: whether output may have left a terminal in the middle of a line.
    """
    end = stderr_line_end()
    line = f"tsupervise: {' '.join(text.splitlines())}{end}"
    if mid_line and stderr_is_terminal():
        line = end + line
    with suppress(OSError):
        await write_out(STDERR, line.encode(errors="backslashreplace"))


# --- from the process --------------------------------------------------------------------------------


async def print_event(event: Event) -> None:
    """Write output to where it belongs; tell of output that is lost.

    Raises:
        OutputFailed: it cannot be written.
    """
    match event:
        case Output(stream=stream, data=data):
            await say(data, stream)
        case Lost(first_seq=first, seq=last):
            await complain(f"output is lost: events {first} to {last}")
        case _:
            pass


async def print_events(events: AsyncIterable[Event], *, drain_s: float = math.inf) -> int:
    """Print output as it comes, each stream to its own, until the process is closed.

    Args:
        events: of the process.
        drain_s: how long to go on after the exit, for output that others hold open.

    Returns:
        The exit code for this program: that of the process, as a rule.

    Raises:
        OutputFailed: it cannot be written.
    """
    code = -1
    with trio.CancelScope() as drain:
        async for event in events:
            await print_event(event)
            if isinstance(event, Exited):
                code = TIMED_OUT if event.reason == "timeout" else event.exit_code
                drain.deadline = trio.current_time() + drain_s
    if code < 0:
        await complain("the daemon does not know how the command ended")
        return FAILED
    return code


# --- to the process ----------------------------------------------------------------------------------


async def feed(process: ProcessHandle) -> None:
    """Pass stdin, which is no terminal, on to a process, and its end."""
    with suppress(TsuperviseError):
        while data := await read_stdin():
            await process.stdin.send_all(data)
        try:
            await process.stdin.aclose()
        except NotSupported as error:
            await complain(f"the command does not see the end of its input: {error}")


class Keyboard:
    """What a person types at this program's terminal, on its way to a process.

    It is read, up to a bound, whether or not the process takes it, so that the keys that leave always work.

    Args:
        look: takes what was typed; returns what is for the process, and whether the keys to leave were in it.
        refusal: what to say, once, when a process takes no input; nothing if None.
    """

    def __init__(self, look: Callable[[bytes], tuple[bytes, bool]], refusal: str | None = None) -> None:
        self._look = look
        self._refusal = refusal
        self._typed = bytearray()
        self._is_over = False
        self._changed = trio.lowlevel.ParkingLot()

    async def pass_on(self, process: ProcessHandle) -> bool:
        """Pass on what is typed until the input ends or the keys to leave are pressed; return whether those were.

        A terminal may go on after the end of its input, and then this may be called again.
        """
        self._is_over = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, process)
            leaves = await self._read()
            if leaves:
                # What was typed before them still goes out, if it can.
                nursery.cancel_scope.deadline = trio.current_time() + LEAVE_S
        return leaves

    async def _read(self) -> bool:
        leaves = False
        while not leaves and (data := await read_stdin()):
            data, leaves = self._look(data)
            self._typed += data
            self._changed.unpark_all()
            while len(self._typed) >= MAX_TYPED_BYTES:
                await self._changed.park()
        self._is_over = True
        self._changed.unpark_all()
        return leaves

    async def _write(self, process: ProcessHandle) -> None:
        while self._typed or not self._is_over:
            if not self._typed:
                await self._changed.park()
                continue
            data = bytes(self._typed)
            self._typed.clear()
            self._changed.unpark_all()
            try:
                await process.write(data)
            except StdinClosed:
                if self._refusal is not None:
                    await complain(self._refusal)
                    self._refusal = None
            except TsuperviseError:
                pass


async def follow_terminal(terminal: HeldTerminal, process: ProcessHandle | None) -> None:
    """Hold our terminal in its mode, and give a process's terminal, if there is one, the size of ours, for ever."""
    with trio.open_signal_receiver(signal.SIGWINCH, signal.SIGCONT) as signals:
        async for number in signals:
            if number == signal.SIGCONT:
                terminal.enter()
            if process is not None:
                await send_size(process)


async def send_size(process: ProcessHandle) -> None:
    """Give a process's terminal the size of ours."""
    if (size := terminal_size()) is not None:
        with suppress(TsuperviseError):
            await process.resize(*size)


class SignalRelay:
    """Signals to this program, passed on to a process.

    Args:
        passed_on: which, and as what. Any other, and one that nothing is there for or that nobody answers,
            stops this program.
        scope: cancelled to stop this program.
    """

    def __init__(self, passed_on: Mapping[signal.Signals, SignalName], scope: trio.CancelScope) -> None:
        self._passed_on = passed_on
        self._scope = scope
        self._unanswered = 0
        self.process: ProcessHandle | None = None
        """Set once there is one."""
        self.stopped_by = 0
        """The signal that has stopped this program."""

    async def run(self, signals: AsyncIterator[int], nursery: trio.Nursery) -> None:
        """Pass signals on for ever.

        Args:
            signals: of `trio.open_signal_receiver`.
            nursery: for the calls, lest one that is not answered hold up the next.
        """
        async for number in signals:
            name = self._passed_on.get(signal.Signals(number))
            # With no process yet, or only what it has left behind, there is nothing else to stop than us.
            if (
                name is None
                or self.process is None
                or self.process.exit_code is not None
                or self._unanswered >= MAX_UNANSWERED
            ):
                self.stop(number)
            else:
                nursery.start_soon(self._send, self.process, name)

    def stop(self, number: int) -> None:
        """Stop this program as that signal does."""
        self.stopped_by = number
        self._scope.cancel()

    async def _send(self, process: ProcessHandle, name: SignalName) -> None:
        self._unanswered += 1
        with suppress(TsuperviseError):
            try:
                await process.signal(name)
            except NotSupported:
                await process.terminate()
        self._unanswered -= 1


# --- the connection between them ---------------------------------------------------------------------


class Outage:
    """Tells the person when a lost connection takes long to come back, and when it is back.

    Args:
        client: whose connection.
        way_out: what to do for those who do not want to wait.
    """

    def __init__(self, client: Client, way_out: str) -> None:
        self._client = client
        self._way_out = way_out
        self.is_told = False
        """Whether there is one, and the person knows."""

    async def watch(self) -> None:
        """Until the client has failed for good; whoever uses it then says so."""
        while not self._client.is_lost:
            await self._client.wait_connected(False)
            with trio.move_on_after(OUTAGE_S):
                await self._client.wait_connected(True)
                continue
            self.is_told = True
            await complain(
                f"the connection to the daemon is lost, trying to come back; {self._way_out}", mid_line=True
            )
            await self._client.wait_connected(True)
            self.is_told = False
            if not self._client.is_lost:
                await complain("the connection is back", mid_line=True)
