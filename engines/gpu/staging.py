"""``PinnedPool``: blocks of page-locked host memory, which a GPU reads and writes without a hidden copy;
``HostReaders``: threads that fill them."""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from artifacts import allowed_processors
from engines.gpu.context import CudaContext
from engines.gpu.driver import call, call_unless_pending, load_driver

_SMALLEST = 4096
_MOST_PENDING = 16  # blocks of one size; from here on the host waits for the GPU to catch up
_LARGE = 8 << 20  # bytes; one thread reads a smaller array before several have begun
_MOST_READERS = 4  # as many keep up with the bus of a GPU
T = TypeVar("T")


class PinnedBlock:
    """A block of page-locked memory; ``memory`` is the host's view of it, ``pointer`` its address on both sides."""

    __slots__ = ("_allocation", "_event", "_recorded", "memory", "pointer", "size")

    def __init__(self, context: CudaContext, size: int) -> None:
        self._allocation = context.allocate_pinned(size)
        self._event = call("cuEventCreate", load_driver().CUevent_flags.CU_EVENT_DISABLE_TIMING)
        self._recorded = False
        self.size = size
        self.pointer = self._allocation.pointer
        self.memory: Any = (ctypes.c_ubyte * size).from_address(self.pointer)

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int = 0) -> np.ndarray:
        """Returns a view of the block from byte ``offset`` on."""
        return np.ndarray(shape, dtype, buffer=self.memory, offset=offset)

    def record(self, stream: Any) -> None:
        """Marks the block as used by the work that is on ``stream`` now."""
        call("cuEventRecord", self._event, stream)
        self._recorded = True

    @property
    def pending(self) -> bool:
        """Whether that work is still running."""
        if self._recorded and call_unless_pending("cuEventQuery", self._event):
            self._recorded = False
        return self._recorded

    def wait(self) -> None:
        """Waits until that work is done."""
        if self.pending:
            call("cuEventSynchronize", self._event)
            self._recorded = False

    def free(self) -> None:
        """Frees it; the work that uses it must be done."""
        self._allocation.free()
        call("cuEventDestroy", self._event)


class PinnedPool:
    """Blocks by size, the longest idle first. After the first few calls it allocates no more: sizes are powers of two
    and recur, and a block is added only while all others are in use."""

    def __init__(self, context: CudaContext) -> None:
        self._context = context
        self._idle: dict[int, deque[PinnedBlock]] = {}

    def take(self, size: int) -> PinnedBlock:
        """Lends a block of at least ``size`` bytes that no work uses."""
        rounded = max(_SMALLEST, 1 << max(size - 1, 0).bit_length())
        idle = self._idle.setdefault(rounded, deque())
        try:
            block = idle.popleft()
        except IndexError:  # also when another thread took the last one
            return PinnedBlock(self._context, rounded)
        if block.pending and len(idle) < _MOST_PENDING:
            idle.appendleft(block)
            return PinnedBlock(self._context, rounded)
        block.wait()
        return block

    def give_back(self, block: PinnedBlock) -> None:
        self._idle[block.size].append(block)

    def free(self) -> None:
        """Frees all idle blocks."""
        for idle in self._idle.values():
            while idle:
                block = idle.pop()
                block.wait()
                block.free()


class HostReaders:
    """Threads that read a large array of the host in pieces, since one thread is slower than the bus of a GPU."""

    def __init__(self) -> None:
        self._threads = min(_MOST_READERS, allowed_processors())
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="pame-upload")  # starts them when used
        self._process = os.getpid()

    def map(self, work: Callable[[slice], T], array: np.ndarray) -> Iterator[tuple[slice, T]]:
        """Yields the rows of each piece with what ``work`` returned for them, in order.

        A small array is one piece, and so is any after ``close`` and in a forked process, which has no such threads.
        """
        if array.nbytes < _LARGE or self._threads == 1 or os.getpid() != self._process:
            everything = slice(0, len(array))
            yield everything, work(everything)
            return
        step = -(-len(array) // (2 * self._threads))
        pieces = [slice(start, min(start + step, len(array))) for start in range(0, len(array), step)]
        yield from zip(pieces, self._pool.map(work, pieces), strict=True)

    def close(self) -> None:
        """Ends the threads."""
        self._threads = 1
        self._pool.shutdown()
