"""What is measured: each workload drives one server through one client setting and returns raw samples.

A workload names its figures: how its samples become one number, and the bar for that number. Some are run
on request only: they take long and leave a mark on the server.
"""

from __future__ import annotations

import math
import os
import signal
import statistics
import time
import traceback
from base64 import b64encode
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory

from lean_client import Connection, WireError, output_of
from servers import Server, process_is_gone

TRUE = "/usr/bin/true"

ECHO_BYTES = 64
PIPE_BYTES = 32 << 20
PTY_BYTES = 8 << 20
BURST = 100

LIVE_PROCESSES = 300
IDLE_CONNECTIONS = 200
FILE_CALLS = 200
FLOOD_S = 4.0
PAUSE_S = 0.03
GIVE_UP_S = 5.0
"""After so long without a sign, a terminated process counts as never ended."""

ROUND_S = 2.0
"""A round of repeated samples ends early after this time, so that a slow server costs patience only once."""

Samples = dict[str, list[float]]


def p50(samples: list[float]) -> float:
    return statistics.median(samples)


def p95(samples: list[float]) -> float:
    return sorted(samples)[math.ceil(len(samples) * 0.95) - 1]


@dataclass(frozen=True)
class Figure:
    """One number of the report, out of the samples named `series`.

    `bar` limits the ratio to the peer or, with `absolute`, the number itself; `default_bar` is the limit
    for the client with the kernel's default acknowledgements, where `bar` does not apply.
    """

    label: str
    series: str
    unit: str
    statistic: Callable[[list[float]], float] = p50
    bar: float | None = None
    default_bar: float | None = None
    more_is_better: bool = False
    absolute: bool = False

    def bar_for(self, client: str) -> float | None:
        return self.bar if client == "quickack" or self.absolute else self.default_bar

    def meets(self, bar: float, value: float) -> bool:
        return value >= bar if self.more_is_better else value <= bar


@dataclass(frozen=True)
class Workload:
    name: str
    run: Callable[[Server, bool], Samples]
    figures: tuple[Figure, ...]
    on_request: bool = False
    limit_s: float = 60.0


def repeat(count: int, *, warm_up: int = 5, budget_s: float = ROUND_S) -> Iterator[bool]:
    """Yield for each sample to be taken whether it counts: the first ones only warm the path."""
    deadline = time.monotonic() + budget_s
    for number in range(warm_up + count):
        if number > warm_up and time.monotonic() > deadline:
            return
        yield number >= warm_up


def floor() -> Samples:
    """Spawn and reap the one-shot program from this Python, with no server between."""
    taken: list[float] = []
    for counts in repeat(50):
        begin = time.perf_counter()
        os.waitpid(os.posix_spawn(TRUE, [TRUE], {}), 0)
        if counts:
            taken.append((time.perf_counter() - begin) * 1e3)
    return {"floor": taken}


def run_one_shot(connection: Connection, *, tty: bool = False) -> tuple[float, float]:
    """Milliseconds from sending a start to its response, and to `process/closed`."""
    request = connection.prepare_start(TRUE, tty=tty)
    acknowledged = closed = 0.0
    begin = time.perf_counter()
    connection.send(request)
    while not (acknowledged and closed):
        message = connection.receive()
        now = time.perf_counter()
        if message.get("id") == request.id:
            acknowledged = now
        elif message["params"]["processId"] != request.process_id:
            continue
        elif message["method"] == "process/closed":
            closed = now
        elif message["method"] == "process/exited" and message["params"]["exitCode"] != 0:
            raise WireError(f"{TRUE} ended with {message['params']['exitCode']}")
    return (acknowledged - begin) * 1e3, (closed - begin) * 1e3


def one_shots(connection: Connection, count: int = 50, *, tty: bool = False) -> Samples:
    taken: Samples = {"ack": [], "closed": []}
    for counts in repeat(count):
        acknowledged, closed = run_one_shot(connection, tty=tty)
        if counts:
            taken["ack"].append(acknowledged)
            taken["closed"].append(closed)
    return taken


def one_shot(server: Server, quickack: bool) -> Samples:
    with Connection(server.url, quickack=quickack) as connection:
        return one_shots(connection)


def pty_one_shot(server: Server, quickack: bool) -> Samples:
    with Connection(server.url, quickack=quickack) as connection:
        return one_shots(connection, tty=True)


