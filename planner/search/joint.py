"""Joint search: exits and all their thresholds at once. ``--search joint``, the default.

Problem. Of all subsets of the exit candidates, with any thresholds, find the least expected cost
(``planner.search.prices``: the time that the runtime takes by the inference time matrix, covers, heads and gathers
included) such that on the trace

    metric >= (1 - tolerance) * metric of the full network,

and such that the slow-batch rule and the stay allowance hold (``planner.search.rules.SlowBatchRule``, the same as for
the greedy search). The plan without exits competes.

Where a sample leaves depends on all exits before, so a program over exits cannot be exact on a plain trace: the
samples that arrive at an exit, not only their number, depend on the thresholds before it. Two methods complement each
other.

1. *Coarse tables* (``planner.search.level_tables``). One pass over the samples gives survivors and loss of tens of
   thousands of combinations of thresholds, exactly. Every subset of few candidates has a table: one exit with all
   its thresholds, two with 140 levels each, three with 27, where there are few candidates also four with 11; the
   fewer subsets there are, the finer, up to two exits with 1,000 levels each, three with 100, four with 31. Subsets
   with the same first exits share the tables of these; one whose first stage alone costs more than the best plan so
   far is left out.
2. *Coordinate descent* (``planner.search.descent``). The tolerance becomes a price of loss; exits are added, removed
   and given other thresholds one at a time, all thresholds tried exactly, with any number of exits.
3. *Refinement* (``planner.search.refine``). Around the best plans of both, tables over windows of ranks shrink round by
   round until they hold every single threshold that some arriving sample has, and move when the best lies at an edge.
   All exits move together, so the budget is traded between them and used up to the last sample.
4. *Starts.* The greedy search's plan and the best plan of the next smaller tolerance are refined as well: the answer is
   never worse than the greedy one, and never worse than that of a smaller tolerance.

Coarse tables and descent serve all tolerances of a problem together: a table holds the loss of every combination, and
a descent passes all prices of loss.

The search is exact where the coarse tables hold every threshold (three candidates with up to 100 distinct confidences
each, for example) and subsets of more exits are not better. Beyond that it is a search, and its quality a measurement
(``benchmarks/planning_cost.py``). The 99th percentile is no sum over stages: descents follow the mean latency there,
and the refinement decides by the percentile.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from planner.predict.objectives import MEAN, P99
from planner.predict.replay import NO_EXITS, Exits
from planner.search.descent import CoordinateDescent, Settled
from planner.search.greedy import plan_greedy
from planner.search.level_tables import Combination, LevelTable, make_table, spread_levels
from planner.search.problem import SearchedPlan, SearchProblem, SearchResult, rank_plans
from planner.search.refine import level_count, pick_combinations, refine

_CELLS = (20_000, 1_000_000)  # combinations in a coarse table, at least and at most
_ALL_CELLS = 2_000_000  # and in all tables of one number of exits
_MOST_SUBSETS = (0, 1000, 1000, 400, 80)  # by number of exits: coarse tables if there are no more subsets than that
_NEAR = 1.06  # of the best price so far: what refining may still make the best; it gained up to that on four exits
_REFINED = 4  # plans of each method that are refined, per tolerance
_REPORTED = 12  # plans that are evaluated in full and reported, and the best of every number of exits
_COARSE_EXITS = 3  # the most exits of the coarse search, where the rules have no limit

BestOfSubsets = dict[tuple[int, ...], Combination]  # exits as rows -> the best of their plans


def plan_joint(problem: SearchProblem) -> tuple[SearchResult, ...]:
    """Searches exits and thresholds jointly for all tolerances of a problem, which share most of the work.

    Returns:
        One result per tolerance, in the order of the problem's. Its considered plans are the best found, each with
        other exits, the greedy search's plan and the plan without exits; its ``baseline`` is the greedy plan.
    """
    if not problem.tolerances:
        return ()
    greedy = plan_greedy(problem)
    found = _search(problem, [result.best.exits for result in greedy])
    return tuple(_conclude(problem, best, baseline) for best, baseline in zip(found, greedy, strict=True))


def _search(problem: SearchProblem, starts: Sequence[Exits]) -> list[BestOfSubsets]:
    """Returns per tolerance the best combination of every subset of exits that was refined."""
    budgets = problem.budgets
    found: list[BestOfSubsets] = [{} for _ in budgets]
    descent = _make_descent(problem)
    ends = descent.walk(max(budgets))
    for best, budget in zip(found, budgets, strict=True):
        near = _keeping_ends(problem, [*ends, *descent.approach(ends, budget)], budget)
        _refine_best(problem, best, budget, near)
    for size in range(1, min(problem.most_exits, len(_MOST_SUBSETS) - 1) + 1):
        subsets = _allowed_subsets(problem, size)
        if len(subsets) <= _MOST_SUBSETS[size]:
            least = [_best_price(best) for best in found]
            for best, budget, near in zip(found, budgets, _search_coarsely(problem, subsets, least), strict=True):
                _refine_best(problem, best, budget, near)
    for best, budget, start in zip(found, budgets, starts, strict=True):
        _refine_start(problem, best, budget, start)
    _pass_on(problem, found)
    return found


def _allowed_subsets(problem: SearchProblem, size: int) -> list[tuple[int, ...]]:
    rows = range(len(problem.trace.exits))
    return [subset for subset in itertools.combinations(rows, size) if problem.allows(subset)]


def _make_descent(problem: SearchProblem) -> CoordinateDescent:
    prices = problem.prices if problem.prices.objective != P99 else replace(problem.prices, objective=MEAN)
    return CoordinateDescent(
        ranked=problem.ranked, prices=prices, allows=problem.allows, most_survivors=problem.most_survivors,
        most_exits=problem.most_exits,
    )  # fmt: skip


def _keeping_ends(problem: SearchProblem, ends: Sequence[Settled], budget: float) -> list[Combination]:
    """Returns the ends of descents that keep the budget, each subset's best, priced by the objective."""
    best: BestOfSubsets = {}
    for end in sorted((end.combination for end in ends), key=lambda end: end.price_ms):
        if end.rows and end.loss <= budget and end.rows not in best:
            table = make_table(problem.ranked, end.rows, [np.array([rank]) for rank in end.ranks])
            _keep_better(best, pick_combinations(problem, table, [budget])[0])
    return list(best.values())


