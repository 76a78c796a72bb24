"""The bundle of a small real run: rows leave where the trace says, stages keep their names, engines their number."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from artifacts import BUNDLE_JSON, BundleSpec, GraphSpec, RunFolder, open_model, read_json
from planner import Exits, MeasureConfig, PlanConfig, TimingConfig, evaluate_exits
from tests.planner.dense_worlds import CLASSES, plan

pytestmark = pytest.mark.slow


def test_bundle_leaves_rows_where_the_trace_says(run: RunFolder, tmp_path: Path) -> None:
    """The plan is made from the trace, the answers come from merged stages: row by row they are the same."""
    from calibration import EngineChoice, as_batch, ensure_trace, load_run_data
    from planner import PlanningCase, merge_stages, time_graphs
    from planner.commit.committing import describe_plan, price_plan
    from planner.commit.stages import TimedStages, assemble_bundle, stage_graphs
    from planner.measure.timing import EngineSettings
    from runtime import Runtime

    data = run.root / "data.npz"
    artifact, trace = ensure_trace(run, EngineChoice(backend="onnxruntime", threads=1), data=data)
    model = open_model(run.model, remedy="")
    config = PlanConfig(
        batch_size=8, timing=TimingConfig(batch_sizes=(1, 8), rounds=1, warm_up=0), measure=MeasureConfig(contenders=1)
    )
    case = PlanningCase(run=run, model=model, trace=trace, trace_digest=artifact.digest, config=config)
    middle = [float(np.median(row)) for row in trace.confidence[:-1]]
    chosen = Exits(cuts=trace.exits[:2], thresholds=tuple(middle[:2]))
    stages = merge_stages(model, [chosen, Exits()], tmp_path / "stages")
    graphs = stage_graphs(model, stages)
    itm = time_graphs(graphs, model.spec, run.engines, config.timing, EngineSettings(backend="onnxruntime", threads=1))
    priced = price_plan(trace, chosen, itm, batch_size=8)
    bundle = tmp_path / "bundle"
    assemble_bundle(
        bundle,
        model=model,
        plan=describe_plan(priced, case),
        inputs={},
        stages=TimedStages(merged=stages, itm=itm, cache=run.engines),
    )
    samples = load_run_data(run, data)
    queries, expected = (
        as_batch(samples.inputs(samples.indices_of("calibrate"))),
        evaluate_exits(trace, chosen).leaves_at,
    )
    assert len(set(expected.tolist())) == 3
    with Runtime.load(bundle) as runtime:
        result = runtime.run(queries)
    sure = np.abs(trace.confidence[:2] - np.array(middle[:2])[:, None]).min(axis=0) > 1e-5  # beyond rounding
    np.testing.assert_array_equal(result.exit_index[sure], expected[sure])
    labels = samples.targets(samples.indices_of("calibrate"))
    rows = np.array([0, 1, len(trace.exits)])[expected]
    right = (result.outputs.argmax(axis=1) == labels)[sure]
    np.testing.assert_array_equal(right, trace.metric[rows, np.arange(len(rows))][sure])


def test_merged_stages_have_the_same_name_in_every_plan(made_run: RunFolder, tmp_path: Path) -> None:
    """Or their engines would be compiled again for every planning."""
    from planner import merge_stages

    model = open_model(made_run.model, remedy="")
    first, second = (cut.name for cut in model.spec.candidates[:2])
    alone = merge_stages(model, [Exits(cuts=(second,), thresholds=(0.5,))], tmp_path / "a")
    both = merge_stages(model, [Exits(cuts=(c,), thresholds=(0.5,)) for c in (first, second)], tmp_path / "b")
    assert alone[None, second].onnx.read_bytes() == both[None, second].onnx.read_bytes()
    assert list(both) == sorted(both, key=list(both).index)
    assert len(both) == 4


@pytest.fixture
def bound_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime engines that are bound to the batch sizes that are timed, one graph per size."""
    import engines
    from planner.measure import timing

    def ensure_bound(onnx: Path, graph: GraphSpec, cache: Path, *, backend: str, options: engines.BuildOptions) -> Path:
        bound = dataclasses.replace(options, batch_sizes=(1, 2, 4))
        return engines.ensure_engine(onnx, graph, cache, backend=backend, options=bound)

    monkeypatch.setattr(timing, "ensure_engine", ensure_bound)


@pytest.mark.usefixtures("bound_engines")
@pytest.mark.parametrize("limit", ["engines", "memory"])
def test_a_bundle_holds_no_more_engines_than_it_may(run: RunFolder, tmp_path: Path, limit: str) -> None:
    from runtime import Runtime

    flags = ("--max-engines", "3") if limit == "engines" else ("--memory-mb", "0.02")
    code, found = plan(run, tmp_path, "--tolerance", "0.9", *flags)
    assert code == 0
    bundle = read_json(run.bundle / BUNDLE_JSON, BundleSpec)
    sizes = [tuple(map(int, stage.median_ms)) for stage in bundle.stages]
    assert all(max(own) == 4 for own in sizes)
    built = list((run.bundle / "engines").rglob("*.onnx"))
    assert len(built) == sum(map(len, sizes))
    if limit == "engines":
        assert len(built) <= 3
    else:
        assert sum(path.stat().st_size for path in (run.bundle / "engines").rglob("graph*")) <= 0.02e6
    with Runtime.load(run.bundle) as runtime:
        assert runtime.run(np.random.default_rng(0).random((3, 1, 8, 8), np.float32)).outputs.shape == (3, CLASSES)
    assert found["considered"][0]["measured_mean_ms"] > 0


def test_limits_on_engines_are_refused_where_one_engine_takes_any_batch_size(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = plan(run, tmp_path, "--max-engines", "3")
    assert code == 2
    assert "takes any batch size" in capsys.readouterr().err
