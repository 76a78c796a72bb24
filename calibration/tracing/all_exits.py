"""SegmentRunner: every segment and every exit head of a model, opened as the engines that will be deployed.

It sends all rows through everything, and no row leaves: that gives the features that frozen training reads and the
trace that planning reads.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from artifacts import GraphSpec, Model, ModelSpec, TensorSpec
from engines import Buffer, BuildOptions, DeviceOptions, Execution, ensure_engine, open_device, open_engine


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """Which engines run segments and heads.

    Attributes:
        backend: e.g. ``onnxruntime``.
        threads: of each engine.
    """

    backend: str
    threads: int


MOST_ROWS = 64
_MEMORY_SHARE = 0.5
_ENOUGH = 512 << 20  # bytes: larger batches of large images are not faster
_INSIDE = 6  # a segment's own tensors and workspace, in units of the larger of what it reads and writes


def fit_rows(spec: ModelSpec, memory: int) -> int:
    """Returns how many rows a ``SegmentRunner`` should take at once, from 1 to ``MOST_ROWS``.

    Its engines each keep the memory that they needed once, for what they read and write and for what is in between.
    That is estimated from above, and may take half of the memory that there is, or ``_ENOUGH`` where there is plenty.

    Args:
        spec: the network.
        memory: bytes that may be used.
    """
    graphs = (*spec.segments, *spec.heads.values(), spec.final_head) if spec.final_head is not None else (spec.full,)
    row = sum(_row_bytes(tensor) for tensor in (*spec.full.inputs, *(t for graph in graphs for t in graph.outputs)))
    inside = sum(max(map(_row_bytes, (*graph.inputs, *graph.outputs))) for graph in graphs)
    budget = min(_ENOUGH, _MEMORY_SHARE * memory)
    return int(max(1, min(MOST_ROWS, budget // max(1, row + _INSIDE * inside))))


def _row_bytes(tensor: TensorSpec) -> int:
    return math.prod(tensor.row_shape) * np.dtype(tensor.dtype).itemsize


class SegmentRunner:
    """Segments, final head and (on demand) exit heads of one model over buffers of a fixed number of rows.

    Not thread-safe; close it, or use it as a context manager.
    """

    def __init__(self, model: Model, cache: Path, engine: EngineChoice, *, rows: int, with_heads: bool) -> None:
        """Builds the engines that are not in ``cache`` yet and opens them.

        Args:
            model: the model folder.
            cache: folder of compiled engines.
            engine: backend and threads.
            rows: batch size of every run; the last batch is padded.
            with_heads: also open the exit heads.
        """
        spec = model.spec
        self._spec = spec
        self._rows = rows
        self._stack = ExitStack()
        self._device = open_device(engine.backend, DeviceOptions(kernel_folder=cache))
        self._stack.callback(self._device.close)
        self._buffers: dict[str, Buffer] = {}
        for tensor in spec.full.inputs:
            self._buffers[tensor.name] = self._device.allocate(tensor, rows)
        heads = tuple(spec.heads[cut.name] for cut in spec.candidates) if with_heads else ()
        self._heads = heads
        final = (spec.final_head,) if spec.final_head is not None else (spec.full,)
        self._runs: list[Execution] = []
        for graph in (*spec.segments, *heads, *final):
            options = BuildOptions(max_batch_size=rows)
            folder = ensure_engine(model.path(graph), graph, cache, backend=engine.backend, options=options)
            opened = open_engine(folder, graph, threads=engine.threads, device=self._device)
            self._stack.callback(opened.close)
            self._runs.append(opened.bind(self._buffers_of(graph)))
        self._final: GraphSpec = final[0]

    def _buffers_of(self, graph: GraphSpec) -> dict[str, Buffer]:
        for tensor in graph.outputs:
            self._buffers.setdefault(tensor.name, self._device.allocate(tensor, self._rows))
        return {tensor.name: self._buffers[tensor.name] for tensor in (*graph.inputs, *graph.outputs)}

    def run(self, inputs: Mapping[str, np.ndarray]) -> int:
        """Sends up to ``rows`` rows of every input through everything; returns how many."""
        count = len(next(iter(inputs.values())))
        for name, array in inputs.items():
            self._device.upload(array, self._buffers[name])
        for execute in self._runs:
            execute()
        return count

    def features(self, count: int, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """Returns copies of the main tensors of some cuts, or of all, after ``run``: cut name -> (count, ...); float16
        as float32, since exit heads are trained in that.
        """
        wanted = [cut for cut in self._spec.cuts if names is None or cut.name in names]
        return {cut.name: self.tensor(cut.main.name, count) for cut in wanted}

    def tensor(self, name: str, count: int) -> np.ndarray:
        """Returns a copy of a tensor at a cut after ``run``: (count, ...), float16 as float32."""
        copy = self._read(name, count)
        return copy.astype(np.float32) if copy.dtype == np.float16 else copy

    def answers(self, count: int) -> list[tuple[tuple[np.ndarray, ...], np.ndarray]]:
        """Returns (answers, confidence (count,) float32) after ``run``, per opened exit head and last the final head.

        A final head without a confidence of its own answers with confidence 1.
        """
        found = []
        for graph in (*self._heads, self._final):
            answers = tuple(self._read(name, count) for name in graph.answers)
            confidence = np.ones(count, np.float32)
            if graph.confidence is not None:
                confidence = self._read(graph.confidence, count)
            found.append((answers, confidence))
        return found

    def _read(self, name: str, count: int) -> np.ndarray:
        return self._device.download(self._buffers[name], range(count))

    def close(self) -> None:
        """Closes the engines; may be called twice."""
        self._runs.clear()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
