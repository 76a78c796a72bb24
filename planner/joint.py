"""The joint search: exits and all their thresholds at once. ``--search joint``, the default.

Problem. Of all subsets of the exit candidates, with any thresholds, find the least expected cost (``planner.objectives``:
the time that the runtime takes by the inference time matrix, covers, heads and gathers included) such that on the trace

    metric >= (1 - tolerance) * metric of the full network,

and such that the tail rule and the stay allowance hold (``planner.greedy.TailRule``, the same as for the greedy search).
The plan without exits competes.

Where a sample leaves depends on all exits before, so a program over exits cannot be exact on a plain trace: the samples
that arrive at an exit, not only their number, depend on the thresholds before it. But all thresholds of a few exits can
be tried at once (``planner.tables``): one pass over the samples gives survivors and loss of tens of thousands of
combinations, exactly.

1. *Survey.* Every subset of the candidates that the stay allowance lets pass is surveyed, smaller ones first, over a
   coarse table: all thresholds where there is one exit, about 180 levels each for two, 32 for three, 13 for four. Subsets that
   begin alike share the tables of their beginnings. A subset whose first stage alone costs more than the best known plan
   is left out (nothing that follows is free). One survey serves a whole ladder of tolerances, since a table knows the
   loss of every combination.
2. *Zoom.* The best subsets are looked at more closely: a table over a window of ranks around the best combination, windows
   shrink round by round until they hold every single threshold that some arriving sample has, and move when the
   best lies at an edge. All exits move together, so budget is traded between them, which a search that moves one threshold at a
   time cannot do once the tolerance is used up.
3. *Starts.* The greedy search's plan (``planner.greedy``) and the plan of the next smaller tolerance are zoomed into as
   well: the answer is never worse than the greedy one, and never worse than that of a smaller tolerance.
4. *More exits.* Where there are too many subsets of a size to survey them all, only the best plans with one exit less are
   extended by every further candidate (a beam). Sizes grow until another exit pays at no tolerance.

It is exact where the tables hold every threshold: any subset of two exits with up to 181 distinct confidences each, three
with 32, four with 13. Beyond that it is a search, and its quality a measurement (``benchmarks/planning_cost.py``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from artifacts import Trace, UsageError
from planner.costs import NetworkCosts
from planner.evaluate import NO_EXITS, ChosenExits, evaluate_plan
from planner.greedy import (
    ROUNDING,
    Considered,
    SearchResult,
    TailRule,
    check_tolerance,
    plan_greedy,
    share_in_time,
    staying_allowed,
)
from planner.grids import KeptGrids, threshold_grid
from planner.objectives import MEAN, P99, Prices, check_objective, objective_ms
from planner.tables import LevelTable, RankedTrace, make_table, spread_levels

_CELLS = 32_768  # combinations in a table of the survey
_ZOOM_CELLS = 8_192  # and in one of the zoom
_MOST_SUBSETS = 600  # of one size that are surveyed; beyond that a beam
_ZOOMED = 10  # subsets that are looked at more closely, per tolerance and size
_NEAR = (1.0, 1.0, 1.02, 1.05, 1.08)  # by size: of the best known price, what zooming may still make the best
_BEAM = 4
_ROUNDS = 14
_FALLEN_BEHIND = (4, 1.01)  # after so many rounds, a combination so far above the best known price is given up
_PAYS = 1e-3  # relative gain for which another exit is worth asking for yet another
_EXACT = 24  # combinations per table whose percentile is worked out exactly
_KEPT = 12  # plans that are evaluated in full and reported


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """A combination: exits as rows of the trace, thresholds as ranks, and its price in milliseconds."""

    rows: tuple[int, ...]
    ranks: tuple[int, ...]
    price_ms: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Case:
    """What is searched, with everything that does not depend on the tolerance."""

    ranked: RankedTrace
    costs: NetworkCosts
    prices: Prices
    tail: TailRule
    most_survivors: tuple[int, ...]  # past each candidate as a first exit, by the tail rule; -1: none

    @property
    def exits(self) -> tuple[str, ...]:
        return self.ranked.trace.exits

    def allows(self, rows: Sequence[int]) -> bool:
        names = [self.exits[row] for row in rows]
        return self.most_survivors[rows[0]] >= 0 and staying_allowed(self.costs, names, self.tail)


def plan_joint(
    trace: Trace, costs: NetworkCosts, *, tolerance: float, objective: str = MEAN, max_exits: int | None = None,
    tail: TailRule | None = None, kept: KeptGrids | None = None,
) -> SearchResult:  # fmt: skip
    """Searches exits and thresholds jointly; ``plan_ladder`` for one tolerance."""
    (result,) = plan_ladder(
        trace, costs, (tolerance,), objective=objective, max_exits=max_exits, tail=tail, kept=kept
    )
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
    greedy = [plan_greedy(trace, costs, tolerance=tolerance, kept=kept, tail=tail) for tolerance in tolerances]
    case = _make_case(trace, costs, objective, tail)
    found = _search(case, tolerances, [one.best.chosen for one in greedy], _depth(trace, max_exits))
    return [_conclude(case, spots, paper, max_exits) for spots, paper in zip(found, greedy, strict=True)]


def _depth(trace: Trace, max_exits: int | None) -> int:
    return len(trace.exits) if max_exits is None else min(max_exits, len(trace.exits))


def _make_case(trace: Trace, costs: NetworkCosts, objective: str, tail: TailRule) -> _Case:
    return _Case(
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


def _search(
    case: _Case, tolerances: Sequence[float], starts: Sequence[ChosenExits], depth: int
) -> list[dict[tuple[int, ...], Spot]]:
    """Returns per tolerance the best spot of every subset of exits that was looked at closely."""
    trace = case.ranked.trace
    budgets = [trace.full_metric * trace.sample_count * one + ROUNDING / 2 * trace.sample_count for one in tolerances]
    found: list[dict[tuple[int, ...], Spot]] = [{} for _ in tolerances]
    for spots, budget, start in zip(found, budgets, starts, strict=True):
        _try_start(case, spots, budget, start, depth)
    for size in range(1, depth + 1):
        before = [_best_price(spots) for spots in found]
        subsets = [rows for rows in itertools.combinations(range(len(trace.exits)), size) if case.allows(rows)]
        if len(subsets) <= _MOST_SUBSETS:
            for spots, budget, surveyed in zip(found, budgets, _survey(case, subsets, budgets, before), strict=True):
                _zoom_best(case, spots, budget, surveyed)
        else:
            for spots, budget in zip(found, budgets, strict=True):
                _zoom_best(case, spots, budget, _extend_best(case, spots, budget, set(subsets)))
        gains = [1 - _best_price(spots) / price for spots, price in zip(found, before, strict=True)]
        if size >= 3 and max(gains, default=0.0) < _PAYS:
            break
    _pass_on(case, found, budgets)
    return found


def _best_price(spots: dict[tuple[int, ...], Spot]) -> float:
    return min((spot.price_ms for spot in spots.values()), default=float(np.finfo(np.float64).max))


def _keep_better(spots: dict[tuple[int, ...], Spot], spot: Spot | None) -> None:
    if spot is not None and (spot.rows not in spots or spot.price_ms < spots[spot.rows].price_ms):
        spots[spot.rows] = spot


def _try_start(
    case: _Case, spots: dict[tuple[int, ...], Spot], budget: float, start: ChosenExits, depth: int
) -> None:
    rows = tuple(case.exits.index(cut) for cut in start.cuts)
    ranks = case.ranked.rank_levels(rows, start.thresholds)
    if rows and ranks is not None and len(rows) <= depth:
        _keep_better(spots, _zoom(case, rows, ranks, budget))


def _pass_on(case: _Case, found: Sequence[dict[tuple[int, ...], Spot]], budgets: Sequence[float]) -> None:
    """Zooms into the best plan of every tolerance at the next larger one, where it is allowed all the more."""
    order = sorted(range(len(budgets)), key=budgets.__getitem__)
    for smaller, larger in itertools.pairwise(order):
        best = min(found[smaller].values(), key=lambda spot: spot.price_ms, default=None)
        if best is not None and best.price_ms < _best_price(found[larger]) * (1 + _PAYS):
            _keep_better(found[larger], best)
            _keep_better(found[larger], _zoom(case, best.rows, best.ranks, budgets[larger]))


def _survey(
    case: _Case, subsets: Sequence[tuple[int, ...]], budgets: Sequence[float], known: Sequence[float]
) -> list[list[Spot]]:
    """Returns per budget the best combination of every subset by a coarse table."""
    surveyed: list[list[Spot]] = [[] for _ in budgets]
    best = list(known)
    for table in _coarse_tables(case, subsets, lambda row: case.prices.first_stage_ms(row) < max(best)):
        for position, spot in enumerate(_pick_cells(case, table, budgets)):
            if spot is not None:
                surveyed[position].append(spot)
                best[position] = min(best[position], spot.price_ms)
    return surveyed


def _coarse_tables(case: _Case, subsets: Sequence[tuple[int, ...]], worthwhile: object) -> Iterator[LevelTable]:
    """Makes the table of every subset (all of one size, sorted), beginnings shared."""
    if not subsets:
        return
    count = _level_count(len(subsets[0]))
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


def _level_count(size: int, cells: int = _CELLS) -> int:
    return max(3, int(cells ** (1 / size) + 1e-9))


def _pick_cells(case: _Case, table: LevelTable, budgets: Sequence[float]) -> list[Spot | None]:
    """Returns the best allowed combination of a table for every budget."""
    totals = case.prices.totals(table)
    late = table.survivors[0] > case.most_survivors[table.rows[0]]
    totals[late] = np.inf
    picked: list[Spot | None] = []
    for budget in budgets:
        allowed = np.where(table.loss <= budget, totals, np.inf)
        cell = np.unravel_index(int(allowed.argmin()), allowed.shape)
        if not np.isfinite(allowed[cell]):
            picked.append(None)
        elif case.prices.objective == P99:
            picked.append(_pick_exactly(case, table, allowed))
        else:
            picked.append(Spot(rows=table.rows, ranks=table.at([int(i) for i in cell]), price_ms=float(allowed[cell])))
    return picked


def _pick_exactly(case: _Case, table: LevelTable, surrogate: np.ndarray) -> Spot:
    """Returns the combination with the least exact percentile among those that are best by the surrogate.

    Of two combinations the one with lower thresholds has fewer survivors everywhere and is never slower, so only
    those count that may not lower any single threshold by a level.
    """
    minimal = np.isfinite(surrogate)
    for axis in range(surrogate.ndim):
        lower = np.isfinite(np.delete(surrogate, -1, axis))
        minimal &= ~np.insert(lower, 0, False, axis)  # noqa: FBT003
    cells = np.argwhere(minimal)
    cells = cells[np.argsort(surrogate[minimal], kind="stable")[:_EXACT]]
    spots = []
    for cell in cells.tolist():
        survivors = [int(array[tuple(cell[: k + 1])]) for k, array in enumerate(table.survivors)]
        spots.append(
            Spot(rows=table.rows, ranks=table.at(cell), price_ms=case.prices.exact_p99_ms(table.rows, survivors))
        )
    return min(spots, key=lambda spot: spot.price_ms)


def _zoom_best(case: _Case, spots: dict[tuple[int, ...], Spot], budget: float, surveyed: Sequence[Spot]) -> None:
    ranked = sorted(surveyed, key=lambda spot: spot.price_ms)[:_ZOOMED]
    for spot in ranked:
        best = _best_price(spots)
        if spot.price_ms > _NEAR[min(len(spot.rows), len(_NEAR) - 1)] * min(best, ranked[0].price_ms):
            break
        _keep_better(spots, spot)
        if len(spot.rows) > 1 or case.ranked.most_ranks > _level_count(1):
            _keep_better(spots, _zoom(case, spot.rows, spot.ranks, budget, best_ms=best))


def _zoom(
    case: _Case, rows: tuple[int, ...], ranks: tuple[int, ...], budget: float, *, best_ms: float = np.inf
) -> Spot | None:
    """Searches around a combination, over windows that shrink to single ranks; gives up when it has fallen behind.

    Returns:
        The best allowed combination; ``None`` if the windows held none.
    """
    count = _level_count(len(rows), _ZOOM_CELLS)
    best: Spot | None = None
    widths: list[int] = []
    for turn in range(_ROUNDS):
        choices = _arriving_ranks(case.ranked, rows, ranks)
        places = [int(np.searchsorted(choice, rank)) for choice, rank in zip(choices, ranks, strict=True)]
        widths = widths or [max(count // 2, len(choice) // 5) for choice in choices]
        levels = [_window(*one, count) for one in zip(choices, places, widths, strict=True)]
        (spot,) = _pick_cells(case, make_table(case.ranked, rows, levels), [budget])
        if spot is None:
            return best
        finest = all(2 * width < count for width in widths)
        if best is not None and finest and spot.price_ms >= best.price_ms:
            break
        inside = [
            level[0] < rank < level[-1] or len(level) == len(choice)
            for level, rank, choice in zip(levels, spot.ranks, choices, strict=True)
        ]
        widths = [
            max(min(4 * width // count, width // 2), count // 2 - 1) if within else width
            for width, within in zip(widths, inside, strict=True)
        ]
        best = spot if best is None or spot.price_ms < best.price_ms else best
        ranks = best.ranks
        if turn >= _FALLEN_BEHIND[0] and best.price_ms > _FALLEN_BEHIND[1] * best_ms:
            break
    return best


def _arriving_ranks(ranked: RankedTrace, rows: Sequence[int], ranks: Sequence[int]) -> list[np.ndarray]:
    """Returns per exit the ranks of the samples that arrive there, and the threshold's own, ascending."""
    going = np.arange(ranked.trace.sample_count)
    found = []
    for row, rank in zip(rows, ranks, strict=True):
        arriving = ranked.ranks[row, going]
        present = np.zeros(len(ranked.values[row]), bool)
        present[arriving] = True
        present[rank] = True
        found.append(np.flatnonzero(present))
        going = going[arriving < rank]
    return found


