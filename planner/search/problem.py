"""Search problem: the trace, the costs, the rules and the tolerances of a search, and the form of its result.

Every search maps a ``SearchProblem`` to one ``SearchResult`` per tolerance (``planner.search.searches`` has the table
of them). The tolerances share what does not depend on them: the ranks of the confidences, the prices of the stages,
the threshold grids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from artifacts import Certificate, NoPlanError, Trace, UsageError
from calibration import binomial_pmf
from planner.predict.costs import NetworkCosts
from planner.predict.objectives import P99, objective_ms
from planner.predict.replay import Exits, PricedExits, expect_ms, price_exits
from planner.search.level_tables import RankedTrace
from planner.search.prices import Prices
from planner.search.rules import SearchRules
from planner.search.threshold_grids import KeptGrids, threshold_grid

ROUNDING = 1e-9  # of a mean metric or a share that is compared with a bound


def check_tolerance(tolerance: float, trace: Trace) -> None:
    """Refuses a tolerance outside [0, 1) and a trace on which no relative loss is defined."""
    if not 0 <= tolerance < 1:
        raise UsageError(f"--tolerance {tolerance}: expected a relative loss from 0 to below 1, e.g. 0.01 to keep 99 %")
    if trace.full_metric == 0:
        raise NoPlanError(
            "the full network answers none of the calibration samples correctly (metric 0), so that a relative "
            "tolerance has no meaning. Check the weights and the data: python -m calibration --verbose"
        )


@dataclass(frozen=True, kw_only=True, eq=False)  # no slots: what is derived from the fields is worked out once
class SearchProblem:
    """What is searched for, and in what.

    Attributes:
        trace: the calibration data, with the metric that the tolerances bound.
        costs: the stages' costs; their load is planned for.
        tolerances: allowed relative losses of the metric, each in [0, 1); a search answers each of them.
        rules: which plans may win, and by which time.
        grids: the threshold grids of this trace; what is missing is evaluated and added.

    Raises:
        UsageError: a tolerance lies outside [0, 1).
        NoPlanError: the full network's metric is 0, so that no loss can be related to it.
    """

    trace: Trace
    costs: NetworkCosts
    tolerances: tuple[float, ...]
    rules: SearchRules = field(default_factory=SearchRules)
    grids: KeptGrids = field(default_factory=lambda: KeptGrids(thresholds=threshold_grid()))

    def __post_init__(self) -> None:
        for tolerance in self.tolerances:
            check_tolerance(tolerance, self.trace)

    def on(self, trace: Trace, tolerances: Iterable[float]) -> SearchProblem:
        """Returns the same problem on another trace for other tolerances."""
        return SearchProblem(
            trace=trace, costs=self.costs, tolerances=tuple(tolerances), rules=self.rules,
            grids=KeptGrids(thresholds=self.grids.thresholds),
        )  # fmt: skip

    @property
    def tolerance(self) -> float:
        """The tolerance of a problem that has one."""
        (tolerance,) = self.tolerances
        return tolerance

    @property
    def most_exits(self) -> int:
        """The most exits that a plan may have."""
        candidates = len(self.trace.exits)
        return candidates if self.rules.max_exits is None else min(self.rules.max_exits, candidates)

    @cached_property
    def ranked(self) -> RankedTrace:
        """The trace with its confidences as ranks."""
        return RankedTrace.of(self.trace)

    @cached_property
    def prices(self) -> Prices:
        """Prices of combinations of thresholds by the objective."""
        return Prices(
            costs=self.costs, exits=self.trace.exits, samples=self.trace.sample_count, objective=self.rules.objective
        )

    @cached_property
    def budgets(self) -> tuple[float, ...]:
        """Per tolerance how much of the final head's metric may be lost, summed over the samples.

        Less than nothing where the network itself loses more, against the one that the tolerance refers to.
        """
        samples = self.trace.sample_count
        gained = (float(self.trace.metric[-1].mean(dtype="float64")) - self.trace.full_metric) * samples
        return tuple(
            gained + self.trace.full_metric * samples * tolerance + ROUNDING / 2 * samples
            for tolerance in self.tolerances
        )

    def keeps_metric(self, priced: PricedExits) -> bool:
        """Tells whether a plan keeps the metric on the trace, for a problem that has one tolerance."""
        return priced.outcome.metric >= (1 - self.tolerance) * self.trace.full_metric - ROUNDING

    @cached_property
    def most_survivors(self) -> tuple[int, ...]:
        """Per candidate how many samples may go on past it as a first exit by the slow-batch rule; -1: none may."""
        return tuple(map(self._count_most_survivors, self.trace.exits))

    def _count_most_survivors(self, first: str) -> int:
        allowance, samples = self.rules.slow_batches.allowance, self.trace.sample_count
        low, high = -1, samples
        while low < high:
            middle = (low + high + 1) // 2
            share = share_in_time(self.costs, first, middle / samples, allowance=allowance)
            low, high = (middle, high) if self.keeps_time(share) else (low, middle - 1)
        return low

    def allows(self, rows: tuple[int, ...]) -> bool:
        """Tells whether these exits, one or more rows of the trace, may be chosen together."""
        if rows not in self._allowed:
            cuts = [self.trace.exits[row] for row in rows]
            self._allowed[rows] = self.most_survivors[rows[0]] >= 0 and self.allows_staying(cuts)
        return self._allowed[rows]

    @cached_property
    def _allowed(self) -> dict[tuple[int, ...], bool]:
        return {}

    def allows_staying(self, cuts: Sequence[str]) -> bool:
        """Tells whether batches of which no row leaves cost no more than the stay allowance."""
        allowance = self.rules.slow_batches.stay_allowance
        return allowance is None or self.costs.stay_ms(cuts) <= (1 + allowance) * self.costs.slow_above.full_ms

    def share_in_time(self, priced: PricedExits) -> float:
        """Returns the share of batches at or under the break-even of a plan's first exit; 1 without exits."""
        cuts, allowance = priced.exits.cuts, self.rules.slow_batches.allowance
        return share_in_time(self.costs, cuts[0], priced.outcome.survival[1], allowance=allowance) if cuts else 1.0

    def keeps_time(self, share_in_time: float) -> bool:
        """Tells whether so large a share of batches in time is enough."""
        return share_in_time >= self.rules.slow_batches.share - ROUNDING

    def price(self, exits: Exits) -> PricedExits:
        """Evaluates exits on the trace and prices them, with the percentile where that is the objective."""
        return price_exits(self.trace, exits, self.costs, percentile=self.rules.objective == P99)

    def expect_ms(self, exits: Exits) -> float:
        """Returns the value that the objective minimises, expected for exits on the trace, in milliseconds."""
        return expect_ms(self.trace, exits, self.costs, objective=self.rules.objective)


