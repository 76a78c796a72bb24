"""Figures of the benchmark and their meaning. Pure numpy, no clock, no engine.

A *query's latency* runs from the start of its batch until its own answer is available to the caller. In the full
network every query waits for its whole batch; with early exits it waits until the stage is done after which it leaves.
Figures are taken over all queries of all rounds.

The *oracle* lets every query leave at the first planned exit whose answer is that of the full network (a query without
such an exit goes to the end). Its latency is computed, not measured: stage j of a batch costs its measured median time
at the number of rows ``N_j`` that reach it, and all rows in the stage wait for it, so the latency of a query that
leaves after stage k is ``sum of c_j(N_j) over j <= k``. The same sum over the exits that the queries really took is the
*replayed* latency. The difference between the measured and the replayed latency is the error of the stage times, that
between the replayed and the predicted one is the error of the predicted shares.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from artifacts import FINAL_HEAD, PlannedExit
from runtime.bench.grading import Grades

HISTOGRAM_BINS = 80


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ContenderTimes:
    """Times of one contender over R rounds of the same batches of N queries; milliseconds.

    Attributes:
        latency_ms: (R, N) of every query.
        batch_ms: (R, batches) of every batch, until the caller has all answers.
    """

    latency_ms: np.ndarray
    batch_ms: np.ndarray


def describe_times(times: ContenderTimes, metric: float | None) -> dict[str, Any]:
    """Returns the contract's figures of one contender; the metric is ``None`` where there are no labels."""
    seconds = float(times.batch_ms.sum()) / 1e3
    return {
        "metric": metric,
        "mean_latency_ms": float(times.latency_ms.mean()),
        "p50_ms": float(np.percentile(times.latency_ms, 50)),
        "p99_ms": float(np.percentile(times.latency_ms, 99)),
        "batch_ms": float(times.batch_ms.mean()),
        "throughput_per_s": times.latency_ms.size / seconds,
    }


def compare_times(full: Mapping[str, Any], early_exit: Mapping[str, Any]) -> dict[str, float | None]:
    """Returns the ratios of the contract; above 1, the early exits are better."""
    return {
        "speedup_mean": divide(full["mean_latency_ms"], early_exit["mean_latency_ms"]),
        "speedup_p99": divide(full["p99_ms"], early_exit["p99_ms"]),
        "throughput_ratio": divide(early_exit["throughput_per_s"], full["throughput_per_s"]),
        "metric_ratio": divide(early_exit["metric"], full["metric"]),
    }


def divide(above: float | None, below: float | None) -> float | None:
    """Returns the ratio; ``None`` where it is undefined."""
    return above / below if below and above is not None else None


def speedup_by_round(full: ContenderTimes, early_exit: ContenderTimes) -> list[float]:
    """Returns ``speedup_mean`` of every round alone, to show the spread."""
    ratios: list[float] = (full.latency_ms.mean(axis=1) / early_exit.latency_ms.mean(axis=1)).tolist()
    return ratios


def paired_ratio(batch_ms: np.ndarray, full_ms: np.ndarray) -> float:
    """Returns the median of the ratios of batches that were timed next to each other: (R, batches) each."""
    return float(np.median(batch_ms / full_ms))


def replay_mean_ms(
    exit_index: np.ndarray, stage_cost_ms: Sequence[np.ndarray], batch_size: int, places: np.ndarray | None = None
) -> float:
    """Returns the mean latency of queries that leave at given exits, by the measured times of the stages.

    Args:
        exit_index: (N,) where each query leaves, in the order in which they form batches.
        stage_cost_ms: per stage, (>= B + 1,) milliseconds for 0 .. B rows.
        batch_size: B; the last batch may be smaller.
        places: (batches,) the place of each batch's length among those of the network, where rows have several; the
            costs are (lengths, >= B + 1) then.
    """
    total = 0.0
    for batch, start in enumerate(range(0, len(exit_index), batch_size)):
        leaving = exit_index[start : start + batch_size]
        for stage, cost_ms in enumerate(stage_cost_ms):
            rows = int((leaving >= stage).sum())
            total += rows * float(cost_ms[rows] if places is None else cost_ms[places[batch], rows])
    return total / len(exit_index)


def describe_exits(
    exits: Sequence[PlannedExit], exit_index: np.ndarray, grades: Grades | None, agreement: np.ndarray,
    latency_ms: np.ndarray,
) -> list[dict[str, Any]]:  # fmt: skip
    """Returns the figures of each exit, and last of the final head.

    Args:
        exits: the E exits of the plan.
        exit_index: (N,) where each query left.
        grades: of the answers that the queries got; ``None`` without labels.
        agreement: (N,) how far those are the full network's answers.
        latency_ms: (R, N).
    """
    found: list[dict[str, Any]] = []
    named = [(exit_.cut, exit_.threshold) for exit_ in exits]
    for index, (name, threshold) in enumerate([*named, (FINAL_HEAD, None)]):
        here = exit_index == index
        count = int(here.sum())
        found.append(
            {
                "exit": name,
                "threshold": threshold,
                "count": count,
                "share": count / len(exit_index),
                "metric": grades.metric(here) if count and grades is not None else None,
                "agreement": float(agreement[here].mean()) if count else None,
                "mean_latency_ms": float(latency_ms[:, here].mean()) if count else None,
            }
        )
    return found


def describe_lengths(
    lengths: Sequence[int], row_lengths: np.ndarray, batch_lengths: np.ndarray, full_ms: np.ndarray,
    early_ms: np.ndarray,
) -> list[dict[str, Any]]:  # fmt: skip
    """Returns the figures of each length of rows.

    Args:
        lengths: of the network, ascending.
        row_lengths: (N,) how long each query is.
        batch_lengths: (batches,) the length that each batch ran at, that of its longest query.
        full_ms, early_ms: (R, batches) times of the batches.
    """
    found: list[dict[str, Any]] = []
    for shorter, length in itertools.pairwise([0, *lengths]):
        here = batch_lengths == length
        full, early = (float(ms[:, here].mean()) if here.any() else None for ms in (full_ms, early_ms))
        found.append(
            {
                "length": length,
                "query_share": float(((row_lengths > shorter) & (row_lengths <= length)).mean()),
                "batches": int(here.sum()),
                "batch_share": float(here.mean()),
                "full_batch_ms": full,
                "early_exit_batch_ms": early,
                "ratio": divide(early, full),
            }
        )
    return found


def describe_latencies(full: ContenderTimes, early_exit: ContenderTimes) -> dict[str, list[float]]:
    """Returns both latency distributions over common bins: edges in ms, and the share of queries in each bin.

    The bins end at the 99.9th percentile of both; longer latencies count into the last bin.
    """
    both = (full.latency_ms, early_exit.latency_ms)
    end = max(float(np.percentile(latency_ms, 99.9)) for latency_ms in both)
    edges = np.linspace(0, end, HISTOGRAM_BINS + 1)
    shares = [np.histogram(np.minimum(latency_ms, end), edges)[0] / latency_ms.size for latency_ms in both]
    return {"edges_ms": edges.tolist(), "full": shares[0].tolist(), "early_exit": shares[1].tolist()}
