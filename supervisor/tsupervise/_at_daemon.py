"""A command at a daemon: which one, the connection to it, and what goes wrong, in one line and as an exit code."""

from __future__ import annotations

import errno
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from ._discovery import DiscoveryFailed, find_url
from ._observed_process import ObservedProcess, entry_named
from ._relay import FAILED, OutputFailed, complain
from ._terminal import hold_closed_descriptors
from ._way_in import WayIn
from .client import Client, connect
from .errors import ServerRefused, TsuperviseError, errno_of

CANNOT_EXECUTE = 126
NOT_FOUND = 127

FAREWELL_S = 0.5
"""How long the end of a command may take for the sake of tidiness; the connection may be gone."""

FAILURES = (TsuperviseError, DiscoveryFailed, OutputFailed, ValueError)
"""What `report` knows the words for."""


def run_at_daemon(
    url: str | None,
    way_in: WayIn,
    command: Callable[[Client], Awaitable[int]],
    *,
    client_name: str,
    leaves_session: bool = False,
) -> int:
    """Connect, run the command, and return the exit code for this program.

    Args:
        url: of the daemon; None for the one that this user has running.
        way_in: for its door.
        command: returns the exit code, and may raise any of `FAILURES`.
        client_name: what the daemon is told.
        leaves_session: whether there is something in the session of this command that is to live on.
    """
    hold_closed_descriptors()
    # There is nothing to clean up: whoever waits sees that we were interrupted, and no traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return trio.run(_run, url, way_in, command, client_name, leaves_session)


async def _run(
    url: str | None,
    way_in: WayIn,
    command: Callable[[Client], Awaitable[int]],
    client_name: str,
    leaves_session: bool,
) -> int:
    try:
        async with connect(url or find_url(), client_name=client_name, **way_in) as client:
            code = await command(client)
            if not leaves_session:
                # Nobody comes back to it, so the daemon need not keep it.
                with trio.move_on_after(FAREWELL_S), suppress(TsuperviseError):
                    await client.end_session()
            return code
    except FAILURES as error:
        return await report(error)


async def find_process(client: Client, name: str) -> ObservedProcess:
    """The process that a person means, in whatever session.

    Args:
        name: a uid, or the name of a process.

    Raises:
        NoSuchProcess: none is meant, or several are.
    """
    return ObservedProcess(client, entry_named(await client.processes(), name))


async def report(error: Exception) -> int:
    """Say what went wrong, one of `FAILURES`, and return the exit code that says it to programs."""
    match error:
        case OutputFailed(has_no_reader=True):
            # What the shell says of a program whose reader went away.
            return 128 + signal.SIGPIPE
        case UnicodeEncodeError(object=text):
            await complain(f"{text!r} is not UTF-8 and cannot be sent")
        case _:
            await complain(str(error))
    return _exit_code_of(error)


def _exit_code_of(error: Exception) -> int:
    """What a shell would say: the command was not found, or could not be executed, or it is our own fault."""
    if not isinstance(error, ServerRefused) or error.method != "process/start":
        return FAILED
    number = errno_of(error)
    return FAILED if number is None else NOT_FOUND if number == errno.ENOENT else CANNOT_EXECUTE
