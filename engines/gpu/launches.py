"""Launches of the kernels: parameters are laid out in memory once, and a launch changes only those that differ."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from engines.gpu.arrays import DeviceArray
from engines.gpu.context import CudaContext, Parameters
from engines.gpu.driver import call, load_driver
from engines.gpu.kernels import (
    BLOCK,
    MAX_CARRIED,
    MAX_GATHER_ROWS,
    MAX_GATHERED,
    Carried,
    Gather,
    slice_count,
    split_grid,
)


class SplitLaunch:
    """``split_rows`` over the buffers of one cut, for one batch at a time."""

    def __init__(self, context: CudaContext, confidence: DeviceArray, carried: Sequence[DeviceArray]) -> None:
        """Lays out the parameters and takes page-locked memory for the report.

        Args:
            context: of the GPU.
            confidence: (rows,) float32.
            carried: any number of buffers; each ``MAX_CARRIED`` of them take a launch.
        """
        self._context = context
        self._report = context.allocate_pinned(4 * (1 + len(confidence)))
        self._numbers = (ctypes.c_int * (1 + len(confidence))).from_address(self._report.pointer)
        self._event = call("cuEventCreate", load_driver().CUevent_flags.CU_EVENT_DISABLE_TIMING)
        self._count = ctypes.c_int()
        self._threshold = ctypes.c_float()
        self._launches: list[tuple[tuple[int, ...], Parameters]] = []
        full = [buffer for buffer in carried if buffer.row_bytes]
        groups = [full[first : first + MAX_CARRIED] for first in range(0, len(full), MAX_CARRIED)] or [[]]
        for group in groups:
            tensors = Carried()
            for place, buffer in enumerate(group):
                tensors.base[place], tensors.row_bytes[place] = buffer.pointer, buffer.row_bytes
            report = self._report.pointer if not self._launches else 0
            parameters = Parameters(
                ctypes.c_void_p(confidence.pointer), self._count, self._threshold, ctypes.c_void_p(report), tensors
            )
            self._launches.append((tuple(buffer.row_bytes for buffer in group), parameters))

    def run(self, count: int, threshold: float) -> list[int]:
        """Splits ``count`` rows, at least 1; waits for the report and returns the rows that leave, ascending."""
        self._count.value, self._threshold.value = count, threshold
        for row_bytes, parameters in self._launches:
            self._context.launch("split_rows", split_grid(count, row_bytes), BLOCK, parameters)
        call("cuEventRecord", self._event, self._context.stream)
        call("cuEventSynchronize", self._event)
        return list(self._numbers[1 : 1 + self._numbers[0]])


def gather(context: CudaContext, buffers: Sequence[DeviceArray], rows: Sequence[int], targets: Sequence[int]) -> None:
    """Copies rows of buffers to ``targets``, one address per buffer, in stream order; usually in a single launch.

    Args:
        context: of the GPU.
        buffers: the sources.
        rows: rows of the sources, in any order.
        targets: for every buffer, the address at which the first of them goes.
    """
    wanted = [(buffer, target) for buffer, target in zip(buffers, targets, strict=True) if buffer.row_bytes]
    for start in range(0, len(rows), MAX_GATHER_ROWS):
        some = rows[start : start + MAX_GATHER_ROWS]
        for first in range(0, len(wanted), MAX_GATHERED):
            _gather_some(context, wanted[first : first + MAX_GATHERED], some, start)


def _gather_some(
    context: CudaContext, wanted: Sequence[tuple[DeviceArray, int]], rows: Sequence[int], start: int
) -> None:
    table = Gather()
    for place, (buffer, target) in enumerate(wanted):
        table.source[place], table.row_bytes[place] = buffer.pointer, buffer.row_bytes
        table.target[place] = target + start * buffer.row_bytes
    table.rows[: len(rows)] = rows
    grid = (len(rows), len(wanted), slice_count([buffer.row_bytes for buffer, _ in wanted]))
    context.launch("gather_rows", grid, BLOCK, Parameters(table))


class NonfiniteLaunch:
    """``find_nonfinite`` over one array; ``found`` is the address of one int32 per row."""

    def __init__(self, context: CudaContext, array: DeviceArray, found: int) -> None:
        self._context = context
        self._rows = len(array)
        width = array.dtype.itemsize
        self._parameters = Parameters(
            ctypes.c_void_p(array.pointer), ctypes.c_uint64(array.row_bytes // width), ctypes.c_int(width),
            ctypes.c_void_p(found),
        )  # fmt: skip

    def run(self) -> None:
        self._context.launch("find_nonfinite", (self._rows, 1, 1), BLOCK, self._parameters)
