"""Tests of the pass int8: what is quantised, tensors at cuts, exit heads in float32, and nodes that go back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from artifacts import Classification, GraphError, Model, RunFolder, UsageError
from engines import GraphRunner
from export import ExportOptions, export_model
from export.folder.pipeline import count_rows
from export.graphs.loading import load_graph
from export.precision.floating import Trial, choose_float
from export.precision.int8 import LEAST_ROWS, choose_nodes, quantise
from tests.export.export_graphs import GraphBuilder, write_encoder
from tests.planner.source_worlds import SHAPE, write_conv_file


def draw(count: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((count, *SHAPE), np.float32)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("int8")
    source = str(write_conv_file(folder))
    options = ExportOptions(source=source, precision="int8", rows=lambda _run, count: draw(min(count, 64)))
    return export_model(RunFolder(root=folder / "run"), options).model


def test_tensors_at_cuts_are_quantised_under_their_own_names_and_cross_without_a_round_trip(model: Model) -> None:
    spec = model.spec
    assert (spec.precision, [cut.name for cut in spec.cuts][:2]) == ("int8", ["relu1", "relu3"])
    for cut, before, behind in zip(spec.cuts, spec.segments, (*spec.segments[1:], spec.final_head), strict=True):
        assert cut.main.dtype == "uint8"
        assert cut.main.quantised is not None
        written = ir.load(model.path(before)).graph.outputs[0].producer()
        assert written is not None
        assert written.op_type == "QuantizeLinear"
        assert behind is not None
        (read,) = [value for value in ir.load(model.path(behind)).graph.inputs if value.name == cut.name]
        assert {user.op_type for user, _ in read.uses()} == {"DequantizeLinear"}


def test_it_keeps_the_network_in_float32_and_answers_nearly_as_it_does(model: Model) -> None:
    reference, rows = model.spec.reference, draw(200)
    assert reference is not None
    with GraphRunner(model.path(reference)) as whole, GraphRunner(model.path(model.spec.full)) as coarse:
        expected, found = whole.run(rows)["logits"], coarse.run(rows)["logits"]
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
    with GraphRunner(model.artifact.folder.parent.parent / "conv.onnx") as original:
        np.testing.assert_allclose(expected, original.run(rows)["logits"], rtol=1e-4, atol=1e-5)


def test_weights_have_a_scale_per_channel_and_the_last_layer_stays_in_float32(model: Model) -> None:
    graph = ir.load(model.path(model.spec.full)).graph
    convolutions = [node for node in graph if node.op_type == "Conv"]
    for node in convolutions:
        dequantised = node.inputs[1].producer()  # type: ignore[union-attr]
        assert dequantised is not None
        weight, scale = dequantised.inputs[:2]
        assert (weight.const_value.dtype, scale.const_value.size) == (ir.DataType.INT8, 12)  # type: ignore[union-attr]
    (last,) = [node for node in graph if node.op_type in ("MatMul", "Gemm")]
    assert last.inputs[1].dtype == ir.DataType.FLOAT  # type: ignore[union-attr]


def test_masks_scores_and_sums_before_a_softmax_stay_in_float32(tmp_path: Path) -> None:
    graph = load_graph(write_encoder(GraphBuilder, tmp_path / "encoder.onnx")).model.graph
    chosen = choose_nodes(graph, ["logits"])
    kinds = Counter(node.op_type for node in graph if node.name in chosen)
    assert kinds == {"MatMul": 7, "Add": 3}, "products with weights but the last, and sums between them"
    assert not [node for node in graph if node.name in chosen and "bias" in [value.name for value in node.inputs]]  # type: ignore[union-attr]


def test_a_head_beside_the_answer_is_not_quantised(tmp_path: Path) -> None:
    builder = GraphBuilder()
    x = builder.input("x", *SHAPE)
    first = builder.add("Conv", x, builder.weight(4, 1, 3, 3), output="first")
    second = builder.add("Conv", first, builder.weight(4, 4, 3, 3), output="second")
    builder.add("Flatten", builder.add("Conv", second, builder.weight(4, 4, 3, 3)), output="answer")
    builder.add("Flatten", builder.add("Conv", first, builder.weight(4, 4, 3, 3), output="beside"), output="head")
    graph = load_graph(builder.save(tmp_path / "net.onnx", "answer", "head")).model.graph
    made = {name: node for node in graph for name in [value.name for value in node.outputs]}
    assert choose_nodes(graph, ["answer"]) == {made["first"].name, made["second"].name}


def test_what_cannot_be_had_is_refused(tmp_path: Path) -> None:
    loaded = load_graph(write_conv_file(tmp_path))
    agreement = Classification().agreement
    with pytest.raises(GraphError, match=f"there are 3; at least {LEAST_ROWS} are needed"):
        quantise(loaded, (), ["logits"], draw(3), agreement)
    with pytest.raises(UsageError, match="calibrated on real rows: name your data with --data"):
        export_model(
            RunFolder(root=tmp_path / "run"), ExportOptions(source=str(tmp_path / "conv.onnx"), precision="int8")
        )
    assert count_rows(loaded) == 1536
    large = replace(loaded, inputs=(replace(loaded.inputs[0], row_shape=(3, 640, 640)),))
    assert LEAST_ROWS < count_rows(large) < 64


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A judge to whom each quantised node changes a fixed share of the answers."""

    cost: dict[str, float]
    tried: list[int] = field(default_factory=list)

    def make(self, kept: Sequence[str]) -> ir.Model:
        return ir.Model(ir.Graph([], [], nodes=[], name=",".join(kept)), ir_version=10)

    def try_out(self, model: ir.Model) -> Trial:
        kept = str(model.graph.name).split(",")
        left = sum(cost for node, cost in self.cost.items() if node not in kept)
        self.tried.append(len([name for name in kept if name]))
        return Trial(model=model, changed=left, error=left)

    def time(self, models: Sequence[ir.Model]) -> list[float]:
        return [1.0 + 0.1 * len(str(model.graph.name)) for model in models]


