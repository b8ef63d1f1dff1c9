"""What the daemon counts: plain integers while it works, and Prometheus text when somebody asks.

Every label has a fixed set of values, so what is kept does not grow with what comes: methods of the protocol,
names of error codes, states and results of processes, HTTP statuses.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from tsupervise_protocol.errors import ErrorCode
from tsupervise_protocol.methods import METHODS

from ._outbox import Outbox

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of the Prometheus text format."""

REQUEST_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0)
"""From an answer without a wait to a read that waits for output."""

LAG_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)

OTHER_METHOD = "other"
"""The label of methods that are none."""

_CODE_NAMES = {int(code): code.name.lower() for code in ErrorCode}


class Histogram:
    """Counts of durations by upper bound.

    Args:
        bounds: the upper bounds of the buckets in seconds, rising; a last one without a bound is added.
    """

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def samples(self, name: str, labels: str = "") -> Iterator[str]:
        """The lines of the text format; `labels` without braces."""
        comma = "," if labels else ""
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels}{comma}le="{bound}"}} {total}'
        yield _sample(f"{name}_sum", labels, self._sum)
        yield _sample(f"{name}_count", labels, total)


class _MethodCounts:
    __slots__ = ("durations", "results")

    def __init__(self) -> None:
        self.durations = Histogram(REQUEST_BUCKETS_S)
        self.results = Counter[str]()


@dataclass(slots=True)
class ProcessBytes:
    """What went through processes, in bytes.

    Args:
        input: taken by their stdin.
        output: read of their output.
        evicted: output of theirs that is not retained any more, though the process is.
    """

    input: int = 0
    output: int = 0
    evicted: int = 0

    def add(self, other: ProcessBytes) -> None:
        self.input += other.input
        self.output += other.output
        self.evicted += other.evicted


@dataclass(frozen=True, slots=True)
class Now:
    """What is looked up when somebody asks, and counted by nobody.

    Args:
        version: of the daemon.
        started_at_s: when it started, in seconds since 1970.
        draining: whether it takes no new work any more.
        sessions: attached and detached ones.
        processes: by state.
        process_bytes: of the processes that are known still.
        retained_bytes: of all processes, in memory.
        spill_files_bytes: what spill files take.
        spilled_bytes: output that was moved to them so far.
        kills: by means, so far.
        tasks: of the event loop, its own included.
    """

    version: str
    started_at_s: float
    draining: bool
    sessions: Mapping[str, int]
    processes: Mapping[str, int]
    process_bytes: ProcessBytes
    retained_bytes: int
    spill_files_bytes: int
    spilled_bytes: int
    kills: Mapping[str, int]
    tasks: int


