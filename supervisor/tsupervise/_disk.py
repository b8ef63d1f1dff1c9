"""Blocking calls to file systems, in threads of their own; and what the system's errors are on the wire.

A call that hangs, on a mount whose server is gone, cannot be ended: not by us and not by a signal. So nobody
waits for it who does not want to. Cancelled, a caller goes on at once and leaves the call to its thread; what a
call uses must therefore belong to it, or be a `SharedFd`. A thread that is left behind ends with its call, or
with the daemon. Where a call has many steps it can ask between them whether its caller has gone, see
`trio.from_thread.check_cancelled`.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Generic, TypeVar

import trio

from tsupervise_protocol.errors import ErrorCode, RpcError
from tsupervise_protocol.messages import SandboxRequest
from tsupervise_protocol.path_uri import ForeignPathError, PathUriError, parse_file_uri

log = logging.getLogger(__name__)

_T = TypeVar("_T")

THREADS = 2
"""How many calls run at a time. More make nothing faster, and take turns with the loop."""

SLOW_S = 0.25
"""A call that has run for longer, in seconds, waits for something: it is not counted among these, and one more may
run. So of many calls that hang, as at a mount whose server is gone, twice as many are out of the way each time."""

MAX_THREADS = 64
"""How many calls run at a time, slow ones and all; then the others wait for one of them."""

_CODES = {
    errno.ENOENT: ErrorCode.NOT_FOUND,
    errno.EACCES: ErrorCode.INVALID_REQUEST,
    errno.EPERM: ErrorCode.INVALID_REQUEST,
    errno.EINVAL: ErrorCode.INVALID_REQUEST,
}
"""By class of error alone, whatever was tried; all others are INTERNAL_ERROR."""

_SHOWN_CHARACTERS = 200
"""How much of a path an error text repeats: its end, which tells most."""


class Disk:
    """The threads of one daemon that touch file systems.

    Args:
        nursery: outlives every caller; has at most one task of this.
        slow_s: see `SLOW_S`.
    """

    def __init__(self, nursery: trio.Nursery, slow_s: float = SLOW_S) -> None:
        self._nursery = nursery
        self._slow_s = slow_s
        self._limiter = trio.CapacityLimiter(THREADS)
        self._started: dict[object, float] = {}
        """When each call began that runs, the oldest first; threads write here."""
        self._is_relieving = False

    async def run(self, call: Callable[[], _T], undo: Callable[[_T], object] | None = None) -> _T:
        """Run a blocking call in a thread; cancelled, leave it behind there.

        Args:
            call: owns what it uses.
            undo: takes the result of a call that was left behind, to close it, say; called in a thread, once.

        Raises:
            RpcError: the call has raised it; or OSError, see `os_failure`.
        """
        work = _Work(self._started, call, undo)
        if self._limiter.available_tokens <= 0 and not self._is_relieving:
            self._is_relieving = True
            self._nursery.start_soon(self._relieve)
        try:
            return await trio.to_thread.run_sync(work.run, abandon_on_cancel=True, limiter=self._limiter)
        except OSError as error:
            raise os_failure(error) from None
        except trio.Cancelled:
            work.leave()
            raise
        finally:
            if self._limiter.total_tokens > THREADS:
                self._count()

    def run_alone(self, call: Callable[[], object]) -> None:
        """Run a call in a thread that nobody waits for and nothing limits: to close what is left at an end."""
        _run_alone(call)

    async def _relieve(self) -> None:
        """While calls wait for a thread, count those out that have become slow."""
        try:
            while True:
                changes_in_s = self._count()
                if not self._limiter.statistics().tasks_waiting:
                    return
                await trio.sleep(changes_in_s)
        finally:
            self._is_relieving = False

    def _count(self) -> float:
        """Set how many calls may run; return in how many seconds that may change by itself."""
        now = monotonic()
        left = [began + self._slow_s - now for began in list(self._started.values())]
        slow = sum(seconds <= 0 for seconds in left)
        self._limiter.total_tokens = min(THREADS + 2 * slow, MAX_THREADS)
        return min((seconds for seconds in left if seconds > 0), default=self._slow_s)


class _Work(Generic[_T]):
    """One call, and the question whose its result is."""

    __slots__ = ("_call", "_left", "_result", "_started", "_undo")

    def __init__(
        self, started: dict[object, float], call: Callable[[], _T], undo: Callable[[_T], object] | None
    ) -> None:
        self._started = started
        self._call = call
        self._undo = undo
        self._result: list[_T] = []
        self._left = False

    def run(self) -> _T:
        self._started[self] = monotonic()
        try:
            result = self._call()
        finally:
            del self._started[self]
        if self._undo is not None:
            self._result.append(result)
            if self._left:
                self._take_back()
        return result

    def leave(self) -> None:
        """The caller goes, whatever has become of the call."""
        self._left = True
        if self._result:
            _run_alone(self._take_back)

    def _take_back(self) -> None:
        # Thread and caller may both come here; only one of them finds the result.
        with suppress(IndexError):
            result = self._result.pop()
            assert self._undo is not None, "there is a result to take back"
            self._undo(result)


def _run_alone(call: Callable[[], object]) -> None:
    def run() -> None:
        try:
            call()
        except OSError as error:
            log.debug("what was left behind could not be closed: %s", error.strerror)
        except Exception:
            log.exception("a call that nobody waits for has failed")

    trio.lowlevel.start_thread_soon(run, lambda _: None)


class SharedFd:
    """A descriptor that calls in threads use: closed when it is given up and the last of them is through.

    So that a call which hangs, and was left behind, never finds another file under its number.

    Args:
        fd: owned from now on.
    """

    __slots__ = ("_fd", "_lock", "_owned", "_users")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()  # held for moments only, never while the disk is asked
        self._owned = True
        self._users = 0

    @contextmanager
    def use(self) -> Generator[int]:
        """The descriptor, open for the time of the block.

        Raises:
            OSError: EBADF, it has been given up.
        """
        with self._lock:
            if not self._owned:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            self._users += 1
        try:
            yield self._fd
        finally:
            with self._lock:
                self._users -= 1
                is_last = not self._owned and not self._users
            if is_last:
                os.close(self._fd)

    def give_up(self) -> None:
        """Close it as soon as nobody uses it; once only. Blocks if that is now."""
        with self._lock:
            assert self._owned, "it is given up once"
            self._owned = False
            is_unused = not self._users
        if is_unused:
            os.close(self._fd)


def os_text(error: OSError) -> str:
    """The system's own words for an error, and its number."""
    number = error.errno or 0
    return f"{os.strerror(number)} (os error {number})"