def pipe_echo(server: Server, quickack: bool) -> Samples:
    with Connection(server.url, quickack=quickack) as connection:
        return echoes(connection, connection.start("cat", pipe_stdin=True))


def pty_echo(server: Server, quickack: bool) -> Samples:
    with Connection(server.url, quickack=quickack) as connection:
        process_id = connection.start("sh", "-c", "stty raw -echo; echo ready; exec cat", tty=True)
        connection.read_output(process_id, lambda output: output == b"ready\n")
        return echoes(connection, process_id)


def echoes(connection: Connection, process_id: str, count: int = 500) -> Samples:
    taken: list[float] = []
    for number, counts in enumerate(repeat(count, warm_up=20)):
        data = b"%0*d\n" % (ECHO_BYTES - 1, number)
        request = connection.prepare_write(process_id, data)
        begin = time.perf_counter()
        connection.send(request)
        echoed, answered, end = b"", False, 0.0
        # The response of the write may come on either side of the echo, and must not run into the next one.
        while not (answered and end):
            message = connection.receive()
            if message.get("id") == request.id:
                answered = True
                if message["result"]["status"] != "accepted":
                    raise WireError(f"a write was not accepted: {message['result']}")
            elif message.get("method") == "process/output":
                echoed += output_of(message)
                if len(echoed) >= ECHO_BYTES:
                    end = time.perf_counter()
        if echoed != data:
            raise WireError(f"sent {data!r} and got back {echoed!r}")
        if counts:
            taken.append((end - begin) * 1e6)
    return {"echo": taken}


def throughput(server: Server, quickack: bool, *, size: int, tty: bool) -> Samples:
    taken: list[float] = []
    with Connection(server.url, quickack=quickack) as connection:
        for _ in range(2):
            request = connection.prepare_start("head", "-c", str(size), "/dev/zero", tty=tty)
            begin = time.perf_counter()
            connection.send(request)
            received = connection.count_output()
            seconds = time.perf_counter() - begin
            if received != size:
                raise WireError(f"{size:,} bytes were put out and {received:,} arrived")
            taken.append(size / 1e6 / seconds)
    return {"rate": taken}


def pipe_throughput(server: Server, quickack: bool) -> Samples:
    return throughput(server, quickack, size=PIPE_BYTES, tty=False)


def pty_throughput(server: Server, quickack: bool) -> Samples:
    return throughput(server, quickack, size=PTY_BYTES, tty=True)


def burst(server: Server, quickack: bool) -> Samples:
    with Connection(server.url, quickack=quickack) as connection:
        requests = [connection.prepare_start(TRUE) for _ in range(BURST)]
        begin = time.perf_counter()
        for request in requests:
            connection.send(request)
        closed = 0
        while closed < BURST:
            closed += connection.receive().get("method") == "process/closed"
        return {"all": [(time.perf_counter() - begin) * 1e3]}


def many_live(server: Server, quickack: bool) -> Samples:
    """Hold 300 sleeping processes; then terminate them all without waiting in between."""
    with Connection(server.url, quickack=quickack) as connection:
        idle = p50(one_shots(connection, 100)["closed"])
        rss, fds = server.rss_kib(), server.open_fds()

        # The sleep ends by itself: whatever a server leaks is gone two minutes later.
        starts = [connection.prepare_start("sleep", "120") for _ in range(LIVE_PROCESSES)]
        begin = time.perf_counter()
        for request in starts:
            connection.send(request)
        waiting = {request.id for request in starts}
        while waiting:
            waiting.discard(connection.receive().get("id", 0))
        samples = {"start": [(time.perf_counter() - begin) * 1e3]}
        samples |= per_piece("rss", rss, server.rss_kib(), LIVE_PROCESSES)
        samples |= per_piece("fds", fds, server.open_fds(), LIVE_PROCESSES)

        busy = p50(one_shots(connection, 100)["closed"])
        samples |= {"idle": [idle], "busy": [busy], "slowdown": [busy / idle]}

        terminates = [connection.prepare_terminate(request.process_id) for request in starts]
        connection.set_patience(GIVE_UP_S)
        still_open = LIVE_PROCESSES
        begin = time.perf_counter()
        try:
            for request in terminates:
                connection.send(request)
            while still_open:
                if connection.receive().get("method") == "process/closed":
                    still_open -= 1
        except (TimeoutError, ConnectionError, WireError):
            pass
        took = (time.perf_counter() - begin) * 1e3
        return samples | {"terminate": [math.inf if still_open else took], "left": [float(still_open)]}


