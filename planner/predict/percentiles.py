"""The latency of a query as a distribution, and its percentiles.

Theory. In a batch of ``b`` queries drawn at random the survivors form a Markov chain, ``N_0 = b`` and ``N_k | N_(k-1)
~ Binomial(N_(k-1), r_k)`` with ``r_k = s_k / s_(k-1)`` (``planner.predict.survivors``). A query that leaves at exit
``k`` has waited

    T_k = c_1(N_0) + c_2(N_1) + .. + c_k(N_(k-1)),

and given the path ``N_0 .. N_(k-1)`` the expected share of the batch's queries that leave there is ``N_(k-1) (1 -
r_k) / b``. So the latency of a query takes the value ``T_k`` of a path with the weight

    P(N_1 .. N_(k-1)) * N_(k-1) (1 - r_k) / b,

and summed over all paths and exits these weights are 1. The percentile is read off that list: exact, no Monte Carlo.
A mixture of batch sizes (``planner.predict.traffic``) mixes the lists by the share of the queries.

The assumption: queries arrive in random order, and a stage takes its median time for its number of rows. The noise of
the machine is not in it; a measured percentile has it on top.

Steps of a path less likely than ``_NEGLIGIBLE`` are left out, together less than a millionth of the queries. Beyond
``_MOST_PATHS`` paths, those with as many survivors and nearly the same time (one part in ``_TICKS`` of the longest,
rounded up) become one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planner.predict.survivors import survivor_transition
from planner.predict.traffic import Load

TAIL_QUANTILE = 0.99
_NEGLIGIBLE = 1e-9
_MOST_PATHS = 20_000
_TICKS = 2_000
_ROUNDING = 1e-9


def latency_distribution(
    costs: Sequence[np.ndarray], survival: Sequence[float], load: Load, chances: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the values that a query's latency takes, in milliseconds, and their probabilities; in no order.

    Args:
        costs: per stage (B + 1,) milliseconds for 0..B rows.
        survival: per stage the share of all samples that enter it; starts with 1 and never rises.
        load: the batches that enter; none above B.
        chances: per batch size a weight, which may be negative: for the terms of a mixture.
    """
    going = [
        after / before if before > 0 else 0.0 for before, after in zip(survival, [*survival[1:], 0.0], strict=True)
    ]
    steps = [survivor_transition(load.largest, share) for share in going]
    rows = np.array(load.batch_sizes)
    entered, waited = rows, np.zeros(len(rows))
    weight = np.array(load.query_shares) * (1.0 if chances is None else chances)
    times, weights = [], []
    for cost, share, step in zip(costs, going, steps, strict=True):
        waited = waited + cost[rows]
        times.append(waited)
        weights.append(weight * (rows / entered) * (1 - share))
        path, after = np.nonzero(step[rows, 1:] > _NEGLIGIBLE)
        weight = weight[path] * step[rows[path], after + 1]
        rows, entered, waited = after + 1, entered[path], waited[path]
        if len(rows) > _MOST_PATHS:
            rows, entered, waited, weight = _merge_paths(rows, entered, waited, weight)
    return np.concatenate(times), np.concatenate(weights)


def _merge_paths(
    rows: np.ndarray, entered: np.ndarray, waited: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    tick = waited.max() / _TICKS
    ticks = np.ceil(waited / tick).astype(np.int64)
    _, first, group = np.unique((ticks * (rows.max() + 1) + rows) * (entered.max() + 1) + entered,
                                return_index=True, return_inverse=True)  # fmt: skip
    return rows[first], entered[first], ticks[first] * tick, np.bincount(group, weights=weight)


def latency_quantile(
    costs: Sequence[np.ndarray], survival: Sequence[float], load: Load, *, quantile: float = TAIL_QUANTILE
) -> float:
    """Returns the least latency that at least ``quantile`` of the queries do not exceed, in milliseconds."""
    return find_quantile(*latency_distribution(costs, survival, load), quantile=quantile)


def find_quantile(times: np.ndarray, weights: np.ndarray, *, quantile: float = TAIL_QUANTILE) -> float:
    """Returns the least of some values that at least ``quantile`` of the weight does not exceed.

    Negative weights take back what equal values of positive weight were given too much, so what is taken back later
    does not count before.
    """
    order = np.argsort(times, kind="stable")
    reached = np.minimum.accumulate(np.cumsum(weights[order])[::-1])[::-1]
    return float(times[order[int(np.searchsorted(reached, quantile * reached[-1] - _ROUNDING))]])
