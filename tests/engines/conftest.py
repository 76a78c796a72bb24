"""Small real ONNX graphs, their interfaces, and engines of them."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import (
    MANIFEST,
    EngineKey,
    GraphSpec,
    ModelSpec,
    PameError,
    TensorSpec,
    new_artifact,
    to_plain,
    write_json,
    write_model_spec,
)
from engines import BuildOptions, Engine, FakeEngine, ensure_engine, open_engine
from engines.identity.keys import ENGINE_JSON, open_key
from engines.trt.profiles import TENSORRT_RTX

SIDE = 6
CLASSES = 4


def tensor(name: str, *row_shape: int, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, row_shape=row_shape)


@pytest.fixture(scope="session")
def graph() -> GraphSpec:
    """The interface of ``onnx_file``."""
    return GraphSpec(
        name="tiny",
        file="tiny.onnx",
        inputs=(tensor("x", 1, SIDE, SIDE),),
        outputs=(tensor("logits", CLASSES), tensor("confidence")),
        confidence="confidence",
        answers=("logits",),
    )


@pytest.fixture(scope="session")
def make_onnx(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a convolutional classifier with its confidence as an ONNX file."""
    helper = pytest.importorskip("onnx.helper")
    import onnx
    from onnx import TensorProto, numpy_helper

    def make(
        *, seed: int = 0, batch: int | str | None = "batch", file: str = "tiny.onnx", external: bool = False
    ) -> Path:
        rng = np.random.default_rng(seed)

        def weight(name: str, *shape: int) -> onnx.TensorProto:
            return numpy_helper.from_array((rng.standard_normal(shape) * 0.5).astype(np.float32), name)

        nodes = [
            helper.make_node("Conv", ["x", "w0"], ["c0"], pads=[1] * 4, kernel_shape=[3, 3]),
            helper.make_node("Relu", ["c0"], ["r0"]),
            helper.make_node("Conv", ["r0", "w1"], ["c1"], pads=[1] * 4, kernel_shape=[3, 3]),
            helper.make_node("Add", ["c1", "r0"], ["a1"]),
            helper.make_node("Relu", ["a1"], ["r1"]),
            helper.make_node("GlobalAveragePool", ["r1"], ["g"]),
            helper.make_node("Flatten", ["g"], ["f"]),
            helper.make_node("Gemm", ["f", "fw"], ["logits"], transB=1),
            helper.make_node("Softmax", ["logits"], ["p"]),
            helper.make_node("ReduceMax", ["p", "axes"], ["confidence"], keepdims=0),
        ]
        body = helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 1, SIDE, SIDE])],
            [
                helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, CLASSES]),
                helper.make_tensor_value_info("confidence", TensorProto.FLOAT, [batch]),
            ],
            [
                weight("w0", 16, 1, 3, 3),
                weight("w1", 16, 16, 3, 3),
                weight("fw", CLASSES, 16),
                numpy_helper.from_array(np.array([1], dtype=np.int64), "axes"),
            ],
        )
        model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model)
        path = tmp_path_factory.mktemp("onnx") / file
        onnx.save_model(
            model, path, save_as_external_data=external, location="w.data" if external else None, size_threshold=0
        )
        return path

    return make


@pytest.fixture(scope="session")
def onnx_file(make_onnx: Callable[..., Path]) -> Path:
    return make_onnx()


@pytest.fixture
def run(make_onnx: Callable[..., Path], graph: GraphSpec, tmp_path: Path) -> Path:
    """A run whose model holds two graphs."""
    folder = tmp_path / "runs" / "tiny"
    head = dataclasses.replace(graph, name="exit_c", file="exit_c.onnx")
    with new_artifact(folder / "model", kind="model") as model:
        shutil.copyfile(make_onnx(seed=0), model / graph.file)
        shutil.copyfile(make_onnx(seed=1), model / head.file)
        spec = ModelSpec(name="tiny", family="onnx", task="classification", full=graph, heads={"c": head})
        write_model_spec(model, spec)
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines that tests only read."""
    return tmp_path_factory.mktemp("engines")


@pytest.fixture
def ort_folder(onnx_file: Path, graph: GraphSpec, cache: Path) -> Path:
    pytest.importorskip("onnxruntime")
    return ensure_engine(onnx_file, graph, cache, backend="onnxruntime", options=BuildOptions(max_batch_size=16))


@pytest.fixture(params=["fake", "fake fixed", "onnxruntime", "onnxruntime fixed", "openvino", "openvino fixed"])
def engine(request: pytest.FixtureRequest, graph: GraphSpec, cache: Path) -> Iterator[Engine]:
    """Every kind of engine: up to 16 rows, or exactly 2, 4 and 8."""
    sizes = (2, 4, 8) if "fixed" in request.param else ()
    if request.param.startswith("fake"):
        made: Engine = FakeEngine(graph, max_batch_size=16, batch_sizes=sizes)
    else:
        backend = request.param.partition(" ")[0]
        pytest.importorskip(backend)
        onnx = request.getfixturevalue("onnx_file")
        options = BuildOptions(max_batch_size=16, batch_sizes=sizes)
        folder = ensure_engine(onnx, graph, cache, backend=backend, options=options)
        made = open_engine(folder, graph, threads=2, onnx=onnx)
    yield made
    made.close()


@pytest.fixture(scope="session")
def rtx() -> str:
    """The name of the TensorRT-RTX backend, where it can build."""
    from engines.trt.library import load_tensorrt

    try:
        load_tensorrt(TENSORRT_RTX)
    except PameError as error:
        pytest.skip(str(error))
    return TENSORRT_RTX


@pytest.fixture(scope="session")
def rtx_folder(rtx: str, onnx_file: Path, graph: GraphSpec, cache: Path) -> Path:
    """A TensorRT-RTX engine of ``onnx_file`` for 1 to 8 rows; never changed."""
    return ensure_engine(onnx_file, graph, cache, backend=rtx, options=BuildOptions(max_batch_size=8))


@pytest.fixture(scope="session")
def republish() -> Callable[..., EngineKey]:
    """Publishes an engine again under a changed key, like an engine that was built elsewhere."""

    def republish(folder: Path, **changes: Any) -> EngineKey:
        _, key = open_key(folder)
        changed = dataclasses.replace(key, **changes)
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in {ENGINE_JSON, MANIFEST}}
        with new_artifact(
            folder, kind="engine", inputs={"onnx": changed.onnx_digest}, parameters=to_plain(changed)
        ) as new:
            for name, data in files.items():
                (new / name).write_bytes(data)
            write_json(new / ENGINE_JSON, changed)
        return changed

    return republish


@pytest.fixture(scope="session")
def flip() -> Callable[[Path], None]:
    """Flips one bit in the middle of a file."""

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    return flip
