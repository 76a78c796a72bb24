"""Entries into ONNX Runtime's blocked layout of feature maps.

ONNX Runtime stores feature maps in blocks of channels (NCHWc) from the first convolution on, and then fuses a residual
addition and its activation into the convolution before it. A graph that was cut between two residual blocks loses that:
its input also feeds the addition behind the skip connection, in the plain layout, so the addition remains a node of its
own, with a reordering before and after it, and so does every later addition of the same resolution. On a ResNet-32 cut
after its second block that is 3 % of the whole network's time.

Only convolutions and pools bring a tensor into the blocked layout. So an input that feeds a convolution and an
addition first goes through an average pool of one pixel, which does not change a single bit.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from artifacts import MissingExtraError

_ENTRY = "/blocked_entry"
_BLOCKED_OPS = {"Add", "Mul"}  # these use the plain layout unless all of their inputs are blocked
_MAP_RANK = 4


def load_onnx() -> Any:
    """Imports onnx; ``MissingExtraError`` names the extra where it is missing."""
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("onnx", "onnxruntime") from error
    return onnx


def find_entries(onnx: Path) -> tuple[str, ...]:
    """Returns the inputs of a graph that need an entry: float32 maps (B, C, H, W) that a convolution and an addition or
    a multiplication read, and no other operator."""
    graph = _read(onnx).graph
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    return tuple(
        value.name
        for value in graph.input
        if value.type.tensor_type.elem_type == load_onnx().TensorProto.FLOAT
        and len(value.type.tensor_type.shape.dim) == _MAP_RANK
        and (ops := readers.get(value.name, set())) & _BLOCKED_OPS
        and ops - _BLOCKED_OPS == {"Conv"}
    )


def insert_entries(onnx: Path, names: Collection[str]) -> bytes:
    """Returns the graph with a pool between each of the named inputs and all of its readers."""
    model = _read(onnx)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name in names:
                node.input[index] = name + _ENTRY
    for name in names:
        entry = load_onnx().helper.make_node("AveragePool", [name], [name + _ENTRY], name + _ENTRY, kernel_shape=[1, 1])
        model.graph.node.insert(0, entry)
    serialised: bytes = model.SerializeToString()
    return serialised


def used_entries(optimised: Path, names: Collection[str]) -> tuple[str, ...]:
    """Returns the named inputs whose entry ONNX Runtime turned into an entry to the blocked layout.

    It leaves the others as they were written, as pools that only cost time: where the number of channels is not a
    multiple of a block, for instance.
    """
    plain = {name for node in _read(optimised).graph.node for name in node.output}
    return tuple(name for name in names if name + _ENTRY not in plain)


def _read(onnx: Path) -> Any:
    return load_onnx().load(onnx, load_external_data=False)
