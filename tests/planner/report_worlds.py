"""A small planned run without training or timing: as data for a report, and as the folders on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from artifacts import (
    EXIT_PLAN_JSON,
    TRACE_NPZ,
    Artifact,
    Cut,
    ExitPlan,
    GraphSpec,
    ModelSpec,
    RunFolder,
    TensorSpec,
    Trace,
    new_artifact,
    open_artifact,
    read_manifest,
    save_arrays,
    to_plain,
    write_json,
    write_model_spec,
)
from planner import KeptGrids, Load, NetworkCosts, PlanConfig, SearchResult, SlowBatchRule, TimingConfig
from planner.predict.replay import PricedExits
from planner.report.data import ReportData
from planner.search.greedy import draw_candidate_patterns
from planner.search.threshold_grids import threshold_grid
from planner.sweep.points import SearchAt, sweep_levels, sweep_tolerances
from planner.workflow.record import ConsideredPlan, write_grids
from tests.planner.planning_worlds import make_itm, make_problem, make_trace, search_greedily

NASTY = 'a$b$<script>alert("x")</script>&'
TAIL = SlowBatchRule(share=0.0, stay_allowance=None)
X = TensorSpec(name="x", dtype="float32", row_shape=(1,))


def graph(name: str) -> GraphSpec:
    return GraphSpec(name=name, file=f"{name}.onnx", inputs=(X,), outputs=(X,))


def make_spec(cuts: tuple[str, ...], *, name: str = "small") -> ModelSpec:
    return ModelSpec(
        name=name, family="onnx", task="classification", full=graph("full"),
        cuts=tuple(Cut(name=cut, main=X) for cut in cuts),
        segments=tuple(graph(f"segment_{index:02d}") for index in range(len(cuts))),
        final_head=graph("final_head") if cuts else None,
        heads={cut: graph(f"exit_{cut}") for cut in cuts[:-1]}, settings={"source": "small.onnx", "every": 1},
    )  # fmt: skip


def greedy_search(trace: Trace, costs: NetworkCosts) -> SearchAt:
    grids = KeptGrids(thresholds=threshold_grid())

    def search(tolerance: float) -> SearchResult:
        return search_greedily(trace, costs, tolerance=tolerance, grids=grids, slow_batches=TAIL)

    return search


def make_report(
    seed: int = 3, *, exits: int = 3, batch_size: int = 8, tolerance: float = 0.05, cuts: tuple[str, ...] = (),
    name: str = "small", planned: bool = True, load: Load | None = None,
) -> ReportData:  # fmt: skip
    """A report's data from a greedy search; ``cuts`` renames the cuts, ``planned=False`` commits no exits."""
    trace, itm = make_trace(seed, exits=exits, samples=400), make_itm(seed, exits=exits, head=0.05)
    names = cuts or tuple(f"cut{index}" for index in range(exits + 1))
    rename = {f"{kind}_cut{index}": f"{kind}_{cut}" for kind in ("exit", "gather") for index, cut in enumerate(names)}
    itm = replace(
        itm, median_ms={rename.get(row, row): ms for row, ms in itm.median_ms.items()},
        spread_ms={rename.get(row, row): ms for row, ms in itm.spread_ms.items()}, environment={"cpu": "a <fast> one"},
    )  # fmt: skip
    trace = replace(trace, exits=names[:-1])
    costs = NetworkCosts(itm=itm, cuts=names, batch_size=batch_size, mixture=load)
    search = greedy_search(trace, costs)
    result = search(tolerance)
    none = next(plan.priced for plan in result.considered if not plan.exits.cuts)
    best = result.best if planned else none
    plan = ExitPlan(
        model_digest="m", trace_digest="t", search="greedy", tolerance=tolerance, delta=None, batch_size=batch_size,
        backend="onnxruntime", threads=1, exits=best.planned_exits(), full_metric=trace.full_metric,
        predicted_metric=best.outcome.metric, predicted=best.predicted_latency(),
        load={} if load is None else load.to_plain(),
    )  # fmt: skip
    return ReportData(
        spec=make_spec(names, name=name), plan=plan, considered=[describe(best), describe(none)], trace=trace,
        costs=costs, patterns=draw_candidate_patterns(make_problem(trace, costs), tolerance),
        bench_note="Measure with: python -m runtime.bench", environment=itm.environment,
        sweep=sweep_tolerances(search, sweep_levels(trace), full_metric=trace.full_metric),
        commands=("python -m planner --run 'a & b'",), digests={"model": "m"},
    )  # fmt: skip


