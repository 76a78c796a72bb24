"""Confidences of dense answers against the same in numpy, and small answers against the tasks' own decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import GraphError, TensorSpec, find_keypoints
from export.answers.small import SMALL_ANSWERS, make_small
from export.confidence.adding import add_confidence, find_recipe
from export.confidence.recipe import LOGITS, PROBABILITIES
from export.graphs.loading import load_graph
from export.graphs.probing import open_graph
from export.options import ANSWERS

onnx = pytest.importorskip("onnx", reason="writes ONNX graphs: pip install 'pame[export]'")


def write_identity(path: Path, shape: tuple[int, ...], repeats: int = 1) -> Path:
    """Writes a graph that answers with its input, each of whose pixels it may repeat along either side."""
    channels, *sides = shape
    sizes = {"x": shape, "answer": (channels, *(repeats * side for side in sides))}
    tensor = [onnx.helper.make_tensor_value_info(name, 1, ["batch", *size]) for name, size in sizes.items()]
    nodes = [onnx.helper.make_node("Identity", ["x"], ["answer"])]
    scales = []
    if repeats > 1:
        scales = [onnx.numpy_helper.from_array(np.array([1, 1, repeats, repeats], np.float32), "scales")]
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        nodes = [onnx.helper.make_node("Resize", ["x", "", "scales"], ["answer"], **how)]
    graph = onnx.helper.make_graph(nodes, "identity", tensor[:1], tensor[1:], scales)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def confide(path: Path, name: str, values: np.ndarray, terms: str = LOGITS) -> np.ndarray:
    loaded = load_graph(write_identity(path / "graph.onnx", values.shape[1:]))
    answer = TensorSpec(name="answer", dtype="float32", row_shape=values.shape[1:])
    loaded, output = add_confidence(loaded, answer, recipe=find_recipe(name), terms=terms, name="confidence")
    with open_graph(loaded.model) as runner:
        found: np.ndarray = runner.run({"x": values})[output]
    return found


def softmax(values: np.ndarray, axis: int) -> np.ndarray:
    shares: np.ndarray = np.exp(values - values.max(axis=axis, keepdims=True))
    return shares / shares.sum(axis=axis, keepdims=True)


@pytest.mark.parametrize(("size", "step"), [((20, 30), 1), ((48, 56), 2), ((96, 112), 4)])
def test_pixels_are_brought_to_one_number(tmp_path: Path, size: tuple[int, int], step: int) -> None:
    values = np.random.default_rng(0).normal(0, 2, (3, 5, *size)).astype(np.float32)
    shares = np.sort(softmax(values[:, :, ::step, ::step], 1).reshape(3, 5, -1), axis=1)
    largest = shares[:, -1]
    tenth = max(1, round(0.1 * largest.shape[1]))
    expected = {
        "mean-pixel": largest.mean(axis=1),
        "quantile-pixel": np.sort(largest, axis=1)[:, tenth - 1],
        "share-pixel": (largest > 0.7).mean(axis=1),
        "margin-pixel": (largest - shares[:, -2]).mean(axis=1),
    }
    for name, wanted in expected.items():
        assert confide(tmp_path, name, values) == pytest.approx(wanted, abs=1e-5), name


def test_probabilities_are_taken_as_they_are(tmp_path: Path) -> None:
    shares = softmax(np.random.default_rng(1).normal(0, 2, (2, 4, 6, 7)), 1).astype(np.float32)

    assert confide(tmp_path, "mean-pixel", shares, PROBABILITIES) == pytest.approx(shares.max(axis=1).mean(axis=(1, 2)))


def test_peaks_are_brought_to_one_number(tmp_path: Path) -> None:
    maps = np.random.default_rng(2).normal(0, 2, (3, 5, 6, 7)).astype(np.float32)
    peaks = softmax(maps.reshape(3, 5, -1), 2).max(axis=2)
    expected = {
        "mean-peak": peaks.mean(axis=1), "min-peak": peaks.min(axis=1), "share-peak": (peaks > 0.1).mean(axis=1)
    }  # fmt: skip
    for name, wanted in expected.items():
        assert confide(tmp_path, name, maps) == pytest.approx(wanted, abs=1e-6), name


def shrink(path: Path, form: str, values: np.ndarray) -> np.ndarray:
    loaded = load_graph(write_identity(path / "graph.onnx", values.shape[1:]))
    answer = TensorSpec(name="answer", dtype="float32", row_shape=values.shape[1:])
    loaded, spec = make_small(loaded, answer, form, "small")
    with open_graph(loaded.model) as runner:
        found: np.ndarray = runner.run({"x": values})["small"]
    assert (spec.dtype, spec.row_shape) == (str(found.dtype), found.shape[1:])
    return found


def test_keypoints_in_the_graph_are_those_of_the_task(tmp_path: Path) -> None:
    maps = np.random.default_rng(3).normal(0, 1, (40, 5, 4, 6)).astype(np.float32)  # with peaks at every border

    assert shrink(tmp_path, "keypoints", maps) == pytest.approx(find_keypoints(maps), abs=1e-6)


def test_classes_in_the_graph_are_the_largest_logits(tmp_path: Path) -> None:
    logits = np.random.default_rng(4).normal(0, 1, (3, 7, 8, 9)).astype(np.float32)

    assert np.array_equal(shrink(tmp_path, "classes", logits), logits.argmax(axis=1))


def test_repeated_pixels_are_looked_at_once(tmp_path: Path) -> None:
    logits = np.random.default_rng(5).normal(0, 2, (3, 7, 8, 10)).astype(np.float32)
    whole = logits.repeat(2, axis=2).repeat(2, axis=3)
    loaded = load_graph(write_identity(tmp_path / "repeating.onnx", logits.shape[1:], repeats=2))
    answer = TensorSpec(name="answer", dtype="float32", row_shape=whole.shape[1:])
    outputs = {}
    for name in ("mean-pixel", "quantile-pixel", "share-pixel", "margin-pixel"):
        loaded, outputs[name] = add_confidence(loaded, answer, recipe=find_recipe(name), terms=LOGITS, name=name)
    loaded, small = make_small(loaded, answer, "classes", "small")
    with open_graph(loaded.model) as runner:
        found = runner.run({"x": logits})

    assert np.array_equal(found["small"], whole.argmax(axis=1))
    assert small.row_shape == found["small"].shape[1:]
    for name, output in outputs.items():
        assert found[output] == pytest.approx(confide(tmp_path, name, logits), abs=1e-6), name
    kinds = [node.op_type for node in loaded.model.graph]
    assert kinds.index("ArgMax") < len(kinds) - 1 - kinds[::-1].index("Resize")  # chosen once, repeated then


def test_what_is_not_dense_has_no_small_form(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="--answers classes: the answer 'answer' has rows of shape"):
        shrink(tmp_path, "classes", np.zeros((2, 5), np.float32))
    with pytest.raises(GraphError, match="too small to be decoded"):
        shrink(tmp_path, "keypoints", np.zeros((2, 5, 2, 8), np.float32))


def test_every_small_form_has_a_name_on_the_command_line() -> None:
    assert set(SMALL_ANSWERS) < set(ANSWERS)


def test_dense_answers_alone_have_dense_confidences() -> None:
    dense: Any = find_recipe("mean-pixel")
    assert dense.applies(np.zeros((2, 3, 4, 5), np.float32), True)
    assert not dense.applies(np.zeros((2, 3), np.float32), True)
