"""The host as a device: buffers are numpy arrays, survivors close ranks in place."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from artifacts import InputError, TensorSpec
from engines.protocols import Buffer, Departure

_ALIGNMENT = 64  # bytes: a cache line, and the widest vector register of today's processors
_COPY_ROW_BYTES = 2048  # from here on a call per row costs less than gathering into a temporary and copying back


class HostDevice:
    """Buffers in the memory of this process.

    It holds nothing: a buffer lives as long as somebody refers to it. All methods may be called from any thread, for
    different buffers at the same time.
    """

    @property
    def name(self) -> str:
        return "cpu"

    def allocate(self, spec: TensorSpec, rows: int) -> np.ndarray:
        """Returns a zeroed (rows, *row_shape) array, contiguous and aligned to a cache line.

        Raises:
            InputError: ``rows`` is negative.
        """
        if rows < 0:
            raise InputError(f"cannot allocate {rows} rows of '{spec.name}': expected a number from 0")
        dtype = np.dtype(spec.dtype)
        size = rows * math.prod(spec.row_shape) * dtype.itemsize
        block = np.zeros(size + _ALIGNMENT, dtype=np.uint8)
        offset = -block.ctypes.data % _ALIGNMENT
        return block[offset : offset + size].view(dtype).reshape(rows, *spec.row_shape)

    def upload(self, array: np.ndarray, buffer: Buffer) -> None:
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
        self,
        count: int,
        *,
        confidence: Buffer,
        threshold: float | None,
        answers: Sequence[Buffer],
        carried: Sequence[Buffer],
    ) -> Departure:
        """Lets rows leave and gathers the survivors to the front of every carried buffer, in order.

        A NaN confidence is no confidence: such a row stays (unless all leave). Nothing is copied when nobody leaves,
        and no carried row moves when everybody does or when the leavers are the last rows.

        Args:
            count: how many leading rows are real; the rest is padding and never looked at.
            confidence: (>= count,) float32.
            threshold: rows with at least this confidence leave; it is rounded to float32 first, so that every device
                compares like with like. ``None``: all leave.
            answers: the outputs that answer a query; fresh copies of the leavers' rows are returned.
            carried: every buffer that a later stage reads, each one once; rows from the number of survivors on are
                left as they are.

        Raises:
            InputError: ``count`` is negative or more than a buffer has rows.
        """
        for buffer in (confidence, *answers, *carried):
            if not 0 <= count <= len(buffer):
                raise InputError(f"cannot split {count} rows: a buffer has {len(buffer)}")
        if threshold is None:
            left, stayed = np.arange(count), np.arange(0)
        else:
            leaves = confidence[:count] >= np.float32(threshold)
            left, stayed = leaves.nonzero()[0], (~leaves).nonzero()[0]
        first = int(left[0]) if left.size else count  # the rows before it are in place already
        if stayed.size > first:
            for buffer in carried:
                _move_rows(buffer, stayed[first:], first)
        return Departure(
            left=left,
            stayed=stayed,
            confidence=_take_rows(confidence, left, count),
            answers=tuple(_take_rows(answer, left, count) for answer in answers),
        )

    def close(self) -> None:
        """Does nothing: numpy frees a buffer with its last reference."""


def _take_rows(buffer: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """Returns a fresh array with the given rows among the first ``count``."""
    if rows.size == count:
        return buffer[:count].copy()
    return np.take(buffer, rows, axis=0)


def _move_rows(buffer: np.ndarray, sources: np.ndarray, start: int) -> None:
    """Moves the rows ``sources``, which ascend and lie behind ``start``, to ``start`` and on."""
    if buffer[:1].nbytes < _COPY_ROW_BYTES:
        buffer[start : start + sources.size] = buffer[sources]
        return
    for target, source in enumerate(sources.tolist(), start=start):
        buffer[target] = buffer[source]  # target < source, so no row is overwritten before it has moved
