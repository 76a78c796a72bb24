"""The sweep over tolerances: monotone, the same as single plans, non-dominated points by brute force, its command."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from artifacts import (
    InputError,
    NoPlanError,
    RunFolder,
    Trace,
    UsageError,
    read_manifest,
)
from planner import (
    NO_EXITS,
    Exits,
    KeptGrids,
    Load,
    NetworkCosts,
    PlanConfig,
    SearchResult,
    TimingConfig,
    evaluate_plan,
)
from planner.certify.evidence import risk_trace
from planner.commands.main import main
from planner.predict.objectives import BATCH, MEAN, OBJECTIVES, P99, objective_ms, time_ms
from planner.search.threshold_grids import threshold_grid
from planner.sweep.points import LEVELS, OperatingPoint, mark_efficient, sweep_levels, sweep_tolerances
from planner.sweep.sweeping import ensure_sweep
from planner.workflow.inputs import read_inputs
from planner.workflow.record import reusable_grids, share_grids
from tests.planner.planning_worlds import make_costs, make_trace, search_greedily, search_jointly, traces
from tests.planner.report_worlds import TAIL, greedy_search, make_report, opened, write_run

TOLERANCES = (0.0, 0.01, 0.05, 0.2, 0.5)


@settings(max_examples=80, deadline=None)
@given(traces(max_samples=80), st.integers(0, 2**16), st.sampled_from([1, 4, 8]))
def test_more_tolerance_never_gives_a_slower_plan(trace: Trace, seed: int, batch_size: int) -> None:
    assume(trace.full_metric > 0)
    costs = make_costs(seed, exits=len(trace.exits), batch_size=batch_size, head=0.05)
    sweep = sweep_tolerances(greedy_search(trace, costs), TOLERANCES, full_metric=trace.full_metric)
    assert [point.tolerance for point in sweep.points] == list(TOLERANCES)
    for earlier, later in itertools.pairwise(sweep.points):
        assert later.mean_ms <= earlier.mean_ms
    for point in sweep.points:
        assert point.metric_ratio >= 1 - point.tolerance - 1e-8
        assert point.found_at <= point.tolerance
        assert point.mean_ms <= point.searched_ms
        assert point.speedup == pytest.approx(costs.full_ms / point.mean_ms)


@settings(max_examples=60, deadline=None)
@given(traces(max_samples=60), st.integers(0, 2**16))
def test_a_point_is_the_single_plan_of_its_tolerance(trace: Trace, seed: int) -> None:
    """Stored grids change nothing: each tolerance is searched afresh, and only a faster plan takes its place."""
    assume(trace.full_metric > 0)
    costs = make_costs(seed, exits=len(trace.exits), head=0.05)
    sweep = sweep_tolerances(greedy_search(trace, costs), TOLERANCES, full_metric=trace.full_metric)
    for point in sweep.points:
        fresh = KeptGrids(thresholds=threshold_grid())
        own = search_greedily(trace, costs, tolerance=point.tolerance, grids=fresh, slow_batches=TAIL).best
        assert point.searched_ms == own.times.mean_ms
        source = own
        if point.found_at < point.tolerance:
            assert point.mean_ms < own.times.mean_ms
            source = search_greedily(trace, costs, tolerance=point.found_at, grids=fresh, slow_batches=TAIL).best
        assert (point.exits, point.thresholds) == (source.exits.cuts, source.exits.thresholds)
        assert (point.metric, point.mean_ms) == (source.outcome.metric, source.times.mean_ms)


def test_where_a_search_gets_worse_the_earlier_plan_stays() -> None:
    trace, costs = make_trace(1), make_costs(1)
    search = greedy_search(trace, costs)
    bold, careful = search(0.5), search(0.0)
    assert bold.best.times.mean_ms < careful.best.times.mean_ms

    def fickle(tolerance: float) -> SearchResult:
        return bold if tolerance < 0.1 else careful

    first, second = sweep_tolerances(fickle, (0.05, 0.2), full_metric=trace.full_metric).points
    assert second == replace(first, tolerance=0.2, searched_ms=careful.best.times.mean_ms)
    assert second.found_at == 0.05


def result_of(trace: Trace, costs: NetworkCosts, chosen: Exits) -> SearchResult:
    """A search's answer with every time worked out, the plan without exits behind it."""
    found = search_jointly(trace, costs, tolerance=0.3, objective=P99, slow_batches=TAIL)
    plans = [
        evaluate_plan(trace, exits, costs.plan_costs(exits.cuts), full_ms=costs.full_ms, percentile=True)
        for exits in (chosen, NO_EXITS)
    ]
    considered = [replace(found.considered[0], priced=figures) for figures in plans]
    return replace(found, considered=tuple(considered))


