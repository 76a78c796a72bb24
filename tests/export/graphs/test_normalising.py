"""Tests of normalising: opsets, functions of the model's own, and branches, which keep what they return."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from artifacts import RunFolder
from export import ExportOptions, ExportResult, export_model, load_graph
from export.graphs import normalising
from export.graphs.normalising import convert_opset, remove_identities
from export.graphs.reading import read_model
from tests.export.export_graphs import GraphBuilder, write_convnet


def export(path: Path) -> ExportResult:
    return export_model(RunFolder(root=path.parent / "run"), ExportOptions(source=str(path)))


@pytest.mark.parametrize("opset", [7, 8, 9, 12, 13, 17, 21, 24, 26])
def test_opsets_are_taken(graph: Any, tmp_path: Path, opset: int) -> None:
    path = write_convnet(graph, tmp_path / "net.onnx", opset=opset)
    assert load_graph(path).model.opset_imports[""] == max(opset, 20)
    result = export(path)
    assert [cut.name for cut in result.model.spec.cuts] == ["early", "flat"]
    assert result.parity.source_relative < 1e-4


def test_big_weights_are_left_out_of_the_conversion(
    graph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_convnet(graph, tmp_path / "net.onnx", opset=12)
    whole = convert_opset(read_model(path), 20)
    monkeypatch.setattr(normalising, "_BIG", 100)
    seen: list[int] = []
    real = onnx.version_converter.convert_version

    def convert(proto: onnx.ModelProto, target: int) -> onnx.ModelProto:
        seen.append(proto.ByteSize())
        return real(proto, target)

    monkeypatch.setattr(onnx.version_converter, "convert_version", convert)
    parts = convert_opset(read_model(path), 20)
    assert seen[0] < path.stat().st_size / 2
    assert [value.name for value in parts.graph.inputs] == ["image"]
    for name, value in whole.graph.initializers.items():
        assert value.const_value is not None
        found = parts.graph.initializers[name].const_value
        assert found is not None
        np.testing.assert_array_equal(found.numpy(), value.const_value.numpy())


@pytest.mark.parametrize(("opset", "inner"), [(18, 18), (18, 13), (20, 20)])
def test_a_function_of_the_model_is_inlined_before_its_opset_is_converted(
    graph: Any, tmp_path: Path, opset: int, inner: int
) -> None:
    g: GraphBuilder = graph(opset=opset)
    x = g.add("MatMul", g.input("x", 4), g.weight(4, 4))
    x = g.add("twice", x, domain="mine")
    g.add("MatMul", x, g.weight(4, 3), output="y")
    path = g.save(tmp_path / "net.onnx", "y")
    model = onnx.load(path)
    body = [helper.make_node("Add", ["p", "p"], ["q"])]
    model.functions.append(helper.make_function("mine", "twice", ["p"], ["q"], body, [helper.make_opsetid("", inner)]))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    onnx.save(model, path)
    result = export(path)
    assert result.parity.source_relative < 1e-5
    nodes = onnx.load(result.model.path(result.model.spec.full)).graph.node
    assert {node.domain for node in nodes} == {""}


def branch(name: str, nodes: list[onnx.NodeProto], *outputs: str) -> onnx.GraphProto:
    values = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None) for output in outputs]
    return helper.make_graph(nodes, name, [], values)


@pytest.mark.parametrize("twice", [False, True])
def test_branches_keep_the_identities_that_they_return(graph: Any, tmp_path: Path, twice: bool) -> None:
    g: GraphBuilder = graph()
    z = g.add("MatMul", g.add("Relu", g.add("MatMul", g.input("x", 4), g.weight(4, 4))), g.weight(4, 3), output="z")
    width = g.add("Gather", g.add("Shape", "x"), g.constant(np.array(1)))
    wide = g.add("Greater", width, g.constant(np.array(100)))
    if twice:  # two outputs are one tensor, as in exported LSTM cells
        left = branch("l", [helper.make_node("Mul", ["z", "z"], ["p"]), helper.make_node("Identity", ["p"], ["q"])],
                      "p", "q")  # fmt: skip
        right = branch("r", [helper.make_node("Abs", ["z"], ["a"]), helper.make_node("Identity", ["a"], ["b"])],
                       "a", "b")  # fmt: skip
        g.nodes.append(helper.make_node("If", [wide], ["i", "j"], then_branch=left, else_branch=right))
        g.add("Add", "i", "j", output="y")
    else:  # a branch hands on a tensor of the graph around it
        left = branch("l", [helper.make_node("Add", [z, z], ["t"])], "t")
        right = branch("r", [helper.make_node("Identity", [z], ["e"])], "e")
        g.nodes.append(helper.make_node("If", [wide], ["y"], then_branch=left, else_branch=right))
    result = export(g.save(tmp_path / "net.onnx", "y"))
    assert result.parity.source_relative < 1e-6
    assert result.model.spec.cuts


def test_identities_go_by_the_rules(graph: Any, tmp_path: Path) -> None:
    g: GraphBuilder = graph()
    x = g.add("Identity", g.input("x", 4))
    a = g.add("Relu", x)
    g.add("Identity", a, output="y")
    g.add("Identity", a, output="again")
    g.add("Identity", "x", output="same")
    model = ir.load(g.save(tmp_path / "net.onnx", "y", "again", "same"))
    remove_identities(model.graph)
    assert [value.name for value in model.graph.outputs] == ["y", "again", "same"]
    assert sorted((node.op_type, str(node.outputs[0].name)) for node in model.graph) == [
        ("Identity", "again"), ("Identity", "same"), ("Relu", "y"),
    ]  # fmt: skip
