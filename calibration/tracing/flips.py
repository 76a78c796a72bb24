"""Decision flips: what another precision, or another backend, decides otherwise about the same samples. Pure.

Two networks that compute the same up to rounding still part ways where a confidence lies next to its threshold, or two
classes next to each other. How often that happens is counted here, sample by sample, from the traces of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from artifacts import FINAL_HEAD, InputError, Trace, find_first_true


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitFlips:
    """What differs at one exit, over all samples.

    Attributes:
        exit: its name; ``final`` for the final head.
        threshold: of the plan; ``None`` where no sample leaves by one.
        decisions: samples that would leave here in one of the networks only; ``None`` without a threshold.
        metrics: samples whose metric differs: right in one, wrong in the other, for instance. Without labels: that
            agree with the final head of one network and not with that of the other.
        confidence_change: the largest difference of the confidences.
        metric_before, metric_after: means over all samples.
    """

    exit: str
    threshold: float | None
    decisions: int | None
    metrics: int
    confidence_change: float
    metric_before: float
    metric_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipReport:
    """All exits, and the plan as a whole.

    Attributes:
        samples: how many there are.
        exits: in the order of the data flow, the final head last.
        moved: samples that leave at another exit when all thresholds of the plan count; ``None`` without a plan.
        labelled: False where all metrics are the agreement, since the true answers are not given.
    """

    samples: int
    exits: tuple[ExitFlips, ...]
    moved: int | None
    labelled: bool = True


def count_flips(before: Trace, after: Trace, thresholds: Mapping[str, float]) -> FlipReport:
    """Compares two traces of the same samples.

    Args:
        before, after: their samples in the same order.
        thresholds: exit -> threshold of the plan; an empty one counts no decisions.

    Raises:
        InputError: the traces have different exits or samples, or a threshold is of no exit.
    """
    if before.exits != after.exits or before.sample_count != after.sample_count:
        raise InputError(
            f"the traces do not belong together: {before.sample_count} samples at {', '.join(before.exits)}, and "
            f"{after.sample_count} at {', '.join(after.exits)}; collect both of the same data and cuts"
        )
    if before.labelled != after.labelled:
        raise InputError("one of the traces has labels and the other has none; collect both of the same data")
    if unknown := sorted(set(thresholds) - set(before.exits)):
        raise InputError(f"the plan leaves at {', '.join(unknown)}, where the traces have no exit")
    exits = []
    for row, name in enumerate((*before.exits, FINAL_HEAD)):
        limit = np.float32(thresholds[name]) if name in thresholds else None
        pair = before.confidence[row], after.confidence[row]
        exits.append(
            ExitFlips(
                exit=name,
                threshold=None if limit is None else float(limit),
                decisions=None if limit is None else int(np.sum((pair[0] >= limit) != (pair[1] >= limit))),
                metrics=int(np.sum(before.metric[row] != after.metric[row])),
                confidence_change=float(np.abs(pair[0] - pair[1]).max()),
                metric_before=float(before.metric[row].mean(dtype=np.float64)),
                metric_after=float(after.metric[row].mean(dtype=np.float64)),
            )
        )
    places = [_leave_at(trace, thresholds) for trace in (before, after)]
    moved = int(np.sum(places[0] != places[1])) if thresholds else None
    return FlipReport(samples=before.sample_count, exits=tuple(exits), moved=moved, labelled=before.labelled)


def _leave_at(trace: Trace, thresholds: Mapping[str, float]) -> np.ndarray:
    """Returns (N,) int: the row of the exit where each sample leaves; the last one is the final head's."""
    limits = np.array([thresholds.get(name, np.inf) for name in trace.exits], np.float32)
    return find_first_true(trace.confidence[:-1] >= limits[:, None])
