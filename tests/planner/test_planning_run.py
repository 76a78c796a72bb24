"""Planning for a small real run through the real engines: a network of dense layers written by hand."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import planner
from artifacts import (
    BUNDLE_JSON,
    BundleSpec,
    Cut,
    GraphSpec,
    ModelSpec,
    RunFolder,
    TensorSpec,
    is_current,
    new_artifact,
    open_artifact,
    open_model,
    read_json,
    write_model_spec,
)
from planner import ChosenExits, MeasureConfig, PlanConfig, TimingConfig, evaluate_exits
from planner.cli import main

pytestmark = pytest.mark.slow
QUICK = (
    "--batch-size", "4", "--threads", "1", "--rounds", "3", "--contenders", "1",
    "--tail-share", "0", "--stay-allowance", "9", "--certify", "none",
)  # fmt: skip
WIDTH, CLASSES = 12, 3


def write_graph(folder: Path, name: str, source: TensorSpec, *, layers: int, seed: int, head: bool) -> GraphSpec:
    """Writes dense layers with ReLU, and with ``head`` an answer with its confidence, as one ONNX file."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, value = [helper.make_node("Flatten", [source.name], [f"{name}.flat"])], [], f"{name}.flat"
    width = int(np.prod(source.row_shape))
    for layer in range(layers):
        out = f"h{seed + layer}"
        weight = np.random.default_rng(seed + layer).standard_normal((width, WIDTH)) / np.sqrt(width) * 2
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"w{seed + layer}"))
        nodes += [
            helper.make_node("MatMul", [value, f"w{seed + layer}"], [f"{out}.sum"]),
            helper.make_node("Relu", [f"{out}.sum"], [out]),
        ]
        value, width = out, WIDTH
    outputs = [TensorSpec(name=value, dtype="float32", row_shape=(WIDTH,))]
    if head:
        weight = np.random.default_rng(100 + seed + layers).standard_normal((width, CLASSES)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"{name}.w"))
        nodes += [
            helper.make_node("MatMul", [value, f"{name}.w"], [f"{name}.logits"]),
            helper.make_node("Softmax", [f"{name}.logits"], [f"{name}.shares"], axis=1),
            helper.make_node("ReduceMax", [f"{name}.shares"], [f"{name}.confidence"], axes=[1], keepdims=0),
        ]
        outputs = [
            TensorSpec(name=f"{name}.logits", dtype="float32", row_shape=(CLASSES,)),
            TensorSpec(name=f"{name}.confidence", dtype="float32", row_shape=()),
        ]

    def typed(spec: TensorSpec) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, ["batch", *spec.row_shape])

    graph = helper.make_graph(nodes, name, [typed(source)], [typed(spec) for spec in outputs], weights)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=opsets), folder / f"{name}.onnx")
    return GraphSpec(
        name=name, file=f"{name}.onnx", inputs=(source,), outputs=tuple(outputs),
        answers=(f"{name}.logits",) if head else (), confidence=f"{name}.confidence" if head else None,
    )  # fmt: skip


