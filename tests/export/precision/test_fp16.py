"""fp16 over the whole network: types at every seam, decisions in float32, masks that stay finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from artifacts import GraphError, Model, RunFolder, UsageError, open_model
from engines import read_onnx_facts, run_graph
from export import ExportOptions, export_model, load_graph, merge_stage
from export.folder.pipeline import reuse_model
from export.folder.recipe import Provenance
from export.folder.writing import export_inputs, is_model_current, run_of
from export.graphs.probing import open_graph, relative_error, sample_rows
from export.precision.fp16 import MASK, find_mask_inputs, limit_masks
from export.precision.passes import apply_precision
from tests.export.export_graphs import TINY, GraphBuilder, write_convnet, write_encoder

HALF = onnx.TensorProto.FLOAT16


def types_of(path: Path) -> dict[str, str]:
    """Returns op type -> element types of what nodes of it write, by onnx's own inference."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    kinds = {
        value.name: onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        for value in (*model.graph.value_info, *model.graph.output, *model.graph.input)
    }
    found: dict[str, set[str]] = {}
    for node in model.graph.node:
        found.setdefault(node.op_type, set()).update(kinds[name] for name in node.output if name in kinds)
    return {op: "+".join(sorted(names)) for op, names in found.items()}


def test_types_at_the_seams_of_a_family(half_model: Model) -> None:
    spec = half_model.spec
    assert spec.precision == "fp16"
    assert [tensor.dtype for tensor in (*spec.full.inputs, *spec.full.outputs)] == ["float32"] * 3
    assert {cut.main.dtype for cut in spec.cuts} == {"float16"}
    assert {tensor.dtype for part in spec.segments for tensor in part.outputs} == {"float16"}
    for head in spec.heads.values():
        assert [tensor.dtype for tensor in head.inputs] == ["float16"]
        assert [tensor.dtype for tensor in head.outputs] == ["float32", "float32"]
    for graph in (*spec.segments, *spec.heads.values(), spec.full):
        assert read_onnx_facts(half_model.path(graph)).precision == "float16"


def test_convolutions_are_half_and_decisions_are_not(half_model: Model) -> None:
    spec = half_model.spec
    for graph in (spec.full, next(iter(spec.heads.values()))):
        types = types_of(half_model.path(graph))
        assert types["Conv"] == types["Gemm"] == "FLOAT16"
        assert types["Softmax"] == types["ReduceMax"] == "FLOAT"


def test_confidences_have_the_resolution_of_float32(half_model: Model) -> None:
    rows = sample_rows(half_model.spec.full.inputs, 64)
    found = run_graph(half_model.path(half_model.spec.full), rows)
    logits = found["logits"].astype(np.float64)
    exact = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(found["confidence"], (exact / exact.sum(1, keepdims=True)).max(1), rtol=1e-6)
    assert (found["confidence"].astype(np.float16) != found["confidence"]).any()


def test_the_chain_is_the_network_up_to_rounding(half_model: Model, tiny_run: RunFolder) -> None:
    parity = reuse_model(run_of(half_model)).parity
    assert parity.tolerance == 1e-2
    assert 0 < parity.precision_relative < 5e-3
    assert parity.worst < 5e-3
    reused = reuse_model(tiny_run)
    single = reused.model
    assert reused.parity.tolerance == 1e-4
    assert reused.parity.precision_relative == 0
    assert single.spec.precision == "fp32"
    assert "precision" not in single.spec.settings
    assert "precision" not in single.artifact.manifest.parameters


def test_stages_merge_and_run(half_model: Model, tmp_path: Path) -> None:
    first, second = (cut.name for cut in half_model.spec.candidates)
    stage = merge_stage(half_model, after=first, until=second, path=tmp_path / "stage.onnx")
    assert stage.inputs[0].dtype == "float16"
    rows = sample_rows(stage.inputs, 4)
    outputs = run_graph(tmp_path / "stage.onnx", rows)
    assert {name: array.dtype.name for name, array in outputs.items()} == {
        spec.name: spec.dtype for spec in stage.outputs
    }


