"""Traces by OpenTelemetry: a span for each request, with the time that it waited, the stages that ran, and its exits.

Nothing of OpenTelemetry is imported, and nothing done per request, unless the server is told to. A client's trace goes
on: its ``traceparent`` (W3C Trace Context) comes with the headers of HTTP or the metadata of gRPC.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from artifacts import MissingExtraError, PameError, UsageError
from runtime.oip.failures import describe_failure

if TYPE_CHECKING:
    from runtime.serve.models import Arrival

_TRACES = "/v1/traces"


class Tracing:
    """Spans of requests.

    Args:
        provider: a ``TracerProvider`` of OpenTelemetry's SDK; closed with this.
    """

    def __init__(self, provider: Any) -> None:
        try:
            from opentelemetry.trace import SpanKind, StatusCode
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ModuleNotFoundError as error:
            raise MissingExtraError("opentelemetry-sdk", "otel") from error
        self._provider = provider
        self._tracer = provider.get_tracer("pame.serve")
        self._propagator = TraceContextTextMapPropagator()
        self._kind, self._failed = SpanKind.SERVER, StatusCode.ERROR

    @contextmanager
    def request(self, model: str, arrival: Arrival) -> Iterator[Arrival]:
        """Traces a request while the block runs, from when it came; yields its arrival with a span to be described."""
        began_ns = time.time_ns() - int((perf_counter() - arrival.started) * 1e9)
        span = self._tracer.start_span(
            f"infer {model}", self._propagator.extract(arrival.carrier or {}), kind=self._kind, start_time=began_ns,
            attributes={"pame.model": model, "pame.protocol": arrival.protocol},
        )  # fmt: skip
        try:
            yield replace(arrival, span=span)
        except BaseException as error:
            span.set_status(self._failed, str(error))
            span.set_attribute("error.type", _reason_of(error))
            raise
        finally:
            span.end()

    def close(self) -> None:
        """Sends what has not been sent yet."""
        self._provider.shutdown()


def open_tracing(endpoint: str) -> Tracing:
    """Returns spans that go to a collector by OTLP over HTTP, from a thread of its own.

    Args:
        endpoint: of the collector, e.g. ``http://localhost:4318``; empty: as OpenTelemetry's environment variables say.

    Raises:
        MissingExtraError: OpenTelemetry is not installed.
        UsageError: the endpoint is no address.
    """
    if endpoint and (urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).hostname):
        raise UsageError(f"--otlp {endpoint}: expected the address of a collector, e.g. http://localhost:4318")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise MissingExtraError("opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http", "otel") from error
    whole = endpoint.rstrip("/")
    exporter = OTLPSpanExporter(endpoint=whole + ("" if whole.endswith(_TRACES) else _TRACES) if endpoint else None)
    provider = TracerProvider(resource=Resource({SERVICE_NAME: "pame"}).merge(OTELResourceDetector().detect()))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)


def describe_answer(span: Any, exits: list[int], hosted_s: float, engine_s: float) -> None:
    """Says of an answered request where its rows left, and what its time went into.

    Args:
        span: of the request.
        exits: the stage after which each row left.
        hosted_s: from when it entered the queue until its last row had left.
        engine_s: of these, inside engines; the others it waited.
    """
    span.set_attributes({
        "pame.rows": len(exits),
        "pame.exit_index": exits,
        "pame.stages": max(exits, default=-1) + 1,
        "pame.engine_ms": engine_s * 1e3,
        "pame.queue_ms": max(0.0, hosted_s - engine_s) * 1e3,
    })  # fmt: skip


def _reason_of(error: BaseException) -> str:
    return describe_failure(error).reason if isinstance(error, PameError) else type(error).__name__
