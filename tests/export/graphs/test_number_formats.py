"""Tests of number formats: half precision, bfloat16 and quantisation in the file, bytes, and axes of size -1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, numpy_helper

from artifacts import GraphError, Quantisation, RunFolder
from engines import GraphRunner, run_graph
from export import ExportOptions, ExportResult, add_heads, build_missing_heads, export_model, load_graph
from export.graphs import probing
from export.graphs.loading import LoadedGraph
from export.graphs.normalising import normalise_model
from export.graphs.number_formats import batch_wide_quantisation, precision_of, rounding_of
from tests.export.export_graphs import GraphBuilder, write_convnet


def export(path: Path, **options: Any) -> ExportResult:
    return export_model(RunFolder(root=path.parent / "run"), ExportOptions(source=str(path), **options))


def halve(path: Path) -> Path:
    """Makes a file float16 throughout, as export tools write them for GPUs."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_file_in_half_precision_is_cut_with_what_half_precision_allows(
    graph: Any, tmp_path: Path, precision: str
) -> None:
    path = halve(write_convnet(graph, tmp_path / "net.onnx", end=""))
    result = export(path, precision=precision)
    spec = result.model.spec
    assert (spec.precision, result.parity.tolerance) == ("fp16", 1e-2)
    assert {cut.main.dtype for cut in spec.cuts} == {"float16"}
    assert spec.full.output("confidence").dtype == "float32"
    model = add_heads(result.model, build_missing_heads(result.model), inputs={"training": "none"})
    assert {head.inputs[0].dtype for head in model.spec.heads.values()} == {"float16"}


def test_a_single_bfloat16_tensor_costs_its_own_cut_only(graph: Any, tmp_path: Path) -> None:
    g: GraphBuilder = graph()
    x = g.add("Relu", g.add("MatMul", g.input("x", 4), g.weight(4, 6)), output="first")
    x = g.add("Cast", x, to=TensorProto.BFLOAT16, output="coarse")
    x = g.add("Cast", x, to=TensorProto.FLOAT)
    x = g.add("Relu", g.add("MatMul", x, g.weight(6, 5)), output="second")
    g.add("MatMul", x, g.weight(5, 3), output="y")
    path = g.save(tmp_path / "net.onnx", "y")
    assert rounding_of(load_graph(path).model.graph) == "bf16"
    result = export(path)
    assert [cut.name for cut in result.model.spec.cuts][-1] == "second"
    assert "coarse" not in [cut.name for cut in result.model.spec.cuts]
    assert result.cut_report is not None
    assert {item.tensor: item.reason for item in result.cut_report.refused}["coarse"].startswith("'coarse' is bfloat16")


def test_interfaces_in_bfloat16_are_refused_by_name(graph: Any, tmp_path: Path) -> None:
    g: GraphBuilder = graph()
    x = g.add("Cast", g.input("x", 4, dtype=TensorProto.BFLOAT16), to=TensorProto.FLOAT)
    g.add("MatMul", g.add("MatMul", x, g.weight(4, 4)), g.weight(4, 3), output="y")
    with pytest.raises(GraphError, match="input 'x' is bfloat16.*Export the network with float32 inputs"):
        load_graph(g.save(tmp_path / "net.onnx", "y"))


def write_quantised(builder: Any, path: Path) -> Path:
    """A static quantisation with Q/DQ nodes around each product."""
    g: GraphBuilder = builder()
    scale, zero = g.constant(np.float32(0.05)), g.constant(np.int8(3))
    x = g.input("x", 4)
    for layer, (rows, columns) in enumerate([(4, 8), (8, 6), (6, 3)]):
        quantised = g.add("QuantizeLinear", x, scale, zero, output=f"q{layer}")
        weight = np.random.default_rng(layer).integers(-100, 100, (rows, columns)).astype(np.int8)
        constant = g.add("DequantizeLinear", g.constant(weight), g.constant(np.float32(0.01)))
        x = g.add("MatMul", g.add("DequantizeLinear", quantised, scale, zero), constant, output=f"m{layer}")
        if layer < 2:
            x = g.add("Relu", x, output=f"r{layer}")
    return g.save(path, x)


