"""One supervised process: its state, the task that owns it, and what clients may ask of it.

`Process` holds everything; `run` owns the child from the spawn to the close and does not care who started it.
Nothing here knows connections: events go into the log and, while somebody is attached, into a feed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import msgspec
import trio

from tsupervise_protocol.base64_text import encode_base64_str
from tsupervise_protocol.errors import ErrorCode, RpcError
from tsupervise_protocol.messages import (
    UNSET,
    OutputChunk,
    ProcessEntry,
    ProcessState,
    ReadRange,
    ReadResult,
    SignalName,
    StartParams,
    Stream,
    WriteStatus,
)

from ._containment import Enclosure
from ._event_log import Event, EventLog
from ._fd import READ_BYTES, Fd
from ._lifecycle import Lifecycle, State, Step
from ._outbox import MAX_FEED_BYTES, Feed, Outbox
from ._retained_total import RetainedTotal
from ._spawn import Child
from ._stdin_queue import StdinQueue

DRAIN_BYTES = 1 << 20
"""What is read of each stream when the child has exited, before the exit is numbered: the largest pipe that an
ordinary user may have. A pipe that is still being filled by somebody else must not delay the exit for ever."""

SIGNALS: dict[SignalName, signal.Signals] = {
    "interrupt": signal.SIGINT,
    "terminate": signal.SIGTERM,
    "kill": signal.SIGKILL,
    "hangup": signal.SIGHUP,
    "quit": signal.SIGQUIT,
    "usr1": signal.SIGUSR1,
    "usr2": signal.SIGUSR2,
    "stop": signal.SIGSTOP,
    "continue": signal.SIGCONT,
    "winch": signal.SIGWINCH,
}

_KEYBOARD_SIGNALS = ("interrupt", "quit")
"""On a terminal these go where the keys would send them: to the foreground group."""

_STATE_NAMES: dict[State, ProcessState] = {
    State.STARTING: "starting",
    State.RUNNING: "running",
    State.EXITED: "exited",
    State.CLOSED: "closed",
    State.GONE: "closed",
}


class Process:
    """All there is about one process.

    Args:
        params: the start request; its `process_id` is the client's name for the process.
        uid: the daemon's name for it, never given twice.
        event_log: where its output is numbered and retained.
        retained: the daemon's account of all retained output.
        sweep_later: sees to it that what a closed process has left behind is killed.
    """

    def __init__(
        self,
        params: StartParams,
        uid: str,
        event_log: EventLog,
        retained: RetainedTotal,
        max_feed_bytes: int,
        sweep_later: Callable[[Enclosure], None],
    ) -> None:
        self.params = params
        self.uid = uid
        self.log = event_log
        self.started_at_ms = time.time_ns() // 1_000_000
        self.lifecycle = Lifecycle()
        self.start_scope = trio.CancelScope()
        """Around the wait of a start that does not spawn at once; cancelled to give the start up."""
        self._retained = retained
        self._sweep_later = sweep_later
        self._max_feed_bytes = max(1, min(MAX_FEED_BYTES, max_feed_bytes))
        self._feed: Feed | None = None
        self._child: Child | None = None
        self._nursery: trio.Nursery | None = None
        self._stdin = StdinQueue()
        self._stdin_is_fed = False
        self._stdin_is_broken = False
        self._terminated = False
        self._changed = trio.lowlevel.ParkingLot()
        """Unparked by every event."""
        self._stdin_moved = trio.lowlevel.ParkingLot()
        """Unparked when the stdin queue has got shorter or will take nothing any more."""

    @property
    def process_id(self) -> str:
        return self.params.process_id

    @property
    def state(self) -> State:
        return self.lifecycle.state

    @property
    def state_name(self) -> ProcessState:
        """The state in the words of the protocol."""
        return _STATE_NAMES[self.state]

    # --- its life --------------------------------------------------------------------------------

    def spawned(self, child: Child) -> None:
        """The child is there; from now on it can be written to, signalled and read. `run` must follow."""
        self._child = child
        # Thousands of closed processes may be retained, and nobody asks for an environment again.
        self.params = msgspec.structs.replace(self.params, env={}, env_policy=None)
        self.lifecycle.take(Step.SPAWNED)

    async def run(self) -> None:
        """Own the child until it has exited and its output has ended; cancelled, kill it first.

        The exit is recorded when it happens, whatever still holds the output open. When this returns, nothing
        of the child is left but its log; members of its group that let go of its output may live on.
        """
        child = self._child
        assert child is not None, "spawned comes before run"
        try:
            child.enclosure.join()
            # Children of this nursery: one pump for each output stream, and for a time the feeder of stdin.
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for stream, fd in child.outputs:
                    nursery.start_soon(self._pump_output, stream, fd)
                if len(self._stdin):
                    self._feed_stdin()
                await child.wait_exit()
                self._record_exit(child)
                if self._terminated:
                    nursery.cancel_scope.cancel()
            if self._terminated:
                await child.enclosure.sweep()
            self.lifecycle.take(Step.STREAMS_ENDED)
            child.reap()
            self._announce(self.log.record_close())
            self._retained.closed(self.log)
        finally:
            try:
                if self.state is not State.CLOSED:
                    await child.destroy()
            finally:
                child.close()
                self._nursery = None

    async def _pump_output(self, stream: Stream, fd: Fd) -> None:
        """Move output from the pipe into the log until it ends; wait while the peer does not keep up."""
        read = fd.read_batch if stream == "pty" else fd.read
        while True:
            while self._feed is not None and not self._feed.has_room:
                await self._feed.wait_for_room()
            data = read()
            if data:
                self._append(stream, data)
            elif data is not None:
                break
            if data and len(data) >= READ_BYTES:
                # There is probably more. Let the others have their turn, but do not ask epoll.
                await trio.lowlevel.checkpoint()
            else:
                await fd.wait_readable()
        fd.close()

    def _append(self, stream: Stream, data: bytes) -> None:
        before = self.log.footprint
        chunk = self.log.append(stream, data)
        self._retained.changed(self.log, self.log.footprint - before)
        self._announce(chunk)

    def _drain(self, child: Child) -> None:
        # Without an await: what was written before comes before whatever is numbered next.
        for stream, fd in child.outputs:
            taken = 0
            while taken < DRAIN_BYTES and not fd.closed and (data := fd.read()):
                self._append(stream, data)
                taken += len(data)

    def _record_exit(self, child: Child) -> None:
        self._drain(child)
        code, term_signal = child.exit_status()
        self.lifecycle.take(Step.EXITED)
        self._announce(self.log.record_exit(code, term_signal))
        child.release_slave()
        self._stdin.discard()
        if child.stdin is not None:
            child.stdin.close()
        self._stdin_moved.unpark_all()

    def _announce(self, event: Event) -> None:
        if self._feed is not None:
            self._feed.put(event)
        if self._changed:
            self._changed.unpark_all()

    def forget(self) -> None:
        """Nobody will ask any more: the retention time is over, the start came to nothing, the session ends."""
        self.lifecycle.take(Step.FORGOTTEN)
        self._retained.forgotten(self.log)
        if self._child is not None:
            self._child.enclosure.forget()
        self.detach()
        self._changed.unpark_all()
        self._stdin_moved.unpark_all()

    # --- who listens -----------------------------------------------------------------------------

    def attach(self, outbox: Outbox) -> None:
        """Send every event from now on through this outbox."""
        self._feed = Feed(outbox, self.process_id, self._max_feed_bytes)

    def detach(self) -> None:
        """Send events nowhere; output is read on, and the oldest retained goes when there is too much."""
        if self._feed is not None:
            feed, self._feed = self._feed, None
            feed.close()

    # --- requests --------------------------------------------------------------------------------

    def has_news(self, params: ReadRange) -> bool:
        """Whether there is something above the reader's `after_seq`, or never will be."""
        return (
            self.log.closed is not None
            or self.log.last_seq > (params.after_seq or 0)
            or self.state is State.GONE
        )

    def read(self, params: ReadRange) -> ReadResult:
        """What a reader gets now."""
        after = params.after_seq or 0
        chunks, next_seq = self.log.page(after, params.max_bytes)
        exit_event = self.log.exit
        term_signal = exit_event.term_signal if exit_event else None
        return ReadResult(
            chunks=[
                OutputChunk(seq=chunk.seq, stream=chunk.stream, chunk=encode_base64_str(chunk.data))
                for chunk in chunks
            ],
            next_seq=next_seq,
            exited=exit_event is not None,
            exit_code=exit_event.code if exit_event else None,
            closed=self.log.closed is not None,
            first_seq=self.log.first_retained_seq,
            truncated=self.log.lost_after(after),
            term_signal=UNSET if term_signal is None else term_signal,
            exit_seq=exit_event.seq if exit_event else UNSET,
            closed_seq=self.log.closed.seq if self.log.closed else UNSET,
        )

    async def wait_changed(self) -> None:
        """Wait for the next event. Look and wait without an await between, and no event is missed."""
        await self._changed.park()

    def write_now(self, write_id: str, data: bytes) -> WriteStatus | None:
        """Accept a write, or say why not, or None if it must wait for room. Never half."""
        child = self._child
        assert child is not None, "a process that is starting is asked by nobody"
        if child.stdin is None:
            return "stdinClosed"
        if self._stdin.has_accepted(write_id):
            return "accepted"
        if self.state is not State.RUNNING or self._stdin.ending:
            return "stdinClosed"
        if self._stdin_is_broken:
            # A dying child closes its stdin before it is dead: do not say "accepted" of its end.
            if self._terminated or child.has_exited():
                return "stdinClosed"
            data = b""
        if not self._stdin.has_room(len(data)):
            return None
        self._stdin.accept(write_id, data)
        self._feed_stdin()
        return "accepted"

    async def wait_stdin_moved(self) -> None:
        """Wait until a write that had to wait should be tried again."""
        await self._stdin_moved.park()

    def close_stdin(self) -> WriteStatus:
        """Let the child see end-of-file after everything accepted so far.

        Raises:
            RpcError: INVALID_PARAMS, the process has a terminal, which has no end-of-file of its own.
        """
        child = self._child
        assert child is not None, "a process that is starting is asked by nobody"
        if self.params.tty:
            raise RpcError(
                ErrorCode.INVALID_PARAMS,
                f"process {self.process_id} has a terminal: write ^D (0x04) at the start of a line instead",
            )
        if child.stdin is None or self.state is not State.RUNNING or self._stdin.ending:
            return "stdinClosed"
        self._stdin.ending = True
        self._feed_stdin()
        self._stdin_moved.unpark_all()
        return "accepted"

    def _feed_stdin(self) -> None:
        """Write what the child takes at once; only what it does not take gets a task."""
        if not self._stdin_is_fed and not self._write_stdin() and self._nursery is not None:
            self._stdin_is_fed = True
            self._nursery.start_soon(self._keep_feeding_stdin)

    def _write_stdin(self) -> bool:
        """Write until the queue is empty (True) or the child takes no more for now (False)."""
        assert self._child is not None, "bytes are accepted for a child only"
        fd = self._child.stdin
        assert fd is not None, "bytes are accepted for a child with stdin only"
        if fd.closed:
            return True
        while (data := self._stdin.first()) is not None:
            try:
                count = fd.write(data)
            except OSError:
                # The child has closed its stdin and lives on. Clients take a refusal for the end of the
                # process, so its input is accepted and thrown away.
                self._stdin_is_broken = True
                self._stdin.discard()
                break
            if count is None:
                return False
            self._stdin.taken(count)
        if self._stdin.ending:
            fd.close()
        return True

    async def _keep_feeding_stdin(self) -> None:
        assert self._child is not None, "bytes are accepted for a child only"
        fd = self._child.stdin
        assert fd is not None, "bytes are accepted for a child with stdin only"
        while not self._write_stdin():
            self._stdin_moved.unpark_all()
            try:
                await fd.wait_writable()
            except trio.ClosedResourceError:
                break
        self._stdin_is_fed = False
        self._stdin_moved.unpark_all()

    def signal(self, name: SignalName) -> None:
        """Send a signal to the process group, or to a terminal's foreground group; nothing if it is over.

        Raises:
            RpcError: INTERNAL_ERROR, the system does not allow it.
        """
        child = self._child
        if child is None or self.state is not State.RUNNING:
            return
        try:
            if name in _KEYBOARD_SIGNALS:
                os.killpg(child.foreground_group(), SIGNALS[name])
            else:
                child.group.signal(SIGNALS[name])
        except ProcessLookupError:
            pass
        except PermissionError as error:
            text = f"failed to signal process: {error.strerror} (os error {error.errno})"
            raise RpcError(ErrorCode.INTERNAL_ERROR, text) from None

    def resize(self, rows: int, cols: int) -> None:
        """Set the size of the terminal; nothing happens if the process is over.

        Raises:
            RpcError: INVALID_PARAMS, the process has no terminal.
        """
        if not self.params.tty:
            raise RpcError(
                ErrorCode.INVALID_PARAMS,
                f"process {self.process_id} has no terminal; start it with tty: true to resize it",
            )
        if self._child is not None and self.state is State.RUNNING:
            self._child.resize(rows, cols)

    def terminate(self) -> bool:
        """Kill whatever is left of the process at once, and end its output with what has been written.

        Returns:
            Whether the child was still running, or starting.
        """
        if self.state is State.STARTING:
            self.start_scope.cancel()
            return True
        child = self._child
        if child is None:
            return False
        if self.state is State.CLOSED:
            self._sweep_later(child.enclosure)
            return False
        self._terminated = True
        child.kill()
        if self.state is State.EXITED and self._nursery is not None:
            self._drain(child)
            self._nursery.cancel_scope.cancel()
        return self.state is State.RUNNING

    def kill(self) -> None:
        """SIGKILL to whatever is left of the process; nothing else happens here."""
        if self._child is not None:
            self._child.kill()

    def entry(self) -> ProcessEntry:
        """The row of this process in a list."""
        exit_event = self.log.exit
        return ProcessEntry(
            process_id=self.process_id,
            uid=self.uid,
            state=self.state_name,
            argv=self.params.argv,
            cwd=self.params.cwd,
            tty=self.params.tty,
            started_at_ms=self.started_at_ms,
            pid=self._child.pid if self._child is not None else None,
            exit_code=exit_event.code if exit_event else None,
            term_signal=exit_event.term_signal if exit_event else None,
            last_seq=self.log.last_seq,
            retained_bytes=self.log.retained_bytes,
            output_bytes=self.log.output_bytes,
            metadata=self.params.metadata,
        )
