"""The joint search: exits and all their thresholds at once. ``--search joint``, the default.

Problem. Of all subsets of the exit candidates, with any thresholds, find the least expected cost
(``planner.search.prices``: the time that the runtime takes by the inference time matrix, covers, heads and gathers
included) such that on the trace

    metric >= (1 - tolerance) * metric of the full network,

and such that the tail rule and the stay allowance hold (``planner.search.greedy.TailRule``, the same as for the greedy
search). The plan without exits competes.

Where a sample leaves depends on all exits before, so a program over exits cannot be exact on a plain trace: the
samples that arrive at an exit, not only their number, depend on the thresholds before it. Two methods complement each
other.

1. *Survey* (``planner.search.level_tables``). One pass over the samples gives survivors and loss of tens of
   thousands of combinations of thresholds, exactly. Every subset of few candidates is surveyed: one exit with all
   its thresholds, two with 140 levels each, three with 27, where there are few candidates also four with 11; the
   fewer subsets there are, the finer, up to two exits with 1,000 levels each, three with 100, four with 31. Subsets
   that begin alike share the tables of their beginnings; one whose first stage alone costs more than the best known
   plan is left out.
2. *Descent* (``planner.search.descent``). The tolerance becomes a price of loss; exits come, go and move their
   thresholds one at a time, all thresholds tried exactly, with any number of exits.
3. *Zoom.* The best plans of both are looked at more closely: a table over a window of ranks around each, windows
   shrink round by round until they hold every single threshold that some arriving sample has, and move when the best
   lies at an edge. All exits move together, so the budget is traded between them and used up to the last sample.
4. *Starts.* The greedy search's plan and the best plan of the next smaller tolerance are zoomed into as well: the
   answer is never worse than the greedy one, and never worse than that of a smaller tolerance.

Survey and descent serve a whole ladder of tolerances: a table knows the loss of every combination, and a descent
comes through all prices of loss.

It is exact where the survey's tables hold every threshold (three candidates with up to 100 distinct confidences each,
for example) and subsets of more exits are not better. Beyond that it is a search, and its quality a
measurement (``benchmarks/planning_cost.py``). The 99th percentile is no sum over stages: descents follow the mean
latency there, and the zoom decides by the percentile.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from artifacts import Trace, UsageError
from planner.predict.costs import NetworkCosts
from planner.predict.replay import NO_EXITS, ChosenExits, PlanFigures, evaluate_plan
from planner.search.descent import Descent, Waypoint
from planner.search.greedy import (
    ROUNDING,
    Considered,
    KnownPlans,
    SearchResult,
    TailRule,
    check_tolerance,
    plan_greedy,
    share_in_time,
)
from planner.search.level_tables import LevelTable, RankedTrace, make_table, spread_levels
from planner.search.prices import MEAN, P99, Prices, check_objective, objective_ms
from planner.search.refine import Case, Spot, level_count, pick_cells, zoom
from planner.search.threshold_grids import KeptGrids, threshold_grid

_CELLS = (20_000, 1_000_000)  # combinations in a table of the survey, at least and at most
_ALL_CELLS = 2_000_000  # and in all tables of one number of exits
_SURVEYED = (0, 1000, 1000, 400, 80)  # by number of exits: survey if there are no more subsets than that
_NEAR = 1.06  # of the best known price: what zooming may still make the best; it gained up to that on four exits
_ZOOMED = 4  # plans of each method that are zoomed into, per tolerance
_KEPT = 12  # plans that are evaluated in full and reported, and the best of every number of exits

Spots = dict[tuple[int, ...], Spot]  # exits as rows -> the best of their plans


def plan_joint(
    trace: Trace, costs: NetworkCosts, *, tolerance: float, objective: str = MEAN, max_exits: int | None = None,
    tail: TailRule | None = None, kept: KeptGrids | None = None,
) -> SearchResult:  # fmt: skip
    """Searches exits and thresholds jointly; ``plan_ladder`` for one tolerance."""
    (result,) = plan_ladder(trace, costs, (tolerance,), objective=objective, max_exits=max_exits, tail=tail, kept=kept)
    return result


def plan_ladder(
    trace: Trace, costs: NetworkCosts, tolerances: Sequence[float], *, objective: str = MEAN,
    max_exits: int | None = None, tail: TailRule | None = None, kept: KeptGrids | None = None,
) -> list[SearchResult]:  # fmt: skip
    """Searches exits and thresholds jointly for several tolerances, which share most of the work.

    Args:
        trace: the calibration data, E candidates.
        costs: the stages' prices; its load is planned for.
        tolerances: allowed relative losses of the metric, each in [0, 1).
        objective: one of ``objectives.OBJECTIVES``.
        max_exits: the most exits that a plan may have; ``None``: as many as pay.
        tail: the tail rule; ``TailRule()`` when left out.
        kept: the grids of this trace for the greedy search; new ones when left out.

    Returns:
        One result per tolerance, in the order of ``tolerances``. Its considered plans are the best found, each with
        other exits, the greedy search's plan and the plan without exits; its ``reference`` is the greedy plan.

    Raises:
        UsageError: a tolerance lies outside [0, 1), the objective does not exist, or ``max_exits`` is negative.
        NoPlanError: the full network's metric is 0, so that no loss can be related to it.
    """
    tail, kept = tail or TailRule(), kept or KeptGrids(thresholds=threshold_grid())
    check_objective(objective)
    for tolerance in tolerances:
        check_tolerance(tolerance, trace)
    if max_exits is not None and max_exits < 0:
        raise UsageError(f"--max-exits {max_exits}: expected a number from 0")
    if not tolerances:
        return []
    known: KnownPlans = {}
    greedy = [plan_greedy(trace, costs, tolerance=one, kept=kept, tail=tail, known=known) for one in tolerances]
    case = make_case(trace, costs, objective, tail)
    found = _search(case, tolerances, [one.best.chosen for one in greedy], _depth(trace, max_exits))
    return [_conclude(case, spots, paper, max_exits) for spots, paper in zip(found, greedy, strict=True)]


def _depth(trace: Trace, max_exits: int | None) -> int:
    return len(trace.exits) if max_exits is None else min(max_exits, len(trace.exits))


def make_case(trace: Trace, costs: NetworkCosts, objective: str, tail: TailRule) -> Case:
    return Case(
        ranked=RankedTrace.of(trace),
        costs=costs,
        prices=Prices(costs=costs, exits=trace.exits, samples=trace.sample_count, objective=objective),
        tail=tail,
        most_survivors=tuple(_most_survivors(costs, name, trace.sample_count, tail) for name in trace.exits),
    )


def _most_survivors(costs: NetworkCosts, first: str, samples: int, tail: TailRule) -> int:
    """Returns how many samples may at most go on past a first exit for the tail rule to hold; -1 if none may."""
    low, high = -1, samples
    while low < high:
        middle = (low + high + 1) // 2
        share = share_in_time(costs, first, middle / samples, allowance=tail.allowance)
        low, high = (middle, high) if share >= tail.share - ROUNDING else (low, middle - 1)
    return low


def _search(case: Case, tolerances: Sequence[float], starts: Sequence[ChosenExits], depth: int) -> list[Spots]:
    """Returns per tolerance the best spot of every subset of exits that was looked at closely."""
    trace = case.ranked.trace
    budgets = [trace.full_metric * trace.sample_count * one + ROUNDING / 2 * trace.sample_count for one in tolerances]
    found: list[Spots] = [{} for _ in tolerances]
    descent = _make_descent(case, depth)
    ends = descent.walk(max(budgets))
    for spots, budget in zip(found, budgets, strict=True):
        _zoom_best(case, spots, budget, _allowed_ends(case, [*ends, *descent.approach(ends, budget)], budget))
    for size in range(1, min(depth, len(_SURVEYED) - 1) + 1):
        subsets = [rows for rows in itertools.combinations(range(len(trace.exits)), size) if case.allows(rows)]
        if len(subsets) <= _SURVEYED[size]:
            known = [_best_price(spots) for spots in found]
            for spots, budget, near in zip(found, budgets, _survey(case, subsets, budgets, known), strict=True):
                _zoom_best(case, spots, budget, near)
    for spots, budget, start in zip(found, budgets, starts, strict=True):
        _try_start(case, spots, budget, start, depth)
    _pass_on(case, found, budgets)
    return found


def _make_descent(case: Case, depth: int) -> Descent:
    prices = case.prices if case.prices.objective != P99 else replace(case.prices, objective=MEAN)
    return Descent(
        ranked=case.ranked, prices=prices, allows=case.allows, most_survivors=case.most_survivors, most_exits=depth
    )


def _allowed_ends(case: Case, ends: Sequence[Waypoint], budget: float) -> list[Spot]:
    """Returns the plans that keep the budget, each subset's best, priced by the objective."""
    best: Spots = {}
    for end in sorted(ends, key=lambda one: one.price_ms):
        if end.rows and end.loss <= budget and end.rows not in best:
            _keep_better(best, pick_cells(case, make_table(case.ranked, end.rows, _single(end.ranks)), [budget])[0])
    return list(best.values())


