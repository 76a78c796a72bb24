"""Planning objectives: the mean latency of a query, its 99th percentile, or the time of a whole batch."""

from __future__ import annotations

from typing import Protocol

from artifacts import UsageError, unknown_name

MEAN, P99, BATCH = "mean", "p99", "batch"
OBJECTIVES = (MEAN, P99, BATCH)
OBJECTIVE_WORDS = {MEAN: "mean latency", P99: "99th percentile of latency", BATCH: "time of a whole batch"}
TIE = 1e-6  # of equal percentiles the smaller mean latency decides


def check_objective(objective: str) -> None:
    """Refuses an objective that does not exist."""
    if objective not in OBJECTIVES:
        raise unknown_name("objective", objective, OBJECTIVES)


class Times(Protocol):
    """The times of a plan in milliseconds, e.g. ``costs.ChainTimes``."""

    @property
    def mean_ms(self) -> float: ...
    @property
    def batch_ms(self) -> float: ...
    @property
    def p99_ms(self) -> float | None: ...


def objective_ms(times: Times, objective: str) -> float:
    """Returns the value that an objective minimises, in milliseconds: its time; of equal percentiles the smaller mean.

    Raises:
        UsageError: the percentile was not worked out, see ``costs.expect_times``.
    """
    return time_ms(times, objective) + (TIE * times.mean_ms if objective == P99 else 0.0)


def time_ms(times: Times, objective: str) -> float:
    """Returns the time that an objective is about, in milliseconds; errors as for ``objective_ms``."""
    if objective != P99:
        return times.batch_ms if objective == BATCH else times.mean_ms
    if times.p99_ms is None:
        raise UsageError("the 99th percentile of this plan was not worked out; price it with percentile=True")
    return times.p99_ms