@pytest.mark.parametrize("objective", [P99, BATCH])
def test_points_are_compared_by_the_objective(objective: str) -> None:
    """Of two plans, found in either order, the first is better by the mean and the second by the objective."""
    trace, costs = make_trace(33, samples=200), make_costs(33, head=0.05)
    by_mean, by_objective = (
        result_of(trace, costs, search_jointly(trace, costs, tolerance=0.3, objective=by, slow_batches=TAIL).best.exits)
        for by in (MEAN, objective)
    )
    assert by_mean.best.times.mean_ms < by_objective.best.times.mean_ms
    assert objective_ms(by_mean.best.times, objective) > objective_ms(by_objective.best.times, objective)
    full_ms = costs.full_ms
    for asked, better, other in ((MEAN, by_mean, by_objective), (objective, by_objective, by_mean)):
        for answers in ([better, other], [other, better]):
            found = dict(zip((0.3, 0.4), answers, strict=True))
            sweep = sweep_tolerances(found.__getitem__, found, full_metric=trace.full_metric, objective=asked)
            last = sweep.points[-1]
            assert (sweep.objective, last.exits) == (asked, better.best.exits.cuts)
            assert last.found_at == (0.3 if answers[0] is better else 0.4)
            assert sweep.time_ms(last) == time_ms(better.best.times, asked)
            assert last.speedup == pytest.approx(full_ms / time_ms(better.best.times, asked))
            assert last.searched_ms == time_ms(answers[1].best.times, asked)


def test_a_search_without_the_percentile_cannot_be_swept_by_it() -> None:
    trace, costs = make_trace(1), make_costs(1)
    with pytest.raises(UsageError, match="percentile"):
        sweep_tolerances(greedy_search(trace, costs), (0.05,), full_metric=trace.full_metric, objective=P99)
    with pytest.raises(UsageError, match="Did you mean 'mean'"):
        sweep_tolerances(greedy_search(trace, costs), (0.05,), full_metric=trace.full_metric, objective="men")


def point(metric: float, mean_ms: float, batch_ms: float = 1.0, p99_ms: float = 1.0) -> OperatingPoint:
    return OperatingPoint(
        tolerance=0,
        exits=(),
        thresholds=(),
        leaving_shares=(1.0,),
        metric=metric,
        metric_ratio=metric,
        mean_ms=mean_ms,
        batch_ms=batch_ms,
        p99_ms=p99_ms,
        speedup=1,
        found_at=0,
        searched_ms=mean_ms,
        efficient=False,
    )


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), min_size=1, max_size=12), st.sampled_from(OBJECTIVES))
def test_efficient_points_by_brute_force(pairs: list[tuple[int, int]], objective: str) -> None:
    """By the objective's time alone; the other times are the other way round."""
    times = [{f"{name}_ms": ms if name == objective else 9 - ms for name in OBJECTIVES} for _, ms in pairs]
    if objective == P99:  # of equal percentiles the smaller mean counts
        times = [{**each, "mean_ms": 1.0} for each in times]
    points = [point(metric, **each) for (metric, _), each in zip(pairs, times, strict=True)]
    for (metric, ms), marked in zip(pairs, mark_efficient(points, objective), strict=True):
        better = [pair for pair in pairs if pair != (metric, ms) and pair[0] >= metric and pair[1] <= ms]
        assert marked.efficient == (not better)


def test_the_whole_range_ends_where_all_samples_may_leave_anywhere() -> None:
    trace = make_trace(0, exits=3, samples=500)
    levels = sweep_levels(trace)
    most = 1 - trace.metric[:-1].mean(axis=1).min() / trace.full_metric
    assert levels == LEVELS[: len(levels)]
    assert levels[-2] < most <= levels[-1]
    assert sweep_levels(make_trace(0, exits=0)) == (0.0,)


def test_tolerances_without_a_plan_are_listed_with_the_reason() -> None:
    trace, costs = make_trace(0), make_costs(0)
    search = greedy_search(trace, costs)

    def strict(tolerance: float) -> SearchResult:
        if tolerance < 0.01:
            raise NoPlanError(f"{tolerance:g} needs more samples")
        return search(tolerance)

    sweep = sweep_tolerances(strict, (0.0, 0.005, 0.05), full_metric=trace.full_metric)
    assert [point.tolerance for point in sweep.points] == [0.05]
    assert [(refusal.tolerance, refusal.reason) for refusal in sweep.refused] == [
        (0.0, "0 needs more samples"),
        (0.005, "0.005 needs more samples"),
    ]
    with pytest.raises(NoPlanError, match=r"0\.005 needs"):
        sweep_tolerances(strict, (0.0, 0.005), full_metric=trace.full_metric)


@pytest.mark.parametrize("tolerances", [(0.1, 0.1), (0.2, 0.1), (-0.1,), (1.0,), ()])
def test_tolerances_must_ascend_within_0_and_1(tolerances: tuple[float, ...]) -> None:
    trace = make_trace(0)
    with pytest.raises(InputError, match="tolerance"):
        sweep_tolerances(greedy_search(trace, make_costs(0)), tolerances, full_metric=trace.full_metric)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return write_run(tmp_path / "runs" / "small", make_report())


CONFIG = PlanConfig(batch_size=8, timing=TimingConfig(batch_sizes=(1, 2, 4, 8)))