def os_failure(error: OSError) -> RpcError:
    """What a client is told of an error of the system: its class by the code, its words, and where it was."""
    code = _CODES.get(error.errno or 0, ErrorCode.INTERNAL_ERROR)
    place = error.filename
    return RpcError(code, f"{os_text(error)}: {shown(place)}" if isinstance(place, bytes) else os_text(error))


def shown(path: bytes) -> str:
    """A path as an error text has it: the end of a long one, and U+FFFD for what is no UTF-8."""
    text = path.decode("utf-8", "replace")
    return text if len(text) <= _SHOWN_CHARACTERS else f"...{text[-_SHOWN_CHARACTERS:]}"


def native_path(member: str, uri: str, foreign: ErrorCode = ErrorCode.INVALID_REQUEST) -> bytes:
    """The path that a request names.

    Args:
        member: what holds the URI, for the error text.
        foreign: how a URI that names no path of this system is answered.

    Raises:
        RpcError: it does, or, with INVALID_PARAMS, it is no URI of a path at all.
    """
    try:
        return parse_file_uri(uri)
    except PathUriError as error:
        code = foreign if isinstance(error, ForeignPathError) else ErrorCode.INVALID_PARAMS
        raise RpcError(code, f"{member}: {error}") from None


def refuse_sandbox(sandbox: SandboxRequest | None) -> None:
    """See that no confinement is asked for.

    Raises:
        RpcError: INVALID_PARAMS, one is, and cannot be enforced.
    """
    if sandbox is not None and not sandbox.asks_for_nothing:
        raise RpcError(
            ErrorCode.INVALID_PARAMS,
            "sandbox intent cannot be enforced on this executor: send sandbox: null to run without one",
        )
