"""Lines of stages for rows of several lengths: which rows enter together, against brute force, and what they weigh."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.scheduling.decisions import Policy, Run, SchedulerConfig
from runtime.scheduling.lines import join_lines
from runtime.scheduling.machine import Scheduler
from runtime.scheduling.policies import Group, choose_chain
from runtime.scheduling.tables import StageCosts
from tests.runtime.scheduling.hosts import affine_costs


def proportional(lines: int) -> StageCosts:
    return affine_costs(2, 8, fixed_s=1e-6, row_s=0.001, lines=lines)


def launch_bound(lines: int) -> StageCosts:
    return affine_costs(2, 8, fixed_s=0.01, row_s=1e-7, lines=lines)


@pytest.mark.parametrize(
    ("costs", "waiting", "first", "joined"),
    [
        (proportional(3), [7, 0, 1], 2, [2]),  # seven short rows are not padded for one that is long
        (proportional(3), [7, 0, 1], 0, [0]),
        (launch_bound(3), [7, 0, 1], 2, [0, 1, 2]),
        (launch_bound(3), [7, 0, 1], 0, [0, 1, 2]),
        (launch_bound(3), [8, 8, 8], 1, [1]),  # full by itself
        (proportional(1), [5], 0, [0]),
    ],
)
def test_rows_are_padded_where_a_run_costs_more_than_its_positions(
    costs: StageCosts, waiting: list[int], first: int, joined: list[int]
) -> None:
    found = list(join_lines(waiting, first, costs))
    assert [line for line in found if waiting[line]] == [line for line in joined if waiting[line]]


@given(st.data())
def test_the_joined_lines_retire_the_most_work_per_second(data: st.DataObject) -> None:
    lines = data.draw(st.integers(1, 4))
    costs = affine_costs(
        data.draw(st.integers(1, 3)), 6, lines=lines,
        fixed_s=data.draw(st.sampled_from((1e-5, 0.001, 0.1))), row_s=data.draw(st.sampled_from((1e-5, 0.001))),
    )  # fmt: skip
    waiting = data.draw(st.lists(st.integers(0, 9), min_size=lines, max_size=lines).filter(any))
    first = data.draw(st.sampled_from([line for line, rows in enumerate(waiting) if rows]))

    def rate(shortest: int, longest: int) -> float:
        rows = sum(waiting[shortest : longest + 1])
        count = min(rows, 6)
        work = sum(waiting[line] * costs.chain_work_s[line * costs.depth] for line in range(shortest, longest + 1))
        return work * count / rows / costs.remaining_s[longest * costs.depth][count]

    found = join_lines(waiting, first, costs)
    best = max(
        rate(low, high)
        for low in range(first + 1)
        for high in range(first, lines)
        if waiting[low] and waiting[high]
    )  # fmt: skip
    assert first in found
    assert rate(found[0], found[-1]) == pytest.approx(best)


def test_a_run_goes_in_the_line_of_its_longest_row_and_takes_the_most_urgent_rows() -> None:
    scheduler = Scheduler(launch_bound(3), SchedulerConfig(policy=Policy("chain"), max_waiting_rows=20))
    scheduler.submit(1, 3, None, 0, 0.0, [0, 0, 1])
    scheduler.submit(2, 2, None, 1, 0.0, [0, 1])
    scheduler.submit(3, 3, None, 3, 0.0, [2, 2, 0])
    scheduler.submit(4, 2, None, 1, 0.0, [2, 0])
    run = scheduler.next(0.0)
    assert isinstance(run, Run)
    assert run.stage // 2 == 2
    assert sorted(run.rows) == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (3, 0), (4, 0), (4, 1)]
    assert scheduler.snapshot(0.0).waiting_rows == (2, 0)
    scheduler.finished(run, [], 0.1)
    assert scheduler.snapshot(0.1).waiting_rows == (2, 8)
    onward = scheduler.next(0.1)
    assert isinstance(onward, Run)
    assert (onward.stage, len(onward.rows)) == (5, 8)


def test_the_longest_line_is_not_used_where_none_of_its_rows_comes_along() -> None:
    scheduler = Scheduler(affine_costs(1, 2, fixed_s=1.0, row_s=1e-9, lines=2), SchedulerConfig(max_waiting_rows=9))
    scheduler.submit(1, 1, None, 1, 0.0, [0])
    scheduler.submit(2, 1, None, 1, 0.0, [0])
    scheduler.submit(3, 1, None, 3, 0.0, [1])
    run = scheduler.next(0.0)
    assert isinstance(run, Run)
    assert (run.stage, run.rows) == (0, [(1, 0), (2, 0)])


def test_the_chain_goes_on_where_it_is_deepest_in_whatever_line() -> None:
    assert choose_chain([Group(0, 1, 0.0), Group(3, 1, 5.0)], 2) == 3
    assert choose_chain([Group(1, 1, 5.0), Group(2, 1, 0.0)], 2) == 1
    assert choose_chain([Group(0, 1, 5.0), Group(2, 1, 4.0), Group(4, 1, 6.0)], 2) == 2


def test_a_shorter_row_weighs_what_it_costs() -> None:
    costs = affine_costs(2, 8, fixed_s=1e-9, row_s=0.001, lines=3)
    assert costs.weights == pytest.approx((1 / 3, 2 / 3, 1.0), rel=1e-3)
    assert all(low < high for low, high in pairwise(costs.weights))
    assert costs.chain_capacity == pytest.approx(1 / costs.chain_work_s[costs.longest])
    scheduler = Scheduler(costs)
    scheduler.submit(1, 9, None, 0, 0.0, [0] * 9)
    assert scheduler.snapshot(0.0).offered_rows_per_s == pytest.approx(30, rel=1e-3)  # 9 rows of a third, in 0.1 s
    assert scheduler.predicted_wait_s(0.0) == pytest.approx(9 * costs.chain_work_s[0])


@pytest.mark.parametrize("lines", [[], [0], [0, 1, 1], [0, 2], [0, -1]])
def test_rows_without_a_line_of_their_own_are_refused(lines: list[int]) -> None:
    scheduler = Scheduler(affine_costs(2, 4, lines=2))
    with pytest.raises(ValueError, match="from 0 to 1 for each"):
        scheduler.submit(1, 2, None, 0, 0.0, lines)
    assert scheduler.open_tickets == 0


def test_lines_that_cannot_be_are_refused() -> None:
    table = [0.0, 1.0]
    with pytest.raises(ValueError, match="3 stages are not 2 lines"):
        StageCosts([table] * 3, [0.5, 0.5, 0.0], 2)
    with pytest.raises(ValueError, match=r"0\.5 of them"):
        StageCosts([table] * 4, [0.5, 0.5, 0.5, 0.0], 2)
