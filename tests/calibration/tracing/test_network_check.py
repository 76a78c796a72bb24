"""NetworkCheck: chance and a wrong preprocessing are said before anything is made of the network."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from artifacts import (
    Classification,
    GraphSpec,
    Model,
    ModelSpec,
    Preprocessing,
    RunFolder,
    TensorSpec,
    new_artifact,
    open_model,
    write_model_spec,
)
from calibration.data.image_input import image_input
from calibration.data.loading import load_samples
from calibration.tracing.all_exits import EngineChoice, SegmentRunner
from calibration.tracing.network_check import NetworkCheck, check_network

RUN = Path(__file__).parents[2] / "fixtures" / "run_0.1.0"
ENGINE = EngineChoice(backend="onnxruntime", threads=1)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    pytest.importorskip("onnxruntime", reason="runs the network: pip install 'pame[onnxruntime]'")
    shutil.copytree(RUN / "model", tmp_path / "run" / "model")
    return open_model(tmp_path / "run" / "model", remedy="")


def ask(model: Model, data: Path) -> NetworkCheck:
    run = RunFolder(root=model.artifact.folder.parent)
    samples = load_samples(data, image_input((1, 8, 8), name="x"))
    with SegmentRunner(model, run.engines, ENGINE, rows=16, with_heads=False) as runner:
        return check_network(model, runner, samples, Classification(), rows=16)


def test_a_network_that_is_right_is_left_alone(model: Model) -> None:
    found = ask(model, RUN / "data.npz")
    assert found.metric > 0.85
    assert found.samples >= 200
    assert found.warnings() == ()


def test_labels_of_other_classes_are_chance(model: Model, tmp_path: Path) -> None:
    with np.load(RUN / "data.npz") as data:
        shifted = np.random.default_rng(0).permutation(data["labels"])
        np.savez(tmp_path / "shifted.npz", images=data["images"], labels=shifted)
    (warning, *_) = ask(model, tmp_path / "shifted.npz").warnings()
    assert "that is chance" in warning
    assert "order of the classes" in warning


def test_pixels_that_another_preprocessing_makes_clear(tmp_path: Path) -> None:
    """A network that scales its pixels itself, as those of several frameworks do."""
    random = np.random.default_rng(0)
    labels = np.arange(300) % 2
    images = random.integers(20, 90, (300, 8, 8))
    for row, label in enumerate(labels):
        images[row, 4 * label : 4 * label + 4] += 120
    np.savez(tmp_path / "halves.npz", images=images.astype(np.uint8), labels=labels)
    found = ask(write_halves(tmp_path / "run"), tmp_path / "halves.npz")
    assert (found.others["pixels from 0 to 255"], found.metric) == (1.0, 0.5)
    assert len(found.warnings()) == 2
    assert "that is chance" in found.warnings()[0]
    assert "1.000 with pixels from 0 to 255. The model does not state how it wants its images" in found.warnings()[1]


def write_halves(run: Path) -> Model:
    """Writes a network, uncut, that tells pictures with a bright upper half from those with a bright lower one."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    halves = np.repeat(np.eye(2, dtype=np.float32), 32, axis=0)
    numbers = {"most": np.array(255, np.float32), "dark": np.array(0.37, np.float32), "halves": halves}
    nodes = [
        helper.make_node("Div", ["x", "most"], ["share"]), helper.make_node("Sub", ["share", "dark"], ["lit"]),
        helper.make_node("Relu", ["lit"], ["bright"]), helper.make_node("Flatten", ["bright"], ["flat"]),
        helper.make_node("MatMul", ["flat", "halves"], ["logits"]),
    ]  # fmt: skip
    x = TensorSpec(name="x", dtype="float32", row_shape=(1, 8, 8))
    logits = TensorSpec(name="logits", dtype="float32", row_shape=(2,))
    typed = [
        helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, ["batch", *spec.row_shape]) for spec in (x, logits)
    ]
    graph = helper.make_graph(
        nodes, "full", typed[:1], typed[1:], [numpy_helper.from_array(value, name) for name, value in numbers.items()]
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    with new_artifact(run / "model", kind="model") as staging:
        onnx.save(model, staging / "full.onnx")
        full = GraphSpec(name="full", file="full.onnx", inputs=(x,), outputs=(logits,), answers=("logits",))
        write_model_spec(staging, ModelSpec(name="halves", family="onnx", task="classification", full=full))
    return open_model(run / "model", remedy="")


def test_a_network_that_states_its_preprocessing_is_not_asked_about_others(model: Model) -> None:
    from dataclasses import replace

    spec = replace(model.spec, preprocessing=Preprocessing(height=8, width=8, channel_order="L"))
    assert ask(replace(model, spec=spec), RUN / "data.npz").others == {}
