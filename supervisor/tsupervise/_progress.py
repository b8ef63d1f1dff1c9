"""How far something has come, on one line of a terminal: with `rich` where it is installed, plain everywhere else.

Where stderr is no terminal there is nothing to see. The line is written by a thread, like all that is written
there: a terminal may be stopped.
"""

from __future__ import annotations

from contextlib import suppress

import trio

from ._brief_commands import size_text
from ._relay import complain
from ._table import printable
from ._terminal import STDERR, stderr_is_terminal, terminal_size, write_out

DRAWN_EVERY_S = 0.1

_CLEAR = b"\r\x1b[K"


class Progress:
    """The line for one file after the other."""

    def __init__(self) -> None:
        self.name: str | None = None
        """What is under way, as a person would say it; None for nothing."""
        self.done = 0
        """bytes"""
        self.total: int | None = None
        self._is_shown = stderr_is_terminal()
        self._is_drawn = False
        self._began = self._drawn = 0.0

    def begin(self, name: str, total: int | None) -> None:
        """Begin with a file, perhaps once more.

        Args:
            name: of it.
            total: how many bytes there are; None if that is not known.
        """
        self.name, self.done, self.total = name, 0, total
        self._began = trio.current_time()

    def end(self) -> None:
        """That file is done."""
        self.name = None

    async def reach(self, done: int) -> None:
        """So many bytes are done by now."""
        self.done = done
        now = trio.current_time()
        if self._is_shown and now - self._drawn >= DRAWN_EVERY_S:
            # That nothing is done yet holds up no better news.
            self._drawn = now if done else 0.0
            self._is_drawn = True
            await _write(_CLEAR + self._line(now - self._began).encode(errors="backslashreplace"))

    async def clear(self) -> None:
        """Leave the line empty, for something else."""
        if self._is_drawn:
            self._is_drawn = False
            await _write(_CLEAR)

    async def complain(self, text: str) -> None:
        """Tell the person something in between."""
        await self.clear()
        await complain(text)

    def so_far(self) -> str:
        """How much is done, in words."""
        done = size_text(self.done)
        return done if self.total is None else f"{done} of {size_text(self.total)}"

    def _line(self, seconds: float) -> str:
        _, width = terminal_size() or (24, 80)
        name = printable(self.name or "")
        rate = f"{size_text(self.done / seconds)}/s" if seconds >= 1 else ""
        if self.total:
            with suppress(ImportError):
                return _rich_line(name, self.done, self.total, f"{self.so_far()}  {rate}", width - 1)
        share = f"{min(100, 100 * self.done // self.total)}%  " if self.total else ""
        return _plain_line(name, f"{share}{self.so_far()}  {rate}", width - 1)


def _plain_line(name: str, figures: str, width: int) -> str:
    room = max(width - len(figures) - 2, 0)
    return f"{name[-room:] if room else ''}  {figures}"[:width]


def _rich_line(name: str, done: int, total: int, figures: str, width: int) -> str:
    from rich.console import Console
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    line = Table.grid(padding=(0, 1), expand=True)
    line.add_column(ratio=2, no_wrap=True, overflow="ellipsis")
    line.add_column(ratio=1)
    line.add_column(no_wrap=True)
    line.add_row(Text(name), ProgressBar(total=total, completed=done), Text(figures))
    console = Console(width=width, force_terminal=True, stderr=True)
    with console.capture() as captured:
        console.print(line, end="")
    return captured.get().splitlines()[0]


async def _write(data: bytes) -> None:
    with suppress(OSError):
        await write_out(STDERR, data)
