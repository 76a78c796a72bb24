"""Arrays and streams of other libraries on a GPU: recognised, viewed without a copy, and checked.

They are read by DLPack or by ``__cuda_array_interface__``; DLPack is preferred, since it lets the producer order its
pending work before ours.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from artifacts import EngineError, InputError, MissingExtraError
from engines.gpu.arrays import DLPACK_CUDA, DeviceArray
from engines.gpu.context import CudaContext
from engines.gpu.driver import call, load_driver

LEGACY_STREAM = 1  # the handle of the legacy default stream, in CUDA and in both interfaces
_DLPACK_GPU_KINDS = {DLPACK_CUDA, 13}  # 13: managed memory


def is_device_array(value: Any) -> bool:
    """Returns whether a value declares itself to be on a GPU; imports no library and copies nothing."""
    if isinstance(value, DeviceArray) or hasattr(value, "__cuda_array_interface__"):
        return True
    return hasattr(value, "__dlpack__") and value.__dlpack_device__()[0] in _DLPACK_GPU_KINDS


def view_foreign(value: Any, *, stream: int) -> tuple[DeviceArray, int | None]:
    """Returns a view of another library's array on a GPU; it keeps the original alive.

    Args:
        value: has ``__dlpack__`` or ``__cuda_array_interface__``.
        stream: the handle of the stream that will read it. With DLPack the producer makes it wait.

    Returns:
        The view, and the stream that ``stream`` must still wait for: ``None`` where the producer ordered its work.

    Raises:
        InputError: it is not contiguous, has no batch axis, or has a dtype that numpy does not have.
        MissingExtraError: cuda-core is not installed.
    """
    if hasattr(value, "__dlpack__"):
        return _view_dlpack(value, stream), None
    interface = value.__cuda_array_interface__
    shape, dtype = tuple(int(size) for size in interface["shape"]), np.dtype(interface["typestr"])
    strides = interface.get("strides")
    _check_layout(value, shape, None if strides is None else [stride / dtype.itemsize for stride in strides])
    producer = interface.get("stream")
    pointer = int(interface["data"][0])
    waits_for = LEGACY_STREAM if producer is None else int(producer)
    return DeviceArray(pointer, shape, dtype, owner=value, device=-1), waits_for


def _view_dlpack(value: Any, stream: int) -> DeviceArray:
    try:
        from cuda.core.utils import StridedMemoryView
    except ImportError as error:
        raise MissingExtraError("cuda-core", "cuda") from error
    try:
        view = StridedMemoryView.from_dlpack(value, stream_ptr=stream)
    except (BufferError, NotImplementedError) as error:
        raise InputError(
            f"cannot read a {type(value).__name__} on the GPU: {error}. Detach or cast it first"
        ) from error
    if view.dtype is None:
        raise InputError(
            f"cannot read a {type(value).__name__} on the GPU: numpy does not have its dtype; cast it first"
        )
    shape = tuple(view.shape)
    _check_layout(value, shape, view.strides)
    return DeviceArray(view.ptr, shape, np.dtype(view.dtype), owner=(view, value), device=view.device_id)


def _check_layout(value: object, shape: tuple[int, ...], strides: Any) -> None:
    if not shape:
        raise InputError(f"a {type(value).__name__} on the GPU has no batch axis; add one in front")
    if strides is None or 0 in shape:
        return
    expected = 1
    for size, stride in zip(reversed(shape), reversed(list(strides)), strict=True):
        if size != 1 and stride != expected:
            raise InputError(
                f"a {type(value).__name__} of shape {shape} on the GPU is not contiguous; "
                "make it so with .contiguous() or ascontiguousarray(...)"
            )
        expected *= size


def read_stream(stream: Any) -> int:
    """Returns the handle of a caller's stream.

    It may be an integer, an object with ``__cuda_stream__``, or a stream of torch (``cuda_stream``), CuPy (``ptr``) or
    PyCUDA (``handle``).

    Raises:
        InputError: it is not a stream of any of these kinds.
    """
    if isinstance(stream, int) and not isinstance(stream, bool):
        return stream or LEGACY_STREAM
    if hasattr(stream, "__cuda_stream__"):
        protocol = stream.__cuda_stream__
        version, handle = protocol() if callable(protocol) else protocol
        if version != 0:
            raise InputError(f"stream={stream!r} has version {version} of __cuda_stream__; expected version 0")
        return int(handle) or LEGACY_STREAM
    for attribute in ("cuda_stream", "ptr", "handle"):
        handle = getattr(stream, attribute, None)
        if isinstance(handle, int):
            return handle or LEGACY_STREAM
    raise InputError(
        f"stream={stream!r} is not a CUDA stream: expected an integer handle, an object with __cuda_stream__, or a "
        "stream of torch, CuPy or PyCUDA"
    )


def check_place(view: DeviceArray, cuda: CudaContext) -> None:
    """Refuses memory of the host, of another GPU, and of another context on this one."""
    driver = load_driver()
    attributes = driver.CUpointer_attribute
    try:
        kind = call("cuPointerGetAttribute", attributes.CU_POINTER_ATTRIBUTE_MEMORY_TYPE, view.pointer)
        ordinal = call("cuPointerGetAttribute", attributes.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, view.pointer)
    except EngineError as error:
        raise InputError(
            f"an input is at an address that belongs to no CUDA context of this process ({error})"
        ) from error
    if int(kind) == int(driver.CUmemorytype.CU_MEMORYTYPE_HOST):
        raise InputError("an input lies in page-locked memory of the host; pass it as a numpy array")
    if ordinal != cuda.index:
        raise InputError(
            f"an input lies on GPU {ordinal}, this runtime runs on GPU {cuda.index}; copy it there, or "
            f"load the runtime with device={ordinal}"
        )
    try:
        context = call("cuPointerGetAttribute", attributes.CU_POINTER_ATTRIBUTE_CONTEXT, view.pointer)
    except EngineError:  # memory from a pool has no context
        return
    if int(context) and not cuda.owns(context):
        raise InputError(
            "an input was allocated in another CUDA context than the primary one; with PyCUDA import "
            "pycuda.autoprimaryctx instead of pycuda.autoinit"
        )
