"""``Runtime.load`` on a real bundle over ONNX Runtime, and what it refuses."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import (
    BUNDLE_JSON,
    CorruptArtifactError,
    GraphSpec,
    MissingArtifactError,
    SchemaError,
    StaleArtifactError,
    TensorSpec,
    UsageError,
    new_artifact,
    read_json,
    write_json,
)
from engines import ensure_engine
from engines.keys import ENGINE_JSON
from runtime import Runtime

onnx = pytest.importorskip("onnx", reason="writes ONNX graphs: pip install 'pame[export]'")
pytest.importorskip("onnxruntime", reason="runs them: pip install 'pame[onnxruntime]'")

FEATURES, HIDDEN, CLASSES, ROWS = 6, 5, 4, 8


def random_weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    shapes = {"w0": (FEATURES, HIDDEN), "w1": (HIDDEN, HIDDEN), "v0": (HIDDEN, CLASSES), "v1": (HIDDEN, CLASSES)}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_stage(path: Path, index: int, weights: Mapping[str, np.ndarray]) -> GraphSpec:
    """Writes h' = relu(h w), logits = h' v, confidence = max softmax(logits)."""
    from onnx import TensorProto, helper, numpy_helper

    source, target, width = ("x", "h", FEATURES) if index == 0 else ("h", "g", HIDDEN)
    nodes = [
        helper.make_node("MatMul", [source, "w"], ["product"]),
        helper.make_node("Relu", ["product"], [target]),
        helper.make_node("MatMul", [target, "v"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
        helper.make_node("ReduceMax", ["probabilities", "axes"], ["confidence"], keepdims=0),
    ]
    specs = {
        source: TensorSpec(name=source, dtype="float32", row_shape=(width,)),
        target: TensorSpec(name=target, dtype="float32", row_shape=(HIDDEN,)),
        "logits": TensorSpec(name="logits", dtype="float32", row_shape=(CLASSES,)),
        "confidence": TensorSpec(name="confidence", dtype="float32", row_shape=()),
    }
    outputs = (*((target,) if index == 0 else ()), "logits", "confidence")
    graph = helper.make_graph(
        nodes,
        f"stage_{index}",
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *specs[name].row_shape]) for name in outputs],
        [
            numpy_helper.from_array(weights[f"w{index}"], "w"),
            numpy_helper.from_array(weights[f"v{index}"], "v"),
            numpy_helper.from_array(np.array([-1], np.int64), "axes"),
        ],
    )
    path.parent.mkdir(exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return GraphSpec(
        name=f"stage_{index}",
        file=f"stages/stage_{index}.onnx",
        inputs=(specs[source],),
        outputs=tuple(specs[name] for name in outputs),
        confidence="confidence",
        answers=("logits",),
    )


def answer_by_numpy(x: np.ndarray, weights: Mapping[str, np.ndarray], index: int) -> tuple[np.ndarray, np.ndarray]:
    h = x
    for stage in range(index + 1):
        h = np.maximum(h @ weights[f"w{stage}"], 0)
    logits = h @ weights[f"v{index}"]
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return logits, (exponents / exponents.sum(axis=1, keepdims=True)).max(axis=1)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return np.random.default_rng(8).standard_normal((50, FEATURES)).astype(np.float32)


@pytest.fixture(scope="module")
def threshold(queries: np.ndarray) -> float:
    """In the middle of the widest gap between confidences, so that rounding decides about nobody."""
    ordered = np.sort(answer_by_numpy(queries, random_weights(), 0)[1])[10:40]
    widest = int(np.argmax(np.diff(ordered)))
    return float(ordered[widest : widest + 2].mean())


@pytest.fixture(scope="module")
def sound_bundle(fake_net: Any, threshold: float, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    template = fake_net(thresholds=(threshold,), max_batch_size=ROWS).spec()
    stages = []
    with new_artifact(root / "bundle", kind="bundle") as staging:
        for index, stage in enumerate(template.stages):
            onnx_file = staging / "stages" / f"stage_{index}.onnx"
            graph = write_stage(onnx_file, index, random_weights())
            engine = ensure_engine(onnx_file, graph, root / "engines", backend="onnxruntime", max_batch_size=ROWS)
            shutil.copytree(engine, staging / "engines" / graph.name)
            times = {"1": 1.0, "8": 2.0}
            stages.append(dataclasses.replace(stage, graph=graph, engine=f"engines/{graph.name}", median_ms=times))
        spec = dataclasses.replace(
            template,
            backend="onnxruntime",
            inputs=stages[0].graph.inputs,
            outputs=(stages[0].graph.output("logits"),),
            stages=tuple(stages),
        )
        write_json(staging / BUNDLE_JSON, spec)
    return root / "bundle"


@pytest.fixture
def bundle(sound_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound_bundle, tmp_path / "bundle"))


def test_a_bundle_answers_as_numpy_does(sound_bundle: Path, queries: np.ndarray, threshold: float) -> None:
    weights = random_weights()
    by_stage = [answer_by_numpy(queries, weights, index) for index in range(2)]
    expected = np.where(by_stage[0][1] >= threshold, 0, 1)
    assert 5 < expected.sum() < 45
    with Runtime.load(str(sound_bundle), threads=1) as runtime:
        assert runtime.stage_count == 2
        for count in (1, 2, 3, ROWS, ROWS + 1, 50):
            result = runtime.run(queries[:count])
            np.testing.assert_array_equal(result.exit_index, expected[:count])
            for stage, (logits, confidence) in enumerate(by_stage):
                here = np.flatnonzero(expected[:count] == stage)
                np.testing.assert_allclose(result.outputs[here], logits[here], rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(result.confidence[here], confidence[here], rtol=1e-5)
            assert 0 < result.engine_ms < result.latency_ms.max() + 1e-6


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match="python -m planner --tolerance"):
        Runtime.load(tmp_path / "bundle")


@pytest.mark.parametrize("threads", [0, -1])
def test_impossible_threads(threads: int, sound_bundle: Path) -> None:
    with pytest.raises(UsageError, match=f"threads={threads}: expected a number from 1"):
        Runtime.load(sound_bundle, threads=threads)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "add"])
def test_damaged_bundles(damage: str, bundle: Path) -> None:
    victim = bundle / "engines" / "stage_1" / ENGINE_JSON
    if damage == "flip":
        content = bytearray(victim.read_bytes())
        content[-3] ^= 1
        victim.write_bytes(content)
    elif damage == "truncate":
        victim.write_bytes(victim.read_bytes()[:-1])
    elif damage == "remove":
        victim.unlink()
    else:
        (bundle / "extra").write_text("x")
    with pytest.raises(CorruptArtifactError, match="python -m planner"):
        Runtime.load(bundle)


def reseal(bundle: Path, changed: Mapping[str, Any]) -> None:
    """Publishes the bundle again with another ``bundle.json``."""
    spec = read_json(bundle / BUNDLE_JSON, dict) | changed
    kept = bundle.parent / "kept"
    shutil.copytree(bundle, kept)
    with new_artifact(bundle, kind="bundle") as staging:
        for name in ("engines", "stages"):
            shutil.copytree(kept / name, staging / name)
        write_json(staging / BUNDLE_JSON, spec)


def test_an_engine_outside_the_bundle_is_refused(bundle: Path) -> None:
    stages = read_json(bundle / BUNDLE_JSON, dict)["stages"]
    stages[0]["engine"] = "../engines/stage_0"
    reseal(bundle, {"stages": stages})
    with pytest.raises(CorruptArtifactError, match=r"lists no file '\.\./engines"):
        Runtime.load(bundle)


def test_an_unknown_key_is_refused(bundle: Path) -> None:
    reseal(bundle, {"stagez": []})
    with pytest.raises(SchemaError, match="stagez"):
        Runtime.load(bundle)


def test_an_artifact_of_another_kind_is_refused(sound_bundle: Path) -> None:
    with pytest.raises(SchemaError, match=r"not a bundle.*python -m planner"):
        Runtime.load(sound_bundle / "engines" / "stage_0")


def test_a_bundle_from_another_machine_is_refused(sound_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engines import opening

    identity = opening.identify_backend("onnxruntime")
    other = dataclasses.replace(identity, device="another processor")
    monkeypatch.setattr(opening, "identify_backend", lambda backend: other)
    with pytest.raises(StaleArtifactError, match="another processor"):
        Runtime.load(sound_bundle)


def test_what_a_host_imports(sound_bundle: Path) -> None:
    script = f"""
import sys, threading, runtime
heavy = {{"torch", "onnx", "onnx_ir", "onnxruntime", "matplotlib", "rich", "planner", "calibration", "export"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert not [name for name in sys.modules if name.startswith("runtime.bench")]
assert threading.active_count() == 1
import numpy
with runtime.Runtime.load({str(sound_bundle)!r}) as rt:
    rt.run(numpy.zeros((3, {FEATURES}), numpy.float32))
found = (heavy - {{"onnxruntime"}}) & set(sys.modules)
assert not found, found
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""
