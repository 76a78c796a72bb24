"""SegmentRunner: every segment and every exit head of a model, opened as the engines that will be deployed.

It sends all rows through everything, and no row leaves: that gives the features that frozen training reads and the
trace that planning reads.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from artifacts import GraphSpec, Model, ModelSpec, TensorSpec
from engines import (
    Buffer,
    BuildOptions,
    DeviceOptions,
    Engine,
    Execution,
    ensure_engine,
    find_length,
    fit_length,
    open_device,
    open_engine,
    share_scratch,
)


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
    There are buffers for every length of rows.

    Args:
        spec: the network.
        memory: bytes that may be used.
    """
    graphs = (*spec.segments, *spec.heads.values(), spec.final_head) if spec.final_head is not None else (spec.full,)
    tensors = (*spec.full.inputs, *(tensor for graph in graphs for tensor in graph.outputs))
    row = sum(_row_bytes(tensor.at_length(length)) for tensor in tensors for length in spec.lengths or (0,))
    inside = sum(max(map(_row_bytes, (*graph.inputs, *graph.outputs))) for graph in graphs)
    budget = min(_ENOUGH, _MEMORY_SHARE * memory)
    return int(max(1, min(MOST_ROWS, budget // max(1, row + _INSIDE * inside))))


def _row_bytes(tensor: TensorSpec) -> int:
    return math.prod(tensor.row_shape) * np.dtype(tensor.dtype).itemsize


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Bound:
    """Buffers for rows of one length, and the runs of all engines over them, in order."""

    buffers: Mapping[str, Buffer]
    runs: list[Execution]


class SegmentRunner:
    """Segments, final head and (on demand) exit heads of one model over buffers of a fixed number of rows.

    Not thread-safe; close it, or use it as a context manager. ``engine`` is what its engines run on.
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
        self.engine = engine
        self._spec = spec
        self._quantised = {tensor.name: tensor.quantised for cut in spec.cuts for tensor in cut.tensors}
        self._rows = rows
        self._sequence = spec.sequence
        if spec.sequence is not None and not with_heads:  # features of one shape are what training reads
            self._sequence = replace(spec.sequence, lengths=spec.lengths[-1:])
        self._stack = ExitStack()
        share_scratch()
        self._device = open_device(engine.backend, DeviceOptions(kernel_folder=cache))
        self._stack.callback(self._device.close)
        heads = tuple(spec.heads[cut.name] for cut in spec.candidates) if with_heads else ()
        self._heads = heads
        final = (spec.final_head,) if spec.final_head is not None else (spec.full,)
        self._engines: list[Engine] = []
        for graph in (*spec.segments, *heads, *final):
            options = BuildOptions(max_batch_size=rows)
            folder = ensure_engine(model.path(graph), graph, cache, backend=engine.backend, options=options)
            opened = open_engine(folder, graph, threads=engine.threads, device=self._device)
            self._stack.callback(opened.close)
            self._engines.append(opened)
        self._final: GraphSpec = final[0]
        self._bound: dict[int, _Bound] = {}
        self._current = self._bind(spec.lengths[-1] if spec.lengths else 0)

    def _bind(self, length: int) -> _Bound:
        """Returns buffers for rows of a length and the runs over them, which are made when they are first needed."""
        if length not in self._bound:
            buffers: dict[str, Buffer] = {}
            for tensor in (*self._spec.full.inputs, *(t for engine in self._engines for t in engine.graph.outputs)):
                if tensor.name not in buffers:
                    buffers[tensor.name] = self._device.allocate(tensor.at_length(length), self._rows)
            runs = [
                engine.bind(
                    {tensor.name: buffers[tensor.name] for tensor in (*engine.graph.inputs, *engine.graph.outputs)}
                )
                for engine in self._engines
            ]
            self._bound[length] = _Bound(buffers=buffers, runs=runs)
        return self._bound[length]

    def run(self, inputs: Mapping[str, np.ndarray], *, longest: bool = False) -> int:
        """Sends up to ``rows`` rows of every input through everything; returns how many.

        Args:
            inputs: name -> (n, ...); rows of several lengths run at the smallest that holds them, as they are served.
            longest: run them at the largest length instead.
        """
        specs = self._spec.full.inputs
        arrays: Sequence[np.ndarray | Buffer] = [inputs[spec.name] for spec in specs]
        if (sequence := self._sequence) is not None:
            arrays = fit_length(
                arrays, specs, replace(sequence, lengths=sequence.lengths[-1:]) if longest else sequence
            )
        self._current = self._bind(find_length(arrays, specs))
        for spec, array in zip(specs, arrays, strict=True):
            self._device.upload(array, self._current.buffers[spec.name])
        for execute in self._current.runs:
            execute()
        return len(arrays[0])

    def features(self, count: int, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """Returns copies of the main tensors of some cuts, or of all, after ``run``: cut name -> (count, ...); float16
        and quantised ones as float32, since exit heads are trained in that.
        """
        wanted = [cut for cut in self._spec.cuts if names is None or cut.name in names]
        return {cut.name: self.tensor(cut.main.name, count) for cut in wanted}

    def tensor(self, name: str, count: int) -> np.ndarray:
        """Returns a copy of a tensor at a cut after ``run``: (count, ...), float16 and quantised ones as float32."""
        copy = self._read(name, count)
        if (quantised := self._quantised.get(name)) is not None:
            return quantised.dequantise(copy)
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
        return self._device.download(self._current.buffers[name], range(count))

    def close(self) -> None:
        """Closes the engines; may be called twice."""
        self._bound.clear()
        self._current = _Bound(buffers={}, runs=[])
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