def share_in_time(costs: NetworkCosts, first: str, survival: float, *, allowance: float) -> float:
    """Returns the share of batches whose survivor count does not exceed the break-even of their first exit.

    Args:
        costs: the stages' costs.
        first: the first exit.
        survival: the share of the samples that go on past it.
        allowance: relative excess over the time of the network that is compared with that counts as in time.
    """
    head, rest = costs.plan_costs((first,))
    full = costs.slow_above.stage_cost(None, None)
    total = 0.0
    for size, share in zip(costs.load.batch_sizes, costs.load.shares, strict=True):
        late = head[size] + rest[: size + 1] > (1 + allowance) * full[size]
        within = int(late.argmax()) if late.any() else len(late)
        total += share * float(binomial_pmf(size, survival)[:within].sum())
    return total


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SearchedPlan:
    """A plan that a search considered.

    Attributes:
        priced: the exits and their figures.
        in_time_share: share of batches at or under the first exit's break-even; 1 without exits.
        allowed: whether the rules, and the certificate where there is one, let it win.
        path: whether it lies on the search's own way (a prefix of its result).
        p_value: of "its risk is above the tolerance"; ``None`` where that was not tested.
        certificate: what is guaranteed; ``None`` without.
    """

    priced: PricedExits
    in_time_share: float = 1.0
    allowed: bool = True
    path: bool = False
    p_value: float | None = None
    certificate: Certificate | None = None

    @property
    def exits(self) -> Exits:
        return self.priced.exits

    @property
    def exit_count(self) -> int:
        return len(self.priced.exits.cuts)

    def time_ms(self, objective: str) -> float:
        """Returns the value that an objective minimises, in milliseconds."""
        return objective_ms(self.priced.times, objective)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SearchResult:
    """The plans that a search considered for one tolerance.

    Attributes:
        considered: allowed ones first, then by the objective; the first is the answer.
        baseline: a plan to measure beside the best ones: the greedy search's, when another search was asked.
    """

    considered: tuple[SearchedPlan, ...]
    baseline: Exits | None = None

    @property
    def best(self) -> PricedExits:
        return self.considered[0].priced


Search = Callable[[SearchProblem], tuple[SearchResult, ...]]  # one result per tolerance of the problem, in its order


def rank_plans(plans: Iterable[SearchedPlan], objective: str) -> list[SearchedPlan]:
    """Returns plans in order: allowed ones first, then by the objective, of equal ones those with fewer exits."""
    return sorted(plans, key=lambda plan: (not plan.allowed, plan.time_ms(objective), plan.exit_count))
