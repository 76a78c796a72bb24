"""Drift: a test of whether a stream still behaves as the calibration data did, which may be watched all the time. Pure.

**What is compared.** A plan was made on calibration samples. Under it a share of them left at every exit, with some
distribution of confidence, and some got another answer than the final head would have given. All these are frequencies
of events, and the plan carries their counts (``StreamReference``):

    share         a query leaves at exit k
    confidence    it leaves at exit k with a confidence below c, for the c that lie within the bulk there
    disagreement  a query that left at exit k has another answer than the final head; the same over all queries.
                  Seen on shadowed queries alone

**The null hypothesis.** The calibration samples were drawn independently from one distribution, and for every row of
the stream, *whatever came before it*, the probability of each event lies within ``margin`` of the event's probability
in that distribution; for disagreements: it is at most that plus the margin. Rows of the stream may depend on each
other, and traffic may vary within the margin. Where a certificate bounds the disagreement over all queries, its
tolerance takes the place of that disagreement and its margin.

**The rate.** While the null hypothesis holds, an alarm is *ever* raised with probability at most ``false_alarm_rate``:
over the draw of the calibration samples and a stream of any length, however often it is looked at. Half of the rate
goes to the calibration sample, half to the stream:

* An event's probability is estimated from n samples. It lies in the interval of all p with ``n KL(seen || p) <=
  log(1 / d)`` on each side, except with probability d (Chernoff's bound; Hoeffding, JASA 1963, theorem 1). The d of all
  events and sides add up to half of the rate. Interval and margin together are allowed.
* Against "at most the upper end" and "at least the lower end" of each, bets are placed
  (``runtime.monitor.sequential_test``). The capital of all together reaches 2 / rate, and then the alarm is raised,
  with probability at most half of the rate.

So a small calibration sample makes the test less sensitive, not more prone to false alarms. What the rate does not
cover: exits and thresholds were chosen on those very samples, which makes the counts a little optimistic; the margin
has to cover that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from artifacts import FINAL_HEAD_LABEL, ExitPlan, UsageError
from runtime.monitor.drift_events import (
    CONFIDENCE,
    DISAGREEMENT,
    SHARE,
    BlockCounts,
    certified_disagreement,
    check_reference,
    list_events,
    list_hypotheses,
)
from runtime.monitor.sequential_test import Bets

ALL_EXITS = "all exits"


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftConfig:
    """When to raise an alarm.

    Attributes:
        false_alarm_rate: probability that an alarm is ever raised while nothing has changed by more than the margin.
        margin: by how much shares of queries may differ from the calibration data: 0.01 is one query in a hundred.
    """

    false_alarm_rate: float = 0.01
    margin: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.false_alarm_rate < 1:
            raise UsageError(f"false_alarm_rate={self.false_alarm_rate}: expected a number between 0 and 1")
        if not 0 <= self.margin < 1:
            raise UsageError(f"margin={self.margin}: expected a number from 0 to below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftAlarm:
    """An alarm with its numbers; plain data.

    Attributes:
        kind: ``share``, ``confidence`` or ``disagreement``: the event with most evidence against the null hypothesis.
        exit_index: where; ``None`` for the disagreement over all queries.
        exit_name: its cut, ``final head`` or ``all exits``.
        confidence_below: for ``confidence``: the event is to leave there with less than this.
        expected: the event's frequency among the calibration samples.
        allowed: the end of the allowed interval that was passed; includes the calibration sample's uncertainty and the
            margin.
        seen: its frequency among the ``rows`` rows since the most likely time of the change; for the disagreement over
            all queries an estimate from the shadowed ones.
        rows: how many those are; for a disagreement at an exit the shadowed ones that left there.
        queries: how many had been answered when the alarm was raised.
        log10_capital: evidence, at least ``log10(2 / false_alarm_rate)``; of all events together.
        false_alarm_rate: as configured.
    """

    kind: str
    exit_index: int | None
    exit_name: str
    confidence_below: float | None
    expected: float
    allowed: float
    seen: float
    rows: int
    queries: int
    log10_capital: float
    false_alarm_rate: float

    @property
    def message(self) -> str:
        """One sentence with the numbers."""
        below = "" if self.confidence_below is None else f" with a confidence below {self.confidence_below:.2f}"
        what = {
            SHARE: f"leave at {self.exit_name}",
            CONFIDENCE: f"leave at {self.exit_name}{below}",
            DISAGREEMENT: f"are answered otherwise than by the final head ({self.exit_name})",
        }[self.kind]
        side = "at most" if self.seen > self.allowed else "at least"
        return (
            f"the stream has drifted from the calibration data: of the last {self.rows} rows {self.seen:.4f} {what}, "
            f"expected {self.expected:.4f} and {side} {self.allowed:.4f} (after {self.queries} queries; evidence "
            f"10^{self.log10_capital:.1f}, false-alarm rate {self.false_alarm_rate:g}). Calibrate and plan again on "
            "recent data"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftState:
    """State of the test for drift; plain data.

    Attributes:
        log10_capital: evidence against the null hypothesis; around 0 or less while it holds.
        log10_alarm: evidence that raises an alarm; ``log10(2 / false_alarm_rate)``.
        false_alarm_rate, margin: as configured.
        reference_samples: how many calibration samples the stream is compared with.
    """

    log10_capital: float
    log10_alarm: float
    false_alarm_rate: float
    margin: float
    reference_samples: int


class DriftTest:
    """The test of one stream. Takes counts, block by block; reads no clock and raises one alarm at most."""

    def __init__(self, plan: ExitPlan, config: DriftConfig, *, shadow_fraction: float = 0.0) -> None:
        """Starts the test.

        Args:
            plan: holds the reference.
            config: rate and margin.
            shadow_fraction: of the rows that leave early; without any, disagreements are not watched.

        Raises:
            SchemaError: the plan has no reference, or one that does not belong to its exits.
        """
        reference = check_reference(plan)
        names = (*(planned.cut for planned in plan.exits), FINAL_HEAD_LABEL)
        events = list_events(reference, shadow_fraction=shadow_fraction, certified=certified_disagreement(plan))
        hypotheses = list_hypotheses(events, false_alarm_rate=config.false_alarm_rate / 2, margin=config.margin)
        width = (len(names), len(reference.confidence_counts[0]) + 2)
        self._hits = np.array([side.event.hits for side in hypotheses]).reshape(-1, math.prod(width))
        self._counted = np.array([side.event.rows for side in hypotheses]).reshape(-1, math.prod(width))
        self._bets = Bets(
            np.array([side.allowed * side.event.scale for side in hypotheses]),
            np.array([side.at_most for side in hypotheses], bool),
            np.array([side.weight for side in hypotheses]),
        )
        self._hypotheses, self._names = hypotheses, names
        self._config, self._samples = config, reference.samples
        self._queries = 0
        self._alarm: DriftAlarm | None = None

    @property
    def alarm(self) -> DriftAlarm | None:
        """The alarm, once it has been raised."""
        return self._alarm

    @property
    def state(self) -> DriftState:
        """The evidence so far."""
        return DriftState(
            log10_capital=self._bets.log_capital / math.log(10),
            log10_alarm=math.log10(2 / self._config.false_alarm_rate),
            false_alarm_rate=self._config.false_alarm_rate,
            margin=self._config.margin,
            reference_samples=self._samples,
        )

    def update(self, block: BlockCounts) -> DriftAlarm | None:
        """Takes a block of rows. Where it ends must not depend on what its rows did.

        Returns:
            The alarm, if this block raised it.
        """
        if self._alarm is not None or not self._hypotheses:
            return None
        counts = block.vector
        self._queries += int(block.cells.sum())
        self._bets.update(self._hits @ counts, self._counted @ counts)
        if self._bets.log_capital < math.log(2 / self._config.false_alarm_rate):
            return None
        self._alarm = self._describe()
        return self._alarm

    def _describe(self) -> DriftAlarm:
        evidence = self._bets.strongest
        hypothesis = self._hypotheses[evidence.index]
        event = hypothesis.event
        return DriftAlarm(
            kind=event.kind,
            exit_index=event.exit_index,
            exit_name=ALL_EXITS if event.exit_index is None else self._names[event.exit_index],
            confidence_below=event.confidence_below,
            expected=event.expected,
            allowed=hypothesis.allowed,
            seen=min(1.0, evidence.hits / evidence.rows / event.scale),
            rows=evidence.rows,
            queries=self._queries,
            log10_capital=self._bets.log_capital / math.log(10),
            false_alarm_rate=self._config.false_alarm_rate,
        )
