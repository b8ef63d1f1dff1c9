"""What is typed, on its way to a process that may not take it."""

from __future__ import annotations

from typing import cast

import pytest
import trio
import trio.testing

import tsupervise._relay
from tsupervise._process_handle import ProcessHandle
from tsupervise._relay import MAX_TYPED_BYTES, Keyboard
from tsupervise.errors import StdinClosed

PATIENCE_S = 20.0


class Terminal:
    """Stands in for our stdin: each piece that is typed is one read."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[bytes](64)

    async def type(self, *pieces: bytes) -> None:
        """Type, and wait until as much of it is read as ever will be."""
        for piece in pieces:
            await self._send.send(piece)
            await trio.testing.wait_all_tasks_blocked()

    async def read(self) -> bytes:
        return await self._receive.receive()

    @property
    def unread(self) -> int:
        return self._receive.statistics().current_buffer_used


class Process:
    """Takes what is written while `takes`; says that it takes no input once `is_closed`."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.takes = trio.Event()
        self.is_closed = False

    async def write(self, data: bytes) -> None:
        await self.takes.wait()
        if self.is_closed:
            raise StdinClosed("p", "it is closed")
        self.taken.append(data)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    terminal = Terminal()
    monkeypatch.setattr(tsupervise._relay, "read_stdin", terminal.read)
    return terminal


def leave_at_q(typed: bytes) -> tuple[bytes, bool]:
    before, found, _ = typed.partition(b"q")
    return before, bool(found)


async def test_the_keys_to_leave_work_while_the_process_takes_nothing(
    terminal: Terminal, autojump_clock: trio.testing.MockClock
) -> None:
    """Whatever was typed before them; it is given a moment to go out, and then left behind."""
    process = Process()
    left: list[bool] = []

    async def attend() -> None:
        left.append(await Keyboard(leave_at_q).pass_on(cast("ProcessHandle", process)))

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attend)
            await terminal.type(b"a", b"b", b"cq")
    assert left == [True]
    assert process.taken == []


async def test_what_was_typed_before_the_keys_goes_out_in_order(terminal: Terminal) -> None:
    """And all at once, where it had to wait; nothing after the keys does."""
    process = Process()
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Keyboard(leave_at_q).pass_on, cast("ProcessHandle", process))
            await terminal.type(b"a", b"b", b"c")
            process.takes.set()
            await trio.testing.wait_all_tasks_blocked()
            await terminal.type(b"dqx")
    assert process.taken == [b"a", b"bc", b"d"]


async def test_too_much_that_is_typed_ahead_is_left_unread(terminal: Terminal) -> None:
    """Up to a bound it is kept for a process that takes nothing; then reading waits for the process."""
    process = Process()
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Keyboard(leave_at_q).pass_on, cast("ProcessHandle", process))
            await terminal.type(b"first", b"x" * MAX_TYPED_BYTES, b"last")
            assert terminal.unread == 1
            process.takes.set()
            await terminal.type(b"q")
    assert [len(data) for data in process.taken] == [5, MAX_TYPED_BYTES, 4]


async def test_a_process_without_input_is_told_of_once(
    terminal: Terminal, capfd: pytest.CaptureFixture[str]
) -> None:
    """The keys to leave go on working; the end of the input may be followed by more."""
    process = Process()
    process.is_closed = True
    process.takes.set()
    keyboard = Keyboard(leave_at_q, "it takes no input")
    left: list[bool] = []

    async def attend() -> None:
        for _ in range(2):
            left.append(await keyboard.pass_on(cast("ProcessHandle", process)))

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attend)
            await terminal.type(b"one", b"two", b"", b"three", b"q")
    assert left == [False, True]
    assert capfd.readouterr().err == "tsupervise: it takes no input\n"
