"""Number formats of a graph: what it computes in, and how coarsely it rounds."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from export.graphs.dataflow import name_of

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_QUANTISING_OPS = frozenset({
    "ConvInteger", "DequantizeLinear", "MatMulInteger", "QAttention", "QGemm", "QLinearConv", "QLinearMatMul",
    "QuantizeLinear",
})  # fmt: skip


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


def batch_wide_quantisation(graph: ir.Graph) -> str:
    """Returns the name of a node that quantises by the range of the whole batch, or nothing."""
    for node in ir.traversal.RecursiveGraphIterator(graph):
        if node.op_type == "DynamicQuantizeLinear":
            return node.name or name_of(node.outputs[0])
    return ""
