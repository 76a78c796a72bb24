"""Tests of outputs that are not tensors of numbers, as classic machine-learning converters write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from artifacts import GraphError, RunFolder
from engines import run_graph
from export import ExportOptions, ExportResult, export_model
from tests.export.export_graphs import GraphBuilder


def build(builder: Any) -> GraphBuilder:
    g: GraphBuilder = builder()
    x = g.add("Relu", g.add("MatMul", g.input("x", 4), g.weight(4, 4)))
    g.add("Softmax", g.add("MatMul", x, g.weight(4, 3)), output="p")
    return g


def save(g: GraphBuilder, path: Path, *outputs: onnx.ValueInfoProto) -> Path:
    g.save(path)
    model = onnx.load(path)
    model.graph.output.extend(outputs)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    onnx.save(model, path)
    return path


def export(path: Path) -> ExportResult:
    return export_model(RunFolder(root=path.parent / "run"), ExportOptions(source=str(path)))


def maps_of(name: str) -> onnx.ValueInfoProto:
    kind = onnx.TypeProto()
    kind.sequence_type.elem_type.map_type.key_type = TensorProto.INT64
    kind.sequence_type.elem_type.map_type.value_type.tensor_type.elem_type = TensorProto.FLOAT
    return onnx.ValueInfoProto(name=name, type=kind)


def test_a_map_per_row_is_cut_off_at_its_probabilities(graph: Any, tmp_path: Path) -> None:
    g = build(graph)
    g.add("ZipMap", "p", output="y", domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2])
    path = save(g, tmp_path / "net.onnx", maps_of("y"))
    result = export(path)
    assert result.model.spec.full.answers == ("p",)
    assert result.model.spec.settings["confidence"] == "max"
    assert result.cut_report is not None
    assert result.cut_report.notes == ("output 'y', a map per row, cut off at its probabilities 'p'",)
    rows = {"x": np.random.default_rng(0).standard_normal((2, 4), dtype=np.float32)}
    found = run_graph(result.model.path(result.model.spec.full), rows)["p"]
    (maps,) = run_graph(path, rows).values()
    np.testing.assert_allclose(found, [[row[label] for label in range(3)] for row in maps], rtol=1e-5)


def test_words_are_refused_with_the_tensors_at_which_to_end(graph: Any, tmp_path: Path) -> None:
    g = build(graph)
    index = g.add("Cast", g.add("ReduceSum", "p", g.constant(np.array([1])), keepdims=0), to=7, output="index")
    g.add("LabelEncoder", index, output="y", domain="ai.onnx.ml", keys_int64s=[0, 1, 2], values_strings=list("abc"))
    probabilities = helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 3])
    words = helper.make_tensor_value_info("y", TensorProto.STRING, ["n"])
    with pytest.raises(GraphError, match="output 'y' holds words, .* ends before it, at 'p', 'index': onnx.utils"):
        export(save(g, tmp_path / "net.onnx", probabilities, words))


def test_a_sequence_is_refused_by_name(graph: Any, tmp_path: Path) -> None:
    g = build(graph)
    g.add("SplitToSequence", "p", output="y", axis=1)
    kind = onnx.TypeProto()
    kind.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    with pytest.raises(GraphError, match="output 'y' is a sequence, a map or an optional.*at 'p'"):
        export(save(g, tmp_path / "net.onnx", onnx.ValueInfoProto(name="y", type=kind)))


LABEL = helper.make_tensor_value_info("label", TensorProto.INT64, ["n"])
WORDS = helper.make_tensor_value_info("label", TensorProto.STRING, ["n"])
NOTE = "output 'label', the class of a row, left off: 'p' has a number for every class"


def choose(g: GraphBuilder, classes: list[Any] | None) -> None:
    """Adds the class of a row as sklearn-onnx does: an ArgMax, what the class of that number is called, a shape."""
    chosen = g.add("ArgMax", "p", axis=1, keepdims=0, output=None if classes else "label")
    if classes:
        words = np.array(classes, np.object_ if isinstance(classes[0], str) else np.int64)
        named = g.add("ArrayFeatureExtractor", g.constant(words), chosen, domain="ai.onnx.ml")
        g.add("Reshape", named, g.constant(np.array([-1])), output="label")


@pytest.mark.parametrize("first", [True, False], ids=["label first", "label last"])
@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize(
    ("classes", "names", "order"),
    [
        (None, (), ""), ([0, 1, 2], (), ""), (["cat", "cow", "dog"], ("cat", "cow", "dog"), ""),
        ([3, 5, 9], (), ", in the order {}; data labels them by their places, from 0"),
    ],
)  # fmt: skip
def test_the_class_beside_its_probabilities_is_left_off(
    graph: Any, tmp_path: Path, *, classes: list[Any] | None, names: tuple[str, ...], order: str, width: int,
    first: bool,
) -> None:  # fmt: skip
    g = graph(opset=12)
    x = g.add("Relu", g.add("MatMul", g.input("x", 4), g.weight(4, 4)))
    g.add("Softmax", g.add("MatMul", x, g.weight(4, width)), output="p", axis=1)
    classes = None if classes is None else classes[:width]
    choose(g, classes)
    probabilities = helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", width])
    label = WORDS if names else LABEL
    path = save(g, tmp_path / "net.onnx", *((label, probabilities) if first else (probabilities, label)))
    result = export(path)
    assert result.model.spec.full.answers == ("p",)
    assert result.model.spec.settings["confidence"] == "max"
    assert result.model.spec.classes == names[:width]
    assert result.cut_report is not None
    assert result.cut_report.notes == (NOTE + order.format(", ".join(map(str, classes or ()))),)
    rows = {"x": np.random.default_rng(0).standard_normal((5, 4), dtype=np.float32)}
    found = run_graph(result.model.path(result.model.spec.full), rows)["p"]
    np.testing.assert_allclose(found, run_graph(path, rows)["p"], rtol=1e-5)


@pytest.mark.parametrize("opset", [12, 20])
def test_the_class_beside_a_map_is_left_off_too(graph: Any, tmp_path: Path, opset: int) -> None:
    g = graph(opset=opset)
    x = g.add("Relu", g.add("MatMul", g.input("x", 4), g.weight(4, 4)))
    g.add("Softmax", g.add("MatMul", x, g.weight(4, 3)), output="p", axis=1)
    choose(g, ["cat", "cow", "dog"])
    g.add("ZipMap", "p", domain="ai.onnx.ml", classlabels_strings=["cat", "cow", "dog"], output="y")
    kind = onnx.TypeProto()
    kind.sequence_type.elem_type.map_type.key_type = TensorProto.STRING
    kind.sequence_type.elem_type.map_type.value_type.tensor_type.elem_type = TensorProto.FLOAT
    result = export(save(g, tmp_path / "net.onnx", WORDS, onnx.ValueInfoProto(name="y", type=kind)))
    assert result.model.spec.full.answers == ("p",)
    assert result.model.spec.classes == ("cat", "cow", "dog")
    assert result.cut_report is not None
    assert result.cut_report.notes == ("output 'y', a map per row, cut off at its probabilities 'p'", NOTE)


@pytest.mark.parametrize("second", ["value", "two values", "number of its own"])
def test_a_number_that_is_no_class_of_the_answer_stays(graph: Any, tmp_path: Path, second: str) -> None:
    g = build(graph)
    outputs = [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 3])]
    if second == "number of its own":
        g.add("Cast", g.add("ReduceSum", "p", g.constant(np.array([1])), keepdims=0), output="label", to=7)
    else:
        choose(g, None)
        g.add("ReduceMax", "p", g.constant(np.array([1])), output="value")
        outputs.append(helper.make_tensor_value_info("value", TensorProto.FLOAT, ["n", 1]))
    result = export(save(g, tmp_path / "net.onnx", LABEL, *outputs[-1 if second == "value" else 0 :]))
    left_off = second == "value"  # beside one value alone the class is the class all the same
    assert (len(result.model.spec.full.answers) == 1) == left_off


def save_trees(g: GraphBuilder, path: Path, *, words: bool = False, outputs: int = 2) -> Path:
    """Writes what LightGBM's and XGBoost's converters write: one operator that answers with class and probabilities."""
    names = {"classlabels_strings": ["no", "yes"]} if words else {"classlabels_int64s": [0, 1]}
    node = helper.make_node(
        "TreeEnsembleClassifier", [g.input("x", 4)], ["label", "p"], domain="ai.onnx.ml", post_transform="LOGISTIC",
        nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[2, 0, 0], nodes_values=[0.5, 0.0, 0.0],
        nodes_hitrates=[1.0] * 3, nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_truenodeids=[1, 0, 0],
        nodes_falsenodeids=[2, 0, 0], nodes_missing_value_tracks_true=[0] * 3, class_treeids=[0, 0],
        class_nodeids=[1, 2], class_ids=[0, 0], class_weights=[-1.5, 0.5], **names,
    )  # fmt: skip
    g.nodes.append(node)
    probabilities = helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 2])
    return save(g, path, *(WORDS if words else LABEL, probabilities)[:outputs])


@pytest.mark.parametrize("words", [False, True])
def test_trees_are_refused_as_one_operator(graph: Any, tmp_path: Path, *, words: bool) -> None:
    path = save_trees(graph(opset=12), tmp_path / "net.onnx", words=words)
    with pytest.raises(GraphError, match="no cuts.*TreeEnsembleClassifier is a whole model in one operator.*without"):
        export(path)
    whole = export_model(RunFolder(root=tmp_path / "run"), ExportOptions(source=str(path), segments=False)).model
    assert whole.spec.full.answers == ("p",)
    assert whole.spec.classes == (("no", "yes") if words else ())


def test_a_word_alone_is_refused_with_the_numbers_that_it_comes_from(graph: Any, tmp_path: Path) -> None:
    path = save_trees(graph(opset=12), tmp_path / "net.onnx", words=True, outputs=1)
    with pytest.raises(GraphError, match="output 'label' holds words.* ends before it, at 'p': onnx.utils"):
        export(path)
