"""An open-loop client: requests are sent when they are due, whatever has become of those before them.

A client that waits for answers before it sends again slows down with its server and measures too short times
(coordinated omission). Here a request's latency runs from the time at which it was to be sent, so that a client that
is late itself counts as late.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from artifacts import Answers, PameError
from runtime.hosting.async_runtime import AsyncRuntime

_LEAD_S = 0.02
_SENT_AT_ONCE = 8  # of a burst, before answers are looked at
_STILL_S = 0.01  # lost in slow runs


class Target(Protocol):
    """What is loaded: a host in this process, or, by another implementation, a server somewhere else."""

    async def answer(self, query: int) -> tuple[Answers, int]:
        """Returns the answers to a query, one array (1, ...) per output, and where it left; a ``PameError``: none."""

    def slow_runs(self) -> SlowRuns:
        """Returns the engine runs so far that took far longer than expected; none where that is not known."""


@dataclass(frozen=True, slots=True)
class SlowRuns:
    """Engine runs that took more than three times what they were expected to take.

    Attributes:
        count: how many.
        lost_s: seconds that they took beyond it.
    """

    count: int = 0
    lost_s: float = 0.0

    def __sub__(self, earlier: SlowRuns) -> SlowRuns:
        return SlowRuns(self.count - earlier.count, self.lost_s - earlier.lost_s)


class HostTarget:
    """A host in this process.

    Args:
        host: has been entered.
        queries: one array (N, ...) per input of the network.
    """

    def __init__(self, host: AsyncRuntime, queries: Sequence[np.ndarray]) -> None:
        self._host = host
        self._queries = queries

    async def answer(self, query: int) -> tuple[Answers, int]:
        """Returns the host's answers to a query."""
        result = await self._host.infer([array[query : query + 1] for array in self._queries])
        outputs = result.outputs if isinstance(result.outputs, tuple) else (result.outputs,)
        return [np.asarray(output) for output in outputs], int(result.exit_index[0])

    def slow_runs(self) -> SlowRuns:
        """Returns the host's slow runs."""
        stages = self._host.snapshot().stages
        return SlowRuns(sum(stage.slow_runs for stage in stages), sum(stage.lost_s for stage in stages))


@dataclass(slots=True, eq=False)
class Played:
    """What became of a stream of N requests.

    Attributes:
        latency_s: (N,) from when each was to be sent to its answer; infinite for those that have none.
        exit_index: (N,) where each left; -1 for those that have no answer.
        sent_late_s: (N,) by how much the client was late.
        answers: query -> its first answers.
        errors: what kind of error -> how many requests ended with it.
        given_up: whether the stream was broken off, since too many requests had missed the bound already.
        slow: the target's slow runs meanwhile.
        started_s: when the stream began, by the event loop's clock.
    """

    latency_s: np.ndarray
    exit_index: np.ndarray
    sent_late_s: np.ndarray
    answers: dict[int, Answers] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    given_up: bool = False
    slow: SlowRuns = SlowRuns()
    started_s: float = 0.0

    def in_time(self, bound_s: float) -> float:
        """Returns the share of all requests that were answered within a bound."""
        return float((self.latency_s <= bound_s).mean())

    def p99_s(self) -> float:
        """Returns the time within which 99 % of all requests were answered; infinite where they were not."""
        return float(np.percentile(self.latency_s, 99, method="higher"))

    @property
    def stood_still(self) -> bool:
        """Whether slow engine runs lost 10 ms or more: the machine did something else meanwhile."""
        return self.slow.lost_s >= _STILL_S


async def play(
    target: Target, arrivals_s: np.ndarray, queries: np.ndarray, *, bound_s: float, misses: int | None = None,
    stop: asyncio.Event | None = None,
) -> Played:  # fmt: skip
    """Sends a stream and waits for its last answer.

    Args:
        target: answers.
        arrivals_s: (N,) ascending, when the requests are to be sent.
        queries: (N,) which query each of them is.
        bound_s: later answers are misses.
        misses: the stream is broken off when there are more; ``None``: never.
        stop: no more requests are sent once it is set; the arrays are of those that were.
    """
    loop = asyncio.get_running_loop()
    count = len(arrivals_s)
    played = Played(np.full(count, np.inf), np.full(count, -1), np.zeros(count))
    missed = 0
    slow_before = target.slow_runs()
    start = played.started_s = loop.time() + _LEAD_S

    async def send(index: int, due: float, query: int) -> None:
        nonlocal missed
        try:
            answers, exit_index = await target.answer(query)
        except PameError as error:
            played.errors[type(error).__name__] += 1
            missed += 1
            return
        latency_s = loop.time() - due
        played.latency_s[index], played.exit_index[index] = latency_s, exit_index
        played.answers.setdefault(query, answers)
        missed += latency_s > bound_s

    tasks: set[asyncio.Task[None]] = set()
    for index, (at, query) in enumerate(zip(arrivals_s.tolist(), queries.tolist(), strict=True)):
        due = start + at
        if (wait := due - loop.time()) > 0:
            await asyncio.sleep(wait)
        elif index % _SENT_AT_ONCE == 0:
            await asyncio.sleep(0)
        if misses is not None and missed > misses:
            played.given_up = True
            break
        if stop is not None and stop.is_set():
            count = index
            break
        played.sent_late_s[index] = loop.time() - due
        task = asyncio.create_task(send(index, due, query))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if played.given_up:
        for task in tasks:
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=played.given_up)
    played.slow = target.slow_runs() - slow_before
    played.latency_s, played.exit_index = played.latency_s[:count], played.exit_index[:count]
    played.sent_late_s = played.sent_late_s[:count]
    return played
