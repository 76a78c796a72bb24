"""A dense task with a set metric and two inputs: traced, planned, served and measured by the functions of all tasks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from artifacts import RunFolder, Trace, UsageError, open_artifact
from calibration import EngineChoice, ensure_trace
from calibration.cli import main as calibrate
from tests.calibration.tracing.label_maps import LabelMaps, Scenes, write_run

pytestmark = pytest.mark.slow
TASK = ["--task", "tests.calibration.tracing.label_maps:LabelMaps"]
DATA = ["--data", "tests.calibration.tracing.label_maps:Scenes"]
ENGINE = EngineChoice(backend="onnxruntime", threads=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    pytest.importorskip("onnx", reason="writes ONNX graphs: pip install 'pame[export]'")
    pytest.importorskip("onnxruntime", reason="runs them: pip install 'pame[onnxruntime]'")
    made = RunFolder(root=tmp_path_factory.mktemp("dense") / "scenes")
    write_run(made)
    return made


@pytest.fixture(scope="module")
def calibrated(run: RunFolder) -> dict:
    target = run.root / "calibrated.json"
    words = ["--run", str(run.root), "--threads", "1", "--json", str(target)]
    assert calibrate([*words, *TASK, *DATA]) == 0
    return json.loads(target.read_text())


def answers_by_numpy(exit_: int, indices: np.ndarray) -> np.ndarray:
    """Returns the label maps (n, H, W) of an exit, or of the final head as exit 2."""
    from tests.calibration.tracing.label_maps import blur

    found = []
    for pixels, gain in zip(*Scenes().inputs(indices).values(), strict=True):
        bright = pixels[0].astype(np.float64) * gain[0]
        for _ in range(exit_):
            bright = bright + 0.5 * blur(bright)
        maps = np.stack([27 - 60 * bright / 1.5**exit_, 0 * bright, 60 * bright / 1.5**exit_ - 33])
        found.append(maps.argmax(axis=0))
    return np.array(found)


def one_hot(maps: np.ndarray) -> np.ndarray:
    return np.eye(3)[maps].transpose(0, 3, 1, 2)


def test_the_trace_holds_shares_and_counts(run: RunFolder, calibrated: dict) -> None:
    trace = Trace.load(open_artifact(run.trace, kind="trace", remedy="").path("trace.npz"))
    indices = Scenes().indices_of("calibrate")
    targets = Scenes().targets(indices)
    assert (trace.exits, trace.predictions, trace.labels) == (("h0", "h1"), None, None)
    maps = [answers_by_numpy(exit_, indices) for exit_ in range(3)]
    for exit_ in range(3):
        np.testing.assert_allclose(trace.metric[exit_], (maps[exit_] == targets).mean(axis=(1, 2)), atol=0.02)
        np.testing.assert_allclose(trace.agreement[exit_], (maps[exit_] == maps[2]).mean(axis=(1, 2)), atol=0.02)
    assert (trace.agreement[0] < 1).any()
    assert trace.agrees[0].sum() < (trace.agreement[0] > 0).sum()
    assert trace.counts is not None
    right = trace.counts[:, :, 0::2].sum(axis=2)
    np.testing.assert_allclose(right / 64, trace.metric, atol=1e-6)
    some = trace.select(np.array([3, 3, 5]))
    np.testing.assert_array_equal(some.counts, trace.counts[:, [3, 3, 5]])
    expected = [LabelMaps().summarise(trace.counts[exit_].sum(axis=0)) for exit_ in range(3)]
    assert [exit_["set_metric"] for exit_ in calibrated["exits"]] == pytest.approx(expected)
    assert calibrated["set_metric_name"] == "mIoU"


def test_the_result_is_alone_on_stdout(run: RunFolder, calibrated: dict, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert calibrate(["--run", str(run.root), "--threads", "1", "--json", "-", *TASK, *DATA]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == calibrated
    assert "mean confidence" in err


def test_the_task_is_needed_only_where_answers_are_judged(run: RunFolder, calibrated: dict, tmp_path: Path) -> None:
    artifact, _ = ensure_trace(run, ENGINE, data="tests.calibration.tracing.label_maps:Scenes")
    assert artifact.digest == calibrated["trace"], "what is there is used without its task"
    with pytest.raises(UsageError, match="what a file names is never imported: name them again with --data"):
        ensure_trace(run, ENGINE)
    fresh = RunFolder(root=tmp_path / "fresh")
    write_run(fresh)
    with pytest.raises(UsageError, match="label-maps.*module:object"):
        ensure_trace(fresh, ENGINE, data=Scenes())


@pytest.mark.parametrize("certify", ["none", "ltt"])
def test_it_is_planned_served_and_measured(run: RunFolder, calibrated: dict, tmp_path: Path, certify: str) -> None:
    from planner.commands.plan import main as plan
    from runtime import Runtime
    from runtime.bench.command import main as bench

    words = ["--run", str(run.root), "--threads", "1", *DATA]
    quick = ["--batch-size", "8", "--rounds", "2", "--contenders", "1", "--tail-share", "0", "--stay-allowance", "9"]
    certifying = ["--certify", certify, "--delta", "0.2"] if certify == "ltt" else ["--certify", "none"]
    planned = tmp_path / "planned.json"
    assert plan([*words, *quick, *certifying, "--tolerance", "0.2", "--json", str(planned)]) == 0
    found = json.loads(planned.read_text())["plan"]
    assert (found["certificate"] is not None) is (certify == "ltt")

    test = Scenes().indices_of("test")[:20]
    with Runtime.load(run.bundle) as runtime:
        result = runtime.run(Scenes().inputs(test))
    leaving = [int(planned_exit["cut"][1:]) for planned_exit in found["exits"]]
    for row, index in enumerate(test):
        exit_ = [*leaving, 2][result.exit_index[row]]
        same = (result.outputs[row].argmax(axis=0) == answers_by_numpy(exit_, np.array([index]))[0]).mean()
        assert same > 0.98

    measured = tmp_path / "bench.json"
    assert bench([*words, *TASK, "--rounds", "1", "--json", str(measured)]) == 0
    figures = json.loads(measured.read_text())
    indices = Scenes().indices_of("test")
    counts = LabelMaps().counts([one_hot(answers_by_numpy(2, indices))], Scenes().targets(indices))
    assert figures["full"]["metric"] == pytest.approx(LabelMaps().summarise(counts.sum(axis=0)), abs=0.01)
    assert 0.5 < figures["early_exit"]["metric"] <= 1
