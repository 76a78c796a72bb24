"""Statistics of a served model: requests by outcome, and times, as counters that only grow and survive a reload."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from time import time_ns
from typing import Any

import numpy as np

from runtime.oip.failures import Failure

OK = {"http": "200", "grpc": "OK"}
BUCKETS_S = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0,
)  # fmt: skip
"""Upper ends of the buckets of every histogram of seconds."""


class Histogram:
    """Counts of values by bucket."""

    def __init__(self, bounds: tuple[float, ...] = BUCKETS_S) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Counts a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, int]]:
        """Returns the upper end of every bucket and how many values are at most that, as Prometheus has them."""
        found, below = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            below += count
            found.append((bound, below))
        return found


@dataclass(slots=True)
class Duration:
    """How often something took place, and for how long in all, in nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        """Counts one."""
        self.count += 1
        self.ns += int(seconds * 1e9)

    def plain(self) -> dict[str, int]:
        """Returns it as the protocol has it."""
        return {"count": self.count, "ns": self.ns}


@dataclass(slots=True)
class CallTimes:
    """Where the time of a call went, in seconds.

    Attributes:
        total: from the body's arrival to the answer.
        prepared: reading and preparing inputs.
        hosted: in the host: waiting, copying and engines.
        engine: inside engines.
    """

    total: float
    prepared: float
    hosted: float
    engine: float


@dataclass(slots=True)
class ModelStatistics:
    """Counters of a model.

    Attributes:
        requests: (protocol, code) -> how many ended so.
        failures: reason -> how many.
        rows: answered.
        exits: name of exit -> rows that left there.
        row_latency: name of exit -> seconds from the request to the row's answer.
        duration: protocol -> seconds of answered requests.
        reloads: result -> how many.
        last_inference_ms: when the last one was answered, since 1970.
    """

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    exits: Counter[str] = field(default_factory=Counter)
    row_latency: dict[str, Histogram] = field(default_factory=dict)
    duration: dict[str, Histogram] = field(default_factory=dict)
    reloads: Counter[str] = field(default_factory=Counter)
    last_inference_ms: int = 0
    success: Duration = field(default_factory=Duration)
    failed: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)

    def add_rows(self, names: list[str], exit_index: np.ndarray, latency_ms: np.ndarray) -> None:
        """Counts rows that were answered, by the exits where they left."""
        for place, milliseconds in zip(exit_index.tolist(), latency_ms.tolist(), strict=True):
            name = names[place]
            self.exits[name] += 1
            if name not in self.row_latency:
                self.row_latency[name] = Histogram()
            self.row_latency[name].add(milliseconds / 1e3)
        self.rows += len(exit_index)

    def add_success(self, protocol: str, times: CallTimes) -> None:
        """Counts a request that was answered."""
        self.requests[protocol, OK[protocol]] += 1
        self.last_inference_ms = time_ns() // 1_000_000
        if protocol not in self.duration:
            self.duration[protocol] = Histogram()
        self.duration[protocol].add(times.total)
        self.success.add(times.total)
        self.queue.add(max(0.0, times.hosted - times.engine))
        self.compute_input.add(times.prepared)
        self.compute_infer.add(min(times.engine, times.hosted))
        self.compute_output.add(max(0.0, times.total - times.prepared - times.hosted))

    def add_failure(self, protocol: str, failure: Failure, seconds: float) -> None:
        """Counts a request that failed."""
        self.requests[protocol, str(failure.status) if protocol == "http" else failure.code] += 1
        self.failures[failure.reason] += 1
        self.failed.add(seconds)

    def plain(self, name: str, version: str, runs: int) -> dict[str, Any]:
        """Returns the statistics as the protocol has them; ``runs``: of its stages."""
        nothing = Duration().plain()
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_inference_ms,
            "inference_count": self.rows,
            "execution_count": runs,
            "inference_stats": {
                "success": self.success.plain(),
                "fail": self.failed.plain(),
                "queue": self.queue.plain(),
                "compute_input": self.compute_input.plain(),
                "compute_infer": self.compute_infer.plain(),
                "compute_output": self.compute_output.plain(),
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "batch_stats": [],
        }
