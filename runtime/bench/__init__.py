"""Benchmark of a bundle: ``python -m runtime.bench`` measures it against the full network, on held-out data."""

from runtime.bench.plot import draw_latencies

__all__ = ["draw_latencies"]
