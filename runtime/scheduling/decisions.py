"""Decisions of the scheduler, and the settings that they follow. Plain values; times in seconds of the caller's clock.

They are not frozen where one is made per run: making a frozen dataclass takes about five times as long.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FULL, CHAIN, POOLED, AUTO = "full", "chain", "pooled", "auto"
ANSWERED, CANCELLED, EXPIRED, FAILED = "answered", "cancelled", "expired", "failed"
OUTCOMES = (ANSWERED, CANCELLED, EXPIRED, FAILED)
QUEUE_FULL, TOO_MANY_ROWS, TOO_LATE, DRAINING = "queue_full", "too_many_rows", "deadline", "draining"
REASONS = (QUEUE_FULL, TOO_MANY_ROWS, TOO_LATE, DRAINING)


@dataclass(frozen=True, slots=True)
class Policy:
    """How the next stage is chosen.

    Attributes:
        kind: ``full``: the whole network, no row leaves early. ``chain``: a batch goes through by itself. ``pooled``:
            rows of several batches share a stage. ``auto``: chain or pooled, by load.
        margin_s: of ``pooled``: everybody is to be answered this long before he is due.

    Raises:
        ValueError: there is no such kind, or the margin is not a number from 0.
    """

    kind: str
    margin_s: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in (FULL, CHAIN, POOLED, AUTO):
            raise ValueError(f"policy '{self.kind}': expected full, chain, pooled:MARGIN (milliseconds) or auto")
        if not (math.isfinite(self.margin_s) and self.margin_s >= 0):
            raise ValueError(f"the margin of policy '{self.kind}' is {self.margin_s} s: expected a number from 0")


def parse_policy(text: str) -> Policy:
    """Returns the policy that a text names: ``full``, ``chain``, ``auto``, ``pooled``, ``pooled:MARGIN`` (ms).

    Raises:
        ValueError: it names none.
    """
    kind, colon, margin = text.partition(":")
    if not colon:
        return Policy(kind)
    if kind != POOLED:
        raise ValueError(f"policy '{text}': only pooled takes a margin, in milliseconds, e.g. pooled:5")
    try:
        return Policy(kind, float(margin) / 1e3)
    except ValueError as error:
        raise ValueError(f"policy '{text}': the margin is milliseconds from 0, e.g. pooled:5") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Rules of a scheduler.

    Attributes:
        policy: how the next stage is chosen.
        max_waiting_rows: a request is refused if more rows than this would wait; ``None``: four of the largest batches;
            while more comes than can be served, as many as leave those that enter the time to be answered.
        slo_s: a request is due this long after it came; rows are ordered by it and ``pooled`` keeps it if it can. It
            cancels nothing. ``None``: ten times what the largest batch takes by itself.
        priorities: the number of levels; 1 is the highest, 0 stands for the one in the middle.
        ageing_s: a level is worth this much waiting: a row waits for those of the next higher level that came up to
            this much later, and for no others. So nobody starves. ``None``: as ``slo_s``.
        refuse_late: refuse at once what will probably miss its deadline.
        load_window_s: over how long the load is measured.

    Raises:
        ValueError: a number is out of range.
    """

    policy: Policy = Policy(AUTO)
    max_waiting_rows: int | None = None
    slo_s: float | None = None
    priorities: int = 3
    ageing_s: float | None = None
    refuse_late: bool = False
    load_window_s: float = 1.0

    def __post_init__(self) -> None:
        if self.max_waiting_rows is not None and self.max_waiting_rows < 1:
            raise ValueError(f"max_waiting_rows={self.max_waiting_rows}: expected a number from 1")
        if self.priorities < 1:
            raise ValueError(f"priorities={self.priorities}: expected a number from 1")
        for name, seconds in (("slo_s", self.slo_s), ("load_window_s", self.load_window_s)):
            if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
                raise ValueError(f"{name}={seconds}: expected a positive number")
        if self.ageing_s is not None and not (math.isfinite(self.ageing_s) and self.ageing_s >= 0):
            raise ValueError(f"ageing_s={self.ageing_s}: expected a number from 0")


@dataclass(slots=True)
class Admitted:
    """A request that will be done, one way or another, exactly once.

    Attributes:
        ticket: the caller's name for it.
        wait_s: predicted time until its rows begin to run.
    """

    ticket: int
    wait_s: float


@dataclass(slots=True)
class Rejected:
    """A request that was not admitted.

    Attributes:
        ticket: the caller's name for it.
        reason: one of ``REASONS``.
        retry_after_s: predicted time until what waits now has been run.
    """

    ticket: int
    reason: str
    retry_after_s: float


@dataclass(slots=True)
class Arrangement:
    """A new order of the rows in a stage's arena, to be made before the run.

    Attributes:
        stage: whose arena, through all lines of stages.
        places: where the rows stand that shall stand at 0, 1, 2 ...; whatever else is there is dropped.
    """

    stage: int
    places: Sequence[int]


@dataclass(slots=True)
class Run:
    """A decision: run a stage. One run at a time.

    Attributes:
        number: counts the runs.
        stage: its index, through all lines of stages.
        rows: ticket and row of the request at each of the first places of the stage's arena, from place 0.
        may_leave: whether rows leave where they are confident; otherwise none does before the last stage.
        arrangements: what is to be done to arenas first. The first stage of a line has none: its rows come from the
            requests.
        offset: the place in the next stage's arena where its first survivor goes; the others follow, in order.
        expected_s: how long it will take.
    """

    number: int
    stage: int
    rows: list[tuple[int, int]]
    may_leave: bool
    arrangements: list[Arrangement]
    offset: int
    expected_s: float


@dataclass(slots=True)
class Idle:
    """A decision: nothing to run.

    Attributes:
        wake_at: when the next deadline passes; ``None`` without one.
    """

    wake_at: float | None


@dataclass(slots=True)
class Done:
    """The end of a request.

    Attributes:
        ticket: the caller's name for it.
        outcome: one of ``OUTCOMES``.
        error: why, for a failed one.
    """

    ticket: int
    outcome: str
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state of a scheduler; plain data.

    Attributes:
        open_tickets: admitted and not done.
        waiting_rows: per stage of a line, of all lines.
        running_stage: the stage that runs; ``None`` when none does.
        running_rows: how many rows it runs over.
        draining: whether it admits no more.
        pooling: whether stages are shared among batches now.
        margin_s: then, how long before they are due everybody is to be answered.
        offered_rows_per_s: rows that came, over the last seconds, refused ones included; where rows have several
            lengths, a shorter one counts as the part of a longest one's cost that it has.
        wait_s: predicted time until what waits now has been run.
        gain: what pooling is worth at most, by the tables.
        runs: so far.
        admitted: requests so far.
        done: outcome -> requests so far.
        rejected: reason -> requests so far.
    """

    open_tickets: int
    waiting_rows: tuple[int, ...]
    running_stage: int | None
    running_rows: int
    draining: bool
    pooling: bool
    margin_s: float
    offered_rows_per_s: float
    wait_s: float
    gain: float
    runs: int
    admitted: int
    done: Mapping[str, int]
    rejected: Mapping[str, int]
