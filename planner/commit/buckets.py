"""Buckets: the batch sizes to build, where every engine is bound to one. ``--max-engines``, ``--memory-mb``.

Theory. A stage receives ``n`` rows with a probability that ``planner.predict.survivors`` gives, so every ``n`` has a
weight ``w(n)`` in the expected cost: ``P(N = n) n / B`` for the mean latency, ``P(N = n)`` for the batch time. With
engines for the batch sizes ``s_1 < .. < s_m`` (the last one holds the largest batch) and rows padded up to the next of
them, the stage costs

    sum_i t(s_i) * W(s_(i-1), s_i),    W(a, b) = sum of w(n) over a < n <= b,

a sum over neighbours: the shortest path through the sizes. Its labels are (engines, memory, cost), and a label stays
only while no other one that ends at the same size is at least as good in all three (Martins' algorithm for paths with
several criteria, European Journal of Operational Research 16, 1984). The labels of the stages are then added up,
pruned likewise after every stage, and the least cost within both limits wins: exact for padded runs.

At run time ``engines.plan_covers`` may also take a larger size than the next, where that was measured to be faster,
or split the rows over several runs; so the chosen sizes cost at most the sum above (up to its margin for
noise), and the plan is priced anew from the covers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from artifacts import UsageError
from calibration import binomial_pmf
from planner.predict.objectives import BATCH
from planner.predict.traffic import Load


@dataclass(frozen=True, slots=True, kw_only=True)
class StageDemand:
    """The demand of a stage: how often it receives how many rows, and what its engines take.

    Attributes:
        weights: per number of rows 0..B its weight in the expected cost, see ``weigh_rows``.
        times_ms: batch size -> measured time; the largest is at least B.
        memory_mb: batch size -> megabytes of its engine, for the same sizes; none where memory has no limit.
    """

    weights: tuple[float, ...]
    times_ms: Mapping[int, float]
    memory_mb: Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """The chosen batch sizes.

    Attributes:
        sizes: per stage, ascending.
        engines: their number in all.
        memory_mb: their megabytes.
        cost_ms: expected cost with padded runs.
    """

    sizes: tuple[tuple[int, ...], ...]
    engines: int
    memory_mb: float
    cost_ms: float


def weigh_rows(share: float, load: Load, objective: str) -> tuple[float, ...]:
    """Returns the weight of every number of rows 0..B in the expected cost of a stage.

    Args:
        share: of all samples that enter the stage.
        load: the batches that enter the network; the largest has B queries.
        objective: ``batch`` weighs batches, everything else queries.
    """
    weights = np.zeros(load.largest + 1)
    for size, batches, queries in zip(load.batch_sizes, load.shares, load.query_shares, strict=True):
        scale = batches if objective == BATCH else queries * np.arange(size + 1) / size
        weights[: size + 1] += binomial_pmf(size, share) * scale
    return tuple(weights.tolist())


def plan_buckets(
    stages: Sequence[StageDemand], *, max_engines: int | None = None, memory_mb: float | None = None
) -> Buckets:
    """Chooses the batch sizes of all stages together.

    Args:
        stages: in the order of the data flow.
        max_engines: the most engines in all; ``None``: any number.
        memory_mb: the most megabytes of them together; ``None``: any.

    Raises:
        UsageError: not even one engine per stage is within the limits; the message names limits that would do.
    """
    limits = (np.inf if max_engines is None else max_engines, np.inf if memory_mb is None else memory_mb)
    whole = [Buckets(sizes=(), engines=0, memory_mb=0.0, cost_ms=0.0)]
    for stage in stages:
        own = _stage_labels(stage)
        whole = _prune(_join(before, label) for before in whole for label in own)
    fitting = [label for label in whole if label.engines <= limits[0] and label.memory_mb <= limits[1]]
    if not fitting:
        fewest, least = min(label.engines for label in whole), min(label.memory_mb for label in whole)
        raise UsageError(
            f"--max-engines {max_engines} --memory-mb {memory_mb}: this plan has {len(stages)} stages, which take at "
            f"least {fewest} engines and {least:.0f} MB; allow that, or fewer stages with --max-exits"
        )
    return min(fitting, key=_by_cost)


def _stage_labels(stage: StageDemand) -> list[Buckets]:
    """Returns the sets of batch sizes of one stage that no other set beats in everything."""
    largest = len(stage.weights) - 1
    below = np.concatenate([[0.0], np.cumsum(stage.weights[1:])])  # below[n]: weight of 1..n rows
    sizes = sorted(stage.times_ms)
    sizes = sizes[: 1 + next(i for i, size in enumerate(sizes) if size >= largest)]
    ending: dict[int, list[Buckets]] = {0: [Buckets(sizes=((),), engines=0, memory_mb=0.0, cost_ms=0.0)]}
    for size in sizes:
        ending[size] = _prune(
            Buckets(
                sizes=((*label.sizes[0], size),),
                engines=label.engines + 1,
                memory_mb=label.memory_mb + stage.memory_mb.get(size, 0.0),
                cost_ms=label.cost_ms + stage.times_ms[size] * float(below[min(size, largest)] - below[last]),
            )
            for last, labels in ending.items()
            for label in labels
        )
    return ending[sizes[-1]]


def _by_cost(label: Buckets) -> tuple[float, int, float]:
    return label.cost_ms, label.engines, label.memory_mb


def _join(before: Buckets, label: Buckets) -> Buckets:
    return Buckets(
        sizes=before.sizes + label.sizes, engines=before.engines + label.engines,
        memory_mb=before.memory_mb + label.memory_mb, cost_ms=before.cost_ms + label.cost_ms,
    )  # fmt: skip


def _prune(labels: Iterable[Buckets]) -> list[Buckets]:
    """Drops labels that another one equals or beats in engines, memory and cost."""
    best: list[Buckets] = []
    for label in sorted(labels, key=_by_cost):
        if all(label.engines < other.engines or label.memory_mb < other.memory_mb for other in best):
            best.append(label)
    return best
