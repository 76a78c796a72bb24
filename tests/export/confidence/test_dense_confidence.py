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


def write_identity(path: Path, shape: tuple[int, ...]) -> Path:
    """Writes a graph that answers with its input."""
    tensor = [onnx.helper.make_tensor_value_info(name, 1, ["batch", *shape]) for name in ("x", "answer")]
    nodes = [onnx.helper.make_node("Identity", ["x"], ["answer"])]
    graph = onnx.helper.make_graph(nodes, "identity", tensor[:1], tensor[1:])
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


@pytest.mark.parametrize(("size", "step"), [((20, 30), 1), ((96, 112), 2), ((192, 200), 4)])
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
