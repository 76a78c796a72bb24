"""ONNX files that were not made here: cut with parity, or refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from artifacts import GraphError, InputError, RunFolder, UsageError
from engines import GraphRunner, run_graph
from export import ExportOptions, ExportResult, add_heads, build_missing_heads, check_parity, export_model, merge_stage
from export.graphs.loading import load_graph
from export.graphs.probing import probe_tensors, relative_error
from tests.export.export_graphs import write_convnet, write_encoder


def export(path: Path, **options: Any) -> ExportResult:
    run = RunFolder(root=path.parent / "run")
    return export_model(run, ExportOptions(source=str(path), **options))


def chain(result: ExportResult, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    spec, tensors = result.model.spec, dict(inputs)
    for part in (*spec.segments, spec.final_head):
        assert part is not None
        tensors.update(run_graph(result.model.path(part), {item.name: tensors[item.name] for item in part.inputs}))
    return tensors


def test_an_attention_mask_is_carried(graph: Any, tmp_path: Path) -> None:
    result = export(write_encoder(graph, tmp_path / "encoder.onnx"), segments=True)
    spec = result.model.spec
    carried = {cut.name: tuple(item.name for item in cut.carried) for cut in spec.cuts}
    assert carried["hidden0"] == carried["hidden1"] == ("bias",)
    assert carried[spec.cuts[-1].name] == ()
    assert result.parity.worst == pytest.approx(0, abs=1e-6)
    assert spec.settings["data_input"] == "ids"
    passed = [(part.name, {i.name for i in part.inputs} & {o.name for o in part.outputs}) for part in spec.segments]
    assert all(not names for _, names in passed), f"a tensor is both input and output: {passed}"
    assert "bias" in {item.name for part in spec.segments for item in part.outputs}
    rows = {"ids": np.array([[1, 2, 3, 4, 5]]), "mask": np.array([[1, 1, 0, 0, 0]], np.float32)}
    open_mask = {**rows, "mask": np.ones((1, 5), np.float32)}
    assert not np.allclose(chain(result, rows)["logits"], chain(result, open_mask)["logits"])


def test_a_stage_of_an_imported_graph_equals_its_parts(graph: Any, tmp_path: Path) -> None:
    result = export(write_encoder(graph, tmp_path / "encoder.onnx"), segments=True)
    model = add_heads(result.model, build_missing_heads(result.model), inputs={})
    first = merge_stage(model, after=None, until="hidden0", path=tmp_path / "first.onnx")
    assert [item.name for item in first.outputs] == ["hidden0", "bias", "hidden0/logits", "hidden0/confidence"]
    last = merge_stage(model, after="hidden0", until=None, path=tmp_path / "last.onnx")
    assert {item.name for item in last.inputs} == {"hidden0", "bias"}
    rows = {
        "ids": np.random.default_rng(1).integers(0, 7, (4, 5)),
        "mask": np.array([[1, 1, 0, 0, 0]] * 4, np.float32),
    }
    parts = chain(result, rows)
    exit_head = model.spec.heads["hidden0"]
    head = run_graph(model.path(exit_head), {spec.name: parts[spec.name] for spec in exit_head.inputs})
    early = run_graph(tmp_path / "first.onnx", rows)
    late = run_graph(tmp_path / "last.onnx", {name: early[name] for name in ("hidden0", "bias")})
    for name, expected in {**head, "hidden0": parts["hidden0"], "bias": parts["bias"]}.items():
        np.testing.assert_array_equal(early[name], expected)
    np.testing.assert_array_equal(late["logits"], parts["logits"])
    assert early["hidden0/confidence"].dtype == np.float32


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_is_freed(graph: Any, tmp_path: Path, batch: int) -> None:
    path = write_convnet(graph, tmp_path / "net.onnx", batch=batch)
    result = export(path, segments=True)
    assert [cut.name for cut in result.model.spec.cuts] == ["early", "flat"]
    assert result.parity.source == "net.onnx"
    images = np.random.default_rng(0).standard_normal((batch, 3, 8, 8), dtype=np.float32)
    many = np.concatenate([images, images[::-1], images])
    with GraphRunner(path) as original, GraphRunner(result.model.path(result.model.spec.full)) as full:
        expected = original.run({"image": images})["answer"]
        found = full.run({"image": many})["answer"]
    np.testing.assert_allclose(found, np.concatenate([expected, expected[::-1], expected]), rtol=1e-5)
    report = result.cut_report
    assert report is not None
    assert report.notes == (f"fixed batch {batch} made symbolic", f"1 Reshape freed from batch {batch}")


def test_a_class_token_and_a_resize_are_freed(graph: Any, tmp_path: Path) -> None:
    g = graph(batch=1)
    x = g.add("Conv", g.input("image", 1, 4, 4), g.weight(4, 1, 3, 3), pads=[1, 1, 1, 1])
    x = g.add("Resize", x, "", "", g.constant(np.array([1, 4, 2, 2])), mode="nearest")
    x = g.add("Transpose", g.add("Reshape", x, g.constant(np.array([1, 4, 4]))), perm=[0, 2, 1])
    x = g.add("Concat", g.constant(np.ones((1, 1, 4), np.float32)), x, axis=1)
    x = g.add("MatMul", x, g.weight(4, 4))
    x = g.add("MatMul", g.add("ReduceMean", x, g.constant(np.array([1])), keepdims=0), g.weight(4, 3), output="y")
    result = export(g.save(tmp_path / "vit.onnx", "y"), segments=True)
    assert len(result.model.spec.cuts) >= 2
    report = result.cut_report
    assert report is not None
    assert {note.split()[1] for note in report.notes[1:]} == {"Reshape", "Resize", "Concat"}


def test_a_batch_that_cannot_be_freed_is_refused_with_the_reason(graph: Any, tmp_path: Path) -> None:
    g = graph(batch=1)
    x = g.add("MatMul", g.input("x", 4), g.weight(4, 4))
    x = g.add("Squeeze", x, g.constant(np.array([0])))
    x = g.add("MatMul", g.add("Unsqueeze", x, g.constant(np.array([0]))), g.weight(4, 2), output="y")
    with pytest.raises(GraphError, match="insists on batch 1 in a way that cannot be rewritten"):
        export(g.save(tmp_path / "net.onnx", "y"), segments=True)
    assert not (tmp_path / "run" / "model").exists()


def test_rows_that_mix_are_refused_with_the_reason(graph: Any, tmp_path: Path) -> None:
    g = graph()
    x = g.add("MatMul", g.input("x", 4), g.weight(4, 4))
    x = g.add("Sub", x, g.add("ReduceMean", x, g.constant(np.array([0]))))
    g.add("MatMul", x, g.weight(4, 2), output="y")
    with pytest.raises(GraphError, match=r"output 'y' mixes rows: row 0 of a batch of \d differs"):
        export(g.save(tmp_path / "net.onnx", "y"), segments=True)


def test_a_tensor_that_leads_with_another_axis_is_no_cut(graph: Any, tmp_path: Path) -> None:
    g = graph()
    x = g.add("MatMul", g.input("x", 6, 4), g.weight(4, 4), output="good")
    x = g.add("MatMul", g.add("Transpose", x, perm=[1, 0, 2]), g.weight(4, 4), output="turned")
    x = g.add("MatMul", g.add("Add", x, g.weight(4)), g.weight(4, 4))
    x = g.add("MatMul", g.add("Transpose", x, perm=[1, 0, 2]), g.weight(4, 2), output="y")
    result = export(g.save(tmp_path / "net.onnx", "y"), segments=True)
    assert "turned" not in [cut.name for cut in result.model.spec.cuts]
    report = result.cut_report
    assert report is not None
    assert {item.tensor: item.reason for item in report.refused}["turned"].endswith("its leading axis is not the batch")


def test_a_graph_without_cuts_is_refused(graph: Any, tmp_path: Path) -> None:
    g = graph()
    x = g.input("x", 4)
    left, right = g.add("MatMul", x, g.weight(4, 4)), g.add("MatMul", x, g.weight(4, 4))
    g.add("MatMul", g.add("Concat", left, right, axis=1), g.weight(8, 2), output="y")
    path = g.save(tmp_path / "net.onnx", "y")
    assert [cut.name for cut in export(path, segments=True).model.spec.cuts] == ["concat2"]
    g = graph()
    x = g.input("x", 4)
    a, b = g.add("MatMul", x, g.weight(4, 2)), g.add("MatMul", x, g.weight(4, 2))
    g.add("Add", a, b, output="y")
    with pytest.raises(GraphError, match="2 tensors cross"):
        export(g.save(tmp_path / "other.onnx", "y"), segments=True)


def test_shapes_that_cross_are_computed_again(graph: Any, tmp_path: Path) -> None:
    g = graph()
    x = g.input("x", 3, 4)
    rows = g.add("Shape", x, start=0, end=1)
    folded = g.add("Concat", g.add("Mul", rows, g.constant(np.array([3]))), g.constant(np.array([4])), axis=0)
    x = g.add("MatMul", x, g.weight(4, 4), output="wide")
    x = g.add("MatMul", g.add("Reshape", x, folded), g.weight(4, 4))
    back = g.add("Concat", rows, g.constant(np.array([12])), axis=0)
    g.add("MatMul", g.add("Reshape", x, back), g.weight(12, 2), output="y")
    result = export(g.save(tmp_path / "net.onnx", "y"), segments=True)
    first = result.model.spec.cuts[0]
    assert (first.name, first.carried) == ("wide", ())
    assert [item.batch_size for item in result.parity.chain] == [1, 3, 32]


@pytest.mark.parametrize(
    ("end", "kind", "named"), [("", "softmax", True), ("Softmax", "max", True), ("Sigmoid", "none", False)]
)
def test_confidence_follows_the_form_of_the_answer(
    graph: Any, tmp_path: Path, end: str, kind: str, named: bool
) -> None:
    result = export(write_convnet(graph, tmp_path / "net.onnx", end=end), segments=False)
    spec = result.model.spec
    assert spec.settings["confidence"] == kind
    assert (spec.full.confidence is not None) == named == (spec.task == "classification")
    if spec.full.confidence is None:
        with pytest.raises(GraphError, match="classification only"):
            build_missing_heads(export(tmp_path / "net.onnx", segments=True).model)
        return
    found = run_graph(
        result.model.path(spec.full),
        {"image": np.random.default_rng(0).standard_normal((6, 3, 8, 8), dtype=np.float32)},
    )
    answer = found[spec.full.answers[0]].astype(np.float64)
    share = answer if end else np.exp(answer) / np.exp(answer).sum(1, keepdims=True)
    np.testing.assert_allclose(found["confidence"], share.max(1), rtol=1e-5)
    assert found["confidence"].dtype == np.float32


def test_heads_of_a_network_that_ends_in_softmax_answer_with_probabilities(graph: Any, tmp_path: Path) -> None:
    result = export(write_convnet(graph, tmp_path / "net.onnx"), segments=True)
    model = add_heads(result.model, build_missing_heads(result.model), inputs={})
    head = model.spec.heads["early"]
    features = np.random.default_rng(0).standard_normal((3, 4, 8, 8), dtype=np.float32)
    found = run_graph(model.path(head), {"early": features})
    np.testing.assert_allclose(found["early/answer"].sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(found["early/confidence"], found["early/answer"].max(1))


def test_a_damaged_model_is_made_again_byte_for_byte(graph: Any, tmp_path: Path) -> None:
    path = write_convnet(graph, tmp_path / "net.onnx")
    first = export(path, segments=True)
    assert export(path, segments=True).reused
    with first.model.path(first.model.spec.full).open("r+b") as stream:
        stream.write(b"\xff")
    again = export(path, segments=True)
    assert not again.reused
    made = zip(first.model.artifact.manifest.files, again.model.artifact.manifest.files, strict=True)
    assert [a.path for a, b in made if a != b] == []


def test_an_output_that_ignores_its_input_is_called_weak(graph: Any, tmp_path: Path) -> None:
    assert not export(write_convnet(graph, tmp_path / "net.onnx"), segments=True).parity.is_weak
    g = graph()
    x = g.add("Relu", g.add("MatMul", g.input("x", 4), g.weight(4, 4)))
    x = g.add("MatMul", x, g.constant(np.zeros((4, 3), np.float32)))
    g.add("Add", x, g.weight(3), output="y")
    parity = export(g.save(tmp_path / "flat.onnx", "y"), segments=True).parity
    assert parity.is_weak
    assert parity.sensitivity == 0


def test_parity_notices_a_corrupt_segment(graph: Any, tmp_path: Path) -> None:
    result = export(write_convnet(graph, tmp_path / "net.onnx"), segments=True)
    folder, spec = result.model.artifact.folder, result.model.spec
    assert max(item.max_relative for item in check_parity(folder, spec)[0]) < 1e-5
    path = folder / spec.segments[1].file
    broken = onnx.load(path)
    weight = max(broken.graph.initializer, key=lambda item: len(item.raw_data))
    array = onnx.numpy_helper.to_array(weight).copy()
    array.flat[0] += 1
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(broken, path)
    with pytest.raises(GraphError, match="chained segments differ from the whole network"):
        check_parity(folder, spec)


def test_open_dimensions_need_a_shape(graph: Any, tmp_path: Path) -> None:
    g = graph()
    x = g.add("Conv", g.input("image", 3, "height", "width"), g.weight(4, 3, 3, 3), pads=[1, 1, 1, 1])
    x = g.add("GlobalAveragePool", g.add("Relu", x))
    g.add("Conv", x, g.weight(2, 4, 1, 1), output="y")
    path = g.save(tmp_path / "net.onnx", "y")
    with pytest.raises(UsageError, match="leaves open height, width; say --input-shape image:3,224,224"):
        load_graph(path)
    assert load_graph(path, input_shapes={"image": (3, 8, 8)}).inputs[0].row_shape == (3, 8, 8)
    assert load_graph(path, input_shapes={"": (3, 8, 8)}).inputs[0].row_shape == (3, 8, 8)
    with pytest.raises(UsageError, match="contradicts"):
        load_graph(path, input_shapes={"image": (4, 8, 8)})
    with pytest.raises(UsageError, match="Did you mean 'image'"):
        load_graph(path, input_shapes={"imag": (3, 8, 8)})


def test_what_is_no_onnx_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_graph(tmp_path / "absent.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"\x00not a network")
    with pytest.raises(InputError, match="cannot be read as ONNX"):
        load_graph(tmp_path / "bad.onnx")


def test_a_scalar_input_is_refused(graph: Any, tmp_path: Path) -> None:
    g = graph()
    g.inputs.append(onnx.helper.make_tensor_value_info("scale", onnx.TensorProto.FLOAT, []))
    g.add("Mul", g.add("MatMul", g.input("x", 4), g.weight(4, 4)), "scale", output="y")
    with pytest.raises(GraphError, match="'scale' is a scalar without a batch axis"):
        load_graph(g.save(tmp_path / "net.onnx", "y"))


def test_an_old_opset_is_converted(graph: Callable[..., Any], tmp_path: Path) -> None:
    path = write_convnet(graph, tmp_path / "net.onnx", opset=11)
    assert load_graph(path).model.opset_imports[""] == 20
    assert export(path, segments=True).parity.source_relative < 1e-5


def test_probing_leaves_the_graph_as_it_was(graph: Any, tmp_path: Path) -> None:
    loaded = load_graph(write_convnet(graph, tmp_path / "net.onnx"))
    assert probe_tensors(loaded, ["early"]).led["early"].row_shape == (4, 8, 8)
    assert [value.name for value in loaded.model.graph.outputs] == ["answer"]


def test_relative_error_by_cases() -> None:
    a = np.array([1.0, -4.0], np.float32)
    assert relative_error(a, a) == (0, 0)
    assert relative_error(a + 1, a) == (1, 0.25)
    assert relative_error(a, a.astype(np.float64)) == (np.inf, np.inf)
    masked = np.array([-np.inf, 1], np.float32)
    assert relative_error(masked, masked) == (0, 0)
    assert relative_error(np.array([0, 1], np.float32), masked) == (np.inf, np.inf)
