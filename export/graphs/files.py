"""Graph files: models written as ``.onnx``, without stale shapes and without traces of where they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx
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


def load_graph_file(path: Path) -> ir.Model:
    """Reads a model that was written here; weights beside it when they are asked for, through links too."""
    model = ir.load(path)
    follow_links(model)
    return model


def follow_links(model: ir.Model) -> None:
    """Lets weights be read whose files are links: in the cache of the Hugging Face hub, or in a copy made by links.

    onnx_ir refuses to, since a file that one downloads might lead elsewhere; what a user or a cache linked is meant.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and is_linked(tensor):
                value.const_value = ir.LazyTensor(
                    partial(read_linked, tensor), dtype=tensor.dtype, shape=tensor.shape, name=tensor.name
                )


def is_linked(tensor: ir.ExternalTensor) -> bool:
    """Is the file of a tensor a symbolic link, behind one, or one of several hard links?"""
    folder, path = Path(tensor.base_dir), Path(tensor.path)
    return path.resolve() != folder.resolve() / tensor.location or path.stat().st_nlink > 1


def read_linked(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    """Returns a tensor with its values in memory, whatever its file is."""
    with Path(tensor.path).open("rb") as stream:
        stream.seek(tensor.offset or 0)
        content = stream.read(-1 if tensor.length is None else tensor.length)
    proto = onnx.TensorProto(
        name=tensor.name, data_type=tensor.dtype.value, dims=tensor.shape.numpy(), raw_data=content[: tensor.nbytes]
    )
    return ir.TensorProtoTensor(proto)


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
