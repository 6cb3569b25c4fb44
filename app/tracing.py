"""Traces: one server span for each request, joined to its caller's, with children for what it went through.

OpenTelemetry, of the extra `otel`; nothing imports this file unless tracing is asked for. Exporter, sampler, resource
and propagators are configured by the SDK's own variables (OTEL_*). Names and attributes: OpenTelemetry semantic
conventions, "HTTP server" and "RPC server". The path and query as the caller wrote them are left out, as are headers,
addresses and messages: nothing of a span is the caller's but the ids and the state of its trace.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

from app.timeline import Timeline

logger = logging.getLogger(__name__)

Headers = Iterable[tuple[bytes, bytes]]
TraceIds = tuple[str, str]
"""A trace's and a span's id, as log lines have them."""

PROTOCOL = "http/protobuf"

METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
"""HTTP methods that have a name of their own in a span; others are _OTHER."""

RPC_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""gRPC codes that are the server's fault."""


class _RawHeaders(Getter[Headers]):
    def get(self, carrier: Headers, key: str) -> list[str] | None:
        wanted = key.encode()
        return [value.decode("latin-1") for name, value in carrier if name == wanted] or None

    def keys(self, carrier: Headers) -> list[str]:
        return [name.decode("latin-1") for name, _ in carrier]


_RAW_HEADERS = _RawHeaders()


class Tracing:
    """Makes spans and sends them from a thread of its own, which drops them when nobody takes them."""

    def __init__(self) -> None:
        """ValueError: a variable asks for what there is not."""
        asked = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        if asked and asked != PROTOCOL:
            raise ValueError(f"spans are sent as {PROTOCOL}, OTEL_EXPORTER_OTLP_PROTOCOL is {asked!r}")
        own = {"service.name": "kronserve", "service.version": version("kronserve")}
        resource = Resource.create({**own, **OTELResourceDetector().detect().attributes})
        # Our own provider, never the global one: FastAPI and others would add spans with paths and messages to that.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("kronserve", version("kronserve"))
        # Its warnings are about what callers send in their headers, and about each further try to reach the collector.
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)
        logging.getLogger("opentelemetry.sdk").setLevel(logging.WARNING)

    def begin(self, headers: Headers) -> Timeline:
        """The timeline of a request that begins now. headers: HTTP's or gRPC's, names in lower case."""
        try:
            return Timeline(extract(headers, Context(), _RAW_HEADERS))
        except Exception:  # of a propagator; no request fails for its trace
            logger.exception("the caller's trace cannot be read")
            return Timeline(Context())

    def answered_http(
        self, timeline: Timeline, method: str, scheme: str, route: str | None, status: int
    ) -> TraceIds | None:
        """An HTTP request is over. route: a path template, None for no known path. status: as in the metrics."""
        known = method if method in METHODS else "_OTHER"
        name = method if method in METHODS else "HTTP"
        attributes: dict[str, str | int] = {
            "http.request.method": known,
            "url.scheme": scheme,
            "http.response.status_code": status,
        }
        if route is not None:
            attributes["http.route"] = route
            name = f"{name} {route}"
        return self._end(timeline, name, attributes, str(status) if status >= 400 else None, fault=status >= 500)

    def answered_rpc(self, timeline: Timeline, method: str, code: str) -> TraceIds | None:
        """A gRPC call is over. method: SERVICE/METHOD. code: the status code's name."""
        attributes = {"rpc.system.name": "grpc", "rpc.method": method, "rpc.response.status_code": code}
        return self._end(timeline, method, attributes, None if code == "OK" else code, fault=code in RPC_FAULTS)

    def _end(
        self, timeline: Timeline, name: str, attributes: Mapping[str, str | int], error: str | None, *, fault: bool
    ) -> TraceIds | None:
        try:
            return self._spans(timeline, name, attributes, error, fault=fault)
        except Exception:  # no answer fails for its trace
            logger.exception("a request cannot be traced")
            return None

    def _spans(
        self, timeline: Timeline, name: str, attributes: Mapping[str, str | int], error: str | None, *, fault: bool
    ) -> TraceIds | None:
        of_model: dict[str, str | int] = {}
        if timeline.model is not None:
            of_model = dict(zip(("kronserve.model.name", "kronserve.model.version"), timeline.model, strict=True))
        phases = list(timeline.phases())
        ended = next(iter([phase for phase in phases if phase.failed] or phases[-1:]), None)
        at = timeline.nanoseconds
        span = self._tracer.start_span(
            name, timeline.parent, SpanKind.SERVER, {**attributes, **of_model}, start_time=timeline.began_ns
        )
        if span.is_recording():
            inside = set_span_in_context(span, Context())
            for phase in phases:
                size = {} if phase.rows is None else {**of_model, "kronserve.batch.rows": phase.rows}
                child = self._tracer.start_span(phase.name, inside, attributes=size, start_time=at(phase.start))
                if error is not None and phase is ended:
                    child.set_attribute("error.type", error)
                    child.set_status(StatusCode.ERROR)
                child.end(at(phase.end))
            if fault and error is not None:
                span.set_attribute("error.type", error)
                span.set_status(StatusCode.ERROR)
            span.end(at(time.monotonic()))
        context = span.get_span_context()
        return (f"{context.trace_id:032x}", f"{context.span_id:016x}") if context.is_valid else None

    def close(self) -> threading.Thread:
        """Begin to send what is left; the thread that is returned ends with it, and does not keep the process alive."""
        thread = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        thread.start()
        return thread