def describe(priced: PricedExits) -> ConsideredPlan:
    times, recorded = priced.times, priced.recorded
    return ConsideredPlan(
        exits=priced.exits.cuts, thresholds=priced.exits.thresholds, leaving_shares=priced.outcome.shares,
        metric=priced.outcome.metric, arrival_ms=times.arrival_ms, predicted_full_ms=priced.full_ms,
        predicted_mean_ms=times.mean_ms, predicted_batch_ms=times.batch_ms, predicted_p99_ms=None,
        recorded_mean_ms=recorded.mean_ms, recorded_batch_ms=recorded.batch_ms, oracle_mean_ms=priced.oracle_mean_ms,
        searched_mean_ms=times.mean_ms, searched_batch_ms=times.batch_ms, searched_p99_ms=None,
        measured_mean_ms=1.25 * times.mean_ms, measured_batch_ms=1.25 * times.batch_ms, measured_p99_ms=None,
        stay_ratio=1.0, in_time_share=1.0, allowed=True, path=True, reference=False, p_value=None, certified=False,
    )  # fmt: skip


def make_bench(bundle_digest: str = "b") -> dict[str, Any]:
    side = {"metric": 0.9, "p50_ms": 9.0, "p99_ms": 12.0, "batch_ms": 10.0, "throughput_per_s": 100.0}
    return {
        "samples": 200, "batch_size": 8, "rounds": 2, "test_data": "held out", "bundle_digest": bundle_digest,
        "full": {**side, "mean_latency_ms": 10.0}, "early_exit": {**side, "mean_latency_ms": 4.0, "metric": 0.891},
        "speedup_mean": 2.5, "speedup_p99": 1.0, "throughput_ratio": 1.0, "metric_ratio": 0.99, "threads": 1,
        "agreement": 0.98,
        "latency_histogram": {"edges_ms": [0.0, 5.0, 10.0, 15.0], "full": [0.0, 0.6, 0.4], "early_exit": [0.9, 0.1, 0]},
        "environment": {"cpu": "another one"},
    }  # fmt: skip


def write_run(root: Path, data: ReportData) -> RunFolder:
    """Writes model, trace, itm, plan and an empty bundle as the commands write them."""
    run = RunFolder(root=root)
    with new_artifact(run.model, kind="model", parameters={"every": 1, "head": "pooled"}) as folder:
        write_model_spec(folder, data.spec)
    digests = {"model": opened(run.model, "model").digest}
    with new_artifact(run.trace, kind="trace", inputs=digests, parameters={"data_source": "my data"}) as folder:
        data.trace.save(folder / TRACE_NPZ)
    digests["trace"] = opened(run.trace, "trace").digest
    with new_artifact(run.itm, kind="itm", inputs={"model": digests["model"]}) as folder:
        write_json(folder / "itm.json", data.itm)
    digests["itm"] = opened(run.itm, "itm").digest
    sizes = data.itm.batch_sizes
    config = PlanConfig(
        tolerance=data.plan.tolerance, batch_size=sizes[-1], tail=replace(TAIL, stay_allowance=99.0),
        timing=TimingConfig(batch_sizes=sizes), load=data.costs.mixture,
    )  # fmt: skip
    with new_artifact(run.plan, kind="plan", inputs=digests, parameters={"config": to_plain(config)}) as folder:
        write_json(folder / EXIT_PLAN_JSON, data.plan)
        write_json(folder / "considered.json", list(data.considered))
        save_arrays(folder / "bpm.npz", data.patterns.to_arrays())
        write_grids(folder / "grid.npz", KeptGrids(thresholds=threshold_grid()))
    with new_artifact(run.bundle, kind="bundle", inputs=digests):
        pass
    return run


def opened(folder: Path, kind: str) -> Artifact:
    return open_artifact(folder, kind=kind, remedy="")


def bundle_digest(run: RunFolder) -> str:
    return read_manifest(run.bundle).digest
