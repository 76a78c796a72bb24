"""The dataflow of an ONNX graph: its nodes and tensors as ``export.graphs.flow_model`` describes them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from export.graphs.flow_model import DataFlow, FlowNode, tensor_kinds

HEAVY_OPS = frozenset({
    "Attention", "BiasGelu", "Conv", "ConvInteger", "ConvTranspose", "DeformConv", "Einsum", "FusedConv", "FusedMatMul",
    "GRU", "Gemm", "GroupQueryAttention", "LSTM", "LinearAttention", "MatMul", "MatMulInteger", "MatMulNBits",
    "MultiHeadAttention", "QAttention", "QGemm", "QLinearConv", "QLinearMatMul", "RNN", "TfIdfVectorizer",
})  # fmt: skip
ML = "ai.onnx.ml"
_WHOLE = ("LinearClassifier", "LinearRegressor", "SVM", "TreeEnsemble")
SHAPE_OPS = frozenset({"Shape", "Size"})


def describe_flow(graph: ir.Graph, outputs: tuple[str, ...]) -> DataFlow:
    """Returns the dataflow of a topologically sorted graph towards some of its tensors."""
    return DataFlow(
        inputs=tuple(name_of(value) for value in graph.inputs),
        outputs=outputs,
        nodes=tuple(
            FlowNode(
                name=node.name or "",
                inputs=tuple(dict.fromkeys(name_of(value) for value in read_values(node))),
                outputs=tuple(name_of(value) for value in node.outputs if value.name),
                heavy=is_heavy(node),
                shape_only=node.op_type in SHAPE_OPS,
            )
            for node in graph
        ),
    )


def read_values(node: ir.Node) -> Iterator[ir.Value]:
    """Yields the values that a node reads: its inputs, and what its sub-graphs take from the graph around it."""
    for value in node.inputs:
        if value is not None and value.name:
            yield value
    for attribute in node.attributes.values():
        for graph in sub_graphs(attribute):
            for inner in ir.traversal.RecursiveGraphIterator(graph):
                yield from (value for value in inner.inputs if value is not None and value.graph is node.graph)
            yield from (value for value in graph.outputs if value.graph is node.graph)


def sub_graphs(attribute: ir.Attr) -> tuple[ir.Graph, ...]:
    """Returns the graphs that an attribute holds."""
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    if attribute.type == ir.AttributeType.GRAPHS:
        return tuple(attribute.as_graphs())
    return ()


def is_heavy(node: ir.Node) -> bool:
    """Does the node, or one in its sub-graphs, do work that is worth a segment of its own?"""
    if node.op_type in HEAVY_OPS:
        return True
    return any(
        inner.op_type in HEAVY_OPS
        for attribute in node.attributes.values()
        for graph in sub_graphs(attribute)
        for inner in ir.traversal.RecursiveGraphIterator(graph)
    )


def find_whole_model(graph: ir.Graph) -> str:
    """Returns the operator that is a whole model of its own, an ensemble of trees for instance; else nothing."""
    return next((node.op_type for node in graph if node.domain == ML and node.op_type.startswith(_WHOLE)), "")


def batch_wide_branch(graph: ir.Graph) -> str:
    """Returns the name of a node whose branch, or number of rounds, depends on values of all rows together, or nothing.

    A condition is one value for the whole batch: ``If`` and ``Loop`` may read shapes and constants, and not data.
    """
    kinds = tensor_kinds(describe_flow(graph, tuple(name_of(value) for value in graph.outputs)))
    data = {name for name, kind in kinds.items() if kind == "data"}
    for node in graph:
        if node.domain or node.op_type not in ("If", "Loop"):
            continue
        decides = {name_of(value) for value in node.inputs[: 1 if node.op_type == "If" else 2] if value is not None}
        if node.op_type == "Loop":
            decides |= _ends_by(node)
        if decides & data:
            return node.name or name_of(node.outputs[0])
    return ""


def _ends_by(loop: ir.Node) -> set[str]:
    """Returns the tensors around a loop whose values decide in its body when it ends."""
    body = loop.attributes["body"].as_graph()
    carried = dict(zip(body.inputs[2:], loop.inputs[2:], strict=False))
    found, waiting, seen = set(), [body.outputs[0]], set()
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        node = value.producer()
        if value in carried or (value.graph is loop.graph):
            outer = carried.get(value, value)
            found |= {name_of(outer)} if outer is not None else set()
            if value in carried:
                waiting.append(body.outputs[1 + list(carried).index(value)])
        elif node is not None and node.op_type not in SHAPE_OPS:
            waiting.extend(read_values(node))
    return found


def name_of(value: ir.Value) -> str:
    """Returns a value's name; graphs are given names to all their values when they are loaded."""
    if value.name is None:
        raise TypeError("a value without a name: the graph was not normalised")
    return value.name
