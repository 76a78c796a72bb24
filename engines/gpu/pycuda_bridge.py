"""The bridge to PyCUDA: a host's allocations become inputs, and answers become a ``GPUArray``; nothing is copied.

``Runtime.run`` takes a ``GPUArray`` and a ``pycuda.driver.Stream`` as they are. A ``DeviceAllocation`` has neither
shape nor dtype, so ``wrap_allocation`` adds them. Answers that stayed on the GPU become GPUArrays by ``as_gpuarray``::

    from engines import as_gpuarray

    result = runtime.run(gpu_array, stream=stream, on_device=True)
    logits = as_gpuarray(result.outputs)

PyCUDA must work in the primary context: ``import pycuda.autoprimaryctx``, or ``Device(0).retain_primary_context()``
pushed in every thread. ``pycuda.autoinit`` makes another context; the device refuses to work in a thread that has it,
and to read memory that was allocated in it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from artifacts import InputError, MissingExtraError
from engines.gpu.arrays import DeviceArray


def as_gpuarray(array: DeviceArray) -> Any:
    """Returns a ``pycuda.gpuarray.GPUArray`` over the same memory, which it keeps alive.

    Raises:
        MissingExtraError: PyCUDA is not installed.
        InputError: it is not an array on the GPU.
    """
    if not isinstance(array, DeviceArray):
        raise InputError(f"expected answers on the GPU, got a {type(array).__name__}; ask for them with on_device=True")
    try:
        from pycuda.gpuarray import GPUArray
    except ImportError as error:
        raise MissingExtraError("pycuda", "pycuda") from error
    return GPUArray(array.shape, array.dtype, gpudata=array.pointer, base=array)


def wrap_allocation(allocation: Any, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
    """Returns a ``pycuda.driver.DeviceAllocation`` as an array for ``Runtime.run``, which keeps it alive.

    Args:
        allocation: from ``pycuda.driver.mem_alloc``.
        shape: (rows, *row_shape), C-contiguous.
        dtype: numpy's.

    Raises:
        InputError: the shape has no batch axis.
    """
    if not shape:
        raise InputError("an array without a batch axis cannot be wrapped; add one in front: shape=(1, ...)")
    sizes = tuple(int(size) for size in shape)
    return DeviceArray(int(allocation), sizes, np.dtype(dtype), owner=allocation, device=-1)
