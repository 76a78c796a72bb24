"""The pass ``fp16``: weights and activations of a network become float16 (``onnxruntime.transformers.float16``).

The converter alone would get three things wrong. This pass converts a network by the following rules:

1. The network's inputs and outputs keep their types, except those that are asked for in half precision. A cast stands
   behind an input, and before an output.
2. The *tail* stays in float32: the nodes of ``_TAIL_OPS`` from which no other node leads to an output (softmax,
   maximum, what reshapes between them). It is taken off before the conversion and put back behind a cast, so that
   probabilities are computed and compared at full resolution. Near 1 a float16 has steps of 0.0005.
3. A negative constant that a float16 cannot hold becomes ``MASK``, unless an operator of ``_BOUNDING_OPS`` reads it.
   Additive masks hold the least float32 there is, or minus infinity. In float16 the first becomes minus infinity, and
   a row that is masked throughout becomes 0/0. ``MASK`` is 0 in every softmax of float16 and leaves room for what is
   added to it.
4. A float32 input that reaches a softmax before any heavy node is an additive mask that the caller makes. It is limited
   to ``MASK`` before its cast.
5. A network with an intermediate tensor beyond the range of float16 is refused. The range is measured in float32: where
   ONNX Runtime has no float16 kernel on the processor it computes a chain of nodes in float32, and would not overflow
   where a GPU does.
6. The shapes of intermediate values are dropped, since the file's may be stale.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from artifacts import GraphError, TensorSpec
from export.graphs.dataflow import is_heavy, name_of
from export.graphs.loading import LoadedGraph
from export.graphs.probing import open_graph
from export.graphs.surgery import add_constant, make_node, prepend_nodes

MASK = -1e4
_FLOAT16_MAX = float(np.finfo(np.float16).max)
_TAIL_OPS = frozenset({
    "ArgMax", "Cast", "Flatten", "HardSigmoid", "Identity", "LogSoftmax", "ReduceMax", "Reshape", "Sigmoid", "Softmax",
    "Squeeze", "TopK", "Unsqueeze",
})  # fmt: skip
_BOUNDING_OPS = frozenset({"Clip", "Max", "Min", "Pad"})  # where a huge constant is a bound, no mask


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Tail:
    """Nodes taken off a graph.

    Attributes:
        nodes: in topological order.
        reads: the tensors that they read and do not make, without constants.
        constants: the float32 constants that they read.
    """

    nodes: tuple[ir.Node, ...]
    reads: frozenset[str]
    constants: Mapping[str, np.ndarray]


def convert_to_fp16(loaded: LoadedGraph, half: Collection[str], rows: Mapping[str, np.ndarray]) -> LoadedGraph:
    """Converts a network to float16 by the rules of this module.

    Args:
        loaded: the graph in float32; changed in place.
        half: inputs and outputs that become float16 too.
        rows: input name -> (n, ...): rows on which the range of the network's tensors is measured.

    Raises:
        GraphError: a tensor does not fit into float16, or the type of an output cannot be inferred.
    """
    model = loaded.model
    ir.external_data.load_to_model(model)
    passes.ShapeInferencePass()(model)
    limit_masks(model.graph)
    check_range(loaded, rows)
    masks = [name for name in find_mask_inputs(model.graph) if name not in half]
    tail = _take_off(model.graph, half)
    converted = _convert(model)
    _cast_inputs(converted.graph, [spec for spec in loaded.inputs if spec.name not in half], masks)
    _put_back(converted.graph, tail, half, loaded.outputs)
    for step in (passes.TopologicalSortPass(), passes.ClearMetadataAndDocStringPass()):
        step(converted)
    for value in ir.convenience.create_value_mapping(converted.graph, include_subgraphs=True).values():
        if value not in converted.graph.inputs:
            value.shape = None
    inputs = tuple(
        replace(spec, dtype="float16") if spec.name in half and spec.dtype == "float32" else spec
        for spec in loaded.inputs
    )
    return replace(loaded, model=converted, inputs=inputs, precision="fp16", rounding=_coarser(loaded.rounding))


def _coarser(rounding: str) -> str:
    return "fp16" if rounding == "fp32" else rounding


def _convert(model: ir.Model) -> ir.Model:
    """Converts everything, inputs and outputs included, to float16."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    proto: onnx.ModelProto = convert_float_to_float16(ir.to_proto(model), keep_io_types=False, disable_shape_infer=True)
    seen: set[str] = set()
    for node in list(proto.graph.node):  # it adds a cast once per reader
        if node.op_type == "Cast" and node.output[0] in seen:
            proto.graph.node.remove(node)
        seen.update(node.output)
    return ir.from_proto(proto)


