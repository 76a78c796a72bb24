"""Tests of precision passes: the table, the measurement that a pass has to stand, and the rows it is measured on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from artifacts import PRECISIONS, GraphError, UsageError
from export.graphs.loading import LoadedGraph, load_graph
from export.precision import passes
from export.precision.passes import PassRequest, apply_precision
from tests.export.export_graphs import write_convnet


def test_there_is_a_pass_for_every_precision_and_no_other() -> None:
    assert tuple(passes._PASSES) == PRECISIONS
    with pytest.raises(UsageError, match="unknown precision 'fp61'"):
        apply_precision(LoadedGraph(model=ir.Model(ir.Graph([], [], nodes=[]), ir_version=10), inputs=(), outputs=()),
                        "fp61")  # fmt: skip


def test_a_pass_is_given_the_samples_and_measured_on_them(
    graph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_graph(write_convnet(graph, tmp_path / "net.onnx", end=""))
    seen: list[PassRequest] = []

    def negate(loaded: LoadedGraph, request: PassRequest) -> LoadedGraph:
        seen.append(request)
        inner = loaded.model.graph
        value = inner.outputs[0]
        value.name = "positive"
        node = ir.node("Neg", [value])
        node.outputs[0].name, node.outputs[0].type = "logits", value.type
        inner.append(node)
        inner.outputs[0] = node.outputs[0]
        return replace(loaded)

    monkeypatch.setattr(
        passes, "convert_to_fp16", lambda loaded, half, rows: negate(loaded, PassRequest(half=half, rows=rows))
    )
    samples = {"image": np.ones((4, 3, 8, 8), np.float32)}
    with pytest.raises(GraphError, match="its output 'logits' differs by .* where 0.05 is allowed. Export it in fp32"):
        apply_precision(loaded, "fp16", PassRequest(half=("image",), rows=samples))
    assert [(request.half, request.rows) for request in seen] == [(("image",), samples)]
