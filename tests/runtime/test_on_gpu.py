"""The runtime over a GPU: the same answers as on the processor, row by row, and nothing in the loop that should not be.

Fakes compute on the host here, so that the tests need nothing but a driver; those with real engines come last.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest

from artifacts import EngineError, InputError, MissingExtraError, StaleArtifactError
from engines import DeviceArray, EngineSet, FakeEngine, plan_covers
from engines.backends.opening import identify_backend
from engines.gpu.detection import find_gpu
from runtime import Runtime

pytest.importorskip("cuda.bindings.driver", reason="drives a GPU: pip install 'pame[cuda]'")

from engines.gpu.cuda_device import CudaDevice
from engines.gpu.driver import call
from tests.engines.gpu.driver_calls import record_calls

pytestmark = pytest.mark.gpu
WAITS = {"cuEventSynchronize", "cuStreamSynchronize", "cuCtxSynchronize"}
ALLOCATIONS = {"cuMemAlloc", "cuMemHostAlloc", "cuMemAllocFromPoolAsync", "cuMemFree", "cuMemFreeHost", "cuEventCreate"}


def confidences(count: int, depth: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, depth)).astype(np.float32)


def open_gpu(net: Any) -> Runtime:
    return net.open_on(CudaDevice())


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("thresholds", [(0.5,), (0.7, 0.4, 0.2), (2.0, 0.5), (-1.0,)])
def test_every_row_is_answered_as_on_the_processor(fake_net: Any, thresholds: tuple[float, ...], masked: bool) -> None:
    net = fake_net(thresholds=thresholds, masked=masked)
    with open_gpu(net) as gpu, net.open() as cpu:
        for count in (1, 2, 7, 8, 19):
            batch = net.batch(confidences(count, net.depth, count), mask=np.arange(2 * count).reshape(-1, 2) % 3 == 0)
            found, wanted = gpu.run(batch), cpu.run(batch)
            np.testing.assert_array_equal(found.outputs, wanted.outputs)
            np.testing.assert_array_equal(found.exit_index, wanted.exit_index)
            np.testing.assert_array_equal(found.confidence, wanted.confidence)
            assert 0 <= found.engine_ms <= found.latency_ms.max() * 1.5
            assert (found.latency_ms > 0).all()


def test_padded_and_split_covers(fake_net: Any, stage_engines: Any) -> None:
    engines = [
        stage_engines(median_ms={8: 1.0}, fixed=True),
        stage_engines(median_ms={2: 0.1, 5: 0.5}, fixed=True),
        stage_engines(median_ms={1: 0.1, 8: 1.0}),
    ]
    net = fake_net(thresholds=(0.6, 0.3), engines=engines)
    with open_gpu(net) as gpu, net.open() as cpu:
        for seed in range(6):
            batch = net.batch(confidences(8, 3, seed))
            np.testing.assert_array_equal(gpu.run(batch).outputs, cpu.run(batch).outputs)


def test_answers_stream_as_rows_leave(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.6, 0.3))
    batch = net.batch(confidences(11, 3))
    with open_gpu(net) as gpu:
        whole = gpu.run(batch)
        seen = []
        for rows, outputs in gpu.stream(batch):
            np.testing.assert_array_equal(outputs, whole.outputs[rows])
            seen += rows.tolist()
        assert sorted(seen) == list(range(11))


def test_a_failure_is_that_calls_error(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5,), faults={1: EngineError("boom")})
    with open_gpu(net) as gpu:
        batch = net.batch(np.zeros((4, 2)))
        gpu.run(batch)
        with pytest.raises(EngineError, match="boom"):
            gpu.run(batch)
        assert gpu.run(batch).outputs.shape == (4, 2)


class Interface:
    """An array of another library: says where it lies, and nothing else."""

    def __init__(self, array: DeviceArray) -> None:
        self.array = array
        self.__cuda_array_interface__ = array.__cuda_array_interface__


@pytest.fixture
def elsewhere() -> Iterator[CudaDevice]:
    """Plays the other library, in the same context."""
    device = CudaDevice()
    yield device
    device.close()


def put(device: CudaDevice, arrays: tuple[np.ndarray, ...], net: Any) -> tuple[Interface, ...]:
    buffers = []
    for array, spec in zip(arrays, net.inputs, strict=True):
        buffers.append(device.allocate(spec, len(array)))
        device.upload(array, buffers[-1])
    device.synchronize()
    return tuple(Interface(buffer) for buffer in buffers)


def test_inputs_on_the_gpu_never_touch_the_host(fake_net: Any, elsewhere: CudaDevice) -> None:
    net = fake_net(thresholds=(0.5,))
    batch = net.batch(confidences(7, 2))
    with open_gpu(net) as gpu:
        wanted = gpu.run(batch)
        theirs = put(elsewhere, batch, net)
        np.testing.assert_array_equal(gpu.run(theirs).outputs, wanted.outputs)
        np.testing.assert_array_equal(gpu.run((theirs[0], batch[1])).outputs, wanted.outputs)
        answers = {}
        for rows, outputs in gpu.stream(theirs, stream=elsewhere.cuda.stream_handle):
            answers.update(zip(rows.tolist(), outputs, strict=True))
        np.testing.assert_array_equal(np.stack([answers[row] for row in range(7)]), wanted.outputs)


def test_answers_stay_on_the_gpu_and_outlive_the_runtime(fake_net: Any, elsewhere: CudaDevice) -> None:
    net = fake_net(thresholds=(0.5,))
    batch = net.batch(confidences(8, 2))
    with open_gpu(net) as gpu:
        wanted = gpu.run(batch)
        results = [gpu.run(batch, on_device=True) for _ in range(3)]
        with pytest.raises(InputError, match="at most 8 rows, got 9"):
            gpu.run(net.batch(confidences(9, 2)), on_device=True)
    for result in results:
        assert isinstance(result.outputs, DeviceArray)
        np.testing.assert_array_equal(elsewhere.download(result.outputs, range(8)), wanted.outputs)
        np.testing.assert_array_equal(result.exit_index, wanted.exit_index)


def test_inputs_on_the_gpu_are_checked_like_any_other(fake_net: Any, elsewhere: CudaDevice) -> None:
    net = fake_net(thresholds=(0.5,), masked=False)
    (good,) = net.batch(confidences(4, 2))
    bad = good.copy()
    bad[2, 0] = np.nan
    with open_gpu(net) as gpu:
        with pytest.raises(InputError, match=r"1 of 4 rows hold NaN or infinity \(rows 2\)"):
            gpu.run(put(elsewhere, (bad,), net))
        with pytest.raises(InputError, match=r"expected shape \(B, 3\), got \(3,\)"):
            flat = put(elsewhere, (good,), net)[0].array
            gpu.run(DeviceArray(flat.pointer, (3,), flat.dtype, owner=flat, device=0))
        with pytest.raises(InputError, match="is not a CUDA stream"):
            gpu.run(put(elsewhere, (good,), net), stream="mine")
        assert len(gpu.run(put(elsewhere, (good,), net)).outputs) == 4


class EnqueuedEngine:
    """Answers with rows that lie ready on the GPU: its runs are copies on the device's stream."""

    def __init__(self, fake: FakeEngine, device: CudaDevice, answers: Mapping[str, np.ndarray]) -> None:
        self.key, self.graph, self.close = fake.key, fake.graph, fake.close
        self._device = device
        self._ready: dict[str, DeviceArray] = {}
        for spec in fake.graph.outputs:
            self._ready[spec.name] = device.allocate(spec, len(answers[spec.name]))
            device.upload(answers[spec.name].astype(spec.dtype), self._ready[spec.name])

    def bind(self, buffers: Mapping[str, DeviceArray]) -> Callable[[], None]:
        outputs = [(buffers[name].pointer, ready.pointer, buffers[name].nbytes) for name, ready in self._ready.items()]

        def execute() -> None:
            for target, source, size in outputs:
                call("cuMemcpyDtoDAsync", target, source, size, self._device.cuda.stream)

        return execute