def test_nodes_go_back_until_no_more_answers_change_than_allowed() -> None:
    judge = Bad(cost={"a": 0.001, "b": 0.05, "c": 0.002, "d": 0.03, "e": 0.001, "f": 0.001})
    found, kept = choose_float(
        judge.try_out(judge.make([])), list(judge.cost), limit=0.01, judge=judge, make=judge.make
    )  # fmt: skip
    assert kept == ("b", "d")
    assert found.changed == pytest.approx(0.005)


def test_nothing_goes_back_where_little_changes_and_half_is_too_much() -> None:
    fine = Bad(cost={"a": 0.001, "b": 0.002})
    _, kept = choose_float(fine.try_out(fine.make([])), ["a", "b"], limit=0.01, judge=fine, make=fine.make)
    assert (kept, fine.tried) == ((), [0])
    bad = Bad(cost={"a": 0.2, "b": 0.2, "c": 0.2, "d": 0.2})
    with pytest.raises(GraphError, match="80.00% of its answers change, and 40.00% with half of its heavy nodes"):
        choose_float(bad.try_out(bad.make([])), list("abcd"), limit=0.01, judge=bad, make=bad.make)


def test_batch_normalisations_are_folded_before(tmp_path: Path) -> None:
    builder = GraphBuilder()
    value = builder.input("x", *SHAPE)
    for width, following in ((1, 8), (8, 8), (8, 8)):
        value = builder.add("Conv", value, builder.weight(following, width, 3, 3), pads=[1] * 4)
        numbers = [builder.constant(np.full(following, number, np.float32)) for number in (1.5, 0.1, 0.2, 2.0)]
        value = builder.add("Relu", builder.add("BatchNormalization", value, *numbers))
    pooled = builder.add("Flatten", builder.add("GlobalAveragePool", value))
    path = builder.save(tmp_path / "net.onnx", builder.add("MatMul", pooled, builder.weight(8, 3), output="logits"))
    loaded = load_graph(path)
    found, report = quantise(loaded, (), ["logits"], draw(64), None)
    kinds = Counter(node.op_type for node in found.model.graph)
    assert (kinds["BatchNormalization"], kinds["Conv"]) == (0, 3)
    assert report.changed == 0, "no answer is off by a twentieth"
    assert not report.float_nodes
