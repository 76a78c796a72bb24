"""``OnnxFacts``: digest and precision of an ONNX file, read from its bytes without the ``onnx`` package.

A production host rebuilds its engines with a backend alone, so nothing here may need more than the standard library.
Only a few fields matter; this walks the protobuf wire format (protobuf.dev/programming-guides/encoding) over them.
The field numbers are those of onnx.proto3, which never change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from artifacts import EngineError, digest_of, file_digest

_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 5, 11, 12
_NAME = {_GRAPH_INITIALIZER: 8, _GRAPH_INPUT: 1, _GRAPH_OUTPUT: 1}
_NODE_OP_TYPE = 4
_TENSOR_DATA_TYPE, _TENSOR_EXTERNAL_DATA = 2, 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_FLOAT_TYPES = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}
_QUANTISED_OPS = {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul"}


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFacts:
    """The identity of a graph.

    Attributes:
        digest: SHA-256 in hex of the file and, where weights lie in further files, of those too.
        precision: the floating types of the weights, joined by ``+``, with ``int8`` where the graph quantises.
    """

    digest: str
    precision: str


def read_onnx_facts(onnx: Path) -> OnnxFacts:
    """Reads the identity of an ONNX file.

    Raises:
        EngineError: the file is missing or not an ONNX graph, or a file with its weights is missing or lies outside its
            folder.
    """
    try:
        data = memoryview(onnx.read_bytes())
    except OSError as error:
        raise EngineError(f"cannot read {onnx}: {error.strerror or error}; export the network again") from error
    types: set[int | memoryview] = set()
    external: set[str] = set()
    ops: set[str] = set()
    graphs = 0
    try:
        for number, graph in _fields(data):
            if number != _MODEL_GRAPH or not isinstance(graph, memoryview):
                continue
            graphs += 1
            for kind, part in _fields(graph):
                if kind == _GRAPH_NODE and isinstance(part, memoryview):
                    ops.update(str(value, "utf-8") for value in _values(part, _NODE_OP_TYPE))
                elif kind == _GRAPH_INITIALIZER and isinstance(part, memoryview):
                    types.update(value for n, value in _fields(part) if n == _TENSOR_DATA_TYPE)
                    external.update(_external_location(entry) for entry in _values(part, _TENSOR_EXTERNAL_DATA))
    except (ValueError, IndexError) as error:
        raise EngineError(f"{onnx} is not an ONNX graph ({error}); export the network again") from error
    if graphs != 1:
        raise EngineError(f"{onnx} is not an ONNX graph (it holds {graphs} of them); export the network again")
    found = sorted({_FLOAT_TYPES[kind] for kind in types if isinstance(kind, int) and kind in _FLOAT_TYPES})
    precision = [*found, "int8"] if ops & _QUANTISED_OPS else found or ["float32"]
    return OnnxFacts(digest=_digest(onnx, sorted(external - {""})), precision="+".join(precision))


def read_interface_names(onnx: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the names of a graph's inputs (without weights that are listed as inputs too) and of its outputs.

    Raises:
        EngineError: as ``read_onnx_facts``.
    """
    names: dict[int, list[str]] = {kind: [] for kind in _NAME}
    try:
        for graph in _values(memoryview(onnx.read_bytes()), _MODEL_GRAPH):
            for kind, part in _fields(graph):
                if kind in _NAME and isinstance(part, memoryview):
                    names[kind] += [str(value, "utf-8") for value in _values(part, _NAME[kind])]
    except OSError as error:
        raise EngineError(f"cannot read {onnx}: {error.strerror or error}; export the network again") from error
    except (ValueError, IndexError) as error:
        raise EngineError(f"{onnx} is not an ONNX graph ({error}); export the network again") from error
    weights = set(names[_GRAPH_INITIALIZER])
    return tuple(name for name in names[_GRAPH_INPUT] if name not in weights), tuple(names[_GRAPH_OUTPUT])


def _digest(onnx: Path, external: list[str]) -> str:
    if not external:
        return file_digest(onnx)
    digests = {}
    for location in external:
        pure = PurePosixPath(location)
        if pure.is_absolute() or ".." in pure.parts:
            raise EngineError(f"{onnx} takes weights from '{location}', outside its folder; export it again")
        if not (onnx.parent / location).is_file():
            raise EngineError(f"{onnx} takes weights from '{location}', which is missing; keep the files together")
        digests[location] = file_digest(onnx.parent / location)
    return digest_of([file_digest(onnx), digests])


def _external_location(entry: memoryview) -> str:
    key, value = [b"".join(_values(entry, number)) for number in (_ENTRY_KEY, _ENTRY_VALUE)]
    return value.decode() if key == b"location" else ""


def _values(data: memoryview, field: int) -> Iterator[memoryview]:
    for number, value in _fields(data):
        if number == field and isinstance(value, memoryview):
            yield value


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yields (field number, value) of a message; fixed-width values, which are not needed here, are skipped."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value
        elif wire == 2:
            size, position = _varint(data, position)
            if position + size > len(data):
                raise ValueError("a field runs past the end of the file")
            yield number, data[position : position + size]
            position += size
        elif wire in (1, 5):
            position += 8 if wire == 1 else 4
        else:
            raise ValueError(f"unknown wire type {wire}")


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
        if shift > 63:
            raise ValueError("a number is too long")
