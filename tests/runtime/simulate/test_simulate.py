"""The simulated host against closed forms, and ``python -m runtime.simulate`` on a run with a trace."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import TRACE_NPZ, InputError, RunFolder, Trace, UsageError, allowed_processors, new_artifact
from runtime.scheduling.decisions import Policy, SchedulerConfig
from runtime.scheduling.tables import StageCosts
from runtime.simulate.arrivals import make_arrivals
from runtime.simulate.command import main
from runtime.simulate.device import LoopCost, Stream, draw_noise, loop_cost, simulate
from runtime.simulate.goodput import SimulationConfig, find_goodput, play_rate
from tests.runtime.scheduling.hosts import affine_costs


def play(costs: StageCosts, arrivals: Any, exits: Any, policy: str = "chain", **options: Any) -> Any:
    stream = Stream(arrivals_s=np.array(arrivals), exits=np.array(exits), timeout_s=options.pop("timeout_s", None))
    return simulate(costs, SchedulerConfig(policy=Policy(policy), **options), stream, draw_noise(0.0, 0))


def test_a_few_requests_by_hand() -> None:
    costs = StageCosts([[0.0, 1.0, 1.5], [0.0, 2.0, 3.0]], [0.5, 0.0])
    found = play(costs, [0.0, 0.5, 0.6, 9.0], [0, 1, 0, 1])
    # stage 0 over request 0 until 1.0; over 1 and 2 until 2.5; stage 1 over 1 until 4.5; request 3 alone: 9 to 12
    np.testing.assert_allclose(found.latency_s, [1.0, 4.0, 1.9, 3.0])
    assert found.exit_index.tolist() == [0, 1, 0, 1]
    assert (found.runs, found.rows, found.busy_s, found.end_s) == ((3, 2), (4, 2), 7.5, 12.0)
    full = play(costs, [0.0], [0], "full")
    np.testing.assert_allclose(full.latency_s, [3.0])


def test_the_event_loop_takes_its_time_and_that_of_engines_on_all_processors() -> None:
    costs = StageCosts([[0.0, 1.0, 1.5]], [0.0])
    stream = Stream(arrivals_s=np.array([0.0, 0.1, 0.2, 9.0]), exits=np.zeros(4, np.int64))
    rules, exact = SchedulerConfig(policy=Policy("chain")), draw_noise(0.0, 0)
    beside = simulate(costs, rules, stream, exact, LoopCost(request_s=0.2, from_engines=False))
    # heard at 0.2, 0.4, 0.6 and 9.2; request 0 runs until 1.2, then 1 and 2 until 2.7
    np.testing.assert_allclose(beside.latency_s, [1.2, 2.6, 2.5, 1.2])
    shared = simulate(costs, rules, stream, exact, LoopCost(request_s=0.2, from_engines=True))
    # the first run ends by 0.4 later: two requests are heard meanwhile
    np.testing.assert_allclose(shared.latency_s, [1.6, 3.0, 2.9, 1.2])
    assert loop_cost(0.1, 1).from_engines == (allowed_processors() == 1)
    assert loop_cost(0.1, allowed_processors()).from_engines
    assert loop_cost(0.1, 0).from_engines


def test_one_row_at_a_time_is_the_queue_of_the_textbook() -> None:
    """M/D/1: mean latency s + rho s / (2 (1 - rho))."""
    service, load = 0.001, 0.7
    costs = StageCosts([[0.0, service]], [0.0])
    arrivals = make_arrivals("poisson", 20_000, load / service, 3)
    found = play(costs, arrivals, np.zeros(20_000, np.int64), max_waiting_rows=100_000)
    assert found.latency_s.mean() == pytest.approx(service * (1 + load / (2 * (1 - load))), rel=0.08)
    assert found.busy_s / found.end_s == pytest.approx(load, rel=0.02)


def test_a_chain_of_full_batches_reaches_its_capacity() -> None:
    costs = affine_costs(3, 8)
    exits = np.random.default_rng(0).choice([0, 1, 2], 1600, p=[0.5, 0.25, 0.25])
    found = play(costs, np.zeros(1600), exits, max_waiting_rows=1600)
    assert 1 <= 1600 / found.end_s / costs.chain_capacity < 1.06  # every tenth batch has nobody left for stage 2
    pooled = play(costs, np.zeros(1600), exits, "pooled", max_waiting_rows=1600, slo_s=1e6)
    assert 1600 / pooled.end_s == pytest.approx(costs.pooled_capacity, rel=0.03)
    assert costs.gain > 1.3


def test_late_requests_are_dropped_and_the_others_served_at_twice_the_capacity() -> None:
    costs = affine_costs(3, 8)
    exits = np.random.default_rng(0).choice([0, 1, 2], 4000, p=[0.5, 0.25, 0.25])
    for policy in ("chain", "pooled", "auto"):
        arrivals = make_arrivals("poisson", 4000, 2 * costs.chain_capacity, 1)
        found = play(costs, arrivals, exits, policy, timeout_s=0.1, slo_s=0.1, max_waiting_rows=32)
        in_time = found.latency_s <= 0.1
        assert in_time.sum() / found.end_s >= 0.9 * costs.chain_capacity
        assert (np.isfinite(found.latency_s) == (found.exit_index >= 0)).all()


def test_under_overload_the_queue_is_as_short_as_what_enters_has_time() -> None:
    """A launch-bound network, whose capacity halves when slack runs out and stages are not shared any more."""
    table = [0.0, *(0.0009 + 0.00025 * rows / 31 for rows in range(32))]
    costs = StageCosts([table] * 4, [0.55, 0.6, 0.65, 0.0])
    drawn = np.random.default_rng(0).random((30_000, 1))
    exits = (drawn < np.cumprod(costs.staying[:-1])).sum(axis=1)
    config = SimulationConfig(requests=30_000, slo_ms=20)
    for policy, capacity in (("chain", costs.chain_capacity), ("auto", costs.pooled_capacity)):
        found = play_rate(costs, exits, Policy(policy), 2 * capacity, config)
        assert (found.latency_s <= 0.02).sum() / found.end_s >= 0.93 * capacity
    own = replace(config, max_waiting_rows=128)
    found = play_rate(costs, exits, Policy("auto"), 2 * costs.pooled_capacity, own)
    assert (found.latency_s <= 0.02).sum() / found.end_s < 0.8 * costs.pooled_capacity, "a queue of one's own is kept"


@pytest.mark.parametrize("kind", ["poisson", "mmpp", "azure-code", "azure-conv"])
def test_arrivals_have_the_rate_that_was_asked_for(kind: str) -> None:
    times = make_arrivals(kind, 20_000, 400.0, 5)
    assert len(times) == 20_000
    assert (np.diff(times) >= 0).all()
    assert 20_000 / times[-1] == pytest.approx(400, rel=0.5 if kind == "azure-code" else 0.15)
    np.testing.assert_array_equal(times, make_arrivals(kind, 20_000, 400.0, 5))
    gaps = np.diff(times)
    variation = gaps.var() / gaps.mean() ** 2
    low, high = {"poisson": (0.9, 1.1), "mmpp": (1.2, 2.5), "azure-conv": (1.1, 1.3), "azure-code": (100, 300)}[kind]
    assert low < variation < high


def test_arrivals_of_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "gaps.npy", np.array([1.0, 3.0]))
    times = make_arrivals(str(tmp_path / "gaps.npy"), 5, 1.0, 0)
    assert np.diff(times).tolist() in ([0.5, 1.5, 0.5, 1.5], [1.5, 0.5, 1.5, 0.5])


@pytest.mark.parametrize("gaps", [[], [0.0, 0.0], [1.0, -1.0], [1.0, np.nan], [[1.0]], ["a"]])
def test_gaps_that_cannot_be_are_refused(tmp_path: Path, gaps: list[Any]) -> None:
    np.save(tmp_path / "gaps.npy", np.array(gaps))
    with pytest.raises(InputError, match="gaps"):
        make_arrivals(str(tmp_path / "gaps.npy"), 5, 1.0, 0)


def test_processes_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'poisson'"):
        make_arrivals("poison", 5, 1.0, 0)
    with pytest.raises(InputError, match="no file"):
        make_arrivals(str(tmp_path / "none.npy"), 5, 1.0, 0)
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(InputError, match="no array"):
        make_arrivals(str(tmp_path / "text.npy"), 5, 1.0, 0)


def test_the_goodput_is_a_rate_that_meets_the_bound_and_more_does_not() -> None:
    costs = affine_costs(3, 8)
    exits = np.array([0, 0, 1, 2])
    config = SimulationConfig(requests=1500, slo_ms=60)
    rate, best = find_goodput(costs, exits, Policy("chain"), config)
    assert best is not None
    assert 0.3 * costs.chain_capacity < rate < 1.06 * costs.chain_capacity
    assert np.mean(best.latency_s <= 0.06) >= 0.99
    assert np.mean(play_rate(costs, exits, Policy("chain"), 1.2 * rate, config).latency_s <= 0.06) < 0.99
    assert find_goodput(costs, exits, Policy("chain"), SimulationConfig(requests=100, slo_ms=1)) == (0.0, None)


@pytest.fixture
def traced_run(toy_run: Any, tmp_path: Path) -> RunFolder:
    """The toy run with a trace whose rows leave at the exit and at the end in turns."""
    root = Path(shutil.copytree(toy_run.root, tmp_path / "toy"))
    run = RunFolder(root=root)
    cut = json.loads((run.bundle / "bundle.json").read_text())["plan"]["exits"][0]["cut"]
    confidence = np.float32([[1.0, 0.0] * 20, [1.0] * 40])
    ones = np.ones((2, 40), np.float32)
    if run.trace.exists():
        shutil.rmtree(run.trace)
    with new_artifact(run.trace, kind="trace") as staging:
        Trace(exits=(cut,), confidence=confidence, metric=ones, agreement=ones).save(staging / TRACE_NPZ)
    return run


def test_the_command_searches_the_goodput(traced_run: RunFolder, tmp_path: Path, capsys: Any) -> None:
    flags = ["--run", str(traced_run.root), "--requests", "300", "--slo-ms", "50", "--json", str(tmp_path / "out.json")]
    assert main(flags) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert [found["policy"] for found in result["policies"]] == ["full", "chain", "pooled", "auto"]
    assert all(found["rate_per_s"] > 0 and found["answered_in_time"] >= 0.99 for found in result["policies"])
    assert "requests/s" in capsys.readouterr().out


def test_the_command_plays_given_rates(traced_run: RunFolder, tmp_path: Path) -> None:
    flags = ["--bundle", str(traced_run.bundle), "--requests", "300", "--rates", "10,20", "--policies", "pooled:5"]
    assert main([*flags, "--arrivals", "azure-conv", "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())["policies"]
    assert [(case["policy"], case["rate_per_s"]) for case in found] == [("pooled:5", 10), ("pooled:5", 20)]
    assert found[0]["busy"] < found[1]["busy"]


@pytest.mark.parametrize(
    "wrong",
    [
        ["--slo-ms", "0"], ["--slo-ms", "nan"], ["--requests", "0"], ["--policies", "fast"], ["--policies", "chain,"],
        ["--rates", "x"], ["--rates", "-1"], ["--arrivals", "poison"], ["--spread", "-1"], ["--timeout-ms", "0"],
        ["--max-waiting-rows", "0"], ["--overhead-ms", "inf"], ["--request-ms", "-1"],
    ],
)  # fmt: skip
def test_wrong_flags_are_usage_errors(traced_run: RunFolder, wrong: list[str], capsys: Any) -> None:
    assert main(["--run", str(traced_run.root), *wrong]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_trace_of_other_exits_is_refused(traced_run: RunFolder, capsys: Any) -> None:
    shutil.rmtree(traced_run.trace)
    assert main(["--run", str(traced_run.root)]) == 1
    ones = np.ones((2, 4), np.float32)
    with new_artifact(traced_run.trace, kind="trace") as staging:
        Trace(exits=("other",), confidence=ones, metric=ones, agreement=ones).save(staging / TRACE_NPZ)
    assert main(["--run", str(traced_run.root)]) == 1
    assert "lacks the exits" in capsys.readouterr().err
