"""A simulated host: the scheduler as it is deployed, a clock that jumps, and a device that takes the measured times.

The event loop is a server of its own in front of the scheduler: every request takes some of its time, one after the
other. Where the engines' threads take all processors, the loop takes theirs: a run ends later by what the loop did
meanwhile, since threads that share the rows of a run wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from artifacts import allowed_processors
from runtime.scheduling.decisions import ANSWERED, Done, Run, SchedulerConfig
from runtime.scheduling.machine import Scheduler
from runtime.scheduling.tables import StageCosts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stream:
    """The requests of a simulation, one row each.

    Attributes:
        arrivals_s: when they come, ascending.
        exits: the stage after which each row leaves, if it may.
        timeout_s: the deadline of each, from its arrival; ``None``: none has one.
    """

    arrivals_s: np.ndarray
    exits: np.ndarray
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopCost:
    """What the event loop takes.

    Attributes:
        request_s: of its time, for one request.
        from_engines: whether engines wait meanwhile: they have no processor less than there are.
    """

    request_s: float = 0.0
    from_engines: bool = False


_NOTHING = LoopCost()


def loop_cost(request_s: float, threads: int) -> LoopCost:
    """Returns what the event loop takes beside engines of so many threads on this machine; 0: as many as it has."""
    return LoopCost(request_s=request_s, from_engines=not 0 < threads < allowed_processors())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Simulated:
    """What came of a stream.

    Attributes:
        latency_s: (requests,) float64, from arrival to answer; infinite for those that were refused or expired.
        exit_index: (requests,) int64, where each left; -1 for those that were not answered.
        runs: per stage, how many runs there were.
        rows: per stage, over how many rows they ran.
        busy_s: how long the device was busy.
        end_s: when the last request was done.
        pooled_runs: how many runs were decided while stages were shared.
    """

    latency_s: np.ndarray
    exit_index: np.ndarray
    runs: tuple[int, ...]
    rows: tuple[int, ...]
    busy_s: float
    end_s: float
    pooled_runs: int


def draw_noise(spread: float, seed: int) -> Callable[[Run], float]:
    """Returns how long a run takes: what is expected times a log-normal factor of mean 1 and relative ``spread``."""
    random = np.random.default_rng(seed)
    sigma = float(np.sqrt(np.log1p(spread**2)))

    def seconds(run: Run) -> float:
        factor = float(np.exp(sigma * random.standard_normal() - sigma**2 / 2)) if spread else 1.0
        return run.expected_s * factor

    return seconds


def simulate(
    costs: StageCosts, config: SchedulerConfig, stream: Stream, run_seconds: Callable[[Run], float],
    loop: LoopCost = _NOTHING,
) -> Simulated:  # fmt: skip
    """Plays a stream to its end: the device is either idle or runs what the scheduler decides."""
    return _Simulation(costs, config, stream, run_seconds, loop).play()


class _Simulation:
    def __init__(
        self, costs: StageCosts, config: SchedulerConfig, stream: Stream, run_seconds: Callable[[Run], float],
        loop: LoopCost,
    ) -> None:  # fmt: skip
        self._scheduler = Scheduler(costs, config)
        self._last = costs.stage_count - 1
        self._arrivals: list[float] = stream.arrivals_s.tolist()
        self._exits: list[int] = stream.exits.tolist()
        self._timeout_s = stream.timeout_s
        self._run_seconds = run_seconds
        self._loop = loop
        self._loop_free = 0.0
        self._come = 0
        self._latency = np.full(len(self._arrivals), np.inf)
        self._left = np.full(len(self._arrivals), -1)
        self._runs, self._rows = [0] * costs.stage_count, [0] * costs.stage_count
        self._busy_s = 0.0
        self._pooled = 0

    def play(self) -> Simulated:
        scheduler, arrivals, now = self._scheduler, self._arrivals, 0.0
        while True:
            if self._timeout_s is not None:
                scheduler.expire(now)
            step = scheduler.next(now)
            if isinstance(step, Run):
                now = self._run(step, now)
            elif self._come < len(arrivals):
                now = max(now, self._heard_at())
                self._let_in(now)
            else:
                break
        return Simulated(
            latency_s=self._latency, exit_index=self._left, runs=tuple(self._runs), rows=tuple(self._rows),
            busy_s=self._busy_s, end_s=now, pooled_runs=self._pooled,
        )  # fmt: skip

    def _run(self, run: Run, now: float) -> float:
        end = now + self._run_seconds(run)
        self._pooled += self._scheduler.pooling
        while (heard := self._let_in(end)) and self._loop.from_engines:
            end += heard * self._loop.request_s
        last = run.stage == self._last
        exits = self._exits
        left = [
            place
            for place, (ticket, _) in enumerate(run.rows)
            if last or (run.may_leave and exits[ticket] <= run.stage)
        ]
        self._answer(self._scheduler.finished(run, left, end), run.stage, end)
        self._runs[run.stage] += 1
        self._rows[run.stage] += len(run.rows)
        self._busy_s += end - now
        return end

    def _heard_at(self) -> float:
        """Returns when the loop has taken in the next request."""
        return max(self._arrivals[self._come], self._loop_free) + self._loop.request_s

    def _let_in(self, until: float) -> int:
        """Submits the requests that the loop takes in until then; returns how many."""
        arrivals, timeout_s, before = self._arrivals, self._timeout_s, self._come
        while self._come < len(arrivals) and (heard := self._heard_at()) <= until:
            at = arrivals[self._come]
            deadline = None if timeout_s is None else at + timeout_s
            self._scheduler.submit(self._come, 1, deadline, 0, heard)
            self._come, self._loop_free = self._come + 1, heard
        return self._come - before

    def _answer(self, done: Sequence[Done], stage: int, end: float) -> None:
        for ended in done:
            if ended.outcome == ANSWERED:
                self._latency[ended.ticket] = end - self._arrivals[ended.ticket]
                self._left[ended.ticket] = stage