@dataclass(slots=True)
class Metrics:
    """The counts of one daemon. Whoever does a thing adds to its number."""

    connections_opened: int = 0
    http_responses: Counter[int] = field(default_factory=Counter[int])
    """By status; 101 is a connection."""
    received_bytes: int = 0
    sessions_opened: int = 0
    sessions_resumed: int = 0
    sessions_ended: int = 0
    processes_started: int = 0
    processes_ended: Counter[str] = field(default_factory=Counter[str])
    """By result."""
    forgotten: ProcessBytes = field(default_factory=ProcessBytes)
    """Of the processes that are known no more."""
    malformed_messages: int = 0
    audit_lines_dropped: int = 0
    loop_lag: Histogram = field(default_factory=lambda: Histogram(LAG_BUCKETS_S))
    _requests: dict[str, _MethodCounts] = field(default_factory=dict[str, _MethodCounts])
    _outboxes: set[Outbox] = field(default_factory=set[Outbox])
    """Of the open connections: each counts what it sends."""
    _sent_bytes: int = 0
    """Of the closed ones."""

    def connection_opened(self, outbox: Outbox) -> None:
        self.connections_opened += 1
        self._outboxes.add(outbox)

    def connection_closed(self, outbox: Outbox) -> None:
        self._outboxes.discard(outbox)
        self._sent_bytes += outbox.sent_bytes

    def answered(self, method: str, code: int | None, seconds: float) -> None:
        """Count a request.

        Args:
            method: as the client wrote it.
            code: of the error answer, None if all went well.
            seconds: from its arrival to its answer.
        """
        counts = self._requests.get(method)
        if counts is None:
            label = method if method in METHODS else OTHER_METHOD
            counts = self._requests.setdefault(label, _MethodCounts())
        counts.results["ok" if code is None else _CODE_NAMES.get(code, "error")] += 1
        counts.durations.observe(seconds)

    def render(self, now: Now) -> str:
        """Everything in the Prometheus text format, version 0.0.4."""
        return "".join(f"{line}\n" for line in self._lines(now))

    def _lines(self, now: Now) -> Iterator[str]:
        yield from _family("build_info", "gauge", "The running version.", {f'version="{now.version}"': 1})
        yield from _family("start_time_seconds", "gauge", "When the daemon started.", {"": now.started_at_s})
        yield from _family("draining", "gauge", "1 while no new work is taken.", {"": int(now.draining)})
        yield from _family("connections", "gauge", "Open connections.", {"": len(self._outboxes)})
        yield from _counter("connections_opened", "Connections so far.", {"": self.connections_opened})
        yield from _counter(
            "http_responses",
            "Answers to HTTP requests; 101 is an upgrade to WebSocket.",
            _labelled("status", self.http_responses),
        )
        yield from _counter("received_bytes", "Bytes of messages from clients.", {"": self.received_bytes})
        sent = self._sent_bytes + sum(outbox.sent_bytes for outbox in self._outboxes)
        yield from _counter("sent_bytes", "Bytes of messages to clients.", {"": sent})
        yield from _counter(
            "malformed_messages", "Messages that could not be read.", {"": self.malformed_messages}
        )
        yield from self._requests_lines()
        yield from _family(
            "sessions", "gauge", "Sessions, with and without a connection.", _labelled("state", now.sessions)
        )
        yield from _counter("sessions_opened", "New sessions so far.", {"": self.sessions_opened})
        yield from _counter("sessions_resumed", "Resumed sessions so far.", {"": self.sessions_resumed})
        yield from _counter("sessions_ended", "Ended sessions so far.", {"": self.sessions_ended})
        yield from _family(
            "processes", "gauge", "Processes that are known, by state.", _labelled("state", now.processes)
        )
        yield from _counter("processes_started", "Processes started so far.", {"": self.processes_started})
        yield from _counter(
            "processes_ended",
            "How processes ended, and starts that failed.",
            _labelled("result", self.processes_ended),
        )
        yield from _counter(
            "kills",
            "Kills by means: whole control groups and process groups; families and finds of sweeps one by one.",
            _labelled("means", now.kills),
        )
        yield from self._byte_lines(now)
        yield from _family("tasks", "gauge", "Tasks of the event loop.", {"": now.tasks})
        yield from _counter(
            "audit_lines_dropped", "Lines that the audit log has lost.", {"": self.audit_lines_dropped}
        )
        name = "loop_lag_seconds"
        yield from _head(name, "histogram", "By how much the event loop wakes up too late.")
        yield from self.loop_lag.samples(_PREFIX + name)

    def _requests_lines(self) -> Iterator[str]:
        results = {
            f'method="{method}",result="{result}"': count
            for method, counts in self._requests.items()
            for result, count in counts.results.items()
        }
        yield from _counter("requests", "Answered requests, by method and result.", results)
        name = "request_duration_seconds"
        yield from _head(name, "histogram", "From the arrival of a request to its answer.")
        for method, counts in self._requests.items():
            yield from counts.durations.samples(_PREFIX + name, f'method="{method}"')

    def _byte_lines(self, now: Now) -> Iterator[str]:
        total = ProcessBytes()
        total.add(self.forgotten)
        total.add(now.process_bytes)
        yield from _counter("process_input_bytes", "Bytes that processes took as stdin.", {"": total.input})
        yield from _counter("process_output_bytes", "Bytes that processes wrote.", {"": total.output})
        yield from _counter(
            "output_evicted_bytes", "Output that was retained no longer.", {"": total.evicted}
        )
        yield from _family(
            "retained_bytes", "gauge", "Output that is retained in memory.", {"": now.retained_bytes}
        )
        yield from _counter("spilled_bytes", "Output that was moved to files.", {"": now.spilled_bytes})
        yield from _family(
            "spill_files_bytes", "gauge", "What these files take.", {"": now.spill_files_bytes}
        )


_PREFIX = "tsupervise_"


def _labelled(name: str, counts: Mapping[str, int] | Mapping[int, int]) -> dict[str, float]:
    return {f'{name}="{value}"': count for value, count in counts.items()}


def _counter(name: str, text: str, samples: Mapping[str, float]) -> Iterable[str]:
    return _family(f"{name}_total", "counter", text, samples)


def _family(name: str, kind: str, text: str, samples: Mapping[str, float]) -> Iterator[str]:
    """The lines of one metric; `samples` are values by their labels, without braces."""
    yield from _head(name, kind, text)
    for labels, value in samples.items():
        yield _sample(_PREFIX + name, labels, value)


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {_PREFIX}{name} {text}"
    yield f"# TYPE {_PREFIX}{name} {kind}"


def _sample(name: str, labels: str, value: float) -> str:
    return f"{name}{{{labels}}} {value}" if labels else f"{name} {value}"
