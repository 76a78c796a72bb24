"""Arrays and streams of other libraries: their interfaces, and, on a GPU, their contents."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from artifacts import InputError, MissingExtraError, TensorSpec
from engines import DeviceArray, DeviceOptions, HostDevice, is_device_array
from engines.gpu.foreign_arrays import LEGACY_STREAM, read_stream, view_foreign
from engines.gpu.pycuda_bridge import as_gpuarray, wrap_allocation

SPEC = TensorSpec(name="x", dtype="float32", row_shape=(2,))


class FakeCudaArray:
    """An array that declares itself to be on a GPU by its interface, as those of CuPy and PyCUDA do."""

    def __init__(self, shape: tuple[int, ...], *, pointer: int = 4096, owner: object = None, **more: Any) -> None:
        self.owner = owner
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": "<f4", "data": (pointer, False), "strides": None, "version": 3, **more,
        }  # fmt: skip


class FakeCudaTensor:
    """An array that declares itself to be on a GPU by DLPack."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("it requires a gradient")


class FakeHostTensor(FakeCudaTensor):
    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class FakeStream:
    """A stream by the protocol; others by their attribute."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class FakeProtocolStream:
    def __init__(self, handle: int, version: int = 0) -> None:
        self.answer = (version, handle)

    def __cuda_stream__(self) -> tuple[int, int]:
        return self.answer


def test_arrays_on_a_gpu_are_recognised() -> None:
    assert is_device_array(FakeCudaArray((2, 2)))
    assert is_device_array(FakeCudaTensor())
    assert is_device_array(DeviceArray(0, (1,), np.dtype(np.int8), owner=None, device=0))
    for value in (np.zeros(2), FakeHostTensor(), [1.0], None, "x"):
        assert not is_device_array(value)


def test_an_interface_is_viewed_in_place() -> None:
    value = FakeCudaArray((3, 2), stream=7)
    view, waits_for = view_foreign(value, stream=1)
    assert (view.pointer, view.shape, view.dtype, view.row_bytes, view.nbytes) == (4096, (3, 2), np.float32, 8, 24)
    assert view.owner is value
    assert waits_for == 7
    assert view_foreign(FakeCudaArray((3, 2)), stream=1)[1] == LEGACY_STREAM
    part = view[1:]
    assert (part.pointer, len(part), part.owner) == (4104, 2, value)
    assert repr(part) == "<DeviceArray float32 (2, 2) on GPU -1>"


@pytest.mark.parametrize("strides", [(8, 4), (1000, 4)])
def test_contiguous_strides_are_taken(strides: tuple[int, ...]) -> None:
    rows = 3 if strides == (8, 4) else 1
    assert len(view_foreign(FakeCudaArray((rows, 2), strides=strides), stream=1)[0]) == rows


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (FakeCudaArray((3, 2), strides=(4, 12)), r"\(3, 2\) .* not contiguous.*\.contiguous\(\)"),
        (FakeCudaArray((3, 2), strides=(16, 4)), "not contiguous"),
        (FakeCudaArray(()), "no batch axis"),
    ],
)
def test_arrays_that_cannot_be_viewed_are_refused(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        view_foreign(value, stream=1)


def test_a_producer_that_refuses_is_quoted() -> None:
    pytest.importorskip("cuda.core", reason="reads DLPack: pip install 'pame[cuda]'")
    with pytest.raises(InputError, match="FakeCudaTensor on the GPU: it requires a gradient"):
        view_foreign(FakeCudaTensor(), stream=1)


def test_views_are_of_neighbouring_rows() -> None:
    array = DeviceArray(0, (4, 2), np.dtype(np.float32), owner=None, device=0)
    assert array[3:1].shape == (0, 2)
    for rows in (0, slice(0, 4, 2)):
        with pytest.raises(InputError, match="slice of rows|neighbouring rows"):
            array[rows]  # type: ignore[index]


@pytest.mark.parametrize(
    ("stream", "handle"),
    [
        (1234, 1234), (0, LEGACY_STREAM), (FakeProtocolStream(99), 99), (FakeProtocolStream(0), LEGACY_STREAM),
        (FakeStream(__cuda_stream__=(0, 5)), 5),
        (FakeStream(cuda_stream=12), 12), (FakeStream(ptr=13), 13), (FakeStream(handle=14), 14),
    ],
)  # fmt: skip
def test_streams_of_every_library_are_read(stream: Any, handle: int) -> None:
    assert read_stream(stream) == handle


@pytest.mark.parametrize(
    ("stream", "message"),
    [("x", "is not a CUDA stream"), (True, "is not a CUDA stream"), (FakeProtocolStream(1, version=3), "version 3")],
)
def test_streams_of_unknown_kinds_are_refused(stream: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_stream(stream)


def test_the_host_refuses_arrays_on_a_gpu() -> None:
    with pytest.raises(InputError, match="runs on the processor, got a FakeCudaArray on a GPU"):
        HostDevice().adopt(FakeCudaArray((2, 2)))


def test_an_allocation_is_wrapped_with_its_shape() -> None:
    class FakeDeviceAllocation:
        def __int__(self) -> int:
            return 512

    allocation = FakeDeviceAllocation()
    array = wrap_allocation(allocation, (2, 3), "float16")
    assert (array.pointer, array.shape, array.dtype, array.owner) == (512, (2, 3), np.float16, allocation)
    with pytest.raises(InputError, match="without a batch axis"):
        wrap_allocation(allocation, (), "float16")


def test_gpuarrays_are_made_of_answers_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="on_device=True"):
        as_gpuarray(np.zeros(2))  # type: ignore[arg-type]
    array = DeviceArray(512, (2, 3), np.dtype(np.float32), owner=None, device=0)
    for name in ("pycuda", "pycuda.gpuarray"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pame\[pycuda\]'"):
        as_gpuarray(array)


# ---------------------------------------------------------------- on a GPU


@pytest.fixture
def device() -> Iterator[Any]:
    from engines.gpu.cuda_device import CudaDevice

    opened = CudaDevice()
    yield opened
    opened.close()


def filled(device: Any, value: float, rows: int = 3) -> DeviceArray:
    buffer = device.allocate(SPEC, rows)
    device.upload(np.full((rows, 2), value, np.float32), buffer)
    return buffer


@pytest.mark.gpu
def test_an_interface_is_adopted_and_goes_up_without_the_host(device: Any) -> None:
    theirs, ours = filled(device, 5.0), device.allocate(SPEC, 4)
    view = device.adopt(FakeCudaArray((3, 2), pointer=theirs.pointer, owner=theirs))
    device.upload(view, ours)
    assert device.download(ours, range(4)).tolist() == [[5.0, 5.0]] * 3 + [[0.0, 0.0]]


@pytest.mark.gpu
def test_our_arrays_travel_by_dlpack(device: Any) -> None:
    array = filled(device, 6.0)
    assert array.__dlpack_device__() == (2, 0)
    view = device.adopt(Envelope(array))
    assert (view.pointer, view.shape, view.dtype) == (array.pointer, array.shape, array.dtype)
    assert device.download(view, [2]).tolist() == [[6.0, 6.0]]


class Envelope:
    """A ``DeviceArray`` that shows only DLPack."""

    def __init__(self, array: DeviceArray) -> None:
        self._array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)


@pytest.mark.gpu
@pytest.mark.parametrize("named_by", ["argument", "interface"])
def test_the_device_waits_for_the_stream_on_which_an_input_was_made(device: Any, named_by: str) -> None:
    from engines.gpu.driver import call, load_driver

    theirs, source, ours = filled(device, 0.0), filled(device, 8.0), device.allocate(SPEC, 3)
    device.synchronize()
    stream = call("cuStreamCreate", load_driver().CUstream_flags.CU_STREAM_NON_BLOCKING)
    call("cuMemcpyDtoDAsync", theirs.pointer, source.pointer, source.nbytes, stream)
    interface = {"stream": int(stream)} if named_by == "interface" else {}
    array = FakeCudaArray((3, 2), pointer=theirs.pointer, owner=theirs, **interface)
    view = device.adopt(array, stream=FakeProtocolStream(int(stream)) if named_by == "argument" else None)
    device.upload(view, ours)
    assert device.download(ours, [0]).tolist() == [[8.0, 8.0]]
    call("cuStreamDestroy", stream)


@pytest.mark.gpu
def test_memory_of_elsewhere_is_refused(device: Any) -> None:
    from engines.gpu.driver import call

    with pytest.raises(InputError, match="belongs to no CUDA context of this process|host"):
        device.adopt(FakeCudaArray((1, 2), pointer=4096))
    pinned = device.cuda.allocate_pinned(64)
    with pytest.raises(InputError, match="page-locked memory of the host"):
        device.adopt(FakeCudaArray((1, 2), pointer=pinned.pointer))
    other = call("cuCtxCreate", None, 0, call("cuDeviceGet", 0))
    pointer = int(call("cuMemAlloc", 64))
    call("cuCtxPopCurrent")
    with pytest.raises(InputError, match="another CUDA context than the primary.*autoprimaryctx"):
        device.adopt(FakeCudaArray((1, 2), pointer=pointer))
    call("cuCtxPushCurrent", other)
    call("cuMemFree", pointer)
    call("cuCtxDestroy", other)


@pytest.mark.gpu
def test_memory_of_another_gpu_is_refused(device: Any) -> None:
    from engines.gpu.cuda_device import CudaDevice
    from engines.gpu.driver import call

    if call("cuDeviceGetCount") < 2:
        pytest.skip("needs a second GPU")
    found: list[Any] = []

    def work() -> None:
        other = CudaDevice(DeviceOptions(index=1))
        found.extend((other, filled(other, 1.0)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    with pytest.raises(InputError, match="lies on GPU 1, this runtime runs on GPU 0.*device=1"):
        device.adopt(found[1])
    thread = threading.Thread(target=found[0].close)
    thread.start()
    thread.join()


@pytest.mark.gpu
def test_torch_reads_and_feeds_arrays_in_place(device: Any) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a torch that is built for CUDA")
    tensor = torch.full((3, 2), 4.0, device="cuda:0")
    view = device.adopt(tensor)
    assert view.pointer == tensor.data_ptr()
    assert device.download(view, [1]).tolist() == [[4.0, 4.0]]
    (taken,) = device.take([view], [0, 2])
    device.synchronize()
    back = torch.from_dlpack(taken)
    assert back.data_ptr() == taken.pointer
    assert back.cpu().tolist() == [[4.0, 4.0]] * 2


@pytest.mark.gpu
def test_cupy_reads_and_feeds_arrays_in_place(device: Any) -> None:
    cupy = pytest.importorskip("cupy")
    array = cupy.full((3, 2), 4.0, dtype=cupy.float32)
    assert device.download(device.adopt(array), [1]).tolist() == [[4.0, 4.0]]
    (taken,) = device.take([device.adopt(array)], [0])
    device.synchronize()
    assert cupy.asarray(taken).data.ptr == taken.pointer


@pytest.mark.gpu
def test_pycuda_reads_and_feeds_arrays_in_place(device: Any) -> None:
    pytest.importorskip("pycuda.autoprimaryctx", reason="needs PyCUDA: pip install 'pame[pycuda]'")
    from pycuda import driver, gpuarray

    stream = driver.Stream()
    array = gpuarray.to_gpu_async(np.full((3, 2), 4.0, np.float32), stream=stream)
    assert device.download(device.adopt(array, stream=stream), [1]).tolist() == [[4.0, 4.0]]
    allocation = driver.mem_alloc(24)
    driver.memcpy_htod(allocation, np.full((3, 2), 3.0, np.float32))
    assert device.download(device.adopt(wrap_allocation(allocation, (3, 2), np.float32)), [1]).tolist() == [[3.0, 3.0]]
    (taken,) = device.take([device.adopt(array)], [0, 1])
    device.synchronize()
    answer = as_gpuarray(taken)
    assert int(answer.gpudata) == taken.pointer
    assert answer.get().tolist() == [[4.0, 4.0]] * 2
