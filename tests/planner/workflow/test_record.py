"""The record of a planning run: written, read back, and read as 0.1.0 wrote it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from artifacts import SchemaError, from_plain, read_json, to_plain
from planner import ConsideredPlan
from planner.predict.objectives import BATCH, MEAN, P99
from planner.workflow.record import describe_considered
from tests.planner.planning_worlds import make_costs, make_trace, search_jointly

OLD = Path(__file__).parents[2] / "fixtures" / "run_0.1.0" / "plan" / "considered.json"


def test_considered_plans_of_a_released_version_are_read() -> None:
    plans = read_json(OLD, tuple[ConsideredPlan, ...])
    plain = json.loads(OLD.read_text())
    assert len(plans) == len(plain) == 6
    assert to_plain(plans) == plain  # so the keys are the same
    assert plans[0].measured_ms(MEAN) == plain[0]["measured_mean_ms"]
    assert plans[0].measured_ms(P99) == plain[0]["measured_p99_ms"]
    assert plans[0].searched_ms(BATCH) == plain[0]["searched_batch_ms"]
    assert any(plan.label == "no exits" for plan in plans)
    assert sum(plan.reference for plan in plans) == 1


def test_considered_plans_come_back() -> None:
    trace, costs = make_trace(1, exits=4, samples=200), make_costs(1, exits=4, head=0.02)
    result = search_jointly(trace, costs, tolerance=0.1, objective=P99)
    plans = describe_considered(result, None)
    assert [plan.exits for plan in plans] == [plan.exits.cuts for plan in result.considered]
    assert plans[0].searched_ms(P99) == result.best.times.p99_ms
    assert plans[0].measured_mean_ms is None
    assert from_plain(tuple[ConsideredPlan, ...], to_plain(plans)) == plans


def test_a_record_with_a_key_too_few_is_refused() -> None:
    plain = json.loads(OLD.read_text())
    del plain[0]["metric"]
    with pytest.raises(SchemaError, match="metric"):
        from_plain(tuple[ConsideredPlan, ...], plain)