def open_enqueued(net: Any, device: CudaDevice) -> Runtime:
    """Opens a network in which half of the rows leave at every exit."""
    half = np.array([1.0, 0.0] * (net.max_batch_size // 2), np.float32)
    rows = net.max_batch_size
    sets = []
    for stage in range(net.depth):
        graph = net.graph(stage)
        answers = {spec.name: np.full((rows, *spec.row_shape), stage) for spec in graph.outputs} | {"confidence": half}
        fake = FakeEngine(graph, max_batch_size=rows)
        covers = plan_covers({rows: 1.0}, largest=rows, fixed=False)
        sets.append(EngineSet(EnqueuedEngine(fake, device, answers), covers))
    return Runtime(net.spec(), sets, device)


def test_the_host_waits_for_one_count_per_cut_and_for_the_answers(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5, 0.5))
    batch = net.batch(np.zeros((8, 3)))
    with open_enqueued(net, CudaDevice()) as gpu:
        for _ in range(3):
            assert gpu.run(batch).exit_index.tolist() == [0, 2, 0, 2, 0, 1, 0, 1]
        with record_calls() as seen:
            gpu.run(batch)
    waits = [name for name in seen if name in WAITS]
    assert set(waits) == {"cuEventSynchronize"}
    assert (
        2 + 1 <= len(waits) <= 2 + 1 + 1
    )  # two cuts, the answers; the end of the last stage where it is still to come
    assert not ALLOCATIONS & set(seen)
    assert seen.count("cuLaunchKernel") == 2 + 1
    assert seen.count("cuMemcpyHtoDAsync") == len(batch)


def test_memory_does_not_grow_over_ten_thousand_batches(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5, 0.5))
    batch = net.batch(np.zeros((8, 3)))
    device = CudaDevice()
    pretended = device.cuda.gpu.name == "Pretended GPU"  # a thousand times as slow, so for a while only
    with open_enqueued(net, device) as gpu:
        for _ in range(50):
            gpu.run(batch)
            gpu.run(batch, on_device=True)
        gpu.stats()  # counts what is pending, which would be objects otherwise
        gc.collect()
        free, objects, done, began = call("cuMemGetInfo")[0], sys.getallocatedblocks(), 0, monotonic()
        while done < 10_000 and not (pretended and monotonic() - began > 5):
            gpu.run(batch)
            gpu.run(batch, on_device=True)
            done += 2
        gpu.stats()
        gc.collect()
        assert call("cuMemGetInfo")[0] >= free
        assert sys.getallocatedblocks() - objects < 100