def connections(server: Server, quickack: bool) -> Samples:
    """Hold 200 connections that have done their handshake and nothing more."""
    with ExitStack() as stack:
        busy_one = stack.enter_context(Connection(server.url, quickack=quickack))
        idle = p50(one_shots(busy_one, 100)["closed"])
        rss = server.rss_kib()
        begin = time.perf_counter()
        for _ in range(IDLE_CONNECTIONS):
            stack.enter_context(Connection(server.url, quickack=quickack))
        samples = {"connect": [(time.perf_counter() - begin) * 1e3]}
        samples |= per_piece("rss", rss, server.rss_kib(), IDLE_CONNECTIONS)
        busy = p50(one_shots(busy_one, 100)["closed"])
        return samples | {"idle": [idle], "busy": [busy], "slowdown": [busy / idle]}


def slow_consumer(server: Server, quickack: bool) -> Samples:
    """Stop reading one connection while its process floods; watch another one, and the server's memory."""
    with (
        Connection(server.url, quickack=quickack) as other,
        Connection(server.url, quickack=quickack) as stalled,
    ):
        idle = p50([run_one_shot(other)[1] for _ in paced(FLOOD_S / 2)])
        before = server.rss_kib()
        process_id = stalled.start("sh", "-c", "echo $$; exec cat /dev/zero")
        pid = int(stalled.read_output(process_id, lambda output: b"\n" in output).partition(b"\n")[0])

        growth = 0.0
        meanwhile: list[float] = []
        for _ in paced(FLOOD_S):
            meanwhile.append(run_one_shot(other)[1])
            growth = max(growth, (server.rss_kib() or 0) - (before or 0))
        busy = p50(meanwhile)
        samples = {"idle": [idle], "busy": [busy], "slowdown": [busy / idle]}
        if before is not None:
            samples["growth"] = [growth / 1024]

        # A pid of another namespace would be somebody else's process here.
        if is_flood(pid):
            begin = time.perf_counter()
            stalled.send(stalled.prepare_terminate(process_id))
            while not (gone := process_is_gone(pid)) and time.perf_counter() - begin < GIVE_UP_S:
                time.sleep(0.0005)
            samples["gone"] = [(time.perf_counter() - begin) * 1e3 if gone else math.inf]
        return samples


def files(server: Server, quickack: bool) -> Samples:
    """One-shots beside a flood that is read; then 200 calls about files are open all the time as well."""
    with (
        Connection(server.url, quickack=quickack) as flooded,
        Connection(server.url, quickack=quickack) as other,
    ):
        flooded.start("cat", "/dev/zero")
        with in_process_of_its_own(flooded.read_for_ever):
            without = p50([run_one_shot(other)[1] for _ in paced(FLOOD_S)])
            with (
                TemporaryDirectory(ignore_cleanup_errors=True) as folder,
                Connection(server.url, quickack=quickack) as busy,
                in_process_of_its_own(lambda: keep_open(busy, file_calls(Path(folder)))),
            ):
                beside = p50([run_one_shot(other)[1] for _ in paced(FLOOD_S)])
        return {"without": [without], "beside": [beside], "slowdown": [beside / without]}


