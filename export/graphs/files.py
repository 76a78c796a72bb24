"""Graph files: models written as ``.onnx``, without stale shapes and without traces of where they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from artifacts import TensorSpec

BATCH = "batch"
LENGTH = "length"
PRODUCER = "pame"
PROTO_LIMIT = 1 << 30  # bytes of weights in one message, which holds 2 GiB at most


def weight_bytes(model: ir.Model) -> int:
    """Returns the size of all constants of a model."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def symbolic_shape(spec: TensorSpec) -> ir.Shape:
    """Returns the shape of a tensor in a graph: batch and length are symbols."""
    row = [LENGTH if axis in spec.length_axes else size for axis, size in enumerate(spec.row_shape)]
    return ir.Shape([BATCH, *row])


def save_graph(model: ir.Model, path: Path) -> None:
    """Writes a model; weights beyond ``PROTO_LIMIT`` go into a file beside it."""
    ir.save(model, path, external_data=f"{path.name}.data" if weight_bytes(model) >= PROTO_LIMIT else None)


def graph_digest(model: ir.Model) -> str:
    """Returns the SHA-256 of a model in hex, without one message that holds all of it."""
    digest = hashlib.sha256()
    weights = {name: value.const_value for name, value in sorted(model.graph.initializers.items())}
    for name, tensor in weights.items():
        if tensor is not None:
            digest.update(f"{name} {tensor.dtype} {tensor.shape} ".encode())
            digest.update(np.ascontiguousarray(tensor.numpy()).view(np.uint8).data)
    bare = model.clone()
    for value in bare.graph.initializers.values():
        value.const_value = None
    bare.graph.initializers.clear()
    digest.update(ir.to_proto(bare).SerializeToString(deterministic=True))
    return digest.hexdigest()


def finish_model(
    graph: ir.Graph, template: ir.Model, *, name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> ir.Model:
    """Makes a model of a graph: the interface typed with a symbolic batch, everything in between untyped.

    Args:
        graph: has no other owner; changed in place.
        template: gives the opsets and the IR version.
        name: of the graph.
        inputs, outputs: the interface, in the order of the graph's.
    """
    graph.name = name
    # extraction gathers the constants in a set; sorted, equal graphs have equal bytes and digests
    constants = sorted(graph.initializers.values(), key=lambda value: value.name or "")
    graph.initializers.clear()
    for value in constants:
        graph.register_initializer(value)
    for node in graph:
        for value in node.outputs:
            value.shape = None
            value.type = None
    for value, spec in [*zip(graph.inputs, inputs, strict=True), *zip(graph.outputs, outputs, strict=True)]:
        value.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(spec.dtype)))
        value.shape = symbolic_shape(spec)
    model = ir.Model(graph, ir_version=template.ir_version, producer_name=PRODUCER)
    model.opset_imports.update(template.opset_imports)
    passes.RemoveUnusedOpsetsPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)
    return model
