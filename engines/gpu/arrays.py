"""Arrays in the memory of a GPU: ours, and those of other libraries, seen without a copy.

Ours export ``__dlpack__`` and ``__cuda_array_interface__``, so torch, CuPy, numba and PyCUDA read them in place. Theirs
come in by either; DLPack is asked first, since it lets the producer order its pending work before ours.
"""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np

from artifacts import InputError, MissingExtraError

ALIGNMENT = 256  # bytes: what TensorRT demands of addresses
DLPACK_CPU, DLPACK_CUDA = 1, 2
LEGACY_STREAM = 1  # the handle that CUDA and both interfaces give the legacy default stream
_DLPACK_GPU_KINDS = {DLPACK_CUDA, 13}  # 13: managed memory


class DeviceArray:
    """A contiguous array on a GPU with the batch as leading axis.

    Attributes:
        pointer: its address.
        shape: (rows, *row_shape).
        dtype: numpy's.
        row_bytes: the bytes of a row.
        owner: what keeps the memory alive.
        device: the ordinal of the GPU.
    """

    __slots__ = ("__weakref__", "device", "dtype", "key", "owner", "pointer", "row_bytes", "shape")

    def __init__(
        self, pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any], *, owner: object, device: int
    ) -> None:
        self.pointer = pointer
        self.shape = shape
        self.dtype = dtype
        self.owner = owner
        self.device = device
        self.row_bytes = math.prod(shape[1:]) * dtype.itemsize
        self.key = (pointer, self.row_bytes)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.row_bytes

    def __getitem__(self, rows: slice) -> Self:
        """Returns a view of neighbouring rows.

        Raises:
            InputError: anything else than a slice of step 1.
        """
        if not isinstance(rows, slice):
            raise InputError(f"an array on the GPU is viewed by a slice of rows, got {rows!r}")
        start, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise InputError(f"an array on the GPU is viewed by neighbouring rows, got every {step}th")
        stop = max(start, stop)
        pointer = self.pointer + start * self.row_bytes
        return type(self)(pointer, (stop - start, *self.shape[1:]), self.dtype, owner=self.owner, device=self.device)

    def __repr__(self) -> str:
        return f"<DeviceArray {self.dtype} {self.shape} on GPU {self.device}>"

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3; ``stream`` is None because whoever hands out one of these has waited for its contents."""
        return {
            "shape": self.shape, "typestr": self.dtype.str, "data": (self.pointer, False), "strides": None,
            "stream": None, "version": 3,
        }  # fmt: skip

    def __dlpack_device__(self) -> tuple[int, int]:
        return (DLPACK_CUDA, self.device)

    def __dlpack__(self, *, stream: Any = None, **options: Any) -> Any:
        """Exports a capsule that keeps this array alive; no stream has to wait, the contents are there.

        Raises:
            MissingExtraError: cuda-core is not installed.
        """
        del stream
        try:
            from cuda.core import Buffer
            from cuda.core.utils import StridedMemoryView
        except ImportError as error:
            raise MissingExtraError("cuda-core", "cuda") from error
        buffer = Buffer.from_handle(self.pointer, self.nbytes, owner=self)
        return StridedMemoryView.from_buffer(buffer, self.shape, dtype=self.dtype).__dlpack__(**options)


def is_device_array(value: Any) -> bool:
    """Tells whether a value says of itself that it lies on a GPU; asks no library and copies nothing."""
    if isinstance(value, DeviceArray) or hasattr(value, "__cuda_array_interface__"):
        return True
    return hasattr(value, "__dlpack__") and value.__dlpack_device__()[0] in _DLPACK_GPU_KINDS


def view_foreign(value: Any, *, stream: int) -> tuple[DeviceArray, int | None]:
    """Returns a view of another library's array on a GPU; it keeps the original alive.

    Args:
        value: has ``__dlpack__`` or ``__cuda_array_interface__``.
        stream: the handle of the stream that will read it. With DLPack the producer makes it wait.

    Returns:
        The view, and the stream that ``stream`` must still wait for: ``None`` when the producer has seen to it.

    Raises:
        InputError: it is not contiguous, has no batch axis, or a dtype that numpy has not.
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
        raise InputError(f"cannot read a {type(value).__name__} on the GPU: numpy has no such dtype; cast it first")
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
    """Returns the handle of a caller's stream: an integer, an object with ``__cuda_stream__``, or PyCUDA's.

    torch's streams have ``cuda_stream``, CuPy's ``ptr``, PyCUDA's ``handle``.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(stream, int) and not isinstance(stream, bool):
        return stream or LEGACY_STREAM
    if hasattr(stream, "__cuda_stream__"):
        protocol = stream.__cuda_stream__
        version, handle = protocol() if callable(protocol) else protocol
        if version != 0:
            raise InputError(f"stream={stream!r} speaks version {version} of __cuda_stream__; this knows version 0")
        return int(handle) or LEGACY_STREAM
    for attribute in ("cuda_stream", "ptr", "handle"):
        handle = getattr(stream, attribute, None)
        if isinstance(handle, int):
            return handle or LEGACY_STREAM
    raise InputError(
        f"stream={stream!r} is no CUDA stream: expected an integer handle, an object with __cuda_stream__, or a stream "
        "of torch, CuPy or PyCUDA"
    )