def _best_price(best: BestOfSubsets) -> float:
    return min((found.price_ms for found in best.values()), default=float(np.finfo(np.float64).max))


def _keep_better(best: BestOfSubsets, found: Combination | None) -> None:
    if found is not None and (found.rows not in best or found.price_ms < best[found.rows].price_ms):
        best[found.rows] = found


def _refine_start(problem: SearchProblem, best: BestOfSubsets, budget: float, start: Exits) -> None:
    rows = tuple(problem.trace.exits.index(cut) for cut in start.cuts)
    ranks = problem.ranked.rank_levels(rows, start.thresholds)
    if rows and ranks is not None and len(rows) <= problem.most_exits:
        _keep_better(best, refine(problem, rows, ranks, budget, best_ms=_best_price(best)))


def _pass_on(problem: SearchProblem, found: Sequence[BestOfSubsets]) -> None:
    """Refines the best plan of every tolerance at the next larger one, where it is allowed all the more."""
    budgets = problem.budgets
    order = sorted(range(len(budgets)), key=budgets.__getitem__)
    for smaller, larger in itertools.pairwise(order):
        start = min(found[smaller].values(), key=lambda combination: combination.price_ms, default=None)
        if start is not None:
            best = found[larger]
            _keep_better(best, start)
            _keep_better(best, refine(problem, start.rows, start.ranks, budgets[larger], best_ms=_best_price(best)))


def _search_coarsely(
    problem: SearchProblem, subsets: Sequence[tuple[int, ...]], least: Sequence[float]
) -> list[list[Combination]]:
    """Returns per tolerance the best combination of every subset by a coarse table.

    Args:
        problem: what is searched.
        subsets: of the exits, all of one size, sorted.
        least: per tolerance the best price so far.
    """
    found: list[list[Combination]] = [[] for _ in problem.budgets]
    best = list(least)
    for table in _coarse_tables(problem, subsets, lambda row: problem.prices.first_stage_ms(row) < max(best)):
        for position, combination in enumerate(pick_combinations(problem, table, problem.budgets)):
            if combination is not None:
                found[position].append(combination)
                best[position] = min(best[position], combination.price_ms)
    return found


