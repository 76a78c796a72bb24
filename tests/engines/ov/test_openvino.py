"""OpenVINO engines: their arithmetic is said and kept, nothing is sent or shared with forks, refusals name the fix."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino")

from artifacts import EngineError, GraphSpec, StaleArtifactError, UsageError
from engines import BuildOptions, HostDevice, ensure_engine, open_engine, run_graph
from engines.backends.building import build_engine, builder
from engines.cache.inspecting import describe_engine
from engines.identity.keys import open_key
from engines.ov import session

DEVICE = HostDevice()
OPTIONS = BuildOptions(max_batch_size=16)


def has_bf16() -> bool:
    return "BF16" in session.load_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def answer(folder: Path, graph: GraphSpec, x: np.ndarray) -> dict[str, np.ndarray]:
    engine = open_engine(folder, graph, threads=1)
    buffers = {spec.name: DEVICE.allocate(spec, len(x)) for spec in (*graph.inputs, *graph.outputs)}
    buffers["x"][...] = x
    engine.bind(buffers)()
    engine.close()
    return buffers


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((16, 1, 6, 6)).astype(np.float32)


def test_it_answers_as_the_graph_in_float32(onnx_file: Path, graph: GraphSpec, cache: Path, rows: np.ndarray) -> None:
    folder = ensure_engine(onnx_file, graph, cache, backend="openvino", options=OPTIONS)
    found = answer(folder, graph, rows)
    for name, wanted in run_graph(onnx_file, {"x": rows}, threads=1).items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_another_engine_with_other_answers(
    onnx_file: Path, graph: GraphSpec, cache: Path, rows: np.ndarray
) -> None:
    if not has_bf16():
        with pytest.raises(EngineError, match="no instructions for bfloat16"):
            builder("openvino-bf16", OPTIONS).key(onnx_file)
        pytest.skip("this processor has no bfloat16")
    exact, short = (
        ensure_engine(onnx_file, graph, cache, backend=backend, options=OPTIONS)
        for backend in ("openvino", "openvino-bf16")
    )
    assert exact != short
    assert [open_key(folder)[1].options["inference_precision"] for folder in (exact, short)] == ["f32", "bf16"]
    wanted, found = answer(exact, graph, rows)["logits"], answer(short, graph, rows)["logits"]
    assert 1e-5 < np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


def test_bfloat16_is_refused_where_the_processor_has_none(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Core:
        def get_property(self, *_: str) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setattr(session, "_core", Core)
    with pytest.raises(EngineError, match="no instructions for bfloat16.*use --engine openvino"):
        builder("openvino-bf16", OPTIONS).key(onnx_file)


def test_a_fixed_batch_axis_is_refused(make_onnx: object, tmp_path: Path) -> None:
    onnx = make_onnx(batch=4, file="fixed.onnx")  # type: ignore[operator]
    key = builder("openvino", OPTIONS).key(onnx)
    with pytest.raises(EngineError, match="the batch axis of x is fixed. Export it with a dynamic batch axis"):
        build_engine(onnx, tmp_path / "engine", key)


def test_shape_profiles_are_refused() -> None:
    with pytest.raises(UsageError, match="openvino has no shape profiles"):
        builder("openvino", BuildOptions(max_batch_size=4, profiles="range"))


def test_an_engine_of_another_version_is_refused(
    onnx_file: Path, graph: GraphSpec, tmp_path: Path, republish: object
) -> None:
    folder = ensure_engine(onnx_file, graph, tmp_path, backend="openvino", options=OPTIONS)
    republish(folder, backend_version="2020.1.0")  # type: ignore[operator]
    with pytest.raises(StaleArtifactError, match=r"2020\.1\.0"):
        open_engine(folder, graph, threads=1)


def test_a_description_names_interface_and_arithmetic(onnx_file: Path, graph: GraphSpec, cache: Path) -> None:
    folder = ensure_engine(onnx_file, graph, cache, backend="openvino", options=OPTIONS)
    told = describe_engine(folder)
    assert told.key.options["inference_precision"] == "f32"
    assert "x:" in told.inputs[0]
    assert len(told.outputs) == 2


SILENT = """
import multiprocessing.process, sys
started = []
multiprocessing.process.BaseProcess.start = lambda self: started.append(self)
from engines.ov.session import identify_openvino
identify_openvino()
import time
time.sleep(0.5)
print(len(started), "openvino_telemetry" in sys.modules)
"""


def test_nothing_is_sent_to_its_makers() -> None:
    done = subprocess.run([sys.executable, "-c", SILENT], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["0", "False"]


FORKED = """
import json, os, signal, sys
from pathlib import Path
from artifacts import read_json, GraphSpec
from engines import HostDevice, open_engine
graph, device = read_json(Path(sys.argv[2]), GraphSpec), HostDevice()
def start():
    engine = open_engine(Path(sys.argv[1]), graph, threads=2)
    run = engine.bind({spec.name: device.allocate(spec, 4) for spec in (*graph.inputs, *graph.outputs)})
    run()
    return engine, run
engine, run = start()
child = os.fork()
if child == 0:
    signal.alarm(20)  # ends it with a signal where it hangs
    try:
        run()
    except Exception as error:
        Path(sys.argv[3]).write_text(str(error))
    engine.close()
    start()
    sys.exit(7)
_, status = os.waitpid(child, 0)
run()
print(json.dumps(os.waitstatus_to_exitcode(status)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_refuses_opens_its_own_and_ends(
    onnx_file: Path, graph: GraphSpec, cache: Path, tmp_path: Path
) -> None:
    from artifacts import write_json

    folder = ensure_engine(onnx_file, graph, cache, backend="openvino", options=OPTIONS)
    write_json(tmp_path / "graph.json", graph)
    done = subprocess.run(
        [sys.executable, "-c", FORKED, folder, tmp_path / "graph.json", tmp_path / "said"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.stderr, json.loads(done.stdout)) == ("", 7)
    assert "Open it again after the fork" in (tmp_path / "said").read_text()
