"""A graph that was cut between two residual blocks preserves ONNX Runtime's blocked layout and its fusions."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from artifacts import GraphSpec, MissingExtraError, TensorSpec
from engines import BuildOptions, ensure_engine
from engines.ort import blocked_layout as ort_entries
from engines.ort.blocked_layout import find_entries

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

SIDE = 5


def write_blocks(path: Path, *, channels: int, dtype: int = TensorProto.FLOAT, also_read_by: str = "") -> GraphSpec:
    """Writes two residual blocks whose input comes from elsewhere."""
    rng = np.random.default_rng(0)
    nodes, weights, before = [], [], "cut"
    for block in range(2):
        weight = rng.standard_normal((channels, channels, 3, 3)).astype(helper.tensor_dtype_to_np_dtype(dtype)) / 9
        weights.append(numpy_helper.from_array(weight, f"w{block}"))
        nodes += [
            helper.make_node("Conv", [before, f"w{block}"], [f"c{block}"], pads=[1] * 4),
            helper.make_node("Add", [f"c{block}", before], [f"a{block}"]),
            helper.make_node("Relu", [f"a{block}"], [f"r{block}"]),
        ]
        before = f"r{block}"
    outputs = ["r1"]
    if also_read_by:
        nodes.append(helper.make_node(also_read_by, ["cut"], ["more"]))
        outputs.append("more")
    shape = ["batch", channels, SIDE, SIDE]
    values = [helper.make_tensor_value_info(name, dtype, shape) for name in ("cut", *outputs)]
    graph = helper.make_graph(nodes, "blocks", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    specs = [TensorSpec(name=name, dtype="float32", row_shape=(channels, SIDE, SIDE)) for name in ("cut", *outputs)]
    return GraphSpec(name="blocks", file=path.name, inputs=(specs[0],), outputs=tuple(specs[1:]))


def built_ops(graph: GraphSpec, path: Path, cache: Path) -> list[str]:
    folder = ensure_engine(path, graph, cache, backend="onnxruntime", options=BuildOptions(max_batch_size=4))
    return [node.op_type for node in onnx.load(folder / "graph.onnx", load_external_data=False).graph.node]


def test_residual_additions_behind_a_cut_are_fused(tmp_path: Path) -> None:
    path = tmp_path / "blocks.onnx"
    graph = write_blocks(path, channels=32)
    assert find_entries(path) == ("cut",)
    assert sorted(built_ops(graph, path, tmp_path / "cache")) == [
        "AveragePool", "Conv", "Conv", "ReorderInput", "ReorderOutput",
    ]  # fmt: skip


def test_an_entry_changes_nothing_but_the_layout(tmp_path: Path) -> None:
    import onnxruntime

    path = tmp_path / "blocks.onnx"
    graph = write_blocks(path, channels=32)
    rows = np.random.default_rng(1).standard_normal((3, 32, SIDE, SIDE)).astype(np.float32)
    rows[1, 0, 0, 0] = np.nan
    [plain] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"cut": rows})
    folder = ensure_engine(
        path, graph, tmp_path / "cache", backend="onnxruntime", options=BuildOptions(max_batch_size=4)
    )
    session = onnxruntime.InferenceSession(folder / "graph.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"cut": rows})[0], plain, rtol=1e-5, atol=1e-5)


def test_an_entry_that_onnxruntime_does_not_take_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "blocks.onnx"
    graph = write_blocks(path, channels=6)  # not a multiple of a block
    assert find_entries(path) == ("cut",)
    assert "AveragePool" not in built_ops(graph, path, tmp_path / "cache")


def test_only_maps_that_feed_convolutions_and_additions_alone_need_an_entry(tmp_path: Path) -> None:
    path = tmp_path / "blocks.onnx"
    write_blocks(path, channels=32, also_read_by="Sigmoid")
    assert find_entries(path) == ()
    write_blocks(path, channels=32, dtype=TensorProto.FLOAT16)
    assert find_entries(path) == ()


def test_a_missing_onnx_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"pame\[onnxruntime\]"):
        ort_entries.load_onnx()
