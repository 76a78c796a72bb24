"""Coordinate descent: exits are added, removed and given other thresholds one at a time, against a price of loss.

Theory. Everett's generalised Lagrange multipliers (Operations Research 11, 1963): the plan that minimises

    cost + weight * loss

for some ``weight >= 0`` has the least cost among all plans with at most that loss. So the budget, which ties all
thresholds together, becomes a price, and then one exit can be improved at a time (coordinate descent) without
spending what another one needs. For one exit, all else fixed, *every* threshold and the choice to leave the exit out
are tried exactly. The samples that arrive there, in the order of falling confidence, leave one after the other; each
changes the loss by ``d_exit - d_later``, its loss here less its loss where it would leave otherwise, and lowers by one
the count of every later stage that it would have entered. So three sorts of cumulative sums price all thresholds in
one go.

An exit that may not be added, because there may be no more of them or because a batch of which no row leaves would
cost too much, is tried in the place of its neighbours. The weight falls step by step from a value at which nothing may
be lost to one at which only time counts, and rises again, each time from where the last descent ended; this passes
good plans for every tolerance. For one tolerance the weight is then bisected between the last plan that keeps it and
the first that does not. A coordinate descent cannot move several thresholds against each other at a fixed budget; that
is left to ``planner.search.refine``.

Only for costs that are a sum over stages (``planner.search.prices``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from planner.search.level_tables import Combination, RankedTrace
from planner.search.prices import Prices

State = dict[int, int]  # a plan: row -> rank
Key = tuple[tuple[int, int], ...]
OFF = -1
_SWEEPS = 6
_BISECTIONS = 5
_WEIGHTS = np.geomspace(3000.0, 0.03, 26)  # times the full network's time per sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The combination where a descent ended, and the weight with which it was made (milliseconds per unit of loss)."""

    combination: Combination
    weight: float

    @property
    def state(self) -> State:
        return dict(zip(self.combination.rows, self.combination.ranks, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Choices:
    """The thresholds of one exit beside others that are the best at some weight.

    Attributes:
        ranks: the thresholds.
        price_ms: milliseconds with each.
        gained: summed loss with each, above that without the exit.
        without_ms: milliseconds without the exit; infinite where the others may not stand alone.
    """

    ranks: np.ndarray
    price_ms: np.ndarray
    gained: np.ndarray
    without_ms: float


def _key(state: State) -> Key:
    return tuple(sorted(state.items()))


def _undominated(price: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Returns the positions, ascending, of the pairs that no other pair dominates."""
    order = np.lexsort((loss, price))
    least = np.minimum.accumulate(loss[order])
    found: np.ndarray = np.sort(order[np.flatnonzero(np.diff(least, prepend=np.inf) < 0)])
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CoordinateDescent:
    """Coordinate descent over one trace. It remembers what it tried, as the same plans come up again at other weights.

    Attributes:
        ranked: the trace.
        prices: of the stages.
        allows: tells whether a set of exits may be chosen.
        most_survivors: per candidate, how many samples may go on past it when it is the first exit.
        most_exits: how many a plan may have.
    """

    ranked: RankedTrace
    prices: Prices
    allows: Callable[[tuple[int, ...]], bool]
    most_survivors: Sequence[int]
    most_exits: int
    _choices: dict[tuple[int, Key], _Choices] = field(default_factory=dict, repr=False)
    _measured: dict[Key, tuple[float, float]] = field(default_factory=dict, repr=False)

    def walk(self, most_loss: float = np.inf) -> list[Settled]:
        """Returns the combinations at which the descents end, for falling and then for rising weights.

        Args:
            most_loss: the largest budget that is of interest; the weight falls until it is exceeded twice.
        """
        weights = (self.prices.costs.full_ms / self.ranked.trace.sample_count * _WEIGHTS).tolist()
        state: State = {}
        ends: list[Settled] = []
        for weight in weights:
            state = self.settle(state, weight)
            ends.append(Settled(combination=self.measure(state), weight=weight))
            if sum(end.combination.loss > most_loss for end in ends) > 1:
                break
        for weight in weights[len(ends) - 2 :: -1] if len(ends) > 1 else []:
            state = self.settle(state, weight)
            ends.append(Settled(combination=self.measure(state), weight=weight))
        return ends

    def approach(self, ends: Sequence[Settled], budget: float) -> list[Settled]:
        """Returns combinations between the cheapest that keeps a budget and the dearest that does not.

        Args:
            ends: from ``walk``.
            budget: the most summed loss.
        """
        keeping = [end for end in ends if end.combination.loss <= budget]
        exceeding = [end for end in ends if end.combination.loss > budget]
        within = min(keeping, key=lambda end: end.combination.price_ms, default=None)
        beyond = max(exceeding, key=lambda end: end.combination.price_ms, default=None)
        if within is None or beyond is None:
            return []
        found = []
        for _ in range(_BISECTIONS):
            weight = float(np.sqrt(within.weight * beyond.weight))
            for start in (within, beyond):
                end = Settled(combination=self.measure(self.settle(start.state, weight)), weight=weight)
                found.append(end)
                if end.combination.loss > budget:
                    beyond = end
                elif end.combination.price_ms <= within.combination.price_ms:
                    within = end
        return found

    def settle(self, state: State, weight: float) -> State:
        """Returns a plan that no change of a single exit improves, from another plan.

        Args:
            state: where to start; left as it is.
            weight: milliseconds per unit of summed loss.
        """
        state = dict(state)
        forth = range(len(self.ranked.values))
        settled: set[int] = set()  # exits that were tried since something changed
        for row in itertools.islice(itertools.cycle([*forth, *reversed(forth)]), _SWEEPS * len(forth)):
            if row in settled:
                continue
            before, state = state, self._improve(state, row, weight)
            settled = settled | {row} if state == before else {row}
            if len(settled) == len(forth):
                break
        return dict(sorted(state.items()))

    def _improve(self, state: State, row: int, weight: float) -> State:
        """Returns a plan with the best threshold of one exit, or without it."""
        others = {other: rank for other, rank in state.items() if other != row}
        if row in state or self._may_have(others, row):
            rank = self._best_rank(others, row, weight)
            return others if rank == OFF else {**others, row: rank}
        behind, before = [o for o in others if o > row], [o for o in others if o < row]
        best, least = state, self._value(state, weight)
        for neighbour in (max(before, default=OFF), min(behind, default=OFF)):
            rest = {other: rank for other, rank in others.items() if other != neighbour}
            if neighbour != OFF and self._may_have(rest, row):
                rank = self._best_rank(rest, row, weight)
                moved = {**rest, row: rank}
                if rank != OFF and (value := self._value(moved, weight)) < least:
                    best, least = moved, value
        return best

    def _may_have(self, others: State, row: int) -> bool:
        return len(others) < self.most_exits and self.allows(tuple(sorted((*others, row))))

    def _value(self, state: State, weight: float) -> float:
        price_ms, loss = self._figures(state)
        return price_ms + weight * loss

    def measure(self, state: State) -> Combination:
        """Prices a plan as the tables do."""
        rows = tuple(sorted(state))
        price_ms, loss = self._figures(state)
        return Combination(rows=rows, ranks=tuple(state[row] for row in rows), price_ms=price_ms, loss=loss)

    def _figures(self, state: State) -> tuple[float, float]:
        """Returns milliseconds and summed loss of a plan."""
        key = _key(state)
        if key not in self._measured:
            self._measured[key] = self._work_out(state)
        return self._measured[key]

    def _work_out(self, state: State) -> tuple[float, float]:
        going = np.arange(self.ranked.trace.sample_count)
        rows, counts, loss = tuple(sorted(state)), [], 0.0
        for row in rows:
            leaves = self.ranked.ranks[row, going] >= state[row]
            loss += float(self.ranked.losses[row, going[leaves]].sum())
            going = going[~leaves]
            counts.append(len(going))
        return self.prices.plan_ms(rows, counts), loss

    def _best_rank(self, state: State, row: int, weight: float) -> int:
        """Returns the best threshold of an exit beside others, or ``OFF`` where it is better not to have it."""
        key = (row, _key(state))
        if key not in self._choices:
            self._choices[key] = self._list_choices(state, row)
        choices = self._choices[key]
        if not len(choices.ranks):
            return OFF
        value = choices.price_ms + weight * choices.gained
        best = int(value.argmin())
        return OFF if choices.without_ms <= value[best] else int(choices.ranks[best])

    def _list_choices(self, state: State, row: int) -> _Choices:
        others = tuple(sorted(state))
        ordered = self._arriving(state, others, row)
        ranks = self.ranked.ranks[row, ordered]
        ends = np.flatnonzero(ranks[1:] != ranks[:-1]) + 1  # equal confidences leave together
        ends = np.append(ends, len(ordered)) if len(ordered) else ends
        without_ms, with_ms, gained = self._try_all(state, others, row, ordered)
        if not others or row < others[0]:
            ends = ends[len(ordered) - ends <= self.most_survivors[row]]
        ends = ends[_undominated(with_ms[ends], gained[ends])]
        if others and not self._is_allowed(state, others):
            without_ms = np.inf
        return _Choices(ranks=ranks[ends - 1], price_ms=with_ms[ends], gained=gained[ends], without_ms=without_ms)

    def _arriving(self, state: State, others: Sequence[int], row: int) -> np.ndarray:
        """Returns the samples that come as far as an exit, in the order of falling confidence there."""
        arriving = np.ones(self.ranked.trace.sample_count, bool)
        for other in others:
            if other < row:
                arriving &= self.ranked.ranks[other] < state[other]
        falling = self.ranked.falling[row]
        ordered: np.ndarray = falling[arriving[falling]]
        return ordered

    def _try_all(
        self, state: State, others: Sequence[int], row: int, ordered: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """Prices a plan without an exit, and with it when the first 0, 1, .. of the samples ordered leave there.

        Returns:
            Milliseconds without; milliseconds with, and the loss above that without, each (len(ordered) + 1,).
        """
        last = max((other for other in others if other < row), default=OFF)
        without_ms, with_ms = 0.0, np.full(len(ordered) + 1, self.prices.stage_ms(last, row, len(ordered)))
        alive, later_loss, here = np.ones(len(ordered), bool), np.zeros(len(ordered)), row
        for other in [*(other for other in others if other > row), OFF]:
            gone = np.concatenate([[0], alive.cumsum()])
            without_ms += float(self.prices.stage_ms(last, other, gone[-1]))
            with_ms += self.prices.stage_ms(here, other, gone[-1] - gone)
            last = here = other
            if other != OFF:
                leaves = alive & (self.ranked.ranks[other, ordered] >= state[other])
                later_loss[leaves] = self.ranked.losses[other, ordered[leaves]]
                alive &= ~leaves
        gained = np.concatenate([[0.0], (self.ranked.losses[row, ordered] - later_loss).cumsum()])
        return without_ms, with_ms, gained

    def _is_allowed(self, state: State, rows: tuple[int, ...]) -> bool:
        going = int((self.ranked.ranks[rows[0]] < state[rows[0]]).sum())
        return self.allows(rows) and going <= self.most_survivors[rows[0]]
