"""``CudaDevice``: buffers in the memory of a GPU, where survivors close ranks; the host reads a few bytes per cut.

All work of a device goes to one stream, so its order is the order of the calls, and nothing in the loop of stages
allocates, or waits for the whole GPU:

    upload         host rows -> page-locked block -> buffer; does not wait
    (engine)       enqueued by the call that ``Engine.bind`` returned
    split_rows     one kernel; waits for it, since the host needs the number of survivors
    (engine) ...
    download_all   one kernel for all answers, into a page-locked block; waits for it

The kernels, and the argument why they are correct, are in ``engines/gpu/kernels.py``. Without a GPU the
tests run this module and the source of its kernels on a fake driver, see ``tests/engines/gpu/fake_cuda``.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np

from artifacts import EngineError, InputError, TensorSpec, UsageError
from engines.gpu.arrays import ALIGNMENT, DeviceArray
from engines.gpu.chain.graph import ChainGraph
from engines.gpu.context import Allocation, CudaContext
from engines.gpu.driver import call, call_unless_pending, load_driver
from engines.gpu.foreign_arrays import check_place, read_stream, view_foreign
from engines.gpu.launches import NonfiniteLaunch, SplitLaunch, gather
from engines.gpu.staging import HostReaders, PinnedPool
from engines.host.host_device import check_append, close_ranks, find_nonfinite
from engines.options import DeviceOptions
from engines.protocols import CapturedChain, Departure, Device, Mark, StageWork

_DEFAULT = DeviceOptions()
T = TypeVar("T")
GpuBuffer: TypeAlias = Any  # a ``DeviceArray``; the protocol's ``Buffer`` declares no address


class CudaDevice:
    """One GPU with one stream. Methods may be called from any thread, for different buffers at the same time.

    Args:
        options: which GPU, and how engines work on it.

    Engines that enqueue their own work ask for a ``CudaDevice``, not for a ``Device``: beyond the protocol it has what
    they share, namely ``cuda``, ``options``, ``reserve_scratch``, ``scratch``, ``attached`` and ``wait_for``.

    Attributes:
        cuda: the primary context and the stream.
        options: what it was opened with.

    Raises:
        MissingExtraError: cuda-bindings is not installed.
        EngineError: there is no driver, or the kernels do not compile for this GPU.
        UsageError: there is no such GPU.
    """

    bind_early = True

    def __init__(self, options: DeviceOptions = _DEFAULT) -> None:
        self.cuda = CudaContext(options.index)
        self.options = options
        self._attached: dict[str, Any] = {}
        self._pinned = PinnedPool(self.cuda)
        self._readers = HostReaders()
        self._owned: weakref.WeakSet[Allocation] = weakref.WeakSet()
        self._splits: dict[tuple[Any, ...], SplitLaunch] = {}
        self._events: deque[Any] = deque()
        self._scratch: list[Allocation] = []
        self._scratch_bytes = 0
        self._closed = False

    @property
    def index(self) -> int:
        """The ordinal of the GPU."""
        return self.cuda.index

    @property
    def name(self) -> str:
        return f"cuda:{self.cuda.index}"

    def allocate(self, spec: TensorSpec, rows: int) -> DeviceArray:
        """Returns a zeroed (rows, *row_shape) array on the GPU.

        Raises:
            InputError: ``rows`` is negative.
            EngineError: there is not enough memory.
        """
        if rows < 0:
            raise InputError(f"cannot allocate {rows} rows of '{spec.name}': expected at least 0")
        self._enter()
        dtype, shape = np.dtype(spec.dtype), (rows, *spec.row_shape)
        allocation = self.cuda.allocate(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        self._owned.add(allocation)
        return DeviceArray(allocation.pointer, shape, dtype, owner=allocation, device=self.cuda.index)

    def upload(self, array: GpuBuffer, buffer: GpuBuffer) -> None:
        """Copies an array of the host or of this GPU into the first rows of a buffer; does not wait for the copy.

        An array of the host may be changed at once, an array of the GPU once the answers of its batch are complete.

        Raises:
            InputError: dtype or row shape differ, or the buffer has too few rows.
        """
        if array.dtype != buffer.dtype or array.shape[1:] != buffer.shape[1:] or len(array) > len(buffer):
            raise InputError(
                f"cannot upload {array.dtype} {array.shape} into a buffer of {buffer.dtype} {buffer.shape}: "
                "dtype and row shape must be equal, and the rows must fit"
            )
        self._enter()
        if not array.nbytes:
            return
        stream = self.cuda.stream
        if isinstance(array, DeviceArray):
            call("cuMemcpyDtoDAsync", buffer.pointer, array.pointer, array.nbytes, stream)
            return
        block = self._pinned.take(array.nbytes)
        pinned, row_bytes = block.array(array.shape, array.dtype), buffer.row_bytes
        for rows, _ in self._readers.map(lambda rows: np.copyto(pinned[rows], array[rows]), array):
            begin, size = rows.start * row_bytes, (rows.stop - rows.start) * row_bytes
            call("cuMemcpyHtoDAsync", buffer.pointer + begin, block.pointer + begin, size, stream)
        block.record(stream)
        self._pinned.give_back(block)

    def split_rows(
        self, count: int, *, confidence: GpuBuffer, threshold: float, carried: Sequence[GpuBuffer]
    ) -> Departure:
        """As ``HostDevice.split_rows``, row for row: one kernel finds the rows that leave and moves those that stay.

        Waits for that kernel, and so for all work before it.

        Raises:
            InputError: ``count`` is negative or more than a buffer has rows.
            EngineError: the GPU failed.
        """
        for buffer in (confidence, *carried):
            if not 0 <= count <= len(buffer):
                raise InputError(f"cannot split {count} rows: a buffer has {len(buffer)}")
        if count == 0:
            return Departure(left=[], stayed=[])
        self._enter()
        key = (confidence.pointer, len(confidence), *[buffer.key for buffer in carried])
        launch = self._splits.get(key)
        if launch is None:
            launch = self._splits[key] = SplitLaunch(self.cuda, confidence, carried)
        left = launch.run(count, threshold)
        leaving = set(left)
        stayed, _, _ = close_ranks(left, [row for row in range(count) if row not in leaving])
        return Departure(left=left, stayed=stayed)

    def append_rows(
        self, source: Sequence[GpuBuffer], rows: Sequence[int], target: Sequence[GpuBuffer], offset: int
    ) -> None:
        """As ``Device.append_rows``, by the kernel that gathers answers; does not wait for it."""
        check_append(source, rows, target, offset)
        if not len(rows):
            return
        self._enter()
        gather(self.cuda, source, rows, [buffer.pointer + offset * buffer.row_bytes for buffer in target])

    def capture_chain(self, stages: Sequence[StageWork], answers: Sequence[GpuBuffer], rows: int) -> CapturedChain:
        """As ``Device.capture_chain``: one CUDA graph with conditional nodes."""
        self._enter()
        return ChainGraph(self.cuda, self, stages, answers, rows)

    def download(self, buffer: GpuBuffer, rows: Sequence[int]) -> np.ndarray:
        """As ``download_all`` of one buffer."""
        (taken,) = self.download_all((buffer,), rows)
        return taken

    def download_all(self, buffers: Sequence[GpuBuffer], rows: Sequence[int]) -> tuple[np.ndarray, ...]:
        """Returns fresh host arrays (len(rows), *row_shape) with the given rows of each buffer, in that order.

        One kernel gathers the rows of all buffers into a page-locked block; waits for it.

        Raises:
            InputError: a buffer has no such row.
        """
        self._check_rows(buffers, rows)
        self._enter()
        offsets, size = _lay_out(buffers, len(rows))
        block = self._pinned.take(size)
        try:
            gather(self.cuda, buffers, rows, [block.pointer + offset for offset in offsets])
            block.record(self.cuda.stream)
            block.wait()
            return tuple(
                block.array((len(rows), *buffer.shape[1:]), buffer.dtype, offset).copy()
                for buffer, offset in zip(buffers, offsets, strict=True)
            )
        finally:
            self._pinned.give_back(block)

    def take(self, buffers: Sequence[GpuBuffer], rows: Sequence[int]) -> tuple[DeviceArray, ...]:
        """As ``download_all``, into fresh arrays on the GPU that belong to the caller; does not wait.

        Their memory comes from a pool in stream order and outlives the device.
        """
        self._check_rows(buffers, rows)
        self._enter()
        offsets, size = _lay_out(buffers, len(rows))
        allocation = self.cuda.allocate_in_stream(size)
        gather(self.cuda, buffers, rows, [allocation.pointer + offset for offset in offsets])
        return tuple(
            DeviceArray(
                allocation.pointer + offset, (len(rows), *buffer.shape[1:]), buffer.dtype, owner=allocation,
                device=self.cuda.index,
            )
            for buffer, offset in zip(buffers, offsets, strict=True)
        )  # fmt: skip

    def adopt(self, value: Any, *, stream: Any = None) -> DeviceArray:
        """Returns a view of another library's array on this GPU; later work of the device waits for its contents.

        Args:
            value: has ``__dlpack__`` or ``__cuda_array_interface__``.
            stream: the caller's stream on which it was made; by default the stream that it names, or the legacy stream.

        Raises:
            InputError: it is in other memory or another context, or is not contiguous.
        """
        self._enter()
        if isinstance(value, DeviceArray):
            view, producer = value, None
        else:
            view, producer = view_foreign(value, stream=self.cuda.stream_handle)
        if view.nbytes:
            check_place(view, self.cuda)
        if stream is not None:
            producer = read_stream(stream)
        if producer is not None:
            self.wait_for(producer)
        return view

    def wait_for(self, stream: int) -> None:
        """Makes later work of the device wait for the work that is on another stream now; the host does not wait."""
        self.order_streams(stream, self.cuda.stream_handle)

    def order_streams(self, first: int, then: int) -> None:
        """Makes later work of one stream wait for the work that is on another stream now; the host does not wait."""
        self._enter()
        event, streams = self._take_event(), load_driver().CUstream
        call("cuEventRecord", event, streams(first))
        call("cuStreamWaitEvent", streams(then), event, 0)
        self._events.append(event)

    def copy(self, array: GpuBuffer) -> np.ndarray | DeviceArray:
        """Returns a copy in the same memory; on the GPU it is made in stream order, and the host does not wait."""
        if isinstance(array, np.ndarray):
            return array.copy()
        self._enter()
        allocation = self.cuda.allocate_in_stream(array.nbytes)
        if array.nbytes:
            call("cuMemcpyDtoDAsync", allocation.pointer, array.pointer, array.nbytes, self.cuda.stream)
        return DeviceArray(
            allocation.pointer, array.shape, array.dtype, owner=(allocation, array.owner), device=array.device
        )

    def find_nonfinite(self, array: GpuBuffer) -> list[int]:
        """Returns the rows of an array that hold NaN or infinity, ascending.

        For an array on the GPU it waits for the kernel that looks for them.
        """
        if isinstance(array, np.ndarray):
            found = self._readers.map(lambda rows: find_nonfinite(array[rows]), array)
            return [rows.start + row for rows, bad in found for row in bad]
        if array.dtype.kind != "f" or not array.nbytes:
            return []
        self._enter()
        block = self._pinned.take(4 * len(array))
        try:
            NonfiniteLaunch(self.cuda, array, block.pointer).run()
            block.record(self.cuda.stream)
            block.wait()
            flags = block.array((len(array),), np.dtype(np.int32))
            return [int(row) for row in np.flatnonzero(flags)]
        finally:
            self._pinned.give_back(block)

    def reserve_scratch(self, size: int) -> None:
        """Announces that an engine needs ``size`` bytes while it runs; the largest announcement counts."""
        self._scratch_bytes = max(self._scratch_bytes, size)

    def scratch(self, size: int) -> tuple[int, int]:
        """Returns address and size of the block that all engines of this device run in, one after the other.

        The first call allocates the announced size. A later engine that needs more gets a larger block; earlier engines
        stay with theirs, since captured graphs hold its address.
        """
        self._enter()
        self.reserve_scratch(size)
        if not self._scratch or self._scratch[-1].size < size:
            self._scratch.append(self.cuda.allocate(self._scratch_bytes))
        return self._scratch[-1].pointer, self._scratch[-1].size

    def attached(self, name: str, make: Callable[[], T]) -> T:
        """Returns the object that engines of this device share under a name; made on the first call, closed with the
        device."""
        with self.cuda.capture_lock:
            if name not in self._attached:
                self._attached[name] = make()
            shared: T = self._attached[name]
        return shared

    def synchronize(self) -> None:
        """Waits for all work that was issued so far; other streams of the GPU go on."""
        if not self._closed:
            self.cuda.synchronize()

    def mark(self) -> Mark:
        """Marks this moment on the device's stream."""
        event = self._take_event()
        call("cuEventRecord", event, self.cuda.stream)
        return event

    def seconds_between(self, start: Any, end: Any) -> float:
        """Returns the device's seconds from one mark to a later one, and waits for it; both are invalid afterwards."""
        elapsed_ms = call_unless_pending("cuEventElapsedTime", start, end)
        if elapsed_ms is None:
            call("cuEventSynchronize", end)
            elapsed_ms = call("cuEventElapsedTime", start, end)
        self._events.extend((start, end))
        return float(elapsed_ms) / 1e3

    def close(self) -> None:
        """Waits for its work and frees all buffers, but not the arrays from ``take``; may be called twice."""
        if self._closed:
            return
        self.cuda.synchronize()
        for shared in self._attached.values():
            shared.close()
        self._closed = True
        self._splits.clear()
        for allocation in [*self._owned, *self._scratch]:
            allocation.free()
        self._scratch.clear()
        self._pinned.free()
        self._readers.close()
        while self._events:
            call("cuEventDestroy", self._events.pop())

    def _enter(self) -> None:
        if self._closed:
            raise EngineError(f"{self.name}: the device is closed; open the runtime again")
        self.cuda.enter()

    def _take_event(self) -> Any:
        try:
            return self._events.pop()
        except IndexError:
            return call("cuEventCreate", load_driver().CUevent_flags.CU_EVENT_DEFAULT)

    def _check_rows(self, buffers: Sequence[GpuBuffer], rows: Sequence[int]) -> None:
        shortest = min((len(buffer) for buffer in buffers), default=0)
        if rows and not 0 <= min(rows) <= max(rows) < shortest:
            raise InputError(f"cannot download rows {list(rows)} of a buffer with {shortest}")


def require_cuda_device(backend: str, device: Device | None) -> CudaDevice:
    """Returns the device of an engine that runs on a GPU.

    Raises:
        UsageError: it is not a ``CudaDevice``.
    """
    if not isinstance(device, CudaDevice):
        where = "none" if device is None else device.name
        raise UsageError(
            f"an engine of {backend} runs on a GPU, got device {where}; pass device=open_device('{backend}')"
        )
    return device


def _lay_out(buffers: Sequence[GpuBuffer], count: int) -> tuple[list[int], int]:
    """Returns where the rows of each buffer begin in one block, in bytes, and its size."""
    offsets, size = [], 0
    for buffer in buffers:
        offsets.append(size)
        size += -(-count * buffer.row_bytes // ALIGNMENT) * ALIGNMENT
    return offsets, size
