"""Goodput: the highest rate at which 99 % of all requests are answered within a bound, by bisection; and what a stream
looked like at a rate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runtime.scheduling.decisions import Policy, SchedulerConfig
from runtime.scheduling.tables import StageCosts
from runtime.simulate.arrivals import make_arrivals
from runtime.simulate.device import LoopCost, Simulated, Stream, draw_noise, simulate

_STEPS = 9
_LOWEST = 0.02  # of the pooled capacity


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationConfig:
    """What is simulated.

    Attributes:
        arrivals: as ``make_arrivals`` has it.
        requests: how many, one row each.
        slo_ms: the bound; also what the scheduler aims at.
        timeout_ms: the deadline of every request; ``None``: none has one.
        max_waiting_rows: as ``SchedulerConfig``.
        spread: relative spread of the time of a run.
        loop: what the event loop takes.
        seed: of everything that is drawn.
    """

    arrivals: str = "poisson"
    requests: int = 10_000
    slo_ms: float = 25.0
    timeout_ms: float | None = None
    max_waiting_rows: int | None = None
    spread: float = 0.05
    loop: LoopCost = field(default_factory=LoopCost)
    seed: int = 0


def play_rate(
    costs: StageCosts, exits: np.ndarray, policy: Policy, rate_per_s: float, config: SimulationConfig
) -> Simulated:
    """Plays a stream at a rate: its rows leave where randomly drawn ones of ``exits`` did, (N,) int64."""
    drawn = np.random.default_rng(config.seed + 1).choice(exits, config.requests)
    stream = Stream(
        arrivals_s=make_arrivals(config.arrivals, config.requests, rate_per_s, config.seed),
        exits=drawn,
        timeout_s=None if config.timeout_ms is None else config.timeout_ms / 1e3,
    )
    rules = SchedulerConfig(policy=policy, slo_s=config.slo_ms / 1e3, max_waiting_rows=config.max_waiting_rows)
    return simulate(costs, rules, stream, draw_noise(config.spread, config.seed + 2), config.loop)


def find_goodput(
    costs: StageCosts, exits: np.ndarray, policy: Policy, config: SimulationConfig
) -> tuple[float, Simulated | None]:
    """Returns the highest rate that meets the bound, to about half a per cent of the range, and its stream.

    0 and ``None`` where even the lowest rate misses it.
    """

    def play(rate: float) -> Simulated:
        return play_rate(costs, exits, policy, rate, config)

    low, high = _LOWEST * costs.pooled_capacity, 1.25 * costs.pooled_capacity
    best: Simulated | None = play(low)
    if best is None or not _meets(best, config):
        return 0.0, None
    for _ in range(_STEPS):
        middle = (low + high) / 2
        found = play(middle)
        if _meets(found, config):
            low, best = middle, found
        else:
            high = middle
    return low, best


def describe(found: Simulated, rate_per_s: float, slo_ms: float) -> dict[str, Any]:
    """Returns the figures of a stream at a rate."""
    answered = found.latency_s[np.isfinite(found.latency_s)] * 1e3
    return {
        "rate_per_s": rate_per_s,
        "answered": len(answered) / len(found.latency_s),
        "answered_in_time": float((found.latency_s * 1e3 <= slo_ms).mean()),
        "answered_in_time_per_s": float((found.latency_s * 1e3 <= slo_ms).sum() / found.end_s),
        "mean_latency_ms": float(answered.mean()) if len(answered) else None,
        "p50_ms": _percentile(answered, 50),
        "p99_ms": _percentile(answered, 99),
        "busy": found.busy_s / found.end_s,
        "rows_per_run": [rows / runs if runs else 0.0 for rows, runs in zip(found.rows, found.runs, strict=True)],
        "pooled_runs": found.pooled_runs / max(1, sum(found.runs)),
    }


def _percentile(values: np.ndarray, q: float) -> float | None:
    return float(np.percentile(values, q)) if len(values) else None


def _meets(found: Simulated, config: SimulationConfig) -> bool:
    return float((found.latency_s * 1e3 <= config.slo_ms).mean()) >= 0.99
