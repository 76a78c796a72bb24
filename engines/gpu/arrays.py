"""``DeviceArray``: an array in the memory of a GPU, which other libraries read without a copy.

It exports ``__dlpack__`` and ``__cuda_array_interface__``, which torch, CuPy, numba and PyCUDA read.
"""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np

from artifacts import InputError, MissingExtraError

ALIGNMENT = 256  # bytes: what TensorRT demands of addresses
DLPACK_CPU, DLPACK_CUDA = 1, 2


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
            InputError: it is not a slice of step 1.
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
        """Version 3; ``stream`` is None because the contents are complete before an array is handed out."""
        return {
            "shape": self.shape, "typestr": self.dtype.str, "data": (self.pointer, False), "strides": None,
            "stream": None, "version": 3,
        }  # fmt: skip

    def __dlpack_device__(self) -> tuple[int, int]:
        return (DLPACK_CUDA, self.device)

    def __dlpack__(self, *, stream: Any = None, **options: Any) -> Any:
        """Exports a capsule that keeps this array alive; no stream has to wait, since the contents are complete.

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
