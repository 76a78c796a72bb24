"""Tests of networks that take bytes: they answer as the network with floats does, whole, in parts and in stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import Model, RunFolder, UsageError, open_model
from engines import run_graph
from export import ExportOptions, ensure_model, merge_stage
from export.cli import main
from export.graphs.probing import relative_error
from tests.export.export_graphs import TINY, write_convnet

BYTES = np.random.default_rng(0).integers(0, 256, (9, 3, 8, 8), np.uint8)


def exported(path: Path, name: str, **options: Any) -> Model:
    run = RunFolder(root=path.parent / name)
    ensure_model(run, ExportOptions(source=str(path), **options))
    return open_model(run.model, remedy="")


def answers(model: Model, rows: np.ndarray) -> dict[str, np.ndarray]:
    return run_graph(model.path(model.spec.full), {model.spec.full.inputs[0].name: rows})


@pytest.mark.parametrize(
    "preprocess", ["imagenet", "caffe-bgr", "raw", '{"scale": 1, "mean": [127], "std": [3, 4, 5]}']
)
def test_bytes_are_answered_as_their_floats(
    graph: Any, tmp_path: Path, preprocess: str, run_chain: Callable[..., dict[str, np.ndarray]]
) -> None:
    path = write_convnet(graph, tmp_path / "net.onnx")
    floats = exported(path, "floats", preprocess=preprocess)
    takes = exported(path, "bytes", preprocess=preprocess, input="uint8")
    stated = floats.spec.preprocessing
    assert stated is not None
    assert (takes.spec.preprocessing, takes.spec.full.inputs[0].dtype) == (
        replace(stated, in_graph=True), "uint8",
    )  # fmt: skip
    assert takes.spec.preprocessing.prepare(BYTES, "uint8") is BYTES
    expected = answers(floats, stated.prepare(BYTES, "float32"))
    found = answers(takes, BYTES)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert relative_error(found[name], array)[1] < 1e-6
    assert [cut.name for cut in takes.spec.cuts] == [cut.name for cut in floats.spec.cuts]
    chained = run_chain(takes, BYTES)
    stage = merge_stage(takes, after=None, until=None, path=tmp_path / "stage.onnx")
    assert stage.inputs[0].dtype == "uint8"
    staged = run_graph(tmp_path / "stage.onnx", {"image": BYTES})
    for name, array in found.items():
        assert relative_error(chained[name], array)[1] < 1e-6
        assert relative_error(staged[name], array)[1] < 1e-6


@pytest.fixture
def run_chain() -> Callable[..., dict[str, np.ndarray]]:
    def run(model: Model, rows: np.ndarray) -> dict[str, np.ndarray]:
        tensors = {model.spec.full.inputs[0].name: rows}
        for part in (*model.spec.segments, model.spec.final_head):
            tensors |= run_graph(model.path(part), {spec.name: tensors[spec.name] for spec in part.inputs})
        return tensors

    return run


def test_channels_last_stay_last(graph: Any, tmp_path: Path) -> None:
    g = graph()
    x = g.add("Transpose", g.input("image", 8, 8, 3), perm=[0, 3, 1, 2])
    x = g.add("Relu", g.add("Conv", x, g.weight(4, 3, 3, 3), strides=[2, 2]), output="early")
    x = g.add("Flatten", g.add("Relu", g.add("Conv", x, g.weight(6, 4, 3, 3))))
    g.add("MatMul", x, g.weight(6, 5), output="logits")
    path = g.save(tmp_path / "last.onnx", "logits")
    floats = exported(path, "floats", preprocess="imagenet")
    takes = exported(path, "bytes", preprocess="imagenet", input="uint8")
    rows = np.ascontiguousarray(BYTES.transpose(0, 2, 3, 1))
    assert takes.spec.full.inputs[0].row_shape == (8, 8, 3)
    expected = answers(floats, floats.spec.preprocessing.prepare(rows, "float32"))
    assert relative_error(answers(takes, rows)["logits"], expected["logits"])[1] < 1e-6


def test_a_family_takes_bytes_too(tiny_run: RunFolder, tmp_path: Path) -> None:
    options = replace(TINY, preprocess="inception", input="uint8")
    takes = ensure_model(RunFolder(root=tmp_path / "run"), options)
    floats = open_model(tiny_run.model, remedy="")
    rows = np.random.default_rng(1).integers(0, 256, (5, 1, 12, 12), np.uint8)
    pixels = replace(takes.spec.preprocessing, in_graph=False)
    expected = answers(floats, pixels.prepare(rows, "float32"))["logits"]
    assert relative_error(answers(takes, rows)["logits"], expected)[1] < 1e-5
    assert (takes.spec.settings["input"], pixels.mean, pixels.std) == ("uint8", (0.5,), (0.5,))


def test_it_goes_with_half_precision(graph: Any, tmp_path: Path) -> None:
    path = write_convnet(graph, tmp_path / "net.onnx", end="")
    floats = exported(path, "floats", preprocess="imagenet")
    half = exported(path, "half", preprocess="imagenet", input="uint8", precision="fp16")
    assert half.spec.full.inputs[0].dtype == "uint8"
    expected = answers(floats, floats.spec.preprocessing.prepare(BYTES, "float32"))["logits"]
    assert relative_error(answers(half, BYTES)["logits"], expected)[1] < 1e-2


def test_what_cannot_take_bytes_is_refused(graph: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_convnet(graph, tmp_path / "net.onnx")
    assert main([str(path), "--input", "uint8", "--run", str(tmp_path / "run")]) == 2
    assert "name it with --preprocess" in capsys.readouterr().err
    assert not (tmp_path / "run" / "model").exists()
    with pytest.raises(UsageError, match="Did you mean 'uint8'"):
        ExportOptions(input="uint")
    import onnx

    g = graph()
    x = g.add("Cast", g.input("image", 3, 8, 8, dtype=onnx.TensorProto.UINT8), to=onnx.TensorProto.FLOAT)
    x = g.add("Relu", g.add("Conv", x, g.weight(4, 3, 3, 3), strides=[2, 2]))
    g.add("MatMul", g.add("Flatten", g.add("Conv", x, g.weight(6, 4, 3, 3))), g.weight(6, 5), output="logits")
    taken = g.save(tmp_path / "bytes.onnx", "logits")
    assert main([str(taken), "--input", "uint8", "--preprocess", "raw", "--run", str(tmp_path / "run")]) == 2
    assert "input 'image' is uint8 already; omit the flag" in capsys.readouterr().err
    assert main([str(taken), "--preprocess", "unit", "--run", str(tmp_path / "run")]) == 1
    assert "uint8, which cannot hold values from 0 to 1" in capsys.readouterr().err
    assert main([str(taken), "--preprocess", "raw", "--run", str(tmp_path / "run")]) == 0
