"""The search of a rate, and what it makes of a machine that stands still now and then."""

from __future__ import annotations

import asyncio
import math
import selectors
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from artifacts import Answers, find_task
from runtime.loadtest.client import Played, SlowRuns
from runtime.loadtest.contenders import STAGES, Contender
from runtime.loadtest.goodput import LoadConfig, QuerySet, describe_search, search_goodput
from runtime.loadtest.search import Search, Tried

BOUND_S = 0.02


def stream(share: float, query: int = 0) -> Played:
    """A stream of 100 requests, of which a share was answered within the bound."""
    latency_s = np.where(np.arange(100) < 100 * share, 0.5 * BOUND_S, 5 * BOUND_S)
    return Played(latency_s, np.zeros(100, np.int64), np.zeros(100), answers={query: [np.array([[query]])]})


def search_from(rate: float, repeats: int = 7) -> Search:
    return Search(contender=None, rate=rate, repeats=repeats, simulated=rate)  # type: ignore[arg-type]


def send(search: Search, *shares: float) -> None:
    for share in shares:
        search.record(stream(share), BOUND_S)


def play_streams(search: Search, most: int, capacity: float, spoiled: float = 0.0) -> None:
    """A server that keeps up with ``capacity`` requests a second, on a machine that spoils some streams."""
    random = Random(1)
    while not search.converged and search.streams < most:
        kept = search.rate <= capacity and random.random() >= spoiled
        search.record(stream(1.0 if kept else 0.5), BOUND_S)


@pytest.mark.parametrize("begin", [38.0, 80.0, 100.0, 130.0, 260.0])
@pytest.mark.parametrize("spoiled", [0.0, 0.2])
def test_the_search_climbs_or_falls_and_closes_in(begin: float, spoiled: float) -> None:
    """The default budget is enough from a rate that is far off, and where every fifth stream is spoiled."""
    search = search_from(begin)
    play_streams(search, 49, 100.0, spoiled)
    assert search.converged
    assert search.best is not None
    assert search.limit is not None
    assert 95 < search.best.rate <= 100
    assert search.limit.rate <= 1.05 * search.best.rate
    assert search.limit.tries == 2
    assert len(search.best.streams) >= 7
    assert search.best.median.in_time(BOUND_S) == 1


def test_a_search_that_has_not_converged_knows_between_what_the_goodput_lies() -> None:
    search = search_from(130.0)
    play_streams(search, 14, 100.0)
    assert not search.converged
    assert search.best is not None
    assert search.limit is not None
    assert search.best.rate <= 100 < search.limit.rate


def test_a_rate_is_left_when_its_other_streams_cannot_change_it() -> None:
    search = search_from(50.0)
    send(search, 1.0, 1.0, 0.5, 0.5, 1.0)
    assert (search.rate, search.stream) == (50.0, 5)
    send(search, 1.0)
    assert search.rate == 65.0
    send(search, 0.5, 0.5, 0.5)
    assert search.rate == 65.0
    send(search, 0.5)
    assert 50 < search.rate < 65
    assert search.steps == [(50.0, 1.0), (65.0, 0.5)]


@pytest.mark.parametrize("planned", [1, 2, 3, 4, 7, 14])
def test_a_decision_before_the_last_stream_is_that_of_the_median_of_all(planned: int) -> None:
    random = Random(planned)
    for _ in range(200):
        shares = [random.choice((0.5, 1.0)) for _ in range(planned)]
        tried, decided = Tried(1.0, planned), []
        for share in shares:
            tried.shares.append(share)
            decided.append(tried.passed)
        known = [verdict for verdict in decided if verdict is not None]
        assert set(known) == {statistics.median_low(shares) >= 0.99}
        assert decided == [None] * (planned - len(known)) + known


def test_a_search_that_finds_no_rate_goes_down() -> None:
    search = search_from(50.0)
    send(search, *[0.5] * 4)
    assert search.rate == 25
    assert search.best is None


def test_a_search_ends_where_no_rate_passes() -> None:
    """At ever lower rates a stream would last ever longer."""
    search = search_from(320.0)
    while not search.ended:
        search.record(stream(0.5), BOUND_S)
    assert (search.given_up, search.converged, search.best) == (True, False, None)
    assert min(search.tried) == 10.0
    assert search.streams == 6 * 4


