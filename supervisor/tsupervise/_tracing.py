"""Traces, by OpenTelemetry: the client sends the context of its caller, the daemon makes a span of each request.

Nothing of OpenTelemetry is imported unless somebody wants it: the daemon only if told to, the client only looks
whether the program around it has it loaded. The packages are in the extra `otel`.

A span says which method was called, on which process, how long it took and by which code it failed. It never
carries more of what was sent: no arguments, no environment, no input, no output, no texts of errors.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from tsupervise_protocol.codec import Request, Trace
from tsupervise_protocol.messages import StartParams
from tsupervise_protocol.methods import METHODS

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    # Loaded or not loaded as one whole, for it is looked up in sys.modules.
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

log = logging.getLogger(__name__)

FLUSH_S = 2.0
"""How long a collector may take for the last spans when the daemon ends, in seconds."""

MAX_TEXT = 200
"""Characters of a client's text in an attribute."""


class CannotTrace(Exception):
    """Traces were asked for, and the packages for them are not there."""


def current_trace() -> Trace | None:
    """The trace context of the caller, for the wire; None if no span is active in it."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None or not api.get_current_span().get_span_context().is_valid:
        return None
    carrier: dict[str, str] = {}
    _propagator().inject(carrier)
    return Trace(carrier.get("traceparent"), carrier.get("tracestate"))


def _propagator() -> TraceContextTextMapPropagator:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator()


class RequestTracer:
    """Makes the spans of the daemon.

    Args:
        tracer: of OpenTelemetry.
    """

    def __init__(self, tracer: Tracer) -> None:
        from opentelemetry.trace import SpanKind, StatusCode

        self._tracer = tracer
        self._kind = SpanKind.SERVER
        self._error = StatusCode.ERROR
        self._propagator = _propagator()

    def answered(self, request: Request, code: int | None, seconds: float) -> None:
        """Make the span of a request that has just been answered.

        Args:
            request: its trace context, if it has one that is well-formed, is the parent.
            code: of the error answer, None if all went well.
            seconds: from its arrival to its answer.
        """
        end_ns = time.time_ns()
        span = self._tracer.start_span(
            request.method if request.method in METHODS else "other",
            context=self._propagator.extract(_carrier(request.trace)),
            kind=self._kind,
            attributes=_attributes(request),
            start_time=end_ns - int(seconds * 1e9),
        )
        if code is not None:
            span.set_attribute("rpc.jsonrpc.error_code", int(code))
            span.set_status(self._error)
        span.end(end_ns)


def _carrier(trace: Trace | None) -> dict[str, str]:
    if trace is None:
        return {}
    fields = {"traceparent": trace.traceparent, "tracestate": trace.tracestate}
    return {name: value for name, value in fields.items() if value is not None}


def _attributes(request: Request) -> Mapping[str, str]:
    attributes = {"rpc.system": "jsonrpc"}
    for name in ("process_id", "uid"):
        value = getattr(request.params, name, None)
        if isinstance(value, str):
            attributes[f"tsupervise.{name}"] = value[:MAX_TEXT]
    if isinstance(request.params, StartParams) and request.params.argv:
        attributes["tsupervise.program"] = request.params.argv[0][:MAX_TEXT]
    return attributes


def _is_configured(environ: Mapping[str, str]) -> bool:
    """Whether the standard variables name a place to send traces to."""
    if (
        environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
        or environ.get("OTEL_TRACES_EXPORTER") == "none"
    ):
        return False
    places = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return any(environ.get(name) for name in places)


@asynccontextmanager
async def open_tracing(wanted: bool | None) -> AsyncGenerator[RequestTracer | None]:
    """Send spans by OTLP over HTTP, to where the `OTEL_*` variables say, for the time of the block.

    A collector that is away costs the spans that do not fit its exporter's queue, and FLUSH_S at the end.

    Args:
        wanted: None if the variables decide; then missing packages are only warned of.

    Raises:
        CannotTrace: the packages are not installed.
    """
    if wanted is False or (wanted is None and not _is_configured(os.environ)):
        yield None
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        text = f"traces need OpenTelemetry (pip install 'tsupervise[otel]'): {error}"
        if wanted:
            raise CannotTrace(text) from None
        log.warning("OTEL_* is set, and %s", text)
        yield None
        return
    resource = Resource.create({"service.name": "tsupervise"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    try:
        yield RequestTracer(provider.get_tracer("tsupervise"))
    finally:
        with trio.move_on_after(FLUSH_S, shield=True):
            await trio.to_thread.run_sync(provider.shutdown, abandon_on_cancel=True)
