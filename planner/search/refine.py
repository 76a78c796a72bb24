"""The zoom: from a combination of thresholds to the best one around it, down to single samples.

A table (``planner.search.level_tables``) over a window of ranks around the combination tries some thousands of
others with all exits moving together. The next window lies around the best of them and is narrower, in proportion to
how far apart its levels were; where the best lies at the edge of a window, the window moves instead. It ends when
the windows hold every single threshold that some arriving sample has, and nothing is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from planner.predict.costs import NetworkCosts
from planner.search.greedy import TailRule, staying_allowed
from planner.search.level_tables import LevelTable, RankedTrace, make_table
from planner.search.prices import P99, Prices

_CELLS = 32_768  # combinations in one table
_ROUNDS = 14
_FALLEN_BEHIND = (4, 1.01)  # after so many rounds, a combination so far above the best known price is given up
_EXACT = 24  # combinations per table whose percentile is worked out exactly


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """A combination: exits as rows of the trace, thresholds as ranks, and its price in milliseconds."""

    rows: tuple[int, ...]
    ranks: tuple[int, ...]
    price_ms: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """What is searched, with everything that does not depend on the tolerance.

    Attributes:
        ranked: the trace.
        costs: the stages' costs.
        prices: what the objective makes of them.
        tail: the tail rule and the stay allowance.
        most_survivors: per candidate, how many samples may go on past it as a first exit by the tail rule; -1: none.
    """

    ranked: RankedTrace
    costs: NetworkCosts
    prices: Prices
    tail: TailRule
    most_survivors: tuple[int, ...]
    _allowed: dict[tuple[int, ...], bool] = field(default_factory=dict, repr=False)

    @property
    def exits(self) -> tuple[str, ...]:
        return self.ranked.trace.exits

    def allows(self, rows: tuple[int, ...]) -> bool:
        """Tells whether these exits, one or more, may be chosen together."""
        if rows not in self._allowed:
            names = [self.exits[row] for row in rows]
            self._allowed[rows] = self.most_survivors[rows[0]] >= 0 and staying_allowed(self.costs, names, self.tail)
        return self._allowed[rows]


def level_count(size: int, cells: int) -> int:
    """Returns how many levels each of ``size`` exits may have for a table of at most ``cells`` combinations."""
    return max(3, int(cells ** (1 / size) + 1e-9))


def pick_cells(case: Case, table: LevelTable, budgets: Sequence[float]) -> list[Spot | None]:
    """Returns the best allowed combination of a table for every budget; ``None`` where there is none.

    Args:
        case: what is searched.
        table: of one exit or more.
        budgets: how much of the metric may be lost, summed over the samples.
    """
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


def _pick_exactly(case: Case, table: LevelTable, surrogate: np.ndarray) -> Spot:
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
    spots = []
    for cell in cells.tolist():
        survivors = [int(array[tuple(cell[: k + 1])]) for k, array in enumerate(table.survivors)]
        spots.append(
            Spot(rows=table.rows, ranks=table.at(cell), price_ms=case.prices.exact_p99_ms(table.rows, survivors))
        )
    return min(spots, key=lambda spot: spot.price_ms)


def zoom(
    case: Case, rows: tuple[int, ...], ranks: tuple[int, ...], budget: float, *, best_ms: float = np.inf
) -> Spot | None:
    """Searches around a combination, over windows that shrink to single ranks.

    Args:
        case: what is searched.
        rows: the exits.
        ranks: the thresholds to start from; they need not keep the budget.
        budget: how much of the metric may be lost, summed over the samples.
        best_ms: the best price that is known; a zoom that has fallen behind it ends early.

    Returns:
        The best allowed combination; ``None`` if the windows held none.
    """
    count = level_count(len(rows), _CELLS)
    best: Spot | None = None
    widths: list[int] = []
    for turn in range(_ROUNDS):
        choices = _arriving_ranks(case.ranked, rows, ranks)
        places = [int(np.searchsorted(choice, rank)) for choice, rank in zip(choices, ranks, strict=True)]
        widths = widths or [max(count // 2, len(choice) // 5) for choice in choices]
        levels = [_window(*one, count) for one in zip(choices, places, widths, strict=True)]
        (spot,) = pick_cells(case, make_table(case.ranked, rows, levels), [budget])
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
        return choices[low : high + 1].copy()
    places = np.append(np.linspace(low, high, count - 1).round().astype(np.int64), place)
    window: np.ndarray = choices[np.unique(places)]
    return window
