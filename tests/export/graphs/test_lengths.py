"""Rows of several lengths: the length axis is found and proved, and what padding would change is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from artifacts import GraphError, Model, RunFolder, SequenceSpec, TensorSpec, UsageError, read_json
from engines import GraphRunner
from export import ExportOptions, export_model, merge_stage
from export.cli import main
from export.folder.keeping import keep_cuts
from export.graphs.loading import load_graph
from export.graphs.probes.lines import BatchLine, at_length, join_lines
from export.graphs.probing import probe_tensors
from tests.export.sequence_graphs import LENGTHS, WIDTH, draw_sequences, sequence_options, write_sequence_encoder


def export(path: Path, **settings: Any) -> Any:
    return export_model(RunFolder(root=path.parent / "run"), sequence_options(path, **settings))


@pytest.mark.parametrize("shared", [True, False])
def test_cuts_carry_the_mask_and_keep_the_length(graph: Any, tmp_path: Path, shared: bool) -> None:
    result = export(write_sequence_encoder(graph, tmp_path / "net.onnx", shared=shared))
    spec = result.model.spec
    assert spec.sequence == SequenceSpec(lengths=LENGTHS, mask="attention_mask")
    cut = spec.cuts[spec.cut_index("hidden1")]
    assert cut.main == TensorSpec(name="hidden1", dtype="float32", row_shape=(16, WIDTH), length_axes=(0,))
    assert cut.carried == (TensorSpec(name="bias", dtype="float32", row_shape=(1, 1, 16), length_axes=(2,)),)
    assert all(segment.lengths == LENGTHS for segment in spec.segments)
    assert spec.final_head is not None
    assert spec.final_head.lengths == ()
    assert [item.length for item in result.parity.chain] == [0, 0, 0, 4, 8]


@pytest.mark.parametrize("shared", [True, False])
def test_stages_run_at_lengths_that_the_export_never_saw(graph: Any, tmp_path: Path, shared: bool) -> None:
    model: Model = export(write_sequence_encoder(graph, tmp_path / "net.onnx", shared=shared)).model
    stage = merge_stage(model, after="hidden0", until=None, path=tmp_path / "stage.onnx")
    assert stage.lengths == LENGTHS
    assert [value.shape for value in _inputs(tmp_path / "stage.onnx")] == [
        ["batch", "length", WIDTH],
        ["batch", 1, 1, "length"],
    ]
    for count in (1, 5, 11):
        tensors: dict[str, np.ndarray] = draw_sequences([count] * 3, seed=count)
        with GraphRunner(model.path(model.spec.full)) as full:
            expected = full.run(tensors)["logits"]
        for segment in model.spec.segments[:2]:
            with GraphRunner(model.path(segment)) as part:
                tensors |= part.run({name: tensors[name] for name in part.input_names})
        with GraphRunner(tmp_path / "stage.onnx") as rest:
            found = rest.run({name: tensors[name] for name in rest.input_names})["logits"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def _inputs(path: Path) -> list[Any]:
    with GraphRunner(path) as runner:
        return list(runner._session.get_inputs())


def test_keeping_cuts_keeps_the_lengths(graph: Any, tmp_path: Path) -> None:
    model = export(write_sequence_encoder(graph, tmp_path / "net.onnx")).model
    kept = keep_cuts(model, ["hidden0", "hidden1"], settings={})
    assert (kept.spec.sequence, len(kept.spec.cuts)) == (model.spec.sequence, 2)


def test_half_precision_keeps_the_lengths(graph: Any, tmp_path: Path) -> None:
    spec = export(write_sequence_encoder(graph, tmp_path / "net.onnx"), precision="fp16").model.spec
    assert spec.lengths == LENGTHS
    assert spec.cuts[spec.cut_index("hidden0")].main.length_axes == (0,)


def test_one_length_is_padded_to(graph: Any, tmp_path: Path) -> None:
    spec = export(write_sequence_encoder(graph, tmp_path / "net.onnx"), lengths=(8,)).model.spec
    assert (spec.lengths, spec.full.inputs[0].row_shape) == ((8,), (8,))


@pytest.mark.parametrize("lengths", [LENGTHS, (8,)])
def test_padding_that_shows_is_refused(graph: Any, tmp_path: Path, lengths: tuple[int, ...]) -> None:
    path = write_sequence_encoder(graph, tmp_path / "net.onnx", masked=False)
    with pytest.raises(GraphError, match="padded .* have another output 'logits'.* though 'attention_mask' is 0 there"):
        export(path, lengths=lengths)
    assert not (tmp_path / "run" / "model").exists()


def test_a_mean_over_positions_that_counts_padding_is_refused(graph: Any, tmp_path: Path) -> None:
    g = graph()
    ids = g.input("ids", "n", dtype=onnx.TensorProto.INT64)
    kept = g.add("Cast", g.input("mask", "n", dtype=onnx.TensorProto.INT64), to=onnx.TensorProto.FLOAT)
    seen = g.add("Mul", g.add("Gather", g.weight(7, 4), ids), g.add("Unsqueeze", kept, g.constant(np.array([2]))))
    mean = g.add("ReduceMean", seen, g.constant(np.array([1])), keepdims=0)
    g.add("MatMul", mean, g.weight(4, 3), output="y")
    with pytest.raises(GraphError, match="padded from a length of 4 to 8 have another output 'y'"):
        export(g.save(tmp_path / "net.onnx", "y"), segments=False)


def test_an_answer_per_position_is_refused(graph: Any, tmp_path: Path) -> None:
    g = graph()
    ids = g.input("ids", "n", dtype=onnx.TensorProto.INT64)
    kept = g.add("Cast", g.input("mask", "n", dtype=onnx.TensorProto.INT64), to=onnx.TensorProto.FLOAT)
    seen = g.add("Mul", g.add("Gather", g.weight(7, 4), ids), g.add("Unsqueeze", kept, g.constant(np.array([2]))))
    g.add("MatMul", seen, g.weight(4, 3), output="y")
    with pytest.raises(GraphError, match="'y' of the network is as long as its row"):
        export(g.save(tmp_path / "net.onnx", "y"), segments=False)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"ids": 5, "mask": 5}, "leaves no axis of a row open"),
        ({"ids": "n"}, "expected one input of .* that masks padding"),
        ({"ids": "n", "first_mask": "n", "second_mask": "n"}, "inputs with a length are 'ids', 'first_mask'"),
        ({"ids": "n", "mask": 5}, "inputs with a length are 'ids'$|inputs with a length are 'ids'\\."),
    ],
)
def test_networks_without_a_length_or_a_mask_are_refused(
    graph: Any, tmp_path: Path, inputs: dict[str, int | str], message: str
) -> None:
    g = graph()
    tensors = [g.input(name, size, dtype=onnx.TensorProto.INT64) for name, size in inputs.items()]
    total = g.add("Cast", tensors[0], to=onnx.TensorProto.FLOAT)
    g.add("ReduceSum", total, g.constant(np.array([1])), keepdims=0, output="y")
    with pytest.raises(UsageError, match=message):
        export(g.save(tmp_path / "net.onnx", "y"))


def test_lengths_without_positions_are_refused_with_the_fix(graph: Any, tmp_path: Path) -> None:
    path = write_sequence_encoder(graph, tmp_path / "net.onnx")  # has 20 positions
    with pytest.raises(
        GraphError, match="does not run at the lengths 8,32: .* Choose --lengths that it has positions for"
    ):
        export(path, lengths=(8, 32))
    with pytest.raises(UsageError, match="say --input-shape input_ids:224, or --lengths 16,32,64"):
        export(path, lengths=())


@pytest.mark.parametrize("lengths", [(), (0,), (4, 4), (8, 4), (-1, 4)])
def test_lengths_must_ascend(lengths: tuple[int, ...]) -> None:
    if not lengths:
        assert ExportOptions(source="net.onnx", lengths=()).flags() == []
        return
    with pytest.raises(UsageError, match="--lengths .*: expected ascending numbers from 1"):
        ExportOptions(source="net.onnx", lengths=lengths)


def test_families_of_images_have_none() -> None:
    with pytest.raises(UsageError, match="--lengths: resnet is exported with rows of one shape"):
        ExportOptions(source="resnet", lengths=(4, 8))


def test_the_command_takes_and_records_them(graph: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_sequence_encoder(graph, tmp_path / "net.onnx")
    command = [str(path), "--segments", "--lengths", "4,8,16", "--run", str(tmp_path / "run")]
    assert main(command) == 0
    assert "at batch 1 and length 4" in capsys.readouterr().out
    assert sequence_options(path).flags()[-2:] == ["--lengths", "4,8,16"]
    assert main(command) == 0
    assert "is up to date" in capsys.readouterr().err
    assert main([*command[:3], "4,16", *command[4:]]) == 0
    assert "exporting" in capsys.readouterr().err
    assert read_json(tmp_path / "run" / "model" / "model.json", dict)["sequence"]["lengths"] == [4, 16]
    with pytest.raises(SystemExit, match="2"):
        main([*command[:3], "four", *command[4:]])


def test_a_shape_tensor_is_a_line_in_rows_and_length(graph: Any, tmp_path: Path) -> None:
    path = write_sequence_encoder(graph, tmp_path / "net.onnx")
    probe = probe_tensors(load_graph(path, lengths=LENGTHS), ["length_of_rows"])
    line = probe.lines["length_of_rows"]
    assert [at_length(line, length).offset.tolist() for length in (1, 7, 16)] == [[1], [7], [16]]


def test_lines_join_only_where_they_are_linear_in_the_length() -> None:
    def line(offset: int, slope: int) -> BatchLine:
        return BatchLine(offset=np.array([offset]), slope=np.array([slope]))

    joined = join_lines({4: line(9, 4), 8: line(17, 8), 16: line(33, 16)})
    assert joined is not None
    assert joined.longer is not None
    assert (at_length(joined, 5).offset.tolist(), at_length(joined, 5).slope.tolist()) == ([11], [5])
    assert join_lines({4: line(9, 4), 8: line(17, 8), 16: line(34, 16)}) is None
    assert join_lines({4: line(1, 0), 8: line(2, 0)}) is None  # a quarter per unit of length is no integer
    constant = join_lines({4: line(3, 1), 8: line(3, 1)})
    assert constant is not None
    assert constant.longer is None
