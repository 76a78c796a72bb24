"""The batch axis: a graph that insists on a fixed batch size is rewritten to take any.

Exporters write the batch size of their example into the graph: into the shapes of inputs, the targets of ``Reshape``,
the sizes of ``Resize``, constants that are concatenated to every row. The rewrite below loosens each where it meets
the batch. It is a guess by position, and so every graph is run afterwards: with several batch sizes, row by row, and
at its old batch size against the graph as it was. A guess that was wrong is a refusal, never a wrong network.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from export.graphs.dataflow import describe_flow, name_of
from export.graphs.flow_model import tensor_kinds
from export.graphs.surgery import add_constant, make_node


def free_batch(graph: ir.Graph, batch: int) -> tuple[str, ...]:
    """Loosens what ties a graph to the batch size ``batch``.

    Args:
        graph: changed in place; input shapes are left to the caller.
        batch: the batch size of the file.

    Returns:
        One note per kind of rewrite and how often it was done.
    """
    flow = describe_flow(graph, tuple(name_of(value) for value in graph.outputs))
    kinds = tensor_kinds(flow)
    rewrites: dict[str, Callable[[ir.Graph, ir.Node, int], bool]] = {
        "Reshape": _free_reshape,
        "Resize": _free_resize,
        "Concat": _free_concat,
    }
    counts: dict[str, int] = {}
    for node in list(graph):
        rewrite = rewrites.get(node.op_type)
        reads_data = any(value is not None and kinds.get(value.name or "") == "data" for value in node.inputs)
        if rewrite is not None and reads_data and rewrite(graph, node, batch):
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
    rewritten = tuple(f"{count} {kind} freed from batch {batch}" for kind, count in sorted(counts.items()))
    return (f"fixed batch {batch} made symbolic", *rewritten)


def _free_reshape(graph: ir.Graph, node: ir.Node, batch: int) -> bool:
    target = _constant(node.inputs[1])
    if target is None or target.size == 0 or target[0] in (0, -1):
        return False
    freed = target.astype(np.int64)
    if -1 not in freed:
        freed[0] = -1
    elif freed[0] == batch and not node.attributes.get_int("allowzero", 0):
        freed[0] = 0
    else:
        return False
    node.replace_input_with(1, add_constant(graph, f"{name_of(node.outputs[0])}/free_shape", freed))
    return True


def _free_resize(graph: ir.Graph, node: ir.Node, batch: int) -> bool:
    if len(node.inputs) < 4 or node.inputs[3] is None or "axes" in node.attributes:
        return False
    sizes = _constant(node.inputs[3])
    data = node.inputs[0]
    if sizes is None or data is None or sizes[0] != batch:
        return False
    node.replace_input_with(3, _batch_and(graph, node, data, sizes[1:]))
    return True


def _free_concat(graph: ir.Graph, node: ir.Node, batch: int) -> bool:
    axis = node.attributes.get_int("axis", 0)
    constants = {position: _constant(value) for position, value in enumerate(node.inputs)}
    led = next((value for position, value in enumerate(node.inputs) if constants[position] is None), None)
    freed = False
    for position, array in constants.items():
        # only a batch of 1 can be expanded, and along the batch axis itself a constant is a row of its own
        if array is None or led is None or batch != 1 or array.ndim < 2 or array.shape[0] != 1:
            continue
        if axis % array.ndim == 0:
            continue
        source = node.inputs[position]
        size = _batch_and(graph, node, led, np.array(array.shape[1:], np.int64))
        expand = make_node("Expand", [source, size], f"{name_of(node.outputs[0])}/free_{position}")
        graph.insert_before(node, expand)
        node.replace_input_with(position, expand.outputs[0])
        freed = True
    return freed


def _batch_and(graph: ir.Graph, node: ir.Node, led: ir.Value, rest: np.ndarray) -> ir.Value:
    """Inserts the shape (rows of ``led``, *rest) before ``node``."""
    stem = f"{name_of(node.outputs[0])}/free_size_{len(graph)}"
    rows = make_node("Shape", [led], f"{stem}/rows", start=0, end=1)
    tail = add_constant(graph, f"{stem}/rest", rest.astype(np.int64))
    whole = make_node("Concat", [rows.outputs[0], tail], f"{stem}/shape", axis=0)
    graph.insert_before(node, [rows, whole])
    return whole.outputs[0]


def _constant(value: ir.Value | None) -> np.ndarray | None:
    if value is None or value.const_value is None:
        return None
    return np.asarray(value.const_value.numpy())
