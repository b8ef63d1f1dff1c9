"""`tsupervise exec`: one command at a server, or supervised in this process, as if it ran right here.

The tasks here feed stdin, pass on signals and follow the size of the terminal; the body prints events, and
its end is the end of all.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass

import trio

from tsupervise_protocol.messages import Limits, SignalName

from ._at_daemon import FAILURES, report
from ._background import open_background
from ._inherited import heeded
from ._process_streams import END_OF_INPUT
from ._relay import (
    FAILED,
    TERMINAL_DRAIN_S,
    Keyboard,
    Outage,
    SignalRelay,
    feed,
    follow_terminal,
    print_events,
)
from ._remote_process import RemoteProcess
from ._terminal import (
    RawTerminal,
    hold_closed_descriptors,
    stdin_is_null,
    stdin_is_terminal,
    terminal_size,
)
from ._way_in import WayIn
from .client import INHERIT_ALL, Client, connect
from .errors import TsuperviseError

_PASSED_ON: dict[signal.Signals, SignalName] = {
    signal.SIGINT: "interrupt",
    signal.SIGTERM: "terminate",
    signal.SIGHUP: "hangup",
    signal.SIGQUIT: "quit",
}

_INTERRUPT_KEY = b"\x03"


@dataclass(frozen=True, slots=True)
class ExecOptions:
    """What was asked for; `url` is None for supervision in this process, `env` is added, `recovery_s` is how long
    a lost connection may take to come back, `way_in` is for the door at that URL, and `timeout_s` is how long the
    command may take."""

    argv: Sequence[str]
    url: str | None
    tty: bool
    cwd: str | None
    env: Mapping[str, str]
    recovery_s: float
    way_in: WayIn
    timeout_s: float | None = None
    limits: Limits | None = None


def run_exec(options: ExecOptions) -> int:
    """Run the command and return the exit code for this process."""
    hold_closed_descriptors()
    return trio.run(_Exec(options).run)


class _Exec:
    def __init__(self, options: ExecOptions) -> None:
        self._options = options
        self._scope = trio.CancelScope()
        self._signals = SignalRelay(_PASSED_ON, self._scope)

    async def run(self) -> int:
        code = FAILED
        with self._scope, trio.open_signal_receiver(*heeded(_PASSED_ON)) as signals:
            async with open_background(outlast_cancel=True) as nursery:
                nursery.start_soon(self._signals.run, signals, nursery)
                try:
                    async with self._open_client() as client:
                        code = await self._run_at(client)
                except FAILURES as error:
                    code = await report(error)
        return 128 + self._signals.stopped_by if self._scope.cancelled_caught else code

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
        # Not for what is at its end from the start: not every server can pass that on.
        has_input = not options.tty and not stdin_is_null()
        start = client.open_process(
            options.argv,
            cwd=options.cwd,
            env=environment_of(options),
            env_policy=INHERIT_ALL,
            tty=options.tty,
            pipe_stdin=has_input,
            size=terminal_size() if options.tty else None,
            lossless=True,
            timeout_s=options.timeout_s,
            limits=options.limits,
        )
        async with start as process, open_background(outlast_cancel=True) as nursery:
            self._signals.process = process
            if has_input:
                nursery.start_soon(feed, process)
            if not options.tty:
                return await print_events(process.events())
            with RawTerminal() as terminal:
                if stdin_is_terminal():
                    nursery.start_soon(self._type, client, process, nursery)
                else:
                    nursery.start_soon(feed, process)
                nursery.start_soon(follow_terminal, terminal, process)
                return await print_events(process.events(), drain_s=TERMINAL_DRAIN_S)

    async def _type(self, client: Client, process: RemoteProcess, nursery: trio.Nursery) -> None:
        outage = Outage(client, "press Ctrl-C to give up")
        nursery.start_soon(outage.watch)
        keyboard = Keyboard(lambda typed: (typed, outage.is_told and _INTERRUPT_KEY in typed))
        if await keyboard.pass_on(process):
            # Else the end of the process would be waited for, which nobody can be told of.
            client.give_up("given up")
            self._signals.stop(signal.SIGINT)
        else:
            # The terminal is gone, and so is that of the command.
            with suppress(TsuperviseError):
                await process.write(END_OF_INPUT)


def environment_of(options: ExecOptions) -> dict[str, str]:
    """What is added to the environment of the command; TERM as well, where it gets a terminal."""
    env = dict(options.env)
    if options.tty and "TERM" in os.environ:
        env.setdefault("TERM", os.environ["TERM"])
    return env
