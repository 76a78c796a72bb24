"""``CudaContext``: the primary context of one GPU, with a stream, the kernels, and memory.

PAME is a guest in the host's process. The CUDA runtime, and with it torch, CuPy and TensorRT, use the *primary*
context: in that context their memory and streams can be read. A thread without a context gets it, as the runtime would
do. A thread with another context (``pycuda.autoinit`` makes one) is refused, because the memory of one context cannot
be used in another. The device is never reset, and its flags do not change.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import weakref
from collections.abc import Sequence
from typing import Any

from artifacts import EngineError, UsageError
from engines.gpu.detection import Gpu, find_gpu
from engines.gpu.driver import call, load_driver
from engines.gpu.kernels import KERNELS, compile_kernels

_log = logging.getLogger("pame.engines")


class CudaContext:
    """The primary context of one GPU with one non-blocking stream; lives as long as anything allocated from it.

    Attributes:
        index: the ordinal of the GPU.
        gpu: name, capability and driver of the GPU.
        primary: the driver's context object.
        stream: the driver's stream object; all work of one ``CudaDevice`` goes there.
        stream_handle: the same stream as an integer, for other libraries.
        kernels: name -> the driver's function object.
        capture_lock: held while work is captured on ``capture_stream``.
    """

    def __init__(self, index: int) -> None:
        """Retains the primary context and loads the kernels.

        Raises:
            MissingExtraError: cuda-bindings is not installed.
            EngineError: there is no driver, or the kernels cannot be compiled for this GPU.
            UsageError: there is no such GPU.
        """
        driver = load_driver()
        call("cuInit", 0)
        count = call("cuDeviceGetCount")
        gpu = find_gpu(index) if 0 <= index < count else None
        if gpu is None:
            raise UsageError(f"there is no GPU {index}: this process sees {count}, counted from 0")
        self.index = index
        self.gpu: Gpu = gpu
        cubin = compile_kernels("sm_{}{}".format(*gpu.capability))
        self._device = call("cuDeviceGet", index)
        self.primary = call("cuDevicePrimaryCtxRetain", self._device)
        self._address = int(self.primary)
        self._pool: Any = None
        undo: list[tuple[Any, ...]] = [("cuDevicePrimaryCtxRelease", self._device)]
        self._finalizer = weakref.finalize(self, undo_calls, self.primary, undo)
        self._finalizer.atexit = False  # at exit the driver frees everything, and may be unloaded already
        self.enter()
        flags = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        self.stream = call("cuStreamCreate", flags)
        undo.append(("cuStreamDestroy", self.stream))
        self.stream_handle = int(self.stream)
        self.capture_stream = call("cuStreamCreate", flags)
        undo.append(("cuStreamDestroy", self.capture_stream))
        self.capture_lock = threading.RLock()
        self._undo = undo
        self.kernels: dict[str, Any] = {}
        self.load_kernels(cubin, KERNELS)

    def load_kernels(self, cubin: bytes, names: Sequence[str]) -> None:
        """Loads compiled kernels beside those that are loaded already, for ``launch``.

        Raises:
            EngineError: the driver refuses them.
        """
        module = call("cuModuleLoadData", cubin)
        self._undo.append(("cuModuleUnload", module))
        self.kernels |= {name: call("cuModuleGetFunction", module, name.encode()) for name in names}

    def enter(self) -> None:
        """Makes the primary context current in this thread.

        Raises:
            EngineError: another context is current.
        """
        current = int(call("cuCtxGetCurrent"))
        if current == self._address:
            return
        if current:
            raise EngineError(
                f"this thread has another CUDA context than the primary one of GPU {self.index}, and neither can use "
                "memory of the other. With PyCUDA import pycuda.autoprimaryctx instead of pycuda.autoinit, or "
                "pop the context before the call"
            )
        call("cuCtxSetCurrent", self.primary)

    def owns(self, context: Any) -> bool:
        """Returns whether a context of the driver is this context."""
        return int(context) == self._address

    def allocate(self, size: int) -> Allocation:
        """Returns zeroed memory of the GPU that lives as long as there is a reference to it.

        Raises:
            EngineError: there is not enough memory.
        """
        self.enter()
        try:
            pointer = int(call("cuMemAlloc", max(size, 1)))
        except EngineError as error:
            raise EngineError(
                f"GPU {self.index} has no {size / 2**20:.1f} MiB left ({error}); close other runtimes, or plan for a "
                "smaller batch"
            ) from error
        allocation = Allocation(self, pointer, size)
        call("cuMemsetD8Async", pointer, 0, max(size, 1), self.stream)
        return allocation

    def allocate_in_stream(self, size: int) -> Allocation:
        """Returns memory for work on ``stream``, not zeroed, from a pool of this context that reuses freed memory.

        After the first few allocations it costs neither a wait nor a call of the operating system.
        """
        self.enter()
        if self._pool is None:
            with self.capture_lock:
                self._pool = self._pool or self._make_pool()
        pointer = int(call("cuMemAllocFromPoolAsync", max(size, 1), self._pool, self.stream))
        return Allocation(self, pointer, size, in_stream=True)

    def allocate_pinned(self, size: int) -> Allocation:
        """Returns page-locked memory of the host, at the same address for the host and the GPU (unified addressing)."""
        self.enter()
        driver = load_driver()
        flags = driver.CU_MEMHOSTALLOC_PORTABLE | driver.CU_MEMHOSTALLOC_DEVICEMAP
        return Allocation(self, int(call("cuMemHostAlloc", max(size, 1), flags)), size, pinned=True)

    def launch(self, kernel: str, grid: tuple[int, int, int], block: int, parameters: Parameters) -> None:
        """Launches a kernel on ``stream``; the driver copies the parameters before this returns."""
        call("cuLaunchKernel", self.kernels[kernel], *grid, block, 1, 1, 0, self.stream, parameters.address, 0)

    def synchronize(self) -> None:
        """Waits for all work on ``stream``."""
        self.enter()
        call("cuStreamSynchronize", self.stream)

    def _make_pool(self) -> Any:
        driver = load_driver()
        properties = driver.CUmemPoolProps()
        properties.allocType = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        properties.location.id = self.index
        pool = call("cuMemPoolCreate", properties)
        self._undo.append(("cuMemPoolDestroy", pool))
        threshold = driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
        call("cuMemPoolSetAttribute", pool, threshold, driver.cuuint64_t(2**64 - 1))
        return pool


class Parameters:
    """The parameters of one kernel in fixed memory, and the pointers to them that ``cuLaunchKernel`` takes.

    Attributes:
        address: of the pointers; valid as long as this object lives.
    """

    __slots__ = ("_pointers", "_values", "address")

    def __init__(self, *values: Any) -> None:
        """Takes ctypes objects, one per parameter."""
        self._values = values
        self._pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        self.address = ctypes.addressof(self._pointers)


class Allocation:
    """Allocated memory; freed with the last reference to it, or by ``free``."""

    __slots__ = ("__weakref__", "_finalizer", "context", "pointer", "size")

    def __init__(
        self, context: CudaContext, pointer: int, size: int, *, pinned: bool = False, in_stream: bool = False
    ) -> None:
        self.context = context
        self.pointer = pointer
        self.size = size
        free: tuple[Any, ...] = ("cuMemFreeHost" if pinned else "cuMemFree", pointer)
        if in_stream:
            free = ("cuMemFreeAsync", pointer, context.stream)
        self._finalizer = weakref.finalize(self, _free, context, free)
        self._finalizer.atexit = False

    def free(self) -> None:
        """Frees it now; may be called twice."""
        self._finalizer()


def _free(context: CudaContext, free: tuple[Any, ...]) -> None:
    """Frees memory; the context is an argument so that it outlives its memory."""
    undo_calls(context.primary, [free])


def undo_calls(context: Any, calls: list[tuple[Any, ...]]) -> None:
    """Runs calls of the driver, the last first, in a context, since a finaliser may run in any thread."""
    try:
        call("cuCtxPushCurrent", context)
        try:
            for name, *arguments in reversed(calls):
                call(name, *arguments)
        finally:
            call("cuCtxPopCurrent")
    except EngineError as error:
        _log.warning("the GPU did not free some memory: %s", error)
