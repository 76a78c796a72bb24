"""Graph surgery: constants, named nodes, and nodes before all others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir


def add_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Registers an array as an initializer of a graph."""
    value = ir.Value(
        name=name,
        const_value=ir.tensor(array, name=name),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        shape=ir.Shape(array.shape),
    )
    graph.register_initializer(value)
    return value


def make_node(
    op: str, inputs: Sequence[ir.Value | None], output: str, *, outputs: int = 1, **attributes: ir.DataType | int
) -> ir.Node:
    """Makes a node of the standard operators; its first output is given the name, further ones that and a number."""
    node = ir.node(op, list(inputs), attributes, num_outputs=outputs)
    for place, value in enumerate(node.outputs):
        value.name = f"{output}/{place}" if place else output
    return node


def prepend_nodes(graph: ir.Graph, nodes: Sequence[ir.Node]) -> None:
    """Puts nodes before all others of a graph."""
    first = next(iter(graph), None)
    if first is None:
        graph.extend(nodes)
    elif nodes:
        graph.insert_before(first, nodes)