def test_a_quantised_file_is_cut_at_its_quantised_tensors_and_heads_read_what_they_stand_for(
    graph: Any, tmp_path: Path
) -> None:
    path = write_quantised(graph, tmp_path / "net.onnx")
    loaded = load_graph(path)
    assert (rounding_of(loaded.model.graph), precision_of(loaded.model.graph)) == ("int8", "fp32")
    result = export(path)
    assert [cut.name for cut in result.model.spec.cuts] == ["q1", "q2"], "a quarter of the bytes, and no round trip"
    stands_for = Quantisation(scale=float(np.float32(0.05)), zero_point=3)
    assert {(cut.main.dtype, cut.main.quantised) for cut in result.model.spec.cuts} == {("int8", stands_for)}
    heads = build_missing_heads(result.model)
    model = add_heads(result.model, heads, inputs={})
    features = np.random.default_rng(0).integers(-128, 128, (5, 8)).astype(np.int8)
    with GraphRunner(model.path(model.spec.heads["q1"])) as runner:
        found = runner.run({"q1": features}, outputs=model.spec.heads["q1"].answers)
    read = torch.from_numpy(stands_for.dequantise(features))
    expected = (
        torch.softmax(heads["q1"].eval()(read), 1) if "max" in model.spec.settings.values() else heads["q1"](read)
    )
    np.testing.assert_allclose(*found.values(), expected.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_dynamic_quantisation_looks_at_the_whole_batch_and_is_refused(graph: Any, tmp_path: Path) -> None:
    """What ``onnxruntime.quantization.quantize_dynamic`` makes of a network: a row answers otherwise among larger ones,
    by more than the rounding of int8; as it stands, and as ONNX Runtime fuses it."""
    import onnxruntime
    from onnxruntime.quantization import quantize_dynamic

    g: GraphBuilder = graph()
    x = g.add("Relu", g.add("MatMul", g.input("x", 64), g.weight(64, 64)))
    source = g.save(tmp_path / "source.onnx", g.add("MatMul", x, g.weight(64, 3), output="y"))
    quantised, fused = tmp_path / "quantised.onnx", tmp_path / "fused.onnx"
    quantize_dynamic(source, quantised)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(fused)
    onnxruntime.InferenceSession(str(quantised), options, providers=["CPUExecutionProvider"])
    rows = np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)
    rows[1] *= 100
    for path, op in ((quantised, "DynamicQuantizeLinear"), (fused, "DynamicQuantizeMatMul")):
        assert op in {node.op_type for node in onnx.load(path).graph.node}
        with GraphRunner(path, threads=1) as runner:
            alone, together = (runner.run({"x": batch})["y"][0] for batch in (rows[:1], rows))
        assert np.abs(alone - together).max() > 0.1 * np.abs(alone).max()
        with pytest.raises(GraphError, match=f"range of the whole batch .{op}.*neighbours. Quantise.*int8 --data"):
            export(path)


@pytest.mark.parametrize(
    ("keepdims", "axis", "refused"), [(0, None, True), (0, 0, False)], ids=["one of all rows", "one of each row"]
)
def test_a_scale_that_is_computed_must_be_of_one_row(
    graph: Any, tmp_path: Path, keepdims: int, axis: int | None, refused: bool
) -> None:
    g: GraphBuilder = graph(opset=21)
    x = g.add("MatMul", g.input("x", 4), g.weight(4, 4))
    axes = [] if axis is None else [g.constant(np.array([1], np.int64))]
    top = g.add("ReduceMax", g.add("Abs", x), *axes, keepdims=keepdims)
    scale = g.add("Div", top, g.constant(np.array(127, np.float32)))
    where = {} if axis is None else {"axis": axis}
    zero = g.constant(np.zeros((), np.int8)) if axis is None else ""
    q = g.add("QuantizeLinear", x, scale, *([zero] if zero else []), output="q", **where)
    path = g.save(tmp_path / "net.onnx", g.add("DequantizeLinear", q, scale, output="y", **where))
    found = batch_wide_quantisation(normalise_model(ir.load(path)).graph)
    assert (found is not None) == refused


