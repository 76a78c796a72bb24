"""Statistics of a runtime while it runs: where queries leave, with which confidence, and whether that has changed.

With the cold caches that an engine leaves behind every array call costs tens of microseconds, so a call of the runtime
only leaves a copy of its numbers. They are counted in bulk, by every ``FOLD_CALLS``-th call and by every snapshot.
Calls are counted in the order in which they end; one that fails and a stream that is dropped half-way count nothing.
"""

from __future__ import annotations

import logging
import threading
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from artifacts import FINAL_HEAD_LABEL, ExitPlan
from runtime.monitor.drift import DriftAlarm, DriftConfig, DriftState, DriftTest
from runtime.monitor.drift_events import CONFIDENCE_BINS, BlockCounts, count_cells
from runtime.monitor.response import ResponseState

FOLD_CALLS = 256
_log = logging.getLogger("pame.runtime")

Agreements = Sequence[tuple[int, float]]
"""Exit and agreement with the final head of each row that left early and was carried on."""

_Call = tuple[list[int], bytes, Agreements, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitStats:
    """Counts of one exit, or of the final head; plain data.

    Attributes:
        name: its cut, or ``final head``.
        count: queries that left here.
        share: of all queries; 0 while there are none.
        expected_share: by the exit plan.
        confidence_counts: the ``count`` queries by confidence, in bins of equal width over [0, 1].
        shadowed: how many of them were carried on to the end.
        agreements: how many of those have the very answer of the final head.
        mean_agreement: how far the shadowed ones have the final head's answer, on average; 1 is the very same. ``None``
            while none is shadowed.
    """

    name: str
    count: int
    share: float
    expected_share: float
    confidence_counts: tuple[int, ...]
    shadowed: int
    agreements: int
    mean_agreement: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeStats:
    """A snapshot; plain data, for ``artifacts.to_plain`` and JSON.

    Attributes:
        queries: answered since the runtime was opened or its statistics were reset.
        exits: in the order of the data flow, the final head last.
        shadowed: queries that left early and were carried on to the end.
        disagreement: estimated share of all queries that the final head would have answered otherwise; ``None`` while
            an exit where queries left has no shadowed one yet.
        drift: state of the test for drift; ``None`` when it is switched off or the exit plan has no reference.
        alarm: the last alarm; it stays until the statistics are reset.
        response: what came of the alarms, with the thresholds that are in force; ``None`` where they are only logged.
    """

    queries: int
    exits: tuple[ExitStats, ...]
    shadowed: int
    disagreement: float | None
    drift: DriftState | None
    alarm: DriftAlarm | None
    response: ResponseState | None = None


class StatsCollector:
    """Counts the answers of a runtime; every method may be called from any thread."""

    def __init__(
        self,
        plan: ExitPlan,
        *,
        drift: DriftConfig | None,
        shadow_fraction: float = 0.0,
        on_alarm: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts from nothing.

        Args:
            plan: names the exits, and holds the reference with which the stream is compared.
            drift: when to raise an alarm; ``None``: never.
            shadow_fraction: of the rows that leave early.
            on_alarm: called when an alarm has been raised and logged; may call ``compare_with``.

        Raises:
            SchemaError: the plan's reference does not belong to its exits.
        """
        self._plan = plan
        self._compared: ExitPlan | None = plan
        self._rule = 0
        self._on_alarm = on_alarm
        self._shadow_fraction = shadow_fraction
        self._drift = drift if plan.reference is not None else None
        self._bins = CONFIDENCE_BINS if plan.reference is None else len(plan.reference.confidence_counts[0])
        if drift is not None and plan.reference is None and plan.exits:
            _log.info("the exit plan has no reference (PAME 0.1.0): statistics are collected, drift is not tested")
        self._pending: deque[_Call] = deque()
        self._lock = threading.Lock()
        self._start()

    def _start(self) -> None:
        heads = len(self._plan.exits) + 1
        self._cells = np.zeros((heads, self._bins), np.int64)
        self._shadowed = np.zeros(heads, np.int64)
        self._disagreements = np.zeros(heads, np.int64)
        self._agreement_sums = np.zeros(heads)
        self._alarm: DriftAlarm | None = None
        self._start_test()

    def _start_test(self) -> None:
        self._test: DriftTest | None = None
        if self._drift is not None and self._compared is not None:
            self._test = DriftTest(self._compared, self._drift, shadow_fraction=self._shadow_fraction)

    def add(self, exit_index: list[int], confidence: bytes, shadow: Agreements = (), *, rule: int = 0) -> None:
        """Takes the answers of a call, and keeps these very objects.

        Args:
            exit_index: where each of its n rows left.
            confidence: with which, n float32.
            shadow: of each row that was carried on.
            rule: the number of the rule by which they left; the test takes those of the newest alone.
        """
        self._pending.append((exit_index, confidence, shadow, rule))
        if len(self._pending) >= FOLD_CALLS and self._lock.acquire(blocking=False):
            try:
                alarm = self._fold()
            finally:
                self._lock.release()
            self._report(alarm)

    def snapshot(self) -> RuntimeStats:
        """Returns the counts of all calls that have ended."""
        with self._lock:
            alarm = self._fold()
            stats = self._describe()
        self._report(alarm)
        return stats

    def reset(self) -> None:
        """Starts again from nothing: counts, evidence and alarm."""
        with self._lock:
            self._take_pending()
            self._start()

    def compare_with(self, plan: ExitPlan | None, *, rule: int) -> None:
        """Starts the test again with rows that leave by another rule; counts and the last alarm stay.

        Args:
            plan: the stream is compared with from now on; ``None``: with nothing, no row leaves early.
            rule: the number of the rule.
        """
        with self._lock:
            self._fold()
            self._compared, self._rule = plan, rule
            self._start_test()

    def _report(self, alarm: DriftAlarm | None) -> None:
        if alarm is not None:
            _log.warning("%s", alarm.message)
            self._on_alarm()

    def _take_pending(self) -> list[_Call]:
        return [self._pending.popleft() for _ in range(len(self._pending))]

    def _fold(self) -> DriftAlarm | None:
        """Counts the pending calls; returns the alarm if they raised it."""
        pending = self._take_pending()
        if not pending:
            return None
        tested = self._count([call for call in pending if call[-1] == self._rule])
        earlier = self._count([call for call in pending if call[-1] != self._rule])
        for block, sums in (tested, earlier):
            self._agreement_sums += sums
            self._cells += block.cells
            self._shadowed += block.shadowed
            self._disagreements += block.disagreements
        alarm = None if self._test is None else self._test.update(tested[0])
        self._alarm = alarm or self._alarm
        return alarm

    def _count(self, calls: Sequence[_Call]) -> tuple[BlockCounts, np.ndarray]:
        """Counts calls; returns the block, and the sum of the agreements at each exit."""
        exit_index = array("q")
        for left, _, _, _ in calls:
            exit_index.fromlist(left)
        confidence = np.frombuffer(b"".join([confidences for _, confidences, _, _ in calls]), np.float32)
        shadow = np.array([pair for _, _, pairs, _ in calls for pair in pairs], np.float64).reshape(-1, 2)
        shadow_exit, agreement = shadow[:, 0].astype(np.int64), shadow[:, 1]
        heads = len(self._cells)
        block = BlockCounts(
            cells=count_cells(np.frombuffer(exit_index, np.int64), confidence, heads=heads, bins=self._bins),
            shadowed=np.bincount(shadow_exit, minlength=heads),
            disagreements=np.bincount(shadow_exit[agreement < 1], minlength=heads),
        )
        return block, np.bincount(shadow_exit, agreement, minlength=heads)

    def _describe(self) -> RuntimeStats:
        counts = self._cells.sum(axis=1)
        queries = int(counts.sum())
        names = [*(planned.cut for planned in self._plan.exits), FINAL_HEAD_LABEL]
        expected = [planned.leaving_share for planned in self._plan.exits]
        expected.append(max(0.0, 1 - sum(expected)))
        exits = tuple(
            ExitStats(
                name=name,
                count=int(count),
                share=int(count) / queries if queries else 0.0,
                expected_share=share,
                confidence_counts=tuple(cells.tolist()),
                shadowed=int(shadowed),
                agreements=int(shadowed - disagreements),
                mean_agreement=float(agreement / shadowed) if shadowed else None,
            )
            for name, count, share, cells, shadowed, disagreements, agreement in zip(
                names, counts, expected, self._cells, self._shadowed, self._disagreements, self._agreement_sums,
                strict=True,
            )
        )  # fmt: skip
        return RuntimeStats(
            queries=queries,
            exits=exits,
            shadowed=int(self._shadowed.sum()),
            disagreement=_estimate_disagreement(exits),
            drift=None if self._test is None else self._test.state,
            alarm=self._alarm,
        )


def _estimate_disagreement(exits: Sequence[ExitStats]) -> float | None:
    """Weighs the disagreement at each exit with its share; the final head has none."""
    early = [exit_ for exit_ in exits[:-1] if exit_.count]
    if not any(exit_.count for exit_ in exits) or any(not exit_.shadowed for exit_ in early):
        return None
    return sum(exit_.share * (1 - exit_.agreements / exit_.shadowed) for exit_ in early)
