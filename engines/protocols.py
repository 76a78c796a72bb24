"""The two seams of this room: ``Engine`` (a compiled graph) and ``Device`` (where its buffers live).

A *buffer* is an array on the device with the batch as leading axis: ``numpy.ndarray`` on the host, a device array on a
GPU. Everybody but the device treats it as opaque, apart from ``len(buffer)``, its rows, and ``buffer[start:stop]``,
which is a view of some of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from artifacts import EngineKey, GraphSpec, TensorSpec

Buffer = Any
Execution = Callable[[], None]
Mark = Any


class Engine(Protocol):
    """A graph compiled by one backend, opened and ready to run."""

    @property
    def key(self) -> EngineKey: ...

    @property
    def graph(self) -> GraphSpec: ...

    def bind(self, buffers: Mapping[str, Buffer]) -> Execution:
        """Binds inputs and outputs once and returns the call that runs the engine over them.

        Args:
            buffers: name -> buffer for every input and output, all with the same number of rows, which must be one of
                ``key.batch_sizes`` or, when those are empty, 1 to ``key.max_batch_size``. They must outlive the call.

        Raises:
            EngineError: a name is missing, or a shape or dtype is not the one of ``graph``.
        """

    def close(self) -> None:
        """Frees the engine; may be called twice."""


class EngineBuilder(Protocol):
    """Compiles graphs for one backend."""

    @property
    def backend(self) -> str: ...

    def key(self, onnx: Path, *, batch_sizes: Sequence[int], max_batch_size: int) -> EngineKey:
        """Returns the key of the engine that ``build`` would make, without building it."""

    def build(self, onnx: Path, folder: Path, key: EngineKey) -> None:
        """Compiles ``onnx`` into files in ``folder`` (a staging folder of the store).

        Raises:
            EngineError: the backend refuses the graph; the message says which node and why.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """What ``Device.split_rows`` did; plain lists, because a batch has few rows and a cold array call costs 20 us.

    Attributes:
        left: the rows that leave, ascending.
        stayed: row ``i`` of every carried buffer is now the one that was at ``stayed[i]``.
    """

    left: list[int]
    stayed: list[int]


class Device(Protocol):
    """Where buffers live, and the one operation that multi-exit serving adds: rows leave, the others close ranks.

    What a device is told it does in that order, but not always at once: a GPU works while the host goes on. Only
    ``split_rows``, the downloads, ``find_nonfinite``, ``seconds_between`` and ``synchronize`` wait.
    """

    @property
    def name(self) -> str:
        """For messages, e.g. ``cpu`` or ``cuda:0``."""

    @property
    def bind_early(self) -> bool:
        """Whether binding an engine takes so long here that it must not happen in the middle of a batch."""

    def allocate(self, spec: TensorSpec, rows: int) -> Buffer:
        """Returns a zeroed buffer of ``rows`` rows."""

    def adopt(self, value: Any, *, stream: Any = None) -> Buffer:
        """Returns a view of an array that another library keeps on this device, to be handed to ``upload``.

        Args:
            value: has ``__dlpack__`` or ``__cuda_array_interface__``.
            stream: the stream of the caller's on which it was made.

        Raises:
            InputError: it is not on this device.
        """

    def copy(self, array: np.ndarray | Buffer) -> np.ndarray | Buffer:
        """Returns a copy of an array of the host, or of one that was adopted, where that one is."""

    def find_nonfinite(self, array: np.ndarray | Buffer) -> list[int]:
        """Returns the rows of an array of floating numbers that hold NaN or infinity."""

    def upload(self, array: np.ndarray | Buffer, buffer: Buffer) -> None:
        """Copies an array of the host, or one that was adopted, into the first rows of a buffer."""

    def split_rows(self, count: int, *, confidence: Buffer, threshold: float, carried: Sequence[Buffer]) -> Departure:
        """Lets rows leave and gathers the survivors at the front of every carried buffer, in an order that it tells.

        Args:
            count: how many leading rows are real; the rest is padding.
            confidence: float32, one per row.
            threshold: rows with at least this confidence leave; a value of float32.
            carried: every buffer that a later stage reads.
        """

    def download(self, buffer: Buffer, rows: Sequence[int]) -> np.ndarray:
        """Returns a fresh host array (len(rows), *row_shape) with the given rows of a buffer, in that order."""

    def download_all(self, buffers: Sequence[Buffer], rows: Sequence[int]) -> tuple[np.ndarray, ...]:
        """As ``download`` of each buffer, but all of them at once: a GPU is waited for a single time."""

    def take(self, buffers: Sequence[Buffer], rows: Sequence[int]) -> tuple[Buffer, ...]:
        """As ``download_all``, but the fresh arrays stay on the device and nobody waits."""

    def synchronize(self) -> None:
        """Waits until everything that the device was told so far is done."""

    def mark(self) -> Mark:
        """Marks this moment in the device's own time, behind everything that it was told so far."""

    def seconds_between(self, start: Mark, end: Mark) -> float:
        """Returns the seconds from one mark to a later one. Each mark is good for one call."""

    def close(self) -> None:
        """Frees all buffers; may be called twice."""
