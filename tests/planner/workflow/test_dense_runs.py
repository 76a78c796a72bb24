"""Segmentation and pose from a network to a measured bundle, by the very same commands, on composed pictures."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from artifacts import RunFolder, Trace, find_task, open_artifact, open_model
from benchmarks.peer_contenders import list_contenders, open_contender
from benchmarks.smaller_network import main as compare_cut_offs
from calibration import load_run_data
from calibration.cli import main as calibrate
from export import recipes_like
from export.cli import main as export
from planner.commands.main import main as plan
from runtime import Runtime
from runtime.bench.command import main as bench

pytest.importorskip("torch", reason="trains a network: pip install 'pame[train]'")
pytest.importorskip("onnxruntime", reason="runs it: pip install 'pame[onnxruntime]'")
pytestmark = pytest.mark.slow

QUICK = [
    "--batch-size", "4", "--threads", "1", "--rounds", "2", "--contenders", "2", "--tail-share", "0",
    "--stay-allowance", "9", "--certify", "none", "--tolerance", "0.2", "--max-exits", "2",
]  # fmt: skip
TRAINING = [
    "--train", "joint", "--epochs", "1", "--backbone-epochs", "0", "--train-batch-size", "8", "--samples", "32",
    "--learning-rate", "0.02", "--augment", "crop-mirror", "--workers", "0", "--threads", "1",
]  # fmt: skip


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[3] / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def write_scenes(folder: Path) -> list[str]:
    scenes = load_example("composed_scenes")
    scenes.write_scenes(folder, 150, scenes.Scenery(width=64, height=32))
    return ["segmentation", "--classes", "6", "--input-shape", "3,32,64", "--answers", "classes"]


def write_figures(folder: Path) -> list[str]:
    figures = load_example("composed_figures")
    figures.write_figures(folder, 100, figures.Posing(side=32))
    return ["posenet", "--input-shape", "3,32,32", "--answers", "keypoints"]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(write_scenes, id="segmentation"),
        pytest.param(write_figures, id="pose", marks=pytest.mark.soak),
    ],
)
def planned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of a dense family, trained a little and planned."""
    root = tmp_path_factory.mktemp("dense")
    words = request.param(root / "data")
    run = RunFolder(root=root / "run")
    place = ["--run", str(run.root)]
    assert export([*words, "--segments", "--every", "2", "--weights", "random", *place]) == 0
    assert calibrate([*place, "--data", str(root / "data"), *TRAINING]) == 0
    assert plan([*place, *QUICK, "--json", str(root / "plan.json")]) == 0
    return run


def test_trace_and_heads_are_those_of_the_task(planned: RunFolder) -> None:
    model = open_model(planned.model, remedy="")
    trace = Trace.load(open_artifact(planned.trace, kind="trace", remedy="").path("trace.npz"))
    task = find_task(model.spec.task, model.spec.settings)
    answer = model.spec.full.output(model.spec.full.answers[0])

    assert all(cut.carried for cut in model.spec.cuts)
    assert trace.exits == tuple(cut.name for cut in model.spec.cuts[:-1])
    assert 0 < trace.confidence.min() <= trace.confidence.max() <= 1
    if task.name == "segmentation":
        assert (answer.name, answer.dtype, answer.row_shape) == ("classes", "uint8", (32, 64))
        assert trace.counts is not None
        assert trace.counts.shape[2] == 12
        means = [np.mean([task.summarise(row) for row in counts]) for counts in trace.counts]
        assert trace.metric.mean(axis=1) == pytest.approx(means, abs=1e-6)
    else:
        assert (answer.name, answer.dtype, answer.row_shape) == ("keypoints", "float32", (14, 3))
        assert trace.counts is None


def test_every_row_is_answered_as_if_it_were_alone(planned: RunFolder) -> None:
    samples = load_run_data(planned, report=lambda _: None)
    inputs = samples.inputs(samples.indices_of("test")[:7])["input"]
    with Runtime.load(planned.bundle) as runtime:
        together = runtime.run(inputs)
        final = len(runtime.run(inputs[:1]).confidence) and together.exit_index.max()
        for row in range(len(inputs)):
            alone = runtime.run(inputs[row : row + 1])
            assert alone.exit_index[0] == together.exit_index[row]
            expected: Any = together.outputs[0][row] if isinstance(together.outputs, tuple) else together.outputs[row]
            found: Any = alone.outputs[0][0] if isinstance(alone.outputs, tuple) else alone.outputs[0]
            if found.dtype == np.uint8:
                assert (found == expected).mean() > 0.999  # of two classes that are as likely, rounding decides
            else:
                assert found == pytest.approx(expected, abs=1e-4)
    assert final >= 0


