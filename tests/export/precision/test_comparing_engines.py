"""``python -m engines compare``: the tensor at which two engines part is found, and what it does to decisions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from artifacts import Model
from engines.cli import main
from engines.comparing.runners import Side
from engines.comparing.walking import read_nodes, relative_error, walk

pytest.importorskip("polygraphy")


def compare(folder: Path, model: Model, *words: str) -> dict[str, Any]:
    target = folder / "compared.json"
    run = str(model.artifact.folder.parent)
    assert main(["compare", "--run", run, "--rows", "4", "--json", str(target), *words]) == 0
    found: dict[str, Any] = json.loads(target.read_text())
    return found


def test_two_backends_of_one_arithmetic_do_not_part(tiny_with_heads: Model, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    found = compare(tmp_path, tiny_with_heads, "--against", "openvino")
    assert found["parted_at"] is None
    assert 0 < max(gap["error"] for gap in found["tensors"]) < 1e-4
    exits = [each["exit"] for each in found["decisions"]]
    assert exits == [*tiny_with_heads.spec.heads, "final head"]
    assert all(each["classes_moved"] == 0 and each["rows_moved"] is None for each in found["decisions"])


def test_half_precision_parts_at_its_first_convolution(
    tiny_with_heads: Model, half_model: Model, tmp_path: Path
) -> None:  # fmt: skip
    other = str(half_model.artifact.folder.parent)
    found = compare(tmp_path, tiny_with_heads, "--against", other)
    first = next(gap for gap in found["tensors"] if gap["operator"] == "Conv")
    assert found["parted_at"] == first["tensor"]
    assert 1e-4 < first["error"] < 1e-2
    assert all(0 < each["confidence_error"] < 0.05 for each in found["decisions"])
    assert found["second"].endswith("(fp16), onnxruntime")


def test_the_node_with_another_weight_is_named(tiny_with_heads: Model, tmp_path: Path) -> None:
    path, spoilt_path = tiny_with_heads.path(tiny_with_heads.spec.full), tmp_path / "spoilt.onnx"
    graph = onnx.load(path)
    nodes = [node for node in graph.graph.node if node.op_type == "Conv"]
    spoilt = nodes[len(nodes) // 2]
    weight = next(weight for weight in graph.graph.initializer if weight.name == spoilt.input[1])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.5), weight.name))
    onnx.save(graph, spoilt_path)
    sides = [Side(label=file.name, backend="onnxruntime", onnx=file) for file in (path, spoilt_path)]
    spec = tiny_with_heads.spec.full.inputs[0]
    gaps = walk(sides[0], sides[1], {spec.name: np.random.default_rng(1).random((2, *spec.row_shape), np.float32)})
    assert next(gap for gap in gaps if gap.error > 1e-4).tensor == spoilt.output[0]
    assert max(gaps, key=lambda gap: gap.risen).tensor == spoilt.output[0]


def test_rows_of_a_file_are_compared(tiny_with_heads: Model, tmp_path: Path) -> None:
    spec = tiny_with_heads.spec.full.inputs[0]
    rows = np.random.default_rng(5).random((9, *spec.row_shape), np.float32)
    np.savez(tmp_path / "rows.npz", **{spec.name: rows})
    found = compare(tmp_path, tiny_with_heads, "--against", "onnxruntime", "--inputs", str(tmp_path / "rows.npz"))
    assert found["rows"] == 4
    assert max(gap["error"] for gap in found["tensors"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--against", "fp16"], "--precision fp16 --run DIR, then --against DIR"),
        (["--against", "tensorrt"], "engines are compared on the processor"),
        (["--against", "openvino", "--engine", "tensorrt"], "engines are compared on the processor"),
        (["--against", "openvino", "--rows", "0"], "--rows 0"),
        (["--against", "openvino", "--inputs", "{wrong}"], "lacks the input"),
        (["--against", "openvino", "--inputs", "{shaped}"], "expected float32 (rows, "),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tiny_with_heads: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    spec = tiny_with_heads.spec.full.inputs[0]
    np.savez(tmp_path / "wrong.npz", other=np.zeros(3))
    np.savez(tmp_path / "shaped.npz", **{spec.name: np.zeros((3, 2), np.float32)})
    filled = [word.format(wrong=tmp_path / "wrong.npz", shaped=tmp_path / "shaped.npz") for word in words]
    assert main(["compare", "--run", str(tiny_with_heads.artifact.folder.parent), *filled]) != 0
    assert message in capsys.readouterr().err


def test_errors_are_relative_to_the_largest_magnitude() -> None:
    one = np.array([1.0, -4.0, np.inf, np.nan])
    assert relative_error(one, one) == 0
    assert relative_error(one, np.array([1.5, -4.0, np.inf, np.nan])) == 0.5 / 4
    assert relative_error(one, np.array([1.0, -4.0, np.inf, 0.0])) == np.inf
    assert relative_error(np.zeros(3), np.zeros(3)) == 0


def test_constants_are_no_steps_of_a_graph(tiny_with_heads: Model) -> None:
    nodes = list(read_nodes(tiny_with_heads.path(tiny_with_heads.spec.full)))
    assert {operator for operator, _, _ in nodes} >= {"Conv", "Relu"}
    assert "Constant" not in {operator for operator, _, _ in nodes}
