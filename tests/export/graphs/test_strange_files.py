"""Files as people have them: read as they are meant, or refused with what they are and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from artifacts import GraphError, InputError, RunFolder, UsageError, find_task
from engines import run_graph
from export import ExportOptions, ExportResult, export_model
from export.graphs.loading import load_graph
from export.graphs.proving import prove_same
from tests.export.export_graphs import write_convnet


def export(path: Path, **options: Any) -> ExportResult:
    return export_model(RunFolder(root=path.parent / "run"), ExportOptions(source=str(path), segments=False, **options))


def convnet(graph: Any, folder: Path, *, end: str = "", **settings: Any) -> onnx.ModelProto:
    return onnx.load(write_convnet(graph, folder / "plain.onnx", end=end, **settings))


def keep(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def ended(model: onnx.ModelProto, path: Path, *nodes: onnx.NodeProto, kind: int = TensorProto.FLOAT) -> Path:
    """Saves a network with further nodes behind its logits, the last of which makes its only output, ``y``."""
    model.graph.node.extend(nodes)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("y", kind, None))
    return keep(model, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html></html>", "a web page"),
        (b"PK\x03\x04....", "a zip archive, or a checkpoint of torch"),
        (b"\x1f\x8b\x08....", "gzip -d"),
        (b"\x20\x00\x00\x00ORTM....", "ONNX Runtime's own format"),
        (b"neither", "damaged or cut short"),
    ],
)
def test_what_lies_in_place_of_a_network_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_graph(tmp_path / "net.onnx")


def test_sparse_weights_and_weights_of_constants_in_other_files_are_read(graph: Any, tmp_path: Path) -> None:
    model = convnet(graph, tmp_path)
    dense = next(weight for weight in model.graph.initializer if len(weight.dims) == 2)
    values = numpy_helper.to_array(dense)
    places = numpy_helper.from_array(np.arange(values.size), "places")
    flat = numpy_helper.from_array(values.reshape(-1), dense.name)
    model.graph.initializer.remove(dense)
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(flat, places, list(values.shape)))
    twice = numpy_helper.from_array(np.full(5, 2, np.float32), "twice")
    model.graph.node.append(helper.make_node("Constant", [], ["twice"], value=twice))
    path = ended(model, tmp_path / "odd.onnx", helper.make_node("Mul", ["logits", "twice"], ["y"]))
    beside = {"save_as_external_data": True, "location": "odd.bin", "size_threshold": 0, "convert_attribute": True}
    onnx.save(onnx.load(path), path, **beside)
    loaded = load_graph(path)
    assert prove_same(path, loaded)[0] == pytest.approx(0, abs=1e-6)
    rows = {"image": np.ones((1, 3, 8, 8), np.float32)}
    plain = run_graph(tmp_path / "plain.onnx", rows)["logits"]
    model_folder = export(path).model
    assert np.allclose(run_graph(model_folder.path(model_folder.spec.full), rows)["y"], 2 * plain, atol=1e-5)


def test_nodes_of_one_name_and_outputs_that_say_nothing(graph: Any, tmp_path: Path) -> None:
    model = convnet(graph, tmp_path)
    for node in model.graph.node:
        node.name = "node"
    model.graph.initializer.append(numpy_helper.from_array(np.arange(5.0), "names"))
    model.graph.output.append(helper.make_tensor_value_info("names", TensorProto.DOUBLE, [5]))
    model.graph.output.append(model.graph.input[0])
    path = keep(model, tmp_path / "twins.onnx")
    loaded = load_graph(path)
    assert loaded.outputs == ("logits",)
    assert loaded.notes == ("output 'names', a constant, left off", "output 'image', an input, left off")
    assert prove_same(path, loaded) == (0, 0)
    del model.graph.output[0]
    with pytest.raises(GraphError, match="its outputs names, image do not depend on its inputs"):
        load_graph(keep(model, path))


def test_a_batch_that_is_open_on_paper_alone_is_freed(graph: Any, tmp_path: Path) -> None:
    model = convnet(graph, tmp_path, batch=1)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    result = export(keep(model, tmp_path / "paper.onnx"))
    found = run_graph(result.model.path(result.model.spec.full), {"image": np.ones((3, 3, 8, 8), np.float32)})
    assert found["logits"].shape == (3, 5)


def named(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def number(name: str, kind: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [])


def by_value(read: str) -> list[onnx.NodeProto]:
    """Nodes that answer otherwise where the sum over a tensor of the whole batch, or of its shape, is positive."""
    then = helper.make_graph([helper.make_node("Identity", ["logits"], ["t"])], "then", [], [named("t")])
    other = helper.make_graph([helper.make_node("Neg", ["logits"], ["e"])], "else", [], [named("e")])
    return [
        helper.make_node("Constant", [], ["zero"], value_float=0.0),
        helper.make_node("Shape", ["logits"], ["sizes"]),
        helper.make_node("Cast", ["sizes"], ["shape"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", [read], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["more"]),
        helper.make_node("If", ["more"], ["y"], then_branch=then, else_branch=other),
    ]  # fmt: skip


def until_large() -> list[onnx.NodeProto]:
    """Nodes that double the answers of the whole batch until the largest is large."""
    body = helper.make_graph(
        [
            helper.make_node("Add", ["v", "v"], ["w"]), helper.make_node("ReduceMax", ["w"], ["top"], keepdims=0),
            helper.make_node("Less", ["top", "limit"], ["on"]),
        ],
        "body",
        [number("i", TensorProto.INT64), number("c", TensorProto.BOOL), named("v")],
        [number("on", TensorProto.BOOL), named("w")],
    )  # fmt: skip
    return [
        helper.make_node("Constant", [], ["limit"], value_float=1e6),
        helper.make_node("Constant", [], ["rounds"], value_int=9),
        helper.make_node("Loop", ["rounds", "", "logits"], ["y"], body=body),
    ]


@pytest.mark.parametrize("nodes", [lambda: by_value("logits"), until_large])
def test_a_branch_by_the_values_of_the_batch_is_refused(
    graph: Any, tmp_path: Path, nodes: Callable[[], list[onnx.NodeProto]]
) -> None:
    with pytest.raises(GraphError, match="decides by values of the whole batch"):
        load_graph(ended(convnet(graph, tmp_path), tmp_path / "branch.onnx", *nodes()))
    path = ended(convnet(graph, tmp_path), tmp_path / "shape.onnx", *by_value("shape"))
    assert prove_same(path, load_graph(path))[1] < 1e-6, "a branch by shapes is none of that"


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([("RandomNormalLike", ["logits"], ["n"], {}), ("Add", ["logits", "n"], ["y"], {})], r"model\.eval"),
        ([("Magic", ["logits"], ["y"], {"domain": "com.acme"})], "no operator com.acme:Magic. Export the network with"),
        ([("Cast", ["logits"], ["b"], {"to": TensorProto.BFLOAT16}), ("Selu", ["b"], ["e"], {}),
          ("Cast", ["e"], ["y"], {"to": TensorProto.FLOAT})], "bfloat16 .*Save the network in float32"),
    ],
)  # fmt: skip
def test_what_cannot_run_or_runs_otherwise_each_time_is_named(
    graph: Any, tmp_path: Path, nodes: list[Any], message: str
) -> None:
    model = convnet(graph, tmp_path)
    model.opset_import.append(helper.make_opsetid("com.acme", 1))
    made = [helper.make_node(op, read, made, **more) for op, read, made, more in nodes]
    path = ended(model, tmp_path / "odd.onnx", *made)
    with pytest.raises(GraphError, match=message):
        prove_same(path, load_graph(path))


@pytest.mark.parametrize(
    ("nodes", "task", "words"),
    [
        ([("Unsqueeze", ["logits", "axes"], ["y"], {})], "classification", r"\(5, 1, 1\) became one of shape \(5,\)"),
        ([("ArgMax", ["logits"], ["y"], {"axis": 1, "keepdims": 0})], "none", "the choice itself. Save a copy"),
        (
            [("ReduceMax", ["logits", "one"], ["m"], {}), ("MatMul", ["m", "eye"], ["y"], {})],
            "none",
            "with its sigmoid",
        ),
    ],
)
def test_answers_that_are_no_choice_are_brought_into_form_or_explained(
    graph: Any, tmp_path: Path, nodes: list[Any], task: str, words: str
) -> None:
    model = convnet(graph, tmp_path)
    for name, array in {"axes": np.array([2, 3]), "one": np.array([1]), "eye": np.ones((1, 1), np.float32)}.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    kind = TensorProto.INT64 if nodes[0][0] == "ArgMax" else TensorProto.FLOAT
    made = [helper.make_node(op, read, made, **more) for op, read, made, more in nodes]
    path = ended(model, tmp_path / "odd.onnx", *made, kind=kind)
    result = export_model(RunFolder(root=tmp_path / "run"), ExportOptions(source=str(path)))
    assert result.cut_report is not None
    spec = result.model.spec
    assert spec.task == task
    (note,) = result.cut_report.notes
    assert re.search(words, note)
    if task == "none":
        with pytest.raises(UsageError, match="cannot have exits: .*" + words):
            find_task(spec.task, spec.settings)


def test_an_output_that_is_named_twice_is_one(graph: Any, tmp_path: Path) -> None:
    model = convnet(graph, tmp_path)
    model.graph.output.append(model.graph.output[0])
    full = export(keep(model, tmp_path / "net.onnx")).model.spec.full
    assert full.answers == (model.graph.output[0].name,)
    assert full.confidence is not None


def test_a_loss_beside_the_answer_is_refused_with_a_copy_without_it(graph: Any, tmp_path: Path) -> None:
    model = convnet(graph, tmp_path)
    answer = model.graph.output[0].name
    model.graph.node.append(helper.make_node("ReduceMean", [answer], ["loss"], keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("loss", TensorProto.FLOAT, []))
    words = rf"output 'loss' has shape \(\) for 1 rows.*extract_model\(file, copy, \['image'\], \['{answer}'\]\)"
    with pytest.raises(GraphError, match=words):
        export(keep(model, tmp_path / "net.onnx"))


def test_a_batch_that_is_not_the_leading_axis_is_told(graph: Any, tmp_path: Path) -> None:
    g = graph(batch=7)
    g.add("MatMul", g.input("sequence", "batch_size", 4), g.weight(4, 3), output="y")
    with pytest.raises(UsageError, match="If 'batch_size' is its batch: that must be the leading axis"):
        load_graph(g.save(tmp_path / "net.onnx", "y"))
