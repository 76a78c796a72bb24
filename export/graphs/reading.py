"""Reading: an ``.onnx`` file with everything that it is made of, weights in files beside it included."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from artifacts import InputError, UsageError
from export.graphs.files import PROTO_LIMIT, follow_links, is_linked, read_linked, weight_bytes


def read_model(path: Path) -> ir.Model:
    """Reads an ONNX file as it is; weights beside it are loaded unless they are too many for one message.

    Raises:
        UsageError: there is no such file.
        InputError: the file is not ONNX, or weights beside it are missing or cut short.
    """
    model = _read_lazily(path)
    external = list(external_tensors(model))
    for tensor in external:
        _check_external(path, tensor)
    follow_links(model)
    if external and weight_bytes(model) < PROTO_LIMIT:
        ir.external_data.load_to_model(model)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                tensor = attribute.value
                values = read_linked(tensor) if is_linked(tensor) else tensor
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(values.numpy().copy()))
    return model


def weight_files(path: Path) -> dict[str, Path]:
    """Returns the files beside an ONNX file that hold its weights, by the names that it gives them.

    Raises:
        UsageError, InputError: as ``read_model``.
    """
    found = {}
    for tensor in external_tensors(_read_lazily(path)):
        _check_external(path, tensor)
        found[str(tensor.location)] = path.parent / tensor.location
    return found


def read_metadata(path: Path) -> dict[str, str]:
    """Returns the notes in an ONNX file, which converters and training frameworks write.

    Raises:
        UsageError, InputError: as ``read_model``.
    """
    return dict(_read_lazily(path).metadata_props)


def _read_lazily(path: Path) -> ir.Model:
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file")
    if path.stat().st_size == 0:
        raise InputError(f"{path} cannot be read as ONNX: it is empty (0 bytes). Download or export it again")
    try:
        proto = onnx.load_model(path, load_external_data=False)
        _forget_maps(proto)
        _make_dense(proto.graph)
        model = ir.from_proto(proto)
    except (DecodeError, ValueError, OSError, ir.serde.SerdeError) as error:
        raise InputError(f"{path} cannot be read as ONNX: {_what_else(path)}") from error
    for graph in model.graphs():
        ir.external_data.set_base_dir(graph, path.parent)
    return model


def _what_else(path: Path) -> str:
    """Returns what a file that is no ONNX is instead, and what to do."""
    with path.open("rb") as stream:
        head = stream.read(64).lstrip().lower()
    if b"ortm" in head[:8]:
        return "it is in ONNX Runtime's own format. Take the .onnx file that it was made from"
    for start, words in _OTHERS.items():
        if head.startswith(start):
            return words
    return "it is no ONNX, damaged or cut short. Download or export it again"


_OTHERS = {
    b"version https://git-lfs": "it is a pointer of Git LFS, without the content. Fetch that with: git lfs pull",
    b"<": "it is a web page, what a server says in place of a file. Download it again, by the link to the raw file",
    b"pk\x03\x04": "it is a zip archive, or a checkpoint of torch. Unpack it, or export the network: torch.onnx.export",
    b"\x1f\x8b": "it is compressed. Unpack it with: gzip -d",
    b"\x89hdf": "it is HDF5, as Keras saves networks. Convert it: tf2onnx",
}


def _make_dense(graph: onnx.GraphProto) -> None:
    """Turns sparse weights, for which onnx_ir has no form, into dense ones."""
    for sparse in graph.sparse_initializer:
        values, places = onnx.numpy_helper.to_array(sparse.values), onnx.numpy_helper.to_array(sparse.indices)
        dense = np.zeros(tuple(sparse.dims), values.dtype)
        if places.ndim == 1:
            dense.reshape(-1)[places] = values
        else:
            dense[tuple(places.T)] = values
        graph.initializer.append(onnx.numpy_helper.from_array(dense, sparse.values.name))
    graph.ClearField("sparse_initializer")


def _forget_maps(proto: onnx.ModelProto) -> None:
    """Drops the types of outputs that are maps, for which onnx_ir has none (see ``export.graphs.outputs``)."""
    for value in proto.graph.output:
        kind = value.type.sequence_type.elem_type if value.type.HasField("sequence_type") else value.type
        if kind.HasField("map_type"):
            value.ClearField("type")


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Yields the tensors of a model whose values lie in other files."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                yield attribute.value


def _check_external(path: Path, tensor: ir.ExternalTensor) -> None:
    location = Path(tensor.location)
    if location.is_absolute() or ".." in location.parts:
        raise InputError(
            f"{path}: its tensor '{tensor.name}' lies in {location}, outside the file's folder. Save the network again "
            "with its weights beside it: onnx.save(model, path, save_as_external_data=True, location=NAME)"
        )
    file = path.parent / location
    if not file.is_file():
        raise InputError(
            f"{path}: its tensor '{tensor.name}' lies in {file}, and there is no such file. Put the weights beside the "
            ".onnx file, under the name that they had when it was saved"
        )
    end = (tensor.offset or 0) + (tensor.length if tensor.length is not None else tensor.nbytes)
    if file.stat().st_size < end:
        raise InputError(
            f"{file} is cut short: {file.stat().st_size} bytes, and '{tensor.name}' of {path.name} ends at byte {end}. "
            "Copy it again"
        )
