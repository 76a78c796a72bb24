"""Arenas on the processor and on a GPU: rows of many requests, moved as the scheduler says, are answered as alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import numpy as np
import pytest

from artifacts import EngineError
from engines import Device, HostDevice, open_device
from runtime.hosting.arenas import Piece, StageArenas, needed_tensors
from runtime.hosting.options import read_costs
from runtime.scheduling.decisions import Admitted, Idle, Run, SchedulerConfig, parse_policy
from runtime.scheduling.machine import Scheduler


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    opened = open_device("onnxruntime" if request.param == "cpu" else "onnxruntime-cuda")
    yield opened
    opened.close()


class Played:
    """A host without a thread or a loop: requests come and go at random between the runs."""

    def __init__(self, net: Any, device: Device, policy: str, seed: int) -> None:
        config = SchedulerConfig(policy=parse_policy(policy), slo_s=0.05, ageing_s=0.01, max_waiting_rows=24)
        sets = net.engine_sets() if isinstance(device, HostDevice) else net.engine_sets_on(device)
        self.net, self.random = net, Random(seed)
        self.scheduler = Scheduler(read_costs(net.spec(), [engines.covers for engines in sets]), config)
        self.arenas = StageArenas(net.spec(), sets, device, capacity=self.scheduler.capacity)
        self.arenas.warm_up(net.max_batch_size)
        self.requests: dict[int, tuple[np.ndarray, ...]] = {}
        self.answers: dict[tuple[int, int], tuple[int, np.float32, np.ndarray]] = {}
        self.arranged = self.now = 0.0

    def play(self, requests: int) -> set[int]:
        """Returns the requests that were answered."""
        answered: set[int] = set()
        submitted, idle = 0, False
        while submitted < requests or not idle:
            for _ in range(self.random.randint(0, 5)):
                if submitted < requests:
                    self.submit(submitted)
                    submitted += 1
            if self.requests and self.random.random() < 0.3:
                victim = self.random.choice(list(self.requests))
                self.scheduler.cancel(victim, self.now)
            run = self.scheduler.next(self.now)
            idle = isinstance(run, Idle)
            if isinstance(run, Idle):
                continue
            for arrangement in run.arrangements:
                self.arranged += 1
                self.arenas.arrange(arrangement.stage, arrangement.places)
            if run.stage == 0:
                self.arenas.enter([Piece(self.requests[ticket], row, row + 1) for ticket, row in run.rows])
            self.arenas.execute(run.stage, len(run.rows))
            left, stayed = self.arenas.split(run.stage, len(run.rows), self.limit(run))
            self.arenas.advance(run.stage, stayed, run.offset)
            confidence, (answers,) = self.arenas.answers(run.stage, left)
            for place, sure, answer in zip(left, confidence, answers, strict=True):
                self.answers[run.rows[place]] = (run.stage, sure, answer)
            self.now += run.expected_s
            for done in self.scheduler.finished(run, left, self.now):
                answered.add(done.ticket)
        return answered

    def limit(self, run: Run) -> float | None:
        if run.stage == self.net.depth - 1:
            return None
        return float(np.float32(self.net.thresholds[run.stage])) if run.may_leave else math.inf

    def submit(self, ticket: int) -> None:
        rows = self.random.randint(1, 3)
        confidence = np.float32([[self.random.choice((0.1, 0.5, 0.9)) for _ in range(self.net.depth)]] * rows)
        confidence[:, 0] = 0.1 * self.random.randint(1, 9)
        x, _ = self.net.batch(confidence)
        x[:, 0] += ticket * 10
        mask = np.array([[self.random.random() < 0.5, True]] * rows)
        found = self.scheduler.submit(ticket, rows, None, self.random.randint(0, 3), self.now)
        if isinstance(found, Admitted):
            self.requests[ticket] = (x, mask)


@pytest.mark.parametrize("policy", ["full", "chain", "pooled", "pooled:5"])
@pytest.mark.parametrize("seed", [1, 2])
def test_every_row_is_answered_as_alone(fake_net: Any, device: Device, policy: str, seed: int) -> None:
    thresholds = (0.8, 0.6, 0.4)
    net = fake_net(thresholds=thresholds, max_batch_size=4)
    played = Played(net, device, policy, seed)
    answered = played.play(60)
    assert len(answered) > 15
    alone = fake_net(thresholds=(2.0, 2.0, 2.0) if policy == "full" else thresholds)
    for ticket in answered:
        x, mask = played.requests[ticket]
        for row in range(len(x)):
            stage, confidence, answer = alone.answer_row(x[row], mask[row])
            found = played.answers[ticket, row]
            assert found[:2] == (stage, confidence)
            np.testing.assert_array_equal(found[2], answer)
    if policy == "pooled":
        assert played.arranged > 5


@pytest.mark.parametrize(
    "places", [[0, 1, 2], [1, 2, 3], [4, 5], [2, 0, 1], [0, 1, 5, 3], [5, 4, 3, 2, 1, 0], [3], [], [0, 2, 4, 5]]
)
def test_places_are_arranged_however_they_overlap(fake_net: Any, device: Device, places: Sequence[int]) -> None:
    net = fake_net(thresholds=(0.5,), max_batch_size=6)
    sets = net.engine_sets() if isinstance(device, HostDevice) else net.engine_sets_on(device)
    arenas = StageArenas(net.spec(), sets, device, capacity=12)
    x, mask = net.batch(np.zeros((6, 2)))
    arenas.enter([Piece((x, mask), 0, 4), Piece((x, mask), 4, 6)])
    arenas.execute(0, 6)
    arenas.advance(0, range(6), 0)
    arenas.arrange(1, places)
    if places:
        arenas.execute(1, len(places))
        _, (answers,) = arenas.answers(1, range(len(places)))
        expected = [net.answer_row(x[place], mask[place])[2] for place in places]
        np.testing.assert_array_equal(answers, expected)


def test_large_rows_enter_piece_by_piece(fake_net: Any, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.hosting.arenas._SMALL_ROW_BYTES", 1)
    net = fake_net(thresholds=())
    sets = net.engine_sets() if isinstance(device, HostDevice) else net.engine_sets_on(device)
    arenas = StageArenas(net.spec(), sets, device, capacity=8)
    x, mask = net.batch(np.zeros((8, 1)))
    arenas.enter([Piece((x, mask), 5, 8), Piece((x, mask), 0, 2)])
    arenas.execute(0, 5)
    _, (answers,) = arenas.answers(0, range(5))
    np.testing.assert_array_equal(answers, [net.answer_row(x[row], mask[row])[2] for row in (5, 6, 7, 0, 1)])


def test_a_stage_keeps_what_it_or_a_later_one_reads_and_nothing_else(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5, 0.5))
    names = [sorted(needed) for needed in needed_tensors(net.spec().stages)]
    assert names == [["mask", "x"], ["h1", "mask", "skip"], ["h2", "mask", "skip"]]


def test_a_fault_of_an_engine_is_passed_on(fake_net: Any, device: Device) -> None:
    net = fake_net(thresholds=(), faults={0: EngineError("broken")})
    sets = net.engine_sets() if isinstance(device, HostDevice) else net.engine_sets_on(device)
    arenas = StageArenas(net.spec(), sets, device, capacity=8)
    with pytest.raises(EngineError, match="broken"):
        arenas.execute(0, 1)


def test_a_bundle_that_warms_up_rests_after_every_run(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5,), masked=False, max_batch_size=4)
    sets, rests = net.engine_sets(), []
    arenas = StageArenas(net.spec(), sets, HostDevice(), capacity=8)
    arenas.warm_up(4, rests.append)
    runs = [rows for fake in net.fakes for rows in fake.batches]
    assert sorted(runs) == [1, 1, 2, 2, 3, 3, 4, 4]
    assert len(rests) == len(runs)
    assert min(rests) >= 0