def _window(choices: np.ndarray, place: int, width: int, count: int) -> np.ndarray:
    """Returns up to ``count`` of the choices within ``width`` of a place, evenly spaced, that place among them."""
    low, high = max(0, place - width), min(len(choices) - 1, place + width)
    if high - low < count:
        return choices[low : high + 1]
    places = np.append(np.linspace(low, high, count - 1).round().astype(np.int64), place)
    return choices[np.unique(places)]


def _extend_best(
    case: _Case, spots: dict[tuple[int, ...], Spot], budget: float, allowed: set[tuple[int, ...]]
) -> list[Spot]:
    """Returns the best plans with one exit more: every further candidate at all levels, the others nearby."""
    size = len(next(iter(allowed)))
    parents = sorted((spot for spot in spots.values() if len(spot.rows) == size - 1), key=lambda spot: spot.price_ms)
    count, found = _level_count(size), []
    for parent in parents[:_BEAM]:
        near = dict(zip(parent.rows, _nearby_levels(case.ranked, parent, count), strict=True))
        for row in set(range(len(case.exits))) - set(parent.rows):
            rows = tuple(sorted((*parent.rows, row)))
            if rows in allowed:
                levels = near | {row: spread_levels(case.ranked.ranks[row], count)}
                table = make_table(case.ranked, rows, [levels[one] for one in rows])
                found += [spot for spot in _pick_cells(case, table, [budget]) if spot is not None]
    return found


