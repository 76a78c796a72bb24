"""Number formats of a graph: what it computes in, and how coarsely it rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from artifacts import Quantisation, TensorSpec
from export.graphs.dataflow import name_of
from export.graphs.surgery import add_constant, make_node, prepend_nodes

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_QUANTISING_OPS = frozenset({
    "ConvInteger", "DequantizeLinear", "MatMulInteger", "QAttention", "QGemm", "QLinearConv", "QLinearMatMul",
    "QuantizeLinear",
})  # fmt: skip
_DYNAMIC_OPS = frozenset({"DynamicQuantizeLSTM", "DynamicQuantizeLinear", "DynamicQuantizeMatMul"})


def precision_of(graph: ir.Graph) -> str:
    """Returns ``fp16`` for a graph most of whose floating-point weights are float16, else ``fp32``."""
    sizes = Counter[ir.DataType]()
    for inner in (graph, *graph.subgraphs()):
        for value in inner.initializers.values():
            if value.const_value is not None and value.const_value.dtype.is_floating_point():
                sizes[value.const_value.dtype] += value.const_value.size
    half = sizes[ir.DataType.FLOAT16]
    return "fp16" if 2 * half > sum(sizes.values()) else "fp32"


def rounding_of(graph: ir.Graph) -> str:
    """Returns the coarsest number format: ``int8`` for a quantised graph, ``fp16``, ``bf16`` or ``fp32``."""
    nodes = list(ir.traversal.RecursiveGraphIterator(graph))
    if any(node.op_type in _QUANTISING_OPS for node in nodes):
        return "int8"
    types = {value.dtype for value in graph.inputs}
    for inner in (graph, *graph.subgraphs()):
        types |= {value.const_value.dtype for value in inner.initializers.values() if value.const_value is not None}
    types |= {ir.DataType(node.attributes.get_int("to", 0)) for node in nodes if node.op_type == "Cast"}
    if ir.DataType.BFLOAT16 in types:
        return "bf16"
    return "fp16" if ir.DataType.FLOAT16 in types else "fp32"


def batch_wide_quantisation(graph: ir.Graph) -> ir.Node | None:
    """Returns a node that quantises by the range of the whole batch, which it finds as it runs, if there is one.

    These are ONNX's ``DynamicQuantizeLinear``, what ONNX Runtime fuses of it, and a ``QuantizeLinear`` whose scale is
    computed from the data: unless it has a scale per row, or per block of one, which probing then judges.
    """
    for node in ir.traversal.RecursiveGraphIterator(graph):
        if node.op_type in _DYNAMIC_OPS:
            return node
        by_row = node.attributes.get_int("axis", 1) == 0 or node.attributes.get_int("block_size", 0) > 0
        if node.op_type == "QuantizeLinear" and not by_row and _reads_data(node.inputs[1]):
            return node
    return None


def _reads_data(value: ir.Value | None) -> bool:
    """Returns whether a value is computed from an input of a graph."""
    waiting, seen = [value], set[ir.Value]()
    while waiting:
        value = waiting.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        node = value.producer()
        if node is None and value.is_graph_input():
            return True
        waiting += [] if node is None else node.inputs
    return False


def find_quantised(graph: ir.Graph) -> dict[str, Quantisation]:
    """Returns the tensors that hold quantised numbers of one scale, and what their integers stand for."""
    found = {}
    for node in graph:
        if node.op_type != "QuantizeLinear" or len(node.inputs) < 3:
            continue
        scale, zero = (None if value is None or value.const_value is None else value.const_value.numpy()
                       for value in node.inputs[1:3])  # fmt: skip
        if scale is not None and zero is not None and scale.size == zero.size == 1 and scale.dtype == np.float32:
            found[name_of(node.outputs[0])] = Quantisation(scale=float(scale.item()), zero_point=int(zero.item()))
    return found


def dequantise_inputs(graph: ir.Graph, specs: Iterable[TensorSpec]) -> None:
    """Lets a graph that reads float32 take quantised tensors: a ``DequantizeLinear`` stands behind each of them.

    Args:
        graph: changed in place.
        specs: what its inputs shall be; others, and those that are not quantised, stay as they are.
    """
    wanted = {spec.name: spec for spec in specs if spec.quantised is not None}
    steps: list[ir.Node] = []
    for index, inner in enumerate(graph.inputs):
        spec = wanted.get(name_of(inner))
        if spec is None or spec.quantised is None:
            continue
        inner.name = f"{spec.name}/inner"
        kind = np.dtype(spec.dtype)
        outer = ir.Value(name=spec.name, type=ir.TensorType(ir.DataType.from_numpy(kind)), shape=inner.shape)
        scale = add_constant(graph, f"{spec.name}/scale", np.array(spec.quantised.scale, np.float32))
        zero = add_constant(graph, f"{spec.name}/zero_point", np.array(spec.quantised.zero_point, kind))
        steps.append(make_node("DequantizeLinear", [outer, scale, zero], f"{spec.name}/float"))
        inner.replace_all_uses_with(steps[-1].outputs[0], replace_graph_outputs=True)
        graph.inputs[index] = outer
    prepend_nodes(graph, steps)
