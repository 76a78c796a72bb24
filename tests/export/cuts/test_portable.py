"""Tests of portable files: the answers are those of the stages run one by one, in the order of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from artifacts import GraphSpec, TensorSpec
from engines import GraphRunner
from export.cuts.portable import PortableOutline, PortableStage, write_portable

onnx = pytest.importorskip("onnx")

WIDTH, CLASSES = 6, 3
Values = dict[str, np.ndarray]


def spec(name: str, *row_shape: int, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, row_shape=row_shape)


X, MASK = spec("x", WIDTH), spec("mask", WIDTH)


def write_stage(folder: Path, index: int, *, last: bool, answer: str = "logits") -> GraphSpec:
    """Writes h' = relu(mask * (h w)), logits = h' v and the largest share; ``mask`` passes all stages by."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(index)
    source, made = ("x" if index == 0 else f"h{index}"), f"h{index + 1}"
    logits, confidence = (answer, "sure") if last else (f"{made}/{answer}", f"{made}/sure")
    nodes = [
        helper.make_node("MatMul", [source, "w"], ["product"]),  # the same names in every stage, on purpose
        helper.make_node("Mul", ["product", "mask"], ["masked"]),
        helper.make_node("Relu", ["masked"], [made]),
        helper.make_node("MatMul", [made, "v"], [logits]),
        helper.make_node("Softmax", [logits], ["shares"], axis=-1),
        helper.make_node("ReduceMax", ["shares", "axes"], [confidence], keepdims=0),
    ]
    constants = [
        numpy_helper.from_array(random.standard_normal((WIDTH, WIDTH)).astype(np.float32), "w"),
        numpy_helper.from_array(random.standard_normal((WIDTH, CLASSES)).astype(np.float32), "v"),
        numpy_helper.from_array(np.array([-1], np.int64), "axes"),
    ]
    outputs = [*([] if last else [spec(made, WIDTH)]), spec(logits, CLASSES), spec(confidence)]
    inputs = [X if index == 0 else spec(source, WIDTH), MASK]
    values = [
        [helper.make_tensor_value_info(value.name, TensorProto.FLOAT, ["batch", *value.row_shape]) for value in some]
        for some in (inputs, outputs)
    ]
    name = f"stage_{index:02d}"
    graph = helper.make_graph(nodes, name, *values, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / f"{name}.onnx")
    return GraphSpec(
        name=name, file=f"{name}.onnx", inputs=tuple(inputs), outputs=tuple(outputs), confidence=confidence,
        answers=(logits,),
    )  # fmt: skip


def make_stages(folder: Path, thresholds: Sequence[float], *, answer: str = "logits") -> list[PortableStage]:
    stages = []
    for index, threshold in enumerate([*thresholds, None]):
        graph = write_stage(folder, index, last=threshold is None, answer=answer)
        stages.append(PortableStage(graph=graph, path=folder / graph.file, threshold=threshold))
    return stages


def run_one_by_one(stages: Sequence[PortableStage], batch: Values) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns answers, exit index and confidence of every row, each of which goes through the stages alone."""
    answers, exits, confidences = [], [], []
    for row in range(len(batch["x"])):
        tensors = {name: value[row : row + 1] for name, value in batch.items()}
        for index, stage in enumerate(stages):
            with GraphRunner(stage.path, threads=1) as runner:
                tensors |= runner.run({value.name: tensors[value.name] for value in stage.graph.inputs})
            sure = tensors[stage.graph.confidence or ""]
            if stage.threshold is None or sure[0] >= np.float32(stage.threshold):
                answers.append(tensors[stage.graph.answers[0]])
                exits.append(index)
                confidences.append(sure)
                break
    return np.concatenate(answers), np.array(exits), np.concatenate(confidences)


def make_batch(rows: int, seed: int = 0) -> Values:
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, WIDTH)).astype(np.float32)
    return {"x": x, "mask": (random.random((rows, WIDTH)) < 0.7).astype(np.float32)}


def outline(*, guarded: bool, answer: str = "logits") -> PortableOutline:
    return PortableOutline(
        name="net", inputs=(X, MASK), outputs=(spec(answer, CLASSES),), guarded=guarded, metadata={"pame.task": "x"}
    )


@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize("thresholds", [(), (0.8,), (0.9, 0.7), (-1.0, 0.5), (2.0, 2.0), (0.95, -1.0)])
def test_rows_leave_as_from_the_stages_one_by_one(tmp_path: Path, thresholds: Sequence[float], guarded: bool) -> None:
    stages = make_stages(tmp_path, thresholds)
    graph = write_portable(stages, outline(guarded=guarded), tmp_path / "net.onnx")
    onnx.checker.check_model(str(tmp_path / "net.onnx"), full_check=True)
    assert [value.name for value in graph.outputs] == ["logits", "exit_index", "confidence"]
    with GraphRunner(tmp_path / "net.onnx", threads=1) as runner:
        for rows in (1, 3, 32):
            batch = make_batch(rows, seed=rows)
            answers, exits, confidences = run_one_by_one(stages, batch)
            found = runner.run(batch)
            np.testing.assert_array_equal(found["exit_index"], exits)
            np.testing.assert_allclose(found["logits"], answers, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(found["confidence"], confidences, rtol=1e-5)
    if thresholds == (0.9, 0.7):
        assert set(exits) == {0, 1, 2}  # rows did leave everywhere


def test_a_guarded_stage_does_not_run_without_rows(tmp_path: Path) -> None:
    stages = make_stages(tmp_path, (-1.0,))
    broken = onnx.load(stages[1].path)
    broken.graph.node.insert(0, onnx.helper.make_node("Reshape", ["h1", "wrong"], ["bent"]))
    broken.graph.initializer.append(onnx.numpy_helper.from_array(np.array([7, 7, -1]), "wrong"))
    broken.graph.node[1].input[0] = "bent"
    onnx.save(broken, stages[1].path)
    write_portable(stages, outline(guarded=True), tmp_path / "net.onnx")
    with GraphRunner(tmp_path / "net.onnx", threads=1) as runner:
        assert (runner.run(make_batch(4))["exit_index"] == 0).all()


def test_an_output_of_the_network_keeps_its_name(tmp_path: Path) -> None:
    stages = make_stages(tmp_path, (0.8,), answer="confidence")
    graph = write_portable(stages, outline(guarded=True, answer="confidence"), tmp_path / "net.onnx")
    assert [value.name for value in graph.outputs] == ["confidence", "exit_index", "confidence_"]
    assert (graph.confidence, graph.answers) == ("confidence_", ("confidence",))


def test_equal_plans_have_equal_bytes_and_the_file_says_what_it_is(tmp_path: Path) -> None:
    stages = make_stages(tmp_path, (0.9, 0.7))
    for name in ("a.onnx", "b.onnx"):
        write_portable(stages, outline(guarded=True), tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    found = onnx.load(tmp_path / "a.onnx")
    assert [(entry.key, entry.value) for entry in found.metadata_props] == [("pame.task", "x")]
