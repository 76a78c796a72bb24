"""Goodput as it is measured: the highest rate at which 99 % of all requests are answered within a bound.

The rates of a contender are searched by steps from what the simulation expects; the steps of all contenders take turns,
so that a machine that is slow for a while is slow for all of them. The same seed gives the same arrivals and queries to
everybody.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from artifacts import Answers, Task, UsageError
from runtime.loadtest.client import Played, play
from runtime.loadtest.contenders import Contender
from runtime.scheduling.decisions import parse_policy
from runtime.simulate.arrivals import make_arrivals
from runtime.simulate.goodput import SimulationConfig, find_goodput

IN_TIME = 0.99
_STEP = 1.3  # from one rate to the next, until one passes and a higher one does not
_LEAST_REQUESTS = 200
_WARM_UP = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadConfig:
    """How a host is loaded.

    Attributes:
        arrivals: as ``make_arrivals`` has it.
        seconds: how long the stream of a step lasts.
        steps: how many rates each contender is tried at.
        seed: of arrivals and queries.

    Raises:
        UsageError: a value is out of range.
    """

    arrivals: str = "poisson"
    seconds: float = 5.0
    steps: int = 7
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise UsageError(f"--seconds {self.seconds}: expected a positive number")
        if self.steps < 1:
            raise UsageError(f"--steps {self.steps}: expected a number from 1")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuerySet:
    """The queries of a load test, with what their answers are compared with.

    Attributes:
        count: how many.
        task: judges answers.
        full: the full network's answers, one array (count, ...) per output.
        targets: the true answers (count, ...); ``None`` without labels.
        exits: where queries leave in the simulation, (n,) int64.
    """

    count: int
    task: Task
    full: Answers
    targets: np.ndarray | None
    exits: np.ndarray


@dataclass(slots=True, eq=False)
class Search:
    """The search of one contender's goodput.

    Attributes:
        contender: is loaded.
        simulated: the rate that the simulation finds.
        rate: the next one to try.
        low, high: the highest rate that passed, and the lowest one that did not.
        best: the stream at ``low``.
        tried: rate -> share that was answered in time, in the order of the steps.
    """

    contender: Contender
    simulated: float
    rate: float
    low: float = 0.0
    high: float = math.inf
    best: Played | None = None
    tried: list[tuple[float, float]] = field(default_factory=list)

    def record(self, played: Played, bound_s: float) -> None:
        """Takes the stream at ``rate`` and chooses the next one."""
        share = played.in_time(bound_s)
        self.tried.append((self.rate, share))
        if share >= IN_TIME:
            if self.rate > self.low:
                self.low, self.best = self.rate, played
        else:
            self.high = min(self.high, self.rate)
        if self.low == 0:
            self.rate = self.high / 2
        elif self.high == math.inf:
            self.rate = self.low * _STEP
        else:
            self.rate = math.sqrt(self.low * self.high)


def begin_search(contender: Contender, queries: QuerySet, config: LoadConfig, *, slo_ms: float) -> Search:
    """Simulates a contender and returns its search, which begins at the rate that the simulation found."""
    policy = parse_policy(contender.policy)
    simulation = SimulationConfig(arrivals=config.arrivals, slo_ms=slo_ms, seed=config.seed)
    last = contender.costs.stage_count - 1
    rate, _ = find_goodput(contender.costs, np.minimum(queries.exits, last), policy, simulation)
    return Search(contender, rate, rate or 0.5 * contender.costs.chain_capacity)


async def search_goodput(
    searches: Sequence[Search], queries: QuerySet, config: LoadConfig, *, bound_s: float,
    done: Callable[[], object] = lambda: None,
) -> None:  # fmt: skip
    """Loads the contenders in turns, ``config.steps`` times each.

    Args:
        searches: from ``begin_search``; they are moved on.
        queries: what is asked.
        config: arrivals and steps.
        bound_s: the bound.
        done: called after every stream.
    """
    for search in searches:
        await load_at(search.contender, queries, config, rate=search.rate, bound_s=bound_s, count=_WARM_UP)
    for step in range(config.steps):
        for search in searches if step % 2 == 0 else reversed(searches):
            count = max(_LEAST_REQUESTS, math.ceil(search.rate * config.seconds))
            search.record(
                await load_at(search.contender, queries, config, rate=search.rate, bound_s=bound_s, count=count),
                bound_s,
            )
            done()


async def load_at(
    contender: Contender, queries: QuerySet, config: LoadConfig, *, rate: float, bound_s: float, count: int
) -> Played:  # fmt: skip
    """Sends a stream of ``count`` requests at a rate, breaking it off once it cannot pass any more."""
    arrivals = make_arrivals(config.arrivals, count, rate, config.seed)
    chosen = np.random.default_rng(config.seed + 1).integers(queries.count, size=count)
    return await play(contender.target, arrivals, chosen, bound_s=bound_s, misses=int(count * (1 - IN_TIME)))


def describe_search(search: Search, queries: QuerySet) -> dict[str, Any]:
    """Returns the figures of a search: rates, latencies, and how good the answers were at the highest rate."""
    found: dict[str, Any] = {
        "policy": search.contender.policy, "runs": search.contender.runs, "goodput_per_s": search.low,
        "simulated_per_s": search.simulated,
        "measured_over_simulated": search.low / search.simulated if search.simulated else None,
        "steps": [{"rate_per_s": rate, "in_time": share} for rate, share in search.tried],
    }  # fmt: skip
    return found if search.best is None else found | describe_played(search.best, queries)


def describe_played(played: Played, queries: QuerySet) -> dict[str, Any]:
    """Returns the figures of a stream; all of its requests were sent."""
    answered = played.latency_s[np.isfinite(played.latency_s)] * 1e3
    asked = np.array(sorted(played.answers), np.int64)
    answers = [np.concatenate(parts) for parts in zip(*(played.answers[query] for query in asked), strict=True)]
    full = [array[asked] for array in queries.full]
    left = played.exit_index[played.exit_index >= 0]
    return {
        "requests": len(played.latency_s), "answered": len(answered) / len(played.latency_s),
        "mean_latency_ms": float(answered.mean()), "p50_ms": float(np.percentile(answered, 50)),
        "p99_ms": float(np.percentile(answered, 99)),
        "sent_late_p99_ms": float(np.percentile(played.sent_late_s, 99) * 1e3), "errors": dict(played.errors),
        "exit_fractions": (np.bincount(left) / len(left)).tolist(), "queries": len(asked),
        "agreement": float(queries.task.agreement(answers, full).mean(dtype=np.float64)),
        "metric": None if queries.targets is None else _metric(queries.task, answers, queries.targets[asked]),
    }  # fmt: skip


def _metric(task: Task, answers: Answers, targets: np.ndarray) -> float:
    counts = task.counts(answers, targets)
    if counts is not None:
        return float(task.summarise(counts.sum(axis=0)))
    return float(task.quality(answers, targets).mean(dtype=np.float64))
