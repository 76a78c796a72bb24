"""Tables of expected times: what a stage run costs, and what a group of rows still costs until its last one has left.

With ``t_k(n)`` the seconds of a run of stage ``k`` over ``n`` rows, ``s_k`` the share of the rows that stay after it,
and ``B`` the largest batch::

    R_k(n)    = sum over j >= k of t_j(max(1, n s_k ... s_{j-1}))     a group of n rows, by itself to the end
    w_k       = t_k(B) / B + s_k w_{k+1}                              a row, if every run is full
    chain     = B / R_0(B)    pooled = 1 / w_0                        rows per second
    gain      = pooled / chain

Where rows have several lengths, the stages are there once for each, one *line* of stages behind the other, the shortest
length first, and a row stays in its line. ``k`` counts through all lines; capacities and gain are those of the longest.

The gain is what sharing stages among batches can be worth at most. It is 1 where a run's time is proportional to its
rows, and grows with the fixed cost of a run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class StageCosts:
    """Expected times of the stages.

    Attributes:
        run_s: ``run_s[k][n]`` are the seconds of a run of stage ``k`` over ``n`` rows, n = 0 ... B.
        staying: ``staying[k]`` is the share of the rows that go on after stage ``k``; 0 for the last stage of a line.
        lines: how many lines of stages there are: one for each length that rows may have.

    Raises:
        ValueError: no stage, tables of different lengths, a time that is not a positive number, a share outside [0, 1],
            or lines of unlike numbers of stages.
    """

    run_s: Sequence[Sequence[float]]
    staying: Sequence[float]
    lines: int = 1

    def __post_init__(self) -> None:
        if not self.run_s or len({len(table) for table in self.run_s}) != 1 or len(self.run_s[0]) < 2:
            raise ValueError("expected one table of times per stage, all for the same numbers of rows, 0 to at least 1")
        if any(not math.isfinite(seconds) or seconds < 0 for table in self.run_s for seconds in table):
            raise ValueError("the time of a run is not a number from 0; time the engines again")
        if any(seconds <= 0 for table in self.run_s for seconds in table[1:]):
            raise ValueError("a run over rows takes no time; time the engines again")
        if len(self.staying) != len(self.run_s) or any(not 0 <= share <= 1 for share in self.staying):
            raise ValueError(f"expected one share of staying rows in [0, 1] per stage, got {list(self.staying)}")
        if self.lines < 1 or len(self.run_s) % self.lines:
            raise ValueError(f"{len(self.run_s)} stages are not {self.lines} lines of equally many")
        if any(last := self.staying[self.depth - 1 :: self.depth]):
            raise ValueError(f"all rows leave after the last stage, but {max(last)} of them are to stay")

    @cached_property
    def stage_count(self) -> int:
        """How many stages there are, in all lines."""
        return len(self.run_s)

    @cached_property
    def depth(self) -> int:
        """How many stages a line has."""
        return len(self.run_s) // self.lines

    @cached_property
    def longest(self) -> int:
        """The first stage of the line of the longest rows."""
        return len(self.run_s) - self.depth

    @cached_property
    def largest(self) -> int:
        """The most rows of a run."""
        return len(self.run_s[0]) - 1

    def without_leaving(self) -> StageCosts:
        """Returns the costs where every row goes to the end."""
        return self.with_staying([1.0] * (self.depth - 1) + [0.0])

    def with_staying(self, staying: Sequence[float]) -> StageCosts:
        """Returns the costs where other shares of rows go on, one for each stage of a line; errors as construction."""
        return StageCosts(self.run_s, [*staying] * self.lines, self.lines)

    @cached_property
    def remaining_s(self) -> tuple[tuple[float, ...], ...]:
        """``R_k(n)``, n = 0 ... B."""
        return tuple(
            (0.0, *(self._remaining(stage, count) for count in range(1, self.largest + 1)))
            for stage in range(self.stage_count)
        )

    @cached_property
    def work_s(self) -> tuple[float, ...]:
        """``w_k``, and 0 behind the last stage."""
        work = [0.0]
        for table, share in zip(reversed(self.run_s), reversed(self.staying), strict=True):
            work.append(table[-1] / self.largest + share * work[-1])
        return tuple(reversed(work))

    @cached_property
    def chain_work_s(self) -> tuple[float, ...]:
        """As ``work_s``, but for batches that share no stage: ``R_k(B) / B``."""
        return (*(table[-1] / self.largest for table in self.remaining_s), 0.0)

    @cached_property
    def chain_capacity(self) -> float:
        """Rows per second that batches of B rows, one after the other, can be answered at."""
        return self.largest / self.remaining_s[self.longest][-1]

    @cached_property
    def pooled_capacity(self) -> float:
        """Rows per second if every run of every stage is full."""
        return 1 / self.work_s[self.longest]

    @cached_property
    def gain(self) -> float:
        """The pooled capacity, of that of the chain."""
        return self.pooled_capacity / self.chain_capacity

    @cached_property
    def weights(self) -> tuple[float, ...]:
        """What a row of each line costs, of what one of the longest costs, in full batches that share no stage."""
        work = self.chain_work_s
        return tuple(work[entry] / work[self.longest] for entry in range(0, self.stage_count, self.depth))

    @cached_property
    def efficiency(self) -> tuple[tuple[float, ...], ...]:
        """``e_k(n) = n t_k(B) / (B t_k(n))``: the work that a run retires per second, of that of a full run."""
        return tuple(
            (0.0, *(n * table[-1] / (self.largest * table[n]) for n in range(1, self.largest + 1)))
            for table in self.run_s
        )

    def group_s(self, stage: int, count: float) -> float:
        """Returns ``R_k(n)`` of any number of rows, also a fraction: at least that of one row, at most that of B."""
        if count <= 0 or stage >= self.stage_count:
            return 0.0
        return _interpolate(self.remaining_s[stage], count)

    def _remaining(self, stage: int, count: float) -> float:
        total = 0.0
        for table, share in zip(self.run_s[stage:], self.staying[stage:], strict=True):
            total += _interpolate(table, count)
            count *= share
            if share == 0:
                break
        return total


def _interpolate(table: Sequence[float], count: float) -> float:
    """Returns a table's value between two numbers of rows; below 1 that of 1, beyond the last that of the last."""
    if count <= 1:
        return table[1]
    if count >= len(table) - 1:
        return table[-1]
    below = int(count)
    part = count - below
    return table[below] * (1 - part) + table[below + 1] * part if part else table[below]