def check_range(loaded: LoadedGraph, rows: Mapping[str, np.ndarray]) -> None:
    """Refuses a network whose intermediate tensors do not fit into float16 (rule 5).

    Raises:
        GraphError: a tensor reaches too far on these rows; the message names the worst.
    """
    measured = loaded.model.clone()
    graph, peaks = measured.graph, dict[str, str]()
    for node in list(graph):
        for value in node.outputs:
            if value.name and value.dtype == ir.DataType.FLOAT:
                size = make_node("Abs", [value], f"{value.name}/size")
                peak = make_node("ReduceMax", [size.outputs[0]], f"{value.name}/peak", keepdims=0)
                graph.extend([size, peak])
                peaks[f"{value.name}/peak"] = value.name
    if not peaks:
        return
    graph.outputs[:] = [value for node in graph for value in node.outputs if value.name in peaks]
    with open_graph(measured) as runner:
        found = runner.run(rows)
    worst = max(found, key=lambda name: float(found[name]))
    if float(found[worst]) > _FLOAT16_MAX:
        raise GraphError(
            f"the network cannot be had in fp16: on the rows it was measured on, its tensor '{peaks[worst]}' reaches "
            f"{float(found[worst]):.3g}, and a float16 ends at {_FLOAT16_MAX:.0f}. Export it in fp32"
        )


def limit_masks(graph: ir.Graph) -> int:
    """Replaces what a float16 cannot hold in the negative constants of masks by ``MASK``; returns how many."""
    changed = 0
    for inner in (graph, *graph.subgraphs()):
        for value in list(inner.initializers.values()):
            array = None if value.const_value is None else value.const_value.numpy()
            if array is None or array.dtype != np.float32 or not (array < -_FLOAT16_MAX).any():
                continue
            if any(node.op_type in _BOUNDING_OPS for node, _ in value.uses()):
                continue
            value.const_value = ir.tensor(_limit(array), name=value.name)
            changed += 1
        for node in inner:
            fill = node.attributes.get("value") if node.op_type == "ConstantOfShape" else None
            filling = None if fill is None else fill.as_tensor().numpy()
            if filling is not None and filling.dtype == np.float32 and (filling < -_FLOAT16_MAX).any():
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(_limit(filling)))
                changed += 1
    return changed


def _limit(array: np.ndarray) -> np.ndarray:
    return np.where(array < -_FLOAT16_MAX, np.float32(MASK), array)


def find_mask_inputs(graph: ir.Graph) -> tuple[str, ...]:
    """Returns the float32 inputs that reach a softmax before anything heavy: additive masks."""
    found = []
    for value in graph.inputs:
        reached, waiting = set[ir.Node](), [node for node, _ in value.uses()]
        while waiting:
            node = waiting.pop()
            if node not in reached and not is_heavy(node):
                reached.add(node)
                waiting += [user for output in node.outputs for user, _ in output.uses()]
        if value.dtype == ir.DataType.FLOAT and any(node.op_type == "Softmax" for node in reached):
            found.append(name_of(value))
    return tuple(found)


