"""A gate before a program's first instruction: a child waits there until what must be done to it is done.

posix_spawn comes back when the program runs already, and on a busy machine it may be over by then. But before the
child becomes the program it opens what we have told it to: a FIFO, and that takes as long as nobody reads from it.
The thread that called posix_spawn waits with it; another one finds the child, deals with it and opens the gate.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress

LOOK_S = 0.0002
"""Seconds between two looks for the child. It is there within a fraction of a millisecond."""


def start_through_gate(
    start: Callable[[bytes], int], is_ours: Callable[[int], bool], treat: Callable[[int], None]
) -> int:
    """Start a child and treat it before its program begins; if that fails it never begins.

    Args:
        start: starts a child that opens the path that it is given, for writing, before anything else; returns its
            pid. If the child does not do that, it may have begun when it is treated.
        is_ours: whether a new child of this thread is the one; called in another thread, as `treat`.
        treat: what must be done to it. It has a number, a session of its own, and has done nothing else yet.

    Raises:
        OSError: from `start` or `treat`.
        NoGate: nothing was started.
    """
    try:
        folder = tempfile.mkdtemp(prefix="tsupervise-")
    except OSError as error:
        raise NoGate(f"no temporary folder can be made ({error}); set TMPDIR") from None
    path = f"{folder}/gate"
    try:
        try:
            os.mkfifo(path, 0o600)
            children = os.open(
                f"/proc/self/task/{threading.get_native_id()}/children", os.O_RDONLY | os.O_CLOEXEC
            )
        except OSError as error:
            raise NoGate(str(error)) from None
        keeper = _GateKeeper(path, children, is_ours, treat)
        try:
            keeper.start()
        except RuntimeError as error:
            os.close(children)
            raise NoGate(str(error)) from None
        try:
            pid = start(os.fsencode(path))
        finally:
            keeper.over.set()
            keeper.join()
        if keeper.treated != pid:
            keeper.treat_child(pid)
        if keeper.failure is not None:
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED)
            raise keeper.failure
        return pid
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)
        os.rmdir(folder)


class NoGate(Exception):
    """There can be no gate now: no folder or thread for it, or a kernel that does not tell who is whose child."""


class _GateKeeper(threading.Thread):
    """The other thread.

    Args:
        path: the gate.
        children: a descriptor for the list of the starting thread's children, opened before there is one: looking
            must not fail, for then nobody would open the gate. It is closed here, to make room for the gate's own.
        is_ours, treat: see `start_through_gate`.
    """

    def __init__(
        self, path: str, children: int, is_ours: Callable[[int], bool], treat: Callable[[int], None]
    ) -> None:
        super().__init__(name="tsupervise gate", daemon=True)
        self.over = threading.Event()
        """There is no child to wait for any more."""
        self.treated = 0
        self.failure: Exception | None = None
        self._path = path
        self._is_ours = is_ours
        self._treat = treat
        self._children_file = children
        self._known = self._children()

    def run(self) -> None:
        try:
            while not self.treated and not self.over.is_set():
                for pid in self._children() - self._known:
                    # Until it leads its session, other things are still to be done to it.
                    with suppress(ProcessLookupError):
                        if os.getsid(pid) == pid and self._is_ours(pid):
                            self.treat_child(pid)
                            break
                else:
                    time.sleep(LOOK_S)
        finally:
            # Whatever has happened: who is at the gate must get through.
            os.close(self._children_file)
            self._open_gate()

    def _open_gate(self) -> None:
        gate = -1
        while gate == -1:
            try:
                gate = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:  # another thread has taken the room
                time.sleep(LOOK_S)
        self.over.wait()
        os.close(gate)

    def treat_child(self, pid: int) -> None:
        self.treated = pid
        try:
            self._treat(pid)
        except Exception as error:
            self.failure = error
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def _children(self) -> set[int]:
        data, offset = b"", 0
        while part := os.pread(self._children_file, 1 << 16, offset):
            data += part
            offset += len(part)
        return {int(pid) for pid in data.split()}
