"""Normalising: a model gets a current opset, one graph without functions, and a name for every value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import onnx
import onnx.inliner
import onnx_ir as ir
from onnx_ir.passes import common as passes

from artifacts import GraphError
from export.graphs.dataflow import name_of

OPSET = 20
_IR_VERSION = 10
_BIG = 1 << 16  # bytes of a weight that onnx need not see to convert a graph


def normalise_model(model: ir.Model) -> ir.Model:
    """Brings a model to opset 20 or later and into a form with one graph, no stale shapes and a name for every value.

    Raises:
        GraphError: the opset cannot be converted.
    """
    passes.RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version, _IR_VERSION)  # before IR 4 every initializer had to be an input
    model = convert_opset(_inline_functions(model), OPSET)
    passes.RemoveInitializersFromInputsPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    remove_identities(model.graph)
    for step in (passes.RemoveUnusedNodesPass(), passes.TopologicalSortPass(), passes.ClearMetadataAndDocStringPass()):
        step(model)
    _name_values(model.graph)
    _forget_twins(model.graph)
    return model


def _forget_twins(graph: ir.Graph) -> None:
    """Takes the names off nodes that share theirs: a name means nothing, and ONNX Runtime refuses two of one."""
    nodes = list(ir.traversal.RecursiveGraphIterator(graph))
    counts = Counter(node.name for node in nodes)
    for node in nodes:
        if counts[node.name] > 1:
            node.name = None


def _opset_of(imports: dict[str, int]) -> int:
    return imports.get("", 0) or imports.get("ai.onnx", 0)


def _inline_functions(model: ir.Model) -> ir.Model:
    """Replaces calls of the model's own functions by their bodies, in the opset of the model."""
    if not model.functions:
        return model
    own = _opset_of(model.opset_imports)
    if all(_opset_of(function.opset_imports) in (0, own) for function in model.functions.values()):
        passes.InlinePass()(model)
        return model
    try:
        return _change_proto(model, _inline_converted)
    except (RuntimeError, ValueError, TypeError) as error:
        names = ", ".join(f"'{function.name}' (opset {_opset_of(function.opset_imports)})"
                          for function in model.functions.values())  # fmt: skip
        raise GraphError(
            f"the graph uses opset {own}, and onnx cannot convert its own functions {names} to it: {error}. "
            "Export the network again with one opset, or replace the functions by their bodies"
        ) from error


def _inline_converted(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Inlines functions that are written in another opset, for which onnx has to know the types of what they read."""
    return onnx.inliner.inline_local_functions(onnx.shape_inference.infer_shapes(proto), convert_version=True)


def convert_opset(model: ir.Model, target: int) -> ir.Model:
    """Returns the model with at least opset ``target`` of the standard operators.

    Raises:
        GraphError: an operator has no counterpart there.
    """
    version = _opset_of(model.opset_imports)
    if version >= target:
        return model
    try:
        return _change_proto(model, lambda proto: onnx.version_converter.convert_version(proto, target))
    except (RuntimeError, ValueError, TypeError, onnx.version_converter.ConvertError) as error:
        raise GraphError(
            f"the graph uses opset {version}, which onnx cannot convert to opset {target}: {error}. "
            f"Export the network again with opset {target} or later"
        ) from error


def _change_proto(model: ir.Model, change: Callable[[onnx.ModelProto], onnx.ModelProto]) -> ir.Model:
    """Changes a model in its serialised form, from which big weights are left out: a message holds 2 GiB at most."""
    graph = model.graph
    weights = {
        name: value.const_value
        for name, value in graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes > _BIG
    }
    for name in weights:
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)
    changed = ir.from_proto(change(ir.to_proto(model)))
    for value in list(changed.graph.inputs):
        if value.name in weights:
            changed.graph.inputs.remove(value)
            value.const_value = weights[value.name]
            changed.graph.register_initializer(value)
    return changed


def remove_identities(graph: ir.Graph) -> None:
    """Removes the Identity nodes of a graph, those of its sub-graphs excepted.

    1. An Identity whose output is not an output of the graph goes; its readers read its input.
    2. One whose output is an output of the graph goes if its input is made by a node and is not an output itself; the
       input takes the output's name and place.
    3. Others stay: an output must have a name of its own.

    A branch of ``If`` or ``Loop`` may only return what it makes, so there an Identity may be needed.
    """
    for node in list(graph):
        if node.op_type != "Identity" or node.domain:
            continue
        source, target = node.inputs[0], node.outputs[0]
        if source is None:
            continue
        if target.is_graph_output():
            if source.producer() is None or source.is_graph_output():
                continue
            name = name_of(target)
            target.name = f"{name}/identity"
            source.name = name
            source.type = source.type or target.type
        target.replace_all_uses_with(source, replace_graph_outputs=True)
        graph.remove(node, safe=True)


def _name_values(graph: ir.Graph) -> None:
    """Gives every value a name of its own: some have none, and torch may give a value the name of an input."""
    seen = {value.name for value in (*graph.inputs, *graph.initializers.values())}
    taken = seen | {value.name for node in graph for value in node.outputs}
    number = 0
    for node in graph:
        for value in node.outputs:
            if value.name is None or value.name in seen:
                while f"value_{number}" in taken:
                    number += 1
                value.name = f"value_{number}"
                taken.add(value.name)
            seen.add(value.name)
