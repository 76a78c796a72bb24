"""Running any graph once or many times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from artifacts import EngineError, UsageError
from engines import GraphRunner, run_graph

pytest.importorskip("onnxruntime")
X = np.ones((3, 1, 6, 6), dtype=np.float32)


def test_a_file_and_its_bytes_give_the_same(onnx_file: Path) -> None:
    from_file = run_graph(onnx_file, {"x": X}, threads=1)
    assert set(from_file) == {"logits", "confidence"}
    assert from_file["logits"].shape == (3, 4)
    np.testing.assert_array_equal(run_graph(onnx_file.read_bytes(), {"x": X})["logits"], from_file["logits"])


def test_only_the_requested_outputs_are_computed(onnx_file: Path) -> None:
    assert list(run_graph(onnx_file, {"x": X}, outputs=["confidence"])) == ["confidence"]
    with pytest.raises(UsageError, match="Did you mean 'logits'"):
        run_graph(onnx_file, {"x": X}, outputs=["logit"])


def test_a_runner_runs_many_times_and_closes_twice(onnx_file: Path) -> None:
    with GraphRunner(onnx_file, threads=1) as runner:
        assert (runner.input_names, runner.output_names) == (("x",), ("logits", "confidence"))
        first, second = runner.run({"x": X}), runner.run({"x": X * 2})
        assert (first["logits"] != second["logits"]).any()
    runner.close()
    with pytest.raises(EngineError, match="closed"):
        runner.run({"x": X})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "x"),
        ({"x": X, "y": X}, "y"),
        ({"x": X.astype(np.float64)}, "double"),
        ({"x": X[:, :, :3]}, "Got: 3 Expected: 6"),
    ],
)
def test_errors_of_the_backend_are_translated(onnx_file: Path, inputs: dict[str, np.ndarray], message: str) -> None:
    with GraphRunner(onnx_file) as runner, pytest.raises(EngineError, match=f"(?s)failed to run .*{message}"):
        runner.run(inputs)


def test_a_file_that_is_not_a_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"failed to load .*none\.onnx"):
        run_graph(tmp_path / "none.onnx", {})
    with pytest.raises(EngineError, match="a graph of 3 bytes"):
        run_graph(b"abc", {})
