"""Thinning: every k-th cut becomes an exit candidate, or so many cuts that are spread evenly over time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

from artifacts import Cut, UsageError

T = TypeVar("T")


def thin(cuts: tuple[T, ...], every: int) -> tuple[T, ...]:
    """Keeps every ``every``-th cut: the ``every``-th, the ``2 * every``-th and so on.

    Raises:
        UsageError: ``every`` is not a positive number, or leaves no cut.
    """
    if every < 1:
        raise UsageError(f"--every {every}: expected a number from 1")
    chosen = cuts[every - 1 :: every]
    if cuts and not chosen:
        raise UsageError(f"--every {every} leaves none of {len(cuts)} candidates; use at most {len(cuts)}")
    return chosen


def thin_cuts(cuts: tuple[Cut, ...], every: int) -> tuple[Cut, ...]:
    """Keeps every ``every``-th cut, and the last one, which is never an exit candidate; errors as ``thin``."""
    return (*thin(cuts[:-1], every), cuts[-1])


def spread_evenly(ends: Sequence[float], total: float, count: int) -> tuple[int, ...]:
    """Chooses points in time so that no stretch between two of them, from 0 to the total, is long without need.

    The sum of the squared stretches is the least possible, found by dynamic programming: a network's cuts crowd where
    its layers are small, so every k-th of them would not do.

    Args:
        ends: the points to choose from, ascending, within 0 and ``total``.
        total: where time ends.
        count: how many to choose, at least 1.

    Returns:
        Ascending positions in ``ends``; all of them where there are no more than ``count``.
    """
    if len(ends) <= count:
        return tuple(range(len(ends)))
    best: list[tuple[float, tuple[int, ...]]] = [(end**2, (index,)) for index, end in enumerate(ends)]
    for _ in range(count - 1):  # best[i]: the least squares up to point i, and the points chosen so far, i the last
        best = [min(_extend(best, ends, index), default=(math.inf, ())) for index in range(len(ends))]
    return min((squares + (total - end) ** 2, chosen) for end, (squares, chosen) in zip(ends, best, strict=True))[1]


def _extend(
    best: Sequence[tuple[float, tuple[int, ...]]], ends: Sequence[float], index: int
) -> Iterator[tuple[float, tuple[int, ...]]]:
    for before, (squares, chosen) in enumerate(best[:index]):
        yield squares + (ends[index] - ends[before]) ** 2, (*chosen, index)
