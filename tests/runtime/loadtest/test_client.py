"""The open-loop client: what it measures, and that it waits for no answer before it sends again."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from artifacts import Answers, RefusedError
from runtime.loadtest.client import Played, SlowRuns, play
from tests.runtime.hosting.host_worlds import serve


class SlowTarget:
    """Answers one query after the other, each after the same time; refuses some."""

    def __init__(self, answer_s: float, *, refused: int = -1) -> None:
        self.answer_s = answer_s
        self.refused = refused
        self.asked: list[int] = []
        self._busy = asyncio.Lock()

    async def answer(self, query: int) -> tuple[Answers, int]:
        self.asked.append(query)
        if query == self.refused:
            raise RefusedError("full", reason="queue_full")
        async with self._busy:
            await asyncio.sleep(self.answer_s)
        return [np.array([[query]])], query % 2

    def slow_runs(self) -> SlowRuns:
        return SlowRuns(len(self.asked), len(self.asked) * 0.001)


async def play_at(target: SlowTarget, rate: float, count: int, *, misses: int | None = None) -> Played:
    arrivals = np.arange(count) / rate
    return await play(target, arrivals, np.arange(count) % 5, bound_s=0.05, misses=misses)


def test_a_latency_runs_from_when_the_request_was_due() -> None:
    """A server of 20 ms a request at 100 requests a second falls behind by 10 ms with each of them."""

    async def run() -> Played:
        return await play_at(SlowTarget(0.02), 100.0, 20)

    played = serve(run())
    assert (np.diff(played.latency_s) > 0).mean() > 0.9
    assert played.latency_s[-1] > 20 * 0.02 - 19 * 0.01 - 0.005
    assert played.exit_index.tolist() == [query % 5 % 2 for query in range(20)]
    assert sorted(played.answers) == [0, 1, 2, 3, 4]
    assert played.answers[3][0].item() == 3
    assert played.slow.count == 20
    assert played.stood_still, "20 ms were lost"


def test_all_requests_are_sent_before_the_first_is_answered() -> None:
    async def run() -> tuple[int, Played]:
        target = SlowTarget(0.5)
        task = asyncio.create_task(play_at(target, 1000.0, 20, misses=0))
        await asyncio.sleep(0.3)
        sent = len(target.asked)
        return sent, await task

    sent, _ = serve(run())
    assert sent == 20


def test_a_client_that_is_late_counts_as_late() -> None:
    async def run() -> Played:
        target = SlowTarget(0.0)
        loop = asyncio.get_running_loop()
        loop.call_later(0.05, __import__("time").sleep, 0.2)
        return await play_at(target, 100.0, 20)

    played = serve(run())
    assert played.sent_late_s.max() > 0.1
    assert played.latency_s[played.sent_late_s.argmax()] >= played.sent_late_s.max()


def test_a_refused_request_is_missed_and_counted() -> None:
    async def run() -> Played:
        return await play_at(SlowTarget(0.0, refused=3), 500.0, 20)

    played = serve(run())
    assert played.errors == {"RefusedError": 4}
    assert np.isinf(played.latency_s).sum() == 4
    assert played.in_time(10.0) == pytest.approx(16 / 20)


def test_a_stream_that_cannot_pass_any_more_is_broken_off() -> None:
    async def run() -> tuple[SlowTarget, Played]:
        target = SlowTarget(0.0, refused=0)
        return target, await play_at(target, 500.0, 1000, misses=3)

    target, played = serve(run())
    assert played.given_up
    assert len(target.asked) < 100
    assert played.in_time(10.0) < 0.9
