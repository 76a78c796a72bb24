"""Thinning: every k-th cut becomes an exit candidate."""

from __future__ import annotations

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
