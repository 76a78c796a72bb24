"""The scheduler over random sequences of events: every request is done once, no place is used twice, and the rest."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.scheduling.decisions import Idle, Policy, Run, SchedulerConfig
from runtime.scheduling.machine import Scheduler
from runtime.scheduling.replay import RecordedScheduler, replay
from tests.runtime.scheduling.hosts import ListHost, affine_costs

POLICIES = ("full", "chain", "pooled", "auto")


@st.composite
def scripts(draw: st.DrawFn) -> dict[str, Any]:
    """A configuration, and events with a choice among whatever is possible then."""
    event = st.tuples(
        st.sampled_from(("submit", "submit", "submit", "step", "step", "step", "cancel", "expire", "fail")),
        st.integers(0, 7),
        st.integers(0, 3),
        st.one_of(st.none(), st.floats(-0.01, 0.1)),
    )
    largest = draw(st.integers(1, 5))
    return {
        "costs": affine_costs(
            draw(st.integers(1, 5)), largest, row_s=draw(st.sampled_from((0.0001, 0.01))), lines=draw(st.integers(1, 3))
        ),
        "config": SchedulerConfig(
            policy=Policy(draw(st.sampled_from(POLICIES)), draw(st.sampled_from((0.0, 0.01)))),
            max_waiting_rows=draw(st.one_of(st.none(), st.integers(1, 3 * largest))),
            slo_s=draw(st.sampled_from((None, 0.001, 0.1))),
            ageing_s=draw(st.sampled_from((None, 0.0, 0.02))),
            refuse_late=draw(st.booleans()),
        ),
        "events": draw(st.lists(event, max_size=40)),
    }


def play(script: dict[str, Any], log: list[str] | None = None) -> ListHost:
    """Plays a script to its end, and then until nothing is left."""
    scheduler = Scheduler(script["costs"], script["config"])
    host = ListHost(scheduler, script["costs"].depth, script["costs"].lines)
    if log is not None:
        recorded: Any = RecordedScheduler(scheduler, log.append)
        for name in ("capacity", "waiting_rows", "open_tickets", "snapshot"):
            assert hasattr(scheduler, name)
        host.scheduler = _Both(scheduler, recorded)  # type: ignore[assignment]
    submitted = 0
    for kind, number, choice, wait in script["events"]:
        host.now += 0.001
        if kind == "submit":
            submitted += 1
            deadline = None if wait is None else host.now + wait
            host.submit(submitted, 1 + number % 4, deadline=deadline, priority=choice)
        elif kind == "step" and host.run is None:
            host.next()
        elif kind == "step":
            host.now += host.run.expected_s if host.run else 0
            host.finish()
        elif kind == "cancel" and host.open:
            host.cancel(list(host.open)[number % len(host.open)])
        elif kind == "expire":
            host.now += 0.01 * choice
            host.expire()
        elif kind == "fail" and host.run is not None:
            host.fail()
        host.check()
    host.run_to_the_end()
    assert len(host.done) + len(host.rejected) == submitted
    assert not host.open
    assert scheduler.waiting_rows == scheduler.open_tickets == 0
    return host


class _Both:
    """Events go to the recording one, questions to the scheduler itself."""

    def __init__(self, scheduler: Scheduler, recorded: RecordedScheduler) -> None:
        self._scheduler, self._recorded = scheduler, recorded

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recorded if hasattr(type(self._recorded), name) else self._scheduler, name)


@given(scripts())
@settings(max_examples=250, deadline=None)
def test_every_request_is_done_once_and_every_row_stands_at_its_place(script: dict[str, Any]) -> None:
    play(script)


def play_busy(seed: int) -> ListHost:
    """Plays a long stretch of overload, with rows of unlike urgency and many who leave."""
    random = Random(seed)
    largest, stages, lines = random.randint(2, 4), random.randint(2, 4), random.randint(1, 3)
    config = SchedulerConfig(
        policy=Policy("pooled"), slo_s=random.choice((0.05, 1.0)), ageing_s=0.05, max_waiting_rows=random.randint(8, 20)
    )
    host = ListHost(Scheduler(affine_costs(stages, largest, lines=lines), config), stages, lines)
    for ticket in range(200):
        host.now += 0.0005
        deadline = random.choice((None, host.now + random.uniform(0.05, 0.5)))
        host.submit(ticket, random.randint(1, 3), priority=random.randint(0, 3), deadline=deadline)
        if random.random() < 0.5:
            if host.run is None:
                host.next()
            elif random.random() < 0.02:
                host.fail()
            else:
                host.now += host.run.expected_s
                host.finish()
        if host.open and random.random() < 0.3:
            host.cancel(random.choice(list(host.open)))
        if random.random() < 0.1:
            host.expire()
        host.check()
    host.run_to_the_end()
    assert len(host.done) + len(host.rejected) == 200
    return host


@given(st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_rows_of_unlike_urgency_stand_at_their_places_under_overload(seed: int) -> None:
    outcomes = {ended.outcome for ended in play_busy(seed).done.values()}
    assert {"answered", "cancelled"} <= outcomes


def test_places_of_the_cancelled_are_used_again_though_their_stage_never_runs() -> None:
    config = SchedulerConfig(policy=Policy("pooled"), slo_s=1e6, max_waiting_rows=8)
    host = ListHost(Scheduler(affine_costs(2, 4, fixed_s=0.1), config), 2)
    ticket = 0
    for _ in range(30):
        while host.scheduler.waiting_rows <= 7:  # always a full batch at the entry
            ticket += 1
            host.submit(ticket, 1)
        run = host.next()
        assert isinstance(run, Run)
        host.finish()
        host.check()
        for ticket_, _ in run.rows:
            if ticket_ in host.open:
                host.cancel(ticket_)
    assert "cancelled" in {ended.outcome for ended in host.done.values()}


@pytest.mark.soak
@pytest.mark.timeout(3600)
@given(scripts())
@settings(max_examples=100_000, deadline=None)
def test_every_request_is_done_once_for_long(script: dict[str, Any]) -> None:
    play(script)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@given(st.integers(0, 2**64))
@settings(max_examples=5_000, deadline=None)
def test_rows_stand_at_their_places_for_long(seed: int) -> None:
    play_busy(seed)


@given(scripts())
@settings(max_examples=60, deadline=None)
def test_a_replay_makes_the_same_decisions(script: dict[str, Any]) -> None:
    log: list[str] = []
    host = play(script, log)
    again = replay(Scheduler(script["costs"], script["config"]), log)
    assert len(again) == len(log) >= len(host.done)
    assert all(event["decision"] == decision for event, decision in again)


def test_a_log_that_does_not_begin_at_the_beginning_is_refused() -> None:
    line = json.dumps({"event": "finished", "arguments": [[0], 1.0], "decision": []})
    with pytest.raises(ValueError, match="from its beginning"):
        replay(Scheduler(affine_costs(2, 4)), [line])
    with pytest.raises(ValueError, match="no event"):
        replay(Scheduler(affine_costs(2, 4)), [json.dumps({"event": "explode", "arguments": []})])


@pytest.mark.parametrize("policy", POLICIES)
def test_a_cancelled_request_frees_its_room_at_once_and_its_neighbours_are_answered(policy: str) -> None:
    config = SchedulerConfig(policy=Policy(policy), max_waiting_rows=8)
    host = ListHost(Scheduler(affine_costs(3, 4), config), 3)
    for ticket in range(1, 5):
        host.submit(ticket, 2)
    host.submit(5, 1)
    assert [found.reason for found in host.rejected] == ["queue_full"]
    host.next()  # tickets 1 and 2
    host.cancel(2)  # runs
    host.cancel(3)  # waits
    host.submit(6, 6)
    assert len(host.rejected) == 1
    host.run_to_the_end()
    assert {ticket: ended.outcome for ticket, ended in host.done.items()} == {
        1: "answered", 2: "cancelled", 3: "cancelled", 4: "answered", 6: "answered",
    }  # fmt: skip


def test_a_request_that_ends_twice_ends_once() -> None:
    host = ListHost(Scheduler(affine_costs(2, 4)), 2)
    host.submit(1, 1)
    host.cancel(1)
    assert host.scheduler.cancel(1, 0.0) == []
    assert host.scheduler.cancel(99, 0.0) == []
    assert host.scheduler.expire(1e9) == []


def test_an_expired_request_frees_its_room_while_a_run_goes_on() -> None:
    host = ListHost(Scheduler(affine_costs(2, 4), SchedulerConfig(max_waiting_rows=4)), 2)
    host.submit(1, 4, deadline=0.05)
    host.next()
    host.submit(2, 4, deadline=0.06)
    host.now = 0.07
    host.expire()
    assert {ticket: ended.outcome for ticket, ended in host.done.items()} == {1: "expired", 2: "expired"}
    host.submit(3, 4)
    assert 3 in host.open
    host.finish()
    host.run_to_the_end()
    assert host.done[3].outcome == "answered"


def test_of_many_that_would_be_late_together_only_so_many_are_dropped_that_the_others_are_not() -> None:
    host = ListHost(Scheduler(affine_costs(1, 8, fixed_s=0.001, row_s=0.001)), 1)
    for ticket in range(8):
        host.submit(ticket, 1, deadline=0.0055)
    host.expire()
    assert len(host.done) == 4  # a run over 4 rows takes 5 ms
    run = host.next()
    assert isinstance(run, Run)
    host.now += run.expected_s
    host.finish()
    assert {ended.outcome for ended in host.done.values()} == {"expired", "answered"}


def test_what_would_be_late_even_alone_is_not_run() -> None:
    host = ListHost(Scheduler(affine_costs(2, 4, fixed_s=0.01)), 2)
    host.submit(1, 1, deadline=0.02)
    host.submit(2, 1, deadline=0.005)
    assert [(found.ticket, found.reason) for found in host.rejected] == [(2, "deadline")]
    host.now = 0.015
    host.expire()
    assert host.done[1].outcome == "expired"


def test_a_request_with_more_rows_than_may_ever_wait_is_not_told_to_come_again() -> None:
    host = ListHost(Scheduler(affine_costs(2, 4), SchedulerConfig(max_waiting_rows=4)), 2)
    host.submit(1, 5)
    assert host.rejected[0].reason == "too_many_rows"


def test_a_late_request_is_refused_where_that_is_asked_for() -> None:
    costs = affine_costs(1, 4, fixed_s=0.01, row_s=0.0001)
    for refuse in (False, True):
        host = ListHost(Scheduler(costs, SchedulerConfig(refuse_late=refuse)), 1)
        host.submit(1, 4)
        host.submit(2, 4)
        host.submit(3, 1, deadline=0.02)  # two batches of 10.4 ms stand before it
        assert [found.reason for found in host.rejected] == (["deadline"] if refuse else [])


def test_priorities_go_first_but_nobody_starves() -> None:
    config = SchedulerConfig(policy=Policy("chain"), ageing_s=0.1, slo_s=1.0, max_waiting_rows=100)
    host = ListHost(Scheduler(affine_costs(1, 2), config), 1)
    host.submit(1, 2, priority=3)
    host.submit(2, 2, priority=1)
    run = host.next()
    assert isinstance(run, Run)
    assert {ticket for ticket, _ in run.rows} == {2}
    host.finish()
    runs = 0
    while 1 in host.open:  # there is always someone more important
        host.now += 0.03
        host.submit(10 + runs, 2, priority=1)
        host.next()
        host.finish()
        runs += 1
    assert 5 <= runs <= 8  # 0.2 s: two levels


def test_priority_and_deadline_order_rows_across_an_arena() -> None:
    config = SchedulerConfig(policy=Policy("pooled"), max_waiting_rows=100, slo_s=1.0)
    costs = affine_costs(2, 4, fixed_s=0.001)
    host = ListHost(Scheduler(costs, config), 2)
    for ticket in range(1, 30):
        host.submit(ticket, 1, priority=1 + ticket % 3, deadline=None if ticket % 2 else host.now + 5)
        host.now += 0.0001
        if ticket % 4 == 0:
            host.next()
            host.finish()
            host.check()
    host.run_to_the_end()
    assert {ended.outcome for ended in host.done.values()} == {"answered"}


def test_draining_admits_no_more_and_finishes_the_rest() -> None:
    host = ListHost(Scheduler(affine_costs(3, 4)), 3)
    host.submit(1, 3)
    host.scheduler.drain(host.now)
    host.submit(2, 1)
    assert host.rejected[0].reason == "draining"
    host.run_to_the_end()
    assert host.done[1].outcome == "answered"


def test_abandoning_fails_everything_and_leaves_room_for_others() -> None:
    host = ListHost(Scheduler(affine_costs(2, 2), SchedulerConfig(max_waiting_rows=4)), 2)
    host.submit(1, 2)
    host.next()
    host.submit(2, 3)
    run, host.run = host.run, None
    host.end(host.scheduler.abandon("the device is lost", host.now))
    assert {ended.error for ended in host.done.values()} == {"the device is lost"}
    assert run is not None
    with pytest.raises(ValueError, match="not under way"):
        host.scheduler.finished(run, [], host.now)
    host.arenas = [[None] * len(arena) for arena in host.arenas]
    host.submit(3, 4)
    host.run_to_the_end()
    assert host.done[3].outcome == "answered"


def test_an_idle_scheduler_says_when_the_next_deadline_passes() -> None:
    scheduler = Scheduler(affine_costs(1, 2))
    assert scheduler.next(0.0) == Idle(None)
    scheduler.submit(1, 1, 5.0, 0, 0.0)
    scheduler.submit(2, 1, 4.0, 0, 0.0)
    run = scheduler.next(0.0)
    assert isinstance(run, Run)
    scheduler.cancel(2, 0.0)
    scheduler.failed(run, "broken", 0.0)
    assert scheduler.next(0.0) == Idle(None)


def test_wrong_reports_are_refused_and_change_nothing() -> None:
    scheduler = Scheduler(affine_costs(2, 4))
    scheduler.submit(1, 2, None, 0, 0.0)
    run = scheduler.next(0.0)
    assert isinstance(run, Run)
    with pytest.raises(ValueError, match="has not come to its end"):
        scheduler.next(0.0)
    with pytest.raises(ValueError, match="no such places"):
        scheduler.finished(run, [2], 0.0)
    scheduler.finished(run, [], 0.0)
    last = scheduler.next(0.0)
    assert isinstance(last, Run)
    with pytest.raises(ValueError, match="all rows leave"):
        scheduler.finished(last, [0], 0.0)
    with pytest.raises(ValueError, match="not under way"):
        scheduler.failed(run, "late", 0.0)
    assert [done.outcome for done in scheduler.finished(last, [0, 1], 0.0)] == ["answered"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((1, 0, None, 0), "at least 1 row"), ((1, 1, float("nan"), 0), "a time"), ((1, 1, None, 4), "1 .highest. to 3"),
     ((7, 1, None, 0), "open already")],
)  # fmt: skip
def test_requests_that_cannot_be_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    scheduler = Scheduler(affine_costs(2, 4))
    scheduler.submit(7, 1, None, 0, 0.0)
    with pytest.raises(ValueError, match=message):
        scheduler.submit(*arguments, 0.0)
    assert scheduler.open_tickets == 1


def test_old_deadlines_of_requests_that_are_done_are_forgotten() -> None:
    scheduler = Scheduler(affine_costs(1, 4))
    for ticket in range(2000):
        scheduler.submit(ticket, 1, 1e6, 0, 0.0)
        scheduler.cancel(ticket, 0.0)
    assert len(scheduler._deadlines) < 100


def test_full_lets_no_row_leave_early() -> None:
    host = ListHost(Scheduler(affine_costs(3, 4), SchedulerConfig(policy=Policy("full"))), 3)
    host.submit(1, 4)
    stages = []
    for _ in range(3):
        run = host.next()
        assert isinstance(run, Run)
        stages.append((run.stage, len(run.rows), run.may_leave))
        host.finish()
    assert stages == [(0, 4, False), (1, 4, False), (2, 4, False)]
    scheduler = Scheduler(affine_costs(2, 4), SchedulerConfig(policy=Policy("full")))
    scheduler.submit(1, 1, None, 0, 0.0)
    run = scheduler.next(0.0)
    assert isinstance(run, Run)
    with pytest.raises(ValueError, match="may leave"):
        scheduler.finished(run, [0], 0.0)