def test_the_bench_names_the_metric_in_the_tasks_words(planned: RunFolder, tmp_path: Path) -> None:
    target = tmp_path / "bench.json"
    assert bench(["--run", str(planned.root), "--batch-size", "4", "--rounds", "1", "--json", str(target)]) == 0
    found = json.loads(target.read_text())

    task = find_task(open_model(planned.model, remedy="").spec.task)
    assert found["metric_name"] == task.metric_name in ("mIoU", "PCKh@0.5")
    assert 0 <= found["full"]["metric"] <= 1
    assert found["samples"] == len(load_run_data(planned, report=lambda _: None).indices_of("test"))


def test_it_is_measured_beside_static_cut_offs_and_peers(planned: RunFolder, tmp_path: Path) -> None:
    target = tmp_path / "smaller.json"
    assert compare_cut_offs(["--run", str(planned.root), "--samples", "8", "--rounds", "1", "--json", str(target)]) == 0
    found = json.loads(target.read_text())
    cuts = [cut.name for cut in open_model(planned.model, remedy="").spec.candidates]
    assert set(found["metric"]) == {"full network", "bundle", *cuts}
    assert set(found["plan_of_equal_metric"]) <= set(cuts)
    assert all(share > 0 for share in found["plan_of_equal_metric"].values())
    contenders, left_out = list_contenders([planned], tmp_path, 1)
    assert any("classes of images" in reason or "not installed" in reason for _, reason in left_out)
    samples = load_run_data(planned, report=lambda _: None)
    batch = samples.inputs(samples.indices_of("test")[:5])
    answers = {
        contender.name: open_contender(contender)(batch)[0][0]
        for contender in contenders
        if contender.kind in ("ort", "torch", "by hand", "bundle")
    }
    for name, other in (
        ("whole, onnxruntime fp32", "whole, torch eager"),
        ("by hand, fp32 on onnxruntime", "bundle, fp32 on onnxruntime"),
    ):
        np.testing.assert_allclose(answers[name].astype(float), answers[other].astype(float), rtol=1e-3, atol=1e-3)


def test_the_confidence_that_ranks_best_is_taken(planned: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    before = open_model(planned.model, remedy="").spec
    assert calibrate(["--run", str(planned.root), "--confidence", "auto", "--threads", "1"]) == 0
    said = capsys.readouterr().err

    after = open_model(planned.model, remedy="").spec
    names = [name for name in recipes_like(find_task(before.task).confidence) if name in said]
    assert "ranks the loss of the exits best" in said
    assert len(names) >= 3
    chosen = said.partition("confidence: ")[2].partition(" ")[0]
    assert after.settings.get("confidence_recipe", find_task(before.task).confidence) == chosen
    assert after.heads.keys() == before.heads.keys()
    assert [head.answers for head in after.heads.values()] == [head.answers for head in before.heads.values()]


def test_miou_is_a_risk_of_segmentation(planned: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--run", str(planned.root), *QUICK, "--tolerance", "0.7"]
    words += ["--certify", "ltt", "--delta", "0.4", "--risk", "miou"]
    model = open_model(planned.model, remedy="")
    code = plan(words)
    said = capsys.readouterr()

    if model.spec.task == "segmentation":
        assert code == 0
        assert json.loads((planned.plan / "certification.json").read_text())["risk"] == "miou"
    else:
        assert code == 1
        assert "the trace holds none: it is for the task segmentation" in said.err


@pytest.mark.soak
def test_heads_are_trained_on_a_frozen_backbone(tmp_path: Path) -> None:
    words, place = write_scenes(tmp_path / "data"), ["--run", str(tmp_path / "run")]
    assert export([*words, "--segments", "--every", "3", "--weights", "random", *place]) == 0
    target = tmp_path / "calibrated.json"
    frozen = ["--epochs", "2", "--samples", "16", "--train-batch-size", "8", "--workers", "0", "--threads", "1"]
    assert calibrate([*place, "--data", str(tmp_path / "data"), *frozen, "--json", str(target)]) == 0

    model = open_model(tmp_path / "run" / "model", remedy="")
    (cut, head), *others = model.spec.heads.items()
    assert not others
    assert [tensor.name for tensor in head.inputs] == [cut, "features.3", "features.6"]
    assert head.answers[0].startswith(f"{cut}/{model.spec.full.answers[0]}")
    found = json.loads(target.read_text())
    assert [exit_["exit"] for exit_ in found["exits"]] == [cut, "final"]