def test_a_rate_that_failed_by_bad_luck_is_tried_again_and_passes() -> None:
    search = search_from(50.0)
    send(search, 0.5, 1.0, 0.5, 0.5, 1.0, 0.5)
    assert search.best is None
    play_streams(search, 80, 100.0)
    assert search.tried[50.0].tries == 2
    assert search.tried[50.0].passed
    assert search.best is not None
    assert search.best.rate > 50, "the first step was made at half the capacity"


def test_of_an_even_number_of_streams_the_worse_of_the_middle_ones_counts() -> None:
    search = search_from(50.0, repeats=2)
    send(search, 1.0, 0.5)
    assert search.best is None
    tried = Tried(1.0, 2)
    tried.streams = [stream(1.0), stream(0.5)]
    assert tried.median.in_time(BOUND_S) == 0.5


def test_answers_are_kept_for_the_highest_rate_alone() -> None:
    search = search_from(50.0, repeats=2)
    for query in (1, 2, 3, 4):
        search.record(stream(1.0, query), BOUND_S)
    kept = {rate: sorted(tried.answers) for rate, tried in search.tried.items()}
    assert kept == {50.0: [], 65.0: [3, 4]}
    assert not any(played.answers for tried in search.tried.values() for played in tried.streams)


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer, and by ``stand_still``."""

    def __init__(self) -> None:
        super().__init__(_JumpingSelector(self))
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def stand_still(self, seconds: float) -> None:
        self.now += seconds


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        self._loop.now += timeout or 0.0
        return super().select(0)


@dataclass
class FakeTarget:
    """Answers one query after the other; in every third stream, the machine stands still for a while."""

    loop: JumpingLoop
    capacity: float
    still_s: float
    asked: int = 0
    streams: float = 0.0
    slow: SlowRuns = field(default_factory=SlowRuns)
    free_at: float = 0.0

    async def answer(self, query: int) -> tuple[Answers, int]:
        self.asked += 1
        if math.ceil(self.streams) % 3 == 0 and self.asked == 50:
            self.loop.stand_still(self.still_s)
            self.slow = SlowRuns(self.slow.count + 1, self.slow.lost_s + self.still_s)
        self.free_at = max(self.loop.now, self.free_at) + 1 / self.capacity
        try:
            await asyncio.sleep(self.free_at - self.loop.now)
        except asyncio.CancelledError:
            self.free_at -= 1 / self.capacity
            raise
        return [np.array([[1.0, 0.0]], np.float32)], query % 2

    def slow_runs(self) -> SlowRuns:
        """Is asked before and after a stream."""
        self.asked = 0
        self.streams += 0.5
        return self.slow


def test_a_machine_that_stands_still_in_a_third_of_the_streams_does_not_move_the_goodput(
    tmp_path: Path,
) -> None:
    """Each such stream misses its bound at any rate."""
    queries = QuerySet(
        count=4, task=find_task("classification"), full=[np.array([[1, 0]] * 4, np.float32)], targets=None,
        exits=np.zeros(4, np.int64),
    )  # fmt: skip
    np.save(tmp_path / "even.npy", np.ones(1))
    config = LoadConfig(arrivals=str(tmp_path / "even.npy"), seconds=1.0, repeats=7, steps=6)
    found = {}
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        loop = runner.get_loop()
        for still_s in (0.0, 0.1):
            target = FakeTarget(loop, capacity=400.0, still_s=still_s)
            contender = Contender(policy="chain", target=target, runs=STAGES)
            search = Search(contender=contender, rate=300.0, repeats=7, simulated=300.0)
            runner.run(search_goodput([search], queries, config, bound_s=0.05))
            found[still_s] = describe_search(search, queries)
    quiet, disturbed = found[0.0], found[0.1]
    assert 370 < quiet["goodput_per_s"] < 430
    assert disturbed["goodput_per_s"] == pytest.approx(quiet["goodput_per_s"], rel=0.05)
    assert (quiet["stood_still"], disturbed["stood_still"]) == (0, disturbed["streams"] // 3)
    assert max(quiet["streams"], disturbed["streams"]) <= 42
    assert disturbed["slow_runs_lost_s"] == pytest.approx(0.1 * disturbed["slow_runs"])
    assert (disturbed["streams_p99_ms"][-1] or math.inf) > 50 > disturbed["p99_ms"]
    assert disturbed["agreement"] == 1
    assert disturbed["exit_fractions"] == pytest.approx([0.5, 0.5], abs=0.1)