@pytest.mark.parametrize("axes", [(0,), (0, 2, 3)])
def test_axes_of_size_minus_one_are_open(graph: Any, tmp_path: Path, axes: tuple[int, ...]) -> None:
    path = write_convnet(graph, tmp_path / "net.onnx")
    model = onnx.load(path)
    for axis in axes:
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = -1
    onnx.save(model, path)
    shapes = {"image": (3, 8, 8)} if len(axes) > 1 else {}
    loaded = load_graph(path, input_shapes=shapes)
    assert (loaded.inputs[0].row_shape, loaded.fixed_batch) == ((3, 8, 8), None)
    assert export(path, input_shapes=shapes).parity.source_relative < 1e-5


def write_byte_reader(builder: Any, path: Path, *, dtype: int) -> Path:
    g: GraphBuilder = builder()
    x = g.add("Cast", g.input("bytes", 64, dtype=dtype), to=TensorProto.FLOAT)
    x = g.add("Relu", g.add("Sub", g.add("MatMul", x, g.weight(64, 32)), g.constant(np.float32(50))), output="wide")
    g.add("MatMul", x, g.weight(32, 3), output="y")
    return g.save(path, "y")


def test_bytes_are_run_as_bytes(graph: Any, tmp_path: Path) -> None:
    """With 0 and 1 alone, every row of this network would have the same answer, and nothing would be proved."""
    result = export(write_byte_reader(graph, tmp_path / "net.onnx", dtype=TensorProto.UINT8))
    assert result.parity.sensitivity > 0.1
    assert result.cut_report is not None
    assert result.cut_report.notes == ("integer inputs run with 0 to 255",)


def test_integers_are_run_as_bytes_where_0_and_1_do_not_do(
    graph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_graph(write_byte_reader(graph, tmp_path / "net.onnx", dtype=TensorProto.INT32))
    assert probing.settle_integers(loaded).highest == 1
    real = probing.probe_tensors

    def refuse_bits(loaded: LoadedGraph, names: Sequence[str]) -> probing.Probe:
        if loaded.highest == 1:
            raise GraphError("rounding that looks like rows that mix")
        return real(loaded, names)

    monkeypatch.setattr(probing, "probe_tensors", refuse_bits)
    settled = probing.settle_integers(loaded)
    assert settled.highest == 255
    assert 200 < probing.draw_rows(settled, 4)["bytes"].max() <= 255


def test_tokens_are_run_as_0_and_1(graph: Any, tmp_path: Path) -> None:
    g: GraphBuilder = graph()
    x = g.add("Gather", g.weight(7, 8), g.input("ids", 5, dtype=TensorProto.INT64))
    x = g.add("MatMul", g.add("MatMul", g.add("Flatten", x), g.weight(40, 8)), g.weight(8, 3), output="y")
    result = export(g.save(tmp_path / "net.onnx", "y"))
    assert result.cut_report is not None
    assert result.cut_report.notes == ()


@pytest.mark.parametrize("flat", [False, True])
def test_an_answer_that_is_one_probability_becomes_two_classes(graph: Any, tmp_path: Path, flat: bool) -> None:
    g: GraphBuilder = graph()
    x = g.add("Relu", g.add("MatMul", g.input("x", 4), g.weight(4, 6)))
    x = g.add("Sigmoid", g.add("MatMul", x, g.weight(6, 1)), output="p" if flat else "y")
    if flat:
        g.add("Squeeze", x, g.constant(np.array([1])), output="y")
    path = g.save(tmp_path / "net.onnx", "y")
    result = export(path)
    spec = result.model.spec
    assert (spec.task, spec.settings["confidence"]) == ("classification", "max")
    assert spec.full.output("y").row_shape == (2,)
    rows = {"x": np.random.default_rng(0).standard_normal((5, 4), dtype=np.float32)}
    found = run_graph(result.model.path(spec.full), rows)
    yes = run_graph(path, rows)["y"].reshape(-1)
    np.testing.assert_allclose(found["y"], np.stack([1 - yes, yes], axis=1), rtol=1e-5)
    np.testing.assert_allclose(found["confidence"], np.maximum(yes, 1 - yes), rtol=1e-5)
    heads = add_heads(result.model, build_missing_heads(result.model), inputs={}).spec.heads
    assert [head.output(head.answers[0]).row_shape for head in heads.values()] == [(2,)] * len(heads)
