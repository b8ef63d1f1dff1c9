"""The events of one process, put back in order and kept for a while. Pure: no trio, no I/O.

Events are numbered from 1 without holes, but may arrive in any order and more than once. `EventOrder`
publishes each once, in order, and keeps the last of them for readers who bring their own position; a
reader who has fallen behind what is kept asks the server for the rest, see `fill_hole`. What was missed
while there was no connection comes by one answer of the server's, see `catch_up`; if it is more than an answer
holds, it is left to the readers like any hole, see `skip`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice

from tsupervise_protocol.errors import MalformedMessage
from tsupervise_protocol.messages import ExitReason, Usage

from .events import Closed, Event, Exited, Lost, Output

MAX_EVENTS = 256
"""Early events that wait for their turn, and published events that are kept: so many of each."""

MAX_BYTES = 1 << 20
"""The output among the early events, and among the kept ones: so many bytes of each."""


class EventOverflow(Exception):
    """More events came out of order than can be held; the process cannot be followed any further."""


class WindowLost(Exception):
    """Events that were missed are retained no more; the process cannot be followed any further."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the server says of a process after some number, all at one moment."""

    chunks: Sequence[Output]
    """The retained output after that number, ascending."""
    next_seq: int
    """The first number that was not used yet."""
    exit_code: int | None
    """None while it runs. The number of the exit is not told."""
    closed: bool
    """Then the last number in use is that of the close."""
    term_signal: int | None = None
    sandbox_denied: bool = False
    usage: Usage | None = None
    reason: ExitReason | None = None


def _size_of(event: Event) -> int:
    """The bytes that an event counts for."""
    return len(event.data) if isinstance(event, Output) else 0


