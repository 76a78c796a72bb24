"""Response to drift: where rows leave after an alarm. Pure; ``runtime.monitor.tightening`` has the theory.

::

    planned ──alarm──> observing ──enough rows──> tightened ──alarm──> observing ...
                           │                          (or, where no thresholds pass: full, and observing goes on)
                           └── with ``full``: full, until somebody plans anew

While observing nothing leaves early and every row is seen. In ``full`` nothing leaves either, and a share of the rows
is seen, so that the log fills, and so that ``tighten`` finds out when thresholds would do again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from artifacts import Certificate, ExitPlan, StreamReference
from runtime.monitor.drift_events import CONFIDENCE_BINS, count_cells
from runtime.monitor.options import FULL, TIGHTEN
from runtime.monitor.tightening import Tightened, delta_of, find_exits, rows_to_see, tighten_thresholds

PLANNED, OBSERVING, TIGHTENED, CLOSED = "planned", "observing", "tightened", "full"
_DELTA = 0.05  # where the plan has none
_SEEN_WHILE_CLOSED = 0.1  # of the rows, at least, so that the way back is found


@dataclass(frozen=True, slots=True)
class ExitRule:
    """Where rows leave now.

    Attributes:
        number: counts the rules; rows are counted under the rule that they entered under.
        thresholds: one per exit, values of float32; infinite: no row leaves there.
        seen_share: of the rows, which are drawn to be seen at every exit.
    """

    number: int
    thresholds: tuple[float, ...]
    seen_share: float

    @property
    def lets_leave(self) -> bool:
        """Whether any row may leave early."""
        return min(self.thresholds, default=math.inf) < math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseState:
    """What came of the alarms so far; plain data.

    Attributes:
        mode: ``planned``, ``observing``, ``tightened`` or ``full``.
        alarms: how many there were, those included that were raised by what was seen in ``full``.
        thresholds: one per exit; ``None`` where no row leaves.
        seen_rows, rows_needed: while observing: how many rows were seen, and of how many; 0 otherwise.
        tolerance: the disagreement with the final head that tightened thresholds keep.
        disagreement, p_value, delta: of the last choice of thresholds, on the rows that were seen; ``None`` before.
    """

    mode: str
    alarms: int
    thresholds: tuple[float | None, ...]
    seen_rows: int
    rows_needed: int
    tolerance: float
    disagreement: float | None = None
    p_value: float | None = None
    delta: float | None = None


class DriftResponse:
    """The answer to alarms. Takes rows that were seen; reads no clock, and is not thread-safe.

    Attributes:
        rule: where rows leave now.
        plan: what the stream is compared with; ``None`` where nothing leaves.
    """

    def __init__(self, plan: ExitPlan, on_drift: str, *, shadow_fraction: float) -> None:
        self.plan: ExitPlan | None = plan
        self._planned = plan
        self._on_drift = on_drift
        self._fraction = shadow_fraction
        thresholds = tuple(float(np.float32(planned.threshold)) for planned in plan.exits)
        self.rule = ExitRule(0, thresholds, shadow_fraction)
        self._mode, self._alarms = PLANNED, 0
        self._needed = rows_to_see(plan.tolerance) if on_drift == TIGHTEN else None
        self._seen: list[tuple[np.ndarray, np.ndarray]] = []
        self._seen_rows = 0
        self._last: Tightened | None = None

    @property
    def alarms(self) -> int:
        """How many alarms there were."""
        return self._alarms

    @property
    def state(self) -> ResponseState:
        """What came of the alarms so far."""
        observing = self._mode in (OBSERVING, CLOSED) and self._needed is not None
        last = self._last
        return ResponseState(
            mode=self._mode,
            alarms=self._alarms,
            thresholds=tuple(limit if limit < math.inf else None for limit in self.rule.thresholds),
            seen_rows=self._seen_rows if observing else 0,
            rows_needed=(self._needed or 0) if observing else 0,
            tolerance=self._planned.tolerance,
            disagreement=None if last is None else last.disagreement,
            p_value=None if last is None else last.p_value,
            delta=None if last is None else last.delta,
        )

    def raise_alarm(self) -> bool:
        """Answers an alarm; returns whether the rule has changed."""
        self._alarms += 1
        if self._on_drift == TIGHTEN and self._needed is not None:
            self._close(OBSERVING, seen_share=1.0)
        elif self._on_drift in (TIGHTEN, FULL):
            self._close(CLOSED, seen_share=max(self._fraction, _SEEN_WHILE_CLOSED))
        else:
            return False
        return True

    def see(self, confidence: np.ndarray, agreement: np.ndarray, *, rule: ExitRule) -> bool:
        """Takes rows that were seen at every exit; returns whether the rule has changed.

        Args:
            confidence: (E + 1, n) float32.
            agreement: (E + 1, n) in [0, 1].
            rule: that they entered under; rows of an earlier one came before the alarm and do not count.
        """
        if self._needed is None or self._mode not in (OBSERVING, CLOSED) or rule.number != self.rule.number:
            return False
        rows = min(confidence.shape[1], self._needed - self._seen_rows)
        self._seen.append((confidence[:, :rows], agreement[:, :rows]))
        self._seen_rows += rows
        if self._seen_rows < self._needed:
            return False
        self._choose()
        return True

    def _choose(self) -> None:
        confidence, agreement = (np.concatenate(parts, axis=1) for parts in zip(*self._seen, strict=True))
        if self._mode == CLOSED:
            self._alarms += 1  # another look at the same stream has a share of delta of its own
        found = tighten_thresholds(
            [exit_.threshold for exit_ in self._planned.exits], confidence, agreement,
            tolerance=self._planned.tolerance, delta=delta_of(self._planned.delta or _DELTA, self._alarms),
        )  # fmt: skip
        self._last = found
        if found.factor is None:
            self._close(CLOSED, seen_share=max(self._fraction, _SEEN_WHILE_CLOSED))
            return
        self._mode, self._seen, self._seen_rows = TIGHTENED, [], 0
        self.rule = ExitRule(self.rule.number + 1, found.thresholds, self._fraction)
        self.plan = _tightened_plan(self._planned, found, confidence, agreement)

    def _close(self, mode: str, *, seen_share: float) -> None:
        self._mode, self._seen, self._seen_rows, self.plan = mode, [], 0, None
        self.rule = ExitRule(self.rule.number + 1, (math.inf,) * len(self.rule.thresholds), seen_share)


def _tightened_plan(plan: ExitPlan, found: Tightened, confidence: np.ndarray, agreement: np.ndarray) -> ExitPlan:
    """Returns the plan that the stream is compared with from now on: the rows that were seen are its reference."""
    left = find_exits(confidence, found.thresholds)
    certificate = Certificate(
        risk="agreement", bound=plan.tolerance, delta=found.delta, finite_sample=True, method="chernoff",
        p_value=found.p_value, observed=found.disagreement, samples=found.rows, tuning_samples=0,
        position=found.position, seed=0, tuning_digest="", certification_digest="",
    )  # fmt: skip
    exits = tuple(
        replace(exit_, threshold=threshold) for exit_, threshold in zip(plan.exits, found.thresholds, strict=True)
    )
    bins = CONFIDENCE_BINS if plan.reference is None else len(plan.reference.confidence_counts[0])
    samples, heads = np.arange(found.rows), len(confidence)
    cells = count_cells(left, confidence[left, samples], heads=heads, bins=bins)
    agreements = np.bincount(left[agreement[left, samples] >= 1], minlength=heads)
    reference = StreamReference(
        samples=found.rows,
        confidence_counts=tuple(tuple(row) for row in cells.tolist()),
        agreements=tuple(agreements.tolist()),
    )
    return replace(plan, exits=exits, reference=reference, certificate=certificate)
