"""`tsupervise attach`: a process that runs already, at the person's own terminal, until one of them leaves.

On a process with a terminal every key goes to it as it is. Without one, our terminal edits lines; Ctrl-C is
an interrupt and Ctrl-D the end of input. Either way some keys leave the process alone, and so does the end
of this program, however it comes.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from math import inf

import trio

from tsupervise_protocol.messages import SignalName

from ._at_daemon import find_process
from ._background import open_background
from ._detach_keys import DetachKeys, keys_text
from ._inherited import heeded
from ._observed_process import ObservedProcess
from ._recent_output import RecentEvents, Tail
from ._relay import (
    TERMINAL_DRAIN_S,
    Keyboard,
    Outage,
    SignalRelay,
    complain,
    feed,
    follow_terminal,
    print_events,
    say,
    send_size,
)
from ._terminal import (
    SCREEN_RESET,
    LineTerminal,
    RawTerminal,
    stdin_is_null,
    stdin_is_terminal,
    stdout_is_terminal,
    terminal_is_out_of_reach,
    terminal_size,
)
from .client import Client
from .errors import TsuperviseError

REPLAYED_BYTES = 65536
"""Recent output that is shown at the beginning, at most about so much: several screens full."""

REPLAYED_LINES = 24
"""And at most as many lines as the terminal has, or these."""

_PASSED_ON: dict[signal.Signals, SignalName] = {signal.SIGINT: "interrupt", signal.SIGQUIT: "quit"}
"""What keys send. Others are meant for this program."""

_HEEDED = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)


async def attach(client: Client, name: str, keys: bytes) -> int:
    """Attach to a process and return the exit code for this program.

    Args:
        client: at the daemon.
        name: of the process, or its uid.
        keys: what a person types to leave, see `_detach_keys`.
    """
    return await _Attachment(client, await find_process(client, name), keys).run()


class _Attachment:
    def __init__(self, client: Client, process: ObservedProcess, keys: bytes) -> None:
        self._process = process
        self._has_terminal = process.entry.tty
        self._keys = keys
        self._outage = Outage(client, f"press {keys_text(keys)} to leave")
        self._has_left = False
        self._scope = trio.CancelScope()
        self._signals = SignalRelay(_PASSED_ON, self._scope)
        self._signals.process = process

    async def run(self) -> int:
        terminal = RawTerminal() if self._has_terminal else LineTerminal(self._keys)
        with terminal, self._scope, trio.open_signal_receiver(*heeded(_HEEDED)) as signals:
            # Children of this nursery: what goes to the process. What comes from it is printed here.
            async with open_background(outlast_cancel=False) as nursery:
                nursery.start_soon(self._signals.run, signals, nursery)
                nursery.start_soon(self._outage.watch)
                nursery.start_soon(follow_terminal, terminal, self._process if self._has_terminal else None)
                await self._begin(nursery)
                return await self._print()
        if self._has_left:
            if self._has_terminal and stdout_is_terminal():
                await say(SCREEN_RESET)
            name, uid = self._process.process_id, self._process.uid
            text = f"left {name!r} running; `tsupervise attach {uid}` comes back to it"
            await complain(text, mid_line=self._has_terminal)
            return 0
        return 128 + self._signals.stopped_by

    async def _begin(self, nursery: trio.Nursery) -> None:
        """Tell how to leave, and begin to pass on what is typed."""
        if self._process.entry.state == "closed":
            return
        if stdin_is_terminal():
            name, uid = self._process.process_id, self._process.uid
            await complain(f"attached to {name!r} ({uid}); {keys_text(self._keys)} leaves it running")
            nursery.start_soon(self._type, nursery)
        elif not stdin_is_null():
            nursery.start_soon(feed, self._process)
        if self._has_terminal:
            nursery.start_soon(self._ask_for_all)

    async def _type(self, nursery: trio.Nursery) -> None:
        refusal = f"{self._process.process_id!r} takes no input, or none any more"
        keyboard = Keyboard(DetachKeys(self._keys).feed, refusal)
        while not await keyboard.pass_on(self._process):
            # A terminal in raw mode has no end of input but its own.
            if self._has_terminal or terminal_is_out_of_reach():
                return
            nursery.start_soon(self._end_input)
        self._has_left = True
        self._scope.cancel()

    async def _end_input(self) -> None:
        with suppress(TsuperviseError):
            await self._process.close_stdin()

    async def _ask_for_all(self) -> None:
        """Let a program that fills the screen draw it anew: it has another size now, or is told so."""
        await send_size(self._process)
        with suppress(TsuperviseError):
            await self._process.signal("winch")

    async def _print(self) -> int:
        size = terminal_size()
        tail = Tail(REPLAYED_LINES if size is None else size[0], REPLAYED_BYTES)
        events = RecentEvents(self._process, tail, follow=True)
        return await print_events(events, drain_s=TERMINAL_DRAIN_S if self._has_terminal else inf)
