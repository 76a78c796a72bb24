"""Load: how many rows come per second, measured with exponentially fading memory, and the switch that follows it."""

from __future__ import annotations

import math

from runtime.scheduling.decisions import AUTO, POOLED, Policy
from runtime.scheduling.policies import BACKLOG
from runtime.scheduling.tables import StageCosts

_LEAST_GAIN = 1.05  # below it, what pooling saves is within the error of the times
_SWITCH_AT = 0.85  # of the chain's capacity; below it, pooling costs more waiting than it saves
_HYSTERESIS = 0.05
_OVERLOAD = 0.95  # of what can be served: less is left for a queue to empty in
_POOLED_WAIT = 1 / 3  # of what a chain leaves of the time until a row is due
_CHAIN_PASSES = 2
_LEAST_CHAINS = 3  # where there is less time than that many passes of a full batch, pooling makes more rows late


class LoadMeter:
    """Rows per second. A row that came ``t`` ago counts ``exp(-t / window)``.

    Args:
        window_s: how long ago things fade.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._rows = 0.0
        self._at = -math.inf
        self._since: float | None = None

    def add(self, rows: float, now: float) -> None:
        """Counts rows that come now, or what they weigh; a time before the last one counts as the last."""
        self._fade(now)
        self._rows += rows

    def rows_per_s(self, now: float) -> float:
        """Returns the rate; while less than a window has passed since the first row, that of the time that has."""
        if self._since is None:
            return 0.0
        self._fade(now)
        seen = 1 - math.exp(-(self._at - self._since) / self._window_s)
        return self._rows / (self._window_s * max(seen, 0.1))

    def _fade(self, now: float) -> None:
        if self._since is None:
            self._since = self._at = now
        elif now > self._at:
            self._rows *= math.exp(-(now - self._at) / self._window_s)
            self._at = now


class PoolingSwitch:
    """Whether batches share stages. ``auto`` pools where the tables promise a gain, the requests leave the time for it,
    and the load is near what the chain can do, or a burst has filled the queue; the chain wins every tie.

    Args:
        policy: what was asked for.
        costs: of the stages.
        slo_s: how long after it came a request is due.
    """

    def __init__(self, policy: Policy, costs: StageCosts, slo_s: float) -> None:
        chain_s = costs.remaining_s[costs.longest][-1]
        self._worth_it = policy.kind == AUTO and costs.gain >= _LEAST_GAIN and slo_s >= _LEAST_CHAINS * chain_s
        self._capacity, self._pooled_capacity = costs.chain_capacity, costs.pooled_capacity
        self._batch = costs.largest
        self._pooled_room = max(self._batch, int(_POOLED_WAIT * (slo_s - chain_s) * self._pooled_capacity))
        self._chain_room = max(self._batch, int((slo_s - _CHAIN_PASSES * chain_s) * self._capacity))
        self.pooling = policy.kind == POOLED
        self.margin_s = policy.margin_s

    @property
    def follows_load(self) -> bool:
        """Whether ``update`` can change anything."""
        return self._worth_it

    def update(self, rows_per_s: float, waiting_rows: float) -> None:
        """Follows the load, and the rows that wait at the entry; a shorter row counts as what it weighs."""
        if not self._worth_it:
            return
        limit = _SWITCH_AT - _HYSTERESIS if self.pooling else _SWITCH_AT
        backlog = self._batch if self.pooling else BACKLOG * self._batch
        self.pooling = rows_per_s >= limit * self._capacity or waiting_rows >= backlog

    def room(self, rows_per_s: float) -> float:
        """Returns how many rows may wait at a load. Under more than can be served no more than leave those that enter
        time: to go through behind the batch before them, or, pooled, to wait at every stage for others to share it.
        With a longer queue all enter late, runs get small to hurry them, and less is served at all.
        """
        if rows_per_s < _OVERLOAD * (self._pooled_capacity if self.pooling else self._capacity):
            return math.inf
        return self._pooled_room if self.pooling else self._chain_room
