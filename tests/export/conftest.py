"""Small real networks: hand-written ONNX graphs, and one exported ResNet per session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from artifacts import Model, RunFolder
from export import ExportOptions, add_heads, build_missing_heads, export_model

TINY = ExportOptions(depth=20, input_shape=(1, 12, 12), every=3, weights="random")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A ResNet-20 on 12x12 images with random weights, cut after blocks 3, 6 and 9; no heads."""
    run = RunFolder(root=tmp_path_factory.mktemp("runs") / "tiny")
    export_model(run, TINY)
    return run


@pytest.fixture(scope="session")
def tiny_with_heads(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The same with (untrained) exit heads at both candidates."""
    run = RunFolder(root=tmp_path_factory.mktemp("runs") / "tiny-heads")
    model = export_model(run, TINY).model
    return add_heads(model, build_missing_heads(model), inputs={"training": "none"})


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


@pytest.fixture
def graph() -> Callable[..., GraphBuilder]:
    return GraphBuilder
