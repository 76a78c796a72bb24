"""Graphs of our own exit heads, written node by node: exporting a dozen of them through torch takes a minute.

What comes out is compared with the torch module on random rows, like any other export.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from torch import Tensor, nn

from artifacts import Cut, TensorSpec
from export.from_torch.modules import compare_with_torch
from export.graphs.files import BATCH
from export.graphs.loading import LoadedGraph, prepare_graph
from export.graphs.normalising import OPSET, normalise_model
from export.graphs.surgery import add_constant
from export.nets.heads import AnsweringHead, ChannelsFirst, HeadBottleneck, MapHead, mask_of
from export.nets.token_heads import MaskTensor, MeanHead, TokenHead

_IR_VERSION = 10


def write_head(head: nn.Module, cut: Cut, output: TensorSpec) -> LoadedGraph | None:
    """Writes the graph of an exit head.

    Args:
        head: in evaluation mode.
        cut: whose main tensor it reads, as float32, and the mask that it carries where the head wants one.
        output: its answer.

    Returns:
        The graph; ``None`` where the head is not made of our own parts, so that torch has to export it.

    Raises:
        GraphError: the graph answers otherwise than the module.
    """
    if not _is_ours(head, len(cut.main.row_shape)):
        return None
    features = ir.Value(
        name=cut.main.name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([BATCH, *cut.main.row_shape])
    )
    mask = mask_of(head)
    inputs = [features, *([] if mask is None else [_mask_value(mask)])]
    graph = ir.Graph(inputs, [], nodes=[], name=type(head).__name__, opset_imports={"": OPSET})
    answer = _Writer(graph).write(head, *inputs)
    answer.name = output.name
    answer.type = ir.TensorType(ir.DataType.FLOAT)
    answer.shape = ir.Shape([BATCH, *output.row_shape])
    graph.outputs.append(answer)
    model = ir.Model(graph, ir_version=_IR_VERSION)
    loaded = prepare_graph(normalise_model(model), input_shapes={}, where=type(head).__name__)
    compare_with_torch(loaded, head)
    return loaded


def _is_ours(module: nn.Module, rank: int) -> bool:
    """Is a module for features (B, ...) with so many axes in a row one that is written here?"""
    if isinstance(module, AnsweringHead):
        return _is_ours(module.head, rank)
    if type(module) is nn.Linear:
        return rank == 1 and module.bias is not None
    if type(module) is nn.Sequential:
        return all(type(part) in (ChannelsFirst, MapHead) for part in module)
    return type(module) in (MapHead, TokenHead, MeanHead)


def _mask_value(mask: MaskTensor) -> ir.Value:
    kind = ir.DataType.from_numpy(np.dtype("float32" if mask.dtype == "float16" else mask.dtype))
    return ir.Value(name=mask.name, type=ir.TensorType(kind), shape=ir.Shape([BATCH, *mask.row_shape]))


class _Writer:
    """Appends the nodes of modules to a graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._count = 0

    def write(self, module: nn.Module, x: ir.Value, *masks: ir.Value) -> ir.Value:
        """Appends what a module does to ``x`` and returns the result."""
        if isinstance(module, AnsweringHead):
            logits = self.write(module.head, x, *masks)
            return self._add("Softmax", [logits], axis=-1) if module.probabilities else logits
        if isinstance(module, nn.Linear):
            return self._linear(module, x)
        if isinstance(module, ChannelsFirst):
            return self._add("Transpose", [x], perm=[0, 3, 1, 2])
        if isinstance(module, TokenHead):
            first = self._add("Gather", [x, self._constant(np.array(0, np.int64))], axis=1)
            return self._linear(module.fc, self._add("Tanh", [self._linear(module.pooler, first)]))
        if isinstance(module, MeanHead):
            return self._linear(module.fc, self._mean(module.mask, x, masks[0]))
        if isinstance(module, MapHead):
            return self._map_head(module, x)
        for part in module.children():
            x = self.write(part, x)
        return x

    def _mean(self, mask: MaskTensor, x: ir.Value, values: ir.Value) -> ir.Value:
        """Appends the mean of the tokens that a mask keeps, as ``MeanHead.reduce``."""
        rows = self._add("Cast", [values], to=int(ir.DataType.FLOAT))
        for _ in range(len(mask.row_shape) - 1):
            rows = self._add("Gather", [rows, self._constant(np.array(0, np.int64))], axis=1)
        over = self._add("Greater", [rows, self._constant(np.array(mask.limit, np.float32))])
        over = self._add("Not", [over]) if mask.below else over
        kept = self._add("Cast", [over], to=int(ir.DataType.FLOAT))
        axis, last = self._constant(np.array([1], np.int64)), self._constant(np.array([-1], np.int64))
        weighted = self._add("Mul", [x, self._add("Unsqueeze", [kept, last])])
        total = self._add("ReduceSum", [weighted, axis], keepdims=0)
        count = self._add("ReduceSum", [kept, axis], keepdims=1)
        return self._add("Div", [total, self._add("Max", [count, self._constant(np.array(1, np.float32))])])

    def _map_head(self, head: MapHead, x: ir.Value) -> ir.Value:
        if head.pool > 1:
            x = self._add("AveragePool", [x], kernel_shape=[head.pool] * 2, strides=[head.pool] * 2)
        for block in head.bottlenecks:
            if not isinstance(block, HeadBottleneck):
                raise TypeError(f"{type(block).__name__} in the place of a bottleneck")
            x = self._bottleneck(block, x)
        return self._linear(head.fc, self._add("Flatten", [self._add("GlobalAveragePool", [x])], axis=1))

    def _bottleneck(self, block: HeadBottleneck, x: ir.Value) -> ir.Value:
        y = self._add("Relu", [self._conv(block.conv1, block.bn1, x)])
        y = self._add("Relu", [self._conv(block.conv2, block.bn2, y)])
        y, short = self._conv(block.conv3, block.bn3, y), self._conv(block.shortcut, block.bn4, x)
        return self._add("Relu", [self._add("Add", [y, short])])

    def _conv(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, x: ir.Value) -> ir.Value:
        """Appends a convolution with its batch normalisation folded in."""
        mean, variance = _array(norm.running_mean), _array(norm.running_var)
        scale = _array(norm.weight) / np.sqrt(variance + norm.eps)
        weight = _array(conv.weight) * scale.reshape(-1, 1, 1, 1)
        bias = _array(norm.bias) - mean * scale
        padding = [int(side) for side in conv.padding] * 2
        return self._add(
            "Conv", [x, self._constant(weight), self._constant(bias)], pads=padding, strides=list(conv.stride),
            kernel_shape=list(conv.kernel_size),
        )  # fmt: skip

    def _linear(self, linear: nn.Linear, x: ir.Value) -> ir.Value:
        weight, bias = self._constant(_array(linear.weight)), self._constant(_array(linear.bias))
        return self._add("Gemm", [x, weight, bias], transB=1)

    def _constant(self, array: np.ndarray) -> ir.Value:
        self._count += 1
        stored = array.astype(np.float32) if array.dtype == np.float64 else array
        return add_constant(self._graph, f"weight_{self._count}", stored)

    def _add(self, op: str, inputs: Sequence[ir.Value], **attributes: int | list[int]) -> ir.Value:
        node = ir.node(op, list(inputs), attributes)
        self._count += 1
        node.outputs[0].name = f"{op}_{self._count}"
        self._graph.append(node)
        return node.outputs[0]


def _array(tensor: Tensor | None) -> np.ndarray:
    """Returns a parameter in double precision, in which batch normalisation is folded."""
    if tensor is None:
        raise TypeError("a batch normalisation without statistics cannot be exported")
    found: np.ndarray = tensor.detach().double().numpy()
    return found
