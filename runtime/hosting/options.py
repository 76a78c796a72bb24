"""``HostOptions``: how a serving host admits, schedules and gives up, and the costs that its scheduler reckons with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from artifacts import BundleSpec, ExitPlan, SchemaError, UsageError
from engines import Covers, EngineSet
from runtime.monitor.options import WatchOptions
from runtime.scheduling.decisions import FULL, SchedulerConfig, parse_policy
from runtime.scheduling.tables import StageCosts


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOptions(WatchOptions):
    """Options of an ``AsyncRuntime``, those of watching among them; the usual ones are also keywords of its ``load``.

    Attributes:
        policy: ``full`` (no row leaves early), ``chain`` (a batch goes through by itself), ``pooled:MARGIN`` (rows of
            several batches share stages, everybody is to be answered MARGIN ms before he is due) or ``auto``.
        slo_ms: a request is due this long after it came. It orders rows and cancels nothing; ``timeout_ms`` of a
            request does. ``None``: ten times what the largest batch takes by itself.
        max_waiting_rows: a request is refused if more rows would wait; ``None``: four of the largest batches;
            while more comes than can be served, as many as leave those that enter the time to be answered.
        priorities: how many levels a request's ``priority`` has.
        refuse_late: refuse at once what will probably miss its deadline.
        check_finite: refuse rows with NaN or infinity.
        max_engine_faults: after so many failed runs in a row the host is not ready, until one succeeds.
        hang_factor, hang_grace_s: a run that takes longer than ``hang_factor`` times what it should and
            ``hang_grace_s`` seconds hangs.
        drain_timeout_s: how long closing waits for requests that were admitted.

    Raises:
        UsageError: a value is out of range, or there is no such policy.
    """

    policy: str = "auto"
    slo_ms: float | None = None
    max_waiting_rows: int | None = None
    priorities: int = 3
    refuse_late: bool = False
    check_finite: bool = True
    max_engine_faults: int = 3
    hang_factor: float = 10.0
    hang_grace_s: float = 5.0
    drain_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        self.check_watch()
        if self.scheduling().policy.kind == FULL and self.sees_rows:
            raise UsageError(
                "policy 'full' lets no row leave early, so there is nothing to shadow and no drift to answer; leave "
                "shadow_fraction and on_drift out, or take another policy"
            )
        if self.max_engine_faults < 1:
            raise UsageError(f"max_engine_faults={self.max_engine_faults}: expected a number from 1")
        for name in ("hang_factor", "hang_grace_s", "drain_timeout_s"):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise UsageError(f"{name}={value}: expected a number from 0")

    def scheduling(self) -> SchedulerConfig:
        """Returns the rules of the scheduler."""
        try:
            return SchedulerConfig(
                policy=parse_policy(self.policy),
                max_waiting_rows=self.max_waiting_rows,
                slo_s=None if self.slo_ms is None else self.slo_ms / 1e3,
                priorities=self.priorities,
                refuse_late=self.refuse_late,
            )
        except ValueError as error:
            raise UsageError(str(error)) from error


def line_covers(spec: BundleSpec, engine_sets: Sequence[EngineSet]) -> list[Covers]:
    """Returns the covers of each stage; where rows have several lengths, those of all stages for each of them."""
    return [engines.at_length(length).covers for length in spec.lengths or (0,) for engines in engine_sets]


def read_costs(spec: BundleSpec, covers: Sequence[Covers], *, overhead_ms: float = 0.0) -> StageCosts:
    """Returns the expected times of the stages: the covers' measured times, and the leaving shares of the exit plan.

    Args:
        spec: the bundle.
        covers: from ``line_covers``.
        overhead_ms: what a run costs besides its engines.

    Raises:
        SchemaError: a time is 0 or not a number.
    """
    reaching, staying = 1.0, []
    for planned in spec.plan.exits:
        left = max(0.0, reaching - planned.leaving_share)
        staying.append(min(1.0, left / reaching) if reaching > 0 else 0.0)
        reaching = left
    run_s = [[0.0, *((ms + overhead_ms) / 1e3 for ms in table.cost_ms[1:].tolist())] for table in covers]
    try:
        lines = max(1, len(spec.lengths))
        return StageCosts(run_s, [*staying, 0.0] * lines, lines)
    except ValueError as error:
        raise SchemaError(f"bundle '{spec.name}' cannot be scheduled: {error}") from error


def expected_staying(plan: ExitPlan | None, exits: int) -> list[float]:
    """Returns the share of the rows that go on after each stage, as those did that a plan's stream is compared with.

    Args:
        plan: with its reference; ``None``: no row leaves early.
        exits: how many exits there are.
    """
    if plan is None or plan.reference is None:
        return [1.0] * exits + [0.0]
    left = [sum(counts) for counts in plan.reference.confidence_counts]
    reaching = [sum(left[index:]) for index in range(exits + 1)]
    return [reaching[index + 1] / reaching[index] if reaching[index] else 0.0 for index in range(exits)] + [0.0]
