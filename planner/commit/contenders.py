"""Contenders: which plans are measured end to end, and which of them is committed. Pure.

The least measured time wins. But plans within ``NOISE`` of the fastest cannot be told apart by measurement: of those
the one with the fewest exits wins, then the one that costs least when no row leaves, which is measured as well, so
that the choice does not change with the noise of the timings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from artifacts import ExitPlan, InferenceTimeMatrix
from planner.predict.objectives import BATCH, MEAN, P99
from planner.predict.replay import NO_EXITS, Exits, PricedExits
from planner.search.problem import SearchResult

NOISE = 0.02  # two measurements of the same plan differ by that much


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowReference:
    """The network that slow batches are compared with, where it is another one than that without exits.

    Attributes:
        label: its engine and precision.
        full_ms: its mean query.
        own_ratio: the mean query of the network that is planned for, without exits, of ``full_ms``.
    """

    label: str
    full_ms: float
    own_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contender:
    """A plan that was assembled and measured.

    Attributes:
        priced: from the times of its stages.
        plan: as stored in its bundle.
        bundle: the assembled bundle, in a temporary folder.
        measured_mean_ms: mean latency of a query, end to end.
        measured_batch_ms: until the last answer of a batch, on average.
        measured_p99_ms: what 99 % of the queries did not exceed.
        stay_ratio: time of a batch of which no row leaves, of that of the plan without exits; measured.
        allowed: False for a plan that was measured for comparison only.
    """

    priced: PricedExits
    plan: ExitPlan
    bundle: Path
    measured_mean_ms: float
    measured_batch_ms: float
    measured_p99_ms: float
    stay_ratio: float
    allowed: bool

    def measured_ms(self, objective: str) -> float:
        """Returns the measured time that an objective is about."""
        return {MEAN: self.measured_mean_ms, BATCH: self.measured_batch_ms, P99: self.measured_p99_ms}[objective]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Commitment:
    """The contenders; the first is committed.

    Attributes:
        contenders: the winner, then the others, the fastest first.
        rounds: how often every batch went through every plan.
        itm: the times of all their stages.
    """

    contenders: tuple[Contender, ...]
    rounds: int
    itm: InferenceTimeMatrix

    @property
    def winner(self) -> Contender:
        return self.contenders[0]


def pick_contenders(result: SearchResult, count: int, objective: str = MEAN) -> tuple[Exits, ...]:
    """Returns plans to measure, in the order of the result, each set of exits once: with its best thresholds.

    The best of the allowed ones first; then those expected within ``NOISE`` of it, the best of every number of exits,
    fewest first; then the others by what is expected. To these ``count`` come the best plan of every smaller number of
    exits, the plan without exits, and the baseline.
    """
    with_exits = [plan for plan in result.considered if plan.allowed and plan.exit_count]
    by_cuts = {plan.exits.cuts: plan for plan in reversed(with_exits)}
    allowed = [plan for plan in with_exits if by_cuts[plan.exits.cuts] is plan]
    best_ms = min((plan.time_ms(objective) for plan in allowed), default=0.0)
    best_by_count = {plan.exit_count: plan for plan in reversed(allowed)}

    def order(place: int) -> tuple[int, int]:
        plan = allowed[place]
        twin = plan.time_ms(objective) <= (1 + NOISE) * best_ms and best_by_count[plan.exit_count] is plan
        return (1, plan.exit_count) if twin and place else (2 if place else 0, place)

    places = sorted(range(len(allowed)), key=order)[:count]
    fewest = min((allowed[place].exit_count for place in places), default=1)
    fewer = [best_by_count[exits].exits for exits in range(1, fewest) if exits in best_by_count]
    picked = {NO_EXITS, *fewer, *(allowed[place].exits for place in places)}
    if result.baseline is not None:
        picked.add(result.baseline)
    considered = [plan.exits for plan in result.considered]
    return tuple(sorted(picked, key=considered.index))


def rank_contenders(contenders: Sequence[Contender], objective: str) -> tuple[Contender, ...]:
    """Returns the winner, then the others by their measurement.

    The winner has the fewest exits of those allowed plans that are within ``NOISE`` of the fastest allowed one, then
    the lowest cost when no row leaves, then the best measurement.
    """
    ordered = sorted(contenders, key=lambda contender: contender.measured_ms(objective))
    allowed = [contender for contender in ordered if contender.allowed]
    fastest_ms = allowed[0].measured_ms(objective)
    twins = [contender for contender in allowed if contender.measured_ms(objective) <= (1 + NOISE) * fastest_ms]
    winner = min(twins, key=lambda contender: (len(contender.plan.exits), contender.stay_ratio))
    return (winner, *(contender for contender in ordered if contender is not winner))


def warn_of_staying(
    winner: Contender, allowance: float | None, reference: SlowReference | None = None
) -> str | None:  # fmt: skip
    """Returns a warning when a batch of which no row leaves was measured to take more than the search had estimated."""
    ratio = winner.stay_ratio * (1.0 if reference is None else reference.own_ratio)
    if allowance is None or not winner.plan.exits or ratio <= 1 + allowance + NOISE:
        return None
    network = "the full network" if reference is None else reference.label
    return (
        f"note: a batch of which no row leaves was measured at {ratio:.3f} of {network}, more than "
        f"--stay-allowance {allowance:g} lets the heads add. A smaller allowance or --max-exits makes it less"
    )
