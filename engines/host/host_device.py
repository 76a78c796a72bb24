"""``HostDevice``: buffers are numpy arrays, and survivors close ranks in place."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from time import perf_counter
from typing import Any, NoReturn, TypeAlias

import numpy as np

from artifacts import EngineError, InputError, TensorSpec, UsageError
from engines.options import DeviceOptions
from engines.protocols import Buffer, Departure, StageWork

HostBuffer: TypeAlias = Any  # a numpy array; the protocol's ``Buffer`` declares no assignment of items
_ALIGNMENT = 64  # bytes: a cache line, and the widest vector register of today's processors
_COPY_ROW_BYTES = 2048  # for longer rows a call per row costs less than gathering into a temporary and back,
_FEW_ROWS = 8  # as for so few rows, of whatever length


class HostDevice:
    """Buffers in the memory of this process.

    It holds no buffers itself: a buffer lives as long as there is a reference to it. All methods may be called from any
    thread, for different buffers at the same time.
    """

    index = 0
    bind_early = False
    mark = staticmethod(perf_counter)

    @property
    def name(self) -> str:
        return "cpu"

    def allocate(self, spec: TensorSpec, rows: int) -> np.ndarray:
        """Returns a zeroed (rows, *row_shape) array, contiguous and aligned to a cache line.

        Raises:
            InputError: ``rows`` is negative.
        """
        if rows < 0:
            raise InputError(f"cannot allocate {rows} rows of '{spec.name}': expected at least 0")
        dtype = np.dtype(spec.dtype)
        size = rows * math.prod(spec.row_shape) * dtype.itemsize
        block = np.zeros(size + _ALIGNMENT, dtype=np.uint8)
        offset = -block.ctypes.data % _ALIGNMENT
        return block[offset : offset + size].view(dtype).reshape(rows, *spec.row_shape)

    def adopt(self, value: Any, *, stream: Any = None) -> NoReturn:
        """Refuses every array: the host does not read arrays on a GPU.

        Raises:
            InputError: always.
        """
        del stream
        raise InputError(
            f"this runtime runs on the processor, got a {type(value).__name__} on a GPU; copy it to the host (.cpu(), "
            ".get()) or load a bundle that was planned for a GPU"
        )

    def copy(self, array: HostBuffer) -> np.ndarray:
        copied: np.ndarray = array.copy()
        return copied

    def find_nonfinite(self, array: HostBuffer) -> list[int]:
        """Returns the rows that hold NaN or infinity, ascending."""
        return find_nonfinite(array)

    def upload(self, array: HostBuffer, buffer: HostBuffer) -> None:
        """Copies a host array into the first rows of a buffer.

        Raises:
            InputError: dtype or row shape differ, or the buffer has too few rows.
        """
        if array.dtype != buffer.dtype or array.shape[1:] != buffer.shape[1:] or len(array) > len(buffer):
            raise InputError(
                f"cannot upload {array.dtype} {array.shape} into a buffer of {buffer.dtype} {buffer.shape}: "
                "dtype and row shape must be equal, and the rows must fit"
            )
        buffer[: len(array)] = array

    def split_rows(
        self, count: int, *, confidence: HostBuffer, threshold: float, carried: Sequence[HostBuffer]
    ) -> Departure:
        """Lets rows leave; the last survivors fill the places of the rows that left before them.

        So every survivor moves at most once, and no row moves without need: none when no row leaves, when all rows
        leave, or when the last rows leave. A row whose confidence is NaN stays.

        Args:
            count: how many leading rows are real; the rest is padding and is not read.
            confidence: (>= count,) float32.
            threshold: rows with at least this confidence leave; a value of float32, so that every device compares
                equal types.
            carried: every buffer that a later stage reads, each once; rows from the number of survivors on do not
                change.

        Raises:
            InputError: ``count`` is negative or more than a buffer has rows.
        """
        for buffer in (confidence, *carried):
            if not 0 <= count <= len(buffer):
                raise InputError(f"cannot split {count} rows: a buffer has {len(buffer)}")
        left: list[int] = []
        stayed: list[int] = []
        for row, value in enumerate(confidence[:count].tolist()):
            (left if value >= threshold else stayed).append(row)
        if left and stayed:
            stayed, movers, holes = close_ranks(left, stayed)
            if movers:
                for buffer in carried:
                    _move_rows(buffer, movers, holes)
        return Departure(left, stayed)

    def append_rows(
        self, source: Sequence[HostBuffer], rows: Sequence[int], target: Sequence[HostBuffer], offset: int
    ) -> None:
        """As ``Device.append_rows``; each row is copied once, straight to its place."""
        check_append(source, rows, target, offset)
        if not len(rows):
            return
        neighbours = isinstance(rows, range) and rows.step == 1
        for origin, goal in zip(source, target, strict=True):
            place = goal[offset : offset + len(rows)]
            if neighbours:
                place[...] = origin[rows[0] : rows[-1] + 1]
            else:
                np.take(origin, rows, axis=0, out=place, mode="clip")  # checked; "raise" would use a temporary

    def capture_chain(self, stages: Sequence[StageWork], answers: Sequence[Buffer], rows: int) -> NoReturn:
        """Refuses: there is nothing to capture on the processor.

        Raises:
            EngineError: always.
        """
        del stages, answers, rows
        raise EngineError(f"{self.name} has no CUDA graphs; a chain becomes one graph on an NVIDIA GPU only")

    def download(self, buffer: HostBuffer, rows: Sequence[int]) -> np.ndarray:
        """Returns a fresh array (len(rows), *row_shape) with the given rows of a buffer, in that order.

        Raises:
            InputError: the buffer has no such row.
        """
        if isinstance(rows, range) and rows.step == 1 and 0 <= rows.start <= rows.stop <= len(buffer):
            neighbours: np.ndarray = buffer[rows.start : rows.stop].copy()
            return neighbours
        (taken,) = self.download_all((buffer,), rows)
        return taken

    def download_all(self, buffers: Sequence[HostBuffer], rows: Sequence[int]) -> tuple[np.ndarray, ...]:
        """As ``download`` of each buffer."""
        index = np.array(rows, np.intp)
        try:
            return tuple([buffer.take(index, 0) for buffer in buffers])
        except IndexError as error:
            shortest = min(map(len, buffers))
            raise InputError(f"cannot download rows {list(rows)} of a buffer with {shortest}") from error

    take = download_all

    def synchronize(self) -> None:
        """No-op: work on the host is synchronous."""

    @staticmethod
    def seconds_between(start: Any, end: Any) -> float:
        """Returns the seconds from one mark to another."""
        seconds: float = end - start
        return seconds

    def close(self) -> None:
        """No-op: numpy frees a buffer with its last reference."""


def open_host_device(backend: str, options: DeviceOptions) -> HostDevice:
    """Returns the device of a backend whose engines run on the processor.

    Raises:
        UsageError: the options name another device than the only one.
    """
    if options.index != 0:
        raise UsageError(f"device={options.index}: engines of {backend} run on the processor; omit it")
    return HostDevice()


def check_append(source: Sequence[Buffer], rows: Sequence[int], target: Sequence[Buffer], offset: int) -> None:
    """Refuses rows and buffers that ``Device.append_rows`` cannot copy, for every device.

    Raises:
        InputError: the buffers do not match, a source has no such row, or a target has too few rows.
    """
    if len(source) != len(target):
        raise InputError(
            f"cannot append rows of {len(source)} buffers to {len(target)}: expected one target per source"
        )
    lowest, highest = min(rows, default=0), max(rows, default=-1)
    for origin, goal in zip(source, target, strict=True):
        if origin.dtype != goal.dtype or origin.shape[1:] != goal.shape[1:]:
            raise InputError(
                f"cannot append rows of {origin.dtype} {origin.shape} to a buffer of {goal.dtype} {goal.shape}: "
                "dtype and row shape must be equal"
            )
        if lowest < 0 or highest >= len(origin):
            raise InputError(f"cannot append rows {list(rows)} of a buffer with {len(origin)}")
        if not 0 <= offset <= len(goal) - len(rows):
            raise InputError(f"cannot append {len(rows)} rows from row {offset} on: the target has {len(goal)}")


def close_ranks(left: list[int], survivors: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Closes the ranks behind rows that left: the last survivors fill the places of those that left before them.

    Every device keeps this order: the host moves rows by it, and a GPU reports its departures by it.

    Args:
        left: the rows that leave, ascending.
        survivors: all other rows, ascending.

    Returns:
        ``Departure.stayed``, and the moves that lead there: the rows that move, and the holes that they fill.
    """
    first_mover = bisect_left(survivors, len(survivors))  # the survivors before it are in place already
    movers, holes = survivors[first_mover:], left[: len(survivors) - first_mover]
    if not movers:
        return survivors, movers, holes
    stayed = list(range(len(survivors)))
    for hole, mover in zip(holes, movers, strict=True):
        stayed[hole] = mover
    return stayed, movers, holes


def find_nonfinite(array: np.ndarray) -> list[int]:
    """Returns the rows of a host array that hold NaN or infinity, ascending."""
    finite = np.isfinite(array)
    if finite.all():
        return []
    return [int(row) for row in np.flatnonzero(~finite.reshape(len(array), -1).all(axis=1))]


def _move_rows(buffer: np.ndarray, sources: list[int], targets: list[int]) -> None:
    """Copies rows of a buffer over others; no row is both a source and a target."""
    if len(sources) > _FEW_ROWS and buffer.strides[0] < _COPY_ROW_BYTES:
        buffer[np.array(targets)] = buffer.take(np.array(sources), 0)
        return
    for source, target in zip(sources, targets, strict=True):
        buffer[target] = buffer[source]