def _coarse_tables(
    problem: SearchProblem, subsets: Sequence[tuple[int, ...]], worthwhile: Callable[[int], bool]
) -> Iterator[LevelTable]:
    """Makes the table of every subset (all of one size, sorted); those with the same first exits share their tables."""
    if not subsets:
        return
    least, most = _CELLS
    count = level_count(len(subsets[0]), min(max(least, _ALL_CELLS // len(subsets)), most))
    levels = [spread_levels(ranks, count) for ranks in problem.ranked.ranks]
    beginnings = [LevelTable.start(problem.ranked)]
    for rows in subsets:
        if not worthwhile(rows[0]):
            continue
        while beginnings[-1].rows != rows[: len(beginnings) - 1] or len(beginnings) > len(rows):
            beginnings.pop()
        for row in rows[len(beginnings) - 1 :]:
            beginnings.append(beginnings[-1].extended(problem.ranked, row, levels[row]))
        yield beginnings[-1]


def _refine_best(problem: SearchProblem, best: BestOfSubsets, budget: float, near: Sequence[Combination]) -> None:
    """Keeps the best of some combinations and refines those from which the best plan may come."""
    for combination in sorted(near, key=lambda found: found.price_ms)[:_REFINED]:
        least = _best_price(best)
        _keep_better(best, combination)
        if combination.price_ms <= _NEAR * least:
            _keep_better(best, refine(problem, combination.rows, combination.ranks, budget, best_ms=least))


def _conclude(problem: SearchProblem, best: BestOfSubsets, greedy: SearchResult) -> SearchResult:
    """Evaluates the best plans in full and ranks them."""
    ranked = sorted(best.values(), key=lambda found: found.price_ms)
    by_size = {len(found.rows): found for found in reversed(ranked)}
    reported = [found for place, found in enumerate(ranked) if place < _REPORTED or by_size[len(found.rows)] is found]
    considered = [_evaluate(problem, problem.ranked.choose(found.rows, found.ranks)) for found in reported]
    baseline, most = greedy.best.exits, problem.rules.max_exits
    considered += [
        replace(
            plan, priced=problem.price(plan.exits), allowed=plan.allowed and (most is None or plan.exit_count <= most)
        )
        for plan in greedy.considered
        if plan.exits in (baseline, NO_EXITS)
    ]
    ordered = rank_plans(considered, problem.rules.objective)
    return SearchResult(
        considered=tuple(replace(plan, path=rank == 0) for rank, plan in enumerate(ordered)), baseline=baseline
    )


def _evaluate(problem: SearchProblem, exits: Exits) -> SearchedPlan:
    priced = problem.price(exits)
    return SearchedPlan(priced=priced, in_time_share=problem.share_in_time(priced))


def plan_coarsely(problem: SearchProblem) -> tuple[SearchResult, ...]:
    """Searches by the coarse tables alone: a tenth of the time, for simulations that plan thousands of times.

    Args:
        problem: its objective does not count: the mean latency is minimised.

    Returns:
        Per tolerance the best of all subsets of the candidates over coarse levels of thresholds; three exits at most
        where the rules have no limit.
    """
    most = _COARSE_EXITS if problem.rules.max_exits is None else problem.rules.max_exits
    problem = replace(problem, rules=replace(problem.rules, objective=MEAN, max_exits=most))
    least, plans = [problem.costs.full_ms] * len(problem.budgets), [NO_EXITS] * len(problem.budgets)
    for size in range(1, problem.most_exits + 1):
        found = _search_coarsely(problem, _allowed_subsets(problem, size), least)
        for position, combinations in enumerate(found):
            best = min(combinations, key=lambda combination: combination.price_ms, default=None)
            if best is not None and best.price_ms < least[position]:
                least[position], plans[position] = best.price_ms, problem.ranked.choose(best.rows, best.ranks)
    without = SearchedPlan(priced=problem.price(NO_EXITS))
    answers = [() if exits == NO_EXITS else (_evaluate(problem, exits),) for exits in plans]
    return tuple(SearchResult(considered=(*answer, without)) for answer in answers)