@pytest.fixture(scope="session")
def made_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with model and data: a dense network of four layers with three exits, all of random weights."""
    for name in ("torch", "onnx", "onnx_ir", "onnxruntime"):
        pytest.importorskip(name, reason="traces and merges a network: pip install 'pame[train]'")
    run = RunFolder(root=tmp_path_factory.mktemp("runs") / "small")
    x = TensorSpec(name="x", dtype="float32", row_shape=(1, 8, 8))
    hidden = [TensorSpec(name=f"h{i}", dtype="float32", row_shape=(WIDTH,)) for i in range(4)]
    with new_artifact(run.model, kind="model") as folder:
        sources = [x, *hidden]
        segments = [write_graph(folder, f"segment_{i:02d}", sources[i], layers=1, seed=i, head=False) for i in range(4)]
        heads = {
            f"h{i}": write_graph(folder, f"exit_h{i}", hidden[i], layers=0, seed=i + 1, head=True) for i in range(3)
        }
        spec = ModelSpec(
            name="small", family="onnx", task="classification",
            full=write_graph(folder, "full", x, layers=4, seed=0, head=True),
            cuts=tuple(Cut(name=spec.name, main=spec) for spec in hidden), segments=tuple(segments), heads=heads,
            final_head=write_graph(folder, "final_head", hidden[3], layers=0, seed=4, head=True),
        )  # fmt: skip
        write_model_spec(folder, spec)
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (300, 8, 8)).astype(np.uint8), random.integers(0, CLASSES, 300)
    np.savez(run.root / "data.npz", images=images, labels=labels)
    return run


@pytest.fixture
def run(made_run: RunFolder, tmp_path: Path) -> RunFolder:
    shutil.copytree(made_run.root, tmp_path / "small")
    return RunFolder(root=tmp_path / "small")


def plan(run: RunFolder, tmp_path: Path, *arguments: str) -> tuple[int, dict]:
    target = tmp_path / "result.json"
    target.unlink(missing_ok=True)
    data = str(run.root / "data.npz")
    code = main(["--run", str(run.root), "--data", data, "--json", str(target), *QUICK, *arguments])
    return code, json.loads(target.read_text()) if target.exists() else {}


def test_planning_from_nothing_to_a_bundle(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, found = plan(run, tmp_path, "--tolerance", "0.9")
    assert code == 0
    out = capsys.readouterr().out
    for word in ("threshold", "leave here", "precision there", "arrival ms", "full network", "no exits", "bundle:"):
        assert word in out
    shipped = found["plan"]
    assert shipped["predicted_metric"] >= 0.1 * shipped["full_metric"]
    assert [one["measured_mean_ms"] is not None for one in found["considered"]][:2] == [True, True]
    assert any(not one["exits"] and one["measured_mean_ms"] for one in found["considered"])
    spec = read_json(run.bundle / BUNDLE_JSON, BundleSpec)
    assert len(spec.stages) == len(shipped["exits"]) + 1
    left = [sum(row) / spec.plan.reference.samples for row in spec.plan.reference.confidence_counts]
    assert left[:-1] == pytest.approx([planned.leaving_share for planned in spec.plan.exits])
    for name in ("exit_plan.json", "bpm.npz", "grid.npz", "considered.json"):
        open_artifact(run.plan, kind="plan", remedy="").path(name)
    assert not list(run.root.glob(".contenders*"))
    _nothing_is_timed_again_when_nothing_changed(run, tmp_path, monkeypatch)
    _another_tolerance_reuses_times_and_grids(run, tmp_path, capsys)


def _nothing_is_timed_again_when_nothing_changed(run: RunFolder, tmp_path: Path, monkeypatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.root.rglob("*") if path.is_file()}
    with monkeypatch.context() as patched:
        patched.setattr("planner.timing.time_graphs", None)
        patched.setattr("planner.flow.commit_plan", None)
        code, found = plan(run, tmp_path, "--tolerance", "0.9")
    assert (code, found["reused"]) == (0, True)
    assert {path: path.stat().st_mtime_ns for path in run.root.rglob("*") if path.is_file()} == before


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


CERTIFIED = ("--certify", "ltt", "--delta", "0.4", "--grid-step", "0.02")


@pytest.fixture
def heavy_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the last segment took nearly all of the time, in the matrix and in the measurement of the plans."""
    import planner.flow

    ensure = planner.flow.ensure_itm

    def timed(*args: object, **options: object):
        artifact, itm = ensure(*args, **options)
        rows = {
            name: (1.0 if name in ("segment_03", "full") else 0.01,) * len(row) for name, row in itm.median_ms.items()
        }
        return artifact, replace(itm, median_ms=rows)

    def measured(serves: list, *_: object, **__: object):
        in_order = np.arange(1.0, len(serves) + 1)
        return np.column_stack([in_order, in_order, in_order, np.ones(len(serves))]), 1

    monkeypatch.setattr("planner.flow.ensure_itm", timed)
    monkeypatch.setattr("planner.commit.measure_plans", measured)