def _nearby_levels(ranked: RankedTrace, spot: Spot, count: int) -> list[np.ndarray]:
    choices = _arriving_ranks(ranked, spot.rows, spot.ranks)
    return [
        _window(choice, int(np.searchsorted(choice, rank)), max(count // 2, len(choice) // 5), count)
        for choice, rank in zip(choices, spot.ranks, strict=True)
    ]


def _conclude(
    case: _Case, spots: dict[tuple[int, ...], Spot], greedy: SearchResult, max_exits: int | None
) -> SearchResult:
    """Evaluates the best plans in full and ranks them."""
    ranked = sorted(spots.values(), key=lambda spot: spot.price_ms)[:_KEPT]
    trace, costs, objective = case.ranked.trace, case.costs, case.prices.objective
    considered = []
    for spot in ranked:
        chosen = case.ranked.choose(spot.rows, spot.ranks)
        figures = evaluate_plan(trace, chosen, costs.plan_costs(chosen.cuts), full_ms=costs.full_ms, load=costs.load)
        share = share_in_time(costs, chosen.cuts[0], figures.outcome.survival[1], allowance=case.tail.allowance)
        considered.append(
            Considered(figures=figures, step=len(chosen.cuts), in_time_share=share, allowed=True, path=False)
        )
    paper = greedy.best.chosen
    for one in greedy.considered:
        if one.figures.chosen in (paper, NO_EXITS) and (max_exits is None or one.step <= max_exits):
            considered.append(replace(one, path=False))
    ordered = sorted(considered, key=lambda one: (objective_ms(one.figures.times, objective), one.step))
    return SearchResult(
        considered=tuple(replace(one, path=rank == 0) for rank, one in enumerate(ordered)),
        patterns=greedy.patterns,
        reference=paper,
    )
