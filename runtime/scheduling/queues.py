"""Queues: the rows that wait for a stage, and the places of its arena that they stand at.

The rows of a queue stand in its arena from place 0 on. Places of rows that are gone (they have run, or their request is
done) are gaps until the queue is *arranged*: before its stage runs, and before other rows are appended. So rows move at
most once per run, and rows in the order of their places do not move at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Ticket:
    """An admitted request.

    Attributes:
        number: the caller's name for it.
        deadline: it is done then, whatever has become of it.
        unanswered: how many of its rows have not left yet.
        waiting: per stage, those of all lines, how many of its rows wait.
        open: whether it is not done.
    """

    __slots__ = ("deadline", "number", "open", "unanswered", "waiting")

    def __init__(self, number: int, rows: int, deadline: float, stage_count: int) -> None:
        self.number = number
        self.deadline = deadline
        self.unanswered = rows
        self.waiting = [0] * stage_count
        self.open = True


class Row(NamedTuple):
    """A row of a request. Rows compare by urgency, then by arrival.

    Attributes:
        due: when it is due, its priority counted in.
        arrival: number of its request, in the order of arrival.
        position: its place among the rows of the request.
        ticket: its request.
    """

    due: float
    arrival: int
    position: int
    ticket: Ticket


class StageQueue:
    """The rows that wait for one stage.

    Attributes:
        live: how many of them there are.
    """

    __slots__ = ("_earliest", "_in_order", "_latest", "_places", "live")

    def __init__(self) -> None:
        self._places: list[Row | None] = []
        self._earliest: float | None = None
        self._latest = -math.inf  # of the rows that were there or came since
        self._in_order = True  # whether the rows are known to stand in the order of their urgency
        self.live = 0

    @property
    def places(self) -> int:
        """How many places of the arena are in use, gaps included."""
        return len(self._places)

    @property
    def earliest(self) -> float:
        """When the first of its rows is due; of an empty queue: never asked."""
        if self._earliest is None:
            self._earliest = min(self.rows()).due
        return self._earliest

    def extend(self, rows: Sequence[Row]) -> None:
        """Takes the next places for rows. The row of a request that is done takes one too, as a gap."""
        self._places += rows
        dues = [row.due for row in rows if row.ticket.open]
        if not dues:
            return
        self._in_order = self._in_order and dues[0] > self._latest and (len(dues) == 1 or dues == sorted(set(dues)))
        self._latest = max(self._latest, dues[-1])
        if self.live == 0:
            self._earliest = min(dues)
        elif self._earliest is not None:
            self._earliest = min(self._earliest, *dues)
        self.live += len(dues)

    def drop(self, count: int) -> None:
        """Counts rows of a request that has just been done; their places become gaps."""
        self.live -= count
        self._earliest = None

    def close_gaps(self) -> Sequence[int] | None:
        """Lets the rows close ranks; returns the places to arrange, ``None`` where there are no gaps."""
        if self.live == len(self._places):
            return None
        kept = [place for place, row in enumerate(self._places) if row is not None and row.ticket.open]
        self._places = [self._places[place] for place in kept]
        return kept

    def take(self, count: int) -> tuple[list[Row], Sequence[int] | None]:
        """Takes the most urgent rows for a run: at most ``count``, which stand at the first places then.

        Returns:
            The rows in the order of their places, and the places to arrange; ``None`` where they stand there already.
        """
        rows = self.rows()
        if len(rows) > count and not self._in_order:
            ordered = sorted(rows)
            if ordered != rows:  # compares identical objects, mostly
                return self._take_ordered(ordered, count)
        kept = self.close_gaps()
        taken = rows[:count]
        self._leave_gaps(rows, len(taken))
        return taken, kept

    def _take_ordered(self, ordered: list[Row], count: int) -> tuple[list[Row], Sequence[int]]:
        where = {(row.arrival, row.position): place for place, row in enumerate(self._places) if row is not None}
        self._leave_gaps(ordered, count)
        return ordered[:count], [where[row.arrival, row.position] for row in ordered]

    def _leave_gaps(self, rows: list[Row], count: int) -> None:
        """Takes the first ``count`` of the rows, which are in order if there are more."""
        rest = rows[count:]
        self._places = [*([None] * count), *rest] if rest else []
        self.live = len(rest)
        self._in_order = True
        self._earliest, self._latest = (rest[0].due, rest[-1].due) if rest else (None, -math.inf)

    def rows(self) -> list[Row]:
        """Returns the rows that wait, in the order of their places."""
        if self.live == len(self._places):
            return [*self._places]  # type: ignore[list-item]  # without gaps, all are rows
        return [row for row in self._places if row is not None and row.ticket.open]
