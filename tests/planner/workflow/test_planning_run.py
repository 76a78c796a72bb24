"""Planning for a small real run through the real engines: from nothing to a bundle, and what changes the plan."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from artifacts import BUNDLE_JSON, BundleSpec, InferenceTimeMatrix, RunFolder, is_current, open_artifact, read_json
from planner.commands.main import main
from planner.predict.matrices import scale_times
from tests.planner.dense_worlds import QUICK, plan

pytestmark = pytest.mark.slow


def test_planning_from_nothing_to_a_bundle(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, found = plan(run, tmp_path, "--tolerance", "0.9")
    assert code == 0
    out = capsys.readouterr().out
    for word in ("threshold", "leave here", "accuracy there", "arrival ms", "full network", "no exits", "bundle:"):
        assert word in out
    shipped = found["plan"]
    assert shipped["predicted_metric"] >= 0.1 * shipped["full_metric"]
    assert [considered["measured_mean_ms"] is not None for considered in found["considered"]][:2] == [True, True]
    assert any(not considered["exits"] and considered["measured_mean_ms"] for considered in found["considered"])
    spec = read_json(run.bundle / BUNDLE_JSON, BundleSpec)
    assert len(spec.stages) == len(shipped["exits"]) + 1
    left = [sum(row) / spec.plan.reference.samples for row in spec.plan.reference.confidence_counts]
    assert left[:-1] == pytest.approx([planned.leaving_share for planned in spec.plan.exits])
    for name in ("exit_plan.json", "bpm.npz", "grid.npz", "considered.json"):
        open_artifact(run.plan, kind="plan", remedy="").path(name)
    assert not list(run.root.glob(".contenders*"))
    _nothing_is_timed_again_when_nothing_changed(run, tmp_path, monkeypatch)
    _another_tolerance_reuses_times_and_grids(run, tmp_path, capsys)
    _it_is_timed_again_elsewhere(run, tmp_path, capsys, monkeypatch)


def _nothing_is_timed_again_when_nothing_changed(run: RunFolder, tmp_path: Path, monkeypatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.root.rglob("*") if path.is_file()}
    with monkeypatch.context() as patched:
        patched.setattr("planner.measure.timing.time_graphs", None)
        patched.setattr("planner.workflow.planning.commit_plan", None)
        code, found = plan(run, tmp_path, "--tolerance", "0.9")
    assert (code, found["reused"]) == (0, True)
    assert {path: path.stat().st_mtime_ns for path in run.root.rglob("*") if path.is_file()} == before


def _it_is_timed_again_elsewhere(run: RunFolder, tmp_path: Path, capsys, monkeypatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.root.rglob("*") if path.is_file()}
    there = read_json(run.itm / "itm.json", InferenceTimeMatrix)
    elsewhere = replace(scale_times(there, 10.0), environment={**there.environment, "cpu": "another one"})
    command, written = ["--retime", "--run", str(run.root)], tmp_path / "retime.json"
    with monkeypatch.context() as patched:
        patched.setattr("planner.workflow.retiming.time_graphs", lambda *_, **__: elsewhere)
        assert main([*command, "--json", str(written)]) == 0
    said, found = capsys.readouterr().err, json.loads(written.read_text())
    assert "cpu has changed:" in said
    assert "engines build --bundle" in said
    assert found["still_fastest"], "ten times as slow, all of it"
    assert found["committed"]["now_ms"] == pytest.approx(10 * found["committed"]["planned_ms"])
    assert {path: path.stat().st_mtime_ns for path in run.root.rglob("*") if path.is_file()} == before
    with pytest.raises(SystemExit):  # it is timed as the plan was asked for
        main([*command, "--tolerance", "0.1"])


def _another_tolerance_reuses_times_and_grids(run: RunFolder, tmp_path: Path, capsys) -> None:
    itm = (run.itm / "itm.json").stat().st_mtime_ns
    capsys.readouterr()
    code, found = plan(run, tmp_path, "--tolerance", "0.5")
    assert (code, found["reused"]) == (0, False)
    assert (run.itm / "itm.json").stat().st_mtime_ns == itm
    said = capsys.readouterr().err
    assert "0 kept from before" not in said
    assert "kept from before" in said
    manifest = open_artifact(run.bundle, kind="bundle", remedy="").manifest
    plan_digest = open_artifact(run.plan, kind="plan", remedy="").digest
    assert manifest.inputs["plan"] == plan_digest == found["plan_digest"]
    assert set(manifest.parameters["data"]) >= {"images", "labels", "indices.test"}


def test_a_sweep_from_nothing_builds_no_bundle(run: RunFolder, tmp_path: Path) -> None:
    code, found = plan(run, tmp_path, "--sweep")
    assert code == 0
    assert found["points"][0]["tolerance"] == 0
    assert {path.name for path in run.root.iterdir()} >= {"trace", "itm", "sweep"}
    assert not run.bundle.exists()
    assert not run.plan.exists()
    times = (run.itm / "itm.json").stat().st_mtime_ns
    assert plan(run, tmp_path, "--sweep")[1] == {**found, "reused": True}
    assert (run.itm / "itm.json").stat().st_mtime_ns == times


def test_a_failed_measurement_leaves_no_trace(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from artifacts import EngineError

    def fail(*_: object, **__: object) -> None:
        raise EngineError("the backend fell over")

    monkeypatch.setattr("planner.commit.committing.measure_plans", fail)
    code, _ = plan(run, tmp_path, "--tolerance", "0.9")
    assert code == 1
    assert "the backend fell over" in capsys.readouterr().err
    assert not run.bundle.exists()
    assert not run.plan.exists()
    assert not list(run.root.glob(".contenders*"))


def test_a_metric_of_zero_exits_with_3(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import calibration.tracing_flow

    ensure = calibration.tracing_flow.ensure_trace

    def wrong(*args: object, **options: object):
        artifact, trace = ensure(*args, **options)
        return artifact, replace(trace, metric=np.zeros_like(trace.metric))

    monkeypatch.setattr("calibration.tracing_flow.ensure_trace", wrong)
    code, _ = plan(run, tmp_path, "--tolerance", "0.1")
    assert code == 3
    assert "metric 0" in capsys.readouterr().err
    assert not is_current(run.plan, kind="plan", inputs={}, parameters={})


def test_planning_for_batches_of_several_sizes(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "load.csv").write_text("batch_size,share\n1,3\n4,1\n")
    arguments = [*QUICK, "--tolerance", "0.9", "--batch-distribution", str(tmp_path / "load.csv"), "--objective", "p99"]
    size = arguments.index("--batch-size")
    code, found = 0, {}
    target = tmp_path / "result.json"
    data = str(run.root / "data.npz")
    code = main(
        ["--run", str(run.root), "--data", data, "--json", str(target), *arguments[:size], *arguments[size + 2 :]]
    )
    found = json.loads(target.read_text())
    assert code == 0
    assert found["plan"]["load"] == {"1": 0.75, "4": 0.25}
    assert (found["plan"]["batch_size"], found["plan"]["objective"]) == (4, "p99")
    assert found["plan"]["predicted"]["p99_ms"] > 0
    assert found["considered"][0]["measured_p99_ms"] >= found["considered"][0]["measured_mean_ms"] * 0.5
    assert main(["--run", str(run.root), *arguments]) == 0  # the same distribution and --batch-size 4 agree
    assert main(["--run", str(run.root), *arguments, "--batch-size", "8"]) == 2
    assert "leave --batch-size out" in capsys.readouterr().err


def test_the_joint_search_is_measured_beside_the_greedy_one(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = plan(run, tmp_path, "--tolerance", "0.9", "--certify", "none")
    assert code == 0
    assert found["plan"]["search"] == "joint"
    (reference,) = [considered for considered in found["considered"] if considered["reference"]]
    assert reference["measured_mean_ms"] is not None
    said = capsys.readouterr()
    assert "beside the greedy search's plan" in said.out
    assert "by the greedy search" in said.err
    code, found = plan(run, tmp_path, "--tolerance", "0.9", "--certify", "none", "--search", "greedy")
    assert found["plan"]["search"] == "greedy"
    assert not any(considered["reference"] for considered in found["considered"])
