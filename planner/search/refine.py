"""Refinement: from a combination of thresholds to the best one around it, down to single samples.

A table (``planner.search.level_tables``) over a window of ranks around the combination tries some thousands of
others with all exits moving together. The next window lies around the best of them and is narrower, in proportion to
how far apart its levels were; where the best lies at the edge of a window, the window moves instead. It ends when
the windows hold every single threshold that some arriving sample has, and nothing is better.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planner.predict.objectives import P99
from planner.search.level_tables import Combination, LevelTable, RankedTrace, make_table
from planner.search.problem import SearchProblem

_CELLS = 32_768  # combinations in one table
_ROUNDS = 14
_BEHIND_ROUNDS, _BEHIND = 4, 1.01  # after so many rounds, a combination so far above the best price is given up
_EXACT = 24  # combinations per table whose percentile is worked out exactly


def level_count(size: int, cells: int) -> int:
    """Returns how many levels each of ``size`` exits may have for a table of at most ``cells`` combinations."""
    return max(3, int(cells ** (1 / size) + 1e-9))


def pick_combinations(problem: SearchProblem, table: LevelTable, budgets: Sequence[float]) -> list[Combination | None]:
    """Returns the best allowed combination of a table for every budget; ``None`` where there is none.

    Args:
        problem: its prices and rules.
        table: of one exit or more.
        budgets: how much of the metric may be lost, summed over the samples.
    """
    totals = problem.prices.totals(table)
    late = table.survivors[0] > problem.most_survivors[table.rows[0]]
    totals[late] = np.inf
    picked: list[Combination | None] = []
    for budget in budgets:
        allowed = np.where(table.loss <= budget, totals, np.inf)
        cell = np.unravel_index(int(allowed.argmin()), allowed.shape)
        if not np.isfinite(allowed[cell]):
            picked.append(None)
        elif problem.prices.objective == P99:
            picked.append(_pick_exactly(problem, table, allowed))
        else:
            picked.append(table.combination([int(i) for i in cell], float(allowed[cell])))
    return picked


def _pick_exactly(problem: SearchProblem, table: LevelTable, surrogate: np.ndarray) -> Combination:
    """Returns the combination with the least exact percentile among those that are best by the surrogate.

    Of two combinations the one with lower thresholds has fewer survivors everywhere and is never slower, so only
    those count that may not lower any single threshold by a level.
    """
    minimal = np.isfinite(surrogate)
    for axis in range(surrogate.ndim):
        lower = np.isfinite(np.delete(surrogate, -1, axis))
        minimal &= ~np.insert(lower, 0, values=False, axis=axis)
    cells = np.argwhere(minimal)
    cells = cells[np.argsort(surrogate[minimal], kind="stable")[:_EXACT]]
    combinations = []
    for cell in cells.tolist():
        survivors = [int(array[tuple(cell[: k + 1])]) for k, array in enumerate(table.survivors)]
        combinations.append(table.combination(cell, problem.prices.exact_p99_ms(table.rows, survivors)))
    return min(combinations, key=lambda combination: combination.price_ms)


def refine(
    problem: SearchProblem, rows: tuple[int, ...], ranks: tuple[int, ...], budget: float, *, best_ms: float = np.inf
) -> Combination | None:
    """Searches around a combination, over windows that shrink to single ranks.

    Args:
        problem: its trace, prices and rules.
        rows: the exits.
        ranks: the thresholds to start from; they need not keep the budget.
        budget: how much of the metric may be lost, summed over the samples.
        best_ms: the best price so far; a refinement that has fallen behind it ends early.

    Returns:
        The best allowed combination; ``None`` if the windows held none.
    """
    count = level_count(len(rows), _CELLS)
    best: Combination | None = None
    widths: list[int] = []
    for turn in range(_ROUNDS):
        choices = _arriving_ranks(problem.ranked, rows, ranks)
        places = [int(np.searchsorted(choice, rank)) for choice, rank in zip(choices, ranks, strict=True)]
        widths = widths or [max(count // 2, len(choice) // 5) for choice in choices]
        levels = [
            _window(choice, place, width, count) for choice, place, width in zip(choices, places, widths, strict=True)
        ]
        (found,) = pick_combinations(problem, make_table(problem.ranked, rows, levels), [budget])
        if found is None:
            return best
        finest = all(2 * width < count for width in widths)
        if best is not None and finest and found.price_ms >= best.price_ms:
            break
        inside = [
            level[0] < rank < level[-1] or len(level) == len(choice)
            for level, rank, choice in zip(levels, found.ranks, choices, strict=True)
        ]
        widths = [
            max(min(4 * width // count, width // 2), count // 2 - 1) if within else width
            for width, within in zip(widths, inside, strict=True)
        ]
        best = found if best is None or found.price_ms < best.price_ms else best
        ranks = best.ranks
        if turn >= _BEHIND_ROUNDS and best.price_ms > _BEHIND * best_ms:
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
        return choices[low : high + 1].copy()
    places = np.append(np.linspace(low, high, count - 1).round().astype(np.int64), place)
    window: np.ndarray = choices[np.unique(places)]
    return window
