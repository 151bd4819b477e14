"""OpenTelemetry traces: one span a request, below it one for each stage. Needs the extra `traces`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ltdi import library_version
from ltdi.errors import InvalidConfig

ORDER = ("decode", "queue", "embed", "sample", "check", "encode")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"})
PATH = "/v1/traces"
EXPORT_SECONDS = 5


class Traces:
    """Sends spans to a collector (OTLP over HTTP), in a thread of its own; what it cannot take is dropped.

    Args:
        endpoint: of the collector; `/v1/traces` is added where it does not end so.

    Raises:
        InvalidConfig: the extra is not installed.
    """

    def __init__(self, endpoint: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise InvalidConfig("otlp_endpoint needs the extra `traces`: pip install 'ltdi[traces]'") from error
        url = endpoint.rstrip("/")
        exporter = OTLPSpanExporter(url if url.endswith(PATH) else url + PATH, timeout=EXPORT_SECONDS)
        facts = {"service.name": "ltdi", "service.version": library_version()}
        self._provider = TracerProvider(resource=Resource.create(facts), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("ltdi.service", library_version())
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, scope: Mapping[str, Any], request_id: str) -> Any:
        """The span of a request, below the one that its `traceparent` names."""
        from opentelemetry.trace import SpanKind

        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        return self._tracer.start_span(
            method,
            self._propagator.extract(carrier),
            SpanKind.SERVER,
            {"http.request.method": method, "url.scheme": scope["scheme"], "ltdi.request_id": request_id},
        )

    def end(self, span: Any, route: str | None, status: int, seconds: Mapping[str, float]) -> None:
        """End the span of a request.

        The lengths of its stages are measured; they are laid end to end in the order in which they ran, so that the
        last ends with the request.

        Args:
            route: as it is declared; None where none answered.
            status: 0 where no answer began.
            seconds: by stage.
        """
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        if not span.is_recording():
            return
        if route is not None:
            span.update_name(f"{span.name} {route}")
            span.set_attribute("http.route", route)
        span.set_attribute("http.response.status_code", status)
        if status >= 500 or not status:
            span.set_attribute("error.type", str(status))
            span.set_status(Status(StatusCode.ERROR))
        now, context = time.time_ns(), set_span_in_context(span)
        stages = [(stage, int(seconds[stage] * 1e9)) for stage in ORDER if stage in seconds]
        begun = now - sum(length for _, length in stages)
        for stage, length in stages:
            self._tracer.start_span(stage, context, start_time=begun).end(begun + length)
            begun += length
        span.end(now)

    def stop(self) -> None:
        """Send what waits, and end the thread."""
        self._provider.shutdown()


def trace_id(span: Any) -> str:
    """As `traceparent` has it."""
    return format(span.get_span_context().trace_id, "032x")
