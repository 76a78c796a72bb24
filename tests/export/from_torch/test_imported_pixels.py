"""Imported networks that answer every pixel: exits that answer likewise, or a refusal with the fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import GraphError, Model, RunFolder
from engines import run_graph
from export import ExportOptions, add_heads, build_head_ladders, build_missing_heads, export_model

CLASSES, HEIGHT, WIDTH = 3, 16, 24
ROWS = np.random.default_rng(0).random((2, 3, HEIGHT, WIDTH), np.float32)


def write_network(graph: Any, path: Path, *, end: str = "logits") -> Path:
    """Three convolutions, the first of stride 2; one answer per pixel of the image unless ``end`` says otherwise."""
    g = graph()
    x = g.input("x", 3, HEIGHT, WIDTH)
    for channels, before, stride in ((4, 3, 2), (6, 4, 1), (6, 6, 1)):
        x = g.add("Conv", x, g.weight(channels, before, 3, 3), pads=[1, 1, 1, 1], strides=[stride, stride])
        x = g.add("Relu", x)
    x = g.add("Conv", x, g.weight(CLASSES, 6, 1, 1))
    if end != "small":
        x = g.add("Resize", x, "", g.constant(np.array([1, 1, 2, 2], np.float32)), mode="linear")
    if end == "probabilities":
        x = g.add("Softmax", x, axis=1)
    if end == "classes":
        x = g.add("Cast", g.add("ArgMax", x, axis=1, keepdims=0), to=1)
    written: Path = g.save(path, x)
    return written


def export_network(graph: Any, folder: Path, end: str) -> Model:
    run = RunFolder(root=folder / "run")
    source = str(write_network(graph, folder / "net.onnx", end=end))
    return export_model(run, ExportOptions(source=source, task="segmentation", every=2)).model


def run_before_enlarging(path: Path) -> np.ndarray:
    """Returns what a graph's only ``Resize`` reads."""
    onnx = pytest.importorskip("onnx", reason="reads ONNX graphs: pip install 'pame[export]'")
    whole = onnx.load(path)
    (read,) = (node.input[0] for node in whole.graph.node if node.op_type == "Resize")
    whole.graph.output.append(onnx.helper.make_empty_tensor_value_info(read))
    other = path.with_name("before.onnx")
    onnx.save(whole, other)
    found: np.ndarray = run_graph(other, {"x": ROWS})[read]
    return found


@pytest.mark.parametrize("end", ["logits", "probabilities"])
def test_exits_answer_every_pixel_in_the_networks_terms(graph: Any, tmp_path: Path, end: str) -> None:
    model = export_network(graph, tmp_path, end)
    assert model.spec.task == "segmentation"
    model = add_heads(model, build_missing_heads(model), inputs={"training": "none"})
    (cut, head) = next(iter(model.spec.heads.items()))
    full = run_graph(model.path(model.spec.full), {"x": ROWS})
    likely = full[model.spec.full.answers[0]]
    if end == "logits":  # the confidence is that of the answer before it is enlarged
        likely = run_before_enlarging(model.path(model.spec.full))
        likely = np.exp(likely) / np.exp(likely).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(full["confidence"], likely.max(axis=1).mean(axis=(1, 2)), rtol=1e-5)
    spec = model.spec.cuts[model.spec.cut_index(cut)].main
    features = np.random.default_rng(1).random((2, *spec.row_shape), np.float32)
    found = run_graph(model.path(head), {spec.name: features})
    answer = found[head.answers[0]]
    assert answer.shape == (2, CLASSES, HEIGHT, WIDTH)
    sums_to_one = np.allclose(answer.sum(axis=1), 1, rtol=1e-4)
    assert sums_to_one == (end == "probabilities")
    (ladder,) = build_head_ladders(model, [cut]).values()
    sizes = [sum(weight.numel() for weight in rung.parameters()) for rung in ladder]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("end", "words"), [("small", "has 8 x 12 pixels"), ("classes", "Export the network without its argmax")]
)
def test_answers_that_are_no_pixels_of_the_image_are_refused(graph: Any, tmp_path: Path, end: str, words: str) -> None:
    with pytest.raises(GraphError, match=words):
        export_network(graph, tmp_path, end)
