"""Resampling of calibration sets: how often the plans of a method lose more than the tolerance. Pure.

A trace is taken as the whole *population*: the true loss and the true cost of a plan are then plain sums over it. From
this population calibration sets are drawn with replacement, as independent as the theory wants them; every method plans
on the same sets, and its plans are judged on the population. A certificate promises that the true loss exceeds the
tolerance with a frequency below ``delta``.

A user cannot see the true loss, only that on some test set. So the loss on a fresh draw, half as large as the
calibration set, is recorded beside the true one; its frequency contains the noise of that draw, too: even a plan that
loses exactly the tolerance appears to lose more in every second test.

Speed. Drawing is an index into the trace. The true loss of a plan is computed once per resplit by one pass over the
population (0.3 ms for 10,000 samples); nearly all of the time is spent in the searches themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from artifacts import Trace, UsageError
from calibration import lower_share, upper_share
from planner.certify.evidence import metric_under
from planner.confidence.fitting import Learned
from planner.predict.costs import NetworkCosts, expect_mean_ms
from planner.predict.replay import NO_EXITS, Exits, evaluate_exits
from planner.search.greedy import configure_candidates
from planner.search.rules import SearchRules
from planner.search.threshold_grids import evaluate_grid, threshold_grid

Method = Callable[[Trace, int], tuple[Exits, Learned]]
"""A calibration set and a seed -> the plan that the method would ship, and the confidences that it learned for it."""
_ROUNDING = 1e-9
_SURE = 0.025  # on either side: 95 % intervals of the frequencies


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationConfig:
    """Configuration of a validation.

    Attributes:
        tolerance: allowed relative loss, in [0, 1).
        resplits: how many calibration sets are drawn.
        samples: in each of them; ``None``: as many as the population has.
        seed: of the draws.
        rules: which plans may win.
    """

    tolerance: float = 0.01
    resplits: int = 1000
    samples: int | None = None
    seed: int = 0
    rules: SearchRules = field(default_factory=SearchRules)

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise UsageError(f"--tolerance {self.tolerance}: expected a relative loss from 0 to below 1, e.g. 0.01")
        if self.resplits < 1:
            raise UsageError(f"--resplits {self.resplits}: expected at least 1")
        if self.samples is not None and self.samples < 2:
            raise UsageError(f"--samples {self.samples}: expected at least 2, some to tune on and some to test on")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MethodRecord:
    """Losses and latencies of the plans of one method, R resplits.

    Attributes:
        method: its name.
        loss: (R,) true relative loss of each plan, on the population.
        held_out_loss: (R,) the same on a fresh draw, half as large as the calibration set.
        latency_ratio: (R,) expected mean latency over that of the full network, on the population.
        exit_count: (R,) how many exits each plan has.
    """

    method: str
    loss: np.ndarray
    held_out_loss: np.ndarray
    latency_ratio: np.ndarray
    exit_count: np.ndarray

    def summarise(self, tolerance: float) -> dict[str, Any]:
        """Returns the entry of ``--json``; ratios are plan over full network."""
        resplits = len(self.loss)
        violations = int((self.loss > tolerance + _ROUNDING).sum())
        return {
            "method": self.method,
            "violation_frequency": violations / resplits,
            "violation_interval": [lower_share(violations, resplits, _SURE), upper_share(violations, resplits, _SURE)],
            "held_out_violation_frequency": float((self.held_out_loss > tolerance + _ROUNDING).mean()),
            "mean_metric_ratio": float(1 - self.loss.mean()),
            "worst_metric_ratio": float(1 - self.loss.max()),
            "mean_latency_ratio": float(self.latency_ratio.mean()),
            "no_exits_frequency": float((self.exit_count == 0).mean()),
            "mean_exits": float(self.exit_count.mean()),
        }


def validate_methods(
    population: Trace,
    costs: NetworkCosts,
    methods: Mapping[str, Method],
    config: ValidationConfig,
    *,
    over: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> tuple[MethodRecord, ...]:
    """Lets methods plan on redrawn calibration sets and judges their plans on the population.

    Args:
        population: with the metric that the risk is about.
        costs: the prices of the stages.
        methods: by name.
        config: how many sets, how large, for which tolerance.
        over: wraps the loop over the resplits, e.g. for a progress bar.
    """
    random, size = np.random.default_rng(config.seed), config.samples or population.sample_count
    full, whole = population.reference_metric, population.full_metric
    without = expect_mean_ms(costs.plan_costs(()), (1.0,), costs.load)
    found: dict[str, list[tuple[float, float, float, int]]] = {name: [] for name in methods}
    for resplit in over(range(config.resplits)):
        drawn = random.integers(0, population.sample_count, size)
        held_out = random.integers(0, population.sample_count, max(1, size // 2))
        seen = float(full[held_out].mean(dtype=np.float64))
        calibration = population.select(drawn)
        for name, method in methods.items():
            plan, learned = method(calibration, resplit)
            judged = population.with_confidences(learned)
            metric = metric_under(judged, plan)
            survival = evaluate_exits(judged, plan).survival
            latency = expect_mean_ms(costs.plan_costs(plan.cuts), survival, costs.load) / without
            loss = 1 - float(metric.mean(dtype=np.float64)) / whole
            apparent = 1 - float(metric[held_out].mean(dtype=np.float64)) / seen if seen else 0.0
            found[name].append((loss, apparent, latency, len(plan.cuts)))
    return tuple(
        MethodRecord(
            method=name, loss=rows[:, 0], held_out_loss=rows[:, 1], latency_ratio=rows[:, 2], exit_count=rows[:, 3]
        )
        for name, rows in ((name, np.array(rows, np.float64)) for name, rows in found.items())
    )


def plan_per_exit(trace: Trace, *, tolerance: float, step: float) -> Exits:
    """Plans as toolkits do that set every exit's threshold by itself: ``per-exit grid``.

    Each exit takes the lowest threshold of a grid at which the network with this exit alone keeps the tolerance; then
    all exits are used together. Their losses add up, which this method ignores.

    Args:
        trace: the calibration set.
        tolerance: allowed relative loss.
        step: of the grid.
    """
    grid = evaluate_grid(trace, threshold_grid(step), NO_EXITS)
    columns = configure_candidates(grid, trace.full_metric * (1 - tolerance))
    chosen = [
        (cut, float(grid.thresholds[column])) for cut, column in zip(trace.exits, columns, strict=True) if column >= 0
    ]
    return Exits(cuts=tuple(cut for cut, _ in chosen), thresholds=tuple(threshold for _, threshold in chosen))
