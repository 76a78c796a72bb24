"""Running TensorRT engines: the calls of TensorRT, their order, and the memory that they use.

The TensorRT here is a fake that copies rows on the GPU's stream and makes the demands of the real library, whose own
tests need a real GPU: ``tests/runtime/test_on_gpu.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from artifacts import EngineError, EngineKey, GraphSpec, TensorSpec
from engines import DeviceOptions
from engines.trt import library as library_module
from engines.trt import run as run_module
from engines.trt.files import EngineFiles, plan_profiles

pytest.importorskip("cuda.bindings.driver", reason="drives a GPU: pip install 'pame[cuda]'")

from engines.gpu.arrays import DeviceArray
from engines.gpu.cuda_device import CudaDevice
from engines.gpu.driver import call, load_driver
from engines.trt.run import TrtEngine, open_trt_engine
from tests.engines.gpu.driver_calls import record_calls

X, Y = [TensorSpec(name=name, dtype="float32", row_shape=(4,)) for name in "xy"]
C = TensorSpec(name="c", dtype="float32", row_shape=())
GRAPH = GraphSpec(
    name="stage_00", file="stage_00.onnx", inputs=(X,),
    outputs=(Y, C),
    confidence="c", answers=("y",),
)  # fmt: skip


class FakeContext:
    """Copies ``x`` to ``y`` and its first numbers to ``c``, once everything was set that TensorRT requires."""

    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt, self.addresses, self.rows, self.memory = trt, dict[str, int](), 0, (0, 0)
        self.profile: int | None = None

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return stream != 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.rows = shape[0]
        return self.profile is not None

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % 256 == 0

    def infer_shapes(self) -> list[str]:
        return ["x"] if self.trt.knows_no_shapes else []

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % 256 == 0
        assert size >= self.trt.activation_bytes
        self.memory = (address, size)

    def is_stream_capturable(self, stream: int) -> bool:
        return self.trt.capturable

    def execute_async_v3(self, stream: int) -> bool:
        assert self.memory[0]
        self.trt.runs.append(self.rows)
        if self.trt.fails:
            return False
        where = load_driver().CUstream(stream)
        call("cuMemcpyDtoDAsync", self.addresses["y"], self.addresses["x"], 16 * self.rows, where)
        call("cuMemcpyDtoDAsync", self.addresses["c"], self.addresses["x"], 4 * self.rows, where)
        return True


class FakeTensorRT:
    """The module, its one engine, and what happened."""

    def __init__(self) -> None:
        self.contexts: list[FakeContext] = []
        self.runs: list[int] = []
        self.activation_bytes, self.capturable, self.fails, self.knows_no_shapes = 1000, True, False, False
        self.files: list[bytes] = []
        self.names = {"x": "in", "y": "out", "c": "out"}
        self.caches: list[Any] = []
        self.__version__ = "1.7.1"
        self.TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
        self.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
        self.CudaGraphStrategy = SimpleNamespace(DISABLED="off")
        self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")

    def Runtime(self, logger: object) -> Any:  # noqa: N802 - TensorRT's name
        return SimpleNamespace(deserialize_cuda_engine=self.deserialise)

    def deserialise(self, data: bytes) -> Any:
        self.files.append(data)
        names = list(self.names)
        return None if data == b"broken" else SimpleNamespace(
            num_io_tensors=len(names), get_tensor_name=names.__getitem__, get_tensor_mode=self.names.__getitem__,
            device_memory_size_v2=self.activation_bytes, create_runtime_config=FakeConfig,
            create_execution_context=self.make_context,
        )  # fmt: skip

    def make_context(self, config: FakeConfig) -> FakeContext:
        assert config.strategy == "user"
        self.caches.append(config.cache)
        self.contexts.append(FakeContext(self))
        return self.contexts[-1]


class FakeConfig:
    strategy = cache = None

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> Any:
        stored = SimpleNamespace(content=b"new")
        stored.deserialize = lambda data: bool(setattr(stored, "content", data) or True)
        stored.serialize = lambda: stored.content + b"+"
        return stored

    def set_runtime_cache(self, cache: Any) -> None:
        self.cache = cache


class FakeLog:
    @contextlib.contextmanager
    def record(self) -> Iterator[list[tuple[str, str]]]:
        yield [("ERROR", "the fake has had enough")]


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    fake = FakeTensorRT()
    log = FakeLog()
    for module in (run_module, library_module):
        monkeypatch.setattr(module, "load_tensorrt", lambda flavour: fake)
        monkeypatch.setattr(module, "trt_logger", lambda flavour: (None, log))
    return fake


@pytest.fixture
def device() -> Iterator[CudaDevice]:
    opened = CudaDevice()
    yield opened
    opened.close()


@pytest.fixture
def opened(trt: FakeTensorRT, device: CudaDevice, tmp_path: Path) -> Iterator[Callable[..., TrtEngine]]:
    """Opens an engine of one flavour with one profile layout."""
    engines = []

    def open_it(
        flavour: str = "tensorrt", sizes: tuple[int, ...] = (2, 8), *, separate: bool = False, on: CudaDevice = device
    ) -> TrtEngine:
        key = EngineKey(
            onnx_digest="", backend=flavour, backend_version="1.7.1", device="gpu", precision="float32",
            batch_sizes=sizes, max_batch_size=8, options={},
        )  # fmt: skip
        profiles = plan_profiles(key, separate=separate)
        files = EngineFiles(inputs=GRAPH.inputs, outputs=GRAPH.outputs, profiles=profiles, activation_bytes=(0,))
        for file in files.files:
            (tmp_path / file).write_bytes(file.encode())
        engines.append(open_trt_engine(tmp_path, key, GRAPH, files, device=on))
        return engines[-1]

    yield open_it
    for engine in engines:
        engine.close()


def make_buffers(device: CudaDevice, rows: int) -> dict[str, DeviceArray]:
    buffers = {spec.name: device.allocate(spec, rows) for spec in (*GRAPH.inputs, *GRAPH.outputs)}
    device.upload(np.arange(4 * rows, dtype=np.float32).reshape(rows, 4), buffers["x"])
    return buffers


def check_answers(device: CudaDevice, buffers: dict[str, DeviceArray]) -> None:
    rows = range(len(buffers["x"]))
    x, y, c = device.download_all([buffers[name] for name in "xyc"], rows)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(c, x.ravel()[: len(rows)])


@pytest.mark.gpu
@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize(("sizes", "separate"), [((2, 8), False), ((2, 8), True), ((), False)])
def test_a_binding_runs_over_its_buffers_each_time_anew(
    trt: FakeTensorRT, device: CudaDevice, opened: Callable[..., TrtEngine], flavour: str, sizes: Any, separate: bool
) -> None:
    engine = opened(flavour, sizes, separate=separate)
    assert len(trt.files) == (2 if separate else 1)
    for rows in (8, 2):
        buffers = make_buffers(device, rows)
        run = engine.bind(buffers)
        device.upload(np.random.default_rng(rows).random((rows, 4), np.float32), buffers["x"])
        run()
        check_answers(device, buffers)
        assert trt.contexts[-1].profile == (1 if rows == 8 and sizes and not separate else 0)
    with pytest.raises(EngineError, match="not 9"):
        engine.bind(make_buffers(device, 9))


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [True, False])
def test_a_run_is_one_launch_where_it_is_captured(
    trt: FakeTensorRT, opened: Callable[..., TrtEngine], graphs: bool
) -> None:
    device = CudaDevice(DeviceOptions(cuda_graphs=graphs))
    buffers = make_buffers(device, 8)
    run: Any = opened(on=device).bind(buffers)
    assert run.captured is graphs
    enqueued = len(trt.runs)
    with record_calls() as seen:
        run()
    check_answers(device, buffers)
    if graphs:
        assert seen == ["cuCtxGetCurrent", "cuGraphLaunch"]
        assert len(trt.runs) == enqueued == 2  # once directly, once into the graph
    else:
        assert (enqueued, len(trt.runs)) == (0, 1)


@pytest.mark.gpu
def test_tensorrt_rtx_is_asked_whether_it_can_be_captured(
    trt: FakeTensorRT, device: CudaDevice, opened: Callable[..., TrtEngine]
) -> None:
    trt.capturable = False
    run: Any = opened("tensorrt-rtx").bind(make_buffers(device, 8))
    assert not run.captured
    assert trt.runs == []
    run()
    assert trt.runs == [8]


@pytest.mark.gpu
def test_rows_in_the_middle_of_a_buffer_are_bound_aligned(device: CudaDevice, opened: Callable[..., TrtEngine]) -> None:
    buffers = make_buffers(device, 11)
    part = {name: buffer[3:11] for name, buffer in buffers.items()}
    assert all(buffer.pointer % 256 for buffer in part.values())
    opened().bind(part)()
    check_answers(device, part)
    y, c = device.download_all([buffers["y"], buffers["c"]], range(3))
    assert not y.any()
    assert not c.any()


@pytest.mark.gpu
def test_all_engines_work_in_one_block_of_the_largest(
    trt: FakeTensorRT, device: CudaDevice, opened: Callable[..., TrtEngine]
) -> None:
    small = opened()
    trt.activation_bytes = 70_000
    large = opened()
    for engine in (small, large):
        for rows in (2, 8):
            engine.bind(make_buffers(device, rows))
    assert len({context.memory for context in trt.contexts}) == 1
    assert trt.contexts[0].memory[1] == 70_000


@pytest.mark.gpu
def test_kernels_are_stored_for_the_next_process(
    trt: FakeTensorRT, opened: Callable[..., TrtEngine], tmp_path: Path
) -> None:
    contents = []
    for _ in range(2):
        device = CudaDevice(DeviceOptions(kernel_folder=tmp_path / "kernels"))
        for _ in range(2):
            engine = opened("tensorrt-rtx", on=device)
            engine.bind(make_buffers(device, 8))
            contents.append(trt.caches[-1].content)
            engine.close()
        assert trt.caches[-1] is trt.caches[-2]
        device.close()
    assert contents == [b"new", b"new", b"new+", b"new+"]


@pytest.mark.gpu
def test_a_refusal_of_tensorrt_has_its_reason(
    trt: FakeTensorRT, device: CudaDevice, opened: Callable[..., TrtEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened()
    trt.knows_no_shapes = True
    with pytest.raises(EngineError, match=r"TensorRT cannot bind stage_00 with 8 rows: the shapes of \['x'\]"):
        engine.bind(make_buffers(device, 8))
    trt.knows_no_shapes, trt.fails = False, True
    with pytest.raises(EngineError, match="TensorRT failed to run stage_00 with 2 rows: the fake has had enough"):
        engine.bind(make_buffers(device, 2))
    trt.names = {"x": "in", "y": "out"}
    with pytest.raises(EngineError, match=r"outputs are \['y'\], expected \['c', 'y'\].*python -m engines build"):
        opened()
    monkeypatch.setattr(trt, "deserialise", lambda data: None)
    with pytest.raises(EngineError, match=r"TensorRT 1.7.1 refuses .*engine.trt: the fake has had enough"):
        opened()


@pytest.mark.gpu
def test_a_closed_engine_runs_nothing_and_closes_twice(device: CudaDevice, opened: Callable[..., TrtEngine]) -> None:
    engine = opened()
    buffers = make_buffers(device, 2)
    run = engine.bind(buffers)
    run()
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        run()
    with pytest.raises(EngineError, match="closed"):
        engine.bind(buffers)
    check_answers(device, buffers)


@pytest.mark.gpu
def test_wrong_buffers_are_refused(device: CudaDevice, opened: Callable[..., TrtEngine]) -> None:
    engine, good = opened(), make_buffers(device, 2)
    for buffers, message in (
        ({"x": good["x"]}, "missing buffers"),
        ({**good, "x": np.zeros((2, 4), np.float32)}, "ndarray, expected an array on GPU 0"),
        ({**good, "y": good["c"]}, r"dtype float32 and rows of \(\), expected float32 and \(4,\)"),
        ({**good, "c": device.allocate(C, 3)}, "differ in their number of rows"),
    ):
        with pytest.raises(EngineError, match=message):
            engine.bind(buffers)
