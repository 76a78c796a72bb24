"""The confidence of a network's own answer, added to its graph in float32."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from artifacts import TensorSpec
from export.graphs.files import add_constant
from export.graphs.loading import LoadedGraph

_SHAPE_ONLY = frozenset({"Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
_NOT_A_CHOICE = frozenset({"Sigmoid", "HardSigmoid", "Tanh"})


def add_confidence(loaded: LoadedGraph, answer: TensorSpec) -> tuple[LoadedGraph, str | None, str]:
    """Adds the largest softmax probability of each row as an output, where the answer is a choice among classes.

    Args:
        loaded: the graph; its model is changed in place.
        answer: its only output.

    Returns:
        The graph, the name of the new output (``None``: the answer is no choice among classes) and how it is made:
        ``softmax``, ``max`` (the answer is a softmax already) or ``none``.
    """
    graph = loaded.model.graph
    value = next(item for item in graph.outputs if item.name == answer.name)
    maker = _maker(value)
    if not is_choice(answer) or maker in _NOT_A_CHOICE:
        return loaded, None, "none"
    kind = "max" if maker == "Softmax" else "softmax"
    taken = ir.convenience.create_value_mapping(graph, include_subgraphs=True)
    name = next(
        name for name in ("confidence", *(f"confidence_{i}" for i in range(len(taken) + 1))) if name not in taken
    )
    current = value
    nodes = []
    if answer.dtype != "float32":
        nodes.append(ir.node("Cast", [current], {"to": ir.DataType.FLOAT}))
        current = nodes[-1].outputs[0]
    if kind == "softmax":
        nodes.append(ir.node("Softmax", [current], {"axis": -1}))
        current = nodes[-1].outputs[0]
    axes = add_constant(graph, f"{name}/axes", np.array([-1], np.int64))
    nodes.append(ir.node("ReduceMax", [current, axes], {"keepdims": 0}))
    for index, node in enumerate(nodes[:-1]):
        node.outputs[0].name = f"{name}/step_{index}"
    nodes[-1].outputs[0].name = name
    graph.extend(nodes)
    graph.outputs.append(nodes[-1].outputs[0])
    return replace(loaded, outputs=(*loaded.outputs, name)), name, kind


def is_choice(answer: TensorSpec) -> bool:
    """Is an output of that form one number per class?"""
    return len(answer.row_shape) == 1 and answer.row_shape[0] > 1 and np.dtype(answer.dtype).kind == "f"


def _maker(value: ir.Value) -> str:
    node = value.producer()
    while node is not None and node.op_type in _SHAPE_ONLY and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return "" if node is None else node.op_type
