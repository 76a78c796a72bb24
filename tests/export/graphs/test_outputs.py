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
    index = g.add("ArgMax", "p", axis=1, keepdims=0, output="index")
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