def file_calls(folder: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Calls of all kinds about small files, for ever."""
    (folder / "listed").mkdir()
    for number in range(200):
        (folder / "listed" / str(number)).touch()
    (folder / "read").write_bytes(b"y" * 100_000)
    written = b64encode(b"x" * 60_000).decode()
    for number in count():
        at = {
            name: (folder / name).as_uri()
            for name in (
                "read",
                "listed",
                *(f"{kind}{number % 200}" for kind in ("written", "made", "copied")),
            )
        }
        read, listed, new_file, new_folder, copied = at.values()
        yield "fs/readFile", {"path": read}
        yield "fs/getMetadata", {"path": read}
        yield "fs/writeFile", {"path": new_file, "dataBase64": written}
        yield "fs/readDirectory", {"path": listed}
        yield "fs/canonicalize", {"path": read}
        yield "fs/createDirectory", {"path": f"{new_folder}/a/b"}
        yield "fs/copy", {"sourcePath": read, "destinationPath": copied, "recursive": False}
        # Not the new one, which may not be there yet: nothing orders open calls.
        yield "fs/remove", {"path": (folder / f"made{(number - 100) % 200}").as_uri()}


def keep_open(connection: Connection, calls: Iterator[tuple[str, dict[str, object]]]) -> None:
    """Send a call for each answer that comes, so that FILE_CALLS are open all the time."""
    for call in islice(calls, FILE_CALLS):
        connection.send(connection.prepare(*call))
    for call in calls:
        connection.receive()
        connection.send(connection.prepare(*call))


@contextmanager
def in_process_of_its_own(work: Callable[[], None]) -> Generator[None]:
    """Run `work` in a child for the time of the block: it takes no time of ours."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    try:
        yield
        if os.waitpid(child, os.WNOHANG)[0]:
            raise WireError("the load beside the measurement has ended early")
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def paced(seconds: float) -> Iterator[None]:
    """Tick for some seconds, so slowly that the ended processes a server retains do not weigh in."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(PAUSE_S)


def is_flood(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() == b"cat\0/dev/zero\0"
    except OSError:
        return False


def per_piece(series: str, before: float | None, after: float | None, pieces: int) -> Samples:
    """What one piece costs, as a sample; none if the cost cannot be seen."""
    return {} if before is None or after is None else {series: [(after - before) / pieces]}


WORKLOADS = (
    Workload(
        "one-shot",
        one_shot,
        (
            Figure("start ack p50", "ack", "ms", bar=0.20),
            Figure("one-shot p50", "closed", "ms", bar=0.42, default_bar=0.05),
            Figure("one-shot p95", "closed", "ms", p95, bar=0.42),
        ),
    ),
    Workload(
        "pty-one-shot",
        pty_one_shot,
        (
            Figure("PTY one-shot p50", "closed", "ms", bar=0.42),
            Figure("PTY one-shot p95", "closed", "ms", p95),
        ),
    ),
    Workload("pipe-echo", pipe_echo, (Figure("pipe echo 64 B p50", "echo", "us", bar=1.2),)),
    Workload("pty-echo", pty_echo, (Figure("PTY echo 64 B p50", "echo", "us", bar=1.05),)),
    Workload(
        "pipe-throughput",
        pipe_throughput,
        (Figure("pipe throughput 32 MiB", "rate", "MB/s", bar=1.4, more_is_better=True),),
    ),
    Workload(
        "pty-throughput",
        pty_throughput,
        (Figure("PTY throughput 8 MiB", "rate", "MB/s", bar=0.9, more_is_better=True),),
    ),
    Workload("burst", burst, (Figure("burst of 100", "all", "ms", bar=0.25),)),
    Workload(
        "many-live",
        many_live,
        (
            Figure("start 300 sleepers", "start", "ms"),
            Figure("RSS per live process", "rss", "KiB", bar=0.35),
            Figure("fds per live process", "fds", "fds"),
            Figure("one-shot p50, nothing live", "idle", "ms"),
            Figure("one-shot p50, 300 live", "busy", "ms"),
            Figure("300 live / nothing live", "slowdown", "x", bar=1.1, absolute=True),
            Figure("300 terminates until all closed", "terminate", "ms"),
            Figure("never closed", "left", "of 300", bar=0, absolute=True),
        ),
        on_request=True,
    ),
    Workload(
        "connections",
        connections,
        (
            Figure("connect and handshake 200 times", "connect", "ms"),
            Figure("RSS per idle connection", "rss", "KiB", bar=0.35),
            Figure("one-shot p50, alone", "idle", "ms"),
            Figure("one-shot p50, 200 connections", "busy", "ms"),
            Figure("200 connections / alone", "slowdown", "x", bar=1.1, absolute=True),
        ),
        on_request=True,
    ),
    Workload(
        "slow-consumer",
        slow_consumer,
        (
            Figure("RSS growth in a flood of 4 s", "growth", "MiB", bar=4, absolute=True),
            Figure("other connection's one-shot p50, idle", "idle", "ms"),
            Figure("other connection's one-shot p50, flood", "busy", "ms"),
            Figure("flood / idle", "slowdown", "x", bar=1.5, absolute=True),
            Figure("terminate on the stalled connection", "gone", "ms"),
        ),
        on_request=True,
    ),
    Workload(
        "files",
        files,
        (
            Figure("one-shot p50 beside a flood", "without", "ms"),
            Figure("and beside 200 open calls about files", "beside", "ms"),
            Figure("slowdown by these calls", "slowdown", "x", bar=2, absolute=True),
        ),
        on_request=True,
    ),
)
