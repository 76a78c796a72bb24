"""From a network without exits to a trace, with the real engines: frozen training, joint training, the command."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from artifacts import (
    CorruptArtifactError,
    RunFolder,
    Trace,
    UsageError,
    array_digest,
    file_digest,
    load_arrays,
    new_artifact,
    open_artifact,
    recorded_command,
)
from calibration.cli import main, make_parser, read_engine
from calibration.data.image_input import image_input
from calibration.data.loading import load_samples
from calibration.data.samples import PARTS, as_batch
from calibration.data.sources import load_run_data, source_name
from calibration.options import CalibrationOptions
from calibration.tracing.all_exits import EngineChoice
from calibration.tracing_flow import ensure_trace
from calibration.training.config import FrozenConfig, JointConfig
from calibration.training.training_flow import retrain_jointly, train_missing
from engines import run_graph
from export import ExportOptions, ResNetConfig, ensure_model

SHAPE = (1, 8, 8)
WANTED = image_input(SHAPE, name="input")
NET = ResNetConfig(depth=20, classes=2, input_shape=SHAPE)
ENGINE = EngineChoice(backend="onnxruntime", threads=1)
FORCED = CalibrationOptions(force=True)  # the networks here have random weights


def write_bars(path: Path, count: int = 320) -> Path:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, count)
    images = random.integers(0, 60, (count, 8, 8)).astype(np.uint8)
    for row, label in enumerate(labels):
        place = random.integers(1, 7)
        images[row, place, :] = 255 if label else images[row, place, :]
        images[row, :, place] = images[row, :, place] if label else 255
    np.savez(path, images=images, labels=labels)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("flow")
    options = ExportOptions(net=NET, weights="random", every=4)
    ensure_model(RunFolder(root=root / "run"), options)
    write_bars(root / "bars.npz")
    return root


@pytest.fixture
def place(exported: Path, tmp_path: Path) -> Path:
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_frozen_heads_learn_and_the_network_stays_as_it_is(place: Path) -> None:
    run = RunFolder(root=place / "run")
    data = load_samples(place / "bars.npz", WANTED)
    before = file_digest(run.model / "full.onnx")
    config = FrozenConfig(epochs=10, batch_size=32, crop_padding=0, learning_rate=0.01)
    model = train_missing(run, data, config, ENGINE, options=FORCED)
    assert [cut.name for cut in model.spec.candidates] == ["layer2.0", "layer3.1"]
    assert file_digest(run.model / "full.onnx") == before
    history = json.loads((run.training / "result" / "history.json").read_text())
    assert history[-1]["accuracy"]["layer2.0"] > 0.9
    digest = model.digest
    assert train_missing(run, data, config, ENGINE, options=FORCED).digest == digest, (
        "trained heads are not trained again"
    )


def test_the_trace_is_what_the_graphs_say_one_by_one(place: Path) -> None:
    run = RunFolder(root=place / "run")
    data = load_samples(place / "bars.npz", WANTED)
    model = train_missing(run, data, FrozenConfig(epochs=1, batch_size=32), ENGINE, options=FORCED)
    artifact, trace = ensure_trace(run, ENGINE, data=place / "bars.npz", options=FORCED)
    indices, labels = data.indices_of("calibrate"), data.labels[data.indices_of("calibrate")]
    images = as_batch(data.inputs(indices))
    tensors = {model.spec.full.inputs[0].name: images}
    for graph in model.spec.segments:
        tensors |= run_graph(model.path(graph), {spec.name: tensors[spec.name] for spec in graph.inputs})
    final = run_graph(model.path(model.spec.full), {model.spec.full.inputs[0].name: images})
    heads = [model.spec.heads[cut.name] for cut in model.spec.candidates]
    for row, graph in enumerate(heads):
        found = run_graph(model.path(graph), {spec.name: tensors[spec.name] for spec in graph.inputs})
        answer = found[graph.answers[0]].argmax(1)
        np.testing.assert_allclose(trace.confidence[row], found[graph.confidence], atol=1e-5)
        assert np.array_equal(trace.metric[row], answer == labels)
        assert np.array_equal(trace.agreement[row], answer == final[model.spec.full.answers[0]].argmax(1))
    assert np.array_equal(trace.metric[-1], final[model.spec.full.answers[0]].argmax(1) == labels)
    np.testing.assert_allclose(trace.confidence[-1], final[model.spec.full.confidence], atol=1e-5)
    assert trace.agreement[-1].all()
    kept = load_arrays(artifact.path("indices.npz"))
    assert all(artifact.manifest.inputs[f"indices.{part}"] == array_digest(kept[part]) for part in PARTS)
    assert not set(kept["train"]) & set(kept["calibrate"]) | set(kept["calibrate"]) & set(kept["test"])


def test_joint_training_replaces_the_network_and_ships_weights(place: Path) -> None:
    run = RunFolder(root=place / "run")
    data = load_samples(place / "bars.npz", WANTED)
    before = file_digest(run.model / "full.onnx")
    config = JointConfig(epochs=2, backbone_epochs=1, batch_size=32, crop_padding=0)
    model = retrain_jointly(run, data, config, ENGINE)
    assert file_digest(run.model / "full.onnx") != before
    assert len(model.spec.candidates) == 2
    assert retrain_jointly(run, data, config, ENGINE).digest == model.digest, "the same training is not repeated"
    again = RunFolder(root=place / "again")
    weights = str(run.training / "weights" / "weights.safetensors")
    options = ExportOptions(net=NET, weights=weights, every=4)
    shipped = ensure_model(again, options)
    images = as_batch(data.inputs(data.indices_of("test")))
    name = model.spec.full.inputs[0].name
    one, other = (run_graph(m.path(m.spec.full), {name: images}) for m in (model, shipped))
    np.testing.assert_allclose(one["logits"], other["logits"], atol=1e-5)
    assert [cut.name for cut in shipped.spec.candidates] == [cut.name for cut in model.spec.candidates]


def test_the_command_makes_and_reuses_and_remembers_the_data(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--run", str(place / "run"), "--threads", "1", "--force", "--json", str(place / "out.json")]
    flags = ["--data", str(place / "bars.npz"), "--epochs", "1", "--train-batch-size", "32"]
    assert main([*words, *flags]) == 0
    first = json.loads((place / "out.json").read_text())
    assert "training 2 exit heads" in capsys.readouterr().err
    assert main(words) == 0, "the trace remembers where the data is"
    assert json.loads((place / "out.json").read_text()) == first
    assert "training" not in capsys.readouterr().err
    assert [exit_["exit"] for exit_ in first["exits"]] == ["layer2.0", "layer3.1", "final"]
    run = RunFolder(root=place / "run")
    assert load_run_data(run).name == "bars.npz"
    command = shlex.join(["python", "-m", "calibration", *words, *flags])
    assert run.remedy("calibration") == command, "the trace says how it is made again"
    for made in (run.training / "result", run.training / "checkpoint"):
        assert recorded_command(made) == command


def test_data_that_does_not_fit_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--run", str(place / "run")]
    assert main(run) == 2
    assert "name your data with --data" in capsys.readouterr().err
    np.savez(place / "three.npz", images=np.zeros((30, 8, 8), np.uint8), labels=np.arange(30) % 3)
    assert main([*run, "--data", str(place / "three.npz")]) == 1
    assert "3 classes" in capsys.readouterr().err
    assert main([*run, "--data", str(place / "bars.npz"), "--backbone-epochs", "1"]) == 2
    assert main([*run, "--data", str(place / "bars.npz"), "--threads", "0"]) == 2
    assert main([*run, "--data", str(place / "bars.npz"), "--engine", "onnxruntim"]) == 2
    assert "Did you mean 'onnxruntime'" in capsys.readouterr().err


def test_a_damaged_trace_is_collected_again(place: Path) -> None:
    run = RunFolder(root=place / "run")
    data = place / "bars.npz"
    train_missing(run, load_samples(data, WANTED), FrozenConfig(epochs=1, batch_size=32), ENGINE, options=FORCED)
    _, first = ensure_trace(run, ENGINE, data=data, options=FORCED)
    assert run.remedy("calibration") == f"python -m calibration --run {run.root} --data {data}"
    (run.trace / "trace.npz").write_bytes(b"damaged")
    with pytest.raises(CorruptArtifactError):
        Trace.load(run.trace / "trace.npz")
    _, second = ensure_trace(run, ENGINE, options=FORCED)
    assert np.array_equal(first.confidence, second.confidence)


def test_a_model_without_segments_has_no_exits_to_train(tmp_path: Path) -> None:
    run = RunFolder(root=tmp_path / "run")
    ensure_model(run, ExportOptions(segments=False, net=NET, weights="random"))
    with pytest.raises(UsageError, match="name your data"):
        ensure_trace(run, ENGINE, options=FORCED)
    _, trace = ensure_trace(run, ENGINE, data=write_bars(tmp_path / "bars.npz"), options=FORCED)
    assert trace.exits == ()


def write_queries(place: Path) -> Path:
    """Darker bars than those that are trained on, without labels."""
    with np.load(place / "bars.npz") as bars:
        np.savez(place / "queries.npz", images=bars["images"] // 2)
    return place / "queries.npz"


def test_a_whole_network_is_not_trained_without_labels(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(root=place / "run")
    before = file_digest(run.model / "manifest.json")
    assert main(["--run", str(run.root), "--data", str(write_queries(place)), "--train", "joint"]) == 2
    said = capsys.readouterr().err
    assert "queries.npz has no labels" in said
    assert "omit --train joint" in said
    assert file_digest(run.model / "manifest.json") == before
    assert not run.trace.exists()
    assert not run.training.exists()


def test_exits_learn_from_the_answers_of_the_network_and_are_never_calibrated_on_the_same_queries(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, queries = RunFolder(root=place / "run"), write_queries(place)
    words = ["--run", str(run.root), "--threads", "1", "--json", str(place / "out.json")]
    flags = ["--epochs", "1", "--train-batch-size", "32", "--memory-gb", "1", "--workers", "0"]
    assert main([*words, *flags, "--data", str(queries)]) == 0
    assert "by the answers of the full network" in capsys.readouterr().err
    found = json.loads((place / "out.json").read_text())
    assert (found["labelled"], found["samples"]) == (False, 128), "two fifths; as many are trained on"
    later = load_run_data(run)
    assert [len(later.indices_of(part)) for part in PARTS] == [128, 128, 64]
    kept = load_arrays(run.trace / "indices.npz")
    assert all(np.array_equal(later.indices_of(part), kept[part]) for part in PARTS)
    with np.load(queries) as arrays:
        np.savez(place / "others.npz", images=arrays["images"][:100])
    assert main([*words, "--data", str(place / "others.npz")]) == 0
    assert json.loads((place / "out.json").read_text())["samples"] == 80, "nothing is trained on another log"


def test_queries_without_labels_are_traced_by_their_agreement(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(root=place / "run")
    words = ["--run", str(run.root), "--threads", "1", "--force", "--json", str(place / "out.json")]
    bars = ["--data", str(place / "bars.npz"), "--epochs", "1", "--train-batch-size", "32"]
    assert main([*words, *bars]) == 0
    labelled = load_run_data(run)
    capsys.readouterr()
    assert main([*words, "--data", str(write_queries(place))]) == 0
    out, err = capsys.readouterr()
    assert "training" not in err
    assert "note:" not in err, "how pixels are normalised is known from the training"
    assert f"plan with python -m planner --run {run.root} --risk agreement" in err
    assert [line.split()[1] for line in out.splitlines()[3:6]] == ["-", "-", "-"]
    found = json.loads((place / "out.json").read_text())
    assert (found["labelled"], found["samples"], {exit_["metric"] for exit_ in found["exits"]}) == (False, 256, {None})

    artifact = open_artifact(run.trace, kind="trace", remedy="")
    trace = Trace.load(artifact.path("trace.npz"))
    assert (trace.labelled, trace.labels, trace.full_metric) == (False, None, 1.0)
    assert np.array_equal(trace.metric, trace.agreement)
    assert np.array_equal(trace.agreement, trace.predictions == trace.predictions[-1])
    assert "labels" not in artifact.manifest.inputs
    assert artifact.manifest.environment["split_seed"] == "0"
    kept = load_arrays(artifact.path("indices.npz"))
    assert artifact.manifest.inputs["indices.calibrate"] == array_digest(kept["calibrate"])

    queries = load_run_data(run)
    assert queries.name == "queries.npz", "the trace remembers where the data is"
    (mean,), (std,) = labelled.preprocessing.mean, labelled.preprocessing.std
    assert queries.preprocessing == labelled.preprocessing == ensure_model(run).spec.preprocessing
    own = load_samples(place / "queries.npz", WANTED)
    assert own.preprocessing.mean[0] == pytest.approx(mean / 2, rel=0.1)
    model = ensure_model(run)
    name, rows = model.spec.full.inputs[0].name, queries.indices_of("calibrate")
    pixels = (queries.images[rows] / 255 - mean) / std
    final = run_graph(model.path(model.spec.full), {name: pixels.astype(np.float32)})
    np.testing.assert_allclose(trace.confidence[-1], final[model.spec.full.confidence], atol=1e-5)


def test_the_trace_of_a_risk_that_needs_labels_is_refused_before_any_work(place: Path) -> None:
    run, queries = RunFolder(root=place / "run"), write_queries(place)
    train_missing(
        run, load_samples(place / "bars.npz", WANTED), FrozenConfig(epochs=1, batch_size=32), ENGINE, options=FORCED
    )
    for risk in ("metric", "f1"):
        with pytest.raises(UsageError, match=f"--risk {risk}: queries.npz has no labels.*--risk agreement"):
            ensure_trace(run, ENGINE, data=queries, risk=risk, options=FORCED)
    assert not run.trace.exists()
    assert not ensure_trace(run, ENGINE, data=queries, risk="agreement", options=FORCED)[1].labelled


def test_the_demo_data_can_be_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, data = RunFolder(root=place / "run"), load_samples(place / "bars.npz", WANTED)
    monkeypatch.chdir(place)
    assert source_name(data, Path("fashion-mnist"), run) == "fashion-mnist"
    (place / "fashion-mnist").mkdir()
    assert source_name(data, Path("fashion-mnist"), run) == str((place / "fashion-mnist").resolve())


def test_without_a_name_the_engine_is_that_of_the_trace(tmp_path: Path) -> None:
    run, said = RunFolder(root=tmp_path), list[str]()

    def engine(*flags: str) -> str:
        return read_engine(make_parser().parse_args(list(flags)), run, report=said.append).backend

    assert engine() == "onnxruntime"
    with new_artifact(run.trace, kind="trace", parameters={"backend": "openvino-bf16"}):
        pass
    assert said == []
    assert engine() == "openvino-bf16"
    assert said == ["engine: openvino-bf16, as the run's trace was collected on it"]
    assert engine("--engine", "onnxruntime") == "onnxruntime"
    with new_artifact(run.trace, kind="trace", parameters={"backend": "imported"}):
        pass
    assert engine() == "onnxruntime"