def _single(ranks: Sequence[int]) -> list[np.ndarray]:
    return [np.array([rank]) for rank in ranks]


def _best_price(spots: Spots) -> float:
    return min((spot.price_ms for spot in spots.values()), default=float(np.finfo(np.float64).max))


def _keep_better(spots: Spots, spot: Spot | None) -> None:
    if spot is not None and (spot.rows not in spots or spot.price_ms < spots[spot.rows].price_ms):
        spots[spot.rows] = spot


def _try_start(case: Case, spots: Spots, budget: float, start: ChosenExits, depth: int) -> None:
    rows = tuple(case.exits.index(cut) for cut in start.cuts)
    ranks = case.ranked.rank_levels(rows, start.thresholds)
    if rows and ranks is not None and len(rows) <= depth:
        _keep_better(spots, zoom(case, rows, ranks, budget, best_ms=_best_price(spots)))


def _pass_on(case: Case, found: Sequence[Spots], budgets: Sequence[float]) -> None:
    """Zooms into the best plan of every tolerance at the next larger one, where it is allowed all the more."""
    order = sorted(range(len(budgets)), key=budgets.__getitem__)
    for smaller, larger in itertools.pairwise(order):
        best = min(found[smaller].values(), key=lambda spot: spot.price_ms, default=None)
        if best is not None:
            _keep_better(found[larger], best)
            _keep_better(
                found[larger], zoom(case, best.rows, best.ranks, budgets[larger], best_ms=_best_price(found[larger]))
            )