def test_two_runtimes_in_two_threads_and_many_calls_of_one(fake_net: Any) -> None:
    nets = [fake_net(thresholds=(0.6, 0.3)), fake_net(thresholds=(0.2,), masked=False)]
    runtimes = [open_gpu(net) for net in nets]
    failures: list[str] = []

    def work(index: int) -> None:
        net, gpu = nets[index % 2], runtimes[index % 2]
        with net.__class__(thresholds=net.thresholds, masked=net.masked).open() as cpu:
            for seed in range(6):
                batch = net.batch(confidences(8, net.depth, 10 * index + seed))
                if not np.array_equal(gpu.run(batch).outputs, cpu.run(batch).outputs):
                    failures.append(f"thread {index}, seed {seed}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    for runtime in runtimes:
        runtime.close()
    assert failures == []


def test_closing_waits_for_calls_under_way(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5,))
    gpu = open_gpu(net)
    answers = gpu.stream(net.batch(confidences(8, 2)))
    first = next(answers)
    gpu.close()
    rest = list(answers)
    assert len(first[0]) + sum(len(rows) for rows, _ in rest) == 8


# ---------------------------------------------------------------- with real engines


@pytest.fixture(params=["onnxruntime-cuda", "tensorrt", "tensorrt-rtx"])
def toy_bundle(
    request: pytest.FixtureRequest, toy_run: Any, publish_toy: Callable[..., Path], tmp_path: Path
) -> Callable[..., Path]:
    """Builds the toy's bundle for a backend; skips where it is not installed or does not take this GPU."""
    gpu = find_gpu()
    if gpu is None or gpu.name == "Pretended GPU":
        pytest.skip("real engines need a real GPU")

    def build(dtype: str = "float32") -> Path:
        try:
            identify_backend(request.param)
            publish_toy(toy_run, parameters={}, backend=request.param, dtype=dtype, folder=tmp_path / "bundle")
            Runtime.load(tmp_path / "bundle").close()
        except (EngineError, MissingExtraError, StaleArtifactError) as error:
            pytest.skip(f"{request.param}: {error}")
        return tmp_path / "bundle"

    return build


