"""Outputs of a graph: those that are not tensors of numbers are cut off before they are made, or refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from artifacts import GraphError, TensorSpec
from export.graphs.dataflow import describe_flow, name_of
from export.graphs.flow_model import tensor_kinds

_ML = "ai.onnx.ml"


def take_off_maps(graph: ir.Graph) -> tuple[str, ...]:
    """Replaces outputs of ZipMap, a map per row, by the probabilities that it reads.

    Returns:
        One note per output.
    """
    notes = []
    for index, output in enumerate(graph.outputs):
        node = output.producer()
        if node is None or (node.domain, node.op_type) != (_ML, "ZipMap") or node.inputs[0] is None:
            continue
        probabilities = node.inputs[0]
        notes.append(f"output '{name_of(output)}', a map per row, cut off at its probabilities '{probabilities.name}'")
        graph.outputs[index] = probabilities
        graph.remove(node, safe=True)
    return tuple(notes)


def take_off_constants(graph: ir.Graph, where: str) -> tuple[str, ...]:
    """Takes off outputs that say nothing about a row: constants, such as the names of classes, and inputs handed on.

    Returns:
        One note per output.

    Raises:
        GraphError: there are no others.
    """
    names = tuple(name_of(value) for value in graph.outputs)
    kinds = tensor_kinds(describe_flow(graph, names))
    idle = {name: "a constant" for name in names if kinds.get(name, "constant") == "constant"}
    idle |= {name_of(value): "an input" for value in graph.inputs if name_of(value) in names}
    if len(idle) == len(names):
        raise GraphError(f"{where}: its outputs {', '.join(names)} do not depend on its inputs")
    graph.outputs[:] = [value for value in graph.outputs if name_of(value) not in idle]
    return tuple(f"output '{name}', {what}, left off" for name, what in idle.items())


def check_outputs(graph: ir.Graph, where: str) -> None:
    """Refuses outputs that are not tensors of numbers.

    Raises:
        GraphError: an output holds words, or is a sequence, a map or an optional.
    """
    numbers = [name_of(value) for value in graph.outputs if not _why_not_numbers(value)]
    for value in graph.outputs:
        reason = _why_not_numbers(value)
        if reason:
            node = value.producer()
            read = [name_of(source) for source in (() if node is None else node.inputs) if source is not None]
            ends = ", ".join(f"'{name}'" for name in (*numbers, *read)) or "the tensors of numbers before it"
            raise GraphError(
                f"{where}: output '{name_of(value)}' {reason}, and an answer must be a tensor of numbers. Save a copy "
                f"of the network that ends before it, at {ends}: "
                "onnx.utils.extract_model(file, copy, inputs, outputs)"
            )


def check_answers(led: Mapping[str, TensorSpec], answers: Sequence[str]) -> None:
    """Refuses answers that are as long as their row.

    Args:
        led: tensors by name, as ``probe_tensors`` found them.
        answers: the outputs that answer.

    Raises:
        GraphError: one of them is.
    """
    for name in answers:
        if led[name].length_axes:
            raise GraphError(
                f"--lengths: the output '{name}' of the network is as long as its row; answers must have one shape. "
                "Export the network with an output of one shape, or leave --lengths out"
            )


def _why_not_numbers(value: ir.Value) -> str:
    if value.dtype == ir.DataType.STRING:
        return "holds words"
    if value.dtype == ir.DataType.BFLOAT16:
        return "is bfloat16, which engines do not hand over"
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        return "is a sequence, a map or an optional"
    node = value.producer()
    if node is not None and (node.domain, node.op_type) == (_ML, "LabelEncoder"):
        written = [name for name in node.attributes if name.startswith("values_")]
        if "values_strings" in written:
            return "holds words"
    return ""
