"""The search of one contender's goodput, from streams that a machine may disturb. Pure.

A machine that stands still for some hundredths of a second, as shared ones do, makes any one stream miss its bound at
any rate. So a rate is judged by several short streams: it passes where the *median* stream has 99 % of its requests
answered in time. The rates close in on the highest one that passes; a rate that has failed is tried again, and all its
streams count, before it is taken as the limit.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from artifacts import Answers
from runtime.loadtest.client import Played
from runtime.loadtest.contenders import Contender

IN_TIME = 0.99
_STEP = 1.3  # from one rate to the next, until one passes and a higher one does not
_CLOSE = 1.1  # from the highest rate that passed to the lowest one that failed: then the latter is tried again
_TRIES = 2  # after which a rate that has failed is taken as the limit


@dataclass(slots=True, eq=False)
class Tried:
    """What became of the streams at one rate.

    Attributes:
        rate: requests per second.
        streams: that were sent, those that were broken off among them; without their answers.
        shares: of each, the share of its requests that was answered in time.
        steps: how often the rate was tried.
        answers: query -> its first answers in any stream; only kept for the highest rate that passed.
    """

    rate: float
    streams: list[Played] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    steps: int = 0
    answers: dict[int, Answers] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The share that was answered in time of the median stream; of two middle ones, the lower."""
        return statistics.median_low(self.shares)

    @property
    def passed(self) -> bool:
        """Whether the median stream keeps the bound."""
        return self.share >= IN_TIME

    @property
    def median(self) -> Played:
        """The stream that the figures of the rate are taken from, as ``share`` is."""
        return sorted(self.streams, key=Played.p99_s)[len(self.streams) // 2]


@dataclass(slots=True, eq=False)
class Search:
    """The search of one contender's goodput.

    Attributes:
        contender: is loaded.
        simulated: the rate that the simulation finds.
        rate: the next one to try.
        tried: rate -> its streams.
        steps: rate and share of every step, in their order.
        request_s: seconds of the event loop for a request, the client's part included, that were simulated with.
    """

    contender: Contender
    simulated: float
    rate: float
    tried: dict[float, Tried] = field(default_factory=dict)
    steps: list[tuple[float, float]] = field(default_factory=list)
    request_s: float = 0.0

    @property
    def best(self) -> Tried | None:
        """The highest rate that passed."""
        return max((tried for tried in self.tried.values() if tried.passed), key=attrgetter("rate"), default=None)

    @property
    def limit(self) -> Tried | None:
        """The lowest rate that failed above all that passed."""
        low = 0.0 if self.best is None else self.best.rate
        return min((tried for tried in self.tried.values() if tried.rate > low), key=attrgetter("rate"), default=None)

    def record(self, streams: Sequence[Played], bound_s: float) -> None:
        """Takes the streams of a step, which were sent at ``rate``, and chooses the next rate."""
        tried = self.tried.setdefault(self.rate, Tried(self.rate))
        tried.steps += 1
        for played in streams:
            tried.streams.append(played)
            tried.shares.append(played.in_time(bound_s))
            tried.answers = {**played.answers, **tried.answers}
            played.answers = {}
        self.steps.append((self.rate, tried.share))
        best = self.best
        for other in self.tried.values():
            if other is not best:
                other.answers = {}
        self.rate = self._next()

    def _next(self) -> float:
        best, limit = self.best, self.limit
        if limit is None:
            return max(self.tried) * _STEP
        if best is None:
            return limit.rate / 2
        if limit.steps < _TRIES and limit.rate < _CLOSE * best.rate:
            return limit.rate
        return math.sqrt(best.rate * limit.rate)