class EventOrder:
    """See the module. `last` is the highest published number, `first` the lowest that is kept."""

    __slots__ = ("_early", "_early_bytes", "_kept", "_kept_bytes", "closed", "exited", "last", "read_seq")

    def __init__(self) -> None:
        self.last = 0
        self.read_seq: int | None = None
        """What has a higher number is kept whatever the bounds; None for no such promise."""
        self.exited: Exited | None = None
        """The exit once it is published; it is known for good, however long the history."""
        self.closed = False
        self._early: dict[int, Event] = {}
        self._early_bytes = 0
        self._kept: deque[Event] = deque()
        self._kept_bytes = 0

    @property
    def first(self) -> int:
        return self.last - len(self._kept) + 1

    def insert(self, event: Output | Exited | Closed) -> bool:
        """Take an event as it arrives; return whether anything was published by it.

        Duplicates, and whatever comes after the close, are dropped.

        Raises:
            EventOverflow: no room for an event that came too early, or an event that is too large at all, or
                has a number that cannot be.
        """
        seq = event.seq
        if seq < 1:
            raise EventOverflow(f"there is no event {seq}: numbers start at 1")
        if self.closed or seq <= self.last or seq in self._early:
            return False
        size = _size_of(event)
        if size > MAX_BYTES:
            raise EventOverflow(f"event {seq} carries {size} bytes, more than the {MAX_BYTES} of any event")
        if seq > self.last + 1 + MAX_EVENTS:
            raise EventOverflow(
                f"event {seq} came before event {self.last + 1}, further ahead than {MAX_EVENTS} events can be kept"
            )
        if seq != self.last + 1:
            if len(self._early) >= MAX_EVENTS or self._early_bytes + size > MAX_BYTES:
                raise EventOverflow(
                    f"event {seq} came before event {self.last + 1}, and there is no room left to keep it: "
                    f"{len(self._early)} events with {self._early_bytes} bytes wait already"
                )
            self._early[seq] = event
            self._early_bytes += size
            return False
        self._publish(event)
        self._publish_early()
        return True

    def begin_at(self, snapshot: Snapshot) -> None:
        """Leave out what is not retained any more, for a process that is followed from late in its life on.

        Args:
            snapshot: of all that is retained; `catch_up` takes it next.
        """
        assert self.last == 0, "it has published something already"
        target = snapshot.next_seq - 1
        used = len(snapshot.chunks) + snapshot.closed
        first = snapshot.chunks[0].seq if snapshot.chunks else snapshot.next_seq - snapshot.closed
        # An exit has a number too, though it is not told: it lies in a hole, or came before all that is left.
        if snapshot.exit_code is not None and target - first + 1 == used:
            first -= 1
        self.last = first - 1
        for seq in [seq for seq in self._early if seq < first]:
            self._early_bytes -= _size_of(self._early.pop(seq))

    def catch_up(self, snapshot: Snapshot) -> bool:
        """Take what was missed without a connection; return whether anything was published by it.

        The events up to the snapshot are the published ones, its chunks, those that came early, and the
        close; if one number is left over, the exit has it.

        Args:
            snapshot: as of after number `last`, or an earlier one.

        Raises:
            WindowLost: numbers are missing that nobody has any more.
            EventOverflow: a chunk is too large.
            MalformedMessage: the snapshot contradicts itself, or what came before.
        """
        if self.closed:
            return False
        target, last = snapshot.next_seq - 1, self.last
        if target < 0:
            raise MalformedMessage(f"nextSeq is {snapshot.next_seq}, and numbers start at 1")
        found: dict[int, Event] = {}
        for chunk in snapshot.chunks:
            if chunk.seq > target or (snapshot.closed and chunk.seq == target):
                raise MalformedMessage(
                    f"chunk {chunk.seq} lies beyond what nextSeq {snapshot.next_seq} allows"
                )
            if chunk.seq > last:
                found[chunk.seq] = chunk
        if snapshot.closed and target > last:
            found[target] = Closed(target)
        found |= {seq: event for seq, event in self._early.items() if seq <= target}
        missing = max(0, target - last) - len(found)
        early_exit = next((event for event in self._early.values() if isinstance(event, Exited)), None)
        new_exit = snapshot.exit_code is not None and self.exited is None and early_exit is None
        if missing > new_exit:
            raise WindowLost(f"its events are no longer retained while recovering through sequence {target}")
        if missing < new_exit:
            raise MalformedMessage(f"it has exited, but no number up to {target} is left for that")
        if snapshot.closed and (snapshot.exit_code is None or not isinstance(found.get(target), Closed)):
            raise MalformedMessage(f"it is closed at number {target}, which cannot be")
        if snapshot.exit_code is not None and new_exit:
            seq = next(seq for seq in count(last + 1) if seq not in found)
            found[seq] = Exited(
                seq,
                snapshot.exit_code,
                snapshot.term_signal,
                snapshot.sandbox_denied,
                snapshot.usage,
                snapshot.reason,
            )
        elif early_exit is not None and snapshot.sandbox_denied:
            self._early[early_exit.seq] = replace(early_exit, sandbox_denied=True)
        for seq in range(last + 1, target + 1):
            event = found[seq]
            assert not isinstance(event, Lost), "nothing that was found is lost"
            self.insert(event)
        return self.last > last

    def skip(self, last_seq: int, exited: Exited | None, closed: bool) -> bool:
        """Count all events up to a number as published, without having them; return whether any was.

        None is if they have arrived since the server was asked.

        Args:
            last_seq: the highest number in use, as the server says.
            exited: the exit, if it is among them.
            closed: whether `last_seq` is the number of the close.

        Raises:
            MalformedMessage: the numbers contradict each other, or what came before.
        """
        if last_seq <= self.last:
            return False
        if closed and exited is None:
            raise MalformedMessage(f"it is closed at number {last_seq}, and has not exited")
        if exited is not None and (
            not 0 < exited.seq <= last_seq - closed or (self.exited is None and exited.seq <= self.last)
        ):
            raise MalformedMessage(f"exitSeq {exited.seq} cannot be, up to {last_seq} with {self.last} known")
        for seq in [seq for seq in self._early if seq <= last_seq]:
            self._early_bytes -= _size_of(self._early.pop(seq))
        self._kept.clear()
        self._kept_bytes = 0
        self.exited = self.exited or exited
        self.last = last_seq - closed
        if closed:
            self._publish(Closed(last_seq))
        self._publish_early()
        return True

    def _publish_early(self) -> None:
        while not self.closed and (following := self._early.pop(self.last + 1, None)) is not None:
            self._early_bytes -= _size_of(following)
            self._publish(following)

    def _publish(self, event: Event) -> None:
        self.last = event.seq
        self._kept.append(event)
        self._kept_bytes += _size_of(event)
        while (len(self._kept) > MAX_EVENTS or self._kept_bytes > MAX_BYTES) and (
            self.read_seq is None or self._kept[0].seq <= self.read_seq
        ):
            self._kept_bytes -= _size_of(self._kept.popleft())
        if isinstance(event, Exited):
            self.exited = event
        elif isinstance(event, Closed):
            self.closed = True
            self._early.clear()

    def after(self, seq: int) -> Event | None:
        """The event that follows number `seq`; None if it is still to come. It must not be a hole."""
        assert not self.has_hole_after(seq), "the hole is filled first"
        return self._kept[seq + 1 - self.first] if seq < self.last else None

    def bytes_after(self, seq: int) -> int:
        """The kept output with numbers above `seq`, in bytes. The cost grows with the events it spans."""
        return sum(_size_of(event) for event in islice(reversed(self._kept), max(0, self.last - seq)))

    def has_hole_after(self, seq: int) -> bool:
        """Whether events that follow number `seq` are kept no more."""
        return seq + 1 < self.first

    def fill_hole(self, seq: int, retained: Iterable[Output], next_seq: int) -> list[Event]:
        """What lies between number `seq` and `first`, from an answer to `process/read` after `seq`.

        The answer may end before the hole does, if more was published meanwhile: then the rest stays one.

        Args:
            retained: the answer's chunks, ascending.
            next_seq: the answer's `nextSeq`; a `first` in its place gives up on all that is missing.

        Returns:
            At least one event, ascending, without gaps: what nobody has is told as `Lost`.
        """
        end = self.first
        if seq + 1 < next_seq < end:
            end = next_seq
        known: dict[int, Event] = {chunk.seq: chunk for chunk in retained if seq < chunk.seq < end}
        if self.exited is not None and seq < self.exited.seq < end:
            known[self.exited.seq] = self.exited
        events: list[Event] = []
        for number, event in sorted(known.items()):
            if seq + 1 < number:
                events.append(Lost(seq + 1, number - 1))
            events.append(event)
            seq = number
        if seq + 1 < end:
            events.append(Lost(seq + 1, end - 1))
        return events
