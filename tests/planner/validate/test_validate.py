"""Validation: judged on the population exactly, equal sets for all methods, and the command around it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import planner.commands.validate
from artifacts import Trace, UsageError
from planner import NO_EXITS, Exits, Load, NetworkCosts, evaluate_exits, expect_times
from planner.commands.main import main
from planner.validate.resampling import MethodRecord, ValidationConfig, plan_per_exit, validate_methods
from tests.planner.foreign.test_importing import run_import
from tests.planner.planning_worlds import make_costs, make_trace

COSTS = make_costs(0, head=0.01)
PLAN = Exits(cuts=("cut0", "cut2"), thresholds=(0.6, 0.7))


def test_truth_is_that_of_the_population() -> None:
    trace = make_trace(1, samples=300)
    config = ValidationConfig(tolerance=0.1, resplits=5, samples=50)
    methods = {"none": lambda *_: (NO_EXITS, {}), "plan": lambda *_: (PLAN, {})}
    none, plan = validate_methods(trace, COSTS, methods, config)
    outcome = evaluate_exits(trace, PLAN)
    np.testing.assert_allclose(plan.loss, 1 - outcome.metric / trace.full_metric)
    expected = expect_times(COSTS.plan_costs(PLAN.cuts), outcome.survival).mean_ms / COSTS.full_ms
    np.testing.assert_allclose(plan.latency_ratio, expected)
    np.testing.assert_allclose(none.loss, 0, atol=1e-12)
    np.testing.assert_allclose(none.latency_ratio, 1)
    assert len(set(plan.held_out_loss.tolist())) > 1
    assert plan.held_out_loss.mean() == pytest.approx(plan.loss[0], abs=0.2)


def test_every_method_plans_on_the_same_sets_and_the_seed_decides() -> None:
    trace = make_trace(2, samples=200)
    seen: dict[str, list[float]] = {"a": [], "b": []}

    def watch(name: str):
        def method(drawn: Trace, seed: int) -> tuple[Exits, dict]:
            seen[name].append(float(drawn.confidence.sum()))
            assert drawn.sample_count == 40
            assert seed == len(seen[name]) - 1
            return NO_EXITS, {}

        return method

    config = ValidationConfig(resplits=4, samples=40, seed=3)
    validate_methods(trace, COSTS, {name: watch(name) for name in seen}, config)
    assert seen["a"] == seen["b"]
    assert len(set(seen["a"])) == 4
    first = list(seen["a"])
    seen["a"].clear()
    validate_methods(trace, COSTS, {"a": watch("a")}, config)
    assert seen["a"] == first


def test_summary_counts_what_exceeds_the_tolerance() -> None:
    loss = np.array([0.0, 0.01, 0.011, 0.2])
    record = MethodRecord(
        method="m",
        loss=loss,
        held_out_loss=loss[::-1] / 2,
        latency_ratio=np.full(4, 0.5),
        exit_count=np.array([0, 1, 2, 1]),
    )
    found = record.summarise(0.01)
    assert found["violation_frequency"] == 0.5
    low, high = found["violation_interval"]
    assert low < 0.5 < high
    assert found["held_out_violation_frequency"] == 0.25
    assert found["mean_metric_ratio"] == pytest.approx(1 - loss.mean())
    assert found["worst_metric_ratio"] == pytest.approx(0.8)
    assert (found["mean_latency_ratio"], found["no_exits_frequency"], found["mean_exits"]) == (0.5, 0.25, 1.0)


def test_per_exit_grid_keeps_the_tolerance_at_each_exit_by_itself() -> None:
    trace = make_trace(5, samples=400)
    plan = plan_per_exit(trace, tolerance=0.1, step=0.05)
    assert len(plan.cuts) > 1
    for cut, threshold in zip(plan.cuts, plan.thresholds, strict=True):
        alone = Exits(cuts=(cut,), thresholds=(threshold,))
        assert evaluate_exits(trace, alone).metric >= 0.9 * trace.full_metric - 1e-9
        bolder = Exits(cuts=(cut,), thresholds=(threshold - 0.05,))
        outcome = evaluate_exits(trace, bolder)
        assert outcome.metric < 0.9 * trace.full_metric or outcome.shares == evaluate_exits(trace, alone).shares


@pytest.mark.parametrize("search", ["joint", "greedy"])
def test_command(search: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="draws a picture: pip install 'pame[report]'")
    run = run_import(tmp_path)
    target, picture = tmp_path / "v.json", tmp_path / "v.png"
    words = ["validate", "--run", str(run.root), "--resplits", "4", "--tolerance", "0.05", "--samples", "600"]
    words += ["--batch-size", "8", "--search", search, "--json", str(target), "--plot", str(picture)]
    assert main(words) == 0
    found = json.loads(target.read_text())
    names = [method["method"] for method in found["methods"]]
    assert len(names) == (4 if search == "joint" else 3)
    assert names[-2:] == ["greedy (the paper's)", "per-exit grid"]
    for method in found["methods"]:
        assert {"violation_frequency", "mean_metric_ratio", "mean_latency_ratio"} <= set(method)
        assert sum(method["loss_histogram"]) == 4
    assert picture.read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert all(name in out for name in names)


def test_a_plan_for_several_batch_sizes_is_validated_for_them(tmp_path: Path, monkeypatch) -> None:
    run, seen = run_import(tmp_path), []
    (tmp_path / "load.csv").write_text("batch_size,share\n1,3\n8,1\n")
    validate = planner.commands.validate.validate_methods

    def watch(population: Trace, costs: NetworkCosts, *rest: object, **options: object):
        seen.append(costs.load)
        return validate(population, costs, *rest, **options)

    monkeypatch.setattr("planner.commands.validate.validate_methods", watch)
    target = tmp_path / "v.json"
    words = ["validate", "--run", str(run.root), "--resplits", "2", "--tolerance", "0.05", "--json", str(target)]
    assert main([*words, "--batch-distribution", str(tmp_path / "load.csv"), "--search", "greedy"]) == 0
    assert seen == [Load(batch_sizes=(1, 8), shares=(0.75, 0.25))]
    assert json.loads(target.read_text())["load"] == {"1": 0.75, "8": 0.25}
    assert main([*words, "--batch-distribution", str(tmp_path / "load.csv"), "--batch-size", "4"]) == 2


def test_plans_are_searched_by_the_rules_that_are_given(tmp_path: Path) -> None:
    run, target = run_import(tmp_path), tmp_path / "v.json"
    words = ["validate", "--run", str(run.root), "--resplits", "2", "--tolerance", "0.1", "--samples", "600"]

    def share_without_exits(*rules: str) -> float:
        assert main([*words, "--batch-size", "8", "--json", str(target), *rules]) == 0
        return float(json.loads(target.read_text())["methods"][0]["no_exits_frequency"])

    assert share_without_exits("--stay-allowance", "0.5") == 0
    assert share_without_exits("--stay-allowance", "0") == 1
    assert share_without_exits("--stay-allowance", "0.5", "--max-exits", "0") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--resplits", "0"), "--resplits"),
        (("--samples", "1"), "--samples"),
        (("--tolerance", "1"), "--tolerance"),
        (("--delta", "2"), "--delta"),
        (("--plot", "x.jpg"), "--plot"),
        (("--batch-size", "64"), "--batch-size"),
        (("--stay-allowance", "-1"), "--stay-allowance"),
    ],
)
def test_usage_errors_exit_with_2(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    run = run_import(tmp_path)
    assert main(["validate", "--run", str(run.root), "--batch-size", "8", *words]) == 2
    assert message in capsys.readouterr().err


def test_config_checks_itself() -> None:
    with pytest.raises(UsageError, match="--tolerance"):
        ValidationConfig(tolerance=float("nan"))