def test_float32_agrees_with_the_processor_row_by_row(toy_run: Any, toy_bundle: Callable[..., Path]) -> None:
    with Runtime.load(toy_bundle()) as gpu, Runtime.load(toy_run.bundle) as cpu:
        found, wanted = gpu.run(toy_run.inputs), cpu.run(toy_run.inputs)
        np.testing.assert_array_equal(found.exit_index, wanted.exit_index)
        np.testing.assert_allclose(found.outputs, wanted.outputs, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found.confidence, wanted.confidence, rtol=1e-3, atol=1e-3)
        for row in (0, 17, 299):
            alone = gpu.run(toy_run.inputs[row : row + 1])
            np.testing.assert_allclose(alone.outputs[0], found.outputs[row], rtol=1e-3, atol=1e-3)


def test_float16_flips_few_decisions(
    toy_run: Any, toy_bundle: Callable[..., Path], record_property: Callable[[str, object], None]
) -> None:
    with Runtime.load(toy_bundle("float16")) as gpu, Runtime.load(toy_run.bundle) as cpu:
        found, wanted = gpu.run(toy_run.inputs.astype(np.float16)), cpu.run(toy_run.inputs)
    flips = int((found.exit_index != wanted.exit_index).sum())
    record_property("decision_flips", flips)
    assert flips <= 0.01 * len(toy_run.inputs)
    same = found.exit_index == wanted.exit_index
    np.testing.assert_allclose(found.outputs[same], wanted.outputs[same], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_cuda_graphs_change_nothing(toy_run: Any, toy_bundle: Callable[..., Path], cuda_graphs: bool) -> None:
    with Runtime.load(toy_bundle(), cuda_graphs=cuda_graphs) as gpu:
        first = gpu.run(toy_run.inputs)
        again = gpu.run(toy_run.inputs)
    np.testing.assert_array_equal(first.outputs, again.outputs)


def test_torch_works_beside_it_in_the_same_context(toy_run: Any, toy_bundle: Callable[..., Path]) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a torch that is built for CUDA")
    with Runtime.load(toy_bundle()) as gpu:
        wanted = gpu.run(toy_run.inputs[:8]).outputs
        context = int(call("cuCtxGetCurrent"))
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            images = torch.from_numpy(toy_run.inputs[:8]).to("cuda:0", non_blocking=True)
            noise = torch.randn(512, 512, device="cuda:0")
            for _ in range(20):
                noise = noise @ noise / 512
            result = gpu.run(images + 0, stream=stream, on_device=True)
        answers = torch.from_dlpack(result.outputs)
        np.testing.assert_allclose(answers.cpu().numpy(), wanted, rtol=1e-5, atol=1e-5)
        assert int(call("cuCtxGetCurrent")) == context
    assert torch.ones(3, device="cuda:0").sum().item() == 3
