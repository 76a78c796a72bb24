"""The greedy search against the paper's steps written out literally, and what must hold of every answer."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from artifacts import NoPlanError, Trace, UsageError
from planner import KeptGrids, NetworkCosts, SlowBatchRule, binomial_pmf, threshold_grid
from planner.search.greedy import draw_candidate_patterns
from planner.search.problem import share_in_time
from tests.planner.planning_worlds import make_costs, make_problem, make_trace, search_greedily, traces

ANY_BATCHES = SlowBatchRule(share=0.0, stay_allowance=None)
tolerances = st.sampled_from([0.0, 0.01, 0.05, 0.2, 0.5])


def search(trace: Trace, costs: NetworkCosts, tolerance: float, rule: SlowBatchRule = ANY_BATCHES):
    grids = KeptGrids(thresholds=threshold_grid(0.1))
    return search_greedily(trace, costs, tolerance=tolerance, grids=grids, slow_batches=rule)


class LiteralPaper:
    """Steps 3 to 7 with loops over samples and without stored sums: slow and plain."""

    def __init__(self, trace: Trace, costs: NetworkCosts, tolerance: float, rule: SlowBatchRule) -> None:
        self.trace, self.costs, self.tolerance, self.rule = trace, costs, tolerance, rule
        self.samples = trace.sample_count

    def expected_ms(self, exits: list[tuple[int, np.float32]]) -> float:
        batch = self.costs.batch_size
        costs = self.costs.plan_costs([self.trace.exits[row] for row, _ in exits])
        entering, total = self.samples, 0.0
        gone = np.zeros(self.samples, bool)
        for stage, cost in enumerate(costs):
            pmf = binomial_pmf(batch, entering / self.samples)
            total += sum(pmf[n] * n * cost[n] for n in range(batch + 1)) / batch
            if stage < len(exits):
                row, threshold = exits[stage]
                gone |= self.trace.confidence[row] >= threshold
                entering = int((~gone).sum())
        return total

    def in_time(self, row: int, threshold: np.float32) -> bool:
        batch = self.costs.batch_size
        head, rest = self.costs.plan_costs([self.trace.exits[row]])
        moveon = np.mean([not c >= threshold for c in self.trace.confidence[row]])
        share = 0.0
        for n in range(batch + 1):
            if head[batch] + rest[n] > (1 + self.rule.allowance) * self.costs.full_ms:
                break
            share += binomial_pmf(batch, moveon)[n]
        return share >= self.rule.share - 1e-9

    def configure(self, row: int, going: list[int], target: float) -> np.float32 | None:
        best: tuple[float, np.float32] | None = None
        for threshold in threshold_grid(0.1):
            leave = [i for i in going if self.trace.confidence[row, i] >= threshold]
            stay = [i for i in going if not self.trace.confidence[row, i] >= threshold]
            metric = sum(float(self.trace.metric[row, i]) for i in leave)
            metric += sum(float(self.trace.metric[-1, i]) for i in stay)
            moveon = len(stay) / len(going)
            if leave and metric / len(going) >= target - 1e-9 and (best is None or moveon <= best[0]):
                best = moveon, threshold
        return None if best is None else best[1]

    def run(self) -> list[tuple[int, np.float32]]:
        exits: list[tuple[int, np.float32]] = []
        going = list(range(self.samples))
        target = self.trace.full_metric * (1 - self.tolerance)
        while going:
            first = exits[-1][0] + 1 if exits else 0
            options = []
            for row in range(first, len(self.trace.exits)):
                threshold = self.configure(row, going, target)
                if threshold is not None and (exits or self.in_time(row, threshold)):
                    options.append((self.expected_ms([*exits, (row, threshold)]), row, threshold))
            options = [option for option in options if option[0] < self.expected_ms(exits)]
            if not options:
                break
            _, row, threshold = min(options, key=lambda option: option[0])
            leave = [i for i in going if self.trace.confidence[row, i] >= threshold]
            acc_exit = np.mean([float(self.trace.metric[row, i]) for i in leave])
            moveon = 1 - len(leave) / len(going)
            exits.append((row, threshold))
            going = [i for i in going if i not in set(leave)]
            if going:
                target = (target - acc_exit * (1 - moveon)) / moveon
        return exits


@settings(max_examples=150, deadline=None)
@given(traces(), st.integers(0, 2**16), tolerances, st.sampled_from([1, 2, 5, 8]), st.sampled_from([0.0, 0.5, 0.99]))
def test_search_is_the_paper_taken_literally(
    trace: Trace, seed: int, tolerance: float, batch_size: int, share: float
) -> None:
    assume(trace.full_metric > 0)
    costs = make_costs(seed, exits=len(trace.exits), batch_size=batch_size)
    rule = SlowBatchRule(share=share, stay_allowance=None)
    literal = LiteralPaper(trace, costs, tolerance, rule)
    expected = literal.run()
    path = [plan for plan in search(trace, costs, tolerance, rule).considered if plan.path]
    found = max(path, key=lambda plan: plan.exit_count).priced
    rows = [trace.exits.index(cut) for cut in found.exits.cuts]
    literally = [(row, float(threshold)) for row, threshold in expected]
    mine = list(zip(rows, found.exits.thresholds, strict=True))
    if mine != literally:  # two candidates of equal expected time may change places by rounding
        ours = literal.expected_ms([(row, np.float32(threshold)) for row, threshold in mine])
        assert ours == pytest.approx(literal.expected_ms(expected), rel=1e-9)
    assert found.times.mean_ms == pytest.approx(literal.expected_ms(expected), rel=1e-9)


@settings(max_examples=150, deadline=None)
@given(traces(max_samples=80), st.integers(0, 2**16), tolerances, st.sampled_from([1, 4, 8]))
def test_answer_keeps_the_tolerance_and_is_never_slower(
    trace: Trace, seed: int, tolerance: float, batch_size: int
) -> None:
    assume(trace.full_metric > 0)
    costs = make_costs(seed, exits=len(trace.exits), batch_size=batch_size)
    result = search(trace, costs, tolerance)
    assert result.best.times.mean_ms <= costs.full_ms * (1 + 1e-12)
    for plan in result.considered:
        assert plan.priced.outcome.metric >= (1 - tolerance) * trace.full_metric - 1e-8
    plans = [plan.exits for plan in result.considered]
    assert len(set(plans)) == len(plans)
    assert any(not chosen.cuts for chosen in plans)
    times = [plan.priced.times.mean_ms for plan in result.considered if plan.allowed]
    assert times == sorted(times)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**16), st.integers(0, 2**16))
def test_first_exit_alone_is_monotone_in_the_tolerance(seed: int, cost_seed: int) -> None:
    """With one candidate the search has one choice, so that a larger tolerance can only be faster.

    (With more, eating the budget early is the method's own fault: a larger tolerance may make it slower.)
    """
    trace, costs = make_trace(seed, exits=1), make_costs(cost_seed, exits=1, head=0.05)
    times = [search(trace, costs, tolerance).best.times.mean_ms for tolerance in (0.0, 0.01, 0.05, 0.2, 0.5)]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize("seed", range(5))
def test_configured_move_on_is_monotone_in_the_tolerance(seed: int) -> None:
    trace, costs = make_trace(seed, exits=4, samples=200), make_costs(seed, exits=4)
    bold = -np.ones(4)
    for tolerance in (0.0, 0.02, 0.1, 0.4):
        leaving = np.zeros(4)
        patterns = draw_candidate_patterns(make_problem(trace, costs), tolerance)
        for cut, row in zip(patterns.exits, patterns.probability, strict=True):
            leaving[trace.exits.index(cut)] = 1 - row @ np.arange(9) / 8
        assert (leaving >= bold - 1e-12).all()
        bold = leaving


def test_constant_confidences_leave_all_or_none() -> None:
    trace = make_trace(0)
    flat = replace(trace, confidence=np.full_like(trace.confidence, 0.5), metric=np.ones_like(trace.metric))
    best = search(flat, make_costs(0), 0.0).best
    assert best.exits.cuts == ("cut0",)  # all are right at once: all leave at the first
    assert best.exits.thresholds == (0.5,)  # the most careful threshold that still lets all of them leave
    assert best.outcome.shares == (1.0, 0.0)


def test_one_sample_is_enough() -> None:
    trace = Trace(
        exits=("cut0",), confidence=np.array([[0.4], [1]], np.float32), metric=np.ones((2, 1), np.float32),
        agreement=np.ones((2, 1), bool),
    )  # fmt: skip
    best = search(trace, make_costs(0, exits=1), 0.0).best
    assert best.exits.thresholds == (float(np.float32(0.4)),)


def test_useless_exits_are_not_taken() -> None:
    trace = make_trace(0)
    wrong = np.zeros_like(trace.metric)
    wrong[-1] = 1
    assert search(replace(trace, metric=wrong), make_costs(0), 0.01).best.exits.cuts == ()


def test_heads_that_cost_more_than_the_network_are_not_taken() -> None:
    assert search(make_trace(0), make_costs(0, head=100.0), 0.5).best.exits.cuts == ()


def test_network_without_candidates_has_one_plan() -> None:
    trace, costs = make_trace(0, exits=0), make_costs(0, exits=0)
    result = search(trace, costs, 0.01)
    assert [plan.exits.cuts for plan in result.considered] == [()]
    assert draw_candidate_patterns(make_problem(trace, costs), 0.01).exits == ()


def test_slow_batch_rule_refuses_an_exit_that_makes_most_batches_late() -> None:
    trace, costs = make_trace(0, exits=1, samples=400), make_costs(0, exits=1)
    free = search(trace, costs, 0.05, SlowBatchRule(share=0.0, allowance=0.0, stay_allowance=None))
    single = next(plan for plan in free.considered if plan.exit_count == 1)
    assert 0 < single.in_time_share < 1
    strict = SlowBatchRule(share=min(single.in_time_share + 0.01, 1.0), allowance=0.0, stay_allowance=None)
    refused = search(trace, costs, 0.05, strict)
    assert refused.best.exits.cuts == ()
    assert [plan.allowed for plan in refused.considered] == [True, False]


def test_a_batch_of_which_no_row_leaves_pays_no_more_than_it_may() -> None:
    trace, costs = make_trace(0, exits=3, samples=400), make_costs(0, exits=3)
    free = search(trace, costs, 0.2)
    prices = {plan.exits.cuts: sum(p[-1] for p in costs.plan_costs(plan.exits.cuts)) for plan in free.considered}
    excess = prices[free.best.exits.cuts] / costs.full_ms - 1
    assert excess > 0
    allowance = excess / 2
    bound = search(trace, costs, 0.2, SlowBatchRule(share=0.0, stay_allowance=allowance))
    for plan in bound.considered:
        spent = sum(price[-1] for price in costs.plan_costs(plan.exits.cuts))
        assert plan.allowed == (spent <= (1 + allowance) * costs.full_ms)
    assert bound.best.exits.cuts != free.best.exits.cuts


def test_break_even_counts_batches_by_the_pattern() -> None:
    costs = make_costs(0, exits=1)
    head, rest = costs.plan_costs(("cut0",))
    late = [head[8] + rest[n] > costs.full_ms for n in range(9)]
    within = late.index(True)
    expected = binomial_pmf(8, 0.5)[:within].sum()
    assert share_in_time(costs, "cut0", 0.5, allowance=0.0) == pytest.approx(expected)
    assert share_in_time(costs, "cut0", 0.5, allowance=100.0) == pytest.approx(1)


def test_another_tolerance_reads_no_trace_again() -> None:
    trace, costs = make_trace(7, exits=4, samples=300), make_costs(7, exits=4, head=0.05)
    grids = KeptGrids(thresholds=threshold_grid())
    first = search_greedily(trace, costs, tolerance=0.02, grids=grids, slow_batches=ANY_BATCHES)
    assert grids.evaluations == len(grids.grids) >= 2
    before = grids.evaluations
    again = search_greedily(trace, costs, tolerance=0.02, grids=grids, slow_batches=ANY_BATCHES)
    assert grids.evaluations == before
    assert again.best.exits == first.best.exits
    search_greedily(trace, costs, tolerance=0.3, grids=grids, slow_batches=ANY_BATCHES)
    fresh = KeptGrids(thresholds=threshold_grid())
    search_greedily(trace, costs, tolerance=0.3, grids=fresh, slow_batches=ANY_BATCHES)
    assert grids.evaluations - before < fresh.evaluations


def test_stored_grid_decides_and_not_the_trace() -> None:
    """A grid in which no sample may leave is believed, which shows that it is used."""
    trace, costs = make_trace(7), make_costs(7, head=0.01)
    grids = KeptGrids(thresholds=threshold_grid())
    assert search_greedily(trace, costs, tolerance=0.2, grids=grids, slow_batches=ANY_BATCHES).best.exits.cuts
    grids.grids = {prefix: replace(grid, leaving=grid.leaving * 0) for prefix, grid in grids.grids.items()}
    assert not search_greedily(trace, costs, tolerance=0.2, grids=grids, slow_batches=ANY_BATCHES).best.exits.cuts


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, float("nan")])
def test_tolerance_outside_its_range_is_refused(tolerance: float) -> None:
    with pytest.raises(UsageError, match="--tolerance"):
        search(make_trace(0), make_costs(0), tolerance)


def test_metric_of_zero_has_no_plan() -> None:
    trace = make_trace(0)
    with pytest.raises(NoPlanError, match="metric 0") as caught:
        search(replace(trace, metric=np.zeros_like(trace.metric)), make_costs(0), 0.01)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "rule",
    [
        {"share": 1.5},
        {"share": -0.1},
        {"share": np.nan},
        {"allowance": -1.0},
        {"allowance": np.nan},
        {"stay_allowance": -0.1},
        {"stay_allowance": np.inf},
    ],
)
def test_slow_batch_rule_checks_itself(rule: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="--tail|--stay"):
        SlowBatchRule(**rule)
