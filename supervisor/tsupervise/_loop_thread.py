"""A trio loop in a thread of its own, which holds one thing open and lets other threads call into it.

A call is a task in that loop, and the thread that called waits for its outcome: it can cancel it, and the
end of the loop ends it. The thread is a daemon, so that it never keeps the interpreter from ending; what
is open then is closed at exit, within `EXIT_S`.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractAsyncContextManager, suppress
from math import inf
from time import monotonic
from types import TracebackType
from typing import Any, Generic, TypeVar, final

import trio

from .errors import ConnectionLost

logger = logging.getLogger(__name__)

EXIT_S = 8.0
"""How long the exit of the interpreter waits for all clients that were not closed, in seconds: the time that
an open process has to end, and some."""

LOOK_S = 0.25
"""How often a thread that waits looks for signals, in seconds. The wait for a lock ends at a signal only if it has
begun before the signal comes, in the main thread itself; else Ctrl-C would be forgotten until the next one."""

T = TypeVar("T")
R = TypeVar("R")


@final
class _Call(Generic[R]):
    """A call from its thread's point of view (`outcome`) and from the loop's (`scope`)."""

    def __init__(self, function: Callable[[], Awaitable[R]], timeout: float | None) -> None:
        self.function = function
        self.timeout = timeout
        self.scope = trio.CancelScope()
        self.has_begun = False
        self.outcome: Future[R] = Future()

    def fail(self, error: BaseException) -> None:
        """Hand an error to the thread that waits, unless it has an outcome already."""
        with suppress(InvalidStateError):
            self.outcome.set_exception(error)

    async def run(self) -> None:
        """Run the call in the loop; its errors go to the thread that waits and nowhere else."""
        if self.timeout is not None:
            self.scope.deadline = trio.current_time() + self.timeout
        try:
            with self.scope:
                result = await self.function()
                self.outcome.set_result(result)
        except Exception as error:
            self.fail(error)
        finally:
            # Neither a result nor an error: its own scope was cancelled, or the loop's.
            self.fail(_too_late(self.timeout) if self.scope.cancelled_caught else _closed())


def _wait_for(future: Future[Any]) -> None:
    """Wait until a future is done, and let a signal interrupt it that no lock wakes up for."""
    while not future.done():
        with suppress(TimeoutError):
            future.exception(LOOK_S)


def _result_of(future: Future[R]) -> R:
    _wait_for(future)
    return future.result()


def _too_late(timeout: float | None) -> TimeoutError:
    return TimeoutError(f"not done within {timeout:g} s" if timeout is not None else "cancelled")


def _closed() -> ConnectionLost:
    return ConnectionLost("this client is closed; connect again")


@final
class LoopThread(Generic[T]):
    """See the module.

    Args:
        open_value: opens what the loop holds, `value`; it is closed last, after every call and block.
        timeout: seconds that opening it may take.

    Raises:
        TimeoutError: that was not enough.
        Exception: whatever opening it raises.
    """

    def __init__(
        self, open_value: Callable[[], AbstractAsyncContextManager[T]], timeout: float | None
    ) -> None:
        self._open_value = open_value
        self._timeout = timeout
        self._pid = os.getpid()
        self._opening = trio.CancelScope()
        self._tasks: trio.Nursery | None = None
        self._calls: set[_Call[Any]] = set()
        self._token: Future[trio.lowlevel.TrioToken] = Future()
        self._opened: Future[T] = Future()
        self._ended: Future[None] = Future()
        self._thread = threading.Thread(target=self._run_loop, name="tsupervise.sync", daemon=True)
        _running.add(self)
        try:
            self._thread.start()
        except BaseException:
            _running.discard(self)
            raise
        try:
            self.value = _result_of(self._opened)
        except BaseException:
            self.stop()
            raise

    # --- what other threads do -----------------------------------------------------------------------

    def call(self, function: Callable[[], Awaitable[R]], timeout: float | None = None) -> R:
        """Run an async function in the loop and wait for its outcome.

        Whatever interrupts the wait, such as Ctrl-C, cancels the function and goes on once it has ended;
        a second Ctrl-C does not wait for that.

        Raises:
            TimeoutError: it was not done within `timeout` seconds, and was cancelled.
            ConnectionLost: the loop has ended, or ends meanwhile.
            Exception: whatever the function raises.
        """
        if os.getpid() != self._pid:
            raise ConnectionLost("this client was opened before a fork, by another process; connect again")
        if threading.get_ident() == self._thread.ident:
            raise RuntimeError("the thread that serves this client cannot wait for itself")
        call = _Call(function, timeout)
        self._calls.add(call)
        try:
            self._post(self._begin, call)
            return _result_of(call.outcome)
        except BaseException:
            if not call.outcome.done():
                with suppress(ConnectionLost):
                    self._post(self._cancel, call)
                    _wait_for(call.outcome)
            raise
        finally:
            self._calls.discard(call)

    def hold(
        self,
        open_value: Callable[[], AbstractAsyncContextManager[R]],
        timeout: float | None = None,
    ) -> Held[R]:
        """Hold one more thing open, from the beginning to the end of a `with` block."""
        return Held(self, open_value, timeout)

    def stop(self) -> None:
        """Let the loop end, without waiting for it. Safe at any time, from any thread, more than once."""
        if os.getpid() == self._pid:
            with suppress(ConnectionLost):
                self._post(self._stop)

    def close(self) -> None:
        """End the loop and wait until all that it held is closed. A forked process has nothing to close."""
        self.stop()
        if os.getpid() == self._pid:
            _result_of(self._ended)

    def join(self, timeout: float) -> None:
        """Wait for the end of the thread, at most so many seconds."""
        self._thread.join(timeout)

    def _post(self, function: Callable[..., object], *args: object) -> None:
        try:
            self._token.result().run_sync_soon(function, *args)
        except trio.RunFinishedError:
            raise _closed() from None

    # --- what the loop does --------------------------------------------------------------------------

    def _run_loop(self) -> None:
        error: BaseException | None = None
        try:
            trio.run(self._hold_open)
        except BaseException as failure:
            error = failure
            if self._opened.done():
                logger.exception("the loop of a client failed")
        finally:
            for waited_for in (self._token, self._opened):
                if not waited_for.done():
                    waited_for.set_exception(error or self._not_opened())
            for call in list(self._calls):
                call.fail(_closed())
            _running.discard(self)
            self._ended.set_result(None)

    async def _hold_open(self) -> None:
        self._token.set_result(trio.lowlevel.current_trio_token())
        if self._timeout is not None:
            self._opening.deadline = trio.current_time() + self._timeout
        with self._opening:
            async with self._open_value() as value, trio.open_nursery() as self._tasks:
                self._opening.deadline = inf
                self._opened.set_result(value)
                await trio.sleep_forever()

    def _not_opened(self) -> Exception:
        return _too_late(self._timeout) if self._opening.cancelled_caught else _closed()

    def _begin(self, call: _Call[Any]) -> None:
        assert self._tasks is not None, "there are no calls before"
        call.has_begun = True
        if self._tasks.cancel_scope.cancel_called:
            call.fail(_closed())
            return
        try:
            self._tasks.start_soon(call.run)
        except RuntimeError:
            # What the loop held has ended by itself, and so have all tasks.
            call.fail(_closed())

    def _cancel(self, call: _Call[Any]) -> None:
        if call.has_begun:
            call.scope.cancel()
        else:
            # Its thread was interrupted before it could ask.
            call.fail(_too_late(None))

    def _stop(self) -> None:
        if self._tasks is None:
            self._opening.cancel()
        else:
            # Calls and blocks end before what all of them need, which is then closed in peace.
            self._tasks.cancel_scope.cancel()

    async def start_holding(self, held: Held[R]) -> R:
        """Start the task of a block; return what it has opened."""
        assert self._tasks is not None, "there are no calls before"
        value: R = await self._tasks.start(held.run)
        return value


@final
class Held(Generic[R]):
    """A `with` block of some thread around something that a task of the loop holds open."""

    def __init__(
        self,
        loop: LoopThread[Any],
        open_value: Callable[[], AbstractAsyncContextManager[R]],
        timeout: float | None,
    ) -> None:
        self._loop = loop
        self._open_value = open_value
        self._timeout = timeout
        self._released = trio.Event()
        self._ended = trio.Event()
        self._error: Exception | None = None

    def __enter__(self) -> R:
        return self._loop.call(lambda: self._loop.start_holding(self), self._timeout)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # The end of the loop has ended it as well, and a forked process has no part in it.
        with suppress(ConnectionLost):
            self._loop.call(self._release)

    async def _release(self) -> None:
        self._released.set()
        await self._ended.wait()
        if self._error is not None:
            raise self._error

    async def run(self, task_status: trio.TaskStatus[R]) -> None:
        """Open it, hold it until it is released, and close it."""
        is_open = False
        try:
            async with self._open_value() as value:
                task_status.started(value)
                is_open = True
                await self._released.wait()
        except Exception as error:
            if not is_open:
                raise
            self._error = error
        finally:
            self._ended.set()


_running: set[LoopThread[Any]] = set()


@atexit.register
def _close_all() -> None:  # pyright: ignore[reportUnusedFunction]
    """Close what was left open. Their threads still run while this is called."""
    left = list(_running)
    for loop in left:
        loop.stop()
    deadline = monotonic() + EXIT_S
    for loop in left:
        loop.join(max(0.0, deadline - monotonic()))