def test_another_precision_is_another_model(half_run: RunFolder, tiny_run: RunFolder) -> None:
    half, single = (open_model(run.model, remedy="") for run in (half_run, tiny_run))
    assert export_model(half_run, replace(TINY, precision="fp16")).reused
    assert half.digest != single.digest
    for run, other, same in ((half_run, single, False), (half_run, half, True), (tiny_run, half, False)):
        manifest = other.artifact.manifest
        provenance = Provenance(inputs=export_inputs(manifest), parameters=manifest.parameters)
        assert is_model_current(run, provenance) is same


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown precision 'fp61'. Did you mean 'fp16'"):
        ExportOptions(precision="fp61")


@pytest.mark.parametrize("end", ["Softmax", ""])
def test_an_imported_network(graph: Callable[..., GraphBuilder], tmp_path: Path, end: str) -> None:
    path = write_convnet(graph, tmp_path / "net.onnx", end=end)
    model = export_model(RunFolder(root=tmp_path / "run"), ExportOptions(source=str(path), precision="fp16")).model
    spec = model.spec
    assert [tensor.dtype for tensor in (*spec.full.inputs, *spec.full.outputs)] == ["float32"] * 3
    assert {cut.main.dtype for cut in spec.cuts} == {"float16"}
    assert types_of(model.path(spec.full))["Softmax"] == "FLOAT"
    rows = sample_rows(spec.full.inputs, 5)
    name = spec.full.answers[0]
    _, error = relative_error(run_graph(model.path(spec.full), rows)[name], run_graph(path, rows)[name])
    assert 0 < error < 1e-2


@pytest.mark.parametrize("dark", [-1000.0, float(np.finfo(np.float32).min)])
def test_a_masked_encoder_stays_finite(graph: Callable[..., GraphBuilder], tmp_path: Path, dark: float) -> None:
    path = write_encoder(graph, tmp_path / "encoder.onnx")
    model = onnx.load(path)
    for weight in model.graph.initializer:
        if onnx.numpy_helper.to_array(weight).shape == () and onnx.numpy_helper.to_array(weight) == -1000:
            weight.CopyFrom(onnx.numpy_helper.from_array(np.array(dark, np.float32), weight.name))
    for node in model.graph.node:
        node.input[:] = ["mask/float" if name == "mask" else name for name in node.input]
    model.graph.node.insert(0, onnx.helper.make_node("Cast", ["mask"], ["mask/float"], to=onnx.TensorProto.FLOAT))
    model.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(model, path)
    run = RunFolder(root=tmp_path / "run")
    half = export_model(run, ExportOptions(source=str(path), precision="fp16")).model
    spec = half.spec
    assert {tensor.dtype for cut in spec.cuts for tensor in cut.tensors if tensor not in spec.full.inputs} == {
        "float16"
    }
    assert [tensor.dtype for tensor in spec.full.inputs] == ["int64", "int64"]
    rows = {
        "ids": np.array([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [6, 6, 0, 0, 0]]),
        "mask": np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]),
    }
    reference, found = run_graph(path, rows), run_graph(half.path(spec.full), rows)
    assert np.isfinite(found["logits"]).all()
    np.testing.assert_allclose(found["logits"][:2], reference["logits"][:2], atol=2e-2)
    rows["ids"][1, 2:] = 6  # what is masked does not matter
    np.testing.assert_array_equal(run_graph(half.path(spec.full), rows)["logits"][1], found["logits"][1])


def write_additive(builder: GraphBuilder, path: Path) -> Path:
    """Scores of the row with itself, plus a mask that the caller adds."""
    x, mask = builder.input("x", 4, 8), builder.input("mask", 1, 4)
    query, key = builder.add("MatMul", x, builder.weight(8, 8)), builder.add("Transpose", x, perm=[0, 2, 1])
    scores = builder.add("MatMul", query, key)
    weights = builder.add("Softmax", builder.add("Add", scores, mask), axis=-1)
    builder.add("MatMul", weights, x, output="y")
    return builder.save(path, "y")


