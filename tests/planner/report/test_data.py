"""The data of a report and its captions: worked out from one run, for the load of its plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planner import Load, NetworkCosts
from planner.report.captions import caption_of, faster
from planner.report.data import depths, quantile_of, short_names
from planner.report.gathering import gather_report
from tests.planner.report_worlds import make_report, write_run


def test_captions_follow_the_data() -> None:
    data = make_report()
    first = data.plan.exits[0]
    assert f"{first.leaving_share:.1%} of the queries leave at {first.cut}" in caption_of("cut_graph", data)
    assert f"the accuracy would be {data.trace.metric[0].mean():.1%}" in caption_of("accuracy_by_depth", data)
    assert "98 have" in caption_of("survivors", data)
    found = depths(data)
    perfect = replace(data, trace=replace(data.trace, metric=np.ones_like(data.trace.metric)))
    assert f"{found[0].name} is the first exit that alone keeps" in caption_of("accuracy_by_depth", perfect)
    wrong = np.zeros_like(data.trace.metric)
    wrong[-1] = 1
    hopeless = replace(data, trace=replace(data.trace, metric=wrong))
    assert "No exit alone keeps" in caption_of("accuracy_by_depth", hopeless)
    slower = replace(data.considered[0], searched_mean_ms=2 * data.considered[0].searched_mean_ms)
    behind = replace(data, considered=[slower, data.considered[1]])
    assert "the least expected time within its tolerance" in caption_of("pareto", data)
    assert "measured end to end" in caption_of("pareto", behind)
    assert faster(0.5) == "2.00 times as slow"


def test_short_names_differ_and_keep_what_distinguishes_them() -> None:
    long = tuple(f"/layer{index}/block/Relu_output_0" for index in range(12))
    assert list(short_names(make_report(exits=11, cuts=long).spec).values())[:2] == ["layer0", "layer1"]
    alike = tuple(f"{letter}{'x' * 40}" for letter in "abcd")
    short = list(short_names(make_report(cuts=alike).spec).values())
    assert len(set(short)) == 5
    assert max(map(len, short)) <= 14


def test_quantiles_of_a_distribution() -> None:
    reached = np.array([[0.005, 0.5, 0.995, 1.0], [1.0, 1.0, 1.0, 1.0]])
    assert quantile_of(reached, 0.01).tolist() == [1, 0]
    assert quantile_of(reached, 0.99).tolist() == [2, 0]


LOAD = Load(batch_sizes=(1, 8), shares=(0.96, 0.04))


def reach_share_by_hand(costs: NetworkCosts, cut: str) -> float:
    """The mean query's time to a cut's answer over that of the full network, of the batches of ``LOAD``."""
    until, full = costs.stage_cost(None, cut), costs.stage_cost(None, None)
    single, eight = 0.75, 0.25  # of the queries: 0.96 and 8 * 0.04, scaled to add up to 1
    return float((single * until[1] + eight * until[8]) / (single * full[1] + eight * full[8]))


def test_shares_of_time_are_those_of_the_load(tmp_path: Path) -> None:
    """A plan for a mixture of batch sizes is not described by the prices of full batches."""
    made = make_report(load=LOAD)
    data = gather_report(write_run(tmp_path / "runs" / "small", made))
    assert data.costs.load == LOAD
    for depth in depths(data)[:-1]:
        assert depth.share_of_time == pytest.approx(reach_share_by_hand(data.costs, depth.name))
    first = data.plan.exits[0].cut
    expected = reach_share_by_hand(data.costs, first)
    assert f"which takes {expected:.0%} of the full network's time" in caption_of("cut_graph", data)
    assert f"{expected:.0%}" != f"{data.costs.stage_cost(None, first)[8] / data.costs.stage_cost(None, None)[8]:.0%}"


def test_prices_are_worked_out_once() -> None:
    data = make_report()
    assert data.costs is data.costs


def test_the_metric_has_the_name_that_the_task_gives_it() -> None:
    data = make_report()
    assert (data.task_word, data.metric_word) == ("accuracy", "accuracy")
    foreign = replace(data, spec=replace(data.spec, task="captions"))
    assert foreign.task_word == "metric"
    assert replace(data, task="captions").task_word == "metric"
    assert replace(data, task="pose").task_word == "PCKh@0.5"
    by_agreement = replace(foreign, plan=replace(data.plan, risk="agreement"))
    assert by_agreement.metric_word == "agreement with the full network"
