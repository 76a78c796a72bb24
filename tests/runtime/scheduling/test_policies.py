"""Tables of times, the choice of the next stage, and the switch between chain and pooling, against their formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.scheduling.decisions import Policy, SchedulerConfig, parse_policy
from runtime.scheduling.load import LoadMeter, PoolingSwitch
from runtime.scheduling.policies import Group, PoolingRule, choose_chain, choose_pooled
from runtime.scheduling.tables import StageCosts
from tests.runtime.scheduling.hosts import affine_costs


@given(st.floats(0, 1), st.lists(st.floats(0.3, 1), max_size=3))
def test_the_gain_of_equal_affine_stages_is_the_closed_form(fixed: float, staying: list[float]) -> None:
    largest, stage_count = 64, len(staying) + 1  # large enough that there is always more than one row left
    shares = [math.prod(staying[:stage]) for stage in range(stage_count)]
    table = [0.0, *(fixed + (1 - fixed) * count / largest for count in range(1, largest + 1))]
    costs = StageCosts([table] * stage_count, [*staying, 0.0])
    assert costs.gain == pytest.approx(fixed * stage_count / sum(shares) + 1 - fixed)


def test_the_tables_of_a_small_network_by_hand() -> None:
    costs = StageCosts([[0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 10.0, 11.0, 12.0, 13.0]], [0.5, 0.0])
    assert costs.remaining_s == ((0.0, 11.0, 12.0, 13.5, 15.0), (0.0, 10.0, 11.0, 12.0, 13.0))
    assert costs.work_s == (4 / 4 + 0.5 * 13 / 4, 13 / 4, 0.0)
    assert costs.chain_work_s == (15 / 4, 13 / 4, 0.0)
    assert costs.chain_capacity == 4 / 15
    assert costs.gain == pytest.approx((15 / 4) / (1 + 13 / 8))
    assert costs.efficiency[1] == (0.0, 13 / 40, 2 * 13 / 44, 3 * 13 / 48, 1.0)
    assert costs.group_s(1, 2.5) == 11.5
    assert costs.group_s(1, 0.2) == 10.0
    assert costs.group_s(2, 3) == costs.group_s(0, 0) == 0.0
    assert costs.group_s(0, 99) == 15.0
    assert costs.without_leaving().remaining_s[0] == (0.0, 11.0, 13.0, 15.0, 17.0)


@pytest.mark.parametrize(
    ("run_s", "staying", "message"),
    [
        ([], [], "one table"),
        ([[0.0]], [0.0], "one table"),
        ([[0.0, 1.0], [0.0, 1.0, 2.0]], [0.5, 0.0], "one table"),
        ([[0.0, math.nan]], [0.0], "time the engines"),
        ([[0.0, 0.0]], [0.0], "takes no time"),
        ([[0.0, 1.0]], [0.5], "all rows leave"),
        ([[0.0, 1.0], [0.0, 1.0]], [1.5, 0.0], "share"),
    ],
)
def test_tables_that_cannot_be_are_refused(
    run_s: Sequence[Sequence[float]], staying: Sequence[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        StageCosts(run_s, staying)


def groups_of(draw: st.DrawFn, costs: StageCosts) -> list[Group]:
    stages = draw(st.lists(st.integers(0, costs.stage_count - 1), min_size=1, unique=True))
    return [Group(stage, draw(st.integers(1, 24)), draw(st.floats(0, 0.2))) for stage in sorted(stages)]


@given(st.data())
def test_without_any_time_to_spare_pooling_is_earliest_due_first_where_that_helps(data: st.DataObject) -> None:
    costs = affine_costs(5, 8)
    groups = groups_of(data.draw, costs)
    rule = PoolingRule(costs, math.inf, 9.0)
    chosen = next(g for g in groups if g.stage == choose_pooled(groups, rule, 0.0))
    first = min(groups, key=lambda group: group.due)
    flooded = groups[0].stage == 0 and groups[0].rows > 16
    if len(groups) == 1 or (not flooded and costs.group_s(first.stage, first.rows) <= first.due):
        assert chosen.due == first.due
    else:
        best = max(costs.efficiency[group.stage][min(group.rows, 8)] for group in groups)
        assert costs.efficiency[chosen.stage][min(chosen.rows, 8)] == best
    late = choose_pooled(groups, PoolingRule(costs, 0.0, 9.0), first.due + 9.1)
    assert next(group for group in groups if group.stage == late).due == first.due
    assert choose_chain(groups, 5) == max(group.stage for group in groups)


@given(st.data())
def test_with_time_enough_pooling_runs_what_retires_most_work(data: st.DataObject) -> None:
    costs = affine_costs(5, 8)
    groups = groups_of(data.draw, costs)
    patient = [group._replace(due=group.due + 1e6) for group in groups]
    found = {group.stage: costs.efficiency[group.stage][min(group.rows, 8)] for group in groups}
    best = max(found.values())
    assert choose_pooled(patient, PoolingRule(costs, 0.0, 1.0), 0.0) == max(
        stage for stage, value in found.items() if value == best
    )


@given(st.data())
def test_pooling_never_chooses_what_makes_another_late_if_there_is_another_choice(data: st.DataObject) -> None:
    costs = affine_costs(4, 8)
    groups = groups_of(data.draw, costs)
    margin = data.draw(st.sampled_from((0.0, 0.01)))

    def all_in_time(stage: int) -> bool:
        """Plays the choice: the run, and then every group by itself in the order in which they are due."""
        chosen = next(group for group in groups if group.stage == stage)
        count = min(chosen.rows, 8)
        at = costs.run_s[stage][count]
        for group in sorted(groups, key=lambda group: group.due):
            if group is chosen:
                if stage + 1 < 4:
                    at += costs.group_s(stage + 1, count * 0.5)
                if chosen.rows > 8:
                    at += costs.group_s(stage, chosen.rows - 8)
            else:
                at += costs.group_s(group.stage, group.rows)
            if at + margin > group.due + 1e-12:
                return False
        return True

    chosen = choose_pooled(groups, PoolingRule(costs, margin, 1.0), 0.0)
    possible = [group.stage for group in groups if all_in_time(group.stage)]
    if possible and len(groups) > 1:
        assert chosen in possible


def test_load_is_the_rate_of_what_came_lately() -> None:
    meter = LoadMeter(1.0)
    assert meter.rows_per_s(5.0) == 0.0
    now = 0.0
    for _ in range(4000):
        now += 0.001
        meter.add(2, now)
    assert meter.rows_per_s(now) == pytest.approx(2000, rel=0.03)
    assert meter.rows_per_s(now + 1) == pytest.approx(2000 / math.e, rel=0.03)
    assert meter.rows_per_s(now + 60) < 1e-6
    meter.add(1, now)  # a clock that is behind does not matter


def test_the_first_rows_are_not_taken_for_a_flood() -> None:
    meter = LoadMeter(1.0)
    meter.add(1, 10.0)
    assert meter.rows_per_s(10.0) <= 10
    for step in range(1, 200):
        meter.add(1, 10 + step * 0.01)
    assert meter.rows_per_s(12.0) == pytest.approx(100, rel=0.05)


def test_the_switch_pools_near_the_capacity_only_and_not_at_every_jitter() -> None:
    costs = affine_costs(4, 8)
    assert costs.gain > 1.05
    switch = PoolingSwitch(Policy("auto"), costs, 1.0)
    capacity = costs.chain_capacity
    states = []
    for load in (0.5, 0.84, 0.86, 0.82, 0.79, 0.84, 2.0):
        switch.update(load * capacity, 7)
        states.append(switch.pooling)
    assert states == [False, False, True, True, False, False, True]


def test_the_switch_pools_in_a_burst_until_it_is_over() -> None:
    switch = PoolingSwitch(Policy("auto"), affine_costs(4, 8), 1.0)
    states = []
    for waiting in (15, 16, 8, 7, 15):
        switch.update(0.0, waiting)
        states.append(switch.pooling)
    assert states == [False, True, True, False, False]


@pytest.mark.parametrize(
    ("costs", "slo_s"),
    [
        (affine_costs(4, 8, fixed_s=1e-9, row_s=0.001, staying=1.0), 1.0),  # no gain: the chain wins the tie
        (affine_costs(4, 8), 0.01),  # less than 3 passes
    ],
)
def test_auto_stays_with_the_chain_where_pooling_gains_nothing(costs: StageCosts, slo_s: float) -> None:
    switch = PoolingSwitch(Policy("auto"), costs, slo_s)
    assert not switch.follows_load
    switch.update(1e9, 1000)
    assert not switch.pooling
    assert not PoolingSwitch(Policy("chain"), affine_costs(4, 8), 1.0).follows_load
    assert PoolingSwitch(Policy("pooled"), costs, slo_s).pooling


def test_policies_are_named_by_a_word_and_a_margin() -> None:
    assert parse_policy("auto") == Policy("auto")
    assert parse_policy("pooled") == Policy("pooled", 0.0)
    assert parse_policy("pooled:2.5") == Policy("pooled", 0.0025)


@pytest.mark.parametrize(
    "text", ["", "poled", "chain:3", "pooled:", "pooled:x", "pooled:-1", "pooled:inf", "pooled:nan"]
)
def test_other_words_are_no_policies(text: str) -> None:
    with pytest.raises(ValueError, match="pooled:"):
        parse_policy(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_waiting_rows": 0}, {"slo_s": 0.0}, {"slo_s": math.nan}, {"priorities": 0}, {"ageing_s": -1.0},
        {"load_window_s": 0.0},
    ],
)  # fmt: skip
def test_configurations_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SchedulerConfig(**wrong)  # type: ignore[arg-type]
