"""The terminal that this program itself runs on: its modes, its size, and reads that do not block the loop."""

from __future__ import annotations

import errno
import os
import select
import stat
import termios
import tty
from abc import ABC, abstractmethod
from contextlib import suppress

import trio

STDIN, STDOUT, STDERR = 0, 1, 2

READ_BYTES = 65536

SCREEN_RESET = (
    b"\x1b[?1047l\x1b[?25h\x1b[?2004l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1l\x1b>\x1b[m"
)
"""What a full-screen program that is left alone cannot undo, and what does nothing where there is nothing to undo:
xterm's sequences for the alternate screen, a hidden cursor, bracketed paste, the mouse, the keypad, colours."""

_INPUT_FLAGS, _OUTPUT_FLAGS, _CHARACTERS = 0, 1, 6
"""Where termios.tcgetattr has them."""

_NO_CHARACTER = b"\0"
"""_POSIX_VDISABLE of Linux: no key has this meaning."""


class HeldTerminal(ABC):
    """A mode of stdin for the length of a `with` block, put back as it was however the block ends.

    It does nothing where stdin is no terminal.
    """

    def __init__(self) -> None:
        self._saved = termios.tcgetattr(STDIN) if os.isatty(STDIN) else None

    def __enter__(self) -> HeldTerminal:
        self.enter()
        return self

    def enter(self) -> None:
        """Set the mode; again, after whoever stopped and continued this program has reset the terminal."""
        # The terminal may be gone by now, and then there is nothing to set.
        with suppress(termios.error):
            if self._saved is not None:
                self._set_mode()

    @abstractmethod
    def _set_mode(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        with suppress(termios.error):
            if self._saved is not None:
                termios.tcsetattr(STDIN, termios.TCSADRAIN, self._saved)


class RawTerminal(HeldTerminal):
    """Every key as it is, at once: for a process that has a terminal of its own to interpret them."""

    def _set_mode(self) -> None:
        tty.setraw(STDIN, termios.TCSADRAIN)


class LineTerminal(HeldTerminal):
    """Lines, edited and echoed by the terminal as ever, but for some keys, which mean nothing to it.

    Args:
        keys: their bytes. The last of them hands over what there is of the line, as Enter does, so that
            whoever looks for the keys need not wait for Enter.
    """

    def __init__(self, keys: bytes) -> None:
        super().__init__()
        self._keys = keys

    def _set_mode(self) -> None:
        mode = termios.tcgetattr(STDIN)
        # Flow control would take Ctrl-S and Ctrl-Q for itself.
        mode[_INPUT_FLAGS] &= ~termios.IXON
        characters = mode[_CHARACTERS]
        keys = [bytes([key]) for key in self._keys]
        for place, character in enumerate(characters):
            # These two are numbers, though not in this mode.
            if place not in (termios.VMIN, termios.VTIME) and character in keys:
                characters[place] = _NO_CHARACTER
        characters[termios.VEOL] = self._keys[-1:]
        termios.tcsetattr(STDIN, termios.TCSADRAIN, mode)


def hold_closed_descriptors() -> None:
    """Put something in the place of 0, 1 and 2 where these are closed, lest a socket of ours get such a number.

    Input is at its end then, and a write fails as it does without: with EBADF.
    """
    while (fd := os.open(os.devnull, os.O_RDONLY)) <= STDERR:
        pass
    os.close(fd)


def stdin_is_null() -> bool:
    """Whether stdin is /dev/null."""
    stdin = os.fstat(STDIN)
    return stat.S_ISCHR(stdin.st_mode) and stdin.st_rdev == os.stat(os.devnull).st_rdev


def stdout_is_terminal() -> bool:
    """Whether output is read on a terminal."""
    return os.isatty(STDOUT)


def stderr_is_terminal() -> bool:
    """Whether complaints are."""
    return os.isatty(STDERR)


def stderr_line_end() -> str:
    """What ends a line there: a terminal in raw mode does not go back to the left by itself."""
    try:
        return "\n" if termios.tcgetattr(STDERR)[_OUTPUT_FLAGS] & termios.OPOST else "\r\n"
    except termios.error:
        return "\n"


def stdin_is_terminal() -> bool:
    """Whether somebody types."""
    return os.isatty(STDIN)


def terminal_size() -> tuple[int, int] | None:
    """Rows and columns of the terminal that this program runs on, if it runs on one and that has a size."""
    for fd in (STDIN, STDOUT, STDERR):
        try:
            size = os.get_terminal_size(fd)
        except OSError:
            continue
        if size.lines and size.columns:
            return size.lines, size.columns
    return None


def terminal_is_out_of_reach() -> bool:
    """Whether stdin is a terminal that ends though nobody has ended its input: its window is closed, or another
    program is in the foreground."""
    try:
        return os.tcgetpgrp(STDIN) != os.getpgrp()
    except OSError as error:
        return error.errno == errno.EIO


async def read_stdin() -> bytes:
    """Wait for input; b"" at its end. The descriptor is shared with others, so that it stays blocking."""
    try:
        await trio.lowlevel.wait_readable(STDIN)
    except OSError as error:
        if error.errno != errno.EPERM:
            return b""
        # A regular file cannot be waited for. A slow one (a network's) must not stop the loop.
        return await trio.to_thread.run_sync(_read_stdin_now, abandon_on_cancel=True)
    return _read_stdin_now()


def _read_stdin_now() -> bytes:
    # A terminal that has hung up answers EIO.
    try:
        return os.read(STDIN, READ_BYTES)
    except OSError:
        return b""


async def write_out(fd: int, data: bytes) -> None:
    """Write all of `data` to stdout or stderr. In a thread: whoever reads it may be slow, or stopped.

    Raises:
        BrokenPipeError: nobody will ever read it.
        OSError: it cannot be written.
    """
    await trio.to_thread.run_sync(_write_all, fd, data, abandon_on_cancel=True)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            # Somebody who shares it has made it non-blocking.
            select.select([], [fd], [])