def test_a_sweep_is_stored_with_its_grids_and_changes_nothing_else(run: RunFolder, monkeypatch) -> None:
    before = {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()}
    sweep, reused = ensure_sweep(read_inputs(run), CONFIG)
    assert not reused
    assert {path: path.read_bytes() for path in before} == before
    assert {path.parent for path in run.root.rglob("*") if path.is_file()} - {path.parent for path in before} == {
        run.sweep
    }
    evaluated: list[Any] = []
    monkeypatch.setattr("planner.search.threshold_grids.evaluate_grid", lambda *arguments: evaluated.append(arguments))
    assert ensure_sweep(read_inputs(run), CONFIG) == (sweep, True)
    levels = [point.tolerance for point in sweep.points][:3]
    again, reused = ensure_sweep(read_inputs(run), replace(CONFIG, tolerance=0.3), levels)
    assert (reused, evaluated) == (False, [])
    assert [point.mean_ms for point in again.points] == [point.mean_ms for point in sweep.points[:3]]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_sweep_goes_by_the_config(run: RunFolder, objective: str) -> None:
    """Objective, load and risk are those of the plan, whatever was swept before."""
    ensure_sweep(read_inputs(run), CONFIG, (0.0, 0.1))
    load = Load(batch_sizes=(2, 8), shares=(0.7, 0.3))
    certify = replace(CONFIG.certify, risk="agreement")
    config = replace(CONFIG, objective=objective, load=load, certify=certify, tail=TAIL)
    inputs = read_inputs(run)
    sweep, reused = ensure_sweep(inputs, config, (0.05, 0.1))
    assert (reused, sweep.objective, sweep.full_metric) == (False, objective, 1.0)
    trace = risk_trace(inputs.trace, "agreement")
    costs = NetworkCosts(itm=inputs.itm, cuts=("cut0", "cut1", "cut2", "cut3"), batch_size=8, mixture=load)
    none = evaluate_plan(trace, NO_EXITS, costs.plan_costs(()), full_ms=costs.full_ms, load=load, percentile=True)
    assert sweep.full_ms == time_ms(none.times, objective)
    for point in sweep.points:
        best = search_jointly(trace, costs, tolerance=point.found_at, objective=objective, slow_batches=TAIL).best
        assert (point.exits, sweep.time_ms(point)) == (best.exits.cuts, time_ms(best.times, objective))


def test_stored_grids_of_another_risk_are_not_used(run: RunFolder) -> None:
    """They hold sums of the metric, which differs between risks."""
    config = replace(CONFIG, search="greedy")
    ensure_sweep(read_inputs(run), config, (0.0, 0.1))
    asked = replace(config, certify=replace(config.certify, risk="agreement"))
    found, _ = ensure_sweep(read_inputs(run), asked, (0.1,))
    shutil.rmtree(run.sweep)
    assert ensure_sweep(read_inputs(run), asked, (0.1,))[0] == found
    assert found.points[0].metric_ratio >= 0.9
    trace, grids = opened(run.trace, "trace"), reusable_grids(run, opened(run.trace, "trace"), asked)
    assert share_grids(read_manifest(run.plan), trace, config)
    assert not share_grids(read_manifest(run.plan), trace, asked)
    assert not grids.grids


def test_another_config_is_swept_again(run: RunFolder) -> None:
    ensure_sweep(read_inputs(run), CONFIG, (0.0, 0.1))
    assert ensure_sweep(read_inputs(run), replace(CONFIG, tolerance=0.2), (0.0, 0.1))[1]
    assert not ensure_sweep(read_inputs(run), replace(CONFIG, grid_step=0.1), (0.0, 0.1))[1]


def test_the_command(run: RunFolder, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("planner.commands.sweep.ensure_inputs", lambda run, config, **_: read_inputs(run))
    target = tmp_path / "sweep.json"
    arguments = ["--run", str(run.root), "--batch-size", "8", "--threads", "1", "--json", str(target)]
    assert main([*arguments, "--sweep"]) == 0
    out, err = capsys.readouterr()
    assert "times as fast" in out
    assert "no bundle was built" in err
    found = json.loads(target.read_text())
    assert set(found) == {
        "run",
        "reused",
        "risk",
        "search",
        "batch_size",
        "engine",
        "threads",
        "objective",
        "full_metric",
        "full_ms",
        "points",
        "refused",
    }
    assert set(found["points"][0]) == {
        "tolerance",
        "exits",
        "thresholds",
        "leaving_shares",
        "metric",
        "metric_ratio",
        "mean_ms",
        "batch_ms",
        "p99_ms",
        "speedup",
        "found_at",
        "searched_ms",
        "efficient",
    }
    assert len(found["points"]) == len(sweep_levels(read_inputs(run).trace))
    assert main([*arguments, "--sweep", "0.2,0.01"]) == 0
    assert [point["tolerance"] for point in json.loads(target.read_text())["points"]] == [0.01, 0.2]


def test_wrong_tolerances_exit_with_2(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run", str(run.root), "--sweep", "0.1,1.5"]) == 2
    assert "--sweep 1.5: expected relative losses from 0 to below 1" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["--run", str(run.root), "--sweep", "much"])
    assert "expected tolerances with commas" in capsys.readouterr().err
