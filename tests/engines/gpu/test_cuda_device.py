"""``CudaDevice``: its context, captured work, its shared block, streams of others, and its limits."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from artifacts import EngineError, TensorSpec, UsageError

pytest.importorskip("cuda.bindings.driver", reason="drives a GPU: pip install 'pame[cuda]'")

from engines import DeviceOptions
from engines.gpu.arrays import DeviceArray
from engines.gpu.cuda_device import CudaDevice
from engines.gpu.driver import call, load_driver
from engines.gpu.graphs import CapturedGraph, run_and_capture
from tests.engines.gpu.driver_calls import record_calls

pytestmark = pytest.mark.gpu
SPEC = TensorSpec(name="x", dtype="float32", row_shape=(4,))


@pytest.fixture
def device() -> Iterator[CudaDevice]:
    opened = CudaDevice()
    yield opened
    opened.close()


def filled(device: CudaDevice, value: float, rows: int = 3) -> DeviceArray:
    buffer = device.allocate(SPEC, rows)
    device.upload(np.full((rows, 4), value, np.float32), buffer)
    return buffer


def read(device: CudaDevice, buffer: DeviceArray) -> float:
    return float(device.download(buffer, [0])[0, 0])


def test_there_is_no_such_gpu() -> None:
    with pytest.raises(UsageError, match="there is no GPU 99"):
        CudaDevice(DeviceOptions(index=99))


def test_every_thread_gets_the_primary_context(device: CudaDevice) -> None:
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.append(read(device, filled(device, 7.0))))
    thread.start()
    thread.join()
    assert found == [7.0]


def test_a_thread_with_another_context_is_refused(device: CudaDevice) -> None:
    other = call("cuCtxCreate", None, 0, call("cuDeviceGet", 0))
    try:
        with pytest.raises(EngineError, match="another CUDA context.*autoprimaryctx"):
            device.allocate(SPEC, 1)
    finally:
        call("cuCtxDestroy", other)
    filled(device, 1.0)


def test_captured_work_reads_the_content_at_launch(device: CudaDevice) -> None:
    source, target = filled(device, 1.0), device.allocate(SPEC, 3)

    def enqueue(stream: int) -> None:
        where = load_driver().CUstream(stream)
        call("cuMemcpyDtoDAsync", target.pointer, source.pointer, source.nbytes, where)

    graph = run_and_capture(device.cuda, enqueue, what="a copy")
    assert graph is not None
    assert read(device, target) == 1.0
    for value in (2.0, 3.0):
        device.upload(np.full((3, 4), value, np.float32), source)
        assert read(device, target) != value
        graph.launch()
        assert read(device, target) == value
    device.synchronize()
    graph.free()
    graph.free()


def test_work_that_fails_while_it_is_captured_leaves_the_stream_usable(
    device: CudaDevice, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(stream: int) -> None:
        raise ValueError("not my day")

    with pytest.raises(ValueError, match="not my day"):
        CapturedGraph(device.cuda, fail)

    def synchronise(stream: int) -> None:  # allowed in a plain run, forbidden in a capture
        call("cuStreamSynchronize", load_driver().CUstream(stream))

    with caplog.at_level("WARNING", logger="pame.engines"):
        assert run_and_capture(device.cuda, synchronise, what="stage_00 with 8 rows") is None
    assert "stage_00 with 8 rows runs without a CUDA graph" in caplog.text
    assert run_and_capture(device.cuda, lambda stream: None, what="nothing") is not None


def test_engines_share_a_block_and_stay_with_it(device: CudaDevice) -> None:
    device.reserve_scratch(1000)
    device.reserve_scratch(5000)
    first, size = device.scratch(1000)
    assert size == 5000
    assert device.scratch(5000) == (first, 5000)
    second, size = device.scratch(9000)
    assert (size, second != first) == (9000, True)
    assert device.scratch(10)[0] == second


def test_shared_objects_are_made_once_and_closed_with_the_device() -> None:
    class Shared:
        closed = 0

        def close(self) -> None:
            self.closed += 1

    device = CudaDevice()
    shared = device.attached("cache", Shared)
    assert device.attached("cache", Shared) is shared
    device.close()
    device.close()
    assert shared.closed == 1


def test_a_closed_device_does_nothing(device: CudaDevice) -> None:
    buffer = filled(device, 1.0)
    (taken,) = device.take([buffer], [0, 1])
    device.close()
    for use in (lambda: device.allocate(SPEC, 1), lambda: device.download(buffer, [0]), lambda: device.take([], [])):
        with pytest.raises(EngineError, match="the device is closed"):
            use()
    device.synchronize()
    other = CudaDevice()
    assert read(other, taken) == 1.0
    other.close()


def test_another_gpu_has_memory_of_its_own(device: CudaDevice) -> None:
    if call("cuDeviceGetCount") < 2:
        pytest.skip("needs a second GPU")
    done: list[str] = []

    def work() -> None:  # a thread of its own: the context of GPU 0 is current in this one
        other = CudaDevice(DeviceOptions(index=1))
        done.append(f"{other.name} {read(other, filled(other, 2.0))}")
        other.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == ["cuda:1 2.0"]


def test_memory_runs_out_with_a_message(device: CudaDevice) -> None:
    with pytest.raises(EngineError, match=r"GPU 0 has no .* MiB left"):
        device.allocate(TensorSpec(name="x", dtype="float32", row_shape=(1 << 30,)), 1 << 10)


def test_one_cut_is_one_kernel_and_one_wait(device: CudaDevice) -> None:
    decision = device.allocate(TensorSpec(name="c", dtype="float32", row_shape=()), 3)
    carried = [filled(device, 1.0), filled(device, 2.0)]
    device.split_rows(3, confidence=decision, threshold=0.5, carried=carried)  # lays out the parameters
    with record_calls() as seen:
        device.split_rows(3, confidence=decision, threshold=0.5, carried=carried)
    assert seen == ["cuCtxGetCurrent", "cuLaunchKernel", "cuEventRecord", "cuEventSynchronize"]


def test_buffers_are_freed_with_their_last_reference_and_with_the_device() -> None:
    device = CudaDevice()
    taken = [filled(device, 1.0)]
    device.synchronize()
    free = call("cuMemGetInfo")[0]
    big = device.allocate(TensorSpec(name="x", dtype="float32", row_shape=(1 << 20,)), 16)
    assert call("cuMemGetInfo")[0] <= free - (64 << 20)
    del big
    assert call("cuMemGetInfo")[0] >= free
    device.close()
    assert taken
