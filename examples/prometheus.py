"""The running statistics of a runtime as Prometheus metrics; run it after ``make demo``.

    pip install prometheus-client
    python examples/prometheus.py runs/resnet/bundle 9464     # then look at http://localhost:9464/metrics

Every scrape takes one snapshot. A host adds ``RuntimeMetrics(runtime)`` to the registry that it has.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from artifacts import PameError, RunFolder
from runtime import Runtime, RuntimeStats

if TYPE_CHECKING:
    from prometheus_client.core import Metric

BATCH = 32


class RuntimeMetrics:
    """A collector of ``prometheus_client``: makes metrics at every scrape."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics of one snapshot."""
        yield from describe_stats(self._runtime.stats())


def describe_stats(stats: RuntimeStats) -> Iterator[Metric]:
    """Yields the metrics of a snapshot."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    queries = CounterMetricFamily("pame_queries", "Queries answered, by exit.", labels=["exit"])
    expected = GaugeMetricFamily("pame_expected_share", "Share of queries by the exit plan.", labels=["exit"])
    shadowed = CounterMetricFamily("pame_shadowed", "Queries carried on to the end.", labels=["exit", "agrees"])
    confidence = HistogramMetricFamily("pame_confidence", "Confidence with which queries left.", labels=["exit"])
    for exit_ in stats.exits:
        queries.add_metric([exit_.name], exit_.count)
        expected.add_metric([exit_.name], exit_.expected_share)
        shadowed.add_metric([exit_.name, "yes"], exit_.agreements)
        shadowed.add_metric([exit_.name, "no"], exit_.shadowed - exit_.agreements)
        below, buckets = 0, []
        for index, count in enumerate(exit_.confidence_counts):
            below += count
            buckets.append((str((index + 1) / len(exit_.confidence_counts)), below))
        confidence.add_metric([exit_.name], [*buckets, ("+Inf", below)], sum_value=None)
    yield from (queries, expected, shadowed, confidence)
    if stats.disagreement is not None:
        yield GaugeMetricFamily("pame_disagreement", "Share answered otherwise than at the end.", stats.disagreement)
    if stats.drift is not None:
        yield GaugeMetricFamily("pame_drift_log10_capital", "Evidence of drift.", stats.drift.log10_capital)
    yield GaugeMetricFamily("pame_drift_alarm", "1 since the alarm.", float(stats.alarm is not None))


def main(bundle: Path, port: int) -> None:
    """Serves the run's test images in an endless loop and its metrics on a port."""
    from prometheus_client import REGISTRY, start_http_server

    from calibration import BatchReader, as_batch, load_run_data

    samples = load_run_data(RunFolder(root=bundle.parent))
    rows = samples.indices_of("test")
    queries = BatchReader(samples, [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)])
    with Runtime.load(bundle, shadow_fraction=0.02) as runtime:
        REGISTRY.register(RuntimeMetrics(runtime))
        start_http_server(port)
        print(f"metrics at http://localhost:{port}/metrics; stop with Ctrl-C")
        while True:
            for inputs in queries:
                runtime.run(as_batch(inputs))


if __name__ == "__main__":
    try:
        main(
            Path(sys.argv[1] if len(sys.argv) > 1 else "runs/resnet/bundle"),
            int(sys.argv[2] if len(sys.argv) > 2 else 9464),
        )
    except PameError as error:
        sys.exit(f"error: {error}")
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}. Install it with: pip install prometheus-client")
    except KeyboardInterrupt:
        pass