def test_a_mask_that_the_caller_adds_is_limited(graph: Callable[..., GraphBuilder], tmp_path: Path) -> None:
    path = write_additive(graph(), tmp_path / "additive.onnx")
    loaded = load_graph(path)
    assert find_mask_inputs(loaded.model.graph) == ("mask",)
    converted = apply_precision(loaded, "fp16")
    half, loss = converted.loaded, converted.loss
    assert 0 < loss < 1e-2
    rows = {"x": sample_rows(loaded.inputs, 2)["x"], "mask": np.zeros((2, 1, 4), np.float32)}
    rows["mask"][0, :, 2:] = np.finfo(np.float32).min
    rows["mask"][1] = -np.inf  # masked throughout: 0/0 in float32
    with open_graph(half.model) as runner:
        found = runner.run(rows)["y"]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[0], run_graph(path, rows)["y"][0], atol=2e-2)


def test_huge_constants_are_masks_unless_they_are_bounds(graph: Callable[..., GraphBuilder], tmp_path: Path) -> None:
    g = graph()
    least = np.float32(np.finfo(np.float32).min)
    x = g.add("Clip", g.input("x", 4), g.constant(least), g.constant(np.float32(6)))
    g.add("Add", x, g.constant(np.array([0, least, -np.inf, 1], np.float32)), output="y")
    model = ir.load(g.save(tmp_path / "g.onnx", "y"))
    assert limit_masks(model.graph) == 1
    values = [value.const_value.numpy() for value in model.graph.initializers.values() if value.const_value is not None]
    assert any(np.array_equal(value, least) for value in values)
    assert any(np.array_equal(value, np.array([0, MASK, MASK, 1], np.float32)) for value in values)


def test_a_network_beyond_float16_is_refused(graph: Callable[..., GraphBuilder], tmp_path: Path) -> None:
    g = graph()
    x = g.add("MatMul", g.input("x", 8), g.constant(np.full((8, 8), 3e4, np.float32)))
    g.add("MatMul", x, g.constant(np.full((8, 2), 3e-4, np.float32)), output="y")
    with pytest.raises(GraphError, match=r"fp16: .* tensor 'matmul0' reaches \S+, and a float16 ends at 65504. Export"):
        apply_precision(load_graph(g.save(tmp_path / "g.onnx", "y")), "fp16")


def test_two_readers_of_a_tensor_that_stays_in_float32(graph: Callable[..., GraphBuilder], tmp_path: Path) -> None:
    """onnxruntime's converter leaves some operators in float32 and adds a cast for each of them."""
    g = graph()
    x = g.add("MatMul", g.input("x", 8), g.weight(8, 8))
    low, high = g.add("Min", x, g.constant(np.float32(1))), g.add("Max", x, g.constant(np.float32(-1)))
    g.add("Add", low, high, output="y")
    path = g.save(tmp_path / "g.onnx", "y")
    half = apply_precision(load_graph(path), "fp16").loaded
    made = [value.name for node in half.model.graph for value in node.outputs]
    assert len(made) == len(set(made))
    rows = sample_rows(half.inputs, 3)
    with open_graph(half.model) as runner:
        np.testing.assert_allclose(runner.run(rows)["y"], run_graph(path, rows)["y"], rtol=2e-2, atol=2e-2)


def test_a_value_called_like_an_input_gets_another_name() -> None:
    """torch numbers its values without looking at the names that inputs are given."""
    import torch

    from export.from_torch.graphs import export_module

    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x[:, 0])

    loaded = export_module(Net(), (torch.zeros(2, 3, 4),), input_names=["select"], output_names=["y"])
    names = [value.name for value in loaded.model.graph.inputs]
    names += [value.name for node in loaded.model.graph for value in node.outputs]
    assert len(set(names)) == len(names)
    apply_precision(loaded, "fp16")
