"""Traces: a span of each request at the daemon, below the one that was active at the client, and no secret in any.

Spans are collected by OpenTelemetry's own exporters: in memory, and over OTLP by a collector that the test is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, TraceFlags, Tracer

import tsupervise
from daemons import command_of, running, start_daemon
from in_process import House, MemoryPeer, open_house
from otlp import collecting
from tsupervise._channel import memory_channels
from tsupervise._connection import Connection
from tsupervise._tracing import MAX_TEXT, RequestTracer, current_trace
from tsupervise.client import open_client
from wire import start_params

pytestmark = pytest.mark.ours_only("the reference exports its traces otherwise")

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
"""The example of the W3C recommendation, 3.2."""

SECRET = "hunter2"


class Collected:
    """A tracer, and what it has made."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer: Tracer = provider.get_tracer("tests")

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> ReadableSpan:
        (span,) = (span for span in self.spans if span.name == name)
        return span


@pytest.fixture
def collected() -> Collected:
    return Collected()


async def traced_peer(house: House, collected: Collected) -> MemoryPeer:
    """A peer whose requests have spans."""
    house.supervisor.tracer = RequestTracer(collected.tracer)
    return await house.connect()


async def ask(peer: MemoryPeer, request_id: int, method: str, params: Any, trace: Any) -> Any:
    message = {"id": request_id, "method": method, "params": params, "trace": trace}
    await peer.channel.send([json.dumps(message).encode()])
    return await peer.answer_to(request_id)


@pytest.mark.case(162)
async def test_the_trace_of_a_request_is_the_parent_of_its_span(
    collected: Collected, autojump_clock: object
) -> None:
    """The span joins the client's trace, is called like the method, and lasts until the answer."""
    trace = {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}
    async with open_house() as house:
        peer = await traced_peer(house, collected)
        (await ask(peer, 901, "process/start", start_params("p", "fake"), trace)).ok()
        assert (await ask(peer, 902, "process/read", {"processId": "q"}, trace)).error
        house.children[0].end()
    start, read = collected.named("process/start"), collected.named("process/read")
    for span in (start, read):
        assert span.parent is not None
        assert f"{span.parent.trace_id:032x}" == TRACE_ID
        assert f"{span.parent.span_id:016x}" == SPAN_ID
        assert span.context is not None
        assert span.context.trace_state.get("vendor") == "1"
        assert span.kind is SpanKind.SERVER
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.start_time <= span.end_time
    assert start.attributes == {
        "rpc.system": "jsonrpc",
        "tsupervise.process_id": "p",
        "tsupervise.program": "fake",
    }
    assert start.status.status_code is StatusCode.UNSET
    assert read.attributes is not None
    assert read.attributes["rpc.jsonrpc.error_code"] == -32600
    assert read.status.status_code is StatusCode.ERROR


@pytest.mark.case(162)
@pytest.mark.parametrize(
    "trace",
    [None, {}, {"traceparent": None}, {"traceparent": "00-zz-zz-01"}, {"traceparent": "x" * 100_000}],
)
async def test_a_span_without_a_parent_begins_a_trace(
    collected: Collected, trace: Any, autojump_clock: object
) -> None:
    """A trace that is absent or makes no sense is no error, and not much is kept of it."""
    async with open_house() as house:
        peer = await traced_peer(house, collected)
        (await ask(peer, 901, "process/list", {}, trace)).ok()
    assert collected.named("process/list").parent is None


@pytest.mark.case(162)
async def test_what_is_not_to_be_seen_is_in_no_span(collected: Collected, autojump_clock: object) -> None:
    """Of a start the program, of anything else a name or two: no argument, environment, input or error text."""
    params = start_params("p", "fake", SECRET, env={"TOKEN": SECRET}, pipeStdin=True, arg0=SECRET)
    write = {"processId": "p", "chunk": SECRET, "writeId": SECRET}
    async with open_house() as house:
        peer = await traced_peer(house, collected)
        (await ask(peer, 901, "process/start", {**params, "metadata": {"k": SECRET}}, None)).ok()
        await ask(peer, 902, "process/write", write, None)
        await ask(peer, 903, "process/start", {**params, "cwd": SECRET}, None)
        await ask(peer, 904, SECRET, {}, None)
        await ask(peer, 905, "process/list" + SECRET, {SECRET: SECRET}, None)
        await ask(peer, 906, "process/read", {"processId": "x" * 100_000}, None)
        house.children[0].end()
    assert len(collected.spans) == 7
    for span in collected.spans:
        assert SECRET not in span.to_json()
        assert all(len(str(value)) <= MAX_TEXT for value in (span.attributes or {}).values())


