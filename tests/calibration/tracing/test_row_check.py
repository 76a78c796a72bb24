"""Row check: a network whose answers depend on the neighbours of a sample is found out by the samples themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from artifacts import GraphError, GraphSpec, Model, ModelSpec, RunFolder, TensorSpec, new_artifact, open_model
from artifacts import write_model_spec as write_spec
from calibration.data.image_input import image_input
from calibration.data.loading import load_samples
from calibration.tracing.all_exits import EngineChoice, SegmentRunner
from calibration.tracing.row_check import check_rows

ENGINE = EngineChoice(backend="onnxruntime", threads=1)


def write_network(run: Path, *, mixing: bool) -> Model:
    """Writes a network, uncut, that counts a picture's bright pixels, as a share of the batch's or of its own."""
    pytest.importorskip("onnxruntime", reason="runs the network: pip install 'pame[onnxruntime]'")
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    x = TensorSpec(name="x", dtype="float32", row_shape=(1, 4, 4))
    out = TensorSpec(name="logits", dtype="float32", row_shape=(2,))
    typed = [
        helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, ["batch", *spec.row_shape]) for spec in (x, out)
    ]
    axes = [] if mixing else [1]
    weight = np.random.default_rng(0).normal(0, 1, (16, 2)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("ReduceMax", ["flat", *(["axes"] if axes else [])], ["most"], keepdims=1),
        helper.make_node("Div", ["flat", "most"], ["share"]), helper.make_node("MatMul", ["share", "w"], ["logits"]),
    ]  # fmt: skip
    numbers = [numpy_helper.from_array(weight, "w")]
    numbers += [numpy_helper.from_array(np.array(axes), "axes")] if axes else []
    graph = helper.make_graph(nodes, "full", typed[:1], typed[1:], numbers)
    with new_artifact(run / "model", kind="model") as staging:
        model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 20)])
        onnx.save(model, staging / "full.onnx")
        full = GraphSpec(name="full", file="full.onnx", inputs=(x,), outputs=(out,), answers=("logits",))
        write_spec(staging, ModelSpec(name="n", family="onnx", task="classification", full=full))
    return open_model(run / "model", remedy="")


@pytest.mark.parametrize("mixing", [False, True])
def test_answers_that_depend_on_neighbours_are_refused(tmp_path: Path, *, mixing: bool) -> None:
    random = np.random.default_rng(1)
    images = random.integers(0, 200, (40, 4, 4)) // random.integers(1, 9, (40, 1, 1))
    np.savez(tmp_path / "queries.npz", images=images.astype(np.uint8))
    samples = load_samples(tmp_path / "queries.npz", image_input((1, 4, 4), name="x", dtype="float32"))
    model = write_network(tmp_path / "run", mixing=mixing)
    run = RunFolder(root=tmp_path / "run")
    with SegmentRunner(model, run.engines, ENGINE, rows=8, with_heads=False) as runner:
        if mixing:
            with pytest.raises(GraphError, match=r"rows are not independent: on 4 samples .* 'logits' differs"):
                check_rows(model, runner, samples, np.arange(40), rows=8)
        check_rows(model, runner, samples, np.arange(2) if mixing else np.arange(40), rows=8)
