"""What the benchmark's figures mean; pure numpy, no clock, no engine.

A *query's latency* runs from the start of its batch until its own answer is available to the caller. In the full
network every query waits for its whole batch; with early exits it waits until the stage is done after which it leaves.
Figures are taken over all queries of all rounds.

The *oracle* knows, for every query, the first planned exit whose answer agrees with that of the full network, and lets
it leave there (one that no exit answers so goes to the end). Its latency is worked out, not measured: stage j of a
batch costs its measured median time at the number of rows ``N_j`` that reach it, everybody in the stage waits for it,
so the latency of a query that leaves after stage k is ``sum of c_j(N_j) over j <= k``. The same sum over the exits
that the queries really took is the *replayed* latency; what it differs from the measured one is the error of the stage
times, and what the prediction differs from the replayed one is the error of the predicted shares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from artifacts import StaleArtifactError

HISTOGRAM_BINS = 80


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Timings:
    """One contender over R rounds of the same batches of N queries; milliseconds.

    Attributes:
        latency_ms: (R, N) of every query.
        batch_ms: (R, batches) of every batch, until the caller has all answers.
    """

    latency_ms: np.ndarray
    batch_ms: np.ndarray


def describe_timings(timings: Timings, metric: float | None) -> dict[str, Any]:
    """Returns the contract's figures of one contender; the metric is ``None`` where there are no labels."""
    seconds = float(timings.batch_ms.sum()) / 1e3
    return {
        "metric": metric,
        "mean_latency_ms": float(timings.latency_ms.mean()),
        "p50_ms": float(np.percentile(timings.latency_ms, 50)),
        "p99_ms": float(np.percentile(timings.latency_ms, 99)),
        "batch_ms": float(timings.batch_ms.mean()),
        "throughput_per_s": timings.latency_ms.size / seconds,
    }


def compare_timings(full: Mapping[str, Any], early_exit: Mapping[str, Any]) -> dict[str, float | None]:
    """Returns the ratios of the contract; above 1 is in favour of the early exits."""
    return {
        "speedup_mean": divide(full["mean_latency_ms"], early_exit["mean_latency_ms"]),
        "speedup_p99": divide(full["p99_ms"], early_exit["p99_ms"]),
        "throughput_ratio": divide(early_exit["throughput_per_s"], full["throughput_per_s"]),
        "metric_ratio": divide(early_exit["metric"], full["metric"]),
    }


def divide(above: float | None, below: float | None) -> float | None:
    """Returns the ratio, or ``None`` where it has no meaning."""
    return above / below if below and above is not None else None


def speedup_by_round(full: Timings, early_exit: Timings) -> list[float]:
    """Returns ``speedup_mean`` of every round alone, to show the spread."""
    ratios: list[float] = (full.latency_ms.mean(axis=1) / early_exit.latency_ms.mean(axis=1)).tolist()
    return ratios


def paired_ratio(batch_ms: np.ndarray, full_ms: np.ndarray) -> float:
    """Returns the median of the ratios of batches that were timed next to each other: (R, batches) each."""
    return float(np.median(batch_ms / full_ms))


def leave_when_right(agreement: np.ndarray) -> np.ndarray:
    """Returns where the oracle lets every query leave.

    Args:
        agreement: (E, N) bool, the exit answers what the full network answers.

    Returns:
        (N,) int64, 0 .. E-1 an exit, E the final head.
    """
    rows = np.concatenate([agreement, np.ones((1, agreement.shape[1]), np.bool_)])
    first: np.ndarray = rows.argmax(axis=0)
    return first


def replay_mean_ms(exit_index: np.ndarray, stage_cost_ms: Sequence[np.ndarray], batch_size: int) -> float:
    """Returns the mean latency of queries that leave at given exits, by the measured times of the stages.

    Args:
        exit_index: (N,) where each query leaves, in the order in which they form batches.
        stage_cost_ms: per stage, (>= B + 1,) milliseconds for 0 .. B rows.
        batch_size: B; the last batch may be smaller.
    """
    total = 0.0
    for start in range(0, len(exit_index), batch_size):
        leaving = exit_index[start : start + batch_size]
        for stage, cost_ms in enumerate(stage_cost_ms):
            rows = int((leaving >= stage).sum())
            total += rows * float(cost_ms[rows])
    return total / len(exit_index)


def describe_exits(
    names: Sequence[str], thresholds: Sequence[float], exit_index: np.ndarray,
    metric: np.ndarray | None, agreement: np.ndarray, latency_ms: np.ndarray,
) -> list[dict[str, Any]]:  # fmt: skip
    """Returns what happened at each exit and at the final head, the last.

    Args:
        names: of the E exits.
        thresholds: theirs.
        exit_index: (N,) where each query left.
        metric: (N,) of the answer that it got; ``None`` without labels.
        agreement: (N,) bool, whether that is the full network's answer.
        latency_ms: (R, N).
    """
    found: list[dict[str, Any]] = []
    for index, name in enumerate([*names, "final"]):
        here = exit_index == index
        count = int(here.sum())
        found.append(
            {
                "exit": name,
                "threshold": thresholds[index] if index < len(thresholds) else None,
                "count": count,
                "share": count / len(exit_index),
                "metric": float(metric[here].mean()) if count and metric is not None else None,
                "agreement": float(agreement[here].mean()) if count else None,
                "mean_latency_ms": float(latency_ms[:, here].mean()) if count else None,
            }
        )
    return found


def describe_latencies(full: Timings, early_exit: Timings) -> dict[str, list[float]]:
    """Returns both latency distributions over common bins: edges in ms, and the share of queries in each bin.

    The bins end at the 99.9th percentile of both; what lies above counts into the last bin.
    """
    both = (full.latency_ms, early_exit.latency_ms)
    end = max(float(np.percentile(latency_ms, 99.9)) for latency_ms in both)
    edges = np.linspace(0, end, HISTOGRAM_BINS + 1)
    shares = [np.histogram(np.minimum(latency_ms, end), edges)[0] / latency_ms.size for latency_ms in both]
    return {"edges_ms": edges.tolist(), "full": shares[0].tolist(), "early_exit": shares[1].tolist()}


def check_held_out(calibrated_on: Mapping[str, str], test_data: Mapping[str, str], *, where: str) -> str:
    """Makes sure that no test sample was used for calibration, as far as digests can tell.

    Args:
        calibrated_on: digests of the images and of the index set of each part that the bundle was made with.
        test_data: the same of the data to test on, whose parts are disjoint.
        where: the bundle, for the message.

    Returns:
        What was found: ``held out`` when the same images were split in the same way, so that the test part is disjoint
        from what was calibrated on; ``other images`` otherwise.

    Raises:
        StaleArtifactError: the bundle does not say what it was calibrated on, or saw the same images in other parts.
    """
    fix = "Plan it again for this data with: python -m planner --tolerance 0.01 --data DIR"
    if not calibrated_on.get("images"):
        raise StaleArtifactError(
            f"{where} does not say which data it was calibrated on, so nothing can be held out. {fix}"
        )
    if calibrated_on["images"] != test_data["images"]:
        return "other images"
    seen = {part: calibrated_on.get(f"indices.{part}") for part in ("train", "calibrate")}
    for part, digest in seen.items():
        if digest == test_data["indices.test"]:
            raise StaleArtifactError(f"the test part of this data is what {where} used to {part}. {fix}")
    if seen != {part: test_data[f"indices.{part}"] for part in seen}:
        raise StaleArtifactError(
            f"{where} was made with another split of these images: its test part may not be held out. {fix}"
        )
    return "held out"
