"""Metrics for Prometheus, made of the service's counters and snapshots at every scrape; Triton's names where asked for.

Labels are bounded: models, protocols, codes, reasons, exits and stages are few, and clients cannot make more of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from artifacts import BundleSpec, MissingExtraError, canonical_json, digest_of, package_version
from runtime.hosting.async_runtime import HostSnapshot
from runtime.serve.models import READY, ServedModel
from runtime.serve.service import SERVER, InferenceService

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

_TRITON_REASONS = {"cancelled": "CANCELED", "queue_full": "REJECTED", "deadline": "REJECTED", "engine": "BACKEND"}


def make_metrics_app(service: InferenceService) -> Starlette:
    """Returns an application that answers ``/metrics``.

    Raises:
        MissingExtraError: prometheus-client or Starlette is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
        from prometheus_client.exposition import choose_encoder
        from starlette.applications import Starlette
        from starlette.responses import Response
        from starlette.routing import Route
    except ModuleNotFoundError as error:
        raise MissingExtraError("prometheus-client", "serve") from error
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    registry.register(ServiceMetrics(service))

    async def metrics(request: Request) -> Response:
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"content-type": kind})

    return Starlette(routes=[Route("/metrics", metrics)])


class ServiceMetrics:
    """A collector of ``prometheus_client`` over a service."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """Yields all metrics, as they are now."""
        families = _Families()
        service = self._service
        families.gauge("pame_ready", "1 while the server takes requests.", [], float(service.ready))
        families.gauge("pame_inflight_bytes", "Bytes of bodies under way.", [], service.budget.taken)
        for code, count in service.unknown.requests.items():
            families.count("pame_requests", "Requests by model, protocol and code.", ["", *code], count)
        for model in service.models.values():
            _add_counters(families, model)
            if model.state == READY:
                _add_state(families, model)
            if service.options.triton_metrics:
                _add_triton(families, model)
        yield from families.made.values()


class _Families:
    """Metrics by name, each made when its first value comes."""

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}

    def count(self, name: str, help_: str, labels: list[str], value: float) -> None:
        from prometheus_client.core import CounterMetricFamily

        self._family(CounterMetricFamily, name, help_).add_metric(labels, value)

    def gauge(self, name: str, help_: str, labels: list[str], value: float) -> None:
        from prometheus_client.core import GaugeMetricFamily

        self._family(GaugeMetricFamily, name, help_).add_metric(labels, value)

    def summary(self, name: str, help_: str, labels: list[str], values: tuple[int, float]) -> None:
        from prometheus_client.core import SummaryMetricFamily

        self._family(SummaryMetricFamily, name, help_).add_metric(labels, *values)

    def histogram(self, name: str, help_: str, labels: list[str], values: Any) -> None:
        from prometheus_client.core import HistogramMetricFamily

        self._family(HistogramMetricFamily, name, help_).add_metric(labels, values.cumulative(), values.total)

    def _family(self, kind: Any, name: str, help_: str) -> Any:
        if name not in self.made:
            default = ["model", "version"] if name.startswith("nv_") else ["model"]
            self.made[name] = kind(name, help_, labels=_LABELS.get(name, default))
        return self.made[name]


_LABELS = {
    "pame_ready": [],
    "pame_inflight_bytes": [],
    "pame_requests": ["model", "protocol", "code"],
    "pame_failures": ["model", "reason"],
    "pame_rows": ["model", "exit"],
    "pame_expected_share": ["model", "exit"],
    "pame_request_duration_seconds": ["model", "protocol"],
    "pame_row_latency_seconds": ["model", "exit"],
    "pame_reloads": ["model", "result"],
    "pame_stage_run_seconds": ["model", "stage"],
    "pame_stage_run_rows": ["model", "stage"],
    "pame_stage_waiting_rows": ["model", "stage"],
    "pame_engine_failures": ["model", "stage"],
    "pame_bundle_info": ["model", "digest", "pame_version"],
    "nv_inference_request_failure": ["model", "reason", "version"],
}  # fmt: skip


def _add_counters(families: _Families, model: ServedModel) -> None:
    """Adds what survives a reload."""
    statistics, name = model.statistics, model.name
    families.gauge("pame_model_ready", "1 while the model answers.", [name], float(model.ready))
    for (protocol, code), count in statistics.requests.items():
        families.count("pame_requests", "Requests by model, protocol and code.", [name, protocol, code], count)
    for reason, count in statistics.failures.items():
        families.count("pame_failures", "Requests that failed, by reason.", [name, reason], count)
    for exit_, count in statistics.exits.items():
        families.count("pame_rows", "Rows answered, by the exit where they left.", [name, exit_], count)
    for protocol, histogram in statistics.duration.items():
        text = "Time of answered requests in the server."
        families.histogram("pame_request_duration_seconds", text, [name, protocol], histogram)
    for exit_, histogram in statistics.row_latency.items():
        text = "Time from a row's admission to its answer."
        families.histogram("pame_row_latency_seconds", text, [name, exit_], histogram)
    for result, count in statistics.reloads.items():
        families.count("pame_reloads", "Bundles that took over, and that could not.", [name, result], count)


def _add_state(families: _Families, model: ServedModel) -> None:
    """Adds what belongs to the bundle that is open now."""
    host, name = model.host, model.name
    snapshot: HostSnapshot = host.snapshot()
    now = snapshot.scheduling
    for stage, counts in enumerate(snapshot.stages):
        where = [name, str(stage)]
        text = "Time inside engines of a stage run."
        families.summary("pame_stage_run_seconds", text, where, (counts.runs, counts.engine_s))
        families.summary("pame_stage_run_rows", "Rows of a stage run.", where, (counts.runs, counts.rows))
        families.count("pame_engine_failures", "Stage runs that failed.", where, counts.faults)
        families.gauge("pame_stage_waiting_rows", "Rows that wait.", where, now.waiting_rows[stage])
    busy = sum(counts.engine_s for counts in snapshot.stages)
    families.count("pame_device_busy_seconds", "Time inside engines.", [name], busy)
    families.gauge("pame_inflight_requests", "Requests admitted and not done.", [name], now.open_tickets)
    families.gauge("pame_predicted_wait_seconds", "Time until what waits has been run.", [name], now.wait_s)
    families.gauge("pame_pooling", "1 while batches share stages.", [name], float(now.pooling))
    families.gauge("pame_policy_margin_seconds", "Margin of shared stages.", [name], now.margin_s)
    families.gauge("pame_offered_rows_per_second", "Rows that come.", [name], now.offered_rows_per_s)
    info = [name, bundle_digest(host.spec), package_version(SERVER) or ""]
    families.gauge("pame_bundle_info", "The bundle that is served.", info, 1.0)
    stats = host.stats_or_none()
    if stats is None:
        return
    families.count("pame_shadowed_rows", "Rows seen at every exit.", [name], snapshot.shadowed)
    families.gauge("pame_drift_alarm", "1 since the alarm.", [name], float(stats.alarm is not None))
    for exit_ in stats.exits:
        where = [name, exit_.name]
        families.gauge("pame_expected_share", "Share of rows by the exit plan.", where, exit_.expected_share)
    if stats.disagreement is not None:
        text = "Share of rows answered otherwise than at the end."
        families.gauge("pame_shadow_disagreement_ratio", text, [name], stats.disagreement)


def _add_triton(families: _Families, model: ServedModel) -> None:
    """Adds what Triton exports, by its names, so that existing dashboards go on working."""
    statistics = model.statistics
    where = [model.name, "1"]
    failures = dict.fromkeys(("OTHER", "BACKEND", "CANCELED", "REJECTED"), 0)
    for reason, count in statistics.failures.items():
        failures[_TRITON_REASONS.get(reason, "OTHER")] += count
    runs = model.runs if model.state == READY else 0
    pending = sum(model.host.snapshot().scheduling.waiting_rows) if model.state == READY else 0
    text = "As Triton's."
    for reason, count in failures.items():
        families.gauge("nv_inference_request_failure", text, [model.name, reason, "1"], count)
    for name, value in (
        ("request_success", statistics.success.count), ("count", statistics.rows), ("exec_count", runs),
        ("request_duration_us", statistics.success.ns // 1000), ("queue_duration_us", statistics.queue.ns // 1000),
        ("compute_input_duration_us", statistics.compute_input.ns // 1000),
        ("compute_infer_duration_us", statistics.compute_infer.ns // 1000),
        ("compute_output_duration_us", statistics.compute_output.ns // 1000), ("pending_request_count", pending),
    ):  # fmt: skip
        families.gauge(f"nv_inference_{name}", text, where, value)  # a counter would get Prometheus' _total


def bundle_digest(spec: BundleSpec) -> str:
    """Returns a short digest of what a bundle holds."""
    return digest_of([canonical_json(spec).decode()])[:16]
