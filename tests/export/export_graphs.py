"""Small ONNX graphs and export options for the tests of the export room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export import ExportOptions, ResNetConfig

TINY_NET = ResNetConfig(depth=20, input_shape=(1, 12, 12))
TINY = ExportOptions(net=TINY_NET, every=3, weights="random")


class GraphBuilder:
    """Writes small ONNX files node by node, with random weights."""

    def __init__(self, *, batch: str | int = "batch", opset: int = 20) -> None:
        self.batch, self.opset = batch, opset
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(0)

    def input(self, name: str, *row: int | str, dtype: int = onnx.TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, [self.batch, *row]))
        return name

    def weight(self, *shape: int) -> str:
        return self.constant((self._random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32))

    def constant(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(self, op: str, *inputs: str, output: str | None = None, **attributes: object) -> str:
        output = output or f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=f"n{len(self.nodes)}", **attributes))
        return output

    def save(self, path: Path, *outputs: str) -> Path:
        values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "graph", self.inputs, values, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        onnx.save(model, path)
        return path


def write_encoder(builder: Any, path: Path, layers: int = 3) -> Path:
    """Token ids -> embeddings -> layers with additive masks -> logits of the first token."""
    g = builder()
    ids = g.input("ids", 5, dtype=onnx.TensorProto.INT64)
    mask = g.input("mask", 5, dtype=onnx.TensorProto.FLOAT)
    hidden = g.add("Gather", g.weight(7, 8), ids)
    hidden = g.add("MatMul", hidden, g.weight(8, 8))
    dark = g.add("Mul", g.add("Sub", g.constant(np.float32(1)), mask), g.constant(np.float32(-1000)))
    bias = g.add("Unsqueeze", dark, g.constant(np.array([1])), output="bias")
    for layer in range(layers):
        query, key = g.add("MatMul", hidden, g.weight(8, 8)), g.add("MatMul", hidden, g.weight(8, 8))
        scores = g.add("MatMul", query, g.add("Transpose", key, perm=[0, 2, 1]))
        weights = g.add("Softmax", g.add("Add", scores, bias), axis=-1)
        hidden = g.add("Add", hidden, g.add("MatMul", weights, hidden), output=f"hidden{layer}")
    first = g.add("Gather", hidden, g.constant(np.array(0)), axis=1)
    g.add("MatMul", first, g.weight(8, 3), output="logits")
    return g.save(path, "logits")


def write_convnet(builder: Any, path: Path, *, end: str = "Softmax", **settings: Any) -> Path:
    g = builder(**settings)
    x = g.add("Conv", g.input("image", 3, 8, 8), g.weight(4, 3, 3, 3), pads=[1, 1, 1, 1])
    x = g.add("Relu", x, output="early")
    x = g.add("Relu", g.add("Conv", x, g.weight(6, 4, 3, 3), strides=[2, 2]), output="late")
    size = 6 * 3 * 3
    target = [settings["batch"], size] if isinstance(settings.get("batch"), int) else [0, size]
    x = g.add("Reshape", x, g.constant(np.array(target)), output="flat")
    x = g.add("Gemm" if g.opset >= 11 else "MatMul", x, g.weight(size, 5), output="logits")
    if end:
        x = g.add(end, x, output="answer")
    return g.save(path, x)
