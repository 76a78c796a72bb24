"""ONNX Runtime's CUDA provider as an engine backend: its key, its session, and everything that runs on it.

Where there is a GPU but no such provider, and on the fake driver, a session on the processor stands in: it
takes the same calls, waits for the GPU, and computes over the very addresses that were bound, which works only where a
GPU's memory is the host's. Hence most of this runs on the fake driver alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from artifacts import EngineError, MissingExtraError, StaleArtifactError, UsageError, open_model
from engines import BuildOptions, builder, ensure_engine, open_device, open_engine
from engines.gpu.detection import Gpu
from engines.ort import cuda_session as ort_cuda_common
from engines.ort.cuda_session import ONNXRUNTIME_CUDA, PROVIDER, identify_onnxruntime_cuda, open_cuda_session
from runtime import Runtime

GPU = Gpu(name="A GPU", capability=(9, 0), driver="1.2")


class FakeSession:
    def __init__(self, providers: list[str]) -> None:
        self._providers = providers

    def get_providers(self) -> list[str]:
        return self._providers


class FakeOnnxRuntime:
    """The part of onnxruntime that is used; a session whose provider cannot be loaded goes on without it."""

    def __init__(self, *, provider: bool = True, loads: bool = True) -> None:
        self.__version__ = "1.31.1"
        self.GraphOptimizationLevel = SimpleNamespace(ORT_ENABLE_ALL="all")
        self.opened: dict[str, Any] = {}
        self.preloaded = 0
        self._provider, self._loads = provider, loads

    def get_available_providers(self) -> list[str]:
        return [PROVIDER, "CPUExecutionProvider"] if self._provider else ["CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        self.preloaded += 1
        print("Failed to load libcufft.so.12")

    def InferenceSession(self, model: str, options: Any, providers: list[Any]) -> Any:  # noqa: N802
        self.opened = {"model": model, "level": options.graph_optimization_level, "providers": providers}
        return FakeSession([*([PROVIDER] if self._loads else []), "CPUExecutionProvider"])


@pytest.fixture
def fake_ort(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeOnnxRuntime]:
    def install(**how: Any) -> FakeOnnxRuntime:
        ort = FakeOnnxRuntime(**how)
        monkeypatch.setattr(ort_cuda_common, "load_onnxruntime", lambda: ort)
        monkeypatch.setattr(ort_cuda_common, "session_options", lambda threads: SimpleNamespace(threads=threads))
        monkeypatch.setattr(ort_cuda_common, "ort_errors", lambda: (RuntimeError,))
        monkeypatch.setattr(ort_cuda_common, "find_gpu", lambda index: GPU if index == 0 else None)
        return ort

    return install


def test_version_and_gpu_identify_it(fake_ort: Callable[..., FakeOnnxRuntime]) -> None:
    fake_ort()
    identity = identify_onnxruntime_cuda()
    assert (identity.version, identity.device) == ("1.31.1", "A GPU (compute capability 9.0), driver 1.2")
    with pytest.raises(EngineError, match="there is no GPU 3 here"):
        identify_onnxruntime_cuda(3)
    fake_ort(provider=False)
    with pytest.raises(MissingExtraError, match=r"onnxruntime-gpu .* pip install 'pame\[onnxruntime-cuda\]'"):
        identify_onnxruntime_cuda()


def test_a_session_works_on_one_gpu_and_our_stream(fake_ort: Callable[..., FakeOnnxRuntime]) -> None:
    ort = fake_ort()
    open_cuda_session("graph.onnx", index=1, stream=4242, what="open it")
    ((provider, options), fallback) = ort.opened["providers"]
    assert (provider, fallback) == (PROVIDER, "CPUExecutionProvider")
    assert options["device_id"] == "1"
    assert options["user_compute_stream"] == "4242"
    assert options["use_tf32"] == "0"
    assert all(isinstance(value, str) for value in options.values())


def test_the_libraries_of_cuda_are_loaded_once_and_nothing_is_printed(
    fake_ort: Callable[..., FakeOnnxRuntime], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    ort = fake_ort()
    with caplog.at_level("INFO", logger="pame.engines"):
        for _ in range(2):
            open_cuda_session("graph.onnx", index=0, stream=None, what="open it")
    assert ort.preloaded == 1
    assert capsys.readouterr().out == ""
    assert "Failed to load libcufft.so.12" in caplog.text


def test_a_session_that_would_leave_the_gpu_is_refused(fake_ort: Callable[..., FakeOnnxRuntime]) -> None:
    fake_ort(loads=False)
    with pytest.raises(EngineError, match=r"failed to open it: its CUDA provider could not be loaded.*cuDNN"):
        open_cuda_session("graph.onnx", index=0, stream=None, what="open it")


def test_profiles_are_not_its_business_and_the_processor_needs_no_device(toy_run: Any, tmp_path: Path) -> None:
    model = open_model(toy_run.root / "model", remedy="")
    graph = model.spec.full
    with pytest.raises(UsageError, match="no shape profiles"):
        builder(ONNXRUNTIME_CUDA, BuildOptions(max_batch_size=4, profiles="range"))
    options = BuildOptions(max_batch_size=4)
    folder = ensure_engine(model.path(graph), graph, tmp_path, backend="onnxruntime", options=options)
    assert open_engine(folder, graph, threads=1, device=open_device("onnxruntime")).key.backend == "onnxruntime"


# ---------------------------------------------------------------- on the fake driver


class HostSession:
    """A session on the processor behind the calls of one on the GPU."""

    def __init__(self, model: str) -> None:
        from engines.ort.session import open_session, session_options

        self._session: Any = open_session(model, session_options(1), what="open")
        self.get_inputs, self.get_outputs = self._session.get_inputs, self._session.get_outputs

    def io_binding(self) -> Any:
        binding = self._session.io_binding()

        def on_host(bind: Callable[..., None]) -> Callable[..., None]:
            def bound(name: str, device: str, index: int, *layout: Any) -> None:
                assert (device, index) == ("cuda", 0)
                assert layout[-1] % 256 == 0
                bind(name, "cpu", 0, *layout)

            return bound

        return SimpleNamespace(
            real=binding, bind_input=on_host(binding.bind_input), bind_output=on_host(binding.bind_output)
        )

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        from engines.gpu.driver import call

        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        call("cuCtxSynchronize")
        self._session.run_with_iobinding(binding.real)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    from engines.gpu.detection import find_gpu

    gpu = find_gpu()
    if gpu is None or gpu.name != "Pretended GPU":
        pytest.skip("computes over a GPU's memory on the processor: only on the fake driver")
    from engines.ort import cuda_build as ort_cuda_build
    from engines.ort import cuda_run as ort_cuda_run
    from engines.ort.session import load_onnxruntime

    real = load_onnxruntime()
    monkeypatch.setattr(real, "get_available_providers", lambda: [PROVIDER])
    for module in (ort_cuda_build, ort_cuda_run):
        monkeypatch.setattr(module, "open_cuda_session", lambda model, **_: HostSession(model))


@pytest.fixture
def bundle(toy_run: Any, publish_toy: Callable[..., Path], tmp_path: Path, stand_in: None) -> Path:
    return publish_toy(
        toy_run, parameters={"data": _data_digests(toy_run)}, backend=ONNXRUNTIME_CUDA, folder=tmp_path / "bundle"
    )


def _data_digests(toy: Any) -> Any:
    from calibration import image_input, load_samples

    return load_samples(toy.data, image_input((1, 4, 4))).digests()


@pytest.mark.gpu
def test_a_bundle_is_served_from_the_gpu(bundle: Path, toy_run: Any) -> None:
    with Runtime.load(bundle) as gpu, Runtime.load(toy_run.bundle) as cpu:
        assert gpu.spec.backend == ONNXRUNTIME_CUDA
        for count in (1, 5, 8, 30):
            found, wanted = gpu.run(toy_run.inputs[:count]), cpu.run(toy_run.inputs[:count])
            np.testing.assert_array_equal(found.exit_index, wanted.exit_index)
            np.testing.assert_allclose(found.outputs, wanted.outputs, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_an_engine_of_another_gpu_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_cuda_common, "find_gpu", lambda index: GPU)
    with pytest.raises(StaleArtifactError, match=r"Pretended GPU.*A GPU.*python -m engines build --bundle"):
        Runtime.load(bundle)


@pytest.mark.gpu
def test_the_bench_runs_on_the_gpu(bundle: Path, toy_run: Any, tmp_path: Path) -> None:
    from runtime.bench.command import main

    target = tmp_path / "bench.json"
    arguments = ["--run", toy_run.root, "--bundle", bundle, "--data", toy_run.data, "--json", target]
    assert main([*map(str, arguments), "--rounds", "1", "--samples", "40", "--no-cuda-graphs"]) == 0
    result = json.loads(target.read_text())
    assert result["engine"] == ONNXRUNTIME_CUDA
    assert result["engine_ms"] > 0
    assert result["agreement"] <= 1


@pytest.mark.gpu
def test_the_planner_times_engines_gathers_and_serving_on_the_gpu(
    bundle: Path, toy_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engines.gpu.cuda_device import CudaDevice
    from planner.config import TimingConfig
    from planner.measure.timing import EngineSettings, TimedGraph, time_graphs

    waits: list[None] = []
    synchronize = CudaDevice.synchronize
    monkeypatch.setattr(CudaDevice, "synchronize", lambda self: (waits.append(None), synchronize(self))[1])
    spec = open_model(toy_run.root / "model", remedy="").spec
    with Runtime.load(bundle) as gpu:
        first = gpu.spec.stages[0].graph
    graphs = [
        TimedGraph(row="stage", onnx=bundle / first.file, graph=first, gather="cut", carried=first.outputs[:1]),
        TimedGraph(row="full", onnx=toy_run.root / "model" / "full.onnx", graph=spec.full),
    ]
    waits.clear()
    config = TimingConfig(batch_sizes=(1, 8), rounds=3, warm_up=1)
    itm = time_graphs(graphs, spec, tmp_path / "engines", config, EngineSettings(backend=ONNXRUNTIME_CUDA, threads=1))
    assert set(itm.median_ms) == {"stage", "gather_cut", "full", "serving"}
    assert all(ms > 0 for row in itm.median_ms.values() for ms in row)
    assert itm.backend.startswith(ONNXRUNTIME_CUDA)
    assert len(waits) >= 3 * 8  # behind every measured call


@pytest.mark.gpu
def test_weights_in_files_of_their_own_travel_with_the_graph(stand_in: None, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    from artifacts import GraphSpec, TensorSpec

    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32) * 3, "w")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", "y")]
    body = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weight])
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save_model(model, tmp_path / "g.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    x, y = [TensorSpec(name=name, dtype="float32", row_shape=(4,)) for name in ("x", "y")]
    graph = GraphSpec(name="g", file="g.onnx", inputs=(x,), outputs=(y,))
    options = BuildOptions(max_batch_size=4, batch_sizes=(2,))
    folder = ensure_engine(tmp_path / "g.onnx", graph, tmp_path / "engines", backend=ONNXRUNTIME_CUDA, options=options)
    assert {path.name for path in folder.iterdir()} >= {"graph.onnx", "w.data"}
    device = open_device(ONNXRUNTIME_CUDA)
    engine = open_engine(folder, graph, threads=1, onnx=tmp_path / "g.onnx", device=device)
    buffers = {spec.name: device.allocate(spec, 2) for spec in (x, y)}
    device.upload(np.ones((2, 4), np.float32), buffers["x"])
    run = engine.bind(buffers)
    run()
    assert device.download(buffers["y"], range(2)).tolist() == [[3.0] * 4] * 2
    engine.close()
    engine.close()
    for use in (run, lambda: engine.bind(buffers)):
        with pytest.raises(EngineError, match="closed"):
            use()
    with pytest.raises(UsageError, match="runs on a GPU, got device cpu"):
        open_engine(folder, graph, threads=1, device=open_device("onnxruntime"))
    device.close()
