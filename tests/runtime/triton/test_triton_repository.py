"""A bundle as a model of Triton: the repository that is written, and the model under a fake of Triton's module."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from artifacts import BUNDLE_JSON, BundleSpec, TensorSpec, UsageError, read_json
from runtime import Runtime
from runtime.triton_repository.command import main
from runtime.triton_repository.config import write_config
from runtime.triton_repository.model import TritonPythonModel


@dataclass
class FakeTensor:
    """As ``pb_utils.Tensor``."""

    name: str
    array: np.ndarray

    def as_numpy(self) -> np.ndarray:
        return self.array


def fake_backend() -> SimpleNamespace:
    """The parts of ``triton_python_backend_utils`` that the model uses."""
    types = {"TYPE_FP32": np.float32, "TYPE_INT64": np.int64}
    return SimpleNamespace(
        Tensor=FakeTensor,
        TritonError=str,
        InferenceResponse=lambda output_tensors=(), error=None: SimpleNamespace(outputs=output_tensors, error=error),
        get_input_tensor_by_name=lambda request, name: FakeTensor(name, request[name]),
        triton_string_to_numpy=types.__getitem__,
    )


@pytest.fixture
def repository(toy_run: Any, tmp_path: Path) -> Path:
    assert main([str(toy_run.bundle), str(tmp_path / "models"), "--threads", "1"]) == 0
    return tmp_path / "models"


@pytest.fixture
def model(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake_backend())
    made = TritonPythonModel()
    outputs = [("logits", "TYPE_FP32"), ("exit_index", "TYPE_INT64"), ("confidence", "TYPE_FP32")]
    config = {
        "output": [{"name": name, "data_type": dtype} for name, dtype in outputs],
        "parameters": {"threads": {"string_value": "1"}},
    }
    made.initialize({
        "model_config": json.dumps(config), "model_repository": str(repository / "toy"), "model_version": "1",
        "model_instance_kind": "CPU", "model_instance_device_id": "0",
    })  # fmt: skip
    yield made
    made.finalize()


def test_the_repository_holds_the_bundle_and_what_triton_reads(repository: Path, toy_run: Any) -> None:
    folder = repository / "toy"
    spec = read_json(folder / "1" / "bundle" / BUNDLE_JSON, BundleSpec)
    assert spec == read_json(toy_run.bundle / BUNDLE_JSON, BundleSpec)
    assert "TritonPythonModel" in (folder / "1" / "model.py").read_text()
    config = (folder / "config.pbtxt").read_text()
    assert 'backend: "python"' in config
    assert "max_batch_size: 8" in config
    assert '{ name: "image", data_type: TYPE_FP32, dims: [1, 4, 4] }' in config
    assert '{ name: "exit_index", data_type: TYPE_INT64, dims: [1], reshape: { shape: [] } }' in config
    assert "kind: KIND_CPU" in config
    assert not [path for path in repository.iterdir() if path.is_dir() and path.name != "toy"]


def test_requests_share_a_batch_and_each_gets_its_own_rows(model: Any, toy_run: Any) -> None:
    rows = toy_run.inputs[:11]
    with Runtime.load(toy_run.bundle, threads=1) as runtime:
        expected = runtime.run(rows)
    parts = [slice(0, 1), slice(1, 6), slice(6, 11)]
    found = model.execute([{"image": rows[part]} for part in parts])
    for response, part in zip(found, parts, strict=True):
        assert response.error is None
        logits, exits, confidence = (tensor.array for tensor in response.outputs)
        np.testing.assert_allclose(logits, expected.outputs[part], rtol=1e-5)
        np.testing.assert_array_equal(exits, expected.exit_index[part])
        assert (exits.dtype, confidence.dtype) == (np.int64, np.float32)


def test_a_request_that_is_refused_harms_no_other(model: Any, toy_run: Any) -> None:
    good, bad = toy_run.inputs[:3], toy_run.inputs[3:5].copy()
    bad[0, 0, 0, 0] = np.nan
    found = model.execute([{"image": good}, {"image": bad}, {"image": good[:1]}])
    assert [response.error is None for response in found] == [True, False, True]
    assert "NaN" in found[1].error
    assert [len(response.outputs[0].array) for response in (found[0], found[2])] == [3, 1]


def test_a_closed_runtime_is_an_error_of_every_request(model: Any, toy_run: Any) -> None:
    model.finalize()
    found = model.execute([{"image": toy_run.inputs[:1]}] * 2)
    assert all("closed" in response.error for response in found)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--name", "a/b"), "--name"),
        (("--threads", "0"), "--threads"),
        (("--instances", "0"), "--instances"),
        ((), "already"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_left(
    repository: Path, toy_run: Any, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in repository.iterdir())
    assert main([str(toy_run.bundle), str(repository), *flags]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in repository.iterdir()) == before


def test_the_same_model_again_stands_and_a_damaged_one_is_refused(
    repository: Path, toy_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(toy_run.bundle), str(repository), "--threads", "1"]
    before = (repository / "toy").stat()
    assert main(words) == 0
    assert "nothing has changed" in capsys.readouterr().err
    assert (repository / "toy").stat().st_ino == before.st_ino
    (repository / "toy" / "1" / "bundle" / BUNDLE_JSON).write_text("{}")
    assert main(words) == 2
    assert "another model" in capsys.readouterr().err


def test_a_damaged_bundle_is_not_added(toy_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none"), str(tmp_path / "models")]) == 1
    assert "there is no bundle" in capsys.readouterr().err


def test_folders_of_packages_are_written_first(toy_run: Any, tmp_path: Path) -> None:
    assert main([str(toy_run.bundle), str(tmp_path), "--name", "m.1", "--python-path", str(tmp_path)]) == 0
    text = (tmp_path / "m.1" / "1" / "model.py").read_text()
    assert f"sys.path[:0] = ['{tmp_path}']" in text
    assert text.index("sys.path") < text.index("from runtime")


def test_names_that_the_model_adds_cannot_be_the_networks(toy_run: Any) -> None:
    spec = read_json(toy_run.bundle / BUNDLE_JSON, BundleSpec)
    taken = replace(spec, outputs=(TensorSpec(name="confidence", dtype="float32", row_shape=(2,)),))
    with pytest.raises(UsageError, match="confidence"):
        write_config(taken, name="m", threads=None, instances=1)
