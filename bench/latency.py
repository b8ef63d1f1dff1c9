"""Measure servers of the process protocol side by side: `python bench/latency.py --help`.

It speaks the wire alone and imports nothing of the package, so any server can be measured. Rounds go over
all workloads and, within each, over all servers in a rotating order: what the machine does to one server
it does to the others as well, and their ratio holds where absolute figures do not.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import signal
import sys
from collections import defaultdict
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from lean_client import WireError
from report import Rounds, Row, as_json, number, rows_of, table
from servers import Server, ServerError
from workloads import WORKLOADS, Workload, floor, p50, p95

CLIENTS = {"quickack": ("quickack",), "default": ("default",), "both": ("quickack", "default")}

HEAVY_ROUNDS = 3
"""The workloads on request take up to 20 s each; more rounds of them would tell little more."""


class TimeLimit(Exception):
    """A workload did not end in the time it has."""


@dataclass
class Bench:
    """One run: the servers, what has been measured of them so far, and what went wrong."""

    servers: list[Server]
    clients: tuple[str, ...]
    measured: dict[tuple[Workload, str], dict[str, Rounds]] = field(
        default_factory=lambda: defaultdict[tuple[Workload, str], dict[str, Rounds]](dict)
    )
    floor: list[float] = field(default_factory=list[float])
    errors: list[str] = field(default_factory=list[str])
    _failed: set[tuple[Workload, str]] = field(default_factory=set[tuple[Workload, str]])

    def run(self, workloads: list[Workload], rounds: int, *, with_floor: bool) -> None:
        repeated = [workload for workload in workloads if not workload.on_request]
        for turn in range(rounds if repeated or with_floor else 0):
            print(f"round {turn + 1} of {rounds}", file=sys.stderr)
            for server in self.servers:
                # What a server has retained can slow it down: without this, later rounds would differ.
                server.restart()
            if with_floor:
                self.floor += floor()["floor"]
            for client in self.clients:
                for place, workload in enumerate(repeated):
                    for server in rotated(self.servers, turn + place):
                        self.measure(workload, server, client)
        heavy = [workload for workload in workloads if workload.on_request]
        for turn in range(min(rounds, HEAVY_ROUNDS)):
            for workload in heavy:
                print(f"{workload.name}, round {turn + 1}", file=sys.stderr)
                for server in rotated(self.servers, turn):
                    # From a fresh start, for the memory; and no load on the others from what it leaves.
                    server.restart()
                    self.measure(workload, server, self.clients[0])
                    server.stop()

    def measure(self, workload: Workload, server: Server, client: str) -> None:
        """Run one workload once; after a failure that server is spared it for the rest of the run."""
        if (workload, server.name) in self._failed:
            return
        try:
            with time_limit(workload.limit_s):
                samples = workload.run(server, client == "quickack")
        except (WireError, TimeLimit, OSError, LookupError, ValueError) as error:
            self._failed.add((workload, server.name))
            self.errors.append(
                f"{workload.name} on {server.name} ({client}): {type(error).__name__}: {error}"
            )
            print(self.errors[-1], file=sys.stderr)
        else:
            self.measured[workload, client].setdefault(server.name, []).append(samples)

    def rows(self, peer: str | None) -> list[Row]:
        return [
            row
            for (workload, client), measured in self.measured.items()
            for row in rows_of(workload, client, measured, peer)
        ]


def rotated(servers: list[Server], by: int) -> list[Server]:
    first = by % len(servers)
    return servers[first:] + servers[:first]


@contextmanager
def time_limit(seconds: float) -> Generator[None]:
    """Raise TimeLimit in the block when its time is over, wherever it waits."""

    def expire(_signal: int, _frame: FrameType | None) -> None:
        raise TimeLimit(f"not done within {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def give_up(signal_number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + signal_number)


def machine() -> dict[str, str]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": str(os.cpu_count()),
        "load": f"{os.getloadavg()[0]:.2f}",
    }


def named(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def running_server(text: str) -> Server:
    name, url = named(text)
    return Server(name, url=url)


def own_server(text: str) -> Server:
    name, command = named(text)
    return Server(name, command=command)


def process_id(text: str) -> tuple[str, int]:
    name, pid = named(text)
    return name, int(pid)


@dataclass
class Options(argparse.Namespace):
    """What the command line asks for."""

    servers: list[Server] = field(default_factory=list[Server])
    pid: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    peer: str | None = None
    rounds: int = 10
    client: str = "quickack"
    workload: list[str] = field(default_factory=list[str])
    json: Path | None = None


def parse(arguments: list[str] | None) -> Options:
    names = ["floor", *(workload.name for workload in WORKLOADS)]
    on_request = ", ".join(workload.name for workload in WORKLOADS if workload.on_request)
    parser = argparse.ArgumentParser(
        prog="latency.py", description="Measure servers of the process protocol side by side."
    )
    add = parser.add_argument
    add(
        "--server",
        metavar="NAME=URL",
        dest="servers",
        action="append",
        type=running_server,
        help="a server that listens at ws://HOST:PORT",
    )
    add(
        "--spawn",
        metavar="NAME=COMMAND",
        dest="servers",
        action="append",
        type=own_server,
        help="a server to start here, and to end: COMMAND prints its ws:// URL as its first line",
    )
    add(
        "--pid",
        metavar="NAME=PID",
        action="append",
        type=process_id,
        help="whose memory counts for a server, if not that of the process with its listening socket",
    )
    add("--peer", metavar="NAME", help="the server to compare the others to (default: the last one named)")
    add("--rounds", type=int, help=f"times to go over all workloads and servers (default: {Options.rounds})")
    add(
        "--client",
        choices=list(CLIENTS),
        help=f"acknowledge at once, or when the kernel likes, or measure both (default: {Options.client})",
    )
    add(
        "--workload",
        metavar="NAME",
        nargs="+",
        action="extend",
        choices=names,
        help=f"only these, of {', '.join(names)}; on request only: {on_request}",
    )
    add("--json", metavar="FILE", type=Path, help="write all figures to a file, those of each round too")
    options = parser.parse_args(arguments, Options())
    known = [server.name for server in options.servers]
    if not known:
        parser.error("name at least one server with --server or --spawn")
    if len(set(known)) < len(known):
        parser.error("two servers have the same name")
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.peer is not None and options.peer not in known:
        parser.error(f"no server is named {options.peer!r}")
    running = {server.name: server for server in options.servers if not server.command}
    for name, pid in options.pid:
        if name not in running:
            parser.error(f"--pid is for a server given by --server, and {name!r} is not")
        running[name].pid = pid
    if options.peer is None and len(known) > 1:
        options.peer = known[-1]
    return options


def print_report(bench: Bench, rows: list[Row], peer: str | None, facts: dict[str, str]) -> None:
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    names = [server.name for server in bench.servers]
    for client in bench.clients:
        if chosen := [row for row in rows if row.client == client]:
            print(f"\nClient: {client}\n\n{table(chosen, names, peer)}")
    if bench.floor:
        print(f"\nfloor (posix_spawn and waitpid here): p50 {number(p50(bench.floor))} ms,", end=" ")
        print(f"p95 {number(p95(bench.floor))} ms")
        for row in rows:
            if row.figure.label == "one-shot p50":
                each = (f"{name} {value / p50(bench.floor):.2f}" for name, value in row.values.items())
                print(f"one-shot p50 / floor, {row.client}: {', '.join(each)}")
    for error in bench.errors:
        print(f"\nFAILED {error}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status is 1 if a workload failed, whatever the bars say."""
    options = parse(arguments)
    names = options.workload or [
        "floor",
        *(workload.name for workload in WORKLOADS if not workload.on_request),
    ]
    bench = Bench(options.servers, CLIENTS[options.client])
    # A default SIGTERM would leave the servers behind; as an exception it ends them.
    signal.signal(signal.SIGTERM, give_up)
    gc.disable()
    facts = machine()
    with ExitStack() as stack:
        for server in bench.servers:
            stack.callback(server.stop)
        try:
            bench.run(
                [workload for workload in WORKLOADS if workload.name in names],
                options.rounds,
                with_floor="floor" in names,
            )
        except ServerError as error:
            print(error, file=sys.stderr)
            return 2
    rows = bench.rows(options.peer)
    print_report(bench, rows, options.peer, facts)
    if options.json is not None:
        options.json.write_text(
            json.dumps(
                {
                    "machine": facts,
                    "servers": {server.name: server.command or server.url for server in bench.servers},
                    "peer": options.peer,
                    "rounds": options.rounds,
                    "floor_ms": p50(bench.floor) if bench.floor else None,
                    "figures": [as_json(row) for row in rows],
                    "errors": bench.errors,
                },
                indent=2,
            )
            + "\n"
        )
    return 1 if bench.errors else 0


if __name__ == "__main__":
    sys.exit(main())