@pytest.mark.usefixtures("heavy_end")
def test_a_certified_plan_carries_its_certificate(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = plan(run, tmp_path, "--tolerance", "0.9", *CERTIFIED)
    assert code == 0
    out = capsys.readouterr().out
    assert "certificate: relative loss of the metric at most 0.9, except with probability 0.4" in out
    shipped = found["plan"]
    certificate = shipped["certificate"]
    assert (shipped["delta"], certificate["delta"], certificate["bound"]) == (0.4, 0.4, 0.9)
    assert certificate["p_value"] <= 0.4
    assert certificate["tuning_digest"] != certificate["certification_digest"]
    spec = read_json(run.bundle / BUNDLE_JSON, BundleSpec)
    assert spec.plan.certificate is not None
    assert shipped["exits"]
    passed = [one for one in found["certification"]["sequence"] if one["certified"]]
    assert [one["cut"] for one in shipped["exits"]] in [one["exits"] for one in passed]
    for one in found["considered"]:
        assert one["certified"] is one["allowed"]
    code, again = plan(run, tmp_path, "--tolerance", "0.9", *CERTIFIED)
    assert (code, again["reused"], again["certification"]) == (0, True, found["certification"])


@pytest.mark.usefixtures("heavy_end")
def test_too_few_samples_ship_the_network_without_exits_and_say_so(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = plan(run, tmp_path, "--tolerance", "0.01", "--certify", "ltt")
    assert code == 0
    assert found["plan"]["exits"] == []
    assert found["plan"]["certificate"]["method"] == "no exits"
    captured = capsys.readouterr()
    assert "certificate: without exits nothing is lost" in captured.out
    assert "can be certified" in found["certification"]["note"]
    assert found["certification"]["note"] in captured.err


@pytest.mark.usefixtures("heavy_end")
def test_agreement_certifies_without_the_labels(run: RunFolder, tmp_path: Path) -> None:
    code, found = plan(run, tmp_path, "--tolerance", "0.9", "--risk", "agreement", *CERTIFIED)
    assert code == 0
    assert found["plan"]["exits"]
    assert found["plan"]["full_metric"] == 1
    assert found["plan"]["certificate"]["risk"] == "agreement"


def test_bundle_leaves_rows_where_the_trace_says(run: RunFolder, tmp_path: Path) -> None:
    """The plan is made from the trace, the answers come from merged stages: row by row they are the same."""
    from calibration import ensure_trace, load_run_data
    from planner import PlanningCase, merge_stages, time_graphs
    from planner.bundle import assemble_bundle, stage_graphs
    from planner.commit import describe_plan, price_plan
    from runtime import Runtime

    data = run.root / "data.npz"
    artifact, trace = ensure_trace(run, backend="onnxruntime", threads=1, data=data)
    model = open_model(run.model, remedy="")
    config = PlanConfig(
        batch_size=8, timing=TimingConfig(batch_sizes=(1, 8), rounds=1, warm_up=0), measure=MeasureConfig(contenders=1)
    )
    case = PlanningCase(run=run, model=model, trace=trace, trace_digest=artifact.digest, config=config)
    middle = [float(np.median(row)) for row in trace.confidence[:-1]]
    chosen = ChosenExits(cuts=trace.exits[:2], thresholds=tuple(middle[:2]))
    stages = merge_stages(model, [chosen, ChosenExits()], tmp_path / "stages")
    graphs = stage_graphs(model, stages)
    itm = time_graphs(graphs, model.spec, run.engines, config.timing, backend="onnxruntime", threads=1)
    figures = price_plan(trace, chosen, itm, batch_size=8)
    bundle = tmp_path / "bundle"
    assemble_bundle(
        bundle, model=model, plan=describe_plan(figures, case), stages=stages, itm=itm, cache=run.engines, inputs={}
    )
    dataset = load_run_data(run, data)
    queries, expected = dataset.inputs(dataset.split("calibrate")), evaluate_exits(trace, chosen).leaves_at
    assert len(set(expected.tolist())) == 3
    with Runtime.load(bundle) as runtime:
        result = runtime.run(queries)
    sure = np.abs(trace.confidence[:2] - np.array(middle[:2])[:, None]).min(axis=0) > 1e-5  # beyond rounding
    np.testing.assert_array_equal(result.exit_index[sure], expected[sure])
    labels = dataset.labels[dataset.split("calibrate")]
    rows = np.array([0, 1, len(trace.exits)])[expected]
    right = (result.outputs.argmax(axis=1) == labels)[sure]
    np.testing.assert_array_equal(right, trace.metric[rows, np.arange(len(rows))][sure])


def test_merged_stages_have_the_same_name_in_every_plan(made_run: RunFolder, tmp_path: Path) -> None:
    """Or their engines would be compiled again for every planning."""
    from planner import merge_stages

    model = open_model(made_run.model, remedy="")
    first, second = (cut.name for cut in model.spec.candidates[:2])
    one = merge_stages(model, [ChosenExits(cuts=(second,), thresholds=(0.5,))], tmp_path / "a")
    two = merge_stages(model, [ChosenExits(cuts=(c,), thresholds=(0.5,)) for c in (first, second)], tmp_path / "b")
    assert one[None, second].onnx.read_bytes() == two[None, second].onnx.read_bytes()
    assert list(two) == sorted(two, key=list(two).index)
    assert len(two) == 4


def test_a_failed_measurement_leaves_no_trace(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from artifacts import EngineError

    def fail(*_: object, **__: object) -> None:
        raise EngineError("the backend fell over")

    monkeypatch.setattr("planner.commit.measure_plans", fail)
    code, _ = plan(run, tmp_path, "--tolerance", "0.9")
    assert code == 1
    assert "the backend fell over" in capsys.readouterr().err
    assert not run.bundle.exists()
    assert not run.plan.exists()
    assert not list(run.root.glob(".contenders*"))


def test_a_metric_of_zero_exits_with_3(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import calibration.flow

    ensure = calibration.flow.ensure_trace

    def wrong(*args: object, **options: object):
        artifact, trace = ensure(*args, **options)
        return artifact, replace(trace, metric=np.zeros_like(trace.metric))

    monkeypatch.setattr("calibration.flow.ensure_trace", wrong)
    code, _ = plan(run, tmp_path, "--tolerance", "0.1")
    assert code == 3
    assert "metric 0" in capsys.readouterr().err
    assert not is_current(run.plan, kind="plan", inputs={}, parameters={})


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--tolerance", "1"), "--tolerance"),
        (("--tolerance", "-0.5"), "--tolerance"),
        (("--tolerance", "nan"), "--tolerance"),
        (("--batch-size", "0"), "--batch-size"),
        (("--batch-sizes", "8,1"), "--batch-sizes"),
        (("--engine", "onnxruntim"), "Did you mean 'onnxruntime'"),
        (("--grid-step", "0"), "--grid-step"),
        (("--rounds", "0"), "--rounds"),
        (("--threads", "0"), "--threads"),
        (("--contenders", "0"), "--contenders"),
        (("--tail-share", "2"), "--tail-share"),
        (("--delta", "0"), "--delta"),
        (("--delta", "nan"), "--delta"),
        (("--certify-seed", "-1"), "--certify-seed"),
    ],
)
def test_usage_errors_exit_with_2(
    arguments: tuple[str, ...], word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--run", str(tmp_path / "none"), *arguments]) == 2
    assert word in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_every_public_name_is_there() -> None:
    assert len(set(planner.__all__)) == len(planner.__all__)
    for name in planner.__all__:
        assert getattr(planner, name) is not None
    with pytest.raises(AttributeError, match="plan_everything"):
        _ = planner.plan_everything


def test_help_needs_no_heavy_package() -> None:
    script = (
        "import sys; sys.argv = ['planner', '--help']\n"
        "import runpy\n"
        "try: runpy.run_module('planner', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'onnx', 'onnx_ir', 'onnxruntime', 'matplotlib', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--tolerance" in done.stdout


@pytest.fixture
def bound_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime engines that are bound to the batch sizes that are timed, one graph per size."""
    import engines
    import planner.timing

    def ensure_bound(onnx: Path, graph: GraphSpec, cache: Path, **options: object) -> Path:
        return engines.ensure_engine(onnx, graph, cache, **{**options, "batch_sizes": (1, 2, 4)})

    monkeypatch.setattr(planner.timing, "ensure_engine", ensure_bound)


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
    (reference,) = [one for one in found["considered"] if one["reference"]]
    assert reference["measured_mean_ms"] is not None
    said = capsys.readouterr()
    assert "beside the greedy search's plan" in said.out
    assert "by the greedy search" in said.err
    code, found = plan(run, tmp_path, "--tolerance", "0.9", "--certify", "none", "--search", "greedy")
    assert found["plan"]["search"] == "greedy"
    assert not any(one["reference"] for one in found["considered"])
