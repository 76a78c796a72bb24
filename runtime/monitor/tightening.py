"""Tightening: thresholds that keep the tolerance on a stream that has drifted, from rows seen at every exit. Pure.

**What is known of a row.** A row that leaves at an exit is never answered by the final head, so whether it would have
been answered otherwise is unknown. A row that goes to the end while nothing may leave is *seen*: its confidence and its
agreement with the final head are known at every exit, and so is what any thresholds would have made of it. Rows that
merely happened to stay are seen as well, but they are the hard ones, and would bias whatever is estimated from them.
So after an alarm nothing leaves for a while, and every row counts.

**What is claimed.** The alarm comes at a time that depends on the rows before it, never on those after it. Suppose that
the rows after it are drawn independently from one distribution, that of the drifted stream, of which nothing else is
assumed. Then the thresholds that are chosen from the first n of them lose more than ``tolerance`` of the final head's
answers on further rows of that distribution with probability at most ``delta``. Rows that left between the change and
the alarm are not covered, and neither is a stream that goes on changing; the test for drift starts again against the
rows that were seen, so a further change raises another alarm. Of the alarms of one process the j-th gets delta / (j (j
+ 1)) of the ``delta``, so that all of them together fail with probability at most ``delta``.

Without labels nothing else can be claimed: the final head may be wrong on the drifted stream together with the exits.

**How.** All thresholds move together towards certainty: ``1 - f (1 - threshold)`` for factors f from 0 to 1, the
planned ones, a family that is fixed beforehand. For each the hypothesis "it loses more than the tolerance" is tested,
from the safest on until the first that is not rejected (a fixed sequence: Learn then Test, Angelopoulos et al. 2021,
arXiv:2110.01052). The p-value of a mean loss r of n rows is ``exp(-n KL(r || tolerance))`` (Hoeffding 1963, theorem 1),
valid for losses in [0, 1] of any distribution. Planned thresholds are never exceeded on the bold side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from artifacts import find_first_true
from runtime.monitor.drift_events import divergence

FACTORS = (*(10 ** (-step / 8) for step in range(32, 0, -1)), 1.0)
"""Of the distance between a planned threshold and 1, from safe to bold."""
_EXPECTED_LOSSES = 20  # among the rows of an observation whose thresholds lose just the tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class Tightened:
    """Thresholds that keep the tolerance on the rows that were seen; plain data.

    Attributes:
        factor: the boldest factor that passed; ``None`` where none did.
        thresholds: one per exit; infinite where no factor passed, so that no row leaves.
        rows: how many rows were seen.
        disagreement: their mean loss under these thresholds.
        p_value: of "the mean loss is more than the tolerance".
        delta: of this choice.
        position: of the factor in the sequence of tests, from 1; 0 where none passed.
    """

    factor: float | None
    thresholds: tuple[float, ...]
    rows: int
    disagreement: float
    p_value: float
    delta: float
    position: int


def rows_to_see(tolerance: float) -> int | None:
    """Returns how many rows are seen before thresholds are chosen; ``None`` where no number of them would do."""
    return math.ceil(_EXPECTED_LOSSES / tolerance) if 0 < tolerance < 1 else None


def delta_of(delta: float, alarm: int) -> float:
    """Returns the share of ``delta`` that the ``alarm``-th alarm gets, from 1; all of them add up to it."""
    return delta / (alarm * (alarm + 1))


def scale_thresholds(planned: Sequence[float], factor: float) -> tuple[float, ...]:
    """Returns thresholds whose distance from 1 is ``factor`` times that of the planned ones, as float32 has them."""
    if factor == 1:
        return tuple(float(np.float32(threshold)) for threshold in planned)
    return tuple(
        max(float(np.float32(threshold)), float(np.float32(1 - factor * (1 - threshold)))) for threshold in planned
    )


def find_exits(confidence: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Returns (n,) int64, where rows of these confidences (E + 1, n) leave; E is the final head."""
    limits = np.array(thresholds, np.float64)[:, None]
    found: np.ndarray = find_first_true(confidence[:-1] >= limits)
    return found


def mean_loss(confidence: np.ndarray, agreement: np.ndarray, thresholds: Sequence[float]) -> float:
    """Returns by how much the answers under thresholds disagree with the final head's on average.

    Args:
        confidence: (E + 1, n) of rows that were seen at every exit.
        agreement: (E + 1, n) in [0, 1], 1 for the final head.
        thresholds: one per exit.
    """
    left = find_exits(confidence, thresholds)
    return float(1 - agreement[left, np.arange(len(left))].mean(dtype=np.float64))


def tighten_thresholds(
    planned: Sequence[float], confidence: np.ndarray, agreement: np.ndarray, *, tolerance: float, delta: float
) -> Tightened:
    """Chooses the boldest thresholds that keep the tolerance.

    Args:
        planned: one per exit.
        confidence: (E + 1, n) float32 of rows that were seen at every exit, n >= 1.
        agreement: (E + 1, n) in [0, 1] with the final head, whose row is all 1.
        tolerance: the disagreement that is allowed, in (0, 1).
        delta: probability that the choice fails.
    """
    rows = confidence.shape[1]
    best = Tightened(
        factor=None, thresholds=(math.inf,) * len(planned), rows=rows, disagreement=0.0, p_value=0.0, delta=delta,
        position=0,
    )  # fmt: skip
    for position, factor in enumerate(FACTORS, start=1):
        thresholds = scale_thresholds(planned, factor)
        loss = mean_loss(confidence, agreement, thresholds)
        p_value = 1.0 if loss >= tolerance else math.exp(-rows * divergence(loss, tolerance))
        if p_value > delta:
            break
        best = Tightened(
            factor=factor, thresholds=thresholds, rows=rows, disagreement=loss, p_value=p_value, delta=delta,
            position=position,
        )  # fmt: skip
    return best
