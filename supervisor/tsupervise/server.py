"""The doors of the daemon: a WebSocket listener, or standard input and output; and its shutdown."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import trio

from ._background import open_background
from ._connection import Connection
from ._inherited import heeded
from ._listener import Listener, ListenOptions, open_listener
from ._settings import Settings
from ._spawn import open_low_descriptors, what_is_lacking
from ._stdio_channel import StdioChannel, read_blocking
from ._supervisor import Supervisor, open_supervisor_core

log = logging.getLogger(__name__)

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What one daemon does.

    Args:
        listen: where to listen and for whom, or `stdio`.
        settings: times and bounds.
        exit_on_stdin_close: when listening, whether the end of standard input ends the daemon.
    """

    listen: ListenOptions | Literal["stdio"]
    settings: Settings = field(default_factory=Settings)
    exit_on_stdin_close: bool = False


def serve_forever(options: ServerOptions) -> int:
    """Run a daemon until it is told to stop; returns its exit code.

    Prints the URL as the only line on standard output as soon as it can be connected to.

    Raises:
        CannotListen: the address is taken, or none of this machine's.
    """
    open_low_descriptors()
    if lacking := what_is_lacking():
        log.warning("this C library's posix_spawn is incomplete (glibc 2.34 has it all): %s", lacking)
    # Whoever started us may ignore it, and then no child could be waited for: the kernel would reap them.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return trio.run(_serve, options)


async def _serve(options: ServerOptions) -> int:
    code = 0
    with (
        trio.open_signal_receiver(*heeded(_STOP_SIGNALS)) as signals,
        nullcontext() if options.listen == "stdio" else open_listener(options.listen) as listener,
    ):
        # Children of this nursery: the watches that stop the daemon.
        async with open_background(outlast_cancel=False) as watches:
            serving = trio.CancelScope()
            if options.exit_on_stdin_close and options.listen != "stdio":
                watches.start_soon(_stop_on_stdin_end, serving)
            with serving:
                async with open_supervisor_core(options.settings) as supervisor:
                    watches.start_soon(_stop_on_signal, signals, serving, supervisor)
                    if listener is None:
                        code = await _serve_stdio(supervisor)
                    else:
                        await _serve_listener(supervisor, listener)
    return code


async def _stop_on_signal(
    signals: AsyncIterator[int], serving: trio.CancelScope, supervisor: Supervisor
) -> None:
    async for number in signals:
        if serving.cancel_called:
            log.warning("%s again: leaving at once", signal.Signals(number).name)
            supervisor.kill_all()
            os._exit(0)
        log.info("%s: stopping", signal.Signals(number).name)
        serving.cancel()


async def _stop_on_stdin_end(serving: trio.CancelScope) -> None:
    await trio.to_thread.run_sync(_read_to_end, abandon_on_cancel=True)
    log.info("standard input has ended: stopping")
    serving.cancel()


def _read_to_end() -> None:
    while read_blocking(0):
        pass


async def _serve_stdio(supervisor: Supervisor) -> int:
    connection = Connection(supervisor, StdioChannel())
    await connection.run()
    return 1 if connection.violated else 0


async def _serve_listener(supervisor: Supervisor, listener: Listener) -> None:
    supervisor.listen = listener.url
    print(listener.url, flush=True)
    log.info("listening at %s", listener.url)
    await listener.serve(supervisor)