@pytest.mark.case(162)
async def test_the_client_sends_the_span_that_is_active(collected: Collected) -> None:
    """The daemon's spans are children of the caller's; a call outside of any begins a trace of its own."""
    async with open_house() as house:
        house.supervisor.tracer = RequestTracer(collected.tracer)
        ours, theirs = memory_channels()
        house.nursery.start_soon(Connection(house.supervisor, theirs).run)
        async with open_client(ours) as client:
            with collected.tracer.start_as_current_span("mine") as mine:
                await client.call("process/list")
            await client.call("environment/status")
    theirs = collected.named("process/list")
    assert theirs.parent is not None
    assert theirs.parent.span_id == mine.get_span_context().span_id
    assert theirs.parent.trace_flags & TraceFlags.SAMPLED
    assert collected.named("environment/status").parent is None


def test_outside_of_a_span_nothing_is_sent(collected: Collected) -> None:
    """No context, no member; within one, exactly that of the span."""
    assert current_trace() is None
    with collected.tracer.start_as_current_span("mine") as span:
        trace = current_trace()
        assert trace is not None
        assert trace.traceparent is not None
        assert f"{span.get_span_context().span_id:016x}" in trace.traceparent


@pytest.mark.case(162)
def test_nothing_is_imported_for_who_wants_no_traces() -> None:
    """Neither a client nor the daemon's modules load OpenTelemetry by themselves."""
    program = """
import sys, trio, tsupervise, tsupervise.server, tsupervise.cli
async def main():
    async with tsupervise.open_supervisor() as client:
        await client.call("process/list")
trio.run(main)
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert printed.stdout == "[]\n", printed.stderr


@pytest.fixture
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """The URL of a collector, and what it has received."""
    with collecting() as found:
        yield found


@pytest.mark.case(162)
@pytest.mark.parametrize("option", ["--otel", None], ids=["asked-for", "by-the-variable"])
async def test_a_daemon_sends_its_spans_to_the_collector(
    option: str | None, collector: tuple[str, list[ExportTraceServiceRequest]]
) -> None:
    """By OTLP to where the standard variables say, the last ones at its end."""
    endpoint, received = collector
    env = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    options = [] if option is None else [option]
    with running(start_daemon("ours", *options, env=env)) as daemon:
        async with tsupervise.connect(daemon.url) as client:
            await client.call("process/list")
        assert await trio.to_thread.run_sync(daemon.stop) == 0
    resources = [resource for request in received for resource in request.resource_spans]
    names = [span.name for r in resources for scope in r.scope_spans for span in scope.spans]
    assert "process/list" in names
    (service,) = {
        a.value.string_value for r in resources for a in r.resource.attributes if a.key == "service.name"
    }
    assert service == "tsupervise"


@pytest.mark.case(162)
async def test_a_collector_that_is_away_holds_up_nothing(tmp_path: Path) -> None:
    """Requests are answered, and the daemon ends in time with 0."""
    env = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    with running(start_daemon("ours", env=env, stderr=tmp_path / "log")) as daemon:
        async with tsupervise.connect(daemon.url) as client:
            await client.call("process/list")
        assert await trio.to_thread.run_sync(daemon.stop) == 0


@pytest.mark.case(162)
@pytest.mark.parametrize("option", ["--otel", None])
async def test_without_the_packages_the_daemon_says_what_to_install(
    option: str | None, tmp_path: Path
) -> None:
    """Asked for, it does not start; by a variable that may be meant for others, it warns and goes on."""
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text("")
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    if option is not None:
        command = [*command_of("ours"), "--otel"]
        ended = await trio.run_process(
            command, env=env, capture_stdout=True, capture_stderr=True, check=False
        )
        assert (ended.returncode, ended.stdout) == (1, b"")
        assert b"pip install 'tsupervise[otel]'" in ended.stderr
        return
    log = tmp_path / "log"
    with running(start_daemon("ours", env=env, stderr=log)) as daemon:
        async with tsupervise.connect(daemon.url) as client:
            await client.call("process/list")
    assert "pip install 'tsupervise[otel]'" in log.read_text()