def _survey(
    case: Case, subsets: Sequence[tuple[int, ...]], budgets: Sequence[float], known: Sequence[float]
) -> list[list[Spot]]:
    """Returns per budget the best combination of every subset by a coarse table."""
    surveyed: list[list[Spot]] = [[] for _ in budgets]
    best = list(known)
    for table in _coarse_tables(case, subsets, lambda row: case.prices.first_stage_ms(row) < max(best)):
        for position, spot in enumerate(pick_cells(case, table, budgets)):
            if spot is not None:
                surveyed[position].append(spot)
                best[position] = min(best[position], spot.price_ms)
    return surveyed


def _coarse_tables(
    case: Case, subsets: Sequence[tuple[int, ...]], worthwhile: Callable[[int], bool]
) -> Iterator[LevelTable]:
    """Makes the table of every subset (all of one size, sorted), beginnings shared."""
    if not subsets:
        return
    least, most = _CELLS
    count = level_count(len(subsets[0]), min(max(least, _ALL_CELLS // len(subsets)), most))
    levels = [spread_levels(ranks, count) for ranks in case.ranked.ranks]
    beginnings = [LevelTable.start(case.ranked)]
    for rows in subsets:
        if not worthwhile(rows[0]):
            continue
        while beginnings[-1].rows != rows[: len(beginnings) - 1] or len(beginnings) > len(rows):
            beginnings.pop()
        for row in rows[len(beginnings) - 1 :]:
            beginnings.append(beginnings[-1].extended(case.ranked, row, levels[row]))
        yield beginnings[-1]


def _zoom_best(case: Case, spots: Spots, budget: float, near: Sequence[Spot]) -> None:
    """Keeps the best of some spots and zooms into those from which the best plan may come."""
    for spot in sorted(near, key=lambda one: one.price_ms)[:_ZOOMED]:
        best = _best_price(spots)
        _keep_better(spots, spot)
        if spot.price_ms <= _NEAR * best:
            _keep_better(spots, zoom(case, spot.rows, spot.ranks, budget, best_ms=best))


def _evaluate(case: Case, chosen: ChosenExits) -> PlanFigures:
    costs = case.costs
    return evaluate_plan(
        case.ranked.trace, chosen, costs.plan_costs(chosen.cuts), full_ms=costs.full_ms, load=costs.load,
        percentile=case.prices.objective == P99,
    )  # fmt: skip


def _conclude(case: Case, spots: Spots, greedy: SearchResult, max_exits: int | None) -> SearchResult:
    """Evaluates the best plans in full and ranks them."""
    ranked = sorted(spots.values(), key=lambda spot: spot.price_ms)
    by_size = {len(spot.rows): spot for spot in reversed(ranked)}
    ranked = [spot for place, spot in enumerate(ranked) if place < _KEPT or by_size[len(spot.rows)] is spot]
    objective = case.prices.objective
    considered = []
    for spot in ranked:
        chosen = case.ranked.choose(spot.rows, spot.ranks)
        figures = _evaluate(case, chosen)
        share = share_in_time(case.costs, chosen.cuts[0], figures.outcome.survival[1], allowance=case.tail.allowance)
        considered.append(
            Considered(figures=figures, step=len(chosen.cuts), in_time_share=share, allowed=True, path=False)
        )
    paper = greedy.best.chosen
    considered += [
        replace(
            one, figures=_evaluate(case, one.figures.chosen),
            allowed=one.allowed and (max_exits is None or one.step <= max_exits),
        )
        for one in greedy.considered
        if one.figures.chosen in (paper, NO_EXITS)
    ]  # fmt: skip
    ordered = sorted(
        considered, key=lambda one: (not one.allowed, objective_ms(one.figures.times, objective), one.step)
    )
    return SearchResult(
        considered=tuple(replace(one, path=rank == 0) for rank, one in enumerate(ordered)),
        patterns=greedy.patterns,
        reference=paper,
    )


def survey_ladder(
    trace: Trace, costs: NetworkCosts, tolerances: Sequence[float], *, most_exits: int = 3, tail: TailRule | None = None
) -> list[ChosenExits]:
    """Searches by the survey alone: a tenth of the time, for simulations that plan thousands of times.

    Args:
        trace: the calibration data.
        costs: the stages' prices; the mean latency is made small.
        tolerances: allowed relative losses of the metric, each in [0, 1).
        most_exits: of a plan; subsets are surveyed up to this size.
        tail: the tail rule; ``TailRule()`` when left out.

    Returns:
        The best plan per tolerance: the best of all subsets of the candidates over coarse levels of thresholds.
    """
    case = make_case(trace, costs, MEAN, tail or TailRule())
    budgets = [trace.full_metric * trace.sample_count * one + ROUNDING / 2 * trace.sample_count for one in tolerances]
    prices, plans = [costs.full_ms] * len(budgets), [NO_EXITS] * len(budgets)
    for size in range(1, _depth(trace, most_exits) + 1):
        subsets = [rows for rows in itertools.combinations(range(len(trace.exits)), size) if case.allows(rows)]
        for position, spots in enumerate(_survey(case, subsets, budgets, prices)):
            spot = min(spots, key=lambda one: one.price_ms, default=None)
            if spot is not None and spot.price_ms < prices[position]:
                prices[position], plans[position] = spot.price_ms, case.ranked.choose(spot.rows, spot.ranks)
    return plans
