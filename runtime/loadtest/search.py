"""The search of one contender's goodput, from streams that a machine may disturb. Pure.

A machine that stands still for some hundredths of a second, as shared ones do, makes any one stream miss its bound at
any rate. So a rate is judged by several short streams: it passes where the *median* stream has 99 % of its requests
answered in time. A rate is left as soon as its other streams could not change that, and the streams that this saves
serve other rates. The rates close in on the highest one that passes; a rate that has failed is tried again, and all its
streams count, before it is taken as the limit. The search has converged when the limit is within 5 % of the highest
rate that passed, which has had all its streams.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from operator import attrgetter

from artifacts import Answers
from runtime.loadtest.client import Played
from runtime.loadtest.contenders import Contender

IN_TIME = 0.99
_STEP = 1.3  # from one rate to the next, until one passes and a higher one does not
_CLOSE = 1.05  # from the highest rate that passed to the lowest one that failed
_TRIES = 2  # after which a rate that has failed is taken as the limit
_LEAST = 1 / 32  # of the first rate: where not even that passes, the search ends


@dataclass(slots=True, eq=False)
class Tried:
    """What became of the streams at one rate.

    Attributes:
        rate: requests per second.
        planned: how many streams judge it.
        tries: how often it was decided, or is being decided.
        streams: that were sent, those that were broken off among them; without their answers.
        shares: of each, the share of its requests that was answered in time.
        answers: query -> its first answers in any stream; only kept for the highest rate that passed.
    """

    rate: float
    planned: int
    tries: int = 1
    streams: list[Played] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    answers: dict[int, Answers] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The share that was answered in time of the median stream; of two middle ones, the lower."""
        return statistics.median_low(self.shares)

    @property
    def passed(self) -> bool | None:
        """Whether the median of all planned streams keeps the bound; ``None`` while those to come decide it."""
        below = (self.planned - 1) // 2  # the streams before the median one, as ``median_low`` has it
        kept = sum(share >= IN_TIME for share in self.shares)
        if kept >= self.planned - below:
            return True
        return False if len(self.shares) - kept > below else None

    @property
    def median(self) -> Played:
        """The stream that the figures of the rate are taken from, as ``share`` is."""
        return sorted(self.streams, key=Played.p99_s)[len(self.streams) // 2]


@dataclass(slots=True, eq=False)
class Search:
    """The search of one contender's goodput.

    Attributes:
        contender: is loaded.
        rate: the next one to try.
        repeats: how many streams judge a rate.
        simulated: the rate that the simulation finds; ``None``: nothing is simulated.
        tried: rate -> its streams.
        steps: rate and share of every rate that was decided, in their order.
        converged: whether it has found the goodput.
        given_up: whether no rate has passed, down to a small part of the first one.
        request_s: seconds of the event loop for a request, the client's part included, that were simulated with.
    """

    contender: Contender
    rate: float
    repeats: int
    simulated: float | None = None
    tried: dict[float, Tried] = field(default_factory=dict)
    steps: list[tuple[float, float]] = field(default_factory=list)
    converged: bool = False
    given_up: bool = False
    request_s: float = 0.0

    @property
    def best(self) -> Tried | None:
        """The highest rate that passed."""
        return max((tried for tried in self.tried.values() if tried.passed), key=attrgetter("rate"), default=None)

    @property
    def limit(self) -> Tried | None:
        """The lowest rate that failed above all that passed."""
        low = 0.0 if self.best is None else self.best.rate
        failed = (tried for tried in self.tried.values() if tried.passed is False and tried.rate > low)
        return min(failed, key=attrgetter("rate"), default=None)

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to try."""
        return self.converged or self.given_up

    @property
    def streams(self) -> int:
        """How many streams were sent."""
        return sum(len(tried.streams) for tried in self.tried.values())

    @property
    def stream(self) -> int:
        """The place of the next stream among those of its rate."""
        return len(self.tried[self.rate].streams) if self.rate in self.tried else 0

    def record(self, played: Played, bound_s: float) -> None:
        """Takes a stream, which was sent at ``rate``, and chooses the next rate."""
        tried = self.tried.setdefault(self.rate, Tried(self.rate, self.repeats))
        undecided = tried.passed is None
        tried.streams.append(played)
        tried.shares.append(played.in_time(bound_s))
        tried.answers = {**played.answers, **tried.answers}
        played.answers = {}
        if tried.passed is None:
            return
        if undecided:
            self.steps.append((self.rate, tried.share))
        best = self.best
        for other in self.tried.values():
            if other is not best:
                other.answers = {}
        self._choose()

    def _choose(self) -> None:
        best, limit = self.best, self.limit
        if limit is None:
            self.rate = max(self.tried) * _STEP
        elif best is None:
            self.rate = limit.rate / 2
            self.given_up = self.rate < _LEAST * next(iter(self.tried))
        elif limit.rate > _CLOSE * best.rate:
            self.rate = math.sqrt(best.rate * limit.rate)
        elif limit.tries < _TRIES:
            limit.tries += 1
            limit.planned += self.repeats
            self.rate = limit.rate
        elif len(best.streams) < self.repeats:
            self.rate = best.rate
        else:
            self.converged = True
