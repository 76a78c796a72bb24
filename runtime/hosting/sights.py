"""Sights: what stages answered to rows that are watched on their way to the end. Used by the event loop alone."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(slots=True)
class Sight:
    """What a stage answered to the watched rows of a run, whether they left or not.

    Attributes:
        rows: ticket and row of the request.
        stage: its index.
        confidence: (len(rows),) float32.
        outputs: one array (len(rows), ...) per output of the network.
    """

    rows: Sequence[tuple[int, int]]
    stage: int
    confidence: np.ndarray
    outputs: tuple[np.ndarray, ...]


@dataclass(slots=True)
class SeenTogether:
    """Rows that have come to the end in one run.

    Attributes:
        rows: ticket and row of the request.
        answered: per stage: confidences (len(rows),), and outputs, one array (len(rows), ...) each.
    """

    rows: list[tuple[int, int]]
    answered: list[tuple[np.ndarray, tuple[np.ndarray, ...]]]


class Sights:
    """The rows that are watched now.

    Args:
        stage_count: how many stages a row has to pass.
    """

    def __init__(self, stage_count: int) -> None:
        self._last = stage_count - 1
        self._under_way: dict[tuple[int, int], list[tuple[Sight, int]]] = {}

    def __len__(self) -> int:
        """How many rows are on their way."""
        return len(self._under_way)

    def take(self, sight: Sight, tickets: Container[int]) -> SeenTogether | None:
        """Keeps what a stage answered; returns the rows that were seen at every stage once the last one has run.

        Args:
            sight: of a run.
            tickets: of the requests that are not done; rows of others are passed over.
        """
        under_way = self._under_way
        rows = [(row, place) for place, row in enumerate(sight.rows) if row[0] in tickets]
        for row, place in rows:
            under_way.setdefault(row, []).append((sight, place))
        if sight.stage < self._last:
            return None
        found = [(row, under_way.pop(row)) for row, _ in rows]
        seen = [(row, parts) for row, parts in found if len(parts) > self._last]
        if not seen:
            return None
        stages = zip(*(parts for _, parts in seen), strict=True)
        return SeenTogether([row for row, _ in seen], [_join(parts) for parts in stages])

    def drop(self, ticket: int, rows: Sequence[int]) -> None:
        """Forgets the rows of a request that is done, whatever has become of it."""
        for row in rows:
            self._under_way.pop((ticket, row), None)


def _join(parts: Sequence[tuple[Sight, int]]) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Returns what one stage answered to some rows, whichever runs they had it from."""
    confidence = np.array([sight.confidence[place] for sight, place in parts], np.float32)
    outputs = (sight.outputs for sight, _ in parts)
    places = [place for _, place in parts]
    return confidence, tuple(
        np.stack([array[place] for array, place in zip(arrays, places, strict=True)])
        for arrays in zip(*outputs, strict=True)
    )
