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
    """Where buffers live, and the one operation that multi-exit serving adds: rows leave, the others close ranks."""

    @property
    def name(self) -> str:
        """For messages and engine keys, e.g. ``cpu``."""

    def allocate(self, spec: TensorSpec, rows: int) -> Buffer:
        """Returns a zeroed buffer of ``rows`` rows."""

    def upload(self, array: np.ndarray, buffer: Buffer) -> None:
        """Copies a host array into the first rows of a buffer."""

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

    def close(self) -> None:
        """Frees all buffers; may be called twice."""
