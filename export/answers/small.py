"""Small answers: what a dense network says, brought to what a client wants, inside the graph.

``classes``    of logits (B, C, H, W) the class of each pixel, (B, H, W) uint8: a hundredth of the bytes. Where pixels
               were repeated last, each is chosen once and its class repeated, which is the same.
``keypoints``  of heat maps (B, J, H, W) the place of each joint and how high its peak is, (B, J, 3) float32; the same
               as ``artifacts.find_keypoints``, which says how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from artifacts import GraphError, TensorSpec
from export.answers.enlarging import find_repetition
from export.graphs.dataflow import name_of
from export.graphs.files import BATCH
from export.graphs.loading import LoadedGraph
from export.graphs.surgery import add_constant, make_node

_MOST_CLASSES = 256
_SHIFT = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallAnswer:
    """A small form of answers.

    Attributes:
        dtype: of the small form.
        row_shape: of the given form -> of the small one.
        add: appends its nodes: (graph, answer, its row shape, name of the new tensor) -> the tensor.
    """

    dtype: str
    row_shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    add: Callable[[ir.Graph, ir.Value, tuple[int, ...], str], ir.Value]


def make_small(loaded: LoadedGraph, answer: TensorSpec, form: str, name: str) -> tuple[LoadedGraph, TensorSpec]:
    """Replaces an output of a graph by a small form of it.

    Args:
        loaded: the graph; its model is changed in place.
        answer: the output.
        form: one of ``SMALL_ANSWERS``.
        name: of the new output.

    Raises:
        GraphError: the output does not have the form of a dense answer.
    """
    small = SMALL_ANSWERS[form]
    if len(answer.row_shape) != 3 or answer.row_shape[0] > _MOST_CLASSES:
        raise GraphError(
            f"--answers {form}: the answer '{answer.name}' has rows of shape {answer.row_shape}; expected (classes or "
            f"joints, height, width), at most {_MOST_CLASSES} of them"
        )
    graph = loaded.model.graph
    given = next(output for output in graph.outputs if name_of(output) == answer.name)
    made = small.add(graph, given, answer.row_shape, name)
    spec = TensorSpec(name=name, dtype=small.dtype, row_shape=small.row_shape(answer.row_shape))
    made.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(spec.dtype)))
    made.shape = ir.Shape([BATCH, *spec.row_shape])
    graph.outputs[:] = [made if output is given else output for output in graph.outputs]
    outputs = tuple(name if output == answer.name else output for output in loaded.outputs)
    return replace(loaded, outputs=outputs), spec


def _add_classes(graph: ir.Graph, answer: ir.Value, _shape: tuple[int, ...], name: str) -> ir.Value:
    repeating = find_repetition(answer)
    if repeating is None:
        highest = make_node("ArgMax", [answer], f"{name}/index", axis=1, keepdims=0)
        byte = make_node("Cast", [highest.outputs[0]], name, to=ir.DataType.UINT8)
        graph.extend([highest, byte])
        return byte.outputs[0]
    highest = make_node("ArgMax", [repeating.inputs[0]], f"{name}/index", axis=1, keepdims=1)
    number = make_node("Cast", [highest.outputs[0]], f"{name}/number", to=ir.DataType.FLOAT)  # which all can resize
    repeated = make_node("Resize", [number.outputs[0], *repeating.inputs[1:]], f"{name}/repeated")
    repeated.attributes.update(repeating.attributes)
    axes = add_constant(graph, f"{name}/axes", np.array([1], np.int64))
    flat = make_node("Squeeze", [repeated.outputs[0], axes], f"{name}/flat")
    byte = make_node("Cast", [flat.outputs[0]], name, to=ir.DataType.UINT8)
    graph.extend([highest, number, repeated, flat, byte])
    return byte.outputs[0]


class _Decoder:
    """Appends what turns heat maps into keypoints, under one name."""

    def __init__(self, graph: ir.Graph, name: str) -> None:
        self._graph, self._name, self._count = graph, name, 0

    def constant(self, values: object, dtype: type[np.generic]) -> ir.Value:
        self._count += 1
        return add_constant(self._graph, f"{self._name}/constant_{self._count}", np.array(values, dtype))

    def add(self, op: str, *inputs: ir.Value, name: str | None = None, **attributes: ir.DataType | int) -> ir.Value:
        self._count += 1
        node = make_node(op, inputs, name or f"{self._name}/{op}_{self._count}", **attributes)
        self._graph.append(node)
        return node.outputs[0]

    def lean(self, maps: ir.Value, axis: int, size: int) -> ir.Value:
        """The sign of (the next cell - the one before) along an axis, 0 at its ends, as flat maps."""
        ints = np.int64
        after = self.add(
            "Slice", maps, self.constant([2], ints), self.constant([size], ints), self.constant([axis], ints)
        )
        before = self.add(
            "Slice", maps, self.constant([0], ints), self.constant([size - 2], ints), self.constant([axis], ints)
        )
        signs = self.add("Sign", self.add("Sub", after, before))
        pads = [0] * 8
        pads[axis] = pads[4 + axis] = 1
        return self.flatten(self.add("Pad", signs, self.constant(pads, ints)))

    def flatten(self, maps: ir.Value) -> ir.Value:
        return self.add("Reshape", maps, self.constant([0, 0, -1], np.int64))


def _add_keypoints(graph: ir.Graph, answer: ir.Value, shape: tuple[int, ...], name: str) -> ir.Value:
    _, height, width = shape
    if min(height, width) < 3:
        raise GraphError(f"--answers keypoints: heat maps of {height} x {width} cells are too small to be decoded")
    decoder = _Decoder(graph, name)
    flat = decoder.flatten(answer)
    index = decoder.add("ArgMax", flat, axis=-1, keepdims=1)
    across = decoder.constant(width, np.int64)
    row = decoder.add("Div", index, across)
    column = decoder.add("Sub", index, decoder.add("Mul", row, across))
    places = []
    for axis, cells, size in ((3, column, width), (2, row, height)):
        lean = decoder.add("GatherElements", decoder.lean(answer, axis, size), index, axis=2)
        moved = decoder.add("Mul", lean, decoder.constant(_SHIFT, np.float32))
        middle = decoder.add(
            "Add", decoder.add("Cast", cells, to=ir.DataType.FLOAT), decoder.constant(0.5, np.float32)
        )  # fmt: skip
        share = decoder.add("Div", decoder.add("Add", middle, moved), decoder.constant(size, np.float32))
        places.append(share)
    probabilities = decoder.add("Softmax", flat, axis=-1)
    peak = decoder.add("ReduceMax", probabilities, decoder.constant([-1], np.int64), keepdims=1)
    return decoder.add("Concat", *places, peak, name=name, axis=2)


SMALL_ANSWERS: Mapping[str, SmallAnswer] = {
    "classes": SmallAnswer(
        dtype="uint8", row_shape=lambda shape: shape[1:], add=_add_classes
    ),
    "keypoints": SmallAnswer(
        dtype="float32", row_shape=lambda shape: (shape[0], 3), add=_add_keypoints
    ),
}  # fmt: skip
