"""Goodput as it is measured: the highest rate at which 99 % of all requests are answered within a bound.

The rates of a contender are searched by steps from what the simulation expects. A rate is judged by several short
streams, of which the median counts (``search.py`` says why); the streams of all contenders take turns, so that a
machine that is slow for a while is slow for all of them. The same seed gives everybody the same arrivals and queries.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import thread_time
from typing import Any

import numpy as np

from artifacts import Answers, Task, UsageError
from runtime.loadtest.client import Played, play
from runtime.loadtest.contenders import Contender, HostContender
from runtime.loadtest.search import IN_TIME, Search, Tried
from runtime.scheduling.decisions import parse_policy
from runtime.simulate.arrivals import make_arrivals
from runtime.simulate.device import loop_cost
from runtime.simulate.goodput import SimulationConfig, find_goodput

_LEAST_REQUESTS = 200
_WARM_UP = 64
_LIGHT_LOAD = 0.3  # of the capacity of a chain of full batches


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadConfig:
    """How a host is loaded.

    Attributes:
        arrivals: as ``make_arrivals`` has it.
        seconds: how long a stream lasts.
        repeats: how many streams judge a rate.
        steps: each contender has about ``steps * repeats`` streams at most.
        seed: of arrivals and queries.

    Raises:
        UsageError: a value is out of range.
    """

    arrivals: str = "poisson"
    seconds: float = 1.0
    repeats: int = 7
    steps: int = 7
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise UsageError(f"--seconds {self.seconds}: expected a positive number")
        for name in ("repeats", "steps"):
            if (number := getattr(self, name)) < 1:
                raise UsageError(f"--{name} {number}: expected a number from 1")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuerySet:
    """The queries of a load test, with what their answers are compared with.

    Attributes:
        count: how many.
        task: judges answers.
        full: the full network's answers, one array (count, ...) per output; ``None``: not known.
        targets: the true answers (count, ...); ``None`` without labels.
        exits: where queries leave in the simulation, (n,) int64; none where nothing is simulated.
    """

    count: int
    task: Task
    full: Answers | None
    targets: np.ndarray | None
    exits: np.ndarray


async def measure_request_s(
    contender: HostContender, queries: QuerySet, config: LoadConfig, *, bound_s: float
) -> float:
    """Returns how long the event loop works for a request, this client's part included: processor time of this thread
    while the contender is loaded lightly.
    """
    rate = _LIGHT_LOAD * contender.costs.chain_capacity
    await load_at(contender, queries, config, rate=rate, bound_s=bound_s, count=_WARM_UP)
    started = thread_time()
    played = await load_at(contender, queries, config, rate=rate, bound_s=bound_s, count=_LEAST_REQUESTS)
    return (thread_time() - started) / max(1, int((played.sent_late_s > 0).sum()))


def begin_search(
    contender: HostContender, queries: QuerySet, config: LoadConfig, *, slo_ms: float, request_s: float = 0.0
) -> Search:
    """Simulates a contender and returns its search, which begins at the rate that the simulation found.

    Args:
        contender: is loaded.
        queries: what is asked.
        config: arrivals.
        slo_ms: the bound.
        request_s: from ``measure_request_s``.
    """
    policy = parse_policy(contender.policy)
    loop = loop_cost(request_s, contender.threads)
    simulation = SimulationConfig(arrivals=config.arrivals, slo_ms=slo_ms, loop=loop, seed=config.seed)
    last = contender.costs.stage_count - 1
    rate, _ = find_goodput(contender.costs, np.minimum(queries.exits, last), policy, simulation)
    begin = rate or 0.5 * contender.costs.chain_capacity
    return Search(contender, begin, config.repeats, simulated=rate, request_s=request_s)


async def search_goodput(
    searches: Sequence[Search], queries: QuerySet, config: LoadConfig, *, bound_s: float,
    done: Callable[[], object] = lambda: None,
) -> None:  # fmt: skip
    """Loads the contenders in turns, until their searches have ended or had all their streams.

    Args:
        searches: from ``begin_search``; they are moved on.
        queries: what is asked.
        config: arrivals and steps.
        bound_s: the bound.
        done: called for every stream, those that were not needed included.

    A rate that passed has all its streams in the end, a few more than that if need be.
    """

    async def send(search: Search) -> None:
        count = max(_LEAST_REQUESTS, math.ceil(search.rate * config.seconds))
        own = replace(config, seed=config.seed + search.stream)
        found = await load_at(search.contender, queries, own, rate=search.rate, bound_s=bound_s, count=count)
        search.record(found, bound_s)
        done()

    for search in searches:
        await load_at(search.contender, queries, config, rate=search.rate, bound_s=bound_s, count=_WARM_UP)
    for turn in range(most := config.steps * config.repeats):
        for search in searches if turn % 2 == 0 else reversed(searches):
            if not search.ended:
                await send(search)
    for search in searches:
        while (best := search.best) is not None and len(best.streams) < search.repeats:
            search.rate = best.rate
            await send(search)
    for _ in range(sum(most - search.streams for search in searches)):
        done()


async def load_at(
    contender: Contender, queries: QuerySet, config: LoadConfig, *, rate: float, bound_s: float, count: int
) -> Played:  # fmt: skip
    """Sends a stream of ``count`` requests at a rate, breaking it off once it cannot pass any more."""
    arrivals = make_arrivals(config.arrivals, count, rate, config.seed)
    chosen = np.random.default_rng(config.seed + 1).integers(queries.count, size=count)
    return await play(contender.target, arrivals, chosen, bound_s=bound_s, misses=int(count * (1 - IN_TIME)))


def describe_search(search: Search, queries: QuerySet) -> dict[str, Any]:
    """Returns the figures of a search: rates, latencies of the median stream at the highest rate, how far the streams
    there lie apart, how good the answers were, and how often the machine stood still."""
    best, limit = search.best, search.limit
    goodput = 0.0 if best is None else best.rate
    streams = [played for tried in search.tried.values() for played in tried.streams]
    found: dict[str, Any] = {
        "policy": search.contender.policy, "runs": search.contender.runs, "goodput_per_s": goodput,
        "limit_per_s": None if limit is None else limit.rate,
        "converged": search.converged, "given_up": search.given_up,
        "steps": [{"rate_per_s": rate, "in_time": share} for rate, share in search.steps],
        "streams": len(streams), "stood_still": sum(played.stood_still for played in streams),
        "slow_runs": sum(played.slow.count for played in streams),
        "slow_runs_lost_s": sum(played.slow.lost_s for played in streams),
    }  # fmt: skip
    if search.simulated is not None:
        found |= {
            "simulated_per_s": search.simulated, "request_ms": search.request_s * 1e3,
            "measured_over_simulated": goodput / search.simulated if search.simulated else None,
        }  # fmt: skip
    return found if best is None else found | describe_tried(best, queries)


def describe_tried(tried: Tried, queries: QuerySet) -> dict[str, Any]:
    """Returns the figures of a rate that passed."""
    played = tried.median
    answered = played.latency_s[np.isfinite(played.latency_s)] * 1e3
    asked = np.array(sorted(tried.answers), np.int64)
    answers = [np.concatenate(parts) for parts in zip(*(tried.answers[query] for query in asked), strict=True)]
    full = None if queries.full is None else [array[asked] for array in queries.full]
    left = np.concatenate([stream.exit_index[stream.exit_index >= 0] for stream in tried.streams])
    p99_ms = [stream.p99_s() * 1e3 for stream in tried.streams]
    return {
        "requests": len(played.latency_s), "answered": len(answered) / len(played.latency_s),
        "mean_latency_ms": float(answered.mean()), "p50_ms": float(np.percentile(answered, 50)),
        "p99_ms": float(np.percentile(answered, 99)), "in_time": tried.share,
        "streams_in_time": sorted(tried.shares),
        "streams_p99_ms": [ms if math.isfinite(ms) else None for ms in sorted(p99_ms)],
        "sent_late_p99_ms": float(np.percentile(played.sent_late_s, 99) * 1e3),
        "errors": dict(sum((stream.errors for stream in tried.streams), Counter[str]())),
        "exit_fractions": (np.bincount(left) / len(left)).tolist(), "queries": len(asked),
        "agreement": None if full is None else float(queries.task.agreement(answers, full).mean(dtype=np.float64)),
        "metric": None if queries.targets is None else _metric(queries.task, answers, queries.targets[asked]),
    }  # fmt: skip


def _metric(task: Task, answers: Answers, targets: np.ndarray) -> float:
    counts = task.counts(answers, targets)
    if counts is not None:
        return float(task.summarise(counts.sum(axis=0)))
    return float(task.quality(answers, targets).mean(dtype=np.float64))