def _take_off(graph: ir.Graph, half: Collection[str]) -> _Tail:
    """Takes the tail off a graph, whose outputs become whatever the tail read and those that it did not make."""
    nodes: list[ir.Node] = []
    members: set[ir.Node] = set()
    for node in reversed(list(graph)):
        outputs = [value for value in node.outputs if value.name]
        if node.op_type in _TAIL_OPS and not node.domain and all(
            (value.uses() or value.is_graph_output())
            and (not value.is_graph_output() or value.name not in half)
            and all(user in members for user, _ in value.uses())
            for value in outputs
        ):  # fmt: skip
            members.add(node)
            nodes.insert(0, node)
    read = list(dict.fromkeys(value for node in nodes for value in node.inputs if value is not None))
    constants = {
        name_of(value): value.const_value.numpy()
        for value in read
        if value.is_initializer() and value.const_value is not None and value.dtype == ir.DataType.FLOAT
    }
    made = [value for node in nodes for value in node.outputs]
    crossing = [value for value in read if value not in made and not value.is_initializer()]
    rest = [value for value in graph.outputs if value not in made]
    graph.outputs[:] = list(dict.fromkeys([*rest, *(value for value in crossing if not value.is_graph_input())]))
    graph.remove(nodes)
    return _Tail(nodes=tuple(nodes), reads=frozenset(map(name_of, crossing)), constants=constants)


def _cast_inputs(graph: ir.Graph, specs: Iterable[TensorSpec], masks: Collection[str]) -> None:
    """Gives inputs their float32 back, with a cast behind them; masks are limited before it."""
    wanted = {spec.name for spec in specs if spec.dtype == "float32"}
    steps: list[ir.Node] = []
    for index, inner in enumerate(graph.inputs):
        name = name_of(inner)
        if name not in wanted:
            continue
        inner.name = f"{name}/inner"
        outer = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=inner.shape)
        source = outer
        if name in masks:
            bounds = [add_constant(graph, f"{name}/{end}", np.array(bound, np.float32))
                      for end, bound in (("least", MASK), ("most", _FLOAT16_MAX))]  # fmt: skip
            steps.append(make_node("Clip", [outer, *bounds], f"{name}/limited"))
            source = steps[-1].outputs[0]
        steps.append(make_node("Cast", [source], f"{name}/fp16", to=ir.DataType.FLOAT16))
        inner.replace_all_uses_with(steps[-1].outputs[0], replace_graph_outputs=True)
        graph.inputs[index] = outer
    prepend_nodes(graph, steps)


def _put_back(graph: ir.Graph, tail: _Tail, half: Collection[str], outputs: Collection[str]) -> None:
    """Casts what the caller and the tail read back to float32, and appends the tail."""
    read = {name_of(value): value for value in graph.inputs}
    final: dict[str, ir.Value] = {}
    for value in list(graph.outputs):
        name = name_of(value)
        final[name] = read[name] = value
        if value.dtype is None:
            raise GraphError(f"the type of '{name}' cannot be inferred, so it cannot be converted; export it in fp32")
        if value.dtype != ir.DataType.FLOAT16:
            continue
        if name not in half:
            value.name = f"{name}/fp16"
        cast = make_node("Cast", [value], f"{name}/fp32" if name in half else name, to=ir.DataType.FLOAT)
        read[name] = cast.outputs[0]
        if name not in half:
            final[name] = cast.outputs[0]
        if name not in half or name in tail.reads:
            graph.append(cast)
    for name, array in tail.constants.items():
        read[name] = add_constant(graph, f"{name}/tail", array)
    read = {**graph.initializers, **read}
    for node in tail.nodes:
        again = ir.Node(
            node.domain, node.op_type, [None if value is None else read[name_of(value)] for value in node.inputs],
            node.attributes.values(), num_outputs=len(node.outputs), name=node.name,
        )  # fmt: skip
        for old, new in zip(node.outputs, again.outputs, strict=True):
            new.name, new.type = old.name, old.type
            if new.name:
                final[new.name] = read[new.name] = new
        graph.append(again)
    graph.outputs[:] = [final[name] for name in outputs]
